"""Deformable attention: the compiled kernel against its twin and plain loops, and what torch asks of an op."""

from __future__ import annotations

import math

import pytest
import torch
from harness import DEVICES, assert_same_bits, assert_twin_warns_once, compiled, exported, needs_kernel, opcheck
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d import ops
from fusion3d.ops import reference

SHAPES = [(6, 9), (3, 4)]


def make(maps=2, queries=11, heads=3, channels=19, shapes=SHAPES, points=4, anchors=1, own=False, dtype=torch.float32,
         device="cpu", seed=0, reach=1.5):  # fmt: skip
    """Random value, shapes, reference points [N, Q, R, A, 2], offsets, logits; some points are outside."""
    random = torch.Generator().manual_seed(seed)
    levels = len(shapes)

    def normal(*size):
        return torch.randn(size, generator=random, dtype=torch.float64)

    value = normal(maps, sum(rows * cols for rows, cols in shapes), heads, channels)
    refs = (
        torch.rand(maps, queries, levels if own else 1, anchors, 2, generator=random, dtype=torch.float64) * 1.2 - 0.1
    )
    offsets = normal(maps, queries, heads, levels, points, 2) * reach
    logits = normal(maps, queries, heads, levels, points) * 2
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = [value.to(dtype), refs.to(exact), offsets.to(dtype), logits.to(dtype)]
    value, *rest = [t.to(device).requires_grad_() for t in tensors]
    return value, shapes, *rest


def leaves(args):
    return [arg for arg in args if isinstance(arg, torch.Tensor) and arg.is_floating_point()]


