"""The occupancy head: what is painted, against a plain loop; what counts; what nothing teaches."""

from __future__ import annotations

import dataclasses
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.config import Config, OccupancyConfig, PlanningConfig
from fusion3d.data.augment import bev_matrix, transform_batch
from fusion3d.engine.random_batch import random_batch
from fusion3d.heads.occupancy import OccupancyHead, occupied, paint
from fusion3d.types import (
    DETECTION_CLASSES,
    OCCUPANCY_TIMES,
    OCCUPANTS,
    Batch,
    BEVGrid,
    Motion,
    Occupancy,
    Trajectory,
)

GRID = BEVGrid(x=(-12.0, 20.0), y=(-8.0, 8.0), resolution=0.8)


def make_batch(size: int = 2, boxes: int = 6) -> Batch:
    config = dataclasses.replace(Config(), grid=GRID, data=dataclasses.replace(Config().data, image_size=(8, 8)))
    return random_batch(config, size, 0, 0, boxes)


def make_head(**settings) -> OccupancyHead:
    torch.manual_seed(0)
    return OccupancyHead(OccupancyConfig(channels=8, **settings), 4, GRID, GRID)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_painting_is_the_plain_loop(seed):
    draw = torch.Generator().manual_seed(seed)
    box = torch.rand(6, 5, generator=draw) * torch.tensor([40.0, 24.0, 8.0, 3.0, 7.0]) - torch.tensor(
        [16.0, 12, 0, 0, 3]
    )
    layer, mask = torch.arange(6) % 3, torch.arange(6) != 4
    box[4] = torch.nan
    cells = torch.zeros(3, *GRID.shape, dtype=torch.bool)
    paint(cells, layer, box, mask, GRID)
    expected = torch.zeros_like(cells)
    for (x, y, length, width, yaw), on, there in zip(box.tolist(), layer.tolist(), mask.tolist(), strict=True):
        for iy in range(GRID.shape[0] if there else 0):
            for ix in range(GRID.shape[1]):
                left, low = GRID.x[0] + ix * GRID.resolution, GRID.y[0] + iy * GRID.resolution
                away = left + GRID.resolution / 2 - x, low + GRID.resolution / 2 - y
                along = away[0] * math.cos(yaw) + away[1] * math.sin(yaw)
                across = away[1] * math.cos(yaw) - away[0] * math.sin(yaw)
                own = left <= x < left + GRID.resolution and low <= y < low + GRID.resolution
                expected[on, iy, ix] |= own or (abs(along) <= length / 2 and abs(across) <= width / 2)
    assert (cells != expected).sum() <= 1, "but for a middle within rounding of an edge"


def test_who_is_where_when():
    """A car drives off, a pedestrian turns up in 2 s, an animal is of no class."""
    steps = torch.arange(1, 7)
    position = torch.stack([4.3 + 2.0 * steps, torch.zeros(6)], dim=1)
    place = torch.stack([position, torch.tensor([[-4.0, 4.0]]).expand(6, 2), torch.tensor([[0.4, -6.0]]).expand(6, 2)])
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, :3], mask[0, 5] = False, False
    size = torch.tensor([[4.0, 2.0, 1.5], [0.6, 0.6, 1.7], [0.5, 0.5, 0.5]])
    label = torch.tensor([0, DETECTION_CLASSES.index("pedestrian"), -1])
    start = torch.tensor([[4.3, 0.0], [torch.nan, torch.nan], [0.4, -6.0]])
    now = Trajectory(start, torch.zeros(3), torch.tensor([True, False, True]))
    motion = Motion(now, Trajectory(place, torch.zeros(3, 6), mask), size, label)
    batch = make_batch(1)
    assert batch.future is not None
    known = torch.tensor([[True] * 4 + [False] * 2])
    future = dataclasses.replace(batch.future, mask=known)
    batch = dataclasses.replace(batch, motion=(motion,), future=future)
    there, sure = occupied(batch, GRID)
    assert sure.tolist() == [[True, True, True, False]], "3 s are beyond the drive"
    count = there[0].flatten(2).sum(2)
    vehicle, vru, static = range(len(OCCUPANTS))
    assert count[:, vehicle].tolist() == [10, 10, 10, 0] and count[:, vru].tolist() == [0, 0, 1, 1]
    assert count[:, static].tolist() == [1, 1, 1, 1]
    for time, seconds in enumerate(OCCUPANCY_TIMES[:3]):
        cells = GRID.centers()[there[0, time, vehicle]]
        assert ((cells.mean(0) - torch.tensor([4.3 + 4 * seconds, 0.0])).abs() < 0.41).all()
    nobody = dataclasses.replace(batch, annotated=torch.zeros(1, dtype=torch.bool))
    assert not occupied(nobody, GRID)[1].any() and not occupied(dataclasses.replace(batch, motion=None), GRID)[1].any()


