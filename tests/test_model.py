"""The whole model: every subset of sensors, every gap in the data, every shipped configuration."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from fusion3d.build import build_model
from fusion3d.config import (
    BackboneConfig,
    CameraConfig,
    Config,
    FusionConfig,
    LidarConfig,
    MapConfig,
    PlanningConfig,
    RadarConfig,
    TrunkConfig,
    load_config,
)
from fusion3d.data.subset import drop_sensors, select_sensors
from fusion3d.engine.random_batch import give_anchors, random_batch
from fusion3d.errors import ConfigError
from fusion3d.model import Fusion3D
from fusion3d.types import SENSORS, Batch, BEVGrid, Boxes, PointCloud

SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(SENSORS, n)]
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
TINY = Config(
    data=dataclasses.replace(Config().data, image_size=(64, 96)),
    grid=BEVGrid(x=(-16.0, 16.0), y=(-12.8, 12.8), resolution=0.8),
    camera=CameraConfig(
        BackboneConfig("resnet18", width=8), fpn_channels=16, stride=8, channels=8, depth=(1.0, 20.0, 1.0)
    ),
    lidar=LidarConfig(channels=8, pillar=0.4),
    radar=RadarConfig(channels=8),
    fusion=FusionConfig(channels=16),
    trunk=TrunkConfig(channels=16, blocks=(1, 1), out_channels=16),
    detection=dataclasses.replace(Config().detection, channels=16),  # type: ignore[type-var]
    planning=PlanningConfig(channels=16),
)


def make_model(config: Config = TINY, seed: int = 0) -> Fusion3D:
    torch.manual_seed(seed)
    return build_model(config)


def make_batch(size: int = 2, seed: int = 0) -> Batch:
    return random_batch(TINY, size, 400, 40, 6, seed)


def run(model: Fusion3D, seen: Batch, full: Batch) -> dict[str, torch.Tensor]:
    """Forward, losses, backward and decode; every value must be finite."""
    outputs = model(seen)
    losses = model.losses(outputs, full)
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    predictions = model.decode(outputs, seen)
    assert predictions.boxes is not None and predictions.plan is not None
    assert len(predictions.boxes) == len(seen) and predictions.tokens == seen.tokens
    assert predictions.plan.position.shape == (len(seen), 6, 2) and predictions.plan.position.isfinite().all()
    for boxes in predictions.boxes:
        assert all(getattr(boxes, name).isfinite().all() for name in ("center", "size", "yaw", "velocity", "score"))
    return losses


@pytest.mark.parametrize("operator", ["concat", "weighted"])
@pytest.mark.parametrize("sensors", SUBSETS, ids="+".join)
def test_every_subset_trains_and_decodes(sensors, operator):
    model = make_model(dataclasses.replace(TINY, fusion=FusionConfig(operator=operator, channels=16)))
    full = make_batch()
    losses = run(model, select_sensors(full, sensors), full)
    assert set(losses) >= {"heatmap", "offset", "height", "size", "yaw", "velocity", "attribute", "planning"}
    assert ("depth" in losses) == ("camera" in sensors)
    for name in SENSORS:  # the branches of absent sensors have no part in it
        branch = getattr(model, name)
        touched = [p.grad is not None and bool(p.grad.any()) for p in branch.parameters()]
        assert any(touched) if name in sensors else not any(touched)


OPTIONS = [
    *({"operator": name} for name in get_args(get_type_hints(FusionConfig)["operator"])),
    {"representation": "coordinated"},
    {"representation": "factorised", "operator": "gated"},
    {"align": "deformable"},
    {"operator": "channel_exchange", "representation": "factorised", "align": "deformable"},
    {"stage": "early"},
    {"stage": "hierarchical"},
    {"stage": "hierarchical", "operator": "cross_attention", "representation": "coordinated"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options.values()))
def test_every_way_of_fusing_trains_and_decodes(options):
    config = dataclasses.replace(TINY, fusion=FusionConfig(channels=16, **options))
    model, full = make_model(config), make_batch(3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    terms = {
        "channel_exchange": {"sparsity"},
        "coordinated": {"contrast"},
        "factorised": {"similarity", "difference", "reconstruction"},
    }
    own = set().union(*terms.values())
    for seen in (full, mixed_sensors(full), select_sensors(full, ["radar"]), select_sensors(full, [])):
        losses = run(model, seen, full)
        asked = set().union(*(terms.get(value, set()) for value in options.values()))
        assert own & set(losses) == (asked if seen.present["radar"].any() or seen.cameras else asked & {"sparsity"})
        optimizer.step()
    model.eval()
    seen = mixed_sensors(full)
    together = model(seen)
    alone = model(dataclasses.replace(make_batch(1), cameras=seen.cameras, lidar=None, radar=None))
    torch.testing.assert_close(together["detection"].heatmap[:1], alone["detection"].heatmap, atol=1e-5, rtol=1e-5)


def test_no_sensor_at_all():
    full = make_batch()
    run(make_model(), select_sensors(full, []), full)


def mixed_sensors(full: Batch) -> Batch:
    """Camera in the first sample, LiDAR in the second, nothing in the third."""
    assert full.cameras is not None and full.lidar is not None
    first, second = full.cameras.batch_index == 0, full.lidar.batch_index == 1
    cameras = dataclasses.replace(
        full.cameras,
        images=full.cameras.images[first],
        image_from_cam=full.cameras.image_from_cam[first],
        ego_from_cam=full.cameras.ego_from_cam[first],
        batch_index=full.cameras.batch_index[first],
        channels=full.cameras.channels[:6],
    )
    lidar = PointCloud(full.lidar.points[second], full.lidar.batch_index[second], torch.tensor([False, True, False]))
    return dataclasses.replace(full, cameras=cameras, lidar=lidar, radar=None)


def test_sensors_absent_in_some_samples_only():
    full = make_batch(3)
    seen = mixed_sensors(full)
    run(make_model(), seen, full)
    model = make_model().eval()
    together = model(seen)
    alone = model(dataclasses.replace(make_batch(1), cameras=seen.cameras, lidar=None, radar=None))
    torch.testing.assert_close(together["detection"].heatmap[:1], alone["detection"].heatmap, atol=1e-4, rtol=1e-4)


def test_absent_is_not_the_same_as_empty_and_absent_is_the_same_however_it_is_said():
    model, full = make_model().eval(), make_batch()
    assert full.lidar is not None
    none = dataclasses.replace(full, lidar=None)
    nothing = torch.zeros(0, dtype=torch.int64)
    said, empty = (
        dataclasses.replace(full, lidar=PointCloud(full.lidar.points[:0], nothing, torch.tensor([there, there])))
        for there in (False, True)
    )
    a, b, c = (model(batch)["detection"].heatmap for batch in (none, said, empty))
    assert torch.equal(a, b) and not torch.allclose(a, c)


@pytest.mark.parametrize("cloud", ["lidar", "radar"])
def test_empty_cloud(cloud):
    full = make_batch()
    before = getattr(full, cloud)
    empty = dataclasses.replace(before, points=before.points[:0], batch_index=before.batch_index[:0])
    batch = dataclasses.replace(full, **{cloud: empty})
    run(make_model(), batch, batch)
    run(make_model(), select_sensors(batch, [cloud]), batch)


def test_no_object_no_annotation_no_future():
    full = make_batch()
    assert full.future is not None and full.boxes is not None
    one_empty = dataclasses.replace(full, boxes=(Boxes.empty(), full.boxes[1]))
    run(make_model(), one_empty, one_empty)
    nothing = dataclasses.replace(full, boxes=(Boxes.empty(),) * 2)
    losses = run(make_model(), nothing, nothing)
    assert losses["heatmap"] > 0 and losses["size"] == 0
    unknown = dataclasses.replace(
        full, boxes=None, future=None, past=None, status=None, annotated=torch.zeros(2, dtype=torch.bool)
    )
    losses = run(make_model(), unknown, unknown)
    assert losses["heatmap"] == 0 and losses["planning"] == 0 and losses["depth"] > 0


def test_a_sample_does_not_depend_on_its_neighbours():
    model = make_model().eval()
    both, one = make_batch(2), select_sensors(make_batch(2), SENSORS)
    assert both.cameras is not None and both.lidar is not None and both.radar is not None
    lidar = dataclasses.replace(both.lidar, points=both.lidar.points.clone())
    lidar.points[both.lidar.batch_index == 1] += 1.0
    a, b = model(both), model(dataclasses.replace(one, lidar=lidar))
    torch.testing.assert_close(a["detection"].heatmap[0], b["detection"].heatmap[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(a["detection"].heatmap[1], b["detection"].heatmap[1], atol=1e-3)


def test_order_of_samples_does_not_matter():
    model, a, b = make_model().eval(), make_batch(1, seed=1), make_batch(1, seed=2)

    def join(first: Batch, second: Batch) -> Batch:
        fields = {}
        for name in ("lidar", "radar"):
            x, y = getattr(first, name), getattr(second, name)
            index = torch.cat([x.batch_index, y.batch_index + 1])
            fields[name] = PointCloud(torch.cat([x.points, y.points]), index, torch.tensor([True, True]))
        assert first.cameras is not None and second.cameras is not None
        cameras = {
            f.name: getattr(first.cameras, f.name) + getattr(second.cameras, f.name)
            if f.name == "channels"
            else torch.cat(
                [getattr(first.cameras, f.name), getattr(second.cameras, f.name) + (f.name == "batch_index")]
            )
            for f in dataclasses.fields(first.cameras)
        }
        return dataclasses.replace(
            make_batch(2),
            **fields,
            cameras=dataclasses.replace(first.cameras, **cameras),
            command=torch.cat([first.command, second.command]),
        )

    x, y = model(join(a, b)), model(join(b, a))
    torch.testing.assert_close(x["detection"].heatmap, y["detection"].heatmap.flip(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x["planning"].position, y["planning"].position.flip(0), atol=1e-5, rtol=1e-5)


def test_same_seed_same_bits():
    results = []
    torch.use_deterministic_algorithms(True)  # raises where an operation has no deterministic kernel
    try:
        for _ in range(2):
            model, full = make_model(), make_batch()
            torch.manual_seed(5)
            losses = run(model, full, full)
            results.append([*losses.values(), *(p.grad for p in model.parameters() if p.grad is not None)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bfloat16_forward_stays_near_float32():
    model, full = make_model().eval(), make_batch()
    exact = model.losses(model(full), full)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.losses(model(full), full)
    assert all(value.dtype == torch.float32 for value in rough.values())
    for name, value in exact.items():
        assert rough[name].item() == pytest.approx(value.item(), rel=0.05, abs=0.02), name


def test_bfloat16_trains_on_samples_with_different_sensors():
    """The gradients of bf16 autocast point where those of float32 do."""
    grads = []
    for rough in (False, True):
        config = dataclasses.replace(TINY, planning=dataclasses.replace(TINY.planning, command_dropout=0.0))  # type: ignore[type-var]
        model, full = make_model(config), make_batch(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=rough):
            run(model, mixed_sensors(full), full)
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    exact, rough = (torch.cat([grad.flatten() for grad in of_type.values()]) for of_type in grads)
    assert torch.cosine_similarity(exact, rough, dim=0) > 0.9


def test_it_overfits_two_samples():
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, planning=dataclasses.replace(TINY.planning, command_dropout=0.0))  # type: ignore[type-var]
    model, full = make_model(config), make_batch()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = torch.stack(list(model.losses(model(full), full).values())).sum()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.15 * history[0]
    predictions = model.decode(model(full), full)
    assert predictions.boxes is not None and full.boxes is not None
    for said, true in zip(predictions.boxes, full.boxes, strict=True):
        said = said[said.score > 0.4]
        assert len(said) == len(true)
        distance = torch.cdist(said.center[:, :2], true.center[:, :2]) + 100 * (said.label[:, None] != true.label[None])
        assert distance.amin(0).amax() < 0.5


@pytest.mark.parametrize("grid", [None, BEVGrid(x=(-10.0, 10.0), y=(-10.0, 10.0), resolution=0.5)], ids=["own", "fine"])
@pytest.mark.parametrize("alone", [True, False])
def test_the_map_head_trains_with_any_sensors(grid, alone):
    """Alone or beside the others; a sample says the same map whatever the others have."""
    config = dataclasses.replace(TINY, map=MapConfig(grid, channels=8))
    config = dataclasses.replace(config, detection=None, planning=None) if alone else config
    model, full = make_model(config), random_batch(config, 3, 400, 40, 6)
    seen = mixed_sensors(full)
    known = torch.ones(3, 6, dtype=torch.bool)
    known[1], known[2, 3] = False, False
    full = dataclasses.replace(full, map_known=known)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        losses = model.losses(model(seen), full)
        assert ({"map", "depth"} == set(losses)) == alone and losses["map"] > 0
        torch.stack(list(losses.values())).sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.map.parameters())  # type: ignore[union-attr]
        optimizer.step()
    model.eval()
    together = model.decode(model(seen), seen)
    assert (together.boxes is None) == (together.plan is None) == alone
    assert together.map is not None and together.map.shape == (3, 6, *config.map_grid.shape)
    alone_batch = dataclasses.replace(random_batch(config, 1), cameras=seen.cameras, lidar=None, radar=None)
    one = model.decode(model(alone_batch), alone_batch).map
    torch.testing.assert_close(one, together.map[:1], atol=1e-5, rtol=1e-5)
    without = dataclasses.replace(full, map_mask=None, map_known=None)
    assert model.losses(model(seen), without)["map"] == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_trains_for_two_steps(path):
    """As shipped, in every width and depth, on small images and a small piece of the ground."""
    config = load_config(path)
    side = config.grid.resolution * 16
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, image_size=(64, 64)),
        grid=dataclasses.replace(config.grid, x=(-side / 2, side / 2), y=(-side / 2, side / 2)),
    )
    model, batch = make_model(config), random_batch(config, 2, 300, 30, 6)
    give_anchors(model)
    channels = ["CAM_FRONT", "CAM_BACK_LEFT"] if "camera" in config.branches else []  # two of six, which cost most
    batch = select_sensors(batch, [*channels, *(name for name in config.branches if name != "camera")])
    assert len(batch.history) == (0 if config.temporal is None else config.temporal.keyframes - 1)
    assert tuple(name for name in SENSORS if getattr(model, name) is not None) == config.branches
    assert set(config.branches) <= set(config.data.sensors)
    optimizer = torch.optim.SGD(model.parameters(), config.train.learning_rate)  # which keeps nothing beside weights
    generator = torch.Generator().manual_seed(0)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(2):
        seen = drop_sensors(batch, config.train, generator)
        optimizer.zero_grad()
        assert sum(seen.present[name] for name in config.branches).all(), "a sample without any sensor"  # type: ignore[union-attr]
        losses = model.losses(model(seen), batch)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
    assert all(value.isfinite() for value in losses.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    model.decode(model.eval()(batch), batch)


# Sensors, cells of the grid, published parameters [millions] where ours are near them (engine/published.py), of each.
RECIPES = {
    "bevdepth": ("camera", 128, 77.6),
    "bevfusion": ("camera+lidar", 180, 40),
    "camera_lidar_radar": ("camera+lidar+radar", 180, None),
    "centerpoint_pillar": ("lidar", 128, 5.9),
    "centerpoint_voxel": ("lidar", 180, 8.7),
    "crn": ("camera+radar", 128, 61.4),
    "transfusion_lidar": ("lidar", 180, 8.2),
}


def test_full_size_configurations_have_the_published_sizes():
    small = {"demo", "planner"}
    assert {path.stem for path in CONFIGS} == {*RECIPES, *small}
    for path in CONFIGS:
        if path.stem in small:
            continue
        config, (sensors, cells, published) = load_config(path), RECIPES[path.stem]
        assert "+".join(config.branches) == sensors and config.grid.shape == (cells, cells)
        if config.camera is not None:
            assert config.data.image_size == (256, 704) and config.camera.backbone.name == "resnet50"
            assert "lidar" in config.data.sensors, "depth is supervised by LiDAR"
        with torch.device("meta"):
            count = sum(p.numel() for p in build_model(config, pretrained=False).parameters()) / 1e6
        assert published is None or 0.8 * published < count < 1.05 * published, path.stem


def test_parts_that_do_not_fit_are_refused():
    cases = {
        "at least one sensor": {"camera": None, "lidar": None, "radar": None},
        "detection, planning, map and occupancy are all null": {"detection": None, "planning": None},
        r"map\.grid\.x: expected to lie in grid\.x": {
            "map": MapConfig(dataclasses.replace(TINY.grid, x=(-20.0, 16.0)))
        },
        "image_size": {"data": dataclasses.replace(TINY.data, image_size=(48, 96))},
        "power of two": {"lidar": LidarConfig(pillar=0.3)},
        "fusion.align": {"camera": None, "radar": None, "fusion": FusionConfig(align="deformable")},
        "fusion.scales": {"fusion": FusionConfig(stage="hierarchical", scales=5)},
        "fusion.stage 'late' merges": {"camera": None, "radar": None, "fusion": FusionConfig(stage="late")},
        "fusion.align is|fusion.align: found": {"fusion": FusionConfig(stage="late", align="deformable")},
        "fusion.representation": {"lidar": None, "radar": None, "fusion": FusionConfig(representation="coordinated")},
    }
    for message, change in cases.items():
        with pytest.raises(ConfigError, match=message):
            build_model(dataclasses.replace(TINY, **change))
