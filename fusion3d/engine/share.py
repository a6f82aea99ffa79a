"""A split dealt out to several processes, and what they found of it put together: as if one had done it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import zip_longest
from operator import iadd
from typing import Any, TypeVar

from fusion3d.engine.distributed import Processes
from fusion3d.engine.inference import SplitOutput
from fusion3d.metrics.map import MapOverlap, MapTruth

T = TypeVar("T")


class Share:
    """The part of a data set that a process has: whole batches, so that each sample is in its usual company.

    Args:
        dataset: ``dataset[epoch, index]``.
        batch_size: of the batches, dealt out one by one.
        where: this process.
    """

    def __init__(self, dataset: Any, batch_size: int, where: Processes) -> None:
        self.dataset = dataset
        starts = range(where.rank * batch_size, len(dataset), where.world * batch_size)
        self.indices = [index for start in starts for index in range(start, min(start + batch_size, len(dataset)))]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.dataset[key[0], self.indices[key[1]]]


def join_outputs(parts: Sequence[SplitOutput], batch_size: int) -> SplitOutput:
    """The output of a whole split, in its order, from those of all shares, by rank; times are the longest."""
    shares = [list(part.poses) for part in parts]
    batches = [[share[i : i + batch_size] for i in range(0, len(share), batch_size)] for share in shares]
    tokens = [token for deal in zip_longest(*batches, fillvalue=[]) for batch in deal for token in batch]

    def merge(name: str, of: Sequence[Any]) -> dict[str, Any]:
        return _in_order([getattr(part, name) for part in of], tokens)

    def total(start: Any, of: Iterable[Any]) -> Any:
        return reduce(iadd, of, start)

    subsets = {}
    for name, first in parts[0].subsets.items():
        every = [part.subsets[name] for part in parts]
        subsets[name] = replace(
            first,
            used=set().union(*(of_subset.used for of_subset in every)),
            boxes=merge("boxes", every),
            plans=merge("plans", every),
            map=total(MapOverlap(), (of_subset.map for of_subset in every)),
            seconds=max(of_subset.seconds for of_subset in every),
        )
    return replace(
        parts[0],
        subsets=subsets,
        poses=merge("poses", parts),
        futures=merge("futures", parts),
        pasts=merge("pasts", parts),
        map_truth=total(MapTruth(), (part.map_truth for part in parts)),
        reading_seconds=max(part.reading_seconds for part in parts),
    )


def _in_order(dicts: Sequence[Mapping[str, T]], keys: Sequence[str]) -> dict[str, T]:
    found = {key: value for one in dicts for key, value in one.items()}
    return {key: found[key] for key in keys if key in found}
