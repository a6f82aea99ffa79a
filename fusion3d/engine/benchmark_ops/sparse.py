"""Sparse convolution against spconv's kernels for the CPU, on voxels of LiDAR sweeps."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fusion3d import ops
from fusion3d.encoders.sparse_peers import one_thread
from fusion3d.engine.benchmark_ops.case import Case, going_back
from fusion3d.engine.benchmark_ops.inputs import lidar_sweeps

_SHAPE = (41, 1440, 1440)  # 0.075 m x 0.075 m x 0.2 m within 54 m
_LOW, _SIZE = (-54.0, -54.0, -5.0), (0.075, 0.075, 0.2)  # [m] along x, y, z
_GOAL = 5.0  # times spconv's speed
# With 64 channels spconv's products run near the processor's peak on its one thread: ours on two, at the full rate of
# torch's own matrix products, could be at most 2.7 times as fast.
_GOAL_WIDE = 2.5
_GOAL_OF_BOUND = 3.0  # times the bound of a layer on CUDA


class _Setting(NamedTuple):
    voxels: int
    points: int  # of the cloud that they are taken from
    inputs: int
    outputs: int
    stride: int


_SETTINGS = (
    _Setting(60_000, 270_000, 16, 16, 1),
    _Setting(105_000, 270_000, 16, 16, 1),
    _Setting(160_000, 600_000, 5, 16, 1),
    _Setting(60_000, 270_000, 16, 32, 2),
    _Setting(30_000, 270_000, 64, 64, 1),
)
_QUICK = (_Setting(5_000, 20_000, 16, 16, 1), _Setting(5_000, 20_000, 16, 32, 2))


def voxels_of_sweeps(voxels: int, points: int) -> Tensor:
    """[N, 4] int32: batch, z, y, x of the first ``voxels`` cells that the points of LiDAR sweeps fall in."""
    cloud = lidar_sweeps(points)
    low, size = np.array(_LOW, np.float32), np.array(_SIZE, np.float32)
    xyz = np.floor((cloud[:, :3] - low) / size).astype(np.int64)
    inside = ((xyz >= 0) & (xyz < _SHAPE[::-1])).all(1)
    x, y, z = xyz[inside].T
    cells: np.ndarray = (z * _SHAPE[1] + y) * _SHAPE[2] + x
    first = np.sort(np.unique(cells, return_index=True)[1])[:voxels]
    zyx = np.column_stack([z[first], y[first], x[first]])
    return torch.from_numpy(np.pad(zyx, ((0, 0), (1, 0))).astype(np.int32))


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Rulebook, forward and backward of submanifold and strided convolutions with 3 x 3 x 3 taps, in float32."""
    for setting in _QUICK if quick else _SETTINGS:
        yield from _cases_of(setting, device)


def _cases_of(s: _Setting, device: str) -> Iterator[Case]:
    coords = voxels_of_sweeps(s.voxels, s.points).to(device)
    random = torch.Generator().manual_seed(0)
    geometry: dict[str, Any] = {"submanifold": True} if s.stride == 1 else {"stride": s.stride, "padding": 1}

    def make_rulebook() -> ops.SparseRulebook:
        return ops.sparse_rulebook(coords, _SHAPE, 1, 3, **geometry)

    rulebook = make_rulebook()
    num_in, num_out = len(coords), len(rulebook.out_coords)
    features = torch.randn(num_in, s.inputs, generator=random).to(device).requires_grad_()
    weight = torch.randn(s.outputs, 3, 3, 3, s.inputs, generator=random).to(device).requires_grad_()
    grad = torch.randn(num_out, s.outputs, generator=random).to(device)
    # Made when it is first called: where it is not installed, our times are taken all the same.
    peer = cache(lambda: _Spconv(features, weight, coords, s.stride, grad, rulebook))
    plain = features.detach(), weight.detach()

    def run() -> Tensor:
        return ops.sparse_conv(*plain, rulebook)

    def gradients() -> tuple[Tensor, Tensor]:
        flat, tables = plain[1].flatten(1, 3), (rulebook.table, rulebook.transposed)
        grad_weight = torch.ops.fusion3d.sparse_weight_grad(grad, plain[0], rulebook.table)
        return torch.ops.fusion3d.sparse_conv(grad, flat, *tables, True), grad_weight.view(weight.shape)

    leaves = features, weight
    run_backward = going_back(gradients, lambda: ops.sparse_conv(*leaves, rulebook), leaves, grad)

    kind = "submanifold" if s.stride == 1 else f"stride {s.stride}"
    shape = f"{num_in} voxels, {s.inputs} to {s.outputs} channels, {kind}"
    tables = 4 * rulebook.table.numel() * (1 if rulebook.transposed is None else 2)
    values = 4 * (features.numel() + weight.numel() + grad.numel())
    wide = min(s.inputs, s.outputs) >= 64

    def case(op: str, ours: Callable, name: str, agree: Callable, num_bytes: int) -> Case:
        layer = op != "sparse_rulebook"
        goal = {"spconv": _GOAL_WIDE if wide and layer else _GOAL}
        most = None
        if device == "cuda":  # as fast as spconv there, and near the bound
            goal, most = ({"spconv": 1.0}, _GOAL_OF_BOUND) if layer else ({}, None)
        peers = {"spconv": lambda: getattr(peer(), name)()}
        return Case(op, shape, ours, peers, agree, num_bytes, goal, limit_of_bound=most)

    num_coords = 16 * (num_in + (num_out if s.stride > 1 else 0))
    yield case("sparse_rulebook", make_rulebook, "rulebook", _same_rulebook, num_coords + tables)
    table = 4 * rulebook.table.numel()
    yield case("sparse_conv", run, "forward", _near, values + table)
    yield case("sparse_conv backward", run_backward, "backward", _near, 2 * values + tables)


