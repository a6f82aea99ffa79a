"""Rigid transforms as 4x4 matrices named ``dst_from_src``."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)


def rotation_from_quaternion(wxyz: np.ndarray) -> np.ndarray:
    """[..., 4] quaternions (w, x, y, z), normalised here, to [..., 3, 3] rotation matrices, float64."""
    q = np.asarray(wxyz, dtype=np.float64)
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    w, x, y, z = np.moveaxis(q, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def quaternion_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """[..., 3, 3] rotation matrices to [..., 4] unit quaternions (w, x, y, z) with w >= 0, float64."""
    from scipy.spatial.transform import Rotation

    rotation = np.asarray(rotation, dtype=np.float64)
    xyzw = Rotation.from_matrix(rotation.reshape(-1, 3, 3)).as_quat(canonical=True)
    return xyzw[:, [3, 0, 1, 2]].reshape(*rotation.shape[:-2], 4)


def quaternion_from_yaw(yaw: np.ndarray) -> np.ndarray:
    """[...] yaw [rad] to [..., 4] quaternions (w, x, y, z)."""
    half = np.asarray(yaw, dtype=np.float64) / 2
    zero = np.zeros_like(half)
    return np.stack([np.cos(half), zero, zero, np.sin(half)], axis=-1)


def transform_from(translation: np.ndarray, wxyz: np.ndarray) -> np.ndarray:
    """[..., 3] translation [m] and [..., 4] quaternion (w, x, y, z) to [..., 4, 4] ``dst_from_src``, float64."""
    translation = np.asarray(translation, dtype=np.float64)
    matrix = np.zeros((*translation.shape[:-1], 4, 4))
    matrix[..., :3, :3] = rotation_from_quaternion(wxyz)
    matrix[..., :3, 3] = translation
    matrix[..., 3, 3] = 1
    return matrix


def invert(dst_from_src: Array) -> Array:
    """``src_from_dst``: the inverse of rigid [..., 4, 4] transforms (by transposition: exact and cheap)."""
    inverse: Any = dst_from_src.copy() if isinstance(dst_from_src, np.ndarray) else dst_from_src.clone()
    transposed = dst_from_src[..., :3, :3].swapaxes(-1, -2)
    inverse[..., :3, :3] = transposed
    inverse[..., :3, 3] = -(transposed @ dst_from_src[..., :3, 3:])[..., 0]
    return inverse


def apply(dst_from_src: Array, points: Array) -> Array:
    """Points [..., P, 3] moved by transforms [..., 4, 4] (rotation, scale and translation; no division)."""
    # Any, here and below: to the checker a product of transposed slices is not of the type that came in.
    moved: Any = points @ dst_from_src[..., :3, :3].swapaxes(-1, -2) + dst_from_src[..., None, :3, 3]
    return moved


def rotate(dst_from_src: Array, vectors: Array) -> Array:
    """Free vectors [..., P, 3] (velocities, directions) turned by transforms [..., 4, 4]: no translation."""
    turned: Any = vectors @ dst_from_src[..., :3, :3].swapaxes(-1, -2)
    return turned


def yaw_of(dst_from_src: np.ndarray) -> np.ndarray:
    """[..., 4, 4] or [..., 3, 3] rotation to [...] yaw [rad]: the heading of src's x axis in dst's xy plane."""
    return np.arctan2(dst_from_src[..., 1, 0], dst_from_src[..., 0, 0])


def yaw_from_quaternion(wxyz: np.ndarray) -> np.ndarray:
    """[..., 4] quaternions (w, x, y, z) of any length to [...] yaw [rad], as ``yaw_of`` of their rotations."""
    w, x, y, z = np.moveaxis(np.asarray(wxyz, dtype=np.float64), -1, 0)
    return np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)
