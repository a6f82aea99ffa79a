"""Errors of forecasts: the devkit's own functions on the same numbers, and plain loops for what stands around them."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.metrics.bootstrap import FEWEST_SCENES
from fusion3d.metrics.forecast import (
    ALL_MISSED,
    ERRORS,
    KS,
    REACH,
    TOLERANCE,
    Around,
    ScoredAgents,
    forecast_errors,
    match_centers,
    score_agents,
    score_forecasts,
    top_k,
)
from fusion3d.types import DETECTION_CLASSES

CAR, PEDESTRIAN, BARRIER = (DETECTION_CLASSES.index(name) for name in ("car", "pedestrian", "barrier"))


@pytest.fixture(scope="module")
def devkit():
    """The devkit's metrics of prediction, and its class of one; no maps, which only off-road needs."""
    metrics = "nuscenes.eval.prediction.metrics"
    with pytest.MonkeyPatch.context() as patch:
        maps = {
            "nuscenes.map_expansion.map_api": "NuScenesMap",
            "nuscenes.prediction": "PredictHelper",
            "nuscenes.prediction.input_representation.static_layers": "load_all_maps",
        }
        for name, what in maps.items():
            stand_in = ModuleType(name)
            setattr(stand_in, what, object)
            patch.setitem(sys.modules, name, stand_in)
        patch.delitem(sys.modules, metrics, raising=False)
        yield importlib.import_module(metrics), importlib.import_module("nuscenes.eval.prediction.data_classes")
        sys.modules.pop(metrics, None)


