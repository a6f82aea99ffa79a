"""Sparse convolution on voxels: a tensor that knows its cells, and the layers on it.

One layer, one stored weight, three ways to compute it: ``backend`` is "ours" (CPU and CUDA), "spconv" or
"spconv-triton". Weights are [out, kz, ky, kx, in], spconv 2's layout, under the same names, so its published
checkpoints load as they are.

Letters: N voxels, B samples, C I O channels, Z Y X cells of the grid.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.encoders.sparse_peers import Backend, convolve_by_peer
from fusion3d.ops.sparse import Triple, triple

__all__ = ["SparseConv3d", "SparseInverseConv3d", "SparseSequential", "SparseTensor", "SubmanifoldConv3d"]

Kind = Literal["submanifold", "strided", "inverse"]


@dataclass(frozen=True)
class SparseTensor:
    """Features of the voxels of a grid that hold something.

    Raises:
        ValueError: features and coordinates that do not fit one another.
    """

    features: Tensor  # [N, C] float
    coords: Tensor  # [N, 4] int32: batch, z, y, x; each voxel once, in any order
    shape: Triple  # cells of the grid along z, y, x
    batch_size: int
    rulebooks: dict[str, Any] = field(default_factory=dict)  # what layers have found, by key; shared along a network

    def __post_init__(self) -> None:
        if self.coords.ndim != 2 or self.coords.shape[1] != 4:
            raise ValueError(f"coords has shape {list(self.coords.shape)}; expected [N, 4]: batch, z, y, x")
        if self.features.ndim != 2 or len(self.features) != len(self.coords):
            raise ValueError(
                f"features has shape {list(self.features.shape)}; expected [{len(self.coords)}, C], "
                "a row for each voxel"
            )
        object.__setattr__(self, "coords", self.coords.to(torch.int32).contiguous())
        object.__setattr__(self, "shape", triple(self.shape, "shape", 0))

    def with_features(self, features: Tensor) -> SparseTensor:
        """The same voxels with other features [N, C]."""
        return dataclasses.replace(self, features=features)

    def dense(self) -> Tensor:
        """[B, C, Z, Y, X], zero where there is no voxel. Reshaped to [B, C * Z, Y, X] it is a bird's-eye map."""
        b, z, y, x = self.coords.long().unbind(1)
        grid = self.features.new_zeros(self.batch_size, *self.shape, self.features.shape[1])
        return grid.index_put((b, z, y, x), self.features).permute(0, 4, 1, 2, 3).contiguous()


