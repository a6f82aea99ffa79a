"""Gates decide, in every cell and channel, how much of each sensor passes.

Letters: B samples, S sensors, C channels, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion3d.bev.fusion.entry import absent_vectors, fill_absent, only_present
from fusion3d.encoders.blocks import conv_block
from fusion3d.types import BEVGrid


class GatedFusion(nn.Module):
    """Gated multimodal unit for any number of sensors (Arevalo et al., 2017), in every cell of the grid.

    Each sensor says tanh(W x); a gate in (0, 1) of its own, that looks at all sensors, multiplies it. The gates see a
    learned vector in place of an absent sensor, whose own word is left out of the sum. A convolution follows, which the
    unit does not have, for what lies in neighbouring cells.
    """

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid) -> None:
        super().__init__()
        self.shape = grid.shape
        self.channels = channels
        self.absent = absent_vectors(inputs)
        self.words = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in inputs)
        self.gates = nn.Conv2d(sum(inputs), len(inputs) * channels, 1)
        self.mix = conv_block(channels, channels, norm="group")

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        return self.mix(self.pass_gates(maps, present).contiguous(memory_format=torch.channels_last))

    def pass_gates(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """[B, channels, Y, X]: the sum of what passes, zero where there is no sensor."""
        everything = torch.cat(fill_absent(maps, present, self.absent, self.shape), dim=1)
        gates = self.gates(everything.contiguous(memory_format=torch.channels_last)).sigmoid()
        total = gates.new_zeros(len(gates), self.channels, *self.shape)
        for map_BCYX, present_B, word, gate_BCYX in zip(
            maps, present, self.words, gates.split(self.channels, dim=1), strict=True
        ):
            if map_BCYX is not None:
                total = total + only_present(gate_BCYX * word(map_BCYX).tanh(), present_B)
        return total
