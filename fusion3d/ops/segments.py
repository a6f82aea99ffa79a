"""Rows that belong together, side by side; and their reduction.

Letters: P rows, K rows that belong somewhere, S segments, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fusion3d.ops import library, reference
from fusion3d.ops.checks import FLOATS, check, shape_of

__all__ = ["SegmentPlan", "segment_plan", "segment_reduce"]

_LIMIT = torch.iinfo(torch.int32).max


@dataclass(frozen=True)
class SegmentPlan:
    """Which rows make up which segment; segments are ordered by key, their rows by position."""

    order: Tensor  # [K] int32, rows segment by segment; with keep_empty [P], those that belong to none come last
    ptr: Tensor  # [S + 1] int32, the rows of segment i are order[ptr[i]:ptr[i + 1]]
    key: Tensor  # [S] of the dtype of the keys, ascending
    segment: Tensor  # [P] int32, segment of each row, -1 where it belongs to none

    def __len__(self) -> int:
        return self.ptr.shape[0] - 1

    def sorted(self) -> SegmentPlan:
        """The plan for ``values[plan.order]``, rows that already lie in the order of this one."""
        rows = torch.arange(self.order.shape[0], dtype=torch.int32, device=self.order.device)
        return SegmentPlan(rows, self.ptr, self.key, self.segment[self.order])


def segment_plan(keys: Tensor, num_keys: int, keep_empty: bool = False) -> SegmentPlan:
    """Group rows by key, stably.

    Args:
        keys: [P] int32 or int64 in [-1, num_keys); rows of key -1 belong to no segment.
        num_keys: number of possible keys.
        keep_empty: let every key have its segment, so that S is ``num_keys`` and segment i has key i. Then all shapes
            are known beforehand, and nothing is read back on CUDA. Otherwise only the keys that occur have a segment,
            and how many rows and segments there are takes one host read on CUDA.

    Returns:
        The plan for ``segment_reduce``.

    Raises:
        ValueError: wrong shape or dtype, 2^31 rows (or, with ``keep_empty``, keys) or more, or (on the CPU, where it is
            cheap) a key out of range. On CUDA, rows of such a key belong to no segment.
    """
    check(keys, "keys", "P", (torch.int32, torch.int64))
    most_keys = _LIMIT if keep_empty or keys.dtype == torch.int32 else torch.iinfo(torch.int64).max
    if keys.shape[0] >= _LIMIT or not 0 <= num_keys < most_keys:
        raise ValueError(
            f"keys: {keys.shape[0]} rows, num_keys {num_keys}; expected less than {_LIMIT} and {most_keys}"
        )
    if keys.device.type == "cpu" and not torch.compiler.is_compiling() and keys.numel():
        low, high = (int(v) for v in torch.aminmax(keys))
        if low < -1 or high >= num_keys:
            raise ValueError(f"keys: found values in [{low}, {high}]; expected -1 (none) or less than {num_keys}")
    if library.has_kernel(keys.device):
        return SegmentPlan(*torch.ops.fusion3d.segment_plan(keys.contiguous(), num_keys, keep_empty))
    return SegmentPlan(*reference.segment_plan(keys, num_keys, keep_empty))


def segment_reduce(values: Tensor, plan: SegmentPlan, reduce: Literal["sum", "mean", "max"]) -> Tensor:
    """Reduce the rows of each segment.

    Args:
        values: [P, C] float.
        plan: from ``segment_plan`` for P rows.
        reduce: how rows are joined; of several largest rows the first gets the gradient. NaN is larger than any number.

    Returns:
        [S, C], 0 for an empty segment. Sums are in float32 (float64 for float64), in an order that depends on the plan
        alone: results are reproducible to the bit. Differentiable with respect to the values.

    Raises:
        ValueError: wrong shape, dtype, device or reduction.

    Source: dynamic voxelisation's scatter, Zhou et al., "End-to-End Multi-View Fusion for 3D Object Detection" (2020).
    """
    check(values, "values", "PC", FLOATS)
    if reduce not in ("sum", "mean", "max"):
        raise ValueError(f"reduce: found {reduce!r}; expected 'sum', 'mean' or 'max'")
    if values.shape[0] != plan.segment.shape[0]:
        raise ValueError(f"values has shape {shape_of(values)}; expected the {plan.segment.shape[0]} rows of the plan")
    if values.device != plan.ptr.device:
        raise ValueError(f"values is on {values.device}, plan on {plan.ptr.device}; expected one device")
    if library.has_kernel(values.device):
        return torch.ops.fusion3d.segment_reduce(values.contiguous(), plan.order, plan.ptr, plan.segment, reduce)[0]
    return reference.segment_reduce(values, plan.order, plan.ptr, reduce)


def _register() -> None:
    """Tell torch the output shapes and the gradient of each operation."""

    @torch.library.register_fake("fusion3d::segment_plan")
    def _(keys: Tensor, num_keys: int, keep_empty: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, segments = keys.shape[0], num_keys
        if not keep_empty:
            context = torch.library.get_ctx()
            rows, segments = context.new_dynamic_size(), context.new_dynamic_size()
        small = keys.new_empty(0, dtype=torch.int32)
        return (
            small.new_empty(rows),
            small.new_empty(segments + 1),
            keys.new_empty(segments),
            small.new_empty(keys.shape[0]),
        )

    @torch.library.register_fake("fusion3d::segment_reduce")
    def _(values: Tensor, order: Tensor, ptr: Tensor, segment: Tensor, reduce: str) -> tuple[Tensor, Tensor]:
        segments, channels = ptr.shape[0] - 1, values.shape[1]
        arg = values.new_empty(segments if reduce == "max" else 0, channels, dtype=torch.int32)
        return values.new_empty(segments, channels), arg

    @torch.library.register_fake("fusion3d::segment_reduce_backward")
    def _(grad: Tensor, ptr: Tensor, segment: Tensor, arg: Tensor, reduce: str) -> Tensor:
        return grad.new_empty(segment.shape[0], grad.shape[1])

    def keep(ctx, inputs: tuple[Tensor, Tensor, Tensor, Tensor, str], output: tuple[Tensor, Tensor]) -> None:
        _, _, ptr, segment, ctx.reduce = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ptr, segment, output[1])

    def backward(ctx, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        grads = torch.ops.fusion3d.segment_reduce_backward(grad.contiguous(), *ctx.saved_tensors, ctx.reduce)
        return grads, None, None, None, None

    torch.library.register_autograd("fusion3d::segment_reduce", backward, setup_context=keep)
    library.not_twice_differentiable("segment_reduce_backward")


if not library.PROBLEM:
    _register()
