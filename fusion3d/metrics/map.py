"""Map segmentation: intersection over union (IoU) of each class, over all cells of a split whose truth is known.

Only counts of cells are kept, no maps; the counts of parts of a split add up. nuScenes has no official protocol:
``PROTOCOL`` says what is counted, and travels with the numbers.
Letters: B samples, N classes, T thresholds, Y X cells.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from fusion3d.types import MAP_CLASSES

THRESHOLDS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
FIXED = THRESHOLDS.index(0.5)

PROTOCOL = (
    "IoU of a class: cells that are said and true, over cells that are said or true, summed over all samples whose map "
    "knows the class; said is a probability of at least the threshold. IoU@0.5: at that threshold. IoU@best: for each "
    f"class the highest of those at {', '.join(map(str, THRESHOLDS))}, chosen on the evaluated split itself, as "
    "BEVFusion reports it. mIoU: mean over the classes that have a true cell. everywhere: true in every cell. average: "
    "the mean of the evaluated split's own true maps around the vehicle, which sees no sensor but knows the split."
)


def _counts(*shape: int) -> np.ndarray:
    return np.zeros((len(MAP_CLASSES), *shape), dtype=np.int64)


@dataclass
class MapOverlap:
    """What one model said over a split, as counts of known cells."""

    both: np.ndarray = field(default_factory=lambda: _counts(len(THRESHOLDS)))  # [N, T] said and true
    said: np.ndarray = field(default_factory=lambda: _counts(len(THRESHOLDS)))  # [N, T]
    true: np.ndarray = field(default_factory=_counts)  # [N]

    def add(self, probability: np.ndarray, mask: np.ndarray, known: np.ndarray) -> None:
        """Count the cells of some samples.

        Args:
            probability: [B, N, Y, X].
            mask: [B, N, Y, X] bool, the truth.
            known: [B, N] bool: which classes count.

        Raises:
            ValueError: shapes that do not fit, or a probability that is not finite.
        """
        if probability.shape != mask.shape or known.shape != mask.shape[:2] or not np.isfinite(probability).all():
            raise ValueError(
                f"probabilities {list(probability.shape)}, mask {list(mask.shape)}, known {list(known.shape)}; "
                "expected [B, N, Y, X] twice and [B, N], and finite probabilities: look at the map head's output"
            )
        # How many thresholds each cell reaches, counted once for all of them.
        reached = np.searchsorted(np.array(THRESHOLDS, dtype=np.float32), probability.astype(np.float32), side="right")
        for number in range(len(MAP_CLASSES)):
            rows = known[:, number]
            steps, true = reached[rows, number].ravel(), mask[rows, number].ravel()
            self.said[number] += _at_least(steps)
            self.both[number] += _at_least(steps[true])
            self.true[number] += np.count_nonzero(true)

    def __iadd__(self, other: MapOverlap) -> MapOverlap:
        for f in dataclasses.fields(self):
            getattr(self, f.name)[...] += getattr(other, f.name)
        return self


@dataclass
class MapTruth:
    """The true maps of a split, summed, for baselines that see no sensor."""

    true: np.ndarray | None = None  # [N, Y, X] int64: samples in which a cell is true
    known: np.ndarray = field(default_factory=_counts)  # [N] samples whose map knows the class

    def add(self, mask: np.ndarray, known: np.ndarray) -> None:
        """Count some samples: [B, N, Y, X] bool and [B, N] bool."""
        some = (mask & known[:, :, None, None]).sum(0, dtype=np.int64)
        self.true = some if self.true is None else self.true + some
        self.known += known.sum(0)

    def __iadd__(self, other: MapTruth) -> MapTruth:
        if other.true is not None:
            self.true = other.true.copy() if self.true is None else self.true + other.true
        self.known += other.known
        return self

    def baselines(self) -> dict[str, MapOverlap]:
        """``everywhere`` and ``average`` (see ``PROTOCOL``), as if they had been counted sample by sample."""
        if self.true is None:
            return {"everywhere": MapOverlap(), "average": MapOverlap()}
        average = self.true / np.maximum(self.known, 1)[:, None, None]
        return {"everywhere": self._say(np.ones_like(average)), "average": self._say(average)}

    def _say(self, probability: np.ndarray) -> MapOverlap:
        """The counts of a model that says the same [N, Y, X] of every sample."""
        assert self.true is not None
        found = MapOverlap(true=self.true.sum((1, 2)))
        for step, threshold in enumerate(THRESHOLDS):
            said = probability >= threshold
            found.said[:, step] = said.sum((1, 2)) * self.known
            found.both[:, step] = (self.true * said).sum((1, 2))
        return found


def score_map(overlap: MapOverlap) -> dict[str, float | dict[str, float]]:
    """The numbers of one model.

    Returns:
        ``IoU@0.5``, ``IoU@best`` and ``best_threshold`` by class, NaN for one without a true cell; ``mIoU@0.5`` and
        ``mIoU@best``, NaN where no class has any.
    """
    there = overlap.true > 0
    union = overlap.said + overlap.true[:, None] - overlap.both
    iou = np.where(there[:, None], overlap.both / np.maximum(union, 1), np.nan)
    best = np.where(there, np.argmax(np.nan_to_num(iou), axis=1), 0)
    at_best = iou[np.arange(len(iou)), best]

    def by_class(values: np.ndarray) -> dict[str, float]:
        return dict(zip(MAP_CLASSES, map(float, values), strict=True))

    def mean(values: np.ndarray) -> float:
        return float(values[there].mean()) if there.any() else float("nan")

    return {
        "mIoU@0.5": mean(iou[:, FIXED]),
        "mIoU@best": mean(at_best),
        "IoU@0.5": by_class(iou[:, FIXED]),
        "IoU@best": by_class(at_best),
        "best_threshold": by_class(np.where(there, np.array(THRESHOLDS)[best], np.nan)),
    }


def _at_least(steps: np.ndarray) -> np.ndarray:
    """[T]: how many cells reach each threshold, of the number of thresholds that each reaches."""
    count = np.bincount(steps, minlength=len(THRESHOLDS) + 1)
    return count[:0:-1].cumsum()[::-1]
