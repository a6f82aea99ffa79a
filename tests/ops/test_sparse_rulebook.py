"""Rulebooks of sparse convolutions: by hand, against the twin, and what they say of wrong voxels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from harness import DEVICES, EMULATED, compiled, reads_values
from sparse_cases import STRIDED, make, voxels

from fusion3d import ops
from fusion3d.ops import library, reference


def test_pairs_by_hand():
    coords = torch.tensor([[0, 0, 0, 3], [0, 0, 0, 0], [0, 0, 0, 1]])
    line = ops.sparse_rulebook(coords, (1, 1, 4), 1, (1, 1, 3), submanifold=True)
    assert line.table.tolist() == [[-1, -1, 1], [0, 1, 2], [-1, 2, -1]]
    half = ops.sparse_rulebook(coords, (1, 1, 4), 1, (1, 1, 3), 2, (0, 0, 1))
    assert half.out_coords.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]] and half.out_shape == (1, 1, 2)
    assert half.table.tolist() == [[-1, 2], [1, -1], [2, 0]]
    assert half.transposed.tolist() == [[-1, -1, 1], [-1, 0, -1], [1, -1, 0]]
    assert half.inverse().table is half.transposed and half.inverse().inverse().table is half.table
    with pytest.raises(ValueError, match="no inverse"):
        line.inverse()


@compiled
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("shape", "rows"),  # the many rows are put into the index in several parts
    [((4, 7, 9), 400), ((3, 65, 130), 400), ((41, 1440, 1440), 6000), ((9, 80, 70), 9000), ((1, 1, 5000), 400)],
)
def test_rulebook_equals_twin(device, shape, rows):
    random = torch.Generator().manual_seed(3)
    coords = torch.stack([torch.randint(0, n, (rows,), generator=random) for n in (2, *shape)], 1)
    coords = torch.cat([coords, (coords + 1) % torch.tensor([2, *shape])]).unique(dim=0)
    coords = coords[torch.randperm(len(coords), generator=random)].int().to(device)
    table = ops.sparse_rulebook(coords, shape, 2, 3, submanifold=True).table
    assert torch.equal(table, reference.sparse_submanifold(coords, 2, shape, (3, 3, 3), (1, 1, 1)))
    far = (1 << 24) - 1
    for geometry in [
        ((3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
        ((1, 2, 4), (1, 3, 2), (0, 2, 1), (1, 3, 1)),
        ((2, 1, 3), (4, 6, 1), (0, 1, 2), (2, 1, 2)),  # outputs of one input that are not neighbours
        ((1, 1, 4), (1, 1, 4), (0, 0, 3), (1, 1, 6)),
        ((3, 3, 3), (far, far, far), (1, 1, 1), (1, 1, 1)),
    ]:
        book = ops.sparse_rulebook(coords, shape, 2, *geometry)
        twin = reference.sparse_strided(coords, 2, shape, *geometry)
        for found, want in zip((book.out_coords, book.table, book.transposed), twin, strict=True):
            assert torch.equal(found, want)


def test_order_of_the_voxels_does_not_matter():
    features, weight, rulebook = make(submanifold=False, **STRIDED)
    order = torch.randperm(len(features))
    again = ops.sparse_rulebook(rulebook.coords[order], (4, 7, 9), 2, 3, **STRIDED)
    assert torch.equal(again.out_coords, rulebook.out_coords)
    out = ops.sparse_conv(features[order], weight, again)
    assert torch.equal(out, ops.sparse_conv(features, weight, rulebook))


def test_cells_beyond_2_to_the_32():
    """A grid of 2^37 cells: cells are counted in 64 bits, and only one bit for 64 of them is kept."""
    shape = (1 << 7, 1 << 15, 1 << 15)
    far = torch.tensor([[0, 127, 32767, x] for x in (32764, 32765, 32767)] + [[0, 0, 0, 0]])
    table = ops.sparse_rulebook(far, shape, 1, 3, submanifold=True).table
    assert table[13].tolist() == [0, 1, 2, 3] and table[14].tolist() == [1, -1, -1, -1]
    assert int((table >= 0).sum()) == 6


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=reads_values), False])
def test_wrong_voxels_say_what_was_expected(kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(library, "DEVICES", frozenset())
        monkeypatch.setattr(library, "warn_once", lambda problem: None)
    coords = voxels()
    outside = coords.clone()
    outside[5, 2] = 7
    twice = torch.cat([coords, coords[:1]])
    for geometry in ({"submanifold": True}, STRIDED):
        for bad, message in [
            (outside, r"row 5 is .*expected each in \[0, 2\), \[0, 4\), \[0, 7\), \[0, 9\)"),
            (twice, "two rows have the same"),
        ]:
            with pytest.raises(ValueError, match=message):
                ops.sparse_rulebook(bad, (4, 7, 9), 2, 3, **geometry)


@pytest.mark.parametrize("far", [2**32, -(2**32), 2**40 + 1, 2**31])
@pytest.mark.parametrize("device", DEVICES)
def test_far_voxels_stay_outside(device, far):
    """Cut to 32 bits they would come back inside."""
    coords = torch.tensor([[0, 0, 0, 1], [0, 0, 0, far]], device=device)
    if device == "cpu" and not EMULATED:
        with pytest.raises(ValueError, match="row 1 is"):
            ops.sparse_rulebook(coords, (1, 1, 4), 1, 3, submanifold=True)
    else:
        table = ops.sparse_rulebook(coords, (1, 1, 4), 1, 3, submanifold=True).table
        assert (table >= 0).nonzero().tolist() == [[13, 0]]


def test_sizes_may_be_of_numpy():
    coords, three = voxels(), np.array([3, 3, 3])
    want = ops.sparse_rulebook(coords, (4, 7, 9), 2, 3, submanifold=True)
    sizes = np.array([4, 7, 9])
    for shape, kernel in [((4, 7, 9), np.int64(3)), (sizes, three), (torch.from_numpy(sizes), tuple(three))]:
        assert torch.equal(ops.sparse_rulebook(coords, shape, 2, kernel, submanifold=True).table, want.table)


@compiled
def test_a_launch_that_fails_is_not_the_callers_mistake(monkeypatch):
    for said, kind in [
        ("fusion3d: sparse_submanifold did not start: cudaErrorInvalidValue", RuntimeError),
        ("fusion3d: shape is 99", ValueError),
        ("CUDA out of memory", RuntimeError),
    ]:

        def fails(*_, said=said):
            raise RuntimeError(said)

        monkeypatch.setattr(torch.ops.fusion3d, "sparse_submanifold", fails)
        with pytest.raises(kind, match=said.removeprefix("fusion3d: ")):
            ops.sparse_rulebook(voxels(), (4, 7, 9), 2, 3, submanifold=True)


def test_wrong_geometry_says_what_was_expected():
    coords = voxels()
    for bad, message in [
        ({"coords": coords[:, :3]}, r"expected \[N, 4\]"),
        ({"coords": coords.float()}, "torch.int32 or torch.int64"),
        ({"kernel": 0}, "kernel: found 0"),
        ({"kernel": (3, 3)}, "kernel: found"),
        ({"kernel": 2.5}, "kernel: found 2.5; expected a whole number"),
        ({"stride": (1, 1.0, 2)}, "stride: found"),
        ({"stride": 0}, "stride: found 0"),
        ({"padding": -1}, "padding: found -1"),
        ({"batch_size": -1}, "batch_size"),
        ({"kernel": 2, "submanifold": True}, "odd"),
        ({"shape": (1 << 23, 1 << 23, 1 << 23), "coords": coords[:1]}, "cells"),
        ({"shape": (1 << 25, 1, 1), "coords": coords[:1]}, "shape"),
    ]:
        if "cpu" not in library.DEVICES and "shape" in bad:
            continue  # the twin has no such limits
        with pytest.raises(ValueError, match=message):
            ops.sparse_rulebook(**{"coords": coords, "shape": (4, 7, 9), "batch_size": 2, "kernel": 3, **bad})
