"""Sensors tell each other only what passes through a few tokens.

Letters: B samples, S sensors, C channels, H heads, D channels of a head, W windows, F bottleneck tokens of a window,
N tokens of a sensor (cells and bottlenecks), Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.bev.fusion.attention import HEADS, FeedForward
from fusion3d.bev.fusion.entry import Projections, shares
from fusion3d.bev.tokens import to_map, to_tokens
from fusion3d.types import BEVGrid

_SIDE = 6  # cells of a window along y and x
_TOKENS = 4  # bottleneck tokens of each window


class BottleneckFusion(nn.Module):
    """Attention bottlenecks (MBT; Nagrani et al., 2021) in windows of 6 x 6 cells, so that a large grid is affordable.

    Each sensor has layers of its own. In each layer the cells of a window and its 4 bottleneck tokens attend to one
    another; then the sensors' versions of these tokens are averaged over those that are there. So what a sensor learns
    of another passes through the tokens, from one layer to the next: at least two layers are needed. In the end the
    sensors' maps are averaged too, as the paper averages their verdicts.
    """

    def __init__(self, inputs: Sequence[int], channels: int, grid: BEVGrid, layers: int) -> None:
        super().__init__()
        self.shape = grid.shape
        self.project = Projections(inputs, channels)
        self.place = nn.Parameter(0.02 * torch.randn(_SIDE, _SIDE, channels))  # of a cell in its window
        self.bottleneck = nn.Parameter(0.02 * torch.randn(_TOKENS, channels))
        self.layers = nn.ModuleList(nn.ModuleList(_Block(channels) for _ in inputs) for _ in range(layers))
        self.norm = nn.LayerNorm(channels)
        order_N, ends_W = window_rows(grid.shape)
        self.order_N: Tensor
        self.ends_W: Tensor
        self.register_buffer("order_N", order_N, persistent=False)
        self.register_buffer("ends_W", ends_W, persistent=False)

    def forward(self, maps: Sequence[Tensor | None], present: Sequence[Tensor]) -> Tensor:
        """Maps [B, C_i, Y, X] and [B] bool each, to [B, channels, Y, X]; zeros without any sensor."""
        projected = self.project(maps, present)
        size, cells = len(present[0]), self.shape[0] * self.shape[1]
        cells_of = {i: to_tokens(x) + self.places() for i, x in enumerate(projected) if x is not None}
        if not cells_of:
            return self.bottleneck.new_zeros(size, self.bottleneck.shape[1], *self.shape)
        order, ends = self.windows(size)
        weight_SB11 = shares(self.bottleneck.new_zeros(len(present), 1), present)[..., None]
        nobody_B11 = ~torch.stack(list(present)).any(0)[:, None, None]
        shared_BFC = self.bottleneck.repeat(len(self.ends_W), 1).expand(size, -1, -1)
        for layer in self.layers:
            said_BFC = nobody_B11 * shared_BFC
            for i, block in enumerate(layer.children()):
                if i not in cells_of:
                    continue
                tokens_BNC = torch.cat([cells_of[i], shared_BFC.to(cells_of[i].dtype)], dim=1)
                tokens_BNC = block(tokens_BNC, order, ends)
                cells_of[i], mine_BFC = tokens_BNC.split([cells, shared_BFC.shape[1]], dim=1)
                said_BFC = said_BFC + weight_SB11[i] * mine_BFC
            shared_BFC = said_BFC
        mean_BNC = torch.stack([weight_SB11[i] * self.norm(cells_of[i]) for i in cells_of]).sum(0)
        return to_map(mean_BNC, self.shape)

    def places(self) -> Tensor:
        """[Y * X, C]: what is added to each cell for its place in its window."""
        rows, cols = self.shape
        repeats = -(-rows // _SIDE), -(-cols // _SIDE)
        return self.place.repeat(*repeats, 1)[:rows, :cols].flatten(0, 1)

    def windows(self, size: int) -> tuple[Tensor, Tensor]:
        """Rows of a batch's tokens window by window, [B * N], and where each window begins and ends, [B * W + 1]."""
        start_B1 = torch.arange(size, dtype=torch.int32, device=self.order_N.device)[:, None] * len(self.order_N)
        ends = (self.ends_W + start_B1).flatten()
        return (self.order_N + start_B1).flatten(), torch.cat([ends.new_zeros(1), ends])


def window_rows(shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A sample's tokens (cells row by row, then each window's bottlenecks) in the order of their windows.

    Windows at the far edges are smaller where the grid is no multiple of them.

    Returns:
        [N] int32 tokens window by window, and [W] int32 where each window ends in it.
    """
    high, wide = (torch.tensor([min(_SIDE, count - start) for start in range(0, count, _SIDE)]) for count in shape)
    row, col = (torch.arange(count) // _SIDE for count in shape)
    tokens_WF = torch.arange(len(high) * len(wide))[:, None].expand(-1, _TOKENS)
    window_N = torch.cat([(row[:, None] * len(wide) + col).flatten(), tokens_WF.flatten()])
    area_W = (high[:, None] * wide).flatten()
    return window_N.argsort(stable=True).int(), (area_W + _TOKENS).cumsum(0).int()


class _Block(nn.Module):
    """One layer of one sensor: attention inside of the windows, then each token by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.feed = FeedForward(channels)

    def forward(self, tokens_BNC: Tensor, order: Tensor, ends: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]; ``order`` and ``ends`` as of ``BottleneckFusion.windows``."""
        q, k, v = self.qkv(self.norm(tokens_BNC)).flatten(0, 1).unflatten(-1, (3, HEADS, -1)).unbind(1)
        heard = ops.window_attention(q, k, v, ends, order)
        return self.feed(tokens_BNC + self.out(heard.flatten(1).view_as(tokens_BNC)))
