"""Configuration: strict, complete, and the same through every door."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from pathlib import Path

import pytest

from fusion3d.config import Config, LidarConfig, differences, from_dict, load_config, override, to_dict
from fusion3d.config.data import PasteConfig
from fusion3d.config.model import TemporalConfig
from fusion3d.errors import ConfigError


def test_defaults_survive_a_round_trip() -> None:
    assert from_dict(to_dict(Config())) == Config()
    assert differences(Config()) == {}


def test_yaml_and_overrides(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("camera: null\ntrain: {epochs: 3, learning_rate: 1}\ngrid: {x: [-12, 12]}\n")
    config = load_config(path, ["--train.epochs", "5", "--data.cameras", "CAM_FRONT", "CAM_BACK"])
    assert config.camera is None
    assert config.train.learning_rate == 1.0 and isinstance(config.train.learning_rate, float)
    assert differences(config) == {
        "data.cameras": ("CAM_FRONT", "CAM_BACK"),
        "grid.x": (-12.0, 12.0),
        "camera": None,
        "train.epochs": 5,
        "train.learning_rate": 1.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "unknown key 'epoch'; did you mean 'epochs'"),
        ("train: {epochs: many}", "epochs: expected int, found 'many'"),
        ("train: {epochs: true}", "expected int"),
        ("fusion: {operator: sum}", "expected one of 'concat'"),
        ("grid: {x: [1, 2, 3]}", "expected 2 values"),
        ("data: 3", "expected keys and values"),
        ("- 1", "expected keys and values"),
        ("a: [", "cannot read the configuration"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml") as caught:
        load_config(path)
    assert message in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_only_a_shipped_name_is_looked_up_beside_the_package(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/crn.yaml").lidar is None
    for path in ("elsewhere/crn.yaml", "crn.yaml", tmp_path / "configs" / "crn.yaml", "my/configs/crn.yaml"):
        with pytest.raises(ConfigError, match=r"cannot read the configuration .*crn\.yaml"):
            load_config(path)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.accumulate", 0, "at least 1"),
        ("train.log_every", 0, "at least 1"),
        ("train.checkpoint_every", 0, "at least 1"),
        ("train.batch_size", 0, "at least 1"),
        ("train.warmup", 2, "0 to 1"),
        ("train.learning_rate", float("nan"), "more than 0"),
        ("grid.resolution", 0, "more than 0"),
        ("grid.resolution", float("nan"), "more than 0"),
        ("grid.resolution", 500, "larger than the grid"),
        ("lidar.channels", 7, "even number"),
        ("radar.channels", 0, "even number"),
        ("planning.channels", 6, "multiple of 4"),
        ("data.workers", -1, "0 or more"),
        ("seed", -1, "0 or more"),
    ],
)
def test_a_value_out_of_range_is_named_at_every_door(tmp_path, key, value, expected) -> None:
    section, _, name = key.rpartition(".")
    values = {section: {name: value}} if section else {name: value}
    with pytest.raises(ConfigError, match=f"{key}: .*{expected}"):
        from_dict(values)
    with pytest.raises(ConfigError, match=f"{key}: .*{expected}"):
        override(Config(), [f"--{key}", str(value)])
    (tmp_path / "run.yaml").write_text(str(values).replace("nan", ".nan"))
    with pytest.raises(ConfigError, match=rf"run\.yaml: {key}: .*{expected}"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "values",
    [
        {"grid": {"x": [5, -5]}},
        {"grid": {"y": [0, float("inf")]}},
        {"augment": {"bev_scale": [0, 0]}},
        {"augment": {"image_scale": [0.2, 0.1]}},
        {"trunk": {"blocks": [2, 0]}},
        {"trunk": {"blocks": []}},
    ],
)
def test_ranges_of_values_are_checked_too(values) -> None:
    ((section, inner),) = values.items()
    with pytest.raises(ConfigError, match=f"{section}.{next(iter(inner))}: expected"):
        from_dict(values)


def test_augmentation_is_switched_off_by_null() -> None:
    assert from_dict({"augment": None}).augment is None
    assert from_dict({"camera": None, "planning": None, "lidar": None}).branches == ("radar",)


def test_sections_begin_and_end_on_the_command_line() -> None:
    found = override(
        Config(), ["--temporal.operator", "recurrent", "--augment.paste.database=objects", "--lidar", "null"]
    )
    assert found.temporal == TemporalConfig(operator="recurrent") and found.lidar is None
    assert found.augment is not None and found.augment.paste == PasteConfig(database="objects")
    assert override(Config(), ["--lidar.dense=null", "--planning=null", "--seed", "3"]) == dataclasses.replace(
        Config(), seed=3, planning=None, lidar=dataclasses.replace(Config().lidar or LidarConfig(), dense=None)
    )
    assert override(Config(), ["--data.root", "null"]).data.root == "null"  # a folder may be called that


@pytest.mark.parametrize("arguments", [["--train.fade", "x"], ["--train", "null"], ["--temporal.what", "1"]])
def test_an_unknown_key_on_the_command_line_is_an_error(arguments, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        override(Config(), arguments)
    assert arguments[0] in capsys.readouterr().err


def test_every_field_is_documented() -> None:
    """Each setting is followed by its documentation, which is what ``--help`` prints."""
    files = Path(inspect.getfile(Config)).parent.glob("*.py")
    nodes = [node for path in files for node in ast.parse(path.read_text()).body]
    sections = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]
    sections = [node for node in sections if node.name != "Config"]
    assert len(sections) >= 10
    for section in sections:
        for field, after in itertools.pairwise([*section.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert said, f"{section.name}.{ast.unparse(field.target)} has no documentation"
