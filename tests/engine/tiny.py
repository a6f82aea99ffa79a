"""A data set and a model with the real faces that train in milliseconds, for tests of the engine alone."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion3d.config import Config, DataConfig, TrainConfig
from fusion3d.engine.distributed import processes
from fusion3d.engine.log import RunLog
from fusion3d.engine.train import Trainer
from fusion3d.types import Batch, BEVGrid, Sample, Trajectory


def tiny_config(**train: Any) -> Config:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 2, "learning_rate": 0.01, "drop_sensor": 0.3}
    settings |= {"checkpoint_every": 2, "log_every": 1}
    return Config(data=DataConfig(workers=0), train=TrainConfig(**(settings | train)), grid=BEVGrid())


class TinyData:
    """Samples with LiDAR and radar points that depend on (epoch, index) alone; the target is their mean."""

    def __init__(self, size: int = 7, broken: int | None = None) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        draw = torch.Generator().manual_seed(1000 * epoch + index)
        points = torch.randn(5, 5, generator=draw)
        if index == self.broken:
            points[2, 1] = torch.nan
        target = points[:, :2].mean(0, keepdim=True)
        return Sample(
            token=f"sample-{index}",
            scene="scene-0001",
            timestamp=index,
            global_from_ego=torch.eye(4, dtype=torch.float64),
            aug_from_ego=torch.eye(4),
            lidar=points,
            radar=torch.randn(3, 11, generator=draw).abs().clamp(max=1).floor(),
            future=Trajectory(target, torch.zeros(1), torch.ones(1, dtype=torch.bool)),
        )


class BalancedData(TinyData):
    """Samples of three classes, the last of them rare; a sample that comes again has other points."""

    def classes(self) -> np.ndarray:
        return np.arange(self.size)[:, None] % [1, 2, 5] == 0

    def __getitem__(self, key: tuple[int, ...]) -> Sample:
        epoch, index, time = key
        return super().__getitem__((epoch + 100 * time, index))


class TinyModel(nn.Module):
    """Two branches of which either may be absent, batch norm (buffers) and dropout (randomness)."""

    def __init__(self, norm: bool = True, dropout: float = 0.1) -> None:
        super().__init__()
        self.lidar = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.ReLU())
        self.radar = nn.Linear(11, 8)
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(8, 2))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        features = torch.zeros(len(batch), 8, device=batch.command.device)
        for cloud, branch in ((batch.lidar, self.lidar), (batch.radar, self.radar)):
            if cloud is not None and len(cloud.points) > 1:
                features = features.index_add(0, cloud.batch_index, branch(cloud.points).float())
        return {"planning": self.out(features)}

    def losses(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        assert batch.future is not None
        error = outputs["planning"] - batch.future.position[:, 0]
        return {"plan": error.pow(2).mean(), "size": 0.01 * outputs["planning"].pow(2).mean()}


def train_tiny(out: str | Path, model: TinyModel, size: int, data: type[TinyData] = TinyData, **settings: Any) -> None:
    """Train in this process, which may be one of several; the weights go to ``rank<number>.pt``."""
    with processes("cpu") as where:
        trainer = Trainer(tiny_config(**settings), model, data(size), Path(out), where)
        with RunLog(Path(out), active=where.first) as log:
            trainer.run(log)
        torch.save(dict(trainer.model.named_parameters()), Path(out, f"rank{where.rank}.pt"))


def run_ranks(command: list[str], world: int = 2) -> list[tuple[int, str]]:
    """Run a command as ``world`` processes that find each other, as torchrun does: exit status and output of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            command,
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        told = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, text) for worker, text in zip(workers, told, strict=True)]


def python(code: str) -> list[str]:
    """The command that runs a piece of code."""
    return [sys.executable, "-c", code]


def with_train(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
