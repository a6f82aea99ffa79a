"""The geometry under planning's metrics: rectangles against shapely, painted cells against OpenCV, paths by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity
from shapely.geometry import box as shapely_box

sys.path.insert(0, str(Path(__file__).parent))

from worlds import straight

from fusion3d.metrics.planning.drives import EgoBox
from fusion3d.metrics.planning.paths import (
    from_lidar,
    path_heading,
    split_error,
    sweep,
    to_lidar,
    towed_heading,
    with_heading,
)
from fusion3d.metrics.planning.raster import Raster, row_extent
from fusion3d.metrics.planning.rectangles import clearance, corners, depth, overlap
from fusion3d.types import EGO_CENTER, EGO_SIZE

LOW, HIGH = [-4, -4, 0.3, 0.3, -4], [4, 4, 5, 3, 4]


def polygon(x, y, length, width, yaw):
    shape = affinity.rotate(shapely_box(-length / 2, -width / 2, length / 2, width / 2), yaw, (0, 0), use_radians=True)
    return affinity.translate(shape, x, y)


def test_overlap_and_clearance_agree_with_polygons():
    rng = np.random.default_rng(0)
    first, second = rng.uniform(LOW, HIGH, (2000, 5)), rng.uniform(LOW, HIGH, (2000, 5))
    pairs = [(polygon(*a), polygon(*b)) for a, b in zip(first, second, strict=True)]
    expected = np.array([a.intersection(b).area > 0 for a, b in pairs])
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(overlap(first, second), expected)
    np.testing.assert_array_equal(overlap(second, first), expected)
    gap = clearance(first, second)
    np.testing.assert_allclose(np.maximum(gap, 0), [a.distance(b) for a, b in pairs], atol=1e-9)
    assert (gap[expected] < 0).all()


def test_corners_begin_in_front_on_the_left():
    box = np.array([10, 20, 4.0, 2.0, np.pi / 2])  # looks along y: its left is at smaller x
    np.testing.assert_allclose(corners(box), [[9, 22], [11, 22], [11, 18], [9, 18]], atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_moving_by_the_depth_of_an_overlap_ends_it(seed):
    rng = np.random.default_rng(seed)
    first, second = rng.uniform(LOW, HIGH, (2, 5))
    by = depth(first, second)
    if by <= 0:
        return
    angles = np.concatenate([first[4] + np.arange(4) * np.pi / 2, second[4] + np.arange(4) * np.pi / 2])
    moved = np.stack(
        [[*(second[:2] + (by + 1e-6) * np.array([math.cos(a), math.sin(a)])), *second[2:]] for a in angles]
    )
    assert not overlap(first, moved).all(), "one of the directions is enough"
    short = np.stack([[*(second[:2] + 0.99 * by * np.array([math.cos(a), math.sin(a)])), *second[2:]] for a in angles])
    assert overlap(first, short).all(), "less is enough in none"


def test_overlap_by_a_millimetre():
    """A box that is inside, one that reaches in by 1 mm, one that is 1 mm away: exact, unlike a raster."""
    ego = np.array([0, 0, 4.0, 2.0, 0.0])
    gap = np.array([-1, -0.001, 0.001])
    beside = np.stack([np.zeros(3), 2 + gap, np.full(3, 4.0), np.full(3, 2.0), np.full(3, math.pi)], axis=-1)
    assert overlap(ego, beside).tolist() == [True, True, False]
    np.testing.assert_allclose(clearance(ego, beside), gap, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_painted_cells_are_those_of_opencv(seed, rounded):
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(seed)
    box = rng.uniform([-20, -20, 0.2, 0.2, -4], [20, 20, 15, 5, 4])
    quad = Raster(0.5, rounded).of_agents(box[None])
    image = np.zeros((200, 200))
    cv2.fillPoly(image, [np.ascontiguousarray(quad[0, :, ::-1], dtype=np.int32)], 1.0)
    first, last = row_extent(quad, np.arange(200)[None])
    ours = (np.arange(200) >= first[0, :, None]) & (np.arange(200) <= last[0, :, None])
    np.testing.assert_array_equal(ours, image > 0)


def test_the_ego_of_the_published_rasters_has_their_cells():
    """What skimage's polygon fills of the footprint in UniAD's and BEV-Planner's grids: centres of cells inside."""
    cells = Raster().of_ego(np.zeros((1, 3)), EgoBox(4.084, 1.85, 0.5))[0]
    assert sorted(set(cells[:, 0])) == list(range(97, 105)) and sorted(set(cells[:, 1])) == [98, 99, 100, 101]
    flipped = Raster(rows_back=True).of_ego(np.zeros((1, 3)), EgoBox(4.084, 1.85, 0.5))[0]
    assert sorted(set(flipped[:, 0])) == list(range(96, 104)), "200 - row, where 199 - row is the same place"
    fine = Raster(0.1, columns_forward=True).of_ego(np.zeros((1, 3)), EgoBox(4.084, 1.85, 1.485793))[0]
    assert (fine[:, 1].min(), fine[:, 1].max(), len(fine)) == (494, 534, 41 * 18)


