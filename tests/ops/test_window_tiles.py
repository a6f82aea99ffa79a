"""What window attention is made of, compiled by itself: powers of two, and the tiles of CUDA's blocks."""

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

ROOT = Path(__file__).parents[2]

SHARED = """
#include "fusion3d/window_attention.h"
#include "exponential.h"
extern "C" void power(const float* x, float* y, long count) {
  for (long i = 0; i < count; i += 8) fusion3d::store(y + i, fusion3d::exp2(fusion3d::load(x + i)));
}
extern "C" void tiles(const int* cu, long windows, long size, long listed, long* out) {
  const long count = fusion3d::window_tile_count(listed, windows, size);
  for (long t = 0; t < count; ++t) {
    const fusion3d::WindowTile tile = fusion3d::window_tile(cu, windows, listed, size, t);
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


def tiles_of(shared, cu, size, listed):
    """Those that are not empty."""
    count = shared.tile_count(*map(ctypes.c_long, (listed, len(cu) - 1, size)))
    tiles = torch.empty(count, 3, dtype=torch.int64)
    pointers = ctypes.c_void_p(cu.data_ptr()), ctypes.c_void_p(tiles.data_ptr())
    shared.tiles(pointers[0], *map(ctypes.c_long, (len(cu) - 1, size, listed)), pointers[1])
    return sorted((b, e, f) for b, e, f in tiles.tolist() if f < e)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 200), max_size=30), size=st.sampled_from([1, 32, 64, 96]))
def test_tiles_cover_every_place_once(shared, lengths, size):
    cu = torch.tensor([0, *lengths]).cumsum(0).int()
    wanted = [(b, e, f) for b, e in pairwise(cu.tolist()) for f in range(b, e, size)]
    assert tiles_of(shared, cu, size, int(cu[-1])) == wanted


@settings(max_examples=100, deadline=None)
@given(
    cu=st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-9, 300), min_size=1, max_size=9),
    size=st.sampled_from([1, 32, 64]),
    listed=st.integers(0, 250),
)
def test_tiles_of_any_numbers_stay_within_the_list(shared, cu, size, listed):
    for begin, end, first in tiles_of(shared, torch.tensor(cu, dtype=torch.int32), size, listed):
        assert 0 <= begin <= first < end <= listed
