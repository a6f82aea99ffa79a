"""Which cells of the grid the losses of a representation look at: those in which there is something.

Letters: B samples, C channels, Q cells of the grid, N chosen cells, Y X the grid's rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion3d import ops
from fusion3d.bev.tokens import to_tokens
from fusion3d.types import Batch, BEVGrid, PointCloud

MOST = 256  # cells of a sample that one loss compares


@dataclass(frozen=True)
class Interest:
    """Cells where something is: an annotated object, or for each of the sensors with points, one of its points.

    Cameras see something everywhere.
    """

    objects_BQ: Tensor  # bool
    points_BQ: dict[str, Tensor]  # bool, of "lidar" and "radar"

    def choose(self, sensors: Sequence[str]) -> tuple[Tensor, Tensor]:
        """At most ``MOST`` cells of each sample, at random: those of objects, and those in which all the sensors see.

        A cell of an object is preferred to one without, but not always, for there may be many of them.

        Returns:
            [B, N] int64 cells, no two alike, and [B, N] bool: False for those that fill up the row.
        """
        seen_BQ = torch.ones_like(self.objects_BQ)
        for name in sensors:
            if name in self.points_BQ:
                seen_BQ = seen_BQ & self.points_BQ[name]
        rank_BQ = torch.rand(seen_BQ.shape, device=seen_BQ.device) + 0.5 * self.objects_BQ
        rank_BQ = rank_BQ.masked_fill(~(seen_BQ | self.objects_BQ), -1)
        best_BN, cell_BN = rank_BQ.topk(min(MOST, rank_BQ.shape[1]), dim=1)
        return cell_BN, best_BN >= 0


@torch.no_grad()
def find_interest(batch: Batch, grid: BEVGrid) -> Interest:
    """What there is in the cells of every sample, according to all its sensors and annotations."""
    clouds = {"lidar": batch.lidar, "radar": batch.radar}
    return Interest(
        object_cells(batch, grid),
        {name: point_cells(cloud, len(batch), grid, batch.command.device) for name, cloud in clouds.items()},
    )


def point_cells(cloud: PointCloud | None, size: int, grid: BEVGrid, device: torch.device) -> Tensor:
    """[B, Q] bool: the cells that any point of the cloud falls in."""
    area = grid.shape[0] * grid.shape[1]
    hit = torch.zeros(size * area + 1, dtype=torch.bool, device=device)  # the last one is outside of the grid
    if cloud is not None:
        cell_P, inside_P = grid.cell_of(cloud.points[:, :3].float())
        hit[torch.where(inside_P, cell_P + cloud.batch_index * area, size * area)] = True
    return hit[:-1].view(size, area)


def object_cells(batch: Batch, grid: BEVGrid) -> Tensor:
    """[B, Q] bool: the cells whose middle an annotated box covers."""
    size, device = len(batch), batch.command.device
    center_Q2 = grid.centers(device).flatten(0, 1)
    if batch.boxes is None:
        return torch.zeros(size, len(center_Q2), dtype=torch.bool, device=device)
    flat = [
        torch.cat([b.center[:, :2], torch.zeros_like(b.yaw)[:, None], b.size, b.yaw[:, None]], dim=1)
        for b in batch.boxes
    ]
    sample_K = torch.cat([torch.full((len(b),), i, device=device) for i, b in enumerate(batch.boxes)])
    sample_P = torch.arange(size, device=device).repeat_interleave(len(center_Q2))
    point_P3 = F.pad(center_Q2, (0, 1)).repeat(size, 1)
    return (ops.points_in_boxes(point_P3, torch.cat(flat), sample_P, sample_K).box >= 0).view(size, -1)


def take_cells(map_BCYX: Tensor, cell_BN: Tensor) -> Tensor:
    """[B, N, C] float32: what the map says in some cells of each sample."""
    sample_B1 = torch.arange(len(cell_BN), device=cell_BN.device)[:, None]
    return to_tokens(map_BCYX)[sample_B1, cell_BN].float()
