"""The planner that chooses in training, checkpoints, evaluation, pictures and beside the rest of the engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusion3d.analysis.explain.targets import Target, answer
from fusion3d.build import build_model
from fusion3d.config import AugmentConfig, Config, PasteConfig, from_dict
from fusion3d.data.annotations import load_ego
from fusion3d.data.collate import collate
from fusion3d.engine.anchors import check_anchors, driven_paths, find_anchors
from fusion3d.engine.checkpoint import load_model
from fusion3d.engine.compilation import dense_parts
from fusion3d.engine.describe import describe
from fusion3d.engine.eval_table import format_table
from fusion3d.engine.evaluate import evaluate
from fusion3d.engine.random_batch import give_anchors, random_batch
from fusion3d.engine.split import open_split
from fusion3d.engine.start import start_from
from fusion3d.engine.train import train
from fusion3d.engine.views import predict_views
from fusion3d.engine.visualize import look, open_clips, visualize
from fusion3d.errors import ConfigError, DataError
from fusion3d.late import LateFusion
from fusion3d.metrics.planning import PROTOCOLS
from fusion3d.metrics.planning.baselines import make_anchors
from fusion3d.model import Fusion3D
from fusion3d.types import PLAN_SCORES, Boxes, Occupancy, PlanModes
from fusion3d.view import pictures, scene

STEPS, COUNT = 2, 4


def make_config(root: Path, **planning: Any) -> Config:
    values = {
        "data": {
            "root": str(root), "version": "v1.0-synthetic", "train_split": "synthetic_train", "split": "synthetic_val",
            "lidar_sweeps": 1, "radar_sweeps": 1, "workers": 0, "sensors": ["lidar", "radar"],
        },
        "grid": {"x": [-25.6, 25.6], "y": [-25.6, 25.6], "resolution": 1.6},
        "camera": None,
        "lidar": {"channels": 8, "pillar": 0.8},
        "radar": {"channels": 8},
        "fusion": {"channels": 8},
        "trunk": {"channels": 8, "blocks": [1, 1], "out_channels": 8},
        "detection": {"channels": 8, "max_boxes": 20, "score_threshold": 0.01},
        "planning": {
            "head": "anchors", "steps": STEPS, "channels": 8, "ego_status": "predicted",
            "anchors": {"count": COUNT, "reject": True, "reject_score": 0.01},
        } | planning,
        "occupancy": {"channels": 8},
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 0.003, "drop_sensor": 0.3},
    }  # fmt: skip
    return from_dict(values)


@pytest.fixture(scope="module")
def config(synthetic_root) -> Config:
    return make_config(synthetic_root)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(config, folder, device="cpu")
    return folder


def test_anchors_are_of_the_training_split_and_stay_in_the_checkpoint(config, run):
    dataset = open_split(config, config.data.train_split, training=True)
    futures = [load_ego(dataset.tables, int(row), STEPS)[0] for row in dataset.rows]
    futures = [torch.cat([f.position, f.yaw[:, None]], dim=1).numpy() for f in futures if bool(f.mask.all())]
    paths = driven_paths(dataset, STEPS)
    np.testing.assert_allclose(paths, np.stack(futures), atol=1e-5)
    assert len(paths) == 8, "two scenes of six keyframes"
    model, _ = load_model(run)
    assert isinstance(model, Fusion3D)
    expected = torch.from_numpy(make_anchors(paths, COUNT)).float()
    torch.testing.assert_close(model.planning.anchors, expected)
    for file in ("model.safetensors", "ema.safetensors"):
        weights = load_file(next(run.glob(f"checkpoints/*/{file}")))
        assert torch.equal(weights["planning.anchors"], expected), file
    lines = (run / "log.jsonl").read_text()
    assert {"planning_imitation", "planning_scores", "planning_status", "occupancy"} <= {
        name.removeprefix("loss/") for name in json.loads(lines.splitlines()[-1])
    }


def test_a_run_that_starts_from_another_keeps_the_anchors_that_were_learned(config, run):
    model = build_model(config)
    give_anchors(model)
    start_from(model, [run])
    assert torch.equal(model.planning.anchors, load_model(run)[0].planning.anchors)


def test_what_there_is_too_little_of(synthetic_root):
    config = make_config(synthetic_root, anchors={"count": 9})
    dataset = open_split(config, config.data.train_split, training=True)
    with pytest.raises(ConfigError, match=r"planning\.anchors\.count: found 9, .* has 8 different paths"):
        find_anchors(build_model(config), config, dataset)
    long = make_config(synthetic_root, steps=6)
    with pytest.raises(DataError, match="no keyframe has 6 known ones after"):
        find_anchors(build_model(long), long, dataset)
    query = make_config(synthetic_root, head="query", anchors={})
    assert find_anchors(build_model(query), query, dataset) == []
    for wrong, told in (
        ({"detection": None}, "planning.anchors.reject is true, and detection is null"),
        ({"occupancy": None}, "prices has 'occupied', and occupancy is null"),
    ):
        weighed = make_config(synthetic_root, anchors={"reject": True, "prices": {"occupied": 1.0}})
        with pytest.raises(ConfigError, match=told):
            build_model(dataclasses.replace(weighed, **wrong))
    unread = dataclasses.replace(long, planning=dataclasses.replace(long.planning, head="query"))  # type: ignore[type-var]
    with pytest.raises(ConfigError, match=r"planning\.anchors is set, and planning\.head is 'query'"):
        build_model(unread)


def test_maps_and_motion_are_read_to_learn_of_them(config):
    sample = open_split(config, config.data.train_split, training=True)[0]
    assert sample.motion is not None and sample.map_mask is not None and sample.motion.path.mask.shape[1] == 6
    sample = open_split(config, config.data.split, training=False, with_occupancy=True)[0]
    assert sample.motion is not None and sample.map_mask is not None
    sample = open_split(config, config.data.split, training=False)[0]
    assert sample.motion is None and sample.map_mask is None, "nothing is scored by them"


def test_evaluation_tells_of_the_choice(config, run, tmp_path):
    metrics = evaluate(run, None, tmp_path, ["lidar", "lidar+radar"], "cpu", tasks=["planning", "occupancy"])
    assert {"model", "imitation", "ctrv", "human"} <= set(metrics["planning"])
    cells = {name: row["occupancy"] for name, row in metrics["subsets"].items()} | metrics["occupancy"]
    for row in cells.values():
        pairs = [(row["IoU@0.5"][name], row["IoU@best"][name]) for name in ("vehicle@0s", "vehicle@1s")]
        assert all(0 <= fixed <= best <= 1 for fixed, best in pairs)
    assert cells["still"]["IoU@0.5"]["vehicle@0s"] == 1 and "still" in metrics["occupancy_protocol"]
    modes = metrics["planning_scores"]["modes"]
    assert modes["K"] == COUNT and modes["N"] == 4 and np.isfinite([*modes.values()]).all()
    assert modes["minADE_1"] > 0 and 0 <= modes["collision_ECE"] <= 1
    text = format_table(metrics)
    assert [text.count(f"\n  {name} ") for name in PROTOCOLS] == [1] * len(PROTOCOLS), "of the largest subset"
    assert "imitation" in text and "paths to choose from" in text and "minADE_1" in text
    assert json.loads((tmp_path / "metrics.json").read_text())["planning_scores"]["modes"]["K"] == COUNT


def test_views_are_merged_path_by_path_and_one_is_chosen(config, run):
    model, _ = load_model(run)
    batch = collate([open_split(config, config.data.split, training=False)[i] for i in (1, 2)])
    here, mirror = np.eye(4), np.diag([1.0, -1.0, 1.0, 1.0])
    with torch.inference_mode():
        several = ([here], [mirror, mirror], [here, mirror])
        plain, mirrored, merged = (predict_views(model, batch, views) for views in several)
    assert plain.modes is not None and merged.modes is not None and merged.occupancy is not None
    assert mirrored.modes is not None and not torch.equal(mirrored.modes.cost, plain.modes.cost)
    torch.testing.assert_close(merged.modes.cost, (plain.modes.cost + mirrored.modes.cost) / 2)
    halfway = (plain.modes.path.position + mirrored.modes.path.position) / 2
    torch.testing.assert_close(merged.modes.path.position, halfway)
    assert merged.plan is not None and merged.plan.position.shape == (2, STEPS, 2)
    torch.testing.assert_close(merged.plan.position, merged.modes.plan.position)
    assert plain.modes.score.shape == (2, COUNT, len(PLAN_SCORES)) and plain.modes.score.isfinite().all()


def test_occupancy_that_is_not_asked_for_costs_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("fusion3d.engine.inference.truth_of", lambda *_: pytest.fail("its truth is made"))
    metrics = evaluate(run, None, tmp_path, ["lidar"], "cpu", tasks=["planning"])
    assert "occupancy" not in metrics


def test_what_the_planner_goes_by_and_chooses_among_is_drawn(config, run, tmp_path, monkeypatch):
    (seen,) = look(open_clips(config), [2], run, device="cpu")
    assert seen.occupancy is not None and seen.modes is not None and seen.plan is not None
    for cells in (seen.occupancy.agents, seen.occupancy.drivable):
        assert cells.shape[-2:] == config.grid.shape and 0 <= cells.min() <= cells.max() <= 1
    torch.testing.assert_close(seen.modes.path.position[seen.modes.chosen], seen.plan.position)
    given = []
    for module, name in ((pictures, "compose"), (scene, "build_scene")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *of, real=real: given.append(of) or real(*of))
    monkeypatch.setattr(scene, "save", lambda built, path: path)
    visualize(config, [2], tmp_path, run, "scene", device="cpu")
    (path,) = visualize(config, [2], tmp_path, run, device="cpu")
    assert path.read_bytes()[:4] == b"\x89PNG"
    for of in given:
        assert {type(one) for one in of} >= {Occupancy, PlanModes}
    assert len(given) == 2


def test_what_a_plan_looks_at_can_be_asked(config, run, monkeypatch):
    """Of the path that is driven: where it would hit what was found, of another."""
    model, _ = load_model(run)
    batch = collate([open_split(config, config.data.split, training=False)[1]])
    outputs = model(batch)
    said = answer(model, outputs, batch, Target("plan", seconds=1.0))
    plan = model.decode(outputs, batch).plan
    assert plan is not None and said.value.requires_grad
    assert said.place == pytest.approx(tuple(plan.position[0, 1].tolist()))
    paths = torch.zeros_like(outputs["planning"].path)
    paths[..., 0] = torch.tensor([8.0, 6.0, 1.0, 0.0])[:, None] * torch.tensor([0.5, 1.0])
    outputs["planning"] = dataclasses.replace(
        outputs["planning"], path=paths, score=torch.zeros(1, COUNT, 4),
        imitation=torch.tensor([6.0, 4.0, 2.0, 0.0]).expand(2, 1, COUNT),
    )  # fmt: skip
    stands = Boxes.of(torch.tensor([[9.0, 0.0, 0.8]]), torch.tensor([[1.0, 1.0, 1.6]]), torch.zeros(1))
    for found, far in ((Boxes.empty(), 8.0), (stands, 1.0)):
        monkeypatch.setattr(model.detection, "decode", lambda _, found=found: (found,))
        said = answer(model, outputs, batch, Target("plan", seconds=1.0))
        assert said.place == pytest.approx((far, 0.0)), "8 m/s and 6 m/s run into what stands 9 m ahead"
        plan = model.decode(outputs, batch).plan
        assert plan is not None and plan.position[0, 1].tolist() == pytest.approx([far, 0.0])


def test_the_walk_and_the_dense_parts_have_it(config):
    rows = {row.name: row for row in describe(config, random_batch(config, 1, 100, 10), 0)}
    assert rows["occupancy"].flops > 0 and rows["planning"].flops > 0
    assert any(text.startswith("path 2x1x4x2x3") for text in rows["planning"].output)
    model = build_model(config)
    parts = list(dense_parts(model))
    for part in (model.planning.ego.shrink, model.planning.reader.features, model.occupancy.body):
        assert any(part is one for one in parts)


def test_models_side_by_side_merge_plans_and_occupancies(config):
    late = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, stage="late"))
    torch.manual_seed(0)
    model, batch = build_model(late), random_batch(late, 2, 200, 20, 5)
    assert isinstance(model, LateFusion)
    give_anchors(model)
    assert batch.lidar is not None
    present = torch.tensor([True, False])
    seen = dataclasses.replace(batch, lidar=dataclasses.replace(batch.lidar, present=present))
    outputs = model(seen)
    said = model.decode(outputs, seen)
    of_each = {name: one.decode(outputs[name], seen) for name, one in model.models.items()}
    assert said.modes is not None and said.occupancy is not None and said.plan is not None
    (one, other), alone = (of_each[name].modes for name in ("lidar", "radar")), said.modes
    torch.testing.assert_close(alone.cost, torch.stack([(one.cost[0] + other.cost[0]) / 2, other.cost[1]]))
    torch.testing.assert_close(said.plan.position, said.modes.plan.position)
    assert said.modes.chosen[1] == other.chosen[1], "the second sample has no LiDAR"
    torch.testing.assert_close(said.occupancy.agents[1], of_each["radar"].occupancy.agents[1])
    both = (of_each["lidar"].occupancy.drivable[0] + of_each["radar"].occupancy.drivable[0]) / 2
    torch.testing.assert_close(said.occupancy.drivable[0], both)
    check_anchors(model)
    model.models["radar"].planning.anchors[0] += 1.0
    with pytest.raises(ConfigError, match=r"train\.start: the planners .* other anchors each"):
        check_anchors(model)
    losses = model.losses(outputs, batch)
    assert batch.status is not None
    rate = torch.zeros(2)
    other = dataclasses.replace(
        batch.status, velocity=batch.status.velocity + torch.tensor([[0.0], [9.0]]), yaw_rate=rate
    )
    again = model.losses(outputs, dataclasses.replace(batch, status=other))
    known = model.losses(outputs, dataclasses.replace(batch, status=dataclasses.replace(batch.status, yaw_rate=rate)))
    assert again["lidar.planning_status"] == known["lidar.planning_status"], "the second sample has no LiDAR"
    assert again["radar.planning_status"] != known["radar.planning_status"]
    assert all(value.isfinite() for value in losses.values())


def test_pasted_objects_are_nothing_to_foresee(tmp_path):
    """They are there now and nowhere later: whoever learns from what is annotated would learn that they vanish."""
    pasting = AugmentConfig(paste=PasteConfig(database=str(tmp_path)))
    config = dataclasses.replace(make_config(tmp_path), augment=pasting)
    with pytest.raises(ConfigError, match=r"augment\.paste .* planning\.head 'anchors'"):
        open_split(config, "synthetic_train", training=True)
    with pytest.raises(ConfigError, match=r"augment\.paste .* occupancy"):
        open_split(dataclasses.replace(config, planning=None), "synthetic_train", training=True)
    with pytest.raises(DataError):  # evaluation pastes nothing, and here gets as far as the tables
        open_split(config, "synthetic_val", training=False)
