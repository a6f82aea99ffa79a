"""Shapley values against their definition by orders of coming, and the axioms that they alone fulfil."""

from __future__ import annotations

import math
import sys
from itertools import combinations, permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.engine.columns import found_columns
from fusion3d.errors import Fusion3DError
from fusion3d.metrics.detection import score_detections
from fusion3d.metrics.shapley import has_every_subset, sensor_worth, shapley

sys.path.insert(0, str(Path(__file__).parent))
from crowds import crowd
from devkit import truth_columns

NAMES = ("camera", "lidar", "radar", "thermal")


def subsets(players) -> list[tuple[str, ...]]:
    return [subset for size in range(1, len(players) + 1) for subset in combinations(players, size)]


@st.composite
def games(draw) -> dict[str, float]:
    players = NAMES[: draw(st.integers(1, 4))]
    return {"+".join(draw(st.permutations(s))): draw(st.floats(-1, 1)) for s in draw(st.permutations(subsets(players)))}


def by_orders(game: dict[str, float], empty: float) -> dict[str, float]:
    """The definition: what each adds to those before it, mean over all orders."""
    value = {frozenset(name.split("+")): score for name, score in game.items()} | {frozenset(): empty}
    players = sorted(frozenset().union(*value))
    orders = list(permutations(players))
    total = dict.fromkeys(players, 0.0)
    for order in orders:
        for place, player in enumerate(order):
            total[player] += value[frozenset(order[: place + 1])] - value[frozenset(order[:place])]
    return {player: sum_ / len(orders) for player, sum_ in total.items()}


@settings(deadline=None)
@given(games(), st.floats(-1, 1))
def test_values_are_the_mean_over_all_orders_and_sum_to_the_whole(game, empty):
    values = shapley(game, empty)
    assert values == pytest.approx(by_orders(game, empty), abs=1e-12)
    whole = next(score for name, score in game.items() if name.count("+") == len(values) - 1)
    assert math.fsum(values.values()) == pytest.approx(whole - empty, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(-1, 1))
def test_equals_get_equal_shares_and_who_adds_nothing_nothing(scores, bonus):
    one, both, _ = scores
    game = {"camera": one, "lidar": one, "camera+lidar": both}
    game |= {f"{name}+radar": value for name, value in game.items()} | {"radar": 0.0}
    values = shapley(game)
    assert values["camera"] == pytest.approx(values["lidar"], abs=1e-12)  # symmetry
    assert values["radar"] == pytest.approx(0, abs=1e-12)  # dummy
    raised = {name: value + bonus * ("radar" in name) for name, value in game.items()}
    assert shapley(raised)["radar"] == pytest.approx(bonus, abs=1e-12)  # additivity
    assert shapley(raised)["camera"] == pytest.approx(values["camera"], abs=1e-12)


def test_a_known_game():
    assert shapley({"camera": 0.2, "lidar": 0.6, "lidar+camera": 0.7}) == pytest.approx({"camera": 0.15, "lidar": 0.55})


def test_no_sensor_scores_as_no_box_does():
    """The empty set's score of 0 is the official one."""
    truth, _, ego = crowd(0, 0.3, None, samples=1)
    nothing = score_detections(truth_columns(truth, ego), found_columns({token: [] for token in truth}, tuple(truth)))
    assert (nothing["NDS"], nothing["mAP"], set(nothing["AP"].values())) == (0, 0, {0})


def test_missing_and_doubled_subsets_are_named():
    with pytest.raises(Fusion3DError, match=r"missing camera\+lidar: evaluate without --subsets"):
        shapley({"camera": 0.1, "lidar": 0.2})
    with pytest.raises(Fusion3DError, match=r"'lidar\+camera' comes twice"):
        shapley({"camera": 0.1, "lidar": 0.2, "camera+lidar": 0.3, "lidar+camera": 0.3})
    with pytest.raises(Fusion3DError, match="missing all"):
        sensor_worth({})
    assert has_every_subset({"camera": 0, "lidar": 0, "lidar+camera": 0})
    assert not has_every_subset({"camera": 0, "lidar": 0}) and has_every_subset({"radar": 0})


def test_every_score_of_the_rows_is_looked_into():
    def row(x: float) -> dict:
        bands = {"0-20 m": {"mAP": 2 * x, "AP": {"car": x}}, "20-50 m": {"mAP": None}}
        return {
            "NDS": x, "mAP": x / 2, "mATE": 1 - x, "AP": {"car": x, "bus": 3 * x}, "TP": {"car": {"ATE": x}},
            "distance": bands, "planning": {"L2@1s": x}, "intervals": {"NDS": [0, 1], "mAP": None},
        }  # fmt: skip

    rows = {"camera": row(0.2), "lidar": row(0.4), "camera+lidar": row(0.5)}
    base = shapley({"camera": 0.2, "lidar": 0.4, "camera+lidar": 0.5})
    worth = sensor_worth(rows)
    assert set(worth) == {"NDS", "mAP", "AP", "distance"} and worth["NDS"] == base
    assert worth["AP"]["bus"] == pytest.approx({k: 3 * v for k, v in base.items()})
    assert worth["distance"]["0-20 m"]["mAP"] == pytest.approx({k: 2 * v for k, v in base.items()})
    assert worth["distance"]["0-20 m"]["AP"]["car"] == pytest.approx(base)
    assert all(math.isnan(value) for value in worth["distance"]["20-50 m"]["mAP"].values())
    del rows["camera"]["AP"]["bus"]
    assert set(sensor_worth(rows)["AP"]) == {"car"}
