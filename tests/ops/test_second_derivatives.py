"""Gradients of gradients: where there are none, asking for them is an error; they are never silently zero."""

from __future__ import annotations

import pytest
import torch
from harness import DEVICES, compiled, needs_kernel

from fusion3d import ops


def random(*shape, device):
    return torch.rand(shape, device=device, dtype=torch.float64, generator=torch.Generator(device).manual_seed(0))


def pooled(device):
    plan = ops.bev_pool_plan(torch.arange(8, device=device).reshape(1, 2, 2, 2) % 3, 3)
    return lambda depth, feat: ops.bev_pool(depth, feat, plan), [(1, 2, 2, 2), (1, 4, 2, 2)]


def reduced(device):
    plan = ops.segment_plan(torch.tensor([0, 1, 0], device=device), 2)
    return lambda values: ops.segment_reduce(values, plan, "mean"), [(3, 2)]


def deformed(device):
    points, logits = random(1, 3, 2, device=device), random(1, 3, 1, 1, 2, device=device)
    shapes = [(1, 6, 1, 4), (1, 3, 1, 1, 2, 2)]
    return lambda value, offsets: ops.ms_deform_attn(value, [(2, 3)], points, offsets, logits), shapes


def attended(device):
    cu = torch.tensor([0, 2, 5], dtype=torch.int32, device=device)
    return lambda q, k, v: ops.window_attention(q, k, v, cu), [(5, 1, 4)] * 3


def overlapped(device):
    return ops.box_iou_bev_aligned, [(3, 5), (3, 5)]


def convolved(device):
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]], device=device)
    book = ops.sparse_rulebook(coords, (1, 1, 2), 1, 3, submanifold=True)
    return lambda features, weight: ops.sparse_conv(features, weight, book), [(2, 3), (4, 3, 3, 3, 3)]


@compiled
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", [pooled, reduced, deformed, attended, overlapped, convolved])
def test_what_is_not_twice_differentiable_says_so(device, make):
    needs_kernel(device)
    run, shapes = make(device)
    inputs = [random(*shape, device=device).requires_grad_() for shape in shapes]
    found = run(*inputs)
    grads = torch.autograd.grad(found.square().sum(), inputs, create_graph=True)
    plain = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    for a, b in zip(grads, plain, strict=True):
        assert torch.equal(a, b) and not b.requires_grad
    with pytest.raises(RuntimeError, match=r"not twice differentiable.*fusion3d\.ops\.reference"):
        sum(grad.square().sum() for grad in grads).backward()


@compiled
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_twice_differentiable_is_right(device):
    book = ops.sparse_rulebook(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]], device=device), (1, 1, 2), 1, 3, 1, 1)
    weight = random(4, 3, 3, 3, 3, device=device)
    features = random(2, 3, device=device).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda f: ops.sparse_conv(f, weight, book).square(), (features,))
    points = random(6, 3, device=device)
    values = random(6, 2, device=device).requires_grad_()
    limits = ((0.5, 0.5, 0.5), (0, 0, 0, 1, 1, 1), 3, 9)
    voxels = ops.voxelize(points, *limits)
    for run in (
        lambda v: ops.voxelize_mean(points, *limits, features=v)[0].square(),
        lambda v: voxels.gather(v).square(),
    ):
        assert torch.autograd.gradgradcheck(run, (values,))
