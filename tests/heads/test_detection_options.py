"""Every option of the detection heads in a whole model: two steps of training, then boxes."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch

from fusion3d.build import build_model
from fusion3d.config import Config, DetectionConfig, LidarConfig, QueryConfig, TrunkConfig, from_dict
from fusion3d.config.ranges import BoxPart, ClassName
from fusion3d.engine.random_batch import random_batch
from fusion3d.errors import ConfigError
from fusion3d.heads import center, query
from fusion3d.heads.detection import BOX_CHANNELS
from fusion3d.types import DETECTION_CLASSES, BEVGrid

LIDAR = Config(
    data=dataclasses.replace(Config().data, image_size=(64, 64)),
    grid=BEVGrid(x=(-9.6, 9.6), y=(-6.4, 6.4), resolution=0.8),
    camera=None,
    radar=None,
    planning=None,
    lidar=LidarConfig(channels=8, pillar=0.8),
    trunk=TrunkConfig(channels=8, blocks=(1,), out_channels=8),
    detection=DetectionConfig(channels=16),
)
OPTIONS: dict[str, dict] = {
    "six": {"tasks": "six"},
    "six, rotated": {"tasks": "six", "nms": "rotated", "nms_scale": {"pedestrian": 4.5}},
    "circle by class": {"nms": "circle", "circle_radius": {"car": 3.0}, "class_max_boxes": {"car": 2}},
    "weights": {"code_weights": {"yaw": 2.0, "offset": 0.0}, "heatmap_radius": {"pedestrian": 1}},
    "query": {"head": "query"},
    "query, three layers": {"head": "query", "query": QueryConfig(count=20, layers=3, points=1)},
    "query, circle": {"head": "query", "nms": "circle", "sensor_weight": 0.3},
}


def with_detection(**settings) -> Config:
    return dataclasses.replace(LIDAR, detection=DetectionConfig(channels=16, **settings))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_for_two_steps_and_decodes(name):
    config = with_detection(**OPTIONS[name])
    torch.manual_seed(0)
    model, batch = build_model(config), random_batch(config, 2, 200, 10, 8)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    history = []
    for _ in range(2):
        optimizer.zero_grad()
        losses = model.losses(model(batch), batch)
        assert all(value.isfinite() for value in losses.values())
        history.append(torch.stack(list(losses.values())).sum())
        history[-1].backward()
        optimizer.step()
    assert history[1] < history[0]
    boxes = model.decode(model.eval()(batch), batch).boxes
    assert boxes is not None and len(boxes) == 2
    for found in boxes:
        assert all(getattr(found, part).isfinite().all() for part in ("center", "size", "yaw", "velocity", "score"))
        assert found.score.diff().le(0).all() and len(found) <= 300


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"tasks": "six"}, {"head": "query", "query": QueryConfig(layers=2)}])
def test_forward_is_one_graph(settings):
    """No graph break, and no number that is read on the host."""
    torch.manual_seed(0)
    model, batch = build_model(with_detection(**settings)).eval(), random_batch(LIDAR, 2, 10, 10, 2)
    head = model.detection
    assert head is not None
    torch.compiler.reset()
    graph = torch.compile(head, backend="eager", fullgraph=True)
    map_BCYX = torch.randn(2, 8, *LIDAR.grid.shape)
    with torch.no_grad():
        one, two = head(map_BCYX, batch), graph(map_BCYX, batch)
    for field in dataclasses.fields(one):
        torch.testing.assert_close(getattr(two, field.name), getattr(one, field.name))


@pytest.mark.parametrize("head", ["center", "query"])
def test_targets_are_made_once(head, monkeypatch):
    config = with_detection(head=head, sensor_weight=0.3)
    model, batch, calls = build_model(config), random_batch(config, 2, 200, 10, 8), []
    for module in (center, query):
        encode = module.encode_boxes
        monkeypatch.setattr(module, "encode_boxes", lambda *args, encode=encode: calls.append(args) or encode(*args))
    outputs = model(batch)
    losses = model.losses(outputs, batch)
    assert len(calls) == 1 and losses["sensors"] > 0
    assert model.detection is not None  # given or not, they are the same
    for name, value in model.detection.losses(outputs["detection"], batch).items():
        assert torch.equal(value, losses[name])
    assert len(calls) == 2


def test_names_in_the_configuration_are_those_of_the_types():
    assert typing.get_args(ClassName) == DETECTION_CLASSES
    assert {*typing.get_args(BoxPart), "velocity"} == set(BOX_CHANNELS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"circle_radius": {"pedestrain": 1.0}}, "detection: circle_radius: expected one of 'car', .*'pedestrain'"),
        ({"circle_radius": {"pedestrian": -1}}, r"detection\.circle_radius: expected 0 or more each"),
        ({"nms_scale": {"bus": 0}}, r"detection\.nms_scale: expected more than 0 each"),
        ({"class_max_boxes": {"bus": 0}}, r"detection\.class_max_boxes: expected at least 1 each"),
        ({"class_score_threshold": {"bus": 1.5}}, r"detection\.class_score_threshold: expected 0 to 1 each"),
        ({"class_max_boxes": {"bus": 1.5}}, r"class_max_boxes\.bus: expected int, found 1\.5"),
        ({"code_weights": {"velocity": 1.0}}, "code_weights: expected one of 'offset'"),
        ({"rotated_overlap": 0.3}, "rotated_overlap: expected names and values, found 0.3"),
        ({"query": {"layer": 2}}, "unknown key 'layer'; did you mean 'layers'"),
        ({"head": "centre"}, "head: expected one of 'center', 'query'"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        from_dict({"detection": values})
