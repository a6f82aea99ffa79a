"""Transforms against scipy and pyquaternion's conventions, boxes against the devkit and shapely."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from fusion3d import geometry

RNG = np.random.default_rng(0)


def random_transforms(count: int) -> np.ndarray:
    return geometry.transform_from(RNG.normal(size=(count, 3)) * 10, RNG.normal(size=(count, 4)))


def test_quaternions_agree_with_scipy_and_round_trip() -> None:
    wxyz = RNG.normal(size=(50, 4))
    rotation = geometry.rotation_from_quaternion(wxyz)
    np.testing.assert_allclose(rotation, Rotation.from_quat(wxyz[:, [1, 2, 3, 0]]).as_matrix(), atol=1e-12)
    again = geometry.quaternion_from_rotation(rotation)
    unit = wxyz / np.linalg.norm(wxyz, axis=1, keepdims=True)
    np.testing.assert_allclose(again, unit * np.sign(unit[:, :1]), atol=1e-12)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_inverse_and_composition(kind: str) -> None:
    a_from_b, b_from_c = random_transforms(5), random_transforms(5)
    points = RNG.normal(size=(5, 7, 3))
    if kind == "torch":
        a_from_b, b_from_c, points = map(torch.from_numpy, (a_from_b, b_from_c, points))
    back = geometry.apply(geometry.invert(a_from_b), geometry.apply(a_from_b, points))
    np.testing.assert_allclose(back, points, atol=1e-12)
    np.testing.assert_allclose(
        geometry.apply(a_from_b @ b_from_c, points),
        geometry.apply(a_from_b, geometry.apply(b_from_c, points)),
        atol=1e-12,
    )
    np.testing.assert_allclose(
        geometry.rotate(a_from_b, points), geometry.apply(a_from_b, points) - a_from_b[:, None, :3, 3], atol=1e-12
    )


@given(st.floats(-math.pi + 1e-6, math.pi - 1e-6))
def test_yaw_round_trip(yaw: float) -> None:
    rotation = geometry.rotation_from_quaternion(geometry.quaternion_from_yaw(np.array(yaw)))
    assert abs(float(geometry.yaw_of(rotation)) - yaw) < 1e-9


@given(st.floats(-100, 100))
def test_wrapped_angles_point_the_same_way(angle: float) -> None:
    wrapped = float(geometry.wrap_angle(torch.tensor(angle, dtype=torch.float64)))
    assert -math.pi <= wrapped < math.pi
    assert math.isclose(math.cos(wrapped), math.cos(angle), abs_tol=1e-9)
    assert math.isclose(math.sin(wrapped), math.sin(angle), abs_tol=1e-9)


def test_corners_agree_with_the_devkit() -> None:
    data_classes = pytest.importorskip("nuscenes.utils.data_classes")
    from pyquaternion import Quaternion

    for _ in range(20):
        center, size, yaw = RNG.normal(size=3) * 10, RNG.uniform(0.5, 10, 3), float(RNG.uniform(-3, 3))
        theirs = data_classes.Box(center, size[[1, 0, 2]], Quaternion(axis=[0, 0, 1], angle=yaw)).corners().T
        ours = geometry.box_corners(torch.tensor(center), torch.tensor(size), torch.tensor(yaw, dtype=torch.float64))
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_footprint_agrees_with_shapely() -> None:
    shapely = pytest.importorskip("shapely")
    center = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    size, yaw = torch.tensor([[4.0, 2.0, 1.0]], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    polygon = shapely.Polygon(geometry.corners_bev(center, size, yaw)[0].numpy())
    assert polygon.area == pytest.approx(8.0)
