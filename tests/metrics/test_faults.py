"""Matching, and what wrong boxes cost, against the devkit's evaluation of the same boxes, and of one more or less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.errors import Fusion3DError
from fusion3d.geometry import quaternion_from_yaw
from fusion3d.metrics.detection import Truth, score_detections
from fusion3d.metrics.faults import _gain_without, average_precision, costs, find_faults
from fusion3d.metrics.scored import DISTANCES, boxes_by_class

CLASSES = ("car", "bicycle", "barrier")


def box(token: str, name: str, x: float, y: float, **more) -> dict:
    return {
        "sample_token": token, "translation": [x, y, 0.5], "size": [2.0, 4.0, 1.5], "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0], "detection_name": name, "attribute_name": "", **more,
    }  # fmt: skip


def scene(seed: int, samples: int = 3, found: int = 30, true: int = 8) -> tuple[dict, dict]:
    """Random boxes: near each other, at and beyond the edge of the range, on racks, without points, equal scores."""
    rng = np.random.default_rng(seed)
    truths, results = {}, {}
    for token in [f"s{i}" for i in range(samples)]:
        ego = rng.normal(0, 30, 3)
        rack = box(token, "rack", *(ego[:2] + rng.normal(0, 5, 2)), num_pts=3) | {
            "rotation": quaternion_from_yaw(np.array(rng.uniform(-3, 3))).tolist(), "size": [4.0, 9.0, 3.0],
        }  # fmt: skip
        spots = ego[:2] + rng.normal(0, 18, (max(true // 2, 1), 2))

        def place(rng=rng, spots=spots) -> list[float]:
            return (spots[rng.integers(len(spots))] + rng.normal(0, 1.0, 2)).tolist()

        boxes = [box(token, str(rng.choice(CLASSES)), *place(), num_pts=int(rng.integers(0, 4))) for _ in range(true)]
        truths[token] = Truth(boxes, tuple(ego.tolist()), [rack])
        results[token] = [
            box(token, str(rng.choice(CLASSES)), *place(), detection_score=int(rng.integers(1, 12)) / 12)
            for _ in range(found)
        ]
    return truths, results


def ap(truths: dict, results: dict) -> dict[str, float]:
    return score_detections(truths, results)["AP"]


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_the_devkits(seed):
    truths, results = scene(seed)
    theirs = score_detections(truths, results)
    for name, boxes in boxes_by_class(truths, results).items():
        assert len(boxes.true) == theirs["num_truth"][name]
        ours = [average_precision(taken >= 0, len(boxes.true)) for taken in boxes.taken.T]
        assert np.mean(ours) == pytest.approx(theirs["AP"][name], abs=1e-12), name


@pytest.mark.parametrize("seed", range(2))
def test_costs_are_what_the_devkit_says_without_the_box_or_with_one_more(seed):
    truths, results = scene(seed + 10, samples=2, found=12, true=6)
    before = ap(truths, results)
    for name, boxes in boxes_by_class(truths, results).items():
        of_found, of_true = costs(boxes)
        for k in range(len(boxes.found)):
            token, xy = boxes.tokens[boxes.found.sample[k]], boxes.found.xy[k].tolist()
            if (boxes.taken[k] >= 0).any():  # right at one: there it would be missed
                continue
            kept = [b for b in results[token] if b["detection_name"] != name or b["translation"][:2] != xy]
            assert len(kept) == len(results[token]) - 1
            gain = ap(truths, results | {token: kept})[name] - before[name]
            assert gain == pytest.approx(of_found[k], abs=1e-12)
        for k in range(len(boxes.true)):
            token, xy = boxes.tokens[boxes.true.sample[k]], boxes.true.xy[k].tolist()
            if (boxes.taken != k).all():  # missed at every distance
                more = box(token, name, *xy, detection_score=1.0)
                gain = ap(truths, results | {token: [*results[token], more]})[name] - before[name]
                assert gain == pytest.approx(of_true[k], abs=1e-12)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.booleans(), max_size=40), st.integers(0, 30))
def test_the_gain_without_a_box_is_that_of_the_list_without_it(hits, more):
    hit, num_true = np.array(hits, dtype=bool), sum(hits) + more
    if not num_true:
        return
    gains = _gain_without(hit, num_true)
    before = average_precision(hit, num_true)
    for k in range(len(hit)):
        wanted = 0 if hit[k] else average_precision(np.delete(hit, k), num_true) - before
        assert gains[k] == pytest.approx(wanted, abs=1e-12)


def test_right_boxes_cost_nothing_and_faults_come_by_cost():
    truths, results = scene(5)
    faults = find_faults(boxes_by_class(truths, results))
    assert [f.cost for f in faults] == sorted((f.cost for f in faults), reverse=True) and faults[0].cost > 0
    for fault in faults:
        of = truths[fault.token].boxes if fault.missed else results[fault.token]
        (one,) = [b for b in of if tuple(b["translation"][:2]) == fault.xy]
        assert one["detection_name"] == fault.name and fault.within in DISTANCES
        assert fault.score == one.get("detection_score", -1)
    perfect = {
        token: [b | {"detection_score": 0.5} for b in truth.boxes] for token, truth in truths.items()
    }  # equal scores: no order is wrong
    right = boxes_by_class(truths, perfect)
    assert all(of.right.sum() == len(of.true) for of in right.values())
    assert find_faults({}) == []


def test_samples_without_results_are_named():
    truths, results = scene(0)
    del results["s1"]
    with pytest.raises(Fusion3DError, match="lack 1 of 3 samples, first s1"):
        boxes_by_class(truths, results)
