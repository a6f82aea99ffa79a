"""The real model on the synthetic set: killed and resumed, evaluated under every subset, used without annotations."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusion3d.config import load_config
from fusion3d.engine import evaluate as module
from fusion3d.engine import scoring as scoring_module
from fusion3d.engine.check_submission import main as check_main
from fusion3d.engine.checkpoint import list_checkpoints, load_model
from fusion3d.engine.eval_table import COLUMNS, PLAN_COLUMNS, format_table
from fusion3d.engine.evaluate import evaluate
from fusion3d.engine.evaluate import main as evaluate_main
from fusion3d.engine.inference import choose_subsets, sensor_subsets
from fusion3d.engine.log import read_log
from fusion3d.engine.matches import read_matches
from fusion3d.engine.predict import main as predict_main
from fusion3d.engine.scoring import Scoring
from fusion3d.engine.share import run_shared
from fusion3d.engine.split import open_split
from fusion3d.engine.train import main as train_main
from fusion3d.engine.train import train
from fusion3d.errors import CheckpointError, ConfigError, DataError
from fusion3d.metrics.detection import score_matches
from fusion3d.metrics.planning import PROTOCOLS
from fusion3d.types import MAP_CLASSES

sys.path.insert(0, str(Path(__file__).parent))
from tiny import fork, run_ranks

ROOT = Path(__file__).parents[2]
SMALL = """
data: {{root: {root}, version: v1.0-synthetic, train_split: synthetic_train, split: synthetic_val,
  image_size: [64, 128], lidar_sweeps: 2, radar_sweeps: 2, workers: {workers}}}
