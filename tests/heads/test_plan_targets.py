"""What a planner learns to foresee, against the metric that it is scored by; frames, and what the grid says."""

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

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))

from worlds import arc, drives, traffic

from fusion3d.config import Config
from fusion3d.data.augment import bev_matrix, transform_batch
from fusion3d.engine.random_batch import random_batch
from fusion3d.geometry.driving import comfortable, overlap_depth, progress
from fusion3d.heads.planning.choice import choose, crashes, expected_cost
from fusion3d.heads.planning.frame import EgoFrame
from fusion3d.heads.planning.targets import LEARNED, drivable, score_targets
from fusion3d.metrics.planning import Drives, Ground
from fusion3d.metrics.planning import pdm as metric
from fusion3d.metrics.planning.contacts import meet
from fusion3d.metrics.planning.rectangles import depth
from fusion3d.types import MAP_CLASSES, Batch, BEVGrid, Boxes, EgoStatus, Forecast, Motion, Trajectory

GRID = BEVGrid(x=(-32.0, 64.0), y=(-48.0, 48.0), resolution=0.5)
TIME = 0.5 * np.arange(1, 7)
TOUCHING = 1e-3  # [m] nearer to touching than this, rounding decides


def batch_of(of: Drives, grid: BEVGrid = GRID, road: torch.Tensor | None = None) -> Batch:
    """Samples of known worlds as a batch."""
    config = dataclasses.replace(Config(), grid=grid, data=dataclasses.replace(Config().data, image_size=(8, 8)))
    base = random_batch(config, len(of), 0, 0, 0)
    motions = []
    for sample in range(len(of)):
        mine = of.agents[(of.agents.sample == sample) & (of.agents.step >= 0) & (of.agents.step <= 6)]
        tracks = sorted(set(mine.track.tolist()), key=lambda t: (0 not in mine.step[mine.track == t], t))
        place, mask = np.full((len(tracks), 7, 5), np.nan), np.zeros((len(tracks), 7), dtype=bool)
        rows = [tracks.index(track) for track in mine.track.tolist()]
        place[rows, mine.step], mask[rows, mine.step] = mine.box, True
        box, there = torch.from_numpy(place).float(), torch.from_numpy(mask)
        size = torch.from_numpy(np.array([mine.box[mine.track == t][0, 2:4] for t in tracks]).reshape(-1, 2))
        size = torch.nn.functional.pad(size, (0, 1), value=1.5).float()
        path = Trajectory(box[..., :2], box[..., 4], there)
        motions.append(Motion(path[:, 0], path[:, 1:], size, torch.full((len(tracks),), -1)))
    future = torch.from_numpy(of.future).float()
    turned = torch.from_numpy(-of.past[:, 0, 2] / of.past_time[:, 0]).float()
    known = torch.zeros(len(of), len(MAP_CLASSES), dtype=torch.bool)
    known[:, 0] = road is not None
    mask = torch.zeros(len(of), len(MAP_CLASSES), *grid.shape, dtype=torch.bool)
    if road is not None:
        mask[:, 0] = road
    return dataclasses.replace(
        base,
        motion=tuple(motions),
        future=Trajectory(future[..., :2], future[..., 2], torch.from_numpy(of.known)),
        status=EgoStatus(torch.from_numpy(of.velocity).float(), torch.zeros(len(of), 2), turned),
        map_mask=mask,
        map_known=known,
        annotated=torch.ones(len(of), dtype=torch.bool),
    )


def plans_of(of: Drives, count: int, seed: int) -> np.ndarray:
    """[N, K, 6, 3] the human's path, and others more and more beside it."""
    rng = np.random.default_rng(seed)
    spread = np.linspace(0, 1.0, count)[None, :, None, None] * (2, 1, 0.1)
    drift = rng.normal(0, 1, (len(of), count, 1, 3)) * spread * TIME[:, None]
    return of.future[:, None] + drift + rng.normal(0, 0.05, (len(of), count, 6, 3)) * spread


