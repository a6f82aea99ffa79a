"""Deformable attention against its usual form of ``grid_sample``: on levels of a camera, and of a grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion3d import ops
from fusion3d.engine.benchmark_ops.case import Case, going_back

CAMERA = [(116, 200), (58, 100), (29, 50), (15, 25)]  # strides 8 to 64 of an image of 928 x 1600 px
BEV = [(200, 200), (100, 100), (50, 50), (25, 25)]
SMALL = [(20, 30), (10, 15), (5, 8), (3, 4)]


@dataclass(frozen=True)
class Layer:
    """What one layer of attention is given: 8 heads of 32 channels, 4 points on each level."""

    value: Tensor  # [N, S, 8, 32]
    shapes: list[tuple[int, int]]
    reference: Tensor  # [N, Q, 2]
    offsets: Tensor  # [N, Q, 8, L, 4, 2] pixels
    logits: Tensor  # [N, Q, 8, L, 4]

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that has a gradient."""
        return self.value, self.reference, self.offsets, self.logits

    def ours(self) -> Tensor:
        """[N, Q, 256]."""
        return ops.ms_deform_attn(self.value, self.shapes, self.reference, self.offsets, self.logits)

    def ours_backward(self, grad: Tensor) -> tuple[Tensor, ...]:
        """Gradients to all inputs, by the operation itself: a CUDA graph can hold that."""
        flat = [size for shape in self.shapes for size in shape]
        rows = (self.reference[:, :, None, None].flatten(0, 1), self.offsets.flatten(0, 1), self.logits.flatten(0, 1))
        grad = grad.view(len(rows[0]), *self.value.shape[2:])
        grads = torch.ops.fusion3d.ms_deform_attn_backward(grad, self.value, flat, *rows, None)
        return tuple(found.view(tensor.shape) for found, tensor in zip(grads, self.inputs, strict=True))

    def by_grid_sample(self) -> Tensor:
        """[N, Q, 256]: each level sampled by itself, the weighted sum over its points added up; in float32."""
        num_maps, num_queries, num_heads = self.logits.shape[:3]
        weight = self.logits.float().flatten(3).softmax(-1).view(self.logits.shape).transpose(1, 2).flatten(0, 1)
        total = torch.zeros((), device=self.value.device)
        start = 0
        for level, (rows, cols) in enumerate(self.shapes):
            part = self.value[:, start : start + rows * cols].float()
            image = part.flatten(2).transpose(1, 2).reshape(num_maps * num_heads, -1, rows, cols)
            start += rows * cols
            size = torch.tensor([cols, rows], device=part.device)
            grid = 2 * (self.reference[:, :, None, None] + self.offsets[:, :, :, level].float() / size) - 1
            grid = grid.transpose(1, 2).flatten(0, 1)
            read = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            total = total + (read * weight[:, None, :, level]).sum(-1)
        return total.view(num_maps, -1, num_queries).transpose(1, 2).to(self.value.dtype)


def _layer(shapes: list[tuple[int, int]], side: int, device: str, dtype: torch.dtype) -> Layer:
    """Queries of a square grid, which read around where they are: with offsets of some pixels."""
    random = torch.Generator().manual_seed(0)
    along = (torch.arange(side) + 0.5) / side
    reference = torch.stack(torch.meshgrid(along, along, indexing="xy"), -1).reshape(1, -1, 2)
    # Off the pixels' centres by odd amounts: on them, gradients have kinks, and every form its own side of them.
    reference = reference + (torch.rand(reference.shape, generator=random) - 0.5) / side
    queries, levels = side * side, len(shapes)
    area = sum(rows * cols for rows, cols in shapes)
    value = torch.randn(1, area, 8, 32, generator=random)
    offsets = 3 * torch.randn(1, queries, 8, levels, 4, 2, generator=random)
    logits = torch.randn(1, queries, 8, levels, 4, generator=random)
    return Layer(
        value.to(device, dtype).requires_grad_(),
        shapes,
        reference.to(device).requires_grad_(),
        offsets.to(device, dtype).requires_grad_(),
        logits.to(device, dtype).requires_grad_(),
    )


def _without_grad(layer: Layer) -> Layer:
    return Layer(layer.value.detach(), layer.shapes, *(t.detach() for t in layer.inputs[1:]))


def _close(tolerance: float):
    def agree(ours: Tensor | tuple[Tensor, ...], theirs: Tensor | tuple[Tensor, ...]) -> None:
        mine, others = ((x,) if isinstance(x, Tensor) else x for x in (ours, theirs))
        for found, expected in zip(mine, others, strict=True):
            # Points within rounding of a pixel's centre may read its neighbours the other way round: their location's
            # gradient jumps there, so that a few of the many may differ: most of all among the gradients of reference
            # points, which are sums over 128 locations each.
            error = (found.float() - expected.float()).abs() / expected.float().abs().max().clamp(min=1e-30)
            share = (error > tolerance).float().mean().item()
            assert share < 1e-3, f"{share:.1e} of the values differ by more than {tolerance:g} of the largest"

    return agree


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Forward and backward at 40 000 queries; in 16 bits too, where bytes are half."""
    sizes = [("camera levels", SMALL, 16)] if quick else [("camera levels", CAMERA, 200), ("BEV levels", BEV, 200)]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        for what, shapes, side in sizes:
            layer = _layer(shapes, side, device, dtype)
            plain = _without_grad(layer)
            name = f"{side * side} queries, {what}, {str(dtype).removeprefix('torch.')}"
            moved = sum(t.nbytes for t in plain.inputs)
            out_bytes = side * side * 256 * plain.value.element_size()
            agree = _close(tolerance)
            yield Case(
                "ms_deform_attn", name, plain.ours, {"grid_sample": plain.by_grid_sample}, agree, moved + out_bytes,
                {"grid_sample": 25} if device == "cpu" and dtype == torch.float32 else {},
                limit=60e-6 if device == "cuda" and dtype == torch.bfloat16 and not quick else None,
            )  # fmt: skip
            theirs = layer.by_grid_sample()
            grad = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1)).to(theirs)

            def back(out: Tensor, layer: Layer = layer, grad: Tensor = grad) -> tuple[Tensor, ...]:
                return torch.autograd.grad(out, layer.inputs, grad, retain_graph=True)

            yield Case(
                "ms_deform_attn backward", name,
                going_back(lambda x=plain, grad=grad: x.ours_backward(grad), layer.ours, layer.inputs, grad),
                {"grid_sample": lambda out=theirs, back=back: back(out)}, agree, 2 * moved + out_bytes,
                {"grid_sample": 10} if device == "cpu" and dtype == torch.float32 else {},
            )  # fmt: skip
