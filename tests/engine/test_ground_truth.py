from __future__ import annotations

import pytest

from fusion3d.config import DataConfig
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.submission import to_records
from fusion3d.metrics.detection import score_detections
from fusion3d.types import BEVGrid


def test_a_scene_that_the_devkit_cannot_score_is_scored(real_root):
    """scene-0061 has no LIDAR_TOP after its first keyframe; its own boxes, given back, are a perfect answer."""
    config = DataConfig(root=str(real_root), version="v1.0-mini", sensors=())
    dataset = NuScenesDataset(config, "real_0061", BEVGrid())
    samples = [dataset[i] for i in range(len(dataset))]
    truths = {s.token: detection_truth(dataset.tables, s.token) for s in samples}
    scored = {s.token: s.boxes[s.boxes.num_points.sum(1) > 0] for s in samples}
    results = {s.token: to_records(scored[s.token], s.global_from_ego.numpy(), s.token) for s in samples}
    scores = score_detections(truths, results)
    there = [name for name, count in scores["num_truth"].items() if count]
    assert len(samples) == 38 and len(there) >= 5
    for name in there:
        assert scores["AP"][name] > 0.999, name
        assert scores["TP"][name]["ATE"] < 1e-4 and scores["TP"][name]["ASE"] < 1e-4
    assert scores["TP"]["car"]["AAE"] == pytest.approx(0)
    # A velocity has two components in ego: what a box moves up and down is lost where the ego is tilted (by 4 degrees).
    assert scores["TP"]["car"]["AVE"] < 0.02
