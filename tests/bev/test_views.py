"""Every view transform against geometry done by hand, and with sensors that are not there."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from fusion3d.bev.lift import DepthBins, LiftSplat
from fusion3d.bev.pillar_views import CrossAttention, Deformable, Unproject, pillar_points, places_in_images
from fusion3d.bev.radar_lift import RadarLift, frustum_returns
from fusion3d.bev.views import make_view
from fusion3d.encoders.depth import CameraFeatures
from fusion3d.errors import ConfigError
from fusion3d.types import RADAR_FIELDS, BEVGrid, Cameras, PointCloud
from tests.test_model import TINY, make_batch, make_model, mixed_sensors, run

GRID = BEVGrid(x=(-8.0, 8.0), y=(-6.0, 6.0), z=(-1.0, 3.0), resolution=1.0)
BINS = DepthBins(1.0, 9.0, 0.5)
STRIDE, SHAPE, HEIGHTS, CHANNELS = 8, (4, 6), 4, 8
FOCAL, CX, CY = 20.0, 23.5, 15.5  # the middle of a 32 x 48 image
VIEWS = ("lift", "radar_lift", "deformable", "unproject")
NAMES = ("lift", "aware_lift", "lidar_lift", "radar_lift", "deformable", "unproject")


def rig(yaws: list[float], sample: list[int], pitch: float = 0.0) -> Cameras:
    """Cameras 1.5 m above the origin that look along the given yaws, and up by the pitch."""
    image_from_cam = torch.eye(4).repeat(len(yaws), 1, 1)
    image_from_cam[:, 0, 0] = image_from_cam[:, 1, 1] = FOCAL
    image_from_cam[:, 0, 2], image_from_cam[:, 1, 2] = CX, CY
    ego_from_cam = torch.zeros(len(yaws), 4, 4)
    up, level = math.sin(pitch), math.cos(pitch)
    for i, yaw in enumerate(yaws):
        cos, sin = math.cos(yaw), math.sin(yaw)
        ego_from_cam[i] = torch.tensor(
            [[sin, up * cos, level * cos, 0], [-cos, up * sin, level * sin, 0], [0, -level, up, 1.5], [0, 0, 0, 1]]
        )
    images = torch.zeros(len(yaws), 3, 32, 48)
    return Cameras(images, image_from_cam, ego_from_cam, torch.tensor(sample), ("CAM_FRONT",) * len(yaws))


def augmented(cameras: Cameras) -> Cameras:
    """The world turned, scaled and mirrored; the images mirrored, turned and shifted."""
    cos, sin = 1.05 * math.cos(0.4), 1.05 * math.sin(0.4)
    world = torch.tensor([[cos, -sin, 0, 0], [-sin, -cos, 0, 0], [0, 0, 1.05, 0], [0, 0, 0, 1.0]])
    image = torch.eye(4)
    image[:2, :3] = torch.tensor([[-0.95, 0.1, 48.0], [0.1, 0.95, -2.0]])
    return dataclasses.replace(
        cameras, image_from_cam=image @ cameras.image_from_cam, ego_from_cam=world @ cameras.ego_from_cam
    )


def make(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    args = (GRID, STRIDE, CHANNELS, HEIGHTS)
    made = {
        "lift": lambda: LiftSplat(BINS, GRID, STRIDE, CHANNELS),
        "radar_lift": lambda: RadarLift(BINS, GRID, STRIDE, CHANNELS),
        "deformable": lambda: Deformable(*args, layers=2),
        "unproject": lambda: Unproject(*args),
    }[name]()
    for parameter in made.parameters():  # also those that start at zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def features_of(count: int, seed: int = 0) -> CameraFeatures:
    generator = torch.Generator().manual_seed(seed)
    return CameraFeatures(
        torch.randn(count, CHANNELS, *SHAPE, generator=generator),
        torch.randn(count, len(BINS), *SHAPE, generator=generator),
    )


def returns(count: int, samples: int, seed: int = 0) -> PointCloud:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count * samples, len(RADAR_FIELDS), generator=generator)
    points[:, :2] = 16 * points[:, :2] - 8
    index = torch.arange(samples).repeat_interleave(count)
    return PointCloud(points, index, torch.ones(samples, dtype=torch.bool))


# Plain loops in numpy, by the pinhole formula.


def pixel_of(cameras: Cameras, image: int, xyz: np.ndarray) -> tuple[float, float, float]:
    """u, v [px] and depth [m] of a point in ego."""
    cam = np.linalg.inv(cameras.ego_from_cam[image].double().numpy()) @ [*xyz, 1.0]
    u, v, depth, _ = cameras.image_from_cam[image].double().numpy() @ cam
    return u / depth, v / depth, depth


def read(feature: np.ndarray, u: float, v: float) -> np.ndarray:
    """[C, H, W] read bilinearly at a pixel of the image, zero outside of the map."""
    col, row = (u + 0.5) / STRIDE - 0.5, (v + 0.5) / STRIDE - 0.5
    total = np.zeros(feature.shape[0])
    for j in (math.floor(col), math.floor(col) + 1):
        for i in (math.floor(row), math.floor(row) + 1):
            if 0 <= i < feature.shape[1] and 0 <= j < feature.shape[2]:
                total += (1 - abs(col - j)) * (1 - abs(row - i)) * feature[:, i, j]
    return total


def is_seen(u: float, v: float, depth: float) -> bool:
    return depth > 0.1 and -0.5 <= u < STRIDE * SHAPE[1] - 0.5 and -0.5 <= v < STRIDE * SHAPE[0] - 0.5


def voxel(iy: int, ix: int, z: int) -> np.ndarray:
    return np.array([GRID.x[0] + ix + 0.5, GRID.y[0] + iy + 0.5, GRID.z[0] + (z + 0.5) * 4.0 / HEIGHTS])


def test_unprojection_is_a_loop_over_voxels_and_cameras():
    cameras, sample = augmented(rig([0.0, 0.9, -2.0], [0, 0, 1])), torch.tensor([0, 0, 1])
    view, context = make("unproject"), features_of(3).context
    assert isinstance(view, Unproject)
    found = view.read(context, cameras, sample, 2)
    expected = np.zeros(found.shape)
    shared = 0
    for b, iy, ix, z in np.ndindex(2, *GRID.shape, HEIGHTS):
        pixels = [(m, *pixel_of(cameras, m, voxel(iy, ix, z))) for m in range(3) if sample[m] == b]
        values = [read(context[m].numpy(), u, v) for m, u, v, depth in pixels if is_seen(u, v, depth)]
        shared += len(values) > 1
        if values:
            expected[b, z * CHANNELS : (z + 1) * CHANNELS, iy, ix] = np.mean(values, axis=0)
    assert shared > 20 and np.abs(expected).sum((0, 2, 3)).min() > 0
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_attention_is_a_loop_over_cells_cameras_heads_and_heights():
    cameras, sample = augmented(rig([0.0, 0.9, -2.0], [0, 0, 1])), torch.tensor([0, 0, 1])
    view, context = make("deformable"), features_of(3).context
    assert isinstance(view, Deformable)
    layer = view.layers[0]
    assert isinstance(layer, CrossAttention) and layer.heads == 8
    area = GRID.shape[0] * GRID.shape[1]
    query, position = torch.randn(2 * area, CHANNELS), torch.randn(2 * area, CHANNELS)
    hits = view.look(cameras, sample, 2, SHAPE)
    with torch.no_grad():
        found = layer(query, position, context.flatten(2).transpose(1, 2), SHAPE, hits)
        value = layer.value(context.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).numpy()
        offsets = layer.offsets(query + position).view(-1, layer.heads, HEIGHTS, 2).numpy()
        weights = layer.logits(query + position).view(-1, layer.heads, HEIGHTS).softmax(-1).numpy()
        mean, width = np.zeros((2 * area, CHANNELS)), CHANNELS // layer.heads
        for q in range(2 * area):
            b, iy, ix = q // area, q % area // GRID.shape[1], q % GRID.shape[1]
            answers = []
            for m in (m for m in range(3) if sample[m] == b):
                pixels = [pixel_of(cameras, m, voxel(iy, ix, z)) for z in range(HEIGHTS)]
                if not any(is_seen(*pixel) for pixel in pixels):
                    continue
                answer = np.zeros(CHANNELS)
                for head, z in np.ndindex(layer.heads, HEIGHTS):
                    u, v, depth = pixels[z]
                    if is_seen(u, v, depth):
                        part = slice(head * width, (head + 1) * width)
                        du, dv = STRIDE * offsets[q, head, z]
                        answer[part] += weights[q, head, z] * read(value[m, part], u + du, v + dv)
                answers.append(answer)
            if answers:
                mean[q] = np.mean(answers, axis=0)
        state = layer.norm(query + layer.out(torch.from_numpy(mean).float()))
        expected = layer.last_norm(state + layer.feed_forward(state))
    assert 0 < len(hits.cell) < 3 * area and (np.abs(mean).sum(1) > 0).sum() < 2 * area
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_radar_returns_are_binned_as_a_loop_does():
    cameras = augmented(rig([0.0, 0.9, -2.0], [0, 0, 1]))
    radar = returns(40, 2)
    radar.points[3, 0] = torch.nan
    before = radar.points.clone()
    cell, features = frustum_returns(cameras, radar, BINS, STRIDE, SHAPE[1])
    assert torch.equal(radar.points.nan_to_num(7), before.nan_to_num(7))
    x, y, z, vx, vy = (RADAR_FIELDS.index(name) for name in ("x", "y", "z", "vx", "vy"))
    expected = {}
    for m, p in np.ndindex(3, len(radar.points)):
        point = radar.points[p].numpy()
        if cameras.batch_index[m] != radar.batch_index[p] or np.isnan(point[x]):
            continue
        u, _, depth = pixel_of(cameras, m, point[[x, y, z]])
        row, col = math.floor((depth - 1.0) / 0.5), math.floor((u + 0.5) / STRIDE)
        if depth > 0.1 and 0 <= row < len(BINS) and 0 <= col < SHAPE[1]:
            right, forward = (cameras.ego_from_cam[m, :3, axis].numpy() for axis in (0, 2))
            speed = [axis[:2] @ point[[vx, vy]] / np.linalg.norm(axis) / 10 for axis in (right, forward)]
            expected[(m * len(BINS) + row) * SHAPE[1] + col, point[3]] = (*speed, depth / 10)
    found = {
        (int(c), float(10 * f[0])): (*f[1:3].tolist(), float(f[-3]))
        for c, f in zip(cell, features, strict=True)
        if c >= 0
    }
    assert len(found) == len(expected) > 10
    for key, numbers in expected.items():
        near = min(found, key=lambda other: abs(other[0] - key[0]) * 1e3 + abs(other[1] - key[1]))
        assert near[0] == key[0]
        np.testing.assert_allclose(found[near], numbers, atol=1e-4)


def coloured() -> tuple[Cameras, np.ndarray, tuple[int, int], torch.Tensor, torch.Tensor, tuple[float, float, float]]:
    """A camera, a point in the middle of a voxel, its cell; one-hot features around it and a perfect depth."""
    cameras = rig([0.3], [0])
    iy, ix, z = 8, 13, 1
    point = voxel(iy, ix, z)
    u, v, depth = pixel_of(cameras, 0, point)
    assert is_seen(u, v, depth)
    context = torch.zeros(1, CHANNELS, *SHAPE)
    row, col = (v + 0.5) / STRIDE, (u + 0.5) / STRIDE
    for i in (math.floor(row - 0.5), math.floor(row + 0.5)):  # the four cells that are read, the one it lies in too
        for j in (math.floor(col - 0.5), math.floor(col + 0.5)):
            context[0, 3, i, j] = 1.0
    depth_DHW = torch.zeros(1, len(BINS), *SHAPE)
    depth_DHW[0, math.floor((depth - 1.0) / 0.5), math.floor(row), math.floor(col)] = 1.0
    return cameras, point, (iy, ix), context, depth_DHW, (u, v, depth)


@pytest.mark.parametrize("name", VIEWS)
def test_a_coloured_point_lands_in_its_cell(name):
    cameras, point, (iy, ix), context, depth, (u, _, far) = coloured()
    view, sample = make(name), torch.tensor([0])
    if isinstance(view, Unproject):
        found = view.read(context, cameras, sample, 1).view(HEIGHTS, CHANNELS, *GRID.shape)[1]
        assert found[3, iy, ix] == pytest.approx(1.0, abs=1e-5) and found[[0, 1, 2, 4, 5, 6, 7]].abs().max() == 0
        return
    if isinstance(view, Deformable):
        places = places_in_images(cameras, pillar_points(GRID, HEIGHTS, context.device), SHAPE, STRIDE)
        hits = view.look(cameras, sample, 1, SHAPE)
        q = iy * GRID.shape[1] + ix
        row = (hits.cell == q).nonzero().item()
        torch.testing.assert_close(hits.place[row, 0], places[0, q])
        layer = view.layers[0]
        assert isinstance(layer, CrossAttention)
        nn.init.eye_(layer.value.weight), nn.init.eye_(layer.out.weight)
        for zero in (layer.value.bias, layer.out.bias, *layer.offsets.parameters(), *layer.logits.parameters()):
            nn.init.zeros_(zero)
        layer.norm, layer.last_norm, layer.feed_forward = nn.Identity(), nn.Identity(), nn.Sequential(nn.Identity())
        nothing = torch.zeros(GRID.shape[0] * GRID.shape[1], CHANNELS)
        found = layer(nothing, nothing, context.flatten(2).transpose(1, 2), SHAPE, hits) / 2  # the residual doubles it
        assert found[q, 3] >= 1 / HEIGHTS - 1e-5 and found[:, :3].abs().max() == 0
        return
    assert isinstance(view, LiftSplat)
    found = view.splat(depth, context, cameras, sample, 1)[0, 3]
    near = found.nonzero()
    assert len(near) == 1 and found.max() == 1
    ray = (near[0].flip(0) + 0.5 + torch.tensor([GRID.x[0], GRID.y[0]])) - torch.from_numpy(point[:2])
    assert ray.norm() < 2 * STRIDE / FOCAL * far, "at most the feature cell and the bin away"
    if isinstance(view, RadarLift):
        radar = torch.zeros(1, len(RADAR_FIELDS))
        radar[0, :3] = torch.from_numpy(point)
        cloud = PointCloud(radar, torch.tensor([0]), torch.tensor([True]))
        cell, _ = frustum_returns(cameras, cloud, BINS, STRIDE, SHAPE[1])
        assert int(cell) == math.floor((far - 1.0) / 0.5) * SHAPE[1] + math.floor((u + 0.5) / STRIDE)


@pytest.mark.parametrize("name", VIEWS)
def test_order_of_cameras_and_absent_ones_do_not_matter(name):
    view, features = make(name), features_of(3)
    assert features.depth is not None
    yaws, radar = [0.0, 0.9, -2.0], returns(30, 4)
    with torch.no_grad():
        alone = view(features, rig(yaws, [0, 0, 0]), 1, PointCloud(*returns_of(radar, 2)))
        among = view(features, rig(yaws, [2, 2, 2]), 4, radar)
        turned = CameraFeatures(features.context.flip(0), features.depth.flip(0))
        swapped = view(turned, rig(yaws[::-1], [2, 2, 2]), 4, radar)
        fewer = CameraFeatures(features.context[:2], features.depth[:2])
        without = view(fewer, rig(yaws[:2], [0, 0]), 1, PointCloud(*returns_of(radar, 2)))
    torch.testing.assert_close(among[2:3], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(swapped[2:3], alone, atol=1e-5, rtol=1e-5)
    assert (among[[0, 1, 3]] == 0).all() and (without - alone).abs().max() > 1e-3


def returns_of(radar: PointCloud, sample: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The returns of one sample, as the only one of a batch."""
    points = radar.points[radar.batch_index == sample]
    return points, torch.zeros(len(points), dtype=torch.int64), radar.present[sample : sample + 1]


