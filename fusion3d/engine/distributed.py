"""Several processes under torchrun, or one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that work together."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    talk: Any = None  # a group of them all, on CPUs, for what is said beside the tensors; None for one process

    @property
    def first(self) -> bool:
        """Does this process write the files and talk?"""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """The plain values of all processes, by rank; each must ask."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value, self.talk)
        return values

    def collect(self, value: T) -> list[T]:
        """The values of all processes, by rank, for the first; nothing for the others."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.first else None
        torch.distributed.gather_object(value, values, dst=0, group=self.talk)
        return values or []


@contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """Join the processes that torchrun started (NCCL on GPUs, gloo on CPUs), or be the only one.

    Args:
        device: torch device name; None takes a GPU where there is one, else the CPU. "cuda" is the GPU of this
            process: the one numbered LOCAL_RANK.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda":
        if chosen.index is None:
            chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    talk = None
    if world > 1:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        _join(backend)
        talk = torch.distributed.new_group(backend="gloo")
    try:
        yield Processes(rank, world, chosen, talk)
    finally:
        if world > 1:
            torch.distributed.destroy_process_group()


def _join(backend: str) -> None:
    """Find the other processes.

    After a restart, torchrun (2.13) gives its processes the store of those that died, in which they would find the
    addresses of these. On one node the number of restarts tells them apart. On several nodes it is not the same
    everywhere; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun start with a new store.
    """
    store, rank, world = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1":
        store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=timedelta(minutes=10)
    )
