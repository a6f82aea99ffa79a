"""The sensors' maps become one. An absent sensor is known to be absent: it is never a map of zeros.

Every operator takes, in a fixed order of sensors, each one's map (None where no sample of the batch has the sensor)
and which samples have it. What the map holds for a sample without the sensor is not looked at, and no sample sees
another. Letters: B samples, C channels, Y X grid cells.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fusion3d.bev.fusion.attention import HEADS
from fusion3d.bev.fusion.bottleneck import BottleneckFusion
from fusion3d.bev.fusion.deformable import CrossAttentionFusion
from fusion3d.bev.fusion.exchange import ChannelExchangeFusion
from fusion3d.bev.fusion.gated import GatedFusion
from fusion3d.bev.fusion.hierarchical import HierarchicalFusion
from fusion3d.bev.fusion.linear import AddFusion, ConcatFusion, WeightedFusion
from fusion3d.bev.fusion.perceiver import PerceiverFusion
from fusion3d.bev.fusion.products import BilinearFusion, LowRankFusion, TensorFusion
from fusion3d.config import FusionConfig
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid

__all__ = [
    "AddFusion",
    "BilinearFusion",
    "BottleneckFusion",
    "ChannelExchangeFusion",
    "ConcatFusion",
    "CrossAttentionFusion",
    "GatedFusion",
    "HierarchicalFusion",
    "LowRankFusion",
    "PerceiverFusion",
    "TensorFusion",
    "WeightedFusion",
    "make_fusion",
]


def make_fusion(config: FusionConfig, inputs: Sequence[int], grid: BEVGrid) -> nn.Module:
    """What the configuration names, at one scale or at several, for sensors with ``inputs`` channels.

    Its ``forward(maps, present)`` takes maps [B, C_i, Y, X] or None and [B] bool each, to [B, config.channels, Y, X].

    Raises:
        ConfigError: the operator cannot have so many channels, or so few layers; the grid cannot be halved so often.
    """
    _check(config)
    if config.stage != "hierarchical":
        return _make_operator(config, inputs, grid)

    def make(inputs: Sequence[int], grid: BEVGrid) -> nn.Module:
        return _make_operator(config, inputs, grid)

    return HierarchicalFusion(make, inputs, config.channels, grid, config.scales)


def _make_operator(config: FusionConfig, inputs: Sequence[int], grid: BEVGrid) -> nn.Module:
    ends = (inputs, config.channels, grid)
    operators = {
        "concat": lambda: ConcatFusion(*ends),
        "add": lambda: AddFusion(*ends),
        "weighted": lambda: WeightedFusion(*ends),
        "gated": lambda: GatedFusion(*ends),
        "bilinear": lambda: BilinearFusion(*ends, config.rank),
        "tensor": lambda: TensorFusion(*ends),
        "low_rank": lambda: LowRankFusion(*ends, config.rank),
        "channel_exchange": lambda: ChannelExchangeFusion(*ends, config.exchange_below, config.sparsity_weight),
        "cross_attention": lambda: CrossAttentionFusion(*ends, config.layers),
        "bottleneck": lambda: BottleneckFusion(*ends, config.layers),
        "perceiver": lambda: PerceiverFusion(*ends, config.layers),
    }
    return operators[config.operator]()


def _check(config: FusionConfig) -> None:
    attends = config.operator in ("cross_attention", "bottleneck", "perceiver")
    if attends and config.channels % HEADS:
        raise ConfigError(
            f"fusion.channels: found {config.channels}; "
            f"fusion.operator {config.operator!r} shares them among {HEADS} heads: take a multiple of {HEADS}"
        )
    if config.operator == "bottleneck" and config.layers < 2:
        raise ConfigError(
            f"fusion.layers: found {config.layers}; with fusion.operator 'bottleneck', sensors hear of each other "
            "from the second layer on: take at least 2"
        )
