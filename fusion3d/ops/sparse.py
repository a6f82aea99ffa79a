"""Sparse convolution: which voxel is read where (the rulebook), and the sums over it.

Letters: N input rows, M output rows, K taps of the kernel, I O input and output channels. Axes are z, y, x.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fusion3d.ops import library, reference
from fusion3d.ops.checks import FLOATS, check, check_one_device, check_one_dtype, in_autocast, shape_of

__all__ = ["SparseRulebook", "sparse_conv", "sparse_rulebook"]

Triple = tuple[int, int, int]
_INT32 = torch.iinfo(torch.int32)


@dataclass(frozen=True)
class SparseRulebook:
    """Which input row each output row of a sparse convolution reads through each tap; taps are counted z, y, x."""

    coords: Tensor  # [N, 4] int32, batch, z, y, x of the inputs
    out_coords: Tensor  # [M, 4] int32, of the outputs
    shape: Triple  # cells of the input grid along z, y, x
    out_shape: Triple
    kernel: Triple
    table: Tensor  # [K, M] int32, input row read through a tap, or -1
    transposed: Tensor | None  # [K, N] int32, output row that reads an input through a tap, or -1; None: submanifold

    def inverse(self) -> SparseRulebook:
        """Of the inverse convolution: from the outputs back to the inputs, through the same pairs."""
        if self.transposed is None:
            raise ValueError("a submanifold convolution has no inverse: its outputs are its inputs; use it as it is")
        return SparseRulebook(
            self.out_coords, self.coords, self.out_shape, self.shape, self.kernel, self.transposed, self.table
        )


def triple(value: int | Sequence[int], name: str, smallest: int) -> Triple:
    """One number for every axis, or three; a ``ValueError`` names what is wrong."""
    try:
        values = tuple(operator.index(v) for v in (value if isinstance(value, Iterable) else (value,) * 3))
    except TypeError:  # a size of 2.5 is a mistake, not 2
        values = ()
    if len(values) != 3 or min(values) < smallest:
        raise ValueError(f"{name}: found {value}; expected a whole number of at least {smallest}, or three: z, y, x")
    return values


def sparse_rulebook(
    coords: Tensor,
    shape: Sequence[int],
    batch_size: int,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    submanifold: bool = False,
) -> SparseRulebook:
    """Find the neighbours of every output of a sparse convolution.

    Args:
        coords: [N, 4] int32 or int64: batch, z, y, x of each voxel, each voxel once, in any order.
        shape: cells of the grid along z, y, x.
        batch_size: number of samples.
        kernel: taps along z, y, x, or one number for all; so for the next three.
        stride: cells from one output to the next.
        padding: cells added around the grid.
        dilation: cells from one tap to the next.
        submanifold: outputs are the inputs, in their order (Graham and van der Maaten, 2017). The kernel is odd and
            centred; stride and padding are not used.

    Returns:
        The rulebook for ``sparse_conv``. Outputs that are not submanifold are all those that read at least one input,
        in ascending order of (batch, z, y, x). Finding how many there are takes one host read on CUDA (so no CUDA
        graph can hold it); submanifold takes none.

    Raises:
        ValueError: wrong shape, dtype or geometry; on the CPU also a voxel that is outside of the grid or comes twice.
            On CUDA voxels outside have no neighbours and no outputs, and of equal ones the first row is found.
    """
    check(coords, "coords", "N4", (torch.int32, torch.int64))
    if coords.shape[1] != 4:
        raise ValueError(f"coords has shape {shape_of(coords)}; expected [N, 4]: batch, z, y, x")
    sizes, taps = triple(shape, "shape", 0), triple(kernel, "kernel", 1)
    steps, around, spread = triple(stride, "stride", 1), triple(padding, "padding", 0), triple(dilation, "dilation", 1)
    if batch_size < 0:
        raise ValueError(f"batch_size: found {batch_size}; expected 0 or more")
    if coords.dtype == torch.int64:  # what lies outside must not come back inside with its upper half cut off
        coords = coords.clamp(_INT32.min, _INT32.max)
    coords = coords.to(torch.int32).contiguous()
    if submanifold:
        if not all(k % 2 for k in taps):
            raise ValueError(f"kernel: found {taps}; expected odd numbers, for a submanifold convolution has a centre")
        table = _call("sparse_submanifold", coords, batch_size, sizes, taps, spread)
        return SparseRulebook(coords, coords, sizes, sizes, taps, table, None)
    out_coords, table, transposed = _call("sparse_strided", coords, batch_size, sizes, taps, steps, around, spread)
    axes = zip(sizes, taps, steps, around, spread, strict=True)
    out = [max((n + 2 * p - d * (k - 1) - 1) // s + 1, 0) for n, k, s, p, d in axes]
    return SparseRulebook(coords, out_coords, sizes, (out[0], out[1], out[2]), taps, table, transposed)


def _call(name: str, coords: Tensor, *geometry: int | Triple):
    """Kernel or twin; what the kernel finds wrong with the input is the caller's ``ValueError``."""
    if not library.has_kernel(coords.device):
        return getattr(reference, name)(coords, *geometry)
    kernel = getattr(torch.ops.fusion3d, name)
    if torch.compiler.is_compiling():
        return kernel(coords, *geometry)
    try:
        return kernel(coords, *geometry)
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        if ("coords" in said or "fusion3d: " in said) and "did not start" not in said:  # a launch that failed
            raise ValueError(said.removeprefix("fusion3d: ")) from None
        raise


