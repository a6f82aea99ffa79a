"""Successive plans on the ground, against circles and paths that are known in closed form."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import arc, drives, straight

from fusion3d.data.tracks import read_tracks
from fusion3d.engine.drives import drives_of_tracks
from fusion3d.metrics.planning import Drives, score_plans
from fusion3d.metrics.planning.consistency import jumps, successive

SPEED, RATE, TIME = 7.0, 0.3, 0.5 * np.arange(1, 7)


@pytest.fixture(scope="module")
def circle() -> Drives:
    """Two scenes of ten keyframes of one car on one circle."""
    future = np.repeat(arc(SPEED, RATE, TIME), 20, 0)
    return drives(future, past=np.repeat(arc(SPEED, RATE, [-0.5, -1.0]), 20, 0))


def test_who_goes_straight_on_a_circle_jumps_as_geometry_says(circle):
    """The straight plan of a keyframe later starts a chord ahead, turned by the angle driven."""
    angle = RATE * 0.5
    chord = SPEED * 0.5 * np.sinc(angle / 2 / np.pi) * np.exp(0.5j * angle)
    told_now, told_later = SPEED * TIME[1:], chord + np.exp(1j * angle) * SPEED * TIME[:-1]
    first, apart = jumps(np.repeat(straight(SPEED), 20, 0), circle)
    assert first.tolist() == [*range(9), *range(10, 19)], "not from one scene to another"
    np.testing.assert_allclose(apart, np.broadcast_to(np.abs(told_now - told_later), (18, 5)), atol=1e-9)
    table = score_plans({"straight": np.repeat(straight(SPEED), 20, 0)}, circle, ["exact"])["protocols"]["exact"]
    rows = table["planners"]
    assert rows["straight"]["jump"] == pytest.approx(np.abs(told_now - told_later).mean())
    assert rows["human"]["jump"] == pytest.approx(0, abs=1e-9) and rows["human"]["pairs"] == 18
    assert rows["ctrv"]["jump"] == pytest.approx(0, abs=1e-9), "it drives the circle"
    assert rows["stationary"]["jump"] == pytest.approx(np.abs(chord)), "it stands, and has moved on when asked again"


def test_any_path_fixed_to_the_ground_does_not_jump(circle):
    """Where a plan leads does not matter: only whether the next one leads there too."""
    rng = np.random.default_rng(0)
    places = np.cumsum(rng.normal(0, 3, (40, 2)), axis=0) @ [1, 1j]  # by time, in the frame of a scene's first keyframe
    number = np.tile(np.arange(10), 2)
    pose = arc(SPEED, RATE, 0.5 * np.arange(10))[0]
    here = (pose[number, 0] + 1j * pose[number, 1])[:, None]
    seen = (places[number[:, None] + np.arange(1, 7)] - here) * np.exp(-1j * pose[number, 2])[:, None]
    plan = np.stack([seen.real, seen.imag, np.zeros_like(seen.real)], axis=-1)
    np.testing.assert_allclose(jumps(plan, circle)[1], 0, atol=1e-9)
    plan[3, :, 1] += 2.0
    first, apart = jumps(plan, circle)
    assert first[(apart > 1e-6).any(axis=1)].tolist() == [2, 3]
    np.testing.assert_allclose(apart[[2, 3]], 2.0)


def test_only_keyframes_that_follow_each_other_are_compared(circle):
    assert len(successive(circle[np.arange(0, 20, 2)])[0]) == 0, "every other keyframe"
    shuffled = np.random.default_rng(1).permutation(20)
    order = dataclasses.replace(
        circle, time=circle.time[shuffled], scenes=tuple(np.array(circle.scenes)[shuffled].tolist())
    )
    first, second = successive(order)
    assert len(first) == 18 and (shuffled[second] - shuffled[first] == 1).all()
    unknown = dataclasses.replace(circle, known=np.arange(20)[:, None] != [4] * 6)
    assert 4 not in successive(unknown)[0]
    alone = score_plans({}, circle[np.array([0])], ["exact"])["protocols"]["exact"]["planners"]["human"]
    assert np.isnan(alone["jump"]) and alone["pairs"] == 0


def test_real_drives_do_not_jump(tracks_root):
    tracks = drives_of_tracks(read_tracks(tracks_root))
    table = score_plans({}, tracks, ["exact"])["protocols"]["exact"]["planners"]
    assert table["human"]["jump"] < 2e-3 and table["human"]["pairs"] == 267
    assert 0 < table["ctrv"]["jump"] < table["stationary"]["jump"]
