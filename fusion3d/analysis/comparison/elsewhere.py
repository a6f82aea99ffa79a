"""Runs of the same comparison that were made elsewhere, or earlier: read from the pages that they ended in."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusion3d.analysis.comparison.summary import KEPT, Metrics, seeds_of
from fusion3d.engine.environment import headline
from fusion3d.errors import DataError
from fusion3d.files import read_json_as

SAME = ("config", "budget", "data")  # of a page: what makes its numbers comparable with others


@dataclass(frozen=True)
class Elsewhere:
    """Metrics by row and seed, and what they were made on."""

    rows: Mapping[str, Mapping[int, Metrics]] = field(default_factory=dict)
    environments: tuple[Mapping[str, Any], ...] = ()


def read_pages(paths: Sequence[Path], same: Mapping[str, Any], seeds: Collection[int]) -> Elsewhere:
    """What pages of ``compare_fusion`` hold together.

    Args:
        paths: their JSON files.
        same: of each key in ``SAME``, what the comparison at hand has.
        seeds: that are run here.

    Raises:
        DataError: a file is missing, is no such page, is of another comparison, or has a seed that another has too: the
            rows of a seed begin with the same weights, and are compared with each other.
    """
    rows: dict[str, dict[int, Metrics]] = {}
    environments: list[Mapping[str, Any]] = []
    taken = dict.fromkeys(seeds, "--seeds")
    for path in paths:
        page = read_json_as(path, _content, "--with takes the .json file of a page that compare_fusion wrote")
        wrong = [key for key in SAME if page[key] != same[key]]
        if wrong:
            raise DataError(f"{path} is of another comparison: its {', '.join(wrong)} differ; compare the same way")
        for seed in seeds_of(page["rows"]):
            if seed in taken:
                raise DataError(f"{path} has seed {seed}, and so has {taken[seed]}; each seed is of one place")
            taken[seed] = str(path)
        for row, runs in page["rows"].items():
            rows.setdefault(row, {}).update(runs)
        environments += page["environments"]
    return Elsewhere(rows, tuple(environments))


def _content(page: dict[str, Any]) -> dict[str, Any]:
    """The parts of a page that are read, with its runs as ``evaluate`` said them."""
    count = int(page["num_samples"])
    rows = {
        row: {
            int(seed): {"subsets": {name: _numbers(of) for name, of in subsets.items()}, "num_samples": count}
            for seed, subsets in there["seeds"].items()
            if max(subsets)  # one at least
        }
        for row, there in page["rows"].items()
    }
    for about in page["environments"]:
        headline(about)
    return {**{key: page[key] for key in SAME}, "environments": page["environments"], "rows": rows}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if metrics[name] is None else float(metrics[name]) for name in KEPT}
