"""What images say of points: points are painted with it, and image cells become points themselves.

Letters: M images (packed), P points, V virtual points, J of them in an image cell, K times a point is seen, C channels,
D depth bins, H W feature rows and columns. All geometry is float32 or better, whatever the autocast type.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.bev.lift import DepthBins
from fusion3d.bev.tokens import read_images
from fusion3d.encoders.raster import seen_points
from fusion3d.geometry.rays import pixel_rays
from fusion3d.types import Cameras, PointCloud


@dataclass(frozen=True)
class VirtualCloud:
    """Points where images suggest that something is."""

    xyz: Tensor  # [V, 3] float32, ego [m]
    chance: Tensor  # [V] float32 probability of the point's depth bin
    batch_index: Tensor  # [V] int64, in no order


class VirtualPoints(nn.Module):
    """Every image cell as a few points on its ray, in the middle of its likeliest depth bins.

    Pseudo-LiDAR (Wang et al., 2019) makes a point of each pixel at its estimated depth; multimodal virtual points (Yin
    et al., 2021) stand beside those of LiDAR. What differs: several depths are kept, each with its probability, so that
    an edge is no point between two surfaces, and the depth learns from the task too, as it does in lift-splat.
    """

    def __init__(self, bins: DepthBins, stride: int, count: int) -> None:
        """``count`` points of each cell, of ``stride`` pixels."""
        super().__init__()
        self.bins = bins
        self.stride = stride
        self.count = count

    def forward(self, depth_MDHW: Tensor, cameras: Cameras) -> VirtualCloud:
        """Depth logits of M images to points; their probabilities are differentiable, their places are not."""
        shape = (depth_MDHW.shape[2], depth_MDHW.shape[3])
        with torch.autocast(depth_MDHW.device.type, enabled=False):
            chance_MJHW, bin_MJHW = depth_MDHW.float().softmax(1).topk(self.count, dim=1)
            origin_M3, ray_MHW3 = pixel_rays(cameras.image_from_cam, cameras.ego_from_cam, shape, self.stride)
            depth_MJHW1 = self.bins.centers(depth_MDHW.device)[bin_MJHW][..., None]
            xyz_MJHW3 = origin_M3[:, None, None, None] + depth_MJHW1 * ray_MHW3[:, None]
        sample_V = cameras.batch_index.repeat_interleave(self.count * shape[0] * shape[1])
        return VirtualCloud(xyz_MJHW3.view(-1, 3), chance_MJHW.flatten(), sample_V)


class Painting(nn.Module):
    """Each point reads, bilinearly, the images that see it: the mean over the cameras of its sample.

    PointPainting (Vora et al., 2020) appends class scores to LiDAR points, PointAugmenting (Wang et al., 2021) features
    of an image network. A point is taken for seen where it falls into an image, as there: nothing is known of what
    stands before it. Points of older sweeps read the image of now at the place where they were measured.
    """

    def __init__(self, stride: int, channels: int) -> None:
        """Image cells of ``stride`` pixels, with so many channels."""
        super().__init__()
        self.stride = stride
        self.channels = channels

    def forward(self, paint_MCHW: Tensor, cameras: Cameras, cloud: PointCloud) -> tuple[Tensor, Tensor]:
        """[P, C] float32 what the images show of each point, 0 where none sees it, and [P] bool whether one does.

        Deterministic in both directions, on CUDA too. Differentiable in what is painted.
        """
        shape, num_points = (paint_MCHW.shape[2], paint_MCHW.shape[3]), len(cloud.points)
        if not (num_points and len(cameras.images)):
            nothing_PC = paint_MCHW.new_zeros(num_points, self.channels, dtype=torch.float32)
            return nothing_PC, torch.zeros_like(cloud.batch_index, dtype=torch.bool)
        with torch.autocast(paint_MCHW.device.type, enabled=False):
            image_K, point_K, place_K2 = self.hits(cameras, cloud, shape)
            read_KC = read_images(paint_MCHW, image_K, place_K2)
            plan = ops.segment_plan(point_K, num_points, keep_empty=True)
            return ops.segment_reduce(read_KC, plan, "mean"), plan.ptr.diff() > 0

    def hits(self, cameras: Cameras, cloud: PointCloud, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Which images see which points, [K] int64 each, and [K, 2] where: 0 and 1 are the outer edges of the image.

        Places less than half a cell from an edge are moved there, where the outermost cells are read as they are. How
        many there are takes a host read on CUDA.
        """
        rows, cols = shape
        images, points, places = [], [], []
        for image_P, u_P, v_P, depth_P in seen_points(cameras, cloud):
            x_P, y_P = (u_P + 0.5) / (self.stride * cols), (v_P + 0.5) / (self.stride * rows)
            seen_P = (depth_P > 0) & (x_P >= 0) & (x_P < 1) & (y_P >= 0) & (y_P < 1)
            point_K = seen_P.nonzero()[:, 0]
            x_K, y_K = x_P[point_K].clamp(0.5 / cols, 1 - 0.5 / cols), y_P[point_K].clamp(0.5 / rows, 1 - 0.5 / rows)
            points.append(point_K)
            images.append(image_P[point_K])
            places.append(torch.stack([x_K, y_K], dim=1))
        return torch.cat(images), torch.cat(points), torch.cat(places)
