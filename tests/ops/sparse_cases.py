"""Voxels at random with features and weights, and what the tests of sparse convolution compare with."""

from __future__ import annotations

import torch

from fusion3d import ops

STRIDED = {"stride": 2, "padding": 1}


def voxels(shape=(4, 7, 9), batch=2, occupied=0.3, device="cpu", seed=0):
    """[N, 4] int32, random cells of the grid in random order."""
    random = torch.Generator().manual_seed(seed)
    cells = (torch.rand(batch, *shape, generator=random) < occupied).nonzero()
    return cells[torch.randperm(len(cells), generator=random)].int().to(device)


def make(cin=5, cout=7, dtype=torch.float32, device="cpu", seed=0, kernel=3, submanifold=True, coords=None, **geometry):
    """Random features and weight, and the rulebook."""
    random = torch.Generator().manual_seed(seed)
    coords = voxels(device=device, seed=seed) if coords is None else coords
    rulebook = ops.sparse_rulebook(coords, (4, 7, 9), 2, kernel, submanifold=submanifold, **geometry)
    features = torch.randn(len(coords), cin, generator=random, dtype=torch.float64)
    weight = torch.randn(cout, *rulebook.kernel, cin, generator=random, dtype=torch.float64)
    return features.to(device, dtype).requires_grad_(), weight.to(device, dtype).requires_grad_(), rulebook


def dense(features, coords, shape, batch):
    """[B, C, Z, Y, X], zero where there is no voxel."""
    b, z, y, x = coords.long().unbind(1)
    grid = features.new_zeros(batch, *shape, features.shape[1])
    return grid.index_put((b, z, y, x), features).permute(0, 4, 1, 2, 3)


def read(grid, coords):
    """[N, C] of a dense grid, at voxels."""
    b, z, y, x = coords.long().unbind(1)
    return grid.permute(0, 2, 3, 4, 1)[b, z, y, x]


def grads(out, *inputs):
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device).reshape(out.shape)
    return torch.autograd.grad((out.double() * weights).sum(), inputs)


def assert_near(found, want, tolerance):
    scale = float(want.detach().abs().max()) if want.numel() else 1.0
    torch.testing.assert_close(found.double(), want.double(), rtol=tolerance, atol=tolerance * max(scale, 1e-6))
