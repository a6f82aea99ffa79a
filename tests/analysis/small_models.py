"""The smallest models of every kind, and a random batch for them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from fusion3d.build import build_model
from fusion3d.config import Config, from_dict
from fusion3d.engine.checkpoint import Position, save_checkpoint
from fusion3d.engine.random_batch import random_batch
from fusion3d.late import Model
from fusion3d.types import Batch

BASE: dict[str, Any] = {
    "data": {"image_size": [64, 64]},
    "grid": {"x": [-6.4, 6.4], "y": [-6.4, 6.4], "resolution": 0.8},
    "camera": {
        "backbone": {"name": "resnet18", "width": 4}, "fpn_channels": 8, "channels": 8, "stride": 8, "depth": [1, 9, 1],
    },
    "lidar": {"channels": 8, "pillar": 0.4},
    "radar": {"channels": 8},
    "fusion": {"channels": 8, "virtual_points": 2},
    "trunk": {"channels": 8, "blocks": [1, 1], "out_channels": 8},
    "detection": {"channels": 8, "query": {"count": 20}},
    "planning": {"channels": 8, "command_dropout": 0.0},
    "map": {"channels": 8},
}  # fmt: skip


def small(**changes: Any) -> Config:
    """``BASE`` with other settings, whose keys are dotted with two underscores."""
    values = copy.deepcopy(BASE)
    for key, value in changes.items():
        *path, last = key.split("__")
        section = values
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return from_dict(values)


def build(config: Config, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return build_model(config).eval()


def batch_of(config: Config, size: int = 1, seed: int = 0) -> Batch:
    return random_batch(config, size, 300, 40, 4, seed)


def on_synthetic(root: Path, **changes: Any) -> Config:
    """``small`` with a coarse grid around, for the synthetic set."""
    data = {
        "root": str(root), "version": "v1.0-synthetic", "split": "val", "image_size": [64, 128], "lidar_sweeps": 1,
        "radar_sweeps": 1, "workers": 0,
    }  # fmt: skip
    grid = {"x": [-25.6, 25.6], "y": [-25.6, 25.6], "resolution": 3.2}
    return small(data=data, grid=grid, lidar__pillar=1.6, **changes)


def saved(config: Config, folder: Path) -> Path:
    """A checkpoint of the untrained model: what it says is noise, but it says it everywhere."""
    save_checkpoint(folder, config, build(config).state_dict(), Position(1))
    return folder
