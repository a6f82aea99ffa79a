"""Batches in a reproducible order: any epoch can be entered at any batch, with any number of workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from fusion3d.data.collate import collate
from fusion3d.data.dataset import NuScenesDataset


class BatchOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one process of ``world``.

    Shuffled, the order is a permutation that depends on (seed, epoch) alone, and every process gets the same
    number of
    samples: the first ones are repeated to make up for what is missing. Not shuffled, each sample comes once.
    """

    def __init__(self, size: int, batch_size: int, shuffle: bool, seed: int, rank: int, world: int) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world}: expected at least 1, 0 <= rank < world")
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self.rank, self.world, self.epoch, self.start_batch = rank, world, 0, 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """What the next pass yields: an epoch, without its first ``start_batch`` batches."""
        self.epoch, self.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.arange(self.size)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
            order = np.resize(order, -(-self.size // self.world) * self.world)
        mine = order[self.rank :: self.world].tolist()
        for start in range(self.start_batch * self.batch_size, len(mine), self.batch_size):
            yield [(self.epoch, index) for index in mine[start : start + self.batch_size]]

    def __len__(self) -> int:
        """Batches in the pass that comes next."""
        share = -(-self.size // self.world) if self.shuffle else len(range(self.rank, self.size, self.world))
        return max(0, -(-share // self.batch_size) - self.start_batch)


def make_loader(
    dataset: NuScenesDataset,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    epoch: int = 0,
    start_batch: int = 0,
) -> DataLoader:
    """A loader of ``Batch``; ``loader.batch_sampler.set_epoch(epoch, start_batch)`` chooses what the next
    pass gives.

    The batches depend on (seed, epoch, batch number, rank, world) alone. Workers stay alive between passes
    and use one thread each.
    """
    order = BatchOrder(len(dataset), batch_size, shuffle, seed, rank, world)
    order.set_epoch(epoch, start_batch)
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        worker_init_fn=_use_one_thread,
        generator=torch.Generator(),  # so that starting the workers draws nothing from the global generator
    )


def _use_one_thread(worker: int) -> None:
    torch.set_num_threads(1)
