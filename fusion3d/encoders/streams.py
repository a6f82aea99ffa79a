"""What radar returns tell each other: a stream of points and a stream of attention.

Letters: B samples, R returns, F features, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.config import DualConfig
from fusion3d.errors import ConfigError

_SCOPES = (2.0, 32.0)  # [m] how far the first and the last head see at the start; the others between


class DualStream(nn.Module):
    """Features of returns from two streams that exchange what they know after each block.

    The point stream joins each return with the largest features of all the sample's returns (PointNet); the attention
    stream weighs the others by what they say and by how near they are. As in RCBEVDet's RadarBEVNet (Lin et al., 2024),
    with one difference: normalisation is per return (LayerNorm), so one return alone trains like any other.

    Args:
        config: sizes.
        inputs: F.

    Raises:
        ConfigError: heads that do not fit the channels.
    """

    def __init__(self, config: DualConfig, inputs: int) -> None:
        super().__init__()
        if config.channels % config.heads:
            raise ConfigError(
                f"radar.dual.channels: {config.channels} cannot be shared by radar.dual.heads {config.heads}; "
                f"expected a multiple of {config.heads}"
            )
        self.start = nn.ModuleList(_layer(inputs, config.channels) for _ in range(2))
        self.blocks = nn.ModuleList(StreamBlock(config.channels, config.heads) for _ in range(config.blocks))
        self.join = _layer(2 * config.channels, config.channels)

    def forward(self, features_RF: Tensor, place_R2: Tensor, sample_R: Tensor, num_samples: int) -> Tensor:
        """Features [R, F] of returns at [R, 2] x, y [m] with sample [R] to [R, C]."""
        plan = ops.segment_plan(sample_R, num_samples, keep_empty=True)
        point_RC, attention_RC = (start(features_RF) for start in self.start)
        for block in self.blocks:
            point_RC, attention_RC = block(point_RC, attention_RC, place_R2, plan)
        return self.join(torch.cat([point_RC, attention_RC], dim=1))


class StreamBlock(nn.Module):
    """One step of each stream; then the points get from attention (injection), and attention from points (extraction).

    The injection begins small, as in ViT-Adapter (Chen et al., 2023), where the idea is from.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.point = _layer(2 * channels, channels)
        self.within, self.inject, self.extract = (DistanceAttention(channels, heads) for _ in range(3))
        self.feed_within, self.feed_extract = (_feed(channels) for _ in range(2))
        self.gain = nn.Parameter(torch.full((channels,), 0.1))

    def forward(
        self, point_RC: Tensor, attention_RC: Tensor, place_R2: Tensor, plan: ops.SegmentPlan
    ) -> tuple[Tensor, Tensor]:
        """Both streams [R, C] to both; a segment of the plan for each sample."""
        largest_BC = ops.segment_reduce(point_RC, plan, "max")
        point_RC = self.point(torch.cat([point_RC, largest_BC[plan.segment]], dim=1))
        attention_RC = attention_RC + self.within(attention_RC, attention_RC, place_R2, plan)
        attention_RC = attention_RC + self.feed_within(attention_RC)
        point_RC = point_RC + self.gain * self.inject(point_RC, attention_RC, place_R2, plan)
        attention_RC = attention_RC + self.extract(attention_RC, point_RC, place_R2, plan)
        return point_RC, attention_RC + self.feed_extract(attention_RC)


class DistanceAttention(nn.Module):
    """Attention among the returns of a sample, less to those farther away: softmax(q k / sqrt(D) - b d^2) v.

    Distance-modulated attention of RCBEVDet; b > 0 is learned, one for each head, and d is the distance [m]. Since a
    softmax does not see what is the same for every key, -b d^2 is 2 b x.y - b y^2 for a query at x and a key at y: a
    product of a few more channels, with which plain attention computes it without any matrix of distances.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_context = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        nearest, farthest = (math.log(scope) for scope in _SCOPES)
        scopes = torch.linspace(nearest, farthest, heads).exp()
        self.log_falloff = nn.Parameter((0.5 / scopes**2).log())  # [H] of b [1/m^2]

    def forward(self, query_RC: Tensor, context_RC: Tensor, place_R2: Tensor, plan: ops.SegmentPlan) -> Tensor:
        """Queries and what they look at, [R, C] each, at [R, 2] x, y [m], to [R, C]."""
        count, channels = query_RC.shape
        shape = (self.heads, channels // self.heads)
        query = self.query(self.norm_query(query_RC)).view(count, *shape)
        key, value = self.key_value(self.norm_context(context_RC)).view(count, 2, *shape).unbind(1)
        with torch.autocast(place_R2.device.type, enabled=False):  # distances need all of float32
            falloff_H1 = self.log_falloff.float().exp()[:, None]
            place_RH2 = place_R2[:, None].expand(-1, self.heads, -1)
            one_RH1 = torch.ones_like(place_RH2[..., :1])
            square_RH1 = place_R2.square().sum(1)[:, None, None]
            queries = torch.cat([query.float() * shape[1] ** -0.5, 2 * falloff_H1 * place_RH2, one_RH1], dim=2)
            keys = torch.cat([key.float(), place_RH2, -falloff_H1 * square_RH1], dim=2)
            values = F.pad(value.float(), (0, 3))
            seen = ops.window_attention(queries, keys, values, plan.ptr, plan.order, scale=1.0)
        return self.out(seen[..., :-3].flatten(1))


def _layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.LayerNorm(outputs), nn.ReLU())


def _feed(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels)
    )
