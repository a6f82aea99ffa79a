"""Channels that a sensor does not need are given to the others.

Letters: B samples, S sensors, C channels, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusion3d.bev.auxiliary import Auxiliary
from fusion3d.bev.fusion.entry import only_present, shares, weighted_sum
from fusion3d.encoders.blocks import make_norm
from fusion3d.types import Batch, BEVGrid


class ChannelExchangeFusion(Auxiliary):
    """Channel exchanging network (CEN; Wang et al., 2020): one stream for each sensor, the same convolution for all.

    Normalisations are each sensor's own. A channel whose scale there is near zero says nothing: the mean of that
    channel over the other sensors that are there takes its place. Channels are dealt out among the sensors, and only
    its own part may a sensor give away, where an L1 loss draws the scales to zero. Streams are joined by weights that
    are normalised over the sensors that are there.

    What differs: GroupNorm for BatchNorm, since sensors have met; two exchanges, around one convolution; a sensor that
    is alone keeps all its channels.

    Scales begin at 1, and a step of AdamW moves one by the learning rate at most: before steps times rate amount to as
    much, no channel is exchanged, and this is a convolution that the streams share.
    """

    def __init__(
        self, inputs: Sequence[int], channels: int, grid: BEVGrid, threshold: float, sparsity_weight: float
    ) -> None:
        super().__init__()
        self.shape = grid.shape
        self.threshold = threshold
        self.sparsity_weight = sparsity_weight
        self.project = nn.ModuleList(nn.Conv2d(count, channels, 1, bias=False) for count in inputs)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.before, self.after = (
            nn.ModuleList(make_norm("group", channels) for _ in inputs) for _ in ("before", "after")
        )
        self.weight = nn.Parameter(torch.zeros(len(inputs), 1))
        owner_C = torch.arange(channels) * len(inputs) // channels
        own_SC = owner_C == torch.arange(len(inputs))[:, None]
        self.own_SC: Tensor
        self.register_buffer("own_SC", own_SC if len(inputs) > 1 else ~own_SC, persistent=False)

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]; zeros without any sensor."""
        streams = [None if x is None else layer(x) for layer, x in zip(self.project, maps, strict=True)]
        streams = self.exchange(streams, present, self.before)
        streams = [None if x is None else self.conv(x) for x in streams]
        streams = self.exchange(streams, present, self.after)
        weight_SBC = shares(self.weight.expand(-1, self.conv.out_channels), present)
        return weighted_sum(streams, weight_SBC, self.shape)

    def exchange(
        self, streams: Sequence[Tensor | None], present: Sequence[Tensor], norms: nn.ModuleList
    ) -> list[Tensor | None]:
        """Normalise every stream, replace its weak channels, and leave what is above zero."""
        normed = [
            None if x is None else only_present(norm(x), present_B)
            for x, present_B, norm in zip(streams, present, norms, strict=True)
        ]
        exchanged, scales_SC = [], _scales(norms).detach()
        for i, mine_BCYX in enumerate(normed):
            if mine_BCYX is not None:
                others = [(x, present[j]) for j, x in enumerate(normed) if j != i and x is not None]
                weak_C = self.own_SC[i] & (scales_SC[i].abs() < self.threshold)
                mine_BCYX = only_present(self._replace(mine_BCYX, weak_C, others), present[i]).relu()
            exchanged.append(mine_BCYX)
        return exchanged

    @staticmethod
    def _replace(mine_BCYX: Tensor, weak_C: Tensor, others: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The stream with the mean of the others, which are zero where they are absent, in its weak channels."""
        if not others:
            return mine_BCYX
        count_B = torch.stack([present_B for _, present_B in others]).sum(0)
        mean_BCYX = torch.stack([x for x, _ in others]).sum(0) / count_B.clamp(min=1)[:, None, None, None]
        replaced_BC = weak_C & (count_B > 0)[:, None]
        return torch.where(replaced_BC[:, :, None, None], mean_BCYX.to(mine_BCYX.dtype), mine_BCYX)

    def auxiliary_losses(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """The sum of the absolute scales of the channels that may be given away."""
        scales_LSC = torch.stack([_scales(self.before), _scales(self.after)])
        return {"sparsity": self.sparsity_weight * (scales_LSC.abs() * self.own_SC).sum()}


def _scales(norms: nn.ModuleList) -> Tensor:
    """[S, C] of every sensor's normalisation."""
    return torch.stack([norm.get_parameter("weight") for norm in norms])
