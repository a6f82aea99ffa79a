"""Where boxes will be at any time: by constant velocity or turn, or by a forecast.

Letters: A boxes, K ways to go on, T times.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fusion3d.geometry import turn, wrap_angle
from fusion3d.types import TIME_STEP, Boxes, Forecast

# (boxes, times [T] in seconds from now) to the boxes' centres [A, T, 2] and headings [A, T], in the frame of the boxes.
Rollout = Callable[[Boxes, Tensor], tuple[Tensor, Tensor]]

_SLOW = 1.0  # [m/s] below it the direction of a velocity says nothing: what starts does so where it heads to


def drive(velocity: Tensor, yaw_rate: Tensor, acceleration: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Arcs of things whose speed and heading change evenly, in closed form; nothing brakes beyond a stop.

    With neither turn nor acceleration it is constant velocity, exactly and in any direction; with a turn alone,
    constant turn rate and velocity. As speed changes, the arc stays the same circle: things turn by the way they make.
    What is slower than ``_SLOW`` turns by its way as if it had that speed, and so slower than ``yaw_rate``: nothing
    turns on the spot.

    Args:
        velocity: [..., 2] in each thing's own frame, x where it heads [m/s].
        yaw_rate: [...] at that speed [rad/s].
        acceleration: [...] along the velocity, or along the heading of what hardly moves [m/s^2].
        times: [T] seconds from now, not negative.

    Returns:
        Positions [..., T, 2] and headings [..., T] in the frame of now.
    """
    speed = velocity.square().sum(-1).clamp(min=1e-12).sqrt()
    along = velocity / speed[..., None]
    starts = ((acceleration > 0) & (speed < _SLOW))[..., None]
    ahead = F.pad(torch.ones_like(speed)[..., None], (0, 1))
    until_stop = torch.where(acceleration < 0, speed / (-acceleration).clamp(min=1e-6), torch.inf)
    moving = torch.minimum(times, until_stop[..., None])
    # The way made beyond (or short of) that at constant speed.
    more = 0.5 * acceleration[..., None] * moving.square() - speed[..., None] * (times - moving)
    angle = yaw_rate[..., None] / speed[..., None].clamp(min=_SLOW) * (speed[..., None] * times + more)
    chord = velocity[..., None, :] * times[:, None] + more[..., None] * torch.where(starts, ahead, along)[..., None, :]
    chord = chord * torch.sinc(angle / (2 * torch.pi))[..., None]
    cos, sin = (angle / 2).cos(), (angle / 2).sin()
    x, y = chord.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1), angle


def constant_velocity(boxes: Boxes, times: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes go straight on, as their velocity says; those of unknown velocity stand. A ``Rollout``."""
    moved = boxes.velocity.nan_to_num()[:, None] * times[:, None]
    return boxes.center[:, None, :2] + moved, boxes.yaw[:, None].expand(-1, len(times))


def constant_turn(boxes: Boxes, times: Tensor, yaw_rate: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes go on along circles at their speed (constant turn rate and velocity; below ``_SLOW`` see ``drive``).

    Args:
        boxes: A; those of unknown velocity stand.
        times: [T] seconds from now.
        yaw_rate: [A] [rad/s].
    """
    velocity = turn(boxes.velocity.nan_to_num()[:, None], -boxes.yaw)[:, 0]
    position, angle = drive(velocity, yaw_rate, torch.zeros_like(yaw_rate), times)
    return boxes.center[:, None, :2] + turn(position, boxes.yaw), wrap_angle(boxes.yaw[:, None] + angle)


def rollout(forecast: Forecast) -> Rollout:
    """The likeliest way of each box, as a ``Rollout`` for the boxes that the forecast is of."""

    def likeliest(boxes: Boxes, times: Tensor) -> tuple[Tensor, Tensor]:
        centers, yaws, _ = roll_out(forecast, boxes, times)
        return centers[:, 0], yaws[:, 0]

    return likeliest


def roll_out(forecast: Forecast, boxes: Boxes, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every way of each box at any times, with its probability.

    Between the steps of a forecast things move evenly; after the last one, straight on as in the last interval.

    Args:
        forecast: of the boxes.
        boxes: A, where they are now.
        times: [T] seconds from now, not negative.

    Returns:
        Centres [A, K, T, 2], headings [A, K, T] and probabilities [A, K].

    Raises:
        ValueError: the forecast is of as many boxes as there are not.
    """
    if len(forecast) != len(boxes):
        raise ValueError(f"a forecast of {len(forecast)} boxes for {len(boxes)}; expected that of the same boxes")
    num_modes = forecast.score.shape[1]
    now_center = boxes.center[:, None, None, :2].expand(-1, num_modes, -1, -1)
    center = torch.cat([now_center, forecast.position], dim=2)
    yaw = torch.cat([boxes.yaw[:, None, None].expand(-1, num_modes, -1), forecast.yaw], dim=2)
    index = (times / TIME_STEP).floor().long().clamp(0, forecast.yaw.shape[2] - 1)
    part = times / TIME_STEP - index
    start, step = center[:, :, index], center.diff(dim=2)[:, :, index]
    turned = wrap_angle(yaw.diff(dim=2))[:, :, index] * part.clamp(max=1)
    return start + part[:, None] * step, wrap_angle(yaw[:, :, index] + turned), forecast.score
