"""Plans speak of 0.5, 1.0 ... s from now, keyframes come when they come: nobody is better or worse for that."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import CAR, CONE, arc, boxes, drives, straight

from fusion3d.metrics.planning import Drives, score_plans
from fusion3d.metrics.planning.contacts import EGO, interpolate, meet
from fusion3d.metrics.planning.drives import GAP, LATE
from fusion3d.metrics.planning.paths import at_times

TIME = 0.5 * np.arange(1, 7)


def jittered(seed: int, count: int, speed=(2, 12), rate=(-0.2, 0.2), people: int = 10) -> Drives:
    """Cars on circles among agents that drive straight on, at keyframes 0.4 to 0.6 s apart."""
    rng = np.random.default_rng(seed)
    times = 0.5 * np.arange(-2, 10) + rng.uniform(-0.05, 0.05, (count, 12))
    times[:, 2] = 0
    speed, rate = rng.uniform(*speed, count), rng.uniform(*rate, count)
    poses = np.concatenate([arc(speed[i], rate[i], times[i]) for i in range(count)])
    rows = []
    for sample in range(count):
        for track in range(people):
            place, move = rng.uniform((-10, -12), (40, 12)), rng.normal(0, 2, 2)
            x, y = (place + times[sample, :, None] * move).T
            yaw = np.arctan2(move[1], move[0])
            rows += [(sample, step, track, CAR, x[step + 2], y[step + 2], 4.6, 1.95, yaw) for step in range(-2, 10)]
    of = drives(poses[:, 3:9], boxes(rows), poses[:, [1, 0]])
    beyond = np.concatenate([poses[:, 9:], times[:, 9:, None]], axis=-1)
    return dataclasses.replace(of, future_time=times[:, 3:9], past_time=-times[:, [1, 0]], beyond=beyond)


def row_of(scores, name: str) -> dict[str, float]:
    return {**scores["protocols"]["exact"]["planners"][name], **scores["pdm"][name]}


def test_the_human_is_scored_as_anybody():
    """(i) the driven path handed in as a plan has the human's row in every number, comfort too."""
    of = jittered(0, 60)
    scores = score_plans({"mine": of.path.copy(), "keyframes": of.future}, of, ["exact"])
    mine, human = row_of(scores, "mine"), row_of(scores, "human")
    assert mine == pytest.approx(human, nan_ok=True) and mine["N"] == 60
    assert mine["L2@3s"] == 0 and mine["C"] > 0.95 and 0 < mine["collision@3s"] < 1
    wrong = row_of(scores, "keyframes")
    assert wrong["L2@3s"] > 0.05 and wrong["C"] < 0.9, "the keyframes' places are not those of the plan's times"


def test_who_keeps_his_speed_makes_no_error():
    """(ii) straight on at constant velocity, whenever the keyframes come: no error and no jump."""
    of = jittered(1, 40, rate=(0, 1e-12), people=0)
    speed = of.future[:, 0, 0] / of.future_time[:, 0]
    scores = score_plans({"mine": straight(speed)}, of, ["exact"])
    for name in ("mine", "constant_velocity", "ctrv", "human"):
        row = row_of(scores, name)
        assert [row[f"L2@{end}"] for end in ("1s", "2s", "3s")] == pytest.approx([0, 0, 0], abs=1e-9), name
        assert (row["EP"], row["C"]) == (pytest.approx(1), 1)


def test_on_a_circle_the_chord_is_all_that_is_lost():
    of = jittered(2, 30)
    rate = of.future[:, 0, 2] / of.future_time[:, 0]
    chord = np.linalg.norm(of.future[:, 0, :2], axis=1)
    speed = chord / np.sinc(of.future[:, 0, 2] / 2 / np.pi) / of.future_time[:, 0]
    truth = arc(speed, rate, TIME)
    sagitta = (speed * np.abs(rate) * 0.6**2 / 8)[:, None]
    assert (np.linalg.norm((of.path - truth)[..., :2], axis=-1) <= sagitta + 1e-9).all()
    np.testing.assert_allclose(of.path[..., 2], truth[..., 2], atol=1e-9)


def test_a_gap_masks():
    """(iii) a keyframe is missing: nothing is known of what comes after, nor in between."""
    time = np.array([0.5, 1.0, 2.0, 2.5, 3.0, 3.5])
    of = dataclasses.replace(drives(straight(4.0)), future=arc(4.0, 0.0, time), future_time=time[None])
    assert of.path_known[0].tolist() == [True, True] + 4 * [False] and not of.path[0, 2:].any()
    rows = score_plans({}, of, ["exact"])["protocols"]["exact"]["planners"]
    assert rows["ctrv"]["N"] == 0 and np.isnan(rows["ctrv"]["L2@1s"])
    short = score_plans({"m": straight(4.0, 2)}, of, ["exact"])["protocols"]["exact"]["planners"]["m"]
    assert (short["N"], short["N@1s"]) == (1, 1) and short["L2@1s"] == pytest.approx(0) and np.isnan(short["N@2s"])
    edge = dataclasses.replace(of, future_time=np.cumsum([0.5, 0.5, GAP, 0.5, 0.5, 0.5])[None])
    assert edge.path_known.all()