@pytest.mark.parametrize("seed", [0, 1])
def test_every_score_is_the_metrics(seed):
    of, road = traffic(seed, 30, people=8), torch.zeros(GRID.shape, dtype=torch.bool)
    cells = GRID.centers()
    road[(cells[..., 1].abs() < 5.0) | ((cells[..., 0] - 12).abs() < 4.0)] = True
    count, batch = 6, batch_of(of, road=road)
    plans = plans_of(of, count, seed)

    def on(row: int, xy: np.ndarray) -> np.ndarray:
        x, y = np.floor((xy - (GRID.x[0], GRID.y[0])) / GRID.resolution).astype(int).T
        inside = (x >= 0) & (x < GRID.shape[1]) & (y >= 0) & (y < GRID.shape[0])
        return ~inside | road.numpy()[np.clip(y, 0, GRID.shape[0] - 1), np.clip(x, 0, GRID.shape[1] - 1)]

    path = torch.from_numpy(plans).float()
    value, known = score_targets(path, batch, EgoFrame.whole(batch), GRID)
    assert known.all() and value.shape == (30, count, len(LEARNED))
    ground = Ground(np.ones(30, dtype=bool), on)
    for mode in range(count):
        plan = path[:, mode].numpy().astype(np.float64)
        contacts = meet({"m": plan}, of)["m"]
        least = np.abs(contacts.clearance).min(axis=1)
        expected = {
            "collision": contacts.any.any(axis=1),
            "off_road": metric.off_road(plan, ground).any(axis=1),
            "comfort": metric.comfortable(plan, of),
            "progress": metric.progress(plan, of.future),
        }
        found = {name: value[:, mode, column].numpy() for column, name in enumerate(LEARNED)}
        np.testing.assert_allclose(found["progress"], expected["progress"], atol=1e-4)
        other = {name: found[name].astype(bool) != expected[name] for name in ("collision", "off_road", "comfort")}
        assert not other["collision"][least > TOUCHING].any()
        assert other["off_road"].sum() <= 1 >= other["comfort"].sum(), "one may be within rounding of a bound"
    shares = value.mean((0, 1))
    assert ((shares > 0.05) & (shares < 0.95)).all(), f"each of them is sometimes so and sometimes not: {shares}"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_overlap_is_the_metrics(seed):
    rng = np.random.default_rng(seed)
    boxes = rng.normal(0, 3, (2, 64, 5))
    boxes[..., 2:4] = rng.uniform(0.1, 6, (2, 64, 2))
    found = overlap_depth(*torch.from_numpy(boxes))
    np.testing.assert_allclose(found.numpy(), depth(*boxes), atol=1e-9)


def test_progress_and_comfort_at_their_limits():
    """Standing humans, plans that go on, back or nowhere; no jerk in too few steps."""
    human = np.concatenate([arc(4.0, 0.0, TIME), arc(0.0, 0.0, TIME), arc(6.0, 0.3, TIME)])
    plans = [arc(v, r, TIME) for v, r in ((8.0, 0.0), (-2.0, 0.0), (0.0, 0.0), (6.0, -0.3), (3.0, 0.1))]
    for plan in plans:
        every = np.repeat(plan, 3, axis=0)
        found = progress(torch.from_numpy(every).float(), torch.from_numpy(human).float())
        np.testing.assert_allclose(found.numpy(), metric.progress(every, human), atol=1e-5)
    short = torch.zeros(1, 1, 3)
    assert comfortable(short, torch.zeros(1, 2), torch.zeros(1)).all()
    assert not comfortable(short, torch.tensor([[3.0, 0.0]]), torch.zeros(1)).any(), "6 m/s^2"


