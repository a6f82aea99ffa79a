"""Several subsets of the sensors from one pass of the encoders: what is said is what whole passes say."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusion3d.build import build_model
from fusion3d.config import Config
from fusion3d.data.collate import collate
from fusion3d.data.subset import draw_subsets, select_sensors
from fusion3d.encoders.checkpointing import checkpoint_blocks
from fusion3d.engine.inference import run_split, sensor_subsets
from fusion3d.engine.log import read_log
from fusion3d.engine.train import num_subsets
from fusion3d.engine.views import views_of
from fusion3d.heads.detection import BOX_CHANNELS
from fusion3d.late import LateFusion, Model
from fusion3d.model import Fusion3D
from fusion3d.types import SENSORS, Batch

sys.path.insert(0, str(Path(__file__).parent))
from small import CAMERA, RandomData, small_config, train_small
from tiny import fork_ranks

CPU = torch.device("cpu")
HEADS = {"heatmap", "class", *BOX_CHANNELS, "planning", "map", "motion", "motion_yaw", "motion_mode"}
MOTION = {"channels": 8, "truth_noise": 0.0}
SEPARABLE: dict[str, dict[str, Any]] = {
    "plain": {"map": {"channels": 8}, "motion": MOTION},
    "related": {
        "fusion": {"channels": 8, "representation": "factorised", "align": "deformable", "stage": "hierarchical"}
    },
    "exchange": {"fusion": {"channels": 8, "operator": "channel_exchange", "representation": "coordinated"}},
    "keyframes": {
        "temporal": {"operator": "concat"}, "detection": {"channels": 8, "head": "query", "query": {"count": 5}}
    },
    "state": {
        "temporal": {"operator": "recurrent"}, "camera": CAMERA | {"view": "unproject", "heights": 2, "depth_loss": 0.0}
    },
    "late": {"fusion": {"channels": 8, "stage": "late"}},
    "hybrid": {"fusion": {"channels": 8, "stage": "hybrid"}, "temporal": {}},
}  # fmt: skip
WHOLE: dict[str, dict[str, Any]] = {
    "early": {"fusion": {"channels": 8, "stage": "early"}},
    "lidar_lift": {"camera": CAMERA | {"view": "lidar_lift"}},
    "radar_lift": {"camera": CAMERA | {"view": "radar_lift"}, "temporal": {}},
}
CASES = SEPARABLE | WHOLE


def made(config: Config) -> tuple[Model, Batch]:
    """A model whose normalisation does not look across samples, in training mode; a batch with gaps, and a past."""
    torch.manual_seed(0)
    model = build_model(config).train()
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            part.eval()
    data = RandomData(config, history=0 if config.temporal is None else 1)
    return model, collate([data[0, i] for i in range(6)])


def test_a_model_is_separable_if_and_only_if_no_encoder_looks_at_another_sensor():
    for name, more in CASES.items():
        model, full = made(small_config(**more))
        model.eval()
        if isinstance(model, LateFusion):
            assert model.separable
            continue
        whole = model.encode(full)[0]
        alike = []
        for kind in SENSORS:
            alone = model.encode(select_sensors(full, [kind]))[0]
            of_kind = [(whole.get(k), alone.get(k)) for k in ([kind] if kind in whole else whole)]
            alike += [a is not None and b is not None and torch.equal(a, b) for a, b in of_kind]
        assert model.separable == all(alike) == (name in SEPARABLE), name


@pytest.mark.parametrize("name", CASES)
def test_losses_are_means_over_the_subsets_and_the_encoders_own_count_once(name):
    config = small_config({"drop_sensor": 0.5, "drop_camera": 0.0, "drop_radar": 0.0}, **CASES[name])
    model, full = made(config)
    subsets = [*draw_subsets(full, config.train, 2, torch.Generator().manual_seed(2))[1], full]

    def gradients(losses: dict[str, torch.Tensor], names: set[str]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        torch.stack([value for key, value in losses.items() if key.rpartition(".")[2] in names]).sum().backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    torch.manual_seed(1)
    together = model.losses(model.under(full, subsets), full)
    separate = [model.losses(model(seen), full) for seen in subsets]
    several = {"hybrid": "joint.", "late": "none."}.get(name, "")  # whose heads are asked several times
    for key, value in together.items():
        parts = [losses[key] for losses in separate if key in losses]
        if not model.separable or (key.startswith(several) and key.removeprefix(several) in HEADS):
            torch.testing.assert_close(value, sum(parts) / 3, rtol=1e-5, atol=1e-6, msg=key)
        elif key.rpartition(".")[2] not in ("contrast", "similarity", "difference", "reconstruction"):  # random cells
            torch.testing.assert_close(value, parts[-1], rtol=1e-5, atol=1e-6, msg=key)
    assert together.keys() == separate[-1].keys()
    if name not in ("late", "hybrid"):
        expected = [gradients(losses, HEADS) for losses in separate]
        found = gradients(together, HEADS)
        for key, grad in found.items():
            mean = sum(of.get(key, torch.zeros_like(grad)) for of in expected) / 3
            torch.testing.assert_close(grad, mean, rtol=1e-3, atol=1e-5, msg=key)


def test_targets_are_made_and_sensors_encoded_once(monkeypatch):
    model, full = made(small_config())
    assert isinstance(model, Fusion3D) and model.detection is not None
    _, subsets = draw_subsets(full, small_config().train, 7, torch.Generator().manual_seed(0))
    calls: list[str] = []
    for name in ("camera", "lidar", "radar", "trunk"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    made_targets = model.detection.targets
    monkeypatch.setattr(model.detection, "targets", lambda batch: calls.append("targets") or made_targets(batch))
    model.losses(model.under(full, subsets), full)
    assert sorted(calls) == ["camera", "lidar", "radar", "targets", *["trunk"] * 7]


def test_recomputed_activations_give_the_same_gradients():
    found = []
    for again in (False, True):
        model, full = made(small_config())
        if again:
            checkpoint_blocks(model)
        _, subsets = draw_subsets(full, small_config().train, 3, torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            losses = model.losses(model.under(full, subsets), full)
        torch.stack([*losses.values()]).sum().backward()
        found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_how_many_subsets_there_are():
    def count(subsets: int, drop: float = 0.5, **more: Any) -> int:
        return num_subsets(small_config({"subsets": subsets, "drop_sensor": drop}, **more))

    assert [count(n) for n in (1, 3, 7, 20)] == [1, 3, 7, 7]
    assert count(7, camera=None) == 3 and count(7, camera=None, radar=None) == 1 and count(7, drop=0.0) == 1
    assert count(7, data={"image_size": [64, 64], "workers": 0, "sensors": ["lidar", "radar"]}) == 3


def test_training_with_several_subsets_is_repeatable(tmp_path):
    config = small_config({"subsets": 3, "epochs": 1})
    for name, of_run in (("a", config), ("b", config), ("one", small_config({"epochs": 1}))):
        train_small(tmp_path / name, of_run, 4)
    a, b, one = ([line["loss"] for line in read_log(tmp_path / name / "log.jsonl")] for name in ("a", "b", "one"))
    assert a == b and len(a) == len(one) and a != one


# -- evaluation


class Unshared(nn.Module):
    """A model that does not say that its encoders may be shared."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)

    def decode(self, *inputs: Any) -> Any:
        return self.model.decode(*inputs)


