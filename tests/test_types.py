"""The grid's arithmetic and the containers' behaviour."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion3d.types import BEVGrid, Boxes, to_device


def test_grid_cells_by_floor() -> None:
    grid = BEVGrid(x=(-1.0, 2.0), y=(-1.0, 1.0), z=(-1.0, 1.0), resolution=0.5)
    assert grid.shape == (4, 6)
    xyz = torch.tensor([[-1.0, -1.0, 0.0], [-1.01, 0.0, 0.0], [1.99, 0.99, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    cell, inside = grid.cell_of(xyz)
    assert inside.tolist() == [True, False, True, False, False]
    assert cell.tolist() == [0, 0, 23, 0, 0]
    assert not grid.cell_of(torch.full((1, 3), torch.nan))[1].any()


@given(st.integers(0, 3), st.integers(0, 5))
def test_a_cell_centre_is_in_its_cell(row: int, column: int) -> None:
    grid = BEVGrid(x=(-1.0, 2.0), y=(-1.0, 1.0), z=(-1.0, 1.0), resolution=0.5)
    xy = grid.centers()[row, column]
    cell, inside = grid.cell_of(torch.cat([xy, torch.zeros(1)]))
    assert bool(inside) and int(cell) == row * 6 + column


def test_boxes_are_selected_with_their_instances() -> None:
    boxes = Boxes.of(torch.arange(9.0).view(3, 3), torch.ones(3, 3), torch.zeros(3), instance=("a", "b", "c"))
    chosen = boxes[torch.tensor([True, False, True])]
    assert chosen.instance == ("a", "c") and chosen.center[1, 0] == 6
    assert boxes[torch.tensor([2])].instance == ("c",)
    assert len(Boxes.empty()) == 0 and len(Boxes.empty()[torch.zeros(0, dtype=torch.bool)]) == 0
    assert torch.isnan(boxes.velocity).all()


def test_to_device_keeps_structure() -> None:
    moved = to_device((Boxes.empty(), [1, None], "x"), "meta")
    assert moved[0].center.device.type == "meta" and moved[1:] == ([1, None], "x")
