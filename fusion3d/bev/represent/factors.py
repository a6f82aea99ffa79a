"""Factorised maps: what the sensors have in common, and what each of them alone knows.

Letters: B samples, C channels, D E channels of a part, K rows (cells of all samples), N cells of a sample, Y X grid
cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from fusion3d.bev.auxiliary import Auxiliary
from fusion3d.bev.represent.cells import find_interest, take_cells
from fusion3d.config import FusionConfig
from fusion3d.encoders.blocks import conv_block
from fusion3d.types import Batch, BEVGrid

_MOMENTS = 5  # of the two distributions that are compared


@dataclass(frozen=True)
class FactorisedOutput:
    """Of each sensor that is there: its map, the two parts of it, and in which samples it is."""

    maps: dict[str, Tensor]  # [B, C_i, Y, X]
    shared: dict[str, Tensor]  # [B, D, Y, X]
    private: dict[str, Tensor]  # [B, D, Y, X]
    present: dict[str, Tensor]  # [B] bool


class Factorised(Auxiliary):
    """Each sensor's map as a shared and a private part, side by side, which is what the fusion operator gets.

    Domain separation networks (DSN; Bousmalis et al., 2016) and MISA (Hazarika et al., 2020): one encoder for what is
    shared, one for each sensor's private part. Three losses, over cells in which there is something: *similarity*, the
    central moment discrepancy (Zellinger et al., 2017) between the shared parts of every two sensors; *difference*,
    which makes shared and private part of a sensor orthogonal, and the private parts of two sensors; *reconstruction*
    of the sensor's map from the sum of its parts, so that neither may be empty.

    What differs from MISA: orthogonality is asked of channels as correlation over the cells, so that the loss does not
    grow with their number; what is rebuilt is not taught by it, and its error is relative to its variance; the two
    parts stay one map, so that any operator joins them.
    """

    def __init__(self, channels: Mapping[str, int], config: FusionConfig, grid: BEVGrid) -> None:
        super().__init__()
        self.grid = grid
        self.weights = {
            "similarity": config.similarity_weight,
            "difference": config.difference_weight,
            "reconstruction": config.reconstruction_weight,
        }
        width, half = config.channels, config.channels // 2
        self.enter = nn.ModuleDict(
            {name: conv_block(count, width, kernel=1, norm="group") for name, count in channels.items()}
        )
        self.shared = conv_block(width, half, kernel=1, norm="group")
        self.private = nn.ModuleDict({name: conv_block(width, half, kernel=1, norm="group") for name in channels})
        self.rebuild = nn.ModuleDict({name: nn.Linear(half, count) for name, count in channels.items()})
        self.channels = dict.fromkeys(channels, 2 * half)

    def forward(
        self, maps: Mapping[str, Tensor | None], present: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor | None], FactorisedOutput]:
        """Maps of both parts, [B, 2 D, Y, X], and what the losses need of them."""
        said = FactorisedOutput({}, {}, {}, {})
        parts: dict[str, Tensor | None] = dict(maps)
        for name, map_BCYX in maps.items():
            if map_BCYX is not None:
                entered_BCYX = self.enter[name](map_BCYX)
                said.maps[name], said.present[name] = map_BCYX, present[name]
                said.shared[name], said.private[name] = self.shared(entered_BCYX), self.private[name](entered_BCYX)
                parts[name] = torch.cat([said.shared[name], said.private[name]], dim=1)
        return parts, said

    def auxiliary_losses(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """Each term the mean over sensors or pairs of them; 0, in the graph, where there is none."""
        said: FactorisedOutput | None = outputs.get("representation")
        if said is None or not said.maps:
            return {}
        with torch.autocast(batch.command.device.type, enabled=False):
            terms = self._compare(said, batch)
        nothing = torch.stack([0.0 * part.sum() for part in (*said.shared.values(), *said.private.values())]).sum()
        return {
            name: self.weights[name] * torch.stack(values).mean() if values else nothing
            for name, values in terms.items()
        }

    def _compare(self, said: FactorisedOutput, batch: Batch) -> dict[str, list[Tensor]]:
        """Each loss for each sensor or pair of sensors."""
        interest = find_interest(batch, self.grid)
        similarity, difference, reconstruction = [], [], []
        for name, map_BCYX in said.maps.items():
            cell_BN, valid_BN = interest.choose([name])
            valid_K = (valid_BN & said.present[name][:, None]).flatten()
            true_KC, shared_KD, private_KD = (
                take_cells(part, cell_BN).flatten(0, 1)
                for part in (map_BCYX.detach(), said.shared[name], said.private[name])
            )
            difference.append(correlation(shared_KD, private_KD, valid_K))
            reconstruction.append(relative_error(self.rebuild[name](shared_KD + private_KD), true_KC, valid_K))
        for pair in combinations(said.maps, 2):
            cell_BN, valid_BN = interest.choose(pair)
            valid_K = (valid_BN & said.present[pair[0]][:, None] & said.present[pair[1]][:, None]).flatten()
            a_KD, b_KD = (take_cells(said.shared[name], cell_BN).flatten(0, 1) for name in pair)
            similarity.append(moment_discrepancy(a_KD, b_KD, valid_K))
            a_KD, b_KD = (take_cells(said.private[name], cell_BN).flatten(0, 1) for name in pair)
            difference.append(correlation(a_KD, b_KD, valid_K))
        return {"similarity": similarity, "difference": difference, "reconstruction": reconstruction}


def _mean(rows_KD: Tensor, valid_K: Tensor) -> Tensor:
    """[D] over the valid rows; 0 if there is none."""
    return rows_KD.masked_fill(~valid_K[:, None], 0).sum(0) / valid_K.sum().clamp(min=1)


def correlation(a_KD: Tensor, b_KE: Tensor, valid_K: Tensor) -> Tensor:
    """Mean squared correlation coefficient, over the valid rows, of all channels of one with all of the other.

    A channel that does not vary is uncorrelated with all.
    """
    valid_K1 = valid_K[:, None]
    a_KD, b_KE = ((part - _mean(part, valid_K)).masked_fill(~valid_K1, 0) for part in (a_KD, b_KE))
    a_KD, b_KE = (part * (part.square().sum(0) + 1e-6).rsqrt() for part in (a_KD, b_KE))
    return (a_KD.T @ b_KE).square().mean()


def moment_discrepancy(a_KD: Tensor, b_KD: Tensor, valid_K: Tensor) -> Tensor:
    """Central moment discrepancy of the valid rows, whose values, 0 or more, are first brought to [0, 1) by tanh.

    The distance of the means, plus that of the central moments of order 2 to 5.
    """
    centered, distance = [], []
    for part_KD in (a_KD.tanh(), b_KD.tanh()):
        mean_D = _mean(part_KD, valid_K)
        centered.append(part_KD - mean_D)
        distance.append(mean_D)
    total = _distance(*distance)
    for order in range(2, _MOMENTS + 1):
        total = total + _distance(*(_mean(part_KD**order, valid_K) for part_KD in centered))
    return total


def _distance(a_D: Tensor, b_D: Tensor) -> Tensor:
    """Euclidean, with a gradient of zero where it is zero."""
    return (a_D - b_D).square().sum().clamp(min=1e-12).sqrt()


def relative_error(said_KC: Tensor, true_KC: Tensor, valid_K: Tensor) -> Tensor:
    """Squared error over the valid rows by the variance of the truth, each summed over the channels."""
    error = _mean((said_KC - true_KC).square(), valid_K).sum()
    variance = _mean((true_KC - _mean(true_KC, valid_K)).square(), valid_K).sum()
    return error / (variance + 1e-3)
