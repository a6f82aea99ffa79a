"""Occupancy: intersection over union (IoU) of where things are, now and later, and of where one may drive.

No benchmark has these layers: ``PROTOCOL`` says what is counted, and travels with the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusion3d.metrics.overlap import Overlap
from fusion3d.types import OCCUPANCY_TIMES, OCCUPANTS

DRIVABLE = "drivable"
LAYERS = (*(f"{who}@{seconds:g}s" for seconds in OCCUPANCY_TIMES for who in OCCUPANTS), DRIVABLE)
THRESHOLDS = tuple(step / 20 for step in range(1, 14))  # lower than of maps: what is rare is said with little certainty

PROTOCOL = (
    "IoU of a layer: cells that are said and true, over cells that are said or true, summed over all samples that know "
    "the layer; said is a probability of at least the threshold. A cell is true where its middle lies in an annotated "
    "box of the group, or a box's middle lies in it; later on, where the keyframe of the time is in the scene, of "
    "what is annotated then, be it new. vru: people and cycles; static: barriers, cones and what is of none of the ten "
    "classes. drivable: the map's drivable area, where there is a map. IoU@best: for each layer the highest of the "
    f"thresholds {THRESHOLDS[0]:g} to {THRESHOLDS[-1]:g}, chosen on the evaluated split itself. still: the truth of "
    "now, for every time, and all of the ground drivable."
)


def occupancy_overlap() -> Overlap:
    """Nothing counted yet."""
    return Overlap(LAYERS, THRESHOLDS)


def add_still(overlap: Overlap, mask: np.ndarray, known: np.ndarray) -> None:
    """Count what ``still`` says (see ``PROTOCOL``) where now is known.

    Args:
        overlap: of ``occupancy_overlap``.
        mask: [B, N, Y, X] bool, the truth by LAYERS.
        known: [B, N, Y, X] bool.
    """
    groups, times = len(OCCUPANTS), len(OCCUPANCY_TIMES)
    said, sure = mask.copy(), known.copy()
    said[:, :-1] = np.tile(mask[:, :groups], (1, times, 1, 1))
    sure[:, :-1] &= np.tile(known[:, :groups], (1, times, 1, 1))
    said[:, -1] = True
    overlap.add(said.astype(np.float32), mask, sure)


def occupancy_columns(row: Mapping[str, Mapping[str, float | None]], at: str) -> dict[str, float]:
    """The numbers of ``Overlap.scores`` in fewer: means over the groups by time, over the times by group, the ground.

    Args:
        row: of one model; None is not known, as NaN is when it has been in a JSON file.
        at: ``IoU@0.5`` or ``IoU@best``.

    Returns:
        By name; NaN where no layer has a true cell.
    """
    iou = row[at]
    return {
        **{
            "now" if seconds == 0 else f"{seconds:g} s": _mean([iou[f"{who}@{seconds:g}s"] for who in OCCUPANTS])
            for seconds in OCCUPANCY_TIMES
        },
        **{who: _mean([iou[f"{who}@{seconds:g}s"] for seconds in OCCUPANCY_TIMES]) for who in OCCUPANTS},
        DRIVABLE: _mean([iou[DRIVABLE]]),
    }


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