class SparseConvolution(nn.Module):
    """What the three convolutions share; use one of them.

    Args:
        kind: which of the three.
        in_channels: I.
        out_channels: O.
        kernel: taps along z, y, x, or one number for all; so for the next three.
        stride: cells from one output to the next.
        padding: cells added around the grid.
        dilation: cells from one tap to the next.
        bias: add a learned number to each output channel.
        key: name under which the rulebook is kept for other layers on the same voxels; None: it is not kept.
        backend: who computes.
    """

    def __init__(
        self,
        kind: Kind,
        in_channels: int,
        out_channels: int,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        key: str | None = None,
        backend: Backend = "ours",
    ) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.stride = triple(kernel, "kernel", 1), triple(stride, "stride", 1)
        self.padding, self.dilation = triple(padding, "padding", 0), triple(dilation, "dilation", 1)
        self.key, self.backend = key, backend
        if kind == "submanifold" and not all(k % 2 for k in self.kernel):
            raise ValueError(f"kernel: found {self.kernel}; expected odd numbers, for the convolution has a centre")
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(inputs of a sum), as torch's own convolutions."""
        bound = 1 / math.sqrt(max(math.prod(self.kernel) * self.in_channels, 1))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """What the layer is, for print."""
        text = f"{self.in_channels}, {self.out_channels}, kernel={self.kernel}"
        if self.kind == "strided":
            text += f", stride={self.stride}, padding={self.padding}"
        return f"{text}, dilation={self.dilation}, key={self.key!r}, backend={self.backend!r}"

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Voxels with I channels to voxels with O channels.

        Raises:
            ValueError: channels that do not fit, or a key whose rulebook is of other voxels or another geometry.
        """
        if x.features.shape[1] != self.in_channels:
            raise ValueError(f"features have {x.features.shape[1]} channels; expected {self.in_channels}")
        if self.backend != "ours":
            out = convolve_by_peer(self, x, self.backend)
            return SparseTensor(*out, x.batch_size, x.rulebooks)
        rulebook = self._rulebook(x)
        features = ops.sparse_conv(x.features, self.weight, rulebook)
        if self.bias is not None:
            features = features + self.bias.to(features.dtype)
        return SparseTensor(features, rulebook.out_coords, rulebook.out_shape, x.batch_size, x.rulebooks)

    def _rulebook(self, x: SparseTensor) -> ops.SparseRulebook:
        """From the tensor, or made and kept there."""
        if self.kind == "inverse":
            rulebook = self._kept(x, "strided")
            assert rulebook is not None
            return rulebook.inverse()
        rulebook = self._kept(x, self.kind)
        if rulebook is None:
            rulebook = ops.sparse_rulebook(
                x.coords, x.shape, x.batch_size, self.kernel, self.stride, self.padding, self.dilation,
                self.kind == "submanifold",
            )  # fmt: skip
            if self.key is not None:
                x.rulebooks[self.key] = (self._geometry(self.kind), rulebook)
        return rulebook

    def _geometry(self, kind: Kind) -> tuple[Any, ...]:
        if self.kind == "inverse":
            return kind, self.kernel
        return kind, self.kernel, self.stride, self.padding, self.dilation

    def _kept(self, x: SparseTensor, kind: Kind) -> ops.SparseRulebook | None:
        """What is kept under the key, if it fits this layer and these voxels."""
        if self.key not in x.rulebooks:
            if self.kind == "inverse":
                raise ValueError(
                    f"key {self.key!r}: no rulebook; expected that of a SparseConv3d before, "
                    f"found {sorted(x.rulebooks)}"
                )
            return None
        geometry, rulebook = x.rulebooks[self.key]
        wanted = self._geometry(kind)
        if geometry[: len(wanted)] != wanted:
            raise ValueError(
                f"key {self.key!r}: its rulebook is for {geometry}, this layer for {wanted}; give it another key"
            )
        if (rulebook.out_coords if self.kind == "inverse" else rulebook.coords) is not x.coords:
            raise ValueError(f"key {self.key!r}: its rulebook is of other voxels; give this layer another key")
        return rulebook


class SubmanifoldConv3d(SparseConvolution):
    """Outputs where the inputs are, so that no voxel is added (Graham and van der Maaten, 2017); the kernel is odd.

    Args:
        in_channels: I.
        out_channels: O.
        kernel: taps along z, y, x, or one number for all.
        dilation: cells from one tap to the next.
        bias: add a learned number to each output channel.
        key: layers on the same voxels with one key find the neighbours once; None: each anew.
        backend: "ours", "spconv" or "spconv-triton".
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | Sequence[int] = 3, *,
        dilation: int | Sequence[int] = 1, bias: bool = True, key: str | None = None, backend: Backend = "ours",
    ) -> None:  # fmt: skip
        size, steps = triple(kernel, "kernel", 1), triple(dilation, "dilation", 1)
        padding = [k // 2 * d for k, d in zip(size, steps, strict=True)]
        super().__init__("submanifold", in_channels, out_channels, size, 1, padding, steps, bias, key, backend)


class SparseConv3d(SparseConvolution):
    """Outputs wherever the kernel reaches a voxel, ``stride`` cells apart; in ascending order of batch, z, y, x.

    (With the backend "spconv" in the order that it gives; the set is the same.)

    Args:
        in_channels: I.
        out_channels: O.
        kernel: taps along z, y, x, or one number for all; so for the next three.
        stride: cells from one output to the next.
        padding: cells added around the grid.
        dilation: cells from one tap to the next.
        bias: add a learned number to each output channel.
        key: name for the SparseInverseConv3d that leads back; None: none does.
        backend: "ours", "spconv" or "spconv-triton".
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | Sequence[int] = 3, *,
        stride: int | Sequence[int] = 1, padding: int | Sequence[int] = 0, dilation: int | Sequence[int] = 1,
        bias: bool = True, key: str | None = None, backend: Backend = "ours",
    ) -> None:  # fmt: skip
        super().__init__("strided", in_channels, out_channels, kernel, stride, padding, dilation, bias, key, backend)


class SparseInverseConv3d(SparseConvolution):
    """From the outputs of a SparseConv3d back to its inputs, in their order, through the same pairs of voxels.

    Args:
        in_channels: I.
        out_channels: O.
        kernel: that of the SparseConv3d.
        key: that of the SparseConv3d.
        bias: add a learned number to each output channel.
        backend: "ours", "spconv" or "spconv-triton".
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | Sequence[int] = 3, *,
        key: str, bias: bool = True, backend: Backend = "ours",
    ) -> None:  # fmt: skip
        super().__init__("inverse", in_channels, out_channels, kernel, bias=bias, key=key, backend=backend)


class SparseSequential(nn.Sequential):
    """Layers one after the other; those that are not sparse (normalisation, activation) get the features [N, C]."""

    def forward(self, input: SparseTensor) -> SparseTensor:
        """Voxels to voxels."""
        for layer in self:
            if isinstance(layer, SparseConvolution | SparseSequential):
                input = layer(input)
            else:
                input = input.with_features(layer(input.features))
        return input
