"""Clouds, and the backends of sparse convolution, for the tests of more than one encoder."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from fusion3d.types import PointCloud

BACKENDS = [
    pytest.param("spconv", "cpu"),
    pytest.param("spconv", "cuda", marks=pytest.mark.gpu),
    pytest.param("spconv-triton", "cuda", marks=pytest.mark.gpu),
]


def needs_backend(backend: str) -> None:
    """Skip the test where the backend's package is not there."""
    if importlib.util.find_spec(backend.replace("-", "_")) is None:
        pytest.skip(f"{backend} is not installed")


def points(count: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    size = torch.tensor([18.0, 10.0, 9.0, 1.0, 0.5])
    return (torch.rand(count, 5, generator=random) - torch.tensor([0.5, 0.5, 0.5, 0.0, 0.0])) * size


def cloud(points: torch.Tensor, sample: list[int] | None = None, present: tuple[bool, ...] = (True,)) -> PointCloud:
    index = torch.tensor(sample or [0] * len(points), dtype=torch.int64)
    return PointCloud(points, index, torch.tensor(present))