@pytest.mark.parametrize("name", VIEWS)
def test_a_mirrored_world_gives_a_mirrored_map(name):
    """The map before the convolutions, which know left from right."""
    cameras, features, sample = rig([0.31, 0.97], [0, 0]), features_of(2), torch.tensor([0, 0])
    assert features.depth is not None
    mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]))
    mirrored = dataclasses.replace(cameras, ego_from_cam=mirror @ cameras.ego_from_cam)
    view = make(name)
    with torch.no_grad():
        if isinstance(view, Unproject):
            a, b = (view.read(features.context, seen, sample, 1) for seen in (cameras, mirrored))
        elif isinstance(view, Deformable):
            for constant in (view.query, view.row, view.col):
                constant.data[:] = torch.randn(CHANNELS)
            a, b = (view(features, seen, 1) for seen in (cameras, mirrored))
        elif isinstance(view, LiftSplat):
            a, b = (view.splat(features.depth, features.context, seen, sample, 1) for seen in (cameras, mirrored))
        if isinstance(view, RadarLift):
            radar = returns(50, 1)
            flipped = radar.points.clone()
            flipped[:, [RADAR_FIELDS.index("y"), RADAR_FIELDS.index("vy")]] *= -1
            other = dataclasses.replace(radar, points=flipped)
            occupancy = view.occupancy(cameras, radar, SHAPE[1])
            torch.testing.assert_close(view.occupancy(mirrored, other, SHAPE[1]), occupancy, atol=1e-5, rtol=1e-5)
            assert occupancy.std() > 1e-3
    assert a.abs().sum() > 0 and not torch.allclose(a, b)
    torch.testing.assert_close(b.flip(2), a, atol=1e-4, rtol=1e-4)


