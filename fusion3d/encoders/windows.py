"""LiDAR by windowed attention among pillars, then a dense 2-D network (DSVT).

Letters: B samples that have the sensor, P points, F numbers of a point, Q pillars that hold a point, C channels,
H heads, Y X grid cells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.config import LidarConfig
from fusion3d.encoders.blocks import Norm
from fusion3d.encoders.clouds import halvings
from fusion3d.encoders.dense import make_dense
from fusion3d.encoders.pillars import PillarNet
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid


@dataclass(frozen=True)
class Partition:
    """Which pillars attend to each other, and where each is in its window."""

    windows: ops.Windows
    place: Tensor  # [Q] int64, row by row


class WindowNet(nn.Module):
    """Points to a map in the shared grid: attention among the pillars of a window, window by window.

    DSVT (Wang et al., 2023): dynamic pillars, blocks of two transformer layers, of which the first attends along x and
    the second along y, windows shifted by half in every other block, then a dense backbone. What differs: DSVT sorts
    the pillars of a square window by x or by y, cuts them into sets of one size and fills the last set with copies.
    Our attention takes windows of any number of pillars, so the windows themselves are oblong, long in x and then in y:
    no sets, no copies, and every pillar attends to all that lie in its window.

    Args:
        config: ``windows``, ``dense`` and ``channels`` are read.
        grid: the shared one.
        num_features: F - 3, what is known of a point besides x, y, z.
        norm: of the dense backbone; attention normalises each pillar by itself.

    Raises:
        ConfigError: pillars that do not fit the grid, or heads that do not fit the channels.
    """

    def __init__(self, config: LidarConfig, grid: BEVGrid, num_features: int, norm: Norm = "batch") -> None:
        super().__init__()
        windows = config.windows
        down = halvings(windows.pillar, grid.resolution)
        if down is None or down < 0:
            raise ConfigError(
                f"lidar.windows.pillar: {windows.pillar} m does not divide grid.resolution {grid.resolution} m by a "
                f"power of two; use {grid.resolution:g} or {grid.resolution / 2:g}"
            )
        if windows.channels % windows.heads:
            raise ConfigError(
                f"lidar.windows.channels: {windows.channels} cannot be shared by lidar.windows.heads {windows.heads}; "
                f"expected a multiple of {windows.heads}"
            )
        fine = dataclasses.replace(grid, resolution=windows.pillar)
        self.pillars = PillarNet(fine, num_features, windows.channels)
        short, long = sorted(windows.window)
        self.layouts = ((short, long), (long, short))  # along y, x: the first is long in x
        self.blocks = nn.ModuleList(
            WindowBlock(windows.channels, windows.heads, self.layouts) for _ in range(windows.blocks)
        )
        self.dense = make_dense(config, windows.channels, down, grid.shape, norm)

    def forward(self, points_PF: Tensor, sample_P: Tensor, num_samples: int) -> Tensor:
        """Points [P, F], x, y, z [m] in ego first, and sample [P], to a map [B, C, Y, X]."""
        pillars_QC, cell_Q = self.pillars.pillars(points_PF[:, :3], points_PF[:, 3:], sample_P, num_samples)
        partitions = [self.partition(cell_Q, num_samples, shifted) for shifted in (False, True)]
        for number, block in enumerate(self.blocks):
            pillars_QC = block(pillars_QC, partitions[number % 2])
        return self.dense(self.pillars.map_of(pillars_QC.float(), cell_Q, num_samples))

    def partition(self, cell_Q: Tensor, num_samples: int, shifted: bool) -> list[Partition]:
        """The windows of both layouts, with their borders as they are or moved by half a window."""
        rows, cols = self.pillars.grid.shape
        sample = torch.div(cell_Q, rows * cols, rounding_mode="floor")
        coords_Q3 = torch.stack([sample, torch.div(cell_Q, cols, rounding_mode="floor") % rows, cell_Q % cols], dim=1)
        found = []
        for window in self.layouts:
            shift = [side // 2 if shifted else 0 for side in window]
            at_Q2 = (coords_Q3[:, 1:] + coords_Q3.new_tensor(shift)) % coords_Q3.new_tensor(window)
            windows = ops.window_partition(coords_Q3, max(num_samples, 1), (rows, cols), window, shift)
            found.append(Partition(windows, at_Q2[:, 0] * window[1] + at_Q2[:, 1]))
        return found


class WindowBlock(nn.Module):
    """A layer for each layout of the windows, beside a shortcut that is normalised with them."""

    def __init__(self, channels: int, heads: int, layouts: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(WindowLayer(channels, heads, window) for window in layouts)
        self.norm = nn.LayerNorm(channels)

    def forward(self, pillars_QC: Tensor, partitions: Sequence[Partition]) -> Tensor:
        """[Q, C] to [Q, C]; a partition for each layer."""
        x_QC = pillars_QC
        for layer, partition in zip(self.layers, partitions, strict=True):
            x_QC = layer(x_QC, partition)
        return self.norm(x_QC + pillars_QC)


class WindowLayer(nn.Module):
    """Attention inside windows and a small network for each pillar, each added and then normalised (post-norm).

    Queries and keys, not values, are told their place in the window, by a small network of the distance from its middle
    that is computed once for every place. Normalisation is per pillar: one pillar alone trains like any other.
    """

    def __init__(self, channels: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        middle = torch.tensor([(side - 1) / 2 for side in window])
        places = torch.cartesian_prod(*(torch.arange(side) for side in window)).view(prod(window), 2)
        offsets = (places - middle) / (torch.tensor(window) / 2)
        self.register_buffer("offsets", offsets, persistent=False)  # [places, 2] y, x in -1..1
        self.position = nn.Sequential(nn.Linear(2, channels), nn.ReLU(inplace=True), nn.Linear(channels, channels))
        self.query_key = nn.Linear(channels, 2 * channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.norm_attention = nn.LayerNorm(channels)
        self.feed = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.norm_feed = nn.LayerNorm(channels)

    def forward(self, x_QC: Tensor, partition: Partition) -> Tensor:
        """[Q, C] to [Q, C]."""
        place_QC = F.embedding(partition.place, self.position(self.offsets))
        shape = (len(x_QC), self.heads, x_QC.shape[1] // self.heads)
        query_QHD, key_QHD = self.query_key(x_QC + place_QC).view(shape[0], 2, *shape[1:]).unbind(1)
        value_QHD = self.value(x_QC).view(shape)
        windows = partition.windows
        seen_QHD = ops.window_attention(query_QHD, key_QHD, value_QHD, windows.cu_seqlens, windows.order)
        x_QC = self.norm_attention(x_QC + self.out(seen_QHD.flatten(1)))
        return self.norm_feed(x_QC + self.feed(x_QC))