class _Spconv:
    """The same convolution by spconv: pairs of voxels found, forward, and backward, each by itself.

    Its sums run with one thread: with more they race on the CPU and come out wrong (see ``one_thread``).
    """

    def __init__(
        self, features: Tensor, weight: Tensor, coords: Tensor, stride: int, grad: Tensor, ours: ops.SparseRulebook
    ) -> None:
        self.ops = importlib.import_module("spconv.pytorch.ops")
        self.functional = importlib.import_module("spconv.pytorch.functional")
        self.algo = importlib.import_module("spconv.core").ConvAlgo.Native
        if not torch.backends.cuda.is_built():
            vars(self.ops)["get_current_stream"] = lambda: 0  # asked for on the CPU too; there its value is not used
        self.coords, self.stride = coords, stride
        out_coords, self.pairs, self.counts = self.rulebook()
        self.order = torch.arange(len(coords), device=coords.device)
        if stride > 1:  # its outputs come in an order of its own
            b, z, y, x = out_coords.long().unbind(1)
            cells = ((b * ours.out_shape[0] + z) * ours.out_shape[1] + y) * ours.out_shape[2] + x
            self.order = cells.argsort()
        self.features, self.weight = features, weight
        self.num_out = len(out_coords)
        self.grad = torch.empty_like(grad).index_copy(0, self.order, grad)
        self.out = self._convolve(features, weight)

    def rulebook(self) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates of the outputs, pairs, and how many there are for each tap."""
        three = [3, 3, 3]
        steps, around, subm = [self.stride] * 3, [1] * 3, self.stride == 1
        return self.ops.get_indice_pairs(
            self.coords, 1, list(_SHAPE), self.algo, three, steps, around, [1] * 3, [0] * 3, subm
        )

    def _convolve(self, features: Tensor, weight: Tensor) -> Tensor:
        convolve = self.functional.indice_subm_conv if self.stride == 1 else self.functional.indice_conv
        with one_thread():
            return convolve(features, weight, self.pairs, self.counts, self.num_out, self.algo)

    def forward(self) -> Tensor:
        """Outputs, in the order of ours."""
        out = self._convolve(self.features.detach(), self.weight.detach())
        return out if self.stride == 1 else out[self.order]

    def backward(self) -> tuple[Tensor, ...]:
        """Gradients to features and weight."""
        with one_thread():
            return torch.autograd.grad(self.out, (self.features, self.weight), self.grad, retain_graph=True)


def _same_rulebook(ours: ops.SparseRulebook, theirs: tuple[Tensor, Tensor, Tensor]) -> None:
    """As many pairs through each tap, and the same outputs."""
    out_coords, _, counts = theirs
    mine = (ours.table >= 0).sum(1).cpu()
    counts = counts.cpu().long()
    if ours.transposed is None:  # of a submanifold convolution spconv counts half of the taps, and not the centre
        half = len(mine) // 2
        mine, counts = mine[:half], counts[:half]
    torch.testing.assert_close(mine, counts, rtol=0, atol=0)
    assert {tuple(row) for row in ours.out_coords.tolist()} == {tuple(row) for row in out_coords.tolist()}


def _near(ours: Any, theirs: Any) -> None:
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
