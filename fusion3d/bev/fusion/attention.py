"""What the operators that attend are made of. Letters: B samples, K Q tokens, C channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4  # of every attention here; they share the channels


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
