"""The exponential moving average of a model's weights: what is evaluated."""

from __future__ import annotations

import torch
from torch import nn


class Average:
    """An exponential moving average of all parameters and buffers of a module.

    The decay is ``min(decay, (1 + n) / (10 + n))`` at the n-th update, so that short runs do not average in
    their random start. Buffers that are not floats (counters) are copied.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's weights after optimiser step number ``step``, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - decay)
            else:
                self.tensors[name].copy_(tensor)
