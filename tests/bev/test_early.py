"""Early fusion: points painted by the images against plain loops, one cloud of all sensors, any of them absent."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fusion3d.bev.early import EarlyFusion, make_early, num_fields
from fusion3d.bev.lift import DepthBins
from fusion3d.bev.painting import Painting, VirtualPoints
from fusion3d.build import build_model
from fusion3d.config import (
    Config,
    DenseConfig,
    FusionConfig,
    LidarConfig,
    TemporalConfig,
    VoxelConfig,
    WindowConfig,
    override,
)
from fusion3d.data.augment import bev_matrix, transform_batch
from fusion3d.data.subset import drop_sensors, select_sensors
from fusion3d.encoders.radar import describe
from fusion3d.engine.describe import stages
from fusion3d.errors import ConfigError
from fusion3d.heads.image import ImageOutput
from fusion3d.model import Fusion3D
from fusion3d.types import LIDAR_FIELDS, RADAR_FIELDS, Batch, Cameras, History, PointCloud

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_model import SUBSETS, TINY, make_batch, mixed_sensors, run

STRIDE, SHAPE, CHANNELS = 8, (8, 12), 5
BINS = DepthBins(1.0, 20.0, 1.0)
EARLY = dataclasses.replace(
    TINY,
    camera=dataclasses.replace(TINY.camera, image_loss=1.0),  # type: ignore[type-var]
    lidar=LidarConfig(
        channels=8,
        pillar=0.4,
        voxels=VoxelConfig(side=0.1, height=0.25, channels=(4, 4, 8, 8), blocks=1),
        windows=WindowConfig(pillar=0.8, channels=8, heads=2, blocks=2, window=(8, 4)),
        dense=DenseConfig(channels=(8, 8), blocks=(1, 1)),
    ),
    fusion=FusionConfig("early", channels=16, virtual_points=2),
)
ENCODERS = ("pillars", "voxels", "windows")


def make(*overrides: str, config: Config = EARLY) -> Fusion3D:
    torch.manual_seed(0)
    model = build_model(override(config, list(overrides)))
    assert isinstance(model, Fusion3D) and isinstance(model.fuse, EarlyFusion)
    return model


def transform(batch: Batch, matrix: np.ndarray) -> Batch:
    return transform_batch(dataclasses.replace(batch, map_mask=None), matrix)


def moved_batch(size: int = 2) -> Batch:
    """Cameras that are turned, mirrored and scaled, images that are rotated and cropped; a point of NaN."""
    batch = transform(make_batch(size), bev_matrix(0.4, 1.1, flip_y=True, shift=(0.5, -0.3, 0.2)))
    assert batch.cameras is not None and batch.lidar is not None
    turn = torch.eye(4)
    turn[:2, :3] = torch.tensor([[0.9, -0.1, 9.0], [0.1, 0.9, -4.0]])  # of (u depth, v depth, depth)
    cameras = dataclasses.replace(batch.cameras, image_from_cam=turn @ batch.cameras.image_from_cam)
    batch.lidar.points[7, 1] = torch.nan
    return dataclasses.replace(batch, cameras=cameras)


def paint_by_loop(paint: np.ndarray, cameras: Cameras, cloud: PointCloud) -> tuple[np.ndarray, np.ndarray]:
    """Point by point, camera by camera: project, read bilinearly with the border repeated, take the mean."""
    values, seen = np.zeros((len(cloud.points), paint.shape[1])), np.zeros(len(cloud.points), dtype=int)
    rows, cols = paint.shape[2:]
    for p, point in enumerate(cloud.points[:, :3].double().numpy()):
        for m in range(len(paint)):
            if cameras.batch_index[m] != cloud.batch_index[p]:
                continue
            cam = np.linalg.inv(cameras.ego_from_cam[m].double().numpy()) @ [*point, 1.0]
            u, v, depth, _ = cameras.image_from_cam[m].double().numpy() @ cam
            if not depth > 0.1:
                continue
            x, y = (u / depth + 0.5) / STRIDE, (v / depth + 0.5) / STRIDE
            if not (0 <= x < cols and 0 <= y < rows):
                continue
            x, y = np.clip(x - 0.5, 0, cols - 1), np.clip(y - 0.5, 0, rows - 1)
            left, top = min(int(x), cols - 2), min(int(y), rows - 2)
            a, b = x - left, y - top
            corner = paint[m, :, top : top + 2, left : left + 2]
            values[p] += (1 - b) * ((1 - a) * corner[:, 0, 0] + a * corner[:, 0, 1])
            values[p] += b * ((1 - a) * corner[:, 1, 0] + a * corner[:, 1, 1])
            seen[p] += 1
    return values / seen.clip(min=1)[:, None], seen


def test_painted_values_are_those_of_a_plain_loop():
    batch = moved_batch()
    assert batch.cameras is not None and batch.lidar is not None
    paint = torch.randn(12, CHANNELS, *SHAPE)
    values, seen = Painting(STRIDE, CHANNELS)(paint, batch.cameras, batch.lidar)
    expected, times = paint_by_loop(paint.double().numpy(), batch.cameras, batch.lidar)
    assert (times == 0).any() and (times == 1).any() and (times == 2).any(), "nothing to compare"
    assert times[7] == 0, "a point of NaN is nowhere"
    assert torch.equal(seen, torch.from_numpy(times > 0))
    np.testing.assert_allclose(values.numpy(), expected, atol=2e-4)
    assert (values[~seen] == 0).all()


def one_camera_more(cameras: Cameras, sample: int) -> Cameras:
    """The first camera once more, as an image of ``sample``."""
    return Cameras(
        *(torch.cat([getattr(cameras, name), getattr(cameras, name)[:1]]) for name in
          ("images", "image_from_cam", "ego_from_cam")),
        batch_index=torch.cat([cameras.batch_index, torch.tensor([sample])]),
        channels=(*cameras.channels, cameras.channels[0]),
    )  # fmt: skip


def test_the_mean_of_the_cameras_of_its_own_sample():
    batch = make_batch(2)
    assert batch.cameras is not None and batch.lidar is not None
    front = dataclasses.replace(
        batch.cameras, **{f.name: getattr(batch.cameras, f.name)[:1] for f in dataclasses.fields(Cameras)}
    )
    paint = torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 1, *SHAPE)
    painting = Painting(STRIDE, 1)
    _, seen = painting(paint[:1], front, batch.lidar)
    first = batch.lidar.batch_index == 0
    assert seen[first].any() and not seen[~first].any()
    both, _ = painting(paint, one_camera_more(front, 0), batch.lidar)
    torch.testing.assert_close(both[seen], torch.full_like(both[seen], 2.0))
    apart, also = painting(paint, one_camera_more(front, 1), batch.lidar)
    torch.testing.assert_close(apart[seen], torch.full_like(apart[seen], 1.0))
    torch.testing.assert_close(apart[also & ~first], torch.full_like(apart[also & ~first], 3.0))


def test_images_get_the_weights_with_which_they_were_read():
    """What is painted is linear in the images: the gradient is the transposed reading."""
    batch = moved_batch()
    assert batch.cameras is not None and batch.lidar is not None
    paint, other = torch.randn(2, 12, CHANNELS, *SHAPE)
    paint.requires_grad_()
    painting = Painting(STRIDE, CHANNELS)
    values, _ = painting(paint, batch.cameras, batch.lidar)
    weights = torch.randn_like(values)
    (values * weights).sum().backward()
    assert paint.grad is not None
    expected = (painting(other, batch.cameras, batch.lidar)[0] * weights).sum()
    torch.testing.assert_close((paint.grad * other).sum(), expected, atol=1e-3, rtol=1e-4)


def test_a_changed_world_and_changed_images_paint_the_same():
    batch = make_batch(1)
    assert batch.cameras is not None and batch.lidar is not None
    paint = torch.randn(6, CHANNELS, *SHAPE)
    expected, seen = Painting(STRIDE, CHANNELS)(paint, batch.cameras, batch.lidar)
    moved = transform(batch, bev_matrix(1.0, 0.95, flip_x=True, shift=(1.0, 0.0, 0.3)))
    assert moved.cameras is not None and moved.lidar is not None
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    mirror[0, 2] = SHAPE[1] * STRIDE - 1
    cameras = dataclasses.replace(moved.cameras, image_from_cam=mirror @ moved.cameras.image_from_cam)
    found, also = Painting(STRIDE, CHANNELS)(paint.flip(3), cameras, moved.lidar)
    # A point on an edge of an image may be on either side of it.
    same = seen == also
    assert same.float().mean() > 0.99
    torch.testing.assert_close(found[same], expected[same], atol=1e-3, rtol=0)


def test_virtual_points_are_on_the_rays_at_the_likeliest_depths():
    batch = moved_batch()
    assert batch.cameras is not None
    cameras, count = batch.cameras, 3
    logits = torch.randn(12, len(BINS), *SHAPE, requires_grad=True)
    virtual = VirtualPoints(BINS, STRIDE, count)(logits, cameras)
    assert virtual.xyz.shape == (12 * count * SHAPE[0] * SHAPE[1], 3)
    xyz = virtual.xyz.view(12, count, *SHAPE, 3)
    chance = virtual.chance.view(12, count, *SHAPE)
    probability = logits.softmax(1)
    order = probability.argsort(dim=1, descending=True)
    for m, j, row, col in [(0, 0, 0, 0), (5, 1, 7, 3), (8, 2, 4, 11), (11, 0, 2, 6)]:
        point = torch.cat([xyz[m, j, row, col], torch.ones(1)]).double()
        seen = cameras.image_from_cam[m].double() @ torch.linalg.inv(cameras.ego_from_cam[m].double()) @ point
        best = int(order[m, j, row, col])
        expected = torch.tensor([STRIDE * (col + 0.5) - 0.5, STRIDE * (row + 0.5) - 0.5, 1.5 + best]).double()
        torch.testing.assert_close(torch.cat([seen[:2] / seen[2], seen[2:3]]), expected, atol=1e-3, rtol=0)
        torch.testing.assert_close(chance[m, j, row, col], probability[m, best, row, col])
    assert torch.equal(virtual.batch_index, cameras.batch_index.repeat_interleave(count * 96))
    chance[:, 0].sum().backward()
    assert logits.grad is not None and logits.grad.any()


def test_a_virtual_point_shows_its_own_cell():
    """Painted as any point, it reads the cell that it came from, where no other camera sees it."""
    batch = make_batch(1)
    assert batch.cameras is not None
    virtual = VirtualPoints(BINS, STRIDE, 2)(torch.randn(6, len(BINS), *SHAPE), batch.cameras)
    cloud = PointCloud(virtual.xyz, virtual.batch_index, torch.ones(1, dtype=torch.bool))
    paint = torch.randn(6, CHANNELS, *SHAPE)
    values, seen = Painting(STRIDE, CHANNELS)(paint, batch.cameras, cloud)
    _, times = paint_by_loop(paint.double().numpy(), batch.cameras, cloud)
    own = paint[:, None].expand(6, 2, *paint.shape[1:]).permute(0, 1, 3, 4, 2).reshape(-1, CHANNELS)
    once = torch.from_numpy(times == 1)
    assert seen.all() and once.float().mean() > 0.5
    torch.testing.assert_close(values[once], own[once], atol=1e-3, rtol=0)


def test_one_cloud_with_the_fields_of_each():
    fusion = make().fuse
    assert isinstance(fusion, EarlyFusion) and fusion.virtual is not None
    batch = make_batch(3)
    assert batch.cameras is not None and batch.lidar is not None and batch.radar is not None
    virtual = fusion.virtual(torch.randn(18, len(BINS), *SHAPE), batch.cameras)
    cloud, sure = fusion.merge(batch, virtual)
    assert num_fields(fusion.sensors) == 1 + 3 + 15 and cloud.points.shape[1] == 3 + 1 + 3 + 15
    assert len(cloud.points) == len(virtual.xyz) + len(batch.lidar.points) + len(batch.radar.points)
    assert (cloud.batch_index.diff() >= 0).all() and cloud.present.all()
    is_camera, is_lidar, is_radar = (cloud.points[:, column] == 1 for column in (3, 4, 7))
    assert torch.equal(is_camera.int() + is_lidar.int() + is_radar.int(), torch.ones(len(sure), dtype=torch.int32))
    lidar = cloud.points[is_lidar]  # in the order in which they came
    torch.testing.assert_close(torch.cat([lidar[:, :3], lidar[:, 5:7]], dim=1), batch.lidar.points)
    assert LIDAR_FIELDS[3:] == ("intensity", "time") and not lidar[:, 7:].any() and (sure[is_lidar] == 1).all()
    radar, returns = cloud.points[is_radar], batch.radar.points
    torch.testing.assert_close(radar[:, 8:], describe(returns))
    assert not radar[:, 3:7].any() and (sure[is_radar] == 1).all()
    torch.testing.assert_close(sure[is_camera], virtual.chance)
    torch.testing.assert_close(cloud.points[is_camera, :3], virtual.xyz)
    assert not cloud.points[is_camera, 4:].any()

    columns = {name: RADAR_FIELDS.index(name) for name in RADAR_FIELDS}
    speed = returns[:, [columns["vx"], columns["vy"]]]
    moves = (returns[:, columns["ambig_state"]] == 3) & (speed.norm(dim=1) > 0.5)
    step = torch.where(moves[:, None], speed * returns[:, columns["time"], None], 0)
    torch.testing.assert_close(radar[:, :2], returns[:, :2] + step)
    fusion.moving = False
    still = fusion.merge(batch, None)[0].points
    torch.testing.assert_close(still[still[:, 7] == 1, :3], returns[:, :3])


def test_without_a_branch_a_sensor_has_no_columns_and_is_not_looked_at():
    fusion = make_early(dataclasses.replace(EARLY, camera=None, radar=None))
    assert fusion.sensors == ("lidar",) and fusion.virtual is None and fusion.painting is None
    batch = make_batch(2)
    cloud, _ = fusion.merge(batch, None)
    assert cloud.points.shape == (800, 3 + 3)
    assert fusion(None, {}, batch).shape == (2, 16, 32, 40)
    radar = make(config=dataclasses.replace(EARLY, camera=None, lidar=None))
    run(radar, batch, batch)
    assert len(radar.fuse.merge(batch, None)[0].points) == 80  # type: ignore[operator]


@pytest.mark.parametrize("paint", ["features", "scores"])
@pytest.mark.parametrize("sensors", SUBSETS, ids="+".join)
def test_every_subset_trains_and_decodes(sensors, paint):
    model, full = make("--fusion.paint", paint), make_batch()
    losses = run(model, select_sensors(full, sensors), full)
    assert set(losses) >= {"heatmap", "velocity", "planning"} and "sensors" not in losses
    assert ({"depth", "image"} <= set(losses)) == ("camera" in sensors)
    touched = [p.grad is not None and bool(p.grad.any()) for p in model.camera.parameters()]  # type: ignore[union-attr]
    assert any(touched) == ("camera" in sensors)
    assert all(p.grad is not None and p.grad.any() for p in model.fuse.cloud.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_trains_to_the_same_bits_and_no_sample_sees_another(encoder):
    full, weights = make_batch(3), []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            model = make("--lidar.encoder", encoder)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
            for seen in (full, mixed_sensors(full)):
                torch.manual_seed(1)
                run(model, seen, full)
                optimizer.step()
            weights.append([p.detach().clone() for p in model.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.fuse.modules())
    model.eval()
    seen = mixed_sensors(full)  # camera, LiDAR, nothing
    together = model(seen)["detection"].heatmap
    assert seen.lidar is not None
    one = make_batch(1)
    of_second = PointCloud(seen.lidar.points, seen.lidar.batch_index - 1, torch.tensor([True]))
    alone = [
        dataclasses.replace(one, cameras=seen.cameras, lidar=None, radar=None),
        dataclasses.replace(one, cameras=None, lidar=of_second, radar=None),
        dataclasses.replace(one, cameras=None, lidar=None, radar=None),
    ]
    for row, batch in enumerate(alone):
        torch.testing.assert_close(together[row], model(batch)["detection"].heatmap[0], atol=1e-5, rtol=1e-5)


def test_absent_is_not_empty_and_all_subsets_say_something_else():
    model, full = make().eval(), make_batch()
    said = {subset: model(select_sensors(full, subset))["detection"].heatmap for subset in [*SUBSETS, ()]}
    pairs = [(a, b) for a in said for b in said if a < b]
    assert all((said[a] - said[b]).abs().amax() > 1e-4 for a, b in pairs)
    for name in ("lidar", "radar"):
        cloud = getattr(full, name)
        empty = dataclasses.replace(cloud, points=cloud.points[:0], batch_index=cloud.batch_index[:0])
        a, b = (model(dataclasses.replace(full, **{name: given}))["detection"].heatmap for given in (None, empty))
        assert (a - b).abs().amax() > 1e-4
        nobody = dataclasses.replace(empty, present=torch.zeros(2, dtype=torch.bool))
        assert torch.equal(model(dataclasses.replace(full, **{name: nobody}))["detection"].heatmap, a)


@pytest.mark.parametrize("name", ["lidar", "radar"])
def test_no_point_one_point_and_a_point_that_is_nowhere(name):
    full, cloud = make_batch(), getattr(make_batch(), name)
    nowhere = cloud.points[:1].clone()
    nowhere[:, :3] = torch.nan
    for points in (cloud.points[:0], cloud.points[:1], nowhere):
        few = dataclasses.replace(cloud, points=points, batch_index=cloud.batch_index[: len(points)])
        seen = dataclasses.replace(full, **{name: few})
        run(make(), seen, full)
        run(make(), select_sensors(seen, [name]), full)


def paint_gradients(paint: str, heads: bool) -> dict[str, Tensor]:
    """Gradients of the images' parts, without the losses on depth and image classes."""
    model, full = make("--fusion.paint", paint), make_batch()
    losses = model.losses(model(full), full)
    terms = [value for key, value in losses.items() if (key not in ("depth", "image")) == heads]
    torch.stack(terms).sum().backward()
    assert model.camera is not None
    return {name: p.grad for name, p in model.camera.named_parameters() if p.grad is not None and p.grad.any()}


