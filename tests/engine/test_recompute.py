from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fusion3d.build import build_model
from fusion3d.config import Config
from fusion3d.encoders.checkpointing import BLOCKS, checkpoint_blocks
from fusion3d.engine.describe import Memory
from fusion3d.engine.random_batch import random_batch
from fusion3d.model import Fusion3D

sys.path.insert(0, str(Path(__file__).parent))
from small import small_config


def step(model: Fusion3D, config: Config, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Losses of two batches; their gradients and what they leave in the buffers are in the model."""
    losses: dict[str, Tensor] = {}
    for seed in range(2):
        batch = random_batch(config, 2, 300, 30, 6, seed)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            losses = model.losses(model(batch), batch)
        torch.stack([value.float() for value in losses.values()]).sum().backward()
    return losses


def small_model(config: Config, recompute: bool) -> Fusion3D:
    torch.manual_seed(0)
    model = build_model(config).train()
    if recompute:
        checkpoint_blocks(model)
    return model


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_changes_to_the_bit(depth, dtype):
    config = small_config(trunk={"channels": 8, "blocks": [2, 1], "out_channels": 8})
    assert config.camera is not None
    backbone = dataclasses.replace(config.camera.backbone, name=f"resnet{depth}")
    config = dataclasses.replace(config, camera=dataclasses.replace(config.camera, backbone=backbone))
    plain, again = (small_model(config, recompute) for recompute in (False, True))
    assert plain.state_dict().keys() == again.state_dict().keys()
    expected, found = step(plain, config, dtype), step(again, config, dtype)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for (name, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b), name
    counts = {name: int(b) for name, b in again.named_buffers() if "num_batches_tracked" in name}
    assert counts and set(counts.values()) == {2}


def test_less_memory():
    config = small_config(trunk={"channels": 32, "blocks": [9], "out_channels": 8})
    peaks = []
    for recompute in (False, True):
        model = small_model(config, recompute)
        assert sum(isinstance(module, BLOCKS) for module in model.modules()) == 9 + 8 + 2
        memory = Memory([*model.parameters(), *model.buffers()])
        with memory, memory.span("step"):
            step(model, config)
        peaks.append(memory.peaks["step"])
    assert peaks[1] < 0.7 * peaks[0], peaks


def test_evaluation_is_as_ever():
    config = small_config()
    plain, again = (small_model(config, recompute).eval() for recompute in (False, True))
    batch = random_batch(config, 1, 300, 30, 6)
    with torch.inference_mode():
        assert torch.equal(plain(batch)["planning"].position, again(batch)["planning"].position)
