"""Each sensor's own heatmap: who counts, what the loss is, and that it is there in training only."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fusion3d.config import Config
from fusion3d.data.subset import select_sensors
from fusion3d.engine.random_batch import random_batch
from fusion3d.heads.detection import heatmap_loss
from fusion3d.heads.sensors import SensorHeatmaps
from fusion3d.heads.targets import encode_boxes
from fusion3d.types import BEVGrid

GRID = BEVGrid(x=(-16.0, 16.0), y=(-16.0, 16.0), resolution=1.0)


@pytest.fixture
def heads() -> SensorHeatmaps:
    torch.manual_seed(0)
    return SensorHeatmaps({"camera": 4, "lidar": 6}, weight=0.5)


def targets_of(batch):
    return encode_boxes(batch.boxes, GRID)


def a_batch(count: int = 2):
    config = Config()
    config = dataclasses.replace(config, grid=GRID, data=dataclasses.replace(config.data, image_size=(64, 64)))
    return random_batch(config, count)


def test_the_loss_is_the_weighted_sum_over_the_sensors_there(heads: SensorHeatmaps) -> None:
    batch = a_batch()
    maps = {"camera": torch.randn(2, 4, 32, 32), "lidar": None}
    present = {"camera": torch.tensor([True, False]), "lidar": torch.tensor([False, False])}
    said = heads(maps, present)
    assert set(said) == {"camera"}
    assert batch.boxes is not None
    one = heatmap_loss(said["camera"].logits[:1], encode_boxes(batch.boxes[:1], GRID), torch.tensor([True]))
    assert one > 0.1
    torch.testing.assert_close(
        heads.losses(said, batch, targets_of(batch))["sensors"], 0.5 * one
    )  # that of the sample that has it, alone


def test_samples_without_annotations_do_not_count(heads: SensorHeatmaps) -> None:
    batch, maps = a_batch(), {"camera": torch.randn(2, 4, 32, 32)}
    assert batch.boxes is not None
    half = dataclasses.replace(batch, annotated=torch.tensor([True, False]), boxes=(batch.boxes[0], batch.boxes[1][:0]))
    one = heads.losses(heads(maps, {"camera": torch.tensor([True, False])}), batch, targets_of(batch))["sensors"]
    both = heads.losses(heads(maps, {"camera": torch.ones(2, dtype=torch.bool)}), half, targets_of(half))["sensors"]
    torch.testing.assert_close(both, one)


def test_what_an_absent_sensors_map_holds_does_not_matter(heads: SensorHeatmaps) -> None:
    batch, present = a_batch(), {"camera": torch.tensor([True, False]), "lidar": torch.tensor([False, False])}
    maps = torch.randn(2, 4, 32, 32)
    other = maps.clone()
    other[1] = torch.randn(4, 32, 32)
    targets = targets_of(batch)
    one, two = (
        heads.losses(heads({"camera": m, "lidar": None}, present), batch, targets)["sensors"] for m in (maps, other)
    )
    assert torch.equal(one, two)


def test_without_annotations_the_loss_is_zero_and_differentiable(heads: SensorHeatmaps) -> None:
    batch = dataclasses.replace(a_batch(), boxes=None)
    maps = torch.randn(2, 4, 32, 32, requires_grad=True)
    present = {"camera": torch.ones(2, dtype=torch.bool)}
    loss = heads.losses(heads({"camera": maps}, present), batch, None)["sensors"]
    loss.backward()
    assert loss.item() == 0 and maps.grad is not None and not maps.grad.any()
    assert heads.losses({}, batch, None) == {}


def test_it_is_there_in_training_only() -> None:
    from fusion3d.build import build_model
    from fusion3d.config import load_config

    config = load_config("configs/demo.yaml", ["--grid.resolution", "1.6", "--lidar.pillar", "0.8"])
    model, batch = build_model(config), random_batch(config, 1)
    terms = model.losses(model(batch), batch)
    assert terms["sensors"] > 0
    assert {"sensors", "image"} <= set(model(batch)) and terms["image"] > 0
    model.eval()
    assert not {"sensors", "image"} & set(model(batch))
    assert "sensors" not in model(select_sensors(batch, ["radar"]))
    off = build_model(dataclasses.replace(config, detection=dataclasses.replace(config.detection, sensor_weight=0.0)))
    assert "sensors" not in off.losses(off(batch), batch)
