"""The greedy tracker, and tracking of a whole split: by hand, beside a plain loop, and beside the devkit."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.cli import run
from fusion3d.config import Config, OccupancyConfig, TrackerConfig
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.eval_table import format_table
from fusion3d.engine.evaluate import TASKS, choose_tasks
from fusion3d.engine.results import read_results
from fusion3d.engine.score_results import score_results
from fusion3d.engine.submission import write_submission
from fusion3d.engine.tracker import GATES, Tracker, track_detections
from fusion3d.engine.tracking import TrackScorer, tracking_truth
from fusion3d.errors import ConfigError, Fusion3DError
from fusion3d.metrics import tracking as metric
from fusion3d.metrics.tracking import score_tracking
from fusion3d.types import DETECTION_CLASSES, TRACKING_CLASSES

VERSION, SPLIT = "v1.0-synthetic", "synthetic_train"
CAR, PEDESTRIAN = TRACKING_CLASSES.index("car"), TRACKING_CLASSES.index("pedestrian")


def step(tracker: Tracker, time: float, *boxes: tuple) -> list[int]:
    """Boxes are (label, x, y, vx, vy, score)."""
    table = np.array(boxes, dtype=np.float64).reshape(-1, 6)
    label = table[:, 0].astype(np.int64)
    return tracker.step(time, label, table[:, 1:3], table[:, 3:5], table[:, 5]).tolist()


def test_objects_that_cross_keep_their_names():
    """Two cars at 10 m/s towards each other, that pass in the same place: positions alone would mix them up."""
    tracker = Tracker(TrackerConfig())
    places = [-7.5, -2.5, 2.5, 7.5]
    found = [step(tracker, 0.5 * i, (CAR, x, 0, 10, 0, 0.9), (CAR, -x, 1, -10, 0, 0.8)) for i, x in enumerate(places)]
    assert found == [[0, 1]] * 4
    standing = Tracker(TrackerConfig())
    found = [step(standing, 0.5 * i, (CAR, x, 0, 0, 0, 0.9), (CAR, -x, 1, 0, 0, 0.8)) for i, x in enumerate(places)]
    assert found != [[0, 1]] * 4


def test_velocity_counts_by_the_time_that_passed():
    tracker = Tracker(TrackerConfig(gates={"car": 0.1}))
    assert step(tracker, 3.0, (CAR, 0, 0, 10, 0, 1)) == [0]
    assert step(tracker, 3.2, (CAR, 2, 0, 10, 0, 1)) == [0]
    assert step(tracker, 4.2, (CAR, 12, 0, 10, 0, 1)) == [0]
    assert step(tracker, 4.7, (CAR, 22, 0, 10, 0, 1)) == [1]
    with pytest.raises(ValueError, match=r"expected a frame after 4\.7 s, found 4\.7 s"):
        step(tracker, 4.7)


def test_gates_are_those_of_the_class_and_classes_do_not_mix():
    for label, name in enumerate(TRACKING_CLASSES):
        for apart, same in ((GATES[name], True), (GATES[name] + 1e-6, False)):
            tracker = Tracker(TrackerConfig())
            step(tracker, 0, (label, 0, 0, 0, 0, 1))
            assert step(tracker, 1, (label, apart, 0, 0, 0, 1)) == [0 if same else 1], name
            assert step(tracker, 2, ((label + 1) % 7, apart, 0, 0, 0, 1)) == [1 if same else 2]
    own = Tracker(TrackerConfig(gates={"pedestrian": 2.0}))
    step(own, 0, (PEDESTRIAN, 0, 0, 0, 0, 1), (CAR, 9, 0, 0, 0, 1))
    assert step(own, 1, (PEDESTRIAN, 2, 0, 0, 0, 1), (CAR, 13, 0, 0, 0, 1)) == [0, 1]


@pytest.mark.parametrize("max_age", [1, 3])
def test_a_lost_track_moves_on_and_ends(max_age):
    for missed in range(5):
        tracker = Tracker(TrackerConfig(max_age=max_age, gates={"car": 0.5}))
        step(tracker, 0, (CAR, 0, 0, 4, 2, 1))
        for i in range(missed):
            assert step(tracker, i + 1) == []
        at = missed + 1
        found = step(tracker, at, (CAR, 4 * at, 2 * at, 4, 2, 1))
        assert found == [0 if missed < max_age else 1], missed


def test_the_best_chooses_first_and_new_tracks_are_numbered_by_score():
    tracker = Tracker(TrackerConfig())
    assert step(tracker, 0, (CAR, 0, 0, 0, 0, 0.2), (CAR, 20, 0, 0, 0, 0.9)) == [1, 0]
    assert step(tracker, 1, (CAR, 0.5, 0, 0, 0, 0.3), (CAR, 1.0, 0, 0, 0, 0.6)) == [2, 1]
    assert step(Tracker(TrackerConfig()), 0) == []
    unknown = Tracker(TrackerConfig())
    step(unknown, 0, (CAR, 0, 0, math.nan, math.nan, 1))
    assert step(unknown, 1, (CAR, 3, 0, math.nan, math.nan, 1)) == [0], "what has no velocity stands still"


def plainly(frames: list[tuple[float, list[tuple]]], config: TrackerConfig) -> list[list[int]]:
    """The same with dictionaries and loops."""
    tracks: list[dict] = []
    born, before, found = 0, None, []
    for time, boxes in frames:
        passed = 0.0 if before is None else time - before
        before = time
        names = [-1] * len(boxes)
        free = list(tracks)
        for k in sorted(range(len(boxes)), key=lambda k: -boxes[k][5]):
            label, x, y, vx, vy, _ = boxes[k]
            near = [
                (math.hypot(x - vx * passed - t["x"], y - vy * passed - t["y"]), i) for i, t in enumerate(free)
                if t["label"] == label
            ]  # fmt: skip
            gate = config.gates.get(TRACKING_CLASSES[label], GATES[TRACKING_CLASSES[label]])
            if near and min(near)[0] <= gate:
                names[k] = free.pop(min(near)[1])["name"]
        for k in sorted(range(len(boxes)), key=lambda k: -boxes[k][5]):
            if names[k] < 0:
                names[k], born = born, born + 1
        for t in free:
            t["age"] += 1
            t["x"], t["y"] = t["x"] + t["vx"] * passed, t["y"] + t["vy"] * passed
        tracks = [
            {"label": b[0], "x": b[1], "y": b[2], "vx": b[3], "vy": b[4], "name": n, "age": 1}
            for b, n in zip(boxes, names, strict=True)
        ] + [t for t in free if t["age"] <= config.max_age]
        found.append(names)
    return found


@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([3.0, 20.0]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_tracks_are_those_of_a_plain_loop(seed, max_age, area):
    rng = np.random.default_rng(seed)
    config = TrackerConfig(max_age=max_age)
    times = np.cumsum(rng.uniform(0.2, 0.8, 8)).tolist()
    frames = [
        (time, [(int(rng.integers(3)), *rng.normal(0, area, 2), *rng.normal(0, 3, 2), round(rng.random(), 1))
                for _ in range(rng.integers(0, 9))])
        for time in times
    ]  # fmt: skip
    tracker = Tracker(config)
    found = [step(tracker, time, *boxes) for time, boxes in frames]
    assert found == plainly(frames, config)
    for names in found:
        assert len(set(names)) == len(names), "a track has one box in a frame"


def record(x: float, score: float = 0.5, name: str = "car") -> dict:
    return {
        "sample_token": "?", "translation": [x, 0.0, 0.0], "size": [1.0, 2.0, 1.0], "rotation": [1.0, 0, 0, 0],
        "velocity": [0.0, 0.0], "detection_name": name, "detection_score": score, "attribute_name": "",
    }  # fmt: skip


def test_scenes_are_tracked_apart_and_only_what_moves():
    first = [record(0.0), record(5.0, name="barrier"), record(9.0, score=0.05)]
    results = {"a": first, "b": [record(1.0)], "c": [record(0.0)]}
    config = TrackerConfig(min_score=0.1)
    found = track_detections(results, ["a", "b", "c"], ["s1", "s1", "s2"], [0.0, 0.5, 0.1], config)
    assert {token: [r["tracking_id"] for r in of] for token, of in found.items()} == {
        "a": ["s1-0"], "b": ["s1-0"], "c": ["s2-0"],
    }  # fmt: skip
    assert found["a"][0]["tracking_name"] == "car" and found["a"][0]["tracking_score"] == 0.5
    assert not {"detection_name", "attribute_name"} & found["a"][0].keys()


@pytest.fixture(scope="module")
def detections(synthetic_root, tmp_path_factory):
    """A detection file for the synthetic set: its annotations, moved, some lost, with false alarms; and its tokens."""
    tables = Tables.open(synthetic_root, VERSION)
    rng = np.random.default_rng(1)
    tokens = [tables.token(row) for row in samples_of(tables, SPLIT)]
    results: dict[str, list[dict]] = {token: [] for token in tokens}
    for token in tokens:
        row = tables.row_of(token)
        for box in range(tables.box_start[row], tables.box_start[row + 1]):
            if tables.box_class[box] < 0 or rng.random() < 0.2:
                continue
            place = tables.box_center[box] + rng.normal(0, 0.4, 3) + (rng.random() < 0.1) * rng.normal(0, 3, 3)
            results[token].append({
                "sample_token": token, "translation": place.tolist(), "size": [1.9, 4.0, 1.5],
                "rotation": [1.0, 0.0, 0.0, 0.0], "velocity": np.nan_to_num(tables.box_velocity[box, :2]).tolist(),
                "detection_name": DETECTION_CLASSES[tables.box_class[box]], "detection_score": float(rng.random()),
                "attribute_name": "",
            })  # fmt: skip
    path = tmp_path_factory.mktemp("tracking") / "results.json"
    return write_submission(path, results, ["lidar"]), tokens


def options(synthetic_root) -> list[str]:
    return ["--data.root", str(synthetic_root), "--data.version", VERSION, "--data.split", SPLIT]


def test_detections_become_tracks_that_keep_the_rules(detections, synthetic_root, tmp_path, capsys):
    path, _ = detections
    more = [*options(synthetic_root), "--tasks", "tracking"]
    assert run("evaluate", ["--results", str(path), "--out", str(tmp_path / "made"), *more]) == 0
    told = capsys.readouterr().out
    made = json.loads((tmp_path / "made" / "metrics.json").read_text())
    row = made["subsets"]["results"]
    assert list(row) == ["tracking"] and 0.2 < row["tracking"]["AMOTA"] < 1 and row["tracking"]["TP"] > 50
    assert "AMOTA" in told and f"{row['tracking']['AMOTA']:.3f}" in told and "NDS" not in told
    tracks = tmp_path / "made" / "tracking_nusc.json"
    assert run("check_submission", [str(tracks), *options(synthetic_root)]) == 0
    assert "tracking, 12 samples" in capsys.readouterr().out
    assert run("evaluate", ["--results", str(tracks), "--out", str(tmp_path / "read"), *options(synthetic_root)]) == 0
    read = json.loads((tmp_path / "read" / "metrics.json").read_text())
    assert read["subsets"]["tracking_nusc"]["tracking"] == row["tracking"]
    capsys.readouterr()
    more = [*options(synthetic_root), "--tasks", "detection"]
    assert run("evaluate", ["--results", str(tracks), "--out", str(tmp_path), *more]) == 1
    assert "holds tracking results: no task 'detection'; possible: tracking" in capsys.readouterr().err


def test_the_truth_as_a_tracking_file_is_perfect(synthetic_root, tmp_path):
    tables = Tables.open(synthetic_root, VERSION)
    tokens = [tables.token(row) for row in samples_of(tables, SPLIT)]
    frames, truth = tracking_truth(tables, tokens)
    results: dict[str, list[dict]] = {token: [] for token in tokens}
    for row in np.flatnonzero(truth.num_points > 0).tolist():
        token = tokens[truth.frame[row]]
        results[token].append({
            "sample_token": token, "translation": truth.center[row].tolist(), "size": [1.0, 1.0, 1.0],
            "rotation": [1.0, 0, 0, 0], "velocity": [0.0, 0.0], "tracking_id": str(truth.track[row]),
            "tracking_name": TRACKING_CLASSES[truth.label[row]], "tracking_score": 0.5,
        })  # fmt: skip
    path = write_submission(tmp_path / "truth.json", results, [])
    scorer = TrackScorer(tables, tokens, TrackerConfig())
    found = scorer.score(read_results(path, tokens, task="tracking"))
    assert found["AMOTA"] == 1 and found["MOTA"] == 1 and found["AMOTP"] < 1e-4
    assert found["IDS"] == found["FP"] == found["FN"] == found["FRAG"] == 0 and found["TP"] > 100
    assert len(frames) == 12 and len(np.unique(frames.scene)) == 2
    with pytest.raises(Fusion3DError, match="not in order of time"):
        TrackScorer(tables, tokens[::-1], TrackerConfig())


def test_a_scene_without_key_lidar_is_scored(real_root, tmp_path):
    """scene-0061 has no LIDAR_TOP after its first keyframe, and the devkit stops; its own tracks are perfect."""
    tables = Tables.open(real_root, "v1.0-mini")
    tokens = [tables.token(row) for row in samples_of(tables, "real_0061")]
    frames, truth = tracking_truth(tables, tokens)
    found = score_tracking(frames, truth, truth)
    scorer = TrackScorer(tables, tokens, TrackerConfig())
    row = scorer.track({token: [] for token in tokens}, (), tmp_path / "tracks.json")
    assert row["range_from_nearest_pose"] == 37
    assert "37 samples have no LIDAR_TOP" in format_table({"subsets": {"none": {"tracking": row}}})
    there = [name for name, row in found["classes"].items() if not math.isnan(row["AMOTA"])]
    assert len(frames) == 38 and len(there) >= 3
    for name in there:
        row = found["classes"][name]
        assert (row["AMOTA"], row["recall"], row["IDS"], row["FP"]) == (1, 1, 0, 0) and row["MOTP"] < 1e-4, name


def test_a_file_of_tracks_has_the_devkits_numbers(detections, synthetic_root, tmp_path, monkeypatch):
    """The devkit's whole evaluation, from files and tables of its own, at fewer levels of recall to be quick."""
    pytest.importorskip("motmetrics", reason="the devkit's tracking evaluation needs motmetrics")
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.tracking.data_classes import TrackingConfig
    from nuscenes.eval.tracking.evaluate import TrackingEval

    monkeypatch.setattr(metric, "NUM_LEVELS", 4)
    assert run("evaluate", ["--results", str(detections[0]), "--out", str(tmp_path), *options(synthetic_root),
                            "--tasks", "tracking"]) == 0  # fmt: skip
    ours = json.loads((tmp_path / "metrics.json").read_text())["subsets"]["results"]["tracking"]
    official = TrackingConfig.deserialize({**config_factory("tracking_nips_2019").serialize(), "num_thresholds": 4})
    devkit = TrackingEval(
        official, str(tmp_path / "tracking_nusc.json"), SPLIT, str(tmp_path / "theirs"), VERSION, str(synthetic_root),
        verbose=False,
    )  # fmt: skip
    theirs = devkit.evaluate()[0].serialize()
    for name in metric.NAMES:
        assert ours[name] == pytest.approx(theirs[name.lower()], abs=1e-9), name
        for label in TRACKING_CLASSES:
            found, expected = ours["classes"][label][name], theirs["label_metrics"][name.lower()][label]
            assert (found is None and math.isnan(expected)) or found == pytest.approx(expected, abs=1e-9), (label, name)