def test_what_is_not_known_is_not_learned():
    """Half a future, nothing annotated, no map, no past: each takes away its own; NaN hides nowhere."""
    of = traffic(3, 4, people=5)
    batch = batch_of(of)
    assert batch.future is not None and batch.status is not None and batch.motion is not None
    path = torch.from_numpy(plans_of(of, 3, 0)).float()
    frame = EgoFrame.whole(batch)
    _, known = score_targets(path, batch, frame, GRID)
    assert known[..., [0, 2, 3]].all() and not known[..., 1].any(), "without a map nothing is off the road"
    mask = batch.future.mask.clone()
    mask[0, 4:] = False
    position = torch.where(mask[..., None], batch.future.position, torch.nan)
    cut = dataclasses.replace(batch, future=dataclasses.replace(batch.future, mask=mask, position=position))
    value, known = score_targets(path, cut, frame, GRID)
    assert value.isfinite().all() and not known[0, :, 3].any() and known[1:, :, 3].all()
    assert torch.equal(known[0, :, 0], value[0, :, 0].bool()), "a hit is one, however it goes on"
    blind = EgoStatus(
        *(torch.full_like(getattr(batch.status, f.name), torch.nan) for f in dataclasses.fields(EgoStatus))
    )
    bare = dataclasses.replace(
        batch, status=blind, motion=None, annotated=torch.zeros(4, dtype=torch.bool), future=None
    )
    value, known = score_targets(path, bare, frame, GRID)
    assert not known.any() and (value == 0).all()
    _, known = score_targets(path, dataclasses.replace(bare, status=None, map_mask=None), frame, GRID)
    assert not known.any()


AUGMENTED = st.builds(
    bev_matrix,
    angle=st.floats(-math.pi, math.pi),
    scale=st.floats(0.8, 1.25),
    flip_x=st.booleans(),
    flip_y=st.booleans(),
    shift=st.tuples(*[st.floats(-2, 2)] * 3),
)


@settings(max_examples=20, deadline=None)
@given(matrix=AUGMENTED)
def test_scores_are_of_the_world_whatever_is_done_to_it(matrix):
    of = traffic(5, 6, people=8)
    batch = dataclasses.replace(batch_of(of), map_mask=None)
    path = torch.from_numpy(plans_of(of, 4, 5)).float()
    moved = transform_batch(batch, matrix)
    value, known = score_targets(path, batch, EgoFrame.whole(batch), GRID)
    again, still = score_targets(path, moved, EgoFrame.whole(moved), GRID)
    assert torch.equal(known, still)
    assert (value[..., 3] - again[..., 3]).abs().max() < 1e-3
    assert (value[..., :3] != again[..., :3]).sum() <= 1, "but for one within rounding of touching"


