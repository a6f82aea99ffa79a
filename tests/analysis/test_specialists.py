"""One model against its specialists: what each is, what the page says, and a small comparison whole."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from fusion3d.analysis.comparison import runs as comparison_runs
from fusion3d.analysis.comparison.rows import Row
from fusion3d.analysis.comparison.runs import METRICS, check
from fusion3d.analysis.specialists import main, page
from fusion3d.config import Config, load_config
from fusion3d.engine.checkpoint import Position, checkpoint_folder, save_checkpoint
from fusion3d.engine.environment import environment
from fusion3d.engine.inference import sensor_subsets
from fusion3d.errors import CheckpointError, ConfigError, Fusion3DError
from fusion3d.files import write_json

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
SUBSETS = ("camera", "lidar", "radar", "camera+lidar", "camera+radar", "lidar+radar", "camera+lidar+radar")


def with_train(config: Config, **changes) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))


# -- the runs


def test_specialists_differ_from_the_one_in_their_sensors_alone():
    base = with_train(load_config(DEMO), subsets=7)
    comparison = main.Comparison(base, (0, 3), Path("out"))
    runs = comparison.runs()
    assert [str(run) for run in runs] == [f"{name} seed {seed}" for seed in (0, 3) for name in ("one", *SUBSETS)]
    assert len({run.folder for run in runs}) == 16
    one, *specialists = runs[8:]
    assert one.scored is None and one.config.branches == ("camera", "lidar", "radar")
    assert (one.config.train.subsets, one.config.train.drop_sensor) == (7, base.train.drop_sensor)
    for run, name in zip(specialists, SUBSETS, strict=True):
        assert run.config.branches == tuple(name.split("+")) and run.scored == (name,)
        assert name in sensor_subsets(run.config)
        assert (run.config.train.subsets, run.config.train.drop_sensor) == (1, 0.0)
        others = {kind: getattr(one.config, kind) for kind in ("camera", "lidar", "radar")}
        alike = dataclasses.replace(with_train(run.config, subsets=7, drop_sensor=base.train.drop_sensor), **others)
        assert alike == one.config


@pytest.mark.parametrize(
    "settings",
    [
        ["--fusion.stage", "late"],
        ["--fusion.stage", "hybrid", "--fusion.operator", "gated", "--fusion.align", "deformable"],
        ["--fusion.stage", "early"],
        ["--camera.view", "radar_lift"],
        ["--camera.view", "lidar_lift", "--fusion.representation", "factorised"],
    ],
    ids=lambda settings: settings[1],
)
def test_every_specialist_of_other_ways_to_fuse_can_be_built(settings):
    comparison = main.Comparison(load_config(DEMO, settings), (0,), Path("out"))
    for run in comparison.runs():
        check(run)
        camera, helper = run.config.camera, (settings[1].removesuffix("_lift"))
        if settings[0] == "--camera.view" and camera is not None:
            there = getattr(run.config, helper) is not None
            assert camera.view == (settings[1] if there else "lift")


def test_one_sensor_has_no_subsets(tmp_path):
    with pytest.raises(ConfigError, match="found lidar alone"):
        main.main([str(DEMO), "--out", str(tmp_path), "--data.sensors", "lidar"])
    with pytest.raises(ConfigError, match="--jobs: expected at least 1"):
        main.main([str(DEMO), "--jobs", "0"])
    with pytest.raises(ConfigError, match="expected the configuration file first"):
        main.main(["--seeds", "1"])


# -- the page


def metrics(scores: dict[str, float]) -> dict:
    return {"subsets": {name: {"NDS": score} for name, score in scores.items()}, "num_samples": 4}


def test_ratios_are_of_the_same_seed_and_the_mean_is_of_all_subsets(tmp_path):
    names = ("camera", "lidar", "camera+lidar")
    one = {seed: metrics({"camera": 0.2 + 0.1 * seed, "lidar": 0.4, "camera+lidar": 0.45}) for seed in (0, 1)}
    specialists = {
        "camera": {0: metrics({"camera": 0.25}), 1: metrics({"camera": 0.3})},
        "lidar": {0: metrics({"lidar": 0.4}), 2: metrics({"lidar": 0.1})},
        "camera+lidar": {0: metrics({"camera+lidar": 0.5}), 1: metrics({"camera+lidar": 0.5})},
    }
    pairs = page.pair_up(one, specialists)
    assert list(pairs) == [*names, page.MEAN]
    assert pairs["camera"].columns()["ratio"] == pytest.approx([0.8, 1.0])
    assert [len(pairs[name].one) for name in pairs] == [2, 1, 2, 1]
    assert pairs[page.MEAN].columns()["ratio"] == pytest.approx([1.05 / 1.15])
    text = page.write_page(
        tmp_path / "subsets", one, specialists, {"about": "here", "protocol": "so", "commands": ["do it"]}
    )
    rows = {cells[0]: cells for cells in (line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line)}
    assert rows["L"] == ["L", "1", "0.400", "0.400", "1.000"] and rows["mean"][4] == "0.913"
    assert rows["C"][4].startswith("0.900 ± ")
    assert "**mean over the subsets**: 91.3%" in text and "**least of a subset**: 90.0% of its specialist (C" in text
    plot = (tmp_path / "subsets.svg").read_bytes()
    assert ElementTree.fromstring(plot).tag.endswith("svg")
    numbers = json.loads((tmp_path / "subsets.json").read_text())["subsets"]
    assert numbers["camera"]["seeds"] == {
        "seed": [0, 1], "specialist": [0.25, 0.3], "one model": pytest.approx([0.2, 0.3]),
        "ratio": pytest.approx([0.8, 1.0]),
    }  # fmt: skip
    page.write_page(tmp_path / "subsets", one, specialists, {"about": "here", "protocol": "so", "commands": ["do it"]})
    assert (tmp_path / "subsets.svg").read_bytes() == plot


def test_what_is_missing_is_said_and_nothing_is_divided_by_nothing(tmp_path):
    one = {0: metrics(dict.fromkeys(SUBSETS, 0.3))}
    specialists: dict[str, dict[int, dict]] = {name: {} for name in SUBSETS}
    specialists["lidar"] = {0: metrics({"lidar": 0.0})}
    text = page.write_page(
        tmp_path / "subsets", one, specialists, {"about": "here", "protocol": "so", "commands": ["do it"]}
    )
    assert "| L | 1 | 0.000 | 0.300 | - |" in text and "least" not in text and "| mean" not in text
    assert "not yet finished: camera, radar, camera+lidar" in text


# -- a small one, whole


@pytest.fixture(scope="module")
def small_config(synthetic_root, tmp_path_factory) -> Path:
    values = yaml.safe_load(DEMO.read_text())
    values["data"] |= {"root": str(synthetic_root), "image_size": [64, 96], "workers": 0}
    values["data"] |= {"train_split": "synthetic_train", "split": "synthetic_val"}
    values["grid"]["resolution"], values["lidar"] = 3.2, {"channels": 8, "pillar": 1.6}
    values["camera"], values["trunk"] = None, {"channels": 8, "blocks": [1], "out_channels": 8}
    values["train"] |= {"epochs": 1, "subsets": 3}
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def compare(config: Path, out: Path, *more: str) -> int:
    return main.main([str(config), "--out", str(out / "runs"), "--page", str(out / "subsets"), *more])


def test_the_order_of_work_and_what_is_kept(small_config, tmp_path, monkeypatch, capsys):
    """With runs that are invented: who is trained when, and what a second call does."""
    done: list[str] = []

    def invent(several, jobs_at_once):
        for one in several:
            done.append(str(one))
            save_checkpoint(checkpoint_folder(one.folder, 1), one.config, {}, Position())
            names = one.scored or tuple(sensor_subsets(one.config))
            write_json(one.folder / METRICS, metrics(dict.fromkeys(names, 0.5 + 0.05 * (one.scored is None))))
            about = environment("cpu", "some data") | {"gpu": f"GPU {one.seed}", "cuda": "13.0"}
            write_json((one.folder / METRICS).with_name("run.json"), {"environment": about})

    monkeypatch.setattr(main, "run_all", invent)
    with pytest.raises(Fusion3DError, match="run compare_subsets without --report first"):
        compare(small_config, tmp_path, "--report")
    assert compare(small_config, tmp_path) == 0
    assert done == ["one seed 0", "lidar seed 0", "radar seed 0", "lidar+radar seed 0"]
    text = (tmp_path / "subsets.md").read_text()
    assert text in capsys.readouterr().out and str(tmp_path) not in text + (tmp_path / "subsets.json").read_text()
    assert "110.0% of the specialists' mean" in text and "3 of its subsets of sensors in a step" in text
    assert compare(small_config, tmp_path, "--seeds", "0", "1", "1") == 0
    assert done[4:] == ["one seed 1", "lidar seed 1", "radar seed 1", "lidar+radar seed 1"], "what is there is kept"
    about = (tmp_path / "subsets.md").read_text().splitlines()[2]
    assert [part.split(",")[0] for part in about.split(" | ")] == ["GPU 0", "GPU 1"], "what the runs were made on"
    for path in (tmp_path / "runs").rglob("run.json"):
        path.write_text("{}")
    assert compare(small_config, tmp_path, "--report") == 0
    assert (tmp_path / "subsets.md").read_text().splitlines()[2] == f"v1.0-synthetic; {small_config}", "not said"
    with pytest.raises(CheckpointError, match=r"train\.subsets: 3 there, 2 here"):
        compare(small_config, tmp_path, "--report", "--train.subsets", "2")


@pytest.mark.slow
def test_a_small_comparison_in_processes(small_config, tmp_path, capsys):
    assert compare(small_config, tmp_path, "--jobs", "2") == 0
    told = (tmp_path / "runs" / "lidar" / "seed-0" / "output.txt").read_text()
    assert "6/6 samples x 1 subsets" in told
    numbers = json.loads((tmp_path / "subsets.json").read_text())["subsets"]
    assert set(numbers) == {"lidar", "radar", "lidar+radar", "mean"}
    capsys.readouterr()
    assert compare(small_config, tmp_path, "--jobs", "2") == 0
    assert "0 of 4 runs to do" in capsys.readouterr().out


def test_a_row_of_some_sensors_keeps_what_they_can_agree_on():
    base = load_config(DEMO, ["--fusion.align", "deformable"])
    pair, single = (Row("row", alone=of).config(base) for of in (("camera", "radar"), ("radar",)))
    assert (pair.fusion.align, single.fusion.align) == ("deformable", "none") and pair.lidar is None
    run = comparison_runs.trained(base, Row("row", alone=("radar",)), 2, Path("out"), epochs=3)
    assert (run.config.train.epochs, run.config.seed, run.folder) == (3, 2, Path("out/row/seed-2"))
