"""Windows of sparse cells, and attention inside them: against loops, dense attention, the twin, and what torch asks."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d import ops
from fusion3d.ops import library, reference

ROOT = Path(__file__).parents[2]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
LENGTHS = [
    1,
    5,
    0,
    8,
    17,
    24,
    33,
    64,
    65,
    100,
    144,
    3,
    401,
]  # on both sides of every tile, and past one task of the backward
compiled = pytest.mark.skipif("cpu" not in library.DEVICES, reason=f"no compiled kernel: {library.PROBLEM}")


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
    if device not in library.DEVICES:
        pytest.skip(f"no compiled kernel for {device}: {library.PROBLEM or 'compiled without'}")
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
        torch.library.opcheck(torch.ops.fusion3d.window_attention.default, (q, k, v, cu, rows, 0.25))
        plain = [t.detach() for t in (q, k, v)]
        out, lse = torch.ops.fusion3d.window_attention(*plain, cu, rows, 0.25)
        args = (torch.ones_like(out), *plain, out, lse, cu, rows, 0.25)
        torch.library.opcheck(torch.ops.fusion3d.window_attention_backward.default, args)


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
    def bits(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            tensors, cu = make(LENGTHS * 2, 3, device=device)
            return with_grads(lambda q, k, v: ops.window_attention(q, k, v, cu), tensors, tensors[1].detach())
        finally:
            torch.set_num_threads(before)

    first = bits(1)
    for threads in (1, 2, 3, 4):
        assert all(torch.equal(a, b) for a, b in zip(first, bits(threads), strict=True)), threads


def test_autocast_casts_all():
    (q, k, v), cu = make([30, 7, 70])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ops.window_attention(q, k.double(), v, cu)
    assert out.dtype == torch.bfloat16
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


@compiled
def test_wrong_lists_are_errors_not_reads_of_foreign_memory():
    (q, k, v), _ = make([3, 4])
    for cu in ([0, 3, 6], [0, 3, 8], [1, 7], [0, 5, 3, 7], [0]):
        with pytest.raises(RuntimeError, match="must ascend from 0"):
            ops.window_attention(q, k, v, torch.tensor(cu, dtype=torch.int32))
    for order in ([0, 7], [0, -1]):
        with pytest.raises(RuntimeError, match="must name rows of q"):
            ops.window_attention(q, k, v, torch.tensor([0, 2]).int(), torch.tensor(order).int())


# ---- windows


def random_cells(count, batch, grid, seed=0):
    random = torch.Generator().manual_seed(seed)
    sizes = [batch, *grid]
    cell = torch.randperm(int(torch.tensor(sizes).prod()), generator=random)[:count]
    return torch.stack(torch.unravel_index(cell, sizes), 1).int()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((20, 30), (6, 6), None),
        ((20, 30), (6, 5), (3, 2)),
        ((7, 20, 9), (2, 6, 5), (1, 9, 4)),
        ((4, 4), (9, 9), (0, 1)),
    ],
)
def test_partition_is_that_of_plain_loops(device, grid, window, shift):
    coords = random_cells(40, 3, grid)
    coords[5, 0] = -1
    coords[6, 1] = grid[0]
    coords[7, -1] = -1
    windows: dict[tuple[int, ...], list[int]] = {}
    for row, (b, *cell) in enumerate(coords.tolist()):
        if row in (5, 6, 7):
            continue
        moved = zip(cell, window, shift or [0] * len(grid), strict=True)
        windows.setdefault((b, *((c + s % w) // w for c, w, s in moved)), []).append(row)
    found = ops.window_partition(coords.to(device), 3, grid, window, shift)
    order, cu = found.order.tolist(), found.cu_seqlens.tolist()
    assert [order[a:b] for a, b in pairwise(cu)] == [windows[key] for key in sorted(windows)]
    assert len(found) == len(windows) and found.order.dtype == found.cu_seqlens.dtype == torch.int32
    inverse = found.inverse.tolist()
    assert [inverse[row] for row in order] == list(range(37)) and [inverse[r] for r in (5, 6, 7)] == [-1] * 3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(1, 4), st.integers(1, 25), st.booleans(), st.integers(0, 9))
def test_flat_windows_cut_sorted_cells(count, batch, size, x_first, seed):
    grid, window, shift = (8, 10), (3, 4), (1, 2)
    coords = random_cells(count, batch, grid, seed)

    def place(row):
        b, y, x = coords[row].tolist()
        (wy, iy), (wx, ix) = divmod(y + 1, 3), divmod(x + 2, 4)
        return (b, wy, wx, iy, ix) if x_first else (b, wx, wy, ix, iy)

    groups = []
    for b in range(batch):
        rows = sorted((r for r in range(count) if coords[r, 0] == b), key=place)
        groups += [rows[i : i + size] for i in range(0, len(rows), size)]
    found = ops.flat_windows(coords, batch, grid, window, size, shift, x_first)
    order, cu = found.order.tolist(), found.cu_seqlens.tolist()
    assert [order[a:b] for a, b in pairwise(cu)] == groups


def test_attention_in_windows_does_not_see_beyond_them():
    coords = random_cells(200, 2, (24, 24))
    windows = ops.window_partition(coords, 2, (24, 24), (6, 6), (3, 3))
    (q, k, v), _ = make([200])
    out = ops.window_attention(q, k, v, windows.cu_seqlens, windows.order)
    key = torch.cat([coords[:, :1], (coords[:, 1:] + 3) // 6], 1)
    same = (key[:, None] == key[None]).all(2)
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=same).transpose(0, 1)
    torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-5)


def test_wrong_windows_say_what_was_expected():
    coords = random_cells(10, 1, (8, 8))
    for args, message in [
        ((coords[0], 1, (8, 8), (2, 2)), r"expected \[N, C\]"),
        ((coords[:, :2], 1, (8,), (2,)), r"expected \[N, 3\]"),
        ((coords.float(), 1, (8, 8), (2, 2)), r"float32; expected"),
        ((coords, 1, (8, 8, 8), (2, 2)), r"grid is \[8, 8, 8\]; expected 2 whole"),
        ((coords, 1, (8, 8), (2, 0)), r"window is \[2, 0\]; expected .*at least 1"),
        ((coords, 1, (8, 8), (2, 2), (-1, 0)), r"shift is \[-1, 0\]; expected .*at least 0"),
        ((coords, 0, (8, 8), (2, 2)), r"batch_size is 0"),
        ((coords, 1, (2**31, 2**31), (1, 1)), r"less than 2\^62"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.window_partition(*args)
    with pytest.raises(ValueError, match="size is 0"):
        ops.flat_windows(coords, 1, (8, 8), (2, 2), 0)


# ---- what CPU and CUDA kernels share, compiled by itself

SHARED = """
#include "fusion3d/window_attention.h"
#include "exponential.h"
extern "C" void power(const float* x, float* y, long count) {
  for (long i = 0; i < count; i += 8) fusion3d::store(y + i, fusion3d::exp2(fusion3d::load(x + i)));
}
extern "C" void tiles(const int* cu, long windows, long size, long listed, long* out) {
  const long count = fusion3d::window_tile_count(listed, windows, size);
  for (long t = 0; t < count; ++t) {
    const fusion3d::WindowTile tile = fusion3d::window_tile(cu, windows, size, t);
    out[3 * t] = tile.begin, out[3 * t + 1] = tile.end, out[3 * t + 2] = tile.first;
  }
}
extern "C" long tile_count(long listed, long windows, long size) {
  return fusion3d::window_tile_count(listed, windows, size);
}
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    compiler = os.environ.get("CXX", "g++").split()
    if shutil.which(compiler[0]) is None:
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("shared")
    (folder / "shared.cpp").write_text(SHARED)
    include = [f"-I{ROOT / 'csrc' / name}" for name in ("include", "cpu")]
    subprocess.run(
        [*compiler, "-O1", "-std=c++17", "-Wno-psabi", "-shared", "-fPIC", *include, "shared.cpp", "-o", "shared.so"],
        cwd=folder, check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(folder / "shared.so"))


