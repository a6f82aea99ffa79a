"""Occupancy head: who is where, now and in some seconds, and where one may drive, cell by cell.

What a planner that reads it decides by can be looked at: costs in a map, as in cost-map planners (NMP, Zeng et al.,
2019; ST-P3, Hu et al., 2022), but of annotated things alone, and without a hand-written price.

Letters: B samples, S times, G groups, A things, C channels, Y X grid cells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fusion3d.config import OccupancyConfig
from fusion3d.counts import divisor
from fusion3d.encoders.blocks import conv_block
from fusion3d.heads.detection import prior_bias_
from fusion3d.heads.map import focal
from fusion3d.heads.planning.targets import drivable
from fusion3d.types import (
    DETECTION_CLASSES,
    OCCUPANCY_TIMES,
    OCCUPANTS,
    TIME_STEP,
    Batch,
    BEVGrid,
    Occupancy,
)

_SHAPE = (len(OCCUPANCY_TIMES), len(OCCUPANTS))
_STEPS = tuple(round(seconds / TIME_STEP) for seconds in OCCUPANCY_TIMES)
_OTHERS = {"pedestrian": "vru", "motorcycle": "vru", "bicycle": "vru", "traffic_cone": "static", "barrier": "static"}
# The group of every label; the last one of -1, which is none of the ten classes.
_NAMES = (*(_OTHERS.get(name, "vehicle") for name in DETECTION_CLASSES), "static")
_GROUPS = torch.tensor([OCCUPANTS.index(name) for name in _NAMES])


class OccupancyHead(nn.Module):
    """BEV map to ``Occupancy``, as logits.

    Agents are whatever ``Motion`` has; things of none of the ten classes are static. A time counts where its keyframe
    is known. The focal loss (Lin et al., 2017, without alpha) is a sum over the cells divided by how
    many are occupied, as a heatmap's, for most are empty; that of the drivable area is the mean over the cells where a
    map knows it.

    Args:
        config: of the head.
        inputs: channels of the BEV map.
        grid: of the BEV map.
        map_grid: that the batch's maps are cut in.
    """

    def __init__(self, config: OccupancyConfig, inputs: int, grid: BEVGrid, map_grid: BEVGrid) -> None:
        super().__init__()
        self.loss_weight, self.grid, self.map_grid = config.loss_weight, grid, map_grid
        said = nn.Conv2d(config.channels, math.prod(_SHAPE) + 1, 1)
        prior_bias_(said)
        nn.init.zeros_(said.weight[-1:])  # what no map ever teaches says nothing
        self.body = nn.Sequential(
            conv_block(inputs, config.channels, norm="group"),
            conv_block(config.channels, config.channels, norm="group"),
            said,
        )

    def forward(self, bev_BCYX: Tensor) -> Occupancy:
        """[B, C, Y, X] to logits."""
        logits = self.body(bev_BCYX)
        return Occupancy(logits[:, :-1].unflatten(1, _SHAPE), logits[:, -1])

    def losses(self, said: Occupancy, batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of what is known; zeros, in the graph, where nothing is."""
        true, known = truth_of(batch, self.grid, self.map_grid)
        error = (focal(said.agents.float(), true.agents) * known.agents).sum((0, 3, 4))
        count = (true.agents & known.agents).sum((0, 3, 4))
        ground = focal(said.drivable.float(), true.drivable) * known.drivable
        terms = {
            "occupancy": (error / divisor("occupancy", count)).mean(),
            "occupancy_ground": ground.sum() / divisor("occupancy_ground", known.drivable.sum()),
        }
        return {name: value * self.loss_weight for name, value in terms.items()}

    @torch.no_grad()
    def decode(self, said: Occupancy) -> Occupancy:
        """Probabilities, float32."""
        return Occupancy(said.agents.float().sigmoid(), said.drivable.float().sigmoid())


