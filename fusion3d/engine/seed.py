"""Where randomness comes from: every step has its own seed, so a resumed run needs no generator's history."""

from __future__ import annotations

import os
import random

import numpy as np
import torch


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers (a run's seed, a step, a rank): the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(*parts: int) -> torch.Generator:
    """A CPU generator seeded with ``derive_seed(*parts)``."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def seed_all(*parts: int) -> None:
    """Seed the global generators of torch (every device), numpy and Python from ``derive_seed(*parts)``."""
    seed = derive_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries may draw from the global generator)
    random.seed(seed)


def set_deterministic(on: bool) -> None:
    """Ask torch for bit-identical results, or stop asking.

    With it on, an operation that has no deterministic kernel on the device is an error of torch that names
    it.
    """
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(on)
    # Filling fresh memory costs time and changes no result of ours.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not on
