"""95 % intervals by drawing scenes again: how else the numbers might have come out with other scenes of the kind.

Samples of a scene are alike, so that whole scenes are drawn, as many as there are, with return. Two results are
compared on the same draws: what is hard for both is then no difference between them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from fusion3d.metrics.detection import numbers
from fusion3d.metrics.lanes import CLASSES, Stratum, make_lanes
from fusion3d.metrics.matching import Matches
from fusion3d.types import DETECTION_CLASSES

LEVEL = 0.95
RESAMPLES = 1000
FEWEST_RESAMPLES = 100  # with less, an interval may not even have its number in it
# With fewer scenes even a result that is better in every one of them may be so by chance: 2 in 2^5 is above 5 %.
FEWEST_SCENES = 6
_SAME = 1e-9  # less is rounding


@dataclass(frozen=True)
class Draws:
    """Which scenes are taken how often. Draws that are the same are counted once and weighed."""

    times: np.ndarray  # [U, N] int64
    number: np.ndarray  # [B] row in times


def draw_scenes(num_scenes: int, count: int = RESAMPLES, seed: int = 0) -> Draws:
    """Resamples of so many scenes.

    Args:
        num_scenes: N.
        count: of resamples, B.
        seed: the same draws for the same seed and number of scenes.
    """
    rng = np.random.default_rng([seed, num_scenes])
    share = np.full(num_scenes, 1 / max(num_scenes, 1))
    times, number = np.unique(rng.multinomial(num_scenes, share, size=count), axis=0, return_inverse=True)
    return Draws(times.astype(np.int64), number.reshape(-1))


def interval(values: np.ndarray, num_scenes: int) -> tuple[float, float] | None:
    """The 95 % interval of a number.

    The percentiles of the resamples, moved outwards as Student's t does for few scenes (Hesterberg 2014, "expanded
    percentile"): plain ones are too narrow by n / (n - 1) in variance, and by t to normal in tails.

    Args:
        values: [B] the number in each resample, NaN where it is not known.
        num_scenes: n, scenes that have something to say about it.

    Returns:
        None with a single scene, or where fewer than half of the resamples know the number.
    """
    known = values[~np.isnan(values)]
    if num_scenes < 2 or not len(known) or len(known) < 0.5 * len(values):
        return None
    tail = _tail(num_scenes)
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


@cache
def _tail(num_scenes: int) -> float:
    """The share of resamples that is left out on either side."""
    from scipy.stats import norm, t

    return float(norm.cdf(math.sqrt(num_scenes / (num_scenes - 1)) * t.ppf((1 - LEVEL) / 2, num_scenes - 1)))


def distinguishable(between: tuple[float, float] | None, num_scenes: int) -> bool:
    """Is a difference with this interval more than chance?"""
    if between is None or num_scenes < FEWEST_SCENES:
        return False
    return between[0] > _SAME or between[1] < -_SAME


def ratio(
    above: np.ndarray, below: np.ndarray, groups: Sequence[str]
) -> tuple[float, tuple[float, float] | None, bool]:
    """``sum(above) / sum(below)`` over samples, its 95 % interval, and whether it is more than chance.

    Both sums are of the same draws: what scenes do to both alike, such as an error and a baseline's, cancels.

    Args:
        above, below: [N] float64; ones below make a mean.
        groups: [N] scene of each sample.
    """
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    total = float(below.sum())
    if not total:
        return math.nan, None, False
    draws = draw_scenes(len(names))
    over, under = (draws.times @ np.bincount(number, of, len(names)) for of in (above, below))
    drawn = np.divide(over, under, out=np.full(len(over), np.nan), where=under != 0)
    between = interval(drawn[draws.number], len(names))
    return float(above.sum()) / total, between, distinguishable(between, len(names))


@dataclass(frozen=True)
class Sampled:
    """All numbers of a result, or of a stratum of it: as they are, and in every draw."""

    value: dict[str, float]  # names as of ``numbers``
    drawn: dict[str, np.ndarray]  # [U]
    scenes: dict[str, int]  # how many have truth for it
    num_truth: int
    num_classes: int  # that have truth

    def __sub__(self, other: Sampled) -> Sampled:
        """The differences, paired; both must be of the same truth and draws."""
        return mix([(1.0, self), (-1.0, other)])

    def __truediv__(self, other: Sampled) -> Sampled:
        """The ratios, paired; NaN where there is nothing below."""

        def over(above: np.ndarray | float, below: np.ndarray | float) -> np.ndarray:
            return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) != 0)

        value = {name: float(over(self.value[name], other.value[name])) for name in self.value}
        drawn = {name: over(self.drawn[name], other.drawn[name]) for name in self.drawn}
        return dataclasses.replace(self, value=value, drawn=drawn)

    def intervals(self, draws: Draws, names: Iterable[str] | None = None) -> dict[str, tuple[float, float] | None]:
        """The intervals of these numbers, or of all."""
        names = self.drawn if names is None else names
        return {name: interval(self.drawn[name][draws.number], self.scenes[name]) for name in names}


def mix(parts: Sequence[tuple[float, Sampled]]) -> Sampled:
    """A weighted sum of results of the same truth and draws, number by number."""
    first = parts[0][1]
    value = {name: math.fsum(weight * of.value[name] for weight, of in parts) for name in first.value}
    drawn = {name: sum(weight * of.drawn[name] for weight, of in parts) for name in first.drawn}
    return dataclasses.replace(first, value=value, drawn=drawn)


def sample_numbers(matches: Matches, draws: Draws, stratum: Stratum | None = None) -> Sampled:
    """Count a result once as it is and once for every draw.

    Args:
        matches: the result.
        draws: of its scenes.
        stratum: a part of it, with means over the classes that it has; None is all, with the benchmark's means.
    """
    lanes = make_lanes(matches, stratum)
    counted, drawn = lanes.count(), lanes.count(draws.times)
    there = counted["present"][0]
    absent = ~there if stratum is None else None
    value = {name: float(column[0]) for name, column in numbers(counted, matches.protocol, absent).items()}
    scenes = (lanes.truth[:, :: len(matches.protocol.dist_ths)] > 0).sum(axis=0)
    of_class: dict[str, int] = dict(zip((*DETECTION_CLASSES, "micro"), scenes.tolist(), strict=True))
    return Sampled(
        value=value,
        drawn=numbers(drawn, matches.protocol, absent),
        scenes={name: of_class.get(name.partition(".")[2], of_class["micro"]) for name in value},
        num_truth=int(lanes.truth[:, -1].sum()),
        num_classes=int(there[:CLASSES].sum()),
    )
