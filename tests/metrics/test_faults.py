"""Matching, and what wrong boxes cost, against the devkit's evaluation of the same boxes, and of one more or less."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.engine.columns import found_columns
from fusion3d.geometry import quaternion_from_yaw
from fusion3d.metrics.detection import score_matches
from fusion3d.metrics.faults import average_precision, boxes_by_class, costs, find_faults, gain_without
from fusion3d.metrics.matching import Matches, match_detections
from fusion3d.metrics.protocol import CVPR_2019, DetectionProtocol

sys.path.insert(0, str(Path(__file__).parent))
from devkit import official, truth_columns

CLASSES = ("car", "bicycle", "barrier")


def box(token: str, name: str, x: float, y: float, **more) -> dict:
    return {
        "sample_token": token, "translation": [x, y, 0.5], "size": [2.0, 4.0, 1.5], "rotation": [1.0, 0.0, 0.0, 0.0],
        "velocity": [0.0, 0.0], "detection_name": name, "attribute_name": "", **more,
    }  # fmt: skip


class Scene(NamedTuple):
    """Records by token, as the devkit reads them."""

    truth: dict[str, list[dict]]
    results: dict[str, list[dict]]
    ego: dict[str, list[float]]
    racks: dict[str, list[dict]]

    def matches(self, protocol: DetectionProtocol = CVPR_2019) -> Matches:
        heading = [0.7 * i for i in range(len(self.truth))]
        truth = truth_columns(self.truth, self.ego, self.racks, heading=heading)
        return match_detections(truth, found_columns(self.results, truth.samples.tokens), protocol)

    def ap(self, protocol: DetectionProtocol) -> dict[str, float]:
        """The devkit's, by class."""
        return official(*self, protocol)[0]["mean_dist_aps"]

    def with_results(self, token: str, boxes: list[dict]) -> Scene:
        return self._replace(results=self.results | {token: boxes})

    def index_at(self, matches: Matches, token: str, xy: tuple[float, float], true: bool) -> int:
        """Which of a sample's records is at x, y in the vehicle's frame."""
        heading = matches.samples.heading[matches.samples.tokens.index(token)]
        c, s = math.cos(heading), math.sin(heading)
        spot = np.array(self.ego[token][:2]) + np.array([[c, -s], [s, c]]) @ xy
        records = (self.truth if true else self.results)[token]
        near = [i for i, r in enumerate(records) if np.abs(spot - r["translation"][:2]).max() < 1e-4]
        assert len(near) == 1, "boxes of these scenes are not so near to each other"
        return near[0]


