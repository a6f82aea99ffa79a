"""Boxes that turn about z only: centre is the gravity centre, size is (length, width, height)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The corners of a unit box: first the four of the front face (x = +1/2), then the four of the back face.
_CORNERS = torch.tensor(
    [[0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, -0.5, -0.5], [0.5, 0.5, -0.5],
     [-0.5, 0.5, 0.5], [-0.5, -0.5, 0.5], [-0.5, -0.5, -0.5], [-0.5, 0.5, -0.5]]
)  # fmt: skip


def wrap_angle(angle: Tensor) -> Tensor:
    """Angles [rad] brought into [-pi, pi)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def turn(offset: Tensor, yaw: Tensor) -> Tensor:
    """[..., N, 2+] offsets turned by [...] yaw [rad] in their first two columns."""
    cos, sin = yaw.cos()[..., None], yaw.sin()[..., None]
    x, y = offset[..., 0], offset[..., 1]
    return torch.cat([(cos * x - sin * y)[..., None], (sin * x + cos * y)[..., None], offset[..., 2:]], dim=-1)


def box_corners(center: Tensor, size: Tensor, yaw: Tensor) -> Tensor:
    """[..., 3] centre, [..., 3] (l, w, h), [...] yaw to [..., 8, 3] corners: 0-3 front face, 4-7 back face.

    Within a face: left top, right top, right bottom, left bottom (left is +y of the box).
    """
    offset = _CORNERS.to(size) * size[..., None, :]
    return center[..., None, :] + turn(offset, yaw)


def corners_bev(center: Tensor, size: Tensor, yaw: Tensor) -> Tensor:
    """[..., 2+] centre, [..., 2+] (l, w), [...] yaw to [..., 4, 2] footprint corners, clockwise from front left."""
    offset = _CORNERS[[0, 1, 5, 4], :2].to(size) * size[..., None, :2]
    return center[..., None, :2] + turn(offset, yaw)
