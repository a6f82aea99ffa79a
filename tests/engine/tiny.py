"""A data set and a model with the real faces that train in milliseconds, for tests of the engine alone."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusion3d.config import Config, DataConfig, TrainConfig
from fusion3d.engine.distributed import processes
from fusion3d.engine.log import RunLog
from fusion3d.engine.seed import seed_all
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
            radar=torch.randn(3, 14, generator=draw).abs().clamp(max=1).floor(),
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
        self.radar = nn.Linear(14, 8)
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


def train_tiny(
    out: Path,
    seed: int | None,
    options: Mapping[str, Any],
    size: int,
    data: type[TinyData],
    settings: Mapping[str, Any],
) -> None:
    """Train in this process, which may be one of several; the weights go to ``rank<number>.pt``.

    Args:
        out: folder.
        seed: of the weights; None: that of the process's rank.
        options: of ``TinyModel``.
        size: of the data set.
        data: its class.
        settings: of ``tiny_config``.
    """
    seed_all(int(os.environ["RANK"]) if seed is None else seed)
    model = TinyModel(**options)
    with processes("cpu") as where:
        trainer = Trainer(tiny_config(**settings), model, data(size), out, where)
        with RunLog(out, active=where.first) as log:
            trainer.run(log)
        torch.save(dict(trainer.model.named_parameters()), out / f"rank{where.rank}.pt")


def rank_settings(world: int) -> list[dict[str, str]]:
    """What processes that are to find each other have in their environment, as torchrun says it, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def fork(told: Path, settings: Mapping[str, str], function: Callable[..., object], *arguments: Any) -> BaseProcess:
    """Start a function in a process of its own session, forked from one that has imported torch and the engine.

    Args:
        told: file that gets what it prints.
        settings: of its environment, beside those of this process.
        function: of a module; its arguments follow.
    """
    forkserver.set_forkserver_preload(["fusion3d.engine.train", "fusion3d.build", "torch._dynamo"])
    before = Path.cwd()
    os.chdir(Path(__file__).parents[2])  # the preloaded modules are looked for here
    try:
        forkserver.ensure_running()
    finally:
        os.chdir(before)
    process = multiprocessing.get_context("forkserver").Process(
        target=_enter, args=(told, {**os.environ, **settings}, function, *arguments)
    )
    process.start()
    return process


def _enter(told: Path, environment: Mapping[str, str], function: Callable[..., object], *arguments: Any) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    with open(told, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    function(*arguments)


def fork_ranks(function: Callable[..., object], *arguments: Any, world: int = 2) -> list[tuple[int | None, str]]:
    """``run_ranks`` of a function: much less work, for nothing is imported anew."""
    with tempfile.TemporaryDirectory() as folder:
        told = [Path(folder, str(rank)) for rank in range(world)]
        ranks = [fork(told[i], settings, function, *arguments) for i, settings in enumerate(rank_settings(world))]
        try:
            for process in ranks:
                process.join(timeout=240)
        finally:
            for process in ranks:
                process.kill()
        return [(process.exitcode, path.read_text()) for process, path in zip(ranks, told, strict=True)]


def run_ranks(command: list[str], world: int = 2) -> list[tuple[int, str]]:
    """Run a command as ``world`` processes that find each other, as torchrun does: exit status and output of each."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    workers = [
        subprocess.Popen(
            command,
            env=os.environ | settings | {"PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for settings in rank_settings(world)
    ]
    try:
        told = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, text) for worker, text in zip(workers, told, strict=True)]


def with_train(config: Config, **changes: Any) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