def test_without_radar_the_radar_lift_is_the_plain_lift():
    view, features = make("radar_lift"), features_of(2)
    assert isinstance(view, RadarLift) and features.depth is not None
    cameras = rig([0.0, 1.0], [0, 1])
    with torch.no_grad():
        depth = features.depth.softmax(1)
        plain = view.smooth(view.splat(depth, features.context, cameras, torch.tensor([0, 1]), 2))
        radar = returns(30, 2)
        seen = view(features, cameras, 2, radar)
        torch.testing.assert_close(view(features, cameras, 2, None), plain)
        half = dataclasses.replace(radar, present=torch.tensor([True, False]))
        mixed = view(features, cameras, 2, half)
        torch.testing.assert_close(mixed[0], seen[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mixed[1], plain[1], atol=1e-5, rtol=1e-5)
        empty = PointCloud(radar.points[:0], radar.batch_index[:0], radar.present)
        assert (view(features, cameras, 2, empty) - plain).abs().max() > 1e-3, "it saw nothing: that is not absent"
    assert (seen - plain).abs().max() > 1e-3


def test_the_radar_lift_sees_moving_returns_where_they_should_be_now():
    """Returns that are 0.4 s old, of what goes on at 10 m/s, lift as if they were 4 m further on."""
    features, cameras = features_of(1), rig([0.0], [0])
    radar = returns(8, 1)
    changed = [RADAR_FIELDS.index(name) for name in ("vx", "vy", "time", "ambig_state")]
    radar.points[:, changed] = torch.tensor([10.0, 0.0, 0.4, 3.0])
    later = dataclasses.replace(radar, points=radar.points.clone())
    later.points[:, RADAR_FIELDS.index("x")] += 4.0

    def lifted(moving: bool, cloud: PointCloud) -> torch.Tensor:
        view = make("radar_lift")
        assert isinstance(view, RadarLift)
        view.moving = moving
        with torch.no_grad():
            return view(features, cameras, 1, cloud)

    torch.testing.assert_close(lifted(True, radar), lifted(False, later))
    assert (lifted(True, radar) - lifted(False, radar)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["lidar_lift", "radar_lift"])
def test_what_two_sensors_made_is_not_normalised_over_the_batch(name):
    """Else a sample's map would, in training, depend on which sensors the others have."""
    view = make_view(dataclasses.replace(TINY, camera=dataclasses.replace(TINY.camera, view=name)))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in view.modules())


