"""What each cell of an image shows: the boxes' classes, seen from the camera.

Lifted features meet the boxes' loss only through depth and grid, which is a weak teacher at first. A class for every
image cell teaches them directly, as the 2-D heads do that camera detectors are trained with (StreamPETR, Wang et al.,
2023).
Letters: M images (packed), K boxes of a sample, C channels, N classes, H W feature rows and columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion3d.counts import divisor
from fusion3d.geometry.rays import enter_boxes, pixel_rays
from fusion3d.heads.detection import focal_loss, prior_bias_
from fusion3d.types import DETECTION_CLASSES, Batch, Boxes, Cameras

HIDDEN = -2  # label of a cell whose nearest box can hardly be seen: it is neither that class nor background
_NEAREST = 0.5  # [m] what a ray meets closer than this holds the camera, or is too close to be seen whole
_HARDLY_SEEN = 1  # visibility level: 0 to 40 %


@dataclass(frozen=True)
class ImageOutput:
    """Class logits of the images that were seen, with the cameras that they are about."""

    logits: Tensor  # [M, N, H, W]
    cameras: Cameras


class ImageClasses(nn.Module):
    """One 1x1 convolution from the features that are lifted to the ten classes."""

    def __init__(self, channels: int, stride: int, weight: float) -> None:
        super().__init__()
        self.stride = stride
        self.weight = weight
        self.out = nn.Conv2d(channels, len(DETECTION_CLASSES), 1)
        prior_bias_(self.out)

    def forward(self, context_MCHW: Tensor, cameras: Cameras) -> ImageOutput:
        """Logits of every feature cell."""
        return ImageOutput(self.out(context_MCHW), cameras)

    def losses(self, output: ImageOutput, batch: Batch) -> dict[str, Tensor]:
        """The weighted focal loss per cell that shows a box; 0, in the graph, without annotations."""
        logits_MNHW = output.logits.float()
        if batch.boxes is None:
            return {"image": 0.0 * logits_MNHW.sum()}
        shape = (logits_MNHW.shape[2], logits_MNHW.shape[3])
        label_MHW = image_classes(output.cameras, batch.boxes, shape, self.stride)
        classes = torch.arange(len(DETECTION_CLASSES), device=label_MHW.device)
        target_MNHW = (label_MHW[:, None] == classes[:, None, None]).float()
        known_MHW = batch.annotated[output.cameras.batch_index, None, None] & (label_MHW != HIDDEN)
        loss_MHW = focal_loss(logits_MNHW, target_MNHW).sum(1) * known_MHW
        shown = divisor("image", (known_MHW & (label_MHW >= 0)).sum())
        return {"image": self.weight * loss_MHW.sum() / shown}


@torch.no_grad()
def image_classes(cameras: Cameras, boxes: tuple[Boxes, ...], shape: tuple[int, int], stride: int) -> Tensor:
    """The class of the nearest box on the ray of every feature cell.

    Boxes are grown by half a cell, so that the small and far ones cover one. What stands between that is no box is not
    known here, but for the visibility that the box comes with.

    Args:
        cameras: M images.
        boxes: of every sample of the batch.
        shape: rows and columns of the feature map.
        stride: pixels per feature cell.

    Returns:
        [M, H, W] int64 index in DETECTION_CLASSES, -1 where there is no box, ``HIDDEN`` where it is mostly hidden.
    """
    origin_M3, ray_MHW3 = pixel_rays(cameras.image_from_cam, cameras.ego_from_cam, shape, stride)
    label_MHW = torch.full(ray_MHW3.shape[:3], -1, dtype=torch.int64, device=ray_MHW3.device)
    angle_M = stride / 2 / cameras.image_from_cam[:, 0, :2].norm(dim=1)  # half a cell [rad]
    for image, sample in enumerate(cameras.batch_index.tolist()):
        there = boxes[sample]
        if not len(there):
            continue
        label_K = torch.where(there.visibility == _HARDLY_SEEN, HIDDEN, there.label)
        depth_HW, nearest_HW = _depth_of(there, origin_M3[image], ray_MHW3[image], angle_M[image]).min(0)
        label_MHW[image] = torch.where(depth_HW.isfinite(), label_K[nearest_HW], -1)
    return label_MHW


def _depth_of(boxes: Boxes, origin_3: Tensor, ray_HW3: Tensor, angle: Tensor) -> Tensor:
    """[K, H, W] depth at which rays enter boxes that are grown by ``angle``; infinity where they miss."""
    grown_K3 = boxes.size + 2 * angle * (origin_3 - boxes.center).norm(dim=1, keepdim=True)
    return enter_boxes(boxes.center, grown_K3, boxes.yaw, origin_3, ray_HW3, _NEAREST)
