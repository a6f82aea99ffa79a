"""Late and hybrid fusion: models side by side, of which each has a say where its sensor is."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from fusion3d.build import build_model
from fusion3d.data.subset import select_sensors
from fusion3d.heads.merge import merge_boxes
from fusion3d.late import LateFusion
from fusion3d.model import Fusion3D
from fusion3d.types import SENSORS, Boxes

sys.path.insert(0, str(Path(__file__).parent))
from test_model import TINY, make_batch, mixed_sensors, run


def make(stage: str, merge: str = "weighted") -> LateFusion:
    torch.manual_seed(0)
    fusion = dataclasses.replace(TINY.fusion, stage=stage, merge=merge)  # type: ignore[arg-type]
    model = build_model(dataclasses.replace(TINY, fusion=fusion))
    assert isinstance(model, LateFusion)
    return model


@pytest.mark.parametrize("stage", ["late", "hybrid"])
def test_it_trains_and_decodes_whatever_is_there(stage):
    model, full = make(stage), make_batch(3)
    assert list(model.models) == [*SENSORS, *(["joint"] if stage == "hybrid" else [])]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for seen in (full, mixed_sensors(full), select_sensors(full, ["radar"]), select_sensors(full, [])):
        losses = run(model, seen, full)  # type: ignore[arg-type]
        assert {f"{name}.heatmap" for name in model.models} <= set(losses)
        optimizer.step()


def test_a_model_alone_in_a_sample_says_what_it_says():
    model, full = make("late").eval(), make_batch(2)
    for name in SENSORS:
        seen = select_sensors(full, [name])
        said = model.decode(model(seen), seen)
        alone = model.models[name]
        assert isinstance(alone, Fusion3D)
        expected = alone.decode(alone(seen), seen)
        assert said.boxes is not None and expected.boxes is not None and said.plan is not None
        for a, b in zip(said.boxes, expected.boxes, strict=True):
            torch.testing.assert_close(a.center, merge_boxes([b]).center)
            torch.testing.assert_close(a.score.sort().values, b.score.sort().values)
        assert expected.plan is not None
        torch.testing.assert_close(said.plan.position, expected.plan.position)


def test_only_samples_with_the_sensor_teach_its_model():
    model, full = make("late"), make_batch(3)
    seen = mixed_sensors(full)  # camera in the first, LiDAR in the second, nothing in the third
    outputs = model(seen)
    before = model.losses(outputs, full)  # as in training: targets know of sensors that the models did not see
    assert full.boxes is not None
    turned = tuple(dataclasses.replace(b, yaw=b.yaw + 1) if i == 1 else b for i, b in enumerate(full.boxes))
    after = model.losses(outputs, dataclasses.replace(full, boxes=turned))
    assert before["camera.yaw"] == after["camera.yaw"] and before["lidar.yaw"] != after["lidar.yaw"]
    assert before["radar.yaw"] == 0 == before["radar.planning"]


def test_a_sensor_that_was_dropped_teaches_nothing():
    """In training the losses get the batch with every sensor, and the model saw fewer."""
    model, full = make("hybrid"), make_batch(3)
    full = dataclasses.replace(full, command=torch.full((3,), -1))
    seen = mixed_sensors(full)  # camera in the first, LiDAR in the second, nothing in the third
    losses = model.losses(model(seen), full)
    assert losses["radar.yaw"] == 0 == losses["radar.planning"]
    assert losses["camera.yaw"] > 0 and losses["lidar.yaw"] > 0
    assert full.boxes is not None
    turned = tuple(dataclasses.replace(b, yaw=b.yaw + 1) if i == 2 else b for i, b in enumerate(full.boxes))
    after = model.losses(model(seen), dataclasses.replace(full, boxes=turned))
    assert after["joint.yaw"] == losses["joint.yaw"]


def test_the_joint_model_has_no_say_on_a_sensor_that_it_lacks():
    config = dataclasses.replace(TINY, lidar=None, fusion=dataclasses.replace(TINY.fusion, stage="hybrid"))
    model = build_model(config)
    assert isinstance(model, LateFusion)
    say = model.has_say(select_sensors(make_batch(2), ["lidar"]))
    assert list(say) == ["camera", "radar", "joint"] and not any(has.any() for has in say.values())


def box(x: float, score: float, label: int = 0) -> Boxes:
    size = torch.tensor([[4.6, 1.9, 1.7]])
    return Boxes.of(
        torch.tensor([[x, 0.0, 0.5]]), size, torch.zeros(1), torch.zeros(1, 2), torch.tensor([label]),
        torch.tensor([score]),
    )  # fmt: skip


def test_votes():
    found = merge_boxes([box(10.0, 0.6), box(10.5, 0.5), Boxes.empty()], "voting")
    assert len(found) == 1 and found.center[0, 0] == 10.0  # two of three: the better one's box
    torch.testing.assert_close(found.score, torch.tensor([1 - 0.4 * 0.5]))
    assert len(merge_boxes([box(10.0, 0.9), Boxes.empty(), Boxes.empty()], "voting")) == 0  # one of three
    assert len(merge_boxes([box(10.0, 0.9), Boxes.empty()], "voting")) == 1  # one of two is half
    averaged = merge_boxes([box(10.0, 0.6), box(10.5, 0.3), Boxes.empty()])
    torch.testing.assert_close(averaged.center[0, 0], torch.tensor(10 + 0.5 * 0.3 / 0.9))
    torch.testing.assert_close(averaged.score, torch.tensor([0.9 / 3]))
    assert len(merge_boxes([box(10.0, 0.6), box(10.1, 0.6, label=1)], "voting")) == 2


def test_describe_names_the_parts_of_each_model():
    from fusion3d.engine.describe import stages

    names = set(stages(make("hybrid")))
    assert {"models.lidar.lidar", "models.camera.camera.encoder", "models.joint.trunk"} <= names
