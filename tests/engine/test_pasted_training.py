"""The real model takes steps on pasted, shifted, class-balanced samples, and answers through test-time views."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fusion3d.build import build_model
from fusion3d.config import Config, from_dict
from fusion3d.data import make_loader
from fusion3d.data.paste.make import make_objects
from fusion3d.engine.inference import run_split, sensor_subsets
from fusion3d.engine.split import open_split
from fusion3d.engine.train import build_optimizer
from fusion3d.engine.views import views_of


@pytest.fixture(scope="module")
def config(synthetic_root, tmp_path_factory) -> Config:
    objects = tmp_path_factory.mktemp("objects") / "made"
    make_objects(synthetic_root, objects, "v1.0-synthetic", "train", 2, 2, most=20, workers=1, quiet=True)
    data = {"root": str(synthetic_root), "version": "v1.0-synthetic", "image_size": [64, 96], "workers": 0}
    return from_dict(
        {
            "data": data | {"lidar_sweeps": 2, "radar_sweeps": 2},
            "augment": {"bev_shift": 0.5, "paste": {"database": str(objects), "counts": {"car": 12}}, "fade_epochs": 1},
            "grid": {"x": [-16.0, 16.0], "y": [-12.8, 12.8], "resolution": 0.8},
            "camera": {
                "backbone": {"name": "resnet18", "width": 8}, "fpn_channels": 16, "stride": 8, "channels": 8,
                "depth": [1.0, 20.0, 1.0],
            },
            "lidar": {"channels": 8, "pillar": 0.4},
            "radar": {"channels": 8},
            "fusion": {"channels": 16},
            "trunk": {"channels": 16, "blocks": [1, 1], "out_channels": 16},
            "detection": {"channels": 16},
            "planning": {"channels": 16},
            "train": {"batch_size": 2, "order": "class_balanced", "epochs": 2},
            "evaluation": {"tta": "flip"},
        }
    )  # fmt: skip


def test_two_steps_and_the_answers(config):
    torch.manual_seed(0)
    dataset, model = open_split(config, "train", training=True), build_model(config)
    assert dataset.paster is not None and dataset.epochs == 2
    loader = make_loader(dataset, 2, shuffle=True, classes=dataset.classes())
    optimizer = build_optimizer(model, config.train)
    for _, batch in zip(range(2), loader, strict=False):
        assert batch.aug_from_ego[:, :3, 3].all()
        losses = model.losses(model(batch), batch)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    quiet = dataclasses.replace(config, augment=dataclasses.replace(config.augment, bev_flip=True))
    subset = {"camera+lidar+radar": sensor_subsets(config)["camera+lidar+radar"]}
    split = open_split(config, "val", training=False)
    said = run_split(model.eval(), split, subset, 3, 0, torch.device("cpu"), views_of(quiet)).subsets[
        "camera+lidar+radar"
    ]
    assert set(said.boxes) == set(said.plans) == set(split.tokens)
    for boxes, plan in zip(said.boxes.values(), said.plans.values(), strict=True):
        assert boxes.center.isfinite().all() and (boxes.score <= 1).all() and plan.position.shape == (6, 2)
