"""The real model at its smallest, and random samples with sensors missing, for what processes do together."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from fusion3d.build import build_model
from fusion3d.config import Config, from_dict
from fusion3d.engine.distributed import processes
from fusion3d.engine.log import RunLog
from fusion3d.engine.random_batch import give_anchors, random_batch
from fusion3d.engine.seed import seed_all
from fusion3d.engine.train import Trainer
from fusion3d.types import Batch, Boxes, EgoStatus, Sample, Trajectory

CAMERA = {
    "backbone": {"name": "resnet18", "width": 4}, "fpn_channels": 8, "channels": 8, "stride": 8, "depth": [1, 9, 1],
    "image_loss": 0.5,
}  # fmt: skip


def small_config(train: dict[str, Any] | None = None, **more: Any) -> Config:
    settings = {"epochs": 5, "batch_size": 2, "learning_rate": 1e-3, "drop_sensor": 0.3, "checkpoint_every": 1000}
    values = {
        "data": {"image_size": [64, 64], "workers": 0},
        "grid": {"x": [-6.4, 6.4], "y": [-6.4, 6.4], "resolution": 0.8},
        "camera": CAMERA,
        "lidar": {"channels": 8, "pillar": 0.4},
        "radar": {"channels": 8},
        "fusion": {"channels": 8},
        "trunk": {"channels": 8, "blocks": [1, 1], "out_channels": 8},
        "detection": {"channels": 8, "sensor_weight": 0.3},
        "planning": {"channels": 8, "command_dropout": 0.0},
        "train": settings | {"log_every": 1} | (train or {}),
    }  # fmt: skip
    # With seed 0 a ReLU within rounding of 0 opens in two processes and not in one: then the runs part.
    return from_dict({"seed": 1} | values | more)


class RandomData:
    """Samples of a known seed: some without cameras, LiDAR, radar or annotation, with more or fewer boxes.

    With ``history``, every other sample has keyframes before it.
    """

    def __init__(self, config: Config, size: int = 8, history: int = 0) -> None:
        self.config, self.size, self.history = config, size, history

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        sample = self.frame(key[1], key[1])
        past = [self.frame(key[1], 100 * back + key[1]) for back in range(1, 1 + self.history * (key[1] % 2))]
        history = [
            dataclasses.replace(
                frame, timestamp=-500_000 * back, boxes=None, future=None, motion=None, past=None, status=None
            )
            for back, frame in enumerate(past, 1)
        ]
        return dataclasses.replace(sample, history=tuple(history))

    def frame(self, index: int, seed: int) -> Sample:
        """A keyframe of the sample ``index``."""
        absent = {0: ["cameras"], 1: ["lidar"], 2: ["radar"], 3: ["boxes"]}.get(index % 5, [])
        batch = random_batch(self.config, 1, 200, 20, 1 + 2 * index, seed=seed)
        return dataclasses.replace(sample_of(batch, f"sample-{index}"), **dict.fromkeys(absent))


def sample_of(batch: Batch, token: str) -> Sample:
    """The first and only sample of a batch."""
    assert batch.lidar is not None and batch.radar is not None and batch.boxes is not None
    assert batch.motion is not None and batch.status is not None
    future, past = (
        path and Trajectory(path.position[0], path.yaw[0], path.mask[0]) for path in (batch.future, batch.past)
    )
    boxes: Boxes = batch.boxes[0]
    return Sample(
        token=token,
        scene="scene-0001",
        timestamp=0,
        global_from_ego=batch.global_from_ego[0],
        aug_from_ego=batch.aug_from_ego[0],
        cameras=batch.cameras,
        lidar=batch.lidar.points,
        radar=batch.radar.points,
        boxes=boxes,
        future=future,
        motion=batch.motion[0],
        past=past,
        status=EgoStatus(batch.status.velocity[0], batch.status.acceleration[0], batch.status.yaw_rate[0]),
        command=int(batch.command[0]),
    )


def train_small(out: str | Path, config: Config, size: int = 8) -> None:
    """Train in this process, which may be one of several, and go on where a run in ``out`` stopped."""
    from fusion3d.engine.checkpoint import list_checkpoints

    out = Path(out)
    with processes("cpu") as where:
        seed_all(config.seed)
        data = RandomData(config, size, 0 if config.temporal is None else config.temporal.keyframes - 1)
        model = build_model(config)
        give_anchors(model)
        trainer = Trainer(config, model, data, out, where)
        found = list_checkpoints(out)
        if found:
            trainer.resume(found[-1])
        with RunLog(out, trainer.position.step, active=where.first) as log:
            trainer.run(log)


def job(out: str | Path, train: dict[str, Any], **more: Any) -> list[str]:
    """The command that does ``train_small``."""
    return [sys.executable, __file__, str(out), json.dumps(train), json.dumps(more)]


if __name__ == "__main__":
    train_small(sys.argv[1], small_config(json.loads(sys.argv[2]), **json.loads(sys.argv[3])))
