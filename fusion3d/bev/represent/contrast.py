"""Coordinated maps: each sensor keeps its own, and a loss makes them say alike of the same place.

Letters: B samples, C channels, N cells, Y X grid cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.bev.auxiliary import Auxiliary
from fusion3d.bev.represent.cells import find_interest, take_cells
from fusion3d.counts import divisor
from fusion3d.types import Batch, BEVGrid

_WIDTH = 64  # of the space in which the sensors are compared


@dataclass(frozen=True)
class CoordinatedOutput:
    """The sensors' maps, those there are, and in which samples they are."""

    maps: dict[str, Tensor]  # [B, C_i, Y, X]
    present: dict[str, Tensor]  # [B] bool


class Coordinated(Auxiliary):
    """Maps pass unchanged; a contrastive loss draws the sensors' views of a cell together.

    InfoNCE (van den Oord et al., 2018) between every two sensors and in both directions, as in CLIP (Radford et al.,
    2021): of all chosen cells of a sample, which one does the other sensor mean? Only samples that have both sensors
    count, and only cells in which there is something (``Interest.choose``). Each sensor's cell goes through a linear
    layer to a common space first. What differs: the other candidates are of the same sample, so that it is the place
    that must be told and not the scene; the temperature is fixed.
    """

    def __init__(self, channels: Mapping[str, int], grid: BEVGrid, temperature: float, weight: float) -> None:
        super().__init__()
        self.grid = grid
        self.temperature = temperature
        self.weight = weight
        self.embed = nn.ModuleDict({name: nn.Linear(count, _WIDTH) for name, count in channels.items()})
        self.channels = dict(channels)

    def forward(
        self, maps: Mapping[str, Tensor | None], present: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor | None], CoordinatedOutput]:
        """The same maps, and what the loss needs of them."""
        there = {name: map_BCYX for name, map_BCYX in maps.items() if map_BCYX is not None}
        return dict(maps), CoordinatedOutput(there, {name: present[name] for name in there})

    def auxiliary_losses(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """The mean over all pairs of sensors, 0 for those that no sample has; in the graph."""
        said: CoordinatedOutput | None = outputs.get("representation")
        if said is None or not said.maps:
            return {}
        terms = [0.0 * map_BCYX.sum() for map_BCYX in said.maps.values()]
        interest, count = find_interest(batch, self.grid), math.comb(len(self.embed), 2)
        with torch.autocast(batch.command.device.type, enabled=False):
            for pair in combinations(said.maps, 2):
                cell_BN, valid_BN = interest.choose(pair)
                for name in pair:
                    valid_BN = valid_BN & said.present[name][:, None]
                ours, theirs = (self.embed[name](take_cells(said.maps[name], cell_BN)) for name in pair)
                loss = info_nce(ours, theirs, valid_BN, self.temperature, "contrast." + ".".join(pair))
                terms.append(self.weight / count * loss)
        return {"contrast": torch.stack(terms).sum()}


def info_nce(
    ours_BNC: Tensor, theirs_BNC: Tensor, valid_BN: Tensor, temperature: float, name: str = "contrast"
) -> Tensor:
    """How badly row n of one is told from the other rows of its sample by row n of the other; mean of both directions.

    Args:
        ours_BNC: [B, N, C] float32, of any length.
        theirs_BNC: the same.
        valid_BN: [B, N] bool; the other rows are neither asked for nor candidates.
        temperature: of the softmax over the cosines.
        name: of the divisor.

    Returns:
        The mean over the valid rows [nats]; 0 if there is none.
    """
    cosine_BNN = F.normalize(ours_BNC, dim=-1) @ F.normalize(theirs_BNC, dim=-1).mT
    # Finite, so that a sample without any valid row has a gradient of zero.
    logits_BNN = (cosine_BNN / temperature).masked_fill(~(valid_BN[:, :, None] & valid_BN[:, None]), -1e4)
    right_BN = logits_BNN.diagonal(dim1=1, dim2=2)
    missed_BN = (logits_BNN.logsumexp(1) + logits_BNN.logsumexp(2)) / 2 - right_BN
    return missed_BN.masked_fill(~valid_BN, 0).sum() / divisor(name, valid_BN.sum())
