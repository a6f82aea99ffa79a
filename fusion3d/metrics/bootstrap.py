"""How far a number would move if other scenes had been driven: samples of one scene stand or fall together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95
SAME = 1e-9
LEAST = 5  # scenes; from fewer, draws say little of what others would


@dataclass(frozen=True)
class Interval:
    """A number and the interval that holds it in ``LEVEL`` of the draws; none from fewer than ``LEAST`` scenes."""

    value: float
    low: float  # NaN where there is no interval
    high: float

    @property
    def sure(self) -> bool:
        """Is zero outside of the interval, by more than rounding?"""
        return bool(self.low > SAME or self.high < -SAME)


def resample(groups: Sequence[str], draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """Scenes drawn with replacement, as often as there are scenes; the draws depend on the names alone.

    Args:
        groups: [N] the scene of each sample.
        draws: how often.

    Returns:
        [N] int64 the number of each sample's scene, and [D, G] int64 how often each draw has each scene.
    """
    names, number = np.unique(np.asarray(groups), return_inverse=True)
    digest = hashlib.sha256("\n".join(names.tolist()).encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    count = len(names)
    times = generator.multinomial(count, np.full(count, 1 / max(count, 1)), size=draws) if count else None
    return number.astype(np.int64), np.zeros((draws, 0), dtype=np.int64) if times is None else times


def ratio_interval(above: np.ndarray, below: np.ndarray, groups: Sequence[str], draws: int = DRAWS) -> Interval:
    """``sum(above) / sum(below)`` over samples, with the percentile interval of the scenes' bootstrap.

    Both sums are of the same draw: what scenes do to both alike, such as an error and a baseline's, cancels.

    Args:
        above, below: [N] float64; ones below make a mean.
        groups: [N] scene of each sample.
        draws: how often scenes are drawn.
    """
    total = float(below.sum()) if len(below) else 0.0
    value = float(above.sum()) / total if total else np.nan
    number, times = resample(groups, draws)
    if times.shape[1] < LEAST or not np.isfinite(value):
        return Interval(value, np.nan, np.nan)
    over = times @ np.bincount(number, above, times.shape[1])
    under = times @ np.bincount(number, below, times.shape[1])
    there = under != 0
    low, high = np.quantile(over[there] / under[there], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
