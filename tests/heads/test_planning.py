"""Planning: masks, unknown inputs and the frame of the plan."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fusion3d.config import Config, PlanningConfig
from fusion3d.engine.random_batch import random_batch
from fusion3d.heads.planning import QueryPlanner
from fusion3d.heads.planning.ego import Surroundings
from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.heads.planning.query import PlannedPath
from fusion3d.types import Batch, BEVGrid, EgoStatus, Trajectory

GRID = BEVGrid(x=(-16.0, 16.0), y=(-16.0, 16.0), resolution=0.8)


def make_batch(size: int = 3) -> Batch:
    return random_batch(dataclasses.replace(Config(), grid=GRID), size, 0, 0, 1)


def make_head(**settings) -> QueryPlanner:
    torch.manual_seed(0)
    return QueryPlanner(PlanningConfig(channels=16, **settings), 4, GRID)


def test_loss_counts_only_known_steps():
    head, batch = make_head(loss_weight=2.0), make_batch(2)
    position = torch.zeros(2, 6, 2)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, :2] = True
    position[~mask] = torch.nan
    batch = dataclasses.replace(batch, future=Trajectory(position, torch.zeros(2, 6), mask))
    plan = torch.full((2, 6, 2), 3.0, requires_grad=True)
    loss = head.losses(PlannedPath(plan, None), batch)["planning"]
    torch.testing.assert_close(loss, torch.tensor(2 * 2 * (3.0 - 0.25)))  # |error| - beta / 2 in x and in y, weight 2
    loss.backward()
    assert plan.grad is not None and (plan.grad[0, :2] != 0).all() and plan.grad.count_nonzero() == 4


def test_no_future_is_a_zero_in_the_graph():
    head, batch = make_head(), make_batch()
    assert batch.future is not None
    unknown = dataclasses.replace(batch.future, mask=torch.zeros_like(batch.future.mask))
    for future in (None, unknown):
        without = dataclasses.replace(batch, future=future)
        loss = head.losses(head(torch.rand(3, 4, *GRID.shape), without), without)["planning"]
        assert loss == 0
        head.zero_grad()
        loss.backward()
        assert all(p.grad is not None and (p.grad == 0).all() for p in head.parameters())


def test_command_matters_and_unknown_is_one_of_its_values():
    head, batch = make_head().eval(), make_batch(4)
    bev = torch.rand(1, 4, *GRID.shape).repeat(4, 1, 1, 1)
    plan = head(bev, dataclasses.replace(batch, command=torch.tensor([0, 1, -1, -1]))).position
    assert (plan[0] - plan[1]).abs().amax() > 1e-4 and (plan[0] - plan[2]).abs().amax() > 1e-4
    torch.testing.assert_close(plan[2], plan[3])


def test_command_dropout_only_while_training():
    head, batch = make_head(command_dropout=1.0), make_batch(2)
    bev = torch.rand(1, 4, *GRID.shape).repeat(2, 1, 1, 1)
    batch = dataclasses.replace(batch, command=torch.tensor([0, -1]))
    plan = head.train()(bev, batch).position
    torch.testing.assert_close(plan[0], plan[1])
    plan = head.eval()(bev, batch).position
    assert (plan[0] - plan[1]).abs().amax() > 1e-4


@pytest.mark.parametrize("status", ["none", "measured"])
def test_status_is_read_only_where_configured_and_may_be_unknown(status):
    head, batch = make_head(ego_status=status).eval(), make_batch(3)
    bev = torch.rand(1, 4, *GRID.shape).repeat(3, 1, 1, 1)
    measured = EgoStatus(
        torch.tensor([[5.0, 0.0], [torch.nan, torch.nan], [torch.nan, torch.nan]]),
        torch.tensor([[1.0, 0.0], [torch.nan, torch.nan], [torch.nan, torch.nan]]),
        torch.tensor([0.1, torch.nan, torch.nan]),
    )
    batch = dataclasses.replace(batch, command=torch.tensor([2, 2, 2]), status=measured)
    plan = head(bev, batch).position
    assert plan.isfinite().all()
    torch.testing.assert_close(plan[1], plan[2])
    assert ((plan[0] - plan[1]).abs().amax() > 1e-4) == (status == "measured")
    without = head(bev, dataclasses.replace(batch, status=None)).position
    assert without.isfinite().all()
    torch.testing.assert_close(without[1], plan[1])


def test_plan_turns_with_the_heading_of_an_augmented_vehicle():
    """With the same map tokens at the same places seen from the vehicle, the path is the same seen from it."""
    head, batch = make_head(ego_status="measured").eval(), make_batch(2)
    bev = torch.rand(1, 4, 40, 40)
    turned = torch.eye(4)
    turned[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    velocity = torch.tensor([[4.0, 1.0], [-1.0, 4.0]])
    status = EgoStatus(velocity, torch.zeros(2, 2), torch.zeros(2))
    batch = dataclasses.replace(
        batch, aug_from_ego=torch.stack([torch.eye(4), turned]), command=torch.tensor([1, 1]), status=status
    )
    # Convolutions that are not equivariant make way for those that are.
    head.shrink = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Conv2d(4, 16, 1))
    plan = head(torch.cat([bev, bev.rot90(-1, (2, 3))]), batch).position
    torch.testing.assert_close(plan[1], torch.stack([-plan[0, :, 1], plan[0, :, 0]], dim=1), atol=1e-4, rtol=1e-4)


def test_plan_starts_where_a_shift_puts_the_vehicle():
    """World and grid shifted alike: the map is the same seen from the vehicle, and so is the path."""
    torch.manual_seed(0)
    moved_grid = BEVGrid(x=(-12.8, 19.2), y=(-17.6, 14.4), resolution=0.8)
    head, other = make_head().eval(), QueryPlanner(PlanningConfig(channels=16), 4, moved_grid).eval()
    other.load_state_dict(head.state_dict())
    batch, bev, shift = make_batch(2), torch.rand(2, 4, 40, 40), torch.tensor([3.2, -1.6])
    aug_from_ego = torch.eye(4).repeat(2, 1, 1)
    aug_from_ego[:, :2, 3], aug_from_ego[:, 2, 3] = shift, 0.4
    moved = dataclasses.replace(batch, aug_from_ego=aug_from_ego)
    plan, there = head(bev, batch), other(bev, moved)
    torch.testing.assert_close(there.position, plan.position + shift, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.decode(there, moved)[0].yaw, head.decode(plan, batch)[0].yaw, atol=1e-4, rtol=1e-4)
    off = head(bev, moved).position - plan.position - shift
    assert off.abs().max() > 1e-4, "on the old grid the vehicle sees something else"


def test_heading_of_the_plan():
    head, batch = make_head(), make_batch(2)
    path = torch.tensor([[1.0, 0.0], [2.0, 1.0], [2.0, 1.0], [2.0, 3.0], [2.01, 3.0], [1.0, 3.0]])
    standing = torch.full((6, 2), 0.001)
    decoded, _ = head.decode(PlannedPath(torch.stack([path, standing]), None), batch)
    quarter = math.pi / 4
    expected = torch.tensor([0.0, quarter, quarter, 2 * quarter, 2 * quarter, 4 * quarter])
    torch.testing.assert_close(decoded.yaw, torch.stack([expected, torch.zeros(6)]))
    assert decoded.mask.all()


def test_it_learns_a_path():
    head, batch = make_head(command_dropout=0.0), make_batch(2)
    assert batch.future is not None
    bev = torch.rand(2, 4, *GRID.shape)
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = head.losses(head(bev, batch), batch)["planning"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("resolution", [0.4, 0.6, 0.8, 1.6, 3.2])
def test_no_cell_around_the_vehicle_is_overlooked(resolution):
    grid = BEVGrid(x=(-57.6, 57.6), y=(-57.6, 57.6), resolution=resolution)
    near, aug_from_ego = Surroundings(4, 4, grid), torch.eye(4)[None]
    aug_from_ego[0, :2, 3] = torch.tensor([3.0, -2.0])
    frame = EgoFrame.heading(dataclasses.replace(make_batch(1), aug_from_ego=aug_from_ego))
    bev = torch.rand(1, 4, *grid.shape, requires_grad=True)
    (near(bev, frame) * torch.randn(1, 4)).sum().backward()
    assert bev.grad is not None
    read, (x, y) = bev.grad[0].abs().sum(0) > 0, (grid.centers() - aug_from_ego[0, :2, 3]).unbind(-1)
    assert read[(x > -20) & (x < 45) & (y.abs() < 20)].all()
    assert not read[(x < -24) | (x > 49) | (y.abs() > 24)].any(), "far off there is the attention"
