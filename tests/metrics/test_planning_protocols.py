"""Every published protocol against what its code is known to do, and the exact one against what it must."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

sys.path.insert(0, str(Path(__file__).parent))

from worlds import CAR, CONE, NAMES, arc, boxes, drives, parked, straight, traffic

from fusion3d.data.tracks import TrackScene
from fusion3d.engine import drives as engine_drives
from fusion3d.engine.drives import drives_of_tracks
from fusion3d.errors import DataError
from fusion3d.metrics.planning import PROTOCOLS, Agents, Boundaries, Drives, published, score_plans
from fusion3d.metrics.planning.contacts import meet
from fusion3d.metrics.planning.exact import highest_share
from fusion3d.metrics.planning.protocols import BEV_PLANNER, PUBLISHED, SPARSEDRIVE, STP3, UNIAD, VAD, Protocol
from fusion3d.metrics.planning.published import hits, score_published
from fusion3d.metrics.planning.rectangles import clearance, overlap

ENDS = ("1s", "2s", "3s")


LENGTHS = [41] * 19 + [40] * 131  # keyframes of 150 scenes: 6019, as nuScenes' val


def scene_drives(lengths) -> Drives:
    """Cars at 5 m/s in scenes of so many keyframes, of which nothing is known beyond their ends."""
    nobody = np.zeros((0, 2)), np.zeros((0, max(lengths), 3))
    scenes = []
    for i, length in enumerate(lengths):
        time = 0.5 * np.arange(length)
        ego = np.stack([5 * time, 0 * time, 0 * time], axis=-1)
        tokens = tuple(f"{i}-{k}" for k in range(length))
        scenes.append(TrackScene(f"scene-{i}", "town", tokens, time, ego, (), nobody[0], nobody[1][:, :length]))
    return drives_of_tracks(scenes)


VAL = scene_drives(LENGTHS)


def aside(of: Drives, by: float) -> np.ndarray:
    plan = of.future.copy()
    plan[..., 1] += by
    return plan


@pytest.fixture(scope="module")
def on_val():
    return score_plans({"model": aside(VAL, 1)}, VAL)


def test_sample_sets_are_those_that_circulate(on_val):
    """(k) 6019, 5119 and 4819 samples, as many as their scenes' lengths leave."""
    found = on_val
    count = {name: of["planners"]["model"]["N"] for name, of in found["protocols"].items()}
    assert count == {
        "exact": 4969, "uniad": 6019, "uniad_valid": 5119, "stp3": 4819, "vad": 5119, "sparsedrive": 5119,
        "bev_planner": 5119,
    }  # fmt: skip
    hashes = {name: of["samples"] for name, of in found["protocols"].items()}
    assert hashes["vad"] == hashes["sparsedrive"] == hashes["bev_planner"] == hashes["uniad_valid"]
    assert len(set(hashes.values())) == 4


@pytest.mark.parametrize(("steps", "counts"), [(3, (5569, 5269)), (6, (5119, 4819)), (12, (4219, 3919))])
def test_sample_sets_of_other_lengths(monkeypatch, steps, counts):
    """(k) with the whole future known, of 1.5, 3 or 6 s, and with two keyframes before too: 6019 - 150 (steps + 2)."""
    monkeypatch.setattr(engine_drives, "STEPS", steps)
    found = score_plans({}, scene_drives(LENGTHS))["protocols"]
    human = {name: of["planners"]["human"]["N"] for name, of in found.items()}
    assert (human["vad"], human["stp3"]) == counts
    assert human["uniad"] == 6019 and human["uniad_valid"] == human["sparsedrive"] == human["bev_planner"] == counts[0]


def test_a_metre_aside_is_less_where_unknown_futures_count(on_val):
    """(b) a constant offset of 1 m: UniAD's L2 is the share of known futures, all others' 1."""
    found = on_val["protocols"]
    diluted = [found["uniad"]["planners"]["model"][f"L2@{end}"] for end in ENDS]
    np.testing.assert_allclose(diluted, [1 - 150 * 2 * k / 6019 for k in (1, 2, 3)])
    np.testing.assert_allclose(diluted, [0.950, 0.900, 0.850], atol=5e-4)
    for name in set(PROTOCOLS) - {"uniad"}:
        np.testing.assert_allclose([found[name]["planners"]["model"][f"L2@{end}"] for end in ENDS], 1)


