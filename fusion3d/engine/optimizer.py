"""The optimiser: which parameters decay, how fast each learns, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fusion3d.config import TrainConfig
from fusion3d.encoders.camera import CameraEncoder
from fusion3d.encoders.sparse import SparseConvolution
from fusion3d.engine.parallel import part_like

_DECAYED = (nn.Linear, _ConvNd, SparseConvolution, nn.MultiheadAttention)


def one_cycle(progress: float, warmup: float) -> float:
    """Learning rate over its peak: a cosine from 1/25 up to 1 at ``warmup``, and a cosine down to 4e-6.

    Args:
        progress: fraction of the steps done, in [0, 1].
        warmup: fraction of the steps that rise.

    The shape of Smith and Topin, "Super-convergence" (2018), with torch's default divisors.
    """

    def cosine(start: float, end: float, part: float) -> float:
        return end + (start - end) * (1 + math.cos(math.pi * part)) / 2

    if progress < warmup:
        return cosine(1 / 25, 1.0, progress / warmup)
    return cosine(1.0, 1 / 25e4, (progress - warmup) / max(1 - warmup, 1e-9))


def in_steps(progress: float, warmup: float, drops: Sequence[float]) -> float:
    """Learning rate over its peak: up in a line until ``warmup``, and a tenth of what it was after each of ``drops``.

    Args:
        progress: fraction of the steps done, in [0, 1].
        warmup: fraction of the steps that rise.
        drops: fractions of the steps.
    """
    rise = min(progress / warmup, 1.0) if warmup else 1.0
    return rise * 0.1 ** sum(progress >= drop for drop in drops)


def build_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices and kernels of linear, convolution and attention layers only.

    Not on biases, norms, embeddings and other learned vectors, such as the fusion's weights of the sensors. Every
    group of parameters has a "rate", its learning rate over that of the schedule; the first group's is the highest.
    """
    layers = [m for m in module.modules() if isinstance(m, _DECAYED)]
    decayed = {id(p) for layer in layers for p in layer.parameters(recurse=False) if p.ndim >= 2}
    slower = backbone_rates(module, config)
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            key = (slower.get(id(parameter), 1.0), id(parameter) in decayed)
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[rate, decays], "rate": rate, "weight_decay": config.weight_decay if decays else 0.0}
            for rate, decays in sorted(groups, reverse=True)
        ],
        lr=config.learning_rate,
    )


def backbone_rates(module: nn.Module, config: TrainConfig) -> dict[int, float]:
    """By id, the learning rate of the image backbones' parameters over that of all others.

    The last stage learns at ``train.backbone_rate``, each stage before it ``train.layer_decay`` times as fast as the
    one after it (as BEiT does, Bao et al., 2022).
    """
    rates: dict[int, float] = {}
    for part in module.modules():
        if isinstance(part, CameraEncoder):
            for after, stage in enumerate(reversed(part.backbone.stages())):
                rates |= {id(p): config.backbone_rate * config.layer_decay**after for p in stage}
    return rates


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let every group learn at its part of ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a saved state, whole, also where the parameters are in parts.

    Raises:
        KeyError, ValueError: it is that of other parameters.
    """
    params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {
        number: {
            name: part_like(value, params[number])
            if isinstance(value, Tensor) and value.shape == params[number].shape
            else value
            for name, value in of_parameter.items()
        }
        for number, of_parameter in state["state"].items()
        if number < len(params)
    }
    optimizer.load_state_dict(state | {"state": parts})
