"""nuScenes tables as columns, with an index that is built once and cached.

Rows, not tokens, lead from table to table. The cache lies outside of the data root (which may be read-only),
in ``$FUSION3D_CACHE`` or ``~/.cache/fusion3d``; it holds plain arrays and is rebuilt whenever a table
changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from fusion3d.data.tables import REFERENCE_CHANNEL, SCHEMA, build_columns
from fusion3d.errors import DataError
from fusion3d.files import cache_folder, write_cache
from fusion3d.geometry import invert, transform_from

_FORMAT = 2  # raised when the columns change their meaning, so that older caches are rebuilt
_UNIT_TOLERANCE = 1e-3  # how far a quaternion's norm may be from 1


@dataclass(frozen=True, eq=False)
class Tables:
    """A data set's tables as columns: S samples, D sensor files, Q calibrations, E poses, K boxes, N scenes."""

    root: Path
    version: str
    scene_token: np.ndarray  # [N] bytes
    scene_name: np.ndarray  # [N] bytes
    scene_description: np.ndarray  # [N] bytes; says night, rain where it is
    scene_location: np.ndarray  # [N] bytes
    scene_map: np.ndarray  # [N] int32, row in map_file, -1 none
    map_file: np.ndarray  # bytes, relative to root
    sample_token: np.ndarray  # [S] bytes
    sample_time: np.ndarray  # [S] int64 [us]
    sample_scene: np.ndarray  # [S] int32
    sample_prev: np.ndarray  # [S] int32, previous keyframe of the scene, -1 none
    sample_next: np.ndarray  # [S] int32
    sample_pose: np.ndarray  # [S] int32, ego pose of the reference frame, -1 where the scene has no pose
    reference_time: np.ndarray  # [S] int64 [us], key LiDAR's time; the sample's own where it has no key LiDAR
    channel_name: np.ndarray  # [C] bytes, sorted
    key_data: np.ndarray  # [S, C] int32, keyframe file of each channel, -1 absent
    calibration_token: np.ndarray  # [Q] bytes
    calibration_channel: np.ndarray  # [Q] int32
    calibration_translation: np.ndarray  # [Q, 3] float64 [m], sensor origin in ego
    calibration_rotation: np.ndarray  # [Q, 4] float64, wxyz
    calibration_intrinsic: np.ndarray  # [Q, 3, 3] float64 [px], NaN for what is no camera
    pose_time: np.ndarray  # [E] int64 [us]
    pose_translation: np.ndarray  # [E, 3] float64 [m], ego origin in global
    pose_rotation: np.ndarray  # [E, 4] float64, wxyz
    data_sample: np.ndarray  # [D] int32
    data_calibration: np.ndarray  # [D] int32
    data_pose: np.ndarray  # [D] int32
    data_time: np.ndarray  # [D] int64 [us]
    data_prev: np.ndarray  # [D] int32, the same sensor's file before, -1 none
    data_size: np.ndarray  # [D, 2] int32, image height and width [px], 0 for what is no image
    data_prefix: np.ndarray  # [D] int32, row in file_prefix
    data_suffix: np.ndarray  # [D] bytes, the rest of the file name
    file_prefix: np.ndarray  # bytes
    box_start: np.ndarray  # [S+1] int64: boxes of sample s are rows box_start[s] : box_start[s+1]
    box_center: np.ndarray  # [K, 3] float64 [m], global
    box_size: np.ndarray  # [K, 3] float64 [m], length, width, height
    box_rotation: np.ndarray  # [K, 4] float64, wxyz, global
    box_velocity: np.ndarray  # [K, 3] float64 [m/s], global, NaN unknown
    box_category: np.ndarray  # [K] int32, row in category_name
    box_class: np.ndarray  # [K] int8, index in DETECTION_CLASSES, -1 none of them
    box_attribute: np.ndarray  # [K] int8, index in ATTRIBUTES, -1 none
    box_visibility: np.ndarray  # [K] int8, 1..4, 0 unknown
    box_points: np.ndarray  # [K, 2] int32, LiDAR and radar points inside
    box_instance: np.ndarray  # [K] int32, row in instance_token
    box_prev: np.ndarray  # [K] int32, row of the instance's previous box, -1 none
    box_next: np.ndarray  # [K] int32
    instance_token: np.ndarray  # bytes
    category_name: np.ndarray  # bytes

    @staticmethod
    def open(root: str | Path, version: str) -> Tables:
        """The tables in ``<root>/<version>``, from the cache where it is still valid.

        Raises:
            DataError: the folder or a table is missing, is not JSON, or refers to what is not there.
        """
        root = Path(root).expanduser().resolve()
        stamp = _stamp(root, version)
        opened = _OPENED.get(stamp)
        if opened is None:
            columns = _load(root, version, stamp)
            if columns is None:
                columns = build_columns(root / version)
                _save(root, version, stamp, columns)
            opened = _OPENED[stamp] = Tables(root=root, version=version, **columns)
        return opened

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers that are spawned open the cache themselves instead of receiving hundreds of megabytes."""
        return Tables.open, (str(self.root), self.version)

    @property
    def annotated(self) -> bool:
        """Does the data set have boxes at all? (The test set has none.)"""
        return len(self.box_class) > 0

    @cached_property
    def channels(self) -> dict[str, int]:
        """Column of ``key_data`` for each channel name."""
        return {name.decode(): column for column, name in enumerate(self.channel_name.tolist())}

    @cached_property
    def _row_of_token(self) -> dict[bytes, int]:
        return {token: row for row, token in enumerate(self.sample_token.tolist())}

    def row_of(self, token: str) -> int:
        """The row of a sample token; DataError when the data set has no such sample."""
        row = self._row_of_token.get(token.encode())
        if row is None:
            raise DataError(f"no sample {token!r} in {self.root / self.version}; check the token and the version")
        return row

    def token(self, sample: int) -> str:
        """The token of a sample row."""
        return _text(self.sample_token, sample)

    def scene(self, sample: int) -> str:
        """The scene name of a sample row."""
        return _text(self.scene_name, self.sample_scene[sample])

    def key(self, sample: int, channel: str) -> int:
        """The keyframe file (row of the data columns) of a channel, -1 where the sample has none."""
        column = self.channels.get(channel)
        return -1 if column is None else int(self.key_data[sample, column])

    def sweeps(self, data: int, count: int) -> list[int]:
        """File row ``data`` and the ones before it from the same sensor, newest first, ``count`` at most."""
        rows = [data]
        while len(rows) < count and (data := int(self.data_prev[data])) >= 0:
            rows.append(data)
        return rows

    def path(self, data: int) -> Path:
        """The file of a data row. DataError when its name leads out of the data root."""
        name = self.file_prefix[self.data_prefix[data]] + self.data_suffix[data]
        return self.inside(name.decode(), "sample_data.json")

    def inside(self, name: str, table: str) -> Path:
        """``root / name`` for a relative name without ``..`` (links in the root are the owner's business)."""
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts or "\0" in name:
            raise DataError(
                f"{self.root / self.version / table}: file name {name!r} leads out of the data root; repair the table"
            )
        return self.root / pure

    def global_from_ego(self, sample: int) -> np.ndarray:
        """[4, 4] float64 pose of a sample's reference frame. DataError when it has none or a broken one."""
        pose = self.sample_pose[sample]
        if pose < 0:
            raise DataError(f"sample {self.token(sample)} of {self.scene(sample)}: no ego pose in the whole scene")
        self._check_rigid(self.pose_translation[pose], self.pose_rotation[pose], "ego_pose.json", self.token(sample))
        return transform_from(self.pose_translation[pose], self.pose_rotation[pose])

    def check(self, data: int) -> None:
        """DataError when a file row's calibration or ego pose has NaN, or a quaternion not of length 1."""
        q, e = self.data_calibration[data], self.data_pose[data]
        token = _text(self.calibration_token, q)
        self._check_rigid(
            self.calibration_translation[q], self.calibration_rotation[q], "calibrated_sensor.json", token
        )
        self._check_rigid(self.pose_translation[e], self.pose_rotation[e], "ego_pose.json", str(self.path(data)))

    def intrinsic(self, data: int) -> np.ndarray:
        """[3, 3] camera matrix of a file row [px]. DataError when not finite, or without a focal length."""
        q = self.data_calibration[data]
        matrix = self.calibration_intrinsic[q]
        if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            raise DataError(
                f"{self.root / self.version / 'calibrated_sensor.json'}: {_text(self.calibration_token, q)!r} has "
                f"camera_intrinsic {matrix.tolist()}: expected finite numbers and focal lengths above 0; "
                "repair the row"
            )
        return matrix

    def reference_from_sensor(self, sample: int, data: Sequence[int]) -> np.ndarray:
        """[len(data), 4, 4] float64: sensor -> ego at the file's time -> global -> ego at reference time."""
        rows = np.asarray(data, dtype=np.int64)
        pose, calibration = self.data_pose[rows], self.data_calibration[rows]
        global_from_then = transform_from(self.pose_translation[pose], self.pose_rotation[pose])
        then_from_sensor = transform_from(
            self.calibration_translation[calibration], self.calibration_rotation[calibration]
        )
        return invert(self.global_from_ego(sample)) @ global_from_then @ then_from_sensor

    def lag(self, sample: int, data: int) -> float:
        """Seconds from a file's timestamp to the sample's reference time: >= 0 for the past."""
        return float(self.reference_time[sample] - self.data_time[data]) * 1e-6

    def _check_rigid(self, translation: np.ndarray, rotation: np.ndarray, table: str, of: str) -> None:
        numbers = [*translation.tolist(), *rotation.tolist()]
        norm = sum(q * q for q in numbers[3:]) ** 0.5
        if not abs(norm - 1) <= _UNIT_TOLERANCE or not abs(sum(numbers[:3])) < float("inf"):
            raise DataError(
                f"{self.root / self.version / table}: of {of}: translation {numbers[:3]}, rotation {numbers[3:]} "
                f"(norm {norm:.4g}): expected finite numbers and a quaternion (w, x, y, z) of length 1; repair it"
            )


def _text(column: np.ndarray, row: int | np.integer) -> str:
    """One entry of a column of bytes."""
    return bytes(column[row]).decode()


_OPENED: WeakValueDictionary[str, Tables] = WeakValueDictionary()  # train and val sets of a process share one copy


def _stamp(root: Path, version: str) -> str:
    """What a cache is valid for: place, version, and size and time of every table."""
    state = []
    for table in SCHEMA:
        path = root / version / f"{table}.json"
        if path.is_file():
            stat = path.stat()
            state.append((table, stat.st_size, stat.st_mtime_ns))
    return json.dumps([_FORMAT, str(root), version, state, REFERENCE_CHANNEL])


def _cache_path(root: Path, version: str) -> Path:
    digest = hashlib.sha256(f"{root}\n{version}".encode()).hexdigest()[:16]
    return cache_folder() / "tables" / f"{digest}.npz"


def _load(root: Path, version: str, stamp: str) -> dict[str, np.ndarray] | None:
    """The cached columns, or None where there are none, they are out of date, or damaged."""
    path = _cache_path(root, version)
    names = [f.name for f in dataclasses.fields(Tables) if f.name not in ("root", "version")]
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["stamp"].item() != stamp.encode():
                return None
            return {name: file[name] for name in names}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"the cache {path} is damaged ({error}); building it again", stacklevel=3)
        return None


def _save(root: Path, version: str, stamp: str, columns: dict[str, np.ndarray]) -> None:
    path = _cache_path(root, version)
    named: dict[str, Any] = {"stamp": np.array(stamp.encode()), **columns}
    write_cache(path, lambda file: np.savez(file, allow_pickle=False, **named))
