"""Strata against plain loops, and the rules on what counts where."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion3d.engine.columns import found_columns
from fusion3d.metrics.bootstrap import draw_scenes, sample_numbers
from fusion3d.metrics.detection import numbers, score_matches
from fusion3d.metrics.lanes import make_lanes
from fusion3d.metrics.matching import Matches, match_detections
from fusion3d.metrics.strata import make_strata
from fusion3d.types import CAMERAS, DETECTION_CLASSES

sys.path.insert(0, str(Path(__file__).parent))
from crowds import crowd
from devkit import truth_columns


def average_precision(hits: list[bool], num_truth: int) -> float:
    """By the definition: interpolated at 101 recalls, above 0.1 in both."""
    if not any(hits) or not num_truth:
        return 0.0
    right = np.cumsum(hits)
    precision = np.interp(np.linspace(0, 1, 101), right / num_truth, right / np.arange(1, len(hits) + 1), right=0)
    return float(np.maximum(precision[11:] - 0.1, 0).mean() / 0.9)


def looped(truth: Any, results: Any, ego: Any, counts: Any) -> dict[str, tuple[list[float], int]]:
    """For each class the AP at the four thresholds and the number of truth boxes; ``counts(box, is_truth)`` is True,
    False, or None for a detection that counts wherever it is."""
    reach = {"pedestrian": 40, "motorcycle": 40, "bicycle": 40, "traffic_cone": 30, "barrier": 30}

    def near(box: dict[str, Any]) -> bool:
        return math.dist(box["translation"][:2], ego[box["sample_token"]][:2]) < reach.get(box["detection_name"], 50)

    numbers = {}
    for name in DETECTION_CLASSES:
        true = [box for boxes in truth.values() for box in boxes if box["detection_name"] == name and near(box)]
        true = [box for box in true if box["num_pts"]]
        found = [b for boxes in results.values() for b in boxes if b["detection_name"] == name and near(b)]
        found = sorted(found, key=lambda box: -box["detection_score"])
        aps = []
        for threshold in (0.5, 1, 2, 4):
            taken, hits = set(), []
            for box in found:
                rivals = [
                    (math.dist(t["translation"][:2], box["translation"][:2]), i)
                    for i, t in enumerate(true)
                    if t["sample_token"] == box["sample_token"] and i not in taken
                ]
                least, i = min(rivals, default=(math.inf, -1))
                if least < threshold:
                    taken.add(i)
                    if counts(true[i], True):
                        hits.append(True)
                elif counts(box, False) is not False:
                    hits.append(False)
            aps.append(average_precision(hits, sum(bool(counts(t, True)) for t in true)))
        numbers[name] = aps, sum(bool(counts(t, True)) for t in true)
    return numbers


def between(low: float, high: float):
    return lambda value: low <= value < high


def rule(dimension: str, number: int, ego: Any):
    """The same strata, said again."""
    if dimension == "distance":
        inside = between(*[(0, 10), (10, 20), (20, 30), (30, 40), (40, 50), (50, 999)][number])
        return lambda box, _: inside(math.dist(box["translation"][:2], ego[box["sample_token"]][:2]))
    if dimension == "speed":
        inside = between(*[(0, 0.2), (0.2, 3), (3, 10), (10, 999)][number])
        return lambda box, true: (
            (False if true else None) if math.isnan(box["velocity"][0]) else inside(math.hypot(*box["velocity"]))
        )
    if dimension == "visibility":
        return lambda box, true: box["visibility"] == number + 1 if true else None
    inside = between(*[(1, 5), (5, 20), (20, 100), (100, 9999)][number])
    return lambda box, true: inside(box["num_pts"]) if true else None


@pytest.fixture(scope="module")
def data():
    truth, results, ego = crowd(0, 0.5, None, samples=4)
    scenes, texts = [0, 0, 1, 2], ("Train tracks, turn left", "Night, heavy rain", "Rainy morning")
    columns = truth_columns(truth, ego, scene=scenes, descriptions=texts)
    return truth, results, ego, match_detections(columns, found_columns(results, tuple(truth)))


@pytest.mark.parametrize("dimension", ["distance", "visibility", "points", "speed"])
def test_numbers_of_a_stratum_are_those_of_plain_loops(data, dimension):
    truth, results, ego, matches = data
    of = make_strata(matches)[dimension]
    total = 0
    for number, name in enumerate(of.names):
        counted = make_lanes(matches, of.stratum(name)).count()
        expected = looped(truth, results, ego, rule(dimension, number, ego))
        for c, label in enumerate(DETECTION_CLASSES):
            aps, num_truth = expected[label]
            np.testing.assert_allclose(counted["AP"][0, c], aps, atol=1e-12, err_msg=f"{name} {label}")
            assert counted["present"][0, c] == (num_truth > 0)
            total += num_truth
        present = [np.mean(aps) for aps, num_truth in expected.values() if num_truth]
        flat = numbers(counted, matches.protocol)
        assert flat["mAP"][0] == pytest.approx(np.mean(present)) if present else math.isnan(flat["mAP"][0])
    known = {"speed": ~np.isnan(matches.truth.speed), "visibility": matches.truth.visibility > 0}
    assert total == known.get(dimension, np.ones(len(matches.truth), bool)).sum() > 20


def test_weather_and_light_are_those_of_the_scenes(data):
    truth, results, ego, matches = data
    strata = make_strata(matches)
    for dimension, name, tokens in (
        ("weather", "rain", ["sample-2", "sample-3"]),
        ("weather", "dry", ["sample-0", "sample-1"]),
        ("light", "night", ["sample-2"]),
        ("light", "day", ["sample-0", "sample-1", "sample-3"]),
    ):
        alone = truth_columns({token: truth[token] for token in tokens}, ego)
        found = found_columns({token: results[token] for token in tokens}, tokens)
        expected = make_lanes(match_detections(alone, found)).count()
        counted = make_lanes(matches, strata[dimension].stratum(name)).count()
        for key in expected:
            np.testing.assert_allclose(counted[key], expected[key], atol=1e-12, err_msg=f"{name} {key}")


def test_micro_is_one_ranking_of_all_classes(data):
    """With one class alone it is that class; errors that are undefined for a class say nothing there."""
    *_, matches = data
    scores = score_matches(matches)
    lanes = make_lanes(matches)
    part = slice(lanes.start[40], lanes.start[41])  # at 0.5 m
    assert (np.diff(lanes.score[part]) <= 0).all() and lanes.start[41] - lanes.start[40] == len(matches.found)
    expected = [
        average_precision((matches.pair[:, t] >= 0).tolist(), len(matches.truth))
        for t in range(len(matches.protocol.dist_ths))
    ]
    assert scores["micro"]["AP"] == pytest.approx(np.mean(expected), abs=1e-12)
    cones = matches.truth.label == DETECTION_CLASSES.index("traffic_cone")
    defined = lanes.error[len(matches.pair_truth) :]
    assert np.isnan(defined[cones[matches.pair_truth], 2:]).all() and not np.isnan(defined[:, :2]).any()


CAR = {
    "sample_token": "a", "size": [2.0, 4, 1.5], "rotation": [1.0, 0, 0, 0], "velocity": [0.0, 0],
    "detection_name": "car", "attribute_name": "",
}  # fmt: skip


def one_sample(true: list[dict[str, Any]], found: list[dict[str, Any]], heading: float = 0.0) -> Matches:
    truth = {"a": [{**CAR, "num_pts": 5, "visibility": 4, **box} for box in true]}
    results = {"a": [{**CAR, "detection_score": 0.9 - i / 10, **box} for i, box in enumerate(found)]}
    columns = truth_columns(truth, {"a": [0.0, 0, 0]}, heading=[heading])
    return match_detections(columns, found_columns(results, ("a",)))


def counts(matches: Matches, dimension: str) -> dict[str, tuple[int, int, int]]:
    """By stratum the truth boxes, the hits and the false alarms at 4 m."""
    of = make_strata(matches)[dimension]
    told = {}
    for name in of.names:
        lanes = make_lanes(matches, of.stratum(name))
        hits, entries = lanes.first_hit[4] - lanes.first_hit[3], lanes.start[4] - lanes.start[3]
        told[name] = (int(lanes.truth[:, 0].sum()), int(hits), int(entries - hits))
    return told


def test_what_found_something_goes_with_it_and_what_found_nothing_goes_where_it_is():
    true = [{"translation": [9.9, 0.0, 0]}, {"translation": [25.0, 0, 0], "visibility": 1, "velocity": [math.nan] * 2}]
    found = [
        {"translation": [10.1, 0.0, 0]},  # finds the first, though it is in the next band itself
        {"translation": [25.0, 1.0, 0]},
        {"translation": [0.0, 15.0, 0], "velocity": [5.0, 0]},  # nothing there
        {"translation": [0.0, -35.0, 0], "velocity": [math.nan] * 2},
    ]
    matches = one_sample(true, found)
    near = [(1, 1, 0), (0, 0, 1), (1, 1, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0)]
    assert list(counts(matches, "distance").values()) == near
    assert list(counts(matches, "visibility").values()) == [(1, 1, 2), (0, 0, 2), (0, 0, 2), (1, 1, 2)]
    # The second truth has no velocity: neither it nor what found it is in any band. The last detection is in all.
    assert list(counts(matches, "speed").values()) == [(1, 1, 1), (0, 0, 1), (0, 0, 2), (0, 0, 1)]
    assert list(counts(matches, "points").values()) == [(0, 0, 2), (2, 2, 2), (0, 0, 2), (0, 0, 2)]


@pytest.mark.parametrize("heading", [0.0, 2.0, -3.0])
def test_sectors_are_those_of_the_cameras(heading):
    """Where the cameras look, and just this and that side of the bisectors, whichever way the vehicle heads."""
    looks = {0: "FRONT", 55: "FRONT_LEFT", 110: "BACK_LEFT", 180: "BACK", -110: "BACK_RIGHT", -55: "FRONT_RIGHT"}
    looks |= {27.4: "FRONT", 27.6: "FRONT_LEFT", -82.4: "FRONT_RIGHT", -82.6: "BACK_RIGHT", 144.9: "BACK_LEFT"}
    looks |= {145.1: "BACK", -145.1: "BACK"}
    angles = [math.radians(angle) + heading for angle in looks]
    matches = one_sample([{"translation": [9 * math.cos(a), 9 * math.sin(a), 0.0]} for a in angles], [], heading)
    sector = make_strata(matches)["sector"]
    assert [CAMERAS[number] for number in sector.truth] == [f"CAM_{name}" for name in looks.values()]


def test_a_stratum_without_truth_has_no_numbers():
    matches = one_sample([{"translation": [5.0, 0, 0]}], [{"translation": [5.0, 0, 0]}])
    draws = draw_scenes(1, 100)
    strata = make_strata(matches)["distance"]
    full, empty = (sample_numbers(matches, draws, strata.stratum(name)) for name in strata.names[:2])
    assert full.value["mAP"] == pytest.approx(1) and full.num_truth == 1 and full.num_classes == 1
    assert math.isnan(empty.value["mAP"]) and math.isnan(empty.value["NDS"]) and empty.num_truth == 0
    assert all(value is None for value in empty.intervals(draws).values())
    assert full.scenes["mAP"] == 1 and full.scenes["AP.bus"] == 0


def test_a_dimension_names_every_stratum_once(data):
    *_, matches = data
    for of in make_strata(matches).values():
        assert len(set(of.names)) == len(of.names) > max(of.truth.max(), of.found.max())
        assert of.truth.shape == (len(matches.truth),) and of.found.shape == (len(matches.found),)
