"""Scoring of result files: the order of samples, what is written beside, and what cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fusion3d.analysis.report import report
from fusion3d.config import Config, override
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.evaluate import main as evaluate_main
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.matches import read_matches
from fusion3d.engine.score_results import score_results
from fusion3d.engine.scoring import BoxScorer, Scoring
from fusion3d.engine.submission import write_submission
from fusion3d.errors import ConfigError, DataError
from fusion3d.geometry import quaternion_from_yaw
from fusion3d.metrics.bootstrap import interval
from fusion3d.metrics.protocol import DetectionProtocol
from fusion3d.metrics.shapley import shapley
from fusion3d.types import DETECTION_CLASSES

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
