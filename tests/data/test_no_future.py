"""Nothing of what comes after a keyframe reaches what is read of it: the files that are opened, and edited tables."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from fusion3d.config import AugmentConfig, DataConfig
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.types import BEVGrid, Sample

VERSION = "v1.0-tiny"
_opened: list[str] | None = None


def _note(event: str, args: tuple) -> None:
    if event == "open" and _opened is not None and isinstance(args[0], (str, bytes, os.PathLike)):
        _opened.append(os.path.realpath(os.fsdecode(args[0])))


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Every file that this process opens, however it does so."""
    global _opened
    if not getattr(sys, "_files_are_noted", False):  # such a hook stays for the life of a process
        sys.addaudithook(_note)
        sys._files_are_noted = True
    _opened = found = []
    try:
        yield found
    finally:
        _opened = None


def data_config(root, **changes) -> DataConfig:
    settings = {"version": VERSION, "image_size": (45, 80), "lidar_sweeps": 4, "radar_sweeps": 3}
    return DataConfig(root=str(root), **(settings | changes))


CORRUPTIONS = {
    "clean": (),
    "late": ("lidar.late:100", "radar.late:200", "camera.late:500"),
    "stale": ("lidar.stale:3", "radar.stale:3", "camera.stale:3"),
    "misplaced": ("lidar.misaligned:3", "radar.shifted:0.5"),
}


@pytest.mark.parametrize("corruptions", CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_every_file_that_is_opened_is_of_the_keyframe_or_before(tiny_root, corruptions):
    config = data_config(tiny_root, corruptions=corruptions)
    training = AugmentConfig(corrupt=1.0, bev_rotation=20.0)
    for augment in (None, training):
        dataset = NuScenesDataset(config, "mine", BEVGrid(), augment, keyframes=3)
        tables = dataset.tables
        row_of = {os.path.realpath(tables.path(row)): row for row in range(len(tables.data_time))}
        for index in (0, 2, 4, 5, 8):
            with opened_files() as files:
                sample = dataset[index]
            rows = [row_of[name] for name in files if name in row_of]
            read = len(sample.cameras.channels) + sum(len(past.cameras.channels) for past in sample.history)
            assert len(rows) >= read + (0 if augment else 1 + 5), "reading is not noticed"
            others = {name for name in files if str(tiny_root) in name} - set(row_of)
            assert all("maps" in name for name in others), others
            own = set(tables.key_data[dataset.rows[index]].tolist())
            for row in rows:
                late = (tables.data_time[row] - sample.timestamp) * 1e-6
                assert late <= 0 or (row in own and late < 0.1), f"{tables.path(row)} is {late} s ahead"


def edit_after(root, token: str, rng: np.random.Generator) -> int:
    """Make another future of a keyframe in the tables themselves: files, poses and annotations."""
    folder = root / VERSION
    tables = {name: json.loads((folder / f"{name}.json").read_text()) for name in
              ("sample", "sample_data", "ego_pose", "sample_annotation")}  # fmt: skip
    samples = {row["token"]: row for row in tables["sample"]}
    later, here = set(), samples[token]["next"]
    while here:
        later.add(here)
        here = samples[here]["next"]
    data = [row for row in tables["sample_data"] if row["sample_token"] in later]
    by_channel: dict[str, list] = {}
    for row in data:
        by_channel.setdefault(row["calibrated_sensor_token"], []).append(row)
    for rows in by_channel.values():
        names = [row["filename"] for row in rows]
        for row, name in zip(rows, rng.permutation(names).tolist(), strict=True):
            row["filename"] = name
    poses = {row["token"]: row for row in tables["ego_pose"]}
    for row in data:
        pose = poses[row["ego_pose_token"]]
        pose["translation"] = (np.array(pose["translation"]) + rng.normal(0, 20, 3)).tolist()
        turn = rng.normal(size=4)
        pose["rotation"] = (turn / np.linalg.norm(turn)).tolist()
    for row in tables["sample_annotation"]:
        if row["sample_token"] in later:
            row["translation"] = (np.array(row["translation"]) + rng.normal(0, 20, 3)).tolist()
            row["size"] = rng.uniform(1, 5, 3).tolist()
            row["num_lidar_pts"] += 5
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return len(later)


def inputs(sample: Sample) -> dict[str, object]:
    """What a model may be given of a sample, the command apart, which is made of the driven path."""
    found = {"token": sample.token, "scene": sample.scene, "time": sample.timestamp, "pose": sample.global_from_ego}
    found |= {"aug": sample.aug_from_ego, "lidar": sample.lidar, "radar": sample.radar}
    found |= {f"cameras.{name}": value for name, value in vars(sample.cameras).items()}
    found |= {f"past.{name}": value for name, value in vars(sample.past).items()} if sample.past else {}
    found |= {f"status.{name}": value for name, value in vars(sample.status).items()} if sample.status else {}
    for back, frame in enumerate(sample.history):
        found |= {f"{back}.{name}": value for name, value in inputs(frame).items()}
    return found


@pytest.mark.parametrize("place", [0, 2, 7])
def test_another_future_changes_no_input_to_the_bit(tiny_root, own_root, place):
    """Golden test (j), on the tables as they lie on the disk."""
    grid, config = BEVGrid(), data_config(tiny_root)
    before = NuScenesDataset(config, "mine", grid, keyframes=3, with_motion=True)[place]
    assert edit_after(own_root, before.token, np.random.default_rng(place)) == 4 - place % 5
    after = NuScenesDataset(data_config(own_root), "mine", grid, keyframes=3, with_motion=True)[place]
    told, again = inputs(before), inputs(after)
    assert list(told) == list(again) and len(told) == 18 + 12 * min(place % 5, 2)
    for name, value in told.items():
        if isinstance(value, torch.Tensor):
            assert value.numpy().tobytes() == again[name].numpy().tobytes(), name
        else:
            assert value == again[name], name
    assert not torch.equal(before.future.position, after.future.position), "the future is as it was"
    assert not torch.equal(before.motion.path.position, after.motion.path.position)
