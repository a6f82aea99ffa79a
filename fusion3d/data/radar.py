"""Radar returns: ``.pcd`` files of any fields, and the sweeps of a sample's radars in its reference frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fusion3d.data.corruptions import CLEAN, Corruptor, Reading, placed
from fusion3d.data.guard import Guard, strict
from fusion3d.data.lidar import far_enough
from fusion3d.data.nuscenes import Tables
from fusion3d.errors import DataError
from fusion3d.types import RADAR_FIELDS, RADARS

RadarFilter = Literal["none", "valid", "devkit"]

# The file's field that goes to each column of RADAR_FIELDS.
_COLUMNS = {
    "x": 0, "y": 1, "z": 2, "rcs": 3, "vx_comp": 4, "vy_comp": 5, "invalid_state": 7, "ambig_state": 8, "dyn_prop": 9,
}  # fmt: skip
_RAW = ("vx", "vy")  # not compensated; across the ray, where no radar measures, there is more in them than was measured
_VELOCITY, _RAY = (slice(RADAR_FIELDS.index(name), RADAR_FIELDS.index(name) + 2) for name in ("vx", "ray_x"))
_HEADER_LIMIT = 4096  # bytes in which the line DATA must come
# States that the sensor's documentation calls valid: also low RCS, corrected azimuth, possible artefacts.
_VALID_STATES = (0, 4, 8, 9, 10, 11, 12, 15, 16, 17)
# The codes are small, so a filter is a look-up; a code beyond the table is kept by no filter.
_IS_VALID = np.isin(np.arange(256), _VALID_STATES)


@lru_cache(maxsize=64)
def _parse_header(header: bytes) -> tuple[np.dtype, int]:
    """Record type and number of points of a ``.pcd`` header; ValueError says what does not fit."""
    lines = {}
    for line in header.decode("ascii", errors="replace").splitlines():
        key, _, value = line.strip().partition(" ")
        lines[key] = value.split()
    missing = [key for key in ("FIELDS", "SIZE", "TYPE", "WIDTH", "HEIGHT", "DATA") if not lines.get(key)]
    if missing:
        raise ValueError(f"the header lacks {', '.join(missing)}")
    if lines["DATA"] != ["binary"]:
        raise ValueError(f"expected DATA binary, found {' '.join(lines['DATA'])}")
    names, sizes, kinds = lines["FIELDS"], lines["SIZE"], lines["TYPE"]
    counts = lines.get("COUNT", ["1"] * len(names))
    if not len(names) == len(sizes) == len(kinds) == len(counts):
        raise ValueError("FIELDS, SIZE, TYPE and COUNT have different lengths")
    letters = {"F": "f", "I": "i", "U": "u"}
    fields = []
    for name, size, kind, count in zip(names, sizes, kinds, counts, strict=True):
        if kind not in letters:
            raise ValueError(f"field {name} has TYPE {kind}; expected F, I or U")
        form = f"<{letters[kind]}{int(size)}"
        fields.append((name, form) if int(count) == 1 else (name, form, (int(count),)))
    points = int(lines["WIDTH"][0]) * int(lines["HEIGHT"][0])
    if points < 0 or (lines.get("POINTS") and int(lines["POINTS"][0]) != points):
        raise ValueError(f"WIDTH x HEIGHT is {points}, POINTS {lines.get('POINTS')}")
    return np.dtype(fields), points


def read_pcd(path: Path, fields: Iterable[str] = ()) -> np.ndarray:
    """A binary ``.pcd`` file as a structured array [R], in the sensor frame, without any filter.

    Bytes after the points are ignored. A first point with NaN marks an empty cloud, as in nuScenes.

    Args:
        path: file.
        fields: names that it must have; it may have others.

    Raises:
        DataError: the file is missing, truncated, no binary ``.pcd``, or lacks a field.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the radar cloud {path}: {error.strerror}; copy or download it again") from error
    at = content.find(b"\nDATA ", 0, _HEADER_LIMIT)
    start = content.find(b"\n", at + 1) + 1
    if at < 0 or start == 0:
        raise DataError(f"radar cloud {path} is no .pcd file: no DATA line in its header; download it again")
    try:
        record, points = _parse_header(content[:start])
    except (ValueError, TypeError) as error:
        raise DataError(f"radar cloud {path}: {error}; download it again") from error
    missing = [name for name in fields if name not in (record.names or ())]
    if missing:
        raise DataError(f"radar cloud {path} lacks the fields {', '.join(missing)}; download it again")
    if len(content) - start < points * record.itemsize:
        raise DataError(
            f"radar cloud {path} has {len(content) - start} bytes of data, its header promises {points} "
            f"points of {record.itemsize} bytes: truncated; download it again"
        )
    cloud = np.frombuffer(content, dtype=record, count=points, offset=start)
    return cloud[:0] if points and _has_nan(cloud[0].item()) else cloud