def test_the_human_is_the_floor():
    """(a) a plan that is what was driven has no error and no counted collision; unmasked it has the human's."""
    of = traffic(0, 60)
    found = score_plans({"model": of.future}, of)["protocols"]
    raw = 0
    for name, table in found.items():
        model, human = table["planners"]["model"], table["planners"]["human"]
        assert same(model, human)
        assert all(model[f"L2@{end}"] == 0 for end in ENDS)
        column = "masked" if name == "exact" else "collision"
        assert all(model[f"{column}@{end}"] == 0 for end in ENDS), name
        raw += model["collision@3s" if name == "exact" else "raw@3s"]
    assert raw > 0.5, "nobody is hit: the test says nothing"


def hit_by(protocol: Protocol, pose: np.ndarray, box: np.ndarray) -> np.ndarray:
    """[N] bool: does a car of boxes [N, 5] hit the ego at [N, 3] poses? Both in the protocol's frame."""
    one, yes = np.ones(len(box), dtype=np.int64), np.ones(len(box), dtype=bool)
    agents = Agents(np.arange(len(box)), one, box, one, 0 * one, yes, yes, ("vehicle.car",))
    return hits(protocol, pose[:, None], agents)[:, 0]


def neighbours(protocol: Protocol, side: str, gap: float, count: int = 2000) -> float:
    """The share of hits of a parallel car of 4.6 x 1.95 m so far from the ego's box, wherever on the grid."""
    rng = np.random.default_rng(0)
    place = rng.uniform((0, -10), (20, 10), (count, 2))
    ego = protocol.ego
    along, across = (ego.length + 4.6) / 2 + gap, (ego.width + 1.95) / 2 + gap
    left = -across if protocol.frame == "lidar" else across  # there the second axis points to the right
    away = {"left": (0, left), "right": (0, -left), "lead": (along, 0), "tail": (-along, 0)}[side]
    shift = np.stack([rng.uniform(-1, 1, count) * (side in ("left", "right")), np.zeros(count)], axis=1)
    center = place + np.array([ego.ahead, 0]) + shift + away
    box = np.column_stack([center, np.tile([4.6, 1.95, 0], (count, 1))])
    return float(hit_by(protocol, np.column_stack([place, np.zeros(count)]), box).mean())


GAPS = (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5, 0.7)
SIDES = ("left", "right", "lead", "tail")
TOWARDS, AWAY = (1.0, 1.0, 1.0, 1.0, 1.0, 0.66, 0.24), (0.66, 0.24, 0.0, 0.0, 0.0, 0.0, 0.0)
LEAD, TAIL = (0.40, 0.02, 0.0, 0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 1.0, 0.81, 0.42, 0.02)
TRUE = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
OF_GAPS = {
    UNIAD: (TOWARDS, AWAY, LEAD, TAIL),
    STP3: (AWAY, TOWARDS, LEAD, TAIL),  # the columns of the same grid go to the left
    VAD: (TOWARDS, AWAY, (1.0, 1.0, 0.62, 0.21, 0.0, 0.0, 0.0), (1.0, 1.0, 0.62, 0.23, 0.0, 0.0, 0.0)),
    BEV_PLANNER: (TRUE, TRUE, TRUE, TRUE),
    SPARSEDRIVE: (TRUE, TRUE, TRUE, TRUE),
}


@pytest.mark.parametrize(
    ("protocol", "side", "expected"),
    [(of, side, row) for of, rows in OF_GAPS.items() for side, row in zip(SIDES, rows, strict=True)],
    ids=lambda value: getattr(value, "name", value if isinstance(value, str) else ""),
)
def test_what_cells_make_of_a_gap(protocol, side, expected):
    """(c) the bias of the published grids, measured by running their code on random places."""
    found = [neighbours(protocol, side, gap) for gap in GAPS]
    np.testing.assert_allclose(found, expected, atol=0.03)