def test_heading_follows_a_circle():
    angle = 0.1 * np.arange(1, 7)
    circle = 40 * np.stack([np.sin(angle), 1 - np.cos(angle)], axis=-1)[None]
    # the chord over two steps of a circle is parallel to the tangent in its middle; the last step has half
    np.testing.assert_allclose(path_heading(circle)[0], [*angle[:5], angle[5] - 0.05], atol=1e-12)


def test_heading_of_a_car_that_hardly_moves_or_reverses():
    noise = np.random.default_rng(0).normal(0, 0.05, (20, 6, 2))
    assert np.abs(path_heading(noise)).max() == 0
    assert np.abs(path_heading(straight(-3)[..., :2])).max() == 0, "backwards: the nose still points along x"
    turn = np.array([[[2, 0], [4, 0], [4, 0.01], [4, 0], [4, -0.01], [4, 0]]], dtype=float)
    assert np.abs(path_heading(turn)).max() < 0.01, "a car that has stopped does not turn on the spot"


def test_ego_box_stands_ahead_of_the_rear_axle():
    path = with_heading(np.array([[[0.0, 4], [0, 8], [0, 12], [0, 16], [0, 20], [0, 24]]]))
    np.testing.assert_allclose(
        EgoBox().along(path)[0, -1], [0, 24 + EGO_CENTER, *EGO_SIZE[:2], math.pi / 2], atol=1e-12
    )


def test_the_lidars_path_swings_out_and_back_again():
    """A vehicle that turns by 90 degrees on the spot: its LiDAR, 1 m ahead, goes 1 m left and 1 m back."""
    mount = np.array([[1.0, 0.0, -np.pi / 2]])
    turned = np.array([[[0.0, 0.0, np.pi / 2]]])
    np.testing.assert_allclose(to_lidar(turned, mount)[0, 0], [-1, -1, np.pi], atol=1e-12)
    np.testing.assert_allclose(to_lidar(straight(2), mount)[0, :, :2], [[0, i] for i in range(1, 7)], atol=1e-12)
    rng = np.random.default_rng(0)
    path, mounts = rng.normal(0, 3, (20, 6, 3)), rng.normal(0, 2, (20, 3))
    np.testing.assert_allclose(from_lidar(to_lidar(path, mounts), mounts), path, atol=1e-12)


def test_ten_poses_a_second_turn_the_shorter_way():
    path = np.array([[[5.0, 0, np.pi - 0.1], [5.0, 5.0, -np.pi + 0.1]]])
    poses = sweep(path)[0]
    np.testing.assert_allclose(poses[:5, 0], [1, 2, 3, 4, 5])
    np.testing.assert_allclose(poses[4:, 1], np.arange(6))
    assert np.abs(np.diff(poses[5:, 2])).max() < 0.05
    along, across = split_error(np.array([[[0.0, 2.0, 0.0]]]), np.array([[[1.0, 0.0, np.pi / 2]]]))
    np.testing.assert_allclose([along[0, 0], across[0, 0]], [2, 1], atol=1e-12)


def test_a_place_ahead_of_the_axle_tows_it():
    """In a bend the LiDAR's way points atan(lever / radius) further in than the car heads; reversing is left out."""
    angle = np.array([[0.15, 0.1, -0.12]]).T * np.arange(1, 7)
    driven = np.stack(
        [10 * np.sin(angle) * np.sign(angle[:, :1]), 10 * (1 - np.cos(angle)) * np.sign(angle[:, :1]), angle], axis=-1
    )
    mount = np.tile([0.94, 0.0, 0.0], (3, 1))
    place = to_lidar(driven, mount)[..., :2]
    np.testing.assert_allclose(towed_heading(place, mount[:, 0]), angle, atol=0.01)
    assert np.abs(path_heading(place) - angle)[:, :-1].min() > 0.08, "a heading along the LiDAR's way is another"
    still = np.random.default_rng(0).normal(0, 0.05, (5, 6, 2))
    assert (towed_heading(still, np.full(5, 0.94)) == 0).all() and (towed_heading(-place, mount[:, 0]) == 0).all()
    assert towed_heading(place[:, :1], mount[:, 0]).shape == (3, 1)
