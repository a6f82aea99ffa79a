"""What the operators that attend are made of. Letters: B samples, K tokens, C channels, H heads, Y X grid cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d.types import BEVGrid

HEADS = 4  # of every attention here; they share the channels
_BANDS = 6  # frequencies of a position, each twice the one before


def to_tokens(map_BCYX: Tensor) -> Tensor:
    """[B, C, Y, X] to [B, Y * X, C], without a copy where channels lie last."""
    return map_BCYX.permute(0, 2, 3, 1).flatten(1, 2)


def to_map(tokens_BKC: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, Y * X, C] to [B, C, Y, X], channels last in memory."""
    return tokens_BKC.unflatten(1, shape).permute(0, 3, 1, 2)


def encode_positions(shape: tuple[int, int]) -> Tensor:
    """[Y * X, 4 * bands + 2] float32: y and x of the middle of each cell in [-1, 1], their sines and cosines.

    Fourier features as in Perceiver (Jaegle et al., 2021).
    """
    y, x = ((2 * torch.arange(count) + 1) / count - 1 for count in shape)
    yx_K2 = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    angle = (yx_K2[..., None] * (torch.pi * 2.0 ** torch.arange(_BANDS))).flatten(1)
    return torch.cat([yx_K2, angle.sin(), angle.cos()], dim=1)


class FeedForward(nn.Module):
    """Two linear layers on each token by itself, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, tokens_BKC: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        return tokens_BKC + self.body(tokens_BKC)


class Attention(nn.Module):
    """Tokens read others (Vaswani et al., 2017), beside a shortcut; then each thinks by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.norm_read = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.read = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.feed = FeedForward(channels)

    def forward(self, tokens_BQC: Tensor, read_BKC: Tensor, there_BK: Tensor | None = None) -> Tensor:
        """[B, Q, C] tokens that read [B, K, C], those that are there ([B, K] bool); reading none, they get zero."""
        read = self.read(self.norm_read(read_BKC))
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (self.query(self.norm(tokens_BQC)), *read.chunk(2, dim=-1))
        )
        mask = None
        if there_BK is not None:
            # Finite, and values of zero, so that a sample without any token to read stays finite.
            mask = torch.zeros_like(there_BK, dtype=query.dtype).masked_fill(~there_BK, -1e4)[:, None, None]
            value = value.masked_fill(~there_BK[:, None, :, None], 0)
        heard = F.scaled_dot_product_attention(query, key, value, mask)
        return self.feed(tokens_BQC + self.out(heard.transpose(1, 2).flatten(2)))


class SensorMarks(nn.Module):
    """A learned vector for each sensor, added to all its tokens, so that others know who speaks."""

    def __init__(self, num_sensors: int, channels: int) -> None:
        super().__init__()
        self.mark = nn.Parameter(0.02 * torch.randn(num_sensors, channels))

    def forward(self, tokens_BKC: Tensor, sensor: int) -> Tensor:
        """[B, K, C] tokens of one sensor."""
        return tokens_BKC + self.mark[sensor]


def cell_centers(grid: BEVGrid) -> Tensor:
    """[Y * X, 2] float32: x, y of the middle of each cell, counted in cells."""
    rows, cols = grid.shape
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(cols) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).flatten(0, 1)
