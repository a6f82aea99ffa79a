"""Grad-CAM: against its closed form, and for every head, fusion stage and subset of sensors."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusion3d.analysis.explain.gradcam import explain, heat
from fusion3d.analysis.explain.main import explain_samples, main
from fusion3d.analysis.explain.targets import Target, answer, parse_target
from fusion3d.analysis.features import bev_modules, image_modules, watch
from fusion3d.data.subset import select_sensors
from fusion3d.errors import ConfigError, DataError, Fusion3DError
from fusion3d.heads.motion import STILL
from fusion3d.types import DETECTION_CLASSES, SENSORS

sys.path.insert(0, str(Path(__file__).parent))
from small_models import batch_of, build, on_synthetic, saved, small

STAGES = {
    "middle": (["camera", "lidar", "radar", "fused"], ["camera"]),
    "hierarchical": (["camera", "lidar", "radar", "fused"], ["camera"]),
    "early": (["points"], ["camera"]),
    "late": (["camera", "lidar", "radar"], ["camera"]),
    "hybrid": (
        ["camera", "lidar", "radar", "joint camera", "joint lidar", "joint radar", "joint fused"],
        ["camera", "joint camera"],
    ),
}
TARGETS = ("car", "pedestrian@2,-3", "plan", "plan@1.5", "drivable_area", "divider@1,1",
           "motion", "vehicle", "vru@1,1,2")  # fmt: skip


def test_a_linear_head_has_its_closed_form():
    """y = sum of w_c A_c over the cells R: the gradient is w_c there, so a channel weighs |R| / |all| w_c."""
    torch.manual_seed(0)
    feature = torch.randn(2, 5, 6, 7, requires_grad=True)
    weight, region = torch.randn(5), torch.zeros(6, 7)
    region[2:4, 1:5] = 1
    value = (weight[:, None, None] * feature[0] * region).sum()
    gradient = torch.autograd.grad(value, feature)[0]
    projected = (weight[:, None, None] * feature[0]).sum(0).detach()
    assert torch.allclose(heat(feature, gradient)[0], (8 / 42 * projected).clamp(min=0), atol=1e-6)
    assert torch.allclose(heat(feature, gradient, "hires")[0], (projected * region).clamp(min=0), atol=1e-6)
    assert (heat(feature, gradient)[1] == 0).all()  # the other map has no say
    signed = (gradient * feature.detach())[0].sum()
    assert torch.allclose(signed, value.detach(), atol=1e-5)  # what hires splits up is the whole of a linear answer


def test_a_linear_map_head_on_the_fused_map():
    """With trunk and head made linear, the fused map's heat is known from the weights."""
    model = build(small(detection=None, planning=None))
    torch.manual_seed(1)
    mix = torch.nn.Conv2d(8, 6, 1)
    model.trunk, model.map.body = torch.nn.Identity(), mix
    batch = batch_of(small(detection=None, planning=None))
    with watch(bev_modules(model)) as seen:
        model(batch)
    said = explain(model, batch, Target("walkway", place=(1.0, -1.0)))
    projected = (mix.weight[2, :, 0, 0, None, None] * seen["fused"][0]).sum(0).detach()
    assert torch.allclose(said.bev["fused"], projected.clamp(min=0) / 256, atol=1e-7)
    only = explain(model, batch, Target("walkway", place=(1.0, -1.0)), "hires").bev["fused"]
    row, col = int((-1.0 + 6.4) / 0.8), int((1.0 + 6.4) / 0.8)
    elsewhere = torch.ones_like(only, dtype=torch.bool)
    elsewhere[row, col] = False
    assert only[row, col] == pytest.approx(float(projected[row, col].clamp(min=0))) and (only[elsewhere] == 0).all()
    against = explain(model, batch, Target("walkway", place=(1.0, -1.0)), against=True)
    assert torch.allclose(against.bev["fused"], (-projected).clamp(min=0) / 256, atol=1e-7)


