"""Configuration: strict, complete, and the same through every door."""

from __future__ import annotations

import ast
import inspect
import itertools
from pathlib import Path

import pytest

from fusion3d.config import Config, differences, from_dict, load_config, to_dict
from fusion3d.errors import ConfigError


def test_defaults_survive_a_round_trip() -> None:
    assert from_dict(to_dict(Config())) == Config()
    assert differences(Config()) == {}


def test_yaml_and_overrides(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("camera: null\ntrain: {epochs: 3, learning_rate: 1}\ngrid: {x: [-10, 10]}\n")
    config = load_config(path, ["--train.epochs", "5", "--data.cameras", "CAM_FRONT", "CAM_BACK"])
    assert config.camera is None
    assert config.train.learning_rate == 1.0 and isinstance(config.train.learning_rate, float)
    assert differences(config) == {
        "data.cameras": ("CAM_FRONT", "CAM_BACK"),
        "grid.x": (-10.0, 10.0),
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


def test_every_field_is_documented() -> None:
    """Each setting is followed by its documentation, which is what ``--help`` prints."""
    tree = ast.parse(Path(inspect.getfile(Config)).read_text())
    sections = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "Config"]
    assert len(sections) >= 10
    for section in sections:
        for field, after in itertools.pairwise([*section.body, ast.Pass()]):
            if isinstance(field, ast.AnnAssign):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert said, f"{section.name}.{ast.unparse(field.target)} has no documentation"
