"""Relative accuracy: what is left of a number under a condition, and its means.

As MultiCorrupt (Beemelmanns et al., 2024) has it: RA of a corruption is its metric over the clean one, averaged over
the severities; mRA the mean of that over corruptions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion3d.analysis.robustness.conditions import CLEAN, MULTICORRUPT, Family
from fusion3d.types import SENSORS

METRICS = ("NDS", "mAP")


@dataclass(frozen=True)
class Row:
    """What a family does."""

    family: Family
    values: dict[str, tuple[float, ...]]  # by metric, for each amount
    relative: dict[str, float]  # by metric: the mean over amounts, over the clean one; NaN where that is 0


@dataclass(frozen=True)
class Summary:
    """What the suite found."""

    whole: str  # the subset that is corrupted
    samples: int
    clean: dict[str, dict[str, float]]  # by subset and metric
    rows: tuple[Row, ...]  # worst first by NDS: families with severities
    curves: tuple[Row, ...]
    means: dict[str, dict[str, float]]  # mRA, by group and metric
    counts: dict[str, int]  # of families in each group


def summarise(families: Sequence[Family], results: Mapping[str, Mapping[str, Any]], whole: str) -> Summary:
    """Put the results together.

    Args:
        families: those tried.
        results: of ``run_suite``.
        whole: the subset that was corrupted.
    """
    clean = {
        subset: {metric: numbers[metric] for metric in METRICS}
        for subset, numbers in results[CLEAN.name]["numbers"].items()
    }
    rows = []
    for family in families:
        found = [results[family.at(amount).name]["numbers"][whole] for amount in family.amounts]
        values = {metric: tuple(numbers[metric] for numbers in found) for metric in METRICS}
        relative = {metric: _over(sum(of) / len(of), clean[whole][metric]) for metric, of in values.items()}
        rows.append(Row(family, values, relative))
    graded = sorted((row for row in rows if row.family.graded), key=lambda row: row.relative["NDS"])
    groups = {"all": graded} | {
        sensor: [row for row in graded if row.family.sensors == (sensor,)] for sensor in SENSORS
    }
    ten = [row for row in graded if row.family.name in MULTICORRUPT]
    if len(ten) == len(MULTICORRUPT) and all(len(row.family.amounts) == 3 for row in ten):
        groups["MultiCorrupt's ten"] = ten
    groups = {name: members for name, members in groups.items() if members}
    return Summary(
        whole=whole,
        samples=results[CLEAN.name]["samples"],
        clean=clean,
        rows=tuple(graded),
        curves=tuple(row for row in rows if not row.family.graded),
        means={
            name: {metric: sum(row.relative[metric] for row in members) / len(members) for metric in METRICS}
            for name, members in groups.items()
        },
        counts={name: len(members) for name, members in groups.items()},
    )


def _over(value: float, clean: float) -> float:
    return value / clean if clean > 0 else math.nan