def test_tasks_are_those_that_the_model_has():
    assert choose_tasks(Config(), None) == ("detection", "planning")
    assert choose_tasks(Config(), ["tracking", "planning"]) == ("planning", "tracking")
    assert set(TASKS) == {"detection", "planning", "motion", "map", "occupancy", "tracking"}
    with pytest.raises(ConfigError, match="no task 'map' for this model; possible: detection, planning, tracking"):
        choose_tasks(Config(), ["map"])
    with pytest.raises(ConfigError, match="no task 'tracking'"):
        choose_tasks(Config(detection=None), ["tracking"])
    with pytest.raises(ConfigError, match="no task 'fly'"):
        choose_tasks(Config(), ["fly"])
    assert choose_tasks(Config(detection=None, planning=None, occupancy=OccupancyConfig()), None) == ("occupancy",)
    with pytest.raises(ConfigError, match="nothing to score"):
        choose_tasks(Config(detection=None, planning=None), None)


def test_a_table_of_tracks_alone_has_no_empty_line_above_it(detections, synthetic_root, tmp_path):
    from fusion3d.config import override

    config = override(Config(), options(synthetic_root))
    text = format_table(score_results(detections[0], config, tmp_path, tasks=["tracking"]))
    assert text.splitlines()[0].split() == ["tracking", "AMOTA", "AMOTP", "MOTA", "MOTP", "recall", "IDS", "FRAG"]
    both = format_table(score_results(detections[0], config, tmp_path, tasks=["tracking", "detection"])).splitlines()
    assert both[0].split()[1] == "NDS" and "" in both
