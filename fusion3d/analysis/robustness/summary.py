"""Relative accuracy: what is left of a number under a condition, and its means, with their intervals.

As MultiCorrupt (Beemelmanns et al., 2024) has it: RA of a corruption is its metric over the clean one, averaged over
the severities; mRA the mean of that over corruptions. Intervals are of the same draws of scenes for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion3d.analysis.robustness.conditions import CLEAN, MULTICORRUPT, Family
from fusion3d.metrics.bootstrap import interval
from fusion3d.types import SENSORS

METRICS = ("NDS", "mAP")
TEN = "MultiCorrupt's ten"
MOST = 10  # conditions that are listed as the worst


@dataclass(frozen=True)
class Share:
    """What is left of a number."""

    value: float  # over the clean one; NaN where that is 0
    interval: tuple[float, float] | None  # 95 %; None where the scenes are too few


@dataclass(frozen=True)
class Row:
    """What a family does."""

    family: Family
    values: dict[str, tuple[float, ...]]  # by metric, for each amount
    relative: dict[str, Share]  # by metric: the mean over amounts


@dataclass(frozen=True)
class Worst:
    """What one condition does."""

    name: str
    values: dict[str, float]  # by metric
    relative: dict[str, Share]


@dataclass(frozen=True)
class Summary:
    """What the suite found."""

    whole: str  # the subset that is corrupted
    samples: int
    clean: dict[str, dict[str, float]]  # by subset and metric
    kept: dict[str, dict[str, Share]]  # the same over the whole's
    rows: tuple[Row, ...]  # worst first by NDS: families with severities
    curves: tuple[Row, ...]
    worst: tuple[Worst, ...]  # of all conditions, worst first by NDS
    means: dict[str, dict[str, Share]]  # mRA, by group and metric
    counts: dict[str, int]  # of families in each group


def summarise(families: Sequence[Family], results: Mapping[str, Mapping[str, Any]], whole: str) -> Summary:
    """Put the results together.

    Args:
        families: those tried.
        results: of ``run_suite``.
        whole: the subset that was corrupted.
    """
    clean = results[CLEAN.name]

    def share(numbers: np.ndarray, metric: str) -> Share:
        return _share(numbers, _numbers(clean, whole, metric), clean["scenes"])

    def at(family: Family, amount: float, metric: str) -> np.ndarray:
        return _numbers(results[family.at(amount).name], whole, metric)

    def mean(family: Family, metric: str) -> np.ndarray:
        return np.mean([at(family, amount, metric) for amount in family.amounts], axis=0)

    def of_family(family: Family) -> Row:
        values = {m: tuple(float(at(family, amount, m)[0]) for amount in family.amounts) for m in METRICS}
        return Row(family, values, {m: share(mean(family, m), m) for m in METRICS})

    def of_condition(family: Family, amount: float) -> Worst:
        found = {m: at(family, amount, m) for m in METRICS}
        values = {m: float(numbers[0]) for m, numbers in found.items()}
        return Worst(family.told(amount), values, {m: share(numbers, m) for m, numbers in found.items()})

    rows = [of_family(family) for family in families]
    graded = sorted((row for row in rows if row.family.graded), key=lambda row: row.relative["NDS"].value)
    single = [of_condition(family, amount) for family in families for amount in family.amounts]
    groups = {name: members for name, members in _groups(graded).items() if members}
    means = {
        name: {m: share(np.mean([mean(row.family, m) for row in members], axis=0), m) for m in METRICS}
        for name, members in groups.items()
    }
    return Summary(
        whole=whole,
        samples=clean["samples"],
        clean={subset: {m: numbers[m] for m in METRICS} for subset, numbers in clean["numbers"].items()},
        kept={subset: {m: share(_numbers(clean, subset, m), m) for m in METRICS} for subset in clean["numbers"]},
        rows=tuple(graded),
        curves=tuple(row for row in rows if not row.family.graded),
        worst=tuple(sorted(single, key=lambda one: one.relative["NDS"].value)[:MOST]),
        means=means,
        counts={name: len(members) for name, members in groups.items()},
    )


def _groups(graded: Sequence[Row]) -> dict[str, list[Row]]:
    groups = {"all": [*graded]} | {
        sensor: [row for row in graded if row.family.sensors == (sensor,)] for sensor in SENSORS
    }
    ten = [row for row in graded if row.family.name in MULTICORRUPT]
    if len(ten) == len(MULTICORRUPT) and all(len(row.family.amounts) == 3 for row in ten):
        groups[TEN] = ten
    return groups


def _numbers(result: Mapping[str, Any], subset: str, metric: str) -> np.ndarray:
    """[1 + B] a number, and behind it the same in every draw."""
    return np.array([result["numbers"][subset][metric], *result["drawn"][subset][metric]], dtype=np.float64)


def _share(part: np.ndarray, whole: np.ndarray, num_scenes: int) -> Share:
    over = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return Share(float(over[0]), interval(over[1:], num_scenes))
