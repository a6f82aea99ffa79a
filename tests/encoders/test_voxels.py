"""Voxels: means by a plain loop, the sparse network against a dense one, and clouds of nothing and of one point."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fusion3d.config import DenseConfig, LidarConfig, VoxelConfig
from fusion3d.encoders.clouds import CloudEncoder
from fusion3d.encoders.lidar import make_lidar
from fusion3d.encoders.sparse import SparseConv3d, SubmanifoldConv3d
from fusion3d.encoders.voxels import SparseResidual, VoxelNet, VoxelNorm
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid

sys.path.insert(0, str(Path(__file__).parent))
from encoder_cases import BACKENDS, cloud, needs_backend, points

GRID = BEVGrid(x=(-8.0, 8.0), y=(-4.0, 4.0), z=(-4.0, 4.0), resolution=1.0)
CONFIG = LidarConfig(
    encoder="voxels",
    channels=8,
    voxels=VoxelConfig(side=0.125, height=0.25, channels=(4, 6, 8, 10), blocks=1),
    dense=DenseConfig(channels=(8, 12), blocks=(1, 1)),
)


def make_net(config: LidarConfig = CONFIG, grid: BEVGrid = GRID) -> VoxelNet:
    """With statistics as after some training."""
    torch.manual_seed(0)
    net = VoxelNet(config, grid, 2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.2, 0.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.1, 0.3)
    return net.eval()


def test_voxels_hold_the_means_of_their_points():
    """All points count, however many there are; those outside and those with NaN do not."""
    cluster = torch.rand(50, 5) * 0.12 + torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0])
    bad = torch.tensor([[float("nan"), 0.0, 0.0, 1.0, 0.0], [9.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 4.0, 1.0, 0.0]])
    every = torch.cat([points(60), cluster, bad])
    sample = torch.arange(len(every)) // 80
    found = make_net().voxelize(every, sample, 2)
    wanted: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for b, (x, y, z, intensity, time) in zip(sample.tolist(), every.double().tolist(), strict=True):
        at = [(z + 4) / 0.25, (y + 4) / 0.125, (x + 8) / 0.125]
        if all(0 <= value < count for value, count in zip(at, (32, 64, 128), strict=True)):
            iz, iy, ix = (int(value) for value in at)
            told = torch.tensor([at[2] - ix - 0.5, at[1] - iy - 0.5, at[0] - iz - 0.5, intensity, time])
            wanted.setdefault((b, iz, iy, ix), []).append(told)
    assert {tuple(row) for row in found.coords.tolist()} == set(wanted) and len(found.coords) == len(wanted)
    assert max(len(told) for told in wanted.values()) >= 30
    for row, features in zip(found.coords.tolist(), found.features, strict=True):
        mean = torch.stack(wanted[tuple(row)]).mean(0)
        torch.testing.assert_close(features, mean.float(), atol=1e-4, rtol=1e-4)


def dense_twin(layers: nn.Module, grid: torch.Tensor, there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sparse layers on a grid [B, C, Z, Y, X] with its occupied cells [B, 1, Z, Y, X], by torch's dense conv3d."""
    for layer in layers:
        if isinstance(layer, SparseResidual):
            inner, _ = dense_twin(list(layer), grid, there)
            grid = F.relu(inner + grid) * there
        elif isinstance(layer, SubmanifoldConv3d):
            grid = F.conv3d(grid, layer.weight.permute(0, 4, 1, 2, 3).double(), padding=1) * there
        elif isinstance(layer, SparseConv3d):
            step = {"stride": layer.stride, "padding": layer.padding}
            grid = F.conv3d(grid, layer.weight.permute(0, 4, 1, 2, 3).double(), **step)
            reached = F.conv3d(there, torch.ones(1, 1, *layer.kernel, dtype=torch.float64), **step)
            there = (reached > 0.5).double()
        elif isinstance(layer, VoxelNorm):
            scale = layer.weight / (layer.running_var + layer.eps).sqrt()
            shift = layer.bias - layer.running_mean * scale
            grid = (grid * scale.double().view(-1, 1, 1, 1) + shift.double().view(-1, 1, 1, 1)) * there
        else:
            assert isinstance(layer, nn.ReLU)
            grid = F.relu(grid)
    return grid, there


