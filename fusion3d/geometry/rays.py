"""Rays through pixels, and points in images: where cells look, which boxes they meet, where points are seen.

Letters: M images, K boxes, H W feature rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_rays(
    image_from_cam: Tensor, ego_from_cam: Tensor, shape: tuple[int, int], stride: int
) -> tuple[Tensor, Tensor]:
    """The ray of every feature cell in ego, parametrised by depth: ``origin + depth * direction``.

    A cell (i, j) stands for the pixel (stride (j + 1/2) - 1/2, stride (i + 1/2) - 1/2), the middle of the pixels it
    covers. Depth is along the optical axis, so the direction has unit length only in the image centre.
    Computed in float64 and without matrix products on the accelerator's reduced precision.

    Args:
        image_from_cam: [M, 4, 4] intrinsics, with whatever was done to the image.
        ego_from_cam: [M, 4, 4], with whatever was done to the world.
        shape: rows and columns of the feature map.
        stride: pixels per feature cell.

    Returns:
        origin [M, 3] and direction [M, H, W, 3], float32.
    """
    rows, cols = shape
    ego_from_image = ego_from_cam.double() @ torch.linalg.inv(image_from_cam.double())
    v = torch.arange(rows, device=ego_from_cam.device, dtype=torch.float64) * stride + (stride - 1) / 2
    u = torch.arange(cols, device=ego_from_cam.device, dtype=torch.float64) * stride + (stride - 1) / 2
    axis_u, axis_v, axis_1 = ego_from_image[:, None, None, :3, :3].unbind(-1)
    direction = axis_u * u[:, None] + axis_v * v[:, None, None] + axis_1
    return ego_from_image[:, :3, 3].float(), direction.float()


def enter_boxes(
    center: Tensor, size: Tensor, yaw: Tensor, origin: Tensor, direction: Tensor, nearest: float = 0.1
) -> Tensor:
    """The depth at which rays enter boxes (slab test): ``origin + depth * direction`` is on a face.

    Args:
        center: [K, 3].
        size: [K, 3] length, width, height.
        yaw: [K] [rad].
        origin: [3], or [K, 3] of each box's own.
        direction: [H, W, 3], of any length.
        nearest: what is entered closer than this holds the camera, or stands behind it: it is not met.

    Returns:
        [K, H, W], infinity where a ray misses a box.
    """
    offset_K3, half_K3 = origin - center, size / 2
    # A box's own axes: the two that turn with it, and the vertical one.
    cos_K, sin_K, zero_K = yaw.cos(), yaw.sin(), torch.zeros_like(yaw)
    axes_K33 = torch.stack([cos_K, sin_K, zero_K, -sin_K, cos_K, zero_K, zero_K, zero_K, zero_K + 1], 1).view(-1, 3, 3)
    leave = offset_K3.new_full((len(center), *direction.shape[:2]), torch.inf)
    enter = -leave
    for axis_K3, half_K in zip(axes_K33.unbind(1), half_K3.unbind(1), strict=True):
        start_K11 = (axis_K3 * offset_K3).sum(1)[:, None, None]
        slope_KHW = (axis_K3[:, None, None] * direction).sum(-1)
        slope_KHW = torch.where(slope_KHW.abs() < 1e-6, 1e-6, slope_KHW)
        near, far = ((side * half_K[:, None, None] - start_K11) / slope_KHW for side in (-1, 1))
        enter = torch.maximum(enter, torch.minimum(near, far))
        leave = torch.minimum(leave, torch.maximum(near, far))
    return torch.where((enter > nearest) & (enter < leave), enter, torch.inf)


def image_from_ego(image_from_cam: Tensor, ego_from_cam: Tensor) -> Tensor:
    """[M, 3, 4] float32: a point in ego to (u depth, v depth, depth) of each camera; depth is in the camera's metres.

    A BEV augmentation may scale and mirror, so this is a true inverse.
    """
    return (image_from_cam.double() @ torch.linalg.inv(ego_from_cam.double()))[:, :3].float()


def project(image_from_ego: Tensor, xyz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points in images. Sums are written out to stay clear of the accelerator's reduced precision.

    Args:
        image_from_ego: [..., 3, 4] of ``image_from_ego``.
        xyz: [..., 3] in ego [m]; leading dimensions are broadcast.

    Returns:
        u, v [px] and depth [m], each [...]. Pixels of points that are not in front of the camera mean nothing.
    """
    x, y, z = xyz.unbind(-1)
    u, v, depth = (
        row[..., 0] * x + row[..., 1] * y + row[..., 2] * z + row[..., 3] for row in image_from_ego.unbind(-2)
    )
    return u / depth, v / depth, depth
