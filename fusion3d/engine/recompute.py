"""Activation checkpointing: the inside of residual blocks is computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fusion3d.encoders.blocks import ResidualBlock
from fusion3d.encoders.resnet import BasicBlock, Bottleneck

BLOCKS = (ResidualBlock, BasicBlock, Bottleneck)


def recompute_blocks(model: nn.Module) -> None:
    """Let every block of a model keep only its input for the backward pass (Chen et al., "Training Deep Nets with
    Sublinear Memory Cost", 2016), in place. Losses, gradients and buffers stay the same to the bit.
    """
    for block in model.modules():
        if isinstance(block, BLOCKS):
            _recompute(block)


def _recompute(block: nn.Module) -> None:
    forward = block.forward

    def run(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(
            forward,
            *inputs,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in a block is random
            context_fn=lambda: (nullcontext(), _statistics_stay(block)),
        )

    block.forward = run


@contextmanager
def _statistics_stay(block: nn.Module) -> Iterator[None]:
    """Batch normalisation without moving its running statistics: in the first pass they moved already.

    A momentum of 0 leaves them as they are, to the bit. Without them the operation would keep other tensors for its
    backward pass than in the first pass.
    """
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
