"""Map head: what the ground is, cell by cell, for each of MAP_CLASSES.

Letters: B samples, C channels, N map classes, Y X cells of the head's grid (H W: of the trunk's).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.bev.tokens import interpolation
from fusion3d.config import MapConfig
from fusion3d.counts import divisor
from fusion3d.encoders.blocks import conv_block
from fusion3d.errors import ConfigError
from fusion3d.heads.detection import prior_bias_
from fusion3d.types import MAP_CLASSES, Batch, BEVGrid

_GAMMA = 2.0


class MapHead(nn.Module):
    """BEV map to a mask of every class, cells of several of them included (BEVFusion, Liu et al., 2022).

    As there: the map is resampled to the head's own grid, two 3x3 convolutions and a 1x1 follow, and a sigmoid focal
    loss (Lin et al., 2017, without alpha) is the mean over the cells, summed over the classes. Unlike there the
    norms do not look across samples, since any sensor may be absent, and a class counts where the data set's map
    knows it; until then it is unlikely, by its first bias.
    """

    def __init__(self, config: MapConfig, inputs: int, grid: BEVGrid) -> None:
        super().__init__()
        self.loss_weight = config.loss_weight
        self.grid = grid if config.grid is None else config.grid
        self.resample = nn.Identity() if self.grid == grid else Resample(grid, self.grid)
        self.body = nn.Sequential(
            conv_block(inputs, config.channels, norm="group"),
            conv_block(config.channels, config.channels, norm="group"),
            nn.Conv2d(config.channels, len(MAP_CLASSES), 1),
        )
        prior_bias_(self.body[-1])

    def forward(self, bev_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] in the model's grid to [B, N, Y, X] logits in the head's."""
        return self.body(self.resample(bev_BCHW))

    def losses(self, logits_BNYX: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Focal loss of the known classes: mean over their cells, summed over classes; 0, in the graph, if none is.

        Raises:
            ValueError: the batch's map is of another grid.
        """
        logits_BNYX = logits_BNYX.float()
        if batch.map_mask is None or batch.map_known is None:
            return {"map": 0.0 * logits_BNYX.sum()}
        if batch.map_mask.shape != logits_BNYX.shape:
            raise ValueError(
                f"batch.map_mask has shape {list(batch.map_mask.shape)} and the map head's logits "
                f"{list(logits_BNYX.shape)}; expected the same: cut the masks with the head's grid (Config.map_grid)"
            )
        known_BN = batch.map_known.float()
        loss_BN = focal(logits_BNYX, batch.map_mask).mean((2, 3)) * known_BN
        return {"map": self.loss_weight * (loss_BN.sum(0) / divisor("map", known_BN.sum(0))).sum()}

    @torch.no_grad()
    def decode(self, logits_BNYX: Tensor) -> Tensor:
        """[B, N, Y, X] float32 probabilities."""
        return logits_BNYX.float().sigmoid()


class Resample(nn.Module):
    """A map in one grid to another that lies in it, bilinearly; beyond the outermost centres as it is there.

    Both grids have the same axes, so each axis has a matrix of its own: two products, which are deterministic in both
    directions, where CUDA's ``grid_sample`` is not backwards.
    """

    of_y: Tensor  # [Y, H]
    of_x: Tensor  # [X, W]

    def __init__(self, source: BEVGrid, target: BEVGrid) -> None:
        super().__init__()
        for name in ("x", "y"):
            (low, high), (first, last) = getattr(source, name), getattr(target, name)
            if first < low - 1e-6 or last > high + 1e-6:
                raise ConfigError(
                    f"map.grid.{name}: expected to lie in grid.{name} {(low, high)}, beyond which nothing is seen; "
                    f"found {(first, last)}"
                )
        (rows, cols), (centers_y, centers_x) = source.shape, (target.centers()[:, 0, 1], target.centers()[0, :, 0])
        of_y = interpolation((centers_y - source.y[0]) / source.resolution - 0.5, rows)
        of_x = interpolation((centers_x - source.x[0]) / source.resolution - 0.5, cols)
        self.register_buffer("of_y", of_y, persistent=False)
        self.register_buffer("of_x", of_x, persistent=False)

    def forward(self, bev_BCHW: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, Y, X]."""
        of_y, of_x = self.of_y.to(bev_BCHW.dtype), self.of_x.to(bev_BCHW.dtype)
        return of_y @ (bev_BCHW @ of_x.mT)


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Sigmoid focal loss, element by element: -(1 - p)^2 log p of what is true."""
    signed = torch.where(target, logits, -logits)
    return (-signed).sigmoid() ** _GAMMA * F.softplus(-signed)