@pytest.mark.parametrize(
    ("protocol", "missed", "fired"),
    [(UNIAD, 0.24, 0.42), (STP3, 0.24, 0.42), (VAD, 0.24, 0.27), (BEV_PLANNER, 0.0, 0.0), (SPARSEDRIVE, 0.0, 0.0)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_box_that_does_not_turn(protocol, missed, fired):
    """(c) the ego across the grid, beside a parallel car: overlaps that are not seen, and hits of who is 0.5-1 m away.

    Of UniAD's code 0.23 and 0.35 are reported, of places that are not; these are of a car anywhere within 6 m.
    """
    rng = np.random.default_rng(0)
    pose = np.column_stack([rng.uniform((0, -10), (20, 10), (8000, 2)), np.full(8000, np.pi / 2)])
    ego = protocol.ego.along(pose)
    box = np.column_stack([ego[:, :2] + rng.uniform(-6, 6, (8000, 2)), np.tile([4.6, 1.95, np.pi / 2], (8000, 1))])
    away = clearance(ego, box)
    headed = pose if protocol.heading != "none" else pose * (1, 1, 0)
    hit = hit_by(protocol, headed, box)
    np.testing.assert_allclose(
        [1 - hit[away < 0].mean(), hit[(away > 0.5) & (away < 1)].mean()], [missed, fired], atol=0.03
    )


@pytest.mark.parametrize(("name", "side"), [("uniad", 1), ("uniad_valid", 1), ("vad", 1), ("stp3", -1)])
def test_a_millimetre_moves_the_car_by_a_cell(name, side):
    """(d) a car that stands: 1 mm to one side is a collision, 1 mm to the other is none; not so exactly.

    Of a neighbour on the left; in ST-P3, whose columns go to the left, of one on the right.
    """
    of = drives(np.zeros((2, 6, 3)), boxes([*parked(0, 1.44, 2.5 * side), *parked(1, 1.44, 2.5 * side)]))
    plan = np.zeros((2, 6, 3))
    plan[:, :, 1] = np.array([[0.001], [-0.001]]) * side
    found = [score_plans({"m": plan[[i]]}, of[[i]], (name, "exact"))["protocols"] for i in range(2)]
    assert [tables[name]["planners"]["m"]["raw@3s"] for tables in found] == [1, 0]
    assert [tables["exact"]["planners"]["m"]["collision@3s"] for tables in found] == [0, 0]


@pytest.mark.parametrize(
    ("protocol", "ahead", "behind"),
    [(UNIAD, (97, 104), (96, 103)), (STP3, (97, 104), (96, 103)), (VAD, (95, 102), (96, 103))],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_millimetre_ahead_is_a_row(protocol, ahead, behind):
    """(d) the rows of a car that stands, planned 1 mm ahead and 1 mm behind; VAD's are counted from the front."""
    assert protocol.raster is not None
    rows = protocol.raster.of_ego(np.array([[0.001, 0.0, 0.0], [-0.001, 0.0, 0.0]]), protocol.ego)[..., 0]
    assert [(of.min(), of.max()) for of in rows] == [ahead, behind]


AVERAGES = {
    "uniad": "at",
    "uniad_valid": "at",
    "stp3": "mean",
    "vad": "mean",
    "sparsedrive": "mean",
    "bev_planner": "mean",
}
HITS = AVERAGES | {"bev_planner": "any"}


def test_l2_is_that_at_the_time_or_the_mean_until_it():
    """(e) the published means are the cumulative means of the errors at the steps, over samples whose future counts."""
    of = traffic(3, 80)
    rng = np.random.default_rng(0)
    known = rng.integers(0, 9, (80, 1)) >= np.arange(1, 7)
    of = dataclasses.replace(of, known=known, past_known=rng.integers(0, 6, (80, 1)) >= np.arange(1, 3))
    away = rng.normal(0, 1, (80, 1, 3)) * (1, 1, 0) * np.arange(1, 7)[:, None]  # turned, the LiDAR would be elsewhere
    error = np.linalg.norm(away, axis=-1)
    whole = known.all(axis=1)
    counted = dict.fromkeys(PUBLISHED, whole) | {"stp3": whole & of.past_known.all(axis=1)}
    found = score_plans({"model": of.future + away}, of)["protocols"]
    for name, average in AVERAGES.items():
        row = found[name]["planners"]["model"]
        at, mean = error[counted[name]].mean(axis=0), np.cumsum(error[counted[name]].mean(axis=0)) / np.arange(1, 7)
        if name == "uniad_valid":
            at = np.array([error[known[:, step], step].mean() for step in range(6)])
            assert [row[f"N@{end}"] for end in ENDS] == known[:, 1::2].sum(axis=0).tolist()
        else:
            assert {row[f"N@{end}"] for end in ENDS} == {row["N"]}
        if name == "uniad":
            at = np.where(known, error, 0).mean(axis=0)
        ends = (mean if average == "mean" else at)[1::2]
        np.testing.assert_allclose([row[f"L2@{end}"] for end in ENDS], ends, err_msg=name)
        assert row["L2@avg"] == pytest.approx(ends.mean())
    row, past = found["exact"]["planners"]["model"], of.past_known[:, 0]
    for horizon in (1, 2, 3):
        rows = error[whole & past, : 2 * horizon]
        assert row[f"L2@{horizon}s"] == pytest.approx(rows[:, -1].mean())
        assert row[f"L2mean@{horizon}s"] == pytest.approx(rows.mean())


def test_any_hit_is_more_than_the_worst_step_and_that_more_than_the_mean(monkeypatch):
    """(f) any >= max(at) >= mean at every step, whoever counts on whatever grid; each preset is the one it is."""
    monkeypatch.setattr(published, "HORIZONS", 0.5 * np.arange(1, 7))
    of = traffic(3, 80)
    plan = {"model": of.future + np.random.default_rng(0).normal(0, 0.5, of.future.shape)}
    for name, protocol in PUBLISHED.items():

        def rates(chosen: Protocol) -> np.ndarray:
            row = score_published(chosen, plan, of)["model"]
            return np.array(
                [[row[f"{column}@{0.5 * step}s"] for step in range(1, 7)] for column in ("collision", "raw")]
            )

        found = {how: rates(dataclasses.replace(protocol, hits=how)) for how in ("at", "mean", "any")}
        worst = np.maximum.accumulate(found["at"], axis=1)
        np.testing.assert_allclose(found["mean"], np.cumsum(found["at"], axis=1) / np.arange(1, 7))
        assert (found["any"] >= worst).all() and (worst >= found["mean"]).all(), name
        assert found["any"][1, -1] > worst[1, -1] > found["mean"][1, -1], "the three are told apart"
        np.testing.assert_array_equal(rates(protocol), found[HITS[name]], err_msg=name)


def mirrored(of: Drives) -> Drives:
    """The world with left and right exchanged, but for where the LiDAR is."""
    box = of.agents.box * (1, -1, 1, 1, -1)
    flip = np.array([1, -1, -1])
    return dataclasses.replace(
        of, future=of.future * flip, past=of.past * flip, agents=dataclasses.replace(of.agents, box=box)
    )


def same(first: dict, second: dict, but: tuple[str, ...] = ()) -> bool:
    return all(np.isclose(first[k], second[k], atol=1e-9, equal_nan=True) for k in first if k not in but)


def test_a_mirrored_world_has_the_same_numbers_exactly():
    """(h) left and right exchanged: nothing changes in exact, sparsedrive and PDM; cells do not keep it."""
    of = traffic(5, 150)
    rng = np.random.default_rng(1)
    plan = of.future + rng.normal(0, 0.4, of.future.shape)
    ours = score_plans({"model": plan}, of)
    theirs = score_plans({"model": plan * (1, -1, -1)}, mirrored(of))
    for planner in ours["pdm"]:
        assert same(ours["protocols"]["exact"]["planners"][planner], theirs["protocols"]["exact"]["planners"][planner])
        assert same(ours["pdm"][planner], theirs["pdm"][planner])
    tables = [found["protocols"]["sparsedrive"]["planners"]["model"] for found in (ours, theirs)]
    assert same(*tables)
    tables = [found["protocols"]["uniad"]["planners"]["model"] for found in (ours, theirs)]
    assert not same(*tables) and all(tables[0][f"L2@{end}"] == pytest.approx(tables[1][f"L2@{end}"]) for end in ENDS)


def test_exact_knows_no_direction_and_cells_do():
    """(g) an ego and a car that touch across the grid's axes: turned together, exact says the same, UniAD does not."""
    rng = np.random.default_rng(0)
    ego = np.tile([0, 0, 4.084, 1.85, 0], (400, 1))
    other = np.column_stack([rng.uniform(-5, 5, (400, 2)), np.tile([4.6, 1.95], (400, 1)), rng.uniform(-3, 3, 400)])
    angle = rng.uniform(-3, 3, 400)
    c, s = np.cos(angle), np.sin(angle)

    def turn(box):
        place = np.column_stack([c * box[:, 0] - s * box[:, 1], s * box[:, 0] + c * box[:, 1]])
        return np.column_stack([place, box[:, 2:4], box[:, 4] + angle])

    straight_on = overlap(ego, other)
    np.testing.assert_array_equal(overlap(turn(ego), turn(other)), straight_on)
    one, yes = np.ones(400, dtype=np.int64), np.ones(400, dtype=bool)
    path = np.zeros((400, 1, 3))
    box = dataclasses.replace(UNIAD, ego=dataclasses.replace(UNIAD.ego, ahead=0.0))
    cells = [
        hits(box, path, Agents(np.arange(400), one, of, one, 0 * one, yes, yes, ("vehicle.car",)))[:, 0]
        for of in (other, turn(other))
    ]
    assert (cells[0] != cells[1]).mean() > 0.1


def test_the_order_of_categories_changes_nothing():
    """(i) categories are known by name: the same world with its table the other way round has the same numbers."""
    of = traffic(7, 60)
    last = len(NAMES) - 1
    agents = dataclasses.replace(of.agents, category=last - of.agents.category, names=NAMES[::-1])
    turned = dataclasses.replace(of, agents=agents)
    plan = {"model": aside(of, 0.7)}
    ours, theirs = (score_plans(plan, world)["protocols"] for world in (of, turned))
    for name in PROTOCOLS:
        assert same(ours[name]["planners"]["model"], theirs[name]["planners"]["model"])


def test_who_counts():
    """A cone, a person, a police car and a car, all in the way; and one that is there later, or was not seen before."""
    rows = [row for i, kind in enumerate((CONE, 1, NAMES.index("vehicle.emergency.police"), CAR)) for row in
            parked(i, 6, 0, category=kind)]  # fmt: skip
    rows += [row for row in parked(4, 6, 0) if row[1] >= 2]  # turns up
    rows += [row for row in parked(5, 6, 0) if row[1] <= -1 or row[1] >= 1]  # not annotated now
    agents = boxes(rows)
    hidden = dataclasses.replace(agents, visible=~((agents.sample == 3) & (agents.step <= 0)))
    of = drives(np.repeat(straight(0.1), 6, 0), agents)
    plan = np.repeat(straight(3.0), 6, 0)

    def struck(protocol, around):
        world = dataclasses.replace(of, agents=around)
        return [score_published(protocol, {"m": plan[[i]]}, world[[i]])["m"]["raw@3s"] > 0 for i in range(6)]

    assert struck(UNIAD, agents) == [False, False, False, True, True, True]
    assert struck(BEV_PLANNER, agents) == [False, False, False, True, True, True]
    assert struck(SPARSEDRIVE, agents) == [True] * 6
    assert struck(VAD, agents) == [False, True, False, True, False, False]
    assert struck(STP3, agents) == [False, True, True, True, False, True]
    assert struck(STP3, hidden) == [False, True, True, False, False, True]


def test_vad_takes_the_next_annotation_for_the_next_step():
    """A car that is not annotated at two keyframes is where it is later, too early."""
    rows = [(0, step, 0, CAR, 5.0 + 4 * step, 0.0, 4.6, 1.95, 0.0) for step in (0, 3, 4, 5, 6)]
    chosen = VAD.agents(boxes(rows))
    assert chosen.step.tolist() == [1, 2, 3, 4] and chosen.box[:, 0].tolist() == [17, 21, 25, 29]


def test_vads_point_is_elsewhere():
    """Its test of one point reads a cell 25 m ahead and 25 m to the left: not who is hit, but who is there."""
    lidar = 0.943713
    places = [(1.4, 0.0), (lidar + 25, 25), (lidar + 25, -25), (lidar - 25, 25), (lidar + 25, 27), (lidar + 28.5, 25)]
    of = drives(np.zeros((6, 6, 3)), boxes([row for i, place in enumerate(places) for row in parked(i, *place)]))
    around = dataclasses.replace(VAD, agents=UNIAD.agents)  # VAD's own agents are within 15 m to the sides at first
    rows = [score_published(around, {"m": straight(0.001)}, of[[i]])["m"] for i in range(6)]
    assert [row["raw@3s"] for row in rows] == [1, 0, 0, 0, 0, 0]
    assert [row["point@3s"] for row in rows] == [0, 1, 0, 0, 0, 0]
    wall = dataclasses.replace(of[[0]], agents=boxes(parked(0, lidar + 45, 25, size=(100, 4))))
    row = score_published(around, {"m": straight(20.0)}, wall)["m"]  # from 25 m on the cell is beyond the grid
    assert [row[f"point@{end}"] for end in ENDS] == [1, pytest.approx(0.5), pytest.approx(1 / 3)]


@pytest.mark.parametrize(("protocol", "side"), [(UNIAD, 1), (STP3, -1), (BEV_PLANNER, 1)])
def test_the_point_is_that_of_the_path(protocol, side):
    """A car over the LiDAR and the rear axle is in the point's cell; one beside it, that the box hits, is not."""
    places = [(0.9, 0.0), (0.9, 1.8 * side), (0.9, 4.0 * side)]  # on the side where cells see a neighbour
    of = drives(np.zeros((3, 6, 3)), boxes([row for i, place in enumerate(places) for row in parked(i, *place)]))
    of = dataclasses.replace(of, future=np.repeat(straight(-20.0), 3, 0))  # the human is elsewhere
    rows = [score_published(protocol, {"m": np.zeros((1, 6, 3))}, of[[i]])["m"] for i in range(3)]
    assert [row["point@3s"] for row in rows] == [1, 0, 0]
    assert [row["raw@3s"] for row in rows] == [1, 1, 0]
    assert "point@3s" not in score_published(SPARSEDRIVE, {"m": np.zeros((1, 6, 3))}, of[[0]])["m"]


def test_boundaries_count_once_touched():
    """A wall 5.4 m ahead of the rear axle: a plan at 2 m/s has its nose there after 1 s; n/a without a map."""
    of = drives(np.repeat(straight(0.2), 2, 0))
    wall = Boundaries(np.array([0]), np.array([[[5.4, -3.0], [5.4, 3.0]]]), np.array([True, False]))
    row = score_published(BEV_PLANNER, {"m": np.repeat(straight(2.0), 2, 0)}, of, wall)["m"]
    assert [row[f"boundary@{end}"] for end in ENDS] == [1, 1, 1]
    row = score_published(BEV_PLANNER, {"m": np.repeat(straight(0.9), 2, 0)}, of, wall)["m"]
    assert [row[f"boundary@{end}"] for end in ENDS] == [0, 0, 1]
    assert np.isnan(score_published(BEV_PLANNER, {"m": of.future}, of)["m"]["boundary@3s"])


def test_sparsedrive_turns_a_waiting_car_sideways():
    """Two neighbouring steps at the same place: its box is across the road, and hits who stands beside."""
    plan = straight(4.0)
    plan[:, 2:, 0] = plan[:, 2:3, 0]
    beside = boxes(parked(0, plan[0, 2, 0] + 1.44, -2.5))
    of = drives(straight(0.1), beside)
    row = score_published(SPARSEDRIVE, {"m": plan}, of)["m"]
    assert row["raw@3s"] > 0
    assert score_plans({"m": plan}, of, ["exact"])["protocols"]["exact"]["planners"]["m"]["collision@3s"] == 0


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_short_plans_are_not_scored_beyond_their_end(steps):
    of = traffic(2, 20)
    found = score_plans({"model": of.future[:, :steps]}, of)
    for name, table in found["protocols"].items():
        row = table["planners"]["model"]
        assert [np.isnan(row[f"L2@{end}"]) for end in ENDS] == [steps < 2 * h for h in (1, 2, 3)], name
    faultless = meet({"human": of.path[:, :steps]}, of)["human"].no_collision > 0
    assert found["pdm"]["human"]["EP"] == pytest.approx(faultless.mean())


def test_bad_plans_are_named():
    of = traffic(2, 5)
    with pytest.raises(DataError, match=r"'m' of shape \(5, 6, 2\)"):
        score_plans({"m": of.future[..., :2]}, of)
    wrong = of.future.copy()
    wrong[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="1 numbers that are not finite"):
        score_plans({"m": wrong}, of)
    with pytest.raises(DataError, match="called 'ctrv' as a baseline is"):
        score_plans({"ctrv": of.future}, of)


def test_every_protocol_says_what_it_is():
    for protocol in PUBLISHED.values():
        about = protocol.about
        assert all(about[key] for key in ("L2", "collision", "samples", "agents", "ego", "masking", "bugs"))
    assert arc(1, 0.0, np.array([0.5])).shape == (1, 1, 3)


@pytest.mark.parametrize(("events", "count"), [(0, 288), (3, 288), (288, 288), (1, 2)])
def test_the_highest_share_is_the_exact_interval_s_end(events, count):
    expected = scipy.stats.binomtest(events, count).proportion_ci(0.95, method="exact").high
    assert highest_share(events, count) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(highest_share(0, 0))
