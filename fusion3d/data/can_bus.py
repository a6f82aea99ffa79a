"""The CAN bus expansion of nuScenes: what the vehicle measured of itself, and the route it was to take.

``can_bus/<scene>_<kind>.json`` below the data root, as the devkit has it. Kinds of messages are ``pose`` (50 Hz),
``ms_imu``, ``steeranglefeedback``, ``zoe_veh_info``, ``zoesensors`` (100 Hz and more) and ``vehicle_monitor`` (2 Hz).
``route`` is the way that navigation had laid down before the drive, 50 m beyond both of its ends. Of nuScenes' scenes
some have no messages, some no route, and some a wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion3d.data.nuscenes import Tables
from fusion3d.files import read_json_as
from fusion3d.types import EgoStatus

MISALIGNED = 5.0  # [m] a position farther from the vehicle is of another drive (the devkit's limit for routes)
STALE = 0.1  # [s] an older pose is no measurement of now: they come every 0.02 s
MAX_BYTES = 64_000_000  # a scene's messages are a tenth of it at most
UNKNOWN = EgoStatus(torch.full((2,), torch.nan), torch.full((2,), torch.nan), torch.tensor(torch.nan))
_FOLDER = "can_bus"
_REMEDY = "unpack the CAN bus expansion again, or remove it"
_MEASURED = {"pos": 3, "vel": 3, "accel": 3, "rotation_rate": 3}


@dataclass(frozen=True, eq=False)
class Messages:
    """The messages of one kind in a scene, in order of time."""

    time: np.ndarray  # [N] int64 [us]
    value: dict[str, np.ndarray]  # [N] or [N, D] float64 of each field

    def before(self, time: int, age: float) -> int:
        """The last message not after a time [us] and not older than an age [s]; -1 where there is none."""
        row = int(np.searchsorted(self.time, time, side="right")) - 1
        return row if row >= 0 and (time - int(self.time[row])) * 1e-6 <= age else -1


def has_can_bus(tables: Tables) -> bool:
    """Is the expansion there at all?"""
    return tables.inside(_FOLDER, "scene.json").is_dir()


def messages_of(tables: Tables, sample: int, kind: str, fields: Mapping[str, int]) -> Messages | None:
    """The messages in the scene of a sample; None where the scene has none of the kind.

    Args:
        tables: the data set.
        sample: sample row.
        kind: such as ``pose``.
        fields: what is read of each message, and of how many numbers it is; 1 is a number by itself.

    Raises:
        DataError: the file cannot be read, or a message lacks a field.
    """
    file = _file(tables, sample, kind)
    return None if file is None else _messages(*file, tuple(fields.items()))


def route_of(tables: Tables, sample: int) -> np.ndarray | None:
    """[N, 2] global positions [m] along the route of a sample's scene; None where the scene has none.

    Raises:
        DataError: the file cannot be read.
    """
    file = _file(tables, sample, "route")
    return None if file is None else _route(*file)


def measured_status(tables: Tables, sample: int) -> EgoStatus:
    """What the vehicle measured last before a sample's time, in ego; NaN where it is not known.

    Raises:
        DataError: the messages cannot be read.
    """
    messages = messages_of(tables, sample, "pose", _MEASURED)
    row = -1 if messages is None else messages.before(int(tables.reference_time[sample]), STALE)
    if messages is None or row < 0:
        return UNKNOWN
    apart = messages.value["pos"][row, :2] - tables.global_from_ego(sample)[:2, 3]
    if np.linalg.norm(apart) > MISALIGNED:
        return UNKNOWN
    value = {name: torch.from_numpy(messages.value[name][row]).float() for name in _MEASURED}
    return EgoStatus(value["vel"][:2], value["accel"][:2], value["rotation_rate"][2])


def _file(tables: Tables, sample: int, kind: str) -> tuple[Path, int, int] | None:
    """A file with its size and time, if it is there."""
    path = tables.inside(f"{_FOLDER}/{tables.scene(sample)}_{kind}.json", "scene.json")
    if not path.is_file():
        return None
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=256)
def _messages(path: Path, size: int, modified: int, fields: tuple[tuple[str, int], ...]) -> Messages:
    def columns(content: Any) -> Messages:
        time = np.array([message["utime"] for message in content], dtype=np.int64)
        order, value = np.argsort(time, kind="stable"), {}
        for name, count in fields:
            column = np.array([message[name] for message in content], dtype=np.float64)
            column = column.reshape(len(time), *([count] if count > 1 else []))[order]
            if not np.isfinite(column).all():
                raise ValueError(f"{name} is not finite")
            value[name] = column
        return Messages(time[order], value)

    return read_json_as(path, columns, _REMEDY, kind=list, max_bytes=MAX_BYTES)


@lru_cache(maxsize=256)
def _route(path: Path, size: int, modified: int) -> np.ndarray:
    def points(content: Any) -> np.ndarray:
        route = np.array(content, dtype=np.float64).reshape(len(content), 2)
        if not np.isfinite(route).all():
            raise ValueError("a position is not finite")
        return route

    return read_json_as(path, points, _REMEDY, kind=list, max_bytes=MAX_BYTES)
