"""Intersection over union (IoU) of layers of cells, over all cells of a split whose truth is known.

Only counts of cells are kept, no maps; the counts of parts of a split add up.
Letters: B samples, N layers, T thresholds, Y X cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Overlap:
    """What one model said over a split, as counts of known cells."""

    names: tuple[str, ...]  # of the N layers
    thresholds: tuple[float, ...]  # T, rising; 0.5 is one of them
    both: np.ndarray = field(init=False)  # [N, T] int64, said and true
    said: np.ndarray = field(init=False)  # [N, T] int64
    true: np.ndarray = field(init=False)  # [N] int64

    def __post_init__(self) -> None:
        self.both, self.said = np.zeros((2, len(self.names), len(self.thresholds)), dtype=np.int64)
        self.true = np.zeros(len(self.names), dtype=np.int64)

    def add(self, probability: np.ndarray, mask: np.ndarray, known: np.ndarray) -> None:
        """Count the cells of some samples.

        Args:
            probability: [B, N, Y, X].
            mask: [B, N, Y, X] bool, the truth.
            known: [B, N] or [B, N, Y, X] bool: which layers, or which of their cells, count.

        Raises:
            ValueError: shapes that do not fit, or a probability that is not finite.
        """
        shapes = probability.shape == mask.shape and known.shape in (mask.shape, mask.shape[:2])
        count = len(self.names)
        if not shapes or mask.shape[1] != count or not np.isfinite(probability).all():
            raise ValueError(
                f"probabilities {list(probability.shape)}, mask {list(mask.shape)}, known {list(known.shape)}; "
                f"expected [B, {count}, Y, X] twice and that or [B, {count}], and finite probabilities: look at the "
                "head's output"
            )
        # How many thresholds each cell reaches, counted once for all of them.
        steps_BNYX = np.searchsorted(
            np.array(self.thresholds, dtype=np.float32), probability.astype(np.float32), side="right"
        )
        for number in range(len(self.names)):
            counts = known[:, number]
            steps, true = steps_BNYX[:, number][counts].ravel(), mask[:, number][counts].ravel()
            self.said[number] += self._at_least(steps)
            self.both[number] += self._at_least(steps[true])
            self.true[number] += np.count_nonzero(true)

    def __iadd__(self, other: Overlap) -> Overlap:
        for name in ("both", "said", "true"):
            getattr(self, name)[...] += getattr(other, name)
        return self

    def scores(self) -> dict[str, float | dict[str, float]]:
        """``IoU@0.5``, ``IoU@best`` and ``best_threshold`` by layer, NaN for one without a true cell; ``mIoU@0.5`` and
        ``mIoU@best``, their means over the layers that have one, NaN where none has.
        """
        there = self.true > 0
        union = self.said + self.true[:, None] - self.both
        iou = np.where(there[:, None], self.both / np.maximum(union, 1), np.nan)
        best = np.where(there, np.argmax(np.nan_to_num(iou), axis=1), 0)
        at_half, at_best = iou[:, self.thresholds.index(0.5)], iou[np.arange(len(iou)), best]

        def by_layer(values: np.ndarray) -> dict[str, float]:
            return dict(zip(self.names, map(float, values), strict=True))

        def mean(values: np.ndarray) -> float:
            return float(values[there].mean()) if there.any() else float("nan")

        return {
            "mIoU@0.5": mean(at_half),
            "mIoU@best": mean(at_best),
            "IoU@0.5": by_layer(at_half),
            "IoU@best": by_layer(at_best),
            "best_threshold": by_layer(np.where(there, np.array(self.thresholds)[best], np.nan)),
        }

    def _at_least(self, steps: np.ndarray) -> np.ndarray:
        """[T]: how many cells reach each threshold, of the number of thresholds that each reaches."""
        count = np.bincount(steps, minlength=len(self.thresholds) + 1)
        return count[:0:-1].cumsum()[::-1]