class Frames(RandomData):
    """Keyframes of one scene, 0.5 s apart."""

    def __init__(self, config: Config, size: int, past: int) -> None:
        super().__init__(config, size, past)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return dataclasses.replace(super().__getitem__(key), timestamp=500_000 * key[1])


@pytest.mark.parametrize(
    ("name", "tta", "stream"),
    [(name, "none", False) for name in CASES]
    + [("plain", "flip", False), ("state", "none", True), ("hybrid", "none", True)],
)
def test_predictions_from_shared_maps_are_the_same_to_the_bit(name, tta, stream):
    config = small_config(**CASES[name])
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, tta=tta, stream=stream))
    torch.manual_seed(0)
    model = build_model(config).eval()
    data = Frames(config, 3, 0 if config.temporal is None or stream else 1)
    subsets, calls = sensor_subsets(config), []
    first = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    first.register_forward_hook(lambda *_: calls.append(0))
    found = []
    for asked in (model, Unshared(model)):
        calls.clear()
        found.append((run_split(asked, data, subsets, 2, 0, CPU, views_of(config), stream).subsets, len(calls)))
    (shared, times), (whole, more) = found
    assert (times < more) == (name in SEPARABLE)
    for subset in subsets:
        assert shared[subset].used == whole[subset].used and len(shared[subset].plans) == 3
        for token, plan in whole[subset].plans.items():
            assert torch.equal(plan.position, shared[subset].plans[token].position)
            for field in dataclasses.fields(whole[subset].boxes[token]):
                a, b = (getattr(of[subset].boxes[token], field.name) for of in (shared, whole))
                assert a == b if isinstance(a, tuple) else torch.equal(a.nan_to_num(), b.nan_to_num()), field.name


def test_what_no_asked_subset_needs_is_not_encoded():
    config = small_config()
    model = build_model(config).eval()
    assert isinstance(model, Fusion3D) and model.camera is not None
    model.camera.encoder.register_forward_hook(lambda *_: pytest.fail("the cameras were encoded"))
    subsets = {name: sensors for name, sensors in sensor_subsets(config).items() if "camera" not in sensors}
    assert run_split(model, RandomData(config, 2), subsets, 2, 0, CPU).subsets.keys() == subsets.keys()


# -- processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({}, {}),
        ({"shard": True, "accumulate": 2, "epochs": 2}, {"temporal": {"operator": "concat"}}),
        ({}, {"fusion": {"channels": 8, "stage": "hybrid", "representation": "coordinated"}, "planning": None}),
        ({}, {"camera": CAMERA | {"view": "radar_lift"}, "temporal": {"operator": "concat"}}),
        ({}, {"motion": MOTION}),
    ],
    ids=["plain", "parts", "hybrid", "whole", "motion"],
)
def test_two_processes_are_one_under_several_subsets(tmp_path, settings, more):
    train, joint = {"subsets": 3, "drop_sensor": 0.5, "epochs": 1} | settings, {"sync_batchnorm": True, "batch_size": 1}
    train_small(tmp_path / "alone", small_config(train, **more))
    ranks = fork_ranks(train_small, tmp_path / "two", small_config(joint | train, **more))
    assert [status for status, _ in ranks] == [0, 0], ranks[0][1] + ranks[1][1]
    alone, two = (read_log(tmp_path / run / "log.jsonl")[:4] for run in ("alone", "two"))
    for a, b in itertools.zip_longest(alone, two):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
