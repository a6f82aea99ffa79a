"""What belongs to a box: points and returns over several sweeps, and its window in an image.

Letters: M images, K boxes, P points. All in ego, before any BEV augmentation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusion3d import ops
from fusion3d.geometry import apply, box_corners
from fusion3d.types import LIDAR_FIELDS, RADAR_FIELDS, Boxes, Cameras

LIDAR_TIME, RADAR_TIME = LIDAR_FIELDS.index("time"), RADAR_FIELDS.index("time")
RADAR_MARGIN = 0.5  # [m] returns come from near a footprint, not from within it
_MIN_SIDE = 2.0  # [px] what is smaller in an image is not seen
NEAREST = 0.5  # [m] depth along the optical axis from which on a corner is in front of a camera
_EDGES = torch.tensor([(0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7)])


def lidar_inside(points: Tensor, boxes: Boxes) -> list[Tensor]:
    """For each of K boxes, the rows of its LiDAR points, looked for where the box was at the time of the point's sweep.

    A moving object's points of older sweeps trail behind its box; they belong to it all the same.
    """
    return _inside(points, points[:, LIDAR_TIME], boxes)


def radar_inside(returns: Tensor, boxes: Boxes) -> list[Tensor]:
    """The same for radar returns within half a metre of a footprint, at any height: radar does not measure it."""
    return _inside(returns, returns[:, RADAR_TIME], boxes, RADAR_MARGIN, flat=True)


def _inside(points: Tensor, time_P: Tensor, boxes: Boxes, margin: float = 0.0, flat: bool = False) -> list[Tensor]:
    rows_K, velocity_K2 = _rows(boxes), boxes.velocity.nan_to_num()
    x_P, y_P = points[:, 0].contiguous(), points[:, 1].contiguous()
    latest = float(time_P.abs().max()) if len(points) else 0.0
    reach_K = (boxes.size[:, :2].norm(dim=1) / 2 + velocity_K2.norm(dim=1) * latest + margin).tolist()
    found = []
    for row, velocity, reach in zip(rows_K, velocity_K2, reach_K, strict=True):
        # A coarse sieve first, as clouds are large; then where the points would be, had they moved on with the box.
        near = (((x_P - row[0]).abs() <= reach) & ((y_P - row[1]).abs() <= reach)).nonzero()[:, 0]
        moved = points[near, :3].clone()
        moved[:, :2] += velocity * time_P[near, None]
        if flat:
            moved[:, 2] = row[2]
        found.append(near[ops.points_in_boxes(moved, row[None], margin=margin).box >= 0])
    return found


def _rows(boxes: Boxes) -> Tensor:
    """[K, 7] centre, size, yaw."""
    return torch.cat([boxes.center, boxes.size, boxes.yaw[:, None]], dim=1)


def project(cameras: Cameras, boxes: Boxes) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes in images.

    Returns:
        corners [M, K, 8, 2] pixels of the corners, NaN for those not in front of the camera; window [M, K, 4] pixels
        (left, top, right, bottom) of what is in front of it, cut to the image, NaN where nothing of that is on it; and
        depth [M, K] of the centres [m]. float64.
    """
    rows, cols = cameras.images.shape[-2:]
    cam_from_ego = torch.linalg.inv(cameras.ego_from_cam.double())
    corners_K83 = box_corners(boxes.center, boxes.size, boxes.yaw).double()
    cam_MK83 = apply(cam_from_ego, corners_K83.reshape(1, -1, 3)).view(len(cam_from_ego), len(boxes), 8, 3)
    depth_MK = apply(cam_from_ego, boxes.center.double()[None])[..., 2]
    pixel_MK82 = _pixels(cameras, cam_MK83)
    # Of an edge that passes the plane in front of the camera, the part before it counts.
    ends = cam_MK83[:, :, _EDGES]  # [M, K, 12, 2, 3]
    share = ((NEAREST - ends[..., :1, 2]) / (ends[..., 1:, 2] - ends[..., :1, 2])).clamp(0, 1)[..., None]
    cut = ends[..., :1, :] + share * (ends[..., 1:, :] - ends[..., :1, :])
    crosses = (ends[..., 2] < NEAREST).sum(-1, keepdim=True) == 1
    cut_MK2 = torch.where(crosses, _pixels(cameras, cut[..., 0, :], cut_at=True), torch.nan)
    outline = torch.cat([pixel_MK82, cut_MK2], dim=2)
    low = outline.nan_to_num(torch.inf, torch.inf, -torch.inf).amin(2)
    high = outline.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(2)
    last = outline.new_tensor([cols - 1, rows - 1])
    window = torch.cat([low.clamp(min=0), torch.minimum(high, last)], dim=-1)
    seen = (window[..., :2] <= window[..., 2:]).all(-1, keepdim=True)
    return pixel_MK82, torch.where(seen, window, torch.nan), depth_MK


def _pixels(cameras: Cameras, cam: Tensor, cut_at: bool = False) -> Tensor:
    """Camera points [M, K, N, 3] to pixels [M, K, N, 2]; NaN for what is not in front of the camera."""
    image = apply(cameras.image_from_cam.double()[:, None], cam)
    front = cam[..., 2:] >= (NEAREST - 1e-6 if cut_at else NEAREST)
    return torch.where(front, image[..., :2] / image[..., 2:], torch.nan)


def wholly_seen(corners: Tensor, window: Tensor) -> Tensor:
    """[...] bool: boxes with all corners [..., 8, 2] in front of the camera, and a window [..., 4] that shows them."""
    return corners.isfinite().all(-1).all(-1) & seen(window)


def seen(window: Tensor) -> Tensor:
    """[...] bool: windows [..., 4] of at least two pixels either way."""
    return (window[..., 2:] - window[..., :2] >= _MIN_SIDE).all(-1)
