"""Batches in a reproducible order: any epoch can be entered at any batch, with any number of workers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from fusion3d.data.collate import collate
from fusion3d.data.dataset import NuScenesDataset


class BatchOrder(Sampler[list[tuple[int, ...]]]):
    """Batches of (epoch, index) for one process of ``world``; where samples come again, of (epoch, index, time).

    Shuffled, the order is a permutation that depends on (seed, epoch) alone, and every process gets the same number of
    samples: the first ones are repeated to make up for what is missing. Not shuffled, each sample comes once.

    Class-balanced, an epoch is drawn with replacement so that every class has an equal share: as many samples that
    hold it (Zhu et al., "Class-balanced Grouping and Sampling for Point Cloud 3D Object Detection", 2019). It is as
    long as the samples' classes are many, some 4.4 times the data on nuScenes; a sample without any of the classes is
    never drawn. Unlike there it is drawn anew in each epoch, from (seed, epoch) alone: the same by all processes. A
    sample that comes again is augmented anew: its key says for which time (0, 1, ...) it comes.

    Args:
        size: samples of the data set.
        batch_size: samples per batch and process.
        shuffle: a random order.
        seed: of the random orders.
        rank: this process.
        world: processes that share an epoch.
        classes: [size, N] bool, which classes a sample holds, for a class-balanced order; it must be shuffled.

    Raises:
        ValueError: numbers that make no sense, or no sample with any class.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int,
        world: int,
        classes: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world}: expected at least 1, 0 <= rank < world")
        self.size, self.batch_size, self.shuffle, self.seed = size, batch_size, shuffle, seed
        self.rank, self.world, self.epoch, self.start_batch = rank, world, 0, 0
        self.groups: list[np.ndarray] | None = None
        self.length = size
        if classes is not None:
            if not shuffle or classes.shape[:1] != (size,) or not classes.any():
                raise ValueError(
                    f"a class-balanced order of {size} samples: expected shuffle, and classes of each of them"
                )
            self.groups = [np.flatnonzero(column) for column in classes.T if column.any()]
            self.length = int(classes.sum())

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """What the next pass yields: an epoch, without its first ``start_batch`` batches."""
        self.epoch, self.start_batch = epoch, start_batch

    def order(self) -> np.ndarray:
        """The indices of the epoch, of all processes together."""
        if not self.shuffle:
            return np.arange(self.size)
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.groups is None:
            order = rng.permutation(self.size)
        else:
            # What is left of an even division goes to classes at random.
            counts = np.full(len(self.groups), self.length // len(self.groups))
            counts[rng.permutation(len(self.groups))[: self.length % len(self.groups)]] += 1
            drawn = [rng.choice(group, count) for group, count in zip(self.groups, counts, strict=True)]
            order = rng.permutation(np.concatenate(drawn))
        return np.resize(order, -(-self.length // self.world) * self.world)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        order = self.order()
        columns = [order] if self.groups is None else [order, _times(order)]
        keys = np.stack([np.full(len(order), self.epoch), *columns], axis=1)[self.rank :: self.world].tolist()
        for start in range(self.start_batch * self.batch_size, len(keys), self.batch_size):
            yield [tuple(key) for key in keys[start : start + self.batch_size]]

    def __len__(self) -> int:
        """Batches in the pass that comes next."""
        share = -(-self.length // self.world) if self.shuffle else len(range(self.rank, self.size, self.world))
        return max(0, -(-share // self.batch_size) - self.start_batch)


def _times(order: np.ndarray) -> np.ndarray:
    """For each entry, how often the same number comes before it."""
    by_value = np.argsort(order, kind="stable")
    first = np.searchsorted(order[by_value], order[by_value])
    times = np.empty_like(order)
    times[by_value] = np.arange(len(order)) - first
    return times


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
    classes: np.ndarray | None = None,
) -> DataLoader:
    """A loader of ``Batch``; ``loader.batch_sampler.set_epoch(epoch, start_batch)`` chooses what the next
    pass gives.

    The batches depend on (seed, epoch, batch number, rank, world) alone. Workers stay alive between passes
    and use one thread each. With ``classes``, as ``NuScenesDataset.classes`` gives them, the order is class-balanced.
    """
    order = BatchOrder(len(dataset), batch_size, shuffle, seed, rank, world, classes)
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
