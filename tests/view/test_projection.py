"""Boxes in images: the near plane, and pixels against the devkit's camera model."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion3d.geometry import apply, box_corners
from fusion3d.types import Boxes
from fusion3d.view.projection import NEAR, clip_edges, clip_polygon, project, project_boxes

finite = st.floats(-50, 50, width=32)
point = st.tuples(finite, finite, finite)


def test_an_edge_through_the_plane_is_cut_where_it_crosses():
    start, end = torch.tensor([[0.0, 0.0, -0.9]]), torch.tensor([[4.0, 2.0, 1.1]])
    first, second, visible = clip_edges(start, end)
    assert visible.all()
    torch.testing.assert_close(first, torch.tensor([[2.0, 1.0, 0.1]]))  # z goes from -0.9 to 1.1: halfway is 0.1
    torch.testing.assert_close(second, end)
    first, second, _ = clip_edges(end, start)  # the other way round
    torch.testing.assert_close(first, end)
    torch.testing.assert_close(second, torch.tensor([[2.0, 1.0, 0.1]]))


def test_edges_wholly_on_one_side_are_kept_or_refused():
    start = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, -3.0], [0.0, 0.0, 0.05]])
    end = torch.tensor([[1.0, 2.0, 3.0], [4.0, 2.0, -0.2], [1.0, 0.0, 0.05]])
    first, second, visible = clip_edges(start, end)
    assert visible.tolist() == [True, False, False]
    assert torch.equal(first[0], start[0]) and torch.equal(second[0], end[0])


@given(point, point)
def test_what_is_left_is_in_front_and_on_the_edge(a, b):
    start, end = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    first, second, visible = clip_edges(start, end)
    assert bool(visible) == (max(a[2], b[2]) > NEAR)
    if visible:
        assert min(first[2], second[2]) >= NEAR - 1e-12
        along = end - start
        for cut in (first, second):  # on the line from start to end, between them
            assert torch.linalg.cross(cut - start, along).abs().max() <= 1e-6 * (1 + along.norm()) ** 2
            assert -1e-6 <= float((cut - start) @ along) <= float(along @ along) + 1e-6


def test_a_polygon_is_cut_into_its_part_in_front():
    square = torch.tensor([[0.0, 0, -0.9], [1, 0, -0.9], [1, 0, 1.1], [0, 0, 1.1]])
    cut = clip_polygon(square)
    expected = torch.tensor([[1.0, 0, 0.1], [1, 0, 1.1], [0, 0, 1.1], [0, 0, 0.1]])
    torch.testing.assert_close(cut, expected)
    assert len(clip_polygon(square - torch.tensor([0.0, 0.0, 5.0]))) == 0
    assert torch.equal(clip_polygon(square + torch.tensor([0.0, 0.0, 5.0])), square + torch.tensor([0.0, 0.0, 5.0]))


def test_pixels_agree_with_the_devkit(front_camera):
    devkit = pytest.importorskip("nuscenes.utils.geometry_utils")
    points = torch.tensor([[8.0, 1.0, 0.5], [20.0, -6.0, 3.0], [5.0, 0.0, 1.5]])
    in_camera = apply(torch.linalg.inv(front_camera.ego_from_cam[0]), points)
    ours = project(front_camera.image_from_cam[0], in_camera)
    theirs = devkit.view_points(in_camera.T.numpy(), front_camera.image_from_cam[0, :3, :3].numpy(), normalize=True)
    np.testing.assert_allclose(ours.numpy(), theirs[:2].T, atol=1e-4)


def box_at(x: float, y: float, size=(4.0, 2.0, 1.6), yaw: float = 0.0) -> Boxes:
    return Boxes.of(torch.tensor([[x, y, size[2] / 2]]), torch.tensor([size]), torch.tensor([yaw]))


def test_a_box_ahead_shows_all_its_edges_at_its_corners(front_camera):
    box = box_at(12.0, 1.0, yaw=0.4)
    ((index, edges, face),) = project_boxes(
        box, front_camera.ego_from_cam[0], front_camera.image_from_cam[0], (198, 352)
    )
    assert index == 0 and edges.shape == (12, 2, 2) and face.shape == (4, 2)
    in_camera = apply(torch.linalg.inv(front_camera.ego_from_cam[0]), box_corners(box.center, box.size, box.yaw)[0])
    corners = project(front_camera.image_from_cam[0], in_camera).double()
    gaps = torch.cdist(edges.reshape(-1, 2), corners)
    assert gaps.min(1).values.max() < 1e-3  # every end is a corner, and every corner is three ends
    assert ((gaps < 1e-3).sum(0) == 3).all()


def test_a_box_beside_the_camera_is_cut_and_one_behind_is_not_drawn(front_camera):
    pose, intrinsics = front_camera.ego_from_cam[0], front_camera.image_from_cam[0]
    around = box_at(1.5, 0.0, (12.0, 3.0, 2.5))  # the camera is inside: its back face is behind the lens
    ((_, edges, _),) = project_boxes(around, pose, intrinsics, (198, 352))
    assert edges.shape[0] == 8  # four long edges, cut, and the four of the face ahead
    assert torch.isfinite(edges).all()
    assert project_boxes(box_at(-10.0, 0.0), pose, intrinsics, (198, 352)) == []
    assert project_boxes(box_at(10.0, 40.0), pose, intrinsics, (198, 352)) == []  # ahead, but far off the image
    assert project_boxes(Boxes.empty(), pose, intrinsics, (198, 352)) == []


def test_far_boxes_come_first(front_camera):
    two = Boxes.of(torch.tensor([[8.0, 0, 0.8], [30.0, 0, 0.8]]), torch.tensor([[4.0, 2, 1.6]] * 2), torch.zeros(2))
    seen = project_boxes(two, front_camera.ego_from_cam[0], front_camera.image_from_cam[0], (198, 352))
    assert [index for index, _, _ in seen] == [1, 0]