def test_sparse_network_equals_dense_convolution():
    net = make_net(grid=BEVGrid(x=(-2.0, 2.0), y=(-1.0, 1.0), z=(-4.0, 4.0), resolution=1.0))
    every = points(600) * torch.tensor([0.25, 0.25, 1.0, 1.0, 1.0])
    voxels = net.voxelize(every, torch.arange(600) // 300, 2)
    assert voxels.shape == (33, 16, 32), "one layer of voxels more than the grid's 32"
    there = voxels.with_features(torch.ones(len(voxels.coords), 1)).dense().double()
    with torch.no_grad():
        want, _ = dense_twin(net.sparse, voxels.dense().double(), there)
        found = net.sparse(voxels)
    assert found.shape == want.shape[2:] == (1, 2, 4)
    torch.testing.assert_close(found.dense(), want.float(), atol=1e-4, rtol=1e-4)


def test_published_sizes():
    """1440 x 1440 x 41 voxels become 180 x 180 x 2, and 1024 become 128: as in CenterPoint and SECOND."""
    for side, extent, resolution, cells in ((0.075, 54.0, 0.6, 180), (0.1, 51.2, 0.8, 128)):
        grid = BEVGrid(x=(-extent, extent), y=(-extent, extent), z=(-5.0, 3.0), resolution=resolution)
        config = LidarConfig(encoder="voxels", voxels=VoxelConfig(side=side))
        net = VoxelNet(config, grid, 2)
        assert net.shape == (41, 8 * cells, 8 * cells)
        voxels = net.eval().voxelize(points(40), torch.zeros(40, dtype=torch.int64), 1)
        with torch.no_grad():
            assert net.sparse(voxels).shape == (2, cells, cells)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_backends_agree_with_the_same_weights(backend, device):
    needs_backend(backend)
    config = dataclasses.replace(CONFIG, voxels=dataclasses.replace(CONFIG.voxels, backend=backend))
    ours, theirs = make_net().to(device), make_net(config).to(device)
    theirs.load_state_dict(ours.state_dict())
    sample, every = (torch.arange(800) // 400).to(device), points(800).to(device)
    with torch.no_grad():
        voxels = ours.voxelize(every, sample, 2)
        found, want = theirs.sparse(voxels).dense(), ours.sparse(voxels).dense()
        assert found.shape == want.shape and want.any()
        torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(theirs(every, sample, 2), ours(every, sample, 2), atol=1e-4, rtol=1e-4)


def test_order_of_points_does_not_matter_and_a_moved_scene_gives_a_moved_map():
    """Moved by two cells of the coarsest map, far enough from the border."""
    grid = BEVGrid(x=(-32.0, 32.0), y=(-32.0, 32.0), z=(-4.0, 4.0), resolution=1.0)
    encoder = CloudEncoder(make_net(grid=grid), CONFIG.channels).eval()
    every = points(400) * torch.tensor([0.5, 0.5, 0.9, 1.0, 1.0])
    moved = every + torch.tensor([4.0, -2.0, 0.0, 0.0, 0.0])
    with torch.no_grad():
        a, b, c = (encoder(cloud(p)) for p in (every, every[torch.randperm(400)], moved))
    assert a is not None and b is not None and c is not None
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a[..., 8:-8, 8:-8], c[..., 6:-10, 12:-4], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(a[..., 8:-8, 8:-8], c[..., 8:-8, 8:-8], atol=1e-2)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_clouds_of_no_one_or_two_points_train(count):
    encoder = make_lidar(CONFIG, GRID).train()
    before = {name: value.clone() for name, value in encoder.named_buffers() if "sparse" in name}
    result = encoder(cloud(torch.full((count, 5), 0.3) + torch.arange(count)[:, None]))
    assert result is not None and result.shape == (1, 8, 8, 16) and result.isfinite().all()
    result.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    if count == 0:
        assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers() if name in before)


def test_a_voxel_alone_is_normalised_by_the_running_statistics():
    norm = VoxelNorm(3).train()
    norm(torch.randn(50, 3) * 4 + 1)
    one, several = torch.randn(1, 3), torch.randn(9, 3)
    torch.testing.assert_close(norm(one), norm.eval()(one))
    norm.train()
    std, mean = torch.std_mean(several, 0, unbiased=False)
    torch.testing.assert_close(norm(several), (several - mean) / (std**2 + norm.eps).sqrt())


def test_every_parameter_learns_and_bfloat16_stays_near():
    encoder = make_lidar(CONFIG, GRID).train()
    every = cloud(points(2000))
    result = encoder(every)
    (result * torch.randn_like(result)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in encoder.parameters())
    encoder.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = encoder(every)
    exact = encoder(every)
    assert rough is not None and (rough.float() - exact).abs().mean() < 0.03 * exact.abs().mean().clamp(min=0.1)


def test_a_sample_does_not_depend_on_the_others_and_absent_ones_are_left_out():
    encoder = make_lidar(CONFIG, GRID).eval()
    mine, others = points(100), points(200, seed=1)
    with torch.no_grad():
        alone = encoder(cloud(mine))
        among = encoder(cloud(torch.cat([others, mine]), [0] * 200 + [2] * 100, (True, False, True)))
    torch.testing.assert_close(among[2:], alone, atol=1e-5, rtol=1e-5)
    assert not among[1].any() and among[0].any()
    assert encoder(cloud(mine[:0], [], (False, False))) is None


@pytest.mark.parametrize(("side", "resolution"), [(0.125, 0.5), (0.125, 2.0), (0.0625, 1.0), (0.0625, 0.25)])
def test_any_power_of_two_between_voxels_and_grid(side, resolution):
    grid = BEVGrid(
        x=(-8.0, 8.0), y=(-3.0, 4.0) if resolution < 1 else (-4.0, 4.0), z=(-4.0, 4.0), resolution=resolution
    )
    config = dataclasses.replace(CONFIG, voxels=dataclasses.replace(CONFIG.voxels, side=side))
    encoder = make_lidar(config, grid).eval()
    with torch.no_grad():
        result = encoder(cloud(points(50)))
    assert result is not None and result.shape == (1, 8, *grid.shape)


def test_settings_that_do_not_fit_are_refused_with_both_keys():
    voxels, dense = CONFIG.voxels, CONFIG.dense
    cases = {
        r"lidar\.voxels\.side.*grid\.resolution": {"voxels": dataclasses.replace(voxels, side=0.1)},
        r"lidar\.voxels\.height: 0\.3.*grid\.z": {"voxels": dataclasses.replace(voxels, height=0.3)},
        r"lidar\.voxels\.height: 0\.5.*grid\.z": {"voxels": dataclasses.replace(voxels, height=0.5)},
        r"lidar\.dense\.blocks.*lidar\.dense\.channels": {"dense": dataclasses.replace(dense, blocks=(1,))},
        r"lidar\.channels: 7.*lidar\.dense\.channels": {"channels": 7},
    }
    for message, change in cases.items():
        with pytest.raises(ConfigError, match=message):
            make_lidar(dataclasses.replace(CONFIG, **change), GRID)
