"""What every LiDAR and radar branch shares: samples without the sensor are left out, and put back as maps of zeros.

Letters: B samples that have the sensor, P points, F numbers of a point, C channels, Y X grid cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fusion3d.types import PointCloud


class CloudEncoder(nn.Module):
    """The face of a LiDAR or radar branch around the network that does the work.

    The network is called as ``net(points_PF, sample_P, num_samples)`` with the samples that have the sensor alone,
    counted anew and their points in order; it gives [B, C, Y, X] in the shared grid, and its ``channels`` is C.
    """

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.net = net
        self.channels = channels

    def forward(self, cloud: PointCloud) -> Tensor | None:
        """[B, C, Y, X], zero for the samples without the sensor.

        When no sample has it: None, but for training, where processes may have to go through the layers together.
        """
        rows, sample_P = rows_of(cloud)
        if not len(rows) and not self.training:
            return None
        return spread_rows(self.net(cloud.points, sample_P, len(rows)), rows, len(cloud.present))


def rows_of(cloud: PointCloud) -> tuple[Tensor, Tensor]:
    """Samples that have the sensor, counted anew: [B] int64 row in the batch of each, and [P] its number per point."""
    rows = cloud.present.nonzero()[:, 0]
    return rows, (cloud.present.cumsum(0) - 1)[cloud.batch_index]


def spread_rows(map_BCYX: Tensor, rows: Tensor, size: int) -> Tensor:
    """Maps of the samples ``rows`` put back in a batch of ``size``; the other samples' maps are zero."""
    if map_BCYX.shape[0] == size:
        return map_BCYX
    full = map_BCYX.new_zeros(size, *map_BCYX.shape[1:]).contiguous(memory_format=torch.channels_last)
    return full.index_copy(0, rows, map_BCYX)


def halvings(cell: float, resolution: float) -> int | None:
    """How often cells of a side are doubled to be ``resolution`` wide (negative: halved), or None if they never are."""
    steps = round(math.log2(resolution / cell))
    return steps if abs(cell * 2.0**steps - resolution) < 1e-6 * resolution else None
