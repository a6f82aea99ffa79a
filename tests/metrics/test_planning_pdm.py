"""The PDM-style score, baselines, slices and skill, each against what is known beforehand."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from worlds import CAR, CONE, arc, boxes, drives, parked, straight, traffic

from fusion3d.metrics.bootstrap import FEWEST_SCENES
from fusion3d.metrics.planning import Ground, Map, score_plans
from fusion3d.metrics.planning.baselines import (
    constant_turn,
    constant_velocity,
    make_anchors,
    nearest_anchor,
    stationary,
)
from fusion3d.metrics.planning.paths import sweep
from fusion3d.metrics.planning.pdm import BOUNDS, between_lanes, comfortable, in_junction, off_road, progress
from fusion3d.metrics.planning.slices import manoeuvres, skill_table
from fusion3d.types import EGO_CENTER, EGO_SIZE

TIME = 0.5 * np.arange(1, 7)


def lane(half: float, known) -> Ground:
    """A road along x of so many metres to both sides."""
    return Ground(np.asarray(known), lambda row, xy: np.abs(xy[:, 1]) < half)


def test_the_human_is_near_one_who_stands_near_nothing():
    """(l) on curved roads without anybody: human 1, constant velocity between, standing without progress."""
    rate = np.linspace(-0.1, 0.1, 41)
    speed = np.linspace(4, 9, 41)
    of = drives(arc(speed, rate, TIME), past=arc(speed, rate, -0.5 * np.arange(1, 3)))
    centre = speed / np.where(rate == 0, 1e-9, rate)

    def on_the_bend(row, xy):
        return np.abs(np.hypot(xy[:, 0], xy[:, 1] - centre[row]) - abs(centre[row])) < 3.0

    table = score_plans({}, of, ["exact"], Map(Ground(np.ones(41, dtype=bool), on_the_bend)))["pdm"]
    assert table["human"]["PDMS"] == 1 and table["human"]["num_with_map"] == 41
    assert table["ctrv"]["PDMS"] == pytest.approx(1, abs=1e-6)
    assert table["stationary"]["EP"] == 0
    assert table["stationary"]["PDMS"] < table["constant_velocity"]["PDMS"] < 0.95
    assert 0.3 < table["constant_velocity"]["DAC"] < 0.9


def test_the_score_is_of_each_sample_and_then_averaged():
    """Into a parked car, off the road, and fine: 0, 0 and 1, though each factor alone is 2/3."""
    of = drives(np.repeat(straight(4.0), 3, 0), boxes(parked(0, 12, 0)))
    plan = np.repeat(straight(4.0), 3, 0)
    plan[1, 3:, 1] = 3
    row = score_plans({"m": plan}, of, ["exact"], Map(lane(3.0, [True] * 3)))["pdm"]["m"]
    assert row["NC"] == row["DAC"] == pytest.approx(2 / 3)
    assert row["PDMS"] == pytest.approx(1 / 3)


def test_without_a_map_there_is_no_dac():
    of = drives(np.repeat(straight(4.0), 2, 0))
    plan = np.repeat(straight(4.0), 2, 0)
    plan[..., 1] = 0.0
    aside = plan + np.array([0, 50.0, 0])
    row = score_plans({"m": aside}, of, ["exact"])["pdm"]["m"]
    assert np.isnan(row["DAC"]) and row["num_with_map"] == 0 and row["NC"] == 1
    row = score_plans({"m": aside}, of, ["exact"], Map(lane(3.0, [True, False])))["pdm"]["m"]
    assert row["DAC"] == 0 and row["num_with_map"] == 1, "of the sample with a map alone"
    off = off_road(aside, lane(3.0, [True, False]))
    assert off[0].any() and not off[1].any()


def test_off_the_road_is_a_corner():
    plan = straight(4.0)
    assert not off_road(plan, lane(0.9, [True])).any()
    assert off_road(plan, lane(0.85, [True])).all(), "half of the car is 0.865 m wide"


def lanes(row: int, xy: np.ndarray) -> np.ndarray:
    """[M, 3]: two lanes of 3 m beside each other until x = 10, of which the right one goes on as another."""
    x, y = xy.T
    right = (y > -1.5) & (y < 1.5)
    return np.stack([right & (x < 10), (y > 1.5) & (y < 4.5) & (x < 10), right & (x >= 10)], axis=-1)


def test_between_lanes_is_a_bumper_on_two():
    plan = np.concatenate([straight(4.0)] * 4)
    plan[:, :, 1] = np.array([0.0, 1.0, 3.0, -1.0])[:, None]
    between = between_lanes(plan, Ground(np.ones(4, dtype=bool), lambda row, xy: None, lanes))
    late = slice(5, None)  # until then it gets to the side
    assert not between[[0, 2, 3], late].any(), "in one, in the other, and half off all of them; going on is no change"
    rear = 4.0 * np.arange(1, 31) / 10 + EGO_CENTER - EGO_SIZE[0] / 2
    np.testing.assert_array_equal(between[1, late], (rear < 10)[late])  # beyond, there is nothing on the left
    assert between[1, late].any() and not between[1, late].all()
    unknown = Ground(np.array([True, False, True, True]), lambda row, xy: None, lanes)
    assert not between_lanes(plan, unknown)[1].any()
    for none in (None, lambda row, xy: np.zeros((len(xy), 0), dtype=bool)):
        assert not between_lanes(plan, Ground(np.ones(4, dtype=bool), lambda row, xy: None, none)).any()


def test_in_an_intersection_those_at_the_sides_count():
    """One that drives into the ego's side, which is not its fault, is what it would hit in an intersection alone."""
    rows = [(0, step, 0, CAR, 5.0, 6.0 - step, 4.6, 1.95, -np.pi / 2) for step in range(9)]
    of, plan = drives(straight(2.0), boxes(rows)), straight(2.0)
    yes = np.ones(1, dtype=bool)

    def road(row: int, xy: np.ndarray) -> np.ndarray:
        return np.ones(len(xy), dtype=bool)

    found = {
        end: score_plans(
            {"m": plan}, of, ["exact"], Map(Ground(yes, road, junction=lambda row, xy, end=end: xy[:, 0] > end))
        )["pdm"]["m"]
        for end in (-9.0, 500.0)
    }
    assert found[500.0] == score_plans({"m": plan}, of, ["exact"], Map(Ground(yes, road)))["pdm"]["m"]
    assert (found[500.0]["TTC"], found[-9.0]["TTC"]) == (1, 0) and found[-9.0]["NC"] == found[500.0]["NC"] == 1
    inside = in_junction(plan, Ground(yes, road, junction=lambda row, xy: xy[:, 0] > 2.0))
    np.testing.assert_array_equal(inside, sweep(plan)[..., 0] > 2.0)
    assert not in_junction(plan, Ground(~yes, road, junction=lambda row, xy: xy[:, 0] > 2.0)).any()
    half = Map(Ground(np.array([True, True]), road, junction=lambda row, xy: np.full(len(xy), row == 1)))[[1]]
    assert half.ground.junction is not None and half.ground.junction(0, np.zeros((2, 2))).all()


