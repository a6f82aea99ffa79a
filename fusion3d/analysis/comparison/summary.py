"""The runs' numbers as means with intervals, and what each sensor adds.

An interval is Student's t for 95 %. It is about repeating the runs on these same samples: other scenes may say
something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Metrics = Mapping[str, Any]  # what ``evaluate`` gives
Scores = Mapping[str, Mapping[int, Metrics]]  # by row and seed
KEPT = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")  # of a subset, on a page
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and half of its interval; None where one value is all."""

    mean: float
    half: float | None
    count: int

    @property
    def distinguishable(self) -> bool:
        """Is zero outside of the interval?"""
        return self.half is not None and abs(self.mean) > self.half

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.half is None else f" ± {self.half:.3f}")


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values, with its t-interval.

    Raises:
        ValueError: no value.
    """
    from scipy.stats import t

    if not values:
        raise ValueError("an estimate needs at least one value, found none")
    count, mean = len(values), sum(values) / len(values)
    if count < 2:
        return Estimate(mean, None, count)
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, float(t.ppf((1 + LEVEL) / 2, count - 1)) * math.sqrt(variance / count), count)


def any_of(scores: Scores) -> Metrics:
    """One of the runs: what all have in common can be read off it."""
    return next(iter(next(iter(scores.values())).values()))


def seeds_of(rows: Mapping[str, Mapping[int, Any]]) -> list[int]:
    """Every seed that a row has, in order."""
    return sorted({seed for runs in rows.values() for seed in runs})


def whole(metrics: Metrics) -> str:
    """The name of the subset with all sensors."""
    return max(metrics["subsets"], key=lambda name: name.count("+"))


def nds(metrics: Metrics, subset: str | None = None) -> float:
    """Of a subset, or with all sensors."""
    return metrics["subsets"][subset or whole(metrics)]["NDS"]


def mean_nds(metrics: Metrics) -> float:
    """Over all subsets."""
    scores = [row["NDS"] for row in metrics["subsets"].values()]
    return sum(scores) / len(scores)


def difference(ours: Mapping[int, Metrics], theirs: Mapping[int, Metrics], of: Callable[[Metrics], float]) -> Estimate:
    """Ours less theirs, paired by the seeds that both have.

    Raises:
        ValueError: they share none.
    """
    return estimate([of(ours[seed]) - of(theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())])


@dataclass(frozen=True)
class Gain:
    """What a number gains where sensors are added, in runs that are paired with themselves.

    Runs of one row are alike, and so may those of one seed be. So the mean has two intervals: with every row counted
    once, and with every seed counted once, over the rows that have them all. Only what both of them part from zero is
    called distinguishable. A mean over rows is not of every row: ``above`` of them are above zero.
    """

    metric: str
    more: str  # subset
    less: str  # subset, or what else it is compared with
    rows: Estimate  # positive is better
    seeds: Estimate
    above: int  # rows

    @property
    def mean(self) -> float:
        """Over rows."""
        return self.rows.mean

    @property
    def distinguishable(self) -> bool:
        """Is zero outside of both intervals?"""
        return self.rows.distinguishable and self.seeds.distinguishable

    def __str__(self) -> str:
        means = [f"{of.mean:+.3f} ± {'?' if of.half is None else f'{of.half:.3f}'}" for of in (self.rows, self.seeds)]
        verdict = "" if self.distinguishable else ": not distinguishable"
        return (
            f"{self.metric}, {self.more} against {self.less}: {means[0]} over rows ({self.above} of {self.rows.count} "
            f"above 0), {means[1]} over seeds{verdict}"
        )


def gain(numbers: Mapping[str, Mapping[int, float]], metric: str, more: str, less: str) -> Gain:
    """A gain from a number of each run.

    Args:
        numbers: positive is better; by row, each with a run at least, and seed.
        metric: its name.
        more: what is compared.
        less: with what.
    """
    seeds = seeds_of(numbers)
    alike = [runs for runs in numbers.values() if len(runs) == len(seeds)] or numbers.values()
    by_seed = [[runs[seed] for runs in alike if seed in runs] for seed in seeds]
    means = [[sum(group) / len(group) for group in groups] for groups in (map(_values, numbers.values()), by_seed)]
    return Gain(metric, more, less, *map(estimate, means), above=sum(mean > 0 for mean in means[0]))


def _values(runs: Mapping[int, float]) -> list[float]:
    return list(runs.values())


def gains(scores: Scores) -> list[Gain]:
    """All sensors against every smaller subset in NDS, and each subset with radar against the same without in mAVE.

    Args:
        scores: of the rows that fuse.
    """
    first = any_of(scores)
    subsets, most = list(first["subsets"]), whole(first)
    found = [_between(scores, "NDS", most, name, 1) for name in subsets if name != most]
    for name in subsets:
        without = "+".join(part for part in name.split("+") if part != "radar")
        if without not in ("", name):
            found.append(_between(scores, "mAVE", name, without, -1))
    return found


def _between(scores: Scores, metric: str, more: str, less: str, sign: int) -> Gain:
    def of(metrics: Metrics) -> float:
        return sign * (metrics["subsets"][more][metric] - metrics["subsets"][less][metric])

    numbers = {row: {seed: of(metrics) for seed, metrics in runs.items()} for row, runs in scores.items()}
    return gain(numbers, metric if sign > 0 else f"{metric} (lower by)", more, less)


def above(scores: Scores, sensor: str, alone: Mapping[int, Metrics]) -> Gain | None:
    """What the rows gain over the model of one sensor, seed by seed; None where they share no seed.

    Args:
        scores: of the rows that fuse.
        sensor: its name.
        alone: by seed, what its own model reaches.
    """
    numbers = {
        row: {seed: nds(metrics) - nds(alone[seed]) for seed, metrics in runs.items() if seed in alone}
        for row, runs in scores.items()
    }
    numbers = {row: runs for row, runs in numbers.items() if runs}
    return gain(numbers, "NDS", whole(any_of(scores)), f"the model of {sensor} alone") if numbers else None


def best(found: Sequence[Gain], size: int) -> Gain:
    """The gain over the best subset of ``size`` sensors: of the highest mean, and so the smallest gain."""
    rivals = [one for one in found if one.metric == "NDS" and one.less.count("+") == size - 1]
    return min(rivals, key=lambda one: one.mean)
