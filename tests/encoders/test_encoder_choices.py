"""Every encoder of LiDAR and radar in a whole model: it trains, decodes, and any sample may be without the sensor."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fusion3d.build import build_model
from fusion3d.config import (
    Config,
    DenseConfig,
    DetectionConfig,
    DualConfig,
    FusionConfig,
    LidarConfig,
    PlanningConfig,
    RadarConfig,
    TrunkConfig,
    VoxelConfig,
    WindowConfig,
    from_dict,
    override,
)
from fusion3d.data.subset import select_sensors
from fusion3d.engine.random_batch import random_batch
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid, PointCloud

TINY = Config(
    grid=BEVGrid(x=(-12.8, 12.8), y=(-9.6, 9.6), resolution=0.8),
    camera=None,
    lidar=LidarConfig(
        channels=8,
        pillar=0.4,
        voxels=VoxelConfig(side=0.1, channels=(4, 4, 8, 8), blocks=1),
        windows=WindowConfig(pillar=0.4, channels=8, heads=2, blocks=2, window=(8, 4)),
        dense=DenseConfig(channels=(8, 8), blocks=(1, 1)),
    ),
    radar=RadarConfig(channels=8, dual=DualConfig(channels=8, heads=2, blocks=1)),
    fusion=FusionConfig(channels=16),
    trunk=TrunkConfig(channels=16, blocks=(1, 1), out_channels=16),
    detection=DetectionConfig(channels=16),
    planning=PlanningConfig(channels=16),
)
CHOICES = [("lidar", "pillars"), ("lidar", "voxels"), ("lidar", "windows"), ("radar", "pillars"), ("radar", "dual")]


def chosen(sensor: str, encoder: str) -> Config:
    """One line of configuration."""
    return override(TINY, [f"--{sensor}.encoder", encoder])


@pytest.mark.parametrize(("sensor", "encoder"), CHOICES)
def test_it_trains_for_two_steps_to_the_same_bits_and_decodes(sensor, encoder):
    config = chosen(sensor, encoder)
    batch = random_batch(config, 2, 300, 40, 5)
    weights = []
    torch.use_deterministic_algorithms(True)  # raises where an operation has no deterministic kernel
    try:
        for _ in range(2):
            torch.manual_seed(0)
            model = build_model(config)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
            for sensors in (("lidar", "radar"), (sensor,)):
                optimizer.zero_grad()
                loss = torch.stack(list(model.losses(model(select_sensors(batch, sensors)), batch).values())).sum()
                loss.backward()
                assert loss.isfinite()
                branch = getattr(model, sensor)
                assert all(p.grad is not None and p.grad.isfinite().all() for p in branch.parameters())
                optimizer.step()
            weights.append([p.detach() for p in model.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    boxes = model.decode(model.eval()(batch), batch).boxes
    assert boxes is not None and len(boxes) == 2


@pytest.mark.parametrize(("sensor", "encoder"), CHOICES)
def test_a_sample_alone_is_as_it_is_among_others_that_lack_the_sensor(sensor, encoder):
    config = chosen(sensor, encoder)
    torch.manual_seed(0)
    model, batch = build_model(config).eval(), random_batch(config, 3, 300, 40, 5)
    cloud = getattr(batch, sensor)
    mine = cloud.batch_index == 1
    few = PointCloud(cloud.points[mine], cloud.batch_index[mine], torch.tensor([False, True, False]))
    alone = PointCloud(cloud.points[mine], cloud.batch_index[mine] * 0, torch.tensor([True]))
    with torch.no_grad():
        among = model(dataclasses.replace(select_sensors(batch, [sensor]), **{sensor: few}))["detection"].heatmap
        single = random_batch(config, 1, 1, 1, 1)
        one = model(dataclasses.replace(select_sensors(single, [sensor]), **{sensor: alone}))["detection"].heatmap
        nothing = model(select_sensors(batch, []))["detection"].heatmap
    torch.testing.assert_close(among[1:2], one, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(among[[0, 2]], nothing[[0, 2]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(among[1], nothing[1], atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize(("sensor", "encoder"), CHOICES)
def test_the_gpu_gives_the_map_and_the_gradients_of_the_cpu(sensor, encoder, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = chosen(sensor, encoder)
    torch.manual_seed(0)
    model, batch = build_model(config).eval(), random_batch(config, 2, 300, 40, 5)
    found = []
    for device in ("cpu", "cuda"):
        branch, cloud = getattr(model.to(device), sensor), getattr(batch.to(device), sensor)
        branch.zero_grad()
        map_BCYX = branch(cloud)
        map_BCYX.square().sum().backward()
        found.append([map_BCYX.detach().cpu(), *(p.grad.cpu() for p in branch.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3 * max(float(ours.abs().max()), 1e-3), rtol=1e-3)


def test_only_what_exists_can_be_chosen():
    assert from_dict({"lidar": {"encoder": "voxels", "voxels": {"side": 0.1}}}).lidar is not None
    windows = override(TINY, ["--lidar.windows.window", "20", "5", "--lidar.voxels.channels", "8", "8", "16", "16"])
    assert windows.lidar is not None and windows.lidar.windows.window == (20, 5)
    for values, message in (
        ({"lidar": {"encoder": "voxel"}}, "expected one of 'pillars', 'voxels', 'windows'"),
        ({"lidar": {"voxels": {"channels": [1, 2, 3]}}}, "expected 4 values"),
        ({"lidar": {"windows": {"window": [0, 3]}}}, r"lidar\.windows\.window: expected two numbers"),
        ({"lidar": {"voxels": {"backend": "torchsparse"}}}, "expected one of 'ours'"),
        ({"radar": {"encoder": "voxels"}}, "expected one of 'pillars', 'dual'"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_dict(values)


@pytest.mark.parametrize(("encoder", "channels"), [("voxels", 16), ("windows", 8)])
def test_without_a_dense_network_the_map_is_the_branchs_own(encoder, channels):
    base = chosen("lidar", encoder).lidar
    assert base is not None
    lidar = dataclasses.replace(base, dense=None, channels=channels, windows=WindowConfig(0.8, 8, 2, 2, (8, 4)))
    config = dataclasses.replace(TINY, lidar=lidar)
    model, batch = build_model(config), random_batch(config, 2, 300, 40, 5)
    found = model.lidar(batch.lidar)  # type: ignore[operator]
    assert found.shape == (2, channels, *config.grid.shape)
    where = (batch.lidar.points[:, :2] - torch.tensor([-12.8, -9.6])).div(0.8).floor().long()  # type: ignore[union-attr]
    far = torch.ones(config.grid.shape, dtype=torch.bool)
    for ix, iy in where.tolist():
        far[max(iy - 2, 0) : max(iy + 3, 0), max(ix - 2, 0) : max(ix + 3, 0)] = False
    assert far.any() and not found[:, :, far].any(), "nothing spreads where no point is near"
    loss = torch.stack(list(model.losses(model(batch), batch).values())).sum()
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None for p in model.lidar.parameters())  # type: ignore[union-attr]
    coarse = VoxelConfig(side=0.2, channels=(4, 4, 8, 8))
    for change, message in (
        ({"channels": 10}, f"lidar.channels: found 10.*set {channels}"),
        ({"windows": base.windows, "voxels": coarse}, "lidar.dense: found null.* times grid.resolution"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_model(dataclasses.replace(config, lidar=dataclasses.replace(lidar, **change)))