@settings(max_examples=30, deadline=None)
@given(matrix=AUGMENTED)
def test_frames_go_there_and_back(matrix):
    batch = dataclasses.replace(batch_of(drives(np.repeat(arc(5.0, 0.2, TIME), 2, 0))), map_mask=None)
    assert batch.future is not None
    moved = transform_batch(batch, matrix)
    assert moved.future is not None
    for frame in (EgoFrame.whole(moved), EgoFrame.heading(moved)):
        xy, yaw = torch.randn(2, 3, 5, 2), torch.randn(2, 3, 5)
        torch.testing.assert_close(frame.to_ego(frame.to_batch(xy)), xy, atol=1e-4, rtol=1e-4)
        again = frame.yaw_to_ego(frame.yaw_to_batch(yaw))
        torch.testing.assert_close(torch.stack([again.cos(), again.sin()]), torch.stack([yaw.cos(), yaw.sin()]))
    whole = EgoFrame.whole(moved)
    torch.testing.assert_close(whole.to_ego(moved.future.position), batch.future.position, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(whole.yaw_to_ego(moved.future.yaw), batch.future.yaw, atol=1e-4, rtol=1e-4)
    assert (whole.mirrored == (np.linalg.det(matrix) < 0)).all() and not EgoFrame.heading(moved).mirrored.any()
    torch.testing.assert_close(whole.scale, torch.full((2,), float(matrix[2, 2])))


def test_the_map_is_looked_up_by_cell():
    road = torch.rand(GRID.shape) < 0.5
    batch = batch_of(drives(arc(5.0, 0.0, TIME)), road=road)
    places = GRID.centers()[::7, ::5].reshape(1, -1, 2) + (torch.rand(2) - 0.5) * 0.49
    on, known = drivable(batch, GRID, places)
    assert known.all() and torch.equal(on[0], road[::7, ::5].flatten())
    assert not drivable(batch, GRID, torch.tensor([[[64.1, 0.0], [torch.nan, 0.0]]]))[1].any()


def test_the_choice():
    """Costs by hand; what nothing is said of costs nothing."""
    path = torch.randn(1, 3, 6, 3)
    likely = torch.tensor([[0.0, 1.0, -0.5]])
    score = torch.tensor([[[2.0, -1.0, 0.5, 0.0], [-2.0, 1.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0]]])
    cost, prices = torch.tensor([[[0.25, 0.0], [1.0, 0.5], [0.0, 0.0]]]), (10.0, 2.0, 0.5, 0.3, 0.4, 0.2)
    found = expected_cost(path, likely, score, cost, prices)[0]
    total = sum(math.exp(value) for value in likely[0].tolist())
    for mode in range(3):
        expected = 0.0
        for other in range(3):
            away = [
                math.dist(a[:2], b[:2]) for a, b in zip(path[0, mode].tolist(), path[0, other].tolist(), strict=True)
            ]
            expected += math.exp(likely[0, other]) / total * sum(away) / 6
        p = [1 / (1 + math.exp(-s)) for s in score[0, mode].tolist()]
        bad = (p[0], p[1], 1 - p[2], 1 - p[3], *cost[0, mode].tolist())
        expected += sum(price * value for price, value in zip(prices, bad, strict=True))
        assert found[mode].item() == pytest.approx(expected, abs=1e-4)
    unsaid = expected_cost(path, likely, score, torch.full_like(cost, torch.nan), prices)
    torch.testing.assert_close(unsaid, expected_cost(path, likely, score, torch.zeros_like(cost), prices))


def test_a_path_into_a_found_box_is_out_if_there_is_another():
    batch = batch_of(drives(np.repeat(arc(5.0, 0.0, TIME), 2, 0)))
    matrix = bev_matrix(0.7, 1.1, False, True, (1.0, -2.0, 0.0))
    moved = transform_batch(dataclasses.replace(batch, map_mask=None), matrix)
    frame = EgoFrame.whole(moved)
    ahead, aside = arc(5.0, 0.0, TIME), arc(5.0, 0.5, TIME)
    path = torch.from_numpy(np.stack([ahead, aside], 1)).float().expand(2, -1, -1, -1)
    size = torch.tensor([[4.5, 1.9, 1.5]])

    def box(x: float, velocity: tuple[float, float], score: float) -> Boxes:
        center = torch.tensor([[[x, 0.0]]])
        place = torch.nn.functional.pad(frame[0].to_batch(center)[0], (0, 1))
        speed = frame[0].turn_out(torch.tensor([[velocity]]))[0]
        yaw = frame[0].yaw_to_batch(torch.zeros(1, 1))[0]
        return Boxes.of(place, size * 1.1, yaw, speed, score=torch.tensor([score]))

    assert crashes(path, (box(12.0, (0, 0), 0.9), Boxes.empty()), frame, 0.3).tolist() == [[True, False], [False] * 2]
    assert not crashes(path, (box(12.0, (5.0, 0), 0.9), box(12.0, (0, 0), 0.2)), frame, 0.3).any(), "gone, or unsure"
    both = crashes(path, (box(4.0, (0, 0), 0.9),) * 2, frame, 0.3)
    assert both.all() and choose(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), both).tolist() == [1, 0], "neither is out"
    still = crashes(path, (box(12.0, (math.nan, 0), 0.9),) * 2, frame, 0.3)
    assert still.tolist() == [[True, False]] * 2, "what nobody knows the speed of stands"

    found = (box(12.0, (5.0, 0), 0.9),) * 2
    here = found[0].center[:, None, None, :2].expand(-1, 1, path.shape[2], -1)
    heads = found[0].yaw[:, None, None].expand(-1, 1, path.shape[2])
    stays = Forecast(here, heads, torch.ones(1, 1))
    goes = Forecast(torch.cat([here + 100, here], 1), heads.expand(-1, 2, -1), torch.tensor([[0.6, 0.4]]))
    assert crashes(path, found, frame, 0.3, (stays,) * 2)[:, 0].all(), "another forecast"
    assert not crashes(path, found, frame, 0.3, (goes,) * 2).any(), "the likeliest way counts"
