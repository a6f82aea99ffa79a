"""Views without depth: what stands in a cell is looked up where the cell is seen.

Letters: B samples with a camera, M images (packed), Q cells of a sample, Z heights, K hits, C channels, H W feature
rows and columns, Y X cells. All geometry is float32 or better, whatever the autocast type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.bev.tokens import read_images
from fusion3d.encoders.blocks import conv_block
from fusion3d.encoders.clouds import spread_rows
from fusion3d.encoders.depth import CameraFeatures
from fusion3d.encoders.raster import NEAREST
from fusion3d.geometry.rays import image_from_ego, project
from fusion3d.types import BEVGrid, Cameras, PointCloud

_OUTSIDE = -4.0  # of an image: nothing is read there


def pillar_points(grid: BEVGrid, heights: int, device: torch.device) -> Tensor:
    """[Y X, Z, 3] float32: points above each other in the middle of every cell, evenly over the grid's z [m]."""
    xy_Q12 = grid.centers(device).flatten(0, 1)[:, None]
    low, high = grid.z
    z_Z1 = low + (torch.arange(heights, device=device)[:, None] + 0.5) * ((high - low) / heights)
    size = (len(xy_Q12), heights, -1)
    return torch.cat([xy_Q12.expand(size), z_Z1.expand(size)], dim=-1)