def test_features_learn_from_the_heads_and_scores_from_their_own_loss():
    features, scores = (paint_gradients(paint, heads=True) for paint in ("features", "scores"))
    assert {"encoder.backbone.conv1.weight", "encoder.depth_net.out.weight"} <= set(features)
    assert not any(name.startswith("classes") for name in {*features, *scores})
    bins = len(BINS)  # of the last layer, depth comes first and then the context
    assert features["encoder.depth_net.out.weight"][:bins].any(), "the depth learns from the task"
    assert features["encoder.depth_net.out.weight"][bins:].any()
    assert scores["encoder.depth_net.out.weight"][:bins].any()
    assert not scores["encoder.depth_net.out.weight"][bins:].any(), "scores are not changed by what reads them"
    assert any(name.startswith("classes") for name in paint_gradients("scores", heads=False))


def test_scores_are_what_is_painted():
    model, full = make("--fusion.paint", "scores").eval(), make_batch()
    seen = {}
    assert isinstance(model.fuse, EarlyFusion)
    model.fuse.painting.register_forward_hook(lambda module, given, out: seen.update(paint=given[0], out=out[0]))  # type: ignore[union-attr]
    model.fuse.cloud.register_forward_pre_hook(lambda module, given: seen.update(cloud=given[0]))
    image = model(full)["image"]
    assert isinstance(image, ImageOutput)
    torch.testing.assert_close(seen["paint"], image.logits.sigmoid())
    points = seen["cloud"].points
    told = points[:, -11]  # how surely; then ten scores
    measured = points[:, 3] == 0
    assert set(told[measured].tolist()) == {0.0, 1.0} and ((told[~measured] > 0) & (told[~measured] < 1)).all()
    torch.testing.assert_close(points[:, -10:], told[:, None] * seen["out"])