def exactly(args):
    """The same, in float64, as new leaves."""
    same = [a.detach().double().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    return same


def twin(value, shapes, refs, offsets, logits):
    flat = [size for shape in shapes for size in shape]
    out = reference.ms_deform_attn(value, flat, refs.flatten(0, 1), offsets.flatten(0, 1), logits.flatten(0, 1), None)
    return out.view(*logits.shape[:2], value.shape[2] * value.shape[3])


def plain_loops(value, shapes, refs, offsets, logits):
    """[N, Q, H, D] by the definition."""
    maps, queries, heads, levels, points = logits.shape
    out = torch.zeros(maps, queries, heads, value.shape[3], dtype=torch.float64)
    starts = [sum(r * c for r, c in shapes[:i]) for i in range(levels)]
    for n, q, h in ((n, q, h) for n in range(maps) for q in range(queries) for h in range(heads)):
        attention = logits[n, q, h].double().flatten().softmax(0).view(levels, points)
        for level, (rows, cols) in enumerate(shapes):
            for p in range(points):
                anchor = refs[n, q, level if refs.shape[2] > 1 else 0, p % refs.shape[3]].double()
                x = anchor[0].item() * cols + offsets[n, q, h, level, p, 0].item() - 0.5
                y = anchor[1].item() * rows + offsets[n, q, h, level, p, 1].item() - 0.5
                for row, col in ((math.floor(y) + i, math.floor(x) + j) for i in (0, 1) for j in (0, 1)):
                    if 0 <= row < rows and 0 <= col < cols:
                        weight = (1 - abs(x - col)) * (1 - abs(y - row)) * attention[level, p]
                        out[n, q, h] += weight * value[n, starts[level] + row * cols + col, h].double()
    return out


@pytest.mark.parametrize(("anchors", "own"), [(1, False), (2, False), (4, True)])
def test_plain_loops(anchors, own):
    args = make(queries=5, anchors=anchors, own=own)
    with torch.no_grad():
        want = plain_loops(*args).flatten(2)
        torch.testing.assert_close(ops.ms_deform_attn(*args).double(), want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(twin(*args).double(), want, rtol=1e-5, atol=1e-5)


def test_analytic_one_point():
    # Four pixels 1 2 / 3 4; the middle is their mean, the centre of a pixel its value, half a pixel outside half of it.
    value = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    refs = torch.tensor([[0.5, 0.5], [0.25, 0.25], [1.0, 0.25], [0.75, 0.75], [5.0, 0.5]])
    zeros = torch.zeros(5, 1, 1, 1, 2)
    out = ops.ms_deform_attn(value, [(2, 2)], refs, zeros, zeros[..., 0])
    assert out.flatten().tolist() == [2.5, 1, 1, 4, 0]
    out = ops.ms_deform_attn(value, [(2, 2)], refs[1:2], torch.ones(1, 1, 1, 1, 2), zeros[:1, ..., 0])
    assert out.item() == 4  # an offset of 1 is a pixel


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-11), (torch.float32, 2e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)],
)
@pytest.mark.parametrize("channels", [1, 8, 16, 19, 32, 72])
def test_kernel_equals_twin(device, dtype, tolerance, channels):
    needs_kernel(device)
    args = make(channels=channels, dtype=dtype, device=device, own=channels % 2 == 0, anchors=2)
    exact = exactly(args)
    out, want = ops.ms_deform_attn(*args), twin(*exact)
    grad = torch.randn(want.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device, dtype)
    out.backward(grad)
    want.backward(grad.double())
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), want, rtol=tolerance, atol=tolerance)
    for found, expected in zip(leaves(args), leaves(exact), strict=True):
        assert found.grad.dtype == found.dtype
        scale = expected.grad.abs().max().item()
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=tolerance, atol=tolerance * scale)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(0, 40), st.integers(1, 3), st.integers(0, 20),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3), st.integers(1, 5), st.booleans(),
)  # fmt: skip
def test_any_shape(maps, queries, heads, channels, shapes, points, own):
    args = make(maps, queries, heads, channels, shapes, points, points, own)
    exact = exactly(args)
    out, want = ops.ms_deform_attn(*args), twin(*exact)
    assert out.shape == (maps, queries, heads * channels)
    out.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-4)
    for found, expected in zip(leaves(args), leaves(exact), strict=True):
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_packed_queries_of_any_order_equal_the_batch(device):
    value, shapes, refs, offsets, logits = make(3, 50, device=device)
    batch = ops.ms_deform_attn(value, shapes, refs, offsets, logits)
    batch.square().sum().backward()
    want = [t.grad for t in (value, refs, offsets, logits)]
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0)).to(device)
    maps = (order // 50).int()
    rows = [t.detach().flatten(0, 1)[order].requires_grad_() for t in (refs, offsets, logits)]
    whole = value.detach().clone().requires_grad_()
    packed = ops.ms_deform_attn(whole, shapes, *rows, map_of_query=maps)
    packed.square().sum().backward()
    assert torch.equal(packed, batch.flatten(0, 1)[order])
    for found, expected in zip(rows, want[1:], strict=True):
        assert torch.equal(found.grad, expected.flatten(0, 1)[order])
    torch.testing.assert_close(whole.grad, want[0], rtol=1e-5, atol=1e-5)
    flat = [size for shape in shapes for size in shape]
    told = reference.ms_deform_attn(whole, flat, *rows, maps)
    torch.testing.assert_close(told.flatten(1), packed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_query_without_map_reads_nothing(device):
    value, shapes, refs, offsets, logits = make(2, 9, device=device)
    rows = [t.detach().flatten(0, 1).requires_grad_() for t in (refs, offsets, logits)]
    maps = torch.tensor([0, -1, 1] * 6, device=device)
    out = ops.ms_deform_attn(value, shapes, *rows, map_of_query=maps)
    out.square().sum().backward()
    assert out[maps >= 0].any(1).sum() > 6 and not out[maps < 0].any()
    assert not any(t.grad[maps < 0].any() for t in rows)


@pytest.mark.parametrize("device", DEVICES)
def test_all_outside_is_zero_and_unreadable_values_do_not_matter(device):
    value, shapes, refs, offsets, logits = make(device=device)
    with torch.no_grad():
        value.fill_(math.nan)
        offsets.fill_(1e30)
        offsets[:, ::2] = math.nan
        offsets[:, ::3] = -math.inf
    out = ops.ms_deform_attn(value, shapes, refs, offsets, logits)
    out.sum().backward()
    assert not out.any() and not value.grad.any() and not offsets.grad.any() and not logits.grad.any()


@pytest.mark.parametrize("device", DEVICES)
def test_masked_logits(device):
    value, shapes, refs, offsets, logits = make(device=device)
    with torch.no_grad():
        logits[..., 1, :] = -math.inf
    masked = ops.ms_deform_attn(value, shapes, refs, offsets, logits)
    alone = ops.ms_deform_attn(value[:, :54], shapes[:1], refs, offsets[:, :, :, :1], logits[:, :, :, :1])
    torch.testing.assert_close(masked, alone, rtol=1e-6, atol=1e-6)
    masked.sum().backward()
    assert not logits.grad[..., 1, :].any() and logits.grad.isfinite().all()
    with torch.no_grad():
        logits.copy_(torch.linspace(-200, 80, 8, device=device).view(2, 4))  # far apart: none overflows
    torch.testing.assert_close(
        ops.ms_deform_attn(value, shapes, refs, offsets, logits),
        twin(value, shapes, refs, offsets, logits),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("own", [False, True])
def test_gradcheck(device, own):
    # Offsets that keep every point at least 0.1 pixels from where the bilinear weights have a kink.
    value, shapes, refs, offsets, logits = make(2, 3, 2, 3, [(4, 5), (2, 3)], 2, 2, own, torch.float64, device)
    with torch.no_grad():
        size = torch.tensor([[5.0, 4.0], [3.0, 2.0]], dtype=torch.float64, device=device)[:, None]
        at = refs[:, :, None].expand(-1, -1, -1, 2, -1, -1) * size + offsets - 0.5
        offsets += at.floor() + at.frac().abs().clamp(0.1, 0.9) - at
    function = lambda v, r, o, w: ops.ms_deform_attn(v, shapes, r, o, w)  # noqa: E731
    assert torch.autograd.gradcheck(function, (value, refs, offsets, logits), eps=1e-6)


@compiled
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    value, shapes, refs, offsets, logits = make(device=device)
    flat = [size for shape in shapes for size in shape]
    rows = [t.detach().flatten(0, 1).requires_grad_() for t in (refs, offsets, logits)]
    maps = torch.arange(22, dtype=torch.int32, device=device) % 2
    for which in (maps, None):
        opcheck(torch.ops.fusion3d.ms_deform_attn, value, flat, *rows, which)
        plain = [t.detach() for t in rows]
        grad = torch.ones(22, 3, 19, device=device)
        args = (grad, value.detach(), flat, *plain, which)
        opcheck(torch.ops.fusion3d.ms_deform_attn_backward, *args)


@compiled
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_into_one_graph(backend):
    value, shapes, refs, offsets, logits = make(1, 7)
    maps = torch.zeros(7, dtype=torch.int64)

    def run(v, r, o, w, m):
        return ops.ms_deform_attn(v, shapes, r, o, w, m)

    args = (value, refs[0], offsets[0], logits[0], maps)
    out = torch.compile(run, backend=backend, fullgraph=True)(*args)
    assert torch.equal(out, run(*args))
    out.sum().backward()
    found = value.grad.clone()
    value.grad = None
    run(*args).sum().backward()
    assert torch.equal(found, value.grad)


@compiled
def test_exports():
    value, shapes, refs, offsets, logits = make(1, 7)

    class Module(torch.nn.Module):
        def forward(self, v, r, o, w, m):
            return ops.ms_deform_attn(v, shapes, r, o, w, m)

    args = (
        value.detach(),
        refs[0].detach(),
        offsets[0].detach(),
        logits[0].detach(),
        torch.zeros(7, dtype=torch.int64),
    )
    assert torch.equal(torch.export.export(Module(), args).module()(*args), Module()(*args))


@compiled
def test_exports_packed_for_any_number_of_queries():
    """Cameras see other queries in every frame."""
    value, shapes, refs, offsets, logits = (t.detach() if isinstance(t, torch.Tensor) else t for t in make(2, 7))

    def run(*args):
        value, refs, offsets, logits, maps = args
        return ops.ms_deform_attn(value, shapes, refs, offsets, logits, maps)

    def seen(queries):
        rows = [t.flatten(0, 1)[:queries] for t in (refs, offsets, logits)]
        return value, *rows, torch.arange(queries) % 2

    any_number = {0: torch.export.Dim("queries")}
    program = exported(run, *seen(11), dynamic_shapes=[None, *[any_number] * 4])
    for queries in (14, 5):
        assert torch.equal(program(*seen(queries)), run(*seen(queries)))


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_for_any_run_and_thread_count(device):
    def bits():
        args = make(2, 900, 2, 16, [(20, 30), (10, 15)], device=device)
        out = ops.ms_deform_attn(*args)
        out.backward(out.detach())
        return [out.detach(), *(t.grad for t in leaves(args))]

    assert_same_bits(bits)


def test_autocast_casts_value_alone():
    args = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.ms_deform_attn(*args)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), ops.ms_deform_attn(*args), rtol=3e-2, atol=3e-2)
    out.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in leaves(args))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.ms_deform_attn(*exactly(args)).dtype == torch.float64


