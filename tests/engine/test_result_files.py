"""Result files: what is wrong with one, what is not, beside what the devkit's own loader says of it."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fusion3d.cli import run
from fusion3d.config import Config, DataConfig, TemporalConfig, override
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine import evaluate as evaluate_module
from fusion3d.engine.columns import found_columns, result_columns
from fusion3d.engine.evaluate import add_checkpoint_options, add_prediction_options, chosen_config
from fusion3d.engine.evaluate import main as evaluate_main
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.leaderboard import check_history, reach
from fusion3d.engine.results import Limits, Problems, Results, examine_results, read_results
from fusion3d.engine.results.examine import _check_numbers as check_numbers
from fusion3d.engine.results.rules import FATAL, RULES, SCORABLE
from fusion3d.engine.submission import to_records, write_submission
from fusion3d.errors import ConfigError, DataError
from fusion3d.metrics.detection import score_detections
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, Boxes

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))
from crowds import moved_truth

VERSION = "v1.0-synthetic"
SAMPLES = ("7a", "3b", "c")
SCENES = ("s1", "s1", "s2")
META = {"use_camera": True, "use_lidar": False, "use_radar": True, "use_map": False, "use_external": False}


def box(token: str, task: str = "detection", **more) -> dict:
    found = {
        "sample_token": token, "translation": [601.25, 1647.5, 1], "size": [1.9, 4.5, 1.7],
        "rotation": [0.6, 0.0, 0.0, 0.8], "velocity": [0.5, -0.25], f"{task}_name": "car", f"{task}_score": 0.5,
    }  # fmt: skip
    return found | ({"attribute_name": "vehicle.parked"} if task == "detection" else {"tracking_id": "t1"}) | more


def file_of(task: str = "detection") -> dict:
    return {
        "meta": META,
        "results": {"7a": [box("7a", task), box("7a", task, tracking_id="t2")], "3b": [], "c": [box("c", task)]},
    }


def detections() -> dict:
    content = file_of()
    del content["results"]["7a"][1]["tracking_id"]
    return content


def tracks() -> dict:
    return file_of("tracking")


def box_with(**more):
    def change(content):
        content["results"]["7a"][1] |= more

    return change


def without(key):
    def change(content):
        del content["results"]["7a"][1][key]

    return change


def samples_with(**more):
    return lambda content: content["results"].update(more)


BROKEN = [
    ("meta", lambda content: content.pop("meta"), detections),
    ("meta", lambda content: content.update(meta=3), detections),
    ("flag", lambda content: content.update(meta=META | {"use_lidar": 1}), detections),
    ("flag", lambda content: content.update(meta={k: v for k, v in META.items() if k != "use_map"}), detections),
    ("unknown_flag", lambda content: content.update(meta=META | {"use_sonar": True}), detections),
    ("top", lambda content: content.update(author={"name": "?"}), detections),
    ("unknown_key", box_with(colour="red"), detections),
    ("huge", box_with(size=[2.0, 1000.0, 2.0]), detections),
    ("unit", box_with(rotation=[1.0, 0.0, 0.0, 0.2]), detections),
    ("score", box_with(detection_score=1.5), detections),
    ("score", box_with(tracking_score=-0.5), tracks),
    ("negative", box_with(detection_score=-0.5), detections),
    ("family", box_with(attribute_name="cycle.with_rider"), detections),
    ("family", box_with(attribute_name=""), detections),
    ("family", box_with(detection_name="barrier"), detections),
    ("track_id", box_with(tracking_id=12), tracks),
    ("track_twice", box_with(tracking_id="t1"), tracks),
    ("track_class", samples_with(**{"3b": [box("3b", "tracking", tracking_name="bus")]}), tracks),
    ("missing", lambda content: content["results"].pop("c"), detections),
    ("unknown", samples_with(zz=[]), detections),
    ("no_list", samples_with(c={"0": box("c")}), detections),
    ("many", samples_with(c=[box("c")] * 501), detections),
    ("no_box", samples_with(c=[box("c"), "box"]), detections),
    *(("key", without(key), detections) for key in box("a")),
    *(("key", without(key), tracks) for key in ("tracking_id", "tracking_score")),
    ("type", box_with(size=[1.0, 2.0]), detections),
    ("type", box_with(size=["1", "2", "3"]), detections),
    ("type", box_with(rotation=None), detections),
    ("type", box_with(translation={"0": 1, "1": 2, "2": 3}), detections),
    ("type", box_with(velocity=[None, 0.0]), detections),
    ("type", box_with(velocity=[True, 0.0]), detections),
    ("type", box_with(detection_score="high"), detections),
    ("type", box_with(detection_name=["car"]), detections),
    ("type", box_with(attribute_name=None), detections),
    ("type", box_with(sample_token=7), detections),
    ("type", box_with(num_pts="0"), detections),
    *(("finite", box_with(**{key: [float("nan"), *box("a")[key][1:]]}), detections)
      for key in ("translation", "size", "rotation", "velocity")),
    ("finite", box_with(detection_score=float("inf")), detections),
    ("finite", box_with(translation=[10**400, 0, 0]), detections),
    ("size", box_with(size=[0.0, 4.0, 2.0]), detections),
    ("size", box_with(size=[-1.0, 4.0, 2.0]), detections),
    ("rotation", box_with(rotation=[0, 0, 0, 0]), detections),
    ("class", box_with(detection_name="animal"), detections),
    ("class", box_with(tracking_name="barrier"), tracks),
    ("attribute", box_with(attribute_name="vehicle.flying"), detections),
    ("token", box_with(sample_token="3b"), detections),
]  # fmt: skip


def written(folder, content):
    path = folder / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("make", [detections, tracks])
def test_a_good_file_has_no_problems_and_comes_back_as_it_was(make, tmp_path):
    content = make()
    path = written(tmp_path, content)
    results, problems = examine_results(path, SAMPLES, scenes=SCENES)
    assert problems.lines() == []
    assert results.meta == META and results.sensors == ("camera", "radar")
    assert results.records() == content["results"] == read_results(path, SAMPLES).records()


@pytest.mark.parametrize(("rule", "change", "make"), BROKEN, ids=[f"{i}-{case[0]}" for i, case in enumerate(BROKEN)])
def test_each_broken_rule_is_named_alone_and_where(rule, change, make, tmp_path):
    content = copy.deepcopy(make())
    change(content)
    path = written(tmp_path, content)
    _, problems = examine_results(path, SAMPLES, scenes=SCENES)
    assert list(problems.count) == [rule] and problems.count[rule] == 1
    (line,) = problems.lines()
    assert line.startswith(f"1 x {RULES[rule]}: ") and len(line) < 200
    if content.get("results", {}).get("7a") not in (make()["results"]["7a"], None) and rule not in ("track_twice",):
        assert "sample 7a, box 1: " in line
    if rule in FATAL:
        with pytest.raises(DataError) as error:
            read_results(path, SAMPLES)
        assert str(error.value).startswith(f"{path}: {line}; fusion3d check_submission") and "\n" not in str(
            error.value
        )
    else:
        read_results(path, SAMPLES)


def test_every_rule_was_broken_once():
    assert {rule for rule, _, _ in BROKEN} | {"twice"} == set(RULES)


def test_what_the_devkit_refuses_is_refused_and_what_is_scorable_it_takes(tmp_path):
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.loaders import load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.tracking.data_classes import TrackingBox

    config_factory("tracking_nips_2019")  # the names of its classes are a global that this fills
    refused = 0
    for rule, change, make in BROKEN:
        content = copy.deepcopy(make())
        change(content)
        path = written(tmp_path, content)
        try:
            load_prediction(str(path), 500, DetectionBox if make is detections else TrackingBox)
        except (AssertionError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
            refused += 1
            assert rule in FATAL or rule == "meta", rule
        else:
            # What it loads and stumbles over later, or scores as something else.
            assert rule in SCORABLE or rule in (
                "missing",
                "unknown",
                "type",
                "finite",
                "size",
                "rotation",
                "negative",
                "token",
                "key",
            ), rule
    assert refused > 20


def test_looking_at_boxes_takes_less_memory_than_they_do(tmp_path):
    results, _ = examine_results(written(tmp_path, {"meta": META, "results": {"a": [box("a")] * 500}}))
    tracemalloc.start()
    check_numbers(results, Problems())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * len(results), "what a box is said to take"


def test_columns_are_those_of_the_records_and_take_less_memory(tmp_path):
    """Whatever the order of the samples; also where there is no box."""
    boxes = [box("b", size=[1.0, 2.0 + i, 3.0], rotation=[0.8, 0, 0, 0.1 * i], attribute_name="") for i in range(500)]
    boxes[3:6] = [{**boxes[3], "num_pts": points} for points in (0, 7, 10**12)]
    content = {"b": boxes, "c": [], "a": [box("a", detection_name="pedestrian", attribute_name="pedestrian.moving")]}
    for some in (content, {"c": [], "a": []}):
        results = read_results(written(tmp_path, {"meta": META, "results": some}))
        tokens = sorted(some)
        tracemalloc.start()
        columns = result_columns(results, tokens)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 250 * len(results) + 10_000
        found = found_columns(results.records(), tokens)
        np.testing.assert_equal(dataclasses.asdict(columns), dataclasses.asdict(found))
        assert all(getattr(columns, f.name).dtype == getattr(found, f.name).dtype for f in dataclasses.fields(found))


def test_everything_at_once_is_counted_with_the_first_places(tmp_path):
    content = detections()
    content["results"]["c"] = [
        box("c", size=[0, 1, 1]),
        *[box("c", detection_name="x", size=[-1, 1, 1])] * 4,
        box("3b"),
    ]
    content["results"]["c"][5] |= {"detection_score": 2, "velocity": [float("inf"), 0]}
    text = json.dumps(content)[:-2] + ', "3b": [], "3b": []}}'
    _, problems = examine_results(written(tmp_path, text), SAMPLES)
    assert problems.count == {"twice": 2, "class": 4, "token": 1, "size": 1, "finite": 1}
    lines = problems.lines()
    assert (
        "4 x a class that the task does not have: sample c, box 1: x; sample c, box 2: x; sample c, box 3: x, ..."
        in lines
    )
    with pytest.raises(DataError, match=r"\(and 4 other kinds of problem\)"):
        read_results(written(tmp_path, text), SAMPLES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected an object with meta and results"),
        ("[]", "expected an object with meta and results"),
        ("{}", "there is no key results"),
        ('{"results": []}', "expected an object of lists by sample token"),
        ('{"results": {"a": [', "no valid JSON at character 19: .*cut short"),
        ('{"results": {"a": [{"size": [1.0, 2', "no valid JSON at character .*cut short"),
        ('{"results": {"a": ' + 2000 * "[" + "]", "nested too deeply|no valid JSON"),
        ('{"results": {"a": [{"size": ' + 100000 * "[", "nested too deeply"),
        ('{"results": {}, "meta": {}, "results": {}}', "has the key results twice"),
        ('{"meta": {}, "meta": {}, "results": {}}', "has the key meta twice"),
        (json.dumps({"results": {"a" * 257: []}}), "at most 256 characters, found 257"),
        (json.dumps({"results": {"a": [box("a", "tracking", tracking_id="t" * 1000)]}}), "256 characters, found 1000"),
    ],
)
def test_what_is_no_result_file_is_one_line(text, message, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        read_results(written(tmp_path, text))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_too_many_boxes_take_no_memory(tmp_path):
    many = 20_000
    path = written(tmp_path, {"meta": META, "results": {"a": [box("a")] * many}})
    tracemalloc.start()
    results, problems = examine_results(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 4.5e6 and peak < 6e6, "the text alone is as large, and its values many times larger"
    assert len(results) == 500
    assert problems.lines() == ["1 x a sample has more boxes than it may: sample a: 20000, at most 500"]


def test_a_million_boxes_are_counted_and_files_have_limits(tmp_path):
    path = written(tmp_path, '{"meta": {}, "results": {"a": [' + 999_999 * "{}," + "{}]}}")
    results, problems = examine_results(path)
    assert len(results) == 0
    assert "1 x a sample has more boxes than it may: sample a: 1000000, at most 500" in problems.lines()
    with pytest.raises(DataError, match="more than 1000 boxes"):
        read_results(path, limits=Limits(max_boxes=1000))
    with pytest.raises(DataError, match="3000033 bytes and the limit is 1000000"):
        read_results(path, limits=Limits(max_bytes=1_000_000))
    with pytest.raises(DataError, match="more than 2 samples"):
        read_results(written(tmp_path, json.dumps(detections())), limits=Limits(max_samples=2))


def test_a_file_of_another_task_or_without_boxes(tmp_path):
    path = written(tmp_path, tracks())
    assert read_results(path, task="tracking").task == "tracking"
    with pytest.raises(DataError, match="holds tracking results; expected detection"):
        read_results(path, task="detection")
    empty = written(tmp_path, {"meta": META, "results": {"a": []}})
    for task in ("detection", "tracking"):
        found = read_results(empty, task=task)
        assert found.task == task and found.records() == {"a": []}


@pytest.fixture(scope="module")
def truth_file(synthetic_root, tmp_path_factory):
    """The annotations of the training split, moved a little, as somebody's result file; and what was written."""
    tables = Tables.open(synthetic_root, VERSION)
    truth = detection_truth(tables, [tables.token(row) for row in samples_of(tables, "synthetic_train")])
    records = moved_truth(truth, spread=0.5)
    return write_submission(tmp_path_factory.mktemp("truth") / "theirs.json", records, ["lidar"]), records