def test_power_of_two_is_within_a_unit_or_so_in_the_last_place(shared):
    x = torch.cat([torch.linspace(-126, 127, 1 << 20), torch.linspace(-1, 1, 1 << 18), torch.arange(-126.0, 122)])
    y = torch.empty_like(x)
    shared.power(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_long(len(x)))
    exact = torch.exp2(x.double())
    unit = torch.nextafter(exact.float(), torch.tensor(torch.inf)).double() - exact.float().double()
    assert ((y.double() - exact).abs() / unit).max() <= 1.25
    whole = x == x.round()
    assert torch.equal(y[whole], torch.exp2(x[whole].double()).float())
    x = torch.tensor([-127.0, -1e30, -torch.inf, torch.nan, 0.0, -0.0, 1.0, -126.0])
    y = torch.empty_like(x)
    shared.power(ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_long(8))
    assert y[:3].tolist() == [2.0**-126] * 3 and y[3].isnan() and y[4:].tolist() == [1, 1, 2, 2.0**-126]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 200), max_size=30), size=st.sampled_from([1, 32, 64, 96]))
def test_tiles_cover_every_place_once(shared, lengths, size):
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    listed, windows = int(cu[-1]), len(lengths)
    count = shared.tile_count(ctypes.c_long(listed), ctypes.c_long(windows), ctypes.c_long(size))
    tiles = torch.empty(count, 3, dtype=torch.int64)
    shared.tiles(
        ctypes.c_void_p(cu.data_ptr()), *map(ctypes.c_long, (windows, size, listed)), ctypes.c_void_p(tiles.data_ptr())
    )
    found = sorted((b, e, f) for b, e, f in tiles.tolist() if f < e)
    bounds = cu.tolist()
    wanted = [(b, e, f) for b, e in pairwise(bounds) for f in range(b, e, size)]
    assert found == wanted
