"""IoU of maps against loops over cells."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fusion3d.metrics.map import THRESHOLDS, MapTruth, map_overlap
from fusion3d.types import MAP_CLASSES

SHAPE = (len(MAP_CLASSES), 5, 4)


def draw(count: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, some of them a threshold to the bit; masks; known classes: the fourth never, the third empty."""
    rng = np.random.default_rng(seed)
    said = rng.random((count, *SHAPE), dtype=np.float32)
    at_threshold = rng.random(said.shape) < 0.3
    said[at_threshold] = rng.choice(np.array(THRESHOLDS, dtype=np.float32), at_threshold.sum())
    mask, known = rng.random(said.shape) < 0.4, rng.random((count, SHAPE[0])) < 0.7
    known[:, 2], mask[:, 2], known[:, 3] = True, False, False
    known[0, [0, 1, 4, 5]] = True
    return said, mask, known


def slow_iou(said: np.ndarray, mask: np.ndarray, known: np.ndarray, number: int, threshold: float) -> float:
    both = either = 0
    for sample in range(len(said)):
        if not known[sample, number]:
            continue
        for at in np.ndindex(SHAPE[1:]):
            here, true = said[sample, number][at] >= np.float32(threshold), mask[sample, number][at]
            both += here and true
            either += here or true
    return both / either


def test_it_is_the_iou_of_a_loop():
    said, mask, known = draw()
    overlap = map_overlap()
    overlap.add(said[:1], mask[:1], known[:1])
    overlap.add(said[1:], mask[1:], known[1:])
    scores = overlap.scores()
    fixed, best = [], []
    for number, name in enumerate(MAP_CLASSES):
        if number in (2, 3):  # no true cell; never known
            assert math.isnan(scores["IoU@0.5"][name]) and math.isnan(scores["best_threshold"][name])
            continue
        at = {t: slow_iou(said, mask, known, number, t) for t in THRESHOLDS}
        fixed.append(at[0.5])
        best.append(max(at.values()))
        assert scores["IoU@0.5"][name] == pytest.approx(fixed[-1], abs=1e-12)
        assert scores["IoU@best"][name] == pytest.approx(best[-1], abs=1e-12)
        assert at[scores["best_threshold"][name]] == best[-1]
    assert scores["mIoU@0.5"] == pytest.approx(np.mean(fixed)) and scores["mIoU@best"] == pytest.approx(np.mean(best))


def test_parts_of_a_split_add_up():
    whole, parts = (map_overlap(), MapTruth()), [(map_overlap(), MapTruth()) for _ in range(3)]
    for seed, (overlap, truth) in enumerate(parts[:2]):  # the third process had no sample
        said, mask, known = draw(2, seed)
        for one in (overlap, whole[0]):
            one.add(said, mask, known)
        for one in (truth, whole[1]):
            one.add(mask, known)
    for i in range(2):
        total = (map_overlap, MapTruth)[i]()
        for part in parts:
            total += part[i]
        for name, value in vars(whole[i]).items():
            np.testing.assert_array_equal(getattr(total, name), value)


def test_baselines_are_what_a_model_that_says_them_would_get():
    _, mask, known = draw(4)
    truth = MapTruth()
    truth.add(mask[:3], known[:3])
    truth.add(mask[3:], known[3:])
    average = np.array(
        [mask[known[:, n], n].mean(0) if known[:, n].any() else np.zeros(SHAPE[1:]) for n in range(SHAPE[0])]
    )
    for name, said in (("everywhere", np.ones(SHAPE)), ("average", average)):
        expected = map_overlap()
        expected.add(np.broadcast_to(said, mask.shape), mask, known)
        for field, value in vars(truth.baselines()[name]).items():
            np.testing.assert_array_equal(value, getattr(expected, field))


def test_perfect_and_nothing():
    _, mask, known = draw()
    perfect, nothing = map_overlap(), map_overlap()
    perfect.add(mask.astype(np.float32), mask, known)
    nothing.add(np.zeros(mask.shape), mask, known)
    assert perfect.scores()["mIoU@0.5"] == perfect.scores()["mIoU@best"] == 1
    assert nothing.scores()["mIoU@best"] == 0
    for empty in (map_overlap(), *MapTruth().baselines().values()):
        assert math.isnan(empty.scores()["mIoU@0.5"]) and math.isnan(empty.scores()["IoU@best"]["walkway"])


def test_what_cannot_be_counted_is_refused():
    said, mask, known = draw()
    for bad in ((said[:, :, :2], mask, known), (said, mask, known[:2]), (said * np.nan, mask, known)):
        with pytest.raises(ValueError, match="the head's output"):
            map_overlap().add(*bad)