def test_the_last_keyframe_may_be_a_little_early():
    """One more after it decides; else the car goes on for a tenth of a second, and not for more."""
    for early, known in ((0.0, True), (LATE - 0.01, True), (LATE + 0.01, False)):
        time = np.append(TIME[:5], 3.0 - early)
        of = dataclasses.replace(drives(straight(4.0)), future=arc(4.0, 0.0, time), future_time=time[None])
        assert of.path_known[0].tolist() == 5 * [True] + [known]
        np.testing.assert_allclose(of.path[of.path_known], straight(4.0)[of.path_known], atol=1e-12)
        after = np.array([[[4.0 * 3.4, 0, 0, 3.4]]])
        more = dataclasses.replace(of, beyond=after)
        assert more.path_known.all() and more[np.array([True])].beyond is not None
        np.testing.assert_allclose(more.path, straight(4.0), atol=1e-12)
        none = dataclasses.replace(of, beyond=np.full((1, 1, 4), np.nan))
        np.testing.assert_array_equal(none.path_known, of.path_known)


def test_agents_are_where_they_are_by_the_keyframes_times():
    """A car at 10 m/s, seen after 0.42, 1.03 and 1.48 s, and one seen once, after 0.42 s."""
    time = np.array([0.42, 1.03, 1.48, 2.0, 2.5, 3.0])
    rows = [(0, step, 0, CAR, 10 * time[step - 1], 0.0, 4.6, 1.95, 0.0) for step in (1, 2, 3)]
    of = dataclasses.replace(
        drives(straight(1.0), boxes([*rows, (0, 1, 1, CONE, 9, 9, 1, 1, 0)])), future_time=time[None]
    )
    found = interpolate(of.agents, of.agent_time)
    car = np.flatnonzero(found.track == 0)
    assert found.instant[car].tolist() == [*range(4, 16)], "from and until the nearest instant"
    np.testing.assert_allclose(found.box[car, 0], 1.0 * found.instant[car])
    np.testing.assert_allclose(found.speed[car][1:], 10.0)
    assert found.instant[found.track == 1].tolist() == [4] and np.isnan(found.speed[found.track == 1]).all()
    apart = interpolate(of.agents, of.agent_time + np.where(of.agents.step > 1, 0.2, 0))
    assert sorted(apart.instant[apart.track == 0].tolist()) == [4, *range(12, 18)], "not over a gap"


@pytest.mark.parametrize("seed", [0, 1])
def test_whom_one_meets_does_not_depend_on_when_keyframes_come(seed):
    """Agents at constant velocity are the same at regular keyframes: so are all contacts but those of rounding."""
    of = jittered(seed, 40)
    agents = of.agents
    identity = agents.sample * 100 + agents.track
    now = {key: agents.box[row] for row, key in enumerate(identity) if agents.step[row] == 0}
    one = {key: (agents.box[row], of.agent_time[row]) for row, key in enumerate(identity) if agents.step[row] == 1}
    box = agents.box.copy()
    for row, key in enumerate(identity):
        box[row, :2] = now[key][:2] + 0.5 * agents.step[row] * (one[key][0][:2] - now[key][:2]) / one[key][1]
    even = dataclasses.replace(
        of,
        agents=dataclasses.replace(agents, box=box),
        future=of.path,
        future_time=np.broadcast_to(TIME, (40, 6)),
        beyond=None,
    )
    plan = of.path + np.random.default_rng(seed).normal(0, 0.3, of.path.shape) * np.array([1, 1, 0.1])
    ours, theirs = (meet({"m": plan}, world)["m"] for world in (of, even))
    np.testing.assert_allclose(ours.clearance, theirs.clearance, atol=1e-9)
    assert ours.any.mean() > 0.02 and EGO.length > 4
    np.testing.assert_array_equal(ours.hit, theirs.hit)
    np.testing.assert_array_equal(ours.no_collision, theirs.no_collision)
    np.testing.assert_array_equal(ours.time_to_collision, theirs.time_to_collision)


def test_poses_at_other_times():
    path = np.array([[[0.0, 0, 3.0], [2, 1, -3.0], [9, 9, 9]]])
    found = at_times(path, np.array([[0.0, 1.0, 2.0]]), np.array([2]), np.array([[0.0, 0.5, 1.0, 1.5]]))[0]
    np.testing.assert_allclose(found[:, :2], [[0, 0], [1, 0.5], [2, 1], [3, 1.5]])
    np.testing.assert_allclose(np.abs(found[1, 2]), np.pi, atol=1e-9)
    assert found[3, 2] == pytest.approx(-3.0 + 0.5 * (2 * np.pi - 6))