def test_who_changes_lane_into_another_is_at_fault():
    """Side against side with one that keeps its lane: no fault of who keeps his, one of who comes over."""
    beside = [
        (sample, step, 0, CAR, EGO_CENTER - 1.0 + 2.0 * step, 3.0, 4.6, 1.95, 0)
        for sample in (0, 1)
        for step in range(-2, 9)
    ]
    of = drives(np.repeat(straight(4.0), 2, 0), boxes(beside))
    plan = np.repeat(straight(4.0), 2, 0)
    plan[0, :, 1] = np.linspace(0.3, 1.8, 6)
    plan[0, :, 2] = 0.0

    def road(row: int, xy: np.ndarray) -> np.ndarray:
        return np.abs(xy[:, 1]) < 6.0

    def wide(row: int, xy: np.ndarray) -> np.ndarray:
        return np.ones((len(xy), 1), dtype=bool)

    scores = {
        name: score_plans({"m": plan}, of, ["exact"], Map(Ground(np.ones(2, dtype=bool), road, of_lanes)))
        for name, of_lanes in (("unknown", None), ("one", wide), ("two", lanes))
    }
    rows = {name: score["pdm"]["m"] for name, score in scores.items()}
    assert scores["two"]["protocols"]["exact"]["planners"]["m"]["events"] == 1
    assert rows["unknown"]["NC"] == rows["one"]["NC"] == 1 and rows["two"]["NC"] == 0.5
    assert rows["two"]["DAC"] == 1 and rows["two"]["PDMS"] < rows["one"]["PDMS"]
    half = Map(Ground(np.ones(2, dtype=bool), road, lanes))[np.array([False, True])]
    assert half.ground.lanes is not None and half.ground.lanes(0, np.zeros((2, 2))).shape == (2, 3)


