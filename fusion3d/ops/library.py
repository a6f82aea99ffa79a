"""Loading of the compiled kernels.

The library registers its operations with torch when it is loaded; nothing here compiles anything. Where it is
missing, ``has_kernel`` is False everywhere and the callers use the pure-torch twins. The environment variable
FUSION3D_LIBRARY names another file than the package's own, such as a build with sanitizers.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch

LIBRARY = Path(os.environ.get("FUSION3D_LIBRARY") or Path(__file__).parents[1] / "_kernels.abi3.so")

_warned: set[str] = set()


def _load() -> str:
    """Load the library; returns why it could not be, or nothing."""
    if not LIBRARY.is_file():
        named = f": {LIBRARY}, which FUSION3D_LIBRARY names, is no file" if "FUSION3D_LIBRARY" in os.environ else ""
        return f"the kernels of fusion3d are not compiled{named}"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the kernels of fusion3d do not load with torch {torch.__version__} ({error})"
    if (simd := os.environ.get("FUSION3D_SIMD", "")) not in ("", "avx2", "baseline"):
        known = "expected avx2 or baseline, or nothing for all that the processor has"
        warnings.warn(f"FUSION3D_SIMD={simd} has no effect: {known}", RuntimeWarning, stacklevel=2)
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


def not_twice_differentiable(gradient: str) -> None:
    """Let the gradient of an operation that is itself a gradient raise; torch would take it for zero."""

    def backward(ctx, *grads: torch.Tensor | None) -> None:
        raise RuntimeError(
            f"fusion3d::{gradient} has no gradient: the operation that it belongs to is not twice differentiable. "
            "Where second derivatives are needed, use its twin in fusion3d.ops.reference"
        )

    torch.library.register_autograd(f"fusion3d::{gradient}", backward)


def warn_once(problem: str) -> None:
    """Warn about a missing kernel, the first time that it is met in this process."""
    if problem not in _warned:
        _warned.add(problem)
        warnings.warn(
            f"{problem}: the slower pure-torch versions are used. To compile: pip install --no-deps "
            "--no-build-isolation -e . in the source folder, with GCC (and nvcc for CUDA).",
            RuntimeWarning,
            stacklevel=4,
        )
