"""Grouping of rows by key and their reduction: kernels against twins, plain loops, and what torch asks of an op."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from harness import DEVICES, assert_same_bits, assert_twin_warns_once, compiled, opcheck
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d import ops
from fusion3d.ops import reference

REDUCTIONS = ["sum", "mean", "max"]
FIELDS = [field.name for field in dataclasses.fields(ops.SegmentPlan)]


def random_keys(rows, num_keys, dtype=torch.int64, none=0.2, seed=0):
    random = torch.Generator().manual_seed(seed)
    keys = torch.randint(0, max(num_keys, 1), (rows,), generator=random)
    return torch.where(torch.rand(rows, generator=random) < (1 if num_keys == 0 else none), -1, keys).to(dtype)


def plan_by_loops(keys, num_keys, keep_empty):
    groups = {key: [] for key in (range(num_keys) if keep_empty else sorted({k for k in keys.tolist() if k >= 0}))}
    for row, key in enumerate(keys.tolist()):
        if key >= 0:
            groups[key].append(row)
    order = [row for rows in groups.values() for row in rows]
    if keep_empty:
        order += [row for row, key in enumerate(keys.tolist()) if key < 0]
    ptr = [0, *np.cumsum([len(rows) for rows in groups.values()], dtype=int).tolist()]
    number = {key: i for i, key in enumerate(groups)}
    return order, ptr, list(groups), [number.get(key, -1) for key in keys.tolist()]


@pytest.mark.parametrize("keep_empty", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(0, 40), st.sampled_from([0, 0.3, 1]), st.integers(0, 99))
def test_plan_equals_loops(keep_empty, dtype, rows, num_keys, none, seed):
    keys = random_keys(rows, num_keys, dtype, none, seed)
    plan = ops.segment_plan(keys, num_keys, keep_empty)
    assert tuple(getattr(plan, name).tolist() for name in FIELDS) == plan_by_loops(keys, num_keys, keep_empty)
    assert plan.key.dtype == dtype and {plan.order.dtype, plan.ptr.dtype, plan.segment.dtype} == {torch.int32}
    twin = reference.segment_plan(keys, num_keys, keep_empty)
    assert all(torch.equal(getattr(plan, name), want) for name, want in zip(FIELDS, twin, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keep_empty", [False, True])
@pytest.mark.parametrize("num_keys", [1, 300, 70_000, 5_000_000])
def test_plan_of_many_rows(device, keep_empty, num_keys):
    keys = random_keys(100_003, num_keys).to(device)
    plan = ops.segment_plan(keys, num_keys, keep_empty)
    twin = reference.segment_plan(keys, num_keys, keep_empty)
    assert all(torch.equal(getattr(plan, name), want) for name, want in zip(FIELDS, twin, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_keys", [2**31 - 1, 2**31 + 5, 2**32, 2**45, 2**62])
def test_plan_of_large_keys(device, num_keys):
    keys = torch.randint(0, num_keys, (20_000,), generator=torch.Generator().manual_seed(1)).to(device)
    keys[::3] = keys[0]
    keys[5] = num_keys - 1
    keys[6] = -1
    plan = ops.segment_plan(keys, num_keys)
    twin = reference.segment_plan(keys, num_keys, False)
    assert all(torch.equal(getattr(plan, name), want) for name, want in zip(FIELDS, twin, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keep_empty", [False, True])
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("channels", [0, 1, 3, 8, 29, 64, 133])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
)
def test_reduce_equals_twin(device, keep_empty, reduce, channels, dtype, tolerance):
    plan = ops.segment_plan(random_keys(400, 60).to(device), 60, keep_empty)
    random = torch.Generator().manual_seed(2)
    values = torch.randn(400, channels, generator=random).to(device, dtype).requires_grad_()
    exact = values.detach().double().requires_grad_()
    out = ops.segment_reduce(values, plan, reduce)
    want = reference.segment_reduce(exact, plan.order, plan.ptr, reduce)
    grad = torch.randn(want.shape, generator=random).to(device, dtype)
    out.backward(grad)
    want.backward(grad.double())
    assert out.dtype == values.grad.dtype == dtype and out.shape == (len(plan), channels)
    torch.testing.assert_close(out.double(), want, rtol=tolerance, atol=tolerance * 5)
    torch.testing.assert_close(values.grad.double(), exact.grad, rtol=tolerance, atol=tolerance * 5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 50), st.integers(0, 20), st.integers(0, 40), st.sampled_from(REDUCTIONS), st.integers(0, 99))
def test_reduce_equals_loops(rows, num_keys, channels, reduce, seed):
    keys = random_keys(rows, num_keys, seed=seed)
    values = torch.randint(-3, 4, (rows, channels), generator=torch.Generator().manual_seed(seed)).float()
    values.requires_grad_()
    out = ops.segment_reduce(values, ops.segment_plan(keys, num_keys, keep_empty=True), reduce)
    out.backward(1 + torch.arange(out.numel()).reshape(out.shape).float())
    grad = torch.zeros_like(values)
    for key in range(num_keys):
        mine = (keys == key).nonzero()[:, 0]
        if not len(mine):
            assert not out[key].any()
            continue
        got = 1 + key * channels + torch.arange(channels).float()
        found = values.detach()[mine].numpy()
        if reduce == "max":
            np.testing.assert_array_equal(out[key].detach(), found.max(0))
            grad[mine[found.argmax(0)], torch.arange(channels)] = got  # numpy too takes the first of equals
        else:
            count = len(mine) if reduce == "mean" else 1
            torch.testing.assert_close(out[key], torch.from_numpy(found.sum(0)) / count)
            grad[mine] = got / count
    torch.testing.assert_close(values.grad, grad)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernel", [True, False])
def test_largest_of_special_numbers(device, kernel):
    inf, nan = float("inf"), float("nan")
    rows = [-inf, -inf, 1, nan, 2, nan, 5, 5, -inf, 3, 0, -0.0]
    values = torch.tensor(rows, device=device)[:, None].repeat(1, 19).requires_grad_()
    plan = ops.segment_plan(torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 4, 4], device=device), 5)
    reduce = ops.segment_reduce if kernel else lambda v, p, how: reference.segment_reduce(v, p.order, p.ptr, how)
    out = reduce(values, plan, "max")
    torch.testing.assert_close(out[:, 0], torch.tensor([-inf, nan, 5, 3, 0], device=device), equal_nan=True)
    out.backward(torch.ones_like(out))
    assert (values.grad == torch.tensor([1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1, 0], device=device)[:, None]).all()


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("keep_empty", [False, True])
def test_gradcheck(reduce, keep_empty):
    plan = ops.segment_plan(random_keys(12, 6), 6, keep_empty)
    values = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: ops.segment_reduce(v, plan, reduce), (values,))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradient_of_a_mean_is_rounded_once(device, dtype):
    """A quotient, as in the mean itself, not a product with what was rounded before."""
    values = torch.zeros(49, 19, device=device, dtype=dtype, requires_grad=True)
    plan = ops.segment_plan(torch.zeros(49, dtype=torch.int64, device=device), 1)
    grad = torch.randn(1, 19, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    ops.segment_reduce(values, plan, "mean").backward(grad)
    exact = torch.promote_types(dtype, torch.float32)
    assert torch.equal(values.grad, (grad.to(exact) / 49).to(dtype).expand(49, 19))


@compiled
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keep_empty", [False, True])
def test_opcheck(device, keep_empty):
    keys = random_keys(30, 9).to(device)
    opcheck(torch.ops.fusion3d.segment_plan, keys, 9, keep_empty)
    plan = ops.segment_plan(keys, 9, keep_empty)
    for reduce in REDUCTIONS:
        values = torch.randn(30, 5, device=device, requires_grad=True)
        args = (values, plan.order, plan.ptr, plan.segment, reduce)
        opcheck(torch.ops.fusion3d.segment_reduce, *args)
        out, arg = torch.ops.fusion3d.segment_reduce(*args)
        args = (out.detach(), plan.ptr, plan.segment, arg, reduce)
        opcheck(torch.ops.fusion3d.segment_reduce_backward, *args)


@compiled
@pytest.mark.parametrize("keep_empty", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_into_one_graph(backend, keep_empty):
    def means(keys, values):
        return ops.segment_reduce(values, ops.segment_plan(keys, 9, keep_empty), "mean")

    keys, values = random_keys(30, 9), torch.randn(30, 5)
    traced = torch.compile(means, backend=backend, fullgraph=True)
    assert torch.equal(traced(keys, values), means(keys, values))


@compiled
@pytest.mark.parametrize("keep_empty", [False, True])
def test_exports(keep_empty):
    class Means(torch.nn.Module):
        def forward(self, keys, values):
            return ops.segment_reduce(values, ops.segment_plan(keys, 9, keep_empty), "max")

    args = (random_keys(30, 9), torch.randn(30, 5))
    exported = torch.export.export(Means(), args)
    assert torch.equal(exported.module()(*args), Means()(*args))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keep_empty", [False, True])
def test_same_bits_for_any_run_and_thread_count(device, keep_empty):
    keys = random_keys(50_000, 3000).to(device)
    start = torch.randn(50_000, 21, generator=torch.Generator().manual_seed(0)).to(device)

    def bits():
        plan = ops.segment_plan(keys, 3000, keep_empty)
        result = [getattr(plan, name) for name in FIELDS]
        for reduce in REDUCTIONS:
            values = start.clone().requires_grad_()
            out = ops.segment_reduce(values, plan, reduce)
            out.backward(out.detach())
            result += [out.detach(), values.grad]
        return result

    assert_same_bits(bits)


def test_strided_input():
    keys, values = random_keys(60, 9), torch.randn(5, 60, 2)[..., 0].T
    plan = ops.segment_plan(torch.stack([keys, keys], 1)[:, 0], 9)
    assert torch.equal(plan.order, ops.segment_plan(keys, 9).order)
    assert torch.equal(ops.segment_reduce(values, plan, "sum"), ops.segment_reduce(values.contiguous(), plan, "sum"))


@pytest.mark.parametrize("keep_empty", [False, True])
def test_sorted_plan_is_for_rows_in_its_order(keep_empty):
    keys, values = random_keys(60, 9), torch.randn(60, 5)
    plan = ops.segment_plan(keys, 9, keep_empty)
    again = plan.sorted()
    rows = values[plan.order]
    assert torch.equal(ops.segment_reduce(rows, again, "sum"), ops.segment_reduce(values, plan, "sum"))
    want = reference.segment_plan(keys[plan.order], 9, keep_empty)
    assert all(torch.equal(getattr(again, name), t) for name, t in zip(FIELDS, want, strict=True))


def test_without_library_the_twin_runs_with_one_warning(monkeypatch):
    keys, values = random_keys(60, 9), torch.randn(60, 4)
    assert_twin_warns_once(monkeypatch, lambda: ops.segment_reduce(values, ops.segment_plan(keys, 9), "mean"))


def test_wrong_input_says_what_was_expected():
    keys, values = torch.tensor([0, 1, -1]), torch.zeros(3, 2)
    plan = ops.segment_plan(keys, 3)
    for args, message in [
        ((keys[None], 3), r"keys has shape \[1, 3\]; expected \[P\]"),
        ((keys.float(), 3), "keys is torch.float32; expected torch.int32 or torch.int64"),
        ((keys, 1), r"values in \[-1, 1\]; expected -1 \(none\) or less than 1"),
        ((keys - 1, 3), r"values in \[-2, 0\]"),
        ((keys, -1), "num_keys -1"),
        ((keys.int(), 2**31), "num_keys"),
        ((keys, 2**31, True), "num_keys"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.segment_plan(*args)
    for args, message in [
        ((values[0], plan, "sum"), r"values has shape \[2\]; expected \[P, C\]"),
        ((values.long(), plan, "sum"), "values is torch.int64"),
        ((values[:2], plan, "sum"), r"values has shape \[2, 2\]; expected the 3 rows"),
        ((values, plan, "min"), "reduce: found 'min'"),
        ((values.to("meta"), plan, "sum"), "values is on meta, plan on cpu"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.segment_reduce(*args)


@compiled
def test_the_operations_themselves_reject_what_they_cannot_read():
    plan = ops.segment_plan(torch.tensor([0, 1, -1]), 3)
    op, values = torch.ops.fusion3d.segment_reduce, torch.zeros(3, 2)
    rows = (plan.order, plan.ptr, plan.segment)
    with pytest.raises(RuntimeError, match="contiguous"):
        op(torch.zeros(2, 3).T, *rows, "sum")
    with pytest.raises(RuntimeError, match="wrong dtype"):
        op(values, plan.order.long(), *rows[1:], "sum")
    with pytest.raises(RuntimeError, match="rows of the plan"):
        op(values[:2], *rows, "sum")
    with pytest.raises(RuntimeError, match="sum, mean or max"):
        op(values, *rows, "min")
    # Keys out of range, which only the face refuses, belong to no segment.
    found = torch.ops.fusion3d.segment_plan(torch.tensor([-7, 2, 3, 99, 2**40]), 3, False)
    assert [t.tolist() for t in found] == [[1], [0, 1], [2], [-1, 0, -1, -1, -1]]


@compiled
def test_offsets_of_64_bits():
    rows, channels = 70_000, 16_000  # 2.2 GB in float16, of which only the row that is touched takes memory
    values = torch.empty(rows, channels, dtype=torch.float16)
    values[-1] = 3
    keys = torch.full((rows,), -1)
    keys[-1] = 0
    assert (ops.segment_reduce(values, ops.segment_plan(keys, 1), "max") == 3).all()