def test_progress():
    human = np.concatenate([straight(4.0)] * 6)
    plan = np.concatenate([straight(v) for v in (4.0, 2.0, 0.0, 8.0, -2.0, 3.0)])
    plan[5, :, 1] = 1.5
    np.testing.assert_allclose(progress(plan, human), [1, 0.5, 0, 1, 0, 0.75], atol=1e-9)
    slow = straight(1.0)
    assert progress(slow * 0, slow)[0] == 1, "3 m are too little to tell"
    assert progress(straight(3.0), slow * 0)[0] == 1
    bend = arc(6.0, 0.3, TIME)
    cut = bend.copy()
    cut[0, :, :2] *= 0.9
    assert 0.85 < progress(cut, bend)[0] < 0.95


def test_progress_is_worth_nothing_where_the_score_is_not():
    """NAVSIM v1.1: each way times its NC DAC, then relative to the longest; by hand on 12 m of the human's."""
    plan, human = straight(3.0), straight(4.0)  # 9 and 12 m
    cases = {(1, 1): 0.75, (0.5, 1): 4.5 / 12, (0, 1): 0, (1, 0.5): 1, (1, 0): 1, (0.5, 0.5): 0.75, (0, 0): 0}
    for (own, other), expected in cases.items():
        assert progress(plan, human, np.array([own]), np.array([other]))[0] == pytest.approx(expected), (own, other)
    slow = straight(1.0)
    found = [progress(slow, slow, np.array([own]), 1.0)[0] for own in (1, 0.5, 0)]
    assert found == [1, 1, 0], "3 m are too little to tell, but not without the fault"


def test_a_cone_halves_the_progress_too():
    """9 m of the human's 12, and a cone at the side is touched: NC 0.5, EP 4.5 / 12."""
    of = drives(straight(4.0), boxes(parked(0, 9.0, 1.2, category=CONE, size=(0.4, 0.4))))
    plan = straight(3.0)
    plan[..., 1] = 0.5
    rows = score_plans({"m": plan}, of, ["exact"], Map(lane(3.0, [True])))["pdm"]
    row, human = rows["m"], rows["human"]
    off = score_plans({"m": plan + np.array([0, 9.0, 0])}, of, ["exact"], Map(lane(3.0, [True])))["pdm"]["m"]
    assert (row["NC"], human["NC"], row["DAC"]) == (0.5, 1, 1) and row["EP"] == pytest.approx(0.375)
    assert row["PDMS"] == pytest.approx(0.5 * (5 * row["TTC"] + 5 * 0.375 + 2 * row["C"]) / 12)
    assert (off["DAC"], off["EP"], off["PDMS"]) == (0, 0, 0)


def test_comfort_bounds():
    """Constant acceleration just under and over each bound; turning likewise."""

    def feels(future, past=None):
        return bool(comfortable(future, drives(future, past=past))[0])

    def speeding(acceleration, start=15.0):
        path = np.zeros((1, 6, 3))
        path[0, :, 0] = start * TIME + 0.5 * acceleration * TIME**2
        before = np.zeros((1, 2, 3))
        before[0, :, 0] = -start * TIME[:2] + 0.5 * acceleration * TIME[:2] ** 2
        return path, before

    assert feels(*speeding(2.3)) and not feels(*speeding(2.5))
    assert feels(*speeding(-4.0)) and not feels(*speeding(-4.1))
    turns = {rate: arc(2.0, rate, TIME) for rate in (0.93, 0.97)}
    assert [feels(path, arc(2.0, rate, -TIME[:2])) for rate, path in turns.items()] == [True, False]
    fast = {v: arc(v, 0.5, TIME) for v in (9.0, 10.5)}  # lateral acceleration is speed times yaw rate
    assert [feels(path, arc(v, 0.5, -TIME[:2])) for v, path in fast.items()] == [True, False]
    assert not feels(straight(8.0), straight(2.0) * 0 - np.array([1.0, 0, 0])), "6 m/s in half a second"
    assert BOUNDS["jerk"] == 8.37


