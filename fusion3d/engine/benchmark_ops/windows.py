"""Attention inside the windows of a real cloud's pillars, against torch's own: over padded windows, and one by one.

Letters: N rows, H heads, D channels of a head, W windows, L rows of the longest window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fusion3d.engine.benchmark_ops.case import Case
from fusion3d.engine.benchmark_ops.inputs import lidar_sweeps
from fusion3d.ops import Windows, window_attention, window_partition

_PILLAR, _RANGE, _WINDOW = 0.3, 54.0, 12  # [m], [m], [pillars]

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def pillar_windows(num_points: int, device: str) -> Windows:
    """The windows of the pillars that a cloud occupies."""
    points = lidar_sweeps()[:num_points]
    cells = int(2 * _RANGE / _PILLAR)
    cell = np.floor((points[:, 1::-1] + _RANGE) / _PILLAR).astype(np.int32)  # y, x
    cell = np.unique(cell[((cell >= 0) & (cell < cells)).all(1)], axis=0)
    coords = torch.from_numpy(np.column_stack([np.zeros(len(cell), np.int32), cell])).to(device)
    return window_partition(coords, 1, (cells, cells), (_WINDOW, _WINDOW))


def padded_attention(windows: Windows) -> Attention:
    """As DSVT does it: rows gathered into windows of one length, and a mask for the keys that are none."""
    length = windows.cu_seqlens.diff().long()
    longest, num_windows = int(length.max()), len(windows)
    owner = torch.repeat_interleave(torch.arange(num_windows, device=length.device), length)
    place = torch.arange(windows.num_rows, device=length.device) - windows.cu_seqlens[:-1].long()[owner]
    slot = owner * longest + place
    mask = (torch.arange(longest, device=length.device) < length[:, None])[:, None, None, :]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, dim = q.shape[1:]
        padded = (
            t.new_zeros(num_windows * longest, heads, dim)
            .index_copy(0, slot, t)
            .view(num_windows, longest, heads, dim)
            .transpose(1, 2)
            for t in (q, k, v)
        )
        out = scaled_dot_product_attention(*padded, attn_mask=mask)
        return out.transpose(1, 2).reshape(-1, heads, dim)[slot]

    return attend


def looped_attention(windows: Windows) -> Attention:
    """One call for each window."""
    lengths = [b - a for a, b in pairwise(windows.cu_seqlens.tolist())]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(t.transpose(0, 1)[None].split(lengths, 2) for t in (q, k, v)), strict=True)
        return torch.cat([scaled_dot_product_attention(*part)[0] for part in parts], 1).transpose(0, 1)

    return attend


def _agree(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        tolerance = 2e-2 if a.dtype in (torch.float16, torch.bfloat16) else 1e-4
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def _forward(attend: Attention, qkv: list[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    def run() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (attend(*qkv),)

    return run


def _training(attend: Attention, qkv: list[Tensor], grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    def run() -> tuple[Tensor, ...]:
        out = attend(*qkv)
        return (out.detach(), *torch.autograd.grad(out, qkv, grad))

    return run


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Forward, and forward with backward, of 8 heads of 16 and of 32 channels."""
    windows = pillar_windows(20_000 if quick else 270_000, device)
    dtypes = [torch.bfloat16] if device == "cuda" else [torch.float32]
    for dtype in dtypes:
        for dim in (16,) if quick else (16, 32):
            random = torch.Generator().manual_seed(0)
            shape = (windows.num_rows, 8, dim)
            *qkv, grad = (torch.randn(shape, generator=random).to(device, dtype) for _ in range(4))
            qkv = [t.requires_grad_() for t in qkv]

            def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return window_attention(q, k, v, windows.cu_seqlens)

            peers = {"padded sdpa": padded_attention(windows), "sdpa per window": looped_attention(windows)}
            kind = str(dtype).removeprefix("torch.")
            text = f"{windows.num_rows} pillars in {len(windows)} windows, 8 heads x {dim}, {kind}"
            size = grad.numel() * grad.element_size()
            target = {"padded sdpa": 2.0} if device == "cpu" else {}
            yield Case(
                "window_attention",
                text,
                _forward(ours, qkv),
                {name: _forward(peer, qkv) for name, peer in peers.items()},
                _agree,
                4 * size,
                target,
            )
            yield Case(
                "window_attention forward+backward",
                text,
                _training(ours, qkv, grad),
                {name: _training(peer, qkv, grad) for name, peer in peers.items()},
                _agree,
                12 * size,  # forward 4; backward reads q, k, v, out and its gradient, and writes three
                target,
            )
