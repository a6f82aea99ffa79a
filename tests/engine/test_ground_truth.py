from __future__ import annotations

import pytest

from fusion3d.config import Config, DataConfig
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.scoring import BoxScorer, Scoring, notes
from fusion3d.engine.submission import to_records
from fusion3d.errors import Fusion3DError
from fusion3d.types import BEVGrid


def test_a_scene_that_the_devkit_cannot_score_is_scored(real_root, tmp_path):
    """scene-0061 has no LIDAR_TOP after its first keyframe; its own boxes, given back, are a perfect answer."""
    config = Config(data=DataConfig(root=str(real_root), version="v1.0-mini", sensors=()))
    dataset = NuScenesDataset(config.data, "real_0061", BEVGrid(), with_map=False)
    samples = [dataset[i] for i in range(len(dataset))]
    truth = detection_truth(dataset.tables, [s.token for s in samples])
    assert truth.nearest == 37
    scored = {s.token: s.boxes[s.boxes.num_points.sum(1) > 0] for s in samples}
    records = {s.token: to_records(scored[s.token], s.global_from_ego.numpy(), s.token) for s in samples}

    def evaluated(scoring: Scoring) -> dict:
        return BoxScorer(truth, config.data, scoring).score("all", records, (), tmp_path)

    scores = evaluated(Scoring(resamples=0))
    (note,) = notes({"all": scores})
    assert "37 samples have no LIDAR_TOP" in note and "from the ego pose nearest in time" in note
    with pytest.raises(Fusion3DError, match=r"devkit cannot score .*results_nusc\.json \(KeyError: 'LIDAR_TOP'\)"):
        evaluated(Scoring(official=True, resamples=0))
    with pytest.raises(Fusion3DError, match=r"--official: 37 samples of 'real_0061' have no LIDAR_TOP"):
        Scoring(official=True).check(dataset.tables, "real_0061", ["detection"])  # before anything runs
    Scoring().check(dataset.tables, "real_0061", ["detection"])
    assert "strata" in scores and "intervals" not in scores
    there = [name for name, count in scores["num_truth"].items() if count]
    assert len(samples) == 38 and len(there) >= 5
    for name in there:
        assert scores["AP"][name] > 0.999, name
        assert scores["TP"][name]["ATE"] < 1e-4 and scores["TP"][name]["ASE"] < 1e-4
    assert scores["TP"]["car"]["AAE"] == pytest.approx(0)
    # A velocity has two components in ego: what a box moves up and down is lost where the ego is tilted (by 4 degrees).
    assert scores["TP"]["car"]["AVE"] < 0.02
