"""Forecasts around a model: scored against the truth, shared among processes, written; and physics on tracks."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion3d.build import build_model
from fusion3d.cli import run
from fusion3d.config import Config, MotionConfig, PlanningConfig
from fusion3d.data.tracks import TrackScene, read_tracks
from fusion3d.engine import split as split_module
from fusion3d.engine.evaluate import choose_tasks
from fusion3d.engine.forecasts import format_motion, score_predictions, to_json
from fusion3d.engine.inference import run_split, sensor_subsets
from fusion3d.engine.physics import format_tracks, score_tracks
from fusion3d.engine.random_batch import random_batch
from fusion3d.engine.share import Share, join_outputs, stretches
from fusion3d.errors import ConfigError
from fusion3d.metrics.forecast import ERRORS, score_forecasts
from fusion3d.types import DETECTION_CLASSES, TRACKING_CLASSES, Batch, Boxes, Forecast, Predictions

sys.path.insert(0, str(Path(__file__).parent))
from small import RandomData, small_config

CPU = torch.device("cpu")
TRACKED = torch.tensor([name in TRACKING_CLASSES for name in DETECTION_CLASSES])


def true_batch() -> Batch:
    config = dataclasses.replace(Config(), data=dataclasses.replace(Config().data, image_size=(64, 64)))
    return random_batch(config, 2, 5, 5, 40)


def knows_it(batch: Batch) -> Predictions:
    """The truth, as the second of three ways, that says nothing of what is not known."""
    assert batch.boxes is not None and batch.motion is not None
    motion = []
    for boxes, true in zip(batch.boxes, batch.motion, strict=True):
        away = torch.tensor([7.0, 0.0, -9.0])[:, None, None]
        position = true.path.position[:, None].nan_to_num() + away
        score = torch.tensor([0.5, 0.3, 0.2]).expand(len(boxes), -1)
        motion.append(Forecast(position, true.path.yaw[:, None].expand(-1, 3, -1), score))
    return Predictions(batch.tokens, batch.boxes, motion=tuple(motion))


def test_who_knows_the_truth_is_right_from_the_second_way_on():
    batch = true_batch()
    scored = score_predictions(knows_it(batch), batch)
    assert list(scored) == list(batch.tokens)
    row = score_forecasts([*scored.values()])["all"]
    limit = torch.tensor([50.0] * 5 + [40.0] * 3 + [30.0] * 2)
    counted = [
        int(
            (TRACKED[of.label] & of.velocity.isfinite().all(1) & (of.center[:, :2].norm(dim=1) < limit[of.label])).sum()
        )
        for of in batch.boxes
    ]
    assert row["true"] == row["found"] == sum(counted) > 10 and row["recall"] == 1
    assert row["model"]["minADE_1"] == pytest.approx(7 * 2**0.5, rel=1e-5) and row["model"]["MissRateTopK_2_1"] == 1
    assert row["model"]["minADE_5"] < 1e-5 and row["model"]["missed_or_not_found_5"] == 0
    assert 0 < row["constant_velocity"]["minADE_5"] < row["stationary"]["minADE_5"]
    lines = format_motion({"lidar": score_forecasts([*scored.values()])})
    assert (
        lines[0].startswith("motion, 3 s ")
        and lines[1].startswith("lidar ")
        and "1.000" in lines[1]
        and any("turns" in line for line in lines)
    )


def test_what_no_sensor_saw_or_nobody_found_counts_as_it_should():
    batch = true_batch()
    unseen = tuple(dataclasses.replace(of, num_points=torch.zeros_like(of.num_points)) for of in batch.boxes)
    nothing = score_predictions(knows_it(batch), dataclasses.replace(batch, boxes=unseen))
    assert score_forecasts([*nothing.values()])["all"]["true"] == 0
    said = knows_it(batch)
    none = Predictions(batch.tokens, tuple(of[:0] for of in said.boxes), motion=tuple(of[:0] for of in said.motion))
    groups = score_forecasts([*score_predictions(none, batch).values()])
    row = groups["all"]
    assert row["true"] > 10 and row["found"] == row["recall"] == 0 and np.isnan(row["model"]["minADE_1"])
    assert row["model"]["missed_or_not_found_1"] == 1
    assert format_motion({"radar": groups})[-1] == "  turns: none"


def test_every_subset_is_scored_and_shares_make_the_whole():
    config = small_config(motion={"channels": 8}, planning=None, occupancy={"channels": 8})
    model, data, subsets = build_model(config).eval(), RandomData(config, 4), sensor_subsets(config)
    grids = config.grid, config.map_grid
    whole = run_split(model, data, subsets, 2, 0, CPU, grids=grids)
    for name, of_subset in whole.subsets.items():
        assert len(of_subset.agents) == 4 and not of_subset.forecasts, name
        assert len(of_subset.agents["sample-3"].label) == 0, "it is not annotated"
        assert len(of_subset.agents["sample-2"].label) > 0

    class Place:
        world = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

    data.tokens = [f"sample-{i}" for i in range(4)]
    shares = [Share(data, stretches(data, 2, False), Place(rank)) for rank in (0, 1)]
    joined = join_outputs([run_split(model, of, subsets, 2, 0, CPU, grids=grids) for of in shares], data.tokens)
    assert whole.still.scores()["IoU@0.5"]["vehicle@0s"] == 1
    np.testing.assert_equal(vars(joined.still), vars(whole.still))
    for name in subsets:
        np.testing.assert_equal(
            score_forecasts([*joined.subsets[name].agents.values()]),
            score_forecasts([*whole.subsets[name].agents.values()]),
        )
        np.testing.assert_equal(vars(joined.subsets[name].occupancy), vars(whole.subsets[name].occupancy))
    kept = run_split(model, data, {"lidar": ("lidar",)}, 2, 0, CPU, keep_forecasts=True).subsets["lidar"]
    assert list(kept.forecasts) == data.tokens and not kept.agents
    assert all(len(kept.forecasts[token]) == len(kept.boxes[token]) for token in data.tokens)


def test_the_file_says_what_scores_enough():
    batch = true_batch()
    said = knows_it(batch)
    boxes = dataclasses.replace(said.boxes[0], score=torch.linspace(0, 1, len(said.boxes[0])))
    content = json.loads(
        json.dumps(to_json({"a": boxes, "b": Boxes.empty()}, {"a": said.motion[0], "b": said.motion[0][:0]}, 0.5))
    )
    assert content["frame"] == "ego" and content["forecasts"]["b"] == []
    rows = (boxes.score >= 0.5).nonzero()[:, 0].tolist()
    assert len(content["forecasts"]["a"]) == len(rows)
    for row, written in zip(rows, content["forecasts"]["a"], strict=True):
        assert written["detection_name"] == DETECTION_CLASSES[boxes.label[row]]
        np.testing.assert_allclose(written["position"], said.motion[0].position[row], atol=6e-4)
        np.testing.assert_allclose(written["center"], boxes.center[row], atol=6e-4)
        assert written["probability"] == [0.5, 0.3, 0.2]


@pytest.mark.parametrize(("planning", "motion", "steps"), [(4, 12, 12), (8, None, 8), (None, 3, 3), (None, None, 6)])
def test_a_split_is_read_as_far_as_any_head_looks(monkeypatch, planning, motion, steps):
    asked = {}
    monkeypatch.setattr(split_module, "NuScenesDataset", lambda *_, **settings: asked.update(settings))
    heads = {"planning": planning and PlanningConfig(steps=planning), "motion": motion and MotionConfig(steps=motion)}
    config = dataclasses.replace(Config(), **heads)
    split_module.open_split(config, "val", training=False)
    assert asked["steps"] == steps and asked["with_motion"] == (motion is not None)
    assert ("motion" in choose_tasks(config, None)) == (motion is not None)
    if motion is None:
        with pytest.raises(ConfigError, match="no task 'motion'"):
            choose_tasks(config, ["motion"])


def track(path: np.ndarray, time: np.ndarray, category: str = "vehicle.car") -> TrackScene:
    """A scene with one agent: [K, 3] poses."""
    tokens = tuple(map(str, range(len(path))))
    ego, size = np.zeros((len(path), 3)), np.array([[4.5, 1.9]])
    return TrackScene("scene", "place", tokens, time, ego, (category,), size, path[None])


def test_physics_on_tracks_knows_what_goes_on_as_it_did():
    time = np.cumsum([0, 0.5, 0.45, 0.55, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    straight = np.stack([3 - 4 * time, 1 + 3 * time, 0.3 + 0 * time], axis=1)  # not the way that it heads
    groups = score_forecasts(score_tracks([track(straight, time)], 6))["all"]
    assert groups["true"] == groups["found"] == 3 and groups["constant_velocity"]["minFDE_1"] < 1e-9
    angle = 0.2 * time
    circle = np.stack([10 * np.sin(angle), 10 - 10 * np.cos(angle), angle], axis=1)
    row = score_forecasts(score_tracks([track(circle, time)], 6))["turns"]
    # Chords of a tenth of a radian for the arc and its tangent: nearly nothing, where straight on is far off.
    assert row["constant_turn"]["minFDE_1"] < 0.35 < 1.5 < row["constant_velocity"]["minFDE_1"]
    assert row["physics_oracle"]["minADE_1"] <= row["constant_turn"]["minADE_1"] + 1e-12
    gap = straight.copy()
    gap[4] = np.nan
    assert score_forecasts(score_tracks([track(gap, time)], 3))["all"]["true"] == 1
    late = np.where(np.arange(10) > 4, time + 2, time)
    assert score_forecasts(score_tracks([track(straight, late)], 6))["all"]["true"] == 0
    assert score_forecasts(score_tracks([track(straight, time, "movable_object.barrier")], 6))["all"]["true"] == 0


def test_the_real_tracks(tracks_root, tmp_path, capsys):
    agents = score_forecasts(score_tracks(read_tracks(tracks_root), 6))
    assert agents["all"]["true"] == 6834 and agents["turns"]["true"] == 469
    best = {
        name: agents["turns"][name]["minADE_1"] for name in ("constant_velocity", "constant_turn", "physics_oracle")
    }
    assert best["physics_oracle"] < best["constant_turn"] < 0.8 * best["constant_velocity"]
    assert set(ERRORS) < set(agents["all"]["stationary"])
    assert format_tracks(agents).count("physics_oracle") == len(agents)
    (tmp_path / "scene-0061.npz").write_bytes((tracks_root / "scene-0061.npz").read_bytes())
    command = ["--tracks", str(tmp_path), "--protocol", "uniad_valid", "--agents", "--out", str(tmp_path / "out.json")]
    assert run("evaluate_plans", command) == 0
    assert "agents on tracks" in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())["agents"]
    assert 0 < written["all"]["true"] < 6834
    assert run("evaluate_plans", ["--root", "x", "--agents"]) == 1
    assert "--agents is of --tracks" in capsys.readouterr().err
