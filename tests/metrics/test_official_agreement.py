"""Property tests against the official evaluation: random and adversarial submissions, every number and every curve."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.engine.columns import found_columns
from fusion3d.engine.official import greatest_difference
from fusion3d.engine.scoring import read_protocol
from fusion3d.errors import ConfigError, Fusion3DError
from fusion3d.metrics.detection import score_matches
from fusion3d.metrics.lanes import make_lanes
from fusion3d.metrics.matching import TP_ERRORS, _norm, match_detections
from fusion3d.metrics.protocol import CVPR_2019, DetectionProtocol
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES

sys.path.insert(0, str(Path(__file__).parent))
from crowds import Split, crowd
from devkit import official, truth_columns

KEYS = dict(zip(TP_ERRORS, ("trans_err", "scale_err", "orient_err", "vel_err", "attr_err"), strict=True))


def check(
    truth: Split, results: Split, ego: dict[str, list[float]], racks: Split, protocol: DetectionProtocol = CVPR_2019
) -> dict[str, Any]:
    """Ours, found equal to the official numbers and curves."""
    theirs, their_curves = official(truth, results, ego, racks, protocol)
    matches = match_detections(truth_columns(truth, ego, racks), found_columns(results, tuple(truth)), protocol)
    ours = score_matches(matches)
    assert greatest_difference(ours, theirs)[0] < 1e-9, greatest_difference(ours, theirs)
    lanes = make_lanes(matches)
    for label in DETECTION_CLASSES:
        for threshold in protocol.dist_ths:
            mine, his = lanes.curves(label, threshold), their_curves[f"{label}:{threshold}"]
            for name in ("precision", "confidence"):
                np.testing.assert_allclose(mine[name], his[name], rtol=0, atol=1e-12)
            for name, key in KEYS.items():
                np.testing.assert_allclose(mine[name], his[key], rtol=0, atol=1e-9, err_msg=f"{label} {threshold}")
    return ours


# Few values, so that scores, centres and distances coincide; offsets of (0.3, 0.4) and the like are exactly on a
# threshold, and centres of (30, 40) and the like exactly at a range.
STEPS = st.sampled_from([-4.0, -2.0, -1.0, -0.5, -0.4, -0.3, 0.0, 0.0, 0.3, 0.4, 0.5, 1.0, 2.0, 4.0])
PLACES = st.sampled_from(
    [
        (0, 0),
        (1, 0),
        (0, 1),
        (3, 4),
        (30, 40),
        (30, 0),
        (29.999999999, 0),
        (24, 32),
        (18, 24),
        (50, 0),
        (-28, 9),
        (5, 5),
    ]
)
CLASSES = st.sampled_from(["car", "bicycle", "motorcycle", "traffic_cone", "barrier", "pedestrian"])
SIZES = st.sampled_from([(1.0, 2.0, 1.0), (1.0, 1.0, 1.0), (0.7, 2.1, 0.3)])
ROTATIONS = st.sampled_from(
    [(1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0), (0.8, 0.0, 0.0, 0.6), (2.0, 0.1, -0.2, 1.0), (0.0, 0.0, 0.0, 0.0)]
)
TURNS = st.sampled_from([(1.0, 0, 0, 0), (0.6, 0, 0, 0.8), (3.0, 0, 0, 3.0)])  # of racks
VELOCITIES = st.sampled_from([(0.0, 0.0), (1.0, -2.0), (math.nan, math.nan)])
NAMES = st.sampled_from(["", *ATTRIBUTES[:4]])
SCORES = st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.9, 1.0])


@st.composite
def boxes(draw: st.DrawFn) -> dict[str, Any]:
    x, y = draw(PLACES)
    return {
        "translation": [x + 0.0, y + 0.0, draw(st.sampled_from([0.0, 1.0]))], "size": list(draw(SIZES)),
        "rotation": list(draw(ROTATIONS)), "velocity": list(draw(VELOCITIES)), "detection_name": draw(CLASSES),
        "attribute_name": draw(NAMES),
    }  # fmt: skip


@st.composite
def splits(draw: st.DrawFn) -> tuple[Split, Split, dict[str, list[float]], Split]:
    tokens = [f"sample-{i}" for i in range(draw(st.integers(1, 3)))]
    truth: Split = {}
    results: Split = {}
    racks: Split = {}
    for token in tokens:
        true = draw(st.lists(boxes(), max_size=6))
        truth[token] = [{**box, "sample_token": token, "num_pts": draw(st.integers(0, 2))} for box in true]
        racks[token] = [
            {"translation": [*draw(PLACES), 0.0], "size": [2.0, 4.0, 2.0], "rotation": list(rotation)}
            for rotation in draw(st.lists(TURNS, max_size=2))
        ]
        found = []
        for box in true:
            for _ in range(draw(st.integers(0, 2))):  # near it, and doubled
                x, y, z = box["translation"]
                found.append({**box, "translation": [x + draw(STEPS), y + draw(STEPS), z], "size": list(draw(SIZES))})
        found += draw(st.lists(boxes(), max_size=3))
        found = draw(st.permutations(found))
        results[token] = [
            {
                **box,
                "sample_token": token,
                "detection_score": draw(SCORES),
                "num_pts": draw(st.sampled_from([-1, -1, 0, 3])),
            }
            for box in found
        ]
    return truth, results, {token: [0.0, 0.0, 0.0] for token in tokens}, racks


@settings(max_examples=100, deadline=None)
@given(splits())
def test_adversarial_submissions(split):
    check(*split)


PROTOCOLS = st.builds(
    lambda thresholds, at, recall, precision, weight, reach: DetectionProtocol(
        class_range={name: reach + 3 * i for i, name in enumerate(DETECTION_CLASSES)}, dist_ths=tuple(thresholds),
        dist_th_tp=thresholds[at % len(thresholds)], min_recall=recall, min_precision=precision, mean_ap_weight=weight,
    ),
    st.lists(st.sampled_from([0.25, 0.5, 1, 2.0, 3.0, 8.0]), min_size=1, max_size=4, unique=True), st.integers(0, 3),
    st.sampled_from([0, 0.1, 0.05, 0.7]), st.sampled_from([0, 0.1, 0.4]), st.sampled_from([1, 5, 7]),
    st.sampled_from([3, 30, 50]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(splits(), PROTOCOLS)
def test_custom_protocols(split, protocol):
    check(*split, protocol)


RACK = {"translation": [3.0, 4, 0], "size": [20.0, 30, 60], "rotation": [0.9, 0, 0.1, 0.3]}


@pytest.mark.parametrize(("seed", "spread", "levels"), [(0, 0.3, None), (1, 0.8, 3), (2, 1.5, 1), (3, 0.1, 20)])
def test_many_boxes(seed, spread, levels):
    scores = check(*crowd(seed, spread, levels), {"sample-0": [RACK]})
    assert 0.02 < scores["mAP"] and scores["num_truth"]["barrier"] == 0
    assert scores["AP"]["barrier"] == 0 and scores["TP"]["barrier"]["ATE"] == 1
    assert math.isnan(scores["TP"]["barrier"]["AVE"]) and math.isnan(scores["TP"]["traffic_cone"]["AOE"])


def test_nothing_found_nothing_there():
    truth, results, ego = crowd(0, 0.3, None)
    nothing: Split = {token: [] for token in truth}
    assert check(truth, nothing, ego, {})["NDS"] == 0
    assert check(nothing, results, ego, {})["mAP"] == 0
    check(nothing, nothing, ego, {})


@pytest.mark.parametrize("turn", [(1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 1.0), (0.96, 0.0, 0.0, 0.28)])
def test_cycles_at_the_faces_of_a_rack(turn):
    """On a face, on an edge, just outside: as the official evaluation has it, whichever way the rounding goes there."""
    cosine, sine = turn[0] ** 2 - turn[3] ** 2, 2 * turn[0] * turn[3]
    rows, columns = np.meshgrid([-2.0, -2.0 - 1e-9, 0.0, 2.0, 2.0 + 1e-9], [-1.0, 0.0, 1.0, 1.0 + 1e-9])
    places = np.stack([rows.ravel(), columns.ravel()], axis=1) / (turn[0] ** 2 + turn[3] ** 2)
    places = places @ np.array([[cosine, sine], [-sine, cosine]]) + [5.0, 7.0]
    truth: Split = {"a": []}
    for x, y in places.tolist():
        box = {"sample_token": "a", "translation": [x, y, 0.5], "size": [1.0, 1, 1], "velocity": [0.0, 0]}
        box |= {"attribute_name": ""}
        truth["a"].append({**box, "rotation": [1.0, 0, 0, 0], "detection_name": "bicycle", "num_pts": 1})
    racks = {"a": [{"translation": [5.0, 7.0, 0.0], "size": [2.0, 4.0, 2.0], "rotation": list(turn)}]}
    results = {"a": [{**box, "detection_score": 0.1 + i / 50} for i, box in enumerate(truth["a"])]}
    left = check(truth, results, {"a": [0.0, 0, 0]}, racks)["num_truth"]["bicycle"]
    assert len(places) - 12 <= left < len(places), "those on faces, edges and corners are inside, up to rounding"


def test_lengths_are_those_of_norm_to_the_bit():
    """Both sides of a threshold depend on it: BLAS may round once where a plain sum of squares rounds twice."""
    offsets = np.random.default_rng(0).normal(size=(20000, 2))
    offsets[:4] = [[0.3, 0.4], [0.4, 0.3], [0.6, 0.8], [1.2, 1.6]]
    assert (_norm(offsets) == [np.linalg.norm(offset) for offset in offsets]).all()


def test_the_later_of_equal_scores_goes_first():
    """It takes the truth that both want: the other one is then a false alarm before nothing, not after."""
    car = {
        "sample_token": "a", "translation": [5.0, 0, 0], "size": [2.0, 4, 2], "rotation": [1.0, 0, 0, 0],
        "velocity": [0.0, 0], "detection_name": "car", "attribute_name": "",
    }  # fmt: skip
    near, far = {**car, "translation": [5.4, 0, 0]}, {**car, "translation": [5.2, 0, 0]}
    for first, second, error in ((near, far, 0.2), (far, near, 0.4)):
        results = {"a": [{**box, "detection_score": 0.5} for box in (first, second)]}
        scores = check({"a": [{**car, "num_pts": 1}]}, results, {"a": [0.0, 0, 0]}, {})
        assert scores["TP"]["car"]["ATE"] == pytest.approx(error)


@pytest.fixture
def one():
    truth, results, ego = crowd(5, 0.3, None, samples=1)
    return truth_columns(truth, ego), results


def test_too_many_boxes_and_what_is_no_box(one):
    truth, results = one
    tokens = truth.samples.tokens
    many = {"sample-0": (results["sample-0"] * 30)[:501]}
    with pytest.raises(Fusion3DError, match="sample-0 has 501 detections; at most 500"):
        match_detections(truth, found_columns(many, tokens))
    for key, value, told in (
        ("size", [1.0, 0.0, 1.0], "a size that is not above 0"),
        ("translation", [math.nan, 0.0, 0.0], "not finite"),
        ("detection_score", math.inf, "not finite"),
        ("detection_score", -0.5, "a score below 0"),
        ("velocity", [math.inf, 0.0], "an infinite velocity"),
    ):
        wrong = {"sample-0": [*results["sample-0"][:3], {**results["sample-0"][3], key: value}]}
        with pytest.raises(Fusion3DError, match=rf"box 3 \(sample sample-0\) has .*{told}"):
            match_detections(truth, found_columns(wrong, tokens))


def test_results_that_do_not_fit_the_split_or_the_format(one):
    truth, results = one
    tokens = truth.samples.tokens
    with pytest.raises(Fusion3DError, match="1 samples too few"):
        found_columns({}, tokens)
    with pytest.raises(Fusion3DError, match=r"1 too many \(first \['x'\]\)"):
        found_columns({**results, "x": []}, tokens)
    good = results["sample-0"]
    lacking = {key: value for key, value in good[0].items() if key != "size"}
    for box, told in (
        (lacking, "KeyError: 'size'"),
        ({**good[0], "detection_name": "tram"}, "'tram'"),
        ({**good[0], "attribute_name": "flying"}, "'flying'"),
        ({**good[0], "translation": [1.0, 2.0]}, "translation, size"),
        ({**good[0], "detection_score": "high"}, "'high'"),
    ):
        with pytest.raises(Fusion3DError, match=f"box 1 of sample sample-0 is no record.*{told}"):
            found_columns({"sample-0": [good[1], box]}, tokens)


def test_protocols_in_the_official_form(tmp_path):
    from nuscenes.eval.common.config import config_factory

    path = tmp_path / "protocol.json"
    path.write_text(json.dumps(config_factory("detection_cvpr_2019").serialize()))
    assert read_protocol(path) == CVPR_2019
    content = CVPR_2019.as_dict()
    for change, told in (
        ({"class_range": {"car": 50}}, "a range for each of the ten"),
        ({"dist_ths": []}, "different distances"),
        ({"dist_th_tp": 3.0}, "expected one of dist_ths"),
        ({"min_recall": 1.0}, "from 0 up to but not 1"),
        ({"min_precision": -0.1}, "from 0 up to but not 1"),
        ({"mean_ap_weight": "five"}, "a number above 0"),
        ({"dist_fcn": "iou"}, "center_distance"),
        ({"min_recal": 0.1}, "did you mean 'min_recall'"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ConfigError, match=rf"protocol\.json: .*{told}"):
            read_protocol(path)
    path.write_text(json.dumps({"dist_fcn": "center_distance"}))
    with pytest.raises(ConfigError, match="lacks class_range"):
        read_protocol(path)
    path.write_text("[1, 2")
    with pytest.raises(ConfigError, match=r"cannot read .*protocol\.json"):
        read_protocol(path)
    assert dataclasses.replace(CVPR_2019, min_recall=0).first == 1


def test_without_the_devkit_the_error_says_how_to_get_it(monkeypatch):
    from fusion3d.engine.official import devkit

    monkeypatch.setitem(sys.modules, "nuscenes.eval.common", None)
    with pytest.raises(Fusion3DError, match=r"--no-deps nuscenes-devkit==1\.2\.0 && pip install .fusion3d\[eval\]"):
        devkit()
