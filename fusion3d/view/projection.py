"""Boxes in camera images: edges are clipped at a near plane before they are divided by their depth.

Letters: K boxes, E edges (12 a box), V vertices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fusion3d.geometry import apply, box_corners
from fusion3d.types import Boxes

NEAR = 0.1  # [m] nothing closer to the camera's plane is drawn

# Corner indices of a box (see geometry.box_corners): front face, back face, and the four edges between them.
BOX_EDGES = (
    (0, 1), (1, 2), (2, 3), (3, 0),
    (4, 5), (5, 6), (6, 7), (7, 4),
    (0, 4), (1, 5), (2, 6), (3, 7),
)  # fmt: skip
FRONT_FACE = (0, 1, 2, 3)


def clip_edges(start: Tensor, end: Tensor, near: float = NEAR) -> tuple[Tensor, Tensor, Tensor]:
    """Cut segments at the plane z = near and keep what is in front of it.

    Args:
        start, end: [..., 3] points in a camera frame [m].
        near: depth of the plane [m].

    Returns:
        [..., 3] and [..., 3]: the ends of the part in front, and [...] bool: is any part in front?
        Where it is False the ends are as they were.
    """
    visible = (start[..., 2] > near) | (end[..., 2] > near)
    depth = end[..., 2] - start[..., 2]
    crossing = (near - start[..., 2]) / torch.where(depth == 0, 1.0, depth)
    point = start + crossing[..., None] * (end - start)
    point = torch.cat([point[..., :2], torch.full_like(point[..., 2:], near)], dim=-1)
    cut_start = (visible & (start[..., 2] < near))[..., None]
    cut_end = (visible & (end[..., 2] < near))[..., None]
    return torch.where(cut_start, point, start), torch.where(cut_end, point, end), visible


def clip_polygon(vertices: Tensor, near: float = NEAR) -> Tensor:
    """[V, 3] polygon in a camera frame, cut at z = near (Sutherland and Hodgman, 1974): [V', 3], V' may be 0."""
    kept: list[Tensor] = []
    for current, following in zip(vertices, vertices.roll(-1, 0), strict=True):
        inside, next_inside = bool(current[2] > near), bool(following[2] > near)
        if inside:
            kept.append(current)
        if inside != next_inside:
            first, second, _ = clip_edges(current, following, near)
            kept.append(second if inside else first)
    return torch.stack(kept) if kept else vertices.new_zeros(0, 3)


def project(image_from_cam: Tensor, points: Tensor) -> Tensor:
    """[4, 4] intrinsics and [..., 3] points in front of the camera to [..., 2] pixels (u, v)."""
    uvw = apply(image_from_cam, points.reshape(-1, 3))
    return (uvw[:, :2] / uvw[:, 2:]).reshape(*points.shape[:-1], 2)


def project_boxes(
    boxes: Boxes, ego_from_cam: Tensor, image_from_cam: Tensor, size: tuple[int, int]
) -> list[tuple[int, Tensor, Tensor]]:
    """What a camera sees of the boxes, far ones first.

    Args:
        boxes: in ego.
        ego_from_cam, image_from_cam: [4, 4].
        size: image height and width [px].

    Returns:
        For each box that touches the image: its index, [E', 2, 2] visible edges and [V', 2] front face, in pixels.
    """
    if len(boxes) == 0:
        return []
    # BEV augmentation may scale the world, so the camera's pose is not always rigid.
    cam_from_ego = torch.linalg.inv(ego_from_cam.double())
    corners = apply(cam_from_ego, box_corners(boxes.center, boxes.size, boxes.yaw).double())  # [K, 8, 3]
    image_from_cam = image_from_cam.double()
    edges = torch.tensor(BOX_EDGES)
    start, end, visible = clip_edges(corners[:, edges[:, 0]], corners[:, edges[:, 1]])  # [K, 12, 3]
    height, width = size
    seen = []
    for k in corners.mean(1).norm(dim=-1).argsort(descending=True).tolist():
        if not visible[k].any():
            continue
        lines = project(image_from_cam, torch.stack([start[k], end[k]], dim=1)[visible[k]])  # [E', 2, 2]
        low, high = lines.amin((0, 1)), lines.amax((0, 1))
        if low[0] > width or low[1] > height or high[0] < 0 or high[1] < 0:
            continue
        seen.append((k, lines, project(image_from_cam, clip_polygon(corners[k, list(FRONT_FACE)]))))
    return seen
