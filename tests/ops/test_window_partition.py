"""Windows of sparse cells: against plain loops, and attention inside them against a mask."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from harness import DEVICES
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d import ops
from fusion3d.ops import windows


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
    wanted: dict[tuple[int, ...], list[int]] = {}
    for row, (b, *cell) in enumerate(coords.tolist()):
        if row in (5, 6, 7):
            continue
        moved = zip(cell, window, shift or [0] * len(grid), strict=True)
        wanted.setdefault((b, *((c + s % w) // w for c, w, s in moved)), []).append(row)
    found = ops.window_partition(coords.to(device), 3, grid, window, shift)
    order, cu = found.order.tolist(), found.cu_seqlens.tolist()
    assert [order[a:b] for a, b in pairwise(cu)] == [wanted[key] for key in sorted(wanted)]
    assert len(found) == len(wanted) and found.order.dtype == found.cu_seqlens.dtype == torch.int32
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
    parts = ops.window_partition(coords, 2, (24, 24), (6, 6), (3, 3))
    q, k, v = torch.randn(3, 200, 2, 16, generator=torch.Generator().manual_seed(0))
    out = ops.window_attention(q, k, v, parts.cu_seqlens, parts.order)
    key = torch.cat([coords[:, :1], (coords[:, 1:] + 3) // 6], 1)
    same = (key[:, None] == key[None]).all(2)
    q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=same).transpose(0, 1)
    torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_sizes_of_windows_are_not_copied_to_the_device():
    """The host would wait for that; reading how many windows there are is all that it may wait for."""
    coords = random_cells(40, 3, (7, 20, 9)).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        windows._cells_of(coords, 3, (7, 20, 9), (2, 6, 5), (1, 9, 4))
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
