"""Files of plans and of tracks: what is read, and that everything wrong has a name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fusion3d.data.plans import read_plans
from fusion3d.data.tracks import read_tracks
from fusion3d.errors import DataError

TIMES = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
PLAN = [[1.0 * i, 0.1 * i] for i in range(1, 7)]


def write(path, **change):
    content = {"frame": "ego", "times": TIMES, "plans": {"a": PLAN, "b": [[*row, 0.2] for row in PLAN]}} | change
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def test_plans_with_and_without_headings(tmp_path):
    found = read_plans(write(tmp_path / "p.json"))
    assert found.frame == "ego" and list(found.plans) == ["a", "b"]
    np.testing.assert_allclose(found.plans["a"][:, :2], PLAN)
    assert np.isnan(found.plans["a"][:, 2]).all() and (found.plans["b"][:, 2] == 0.2).all()


def test_finer_plans_are_read_every_half_second(tmp_path):
    fine = [0.1 * i for i in range(1, 31)]
    found = read_plans(write(tmp_path / "p.json", times=fine, plans={"a": [[t, 0] for t in fine]}, frame="lidar"))
    np.testing.assert_allclose(found.plans["a"][:, 0], TIMES)
    assert found.frame == "lidar"


def test_what_predict_writes_is_a_file_of_plans(tmp_path):
    entry = {"position": PLAN, "yaw": [0.1] * 6, "position_global": PLAN}
    found = read_plans(write(tmp_path / "p.json", times=None, time_step=0.5, plans={"a": entry}))
    np.testing.assert_allclose(found.plans["a"], [[*row, 0.1] for row in PLAN])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame": None}, '"frame" is None; expected one of ego, lidar'),
        ({"frame": "global"}, "'global'"),
        ({"times": None}, '"times" are None'),
        ({"times": [0.5, 0.4, 1]}, "expected ascending seconds"),
        ({"times": [0.5, float("nan")]}, "expected ascending seconds"),
        ({"times": "soon"}, "expected ascending seconds"),
        ({"times": [0.4, 0.8, 1.2, 1.6, 2.0, 2.4]}, "expected every multiple of 0.5 s"),
        ({"times": [0.1, 0.2]}, "expected every multiple of 0.5 s"),
        ({"times": [10**400]}, "expected ascending seconds"),
        ({"times": [1e12], "plans": {"a": PLAN[:1]}}, "expected every multiple of 0.5 s"),
        ({"times": TIMES[:5]}, "plan of a has 6 points, and there are 5 times"),
        ({"plans": {"a": PLAN, "b": PLAN[:4]}}, "plan of b has 4 points, and there are 6 times"),
        ({"plans": {}}, 'expected {"frame"'),
        ({"plans": [PLAN]}, 'expected {"frame"'),
        ({"plans": {"a": []}}, "plan of a has shape"),
        ({"plans": {"a": [[1, 2, 3, 4]] * 6}}, r"shape \[6, 4\]"),
        ({"plans": {"a": [[1, 2], [3]]}}, "plan of a is not rows"),
        ({"plans": {"a": [["x", "y"]]}}, "plan of a is not rows"),
        ({"plans": {"a": [[10**400, 0]] * 6}}, "plan of a is not rows"),
        ({"plans": {"a": [[1, 0, 90]] * 6}}, "a yaw of 90; expected radians"),
        ({"plans": {"a": [[1, float("inf")]] * 6}}, "a number that is not finite"),
        (
            {"plans": {"a": [[900, 400]] * 6}},
            "985 m away after 0.5 s, where no car gets .* in the sample's frame, not the map's",
        ),
        ({"plans": {"a": [[0, 34 * i] for i in range(1, 7)]}}, "102 m away after 1.5 s"),
        ({"plans": {"a": {"position": PLAN, "yaw": [0]}}}, "a position and a yaw for every time"),
        ({"plans": {"a": None}}, "plan of a"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as caught:
        read_plans(write(tmp_path / "p.json", **change))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_token_twice_a_cut_file_and_none(tmp_path):
    path = write(tmp_path / "p.json")
    text = path.read_text()
    path.write_text(text.replace('"b"', '"a"'))
    with pytest.raises(DataError, match="'a' is there twice"):
        read_plans(path)
    path.write_text(text[:50])
    with pytest.raises(DataError, match="cannot read"):
        read_plans(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="cannot read"):
        read_plans(path)
    with pytest.raises(DataError, match=r"no .*none\.json"):
        read_plans(tmp_path / "none.json")


def track_arrays(keyframes: int = 8, agents: int = 2) -> dict[str, np.ndarray]:
    steps = 5 * (keyframes - 1) + 1
    index = np.arange(keyframes) * 5
    x = np.linspace(0, 30, steps)
    xyz = np.stack(
        [np.broadcast_to(x + 10, (agents, steps)), np.full((agents, steps), 3.0), np.ones((agents, steps))], -1
    )
    valid = np.ones((agents, steps), dtype=bool)
    valid[1, 12:] = False
    xyz[1, 12:] = np.nan
    return {
        "scene_name": np.array("scene-9999"),
        "map_name": np.array("nowhere"),
        "keyframe_index": index,
        "keyframe_timestamp_us": (index * 100_000).astype(np.int64),
        "keyframe_sample_token": np.array([f"token-{i}" for i in range(keyframes)]),
        "keyframe_ego_xyz": np.stack([x[index], np.zeros(keyframes), np.zeros(keyframes)], -1),
        "ego_sync_heading": np.zeros(steps),
        "agent_category": np.array(["vehicle.car"] * agents),
        "agent_lwh": np.tile([4.6, 1.9, 1.5], (agents, 1)),
        "agent_xyz": xyz,
        "agent_heading": np.zeros((agents, steps), dtype=np.float32),
        "agent_valid": valid,
    }


def test_tracks_are_read_at_keyframes(tmp_path):
    np.savez(tmp_path / "scene-9999.npz", **track_arrays())
    (scene,) = read_tracks(tmp_path)
    assert scene.name == "scene-9999" and scene.tokens[3] == "token-3" and scene.location == "nowhere"
    np.testing.assert_allclose(scene.time, 0.5 * np.arange(8))
    np.testing.assert_allclose(scene.agent[0, :, 0] - scene.ego[:, 0], 10)
    assert np.isfinite(scene.agent[1]).all(axis=1).tolist() == [True] * 3 + [False] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agent_xyz": None}, "agent_xyz is nothing"),
        ({"agent_valid": np.ones((2, 36))}, "agent_valid is float64"),
        ({"keyframe_index": np.array([0, 5, 99])}, "do not fit"),
        ({"agent_lwh": np.ones((3, 3))}, "do not fit"),
        ({"agent_lwh": np.full((2, 3), np.nan)}, "an agent has no size"),
        ({"agent_lwh": np.zeros((2, 3))}, "an agent has no size"),
        ({"agent_valid": np.ones((2, 36), dtype=bool)}, "or no place where it is said to be valid"),
        ({"keyframe_ego_xyz": np.full((8, 3), np.nan)}, "an ego pose is not finite"),
        ({"keyframe_timestamp_us": np.zeros(8, dtype=np.int64)}, "not in order"),
    ],
)
def test_tracks_that_are_wrong_are_named(tmp_path, change, message):
    arrays = {name: value for name, value in (track_arrays() | change).items() if value is not None}
    np.savez(tmp_path / "scene-9999.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_tracks(tmp_path)


def test_no_tracks_and_cut_tracks(tmp_path):
    with pytest.raises(DataError, match="no scene-"):
        read_tracks(tmp_path)
    np.savez(tmp_path / "scene-9999.npz", **track_arrays())
    whole = (tmp_path / "scene-9999.npz").read_bytes()
    (tmp_path / "scene-9999.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot read the tracks"):
        read_tracks(tmp_path)
    np.savez(tmp_path / "scene-9999.npz", **(track_arrays() | {"agent_category": np.array([{}, {}], dtype=object)}))
    with pytest.raises(DataError, match="cannot read the tracks"):
        read_tracks(tmp_path)
