"""Radar: footprints, velocities and the two streams, against plain loops; and that measured velocity reaches a head."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusion3d import ops
from fusion3d.config import DualConfig, RadarConfig
from fusion3d.encoders.footprint import advance, deviation, moving, spread_returns, velocity_map
from fusion3d.encoders.radar import make_radar
from fusion3d.encoders.streams import DistanceAttention
from fusion3d.errors import ConfigError
from fusion3d.types import RADAR_FIELDS, BEVGrid, PointCloud

GRID = BEVGrid(x=(-8.0, 8.0), y=(-4.0, 4.0), z=(-5.0, 3.0), resolution=1.0)
DUAL = RadarConfig(encoder="dual", channels=8, dual=DualConfig(channels=8, heads=2, blocks=2))
COLUMN = {name: number for number, name in enumerate(RADAR_FIELDS)}


def returns(count: int, seed: int = 0, **columns: float | Tensor) -> Tensor:
    """Returns all over the grid and a little beyond, of which most move; the columns given are set."""
    random = np.random.default_rng(seed)
    out = np.zeros((count, len(RADAR_FIELDS)), np.float32)
    out[:, 0], out[:, 1] = random.uniform(-9, 9, count), random.uniform(-4.5, 4.5, count)
    out[:, COLUMN["rcs"]] = random.uniform(-15, 25, count)
    out[:, COLUMN["vx"] : COLUMN["vy"] + 1] = random.normal(0, 4, (count, 2))
    out[:, COLUMN["time"]] = random.uniform(0, 0.5, count)
    out[:, COLUMN["ambig_state"]] = random.choice([3, 3, 3, 1], count)
    out[:, COLUMN["dyn_prop"]] = random.integers(0, 8, count)
    points = torch.from_numpy(out)
    for name, value in columns.items():
        points[:, COLUMN[name]] = value
    return points


def cloud(points: Tensor, sample: list[int] | None = None, present: tuple[bool, ...] = (True,)) -> PointCloud:
    index = torch.tensor(sample or [0] * len(points), dtype=torch.int64)
    return PointCloud(points, index, torch.tensor(present))


def width_of(rcs: float, footprint: float) -> float:
    """By hand: the fourth root of the RCS in square metres, and half a cell of 1 m."""
    return math.sqrt((footprint * (10 ** (min(max(rcs, -10), 20) / 10)) ** 0.25) ** 2 + 0.25)


def spread_by_hand(values: np.ndarray, points: np.ndarray, sample: np.ndarray, size: int, footprint: float):
    rows, cols = GRID.shape
    out = np.zeros((size, values.shape[1], rows, cols))
    for value, point, b in zip(values, points, sample, strict=True):
        if not (-8 <= point[0] < 8 and -4 <= point[1] < 4 and -5 <= point[2] < 3):
            continue
        width = width_of(point[3], footprint)
        for iy in range(rows):
            for ix in range(cols):
                away = math.hypot(ix + 0.5 - 8 - point[0], iy + 0.5 - 4 - point[1])
                if away < 2.5 * width:
                    out[b, :, iy, ix] += value * math.exp(-((away / width) ** 2) / 2)
    return out


@pytest.mark.parametrize("footprint", [0.05, 0.5, 1.0])
def test_returns_are_spread_as_by_a_plain_loop(footprint):
    points, sample = returns(60), torch.arange(60) // 20
    points[3, 0], points[4, 2] = float("nan"), 4.0
    values = torch.randn(60, 5)
    found = spread_returns(values, points, sample, 4, GRID, footprint)
    want = spread_by_hand(values.double().numpy(), points.double().numpy(), sample.numpy(), 4, footprint)
    torch.testing.assert_close(found, torch.from_numpy(want).float(), atol=1e-5, rtol=1e-5)
    assert not found[3].any() and spread_returns(values[:0], points[:0], sample[:0], 2, GRID, 0.5).shape == (
        2,
        5,
        8,
        16,
    )


def test_a_footprint_grows_with_rcs_and_always_holds_its_own_cell():
    widths = deviation(torch.tensor([-30.0, -10.0, 0.0, 10.0, 20.0, 40.0, float("nan")]), 0.5, 1.0)
    want = [width_of(rcs, 0.5) for rcs in (-10, -10, 0, 10, 20, 20, 0)]
    torch.testing.assert_close(widths, torch.tensor(want))
    corner = returns(1, x=1.0, y=1.0, z=0.0, rcs=-10.0)
    small = spread_returns(torch.ones(1, 1), corner, torch.zeros(1, dtype=torch.int64), 1, GRID, 1e-3)
    large = spread_returns(
        torch.ones(1, 1),
        corner + F.one_hot(torch.tensor([3]), len(RADAR_FIELDS)) * 30,
        torch.zeros(1).long(),
        1,
        GRID,
        0.5,
    )
    assert small[0, 0, 5, 9] > 0.3 and 4 <= small.count_nonzero() < large.count_nonzero()


def test_gradients_of_spreading_are_those_of_the_sum():
    points, sample = returns(12), torch.arange(12) // 6
    values = torch.randn(12, 3, requires_grad=True)
    weight = torch.randn(2, 3, *GRID.shape)
    (spread_returns(values, points, sample, 2, GRID, 0.5) * weight).sum().backward()
    for row in range(12):
        only = torch.zeros(12, 1)
        only[row] = 1.0
        share = spread_returns(only, points, sample, 2, GRID, 0.5)
        torch.testing.assert_close(values.grad[row], (share * weight).sum((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_velocity_of_a_cell_is_the_weighted_mean_of_its_moving_returns():
    points, sample = returns(30), torch.arange(30) // 15
    points[0, COLUMN["vx"]] = float("nan")
    found = velocity_map(points, sample, 2, GRID, 0.5)
    table = points.double().numpy()
    speed = np.hypot(table[:, 4], table[:, 5])
    moves = (table[:, COLUMN["ambig_state"]] == 3) & (speed > 0.5)
    assert moves.tolist() == moving(points).tolist() and 10 < moves.sum() < 28
    amplitude = 10 ** (table[:, 3].clip(-10, 20) / 20)
    values = np.stack([amplitude * table[:, 4], amplitude * table[:, 5], amplitude, np.ones(30)], axis=1)
    sums = spread_by_hand(values[moves], table[moves], sample.numpy()[moves], 2, 0.5)
    known = sums[:, 3] > 0
    want = np.where(known[:, None], sums[:, :2] / np.where(known, sums[:, 2], 1)[:, None], 0) / 10
    want = np.concatenate([want, sums[:, 3:].clip(max=1)], axis=1)
    torch.testing.assert_close(found, torch.from_numpy(want).float(), atol=1e-5, rtol=1e-4)
    assert known.any() and not known.all()


def test_moving_returns_of_old_sweeps_come_to_where_the_object_is():
    """One object that drives along the ray, seen in six sweeps; an ambiguous, a still and a broken return stay."""
    age = torch.arange(6) * 0.075
    seen = returns(6, x=6.0 - 8.0 * age, y=3.0 - 4.0 * age, vx=8.0, vy=4.0, time=age, ambig_state=3.0)
    moved = advance(seen)
    torch.testing.assert_close(moved[:, :2], torch.tensor([[6.0, 3.0]]).expand(6, 2))
    assert torch.equal(moved[:, 2:], seen[:, 2:]) and (seen[1:, 0] != 6.0).all(), "the input stays as it is"
    for columns in ({"ambig_state": 1.0}, {"vx": 0.1, "vy": 0.1}, {"vx": float("nan")}, {"time": float("nan")}):
        still = returns(6, **({"ambig_state": 3.0} | columns))
        assert torch.equal(advance(still)[:, :2], still[:, :2])


def test_attention_equals_a_plain_loop_with_distances():
    torch.manual_seed(0)
    layer = DistanceAttention(8, 2)
    query, context, place = torch.randn(30, 8), torch.randn(30, 8), torch.rand(30, 2) * 100 - 50
    plan = ops.segment_plan(torch.tensor([0] * 20 + [2] * 10), 3, keep_empty=True)
    want = torch.empty(30, 8)
    with torch.no_grad():
        q = layer.query(layer.norm_query(query)).double()
        k, v = layer.key_value(layer.norm_context(context)).double().chunk(2, dim=1)
        for rows in (torch.arange(20), torch.arange(20, 30)):
            for i in rows.tolist():
                heads = []
                for head in range(2):
                    part, fall = slice(4 * head, 4 * head + 4), math.exp(float(layer.log_falloff[head]))
                    score = [
                        float(q[i, part] @ k[j, part]) / 2 - fall * float((place[i] - place[j]).square().sum())
                        for j in rows
                    ]
                    weight = torch.tensor(score, dtype=torch.float64).softmax(0)
                    heads.append(sum(w * v[j, part] for w, j in zip(weight, rows, strict=True)))
                want[i] = torch.cat(heads).float()
        torch.testing.assert_close(layer(query, context, place, plan), layer.out(want), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["pillars", "dual"])
def test_order_and_other_samples_do_not_matter_and_nan_is_nowhere(encoder):
    net = make_radar(dataclasses.replace(DUAL, encoder=encoder), GRID).eval()
    mine, others = returns(40), returns(50, seed=1)
    mine[0, 0], mine[1, COLUMN["vx"]], mine[2, COLUMN["rcs"]] = float("nan"), float("nan"), float("nan")
    with torch.no_grad():
        alone, shuffled, without = (net(cloud(p)) for p in (mine, mine[torch.randperm(40)], mine[1:]))
        among = net(cloud(torch.cat([others, mine]), [0] * 50 + [2] * 40, (True, False, True)))
    assert alone is not None and alone.shape == (1, 8, 8, 16) and alone.isfinite().all() and alone.any()
    for other in (shuffled, without, among[2:]):
        torch.testing.assert_close(other, alone, atol=1e-5, rtol=1e-5)
    assert not among[1].any() and net(cloud(mine[:0], [], (False,))) is None


@pytest.mark.parametrize("count", [0, 1, 60])
def test_dual_trains_on_any_number_of_returns(count):
    torch.manual_seed(0)
    net = make_radar(DUAL, GRID).train()
    result = net(cloud(returns(60)[:count]))
    assert result is not None and result.shape == (1, 8, 8, 16) and result.isfinite().all()
    (result * torch.randn_like(result)).sum().backward()
    grads = {name: p.grad for name, p in net.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    assert count < 60 or all(grad.any() for grad in grads.values() if grad is not None)


@pytest.mark.parametrize("encoder", ["pillars", "dual"])
def test_bfloat16_stays_near_and_keeps_velocity(encoder):
    net = make_radar(dataclasses.replace(DUAL, encoder=encoder), GRID).eval()
    points = cloud(returns(60))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = net(points)
    exact = net(points)
    assert rough is not None and exact is not None
    assert (rough.float() - exact).abs().mean() < 0.03 * exact.abs().mean()
    torch.testing.assert_close(rough[:, -3:].float(), exact[:, -3:], atol=1e-3, rtol=1e-2)


def test_a_map_without_velocity_is_all_learned():
    net = make_radar(dataclasses.replace(DUAL, velocity=False, advance=False), GRID).eval()
    result = net(cloud(returns(30)))
    assert result is not None and result.shape[1] == net.channels == 8
    assert not torch.allclose(result[:, -3:], velocity_map(returns(30), torch.zeros(30).long(), 1, GRID, 0.5))


def test_settings_that_do_not_fit_are_refused_with_both_keys():
    for message, config in {
        r"radar\.channels: radar\.velocity and radar\.odometry take 3 of 2": RadarConfig(channels=2),
        r"radar\.dual\.channels.*radar\.dual\.heads": RadarConfig(encoder="dual", dual=DualConfig(heads=3)),
    }.items():
        with pytest.raises(ConfigError, match=message):
            make_radar(config, GRID)


def scene(seed: int, size: int = 6) -> tuple[PointCloud, Tensor, Tensor, Tensor]:
    """Cars that drive towards or away from the vehicle, seen in six sweeps with noise among still returns.

    The cloud, and sample [K], cell [K] and velocity [K, 2] [m/s] of the cars.
    """
    random = torch.Generator().manual_seed(seed)
    cars, sweeps = 6, 6
    place = (torch.rand(size, cars, 2, generator=random) - 0.5) * torch.tensor([14.0, 7.0])
    place = torch.where(place.norm(dim=2, keepdim=True) < 1, place + 1.5, place)
    speed = (torch.rand(size, cars, 1, generator=random) * 2 - 1) * 12
    velocity = F.normalize(place, dim=2) * speed
    age = torch.arange(sweeps)[:, None] * 0.075
    seen = place[:, :, None] - velocity[:, :, None] * age + 0.2 * torch.randn(size, cars, sweeps, 2, generator=random)
    clouds = []
    for b in range(size):
        noisy = velocity[b].repeat_interleave(sweeps, 0) + 0.1 * torch.randn(cars * sweeps, 2, generator=random)
        car = returns(cars * sweeps, x=seen[b].flatten(0, 1)[:, 0], y=seen[b].flatten(0, 1)[:, 1], vx=noisy[:, 0],
                      vy=noisy[:, 1], time=age[:, 0].repeat(cars), rcs=10.0, ambig_state=3.0)  # fmt: skip
        still = returns(30, seed=100 * seed + b, vx=0.0, vy=0.1, rcs=0.0, ambig_state=3.0)
        clouds.append(torch.cat([car, still]))
    index = torch.arange(size).repeat_interleave(len(clouds[0]))
    cell, _ = GRID.cell_of(torch.cat([place, torch.zeros(size, cars, 1)], dim=2).flatten(0, 1))
    sample = torch.arange(size).repeat_interleave(cars)
    return (
        PointCloud(torch.cat(clouds), index, torch.ones(size, dtype=torch.bool)),
        sample,
        cell,
        velocity.flatten(0, 1),
    )


def velocity_error(config: RadarConfig, steps: int = 40) -> float:
    """Mean error [m/s] on unseen scenes of a head of one convolution, trained with its encoder for a short time."""
    torch.manual_seed(0)
    net, head = make_radar(config, GRID), nn.Conv2d(config.channels, 2, 3, padding=1)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], 5e-3)

    def error(seed: int) -> Tensor:
        seen, sample, cell, velocity = scene(seed)
        said = 10 * head(net(seen)).flatten(2)[sample, :, cell]
        return (said - velocity).norm(dim=1).mean()

    for step in range(steps):
        optimizer.zero_grad()
        error(step).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        return torch.stack([error(1000 + seed) for seed in range(5)]).mean().item()


@pytest.mark.parametrize("encoder", ["pillars", "dual"])
def test_measured_velocity_reaches_a_head(encoder):
    config = RadarConfig(encoder=encoder, channels=16, dual=DualConfig(channels=16, heads=2, blocks=1))
    bare = dataclasses.replace(config, velocity=False)
    with_channels, without = velocity_error(config), velocity_error(bare)
    print(f"{encoder}: {with_channels:.2f} m/s with, {without:.2f} m/s without")
    assert with_channels < 0.75 * without