def test_the_verb_says_all_and_exits_with_1(truth_file, synthetic_root, tmp_path, capsys):
    path, records = truth_file
    data = ["--data.root", str(synthetic_root), "--data.version", VERSION, "--data.split", "synthetic_train"]
    assert run("check_submission", [str(path), *data]) == 0
    told = capsys.readouterr().out
    assert f"detection, {len(records)} samples" in told and "made with lidar" in told and told.endswith("passed\n")
    assert run("check_submission", [str(path), *data[:-1], "synthetic_val"]) == 1
    told = capsys.readouterr().out
    assert "6 x a sample of the split is missing: " in told and "12 x a sample is not in the split: " in told
    assert told.endswith("FAILED: 18 problems of 2 kinds\n")
    assert run("check_submission", [str(path)]) == 0
    assert "not compared with a split" in capsys.readouterr().out
    assert run("check_submission", [str(tmp_path / "none.json")]) == 1
    assert capsys.readouterr().err.endswith("none.json: no such file\n")


def test_somebody_elses_file_is_scored_by_the_same_metrics(truth_file, synthetic_root, tmp_path, monkeypatch, capsys):
    path, records = truth_file
    monkeypatch.delattr(Results, "records")  # which are many times larger than the boxes
    data = ["--data.root", str(synthetic_root), "--data.version", VERSION, "--data.split", "synthetic_train"]
    assert evaluate_main(["--results", str(path), "--out", str(tmp_path), *data]) == 0
    tables = Tables.open(synthetic_root, VERSION)
    truth = detection_truth(tables, records)
    expected = score_detections(truth, found_columns(records, truth.samples.tokens))
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.json", "run.json", "matches.npz"}, (
        "no copy of the file"
    )
    row = found["subsets"]["theirs"]
    assert 0.1 < row["mAP"] < 0.9
    assert {k: row[k] for k in ("NDS", "mAP", "mATE", "AP")} == {k: expected[k] for k in ("NDS", "mAP", "mATE", "AP")}
    assert found["num_samples"] == len(records) and found["meta"]["use_lidar"] is True
    assert f"{row['NDS']:.3f}" in capsys.readouterr().out
    assert run("evaluate", ["--results", str(path), "--out", str(tmp_path), *data, "--max-boxes", "3"]) == 1
    assert "more than 3 boxes" in capsys.readouterr().err
    assert run("evaluate", ["--results", str(path), "--out", str(tmp_path), *data[:-1], "synthetic_val"]) == 1
    assert "a sample of the split is missing" in capsys.readouterr().err


