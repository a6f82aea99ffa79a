"""Every part goes, in training, through a sensor that no sample has: another process may have it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from fusion3d.build import build_model
from fusion3d.config import FusionConfig
from fusion3d.data.collate import collate
from fusion3d.engine.parallel import fill_sensors, no_samples
from fusion3d.types import SENSORS

sys.path.insert(0, str(Path(__file__).parent))
from small import CAMERA, RandomData, small_config

_DENSE = {"channels": 8, "dense": {"channels": [8], "blocks": [1]}}
_NO_DEPTH = {"depth_loss": 0.0}
_OPERATORS = get_args(get_type_hints(FusionConfig)["operator"])
PARTS: list[dict[str, Any]] = [
    *[{"camera": CAMERA | {"view": view}} for view in ("lift", "aware_lift", "lidar_lift", "radar_lift")],
    *[{"camera": CAMERA | _NO_DEPTH | {"view": view}} for view in ("deformable", "unproject")],
    {"lidar": _DENSE | {"encoder": "voxels", "voxels": {"side": 0.1, "channels": [4, 4, 8, 8]}}},
    {"lidar": _DENSE | {"encoder": "windows", "windows": {"pillar": 0.4, "channels": 8, "heads": 2, "blocks": 1}}},
    {"radar": {"channels": 8, "encoder": "dual", "dual": {"channels": 8, "heads": 2, "blocks": 1}}},
    *[{"fusion": {"channels": 8, "operator": operator}} for operator in _OPERATORS],
    *[{"fusion": {"channels": 8, "representation": name}} for name in ("coordinated", "factorised")],
    {"fusion": {"channels": 8, "align": "deformable"}},
    {"fusion": {"channels": 8, "stage": "hierarchical", "scales": 2}},
    *[{"fusion": {"channels": 8, "stage": stage}} for stage in ("late", "hybrid")],
    *[{"fusion": {"channels": 8, "stage": "early", "paint": paint}} for paint in ("features", "scores")],
    {"detection": {"channels": 8, "head": "query", "query": {"count": 5}}},
    {"detection": {"channels": 8, "tasks": "six"}},
    {"map": {"channels": 8}},
]


@pytest.mark.parametrize("more", PARTS, ids=str)
def test_a_sensor_of_no_sample_and_a_batch_of_no_sample(more):
    config = small_config(**more)
    model, data = build_model(config).train(), RandomData(config)
    batch = collate([data[0, 4], data[0, 9]])
    for sensor, attribute in zip(SENSORS, ("cameras", "lidar", "radar"), strict=True):
        emptied = fill_sensors(dataclasses.replace(batch, **{attribute: None}), {sensor})
        losses = model.losses(model(emptied), batch)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        assert total.isfinite(), sensor
    outputs = model(fill_sensors(no_samples(batch), set(SENSORS)))
    assert isinstance(outputs, dict)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
