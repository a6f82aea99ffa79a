"""Whom a plan meets: the fast way against a plain loop with shapely, fault and time to collision case by case."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from shapely import affinity
from shapely.geometry import box as shapely_box

sys.path.insert(0, str(Path(__file__).parent))

from worlds import ADULT, CAR, CONE, NAMES, arc, boxes, drives, parked, straight, traffic

from fusion3d.metrics.planning.contacts import EGO, FAR, GROUPS, Contacts, interpolate, meet
from fusion3d.metrics.planning.paths import sweep
from fusion3d.types import EGO_CENTER, EGO_SIZE

FRONT = EGO_CENTER + EGO_SIZE[0] / 2  # [m] of the bumper ahead of the rear axle


def polygon(x, y, length, width, yaw):
    shape = affinity.rotate(shapely_box(-length / 2, -width / 2, length / 2, width / 2), yaw, (0, 0), use_radians=True)
    return affinity.translate(shape, x, y)


def group_of(name: str) -> int:
    if name.startswith("human.") or name in ("vehicle.bicycle", "vehicle.motorcycle"):
        return 1
    return 0 if name.startswith("vehicle.") else 2


def slowly(plan: np.ndarray, of) -> tuple[np.ndarray, np.ndarray]:
    """Hits [N, 30, 3] and clearances [N, 30] by walking through everything with shapely."""
    poses = sweep(plan)
    hit, gap = np.zeros((*poses.shape[:2], 3), dtype=bool), np.full(poses.shape[:2], FAR)
    at = {
        (s, k, t): i for i, (s, k, t) in enumerate(zip(of.agents.sample, of.agents.step, of.agents.track, strict=True))
    }
    for (sample, step, track), row in at.items():
        if not 0 <= step <= 6:
            continue
        last = at.get((sample, step + 1, track)) if step < 6 else None
        first = step == 0 or (sample, step - 1, track) not in at
        instants = [(5 * step, 0.0)] if first and step > 0 else []
        instants += [] if last is None else [(5 * step + j, j / 5) for j in range(1, 6)]
        for instant, part in instants:
            box = of.agents.box[row].copy()
            if part:
                move = of.agents.box[last] - box
                move[4] = (move[4] + np.pi) % (2 * np.pi) - np.pi
                box = box + part * move
            ego = polygon(*EGO.along(poses[sample, instant - 1]))
            other = polygon(*box)
            overlaps = ego.intersection(other).area > 0
            hit[sample, instant - 1, group_of(NAMES[of.agents.category[row]])] |= overlaps
            if not overlaps:
                gap[sample, instant - 1] = min(gap[sample, instant - 1], ego.distance(other))
            else:
                gap[sample, instant - 1] = min(gap[sample, instant - 1], 0)
    return hit, gap


def contacts(plan: np.ndarray, rows, off: np.ndarray | None = None) -> Contacts:
    of = drives(np.repeat(straight(1.0), len(plan), 0), boxes(rows))
    return meet({"m": plan}, of, None if off is None else {"m": off})["m"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_sweep_agrees_with_a_plain_loop(seed):
    of = traffic(seed, 40, people=8)
    plan = of.future + np.random.default_rng(seed).normal(0, 0.3, of.future.shape)
    found = meet({"m": plan}, of)["m"]
    hit, gap = slowly(plan, of)
    assert 0.005 < hit.mean() < 0.5 and len(GROUPS) == 3
    np.testing.assert_array_equal(found.hit, hit)
    np.testing.assert_allclose(np.maximum(found.clearance, 0), gap, atol=1e-9)


def test_samples_do_not_see_each_others_agents():
    of = traffic(4, 900, people=3)  # more than are worked on at once
    whole = meet({"m": of.future}, of)["m"]
    rows = np.array([0, 383, 384, 800, 899])
    some = meet({"m": of.future[rows]}, of[rows])["m"]
    for field in ("hit", "fault", "no_collision", "time_to_collision", "clearance"):
        np.testing.assert_array_equal(getattr(some, field), getattr(whole, field)[rows])


def test_what_is_thin_and_fast_is_not_stepped_over():
    """A cyclist crosses 10 m ahead between two keyframes at which both are clear of each other."""
    plan = straight(12.0)
    x = 12 * 0.75 + EGO_CENTER
    rows = [(0, step, 0, NAMES.index("vehicle.bicycle"), x, 12.0 * step - 18, 1.7, 0.5, 1.57) for step in range(9)]
    found = contacts(plan, rows)
    assert found.hit[0, :, 1].any() and not found.hit[0, 4::5, 1].any(), "seen between the keyframes alone"


def test_a_bumper_reaches_a_wall_when_it_should():
    wall = parked(0, FRONT + 5.0 + 0.5, 0, size=(1.0, 3.0))  # its near face is 5 m ahead of the bumper
    found = contacts(straight(3.3), wall)
    assert found.any[0].argmax() == 15, "5 m at 3.3 m/s are 1.515 s: 1.6 s is the first instant after that"
    np.testing.assert_allclose(found.clearance[0, :15], 5 - 0.33 * np.arange(1, 16), atol=1e-9)


def crossing(speed_y: float, x: float, y: float, category: int = CAR):
    """One that drives along y at x, at y now."""
    turn = np.pi / 2 if speed_y > 0 else -np.pi / 2
    return [(0, step, 0, category, x, y + 0.5 * speed_y * step, 4.6, 1.95, turn) for step in range(-2, 9)]


def test_fault():
    """nuPlan's cases: into a parked car, a cone, standing still, hit from behind, at the front, at the side."""
    ahead = FRONT + 4
    assert contacts(straight(4), parked(0, ahead + 2.3, 0)).no_collision[0] == 0
    assert contacts(straight(4), parked(0, ahead, 0, category=CONE, size=(0.4, 0.4))).no_collision[0] == 0.5
    still = contacts(straight(0), crossing(4, EGO_CENTER, -8))
    assert still.any[0].any() and still.no_collision[0] == 1
    chased = [(0, step, 0, CAR, -12 + 5.0 * step, 0, 4.6, 1.95, 0) for step in range(-2, 9)]
    behind = contacts(straight(2), chased)
    assert behind.any[0].any() and behind.no_collision[0] == 1
    slower = [(0, step, 0, CAR, 12 + 0.5 * step, 0, 4.6, 1.95, 0) for step in range(-2, 9)]
    front = contacts(straight(8), slower)
    assert front.no_collision[0] == 0 and front.fault[0].argmax() == front.any[0].argmax()
    side = crossing(-2, 5.0, 6.0)
    lateral = contacts(straight(2), side)
    assert lateral.any[0].any() and lateral.no_collision[0] == 1
    assert contacts(straight(2), side, np.ones((1, 30), dtype=bool)).no_collision[0] == 0, "off the road it is"


