"""Where one may drive: polygons against shapely."""

from __future__ import annotations

import numpy as np
import pytest
from shapely import contains_xy, unary_union
from shapely.geometry import Polygon

from fusion3d.data.drivable import Area, drivable_area
from fusion3d.data.vector_map import VectorMap
from fusion3d.types import MAP_CLASSES

LAYER = MAP_CLASSES.index("drivable_area")


def vector_map(shapes: list[list[np.ndarray]], layer: int = LAYER) -> VectorMap:
    rings = [ring for shape in shapes for ring in shape]
    number = [i for i, shape in enumerate(shapes) for _ in shape]
    return VectorMap(
        np.concatenate(rings),
        np.cumsum([0, *map(len, rings)]),
        np.array(number),
        np.full(len(rings), layer),
        np.ones(len(rings), dtype=bool),
        np.ones(len(MAP_CLASSES), dtype=bool),
    )


def star(rng, center, far: float, points: int = 9) -> np.ndarray:
    angle = np.sort(rng.uniform(0, 2 * np.pi, points))
    return center + rng.uniform(0.4, 1, (points, 1)) * far * np.stack([np.cos(angle), np.sin(angle)], -1)


@pytest.mark.parametrize("seed", range(4))
def test_points_are_inside_as_shapely_says(seed):
    rng = np.random.default_rng(seed)
    shapes = [[star(rng, c := rng.uniform(-30, 30, 2), 20), star(rng, c, 4)] for _ in range(5)]
    whole = unary_union(
        [Polygon(outer).buffer(0).symmetric_difference(Polygon(inner).buffer(0)) for outer, inner in shapes]
    )
    xy = rng.uniform(-50, 50, (3000, 2))
    inside = drivable_area(vector_map(shapes)).contains(xy)
    np.testing.assert_array_equal(inside, contains_xy(whole, xy[:, 0], xy[:, 1]))
    assert 0.05 < inside.mean() < 0.9
    one_by_one = np.concatenate([drivable_area(vector_map(shapes)).contains(point[None]) for point in xy[:50]])
    np.testing.assert_array_equal(one_by_one, inside[:50])


def test_each_polygon_by_itself():
    rng = np.random.default_rng(5)
    rings = [star(rng, rng.uniform(-20, 20, 2), 15) for _ in range(6)]
    xy = rng.uniform(-30, 30, (500, 2))
    within = Area(rings, np.array([0, 1, 1, 3, 7, 8])).within(xy)
    inside = np.stack([contains_xy(Polygon(ring).buffer(0), xy[:, 0], xy[:, 1]) for ring in rings], axis=-1)
    inside[:, 1] ^= inside[:, 2]  # the third one is a hole of the second, or a part
    np.testing.assert_array_equal(within, np.delete(inside, 2, axis=1))
    assert Area([], np.zeros(0, int)).within(xy).shape == (500, 0) and not Area([], np.zeros(0, int)).contains(xy).any()


def test_a_position_that_is_not_known_is_nowhere_and_spoils_no_other():
    area = Area([np.array([[0, 0], [10, 0], [10, 10], [0, 10]], dtype=float)], np.array([0]))
    nan = float("nan")
    assert area.contains(np.array([[5.0, 5.0], [nan, 5.0], [5.0, nan], [nan, nan]])).tolist() == [True] + 3 * [False]
    assert not area.contains(np.array([[nan, nan]])).any()


def test_other_layers_are_not_drivable():
    square = [np.array([[0, 0], [10, 0], [10, 10], [0, 10]], dtype=float)]
    area = drivable_area(vector_map([square], layer=1 - LAYER if LAYER in (0, 1) else 0))
    assert not area.contains(np.array([[5.0, 5.0]])).any()
    assert drivable_area(vector_map([square])).contains(np.zeros((0, 2))).shape == (0,)
