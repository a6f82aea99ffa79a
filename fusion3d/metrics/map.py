"""Map segmentation: intersection over union (IoU) of each class, and what a model has that sees no sensor.

nuScenes has no official protocol: ``PROTOCOL`` says what is counted, and travels with the numbers.
Letters: B samples, N classes, Y X cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fusion3d.metrics.overlap import Overlap
from fusion3d.types import MAP_CLASSES

THRESHOLDS = (0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)

PROTOCOL = (
    "IoU of a class: cells that are said and true, over cells that are said or true, summed over all samples whose map "
    "knows the class; said is a probability of at least the threshold. IoU@0.5: at that threshold. IoU@best: for each "
    f"class the highest of those at {', '.join(map(str, THRESHOLDS))}, chosen on the evaluated split itself, as "
    "BEVFusion reports it. mIoU: mean over the classes that have a true cell. everywhere: true in every cell. average: "
    "the mean of the evaluated split's own true maps around the vehicle, which sees no sensor but knows the split."
)


def map_overlap() -> Overlap:
    """Nothing counted yet."""
    return Overlap(MAP_CLASSES, THRESHOLDS)


@dataclass
class MapTruth:
    """The true maps of a split, summed, for baselines that see no sensor."""

    true: np.ndarray | None = None  # [N, Y, X] int64: samples in which a cell is true
    known: np.ndarray = field(default_factory=lambda: np.zeros(len(MAP_CLASSES), dtype=np.int64))
    # [N] samples whose map knows the class

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

    def baselines(self) -> dict[str, Overlap]:
        """``everywhere`` and ``average`` (see ``PROTOCOL``), as if they had been counted sample by sample."""
        if self.true is None:
            return {"everywhere": map_overlap(), "average": map_overlap()}
        average = self.true / np.maximum(self.known, 1)[:, None, None]
        return {"everywhere": self._say(np.ones_like(average)), "average": self._say(average)}

    def _say(self, probability: np.ndarray) -> Overlap:
        """The counts of a model that says the same [N, Y, X] of every sample."""
        assert self.true is not None
        found = map_overlap()
        found.true[:] = self.true.sum((1, 2))
        for step, threshold in enumerate(THRESHOLDS):
            said = probability >= threshold
            found.said[:, step] = said.sum((1, 2)) * self.known
            found.both[:, step] = (self.true * said).sum((1, 2))
        return found
