"""What LiDAR shows of an image, and the depth networks."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from fusion3d.encoders.camera import make_camera_encoder
from fusion3d.encoders.depth import sparse_depth
from fusion3d.types import Cameras, PointCloud
from tests.test_model import TINY, make_batch

SHAPE, CELL, FAR = (16, 24), 2, 20.0


def cloud(count: int = 600) -> PointCloud:
    """Two samples with points all around, a third of them of older sweeps, one of them not a number."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(2 * count, 5, generator=generator)
    points[:, :3] = (points[:, :3] - 0.5) * torch.tensor([50.0, 50.0, 6.0])
    points[:, 4] = (points[:, 4] * 3).floor() * 0.05
    points[5, 1] = torch.nan
    return PointCloud(points, torch.arange(2).repeat_interleave(count), torch.tensor([True, True]))


def cameras() -> Cameras:
    """Three cameras, two of them of the second sample, in a world that is scaled and mirrored."""
    full = make_batch(1).cameras
    assert full is not None
    world = torch.diag(torch.tensor([1.1, -1.1, 1.1, 1.0]))
    return Cameras(
        torch.zeros(3, 3, 32, 48),
        full.image_from_cam[:3] @ torch.diag(torch.tensor([0.5, 0.5, 1.0, 1.0])),
        world @ full.ego_from_cam[:3],
        torch.tensor([1, 0, 1]),
        full.channels[:3],
    )


def test_sparse_depth_is_a_loop_over_points():
    rig, lidar = cameras(), cloud()
    before = lidar.points.clone()
    found = sparse_depth(rig, lidar, SHAPE, CELL, FAR)
    assert torch.equal(lidar.points.nan_to_num(7), before.nan_to_num(7)), "the cloud is the LiDAR branch's, too"
    expected = np.zeros(found.shape)
    nearest = np.full((3, 2, *SHAPE), np.inf)
    for m in range(3):
        image_from_ego = rig.image_from_cam[m].double().numpy() @ np.linalg.inv(rig.ego_from_cam[m].double().numpy())
        for point, sample in zip(lidar.points.double().numpy(), lidar.batch_index, strict=True):
            u, v, depth, _ = image_from_ego @ [*point[:3], 1.0]
            if sample != rig.batch_index[m] or not depth > 0.1:
                continue
            row, col = math.floor((v / depth + 0.5) / CELL), math.floor((u / depth + 0.5) / CELL)
            if 0 <= row < SHAPE[0] and 0 <= col < SHAPE[1]:
                old = int(point[4] > 0.02)
                nearest[m, old, row, col] = min(nearest[m, old, row, col], depth)
    for old in (0, 1):
        seen = nearest[:, old] <= FAR
        expected[:, 2 * old] = np.where(seen, nearest[:, old] / FAR, 0)
        expected[:, 2 * old + 1] = seen
    assert (expected[:, 1].sum((1, 2)) > 5).all() and (expected[:, 3].sum((1, 2)) > 5).all()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_absent_lidar_is_not_an_empty_cloud():
    rig, lidar = cameras(), cloud()
    none = sparse_depth(rig, None, SHAPE, CELL, FAR)
    assert (none[:, 4] == 1).all() and not none[:, :4].any()
    second = PointCloud(lidar.points[600:], lidar.batch_index[600:], torch.tensor([False, True]))
    half = sparse_depth(rig, second, SHAPE, CELL, FAR)
    assert torch.equal(half[1], none[1]) and torch.equal(
        half[[0, 2]], sparse_depth(rig, lidar, SHAPE, CELL, FAR)[[0, 2]]
    )
    empty = sparse_depth(rig, PointCloud(lidar.points[:0], lidar.batch_index[:0], lidar.present), SHAPE, CELL, FAR)
    assert not empty.any()


@pytest.mark.parametrize("view", ["lift", "aware_lift", "lidar_lift"])
def test_depth_networks_know_the_camera_and_lidar_if_they_should(view):
    torch.manual_seed(0)
    assert TINY.camera is not None
    encoder = make_camera_encoder(dataclasses.replace(TINY.camera, view=view), 7).eval()
    batch = make_batch(2)
    rig, lidar = batch.cameras, batch.lidar
    assert rig is not None and lidar is not None

    def depth_of(cameras: Cameras, cloud: PointCloud | None) -> torch.Tensor:
        with torch.no_grad():
            features = encoder(cameras, cloud)
        assert features.depth is not None and features.depth.shape == (12, 7, 8, 12)
        assert features.context.shape == (12, TINY.camera.channels, 8, 12)  # type: ignore[union-attr]
        return features.depth

    seen, absent = depth_of(rig, lidar), depth_of(rig, None)
    assert torch.equal(seen, absent) == (view != "lidar_lift")
    first = lidar.batch_index == 0
    one = PointCloud(lidar.points[first], lidar.batch_index[first], torch.tensor([True, False]))
    torch.testing.assert_close(depth_of(rig, one), torch.cat([seen[:6], absent[6:]]), atol=1e-5, rtol=1e-5)
    zoomed = rig.image_from_cam.clone()
    zoomed[:, :2, :2] *= 1.5
    assert (depth_of(dataclasses.replace(rig, image_from_cam=zoomed), lidar) - seen).abs().max() > 1e-4
    turned = rig.ego_from_cam.roll(1, 0)
    assert (depth_of(dataclasses.replace(rig, ego_from_cam=turned), None) - absent).abs().max() > 1e-4


def test_one_image_trains_the_aware_network():
    torch.manual_seed(0)
    assert TINY.camera is not None
    encoder = make_camera_encoder(dataclasses.replace(TINY.camera, view="aware_lift"), 7).train()
    rig = make_batch(1).cameras
    assert rig is not None
    one = dataclasses.replace(
        rig,
        images=rig.images[:1],
        image_from_cam=rig.image_from_cam[:1],
        ego_from_cam=rig.ego_from_cam[:1],
        batch_index=rig.batch_index[:1],
        channels=rig.channels[:1],
    )
    features = encoder(one)
    (features.context.square().sum() + features.depth.square().sum()).backward()
    missing = [
        name for name, p in encoder.depth_net.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert not missing
