"""A split dealt out to several processes, and what they found of it put together: as if one had done it all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from functools import reduce
from itertools import chain, groupby
from operator import iadd, itemgetter
from typing import Any, TypeVar

from fusion3d.config import Config
from fusion3d.engine.distributed import Processes, processes
from fusion3d.engine.inference import SplitOutput, run_split
from fusion3d.engine.split import check_corruptions, open_split, streams
from fusion3d.engine.views import views_of
from fusion3d.metrics.map import MapTruth, map_overlap
from fusion3d.metrics.occupancy import occupancy_overlap

T = TypeVar("T")


def run_shared(
    model: Any,
    config: Config,
    subsets: dict[str, tuple[str, ...]],
    device: str | None = None,
    keep_forecasts: bool = False,
    with_occupancy: bool = False,
) -> SplitOutput | None:
    """Predict ``config.data.split`` under every subset, by all processes that torchrun started, or the only one.

    Args:
        model: in evaluation mode.
        config: data, batch size, views and whether it is a stream.
        subsets: sensors by subset name.
        device: torch device name; None takes the GPU where there is one.
        keep_forecasts: as of ``run_split``.
        with_occupancy: score what a model with an occupancy head says of it, which takes time.

    Returns:
        What one process would have found; None by a process that is not the first.

    Raises:
        ConfigError: ``data.corruptions`` are of sensors that no subset has.
    """
    with one_voice(device) as where:
        return run_among(where, model, config, subsets, keep_forecasts, with_occupancy)


@contextmanager
def one_voice(device: str | None = None) -> Iterator[Processes]:
    """``processes``, of which only the first prints."""
    with processes(device) as where, nullcontext() if where.first else redirect_stdout(None):
        yield where


def run_among(
    where: Processes,
    model: Any,
    config: Config,
    subsets: dict[str, tuple[str, ...]],
    keep_forecasts: bool = False,
    with_occupancy: bool = False,
) -> SplitOutput | None:
    """``run_shared`` for processes that have found each other: they do so once."""
    seen = set().union(*subsets.values())
    check_corruptions(config, seen, f"the choice of sensors ({', '.join(subsets)}; of the model and data.sensors)")
    dataset = open_split(config, config.data.split, training=False, with_occupancy=with_occupancy)
    stream, batch_size, workers = streams(config), config.train.batch_size, config.data.workers
    share = Share(dataset, stretches(dataset, batch_size, stream), where)
    views = views_of(config)
    grids = (config.grid, config.map_grid) if with_occupancy else None
    part = run_split(model, share, subsets, batch_size, workers, where.device, views, stream, keep_forecasts, grids)
    parts = where.collect(part)
    return join_outputs(parts, dataset.tokens) if where.first else None


def stretches(dataset: Any, batch_size: int, stream: bool) -> list[list[int]]:
    """The indices of a data set in what must stay together: batches, that each sample is in its usual company; or, for
    a model that remembers, scenes.
    """
    if not stream:
        indices = list(range(len(dataset)))
        return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return [[index for index, _ in scene] for _, scene in groupby(enumerate(dataset.scenes), itemgetter(1))]


class Share:
    """The part of a data set that a process has.

    Args:
        dataset: ``dataset[epoch, index]``.
        of: ``stretches``, dealt out one by one.
        where: this process.
    """

    def __init__(self, dataset: Any, of: Sequence[Sequence[int]], where: Processes) -> None:
        self.dataset = dataset
        self.indices = list(chain.from_iterable(of[where.rank :: where.world]))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.dataset[key[0], self.indices[key[1]]]


def join_outputs(parts: Sequence[SplitOutput], tokens: Sequence[str]) -> SplitOutput:
    """The output of a whole split from those of all shares; times are the longest.

    Args:
        parts: by rank.
        tokens: of the split, in its order.
    """

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
            forecasts=merge("forecasts", every),
            agents=merge("agents", every),
            modes=merge("modes", every),
            map=total(map_overlap(), (of_subset.map for of_subset in every)),
            occupancy=total(occupancy_overlap(), (of_subset.occupancy for of_subset in every)),
            seconds=max(of_subset.seconds for of_subset in every),
        )
    return replace(
        parts[0],
        subsets=subsets,
        poses=merge("poses", parts),
        map_truth=total(MapTruth(), (part.map_truth for part in parts)),
        still=total(occupancy_overlap(), (part.still for part in parts)),
        reading_seconds=max(part.reading_seconds for part in parts),
        sensing_seconds=max(part.sensing_seconds for part in parts),
    )


def _in_order(dicts: Sequence[Mapping[str, T]], keys: Sequence[str]) -> dict[str, T]:
    found = {key: value for one in dicts for key, value in one.items()}
    return {key: found[key] for key in keys if key in found}
