from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import pytest
import torch

from fusion3d.build import build_model
from fusion3d.config import CameraConfig, Config, from_dict
from fusion3d.encoders.resnet import ResNet
from fusion3d.engine import checkpoint as module
from fusion3d.engine.checkpoint import (
    Position,
    checkpoint_folder,
    find_checkpoint,
    list_checkpoints,
    load_config_of,
    load_model,
    load_state,
    load_weights,
    save_checkpoint,
)
from fusion3d.errors import CheckpointError, Fusion3DError
from fusion3d.files import whole_folder, write_json, write_whole

WEIGHTS = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


def save(run: Path, step: int, **more) -> Path:
    return save_checkpoint(
        checkpoint_folder(run, step), Config(), WEIGHTS, Position(step, 1, 2), WEIGHTS, {"a": [1]}, **more
    )


def test_round_trip_and_only_the_last_are_kept(tmp_path):
    for step in (5, 100, 20_000):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000100", "step-00020000"]
    newest = find_checkpoint(tmp_path)
    assert find_checkpoint(newest) == newest
    assert load_state(newest) == (Position(20_000, 1, 2), {"a": [1]})
    assert load_config_of(newest) == Config()
    linear = torch.nn.Linear(3, 2)
    load_weights(linear, newest / "ema.safetensors", Config())
    assert torch.equal(linear.weight, WEIGHTS["weight"])


def test_no_checkpoint_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("failing", ["model.safetensors", "optimizer.pt", "config.json"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, failing):
    save(tmp_path, 1)
    write_bytes = Path.write_bytes

    def full(path, content):
        if path.name == failing:
            write_bytes(path, bytes(content)[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    def full_json(path, value):
        if path.name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_json(path, value)

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(module, "write_json", full_json)
    with pytest.raises(CheckpointError, match=r"cannot write .*step-00000002: No space left on device; check free"):
        save(tmp_path, 2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_what_a_kill_left_is_cleaned_up_and_never_taken(tmp_path):
    save(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".step-00000009.abc"
    half.mkdir()
    assert find_checkpoint(tmp_path).name == "step-00000001"
    save(tmp_path, 2)
    assert not half.exists()


def test_another_model_is_refused_with_names_shapes_and_settings(tmp_path):
    folder = save(tmp_path, 1)
    other = dataclasses.replace(Config(), camera=dataclasses.replace(CameraConfig(), channels=7), seed=3)
    with pytest.raises(CheckpointError) as error:
        load_weights(torch.nn.Linear(4, 2), folder / "model.safetensors", other)
    for part in ("weight is (2, 3) in the checkpoint, (2, 4) here", "camera.channels: 80", "7 here", "seed: 0"):
        assert part in str(error.value)
    with pytest.raises(CheckpointError, match="bias is only in the checkpoint"):
        load_weights(torch.nn.Linear(3, 2, bias=False), folder / "model.safetensors", Config())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_files_are_named(tmp_path, name, damage):
    folder = save(tmp_path, 1)
    file = folder / name
    file.write_bytes(file.read_bytes()[:20]) if damage == "cut" else file.unlink()
    with pytest.raises(CheckpointError) as error:
        load_config_of(folder)
        load_state(folder)
        load_weights(torch.nn.Linear(3, 2), folder / "model.safetensors", Config())
    if (name, damage) == ("config.json", "missing"):  # then it is no checkpoint at all
        file = folder
    assert str(file) in str(error.value)


def test_a_checkpoint_does_not_need_the_backbones_file(tmp_path):
    backbone = tmp_path / "resnet.pt"
    torch.save(ResNet(18, 4).state_dict(), backbone)
    config = from_dict(
        {
            "data": {"image_size": [64, 64]},
            "grid": {"x": [-6.4, 6.4], "y": [-6.4, 6.4], "resolution": 0.8},
            "camera": {
                "backbone": {"name": "resnet18", "width": 4, "weights": str(backbone)},
                "fpn_channels": 8, "channels": 8, "depth": [1, 9, 1],
            },
            "lidar": None, "radar": None, "planning": None,
            "fusion": {"channels": 8}, "trunk": {"channels": 8, "blocks": [1], "out_channels": 8},
        }
    )  # fmt: skip
    model = build_model(config)
    assert model.camera is not None
    name, weight = next(iter(torch.load(backbone, weights_only=True).items()))
    assert torch.equal(model.camera.encoder.backbone.state_dict()[name], weight), "a fresh start reads the file"
    folder = save_checkpoint(checkpoint_folder(tmp_path, 1), config, model.state_dict(), Position(1))
    backbone.unlink()
    loaded, _ = load_model(folder)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(CheckpointError, match=r"resnet\.pt"):
        build_model(config)


def test_optimizer_state_with_code_in_it_is_not_run(tmp_path):
    folder = save(tmp_path, 1)
    torch.save({"evil": Path("/")}, folder / "optimizer.pt")
    with pytest.raises(CheckpointError, match="cannot resume"):
        load_state(folder)


def test_json_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = write_json(tmp_path / "a" / "b.json", {"x": float("nan"), "y": [1.5, (2,)]})
    assert json.loads(path.read_text()) == {"x": None, "y": [1.5, [2]]}
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(Fusion3DError, match="No space left"):
        write_whole(path, b"new")
    assert json.loads(path.read_text())["y"] == [1.5, [2]]
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_a_real_full_device_is_an_error():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(Fusion3DError, match="cannot write"), whole_folder("/dev/full/x"):
        pass


def test_a_folder_that_fails_keeps_the_old_one(tmp_path):
    with whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("2")
        raise ZeroDivisionError
    assert (tmp_path / "out" / "a").read_text() == "1"
    assert len(list(tmp_path.iterdir())) == 1
