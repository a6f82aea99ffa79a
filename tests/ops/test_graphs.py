"""CUDA graphs: what documents no host read can be captured, gradients too, and each replay reads its inputs anew."""

from __future__ import annotations

import pytest
import torch
from harness import DEVICES, needs_kernel
from torch.utils._pytree import tree_leaves, tree_map

from fusion3d import ops

LIMITS = ((0.1, 0.1, 0.1), (0.0, 0.0, 0.0, 1.0, 1.0, 1.0), 4, 50)


def random(*shape, device):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)


def with_grads(run, *inputs):
    out = run(*inputs)
    return out, torch.autograd.grad(out, inputs, torch.ones_like(out))


def pooled(device):
    cell = torch.arange(48, device=device).view(1, 4, 3, 4) % 7

    def run(depth, feat):
        plan = ops.bev_pool_plan(cell, 7)
        return with_grads(lambda d, f: ops.bev_pool(d, f, plan), depth, feat)

    return run, [random(1, 4, 3, 4, device=device), random(1, 8, 3, 4, device=device)]


def voxelized(device):
    def run(points, features):
        _, voxels = ops.voxelize_mean(points, *LIMITS)
        means = with_grads(lambda f: ops.voxelize_mean(points, *LIMITS, features=f)[0], features)
        return voxels.coords, ops.voxelize(points, *LIMITS).voxel, means, with_grads(voxels.gather, features)

    return run, [random(200, 3, device=device), random(200, 5, device=device)]


def reduced(device):
    keys = torch.arange(60, device=device) % 9

    def run(values):
        plan = ops.segment_plan(keys, 12, keep_empty=True)
        ways = ("sum", "mean", "max")
        return [with_grads(lambda v, way=way: ops.segment_reduce(v, plan, way), values) for way in ways]

    return run, [random(60, 8, device=device)]


def deformed(device):
    points, logits = random(1, 5, 2, device=device), random(1, 5, 2, 1, 4, device=device)

    def run(value, offsets):
        return with_grads(lambda v, o: ops.ms_deform_attn(v, [(3, 4)], points, o, logits), value, offsets)

    return run, [random(1, 12, 2, 8, device=device), random(1, 5, 2, 1, 4, 2, device=device)]


def attended(device):
    borders = torch.tensor([0, 20, 70], dtype=torch.int32, device=device)
    return (
        lambda *qkv: with_grads(lambda q, k, v: ops.window_attention(q, k, v, borders), *qkv),
        [random(70, 2, 16, device=device) + i for i in range(3)],
    )


def overlapped(device):
    def run(a, b):
        return ops.box_iou_bev(a, b), with_grads(ops.box_iou_bev_aligned, a, b)

    return run, [random(6, 5, device=device) + 0.5, random(6, 5, device=device) + 0.6]


def suppressed(device):
    labels = torch.arange(30, device=device) % 2

    def run(boxes, scores, points):
        kept = ops.nms_bev(boxes, scores, labels, [0.2, 0.3], 20)
        inside = ops.points_in_boxes(points, torch.cat([boxes, boxes[:, :2]], 1))
        return kept.index, kept.num_kept, inside.box, inside.count

    return run, [random(30, 5, device=device) + 0.5, random(30, device=device), random(40, 3, device=device)]


def convolved(device):
    coords = torch.nn.functional.pad(torch.cartesian_prod(*[torch.arange(3)] * 3), (1, 0)).int().to(device)

    def run(features, weight):
        book = ops.sparse_rulebook(coords, (3, 3, 3), 1, 3, submanifold=True)
        return with_grads(lambda f, w: ops.sparse_conv(f, w, book), features, weight)

    return run, [random(27, 4, device=device), random(6, 3, 3, 3, 4, device=device)]


CASES = [pooled, voxelized, reduced, deformed, attended, overlapped, suppressed, convolved]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", CASES)
def test_fits_in_a_cuda_graph(device, make):
    """On the CPU: that the case itself is right, for a graph is a repetition."""
    needs_kernel(device)
    run, inputs = make(device)
    inputs = [t.requires_grad_() for t in inputs]
    run(*inputs)
    if device == "cuda":
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            found = run(*inputs)
    with torch.no_grad():
        for tensor in inputs:
            tensor.mul_(0.9)
    if device == "cuda":
        graph.replay()
    else:
        found = run(*inputs)
    found = tree_map(lambda t: t.detach().clone(), found)
    for a, b in zip(tree_leaves(found), tree_leaves(run(*inputs)), strict=True):
        assert torch.equal(a, b) and a.numel()
