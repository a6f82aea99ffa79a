"""Calibration on scores whose calibration is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from fusion3d.metrics.calibration import BOUNDS, apply_temperature, fit_temperature, reliability


def drawn(count: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and boxes that are right as often as the scores at ``temperature`` say."""
    rng = np.random.default_rng(seed)
    score = rng.beta(0.6, 1.2, count)
    return score, rng.random(count) < expit(logit(score) / temperature)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_the_diagram_is_that_of_a_plain_loop(boxes, bins):
    found = reliability(*map(np.array, zip(*boxes, strict=True)), bins)
    ece = 0.0
    for b in range(bins):
        own = [(s, r) for s, r in boxes if min(int(s * bins), bins - 1) == b]
        assert found["count"][b] == len(own)
        if own:
            said, true = sum(s for s, _ in own) / len(own), sum(r for _, r in own) / len(own)
            assert found["confidence"][b] == pytest.approx(said) and found["precision"][b] == pytest.approx(true)
            ece += len(own) / len(boxes) * abs(said - true)
        else:
            assert np.isnan(found["confidence"][b]) and np.isnan(found["precision"][b])
    assert found["ECE"] == pytest.approx(ece, abs=1e-12)


def test_calibrated_scores_have_hardly_an_error_and_shifted_ones_the_shift():
    score, right = drawn(400_000, 1.0)
    assert reliability(score, right)["ECE"] < 0.004
    rng = np.random.default_rng(1)
    score = rng.uniform(0.3, 0.9, 400_000)
    assert reliability(score, rng.random(len(score)) < score - 0.2)["ECE"] == pytest.approx(0.2, abs=0.004)
    assert np.isnan(reliability(np.zeros(0), np.zeros(0))["ECE"])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_made_them_is_found_and_takes_the_error_away(temperature):
    score, right = drawn(400_000, temperature)
    fitted = fit_temperature(score, right)
    assert fitted == pytest.approx(temperature, rel=0.02)
    other, there = drawn(400_000, temperature, seed=7)  # scores that nothing was fitted on
    after = reliability(apply_temperature(other, fitted), there)["ECE"]
    assert after < 0.004
    if temperature != 1:
        assert after < 0.1 * reliability(other, there)["ECE"]


def test_it_is_the_likeliest_as_scipy_finds_it():
    score, right = drawn(500, 1.7, seed=3)
    z = logit(score)

    def loss(beta: float) -> float:
        return float(np.logaddexp(0, np.where(right, -z, z) * beta).sum())

    best = minimize_scalar(loss, bounds=(1 / BOUNDS[1], 1 / BOUNDS[0]), method="bounded", options={"xatol": 1e-10})
    assert fit_temperature(score, right) == pytest.approx(1 / best.x, rel=1e-6)


def test_extremes_stay_in_bounds():
    assert fit_temperature(np.zeros(0), np.zeros(0)) == 1
    assert fit_temperature(np.array([0.0, 1.0]), np.array([False, True])) == pytest.approx(BOUNDS[0])
    assert fit_temperature(np.array([0.0, 1.0]), np.array([True, False])) == pytest.approx(BOUNDS[1])
    with pytest.raises(ValueError, match=r"score 1\.5; expected"):
        reliability(np.array([1.5]), np.array([True]))
    with pytest.raises(ValueError, match="score nan"):
        fit_temperature(np.array([np.nan]), np.array([True]))
    with pytest.raises(ValueError, match=r"\[K\] both"):
        reliability(np.zeros(2), np.zeros(3))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=50, unique=True), st.floats(0.5, BOUNDS[1]))
def test_the_order_of_a_networks_scores_stays(scores, temperature):
    """Even of neighbouring floats, which float32 would make one."""
    score = np.sort(np.array(scores, dtype=np.float32))
    score = score[(score > 1e-30) | (score == 0)]
    neighbours = np.unique(np.concatenate([score, np.nextafter(score, np.float32(0.5))]))
    after = apply_temperature(neighbours, temperature)
    assert (np.diff(after) > 0).all() and after.dtype == np.float64 and ((after >= 0) & (after <= 1)).all()
