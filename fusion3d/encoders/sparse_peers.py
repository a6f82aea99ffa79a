"""The layers of ``fusion3d.encoders.sparse`` computed by spconv or spconv-triton, with the same weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from fusion3d.errors import ConfigError

if TYPE_CHECKING:
    from fusion3d.encoders.sparse import SparseConvolution, SparseTensor

Backend = Literal["ours", "spconv", "spconv-triton"]

_PACKAGES = {"spconv": "spconv", "spconv-triton": "spconv_triton"}  # by backend: the package's name in Python


def _package(backend: str) -> ModuleType:
    """The backend's layers, imported when first used."""
    if backend not in _PACKAGES:
        raise ConfigError(f"backend: found {backend!r}; expected one of ours, {', '.join(_PACKAGES)}")
    try:
        package = importlib.import_module(f"{_PACKAGES[backend]}.pytorch")
    except ImportError as error:
        raise ConfigError(
            f"backend {backend!r}: {_PACKAGES[backend]} cannot be imported ({error}); "
            f"pip install {backend}, or use the backend 'ours'"
        ) from error
    if backend == "spconv" and not torch.backends.cuda.is_built():
        # Its backward pass asks torch for the current CUDA stream, on the CPU too, which a torch without CUDA refuses.
        # The CPU's kernels ignore what they get.
        vars(importlib.import_module("spconv.pytorch.ops"))["get_current_stream"] = lambda: 0
    return package


def _make(layer: SparseConvolution, package: ModuleType) -> Any:
    """The package's layer of the same geometry, without weights of its own."""
    options: dict[str, Any] = {"bias": layer.bias is not None, "indice_key": layer.key}
    if layer.kind != "inverse":
        options |= {"stride": list(layer.stride), "padding": list(layer.padding), "dilation": list(layer.dilation)}
    names = {"submanifold": "SubMConv3d", "strided": "SparseConv3d", "inverse": "SparseInverseConv3d"}
    cls = getattr(package, names[layer.kind])
    return cls(layer.in_channels, layer.out_channels, list(layer.kernel), **options)


@contextmanager
def one_thread() -> Iterator[None]:
    """spconv's CPU kernels (2.3.8) share a pointer among OpenMP threads: with more than one, rows come out wrong."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _OneThread(torch.autograd.Function):
    """Runs a function of tensors with one thread, forward and backward."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        with one_thread(), torch.enable_grad():
            ctx.inputs = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
            ctx.out = run(*ctx.inputs)
        return ctx.out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [x for x in ctx.inputs if x.requires_grad]
        with one_thread():
            found = iter(torch.autograd.grad(ctx.out, wanted, grads[0]))
        return None, *(next(found) if x.requires_grad else None for x in ctx.inputs)


def convolve_by_peer(
    layer: SparseConvolution, x: SparseTensor, backend: str
) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """Features, coordinates and grid of a layer's output, by another package.

    Raises:
        ConfigError: an unknown backend, one that is not installed, or spconv-triton on the CPU.
    """
    package = _package(backend)
    on_cpu = x.features.device.type == "cpu"
    if backend == "spconv-triton" and on_cpu:
        raise ConfigError("backend 'spconv-triton' has no kernels for the CPU; use 'ours' there")
    peer = layer.__dict__.get("_peer")
    if peer is None or peer[0] != backend:
        peer = backend, _make(layer, package)
        layer.__dict__["_peer"] = peer  # beside the submodules: its weights are this layer's, and saved once
    peer[1].train(layer.training)
    kept = x.rulebooks.setdefault(backend, {})
    if layer.kind == "strided":
        kept.pop(layer.key, None)  # it takes up kept pairs for submanifold and inverse layers alone
    outs: list[Any] = []

    def run(features: Tensor, *weights: Tensor) -> Tensor:
        voxels = package.SparseConvTensor(features, x.coords, list(x.shape), x.batch_size, indice_dict=kept)
        outs.append(functional_call(peer[1], dict(zip(("weight", "bias"), weights, strict=False)), (voxels,)))
        return outs[0].features

    inputs = [x.features, layer.weight, *([] if layer.bias is None else [layer.bias])]
    features = _OneThread.apply(run, *inputs) if on_cpu else run(*inputs)
    assert isinstance(features, Tensor)
    kept.update(outs[0].indice_dict)  # it works on a copy
    shape = tuple(int(n) for n in outs[0].spatial_shape)
    return features, outs[0].indices, (shape[0], shape[1], shape[2])