def test_dtypes_may_differ():
    value, shapes, refs, offsets, logits = make()
    half = ops.ms_deform_attn(value, shapes, refs, offsets.bfloat16(), logits.half())
    same = ops.ms_deform_attn(value, shapes, refs, offsets.bfloat16().float(), logits.half().float())
    assert half.dtype == torch.float32 and torch.equal(half, same)


def test_not_contiguous():
    value, shapes, refs, offsets, logits = (t.detach() if isinstance(t, torch.Tensor) else t for t in make())
    spread = [torch.stack([t, t], -1)[..., 0] for t in (value, refs, offsets, logits)]
    assert not any(t.is_contiguous() for t in spread)
    assert torch.equal(
        ops.ms_deform_attn(spread[0], shapes, *spread[1:]), ops.ms_deform_attn(value, shapes, refs, offsets, logits)
    )
    shared = refs[:1, :1, 0, 0].expand(2, 11, 2)  # one point for all queries
    assert ops.ms_deform_attn(value, shapes, shared, offsets, logits).shape == (2, 11, 57)


def test_without_library_the_twin_runs_with_one_warning(monkeypatch):
    args = make()
    assert_twin_warns_once(monkeypatch, lambda: ops.ms_deform_attn(*args), rtol=1e-4, atol=1e-5)