def sparse_conv(features: Tensor, weight: Tensor, rulebook: SparseRulebook) -> Tensor:
    """Sparse convolution: each output row is the sum over the taps of its neighbours times the tap's weights.

    Equal to a dense convolution over a grid that is zero where there is no voxel, read at the outputs of the rulebook.
    Sums are in float32 (float64 for float64), tap after tap, and reproducible to the bit; so is the gradient. Under
    autocast both inputs are cast to its type, but for float64.

    Args:
        features: [N, I] float, a row for each of ``rulebook.coords``.
        weight: [O, kz, ky, kx, I], same dtype and device: the layout of spconv 2 (which calls it KRSC).
        rulebook: from ``sparse_rulebook``, or the inverse of one.

    Returns:
        [M, O], a row for each of ``rulebook.out_coords``. Differentiable with respect to features and weight.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit one another.

    Source: Graham and van der Maaten, "Submanifold Sparse Convolutional Networks" (2017); Yan et al., "SECOND" (2018).
    """
    check(features, "features", "NI", FLOATS)
    check(weight, "weight", "OZYXI", FLOATS)
    device = features.device
    features, weight = in_autocast(features, weight)
    check_one_dtype(features=features, weight=weight)
    check_one_device(features=features, weight=weight, rulebook=rulebook.table)
    if tuple(weight.shape[1:4]) != rulebook.kernel or weight.shape[4] != features.shape[1]:
        z, y, x = rulebook.kernel
        raise ValueError(f"weight has shape {shape_of(weight)}; expected [O, {z}, {y}, {x}, {features.shape[1]}]")
    if features.shape[0] != rulebook.coords.shape[0]:
        raise ValueError(
            f"features has {features.shape[0]} rows; expected {rulebook.coords.shape[0]}, one for each voxel"
        )
    weight_OKI = weight.flatten(1, 3)
    if library.has_kernel(device):
        return torch.ops.fusion3d.sparse_conv(
            features.contiguous(), weight_OKI.contiguous(), rulebook.table, rulebook.transposed
        )
    return reference.sparse_conv(features, weight_OKI, rulebook.table)


def _register_rulebook() -> None:
    @torch.library.register_fake("fusion3d::sparse_submanifold")
    def _(coords: Tensor, batch_size: int, shape, kernel, dilation) -> Tensor:
        return coords.new_empty(kernel[0] * kernel[1] * kernel[2], coords.shape[0])

    @torch.library.register_fake("fusion3d::sparse_strided")
    def _(coords: Tensor, batch_size: int, shape, kernel, stride, padding, dilation) -> tuple[Tensor, Tensor, Tensor]:
        taps, num_out = kernel[0] * kernel[1] * kernel[2], torch.library.get_ctx().new_dynamic_size()
        rows = coords.shape[0]
        return coords.new_empty(num_out, 4), coords.new_empty(taps, num_out), coords.new_empty(taps, rows)


def _register_conv() -> None:
    @torch.library.register_fake("fusion3d::sparse_conv")
    def _(features: Tensor, weight: Tensor, table: Tensor, transposed: Tensor | None, adjoint: bool = False) -> Tensor:
        reads = transposed if adjoint and transposed is not None else table
        return features.new_empty(reads.shape[1], weight.shape[2 if adjoint else 0])

    @torch.library.register_fake("fusion3d::sparse_weight_grad")
    def _(grad: Tensor, features: Tensor, table: Tensor) -> Tensor:
        return features.new_empty(grad.shape[1], table.shape[0], features.shape[1])

    def keep(ctx, inputs, output: Tensor) -> None:
        features, weight, table, transposed, ctx.adjoint = inputs
        ctx.save_for_backward(features, weight, table, transposed)

    def backward(ctx, grad: Tensor):
        features, weight, table, transposed = ctx.saved_tensors
        grad = grad.contiguous()
        grad_features = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_features = torch.ops.fusion3d.sparse_conv(grad, weight, table, transposed, not ctx.adjoint)
        if ctx.needs_input_grad[1]:
            above, below = (features, grad) if ctx.adjoint else (grad, features)
            grad_weight = torch.ops.fusion3d.sparse_weight_grad(above, below, table)
        return grad_features, grad_weight, None, None, None

    torch.library.register_autograd("fusion3d::sparse_conv", backward, setup_context=keep)
    library.not_twice_differentiable("sparse_weight_grad")


if not library.PROBLEM:
    _register_rulebook()
    _register_conv()