def test_comfort_is_by_real_times():
    """Keyframes 0.4 and 0.6 s apart at constant speed: comfortable by their times, not as if they were even."""
    time = np.array([[0.4, 1.0, 1.4, 2.0, 2.4, 3.0]])
    path = np.zeros((1, 6, 3))
    path[..., 0] = 10 * time
    of = dataclasses.replace(drives(path, past=-straight(10.0, 2)), future_time=time)
    assert comfortable(straight(10.0), of)[0] and not comfortable(path, of)[0]
    assert score_plans({"m": path}, of, ["exact"])["pdm"]["human"]["C"] == 1
    late = dataclasses.replace(of, past=of.past * 0.8, past_time=of.past_time * 0.8)
    assert (
        comfortable(straight(10.0), late)[0]
        and not comfortable(straight(10.0), dataclasses.replace(late, past_time=of.past_time))[0]
    ), "the keyframe before was 0.4 s ago"


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 20), st.floats(-0.6, 0.6), st.floats(0.4, 0.6))
def test_constant_turn_goes_on_along_any_circle(speed, rate, interval):
    of = drives(arc(speed, rate, TIME), past=arc(speed, rate, -interval * np.arange(1, 3)))
    of = dataclasses.replace(of, past_time=interval * np.array([[1.0, 2.0]]))
    np.testing.assert_allclose(constant_turn(of, 6), of.future, atol=1e-9)
    if rate == 0:
        np.testing.assert_allclose(constant_velocity(of, 6), of.future, atol=1e-9)


def test_baselines_without_a_past_stand_still():
    of = drives(straight(5.0))
    lost = dataclasses.replace(of, past_known=np.zeros((1, 2), dtype=bool))
    for make in (constant_turn, constant_velocity, stationary):
        assert not make(lost, 6).any()


def test_no_baseline_looks_ahead():
    """(j) another future and other agents after now change no baseline."""
    of = traffic(1, 30)
    rng = np.random.default_rng(0)
    agents = dataclasses.replace(of.agents, box=np.where(of.agents.step[:, None] > 0, 99.0, of.agents.box))
    other = dataclasses.replace(of, future=of.future[:, rng.permutation(6)] + 1, agents=agents)
    for make in (constant_turn, constant_velocity, stationary):
        np.testing.assert_array_equal(make(of, 6), make(other, 6))


def test_anchors_are_the_kinds_of_paths_that_there_are():
    rng = np.random.default_rng(0)
    kinds = np.concatenate([arc(v, w, TIME) for v, w in ((0.0, 0.0), (5.0, 0.0), (10.0, 0.0), (5.0, 0.4), (5.0, -0.4))])
    paths = np.repeat(kinds, 20, 0) + rng.normal(0, 0.01, (100, 6, 3))
    anchors = make_anchors(paths, 5)
    distance = np.linalg.norm(anchors[:, None, :, :2] - kinds[None, ..., :2], axis=-1).max(axis=-1)
    assert distance.min(axis=0).max() < 0.02 and len(anchors) == 5
    of = drives(paths)
    away = np.linalg.norm(nearest_anchor(anchors, of)[..., :2] - paths[..., :2], axis=-1)
    assert away.max() < 0.1
    assert len(make_anchors(np.repeat(kinds[:2], 3, 0), 32)) == 2, "no more than there are"
    np.testing.assert_allclose(np.abs(make_anchors(paths[60:80], 1)[0, :, 2] - kinds[3, :, 2]), 0, atol=0.02)
    with pytest.raises(ValueError, match="no driven path"):
        make_anchors(paths[:0], 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 20))
