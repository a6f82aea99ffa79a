"""Motion head: frames, who sees whom, what is learned, and that it learns to turn."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fusion3d.build import build_model
from fusion3d.config import Config, DetectionConfig, EvaluationConfig, MapConfig, MotionConfig, from_dict
from fusion3d.data.augment import bev_matrix, transform_batch, transform_boxes, transform_forecast
from fusion3d.data.subset import select_sensors
from fusion3d.engine.random_batch import random_batch
from fusion3d.engine.views import predict_views, views_of
from fusion3d.errors import ConfigError
from fusion3d.geometry import turn, wrap_angle
from fusion3d.heads.crowd import Agents, find_neighbours
from fusion3d.heads.merge import merge_agents, merge_boxes
from fusion3d.heads.motion import MATCH_DISTANCE, MotionHead, MotionPaths
from fusion3d.heads.rollout import constant_velocity
from fusion3d.metrics.forecast import forecast_errors
from fusion3d.types import DETECTION_CLASSES, TIME_STEP, Batch, BEVGrid, Boxes, Forecast, Motion

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_model import TINY, make_batch, mixed_sensors

GRID = BEVGrid(x=(-16.0, 16.0), y=(-16.0, 16.0), resolution=0.8)
CAR, CONE = DETECTION_CLASSES.index("car"), DETECTION_CLASSES.index("traffic_cone")
MOVES = torch.tensor([name not in ("traffic_cone", "barrier") for name in DETECTION_CLASSES])


def make_head(trained: bool = True, grid: BEVGrid = GRID, ground: BEVGrid | None = None, **settings) -> MotionHead:
    """A head that reads its map as it is; ``trained``: at random, so that it says more than it does at first."""
    torch.manual_seed(0)
    head = MotionHead(MotionConfig(**({"channels": 16, "layers": 1} | settings)), 16, grid, ground)
    head.shrink = nn.Sequential()  # convolutions know which way the grid lies
    if trained:
        for refine in head.passes:
            for last in (refine.out[-1], refine.likely[-1]):
                nn.init.normal_(last.weight, std=0.2)
    return head


def some_batch(size: int = 2, boxes: int = 12, seed: int = 0) -> Batch:
    config = dataclasses.replace(Config(), grid=GRID, data=dataclasses.replace(Config().data, image_size=(64, 64)))
    return random_batch(config, size, 10, 10, boxes, seed)


def forecast(head: MotionHead, bev: Tensor, boxes: tuple[Boxes, ...], batch: Batch) -> tuple[Forecast, ...]:
    with torch.no_grad():
        return head.eval().decode(head(bev, boxes, batch))


def same(one: Forecast, other: Forecast, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(one.score, other.score, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.position, other.position, atol=tolerance, rtol=1e-4)
    assert wrap_angle(one.yaw - other.yaw).abs().max() < 1e-3


def test_before_training_the_likeliest_way_is_constant_velocity_and_another_brakes():
    batch = some_batch(1, 20)
    assert batch.boxes is not None
    (said,) = forecast(make_head(trained=False), torch.rand(1, 16, *GRID.shape), batch.boxes, batch)
    straight, _ = constant_velocity(batch.boxes[0], TIME_STEP * torch.arange(1, 7))
    away = (said.position - straight[:, None]).norm(dim=-1).amax(-1)
    moves = MOVES[batch.boxes[0].label]
    assert away[moves, 0].max() < 1e-4
    speed = batch.boxes[0].velocity.norm(dim=1).nan_to_num()
    shortest = (said.position[:, :, -1] - batch.boxes[0].center[:, None, :2]).norm(dim=-1).amin(1)
    assert (shortest[moves & (speed > 3)] < 3 * speed[moves & (speed > 3)] - 1).all()
    still = batch.boxes[0][~moves]
    assert len(still) and torch.equal(said.position[~moves], still.center[:, None, None, :2].expand(-1, 6, 6, -1))
    torch.testing.assert_close(said.score.sum(1), torch.ones(20))
    assert (said.score.diff(dim=1) <= 0).all(), "the likeliest way first"


@settings(max_examples=12, deadline=None)
@given(quarter=st.integers(0, 3), shift=st.tuples(st.integers(-9, 9), st.integers(-9, 9)), seed=st.integers(0, 99))
def test_a_world_that_is_turned_and_shifted_goes_on_alike(quarter, shift, seed):
    """Map, boxes and grid turned and shifted together: every forecast is, too."""
    moved = [0.8 * cells for cells in shift]
    grid = BEVGrid(*((-16.0 + by, 16.0 + by) for by in moved), resolution=0.8)
    head, other = make_head(), make_head(grid=grid)
    other.load_state_dict(head.state_dict())
    torch.manual_seed(seed)
    batch, bev = some_batch(2, 8, seed), torch.randn(2, 16, *GRID.shape)
    assert batch.boxes is not None
    matrix = bev_matrix(quarter * math.pi / 2, shift=(*moved, 0.3))
    boxes = tuple(transform_boxes(of_sample, matrix) for of_sample in batch.boxes)
    before = forecast(head, bev, batch.boxes, batch)
    after = forecast(other, bev.rot90(-quarter, (2, 3)), boxes, batch)  # rows run along y, columns along x
    for one, two in zip(before, after, strict=True):
        same(transform_forecast(one, matrix), two)
    if quarter or any(shift):
        there = forecast(head, bev, boxes, batch)
        assert any((one.score - two.score).abs().max() > 1e-5 for one, two in zip(after, there, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    angle=st.floats(-3.1, 3.1), scale=st.floats(0.8, 1.2), flip_x=st.booleans(), flip_y=st.booleans(),
    shift=st.tuples(st.floats(-5, 5), st.floats(-5, 5)),
)  # fmt: skip
def test_what_is_learned_is_the_same_in_every_augmented_world(angle, scale, flip_x, flip_y, shift):
    """Seen from the agents, the truth of an augmented world is scaled, and in a mirror the other way round; and a head
    that says the truth is decoded to it."""
    head, batch = make_head(), dataclasses.replace(some_batch(), map_mask=None)
    matrix = bev_matrix(angle, scale, flip_x, flip_y, (*shift, 0.1))
    moved = transform_batch(batch, matrix)
    agents = [Agents.of(of.boxes, of.boxes) for of in (batch, moved) if of.boxes is not None]
    plain, seen = (head.targets(them, of) for them, of in zip(agents, (batch, moved), strict=True))
    assert torch.equal(plain.known, seen.known) and plain.known.any()
    sides = torch.tensor([scale, -scale if flip_x != flip_y else scale])
    torch.testing.assert_close(seen.position, plain.position * sides, atol=1e-3, rtol=1e-4)
    turned = wrap_angle(seen.yaw - (-1 if flip_x != flip_y else 1) * plain.yaw)[plain.known]
    assert turned.abs().max() < 1e-4
    ways = [part[None, :, None].expand(-1, -1, 6, *[-1] * (part.ndim - 1)) for part in (seen.position, seen.yaw)]
    paths = MotionPaths(moved.boxes or (), agents[1], *ways, torch.zeros(1, len(agents[1]), 6))
    losses = head.losses(paths, moved)
    assert losses["motion"] < 1e-6 and losses["motion_yaw"] < 1e-6
    for said, boxes, true in zip(head.decode(paths), moved.boxes or (), moved.motion or (), strict=True):
        known = true.path.mask & MOVES[boxes.label][:, None]
        torch.testing.assert_close(said.position[:, 0][known], true.path.position[known], atol=1e-3, rtol=1e-4)
        assert wrap_angle(said.yaw[:, 0] - true.path.yaw)[known].abs().max() < 1e-3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), counts=st.lists(st.integers(0, 6), min_size=1, max_size=3), near=st.integers(1, 7))
def test_neighbours_are_the_nearest_of_the_crowd_that_score_enough(seed, counts, near):
    draw = torch.Generator().manual_seed(seed)
    found = []
    for count in counts:
        at, score = torch.randn(count, 3, generator=draw) * 9, torch.rand(count, generator=draw)
        found.append(Boxes.of(at, torch.ones(count, 3), at[:, 0], at[:, :2], score=score))
    agents = Agents.of(found)
    sees = find_neighbours(agents, near, 0.3)
    assert sees.index.shape == sees.there.shape == (sum(counts), near)
    for agent in range(len(agents)):
        others = [
            (float((agents.boxes.center[agent, :2] - agents.boxes.center[n, :2]).norm()), n)
            for n in range(len(agents))
            if n != agent and agents.sample[n] == agents.sample[agent] and agents.boxes.score[n] > 0.3
        ]
        expected = [n for _, n in sorted(others)[:near]]
        assert sees.index[agent][sees.there[agent]].tolist() == expected
        for place, n in enumerate(expected):
            offset = agents.boxes.center[n] - agents.boxes.center[agent]
            own = turn(offset[None, None, :2], -agents.boxes.yaw[agent][None])[0, 0]
            torch.testing.assert_close(sees.relation[agent, place, :2], own / 10)


def test_agents_of_other_samples_and_of_the_truth_are_not_seen():
    head, batch, bev = make_head(), some_batch(), torch.randn(2, 16, *GRID.shape)
    assert batch.boxes is not None
    other = dataclasses.replace(batch.boxes[1], velocity=batch.boxes[1].velocity + 3)
    one, two = (forecast(head, bev, boxes, batch) for boxes in (batch.boxes, (batch.boxes[0], other)))
    same(one[0], two[0], 1e-6)
    assert (one[1].score - two[1].score).abs().max() > 1e-4
    alone = forecast(head, bev[:1], batch.boxes[:1], batch)
    same(one[0], alone[0], 1e-4)
    truths = dataclasses.replace(batch, boxes=(batch.boxes[0][:3], other))
    trained = [head.train().decode(head(bev, batch.boxes, of)) for of in (batch, truths)]
    same(trained[0][0], trained[1][0], 1e-6)
    neighbour = dataclasses.replace(
        batch.boxes[0], velocity=batch.boxes[0].velocity.index_fill(0, torch.tensor([1]), 9.0)
    )
    changed = forecast(head, bev, (neighbour, batch.boxes[1]), batch)
    assert (changed[0].score[0] - one[0].score[0]).abs().max() > 1e-6, "the others of its own crowd are seen"


def test_found_boxes_learn_from_the_nearest_true_one_of_their_class():
    head, batch = make_head(), some_batch(1, 20)
    assert batch.boxes is not None and batch.motion is not None
    true, motion = batch.boxes[0], batch.motion[0]
    off = torch.zeros(20, 3)
    off[:, 0] = torch.tensor([0.5, MATCH_DISTANCE + 0.01] * 10)
    found = dataclasses.replace(true, center=true.center + off, yaw=true.yaw + 0.2)
    wrong = dataclasses.replace(found, label=(found.label + 1) % 10)
    targets = head.targets(Agents.of((Boxes.cat([found, wrong]),)), batch)
    known = motion.path.mask & MOVES[true.label][:, None]
    assert torch.equal(targets.known[:20:2], known[::2]) and not targets.known[1:20:2].any()
    near = (wrong.center[:, None, :2] - true.center[:, :2]).norm(dim=-1) <= MATCH_DISTANCE
    assert not targets.known[20:][~(near & (wrong.label[:, None] == true.label)).any(1)].any()
    expected = turn(motion.path.position - found.center[:, None, :2], -found.yaw)
    torch.testing.assert_close(targets.position[:20][targets.known[:20]], expected[targets.known[:20]])
    # A batch that knows fewer steps, one of which is a gap, and a model that asks for more.
    motion.path.mask[:, 1] = False
    short = dataclasses.replace(motion, path=motion.path[:, :3])
    cut = head.targets(Agents.of(batch.boxes), dataclasses.replace(batch, motion=(short,)))
    assert torch.equal(cut.known[:, :3], short.path.mask & MOVES[true.label][:, None]) and not cut.known[:, 3:].any()


def test_the_best_way_takes_it_all():
    head, batch = make_head(passes=1, modes=3, truth_weight=2.0, loss_weight=1.0), some_batch(1, 1)
    size = torch.tensor([[4.6, 1.9, 1.7]])
    box = Boxes.of(torch.tensor([[3.0, 1.0, 0.5]]), size, torch.tensor([1.0]), torch.zeros(1, 2), torch.tensor([CAR]))
    agents = Agents.of((box,), (box,))
    assert batch.motion is not None
    path = batch.motion[0].path
    path.mask[:] = torch.tensor([True, True, False, True, False, False])
    truth = torch.tensor([[2.0, 1.0]]).expand(6, 2)
    path.position[:] = box.center[:, :2] + turn(truth[None], box.yaw)
    path.yaw[:] = 1.0
    batch = dataclasses.replace(batch, boxes=(box,), motion=(Motion(path[:, 0], path, size, torch.tensor([CAR])),))
    position = torch.zeros(1, 2, 3, 6, 2) + truth
    position[:, :, 0, :, 0] += 3.0  # every step 3 m off
    position[:, :, 1, :, 0] += 2.0  # 2 m: the best over the known steps
    position[:, :, 2, ::2] += 9.0
    yaw, logits = torch.full((1, 2, 3, 6), 0.5), torch.zeros(1, 2, 3)
    parts = [part.requires_grad_() for part in (position, yaw, logits)]
    losses = head.losses(MotionPaths((box,), agents, *parts), batch)
    # Weights 1 and 2 of the found and the true one: means of the same.
    torch.testing.assert_close(losses["motion"], torch.tensor(2.0 - 0.25))
    torch.testing.assert_close(losses["motion_yaw"], torch.tensor(0.5 * (1 - math.cos(0.5))))
    torch.testing.assert_close(losses["motion_mode"], torch.tensor(math.log(3)))
    torch.stack(list(losses.values())).sum().backward()
    taught = position.grad[0, :, :, :, 0] != 0
    assert torch.equal(taught, (torch.arange(3)[:, None] == 1) & path.mask.expand(2, 1, -1))
    assert (logits.grad[0, :, 1] < 0).all() and (logits.grad[0, :, ::2] > 0).all()


def test_every_layer_has_a_gradient_whatever_there_is():
    """Processes that train together all go through every layer: with no box, no truth and nothing known of it."""
    full = some_batch()
    assert full.boxes is not None
    none = tuple(of[:0] for of in full.boxes)
    unknown = dataclasses.replace(full, motion=None)
    nothing = dataclasses.replace(unknown, boxes=None)
    for found, batch, learns in (
        (full.boxes, full, True),
        (none, full, True),
        (none, unknown, False),
        (none, nothing, False),
    ):
        head, bev = make_head(ground=GRID).train(), torch.randn(2, 16, *GRID.shape, requires_grad=True)
        paths = head(bev, found, batch, torch.randn(2, 6, *GRID.shape))
        losses = head.losses(paths, batch)
        assert all(loss.isfinite() for loss in losses.values()) and (losses["motion"] > 0) == learns
        torch.stack(list(losses.values())).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
        assert bool(bev.grad.any()) == learns, "what is learned reaches the map"
        assert [len(of) for of in head.decode(paths)] == [len(of) for of in found]


def test_a_lone_box_unknown_velocities_and_other_horizons():
    for settings_ in (
        {"steps": 12, "modes": 1},
        {"modes": 13, "neighbours": 1},
        {"steps": 1, "layers": 3, "passes": 1},
    ):
        head, batch = make_head(**settings_), some_batch(1, 1)
        assert batch.boxes is not None
        assert not batch.boxes[0].velocity.isfinite().any()
        (said,) = forecast(head, torch.randn(1, 16, *GRID.shape), batch.boxes, batch)
        shape = (1, settings_.get("modes", 6), settings_.get("steps", 6))
        assert said.yaw.shape == shape and said.position.isfinite().all()


def test_the_map_head_is_read_where_there_is_one():
    ground = BEVGrid(x=(-8.0, 8.0), y=(-4.0, 4.0), resolution=0.5)
    head, batch, bev = make_head(ground=ground), some_batch(1), torch.randn(1, 16, *GRID.shape)
    assert batch.boxes is not None
    road = torch.full((1, 6, *ground.shape), -9.0)
    with torch.no_grad():
        plain, other = (head.eval().decode(head(bev, batch.boxes, batch, of))[0] for of in (road, road + 18))
    inside = (batch.boxes[0].center[:, :2].abs() < torch.tensor([6.0, 3.0])).all(1) & MOVES[batch.boxes[0].label]
    assert inside.any() and (plain.score - other.score).abs().amax(1)[inside].min() > 1e-6


def test_it_learns_turns_that_constant_velocity_does_not_know():
    """A few scenes by heart: found boxes a little off, the way that each turns said by the map alone."""
    torch.manual_seed(0)
    batch, bev = some_batch(2, 10, 5), torch.randn(2, 16, *GRID.shape)
    assert batch.boxes is not None and batch.motion is not None
    found = tuple(dataclasses.replace(of, center=of.center + 0.1) for of in batch.boxes)
    head = MotionHead(MotionConfig(channels=32, layers=1, truth_noise=0.3), 16, GRID).train()
    optimizer = torch.optim.AdamW(head.parameters(), 3e-3)
    for _ in range(70):
        optimizer.zero_grad()
        torch.stack(list(head.losses(head(bev, found, batch), batch).values())).sum().backward()
        optimizer.step()
    ours, usual = [], []
    for boxes, said, true in zip(found, forecast(head, bev, found, batch), batch.motion, strict=True):
        goes = true.path.mask[:, 0] & MOVES[boxes.label] & (boxes.velocity.norm(dim=1) > 1)
        straight = constant_velocity(boxes, TIME_STEP * torch.arange(1, 7))[0][:, None]
        truth, sure = true.path.position[goes].numpy(), torch.ones(int(goes.sum()), 1).numpy()
        ours.append(forecast_errors(said.position[goes].numpy(), said.score[goes].numpy(), truth)[:, :2])
        usual.append(forecast_errors(straight[goes].numpy(), sure, truth)[:, :2])
    minade, constant = (np.concatenate(of).mean(axis=0) for of in (ours, usual))
    assert constant[0] > 0.5 and (minade < 0.5 * constant).all(), (minade, constant)


# -- in the whole model


WHOLE = dataclasses.replace(TINY, motion=MotionConfig(channels=16), map=MapConfig(channels=8))


def check(model: nn.Module, seen: Batch, full: Batch) -> None:
    losses = model.losses(model(seen), full)
    mine = {name: value for name, value in losses.items() if "motion" in name}
    assert len(mine) >= 3 and all(value.isfinite() for value in losses.values())
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    said = model.decode(model(seen), seen)
    for boxes, ways in zip(said.boxes, said.motion, strict=True):
        assert len(boxes) == len(ways) and ways.position.isfinite().all()


@pytest.mark.parametrize("stage", ["middle", "late"])
def test_the_whole_model_forecasts_its_own_boxes(stage):
    torch.manual_seed(0)
    detection = DetectionConfig(channels=16, head="query" if stage == "middle" else "center", max_boxes=30)
    fusion = dataclasses.replace(WHOLE.fusion, stage=stage)
    config = dataclasses.replace(WHOLE, fusion=fusion, detection=detection)
    model, full = build_model(config), make_batch(3)
    with torch.autocast("cpu", torch.bfloat16, enabled=stage == "middle"):
        for seen in (mixed_sensors(full), select_sensors(full, [])):
            check(model, seen, full)
    views = views_of(dataclasses.replace(config, evaluation=EvaluationConfig("flip")))
    with torch.no_grad():
        merged = predict_views(model.eval(), dataclasses.replace(full, map_mask=None), views[:2])
    assert merged.boxes is not None and merged.motion is not None
    assert [len(of) for of in merged.motion] == [len(of) for of in merged.boxes]


def test_motion_needs_detection():
    with pytest.raises(ConfigError, match="motion is set and detection is null"):
        build_model(from_dict({"motion": {}, "detection": None}))


def test_merged_boxes_go_on_as_the_best_of_each():
    batch = some_batch(1, 6)
    assert batch.boxes is not None
    score = torch.linspace(0.3, 0.8, 6)
    one = dataclasses.replace(batch.boxes[0], score=score, velocity=batch.boxes[0].velocity.nan_to_num())
    two = dataclasses.replace(one, center=one.center + 0.1, score=score.flip(0))[:5]
    ways = [Forecast(of.center[:, None, None, :2] + i + torch.zeros(len(of), 2, 3, 2), torch.zeros(len(of), 2, 3),
                     torch.tensor([[0.7, 0.3]]).expand(len(of), -1)) for i, of in ((1.0, one), (2.0, two))]  # fmt: skip
    merged, motion = merge_agents([one, two], ways)
    plain = merge_boxes([one, two])
    assert torch.equal(merged.center, plain.center) and torch.equal(merged.score, plain.score) and len(motion) == 6
    # The forecast keeps its distance from the box: 1 where the first answer was surer, 2 where the second was.
    away = (motion.position - merged.center[:, None, None, :2])[:, 0, 0, 0]
    origin = (one.center[:, None, :2] - merged.center[:, :2]).norm(dim=-1).argmin(0)
    surer = torch.tensor([1.0 if i == 5 or one.score[i] >= two.score[i] else 2.0 for i in origin.tolist()])
    torch.testing.assert_close(away, surer, atol=1e-5, rtol=0)