def places_in_images(cameras: Cameras, points_QZ3: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
    """[M, Q, Z, 2] float32: where points are in every image, as ``ops.ms_deform_attn`` wants it.

    0 and 1 are the outer edges of the feature map's first and last cell. A point that is not in front of the lens or
    not over the feature map is far outside of it.
    """
    rows, cols = shape
    matrix_M1134 = image_from_ego(cameras.image_from_cam, cameras.ego_from_cam)[:, None, None]
    u, v, depth = project(matrix_M1134, points_QZ3)
    place = torch.stack([(u + 0.5) / (stride * cols), (v + 0.5) / (stride * rows)], dim=-1)
    seen = (depth > NEAREST) & (place >= 0).all(-1) & (place < 1).all(-1)
    return torch.where(seen[..., None], place, _OUTSIDE)


class Unproject(nn.Module):
    """Points in the middle of voxels read the images bilinearly where they are seen (Simple-BEV, Harley et al., 2022).

    The mean over the cameras that see a point, then a convolution over the heights of a cell. A point that no camera
    sees reads zero.
    """

    bins = None

    def __init__(self, grid: BEVGrid, stride: int, channels: int, heights: int) -> None:
        super().__init__()
        self.grid = grid
        self.stride = stride
        self.channels = channels
        self.heights = heights
        self.compress = conv_block(channels * heights, channels)

    def forward(
        self, features: CameraFeatures, cameras: Cameras, num_samples: int, radar: PointCloud | None = None
    ) -> Tensor:
        """Features of M images to [B, C, Y, X], zero for the samples without a camera; radar is not looked at."""
        rows, sample_M = torch.unique(cameras.batch_index, return_inverse=True)
        with torch.autocast(features.context.device.type, enabled=False):
            voxels_BCYX = self.read(features.context.float(), cameras, sample_M, len(rows))
        return spread_rows(self.compress(voxels_BCYX), rows, num_samples)

    def read(self, context_MCHW: Tensor, cameras: Cameras, sample_M: Tensor, num_samples: int) -> Tensor:
        """[B, Z C, Y, X]: what the points of each cell read, from the lowest to the highest."""
        shape = (context_MCHW.shape[2], context_MCHW.shape[3])
        points_QZ3 = pillar_points(self.grid, self.heights, context_MCHW.device)
        place_MN2 = places_in_images(cameras, points_QZ3, shape, self.stride).flatten(1, 2)
        num_points = place_MN2.shape[1]
        image_K, point_K = (place_MN2[..., 0] >= 0).nonzero().unbind(1)  # one host read on CUDA
        read_KC = read_images(context_MCHW, image_K, place_MN2[image_K, point_K])
        plan = ops.segment_plan(sample_M[image_K] * num_points + point_K, num_samples * num_points, keep_empty=True)
        mean_NC = ops.segment_reduce(read_KC, plan, "mean")
        rows, cols = self.grid.shape
        return mean_NC.view(num_samples, rows, cols, self.heights * mean_NC.shape[1]).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Hits:
    """Which cells each image sees, and where."""

    image: Tensor  # [K] int64
    cell: Tensor  # [K] int64, flat in the maps of all samples
    place: Tensor  # [K, 1, Z, 2] float32, far outside where the image does not see that height
    plan: ops.SegmentPlan  # of the hits by cell


class Deformable(nn.Module):
    """Cells look into the images by attention (spatial cross-attention of BEVFormer, Li et al., 2022).

    Every cell has a query, learned, with a learned position. In each layer it reads, in every camera that sees a point
    of its pillar, a few places around those points, takes the mean over these cameras, and goes through a feed-forward
    network. Only cells that a camera sees are queries of that camera. Unlike the paper's, queries do not attend to each
    other (the convolutions that follow see neighbours, and time has a module of its own), features have one scale, and
    cameras have no learned vectors, since the features already know their lens and rays.
    """

    bins = None

    def __init__(self, grid: BEVGrid, stride: int, channels: int, heights: int, layers: int) -> None:
        super().__init__()
        self.grid = grid
        self.stride = stride
        self.channels = channels
        self.heights = heights
        rows, cols = grid.shape
        self.query = nn.Parameter(0.02 * torch.randn(rows * cols, channels))
        self.row = nn.Parameter(0.02 * torch.randn(rows, 1, channels))
        self.col = nn.Parameter(0.02 * torch.randn(cols, channels))
        self.layers = nn.ModuleList(CrossAttention(channels, heights) for _ in range(layers))

    def forward(
        self, features: CameraFeatures, cameras: Cameras, num_samples: int, radar: PointCloud | None = None
    ) -> Tensor:
        """Features of M images to [B, C, Y, X], zero for the samples without a camera; radar is not looked at."""
        rows, sample_M = torch.unique(cameras.batch_index, return_inverse=True)
        shape = (features.context.shape[2], features.context.shape[3])
        with torch.autocast(features.context.device.type, enabled=False):
            hits = self.look(cameras, sample_M, len(rows), shape)
        position_QC = (self.row + self.col).flatten(0, 1).repeat(len(rows), 1)
        query_QC = self.query.repeat(len(rows), 1)
        pixels_MSC = features.context.flatten(2).transpose(1, 2)
        for layer in self.layers:
            query_QC = layer(query_QC, position_QC, pixels_MSC, shape, hits)
        map_BCYX = query_QC.view(len(rows), *self.grid.shape, query_QC.shape[1]).permute(0, 3, 1, 2)
        return spread_rows(map_BCYX, rows, num_samples)

    def look(self, cameras: Cameras, sample_M: Tensor, num_samples: int, shape: tuple[int, int]) -> Hits:
        """Which cells each image sees, and where. Their number takes one host read on CUDA."""
        points_QZ3 = pillar_points(self.grid, self.heights, sample_M.device)
        place_MQZ2 = places_in_images(cameras, points_QZ3, shape, self.stride)
        image_K, cell_K = (place_MQZ2[..., 0] >= 0).any(-1).nonzero().unbind(1)
        place_K1Z2 = place_MQZ2[image_K, cell_K].unsqueeze(1)
        cell_K = sample_M[image_K] * len(points_QZ3) + cell_K
        plan = ops.segment_plan(cell_K, num_samples * len(points_QZ3), keep_empty=True)
        return Hits(image_K, cell_K, place_K1Z2, plan)


class CrossAttention(nn.Module):
    """One layer: reading around the pillar's points in the images, and a feed-forward network."""

    def __init__(self, channels: int, heights: int) -> None:
        super().__init__()
        self.heads = math.gcd(channels, 8)
        self.heights = heights
        self.value = nn.Linear(channels, channels)
        self.offsets = nn.Linear(channels, self.heads * heights * 2)
        self.logits = nn.Linear(channels, self.heads * heights)
        self.out = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels)
        )
        self.last_norm = nn.LayerNorm(channels)
        # At first every head looks one cell away, in a direction of its own (Deformable DETR, Zhu et al., 2021).
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        away_H2 = torch.stack([angle.cos(), angle.sin()], dim=-1)
        nn.init.zeros_(self.offsets.weight)
        self.offsets.bias.data = away_H2[:, None].repeat(1, heights, 1).flatten()
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(
        self, query_QC: Tensor, position_QC: Tensor, pixels_MSC: Tensor, shape: tuple[int, int], hits: Hits
    ) -> Tensor:
        """The queries of all cells of all samples, after this layer."""
        where_QC = query_QC + position_QC
        value_MSHD = self.value(pixels_MSC).unflatten(-1, (self.heads, -1))
        # Made for all queries and then taken: most are seen about once, and the linear layers stay dense.
        offsets_QN, logits_QN = self.offsets(where_QC), self.logits(where_QC)
        read_KC = ops.ms_deform_attn(
            value_MSHD,
            [shape],
            hits.place,
            _Take.apply(offsets_QN.float(), hits).view(-1, self.heads, 1, self.heights, 2),
            _Take.apply(logits_QN.float(), hits).view(-1, self.heads, 1, self.heights),
            map_of_query=hits.image,
        )
        query_QC = self.norm(query_QC + self.out(ops.segment_reduce(read_KC, hits.plan, "mean")))
        return self.last_norm(query_QC + self.feed_forward(query_QC))


class _Take(torch.autograd.Function):
    """The rows of the cells that are hit, with a gradient that is the same to the bit in every run."""

    @staticmethod
    def forward(ctx: Any, values_QN: Tensor, hits: Hits) -> Tensor:  # type: ignore[override]
        """[Q, N] to [K, N]."""
        ctx.plan = hits.plan
        return values_QN[hits.cell]

    @staticmethod
    def backward(ctx: Any, grad_KN: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The sum over the hits of each cell."""
        return ops.segment_reduce(grad_KN.contiguous(), ctx.plan, "sum"), None