def test_it_goes_with_the_world():
    batch = make_batch(2)
    square = BEVGrid(x=(-12.0, 12.0), y=(-12.0, 12.0), resolution=0.8)
    there, known = occupied(batch, square)
    moved = transform_batch(dataclasses.replace(batch, map_mask=None), bev_matrix(math.pi / 2, 1.0, True, False))
    again, still = occupied(moved, square)
    assert torch.equal(known, still)
    # x becomes -x, then a quarter turn: the cell at x, y is at -y, -x.
    assert (again != there.transpose(-1, -2).flip(-1, -2)).float().mean() < 1e-3


def test_what_is_unknown_teaches_nothing_and_nothing_known_is_a_zero_in_the_graph():
    head, batch = make_head(), make_batch()
    assert batch.future is not None and batch.motion is not None and batch.map_known is not None
    mask = batch.future.mask.clone()
    mask[0, 3:] = False
    known = batch.map_known.clone()
    known[1] = False
    cut = dataclasses.replace(batch, future=dataclasses.replace(batch.future, mask=mask), map_known=known)
    said = head(torch.rand(2, 4, *GRID.shape))
    agents, drivable = said.agents.detach().requires_grad_(), said.drivable.detach().requires_grad_()
    losses = head.losses(Occupancy(agents, drivable), cut)
    torch.stack(list(losses.values())).sum().backward()
    assert agents.grad is not None and drivable.grad is not None
    taught = agents.grad.flatten(2).any(2)
    assert taught.tolist() == [[True, True, False, False], [True] * 4] and not drivable.grad[1].any()
    assert drivable.grad[0].all()
    bare = dataclasses.replace(
        batch, boxes=None, motion=None, map_mask=None, map_known=None, annotated=torch.zeros(2, dtype=torch.bool)
    )
    losses = head.losses(head(torch.rand(2, 4, *GRID.shape)), bare)
    assert all(value == 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_it_learns_and_probabilities_come_out():
    head, batch = make_head(loss_weight=2.0), make_batch(1)
    there, _ = occupied(batch, GRID)
    bev = there.any(2) + 0.3 * torch.rand(1, 4, *GRID.shape)
    optimizer, history = torch.optim.Adam(head.parameters(), 2e-2), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.stack(list(head.losses(head(bev), batch).values())).sum()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.3 * history[0]
    said = head.decode(head(bev))
    assert said.agents.shape == there.shape and said.drivable.shape == (1, *GRID.shape)
    assert said.agents[there].mean() > 0.4 > 0.15 > said.agents[~there].mean()


def test_a_map_of_another_grid_is_looked_up_where_it_reaches():
    config = dataclasses.replace(Config(), grid=GRID, data=dataclasses.replace(Config().data, image_size=(8, 8)))
    assert config.occupancy is None
    small = BEVGrid(x=(-4.0, 8.0), y=(-4.0, 4.0), resolution=0.5)
    head, batch = OccupancyHead(OccupancyConfig(channels=8), 4, GRID, small), make_batch(1)
    mask = torch.zeros(1, 6, *small.shape, dtype=torch.bool)
    mask[:, 0] = small.centers()[..., 0] > 2.3
    logits = torch.zeros(1, *GRID.shape, requires_grad=True)
    batch = dataclasses.replace(batch, map_mask=mask)
    zero = Occupancy(torch.zeros(1, len(OCCUPANCY_TIMES), len(OCCUPANTS), *GRID.shape), logits)
    head.losses(zero, batch)["occupancy_ground"].backward()
    assert logits.grad is not None
    x, y = GRID.centers().unbind(-1)
    inside = (x >= -4) & (x < 8) & (y >= -4) & (y < 4)
    assert torch.equal(logits.grad[0] != 0, inside) and torch.equal(logits.grad[0][inside] < 0, x[inside] > 2.5)


def test_what_is_later_than_the_plan_is_taught_too():
    config = dataclasses.replace(Config(), grid=GRID, data=dataclasses.replace(Config().data, image_size=(8, 8)))
    short = dataclasses.replace(config, planning=PlanningConfig(steps=2), occupancy=OccupancyConfig())
    assert short.steps == 6 and dataclasses.replace(short, occupancy=None).steps == 2
    assert dataclasses.replace(short, planning=PlanningConfig(steps=8)).steps == 8
    assert occupied(random_batch(short, 2, 0, 0, 6), GRID)[1].all()
