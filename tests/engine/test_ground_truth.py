from __future__ import annotations

import numpy as np
import pytest

from fusion3d.config import Config, DataConfig
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.data.nuscenes import Tables
from fusion3d.engine.ground_truth import detection_truth, obstacles
from fusion3d.engine.inference import SubsetOutput
from fusion3d.engine.scoring import BoxScorer, Scoring, notes
from fusion3d.errors import Fusion3DError
from fusion3d.metrics.planning import collides
from fusion3d.types import BEVGrid

VERSION = "v1.0-synthetic"


def test_obstacles_are_the_devkits_boxes_of_the_following_keyframes(synthetic_root):
    from nuscenes import NuScenes
    from nuscenes.eval.common.utils import quaternion_yaw
    from pyquaternion import Quaternion

    theirs = NuScenes(VERSION, str(synthetic_root), verbose=False)
    tables = Tables.open(synthetic_root, VERSION)
    now = theirs.get("sample", theirs.scene[0]["first_sample_token"])
    found = obstacles(tables, now["token"], 6)
    pose = theirs.get("ego_pose", theirs.get("sample_data", now["data"]["LIDAR_TOP"])["ego_pose_token"])
    sample, count = now, 0
    for step in range(5):
        sample = theirs.get("sample", sample["next"])
        expected = []
        for token in sample["anns"]:
            box = theirs.get_box(token)
            if not box.name.startswith(("vehicle.", "human.")):
                continue
            box.translate(-np.array(pose["translation"]))
            box.rotate(Quaternion(pose["rotation"]).inverse)
            expected.append([*box.center[:2], box.wlh[1], box.wlh[0], quaternion_yaw(box.orientation)])
        expected = np.array(expected).reshape(-1, 5)
        np.testing.assert_allclose(found[step][:, :4], expected[:, :4], atol=1e-6)
        np.testing.assert_allclose(np.cos(found[step][:, 4] - expected[:, 4]), 1, atol=1e-9)
        count += len(expected)
    assert count > 10
    assert found[5].shape == (0, 5), "the scene has six keyframes"


def test_the_driven_path_hits_nothing(synthetic_root):
    """In the simulated world the ego drives into nobody: a frame or heading mistake would show as a collision."""
    config = DataConfig(root=str(synthetic_root), version=VERSION, sensors=())
    dataset = NuScenesDataset(config, "all", BEVGrid())
    samples = [dataset[i] for i in range(len(dataset))]
    boxes = [obstacles(dataset.tables, s.token, 6) for s in samples]
    near = min(float(np.linalg.norm(b[:, :2], axis=1).min()) for of in boxes for b in of if len(b))
    assert near < 12, "nothing comes near: the test says nothing"
    driven = np.stack([s.future.position.numpy() for s in samples])
    known = np.stack([s.future.mask.numpy() for s in samples])
    assert not collides(driven, boxes)[known].any()
    obstacle = next(b[0] for b in boxes[0] if len(b))
    straight_at = np.linspace(0, 1, 7)[None, 1:, None] * obstacle[:2]
    assert collides(straight_at, [[obstacle[None]] * 6]).any()


def test_a_scene_that_the_devkit_cannot_score_is_scored(real_root, tmp_path):
    """scene-0061 has no LIDAR_TOP after its first keyframe; its own boxes, given back, are a perfect answer."""
    config = Config(data=DataConfig(root=str(real_root), version="v1.0-mini", sensors=()))
    dataset = NuScenesDataset(config.data, "real_0061", BEVGrid())
    samples = [dataset[i] for i in range(len(dataset))]
    truth = detection_truth(dataset.tables, [s.token for s in samples])
    assert truth.nearest == 37
    scored = {s.token: s.boxes[s.boxes.num_points.sum(1) > 0] for s in samples}
    poses = {s.token: s.global_from_ego.numpy() for s in samples}

    def evaluated(scoring: Scoring) -> dict:
        records = SubsetOutput((), boxes=dict(scored)).records(poses)
        return BoxScorer(truth, config.data, scoring).score(records, (), tmp_path)

    scores = evaluated(Scoring(resamples=0))
    (note,) = notes({"all": scores})
    assert "37 samples have no LIDAR_TOP" in note and "from the ego pose nearest in time" in note
    with pytest.raises(Fusion3DError, match=r"devkit cannot score .*results_nusc\.json \(KeyError: 'LIDAR_TOP'\)"):
        evaluated(Scoring(official=True, resamples=0))
    there = [name for name, count in scores["num_truth"].items() if count]
    assert len(samples) == 38 and len(there) >= 5
    for name in there:
        assert scores["AP"][name] > 0.999, name
        assert scores["TP"][name]["ATE"] < 1e-4 and scores["TP"][name]["ASE"] < 1e-4
    assert scores["TP"]["car"]["AAE"] == pytest.approx(0)
    # A velocity has two components in ego: what a box moves up and down is lost where the ego is tilted (by 4 degrees).
    assert scores["TP"]["car"]["AVE"] < 0.02
