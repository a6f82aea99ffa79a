"""The grid's arithmetic and the containers' behaviour."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.config import from_dict
from fusion3d.errors import ConfigError
from fusion3d.rows import concat, select, to_device
from fusion3d.types import BEVGrid, Boxes, Motion, Trajectory


def test_grid_cells_by_floor() -> None:
    grid = BEVGrid(x=(-1.0, 2.0), y=(-1.0, 1.0), z=(-1.0, 1.0), resolution=0.5)
    assert grid.shape == (4, 6)
    xyz = torch.tensor([[-1.0, -1.0, 0.0], [-1.01, 0.0, 0.0], [1.99, 0.99, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    cell, inside = grid.cell_of(xyz)
    assert inside.tolist() == [True, False, True, False, False]
    assert cell.tolist() == [0, 0, 23, 0, 0]
    assert not grid.cell_of(torch.full((1, 3), torch.nan))[1].any()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"x": (54.0, -54.0)}, "grid.x: expected first edge < last edge"),
        ({"z": (1.0, 1.0)}, "grid.z: expected first edge < last edge"),
        ({"y": (0.0, math.inf)}, "grid.y: expected first edge < last edge"),
        ({"resolution": 0.0}, "grid.resolution: expected more than 0"),
        ({"resolution": math.nan}, "grid.resolution: expected more than 0"),
        ({"resolution": 300.0}, "grid.resolution: 300.0 m is larger than the grid"),
        ({"resolution": 0.7}, "grid.x: expected a whole number of cells of 0.7 m, found 154.286"),
        ({"y": (-54.0, 53.9)}, "grid.y: expected a whole number of cells"),
    ],
)
def test_a_grid_that_cannot_be(values, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        BEVGrid(**values)
    with pytest.raises(ConfigError, match=re.escape(f"run.yaml: {words}")):
        from_dict({"grid": {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}}, "run.yaml")


@given(st.integers(0, 3), st.integers(0, 5))
def test_a_cell_centre_is_in_its_cell(row: int, column: int) -> None:
    grid = BEVGrid(x=(-1.0, 2.0), y=(-1.0, 1.0), z=(-1.0, 1.0), resolution=0.5)
    xy = grid.centers()[row, column]
    cell, inside = grid.cell_of(torch.cat([xy, torch.zeros(1)]))
    assert bool(inside) and int(cell) == row * 6 + column
    assert grid.place_of(xy).tolist() == [column + 0.5, row + 0.5] and torch.equal(grid.xy_of(grid.place_of(xy)), xy)


def test_boxes_are_selected_with_their_instances() -> None:
    boxes = Boxes.of(torch.arange(9.0).view(3, 3), torch.ones(3, 3), torch.zeros(3), instance=("a", "b", "c"))
    chosen = boxes[torch.tensor([True, False, True])]
    assert chosen.instance == ("a", "c") and chosen.center[1, 0] == 6
    assert boxes[torch.tensor([2])].instance == ("c",)
    assert len(Boxes.empty()) == 0 and len(Boxes.empty()[torch.zeros(0, dtype=torch.bool)]) == 0
    assert torch.isnan(boxes.velocity).all()


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 5), keep=st.lists(st.booleans(), min_size=5, max_size=5))
def test_rows_are_selected_and_joined_in_whatever_holds_them(cut: int, keep: list[bool]) -> None:
    path = Trajectory(torch.rand(5, 6, 2), torch.rand(5, 6), torch.rand(5, 6) < 0.5)
    motion = Motion(path[:, 0], path, torch.rand(5, 3), torch.arange(5))
    names = tuple("abcde")
    assert concat([names[:cut], names[cut:]]) == names
    joined, mask = Motion.cat([motion[:cut], motion[cut:]]), torch.tensor(keep)
    for rows in (mask, mask.nonzero()[:, 0]):
        chosen = select(joined, rows)
        assert chosen.label.tolist() == [i for i in range(5) if keep[i]] == joined[rows].label.tolist()
        for name in ("position", "yaw", "mask"):
            assert torch.equal(getattr(chosen.path, name), getattr(path, name)[mask])
            assert torch.equal(getattr(chosen.now, name), getattr(path, name)[mask, 0])
        assert select(names, rows) == tuple(name for name, there in zip(names, keep, strict=True) if there)


@pytest.mark.gpu
def test_what_comes_from_a_gpu_is_there_when_it_can_be_read() -> None:
    value = torch.ones(4096, 4096, device="cuda")
    for _ in range(20):  # a copy that is not waited for would be read before this is done
        value = value @ value / 4096
    assert float(to_device((value,), "cpu")[0].min()) == 1.0


def test_to_device_keeps_structure() -> None:
    moved = to_device((Boxes.empty(), [1, None], "x"), "meta")
    assert moved[0].center.device.type == "meta" and moved[1:] == ([1, None], "x")
