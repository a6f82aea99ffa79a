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
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.submission import attribute_name, to_records, write_submission
from fusion3d.errors import Fusion3DError
from fusion3d.metrics.detection import Truth, score_detections
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, BEVGrid, Boxes

VERSION = "v1.0-synthetic"
NAMES = {"mATE": "trans_err", "mASE": "scale_err", "mAOE": "orient_err", "mAVE": "vel_err", "mAAE": "attr_err"}


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
    tables = Tables.open(synthetic_root, VERSION)
    ours = score_detections({token: detection_truth(tables, token) for token in boxes}, results)
    assert 0.05 < ours["mAP"] < 0.95
    assert ours["NDS"] == theirs["nd_score"]
    assert ours["mAP"] == theirs["mean_ap"]
    assert ours["AP"] == theirs["mean_dist_aps"]
    for name, error in NAMES.items():
        assert ours[name] == theirs["tp_errors"][error], name
        for label in DETECTION_CLASSES:
            np.testing.assert_equal(ours["TP"][label][name[1:]], theirs["label_tp_errors"][label][error])


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


def sample_with(boxes: list[dict], **more) -> dict[str, Truth]:
    return {"a": Truth(boxes=boxes, ego=(0.0, 0.0, 0.0), **more)}


def record(name: str, x: float, score: float | None = None, num_pts: int = 5) -> dict:
    common = {
        "sample_token": "a", "translation": [x, 0.0, 0.0], "size": [1.0, 2.0, 1.0], "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0], "detection_name": name, "attribute_name": "",
    }  # fmt: skip
    return common | ({"num_pts": num_pts} if score is None else {"detection_score": score})


def test_filters_range_points_and_bicycle_racks():
    rack = {"translation": [20.0, 0, 0], "size": [4.0, 4.0, 4.0], "rotation": [1.0, 0, 0, 0]}
    truth = sample_with(
        [record("bicycle", 5), record("bicycle", 20), record("bicycle", 41), record("bicycle", 9, num_pts=0),
         record("car", 49.9), record("car", 50.0)],
        bicycle_racks=[rack],
    )  # fmt: skip
    found = {"a": [record("bicycle", 5, 0.9), record("bicycle", 20, 1.0), record("bicycle", 41, 1.0)]}
    scores = score_detections(truth, found)
    assert scores["num_truth"]["bicycle"] == 1 and scores["num_truth"]["car"] == 1
    assert scores["AP"]["bicycle"] == pytest.approx(1), "what lies in the rack or too far is no false alarm either"
    assert scores["AP"]["car"] == 0
    assert scores["mAP"] == pytest.approx(0.1)


def test_nothing_found_scores_zero_and_a_missing_sample_is_an_error():
    truth = sample_with([record("car", 5)])
    empty = score_detections(truth, {"a": []})
    assert empty["NDS"] == 0 and empty["mAP"] == 0
    with pytest.raises(Fusion3DError, match="1 samples too few"):
        score_detections(truth, {})


def test_without_the_devkit_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nuscenes.eval.common", None)
    with pytest.raises(Fusion3DError, match=r"--no-deps nuscenes-devkit==1\.2\.0 && pip install .fusion3d\[eval\]"):
        score_detections(sample_with([]), {"a": []})


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