def scene(seed: int, samples: int = 3, found: int = 30, true: int = 8) -> Scene:
    """Random boxes: near each other, at and beyond the edge of the range, on racks, without points, equal scores."""
    rng = np.random.default_rng(seed)
    made = Scene({}, {}, {}, {})
    for token in [f"s{i}" for i in range(samples)]:
        ego = rng.normal(0, 30, 3)
        turn = quaternion_from_yaw(np.array(rng.uniform(-3, 3))).tolist()
        at = (ego[:2] + rng.normal(0, 5, 2)).tolist()
        spots = ego[:2] + rng.normal(0, 18, (max(true // 2, 1), 2))

        def place(rng=rng, spots=spots) -> list[float]:
            return (spots[rng.integers(len(spots))] + rng.normal(0, 1.0, 2)).tolist()

        made.ego[token] = ego.tolist()
        made.racks[token] = [{"translation": [*at, 0.5], "size": [4.0, 9.0, 3.0], "rotation": turn}]
        made.truth[token] = [
            box(token, str(rng.choice(CLASSES)), *place(), num_pts=int(rng.integers(0, 4))) for _ in range(true)
        ]
        made.results[token] = [
            box(token, str(rng.choice(CLASSES)), *place(), detection_score=int(rng.integers(1, 12)) / 12)
            for _ in range(found)
        ]
    return made


OTHER = DetectionProtocol(dist_ths=(1.5, 4.0, 3.0), dist_th_tp=3.0, min_recall=0.05, min_precision=0.2)


@pytest.mark.parametrize("protocol", [CVPR_2019, OTHER])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_the_scores(seed, protocol):
    matches = scene(seed).matches(protocol)
    scores = score_matches(matches)
    for name, boxes in boxes_by_class(matches).items():
        assert len(boxes.true) == scores["num_truth"][name]
        assert (~boxes.missed).sum(0).tolist() == boxes.hit.sum(0).tolist()
        ours = [average_precision(hit, len(boxes.true), protocol) for hit in boxes.hit.T]
        assert ours == pytest.approx(list(scores["AP_at"][name].values()), abs=1e-12), name


@pytest.mark.parametrize(("seed", "protocol"), [(10, CVPR_2019), (11, CVPR_2019), (12, OTHER)])
def test_costs_are_what_the_devkit_says_without_the_box_or_with_one_more(seed, protocol):
    made = scene(seed, samples=2, found=12, true=6)
    matches, before, tried = made.matches(protocol), made.ap(protocol), [0, 0]
    for name, boxes in boxes_by_class(matches).items():
        sides = (matches.found, boxes.found, boxes.hit, False), (matches.truth, boxes.true, ~boxes.missed, True)
        for (objects, rows, right, missed), cost in zip(sides, costs(boxes, protocol), strict=True):
            for k in np.flatnonzero(~right.any(axis=1)):  # one that is right at a distance would be missed there
                token, distance = matches.samples.tokens[objects.sample[rows[k]]], objects.distance[rows[k]]
                angle = objects.azimuth[rows[k]]
                at = made.index_at(matches, token, (distance * math.cos(angle), distance * math.sin(angle)), missed)
                results = made.results[token]
                if missed:
                    x, y, _ = made.truth[token][at]["translation"]
                    changed = [*results, box(token, name, x, y, detection_score=1.0)]
                else:
                    changed = results[:at] + results[at + 1 :]
                gain = made.with_results(token, changed).ap(protocol)[name] - before[name]
                assert gain == pytest.approx(cost[k], abs=1e-12)
                tried[missed] += 1
    assert min(tried) > 0


@settings(deadline=None, max_examples=200)
@given(st.lists(st.booleans(), max_size=40), st.integers(0, 30))
def test_the_gain_without_a_box_is_that_of_the_list_without_it(hits, more):
    hit, num_true = np.array(hits, dtype=bool), sum(hits) + more
    if not num_true:
        return
    gains = gain_without(hit, num_true)
    before = average_precision(hit, num_true)
    for k in range(len(hit)):
        wanted = 0 if hit[k] else average_precision(np.delete(hit, k), num_true) - before
        assert gains[k] == pytest.approx(wanted, abs=1e-12)


def test_right_boxes_cost_nothing_and_faults_come_by_cost():
    made = scene(5)
    matches = made.matches()
    faults = find_faults(matches)
    assert [f.cost for f in faults] == sorted((f.cost for f in faults), reverse=True) and faults[0].cost > 0
    assert {f.missed for f in faults} == {True, False}
    for fault in faults:
        at = made.index_at(matches, fault.token, fault.xy, fault.missed)
        one = (made.truth if fault.missed else made.results)[fault.token][at]
        assert one["detection_name"] == fault.name and fault.within in CVPR_2019.dist_ths
        assert fault.score == one.get("detection_score", -1)
    perfect = {
        token: [b | {"detection_score": 0.5} for b in boxes] for token, boxes in made.truth.items()
    }  # equal scores: no order is wrong
    right = made._replace(results=perfect).matches()
    assert len(right.truth) == len(right.found) > 0 and find_faults(right) == []
    assert find_faults(Scene({"a": []}, {"a": []}, {"a": [0.0, 0.0, 0.0]}, {}).matches()) == []
