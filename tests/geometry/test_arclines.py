"""Arclines against the devkit's own arithmetic and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.geometry.arclines import connect, discretise, length_of, poses_on

LENGTH = st.one_of(st.just(0.0), st.floats(1e-3, 60))
POSE = st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.floats(-math.pi, math.pi))


@settings(max_examples=60, deadline=None)
@given(POSE, st.sampled_from(["LRL", "RLR", "LSL", "LSR", "RSL", "RSR"]), st.floats(3, 1000), st.tuples(*[LENGTH] * 3))
def test_poses_are_those_of_the_devkit(start, shape, radius, lengths):
    from nuscenes.map_expansion.arcline_path_utils import length_of_lane, pose_at_length

    curve = {"start_pose": list(start), "shape": shape, "radius": radius, "segment_length": list(lengths)}
    at = np.linspace(1e-3, max(sum(lengths), 2e-3), 9)
    theirs = np.array([pose_at_length(curve, one) for one in at])
    ours = poses_on(curve, at)
    np.testing.assert_allclose(ours[:, :2], theirs[:, :2], atol=1e-6)
    turn = ours[:, 2] - theirs[:, 2]
    np.testing.assert_allclose(np.cos(turn), 1, atol=1e-9)
    assert length_of(curve) == length_of_lane([curve])
    np.testing.assert_allclose(poses_on(curve, np.array([-5.0, 1e6]))[:, :2], [start[:2], ours[-1, :2]], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(POSE, POSE, st.floats(0.5, 30))
def test_a_connection_leads_from_one_pose_to_the_other(start, end, radius):
    curve = connect(np.array(start), np.array(end), radius)
    first, last = poses_on(curve, np.array([0.0, length_of(curve)]))
    np.testing.assert_allclose([*first[:2], *last[:2]], [*start[:2], *end[:2]], atol=1e-6)
    np.testing.assert_allclose(np.cos([first[2] - start[2], last[2] - end[2]]), 1, atol=1e-9)
    assert min(curve["segment_length"]) >= 0 and length_of(curve) >= math.dist(start[:2], end[:2]) - 1e-6
    assert curve["start_pose"] == list(start) and curve["end_pose"] == list(end)


def test_connections_in_closed_form():
    straight = connect(np.array([1.0, 2, math.pi / 2]), np.array([1.0, 9, math.pi / 2]), 999.999)
    assert length_of(straight) == pytest.approx(7) and straight["segment_length"][1] == pytest.approx(7)
    quarter = connect(np.zeros(3), np.array([20.0, 20, math.pi / 2]), 20.0)
    assert quarter["shape"][0] == "L" and length_of(quarter) == pytest.approx(10 * math.pi)
    # Of half the radius: two arcs of 45 degrees and the straight line between them.
    smaller = connect(np.zeros(3), np.array([20.0, -20, -math.pi / 2]), 10.0)
    np.testing.assert_allclose(smaller["segment_length"], [2.5 * math.pi, 10 * math.sqrt(2), 2.5 * math.pi])
    aside = connect(np.zeros(3), np.array([40.0, 3.0, 0.0]), 20.0)
    assert aside["shape"] == "LSR" and length_of(aside) < 41


def test_discretised_evenly():
    curve = {"start_pose": [0, 0, 0], "shape": "LSR", "radius": 8.0, "segment_length": [4.0, 0.3, 6.2]}
    poses = discretise(curve, 1.0)
    assert len(poses) == 12
    steps = np.linalg.norm(np.diff(poses[:, :2], axis=0), axis=1)
    assert steps.max() <= 10.5 / 11 and steps.min() > 0.99 * 10.5 / 11
    point = discretise(curve | {"segment_length": [0.0, 0.0, 0.0]}, 1.0)
    np.testing.assert_array_equal(point, np.zeros((2, 3)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": "SSS"},
        {"segment_length": [1.0, 2.0]},
        {"segment_length": [1.0, -2.0, 3.0]},
        {"segment_length": [1.0, math.nan, 3.0]},
        {"segment_length": [1.0, 1e9, 3.0]},
        {"radius": 0.0},
    ],
)
def test_what_is_no_curve(wrong):
    curve = {"start_pose": [0, 0, 0], "shape": "LSR", "radius": 8.0, "segment_length": [4.0, 0.3, 6.2]}
    with pytest.raises(ValueError, match="arcline of shape"):
        discretise(curve | wrong, 1.0)
