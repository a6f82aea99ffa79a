"""Windows of sparse cells, and attention inside them: against loops, dense attention, the twin, and what torch asks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from harness import DEVICES, EMULATED, assert_same_bits, compiled, needs_kernel, opcheck, reads_values, spread
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d import ops
from fusion3d.ops import library, reference

DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
LENGTHS = [1, 5, 0, 8, 17, 24, 33, 64, 65, 100, 144, 3, 401]  # both sides of every tile; past one backward task


def make(lengths, heads=2, dim=16, dtype=torch.float32, device="cpu", seed=0):
    """Random q, k, v, and the windows' borders."""
    random = torch.Generator().manual_seed(seed)
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    qkv = torch.randn(3, int(cu[-1]), heads, dim, generator=random, dtype=torch.float64).to(device, dtype)
    return [t.clone().requires_grad_() for t in qkv], cu.to(device)


def with_grads(function, tensors, grad):
    out = function(*tensors)
    return out, *torch.autograd.grad(out, tensors, grad.to(out.device, out.dtype))


def loop(q, k, v, cu, scale=None):
    """Torch's own attention, one window after the other."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    parts = []
    for a, b in pairwise(cu.tolist()):
        weight = torch.einsum("ihd,jhd->hij", q[a:b], k[a:b]).mul(scale).softmax(2)
        parts.append(torch.einsum("hij,jhd->ihd", weight, v[a:b]))
    return torch.cat(parts)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [(8, 16), (4, 32), (2, 64), (1, 1), (3, 7), (2, 20), (1, 100), (1, 24)])
def test_kernel_equals_a_loop_over_windows(device, dtype, tolerance, heads, dim):
    needs_kernel(device)
    tensors, cu = make(LENGTHS, heads, dim, dtype, device)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    found = with_grads(lambda q, k, v: ops.window_attention(q, k, v, cu), tensors, grad)
    for wanted in (
        with_grads(lambda q, k, v: loop(q, k, v, cu), exact, grad),
        with_grads(lambda q, k, v: reference.window_attention(q, k, v, cu, None, dim**-0.5)[0], exact, grad),
    ):
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 70), max_size=6), st.integers(1, 3), st.integers(1, 40), st.floats(0, 3))
def test_any_windows(lengths, heads, dim, scale):
    tensors, cu = make(lengths, heads, dim)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    found = with_grads(lambda q, k, v: ops.window_attention(q, k, v, cu, None, scale), tensors, tensors[0].detach())
    wanted = with_grads(
        lambda q, k, v: reference.window_attention(q, k, v, cu, None, scale)[0], exact, exact[0].detach()
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * dim)


@pytest.mark.parametrize("device", DEVICES)
def test_one_long_window_is_plain_attention(device):
    tensors, cu = make([3000], 1, 16, torch.float32, device)
    out = ops.window_attention(*tensors, cu)
    dense = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(0, 1) for t in tensors)).transpose(0, 1)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    grads, wanted = (torch.autograd.grad(t.square().sum(), tensors) for t in (out, dense))
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_alone_in_its_window_a_row_keeps_its_value(device):
    (q, k, v), cu = make([1] * 20, device=device)
    torch.testing.assert_close(ops.window_attention(q, k, v, cu), v, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_read_where_they_lie(device, dtype):
    (q, k, v), cu = make([30, 0, 1, 70], 2, 16, dtype, device)
    random = torch.Generator().manual_seed(2)
    order = torch.randperm(150, generator=random)[:101].int().to(device)  # 49 rows lie in no window
    rows = [torch.randn(150, 2, 16, generator=random).to(device, dtype) for _ in range(3)]
    for tensor, packed in zip(rows, (q, k, v), strict=True):
        tensor[order.long()] = packed.detach()
    rows = [t.requires_grad_() for t in rows]
    out, packed = ops.window_attention(*rows, cu, order), ops.window_attention(q, k, v, cu)
    outside = torch.ones(150, dtype=torch.bool, device=device)
    outside[order.long()] = False
    assert torch.equal(out[order.long()], packed) and not out[outside].any()
    found = torch.autograd.grad(out.float().square().sum(), rows)
    for grad, wanted in zip(found, torch.autograd.grad(packed.float().square().sum(), (q, k, v)), strict=True):
        assert torch.equal(grad[order.long()], wanted) and not grad[outside].any()


@pytest.mark.parametrize("device", DEVICES)
def test_slices_of_a_projection_need_no_copy(device):
    (q, k, v), cu = make([30, 7, 70], device=device)
    qkv = torch.stack([q, k, v], 1).detach().requires_grad_()
    out = ops.window_attention(*qkv.unbind(1), cu)
    assert torch.equal(out, ops.window_attention(q, k, v, cu))
    turned = [t.detach().transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert not turned[0].is_contiguous() and torch.equal(ops.window_attention(*turned, cu), out)
    (grad,) = torch.autograd.grad(out.sum(), qkv)
    wanted = torch.autograd.grad(ops.window_attention(q, k, v, cu).sum(), (q, k, v))
    assert torch.equal(grad, torch.stack(wanted, 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing(device, lengths):
    tensors, cu = make(lengths, device=device)
    out = ops.window_attention(*tensors, cu)
    out.sum().backward()
    assert out.shape == (0, 2, 16) and tensors[0].grad.shape == (0, 2, 16)
    rows = torch.ones(3, 2, 16, device=device)
    assert not ops.window_attention(rows, rows, rows, cu, torch.empty(0, dtype=torch.int32, device=device)).any()


@pytest.mark.parametrize("device", DEVICES)
def test_far_scores_do_not_overflow_and_nan_is_not_hidden(device):
    (q, k, v), cu = make([70, 40], device=device)
    with torch.no_grad():
        q.mul_(1000)
    out = ops.window_attention(q, k, v, cu)
    torch.testing.assert_close(out.double(), loop(q.double(), k.double(), v.double(), cu), rtol=1e-2, atol=1e-2)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), (q, k, v)))
    with torch.no_grad():
        k[3, 0, 0] = float("nan")
    out = ops.window_attention(q, k, v, cu)
    assert out[:70, 0].isnan().all() and out[:70, 1].isfinite().all() and out[70:].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device):
    tensors, cu = make([3, 1, 9], 2, 3, torch.float64, device)
    order = torch.tensor([12, 1, 2, 0, 4, 5, 3, 7, 8, 6, 10, 11, 9], dtype=torch.int32, device=device)
    assert torch.autograd.gradcheck(lambda q, k, v: ops.window_attention(q, k, v, cu), tensors)
    assert torch.autograd.gradcheck(lambda q, k, v: ops.window_attention(q, k, v, cu, order, 1.3), tensors)


@compiled
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(device, dtype):
    (q, k, v), cu = make([30, 7, 70], dtype=dtype, device=device)
    order = torch.arange(106, -1, -1, dtype=torch.int32, device=device)
    for rows in (None, order):
        opcheck(torch.ops.fusion3d.window_attention, q, k, v, cu, rows, 0.25)
        plain = [t.detach() for t in (q, k, v)]
        out, lse = torch.ops.fusion3d.window_attention(*plain, cu, rows, 0.25)
        grad = torch.ones_like(out)
        opcheck(torch.ops.fusion3d.window_attention_backward, grad, *plain, out, lse, cu, rows, 0.25)


@compiled
def test_the_saved_sums_are_those_of_the_twin():
    (q, k, v), cu = make(LENGTHS)
    _, lse = torch.ops.fusion3d.window_attention(q, k, v, cu, None, 0.25)
    torch.testing.assert_close(lse, reference.window_attention(q, k, v, cu, None, 0.25)[1], rtol=1e-5, atol=1e-5)
    assert not lse.requires_grad


@compiled
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_into_one_graph(backend):
    tensors, cu = make([30, 7, 70])
    traced = torch.compile(lambda q, k, v: ops.window_attention(q, k, v, cu), backend=backend, fullgraph=True)
    grad = torch.ones_like(tensors[0])
    for a, b in zip(
        with_grads(traced, tensors, grad),
        with_grads(lambda q, k, v: ops.window_attention(q, k, v, cu), tensors, grad),
        strict=True,
    ):
        assert torch.equal(a, b)


@compiled
def test_exports_with_any_number_of_rows():
    class Attention(torch.nn.Module):
        def forward(self, q, k, v, cu, order):
            return ops.window_attention(q, k, v, cu, order)

    (q, k, v), cu = make([30, 7, 70])
    order = torch.arange(107, dtype=torch.int32)
    rows, windows = torch.export.Dim("rows"), torch.export.Dim("windows")
    shapes = ({0: rows}, {0: rows}, {0: rows}, {0: windows}, {0: torch.export.Dim("listed")})
    program = torch.export.export(Attention(), (q.detach(), k.detach(), v.detach(), cu, order), dynamic_shapes=shapes)
    (q, k, v), cu = make([11, 20])
    order = torch.arange(31, dtype=torch.int32)
    assert torch.equal(program.module()(q, k, v, cu, order), ops.window_attention(q, k, v, cu, order))


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_for_any_run_and_thread_count(device):
    tensors, cu = make(LENGTHS * 2, 3, device=device)
    assert_same_bits(
        lambda: with_grads(lambda q, k, v: ops.window_attention(q, k, v, cu), tensors, tensors[1].detach())
    )


@compiled
def test_rows_more_than_four_gigabytes_apart():
    (q, k, v), cu = make([3, 2])
    far = [spread(t.detach()) for t in (q, k, v)]
    assert torch.equal(ops.window_attention(*far, cu), ops.window_attention(q, k, v, cu))


def test_autocast_casts_all():
    (q, k, v), cu = make([30, 7, 70])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.window_attention(q, k.half(), v, cu)
        exact = ops.window_attention(q.double(), k.double(), v.double(), cu)
    assert out.dtype == torch.bfloat16 and exact.dtype == torch.float64  # which torch's own autocast leaves alone
    torch.testing.assert_close(out.float(), ops.window_attention(q, k, v, cu), rtol=3e-2, atol=3e-2)
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_without_library_the_twin_runs_with_one_warning(monkeypatch):
    (q, k, v), cu = make([30, 7, 70])
    want = ops.window_attention(q, k, v, cu)
    monkeypatch.setattr(library, "DEVICES", frozenset())
    monkeypatch.setattr(library, "_warned", set())
    with pytest.warns(RuntimeWarning, match="pure-torch") as caught:
        outs = [ops.window_attention(q, k, v, cu) for _ in range(3)]
    assert len(caught) == 1
    torch.testing.assert_close(outs[0], want, rtol=1e-5, atol=1e-5)


def test_wrong_input_says_what_was_expected():
    (q, k, v), cu = make([3, 4])
    for args, message in [
        ((q[0], k, v, cu), r"q has shape \[2, 16\]; expected \[N, H, D\]"),
        ((q, k[:5], v, cu), r"k has shape \[5, 2, 16\]; expected that of q, \[7, 2, 16\]"),
        ((q, k, v[..., :8], cu), r"v has shape .*expected that of q"),
        ((q.long(), k, v, cu), r"q is torch.int64; expected"),
        ((q, k.double(), v, cu), r"expected one dtype"),
        ((q, k, v, cu.long()), r"cu_seqlens is torch.int64; expected torch.int32"),
        ((q, k, v, cu[:0]), r"cu_seqlens is empty"),
        ((q, k, v, cu, cu.long()), r"order is torch.int64"),
        ((q, k, v, cu.to("meta")), r"expected one"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.window_attention(*args)


WRONG = [  # borders of windows, and those that remain of them
    ([0, 3, 6], [0, 3, 6]),
    ([0, 3, 99], [0, 3, 70]),
    ([2, 70], [2, 70]),
    ([65, 70], [65, 70]),
    ([-5, 3, 70], [0, 3, 70]),
    ([0, 3, -1], [0, 3]),
    ([80, 90], [70, 70]),
    ([0], [0]),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "dim"), [(torch.float32, 16), (torch.bfloat16, 16), (torch.bfloat16, 200)])
def test_wrong_lists_on_cuda_touch_nothing_foreign(device, dtype, dim):
    """What lies beyond the rows is left out, and rows that no window lists are 0, however many are listed."""
    needs_kernel(device)
    if device == "cpu" and not EMULATED:
        pytest.skip("errors on the CPU")
    rows, _ = make([70], 2, dim, dtype, device)
    grad = torch.randn(rows[0].shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)

    def run(cu, order=None):
        lists = [t if t is None else torch.tensor(t, dtype=torch.int32, device=device) for t in (cu, order)]
        return with_grads(lambda q, k, v: ops.window_attention(q, k, v, *lists), rows, grad)

    for wrong, right in WRONG:
        listed = list(range(right[0], right[-1]))
        for a, b in zip(run(wrong), run([i - right[0] for i in right], listed), strict=True):
            assert torch.equal(a, b)
    assert all(t.isfinite().all() for t in run([0, 50, 20, 70]))
    missing = [1 << 30, 70, -1, -(1 << 31)]  # read as zeros, never written
    for found in run([0, 9], [0, 1, 2, *missing, 3, 4]):
        assert found[:5].isfinite().all() and found[:5].any() and not found[5:].any()


@compiled
@reads_values
def test_wrong_lists_are_errors_not_reads_of_foreign_memory():
    (q, k, v), _ = make([3, 4])
    for cu in ([0, 3, 6], [0, 3, 8], [1, 7], [0, 5, 3, 7], [0]):
        with pytest.raises(RuntimeError, match="must ascend from 0"):
            ops.window_attention(q, k, v, torch.tensor(cu, dtype=torch.int32))
    for order in ([0, 7], [0, -1]):
        with pytest.raises(RuntimeError, match="must name rows of q"):
            ops.window_attention(q, k, v, torch.tensor([0, 2]).int(), torch.tensor(order).int())
    with pytest.raises(RuntimeError, match="names row 3 twice"):  # who would write it?
        ops.window_attention(q, k, v, torch.tensor([0, 7]).int(), torch.tensor([0, 1, 2, 3, 4, 3, 6]).int())