@pytest.mark.parametrize("name", VIEWS)
def test_gradients_reach_everything_and_a_sky_is_no_harm(name):
    view = make(name).train()
    features = CameraFeatures(*(torch.randn(2, n, *SHAPE, requires_grad=True) for n in (CHANNELS, len(BINS))))
    assert features.depth is not None
    found = view(features, rig([0.0, 1.0], [0, 1]), 2, returns(30, 2))
    (found * torch.randn_like(found)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in view.parameters())
    assert features.context.grad is not None and features.context.grad.any()
    assert (features.depth.grad is not None) == (name in ("lift", "radar_lift"))
    view.zero_grad()
    sky = view(features, rig([0.0, 1.0], [0, 1], pitch=math.pi / 2), 2, returns(0, 2))
    sky.square().sum().backward()
    assert sky.isfinite().all() and all(p.grad is None or p.grad.isfinite().all() for p in view.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_every_view_trains_on_any_sensors(name):
    depthless = name in ("deformable", "unproject")
    camera = dataclasses.replace(TINY.camera, view=name, heights=3, depth_loss=0.0 if depthless else 1.0)  # type: ignore[type-var]
    config = dataclasses.replace(TINY, camera=camera)
    torch.use_deterministic_algorithms(True)
    try:
        model, full = make_model(config), make_batch(3)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for seen in (full, mixed_sensors(full)):
            losses = run(model, seen, full)
            optimizer.step()
        assert ("depth" in losses) != depthless
        with torch.autocast("cpu", torch.bfloat16):
            run(model, full, full)
    finally:
        torch.use_deterministic_algorithms(False)
    # A sample alone is that sample among others with other sensors.
    assert model.camera is not None
    model.eval()
    seen = mixed_sensors(full)
    with torch.no_grad():
        together, _ = model.camera(seen)
        alone, _ = model.camera(dataclasses.replace(make_batch(1), cameras=seen.cameras, lidar=None, radar=None))
    assert together is not None and alone is not None
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"view": "unproject"}, r"camera\.depth_loss.*camera\.view 'unproject'"),
        ({"view": "deformable"}, r"camera\.depth_loss.*camera\.view 'deformable'"),
        ({"view": "deformable", "depth_loss": 0.0, "channels": 9}, r"camera\.channels.*camera\.view 'deformable'"),
        ({"view": "lidar_lift"}, r"camera\.view: found 'lidar_lift' with lidar: null"),
        ({"view": "radar_lift"}, r"camera\.view: found 'radar_lift' with radar: null"),
    ],
)
def test_settings_that_do_not_go_together(changes, keys):
    camera = dataclasses.replace(TINY.camera, **changes)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match=keys):
        make_view(dataclasses.replace(TINY, camera=camera, lidar=None, radar=None))