def truth_of(batch: Batch, grid: BEVGrid, map_grid: BEVGrid) -> tuple[Occupancy, Occupancy]:
    """The truth of a batch and of which cells it is known, both bool.

    Args:
        batch: with whatever annotations and maps it has.
        grid: of the answer.
        map_grid: that the batch's maps are cut in.
    """
    there_BSGYX, known_BS = occupied(batch, grid)
    centers_BQ2 = grid.centers(there_BSGYX.device).flatten(0, 1).expand(len(batch), -1, -1)
    on_BYX, sure_BYX = (of.unflatten(1, grid.shape) for of in drivable(batch, map_grid, centers_BQ2))
    return Occupancy(there_BSGYX, on_BYX), Occupancy(known_BS[:, :, None, None, None].expand_as(there_BSGYX), sure_BYX)


@torch.no_grad()
def occupied(batch: Batch, grid: BEVGrid) -> tuple[Tensor, Tensor]:
    """Where things are: [B, S, G, Y, X] bool as ``paint`` has it, and [B, S] bool, which times are known."""
    there = torch.zeros(len(batch), *_SHAPE, *grid.shape, dtype=torch.bool, device=batch.command.device)
    known_BS = torch.zeros(there.shape[:2], dtype=torch.bool, device=there.device)
    if batch.motion is None:
        return there, known_BS
    boxes, layers, masks = [], [], []
    for sample, motion in enumerate(batch.motion):
        for number, step in enumerate(_STEPS):
            if step <= motion.path.mask.shape[1]:
                at = motion.path[:, step - 1] if step else motion.now
                boxes.append(torch.cat([at.position, motion.size[:, :2], at.yaw[:, None]], dim=1))
                layers.append((sample * len(_STEPS) + number) * len(OCCUPANTS) + _GROUPS.to(motion.label)[motion.label])
                masks.append(at.mask)
    paint(there.view(-1, *grid.shape), torch.cat(layers), torch.cat(boxes), torch.cat(masks), grid)
    for number, step in enumerate(_STEPS):
        if step == 0:
            known_BS[:, number] = batch.annotated
        elif batch.future is not None and step <= batch.future.mask.shape[1]:
            known_BS[:, number] = batch.annotated & batch.future.mask[:, step - 1]
    return there, known_BS


def paint(cells_LYX: Tensor, layer_A: Tensor, box_A5: Tensor, mask_A: Tensor, grid: BEVGrid) -> None:
    """Set, in place, the cells whose middle lies in a rectangle, and the one that its own middle is in, so that what is
    smaller than a cell is there too.

    Args:
        cells_LYX: bool.
        layer_A: int64, which layer each rectangle is in.
        box_A5: x, y, length, width, yaw.
        mask_A: bool; others are left out.
        grid: of the cells.
    """
    if not len(box_A5):
        return
    box_A5 = torch.where(mask_A[:, None], box_A5, 0)
    reach = int((box_A5[:, 2:4].norm(dim=1).amax() / 2 / grid.resolution).ceil())
    step = torch.arange(-reach, reach + 1, device=box_A5.device)
    dy, dx = (part.flatten() for part in torch.meshgrid(step, step, indexing="ij"))
    cell_A2 = grid.place_of(box_A5[:, :2]).floor()
    ix, iy = cell_A2[:, :1] + dx, cell_A2[:, 1:] + dy
    x = grid.x[0] + (ix + 0.5) * grid.resolution - box_A5[:, :1]
    y = grid.y[0] + (iy + 0.5) * grid.resolution - box_A5[:, 1:2]
    c, s = box_A5[:, 4:].cos(), box_A5[:, 4:].sin()
    inside = ((x * c + y * s).abs() <= box_A5[:, 2:3] / 2) & ((y * c - x * s).abs() <= box_A5[:, 3:4] / 2)
    inside |= (dx == 0) & (dy == 0)
    rows, cols = grid.shape
    inside &= mask_A[:, None] & (ix >= 0) & (ix < cols) & (iy >= 0) & (iy < rows)
    cell = (layer_A[:, None] * rows + iy.long()) * cols + ix.long()
    cells_LYX.view(-1)[cell[inside]] = True