def _has_nan(values: Any) -> bool:
    return any(_has_nan(value) if np.iterable(value) else value != value for value in values)


def passes(cloud: Mapping[str, np.ndarray] | np.ndarray, radar_filter: RadarFilter) -> np.ndarray:
    """Which returns [R] a filter keeps, by their ``invalid_state``, ``dyn_prop`` and ``ambig_state``.

    ``none`` keeps all; ``valid`` those whose ``invalid_state`` is documented as usable; ``devkit`` those
    that the nuScenes devkit keeps by default (invalid_state 0, dyn_prop 0..6, ambig_state 3), which were
    chosen for pictures.
    """
    if radar_filter == "none":
        return np.ones(len(cloud["invalid_state"]), dtype=bool)
    if radar_filter == "valid":
        return _IS_VALID[cloud["invalid_state"].astype(np.uint8)]
    moving = (cloud["dyn_prop"] >= 0) & (cloud["dyn_prop"] <= 6)
    return (cloud["invalid_state"] == 0) & moving & (cloud["ambig_state"] == 3)


def load_radars(
    tables: Tables,
    sample: int,
    channels: Iterable[str] = RADARS,
    num_sweeps: int = 1,
    radar_filter: RadarFilter = "none",
    min_distance: float = 0.0,
    guard: Guard = strict,
    corruptor: Corruptor = CLEAN,
) -> Tensor | None:
    """The returns of the sample's radars over the last ``num_sweeps`` clouds of each, moved by the ego
    motion since.

    Returns are not shifted by their own velocity, which is known only along the ray. ``min_distance`` drops
    returns in a square round their sensor; the devkit's multi-sweep reader uses 1 m.

    Returns:
        [R, 14] float32 RADAR_FIELDS in the reference frame: the compensated velocity and the ray are turned into ego
        axes, the time is seconds before the reference time. ``None`` where the sample has none of the radars.
    """
    readings, clouds, sensors = [], [], []
    for channel in corruptor.there(tables, sample, channels):
        key = tables.key(sample, channel)
        for reading in corruptor.readings(tables, sample, channel, num_sweeps):

            def read(channel: str = channel, reading: Reading = reading) -> np.ndarray:
                cloud = _load_cloud(tables, reading, radar_filter, min_distance)
                return corruptor.returns(cloud, channel, tables, reading)

            cloud = guard(read)
            if cloud is not None:
                readings.append(reading)
                clouds.append(cloud)
                sensors.append(RADARS.index(channel))
            elif reading.row == key:
                break
    if not readings:
        return None
    counts = [len(cloud) for cloud in clouds]
    out = np.concatenate(clouds)
    transform = np.repeat(placed(tables, sample, readings), counts, axis=0)
    out[:, :3] = (transform[:, :3, :3] @ out[:, :3, None])[..., 0] + transform[:, :3, 3]
    for part in (_VELOCITY, _RAY):  # they have no z in the sensor's frame
        out[:, part] = (transform[:, :2, :2] @ out[:, part, None])[..., 0]
    out[:, 6] = np.repeat([tables.lag(sample, reading.row) for reading in readings], counts)
    out[:, 10] = np.repeat(sensors, counts)
    return torch.from_numpy(out)


def _load_cloud(tables: Tables, reading: Reading, radar_filter: RadarFilter, min_distance: float) -> np.ndarray:
    """[R, 14] float32 returns of one file in the sensor frame; columns time and sensor are left at zero, doppler is NaN
    where the file does not have it.
    """
    tables.check(reading.row)
    cloud = read_pcd(tables.path(reading.content), _COLUMNS)
    if min_distance > 0:
        cloud = cloud[far_enough(cloud["x"], cloud["y"], min_distance)]
    if radar_filter != "none":
        cloud = cloud[passes(cloud, radar_filter)]
    out = np.zeros((len(cloud), len(RADAR_FIELDS)), dtype=np.float32)
    for name, column in _COLUMNS.items():
        out[:, column] = cloud[name]
    ray = out[:, :2] / np.maximum(np.hypot(out[:, 0], out[:, 1]), 1e-6)[:, None]
    measured = set(_RAW) <= set(cloud.dtype.names or ())
    doppler = sum(cloud[name] * ray[:, axis] for axis, name in enumerate(_RAW)) if measured else np.nan
    out[:, RADAR_FIELDS.index("doppler")] = doppler
    out[:, _RAY] = ray
    return out
