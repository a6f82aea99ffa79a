"""What a planner goes by and what it chooses among, as shapes that the pictures and the 3-D scene share.

Letters: K paths, T steps, N pieces of lines, S times, Y X cells.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fusion3d.types import BEVGrid, Occupancy, PlanModes
from fusion3d.view import colors

_OCCUPIED = 0.25  # least probability that is drawn
_FADE = (1.0, 0.8, 0.6, 0.4)  # of what is expected at OCCUPANCY_TIMES
_DRIVABLE = 0.5  # probability where the drivable area ends


def others_expected(occupancy: Occupancy) -> np.ndarray:
    """[Y, X] in [0, 1] how much anybody is expected, of any group at any time, paler the later; of one sample."""
    anybody_SYX = 1 - (1 - occupancy.agents.cpu()).prod(1)
    heat_YX = (anybody_SYX * torch.tensor(_FADE)[:, None, None] * (anybody_SYX >= _OCCUPIED)).amax(0)
    return heat_YX.numpy()


def drivable_edge(occupancy: Occupancy, grid: BEVGrid) -> Tensor:
    """[N, 2, 2] sides of cells, in ego [m], between which the drivable area is expected to end; of one sample."""
    on_YX = occupancy.drivable.cpu() >= _DRIVABLE
    y, x = (on_YX[1:] != on_YX[:-1]).nonzero(as_tuple=True)
    along_x = torch.stack([x, y + 1, x + 1, y + 1], dim=-1)
    y, x = (on_YX[:, 1:] != on_YX[:, :-1]).nonzero(as_tuple=True)
    along_y = torch.stack([x + 1, y, x + 1, y + 1], dim=-1)
    return grid.xy_of(torch.cat([along_x, along_y]).view(-1, 2, 2).float())


def weighed_paths(modes: PlanModes) -> tuple[Tensor, np.ndarray]:
    """The paths of one sample, the dearest first, so that cheap ones lie over them.

    Args:
        modes: [K, T] in ego.

    Returns:
        [K, T, 2, 2] their pieces from the vehicle on, in ego [m]; of a rejected path every piece ends halfway. And
        [K, 3] colours, by what each is expected to cost among the others.
    """
    order = modes.cost.cpu().argsort(descending=True)
    cost_K, position_KT2, rejected_K = (of.cpu()[order] for of in (modes.cost, modes.path.position, modes.rejected))
    start_KT2 = torch.nn.functional.pad(position_KT2[:, :-1], (0, 0, 1, 0))
    end_KT2 = torch.where(rejected_K[:, None, None] > 0, (start_KT2 + position_KT2) / 2, position_KT2)
    part_K = (cost_K - cost_K[-1]) / (cost_K[0] - cost_K[-1]).clamp(min=1e-6)
    return torch.stack([start_KT2, end_KT2], dim=2), colors.cost_rgb(part_K.numpy())
