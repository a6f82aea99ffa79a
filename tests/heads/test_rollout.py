"""Where boxes will be: against integration in small steps, circles, and what a forecast says at its own steps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.geometry import wrap_angle
from fusion3d.heads.rollout import constant_turn, constant_velocity, drive, roll_out, rollout
from fusion3d.types import TIME_STEP, Boxes, Forecast

TIMES = TIME_STEP * torch.arange(1, 7)


def some_boxes(count: int = 5, seed: int = 0) -> Boxes:
    draw = torch.Generator().manual_seed(seed)
    xyz, yaw, velocity = (torch.randn(count, n, generator=draw) * 5 for n in (3, 1, 2))
    return Boxes.of(xyz, torch.ones(count, 3), yaw[:, 0], velocity)


@settings(max_examples=60, deadline=None)
@given(speed=st.floats(0, 15), direction=st.floats(-math.pi, math.pi), rate=st.floats(-0.6, 0.6), push=st.floats(-4, 3))
def test_arcs_are_what_small_steps_add_up_to(speed, direction, rate, push):
    """Speed changes evenly down to a stop; heading changes by the way made, at the given rate at the given speed."""
    velocity = torch.tensor([speed * math.cos(direction), speed * math.sin(direction)], dtype=torch.float64)
    position, heading = drive(velocity, torch.tensor(rate).double(), torch.tensor(push).double(), TIMES.double())
    small, x, y, angle, now = 1e-3, 0.0, 0.0, 0.0, speed
    # What starts does so where it heads to, whatever the direction of its tiny velocity.
    sideways = speed < 1.0 and push > 0
    steps = []
    for number in range(1, 3001):
        middle = max(now + push * small / 2, 0.0)
        now = max(now + push * small, 0.0)
        turned = rate / max(speed, 1.0) * middle * small
        if not sideways:
            x += middle * small * math.cos(direction + angle + turned / 2)
            y += middle * small * math.sin(direction + angle + turned / 2)
        angle += turned
        if number % 500 == 0:
            steps.append((x, y, angle))
    expected = torch.tensor(steps, dtype=torch.float64)
    torch.testing.assert_close(heading, expected[:, 2], atol=5e-3, rtol=1e-3)
    if not sideways:
        torch.testing.assert_close(position, expected[:, :2], atol=1e-2, rtol=1e-3)
    else:
        assert position[-1, 0] > (speed * math.cos(direction)) * 3 - 1e-9 or rate != 0


def test_constant_velocity_is_exact_and_what_is_unknown_stands():
    boxes = some_boxes()
    boxes.velocity[2] = torch.nan
    centers, yaws = constant_velocity(boxes, TIMES)
    for k in range(5):
        for t, seconds in enumerate(TIMES.tolist()):
            moved = torch.zeros(2) if k == 2 else seconds * boxes.velocity[k]
            torch.testing.assert_close(centers[k, t], boxes.center[k, :2] + moved)
    assert torch.equal(yaws, boxes.yaw[:, None].expand(-1, 6))
    same, headed = constant_turn(boxes, TIMES, torch.zeros(5))
    torch.testing.assert_close(same, centers, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(headed, wrap_angle(yaws))


def test_constant_turn_is_a_circle():
    boxes, rate = some_boxes(), torch.tensor([0.3, -0.3, 0.1, 0.5, -0.05])
    speed = boxes.velocity.norm(dim=1)
    centers, yaws = constant_turn(boxes, TIMES, rate)
    left = torch.stack([-boxes.velocity[:, 1], boxes.velocity[:, 0]], dim=1) / speed[:, None]
    middle = boxes.center[:, :2] + left * (speed / rate)[:, None]
    away = (centers - middle[:, None]).norm(dim=-1)
    torch.testing.assert_close(away, (speed / rate).abs()[:, None].expand(-1, 6), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(yaws, wrap_angle(boxes.yaw[:, None] + rate[:, None] * TIMES), atol=1e-5, rtol=1e-5)


def a_forecast(boxes: Boxes, modes: int = 3, steps: int = 6) -> Forecast:
    draw = torch.Generator().manual_seed(1)
    steps_AKT2 = torch.randn(len(boxes), modes, steps, 2, generator=draw)
    yaw = wrap_angle(torch.randn(len(boxes), modes, steps, generator=draw) * 3)
    score = torch.rand(len(boxes), modes, generator=draw).softmax(1).sort(descending=True).values
    return Forecast(boxes.center[:, None, None, :2] + steps_AKT2.cumsum(2), yaw, score)


def test_a_forecast_at_its_own_steps_between_and_after():
    boxes = some_boxes()
    forecast = a_forecast(boxes)
    centers, yaws, scores = roll_out(forecast, boxes, TIMES)
    torch.testing.assert_close(centers, forecast.position)
    torch.testing.assert_close(wrap_angle(yaws - forecast.yaw), torch.zeros_like(yaws), atol=1e-5, rtol=0)
    assert torch.equal(scores, forecast.score)
    now, half, after = roll_out(forecast, boxes, torch.tensor([0.0, 0.25, 4.0]))[0].unbind(2)
    torch.testing.assert_close(now, boxes.center[:, None, :2].expand_as(now))
    torch.testing.assert_close(half, (now + forecast.position[:, :, 0]) / 2)
    last = forecast.position[:, :, -1]
    torch.testing.assert_close(after, last + 2 * (last - forecast.position[:, :, -2]))
    headings = roll_out(forecast, boxes, torch.tensor([1.25, 4.0]))[1]
    between = wrap_angle(headings[..., 0] - forecast.yaw[..., 1])
    torch.testing.assert_close(between, wrap_angle(forecast.yaw[..., 2] - forecast.yaw[..., 1]) / 2, atol=1e-5, rtol=0)
    assert wrap_angle(headings[..., 1] - forecast.yaw[..., -1]).abs().max() < 1e-5
    likeliest = rollout(forecast)(boxes, TIMES)
    assert torch.equal(likeliest[0], centers[:, 0]) and torch.equal(likeliest[1], yaws[:, 0])


def test_forecasts_of_other_boxes_are_refused_and_of_none_are_none():
    boxes = some_boxes()
    with pytest.raises(ValueError, match="a forecast of 5 boxes for 2"):
        rollout(a_forecast(boxes))(boxes[:2], TIMES)
    none = a_forecast(boxes[:0])
    assert roll_out(none, boxes[:0], TIMES)[0].shape == (0, 3, 6, 2)
    assert constant_velocity(Boxes.empty(), TIMES)[0].shape == (0, 6, 2)
