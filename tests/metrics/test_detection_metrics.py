from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion3d.config import DataConfig
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.data.nuscenes import Tables
from fusion3d.engine.columns import found_columns
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.official import Official, greatest_difference
from fusion3d.engine.submission import attribute_name, to_records, write_submission
from fusion3d.metrics.detection import score_detections
from fusion3d.metrics.protocol import CVPR_2019
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, BEVGrid, Boxes

VERSION = "v1.0-synthetic"


def read_boxes(root: Path, split: str) -> tuple[dict[str, Boxes], dict[str, np.ndarray]]:
    """Our reader's ground truth and poses, by token."""
    config = DataConfig(root=str(root), version=VERSION, sensors=(), min_points=0)
    samples = list(iter_samples(NuScenesDataset(config, split, BEVGrid())))
    return {s.token: s.boxes for s in samples}, {s.token: s.global_from_ego.numpy() for s in samples}


def iter_samples(dataset):
    return (dataset[i] for i in range(len(dataset)))


def noisy(boxes: Boxes, rng: np.random.Generator, spread: float) -> Boxes:
    """Boxes moved, resized, turned, some lost, some doubled, with scores that have ties."""
    index = (
        torch.from_numpy(rng.choice(len(boxes), size=int(1.3 * len(boxes)))) if len(boxes) else torch.zeros(0).long()
    )
    chosen = boxes[index]

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(0, spread, shape)).float()

    count = len(chosen)
    return Boxes.of(
        center=chosen.center + draw(count, 3),
        size=chosen.size * (0.2 * draw(count, 3)).exp(),
        yaw=chosen.yaw + 0.3 * draw(count),
        velocity=chosen.velocity + draw(count, 2),
        label=torch.where(torch.from_numpy(rng.random(count) < 0.1), 0, chosen.label),
        score=torch.from_numpy(rng.integers(1, 20, count) / 20),
    )


def official(root: Path, submission: Path, split: str, folder: Path) -> dict:
    """A plain run of the devkit's own evaluation."""
    from nuscenes import NuScenes
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        tables = NuScenes(VERSION, str(root), verbose=False)
        config = config_factory("detection_cvpr_2019")
        run = DetectionEval(tables, config, str(submission), split, str(folder), verbose=False)
        return run.evaluate()[0].serialize()


@pytest.mark.parametrize("spread", [0.3, 1.5])
def test_numbers_are_those_of_the_devkits_evaluation(synthetic_root, tmp_path, spread):
    boxes, poses = read_boxes(synthetic_root, "synthetic_train")
    rng = np.random.default_rng(0)
    results = {token: to_records(noisy(boxes[token], rng, spread), poses[token], token) for token in boxes}
    path = write_submission(tmp_path / "results_nusc.json", results, ["lidar"])
    theirs = official(synthetic_root, path, "synthetic_train", tmp_path)
    truth = detection_truth(Tables.open(synthetic_root, VERSION), boxes)
    ours = score_detections(truth, found_columns(results, truth.samples.tokens))
    assert 0.05 < ours["mAP"] < 0.95
    assert greatest_difference(ours, theirs)[0] < 1e-12
    beside = Official(str(synthetic_root), VERSION, truth.samples.tokens, CVPR_2019).score(path, list(results))
    assert greatest_difference(ours, beside)[0] < 1e-12
    assert beside["nd_score"] == theirs["nd_score"] and beside["label_aps"] == theirs["label_aps"]


def test_our_ground_truth_as_a_submission_is_perfect(synthetic_root, tmp_path):
    """Reader -> ego -> submission -> devkit: position, size, heading, velocity and attribute all come back."""
    boxes, poses = read_boxes(synthetic_root, "synthetic_train")
    known = {token: b[b.num_points.sum(1) > 0] for token, b in boxes.items()}  # the others are not scored
    results = {token: to_records(known[token], poses[token], token) for token in known}
    path = write_submission(tmp_path / "results_nusc.json", results, ["camera", "lidar"])
    written = json.loads(path.read_text())
    assert written["meta"] == {
        "use_camera": True, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False,
    }  # fmt: skip
    theirs = official(synthetic_root, path, "synthetic_train", tmp_path)
    present = [
        name
        for name in DETECTION_CLASSES
        if any((b.label == DETECTION_CLASSES.index(name)).any() for b in known.values())
    ]
    assert len(present) >= 4
    for name in present:
        errors = theirs["label_tp_errors"][name]
        if theirs["mean_dist_aps"][name] == 0:  # all of them out of range
            continue
        assert theirs["mean_dist_aps"][name] > 0.99, name
        assert errors["trans_err"] < 1e-4 and errors["scale_err"] < 1e-4
        if name != "traffic_cone":
            assert errors["orient_err"] < 1e-4
        if name not in ("traffic_cone", "barrier"):
            assert errors["vel_err"] < 1e-4
            assert errors["attr_err"] < 1e-4


def test_records_are_best_first_at_most_500_and_plain():
    count = 600
    boxes = Boxes.of(torch.rand(count, 3), torch.rand(count, 3) + 1, torch.rand(count), score=torch.rand(count))
    records = to_records(boxes, np.eye(4), "a")
    scores = [r["detection_score"] for r in records]
    assert len(records) == 500 and scores == sorted(scores, reverse=True)
    assert scores[0] == float(boxes.score.max())
    assert all(type(r["detection_score"]) is float for r in records)
    assert records[0]["velocity"] == [0, 0], "unknown is written as 0: the format has no NaN"
    json.dumps(records, allow_nan=False)


def test_record_of_a_turned_vehicle():
    """Ego at (10, 20, 1), heading along global y; a car 5 m ahead of it that drives to its left at 3 m/s."""
    pose = np.array([[0, -1, 0, 10], [1, 0, 0, 20], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=float)
    car = Boxes.of(
        torch.tensor([[5.0, 0, 0.5]]),
        torch.tensor([[4.0, 2, 1.5]]),
        torch.tensor([np.pi / 2]),
        torch.tensor([[0.0, 3]]),
    )
    (found,) = to_records(car, pose, "a")
    np.testing.assert_allclose(found["translation"], [10, 25, 1.5], atol=1e-6)
    np.testing.assert_allclose(found["size"], [2, 4, 1.5], atol=1e-6)
    np.testing.assert_allclose(np.abs(found["rotation"]), [0, 0, 0, 1], atol=1e-6)  # half a turn about z
    np.testing.assert_allclose(found["velocity"], [-3, 0], atol=1e-6)
    assert found["attribute_name"] == "vehicle.moving"


def test_a_box_that_is_no_box_is_refused():
    bad = Boxes.of(torch.tensor([[1.0, np.nan, 0]]), torch.ones(1, 3), torch.zeros(1))
    with pytest.raises(ValueError, match="sample a: a predicted box is not finite"):
        to_records(bad, np.eye(4), "a")


def test_attribute_follows_class_and_speed():
    assert attribute_name("pedestrian", -1, 0.3) == "pedestrian.moving"
    assert attribute_name("bus", -1, 0.1) == "vehicle.stopped"
    assert attribute_name("truck", -1, 0.1) == "vehicle.parked"
    assert attribute_name("bicycle", -1, 2) == "cycle.with_rider"
    assert attribute_name("barrier", 0, 2) == ""
    assert attribute_name("car", ATTRIBUTES.index("vehicle.stopped"), 2) == "vehicle.stopped"