def test_wrong_input_says_what_was_expected():
    value, shapes, refs, offsets, logits = make()
    maps = torch.zeros(11, dtype=torch.int64)
    row = (refs[0], offsets[0], logits[0])
    cases = [
        ((value[0], shapes, refs, offsets, logits), r"value has shape \[66, 3, 19\]; expected \[N, S, H, D\]"),
        ((value, SHAPES[:1], refs, offsets, logits), "1 levels and logits 2"),
        ((value, [(6, 9), (3, 5)], refs, offsets, logits), r"expected \[N, 69, H, D\]"),
        ((value, [(6, 9), (0, 5)], refs, offsets, logits), "above 0"),
        ((value, shapes, refs, offsets[..., :1], logits), r"offsets has shape"),
        ((value, shapes, refs, offsets, logits[..., :3]), r"offsets has shape"),
        ((value, shapes, refs[..., 0], offsets, logits), r"reference_points has shape"),
        ((value, shapes, refs.expand(2, 11, 1, 3, 2), offsets, logits), r"a divisor of 4"),
        ((value, shapes, refs.half(), offsets, logits), r"reference_points is torch.float16"),
        ((value, shapes, refs, offsets.long(), logits), r"offsets is torch.int64"),
        ((value[:1], shapes, refs, offsets, logits), r"expected \[1, Q\]"),
        ((value, shapes, *row), r"map_of_query"),
        ((value, shapes, *row, maps[:5]), r"map_of_query has shape \[5\]"),
        ((value, shapes, *row, maps.float()), r"map_of_query is torch.float32"),
        ((value, shapes, *row, maps + 2), r"expected -1 or less than 2"),
        ((value, shapes, *row, maps - 2), r"expected -1 or less than 2"),
        ((value, shapes, refs, offsets.to("meta"), logits), r"offsets is on meta and value on cpu"),
    ]
    for args, message in cases:
        with pytest.raises(ValueError, match=message):
            ops.ms_deform_attn(*args)


@compiled
def test_the_operation_itself_rejects_what_it_cannot_read():
    value, _, refs, offsets, logits = make(1)
    op = torch.ops.fusion3d.ms_deform_attn
    rows = (refs[0], offsets[0], logits[0])
    with pytest.raises(RuntimeError, match="contiguous"):
        op(value.transpose(1, 2), [6, 9, 3, 4], *rows, None)
    with pytest.raises(RuntimeError, match="rows and columns"):
        op(value, [6, 9], *rows, None)
    with pytest.raises(RuntimeError, match="pixels of all levels"):
        op(value, [6, 9, 3, 5], *rows, None)
    with pytest.raises(RuntimeError, match="less than 2"):
        op(value, [2**20, 2**20, 3, 4], *rows, None)
    with pytest.raises(RuntimeError, match="one entry for each query"):
        op(value, [6, 9, 3, 4], *rows, torch.zeros(4, dtype=torch.int32))
