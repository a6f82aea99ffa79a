from __future__ import annotations

import math

import numpy as np
import pytest
from shapely import affinity
from shapely.geometry import box as shapely_box

from fusion3d.metrics.planning import (
    collides,
    constant_velocity,
    ego_boxes,
    overlap,
    path_heading,
    score_plan,
    score_planners,
)
from fusion3d.types import EGO_CENTER, EGO_SIZE


def polygon(x, y, length, width, yaw):
    shape = affinity.rotate(shapely_box(-length / 2, -width / 2, length / 2, width / 2), yaw, (0, 0), use_radians=True)
    return affinity.translate(shape, x, y)


def straight(speed: float, steps: int = 6) -> np.ndarray:
    """[1, T, 2] along x."""
    return np.stack([speed * 0.5 * np.arange(1, steps + 1), np.zeros(steps)], axis=-1)[None]


NOTHING = [[np.zeros((0, 5))] * 6]


def test_overlap_agrees_with_polygons():
    rng = np.random.default_rng(0)
    low, high = [-4, -4, 0.3, 0.3, -4], [4, 4, 5, 3, 4]
    first, second = rng.uniform(low, high, (2000, 5)), rng.uniform(low, high, (2000, 5))
    expected = [polygon(*a).intersection(polygon(*b)).area > 0 for a, b in zip(first, second, strict=True)]
    assert 0.1 < np.mean(expected) < 0.9
    np.testing.assert_array_equal(overlap(first, second), expected)
    np.testing.assert_array_equal(overlap(second, first), expected)


def test_overlap_by_a_millimetre():
    """A box that is inside, one that reaches in by 1 mm, one that is 1 mm away: exact, unlike a raster."""
    ego = np.array([0, 0, 4.0, 2.0, 0.0])
    gap = np.array([-1, -0.001, 0.001])
    beside = np.stack([np.zeros(3), 2 + gap, np.full(3, 4.0), np.full(3, 2.0), np.full(3, math.pi)], axis=-1)
    assert overlap(ego, beside).tolist() == [True, True, False]


def test_heading_follows_a_circle():
    angle = 0.1 * np.arange(1, 7)
    circle = 40 * np.stack([np.sin(angle), 1 - np.cos(angle)], axis=-1)[None]
    # the chord over two steps of a circle is parallel to the tangent in its middle; the last step has half
    np.testing.assert_allclose(path_heading(circle)[0], [*angle[:5], angle[5] - 0.05], atol=1e-12)


def test_heading_of_a_car_that_hardly_moves_or_reverses():
    noise = np.random.default_rng(0).normal(0, 0.05, (20, 6, 2))
    assert np.abs(path_heading(noise)).max() == 0
    assert np.abs(path_heading(straight(-3))).max() == 0, "backwards: the nose still points along x"
    turn = np.array([[[2, 0], [4, 0], [4, 0.01], [4, 0], [4, -0.01], [4, 0]]], dtype=float)
    assert np.abs(path_heading(turn)).max() < 0.01, "a car that has stopped does not turn on the spot"


def test_ego_box_stands_ahead_of_the_rear_axle():
    box = ego_boxes(np.array([[[0.0, 4], [0, 8], [0, 12], [0, 16], [0, 20], [0, 24]]]))[0, -1]
    np.testing.assert_allclose(box, [0, 24 + EGO_CENTER, *EGO_SIZE[:2], math.pi / 2], atol=1e-12)


def test_collision_starts_when_the_bumper_reaches_the_obstacle():
    front = EGO_CENTER + EGO_SIZE[0] / 2
    wall = np.array([[front + 5.0 + 0.5, 0, 1.0, 3.0, 0]])  # its rear face is 5 m ahead of the bumper
    assert collides(straight(3.33), [[wall] * 6])[0].tolist() == [False, False, False, True, True, True]
    assert not collides(straight(3.33), [[wall] * 3 + [np.zeros((0, 5))] * 3]).any()


def test_l2_is_at_the_time_and_over_known_samples():
    plan, future = np.repeat(straight(2), 2, 0), np.repeat(straight(4), 2, 0)
    known = np.ones((2, 6), dtype=bool)
    known[1, 4:] = False  # the second sample ends after 2 s
    future[1] = straight(2)[0]
    scores = score_plan(plan, future, known, NOTHING * 2)
    assert scores["L2@1s"] == pytest.approx((2 + 0) / 2)
    assert scores["L2@2s"] == pytest.approx((4 + 0) / 2)
    assert scores["L2@3s"] == pytest.approx(6), "only the first sample is known there: not diluted by the second"


def test_collision_is_any_step_up_to_the_time_and_needs_the_whole_future():
    car = np.array([[4.0, 0, 4, 2, 0]])
    obstacles = [[np.zeros((0, 5))] * 2 + [car] + [np.zeros((0, 5))] * 3] * 2
    known = np.ones((2, 6), dtype=bool)
    known[1, 2] = False  # a gap: nothing can be said about the second sample from 1.5 s on
    scores = score_plan(np.zeros((2, 6, 2)), np.zeros((2, 6, 2)), known, obstacles)
    assert [scores[f"collision@{t}s"] for t in (1, 2, 3)] == [0, 1, 1]


def test_baselines_and_rows_share_their_samples():
    speed = np.array([2.0, 5.0, 9.0])
    future = np.concatenate([straight(v) for v in speed])
    past = -0.5 * np.stack([speed, np.zeros(3)], axis=-1)[:, None]
    np.testing.assert_allclose(constant_velocity(past, 6), future)
    past_known = np.array([[True], [True], [False]])
    table = score_planners(
        {"model": future + np.array([0, 1.0])},
        past,
        past_known,
        future,
        np.ones((3, 6), dtype=bool),
        NOTHING * 3,
    )
    assert table["constant_velocity"]["L2@3s"] == pytest.approx(0, abs=1e-12)
    assert table["driven"]["L2@1s"] == 0
    assert table["model"]["L2@2s"] == pytest.approx(1)
    assert table["stationary"]["L2@3s"] == pytest.approx((6 + 15) / 2), "the sample without a past is in no row"


def test_nothing_known_is_not_a_number_and_a_broken_plan_is_an_error():
    nobody = score_plan(np.zeros((1, 6, 2)), np.zeros((1, 6, 2)), np.zeros((1, 6), dtype=bool), NOTHING)
    assert all(math.isnan(value) for value in nobody.values())
    with pytest.raises(ValueError, match="not finite"):
        score_plan(np.full((1, 6, 2), np.nan), np.zeros((1, 6, 2)), np.ones((1, 6), dtype=bool), NOTHING)
