"""What a stage costs, against what can be worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fusion3d import ops
from fusion3d.config import MapConfig, TemporalConfig
from fusion3d.engine.describe import describe, format_shapes, main
from fusion3d.engine.flops import count_flops
from fusion3d.engine.probes import Memory
from fusion3d.engine.random_batch import random_batch
from fusion3d.ops.library import PROBLEM
from fusion3d.types import TIME_STEP, BEVGrid

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_model import TINY

compiled = pytest.mark.skipif(bool(PROBLEM), reason="the kernels are not compiled")


def test_a_multiply_add_is_two_operations():
    layer, conv = nn.Linear(7, 5, bias=False), nn.Conv2d(3, 4, 3, padding=1, bias=False)
    assert count_flops(lambda: layer(torch.zeros(11, 7)))["Global"] == 2 * 11 * 7 * 5
    assert count_flops(lambda: conv(torch.zeros(2, 3, 6, 5)))["Global"] == 2 * 2 * 6 * 5 * 4 * 3 * 9


@compiled
def test_operations_of_our_own_kernels():
    cell = torch.tensor([0, 1, -1, 1, 2, -1]).view(1, 2, 1, 3)  # four of six samples are in the grid
    plan = ops.bev_pool_plan(cell, 3, 3)
    depth, feat = torch.rand(1, 2, 1, 3, requires_grad=True), torch.rand(1, 8, 1, 3, requires_grad=True)
    assert count_flops(lambda: ops.bev_pool(depth, feat, plan))["Global"] == 2 * 4 * 8
    both = count_flops(lambda: ops.bev_pool(depth, feat, plan).sum().backward())["Global"]
    assert both == 2 * 4 * 8 + 4 * 4 * 8  # backward: a product for depth and one for the features

    coords = torch.tensor([[0, 0, 0, x] for x in (0, 1, 3)], dtype=torch.int32)
    rulebook = ops.sparse_rulebook(coords, (1, 1, 8), 1, (1, 1, 3), 1, (0, 0, 1), 1, True)
    features, weight = torch.rand(3, 6, requires_grad=True), torch.rand(4, 1, 1, 3, 6, requires_grad=True)
    pairs = 3 + 2  # each voxel with itself, and two neighbours with one another
    assert count_flops(lambda: ops.sparse_conv(features, weight, rulebook))["Global"] == 2 * pairs * 6 * 4
    both = count_flops(lambda: ops.sparse_conv(features, weight, rulebook).sum().backward())["Global"]
    assert both == 3 * 2 * pairs * 6 * 4

    q, ends = torch.rand(7, 2, 16), torch.tensor([0, 3, 7], dtype=torch.int32)
    assert count_flops(lambda: ops.window_attention(q, q, q, ends))["Global"] == 4 * (9 + 16) * 2 * 16

    value, reference = torch.rand(1, 12, 2, 8), torch.rand(1, 5, 2)
    offsets, logits = torch.zeros(1, 5, 2, 1, 4, 2), torch.zeros(1, 5, 2, 1, 4)
    said = count_flops(lambda: ops.ms_deform_attn(value, [(3, 4)], reference, offsets, logits))["Global"]
    assert said == 2 * 4 * (5 * 2 * 4) * 8


def test_memory_is_the_most_that_is_alive_at_once():
    given = torch.zeros(100)
    memory = Memory([given])
    with memory:
        with memory.span("chain"):
            x = given + 1  # 400 bytes
            x = x + 1  # another 400, then the first goes
            x = x.view(10, 10).T  # no new memory
        with memory.span("held"):
            y = torch.zeros(1000)
        with memory.span("after"):
            del y
            _ = given.view(10, 10)
    assert memory.peaks == {"chain": 800, "held": 4400, "after": 4400}
    assert memory.live == 400


def test_shapes_of_outputs():
    x = torch.zeros(2, 3)
    assert list(format_shapes(x)) == ["2x3"]
    assert list(format_shapes({"a": x, "b": (x, x > 0)})) == ["a 2x3", "b 2x3"]
    assert list(format_shapes(None)) == []


@pytest.mark.parametrize("train", [False, True])
def test_the_walk_has_every_stage(train):
    rows = {row.name: row for row in describe(TINY, random_batch(TINY, 1, 300, 20), 1, train)}
    stages = {"camera.encoder", "camera.view", "lidar", "radar", "fuse", "trunk", "detection", "planning"}
    assert stages | {"whole"} | ({"losses", "backward"} if train else {"decode"}) == set(rows)
    assert all(row.milliseconds > 0 and row.peak > 0 for row in rows.values())
    assert all(rows[name].parameters > 0 and rows[name].flops > 0 and rows[name].output for name in stages)
    assert rows["trunk"].output == ("1x16x32x40",)
    whole = rows["whole"]
    assert whole.parameters == sum(rows[name].parameters for name in stages)
    forward = sum(rows[name].flops for name in stages)
    assert whole.flops == forward + sum(rows[name].flops for name in ("losses", "backward") if train)
    assert whole.peak >= max(row.peak for row in rows.values())
    if train:
        assert 1.5 * forward < rows["backward"].flops < 2.5 * forward


def test_memory_is_one_step_of_a_stream_and_in_training_a_clip():
    """The parts that see go through every keyframe while training, and the others once."""
    once = {row.name: row for row in describe(TINY, random_batch(TINY, 1, 300, 20), 0, True)}
    for operator in ("concat", "recurrent"):
        config = dataclasses.replace(TINY, temporal=TemporalConfig(operator, keyframes=3))
        batch = random_batch(config, 1, 300, 20)
        stream, clip = ({row.name: row for row in describe(config, batch, 1, train)} for train in (False, True))
        assert {"temporal", "whole"} <= set(stream) & set(clip)
        for name in ("camera.encoder", "lidar", "radar", "fuse"):
            assert stream[name].flops == once[name].flops and clip[name].flops == 3 * once[name].flops
        for name in ("trunk", "detection", "planning"):
            assert stream[name].flops == clip[name].flops == once[name].flops
        assert stream["temporal"].flops < clip["temporal"].flops < 3 * stream["temporal"].flops  # less past at first


def test_a_random_batch_fills_a_grid_that_is_not_about_the_vehicle():
    config = dataclasses.replace(TINY, grid=BEVGrid(x=(-4.8, 14.4), y=(-6.4, 12.8), resolution=0.8), map=MapConfig())
    batch = random_batch(config, 8, 2000, 2000)
    reach = torch.tensor([config.grid.x, config.grid.y])
    for points in (batch.radar.points, batch.lidar.points):
        inside = ((points[:, :2] >= reach[:, 0]) & (points[:, :2] <= reach[:, 1])).all(dim=1)
        assert inside.float().mean() > 0.4
        span = (points[inside, :2].amax(0) - points[inside, :2].amin(0)) / (reach[:, 1] - reach[:, 0])
        assert (span > 0.9).all(), "a part of the grid is never reached"
    returns = batch.radar.points[:, :2]
    assert ((returns >= reach[:, 0]) & (returns <= reach[:, 1])).all(), "all over the grid"
    assert batch.map_mask[:, 1:].any(dim=(2, 3)).all(), "a band lies beside the grid"


def test_the_past_of_a_random_batch_is_before_it():
    config = dataclasses.replace(TINY, temporal=TemporalConfig(keyframes=4))
    batch, alone = random_batch(config, 2, 30, 5), random_batch(TINY, 2, 30, 5)
    assert torch.equal(batch.lidar.points, alone.lidar.points) and not alone.history
    assert [int(past.batch.timestamp[0]) for past in batch.history] == [-500_000, -1_000_000, -1_500_000]
    assert all(past.row == (0, 1) and past.batch.boxes is None for past in batch.history)
    assert not any(past.batch.annotated.any() or past.batch.history for past in batch.history)
    # As far back as the path of the future goes forward, at the same speed.
    steps = torch.stack([past.batch.global_from_ego[:, 0, 3] for past in batch.history], dim=1)
    torch.testing.assert_close(-steps.float(), batch.future.position[:, :3, 0] * TIME_STEP)


def test_the_command_prints_and_writes(tmp_path, capsys):
    import yaml

    path, out = tmp_path / "tiny.yaml", tmp_path / "walk.json"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(TINY)))))
    assert main([str(path), "--json", str(out), "--points", "500", "--returns", "20", "--repeats", "1"]) == 0
    printed, written = capsys.readouterr().out, json.loads(Path(out).read_text())
    assert {row["name"] for row in written["stages"]} >= {"lidar", "whole"}
    assert all(row["name"] in printed for row in written["stages"]) and "1x16x32x40" in printed


def test_a_training_step_is_in_the_precision_and_memory_that_it_is_trained_with():
    def walk(**train) -> dict:
        config = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **train))
        return {row.name: row for row in describe(config, random_batch(TINY, 1, 300, 20), 0, True)}

    usual, half, again = walk(), walk(precision="bfloat16"), walk(checkpoint_activations=True)
    assert half["trunk"].peak < 0.8 * usual["trunk"].peak
    assert again["whole"].flops > usual["whole"].flops  # forward passes that are done twice
    assert again["whole"].peak < usual["whole"].peak
