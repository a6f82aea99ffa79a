"""Lift-splat against geometry done by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fusion3d.bev.lift import DepthBins, DepthOutput, LiftSplat, depth_loss, depth_targets
from fusion3d.encoders.camera import CameraFeatures
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid, Cameras, PointCloud

GRID = BEVGrid(x=(-16.0, 16.0), y=(-8.0, 8.0), z=(-5.0, 3.0), resolution=0.5)
BINS = DepthBins(1.0, 13.0, 0.5)
STRIDE, SHAPE = 8, (4, 6)
FOCAL, CX, CY = 20.0, 23.5, 15.5  # the middle of a 32 x 48 image


def rig(yaws: list[float], sample: list[int], height: float = 1.5) -> Cameras:
    """Level cameras above the origin that look along the given yaws."""
    count = len(yaws)
    image_from_cam = torch.eye(4).repeat(count, 1, 1)
    image_from_cam[:, 0, 0] = image_from_cam[:, 1, 1] = FOCAL
    image_from_cam[:, 0, 2], image_from_cam[:, 1, 2] = CX, CY
    ego_from_cam = torch.zeros(count, 4, 4)
    for i, yaw in enumerate(yaws):
        cos, sin = math.cos(yaw), math.sin(yaw)
        ego_from_cam[i] = torch.tensor([[sin, 0, cos, 0], [-cos, 0, sin, 0], [0, -1, 0, height], [0, 0, 0, 1]])
    return Cameras(
        torch.zeros(count, 3, 32, 48), image_from_cam, ego_from_cam, torch.tensor(sample), ("CAM_FRONT",) * count
    )


def test_one_pixel_at_one_depth_lands_where_the_pinhole_says():
    lift = LiftSplat(BINS, GRID, STRIDE, 2)
    cameras = rig([0.0, math.pi / 2], [0, 1])
    depth = torch.zeros(2, len(BINS), *SHAPE)
    context = torch.zeros(2, 2, *SHAPE)
    bin_index, row, col = 9, 1, 4
    depth[:, bin_index, row, col] = 0.7
    context[:, :, row, col] = torch.tensor([2.0, -1.0])
    result = lift.splat(depth, context, cameras, torch.tensor([0, 1]), 2)
    far = 1.0 + (bin_index + 0.5) * 0.5  # 5.75 m
    right = ((col + 0.5) * STRIDE - 0.5 - CX) / FOCAL * far
    for sample, (x, y) in enumerate([(far, -right), (right, far)]):
        iy, ix = math.floor((y + 8) / 0.5), math.floor((x + 16) / 0.5)
        torch.testing.assert_close(result[sample, :, iy, ix], torch.tensor([1.4, -0.7]))
    assert result.count_nonzero() == 4


def test_frustum_projects_back_onto_its_pixels_through_any_augmentation():
    """Points of the frustum, projected by plain matrix products, are the cell centres at the bins' depths."""
    torch.manual_seed(0)
    cameras = rig([0.3, 2.0], [0, 0])
    turn, scale = 0.4, 1.05
    world = torch.eye(4)
    world[:2, :2] = scale * torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    world[2, 2] = scale
    world[1] *= -1  # mirrored
    image = torch.eye(4)
    image[:2, :3] = torch.tensor([[-0.9, 0.1, 40.0], [0.1, 0.9, -3.0]])
    augmented = Cameras(
        cameras.images,
        image @ cameras.image_from_cam,
        world @ cameras.ego_from_cam,
        cameras.batch_index,
        cameras.channels,
    )
    xyz = LiftSplat(BINS, GRID, STRIDE, 2).frustum(augmented, SHAPE)
    homogeneous = torch.cat([xyz, torch.ones(*xyz.shape[:-1], 1)], dim=-1).double()
    cam = torch.einsum("mij,mdhwj->mdhwi", torch.linalg.inv(augmented.ego_from_cam.double()), homogeneous)
    pixel = torch.einsum("mij,mdhwj->mdhwi", augmented.image_from_cam.double(), cam)
    u, v = pixel[..., 0] / pixel[..., 2], pixel[..., 1] / pixel[..., 2]
    torch.testing.assert_close(u, (torch.arange(6) * 8 + 3.5).double().expand_as(u), atol=1e-3, rtol=0)
    torch.testing.assert_close(v, (torch.arange(4) * 8 + 3.5)[:, None].double().expand_as(v), atol=1e-3, rtol=0)
    depth = BINS.centers()[None, :, None, None].double().expand_as(u)
    torch.testing.assert_close(cam[..., 2], depth, atol=1e-4, rtol=0)


