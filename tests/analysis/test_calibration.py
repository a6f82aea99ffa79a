"""Calibration of a checkpoint: fitted on one split, reported on another, and used without a change of any AP."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fusion3d.analysis.calibration import ENOUGH, calibrate, describe_scores, fit_classes, main, score_classes
from fusion3d.config import EvaluationConfig
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.columns import found_columns
from fusion3d.engine.evaluate import evaluate
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.predict import predict
from fusion3d.engine.temperatures import FILE, load_temperatures, save_temperatures, soften
from fusion3d.errors import CheckpointError, ConfigError
from fusion3d.metrics.calibration import apply_temperature
from fusion3d.metrics.columns import Truth
from fusion3d.metrics.detection import score_detections
from fusion3d.metrics.matching import match_detections
from fusion3d.types import DETECTION_CLASSES

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))
from crowds import moved_truth
from small_models import on_synthetic, saved


@pytest.fixture(scope="module")
def config(synthetic_root):
    return on_synthetic(synthetic_root, camera=None, map=None, planning=None, detection__max_boxes=60)


@pytest.fixture
def checkpoint(config, tmp_path) -> Path:
    return saved(config, tmp_path / "checkpoints" / "step-00000001")


def near_truth(root: Path) -> tuple[Truth, dict[str, list[dict]]]:
    """Truth of the train split, and boxes near most of it, surer than they are right."""
    tables = Tables.open(root, "v1.0-synthetic")
    truth = detection_truth(tables, [tables.token(row) for row in samples_of(tables, "train")])
    return truth, moved_truth(truth, spread=1.5, kept=0.9)


def test_temperatures_change_no_ap(synthetic_root):
    truth, results = near_truth(synthetic_root)
    temperature = {name: 0.3 + 0.5 * i for i, name in enumerate(DETECTION_CLASSES)}
    before, after = (
        score_detections(truth, found_columns(one, truth.samples.tokens))
        for one in (results, soften(results, temperature))
    )
    assert before["mAP"] > 0.02 and before["AP"] == after["AP"] and before["mAP"] == after["mAP"]
    assert after["NDS"] == pytest.approx(before["NDS"], abs=0.01)
    softened = soften(results, temperature)
    token = next(token for token in results if results[token])
    for old, new in zip(results[token], softened[token], strict=True):
        wanted = apply_temperature(np.array(old["detection_score"]), temperature[old["detection_name"]])
        assert new == old | {"detection_score": pytest.approx(float(wanted))}


def test_classes_with_few_boxes_share_a_temperature(synthetic_root):
    truth, results = near_truth(synthetic_root)
    matches = match_detections(truth, found_columns(results, truth.samples.tokens))
    scored = score_classes(matches)
    counts = np.bincount(matches.found.label, minlength=len(DETECTION_CLASSES)).tolist()
    assert [len(scored[name][0]) for name in DETECTION_CLASSES] == counts
    fitted = fit_classes(scored)
    few = {name for name, (_, right) in scored.items() if min(right.sum(), (~right).sum()) < ENOUGH}
    assert few and len(few) < len(scored)
    shared = {fitted[name] for name in few}
    assert len(shared) == 1 and not shared & {value for name, value in fitted.items() if name not in few}
    said = describe_scores(scored)
    assert said["all"]["right"] == sum(one["right"] for one in said["class"].values())
    assert sum(said["all"]["count"]) == sum(len(score) for score, _ in scored.values())
    gone = {name: (score[:0], right[:0]) for name, (score, right) in scored.items()}
    assert set(fit_classes(gone).values()) == {1.0} and np.isnan(describe_scores(gone)["mean ECE"])


def test_a_checkpoint_is_calibrated_and_evaluated_so(config, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        main(["--checkpoint", str(checkpoint), "--fit", "train", "--out", str(out), "--subsets", "lidar", "radar"]) == 0
    )
    told = json.loads((out / "calibration.json").read_text())
    assert (told["fit_split"], told["split"], told["same_samples"]) == ("train", "val", 0)
    assert set(told["subsets"]) == {"lidar", "radar"} and "ECE on val" in capsys.readouterr().out
    for row in told["subsets"].values():
        assert set(row["temperature"]) == set(DETECTION_CLASSES)
        assert sum(row["before"]["all"]["count"]) == sum(row["after"]["all"]["count"]) > 0
        assert row["before"]["all"]["right"] == row["after"]["all"]["right"]
        assert row["after"]["all"]["ECE"] < row["before"]["all"]["ECE"]  # noise at 0.1 that is hardly ever right
    assert load_temperatures(checkpoint, ["lidar"]) == {"lidar": told["subsets"]["lidar"]["temperature"]}
    (checkpoint / "ema.safetensors").write_bytes(b"others, that appear later")
    with pytest.raises(CheckpointError, match=r"of model\.safetensors, and ema\.safetensors is .*; run calibrate with"):
        load_temperatures(checkpoint, ["lidar"])
    assert load_temperatures(checkpoint, ["lidar"], ema=False)
    (checkpoint / "ema.safetensors").unlink()

    sure = dataclasses.replace(config, evaluation=EvaluationConfig(calibrated=True))
    plain = evaluate(checkpoint, config, tmp_path / "plain", ["lidar"])
    soft = evaluate(checkpoint, sure, tmp_path / "soft", ["lidar"])
    assert soft["subsets"]["lidar"]["AP"] == plain["subsets"]["lidar"]["AP"] and "shapley" not in plain
    score = {
        name: [b["detection_score"] for of in read(tmp_path / name / "lidar").values() for b in of]
        for name in ("plain", "soft")
    }
    assert len(score["plain"]) == len(score["soft"]) > 0 and score["plain"] != score["soft"]
    run = json.loads((tmp_path / "soft" / "run.json").read_text())
    assert run["config"]["evaluation"]["calibrated"] is True and run["checkpoint"] == str(checkpoint)
    with pytest.raises(CheckpointError, match=r"no temperature of 'lidar\+radar' with lidar\+radar; run calibrate"):
        predict(checkpoint, sure, tmp_path / "predicted")


def read(folder: Path) -> dict:
    return json.loads((folder / "results_nusc.json").read_text())["results"]


def test_what_is_fitted_on_is_not_reported_unless_said(config, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"6 samples are in both 'val', on which .*--same-split"):
        calibrate(checkpoint, config, "val", tmp_path)
    same = calibrate(checkpoint, config, "val", tmp_path, ["lidar"], same_split=True, keep=False)
    assert same["same_samples"] == 6 and not (checkpoint / FILE).exists()
    long = dataclasses.replace(config.data, lidar_sweeps=12)
    strict = dataclasses.replace(config, data=long, evaluation=EvaluationConfig(strict=True))
    with pytest.raises(ConfigError, match=r"evaluation\.strict: past frames read: lidar 11"):
        calibrate(checkpoint, strict, "train", tmp_path)
    none = dataclasses.replace(config, detection=None)
    with pytest.raises(ConfigError, match="detection is null"):
        calibrate(checkpoint, none, "train", tmp_path)


def test_broken_temperatures_are_named(checkpoint):
    with pytest.raises(CheckpointError, match=r"no .*temperatures\.json; .*run calibrate with this"):
        load_temperatures(checkpoint, ["lidar"])
    good = dict.fromkeys(DETECTION_CLASSES, 1.5)
    cases = {
        "of car with lidar is -1.0; expected more than 0": good | {"car": -1.0},
        "no temperature of": good | {"car": "x"},
        "no temperature of 'truck'": {"car": 1.0},
    }
    for told, wrong in cases.items():
        save_temperatures(checkpoint, {"lidar": wrong}, {})
        with pytest.raises(CheckpointError, match=told):
            load_temperatures(checkpoint, ["lidar"])
    (checkpoint / FILE).write_text('{"temperatures"')
    with pytest.raises(CheckpointError, match="cannot read"):
        load_temperatures(checkpoint, ["lidar"])