def test_who_overlaps_from_the_start_is_nobodys_fault():
    found = contacts(straight(4), parked(0, FRONT, 0))
    assert found.any[0, 0] and found.no_collision[0] == 1 and found.time_to_collision[0]


def test_the_first_contact_decides():
    """Hit at the side first, then the bumper touches too: still the other's doing."""
    plan = straight(3)
    found = contacts(plan, crossing(-3, 3.0, 6.0))
    assert found.any[0].any() and found.no_collision[0] == 1


def test_time_to_collision():
    """A parked car, at 10 m/s: 0.9 s are 9 m; what is 12 m beyond the last pose is late, what is 6 m beyond is not."""
    plan, end = straight(10.0), 30.0 + FRONT
    assert not contacts(plan, parked(0, end - 2, 0)).time_to_collision[0]
    assert not contacts(plan, parked(0, end + 6 + 2.3, 0)).time_to_collision[0], "annotations go on after the plan"
    assert contacts(plan, parked(0, end + 12 + 2.3, 0)).time_to_collision[0]
    assert contacts(straight(0.001), parked(0, FRONT + 2.31, 0)).time_to_collision[0], "it stands"
    beside = parked(0, 15, 2.2)
    assert contacts(plan, beside).time_to_collision[0]


def test_time_to_collision_is_at_constant_velocity():
    """It brakes in time, but not as it was driving: 8 m/s towards a car 9 m ahead."""
    plan = straight(8.0)
    plan[0, :, 0] = [4.0, 6.0, 7.0, 7.5, 7.5, 7.5]
    found = contacts(plan, parked(0, FRONT + 9 + 2.3, 0))
    assert not found.any[0].any() and not found.time_to_collision[0]


def test_agents_between_keyframes():
    rows = [(0, 0, 0, CAR, 0, 0, 4, 2, 3.1), (0, 1, 0, CAR, 5, 1, 4, 2, -3.1), (0, 3, 0, ADULT, 9, 9, 1, 1, 0)]
    agents = boxes(rows)
    found = interpolate(agents, 0.5 * agents.step)
    order = np.argsort(found.instant)
    assert found.instant[order].tolist() == [0, 1, 2, 3, 4, 5, 15]
    np.testing.assert_allclose(found.box[order][:6, 0], np.arange(6))
    assert (np.abs(found.box[order][1:6, 4]) > 3.09).all(), "over the back, not round by the front"
    np.testing.assert_allclose(found.speed[order][1:6], np.hypot(5, 1) / 0.5)
    assert np.isnan(found.speed[order][[0, 6]]).all() and found.group[order].tolist() == [0] * 6 + [1]
    assert len(interpolate(boxes([]), np.zeros(0)).sample) == 0
    assert arc(1, 0.1, np.array([0.5])).shape == (1, 1, 3)