@pytest.mark.parametrize("head", ["center", "query"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_head_and_stage_has_the_maps_it_promises(stage, head):
    config = small(fusion__stage=stage, detection__head=head, occupancy={"channels": 8}, motion={"channels": 8})
    model, batch = build(config), batch_of(config)
    model.requires_grad_(True)
    maps, images = STAGES[stage]
    for name in TARGETS:
        target = parse_target(name)
        if head == "query" and target.name in DETECTION_CLASSES:
            target = None  # the surest: of another there may be no query
        said = explain(model, batch, target)
        assert list(bev_modules(model)) == maps and list(image_modules(model)) == images
        silent = [note.split(":")[0] for note in said.notes]  # of which an untrained query head may have no query
        assert head == "query" or not silent
        assert [*said.bev] == [name for name in maps if name.split()[0] not in silent]
        assert [*said.images] == [name for name in images if name.split()[0] not in silent]
        assert all(map_YX.shape == (16, 16) for map_YX in said.bev.values())
        assert all(heat.shape == (6, 8, 8) for heat in said.images.values())
        for one in (*said.bev.values(), *said.images.values()):
            assert one.isfinite().all() and (one >= 0).all()
        if len(said.answers) == 1 and said.shares():
            assert sum(said.shares().values()) == pytest.approx(1)
    assert any(one.any() for one in said.bev.values())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_an_absent_sensor_has_no_map(stage):
    config = small(fusion__stage=stage)
    model, batch = build(config), batch_of(config)
    for count in (1, 2):
        for subset in itertools.combinations(SENSORS, count):
            said = explain(model, select_sensors(batch, subset))
            shown = [*said.bev, *said.images]
            for sensor in SENSORS:
                there = any(sensor in name for name in shown)
                assert there == (sensor in subset) or (stage == "early" and sensor != "camera"), (subset, shown)
            assert set(said.answers) <= {"joint", *subset}
    with pytest.raises(Fusion3DError, match="has no sensor, and the model sees none of it"):
        explain(model, select_sensors(batch, ()))


def test_painted_scores_reach_the_images_through_the_depth_of_their_points():
    config = small(fusion__stage="early", fusion__paint="scores", camera__image_loss=0.5)
    said = explain(build(config), batch_of(config))
    assert list(said.bev) == ["points"] and said.images["camera"].any() and not said.notes


def test_a_map_that_nothing_reads_is_named():
    config = small()
    model, batch = build(config), batch_of(config)
    mix = torch.nn.Conv2d(8, 8, 1)
    model.fuse.forward = lambda maps, present: mix(maps[1])
    said = explain(model, batch)
    assert list(said.bev) == ["lidar", "fused"] and said.images == {}
    assert "no gradient reaches camera (map from above)" in said.notes and len(said.notes) == 3
    assert said.shares() == {"lidar": 1.0}


def test_a_model_with_memory_is_explained_by_what_it_sees_now():
    config = small(temporal={})
    model, batch = build(config), batch_of(config)
    assert batch.history
    with watch(bev_modules(model)) as seen:
        model(batch)
        now = {name: map_BCYX.detach().clone() for name, map_BCYX in seen.items()}
    maps, _ = model.relate(model.sense(batch).maps, batch)
    fused = model.join(maps, batch)
    assert torch.equal(now["fused"], fused.detach())
    assert set(explain(model, batch).bev) == {"camera", "lidar", "radar", "fused"}
    said = explain(model, dataclasses.replace(batch, lidar=None))  # which the keyframes before have
    assert set(said.bev) == {"camera", "radar", "fused"} and not said.notes


def test_targets_are_what_the_heads_say():
    config = small()
    model, batch = build(config), batch_of(config)
    outputs = model(batch)
    best = answer(model, outputs, batch, Target("bus"))
    assert best.value == outputs["detection"].heatmap[0, 2].max()
    there = answer(model, outputs, batch, Target("bus", place=best.place))
    assert there.value == best.value and "bus at x" in best.text and there.place == best.place
    plan = answer(model, outputs, batch, Target("plan", seconds=1.0))
    point = outputs["planning"].position[0, 1]
    assert plan.value == point.norm() and plan.place == tuple(point.tolist())

    config = small(detection__head="query")
    model, batch = build(config), batch_of(config)
    outputs = model(batch)
    best_of_class = {}
    for one in model.detection.decode(outputs["detection"])[0:1]:
        for label, score, center in zip(one.label.tolist(), one.score.tolist(), one.center.tolist(), strict=True):
            best_of_class.setdefault(label, (score, center))
    assert best_of_class
    for label, (score, center) in best_of_class.items():
        said = answer(model, outputs, batch, Target(DETECTION_CLASSES[label]))
        assert said.place == pytest.approx(center[:2], abs=1e-4) and f"score {score:.2f}" in said.text
        near = answer(model, outputs, batch, Target(DETECTION_CLASSES[label], place=said.place))
        assert near.place == said.place


def test_a_motion_is_that_of_the_box_that_is_meant():
    config = small(motion={"channels": 8})
    model, batch = build(config), batch_of(config)
    with torch.no_grad():
        for parameter in model.motion.passes.parameters():  # which say nothing before they have learned
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    found = model.decode(model(batch), batch)
    boxes, forecast = found.boxes[0], found.motion[0]
    moving = [i for i, label in enumerate(boxes.label.tolist()) if DETECTION_CLASSES[label] not in STILL]
    surest = max(moving, key=lambda i: float(boxes.score[i]))
    for target, i in ((None, surest), (tuple(boxes.center[moving[3], :2].tolist()), moving[3])):
        said = explain(model, batch, Target("motion", target))
        one = said.answers["joint"]
        way = (forecast.position[i, 0, -1] - boxes.center[i, :2]).norm()
        assert float(one.value.detach()) == pytest.approx(float(way), abs=1e-4)
        assert f"{float(way):.1f} m in 3 s" in one.text
        assert one.place == pytest.approx(boxes.center[i, :2].tolist())
        both = said, explain(model, batch, Target("motion", target), against=True)
        assert any(of.bev["fused"].any() for of in both)


def test_who_is_where_is_a_layer_of_the_occupancy():
    config = small(occupancy={"channels": 8}, detection=None, planning=None, map=None)
    model, batch = build(config), batch_of(config)
    said = model(batch)["occupancy"].agents[0]  # times, groups
    cell = explain(model, batch, Target("vru", place=(1.0, -1.0), seconds=2.0)).answers["joint"]
    row, col = int((-1.0 + 6.4) / 0.8), int((1.0 + 6.4) / 0.8)
    assert torch.equal(cell.value.detach(), said[2, 1, row, col].detach()) and cell.text.endswith("2 s from now")
    usual = explain(model, batch).answers["joint"]
    assert usual.text.startswith("vehicle in") and float(usual.value.detach()) == pytest.approx(said[0, 0].max().item())
    with pytest.raises(DataError, match=r"vehicle: nothing is said of 2.5 s from now; there are 0, 1, 2, 3 s"):
        explain(model, batch, Target("vehicle", seconds=2.5))


def test_what_cannot_be_explained_is_said():
    assert parse_target("vehicle@2") == Target("vehicle", None, 2)
    assert parse_target("static@1,-2,3") == Target("static", (1, -2), 3)
    with pytest.raises(ConfigError, match=r"such as vehicle@3 \(seconds\) or vehicle@12,-3"):
        parse_target("vehicle@1,2,3,4")
    assert parse_target("car@12,-3.5") == Target("car", (12.0, -3.5))
    assert parse_target("plan@2") == Target("plan", None, 2)
    for wrong, told in (("cra", "did you mean 'car'"), ("car@3", r"such as car@12,-3"), ("plan@x", r"such as plan@3"),
                        ("car@nan,1", "found 'nan,1'")):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            parse_target(wrong)
    config = small(map=None)
    model, batch = build(config), batch_of(config)
    with pytest.raises(ConfigError, match="of the map head; this model has detection, planning"):
        explain(model, batch, Target("walkway"))
    with pytest.raises(DataError, match=r"car@60,0: outside of the grid"):
        explain(model, batch, Target("car", (60.0, 0.0)))
    with pytest.raises(DataError, match=r"plan@9: the plan is from 0.5 to 3 s"):
        explain(model, batch, Target("plan", seconds=9.0))
    config = small(detection__head="query", detection__query={"count": 1})
    with pytest.raises(DataError, match="no query starts from a peak of it"):
        for name in ("car", "bus"):  # one query cannot be of both
            explain(build(config), batch_of(config), Target(name))


def test_the_verb_draws_what_it_says(synthetic_root, tmp_path, capsys):
    folder = saved(on_synthetic(synthetic_root, map=None), tmp_path / "checkpoints" / "step-00000001")
    arguments = ["--checkpoint", str(folder), "--index", "2", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--target", "plan@1", "--sensors", "lidar", "CAM_FRONT"]) == 0
    told = capsys.readouterr().out
    assert "what speaks for plan after 1 s" in told
    files = sorted((tmp_path / "out").iterdir())
    assert [re.sub(r"^scene-\d+-", "", file.name) for file in files] == ["0002-plan_1.png"]
    image = np.asarray(Image.open(files[0]))
    assert image.shape[1] > 1600 and len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 500
    with pytest.raises(ConfigError, match="unknown 'cra'"):
        explain_samples(folder, None, [0], tmp_path, ["cra"])
