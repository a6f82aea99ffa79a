"""Scoring of result files: the order of samples, what is written beside, and what cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion3d.analysis.report import report
from fusion3d.config import Config, override
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.eval_table import format_table
from fusion3d.engine.evaluate import main as evaluate_main
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.matches import matches_of, read_matches
from fusion3d.engine.score_results import score_results
from fusion3d.engine.scoring import BoxScorer, Scoring
from fusion3d.engine.submission import to_records, write_submission
from fusion3d.errors import ConfigError, DataError
from fusion3d.geometry import quaternion_from_yaw
from fusion3d.metrics.bootstrap import interval
from fusion3d.metrics.protocol import DetectionProtocol
from fusion3d.metrics.shapley import shapley
from fusion3d.types import DETECTION_CLASSES, Boxes

VERSION, SPLIT = "v1.0-synthetic", "synthetic_train"


@pytest.fixture
def config(synthetic_root) -> Config:
    return override(Config(), ["--data.root", str(synthetic_root), "--data.version", VERSION, "--data.split", SPLIT])


def moved_truth(root: Path) -> dict[str, list[dict]]:
    """The annotations moved a little, with many equal scores; the samples in no order."""
    tables, rng = Tables.open(root, VERSION), np.random.default_rng(0)
    truth = detection_truth(tables, [tables.token(row) for row in samples_of(tables, SPLIT)])
    records: dict[str, list[dict]] = {token: [] for token in rng.permutation(truth.samples.tokens).tolist()}
    for row, sample in enumerate(truth.boxes.sample.tolist()):
        token = truth.samples.tokens[sample]
        record = {
            "sample_token": token,
            "translation": (truth.boxes.center[row] + rng.normal(0, 0.7, 3)).tolist(),
            "size": truth.boxes.size[row, [1, 0, 2]].tolist(),
            "rotation": quaternion_from_yaw(truth.boxes.yaw[row : row + 1])[0].tolist(),
            "velocity": [0.0, 0.0],
            "detection_name": DETECTION_CLASSES[truth.boxes.label[row]],
            "detection_score": float(rng.integers(1, 4) / 4),
            "attribute_name": "",
        }
        records[token].append(record)
    return records


def test_the_order_of_samples_in_the_file_decides_between_equal_scores(config, synthetic_root, tmp_path):
    """As the devkit does; and what is written has the very numbers of what was read."""
    records = moved_truth(synthetic_root)
    backwards = dict(reversed(records.items()))
    scores = []
    for name, of in (("a", records), ("b", backwards)):
        path = write_submission(tmp_path / f"{name}.json", of, ["lidar"])
        metrics = score_results(path, config, tmp_path / name, scoring=Scoring(official=True, resamples=0))
        scores.append(metrics["subsets"][name])
        assert scores[-1]["official"]["difference"] < 1e-9
        again = score_results(
            tmp_path / name / "results_nusc.json", config, tmp_path / "c", scoring=Scoring(resamples=0)
        )
        assert again["subsets"]["results_nusc"]["NDS"] == scores[-1]["NDS"]
        assert list(json.loads((tmp_path / name / "results_nusc.json").read_text())["results"]) == list(of)
    assert abs(scores[0]["NDS"] - scores[1]["NDS"]) > 1e-6, "so that the test can fail"


def test_a_protocol_says_how_many_boxes_a_sample_of_a_file_may_have(config, synthetic_root, tmp_path):
    records = moved_truth(synthetic_root)
    token = max(records, key=lambda one: len(records[one]))
    records[token] = (records[token] * 600)[:600]
    path = write_submission(tmp_path / "many.json", records, ["lidar"])
    with pytest.raises(DataError, match=r"more boxes than it may: sample \w+: 600, at most 500"):
        score_results(path, config, tmp_path / "usual", scoring=Scoring(resamples=0))
    own = Scoring(DetectionProtocol(max_boxes_per_sample=600), official=True, resamples=0)
    scores = score_results(path, config, tmp_path / "own", scoring=own)["subsets"]["many"]
    assert scores["official"]["difference"] < 1e-9 and scores["strata"]
    assert len(read_matches(tmp_path / "own" / "matches.npz").found) > 500
    page = report(tmp_path / "own", worst=1).read_text()  # which draws boxes of the file
    assert "Evaluation of many.json" in page and "data:image/png" in page and ">Worst samples</h2>" in page
    assert "Greatest difference from the devkit" in page
    path.unlink()
    with pytest.raises(DataError, match=r"many\.json: no such file; with --no-pictures the page needs no boxes"):
        report(tmp_path / "own")
    assert ">Worst samples</h2>" in report(tmp_path / "own", pictures=False).read_text()
    boxes = Boxes.of(torch.zeros(3, 3), torch.ones(3, 3), torch.zeros(3), score=torch.tensor([0.1, 0.9, 0.5]))
    assert [box["detection_score"] for box in to_records(boxes, np.eye(4), "t", 2)] == pytest.approx([0.9, 0.5])


def test_what_is_odd_in_a_file_is_said_where_it_is_scored(config, synthetic_root, tmp_path):
    records = moved_truth(synthetic_root)
    for boxes in records.values():
        for box in boxes:
            box["detection_score"] *= 50
    path = write_submission(tmp_path / "odd.json", records, ["lidar"])
    metrics = score_results(path, config, tmp_path / "odd", scoring=Scoring(resamples=0))
    remark = next(line for line in metrics["remarks"] if "a score is not between 0 and 1" in line)
    assert f"\nthe file: {remark}" in format_table(metrics)
    page = report(tmp_path / "odd", pictures=False).read_text()
    assert "Scores above 1 are no confidences" in page and "a score is not between 0 and 1" in page
    next(iter(records.values()))[0]["size"] = [1e200, 1, 1]
    path = write_submission(tmp_path / "absurd.json", records, ["lidar"])
    with pytest.raises(DataError, match=r"not finite, or larger than 1e\+09"):
        score_results(path, config, tmp_path / "absurd")


def test_what_only_detections_have_is_refused_of_tracks(config, synthetic_root, tmp_path):
    path = write_submission(tmp_path / "boxes.json", moved_truth(synthetic_root), ["lidar"])
    for scoring in (Scoring(official=True), Scoring(DetectionProtocol(max_boxes_per_sample=600))):
        with pytest.raises(ConfigError, match="--official and --protocol are of detections; to be scored: tracking"):
            score_results(path, config, tmp_path, tasks=["tracking"], scoring=scoring)


def test_matches_of_an_earlier_evaluation_are_not_taken_for_this_ones(config, synthetic_root, tmp_path):
    path = write_submission(tmp_path / "theirs.json", moved_truth(synthetic_root), ["lidar"])
    score_results(path, config, tmp_path / "out", scoring=Scoring(resamples=0))
    old = tmp_path / "out" / "camera+lidar"
    old.mkdir()
    (old / "matches.npz").write_bytes((tmp_path / "out" / "matches.npz").read_bytes())
    assert matches_of(tmp_path / "out") == {"theirs": tmp_path / "out" / "matches.npz"}
    metrics = tmp_path / "out" / "metrics.json"
    metrics.write_text(json.dumps({"subsets": {"camera+lidar": {"AP": {}}, "lidar": {"planning": {}}}}))
    assert matches_of(tmp_path / "out") == {"camera+lidar": old / "matches.npz"}
    metrics.unlink()
    (tmp_path / "out" / "matches.npz").unlink()
    assert matches_of(tmp_path / "out") == {"camera+lidar": old / "matches.npz"}  # from before there were rows


def test_what_subsets_say_together_is_of_the_same_draws(config, synthetic_root, tmp_path):
    """Shapley values and what is kept, in every draw, by their own definitions."""
    tables, records = Tables.open(synthetic_root, VERSION), moved_truth(synthetic_root)
    scorer = BoxScorer(detection_truth(tables, records), config.data, Scoring(resamples=100))
    rows = {}
    for name, every in (("lidar", 2), ("radar", 3), ("lidar+radar", 1)):
        fewer = {token: boxes[::every] for token, boxes in records.items()}
        rows[name] = scorer.score(name, fewer, (), tmp_path / name)
    found = scorer.beside(rows)
    assert found["kept"]["lidar+radar"]["NDS"] == 1
    for score in ("NDS", "AP.car"):
        drawn = {name: of.drawn[score][scorer.draws.number] for name, of in scorer.sampled.items()}
        each = [shapley(dict(zip(drawn, column, strict=True))) for column in zip(*drawn.values(), strict=True)]
        for sensor in ("lidar", "radar"):
            scenes = scorer.sampled["lidar"].scenes[score]
            expected = interval(np.array([one[sensor] for one in each]), scenes)
            assert found["shapley"]["intervals"][score][sensor] == pytest.approx(expected, abs=1e-12)
    ratio = scorer.sampled["radar"].drawn["mAP"] / scorer.sampled["lidar+radar"].drawn["mAP"]
    expected = interval(ratio[scorer.draws.number], scorer.sampled["radar"].scenes["mAP"])
    assert found["kept"]["radar"]["intervals"]["mAP"] == expected
    assert found["shapley"]["NDS"] == shapley({name: row["NDS"] for name, row in rows.items()})


@pytest.mark.parametrize("name", ["results_nusc.json", "tracking_nusc.json", "metrics.json"])
def test_the_file_itself_is_not_written_over(config, tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps({"meta": {"use_external": True}, "results": {}}))
    with pytest.raises(ConfigError, match=rf"{name} would be written over"):
        score_results(path, config, tmp_path / ".." / tmp_path.name, scoring=Scoring(official=True))
    assert "use_external" in path.read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--resamples", "-1"], "--resamples: expected 0 or at least 100, found -1"),
        (["--resamples", "99"], "--resamples: expected 0 or at least 100, found 99"),
        (["--tta", "flip", "--strict"], "--results: --tta, --strict are of a checkpoint"),
        (["--subsets", "camera", "--no-ema"], "--results: --subsets, --no-ema are of a checkpoint"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, told, capsys):
    with pytest.raises(SystemExit):
        evaluate_main(["--results", "theirs.json", "--out", "x", *options])
    assert told in capsys.readouterr().err