def test_bfloat16_stays_near_float32():
    model, full = make().eval(), make_batch()
    exact = model.losses(model(full), full)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.losses(model(full), full)
    for name, value in exact.items():
        assert rough[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name
    with torch.autocast("cpu", torch.bfloat16):
        run(make(), mixed_sensors(make_batch(3)), make_batch(3))


@pytest.mark.parametrize("operator", ["concat", "recurrent"])
def test_with_a_past_and_dropped_sensors(operator):
    config = dataclasses.replace(EARLY, temporal=TemporalConfig(operator))
    model, full = make(config=config), make_batch(3)
    before = dataclasses.replace(make_batch(2, seed=1), timestamp=torch.full((2,), -500_000))
    full = dataclasses.replace(full, history=(History(before, (0, 2)),))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for seed in range(2):
        seen = drop_sensors(full, config.train, torch.Generator().manual_seed(seed))
        run(model, seen, full)
        optimizer.step()
    model.eval()
    with_past, without = (model(batch)["detection"].heatmap for batch in (full, dataclasses.replace(full, history=())))
    torch.testing.assert_close(with_past[1], without[1], atol=1e-5, rtol=1e-5)
    assert (with_past[0] - without[0]).abs().amax() > 1e-5


def test_the_walk_names_the_parts():
    names = set(stages(make()))
    assert {"camera.encoder", "camera.classes", "fuse.virtual", "fuse.painting", "fuse.cloud", "fuse.mix"} <= names
    assert not {"lidar", "radar", "camera.view"} & names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": {"representation": "coordinated"}}, r"fusion\.representation.*fusion\.stage"),
        ({"fusion": {"align": "deformable"}}, r"fusion\.align.*fusion\.stage"),
        ({"fusion": {"paint": "scores"}, "camera": {"image_loss": 0.0}}, r"fusion\.paint.*camera\.image_loss"),
        ({"fusion": {"virtual_points": 20}}, r"fusion\.virtual_points.*camera\.depth"),
        ({"camera": {"view": "unproject", "depth_loss": 0.0}}, r"camera\.view.*fusion\.stage"),
        ({"camera": {"view": "radar_lift"}}, r"camera\.view.*fusion\.stage"),
        ({"camera": {"view": "lidar_lift"}, "lidar": None}, r"camera\.view.*lidar: null"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    parts = {
        key: None if part is None else dataclasses.replace(getattr(EARLY, key), **part) for key, part in change.items()
    }
    with pytest.raises(ConfigError, match=message) as refused:
        build_model(dataclasses.replace(EARLY, **parts))
    assert "\n" not in str(refused.value)