def test_what_we_write_is_what_the_rules_want(tmp_path):
    import torch

    count = 700
    rng = torch.Generator().manual_seed(0)
    boxes = Boxes.of(
        center=torch.randn(count, 3, generator=rng) * 30,
        size=torch.rand(count, 3, generator=rng) + 0.1,
        yaw=torch.randn(count, generator=rng) * 3,
        label=torch.arange(count) % len(DETECTION_CLASSES),
        score=torch.rand(count, generator=rng),
    )
    pose = np.eye(4)
    pose[:3, 3] = 600, 1600, 1
    path = write_submission(tmp_path / "ours.json", {"a": to_records(boxes, pose, "a"), "b": []}, ["camera"])
    results, problems = examine_results(path, ["a", "b"])
    assert problems.lines() == [] and len(results) == 500 and results.sensors == ("camera",)
    assert set(results.attribute.tolist()) <= set(range(-1, len(ATTRIBUTES)))


def config(*changes: str, temporal: TemporalConfig | None = None) -> Config:
    return dataclasses.replace(override(Config(), ["--evaluation.strict", *changes]), temporal=temporal)


def test_strict_refuses_more_history_than_the_leaderboard():
    assert reach(config()) == {"camera": 0, "lidar": 9, "radar": 5}
    check_history(config())
    check_history(config("--data.lidar-sweeps", "11", "--data.radar-sweeps", "7"))  # with 10 and 6 past ones
    one = ("--data.lidar-sweeps", "1", "--data.radar-sweeps", "1")
    check_history(config(*one, temporal=TemporalConfig(keyframes=2)))
    for changes, temporal, message in (
        (("--data.lidar-sweeps", "12"), None, r"past frames read: lidar 11 \(at most 10\); lower"),
        (("--data.radar-sweeps", "8"), None, r"radar 7 \(at most 6\)"),
        (one, TemporalConfig(keyframes=3), r"camera 12 \(at most 6\), lidar 20 \(at most 10\), radar 12"),
        (("--data.lidar-sweeps", "2"), TemporalConfig(keyframes=2), r"lidar 11 \(at most 10\)"),
        (("--evaluation.stream",), TemporalConfig(), "remembers all of the scene"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_history(config(*changes, temporal=temporal))
        check_history(dataclasses.replace(config(*changes, temporal=temporal), evaluation=Config().evaluation))
    without_lidar = config("--data.lidar-sweeps", "12", "--data.sensors", "camera")
    check_history(without_lidar)
    assert reach(without_lidar) == {"camera": 0}
    assert DataConfig().lidar_sweeps == 10


def test_short_options_set_the_configuration(monkeypatch):
    monkeypatch.setattr(evaluate_module, "load_config_of", lambda checkpoint: Config())
    parser = argparse.ArgumentParser()
    add_checkpoint_options(parser)
    add_prediction_options(parser)
    common = ["--checkpoint", "x", "--out", "y"]
    assert chosen_config(parser.parse_args(common), []).evaluation == Config().evaluation
    found = chosen_config(parser.parse_args([*common, "--strict", "--stream", "--tta", "flip"]), []).evaluation
    assert (found.strict, found.stream, found.tta) == (True, True, "flip")
    assert chosen_config(*parser.parse_known_args([*common, "--evaluation.tta", "rotate"])).evaluation.tta == "rotate"