grid: {{x: [-51.2, 51.2], y: [-51.2, 51.2], resolution: 3.2}}
camera: {{backbone: {{name: resnet18, width: 8}}, fpn_channels: 16, channels: 8, depth: [1.0, 51.0, 5.0]}}
lidar: {{channels: 16, pillar: 1.6}}
radar: {{channels: 8}}
fusion: {{channels: 16}}
trunk: {{channels: 16, blocks: [1, 1, 1], out_channels: 16}}
detection: {{channels: 16, max_boxes: 50, score_threshold: 0.01}}
motion: {{channels: 16, steps: 3}}
planning: {{channels: 32, steps: 4}}
map: {{channels: 8, grid: {{x: [-40, 40], y: [-40, 40], resolution: 2.0}}}}
train: {{epochs: 2, batch_size: 2, learning_rate: 0.003, checkpoint_every: 2, log_every: 1, ema: 0.99}}
"""
SUBSETS = ("camera", "lidar", "radar", "camera+lidar", "camera+radar", "lidar+radar", "camera+lidar+radar")


@pytest.fixture(scope="module")
def config_file(synthetic_root, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL.format(root=synthetic_root, workers=1))
    return path


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def threads(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def whole_run(config_file, tmp_path_factory, threads) -> Path:
    """A run that nobody stopped."""
    run = tmp_path_factory.mktemp("whole")
    start(config_file, run, threads).join(timeout=300)
    assert list_checkpoints(run)[-1].name == "step-00000012"
    return run


def training_command(config: Path, run: Path) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "train.py"), str(config), "--run-dir", str(run), "--device", "cpu"]


def start(config: Path, run: Path, threads: int) -> BaseProcess:
    """Training in a process of its own session, so that its loader processes can be killed with it."""
    arguments = [str(config), "--run-dir", str(run), "--device", "cpu"]
    return fork(run / "told.txt", {"OMP_NUM_THREADS": str(threads)}, train_main, arguments)


def test_killed_and_resumed_is_bit_identical(whole_run, config_file, threads, tmp_path):
    """SIGKILL in the middle of a step, between checkpoints and inside the second epoch; then the same command again."""
    for steps in (3, 9):
        training = start(config_file, tmp_path, threads)
        patience = time.monotonic() + 120
        while len(read_log(tmp_path / "log.jsonl")) < steps and training.is_alive():
            assert time.monotonic() < patience, "training does not come to this step"
            time.sleep(0.02)
        os.killpg(training.pid, signal.SIGKILL)
        training.join(timeout=30)
        assert training.exitcode == -signal.SIGKILL
        assert list_checkpoints(tmp_path)[-1].name < "step-00000012", "killed too late to test anything"
    last = start(config_file, tmp_path, threads)
    last.join(timeout=300)
    told = (tmp_path / "told.txt").read_text()
    assert last.exitcode == 0 and "resumed from" in told, told
    first, second = list_checkpoints(whole_run)[-1], list_checkpoints(tmp_path)[-1]
    for name in ("model.safetensors", "ema.safetensors"):
        expected, found = load_file(first / name), load_file(second / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    lines = [
        [{k: v for k, v in line.items() if k != "samples_per_second"} for line in read_log(run / "log.jsonl")]
        for run in (whole_run, tmp_path)
    ]
    assert lines[0] == lines[1]


def test_a_finished_run_is_left_as_it_is(whole_run, config_file):
    last = list_checkpoints(whole_run)[-1]
    before = (last / "model.safetensors").stat().st_mtime_ns
    assert train(load_config(config_file), whole_run) == last
    assert (last / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="holds a run already"):
        train(load_config(config_file), whole_run, resume=False)


@pytest.mark.slow
def test_two_processes_train_the_real_model_and_go_on_after_a_stop(config_file, tmp_path):
    """Sensors drop at random on each rank; the run that goes on from the second step ends as the whole one."""
    config, whole, part = tmp_path / "two.yaml", tmp_path / "whole", tmp_path / "part"
    config.write_text(config_file.read_text().replace("epochs: 2", "epochs: 1, drop_sensor: 0.5, accumulate: 1"))
    config.write_text(config.read_text().replace("checkpoint_every: 2", "checkpoint_every: 1"))
    ranks = run_ranks(training_command(config, whole))
    assert [status for status, _ in ranks] == [0, 0], ranks
    assert [path.name for path in list_checkpoints(whole)] == ["step-00000002", "step-00000003"]
    shutil.copytree(whole, part)
    shutil.rmtree(part / "checkpoints" / "step-00000003")
    ranks = run_ranks(training_command(config, part))
    assert [status for status, _ in ranks] == [0, 0], ranks
    assert "resumed from" in ranks[0][1] and "step 3/3" in ranks[0][1]
    expected, found = (load_file(run / "checkpoints" / "step-00000003" / "model.safetensors") for run in (whole, part))
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    with pytest.raises(CheckpointError, match="on 12 samples by 2 processes, here are 12 samples and 1 processes"):
        train(load_config(config), part, device="cpu")


def test_training_wants_its_configuration_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"expected the configuration file first, found '--train.epochs'"):
        train_main(["--train.epochs", "3"])
    with pytest.raises(ConfigError, match=r"cannot read the configuration nowhere\.yaml"):
        train_main(["nowhere.yaml", "--train.epochs", "3"])


def test_no_augmentation_leaves_training_samples_as_they_are(config_file):
    config = load_config(config_file)
    plain = dataclasses.replace(config, augment=None)
    turned, still = (open_split(c, c.data.train_split, training=True)[0, 0] for c in (config, plain))
    assert not torch.equal(turned.aug_from_ego, torch.eye(4)) and torch.equal(still.aug_from_ego, torch.eye(4))


def test_every_subset_from_one_checkpoint(whole_run, tmp_path, capsys):
    options = ["--data.workers", "0", "--resamples", "100"]
    assert evaluate_main(["--checkpoint", str(whole_run), "--out", str(tmp_path), *options]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert tuple(metrics["subsets"]) == SUBSETS
    for name, row in metrics["subsets"].items():
        assert row["num_scenes"] == 1 and row["intervals"]["NDS"] is None, "the split has one scene"
        of_bands = [band["num_truth"] for band in row["strata"]["distance"].values()]
        assert sum(of_bands) == sum(row["num_truth"].values()) > 0
        np.testing.assert_equal(score_matches(read_matches(tmp_path / name / "matches.npz"))["AP"], row["AP"])
    assert metrics["num_samples"] == 6
    for name in SUBSETS:
        row = metrics["subsets"][name]
        assert all(0 <= row[column] for column in COLUMNS)
        assert set(row["AP"]) == set(row["num_truth"]) and len(row["AP"]) == 10
        meta = json.loads((tmp_path / name / "results_nusc.json").read_text())["meta"]
        assert {sensor for sensor in ("camera", "lidar", "radar") if meta[f"use_{sensor}"]} == set(name.split("+"))
    results = {n: (tmp_path / n / "results_nusc.json").read_text() for n in SUBSETS}
    assert len(set(results.values())) == len(SUBSETS), "two subsets say the same: a sensor is not read"
    plans = metrics["planning"]
    assert list(plans) == ["model", "ctrv", "constant_velocity", "stationary", "human"]
    for name, row in plans.items():
        assert set(PLAN_COLUMNS) < set(row)
        assert row["L2@3s"] is None, "the model plans 2 s"
        assert row["L2@1s"] == 0 if name == "human" else row["L2@1s"] > 0
    scores = metrics["planning_scores"]
    assert tuple(scores["protocols"]) == PROTOCOLS
    assert set(scores["skill"]) == {*SUBSETS, "constant_velocity", "stationary"}
    assert scores["pdm"]["human"]["num_with_map"] > 0
    assert metrics["planning"]["model"] == metrics["subsets"]["camera+lidar+radar"]["planning"]
    assert "oriented rectangles" in metrics["planning_protocol"]
    maps = {name: row["map"] for name, row in metrics["subsets"].items()} | metrics["map"]
    assert tuple(maps) == (*SUBSETS, "everywhere", "average")
    for row in maps.values():
        of_classes = [(row["IoU@0.5"][name], row["IoU@best"][name]) for name in MAP_CLASSES]
        assert all(0 <= fixed <= best <= 1 for fixed, best in of_classes), "a synthetic map knows all classes"
        assert row["mIoU@best"] == pytest.approx(np.mean([best for _, best in of_classes]))
    everywhere = metrics["map"]["everywhere"]
    assert everywhere["IoU@0.5"]["drivable_area"] > 0.1 and everywhere["IoU@0.5"] == everywhere["IoU@best"]
    assert "BEVFusion" in metrics["map_protocol"]
    motions = [metrics["subsets"][name]["motion"]["all"] for name in SUBSETS]
    assert len({row["true"] for row in motions}) == 1 and motions[0]["true"] > 10
    assert all(0 <= row["found"] <= row["true"] and set(row["model"]) == set(row["stationary"]) for row in motions)
    assert "minADE_k" in metrics["motion_protocol"]
    assert metrics["seconds"]["total"] > 0
    out = capsys.readouterr().out
    assert all(out.count(f"\n{name} ") >= 3 for name in SUBSETS) and "\nmap IoU@best " in out


def test_the_same_numbers_again_and_by_name(whole_run, tmp_path, monkeypatch):
    config = load_model(whole_run)[1]
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=0))
    outputs, left = [], []
    monkeypatch.setattr(module, "run_shared", lambda *of, **how: outputs.append(run_shared(*of, **how)) or outputs[-1])
    score = scoring_module.score_matches

    def scored(*args):
        left.append([bool(subset.boxes) for subset in outputs[-1].subsets.values()])
        return score(*args)

    monkeypatch.setattr(scoring_module, "score_matches", scored)
    first = evaluate(whole_run, config, tmp_path / "a", ["camera+radar", "camera"])
    assert left == [[False, True], [False, False]], "boxes that were scored are kept"
    second = evaluate(whole_run, config, tmp_path / "b", ["radar+camera"], scoring=Scoring(official=True))
    assert list(second["subsets"]) == ["camera+radar"]
    assert "greatest difference from the devkit" in format_table(second)
    row = second["subsets"]["camera+radar"]
    assert row.pop("official")["difference"] < 1e-9
    np.testing.assert_equal(first["subsets"]["camera+radar"], row)
    assert format_table(first).startswith("sensors")
    about = json.loads((tmp_path / "a" / "run.json").read_text())["environment"]
    assert about["device"] == "cpu" and about["cloud"] == "v1.0-synthetic", "what a number was made on is noted"


def test_subsets_of_what_the_checkpoint_has(config_file):
    config = load_config(config_file)
    assert tuple(sensor_subsets(config)) == SUBSETS
    assert tuple(choose_subsets(config, ["radar+camera", "lidar", "camera"])) == ("camera", "lidar", "camera+radar")
    no_radar = load_config(config_file, ["--data.sensors", "camera", "lidar"])
    assert tuple(sensor_subsets(no_radar)) == ("camera", "lidar", "camera+lidar")
    with pytest.raises(ConfigError, match=r"no sensor subset 'radar'.*possible: camera, lidar, camera\+lidar"):
        choose_subsets(no_radar, ["radar"])
    nothing = dataclasses.replace(config, radar=None, data=dataclasses.replace(config.data, sensors=("radar",)))
    with pytest.raises(ConfigError, match=r"no branch for any of data\.sensors = \('radar',\)"):
        choose_subsets(nothing, None)
    with pytest.raises(ConfigError, match="no sensor subset 'sonar'"):
        choose_subsets(config, ["sonar"])


def strip_annotations(root: Path, copy: Path) -> Path:
    """The data set without boxes, and without any radar or back camera."""
    version = "v1.0-synthetic"
    shutil.copytree(root / version, copy / version)
    for folder in ("samples", "sweeps", "maps"):
        if (root / folder).is_dir():
            (copy / folder).symlink_to(root / folder)
    for table in ("sample_annotation", "instance"):
        (copy / version / f"{table}.json").write_text("[]")
    path = copy / version / "sample_data.json"
    rows = [
        row
        for row in json.loads(path.read_text())
        if "RADAR" not in row["filename"] and "CAM_BACK" not in row["filename"]
    ]
    path.write_text(json.dumps(rows))
    return copy


def test_prediction_without_annotations_and_with_sensors_missing(whole_run, synthetic_root, tmp_path):
    root = strip_annotations(synthetic_root, tmp_path / "bare")
    overrides = ["--data.root", str(root), "--data.workers", "0"]
    assert predict_main(["--checkpoint", str(whole_run), "--out", str(tmp_path / "out"), *overrides]) == 0
    submission = json.loads((tmp_path / "out" / "results_nusc.json").read_text())
    assert len(submission["results"]) == 6 and any(submission["results"].values())
    assert submission["meta"]["use_lidar"] and submission["meta"]["use_camera"] and not submission["meta"]["use_radar"]
    plans = json.loads((tmp_path / "out" / "plans.json").read_text())
    assert plans["time_step"] == 0.5 and set(plans["plans"]) == set(submission["results"])
    plan = next(iter(plans["plans"].values()))
    assert np.shape(plan["position"]) == np.shape(plan["position_global"]) == (4, 2)
    steps = [np.linalg.norm(np.diff(plan[key], axis=0), axis=-1) for key in ("position", "position_global")]
    np.testing.assert_allclose(steps[0], steps[1], atol=0.02)  # the same path in another frame
    forecasts = json.loads((tmp_path / "out" / "forecasts.json").read_text())
    assert forecasts["time_step"] == 0.5 and set(forecasts["forecasts"]) == set(submission["results"])
    for token, of_sample in forecasts["forecasts"].items():
        sure = [box for box in submission["results"][token] if box["detection_score"] >= forecasts["min_score"]]
        assert len(of_sample) == len(sure)
        assert all(np.shape(box["position"]) == (6, 3, 2) for box in of_sample)
    with pytest.raises(DataError, match="no annotations to score against; use predict"):
        evaluate_main(["--checkpoint", str(whole_run), "--out", str(tmp_path / "no"), *overrides])


def test_a_checkpoint_of_another_configuration_is_refused(whole_run, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"belongs to another model: .*fusion.channels: 16 in the checkpoint, 24 here"
    ):
        predict_main(["--checkpoint", str(whole_run), "--out", str(tmp_path), "--fusion.channels", "24"])


@pytest.mark.slow
def test_two_processes_evaluate_as_one(whole_run, config_file, tmp_path):
    """Every number, and every box of the submissions, to the bit."""
    command = [sys.executable, str(ROOT / "tools" / "evaluate.py"), "--checkpoint", str(whole_run), "--device", "cpu"]
    command += ["--data.workers", "0", "--train.batch_size", "4", "--subsets", "camera", "lidar", "camera+lidar+radar"]
    for world in (1, 2):
        ranks = run_ranks([*command, "--out", str(tmp_path / str(world))], world)
        assert [status for status, _ in ranks] == [0] * world, ranks
        assert "written: " in ranks[0][1] and not any(told for _, told in ranks[1:])
    one, two = (json.loads((tmp_path / world / "metrics.json").read_text()) for world in ("1", "2"))
    del one["seconds"], two["seconds"]
    assert one == two and one["num_samples"] == 6
    files = [path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("results_nusc.json")]
    assert len(files) == 3
    assert all((tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes() for file in files)
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), *command[2:-4]]  # of all sensors
    ranks = run_ranks([*command, "--out", str(tmp_path / "predicted")])
    assert [status for status, _ in ranks] == [0, 0] and "written: " in ranks[0][1] and not ranks[1][1], ranks
    boxes = (tmp_path / "predicted" / "results_nusc.json").read_bytes()
    assert boxes == (tmp_path / "1" / "camera+lidar+radar" / "results_nusc.json").read_bytes()


def test_tracks_of_a_subset_are_scored_and_keep_the_rules(whole_run, synthetic_root, tmp_path, capsys):
    """Only what is asked for is scored; the file of tracks, and that of ``predict --tracks``, pass the check."""
    common = ["--checkpoint", str(whole_run), "--device", "cpu", "--data.workers", "0"]
    tasks = ["--subsets", "lidar+radar", "--tasks", "tracking"]
    assert evaluate_main([*common, "--out", str(tmp_path), *tasks]) == 0
    assert "AMOTA" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["subsets"]["lidar+radar"]) == ["tracking"] and "planning" not in metrics
    assert metrics["subsets"]["lidar+radar"]["tracking"]["GT"] > 0
    assert predict_main([*common, "--out", str(tmp_path / "predicted"), "--tracks"]) == 0
    data = ["--data.root", str(synthetic_root), "--data.version", "v1.0-synthetic", "--data.split", "synthetic_val"]
    for path, used in (("lidar+radar", "lidar, radar"), ("predicted", "camera, lidar, radar")):
        assert check_main([str(tmp_path / path / "tracking_nusc.json"), *data]) == 0
        assert f"made with {used}\n" in capsys.readouterr().out
    assert check_main([str(tmp_path / "predicted" / "results_nusc.json"), *data]) == 0
    with pytest.raises(ConfigError, match=r"evaluation\.strict: past frames read: lidar 11"):
        evaluate_main([*common, "--out", str(tmp_path), "--strict", "--data.lidar-sweeps", "12"])
