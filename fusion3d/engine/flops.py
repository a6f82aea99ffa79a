"""Floating-point operations of a model: two for each multiply-add, as torch counts them, with our own operations too.

What does not multiply matrices (norms, activations, sorting) is not counted, as in the figures that papers print.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

_CORNERS = 4  # pixels of a bilinear reading


def count_flops(run: Callable[[], Any]) -> dict[str, int]:
    """Operations while ``run`` runs, by the dotted name of the module that did them ("Fusion3D.camera.view").

    A module's count holds that of its parts; "Global" is all. With gradients on, a backward pass counts too.
    """
    with flop_counter() as counter:
        run()
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


def flop_counter() -> FlopCounterMode:
    """A context that counts what is done in it; ``get_total_flops`` says how much that is until now."""
    return FlopCounterMode(display=False, custom_mapping=_own_formulas())


def _own_formulas() -> dict[Any, Callable[..., int]]:
    """The formula of each compiled operation, by the operation; none where nothing is compiled."""
    formulas = {
        "bev_pool": _bev_pool,
        "bev_pool_backward": lambda grad, *inputs, **_: 2 * _bev_pool(*inputs),
        "ms_deform_attn": _ms_deform_attn,
        "ms_deform_attn_backward": lambda grad, *inputs, **_: 2 * _ms_deform_attn(*inputs),
        "sparse_conv": _sparse_conv,
        "sparse_weight_grad": _sparse_weight_grad,
        "window_attention": _window_attention,
        # Five products where the forward pass has two: the scores once more, and the gradients of all three inputs.
        "window_attention_backward": lambda grad, q, k, v, out, lse, ends, order, scale, **_: (
            _window_attention(q, k, v, ends, order, scale) * 5 // 2
        ),
    }
    for formula in formulas.values():
        formula._get_raw = True  # type: ignore[attr-defined]  # tensors instead of their shapes: work depends on indices
    known = {name: getattr(torch.ops.fusion3d, name, None) for name in formulas}
    return {operation: formulas[name] for name, operation in known.items() if operation is not None}


def _bev_pool(depth: Tensor, feat: Tensor, cell: Tensor, *_: Any, **__: Any) -> int:
    return 2 * int((cell >= 0).sum()) * feat.shape[-1]


def _ms_deform_attn(value: Tensor, shapes: Any, reference: Tensor, offsets: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _CORNERS * offsets.numel() // 2 * value.shape[-1]


def _sparse_conv(features: Tensor, weight: Tensor, table: Tensor, *_: Any, **__: Any) -> int:
    return 2 * int((table >= 0).sum()) * weight.shape[0] * weight.shape[-1]


def _sparse_weight_grad(grad: Tensor, features: Tensor, table: Tensor, **_: Any) -> int:
    return 2 * int((table >= 0).sum()) * grad.shape[1] * features.shape[1]


def _window_attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *_: Any, **__: Any) -> int:
    pairs = int(cu_seqlens.long().diff().square().sum())
    return 4 * pairs * q.shape[-2] * q.shape[-1]