def draw(seed: int, agents: int, modes: int, steps: int, levels: int):
    """Forecasts near the truth, of scores that are often the same, where ``levels`` is small."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(agents, steps, 2)).cumsum(axis=1)
    position = truth[:, None] + rng.normal(size=(agents, modes, 1, 2)) * 2 + rng.normal(size=(agents, modes, steps, 2))
    return position, rng.integers(1, levels + 1, (agents, modes)) / levels, truth, rng


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999), agents=st.integers(1, 5), modes=st.integers(1, 25), steps=st.integers(1, 12),
    levels=st.integers(1, 40),
)  # fmt: skip
def test_the_devkit_says_the_same(devkit, seed, agents, modes, steps, levels):
    theirs, classes = devkit
    position, score, truth, _ = draw(seed, agents, modes, steps, levels)
    mean = theirs.RowMean()
    measures = (theirs.MinADEK, theirs.MinFDEK, theirs.MissRateTopK)
    measures = [
        measure(list(KS), [mean], **({"tolerance": TOLERANCE} if i == 2 else {})) for i, measure in enumerate(measures)
    ]
    expected = []
    for of_agent in range(agents):
        said = classes.Prediction("instance", "sample", position[of_agent], score[of_agent])
        expected.append(np.concatenate([measure(truth[of_agent], said) for measure in measures], axis=1))
    found = forecast_errors(position, score, truth)
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.mean(axis=0), mean(np.concatenate(expected)), rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), modes=st.integers(1, 12), steps=st.integers(1, 8))
def test_unknown_steps_do_not_count(seed, modes, steps):
    position, score, truth, rng = draw(seed, 4, modes, steps, 3)
    known = rng.random((4, steps)) < 0.6
    errors = forecast_errors(position, score, np.where(known[..., None], truth, np.nan), known)
    for agent in range(4):
        steps_known = np.flatnonzero(known[agent])
        if not len(steps_known):
            assert np.isnan(errors[agent]).all()
            continue
        only = forecast_errors(position[[agent]][:, :, steps_known], score[[agent]], truth[[agent]][:, steps_known])
        np.testing.assert_allclose(errors[agent], only[0], atol=1e-12)


def test_k_of_equally_likely_ways():
    """As the devkit orders them: the last of equal ones first."""
    values, score = np.array([[3.0, 1.0, 2.0, 0.0]]), np.array([[0.4, 0.2, 0.2, 0.2]])
    assert top_k(values, score, (1, 2, 3, 4, 9)).tolist() == [[3, 0, 0, 0, 0]]
    assert top_k(values, np.array([[0.4, 0.3, 0.2, 0.1]]), (1, 2, 3, 4)).tolist() == [[3, 1, 1, 0]]


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"scores \[1, 3\].*expected"):
        forecast_errors(np.zeros((1, 2, 6, 2)), np.ones((1, 3)), np.zeros((1, 6, 2)))
    with pytest.raises(ValueError, match="finite positions"):
        forecast_errors(np.full((1, 2, 6, 2), np.nan), np.ones((1, 2)), np.zeros((1, 6, 2)))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 9999), true=st.integers(0, 6), found=st.integers(0, 12))
def test_the_best_chooses_first(seed, true, found):
    rng = np.random.default_rng(seed)
    of_true, of_found = rng.integers(0, 2, true), rng.integers(0, 2, found)
    at_true, at_found = rng.uniform(-3, 3, (true, 2)), rng.uniform(-3, 3, (found, 2))
    score = rng.integers(0, 4, found) / 4
    expected = [-1] * true
    for row in sorted(range(found), key=lambda i: (-score[i], -i)):
        free = [
            (np.hypot(*(at_found[row] - at_true[g])), g)
            for g in range(true)
            if expected[g] < 0 and of_true[g] == of_found[row]
        ]
        if free and min(free)[0] < REACH:
            expected[min(free)[1]] = row
    assert match_centers(at_true, of_true, at_found, of_found, score).tolist() == expected


def straight(count: int, speed: float, steps: int = 6) -> np.ndarray:
    return np.arange(1, steps + 1)[None, :, None] * np.array([speed / 2, 0.0]) * np.ones((count, 1, 1))


def test_who_counts_and_who_is_found():
    """Five true ones: found; not found; its future is cut off; no sensor saw it; a barrier."""
    center = np.array([[0.0, 0], [20, 0], [40, 0], [0, 20], [0, -20]])
    position = center[:, None] + straight(5, 4.0)
    heading = np.zeros((5, 6))
    heading[0] = np.linspace(0, 0.5, 6)
    known = np.ones((5, 6), dtype=bool)
    known[2, 4:] = False
    label = np.array([CAR, CAR, CAR, CAR, BARRIER])
    around = Around(center, np.zeros(5), label, np.array([1, 1, 1, 0, 1], dtype=bool), position, heading, known)
    asked = []

    def say(rows):
        asked.extend(rows.tolist())
        return {"model": (np.zeros((len(rows), 1, 6, 2)), np.ones((len(rows), 1)))}

    where = np.array([[40.0, 0.1], [0.5, 0], [0, 20]])
    scored = score_agents(around, where, np.full(3, CAR), np.array([0.9, 0.5, 0.3]), say, "scene")
    assert asked == [1] and scored.found.tolist() == [True, False] and scored.label.tolist() == [CAR, CAR]
    assert scored.way.tolist() == [2, 1]  # the first turns by half a radian
    np.testing.assert_allclose(
        scored.errors["model"][0], forecast_errors(np.zeros((1, 1, 6, 2)), np.ones((1, 1)), position[:1])[0]
    )
    assert np.isnan(scored.errors["model"][1]).all()


def sample(rng: np.random.Generator, scene: str, better: float) -> ScoredAgents:
    count = int(rng.integers(0, 6))
    found = rng.random(count) < 0.7
    usual = rng.uniform(0.5, 2, (count, len(ERRORS)))
    usual[:, -3:] = usual[:, -3:] > 1.5
    errors = {"constant_velocity": usual, "model": usual * better, "stationary": usual + 1}
    errors = {name: np.where(found[:, None], of, np.nan) for name, of in errors.items()}
    return ScoredAgents(scene, rng.choice([CAR, PEDESTRIAN], count), rng.integers(0, 3, count), found, errors)


@pytest.mark.parametrize("scenes", [1, 9])
def test_the_numbers_of_a_split(scenes):
    rng = np.random.default_rng(scenes)
    samples = [sample(rng, f"scene-{i % scenes}", 0.8) for i in range(40)]
    scores = score_forecasts(samples)
    assert {"all", "stands", "straight", "turns", "vehicle", "pedestrian", "cycle"} == set(scores)
    for group, row in scores.items():
        rows = [
            (found, of[i])
            for s in samples
            for of in [s.errors["model"]]
            for i, found in enumerate(s.found)
            if group == "all"
            or group == ("stands", "straight", "turns")[s.way[i]]
            or group == {CAR: "vehicle", PEDESTRIAN: "pedestrian"}[s.label[i]]
        ]
        of_found = np.array([errors for found, errors in rows if found]).reshape(-1, len(ERRORS))
        assert row["true"] == len(rows) and row["found"] == len(of_found)
        if not rows:
            assert np.isnan(row["recall"]) and np.isnan(row["model"]["minADE_1"])
            continue
        assert row["recall"] == pytest.approx(len(of_found) / len(rows))
        for i, name in enumerate(ERRORS):
            assert row["model"][name] == pytest.approx(of_found[:, i].mean())
        for i, name in enumerate(ALL_MISSED):
            assert row["model"][name] == pytest.approx(np.mean([1.0 if not f else e[-3 + i] for f, e in rows]))
        skill = row["skill"]["minADE_5"]
        assert skill["value"] == pytest.approx(0.2)
        if scenes == 1:
            assert skill["interval"] is None and not skill["distinguishable"]
        else:
            low, high = row["model"]["intervals"]["minADE_5"]
            assert low <= row["model"]["minADE_5"] <= high and low < high
            assert skill["interval"] == pytest.approx((0.2, 0.2)), "what is hard for both is no difference"
            assert skill["distinguishable"] == (scenes >= FEWEST_SCENES)


def test_a_split_in_which_nobody_is():
    empty = sample(np.random.default_rng(0), "scene", 1.0)
    nobody = ScoredAgents(
        "scene", empty.label[:0], empty.way[:0], empty.found[:0], {"model": np.zeros((0, len(ERRORS)))}
    )
    row = score_forecasts([nobody])["all"]
    assert row["true"] == row["found"] == 0 and np.isnan(row["recall"]) and row["intervals"]["recall"] is None
    assert score_forecasts([])["all"]["true"] == 0
