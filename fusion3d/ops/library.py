"""Loading of the compiled kernels, and what torch must know of them: shapes without data, and gradients.

The library registers its operations with torch when it is loaded; nothing here compiles anything. Where it is
missing, ``has_kernel`` is False everywhere and the callers use the pure-torch twins.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).parents[1] / "_kernels.abi3.so"

_warned: set[str] = set()


def _load() -> str:
    """Load the library; returns why it could not be, or nothing."""
    if not LIBRARY.is_file():
        return "the kernels of fusion3d are not compiled"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the kernels of fusion3d do not load with torch {torch.__version__} ({error})"
    return ""


PROBLEM = _load()


def _kernel_devices() -> frozenset[str]:
    if PROBLEM:
        return frozenset()
    registered = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(kind.lower() for kind in ("CPU", "CUDA") if registered("fusion3d::bev_pool", kind))


DEVICES = _kernel_devices()  # device types that the compiled kernels cover: of "cpu", "cuda"


def has_kernel(device: torch.device) -> bool:
    """Is there a compiled kernel for this device? Where not, one warning says that the twins are used."""
    if device.type in DEVICES:
        return True
    if device.type in ("cpu", "cuda") and not torch.compiler.is_compiling():
        warn_once(PROBLEM or f"the kernels of fusion3d were compiled without {device.type}")
    return False


def warn_once(problem: str) -> None:
    """Warn about a missing kernel, the first time that it is met in this process."""
    if problem not in _warned:
        _warned.add(problem)
        warnings.warn(
            f"{problem}: the slower pure-torch versions are used. To compile: pip install --no-deps "
            "--no-build-isolation -e . in the source folder, with a C++ compiler (and nvcc for CUDA).",
            RuntimeWarning,
            stacklevel=4,
        )


def _register() -> None:
    """Tell torch the output shapes and the gradient of each operation."""

    @torch.library.register_fake("fusion3d::bev_pool")
    def _(depth: Tensor, feat: Tensor, cell: Tensor, sample: Tensor, pixel: Tensor, cell_ptr: Tensor) -> Tensor:
        return feat.new_empty(cell_ptr.shape[0] - 1, feat.shape[3])

    @torch.library.register_fake("fusion3d::bev_pool_backward")
    def _(grad: Tensor, depth: Tensor, feat: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        return depth.new_empty(depth.shape), feat.new_empty(feat.shape)

    def keep(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        depth, feat, cell, *_ = inputs
        ctx.save_for_backward(depth, feat, cell)

    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        depth, feat, cell = ctx.saved_tensors
        grads = torch.ops.fusion3d.bev_pool_backward(grad.contiguous(), depth, feat, cell)
        return (*grads, None, None, None, None)

    torch.library.register_autograd("fusion3d::bev_pool", backward, setup_context=keep)


if not PROBLEM:
    _register()
