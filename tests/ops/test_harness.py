"""The checks that all kernels' tests share can fail."""

from __future__ import annotations

import pytest
import torch
from harness import (
    DEVICES,
    assert_same_bits,
    assert_traces,
    assert_twin_warns_once,
    compiled,
    opcheck,
    spread,
    untouched,
)

from fusion3d import ops
from fusion3d.ops import library


def inputs(device="cpu"):
    depth, feat = torch.rand(1, 3, 2, 2, device=device), torch.rand(1, 4, 2, 2, device=device)
    return depth, feat, ops.bev_pool_plan(torch.arange(12, device=device).reshape(1, 3, 2, 2) % 5, 5)


def test_same_bits_sees_a_thread_count_and_a_changing_run():
    assert_same_bits(lambda: {"nan": torch.tensor([float("nan")]), "none": None})
    threads = torch.get_num_threads()
    with pytest.raises(AssertionError, match=r"with 2 threads the results \[1\] differ"):
        assert_same_bits(lambda: (torch.ones(2), torch.tensor(torch.get_num_threads())))
    with pytest.raises(AssertionError, match="with 1 threads"):
        assert_same_bits(lambda: torch.rand(8))
    with pytest.raises(AssertionError, match="no tensor"):
        assert_same_bits(lambda: None)
    assert torch.get_num_threads() == threads


def test_tracing_sees_a_break_of_the_graph():
    depth, feat, plan = inputs()
    assert_traces(lambda d, f: ops.bev_pool(d, f, plan), depth, feat)
    with pytest.raises(Exception, match=r"[Dd]ata-dependent|GuardOnDataDependent"):
        assert_traces(lambda d: d * 2 if d.sum() > 0 else d, depth)


@compiled
def test_the_twin_must_be_used_with_one_warning_and_agree(monkeypatch):
    depth, feat, plan = inputs()
    assert_twin_warns_once(monkeypatch, lambda: ops.bev_pool(depth, feat, plan))
    monkeypatch.undo()
    with pytest.raises(pytest.fail.Exception, match="DID NOT WARN"):
        assert_twin_warns_once(monkeypatch, lambda: depth)
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="not close"):
        assert_twin_warns_once(monkeypatch, lambda: ops.bev_pool(depth, feat, plan) + len(library.DEVICES))


@compiled
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_sees_arguments_that_do_not_fit(device):
    depth, feat, plan = inputs(device)
    rows = feat.permute(0, 2, 3, 1).contiguous()
    lists = (plan.cell, plan.sample, plan.pixel, plan.cell_ptr, plan.order, plan.part)
    opcheck(torch.ops.fusion3d.bev_pool, depth, rows, *lists)
    with pytest.raises(Exception, match=r"contiguous|dtype"):
        opcheck(torch.ops.fusion3d.bev_pool, depth, feat.permute(0, 2, 3, 1), *lists)


def test_far_rows_hold_what_was_written():
    near = torch.randn(5, 3)
    far = spread(near)
    assert torch.equal(far, near) and (far[4].data_ptr() - far[0].data_ptr()) > 1 << 32
    large = untouched(1 << 31, 1, dtype=torch.float16)
    large[-1] = 3
    assert large.is_contiguous() and large[-1].item() == 3
