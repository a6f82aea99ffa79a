"""Intervals: resampled scenes against the official evaluation of copied scenes, coverage, and pairs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fusion3d.engine.columns import found_columns
from fusion3d.metrics.bootstrap import FEWEST_SCENES, distinguishable, draw_scenes, interval, mix, ratio, sample_numbers
from fusion3d.metrics.detection import numbers
from fusion3d.metrics.lanes import make_lanes
from fusion3d.metrics.matching import TP_ERRORS, Matches, match_detections
from fusion3d.types import DETECTION_CLASSES

sys.path.insert(0, str(Path(__file__).parent))
from crowds import Split, crowd
from devkit import official, truth_columns

KEYS = dict(zip(TP_ERRORS, ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err"), strict=True))


def matched(seed: int, spread: float, samples: int, boxes: int = 15, per_scene: int = 1) -> Matches:
    """A result on a split of its own; the truth is that of the seed."""
    truth, results, ego = crowd(seed, spread, None, samples, boxes)
    scene = [row // per_scene for row in range(samples)]
    return match_detections(truth_columns(truth, ego, scene=scene), found_columns(results, tuple(truth)))


def copied(boxes: Split, times: list[int], scene: list[int]) -> Split:
    """The samples of each scene so many times, under other names."""
    return {
        f"{token}/{copy}": [{**box, "sample_token": f"{token}/{copy}"} for box in boxes[token]]
        for token, of in zip(boxes, scene, strict=True)
        for copy in range(times[of])
    }


@pytest.mark.parametrize("times", [[1, 1, 1, 1], [2, 0, 3, 1], [0, 0, 0, 4], [1, 3, 0, 0]])
def test_a_resample_is_what_the_official_evaluation_says_of_copied_scenes(times):
    truth, results, ego = crowd(3, 0.5, None, samples=7, boxes=30)
    scene = [0, 0, 1, 1, 2, 3, 3]
    matches = match_detections(truth_columns(truth, ego, scene=scene), found_columns(results, tuple(truth)))
    counted = make_lanes(matches).count(np.array([times]))
    flat = {name: value[0] for name, value in numbers(counted, matches.protocol, ~counted["present"][0]).items()}
    there, seen = copied(truth, times, scene), copied(results, times, scene)
    theirs, _ = official(there, seen, {token: ego[token.partition("/")[0]] for token in there})
    assert flat["NDS"] == pytest.approx(theirs["nd_score"], abs=1e-12)
    for label in DETECTION_CLASSES:
        assert flat[f"AP.{label}"] == pytest.approx(theirs["mean_dist_aps"][label], abs=1e-12), label
        for name, key in KEYS.items():
            np.testing.assert_allclose(flat[f"{name}.{label}"], theirs["label_tp_errors"][label][key], atol=1e-12)


def test_sums_and_ratios_are_of_the_same_draws():
    draws = draw_scenes(6, 100)
    near, far = (sample_numbers(matched(2, spread, samples=6), draws) for spread in (0.3, 0.9))
    half, share = mix([(0.5, near), (0.25, far)]), far / near
    for name in ("NDS", "mAP", "micro.AP"):
        assert half.value[name] == pytest.approx(0.5 * near.value[name] + 0.25 * far.value[name])
        np.testing.assert_allclose(half.drawn[name], 0.5 * near.drawn[name] + 0.25 * far.drawn[name])
        assert share.value[name] == far.value[name] / near.value[name]
        np.testing.assert_array_equal(share.drawn[name], far.drawn[name] / near.drawn[name])
        low, high = share.intervals(draws)[name]
        assert low < share.value[name] < high < 1
    assert np.isnan((near / near).value["AP.barrier"]) and (near / near).intervals(draws)["AP.barrier"] is None


def test_draws_are_seeded_whole_and_counted_once():
    draws, again, other = draw_scenes(5, 400), draw_scenes(5, 400), draw_scenes(5, 400, seed=1)
    np.testing.assert_array_equal(draws.times[draws.number], again.times[again.number])
    assert not np.array_equal(draws.times[draws.number], other.times[other.number])
    assert (draws.times.sum(axis=1) == 5).all() and len(draws.number) == 400 and len(draws.times) <= 126
    assert len(np.unique(draws.times, axis=0)) == len(draws.times)
    np.testing.assert_allclose(draws.times[draws.number].mean(axis=0), 1, atol=0.2)


@pytest.mark.parametrize("count", [6, 10, 40])
def test_an_interval_holds_what_is_true_in_95_of_100_cases(count):
    """The mean of so few independent scenes; plain percentiles would hold it in 88, 91 and 94 of 100."""
    rng = np.random.default_rng(0)
    draws = draw_scenes(count, 600)
    held = 0
    for _ in range(1000):
        values = rng.normal(size=count)
        low, high = interval((draws.times @ values)[draws.number] / count, count) or (1, -1)
        held += low <= 0 <= high
    assert 0.91 <= held / 1000 <= 0.97


def test_no_interval_without_scenes_or_knowledge():
    values = np.arange(100.0)
    assert interval(values, 1) is None and interval(values, 2) is not None
    half = np.where(values < 60, np.nan, values)
    assert interval(half, 10) is None
    low, high = interval(np.where(values < 40, np.nan, values), 10) or (0, 0)
    assert 40 <= low < high <= 99
    assert not distinguishable((0.1, 0.2), FEWEST_SCENES - 1) and distinguishable((0.1, 0.2), FEWEST_SCENES)
    assert not distinguishable((-0.1, 0.2), 100) and not distinguishable(None, 100)


def test_a_class_that_a_draw_lacks_is_left_out_of_its_mean():
    matches = matched(1, 0.2, samples=2)
    lanes = make_lanes(matches)
    counted = lanes.count(np.array([[2, 0], [1, 1]]))
    absent = ~counted["present"][1]
    lacking = counted["present"][1] & ~counted["present"][0]
    assert lacking[:10].any() and absent[9], "the seed tests nothing"
    flat = numbers(counted, matches.protocol, absent)
    counted_in = ~lacking[:10]
    ap = counted["AP"][0, :10].mean(axis=1)
    assert flat["mAP"][0] == pytest.approx(ap[counted_in].mean())
    assert np.isnan(flat[f"AP.{DETECTION_CLASSES[int(np.flatnonzero(lacking)[0])]}"][0])
    assert flat["AP.barrier"][0] == 0, "which the whole split lacks"


def test_results_that_differ_by_chance_alone_are_seldom_told_apart():
    """Both see the same scenes as well; each errs in its own way."""
    draws, told = draw_scenes(12, 200), 0
    for trial in range(20):
        truth, results, ego = crowd(trial, 0.7, None, samples=12, boxes=20)
        rng = np.random.default_rng(trial)
        columns, pair = truth_columns(truth, ego), []
        for _ in range(2):
            moved = {
                token: [
                    {**box, "translation": (np.array(box["translation"]) + rng.normal(0, 0.5, 3)).tolist()}
                    for box in boxes
                    if rng.random() < 0.9
                ]
                for token, boxes in results.items()
            }
            pair.append(sample_numbers(match_detections(columns, found_columns(moved, tuple(truth))), draws))
        apart = pair[0] - pair[1]
        told += distinguishable(apart.intervals(draws)["NDS"], apart.scenes["NDS"])
    assert told <= 4, "of 20 one is expected"


def test_pairs_tell_more_than_two_intervals():
    truth, results, ego = crowd(7, 0.3, None, samples=20, boxes=20)
    worse = {
        token: [{**box, "translation": [box["translation"][0] + 0.2, *box["translation"][1:]]} for box in boxes]
        for token, boxes in results.items()
    }
    columns, draws = truth_columns(truth, ego), draw_scenes(20, 500)
    columns_of = [found_columns(found, tuple(truth)) for found in (results, worse)]
    one, other = (sample_numbers(match_detections(columns, found), draws) for found in columns_of)
    apart = (one - other).intervals(draws)["mATE"]
    alone = one.intervals(draws)["mATE"]
    assert apart is not None and alone is not None and apart[1] < 0 and distinguishable(apart, 20)
    assert apart[1] - apart[0] < 0.8 * (alone[1] - alone[0])
    assert alone[0] <= one.value["mATE"] <= alone[1]


def test_the_interval_of_a_mean_is_that_of_its_scenes():
    """Samples of a scene are all alike: the interval is as wide as that of 40 numbers, not of 4000."""
    rng = np.random.default_rng(0)
    of_scene = rng.normal(0, 1, 40)
    values, scenes = np.repeat(of_scene, 100), np.repeat([f"s{i}" for i in range(40)], 100).tolist()
    mean, between, sure = ratio(values, np.ones(4000), scenes)
    assert mean == pytest.approx(of_scene.mean()) and between is not None
    assert between[1] - between[0] == pytest.approx(2 * 1.96 * of_scene.std() / 40**0.5, rel=0.15)
    assert sure == (not between[0] <= 0 <= between[1])
    _, apart, _ = ratio(values, np.ones(4000), [str(i) for i in range(4000)])
    assert apart is not None and apart[1] - apart[0] < 0.2 * (between[1] - between[0])


def test_it_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(1), []
    for _ in range(150):
        _, between, _ = ratio(rng.normal(0.3, 1, 40), np.ones(40), [str(i) for i in range(40)])
        assert between is not None
        held.append(between[0] <= 0.3 <= between[1])
    assert 0.89 <= np.mean(held) <= 0.99


def test_what_both_share_cancels_and_rounding_is_no_difference():
    """Two errors that differ by a tenth everywhere, in scenes of very different difficulty."""
    base = np.repeat(np.random.default_rng(2).lognormal(0, 2, 30), 5)
    scenes = [str(i // 5) for i in range(150)]
    value, between, sure = ratio(base - 0.9 * base, base, scenes)
    assert value == pytest.approx(0.1) and sure and between == pytest.approx((0.1, 0.1))
    assert not ratio(base * (1 + 1e-13) - base, base, scenes)[2]
    value, between, sure = ratio(base[:0], base[:0], [])
    assert np.isnan(value) and between is None and not sure
