"""How the sensors' kernels are compiled: numba, with a cache that knows all sources of this room.

numba stores a compiled function beside its file and compiles it again when that file changes. Kernels of one file
inline functions and constants of others, so that alone would run stale code after a change there: the cache of this
room lies in a folder that is named by all its sources.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from fusion3d.files import cache_folder

HERE = Path(__file__).parent
Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def source_digest() -> str:
    """16 hexadecimal digits of all sources of the generator, as they were when the process asked first."""
    digest = hashlib.sha256()
    for path in sorted(HERE.glob("*.py")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def kernel_folder() -> Path:
    """Where compiled kernels are kept: ``NUMBA_CACHE_DIR``, else ``__pycache__``, else the user's cache folder."""
    name = f"kernels-{source_digest()}"
    if numba.config.CACHE_DIR:  # type: ignore[attr-defined]
        return Path(numba.config.CACHE_DIR) / name  # type: ignore[attr-defined]
    beside = HERE / "__pycache__"
    if not os.access(beside if beside.exists() else HERE, os.W_OK):
        return cache_folder() / name
    for other in beside.glob("kernels-*"):
        if other.name != name:  # of sources that are no more
            shutil.rmtree(other, ignore_errors=True)
    return beside / name


def kernel(**options: Any) -> Callable[[Function], Function]:
    """Decorator: ``numba.njit(cache=True, **options)``, compiled again when any source of this room has changed."""

    def compiled(function: Function) -> Function:
        folder, usual = str(kernel_folder()), numba.config.CACHE_DIR  # type: ignore[attr-defined]
        numba.config.CACHE_DIR = folder  # type: ignore[attr-defined]  # read when the decorator is applied
        try:
            return cast(Function, numba.njit(cache=True, **options)(function))
        finally:
            numba.config.CACHE_DIR = usual  # type: ignore[attr-defined]

    return compiled
