"""The layers of ``fusion3d.encoders.sparse`` computed by spconv or spconv-triton, with the same weights."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

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
        importlib.import_module("spconv.pytorch.ops").get_current_stream = lambda: 0
    return package


def _make(layer: SparseConvolution, package: ModuleType) -> Any:
    """The package's layer of the same geometry, without weights of its own."""
    options: dict[str, Any] = {"bias": layer.bias is not None, "indice_key": layer.key}
    if layer.kind != "inverse":
        options |= {"stride": list(layer.stride), "padding": list(layer.padding), "dilation": list(layer.dilation)}
    names = {"submanifold": "SubMConv3d", "strided": "SparseConv3d", "inverse": "SparseInverseConv3d"}
    cls = getattr(package, names[layer.kind])
    return cls(layer.in_channels, layer.out_channels, list(layer.kernel), **options)


def convolve_by_peer(
    layer: SparseConvolution, x: SparseTensor, backend: str
) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
    """Features, coordinates and grid of a layer's output, by another package.

    Raises:
        ConfigError: an unknown backend, one that is not installed, or spconv-triton on the CPU.
    """
    package = _package(backend)
    if backend == "spconv-triton" and x.features.device.type == "cpu":
        raise ConfigError("backend 'spconv-triton' has no kernels for the CPU; use 'ours' there")
    peer = layer.__dict__.get("_peer")
    if peer is None or peer[0] != backend:
        peer = backend, _make(layer, package)
        layer.__dict__["_peer"] = peer  # beside the submodules: its weights are this layer's, and saved once
    peer[1].weight, peer[1].bias = layer.weight, layer.bias
    peer[1].train(layer.training)
    kept = x.rulebooks.setdefault(backend, {})
    if layer.kind == "strided":
        kept.pop(layer.key, None)  # it takes up kept pairs for submanifold and inverse layers alone
    voxels = package.SparseConvTensor(x.features, x.coords, list(x.shape), x.batch_size, indice_dict=kept)
    out = peer[1](voxels)
    kept.update(out.indice_dict)  # it works on a copy
    shape = tuple(int(n) for n in out.spatial_shape)
    return out.features, out.indices, (shape[0], shape[1], shape[2])
