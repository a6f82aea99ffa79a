"""A few latent vectors read everything that the sensors say; every cell then asks them.

Letters: B samples, S sensors, C channels, N latents, K tokens, Q cells, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.bev.fusion.attention import Attention
from fusion3d.bev.fusion.entry import Projections, shares, weighted_sum
from fusion3d.bev.tokens import encode_positions, to_map, to_tokens
from fusion3d.types import BEVGrid

_LATENTS = 128
_POOL = 6  # cells along y and x that make one token


class PerceiverFusion(nn.Module):
    """Perceiver IO (Jaegle et al., 2021) between the sensors' maps and the grid.

    Latents read the tokens of all sensors that are there, in one attention; then attend to one another; then every cell
    of the grid reads the latents. What differs: the tokens are means over 6 x 6 cells, so that a large grid is
    affordable, and a cell asks with what the sensors say there (their weighted mean, to which the answer is added), so
    that local detail stays. The latents bring what is elsewhere: their reach is the whole grid.
    """

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid, layers: int) -> None:
        super().__init__()
        self.shape = grid.shape
        self.pooled = (-(-grid.shape[0] // _POOL), -(-grid.shape[1] // _POOL))
        self.project = Projections(inputs, channels)
        self.weight = nn.Parameter(torch.zeros(len(inputs), channels))
        self.mark = nn.Parameter(0.02 * torch.randn(len(inputs), channels))  # tells the readers who speaks
        self.latents = nn.Parameter(0.02 * torch.randn(_LATENTS, channels))
        self.read = Attention(channels)
        self.layers = nn.ModuleList(Attention(channels) for _ in range(layers))
        self.answer = Attention(channels)
        self.norm = nn.LayerNorm(channels)
        where_QF, where_KF = encode_positions(self.shape), encode_positions(self.pooled)
        self.position = nn.Linear(where_QF.shape[1], channels)
        self.where_QF: Tensor
        self.where_KF: Tensor
        self.register_buffer("where_QF", where_QF, persistent=False)
        self.register_buffer("where_KF", where_KF, persistent=False)

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]."""
        projected = self.project(maps, present)
        mean_BCYX = weighted_sum(projected, shares(self.weight, present), self.shape)
        latents_BNC = self.latents.repeat(len(mean_BCYX), 1, 1)
        # A token that is not there: what a sample without any sensor reads does not depend on what the others have.
        tokens = [mean_BCYX.new_zeros(len(mean_BCYX), 1, mean_BCYX.shape[1])]
        there = [torch.zeros_like(present[0])[:, None]]
        for map_BCYX, present_B, mark_C in zip(projected, present, self.mark, strict=True):
            if map_BCYX is not None:
                pooled_BCYX = F.avg_pool2d(map_BCYX, _POOL, ceil_mode=True, count_include_pad=False)
                tokens_BKC = to_tokens(pooled_BCYX) + mark_C + self.position(self.where_KF)
                tokens.append(tokens_BKC)
                there.append(present_B[:, None].expand(-1, tokens_BKC.shape[1]))
        latents_BNC = self.read(latents_BNC, torch.cat(tokens, dim=1), torch.cat(there, dim=1))
        for layer in self.layers:
            latents_BNC = layer(latents_BNC, latents_BNC)
        asked_BQC = to_tokens(mean_BCYX.contiguous(memory_format=torch.channels_last)) + self.position(self.where_QF)
        return to_map(self.norm(self.answer(asked_BQC, latents_BNC)), self.shape)
