from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fusion3d.bev.fusion import ConcatFusion, WeightedFusion
from fusion3d.build import build_model
from fusion3d.config import PlanningConfig, TrainConfig
from fusion3d.encoders.sparse import SparseConv3d
from fusion3d.engine.optimizer import build_optimizer, in_steps, load_optimizer, one_cycle, set_learning_rate
from fusion3d.heads.planning import QueryPlanner
from fusion3d.types import BEVGrid

sys.path.insert(0, str(Path(__file__).parent))
from small import small_config
from tiny import TinyModel, tiny_config


@pytest.mark.parametrize("warmup", [0.3, 0.1, 0.0])
def test_one_cycle_is_torchs(warmup):
    total, peak = 40, 0.5
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    if warmup == 0:  # torch cannot do without a rise; the fall alone is a cosine
        expected = [one_cycle(0, 0), one_cycle(1, 0)]
        assert expected == pytest.approx([1, 4e-6])
        return
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak, total_steps=total, pct_start=(warmup * (total - 1) + 1) / total, cycle_momentum=False
    )
    for step in range(total):
        ours = peak * one_cycle(step / (total - 1), warmup)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        if step < total - 1:
            optimizer.step()
            theirs.step()


def test_weight_decay_spares_norms_and_biases():
    config = tiny_config(weight_decay=0.1).train
    model = TinyModel()
    decay = {id(p): g["weight_decay"] for g in build_optimizer(model, config).param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.1 if name in ("lidar.0.weight", "radar.weight", "out.1.weight") else 0)


def test_weight_decay_spares_what_is_no_layers_matrix():
    model = nn.ModuleDict(
        {
            "fuse": WeightedFusion([4, 4], 4, BEVGrid()),
            "concat": ConcatFusion([4, 4], 4, BEVGrid()),
            "sparse": SparseConv3d(4, 4),
            "plan": QueryPlanner(PlanningConfig(channels=8, ego_status="measured"), 4, BEVGrid()),
        }
    )
    groups = build_optimizer(model, tiny_config(weight_decay=0.1).train).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.named_parameters():
        if name in ("fuse.weight", "plan.command.weight"):
            assert parameter.ndim == 2 and id(parameter) not in decayed
        else:
            assert (id(parameter) in decayed) == (parameter.ndim >= 2), name


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    values = {id(p): group[key] for group in optimizer.param_groups for p in group["params"]}
    return {name: values[id(p)] for name, p in model.named_parameters()}


def test_stages_of_the_backbone_learn_the_slower_the_earlier_they_are():
    model = build_model(small_config())
    optimizer = build_optimizer(model, TrainConfig(backbone_rate=0.5, layer_decay=0.8, weight_decay=0.1))
    set_learning_rate(optimizer, 0.01)
    rates, decays = by_name(model, optimizer, "lr"), by_name(model, optimizer, "weight_decay")
    depth = {"conv1": 4, "bn1": 4, "layer1": 3, "layer2": 2, "layer3": 1, "layer4": 0}
    prefix, seen = "camera.encoder.backbone.", set()
    for name, rate in rates.items():
        stage = name.removeprefix(prefix).split(".")[0] if name.startswith(prefix) else None
        seen.add(stage)
        assert rate == pytest.approx(0.01 if stage is None else 0.01 * 0.5 * 0.8 ** depth[stage]), name
        if stage is not None:
            assert decays[name] == (0.1 if "conv" in name or "downsample.0" in name else 0), name
    assert seen == {None, *depth}
    assert optimizer.param_groups[0]["rate"] == 1, "the rate that is reported is that of the schedule"
    assert len({id(p) for g in optimizer.param_groups for p in g["params"]}) == len(list(model.parameters()))


def test_every_model_of_late_fusion_has_a_slower_backbone():
    model = build_model(small_config(fusion={"channels": 8, "stage": "hybrid"}))
    rates = by_name(model, build_optimizer(model, TrainConfig(backbone_rate=0.5)), "rate")
    slow = {name for name, rate in rates.items() if rate == 0.5}
    assert slow == {name for name in rates if ".camera.encoder.backbone." in name}
    assert {name.split(".")[1] for name in slow} == {"camera", "joint"}


def test_rates_of_one_change_nothing():
    model, plain = build_model(small_config()), dataclasses.replace(small_config(), camera=None)
    assert {g["rate"] for g in build_optimizer(model, TrainConfig()).param_groups} == {1.0}
    slower = build_optimizer(build_model(plain), TrainConfig(backbone_rate=0.1, layer_decay=0.5))
    assert {g["rate"] for g in slower.param_groups} == {1.0}, "without cameras there is no backbone"


def test_another_optimisers_state_is_refused():
    model = TinyModel()
    state = build_optimizer(model, TrainConfig()).state_dict()
    with pytest.raises(ValueError, match="parameter group"):
        load_optimizer(build_optimizer(TinyModel(norm=False), TrainConfig()), state)


def test_steps_are_torchs():
    """BEVDepth's: epochs 16 and 19 of 20, after a rise in the first."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [160, 190])
    for step in range(200):
        if step >= 10:
            assert in_steps(step / 200, 0.05, (0.8, 0.95)) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert in_steps(0.0, 0.1, (0.5,)) == 0 and in_steps(0.05, 0.1, (0.5,)) == 0.5 and in_steps(0.0, 0.0, ()) == 1
