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


def paired(scores: Scores, of: Callable[[Metrics], float]) -> Estimate:
    """The mean over rows of a number of each run.

    Runs of one row are alike, so a row counts once, with the mean over its seeds: the interval is that over rows.
    """
    return estimate([sum(map(of, runs.values())) / len(runs) for runs in scores.values() if runs])


@dataclass(frozen=True)
class Gain:
    """What a number gains where sensors are added, over all rows."""

    metric: str
    more: str  # subset
    less: str
    gain: Estimate  # positive is better

    def __str__(self) -> str:
        verdict = "" if self.gain.distinguishable else ": not distinguishable"
        sign = "+" if self.gain.mean >= 0 else "-"
        half = "" if self.gain.half is None else f" ± {self.gain.half:.3f}"
        return f"{self.metric}, {self.more} against {self.less}: {sign}{abs(self.gain.mean):.3f}{half}{verdict}"


def gains(scores: Scores) -> list[Gain]:
    """All sensors against every smaller subset in NDS, and each subset with radar against the same without in mAVE.

    Args:
        scores: of the rows that fuse.
    """
    subsets = list(next(iter(next(iter(scores.values())).values()))["subsets"])
    most = max(subsets, key=lambda name: name.count("+"))
    found = [Gain("NDS", most, name, _gain(scores, "NDS", most, name, 1)) for name in subsets if name != most]
    for name in subsets:
        without = "+".join(part for part in name.split("+") if part != "radar")
        if without not in ("", name):
            found.append(Gain("mAVE [m/s less]", name, without, _gain(scores, "mAVE", name, without, -1)))
    return found


def _gain(scores: Scores, metric: str, more: str, less: str, sign: int) -> Estimate:
    def of(metrics: Metrics) -> float:
        return sign * (metrics["subsets"][more][metric] - metrics["subsets"][less][metric])

    return paired(scores, of)


def best(found: Sequence[Gain], size: int) -> Gain:
    """The gain over the best subset of ``size`` sensors: of the highest mean, and so the smallest gain."""
    rivals = [gain for gain in found if gain.metric == "NDS" and gain.less.count("+") == size - 1]
    return min(rivals, key=lambda gain: gain.gain.mean)
