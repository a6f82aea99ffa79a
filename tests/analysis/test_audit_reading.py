"""What an audit reads: which samples, with which past, and a world that goes on otherwise."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fusion3d.analysis.audit.fields import fitted
from fusion3d.analysis.audit.future import check_future, shuffle_future
from fusion3d.analysis.audit.run import choose_samples
from fusion3d.config import DataConfig
from fusion3d.data.collate import collate
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.types import BEVGrid

sys.path.insert(0, str(Path(__file__).parent))
from small_models import on_synthetic


def opened(root: Path, **changes) -> NuScenesDataset:
    settings = {"version": "v1.0-synthetic", "sensors": ("lidar", "radar"), "lidar_sweeps": 2, "radar_sweeps": 2}
    return NuScenesDataset(DataConfig(root=str(root), **(settings | changes)), "all", BEVGrid())


def test_no_input_of_the_data_set_changes_with_the_future(synthetic_root):
    dataset = opened(synthetic_root, corruptions=("lidar.late:50", "radar.stale:3"))
    check = check_future(dataset, range(0, 18, 2))
    assert check.samples == 6 and check.targets == 6, "the last two of a scene have too little future"
    assert set(check.changed) <= {"command"} and check.ahead == () and check.files > 50 and check.newest < 0.1


def test_the_future_is_shuffled_and_nothing_else(synthetic_root):
    tables = opened(synthetic_root).tables
    row = int(np.flatnonzero(tables.sample_scene == 1)[2])
    other = shuffle_future(tables, row)
    later = (tables.sample_scene == 1) & (tables.sample_time > tables.sample_time[row])
    data = later[tables.data_sample]
    for name in ("data_prefix", "data_suffix", "data_pose", "data_time", "data_sample"):
        assert np.array_equal(getattr(tables, name)[~data], getattr(other, name)[~data])
    keys = tables.key_data[np.flatnonzero(later)[:, None], [tables.channels["LIDAR_TOP"], tables.channels["CAM_FRONT"]]]
    assert all(tables.path(int(key)) != other.path(int(key)) for key in keys.reshape(-1))
    assert sorted(tables.data_suffix.tolist()) == sorted(other.data_suffix.tolist())
    for sample in range(len(later)):
        same_pose = np.array_equal(tables.global_from_ego(sample), other.global_from_ego(sample))
        boxes = [t.box_center[t.box_start[sample] : t.box_start[sample + 1]] for t in (tables, other)]
        assert same_pose != later[sample] and np.array_equal(*boxes) != later[sample]
    linked = np.flatnonzero(other.box_next >= 0)
    assert np.array_equal(other.box_instance[linked], other.box_instance[other.box_next[linked]])
    assert np.array_equal(other.box_prev[other.box_next[linked]], linked)
    last = int(np.flatnonzero(tables.sample_scene == 1)[4])
    assert shuffle_future(tables, last) is None, "one keyframe cannot be shuffled"


def test_another_sample_gets_as_long_a_past(synthetic_root):
    config = on_synthetic(synthetic_root, temporal={"keyframes": 3})
    data = NuScenesDataset(config.data, "all", config.grid, keyframes=3)
    first, second, third = data[0], data[1], data[2]
    assert [len(fitted(one, third).history) for one in (first, second, third)] == [2, 2, 2]
    assert [frame.token for frame in fitted(second, third).history] == [first.token, first.token]
    assert [frame.token for frame in fitted(first, third).history] == [first.token, first.token]
    assert fitted(third, first).history == () and len(collate([fitted(first, third), third]).history) == 2


def test_samples_are_chosen_evenly_and_from_other_scenes_in_turn():
    scenes = ["a"] * 40 + ["b"] * 40 + ["c"] * 3
    chosen = choose_samples(scenes, 12, 6)
    assert len(chosen) == len(set(chosen)) == 9 and [scenes[index] for index in chosen[:3]] == ["a", "b", "c"]
    of_a = [index for index in chosen if scenes[index] == "a"]
    assert of_a == sorted(of_a) and of_a[0] >= 1 and of_a[-1] < 34 and max(np.diff(of_a)) - min(np.diff(of_a)) <= 1
    assert [index for index in chosen if scenes[index] == "c"] == [81]
    many = choose_samples([f"{i // 5}" for i in range(500)], 7, 2)
    assert len(many) == 7 and len({index // 5 for index in many}) == 7 and max(many) - min(many) > 400
    assert choose_samples(["a", "b"], 9, 6) == [0, 1] and choose_samples([], 9, 6) == []
