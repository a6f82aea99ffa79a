"""Painting objects into images: the patches that cameras once took of them, behind what is nearer.

Pasting patches far to near, with what is nearer in the image pasted again on top, is MoCa's way (Zhang et al.,
"Exploring Data Augmentation for Multi-Modality 3D Object Detection", 2020). Here order is decided for each pixel, by
the depth at which its ray enters the boxes, which is right for long and close objects too; and what is painted is the
object's silhouette, its box as the camera sees it, not the whole rectangle around.
Letters: M images, K boxes, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion3d.data.paste.cut import NEAREST, project
from fusion3d.data.paste.database import Patch
from fusion3d.geometry.rays import enter_boxes, pixel_rays
from fusion3d.types import Boxes, Cameras

_NEARER = 1e-3  # [m] boxes that enter a pixel's ray at the same depth, but for rounding, leave it as it is


def paint(
    cameras: Cameras,
    there: Boxes,
    pasted: Boxes,
    patches: Sequence[Mapping[str, Patch]],
    blend: float = 1.0,
) -> Tensor:
    """The images with objects painted in; the arguments stay as they are.

    Args:
        cameras: M images.
        there: boxes that the images show already.
        pasted: K boxes to paint.
        patches: of each of them, by channel.
        blend: share of the patch in what is painted.

    Returns:
        [M, 3, H, W].
    """
    images = cameras.images.clone()
    boxes = Boxes.cat([there, pasted])
    corners, windows, _ = project(cameras, boxes)
    for m, channel in enumerate(cameras.channels):
        shown = windows[m].isfinite().all(1)
        for index, of in enumerate(patches, len(there)):
            if channel not in of or not shown[index]:
                continue
            left, top, right, bottom = window = _pixels_of(windows[m, index], images.shape)
            beside = shown & (windows[m, :, :2] <= windows[m, index, 2:]).all(1)
            beside &= (windows[m, :, 2:] >= windows[m, index, :2]).all(1)
            beside[index] = False
            origin, rays = _rays(cameras, m, window)
            patch, known = warp(of[channel], corners[m, index], window)
            visible = known & _in_front(boxes[torch.tensor([index])], boxes[beside], origin, rays)
            area = (m, slice(None), slice(top, bottom), slice(left, right))
            mixed = blend * patch + (1 - blend) * cameras.images[area]
            images[area] = torch.where(visible, mixed, images[area])
    return images


def _pixels_of(window: Tensor, shape: Sequence[int]) -> tuple[int, int, int, int]:
    """First column and row, and those after the last, of the pixels of an image that a window touches."""
    left, top, right, bottom = window.tolist()
    return max(0, int(left)), max(0, int(top)), min(shape[-1], int(right) + 2), min(shape[-2], int(bottom) + 2)


def _rays(cameras: Cameras, m: int, window: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Origin [3] and directions [H, W, 3] of the rays through a window's pixels."""
    left, top, right, bottom = window
    crop = torch.eye(4)
    crop[:2, 2] = -torch.tensor([left, top])
    image_from_cam, ego_from_cam = crop @ cameras.image_from_cam[m, None], cameras.ego_from_cam[m, None]
    origin, rays = pixel_rays(image_from_cam, ego_from_cam, (bottom - top, right - left), stride=1)
    return origin[0], rays[0]


def _in_front(box: Boxes, others: Boxes, origin_3: Tensor, ray_HW3: Tensor) -> Tensor:
    """[H, W] bool: pixels whose rays meet a box, and none of the others before it."""
    own_HW, depth_HW = (
        enter_boxes(of.center, of.size, of.yaw, origin_3, ray_HW3, NEAREST).amin(0) if len(of) else torch.inf
        for of in (box, others)
    )
    return torch.isfinite(own_HW) & (own_HW < depth_HW - _NEARER)  # type: ignore[arg-type]


def warp(patch: Patch, corners: Tensor, window: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """A patch as it looks in another image of the same camera, resized, mirrored or turned as that may be.

    Args:
        patch: with the pixels of the box's corners in it.
        corners: [8, 2] pixels of the same corners in the image.
        window: first column and row of the image that are wanted, and those after the last.

    Returns:
        [3, h, w] float32 in [0, 1], and [h, w] bool: the patch has the pixel.
    """
    ones = torch.ones(8, 1, dtype=torch.float64)
    # Where both cameras are the same the map is exactly affine; where they differ a little it fits best.
    patch_from_image = torch.linalg.lstsq(torch.cat([corners.double(), ones], 1), patch.corners.double()).solution.T
    image = patch.image.float().div(255)[None]
    rows, cols = image.shape[-2:]
    shrink = float(torch.linalg.det(patch_from_image[:, :2]).abs().sqrt())  # patch pixels in one of the image
    if shrink > 1:
        size = (max(1, round(rows / shrink)), max(1, round(cols / shrink)))
        image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
    left, top, right, bottom = window
    v, u = torch.meshgrid(
        torch.arange(top, bottom, dtype=torch.float64), torch.arange(left, right, dtype=torch.float64), indexing="ij"
    )
    at = torch.stack([u, v, torch.ones_like(u)], dim=-1) @ patch_from_image.T
    length = at.new_tensor([cols, rows])
    known = ((at >= -0.5) & (at <= length - 0.5)).all(-1)
    grid = (2 * (at + 0.5) / length - 1).float()[None]
    return F.grid_sample(image, grid, "bilinear", "border", align_corners=False)[0], known
