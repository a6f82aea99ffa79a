"""Runs of the same comparison that were made elsewhere, or earlier: read from the pages that they ended in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusion3d.analysis.comparison.summary import Metrics
from fusion3d.errors import DataError
from fusion3d.files import read_json_as

SAME = ("settings", "budget", "data")  # of a page: what makes its numbers comparable with others


@dataclass(frozen=True)
class Elsewhere:
    """Metrics by row and seed, and what they were made on."""

    rows: Mapping[str, Mapping[int, Metrics]] = field(default_factory=dict)
    environments: tuple[Mapping[str, Any], ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that a row has."""
        return tuple(sorted({seed for runs in self.rows.values() for seed in runs}))


def read_pages(paths: Sequence[Path], same: Mapping[str, Any]) -> Elsewhere:
    """What pages of ``compare_fusion`` hold together.

    Args:
        paths: their JSON files; of a run that several hold, the first one's is taken.
        same: of each key in ``SAME``, what the comparison at hand has.

    Raises:
        DataError: a file is missing, is no such page, or is of another comparison.
    """
    rows: dict[str, dict[int, Metrics]] = {}
    environments: list[Mapping[str, Any]] = []
    for path in paths:
        page = read_json_as(path, _plain, "--with takes the .json file of a page that compare_fusion wrote")
        wrong = [key for key in SAME if page[key] != json.loads(json.dumps(same[key]))]
        if wrong:
            raise DataError(f"{path} is of another comparison: its {', '.join(wrong)} differ; compare the same way")
        for row, runs in page["rows"].items():
            for seed, metrics in runs.items():
                rows.setdefault(row, {}).setdefault(seed, metrics)
        environments += page["environments"]
    return Elsewhere(rows, tuple(environments))


def _plain(page: dict[str, Any]) -> dict[str, Any]:
    """The parts of a page that are read, with its runs as ``evaluate`` said them."""
    count = int(page["num_samples"])
    rows = {
        row: {
            int(seed): {"subsets": {name: _numbers(of) for name, of in subsets.items()}, "num_samples": count}
            for seed, subsets in there["seeds"].items()
        }
        for row, there in page["rows"].items()
    }
    return {**{key: page[key] for key in SAME}, "environments": list(page["environments"]), "rows": rows}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in metrics.items()}
