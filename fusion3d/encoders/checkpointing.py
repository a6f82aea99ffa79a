"""Activation checkpointing (Chen et al., 2016): what a block computes is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fusion3d.encoders.backbones import ForeignBackbone
from fusion3d.encoders.blocks import ResidualBlock
from fusion3d.encoders.resnet import BasicBlock, Bottleneck

BLOCKS = (ResidualBlock, BasicBlock, Bottleneck)


def checkpoint_blocks(model: nn.Module) -> None:
    """``checkpoint_activations`` of every residual block in a model, and every stage of another library's backbone.

    Losses, gradients and buffers stay the same to the bit.
    """
    for module in list(model.modules()):
        if isinstance(module, ForeignBackbone):
            for part in module.parts():
                checkpoint_activations(part)
        elif isinstance(module, BLOCKS):
            checkpoint_activations(module)


def checkpoint_activations(module: nn.Module) -> None:
    """Let ``module`` keep only its inputs and outputs while training. Names, weights and results stay the same.

    The module's class is exchanged for one whose ``forward`` is checkpointed, as torch's parametrisations do it: unlike
    a wrapper this changes no name in the state dict, and unlike a replaced function it survives a copy.
    """
    kind = type(module)
    if not issubclass(kind, _Checkpointed):
        named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}  # some look classes up by name
        module.__class__ = type(kind.__name__, (_Checkpointed, kind), named)


class _Checkpointed(nn.Module):
    """The first base of a class whose other base has the forward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the other base gives."""
        run = super().forward
        if not (self.training and torch.is_grad_enabled()):
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, context_fn=partial(_contexts, self), **kwargs)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For the first computation and for the second."""
    return nullcontext(), _statistics_kept(module)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Running statistics stay what they are in here: the same images would count twice.

    They are still handed to the normalisation, which must keep the same tensors for the backward pass as it did before.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
