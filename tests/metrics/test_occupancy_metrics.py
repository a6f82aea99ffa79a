"""IoU of occupancy against loops over cells."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusion3d.metrics.occupancy import DRIVABLE, LAYERS, add_still, occupancy_columns, occupancy_overlap
from fusion3d.types import OCCUPANTS

SHAPE = (8, len(LAYERS), 3, 4)


def draw() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, the truth, and which cells are known: layers of all but the last, there some of the cells."""
    rng = np.random.default_rng(0)
    known = np.broadcast_to(rng.random(SHAPE[:2])[:, :, None, None] < 0.8, SHAPE).copy()
    known[:, -1] = rng.random((SHAPE[0], *SHAPE[2:])) < 0.7
    return rng.random(SHAPE, dtype=np.float32), rng.random(SHAPE) < 0.4, known


def slow(said: np.ndarray, true: np.ndarray, known: np.ndarray) -> dict[str, float]:
    found = {}
    for number, name in enumerate(LAYERS):
        cells = [at for at in np.ndindex(SHAPE) if at[1] == number and known[at]]
        both = sum(said[at] and true[at] for at in cells)
        found[name] = both / sum(said[at] or true[at] for at in cells)
    return found


def test_known_cells_count_alone():
    probability, true, known = draw()
    overlap = occupancy_overlap()
    for sample in range(SHAPE[0]):
        overlap.add(*(of[sample : sample + 1] for of in (probability, true, known)))
    assert overlap.scores()["IoU@0.5"] == pytest.approx(slow(probability >= 0.5, true, known))


def test_still_says_what_is_there_now_where_that_is_known():
    _, true, known = draw()
    overlap, groups = occupancy_overlap(), len(OCCUPANTS)
    add_still(overlap, true, known)
    said, sure = np.ones_like(true), known.copy()
    for number in range(len(LAYERS) - 1):
        said[:, number] = true[:, number % groups]
        sure[:, number] &= known[:, number % groups]
    scores = overlap.scores()
    for at in ("IoU@0.5", "IoU@best"):
        assert scores[at] == pytest.approx(slow(said, true, sure))
    assert [scores["IoU@0.5"][name] for name in LAYERS[:groups]] == [1] * groups


def test_columns_are_means_of_what_is_known():
    iou = {name: number / 20 for number, name in enumerate(LAYERS)} | {"vru@0s": math.nan}
    columns = occupancy_columns({"IoU@0.5": iou}, "IoU@0.5")
    assert columns["now"] == pytest.approx((iou["vehicle@0s"] + iou["static@0s"]) / 2)
    assert columns["3 s"] == pytest.approx(iou["vru@3s"]) and columns["vru"] == pytest.approx(iou["vru@2s"])
    assert columns[DRIVABLE] == iou[DRIVABLE] and len(columns) == 8
    nothing = occupancy_columns({"IoU@0.5": dict.fromkeys(LAYERS, math.nan)}, "IoU@0.5")
    assert all(math.isnan(value) for value in nothing.values())