def test_there_are_as_many_anchors_as_asked_for_if_there_are_paths(seed, count):
    """Where k-means leaves a cluster empty, which the paths that are near and far from each other bring about."""
    rng = np.random.default_rng(seed)
    paths = np.cumsum(rng.normal(0, 1, (24, 6, 3)) ** 5, axis=1)
    anchors = make_anchors(paths, count)
    assert anchors.shape == (count, 6, 3) and np.isfinite(anchors).all()
    np.testing.assert_array_equal(anchors, make_anchors(paths, count))
    away = np.linalg.norm(paths[:, None, :, :2] - anchors[None, ..., :2], axis=-1).mean(axis=-1)
    whole = np.linalg.norm(paths[..., :2] - paths[..., :2].mean(axis=0), axis=-1).mean(axis=-1)
    assert away.min(axis=1).mean() <= whole.mean() + 1e-9


def test_manoeuvres():
    def speeds(*values):
        path = np.zeros((1, 6, 3))
        path[0, :, 0] = 0.5 * np.cumsum(values)
        return path

    cases = {
        "stop": (speeds(5, 4, 3, 2, 1, 0), 6.0),
        "start": (speeds(0, 0, 1, 2, 3, 4), 0.0),
        "stand": (speeds(0, 0, 0, 0, 0, 0), 0.0),
        "left": (arc(5.0, 0.3, TIME), 5.0),
        "right": (arc(5.0, -0.3, TIME), 5.0),
        "curve": (arc(5.0, 0.05, TIME), 5.0),
        "accelerate": (speeds(5, 6, 7, 8, 8, 8), 5.0),
        "brake": (speeds(8, 7, 6, 5, 4, 3), 8.0),
        "straight": (speeds(8, 8, 8, 8, 8, 8), 8.0),
    }
    future = np.concatenate([path for path, _ in cases.values()])
    past = -np.concatenate([straight(now, 2) for _, now in cases.values()])
    of = drives(future, past=past)
    assert manoeuvres(of).tolist() == list(cases)
    lost = dataclasses.replace(of, past_known=np.zeros((len(cases), 2), dtype=bool))
    assert set(manoeuvres(lost)) == {""}


def test_skill_is_over_constant_turn_and_paired():
    """A planner whose error is always half of CTRV's: skill 0.5 in every draw, whatever the scenes."""
    of = traffic(2, 200)
    rng = np.random.default_rng(0)
    future = of.future + rng.normal(0, 1, (200, 1, 1))
    of = dataclasses.replace(of, future=future, about={"light": tuple("day" if i % 3 else "night" for i in range(200))})
    base = constant_turn(of, 6)
    plans = {
        "half": (base + future) / 2,
        "same": base.copy(),
        "worse": 2 * base - future,
        "ctrv": base,
        "human": future,
    }
    table = skill_table(plans, of)
    assert list(table) == ["half", "same", "worse"]
    assert {"all", "light: night", "macro"} <= set(table["half"])
    assert any(title.startswith("manoeuvre: ") for title in table["half"])
    for title, row in table["half"].items():
        if title == "macro":
            assert row["skill"] == pytest.approx(0.5)
            continue
        assert row["skill"] == pytest.approx(0.5) and (row["scenes"] < 2) == np.isnan(row["low"])
        if row["scenes"] < FEWEST_SCENES:
            assert row["says"] == "not distinguishable"
        else:
            np.testing.assert_allclose([row["low"], row["high"]], 0.5)
            assert row["says"] == "better"
            assert table["same"][title]["says"] == "not distinguishable"
            assert table["worse"][title]["says"] == (
                "worse" if table["worse"][title]["high"] < 0 else "not distinguishable"
            )
    total = sum(row["N"] for title, row in table["half"].items() if title.startswith("manoeuvre: "))
    assert total == table["half"]["all"]["N"] == 200, "manoeuvres divide the samples"


def test_where_ctrv_has_no_error_there_is_no_skill():
    """Some stand, which CTRV foresees exactly: the macro-average is of the other manoeuvres."""
    future = np.concatenate([straight(np.zeros(5)), arc(np.full(5, 6.0), np.full(5, 0.3), TIME)])
    of = drives(future)
    base = constant_turn(of, 6)
    rows = skill_table({"half": (base + future) / 2, "ctrv": base, "human": future}, of)["half"]
    assert np.isnan(rows["manoeuvre: stand"]["skill"]) and rows["manoeuvre: left"]["skill"] == pytest.approx(0.5)
    assert rows["macro"] == {"skill": pytest.approx(0.5), "N": 1}