def test_splat_equals_a_loop_and_its_gradient_is_the_adjoint():
    torch.manual_seed(0)
    lift = LiftSplat(BINS, GRID, STRIDE, 3)
    cameras, sample = rig([0.0, 1.0, -2.0], [0, 0, 1]), torch.tensor([0, 0, 1])
    depth = torch.rand(3, len(BINS), *SHAPE, requires_grad=True)
    context = torch.rand(3, 3, *SHAPE, requires_grad=True)
    result = lift.splat(depth, context, cameras, sample, 2)
    xyz = lift.frustum(cameras, SHAPE)
    expected = torch.zeros(2, 3, *GRID.shape)
    for m, d, i, j in torch.cartesian_prod(*(torch.arange(n) for n in xyz.shape[:4])).tolist():
        cell, inside = GRID.cell_of(xyz[m, d, i, j])
        if inside:
            iy, ix = divmod(int(cell), GRID.shape[1])
            expected[sample[m], :, iy, ix] += depth[m, d, i, j].detach() * context[m, :, i, j].detach()
    torch.testing.assert_close(result, expected)
    seed = torch.rand_like(result)
    result.backward(seed)
    assert depth.grad is not None and context.grad is not None
    # Linear in each input, so <seed, result> is <gradient, input> for both.
    torch.testing.assert_close((depth.grad * depth).sum(), (seed * result).sum())
    torch.testing.assert_close((context.grad * context).sum(), (seed * result).sum())


def test_images_of_absent_samples_do_not_matter_and_order_of_cameras_does_not_either():
    torch.manual_seed(0)
    lift = LiftSplat(BINS, GRID, STRIDE, 4).train()
    features = CameraFeatures(torch.rand(2, 4, *SHAPE), torch.rand(2, len(BINS), *SHAPE))
    alone = lift(features, rig([0.0, 1.0], [0, 0]), 1)
    among = lift(features, rig([0.0, 1.0], [2, 2]), 4)
    torch.testing.assert_close(among[2:3], alone)
    assert (among[[0, 1, 3]] == 0).all()
    swapped = CameraFeatures(features.context.flip(0), features.depth.flip(0))
    torch.testing.assert_close(lift(swapped, rig([1.0, 0.0], [0, 0]), 1), alone)


def test_depth_targets_by_hand():
    cameras = rig([0.0, math.pi], [0, 1])

    def seen_at(col: int, row: int, far: float) -> list[float]:
        """A point of camera 0's frame, in ego, that falls in the middle of a feature cell."""
        right = ((col + 0.5) * STRIDE - 0.5 - CX) / FOCAL * far
        down = ((row + 0.5) * STRIDE - 0.5 - CY) / FOCAL * far
        return [far, -right, 1.5 - down]

    points = torch.tensor(
        [
            [*seen_at(2, 1, 5.1), 0.0, 0.0],
            [*seen_at(2, 1, 7.0), 0.0, 0.0],  # behind the first
            [*seen_at(4, 3, 12.99), 0.0, 0.0],
            [*seen_at(0, 0, 13.01), 0.0, 0.0],  # beyond the bins
            [*seen_at(5, 2, 4.0), 0.0, 0.05],  # of an older sweep
            [-6.0, 0.0, 1.5, 0.0, 0.0],  # behind camera 0
            [-6.0, -0.1, 1.6, 0.0, 0.0],  # of sample 1, whose camera looks back
        ]
    )
    lidar = PointCloud(points, torch.tensor([0, 0, 0, 0, 0, 0, 1]), torch.tensor([True, True]))
    target = depth_targets(cameras, lidar, BINS, SHAPE, STRIDE)
    expected = torch.full((2, *SHAPE), -1)
    expected[0, 1, 2] = 8  # 5.1 m in [5.0, 5.5)
    expected[0, 3, 4] = 23
    expected[1, 1, 2] = 10  # 6 m, a little left of and above the axis
    assert torch.equal(target, expected)


def test_depth_loss_is_the_cross_entropy_of_the_cells_that_are_known():
    cameras = rig([0.0], [0])
    logits = torch.randn(1, len(BINS), *SHAPE, requires_grad=True)
    lidar = PointCloud(torch.tensor([[5.1, 0.1, 1.6, 0.0, 0.0]]), torch.tensor([0]), torch.tensor([True]))
    loss = depth_loss(DepthOutput(logits, cameras), lidar, BINS, STRIDE)
    torch.testing.assert_close(loss, -logits[0, :, 1, 2].log_softmax(0)[8])
    for none in (None, PointCloud(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), torch.tensor([False]))):
        zero = depth_loss(DepthOutput(logits, cameras), none, BINS, STRIDE)
        assert zero == 0 and zero.requires_grad


def test_depth_bins():
    assert len(BINS) == 24 and len(DepthBins(1.0, 60.0, 0.5)) == 118
    inside = BINS.index_of(BINS.centers())
    assert torch.equal(inside, torch.arange(24))
    assert BINS.index_of(torch.tensor([0.99, 13.0, torch.inf])).tolist() == [-1, -1, -1]
    with pytest.raises(ConfigError, match=r"camera\.depth"):
        DepthBins(5.0, 2.0, 0.5)
    with pytest.raises(ConfigError, match=r"camera\.depth: found 14\.750 steps"):
        DepthBins(1.0, 60.0, 4.0)
