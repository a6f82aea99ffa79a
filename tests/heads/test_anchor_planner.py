"""The planner that chooses: what it needs, what it learns, and that it goes with the world whatever is done to it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fusion3d.config import AnchorConfig, Config, PlanningConfig, from_dict
from fusion3d.data.augment import bev_matrix, transform_batch, transform_trajectory
from fusion3d.engine.random_batch import give_anchors, random_batch
from fusion3d.errors import ConfigError
from fusion3d.heads.planning import AnchorPlanner, QueryPlanner
from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.heads.planning.read import PathReader
from fusion3d.types import (
    COMMANDS,
    OCCUPANCY_TIMES,
    OCCUPANTS,
    PLAN_SCORES,
    Batch,
    BEVGrid,
    EgoStatus,
    Occupancy,
    Trajectory,
)

GRID = BEVGrid(x=(-32.0, 32.0), y=(-32.0, 32.0), resolution=1.6)
INPUTS = 4


def make_batch(size: int = 2) -> Batch:
    config = dataclasses.replace(Config(), grid=GRID, data=dataclasses.replace(Config().data, image_size=(8, 8)))
    batch = random_batch(config, size, 0, 0, 3)
    status = EgoStatus(torch.tensor([[4.0, 0.5]] * size), torch.zeros(size, 2), torch.full((size,), 0.2))
    return dataclasses.replace(batch, status=status, command=torch.arange(size) % len(COMMANDS))


def make_head(count: int = 5, grid: BEVGrid = GRID, spread: float = 1.5, **more) -> AnchorPlanner:
    """A head that says something from the start, which a new one does not."""
    torch.manual_seed(0)
    config = PlanningConfig(head="anchors", channels=8, anchors=AnchorConfig(count=count, spread=spread), **more)
    head = AnchorPlanner(config, INPUTS, grid, grid)
    give_anchors(head)
    for said in (*head.moves, *head.imitation, head.scores):
        nn.init.normal_(said[-1].weight, std=0.5)
    return head.eval()


def test_without_anchors_it_says_what_is_missing():
    config = PlanningConfig(head="anchors", channels=8, anchors=AnchorConfig(count=3))
    head = AnchorPlanner(config, INPUTS, GRID, GRID)
    with pytest.raises(ConfigError, match=r"no anchors yet; train finds them"):
        head(torch.rand(2, INPUTS, *GRID.shape), make_batch())
    for wrong in (torch.zeros(2, 6, 3), torch.full((3, 6, 3), torch.nan)):
        with pytest.raises(ValueError, match=r"expected \[3, 6, 3\], all of them finite"):
            head.set_anchors(wrong)
    head.set_anchors(torch.rand(3, 6, 3))
    other = AnchorPlanner(config, INPUTS, GRID, GRID)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.anchors, head.anchors), "they are part of the state"
    other(torch.rand(2, INPUTS, *GRID.shape), make_batch())


def test_a_new_one_knows_its_anchors_and_drives_the_one_in_the_middle():
    config = PlanningConfig(head="anchors", channels=8, anchors=AnchorConfig(count=3))
    head, batch = AnchorPlanner(config, INPUTS, GRID, GRID), make_batch()
    give_anchors(head)
    said = head(torch.rand(2, INPUTS, *GRID.shape), batch)
    plan, modes = head.decode(said, batch)
    assert modes is not None and modes.chosen.tolist() == [1, 1] and modes.score.shape == (2, 3, len(PLAN_SCORES))
    torch.testing.assert_close(modes.path.position, head.anchors[..., :2].expand(2, -1, -1, -1))
    torch.testing.assert_close(modes.path.yaw, head.anchors[..., 2].expand(2, -1, -1))
    torch.testing.assert_close(plan.position, modes.path.position[:, 1])
    torch.testing.assert_close(modes.imitation, torch.full((2, 3), 1 / 3))
    assert (modes.score[..., :4] == 0.5).all() and modes.score[..., 4:].isnan().all(), "nobody says who is where"


@settings(max_examples=15, deadline=None)
@given(
    quarters=st.integers(0, 3),
    flips=st.tuples(st.booleans(), st.booleans()),
    scale=st.sampled_from([0.8, 1.0, 1.25]),
    shift=st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.floats(-1, 1)),
    status=st.sampled_from(["none", "measured", "predicted"]),
)
def test_the_plan_goes_with_its_world(quarters, flips, scale, shift, status):
    """World, grid and map turned, mirrored, scaled and shifted alike: so is the plan, and all that is thought of it."""
    matrix = bev_matrix(quarters * math.pi / 2, scale, *flips, shift)
    sides = {name: tuple(scale * v + shift[i] for v in getattr(GRID, name)) for i, name in enumerate("xy")}
    head, batch, bev = make_head(ego_status=status), make_batch(), torch.rand(2, INPUTS, *GRID.shape)
    other = make_head(grid=BEVGrid(**sides, resolution=scale * GRID.resolution), ego_status=status)
    for one in (head, other):  # convolutions are not equivariant: let the map be what they make of it
        one.reader.features, one.ego.shrink = (
            nn.Conv2d(INPUTS, 8, 1),
            nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(4, 8, 1)),
        )
    other.load_state_dict(head.state_dict())
    turned = torch.from_numpy(matrix[:2, :2] / scale).float()
    cell = GRID.cell_of(torch.nn.functional.pad(GRID.centers() @ turned, (0, 1)))[0]
    moved_bev = bev.flatten(2)[..., cell.flatten()].view_as(bev)
    moved = transform_batch(dataclasses.replace(batch, map_mask=None), matrix)
    said, again = head(bev, batch), other(moved_bev, moved)
    for name in ("path", "imitation", "score"):
        torch.testing.assert_close(getattr(again, name), getattr(said, name), atol=2e-3, rtol=1e-3)
    (plan, modes), (there, others) = head.decode(said, batch), other.decode(again, moved)
    assert modes is not None and others is not None and torch.equal(modes.chosen, others.chosen)
    expected = transform_trajectory(plan, matrix)
    torch.testing.assert_close(there.position, expected.position, atol=5e-3, rtol=1e-3)
    assert ((there.yaw - expected.yaw).cos() > 1 - 1e-4).all()
    torch.testing.assert_close(other.path_of(again, moved), there.position)


@settings(max_examples=15, deadline=None)
@given(
    angle=st.floats(-math.pi, math.pi), scale=st.floats(0.9, 1.1), flip=st.booleans(), shift=st.floats(-3, 3),
)  # fmt: skip
def test_paths_are_read_at_their_places_at_any_angle(angle, scale, flip, shift):
    """Of a map that is a plane, which is read exactly between its cells."""
    grid = BEVGrid(x=(-64.0, 64.0), y=(-64.0, 64.0), resolution=1.6)
    matrix = torch.from_numpy(bev_matrix(angle, scale, flip, False, (shift, -shift, 0.0))).float()
    torch.manual_seed(0)
    reader, batch = PathReader(8, 8, grid, 6, False), make_batch()
    reader.features = nn.Sequential()
    slope, path = torch.randn(8, 2) * 0.1, torch.randn(2, 4, 6, 3) * torch.tensor([8.0, 4.0, 2.0])
    here = torch.linalg.inv(matrix[:2, :2])
    reads = []
    for frame, xy in (
        (EgoFrame.whole(batch), grid.centers()),
        (
            EgoFrame.whole(dataclasses.replace(batch, aug_from_ego=matrix.expand(2, 4, 4))),
            (grid.centers() - matrix[:2, 3]) @ here.T,
        ),
    ):
        bev = (xy @ slope.T).permute(2, 0, 1).expand(2, -1, -1, -1)
        reads.append(reader(reader.prepare(bev, None), path, frame)[0])
    torch.testing.assert_close(reads[1], reads[0], atol=1e-3, rtol=1e-3)


def test_it_learns_to_drive_better_than_its_best_anchor():
    """A handful of drives between the anchors, told from random maps."""
    head, batch = make_head(6, spread=0.5, command_dropout=0.0), make_batch(4)
    seconds = 0.5 * torch.arange(1, 7)
    speed, rate = torch.tensor([2.0, 5.5, 9.0, 7.0])[:, None], torch.tensor([0.0, 0.13, -0.06, -0.17])[:, None]
    yaw = rate * seconds
    position = torch.stack([speed * seconds * (yaw / 2).cos(), speed * seconds * (yaw / 2).sin()], dim=-1)
    future = Trajectory(position, yaw, torch.ones(4, 6, dtype=torch.bool))
    batch = dataclasses.replace(batch, future=future, status=None, motion=None)
    bev = torch.rand(4, INPUTS, *GRID.shape)
    optimizer, history = torch.optim.Adam(head.parameters(), 5e-3), []
    for _ in range(150):
        optimizer.zero_grad()
        loss = torch.stack(list(head.losses(head(bev, batch), batch).values())).sum()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
    said = head(bev, batch)
    plan, modes = head.decode(said, batch)
    away_KB = (head.anchors[:, None, :, :2] - position).norm(dim=-1).mean(-1)
    away = away_KB.amin(0)
    error = (plan.position - position).norm(dim=-1).mean(-1)
    assert (error < away).all() and error.mean() < 0.3 * away.mean(), (error, away)
    assert (
        modes is not None and (modes.imitation - (-away_KB.T / head.config.anchors.spread).softmax(1)).abs().max() < 0.2
    )


def test_one_anchor_is_a_plan():
    head, batch = make_head(1), make_batch()
    said = head(torch.rand(2, INPUTS, *GRID.shape), batch)
    losses = head.losses(said, batch)
    assert losses["planning_imitation"] == 0 and losses["planning"] > 0
    _, modes = head.decode(said, batch, batch.boxes)
    assert modes is not None and (modes.imitation == 1).all()


def test_nothing_known_is_a_zero_in_the_graph_and_nan_reaches_nothing():
    head, batch = make_head(), make_batch()
    assert batch.future is not None and batch.motion is not None and batch.status is not None
    none = dataclasses.replace(
        batch, future=None, motion=None, boxes=None, status=None, map_mask=None, map_known=None,
        annotated=torch.zeros(2, dtype=torch.bool),
    )  # fmt: skip
    bev = torch.rand(2, INPUTS, *GRID.shape)
    losses = head.losses(head(bev, none), none)
    assert all(value == 0 for value in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for n, p in head.named_parameters() if "tell" not in n)
    mask = batch.future.mask.clone()
    mask[0, 2:], mask[1] = False, False
    holes = [
        torch.where(mask[..., None], batch.future.position, torch.nan),
        torch.where(mask, batch.future.yaw, torch.nan),
    ]
    motion = tuple(
        dataclasses.replace(
            m, path=Trajectory(m.path.position * torch.nan, m.path.yaw * torch.nan, m.path.mask & False)
        )
        for m in batch.motion
    )
    blind = EgoStatus(
        *(torch.full_like(getattr(batch.status, f.name), torch.nan) for f in dataclasses.fields(EgoStatus))
    )
    spoilt = dataclasses.replace(batch, future=Trajectory(*holes, mask), motion=motion, status=blind)
    head.zero_grad()
    losses = head.losses(head(bev, spoilt), spoilt)
    assert all(value.isfinite() for value in losses.values()) and losses["planning"] > 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_an_empty_world_is_safe_everywhere():
    head, batch = make_head(), make_batch()
    assert batch.motion is not None and batch.boxes is not None
    empty = dataclasses.replace(
        batch,
        motion=tuple(m[:0] for m in batch.motion),
        boxes=tuple(b[torch.zeros(0, dtype=torch.int64)] for b in batch.boxes),
    )
    said = head(torch.rand(2, INPUTS, *GRID.shape), empty)
    assert all(value.isfinite() for value in head.losses(said, empty).values())
    rejecting = dataclasses.replace(head.config, anchors=dataclasses.replace(head.config.anchors, reject=True))
    head.config = rejecting
    plan, _ = head.decode(said, empty, empty.boxes)
    assert plan.position.isfinite().all()


@pytest.mark.parametrize("kind", [QueryPlanner, AnchorPlanner])
def test_predicted_status_is_learned_from_the_past_and_alone_goes_in(kind):
    torch.manual_seed(0)
    config = PlanningConfig(channels=8, ego_status="predicted", status_weight=1.0, loss_weight=1.0)
    head = QueryPlanner(config, INPUTS, GRID) if kind is QueryPlanner else make_head(ego_status="predicted")
    ego = head if isinstance(head, QueryPlanner) else head.ego
    head.eval()
    batch, bev = make_batch(), torch.rand(2, INPUTS, *GRID.shape)
    assert batch.status is not None
    said = head(bev, batch)
    faster = dataclasses.replace(batch, status=dataclasses.replace(batch.status, velocity=batch.status.velocity + 5))
    torch.testing.assert_close(head.path_of(head(bev, faster), faster), head.path_of(said, batch))
    assert said.status is not None
    weight = head.config.loss_weight * head.config.status_weight
    expected = ((said.status - torch.tensor([0.4, 0.6])).abs()).mean(0).sum() * weight
    torch.testing.assert_close(head.losses(said, batch)["planning_status"], expected)
    turned = transform_batch(dataclasses.replace(batch, map_mask=None), bev_matrix(1.0))
    torch.testing.assert_close(head.losses(said, turned)["planning_status"], expected, atol=1e-5, rtol=1e-5)
    unknown = dataclasses.replace(batch, status=dataclasses.replace(batch.status, yaw_rate=torch.full((2,), torch.nan)))
    half = (said.status[:, 0] - 0.4).abs().mean() * weight
    torch.testing.assert_close(head.losses(said, unknown)["planning_status"], half)
    head.zero_grad()
    head.losses(said, batch)["planning"].backward()
    assert all(p.grad is None or not p.grad.any() for p in ego.tell.parameters())  # type: ignore[union-attr]
    assert ego.told is not None and ego.told.weight.grad is not None and ego.told.weight.grad.any()


def test_measured_status_is_often_left_out_in_training_alone():
    head, batch = make_head(ego_status="measured", status_dropout=1.0, command_dropout=0.0), make_batch()
    bev = torch.rand(2, INPUTS, *GRID.shape)
    without = dataclasses.replace(batch, status=None)
    assert not torch.allclose(head(bev, batch).path, head(bev, without).path)
    head.train()
    torch.testing.assert_close(head(bev, batch).path, head(bev, without).path)


def test_what_the_occupancy_says_is_read_under_the_path_at_its_time():
    """Somebody crosses 10 m ahead from 2 s on, and the road ends at x = 18."""
    fine = BEVGrid(x=(-32.0, 32.0), y=(-32.0, 32.0), resolution=0.4)
    reader, batch = PathReader(8, INPUTS, fine, 6, True), make_batch(1)
    cells = fine.centers()
    agents = torch.full((1, len(OCCUPANCY_TIMES), len(OCCUPANTS), *fine.shape), -20.0)
    agents[0, 2:, 1, ((cells[..., 0] - 10).abs() < 1) & (cells[..., 1].abs() < 3)] = 20.0
    drivable = torch.where(cells[..., 0] < 18, 20.0, -20.0)[None].requires_grad_()
    agents.requires_grad_()
    steps = torch.arange(1, 7) * 0.5
    path = torch.zeros(1, 4, 6, 3)
    for mode, (speed, angle) in enumerate(((1.0, 0.0), (3.5, 0.0), (12.0, 0.0), (3.5, math.pi / 2))):
        path[0, mode, :, 0], path[0, mode, :, 1] = speed * steps * math.cos(angle), speed * steps * math.sin(angle)
        path[0, mode, :, 2] = angle
    map_BCYX = reader.prepare(torch.rand(1, INPUTS, *fine.shape), Occupancy(agents, drivable))
    tokens, cost = reader(map_BCYX, path, EgoFrame.whole(batch))
    # At 1 m/s it never gets there; at 3.5 it does; at 12 it is through before anybody comes, but off the road.
    torch.testing.assert_close(
        cost[0], torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), atol=1e-3, rtol=0
    )
    tokens.sum().backward()
    assert agents.grad is None and drivable.grad is None, "it stays what boxes and map teach it"
    halfway = reader.at_step[:, 1:]
    torch.testing.assert_close(halfway[2], torch.tensor([0.5, 0.5, 0.0]))  # at 1.5 s


def test_prices_choose():
    head, batch = make_head(), make_batch()
    said = head(torch.rand(2, INPUTS, *GRID.shape), batch)
    score = torch.zeros_like(said.score)
    score[:, 3, 0], score[:, :3, 0], score[:, 4, 0] = -8.0, 8.0, 8.0
    said = dataclasses.replace(said, imitation=torch.zeros_like(said.imitation), score=score)
    assert head.decode(said, batch)[1].chosen.tolist() == [3, 3]  # type: ignore[union-attr]
    likely = said.imitation.clone()
    likely[..., 1] = 3.0
    said = dataclasses.replace(said, imitation=likely)
    prices = dict.fromkeys(PLAN_SCORES, 0.0)
    head.config = dataclasses.replace(head.config, anchors=AnchorConfig(count=5, prices=prices))  # type: ignore[arg-type]
    assert head.decode(said, batch)[1].chosen.tolist() == [1, 1], "imitation alone"  # type: ignore[union-attr]


def test_wrong_settings():
    for values, told in (
        ({"head": "ankors"}, "head: expected one of 'query', 'anchors'"),
        ({"anchors": {"count": 0}}, r"planning\.anchors\.count: expected at least 1"),
        ({"anchors": {"prices": {"colision": 1.0}}}, "expected one of 'collision'"),
        ({"anchors": {"prices": {"comfort": -1.0}}}, "prices: expected 0 or more each"),
        ({"status_dropout": 1.5}, r"planning\.status_dropout: expected 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=told):
            from_dict({"planning": values})


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_the_same_bits_again_and_bf16_nearby():
    head, batch, bev = make_head(), make_batch(), torch.rand(2, INPUTS, *GRID.shape)
    grads = []
    torch.use_deterministic_algorithms(True)
    try:
        for rough in (False, False, True):
            head.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=rough):
                losses = head.losses(head(bev, batch), batch)
            assert all(value.dtype == torch.float32 for value in losses.values())
            torch.stack(list(losses.values())).sum().backward()
            grads.append(flat([p.grad for p in head.parameters() if p.grad is not None]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(grads[0], grads[1])
    assert torch.cosine_similarity(grads[0], grads[2], dim=0) > 0.9
