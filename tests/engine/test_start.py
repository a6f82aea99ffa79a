"""A run that begins with weights of others: what fits is filled from where, in every direction between the stages."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fusion3d.build import build_model
from fusion3d.config import (
    BackboneConfig,
    CameraConfig,
    Config,
    FusionConfig,
    LidarConfig,
    PlanningConfig,
    RadarConfig,
    TrunkConfig,
)
from fusion3d.engine import train as training
from fusion3d.engine.checkpoint import EMA, MODEL, Position, checkpoint_folder, read_weights, save_checkpoint
from fusion3d.engine.log import read_log
from fusion3d.engine.start import fitting, start_from
from fusion3d.errors import CheckpointError, ConfigError
from fusion3d.types import SENSORS, BEVGrid

sys.path.insert(0, str(Path(__file__).parent))
from tiny import TinyData, TinyModel, tiny_config

TINY = Config(
    data=dataclasses.replace(Config().data, image_size=(64, 96)),
    grid=BEVGrid(x=(-16.0, 16.0), y=(-12.8, 12.8), resolution=0.8),
    camera=CameraConfig(BackboneConfig("resnet18", width=8), fpn_channels=16, stride=8, channels=8, depth=(1, 20, 1)),
    lidar=LidarConfig(channels=8, pillar=0.4),
    radar=RadarConfig(channels=8),
    fusion=FusionConfig(channels=16),
    trunk=TrunkConfig(channels=16, blocks=(1, 1), out_channels=16),
    detection=dataclasses.replace(Config().detection, channels=16, sensor_weight=0.3),  # type: ignore[type-var]
    planning=PlanningConfig(channels=16),
)


def only(*sensors: str) -> Config:
    return dataclasses.replace(TINY, **{name: None for name in SENSORS if name not in sensors})


def at(stage: str) -> Config:
    return dataclasses.replace(TINY, fusion=dataclasses.replace(TINY.fusion, stage=stage))


def numbered(config: Config, first: float) -> nn.Module:
    """A model in which every tensor is filled with a number of its own."""
    model = build_model(config)
    with torch.no_grad():
        for number, tensor in enumerate(model.state_dict().values()):
            tensor.fill_(first + number)
    return model


def saved(model: nn.Module, folder: Path, config: Config, ema: dict | None = None) -> Path:
    save_checkpoint(checkpoint_folder(folder, 1), config, model.state_dict(), Position(step=1), ema)
    return folder


@pytest.fixture(scope="module")
def singles(tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """A run of each sensor alone, and its weights."""
    runs = {}
    for number, name in enumerate(SENSORS, 1):
        model = numbered(only(name), 10_000.0 * number)
        runs[name] = saved(model, tmp_path_factory.mktemp(name), only(name)), model.state_dict()
    return runs


def parts(state: dict, *names: str) -> dict:
    return {key: tensor for key, tensor in state.items() if key.startswith(names)}


def test_single_sensors_fill_the_branches_of_the_model_that_fuses_them(singles):
    model = build_model(TINY)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    said = start_from(model, [singles[name][0] for name in ("lidar", "camera", "radar")])
    after = model.state_dict()
    for name in SENSORS:
        own = parts(singles[name][1], f"{name}.", f"sensors.heads.{name}.")
        assert own and all(torch.equal(after[key], tensor) for key, tensor in own.items())
    # The first fills what all have, and no later one changes it.
    shared = parts(singles["lidar"][1], "trunk.", "detection.", "planning.")
    assert shared and all(torch.equal(after[key], tensor) for key, tensor in shared.items())
    # What fuses counts the sensors: "fuse.absent.0" is another one's here, though it has the same shape.
    fuse = parts(before, "fuse.")
    assert fuse["fuse.absent.0"].shape == singles["lidar"][1]["fuse.absent.0"].shape
    assert all(torch.equal(after[key], tensor) for key, tensor in fuse.items())
    assert said[0].startswith("start: ") and str(singles["lidar"][0]) in said[0] and "trunk" in said[0]
    assert f"camera {len(parts(after, 'camera.'))}" in said[1] and "trunk" not in said[1]
    assert said[-1] == f"start: {len(fuse)} are new: fuse {len(fuse)}"


def test_the_order_says_whose_trunk_it_is(singles):
    model = build_model(TINY)
    start_from(model, [singles["radar"][0], singles["lidar"][0]])
    trunk = parts(singles["radar"][1], "trunk.")
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in trunk.items())


@pytest.mark.parametrize("stage", ["late", "hybrid"])
def test_models_side_by_side_begin_each_with_its_own_and_give_back(singles, tmp_path, stage):
    model = build_model(at(stage))
    start_from(model, [singles[name][0] for name in ("camera", "lidar", "radar")])
    state = model.state_dict()
    for name in SENSORS:  # whole: its fusion layer too, which counts the same sensor
        own = parts(state, f"models.{name}.")
        theirs = {f"models.{name}.{key}": tensor for key, tensor in singles[name][1].items()}
        assert own.keys() <= theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in own.items())
    if stage == "hybrid":  # the model of all sensors has every branch, and the trunk of the first
        joint = parts(state, "models.joint.")
        assert all(torch.equal(joint[f"models.joint.{n}"], t) for n, t in parts(singles["radar"][1], "radar.").items())
        assert all(torch.equal(joint[f"models.joint.{n}"], t) for n, t in parts(singles["camera"][1], "trunk").items())
    folder = saved(model, tmp_path / stage, at(stage))
    again = build_model(only("lidar"))  # and back: the model of LiDAR within, not what others say of the same names
    start_from(again, [folder])
    expected = parts(singles["lidar"][1], "lidar.", "trunk.", "fuse.", "detection.", "planning.")
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in expected.items())


def test_a_model_of_all_sensors_gives_to_one_of_fewer_and_to_its_like(tmp_path):
    model = numbered(TINY, 500.0)
    given = model.state_dict()
    single = build_model(only("radar"))
    found = fitting(single.state_dict(), [given])
    assert parts(found, "radar.") and parts(found, "trunk.") and not parts(found, "fuse.")
    alike = build_model(TINY)
    start_from(alike, [saved(model, tmp_path, TINY)])
    assert all(torch.equal(alike.state_dict()[key], tensor) for key, tensor in given.items())
    joint = fitting(build_model(at("hybrid")).state_dict(), [given])
    assert parts(joint, "models.joint.fuse.") and not parts(joint, "models.radar.fuse.")


def test_a_model_of_the_same_sensors_comes_before_those_of_single_ones(singles, tmp_path):
    together = numbered(TINY, 70_000.0)
    folders = [singles["lidar"][0], saved(together, tmp_path / "together", TINY), singles["radar"][0]]
    given = together.state_dict()
    model = build_model(TINY)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    said = start_from(model, folders, ["fuse"])
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, (before if key.startswith("fuse.") else given)[key])
    assert "fuse" in said[-1] and "all that fits is filled" in said[0]
    hybrid = build_model(at("hybrid"))
    start_from(hybrid, folders, ["models.joint.fuse"])
    state = hybrid.state_dict()
    trunks = {"joint": given, "lidar": singles["lidar"][1], "radar": singles["radar"][1], "camera": given}
    for name, theirs in trunks.items():
        trunk = parts(state, f"models.{name}.trunk.")
        assert trunk and all(torch.equal(t, theirs[key.removeprefix(f"models.{name}.")]) for key, t in trunk.items())
    own = parts(singles["lidar"][1], "fuse.")  # what is anew is the joint one's
    assert own and all(torch.equal(state[f"models.lidar.{key}"], tensor) for key, tensor in own.items())
    assert not any(
        torch.equal(t, given[key.removeprefix("models.joint.")])
        for key, t in parts(state, "models.joint.fuse.").items()
    )
    with pytest.raises(ConfigError, match=r"train\.fresh: the model has no part 'fusion'; its parts: .*fuse"):
        start_from(model, folders, ["fusion"])


def test_where_sensors_meet_is_taken_whole_or_not(tmp_path):
    folder = saved(numbered(TINY, 500.0), tmp_path, TINY)
    other = build_model(dataclasses.replace(TINY, fusion=dataclasses.replace(TINY.fusion, operator="gated")))
    names = [key for key in parts(other.state_dict(), "fuse.") if key in numbered(TINY, 0.0).state_dict()]
    before = {key: other.state_dict()[key].clone() for key in parts(other.state_dict(), "fuse.")}
    assert names  # some have the same name as those of concat
    start_from(other, [folder])
    assert all(torch.equal(other.state_dict()[key], tensor) for key, tensor in before.items())


def test_other_shapes_stay_new_and_averages_are_preferred(tmp_path):
    model = numbered(only("lidar"), 500.0)
    ema = {key: tensor + 1000 for key, tensor in model.state_dict().items()}
    folder = saved(model, tmp_path, only("lidar"), ema)
    other = dataclasses.replace(only("lidar"), trunk=TrunkConfig(channels=24, blocks=(1, 1), out_channels=16))
    wider = build_model(other)
    before = {key: tensor.clone() for key, tensor in wider.state_dict().items()}
    start_from(wider, [folder])
    for key, tensor in wider.state_dict().items():
        fits = key in ema and ema[key].shape == tensor.shape
        assert torch.equal(tensor, ema[key] if fits else before[key])
        assert fits or key.startswith("trunk.")


def test_a_sensors_own_model_takes_nothing_from_one_that_does_not_see_it(singles):
    late = build_model(at("late"))
    found = fitting(late.state_dict(), [singles["camera"][1]])
    assert found and not parts(found, "models.lidar.", "models.radar.")
    # A model that is not side by side with others takes what fits, as far as it is not of where sensors meet.
    found = fitting(build_model(only("lidar")).state_dict(), [singles["camera"][1]])
    assert parts(found, "trunk.", "detection.") and not parts(found, "fuse.", "lidar.")


def test_what_gives_nothing_is_an_error(singles, tmp_path):
    camera = nn.Module()
    camera.camera = nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match=r"train\.start: nothing of .* fits: no weight has the name and shape"):
        start_from(camera, [singles["lidar"][0]])
    said = start_from(build_model(only("lidar")), [singles["lidar"][0], singles["lidar"][0]])
    assert said[1].startswith("start: 0 of") and said[1].endswith("all that fits is filled")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        start_from(build_model(TINY), [tmp_path])
    folder = saved(numbered(only("radar"), 0.0), tmp_path / "damaged", only("radar"))
    (checkpoint_folder(folder, 1) / MODEL).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"train\.start: cannot read .*take another checkpoint"):
        start_from(build_model(only("radar")), [folder])


@pytest.fixture
def tiny_training(monkeypatch):
    monkeypatch.setattr(training, "open_split", lambda *_, **__: TinyData())
    monkeypatch.setattr(training, "build_model", lambda *_, **__: TinyModel(dropout=0.0))


def test_a_run_begins_so_and_goes_on_without(tiny_training, tmp_path, capsys):
    first = training.train(tiny_config(epochs=1, learning_rate=1e-3), tmp_path / "first", device="cpu")
    config = tiny_config(epochs=1, learning_rate=1e-9, weight_decay=0.0, start=(str(tmp_path / "first"),))
    capsys.readouterr()
    second = training.train(config, tmp_path / "second", device="cpu")
    assert "lidar" in capsys.readouterr().out
    assert read_log(tmp_path / "second" / "log.jsonl")
    learned, begun = (read_weights(TinyModel().state_dict(), f, config) for f in (first / EMA, second / MODEL))
    for key in ("lidar.0.weight", "radar.weight", "out.1.weight"):
        assert torch.allclose(begun[key], learned[key], atol=1e-6)
    (tmp_path / "first").rename(tmp_path / "gone")
    assert training.train(config, tmp_path / "second", device="cpu") == second  # finished: nothing is looked for
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        training.train(config, tmp_path / "third", device="cpu")
