"""Intervals over scenes: what they must be where it is known."""

from __future__ import annotations

import numpy as np
import pytest

from fusion3d.metrics.bootstrap import LEAST, ratio_interval, resample


def test_scenes_are_drawn_whole_and_as_often_as_there_are():
    number, times = resample([f"s{i // 3}" for i in range(30)], 500)
    assert (
        times.shape == (500, 10) and (times.sum(axis=1) == 10).all() and number.tolist() == [i // 3 for i in range(30)]
    )
    np.testing.assert_allclose(times.mean(axis=0), 1, atol=0.15)
    again = resample([f"s{i // 3}" for i in range(30)][::-1], 500)[1]
    np.testing.assert_array_equal(times, again)
    assert resample([], 7)[1].shape == (7, 0)


def test_the_interval_of_a_mean_is_that_of_its_scenes():
    """Samples of a scene are all alike: the interval is as wide as that of 40 numbers, not of 4000."""
    rng = np.random.default_rng(0)
    of_scene = rng.normal(0, 1, 40)
    values, scenes = np.repeat(of_scene, 100), np.repeat([f"s{i}" for i in range(40)], 100).tolist()
    found = ratio_interval(values, np.ones(4000), scenes)
    error = of_scene.std() / 40**0.5
    assert found.value == pytest.approx(of_scene.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    apart = ratio_interval(values, np.ones(4000), [str(i) for i in range(4000)])
    assert apart.high - apart.low < 0.2 * (found.high - found.low)


def test_it_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = []
    for trial in range(150):
        of_scene = rng.normal(0.3, 1, 40)
        found = ratio_interval(of_scene, np.ones(40), [f"{trial}-{i}" for i in range(40)], 400)
        held.append(found.low <= 0.3 <= found.high)
    assert 0.88 <= np.mean(held) <= 0.99


def test_few_scenes_have_no_interval():
    values = np.arange(LEAST - 1.0)
    found = ratio_interval(values, np.ones(len(values)), [str(i) for i in range(LEAST - 1)])
    assert found.value == values.mean() and np.isnan(found.low) and not found.sure
    assert np.isnan(ratio_interval(values[:0], values[:0], []).value)


def test_what_both_share_cancels():
    """Two errors that differ by a tenth everywhere, in scenes of very different difficulty."""
    rng = np.random.default_rng(2)
    base = np.repeat(rng.lognormal(0, 2, 30), 5)
    found = ratio_interval(base - 0.9 * base, base, [str(i // 5) for i in range(150)])
    assert found.sure and found.high - found.low < 1e-9
