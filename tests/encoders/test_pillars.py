"""Pillars: what a point is told about its pillar, and clouds that are empty, tiny or absent."""

from __future__ import annotations

import pytest
import torch

from fusion3d import ops
from fusion3d.config import LidarConfig, RadarConfig
from fusion3d.encoders import radar as radar_encoder
from fusion3d.encoders.lidar import make_lidar
from fusion3d.encoders.pillars import PillarNet
from fusion3d.encoders.radar import make_radar
from fusion3d.errors import ConfigError
from fusion3d.types import RADAR_FIELDS, BEVGrid, PointCloud

GRID = BEVGrid(x=(-8.0, 8.0), y=(-4.0, 4.0), z=(-5.0, 3.0), resolution=1.0)


def cloud(points: torch.Tensor, sample: list[int], present: list[bool]) -> PointCloud:
    return PointCloud(points, torch.tensor(sample, dtype=torch.int64), torch.tensor(present))


def one_pillar(num_points: int) -> ops.SegmentPlan:
    return ops.segment_plan(torch.zeros(num_points, dtype=torch.int64), 1)


def test_description_of_two_points_in_a_pillar_by_hand():
    net = PillarNet(GRID, 1, 4)
    xyz = torch.tensor([[2.2, -1.4, 0.5], [2.6, -1.8, 1.5], [-3.5, 0.5, 0.0]])
    told = net.describe(xyz, torch.tensor([[0.1], [0.2], [0.3]]), ops.segment_plan(torch.tensor([0, 0, 1]), 2))
    expected = torch.tensor(
        [
            [0.1, 0.22, -0.14, 0.05, -0.2, 0.2, -0.5, -0.3, 0.1],
            [0.2, 0.26, -0.18, 0.15, 0.2, -0.2, 0.5, 0.1, -0.3],
            [0.3, -0.35, 0.05, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    torch.testing.assert_close(told, expected, atol=1e-5, rtol=0)


def test_map_is_maximum_and_mean_of_the_points_in_each_cell():
    torch.manual_seed(0)
    net = PillarNet(GRID, 1, 8)
    xyz = torch.rand(300, 3) * torch.tensor([18.0, 10.0, 1.0]) - torch.tensor([9.0, 5.0, 0.0])  # some are outside
    features, sample = torch.rand(300, 1), torch.arange(300) % 2
    result = net(xyz, features, sample, 2)
    assert result.shape == (2, 8, 8, 16)
    seen = 0
    for b in range(2):
        for iy in range(8):
            for ix in range(16):
                low = torch.tensor([ix - 8.0, iy - 4.0])
                mine = ((xyz[:, :2] >= low) & (xyz[:, :2] < low + 1)).all(1) & (sample == b)
                if not mine.any():
                    assert (result[b, :, iy, ix] == 0).all()
                    continue
                seen += int(mine.sum())
                values = net.net(net.describe(xyz[mine], features[mine], one_pillar(int(mine.sum()))))
                expected = torch.cat([values.amax(0), values.mean(0)])
                torch.testing.assert_close(result[b, :, iy, ix], expected, atol=1e-5, rtol=1e-5)
    assert 200 < seen < 300


@pytest.mark.parametrize("harm", [float("nan"), float("inf"), 1e30, -1e30])
def test_points_outside_of_the_grid_do_no_harm(harm):
    torch.manual_seed(0)
    net = PillarNet(GRID, 1, 8)
    xyz, features = torch.rand(20, 3), torch.rand(20, 1)
    sample = torch.zeros(20, dtype=torch.int64)

    def run(xyz, features, sample):
        net.zero_grad()
        result = net(xyz, features, sample, 1)
        result.square().sum().backward()
        return [result.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]

    alone = run(xyz, features, sample)
    xyz_more = torch.cat([torch.full((2, 3), harm), xyz, torch.tensor([[0.5, harm, 0.5], [0.5, 0.5, 9.0]])])
    features_more = torch.cat([torch.full((2, 1), harm), features, torch.full((2, 1), harm)])
    among = run(xyz_more, features_more, torch.zeros(24, dtype=torch.int64))
    assert all(torch.equal(a, b) for a, b in zip(alone, among, strict=True))
    nothing = run(xyz_more[:2], features_more[:2], sample[:2])
    assert not any(t.any() for t in nothing)


def test_gradient_through_the_network_is_that_of_each_cell_by_itself():
    """Against plain maxima and means, cell by cell, with points that share a cell, lie alone and lie outside."""
    torch.manual_seed(0)
    net = PillarNet(GRID, 1, 8)
    xyz = torch.rand(40, 3) * torch.tensor([3.0, 3.0, 1.0]) - torch.tensor([1.0, 1.0, 0.0])
    xyz[0, 0] = 9.0
    features, weight = torch.rand(40, 1, requires_grad=True), torch.randn(8, 8, 16)
    (net(xyz, features, torch.zeros(40, dtype=torch.int64), 1)[0] * weight).sum().backward()
    found = [features.grad, *(p.grad for p in net.parameters())]
    features.grad = None
    net.zero_grad()
    cell, inside = GRID.cell_of(xyz)
    total = torch.zeros(())
    for number in cell[inside].unique():
        mine = inside & (cell == number)
        values = net.net(net.describe(xyz[mine], features[mine], one_pillar(int(mine.sum()))))
        total = total + (torch.cat([values.amax(0), values.mean(0)]) * weight.flatten(1)[:, number]).sum()
    total.backward()
    for ours, theirs in zip(found, [features.grad, *(p.grad for p in net.parameters())], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert features.grad is not None and features.grad.count_nonzero() == inside.sum() == 39


def test_order_of_points_does_not_matter():
    torch.manual_seed(0)
    encoder = make_lidar(LidarConfig(channels=8, pillar=0.5), GRID).eval()
    points = torch.rand(500, 5) * torch.tensor([16.0, 8.0, 2.0, 1.0, 0.5]) - torch.tensor([8.0, 4.0, 1.0, 0.0, 0.0])
    shuffled = points[torch.randperm(500)]
    a, b = (encoder(cloud(p, [0] * 500, [True])) for p in (points, shuffled))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_clouds_of_no_or_one_point_train(count):
    lidar = make_lidar(LidarConfig(channels=8, pillar=0.5), GRID)
    result = lidar(cloud(torch.full((count, 5), 0.3), [0] * count, [True]))
    assert result.shape == (1, 8, 8, 16) and result.isfinite().all()
    result.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lidar.parameters())
    radar = make_radar(RadarConfig(channels=8), GRID)
    result = radar(cloud(torch.full((count, len(RADAR_FIELDS)), 0.3), [0] * count, [True]))
    result.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in radar.parameters())


def test_absent_samples_do_not_touch_the_others_even_in_training():
    torch.manual_seed(0)
    encoder = make_lidar(LidarConfig(channels=8, pillar=0.5), GRID).train()
    points = torch.rand(100, 5) * 3
    alone = encoder(cloud(points, [0] * 100, [True]))
    among = encoder(cloud(points, [1] * 100, [False, True, False]))
    torch.testing.assert_close(among[1:2], alone)
    assert (among[[0, 2]] == 0).all()
    nobody = cloud(points[:0], [], [False, False])
    assert encoder.eval()(nobody) is None
    absent = encoder.train()(nobody)  # goes through the layers, where processes may have to do so together
    assert (absent == 0).all() and absent.shape == among[1:].shape
    absent.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


def test_pillars_that_do_not_divide_the_grid():
    with pytest.raises(ConfigError, match="power of two"):
        make_lidar(LidarConfig(pillar=0.3), GRID)
    with pytest.raises(ConfigError, match="an even number, found 7"):
        PillarNet(GRID, 1, 7)


def test_radar_states_become_bits():
    points = torch.zeros(3, len(RADAR_FIELDS))
    points[:, RADAR_FIELDS.index("rcs")] = torch.tensor([10.0, -5.0, 0.0])
    points[:, RADAR_FIELDS.index("vx")] = 20.0
    points[:, RADAR_FIELDS.index("invalid_state")] = torch.tensor([0.0, 4.0, 0.0])
    points[:, RADAR_FIELDS.index("ambig_state")] = torch.tensor([3.0, 3.0, 1.0])
    points[:, RADAR_FIELDS.index("dyn_prop")] = torch.tensor([0.0, 7.0, -1.0])
    told = radar_encoder.describe(points)
    assert told.shape == (3, 14)
    assert told[:, 0].tolist() == [1.0, -0.5, 0.0] and told[:, 1].tolist() == [2.0] * 3
    assert told[:, 4].tolist() == [1, 0, 1] and told[:, 5].tolist() == [1, 1, 0]
    assert told[:, 6:].sum(1).tolist() == [1, 1, 0] and told[0, 6] == 1 and told[1, 13] == 1
