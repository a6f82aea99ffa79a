"""Tracks of the ego and of agents without sensor data: one ``scene-XXXX.npz`` a scene, ten steps a second.

Plain arrays in the global frame of a nuScenes map [m, rad]; what is read of them is in ``_ARRAYS``. Keyframes are every
fifth step; the ego is the origin of the nuScenes ego frame.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion3d.errors import DataError

_ARRAYS = {  # name: (kind of its type, dimensions)
    "scene_name": ("U", 0), "map_name": ("U", 0), "keyframe_index": ("i", 1), "keyframe_timestamp_us": ("i", 1),
    "keyframe_sample_token": ("U", 1), "keyframe_ego_xyz": ("f", 2), "ego_sync_heading": ("f", 1),
    "agent_category": ("U", 1), "agent_lwh": ("f", 2), "agent_xyz": ("f", 3), "agent_heading": ("f", 2),
    "agent_valid": ("b", 2),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class TrackScene:
    """A scene at its K keyframes: A agents."""

    name: str
    location: str
    tokens: tuple[str, ...]  # K sample tokens
    time: np.ndarray  # [K] float64 seconds since the first keyframe
    ego: np.ndarray  # [K, 3] float64 x, y, yaw in global
    category: tuple[str, ...]  # A nuScenes categories
    size: np.ndarray  # [A, 2] float64 length, width
    agent: np.ndarray  # [A, K, 3] float64 x, y, yaw in global; NaN where not annotated


def read_tracks(folder: str | Path) -> list[TrackScene]:
    """All scenes of a folder, by name.

    Raises:
        DataError: there is none, or one cannot be read or is not of this form.
    """
    files = sorted(Path(folder).glob("scene-*.npz"))
    if not files:
        raise DataError(f"{folder}: no scene-*.npz; expected one file of tracks for each scene")
    return [_read(file) for file in files]


def _read(path: Path) -> TrackScene:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS if name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read the tracks {path}: {error}; copy the file again") from error
    for name, (kind, ndim) in _ARRAYS.items():
        if name not in arrays or arrays[name].dtype.kind != kind or arrays[name].ndim != ndim:
            found = f"{arrays[name].dtype} of {arrays[name].ndim} dimensions" if name in arrays else "nothing"
            raise DataError(f"{path}: {name} is {found}; expected type {kind!r} of {ndim} dimensions")
    index, count, steps = arrays["keyframe_index"], len(arrays["agent_lwh"]), len(arrays["ego_sync_heading"])
    fits = len(index) == len(arrays["keyframe_sample_token"]) == len(arrays["keyframe_ego_xyz"]) > 0
    fits &= len(arrays["keyframe_timestamp_us"]) == len(index) and (0 <= index).all() and (index < steps).all()
    fits &= arrays["agent_xyz"].shape == (count, steps, 3) and len(arrays["agent_category"]) == count
    fits &= arrays["agent_valid"].shape == arrays["agent_heading"].shape == (count, steps)
    if not fits:
        raise DataError(f"{path}: the arrays do not fit each other; copy the file again")
    time = arrays["keyframe_timestamp_us"]
    agent = np.concatenate([arrays["agent_xyz"][:, index, :2], arrays["agent_heading"][:, index, None]], axis=-1)
    ego = np.concatenate([arrays["keyframe_ego_xyz"][:, :2], arrays["ego_sync_heading"][index, None]], axis=-1)
    if not np.isfinite(ego).all() or (np.diff(time) <= 0).any():
        raise DataError(f"{path}: an ego pose is not finite, or the keyframes are not in order; copy the file again")
    size, valid = arrays["agent_lwh"][:, :2], arrays["agent_valid"][:, index]
    if not (np.isfinite(size) & (size > 0)).all() or not np.isfinite(agent[valid]).all():
        raise DataError(f"{path}: an agent has no size, or no place where it is said to be valid; copy the file again")
    return TrackScene(
        str(arrays["scene_name"]),
        str(arrays["map_name"]),
        tuple(arrays["keyframe_sample_token"].tolist()),
        (time - time[0]) * 1e-6,
        ego.astype(np.float64),
        tuple(arrays["agent_category"].tolist()),
        size.astype(np.float64),
        np.where(valid[..., None], agent, np.nan).astype(np.float64),
    )
