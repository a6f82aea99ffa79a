"""CKA against its direct formula on whole matrices, and what it must not see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.metrics.cka import Alignment


def drawn(seed: int, count: int, channels: tuple[int, int] = (5, 3)) -> tuple[np.ndarray, np.ndarray]:
    """Related features with means far from 0."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (count, channels[0])) * rng.uniform(0.1, 3, channels[0]) + rng.normal(0, 50, channels[0])
    y = np.tanh(x @ rng.normal(0, 0.5, channels) / 10) + rng.normal(0, 0.3, (count, channels[1])) + 7
    return x, y


def of(x: np.ndarray, y: np.ndarray, parts: int = 1) -> Alignment:
    found = Alignment((x.shape[1], y.shape[1]))
    for a, b in zip(np.array_split(x, parts), np.array_split(y, parts), strict=True):
        found.add(a, b)
    return found


def direct(x: np.ndarray, y: np.ndarray) -> float:
    """By centred kernel matrices, N x N."""
    n = len(x)
    center = np.eye(n) - 1 / n
    k, m = center @ x @ x.T @ center, center @ y @ y.T @ center
    return np.trace(k @ m) / math.sqrt(np.trace(k @ k) * np.trace(m @ m))


def direct_unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """By equation 5 of Song et al. (2012), as it is printed."""
    n, one = len(x), np.ones(len(x))

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        middle = one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(8, 40), st.integers(1, 9))
def test_in_parts_it_is_the_direct_formula(seed, count, parts):
    x, y = drawn(seed, count)
    found = of(x, y, parts)
    assert found.biased() == pytest.approx(direct(x, y), rel=1e-7)
    centred = x - x.mean(0), y - y.mean(0)  # or the matrices of the formula round off
    assert found.unbiased() == pytest.approx(direct_unbiased(*centred), rel=1e-6, abs=1e-8)
    assert found.count == count


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-100, 100))
def test_rotation_scale_and_shift_are_not_seen_and_itself_is_one(seed, scale, shift):
    x, y = drawn(seed, 50)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
    changed = scale * x @ turn + shift
    for name in ("biased", "unbiased"):
        assert getattr(of(changed, y), name)() == pytest.approx(getattr(of(x, y), name)(), rel=1e-6, abs=1e-9)
        assert getattr(of(x, x), name)() == pytest.approx(1, abs=1e-9)
        assert getattr(of(x, changed), name)() == pytest.approx(1, abs=1e-7)
    assert of(x, y).biased() == pytest.approx(of(y, x).biased(), rel=1e-9)
    assert 0 <= of(x, y).biased() <= 1 + 1e-12


def test_independent_features_are_unlike_but_for_the_bias():
    rng = np.random.default_rng(0)
    few = [of(rng.normal(size=(20, 40)), rng.normal(size=(20, 40))) for _ in range(200)]
    assert np.mean([one.biased() for one in few]) > 0.6
    assert abs(np.mean([one.unbiased() for one in few])) < 0.02


def test_what_has_none():
    nothing = Alignment((2, 3))
    nothing.add(np.zeros((0, 2)), np.zeros((0, 3)))
    assert math.isnan(nothing.biased()) and math.isnan(nothing.unbiased())
    flat = of(np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 3)))
    assert math.isnan(flat.biased())
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 3\); expected \[N, 2\] and \[N, 3\]"):
        Alignment((2, 3)).add(np.zeros((3, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="not finite"):
        Alignment((1, 1)).add(np.full((3, 1), np.nan), np.zeros((3, 1)))
