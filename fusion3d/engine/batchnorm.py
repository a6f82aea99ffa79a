"""Batch normalisation over the batches of all processes, on any backend; torch's own wants GPUs.

Letters: B batch, C channels, N all else: a tensor is [B, C, ...].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class JointBatchNorm(_BatchNorm):
    """The same parameters and buffers as nn.BatchNorm2d; in training, the statistics of all processes.

    Processes may have different numbers of elements, or none, but each must call the layer. Statistics are float32.
    """

    def __init__(self, like: _BatchNorm, group: Any) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self.weight, self.bias = like.weight, like.bias
        self.running_mean, self.running_var = like.running_mean, like.running_var
        self.num_batches_tracked = like.num_batches_tracked
        self.group = group
        self.train(like.training)

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2

    def forward(self, x_BCN: Tensor) -> Tensor:
        """[B, C, ...] to the same shape and type."""
        if not self.training:
            return super().forward(x_BCN)
        out_BCN, mean_C, var_C, count = _Normalise.apply(x_BCN, self.weight, self.bias, self.eps, self.group)
        if self.track_running_stats:
            self._follow(mean_C, var_C, count)
        return out_BCN

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, var_C: Tensor, count: Tensor) -> None:
        """Move the running statistics; where nothing was counted, or one element, which has no variance, they stay."""
        assert self.running_mean is not None and self.running_var is not None
        step = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            step = 1 / self.num_batches_tracked if step is None else step
        assert step is not None
        step = step * (count > 1)
        self.running_mean.lerp_(mean_C, step)
        self.running_var.lerp_(var_C * count / (count - 1).clamp(min=1), step)


class _Normalise(torch.autograd.Function):
    """(x - mean) / std with the joint statistics. The gradient of a process is that of the sum of all their losses."""

    @staticmethod
    def forward(ctx, x_BCN, weight_C, bias_C, eps, group):  # type: ignore[no-untyped-def, override]
        values, dims = x_BCN.float(), [0, *range(2, x_BCN.ndim)]
        count = values.new_full((1,), x_BCN.numel() // x_BCN.shape[1])
        sums = torch.cat([values.sum(dims), count])
        dist.all_reduce(sums, group=group)
        count = sums[-1]
        mean_C = sums[:-1] / count.clamp(min=1)
        # In a second step, from the mean: the difference of two large sums would lose what is small.
        squares_C = (values - _wide(mean_C, x_BCN)).square().sum(dims)
        dist.all_reduce(squares_C, group=group)
        var_C = squares_C / count.clamp(min=1)
        scale_C = (var_C + eps).rsqrt()
        ctx.save_for_backward(x_BCN, weight_C, mean_C, scale_C, count)
        ctx.group = group
        out_BCN = (values - _wide(mean_C, x_BCN)) * _wide(scale_C, x_BCN)
        if weight_C is not None:
            out_BCN = out_BCN * _wide(weight_C, x_BCN) + _wide(bias_C, x_BCN)
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return out_BCN.to(x_BCN.dtype), mean_C, var_C, count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BCN, *_):  # type: ignore[no-untyped-def, override]
        x_BCN, weight_C, mean_C, scale_C, count = ctx.saved_tensors
        grad, dims = grad_BCN.float(), [0, *range(2, x_BCN.ndim)]
        unit_BCN = (x_BCN.float() - _wide(mean_C, x_BCN)) * _wide(scale_C, x_BCN)
        own = torch.stack([grad.sum(dims), (grad * unit_BCN).sum(dims)])
        grad_bias_C, grad_weight_C = own.unbind()
        joint = own.clone()
        dist.all_reduce(joint, group=ctx.group)
        mean_grad_C, mean_product_C = joint / count.clamp(min=1)
        grad = grad - _wide(mean_grad_C, x_BCN) - unit_BCN * _wide(mean_product_C, x_BCN)
        factor_C = scale_C if weight_C is None else scale_C * weight_C
        grad_x_BCN = (grad * _wide(factor_C, x_BCN)).to(x_BCN.dtype)
        if weight_C is None:
            return grad_x_BCN, None, None, None, None
        return grad_x_BCN, grad_weight_C, grad_bias_C, None, None


def _wide(values_C: Tensor, like_BCN: Tensor) -> Tensor:
    """[C] to the shape that goes with [B, C, ...]."""
    return values_C.view(1, -1, *[1] * (like_BCN.ndim - 2))


def join_batchnorms(model: nn.Module) -> None:
    """Replace every batch normalisation of a model, in place; every process must ask.

    They talk in a group of their own: the exchange of gradients, which is under way in the backward pass, may be at
    another place in another process.
    """
    group = dist.new_group()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                setattr(parent, name, JointBatchNorm(child, group))
