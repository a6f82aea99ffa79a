"""Several processes under torchrun, or one: who am I, and which samples are mine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch.utils.data import Sampler

from fusion3d.engine.seed import generator


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that train together."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Does this process write the files and talk?"""
        return self.rank == 0


@contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """Join the processes that torchrun started (NCCL on GPUs, gloo on CPUs), or be the only one.

    Args:
        device: torch device name; None takes this process's GPU where there is one, else the CPU.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    chosen = torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(minutes=10))
    try:
        yield Processes(rank, world, chosen)
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The batches of a whole run for one process, as (epoch, index) pairs, from any position on.

    Each epoch is a permutation drawn from (seed, epoch), dealt out to the processes. Every sample is seen at
    least once; with several processes the first of the permutation are seen again, so that all have equally
    many batches. The last batch of an epoch may be smaller.
    """

    def __init__(
        self, num_samples: int, batch_size: int, epochs: int, rank: int = 0, world: int = 1, seed: int = 0
    ) -> None:
        self.num_samples, self.batch_size, self.epochs = num_samples, batch_size, epochs
        self.rank, self.world, self.seed = rank, world, seed
        self.start = (0, 0)  # the epoch and the number in it of the first batch given

    @property
    def _share(self) -> int:
        return math.ceil(self.num_samples / self.world)

    @property
    def per_epoch(self) -> int:
        """Batches of one epoch for this process."""
        return math.ceil(self._share / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_epoch, skip = self.start
        for epoch in range(first_epoch, self.epochs):
            order = torch.randperm(self.num_samples, generator=generator(self.seed, epoch)).tolist()
            mine = [order[i % len(order)] for i in range(self.rank, self._share * self.world, self.world)]
            for first in range(skip * self.batch_size, len(mine), self.batch_size):
                yield [(epoch, index) for index in mine[first : first + self.batch_size]]
            skip = 0

    def __len__(self) -> int:
        return (self.epochs - self.start[0]) * self.per_epoch - self.start[1]
