"""Does what comes after a keyframe reach what a model is given? The files that are read, and the future shuffled."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fusion3d.analysis.audit.fields import fields_of, same
from fusion3d.data.collate import collate
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.data.nuscenes import Tables

AROUND = 100_000  # [us] the sensors of a keyframe trigger so far apart


@dataclass(frozen=True, eq=False)
class WatchedTables(Tables):
    """Tables that note which files are asked for."""

    read: list[int] = field(default_factory=list)  # rows of the data columns

    @staticmethod
    def of(tables: Tables) -> WatchedTables:
        """The same tables, with nothing read."""
        return WatchedTables(**{f.name: getattr(tables, f.name) for f in dataclasses.fields(Tables)})

    def path(self, data: int) -> Path:
        """As of ``Tables``."""
        self.read.append(int(data))
        return super().path(data)


@dataclass(frozen=True)
class FutureCheck:
    """What the future of some samples has to do with what is read of them."""

    samples: int  # that have a future to shuffle
    changed: dict[str, int]  # inputs that change with the future: in how many samples
    targets: int  # samples whose targets change, as they must
    files: int  # sensor files read
    newest: float  # [s] of them all, from the reference time; those of the keyframe itself may trigger after it
    ahead: tuple[str, ...]  # files of other keyframes that were taken after the reference time


def check_future(dataset: NuScenesDataset, indices: Sequence[int]) -> FutureCheck:
    """Read samples twice: as they are, noting each file, and with whatever comes after them in another order.

    Args:
        dataset: without augmentation.
        indices: of samples.

    Raises:
        DataError: a sample cannot be read.
    """
    tables = dataset.tables
    inputs, targets = fields_of("name", "place", "frame", "sensor", "ego", "command", "history"), fields_of("target")
    changed, ahead, ages = dict.fromkeys(inputs, 0), [], []
    samples = other_targets = 0
    for index in indices:
        row = int(dataset.rows[index])
        watched = WatchedTables.of(tables)
        batch = collate([_with_tables(dataset, watched)[0, index]])
        ages += [tables.lag(row, data) for data in watched.read]
        own = set(tables.key_data[row].tolist())
        ahead += [tables.path(data).name for data in watched.read if tables.lag(row, data) < 0 and data not in own]
        shuffled = shuffle_future(tables, row)
        if shuffled is None:
            continue
        again = collate([_with_tables(dataset, shuffled)[0, index]])
        samples += 1
        other_targets += any(not same(getattr(batch, name), getattr(again, name)) for name in targets)
        for name in inputs:
            changed[name] += not same(getattr(batch, name), getattr(again, name))
    there = {name: count for name, count in changed.items() if count}
    return FutureCheck(samples, there, other_targets, len(ages), -min(ages, default=0.0), tuple(ahead))


def _with_tables(dataset: NuScenesDataset, tables: Tables) -> NuScenesDataset:
    found = copy.copy(dataset)
    found.tables = tables
    return found


def shuffle_future(tables: Tables, sample: int) -> Tables | None:
    """The tables of a world that goes on otherwise after a keyframe; None where fewer than two follow it.

    All that its scene has later than the keyframe's own sensors is moved on by half of what there is: the files of each
    channel, the poses of the vehicle, the annotations. Tokens, links and times stay.

    Args:
        tables: stay as they are.
        sample: row of the keyframe.
    """
    in_scene = tables.sample_scene == tables.sample_scene[sample]
    later = np.flatnonzero(in_scene & (tables.sample_time > tables.sample_time[sample]))
    if len(later) < 2:
        return None
    later = later[tables.sample_time[later].argsort(kind="stable")]
    after = np.isin(tables.data_sample, later) & (tables.data_time > tables.reference_time[sample] + AROUND)
    file = np.arange(len(tables.data_time))
    channel = tables.calibration_channel[tables.data_calibration]
    for number in np.unique(channel[after]):
        rows = np.flatnonzero(after & (channel == number))
        file[rows] = _moved_on(rows[tables.data_time[rows].argsort(kind="stable")], rows)
    pose = np.arange(len(tables.pose_time))
    rows = np.setdiff1d(tables.data_pose[after], tables.data_pose[~after])
    pose[rows] = _moved_on(rows[tables.pose_time[rows].argsort(kind="stable")], rows)
    block = np.arange(len(tables.sample_time))
    block[later] = _moved_on(later, later)
    return dataclasses.replace(
        tables,
        data_prefix=tables.data_prefix[file],
        data_suffix=tables.data_suffix[file],
        data_size=tables.data_size[file],
        pose_translation=tables.pose_translation[pose],
        pose_rotation=tables.pose_rotation[pose],
        **_boxes(tables, block),
    )


def _moved_on(by_time: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each of ``rows`` the one that takes its place: that which comes half of them all later, round and round."""
    to = dict(zip(by_time.tolist(), np.roll(by_time, -(len(by_time) // 2)).tolist(), strict=True))
    return np.array([to[row] for row in rows.tolist()], dtype=np.int64)


def _boxes(tables: Tables, block: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of boxes where sample s has those that sample ``block[s]`` had."""
    count = np.diff(tables.box_start)[block]
    end = np.cumsum(count)
    old = np.repeat(tables.box_start[:-1][block] - (end - count), count) + np.arange(end[-1])
    columns = [f.name for f in dataclasses.fields(Tables) if f.name.startswith("box_") and f.name != "box_start"]
    found = {name: getattr(tables, name)[old] for name in columns}
    place = np.append(np.argsort(old), -1).astype(np.int32)  # old row -> new row; -1 stays -1
    found |= {name: place[found[name]] for name in ("box_prev", "box_next")}
    return found | {"box_start": np.append(0, end).astype(np.int64)}
