"""Tensors of more than 2^32 bytes, of which only rows at the far end are read: 32-bit offsets would end elsewhere."""

from __future__ import annotations

import pytest
import torch
from harness import compiled, untouched

from fusion3d import ops

WIDTH = 1 << 14  # numbers of a row
FAR = (1 << 17) + 9  # rows of float16: 2^32 bytes and some
PLACES = [FAR - 1, FAR - 5, 3]

pytestmark = compiled


def far_rows(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A large tensor, seen as ``shape``, and those of its rows that hold something, in the order of PLACES."""
    rows = torch.randn(len(PLACES), WIDTH, generator=torch.Generator().manual_seed(0)).half()
    large = untouched(FAR, WIDTH, dtype=torch.float16)
    large[PLACES] = rows
    return large.view(*shape, WIDTH), rows


def test_bev_pool():
    feat, rows = far_rows(1, 1, FAR)
    cell = torch.full((1, 1, 1, FAR), -1)
    cell[..., PLACES] = torch.tensor([0, 1, 1])
    out = ops.bev_pool(torch.ones(1, 1, 1, FAR).half(), feat.permute(0, 3, 1, 2), ops.bev_pool_plan(cell, 2))
    assert torch.equal(out, torch.stack([rows[0], (rows[1].float() + rows[2].float()).half()]))


def test_bev_pool_backward():
    grad, rows = far_rows(FAR)
    depth = torch.full((1, 1, 1, 3), 0.5).half()
    cell = torch.tensor(PLACES, dtype=torch.int32).view(1, 1, 1, 3)
    feat = torch.ones(1, 1, 3, WIDTH).half()
    grad_depth, grad_feat = torch.ops.fusion3d.bev_pool_backward(grad, depth, feat, cell)
    assert torch.equal(grad_feat.view(3, WIDTH), rows / 2)
    torch.testing.assert_close(grad_depth.view(3).float(), rows.float().sum(1), rtol=2e-3, atol=0.1)


@pytest.mark.slow  # the kernel makes the whole map float32 first: 8 GiB are written
def test_ms_deform_attn_of_a_far_level():
    value, rows = far_rows(1, FAR, 1)
    levels = [(512, 256), (3, 3)]  # of which the second begins at 2^32 bytes
    points = torch.tensor([[2.5 / 3, 2.5 / 3], [1.5 / 3, 1.5 / 3], [3.5 / 256, 0.5 / 512]])
    offsets, logits = torch.zeros(3, 1, 2, 1, 2), torch.full((3, 1, 2, 1), -200.0)
    for query, level in enumerate((1, 1, 0)):
        offsets[query, 0, 1 - level] = 1e6  # outside
        logits[query, 0, level] = 0
    out = ops.ms_deform_attn(value, levels, points, offsets, logits, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(out, rows, rtol=1e-3, atol=1e-3)


def test_sparse_conv():
    features, rows = far_rows(FAR)
    weight = torch.randn(2, 1, WIDTH, generator=torch.Generator().manual_seed(1)).half() / 128
    table = torch.tensor([PLACES], dtype=torch.int32)
    transposed = torch.full((1, FAR), -1, dtype=torch.int32)
    transposed[0, PLACES] = torch.arange(3).int()
    out = torch.ops.fusion3d.sparse_conv(features, weight, table, transposed)
    torch.testing.assert_close(out.double(), rows.double() @ weight[:, 0].double().T, rtol=2e-3, atol=2e-3)
    grad = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).half()
    found = torch.ops.fusion3d.sparse_weight_grad(grad, features, table)
    assert torch.equal(found[:, 0], torch.stack([rows[0], (rows[1].float() + rows[2].float()).half()]))


def test_voxel_gather():
    values, rows = far_rows(FAR)
    voxel, rank = torch.full((2, FAR), -1, dtype=torch.int32)
    voxel[PLACES], rank[PLACES] = torch.tensor([0, 1, 1]).int(), torch.tensor([0, 0, 1]).int()
    out = torch.ops.fusion3d.voxel_gather(values, voxel, rank, 2, 2)
    assert torch.equal(out[0, 0], rows[0]) and torch.equal(out[1], rows[1:]) and not out[0, 1].any()
