"""Memory of the fused map: moved to where the vehicle is now, the same in clips and in streams, lost with its scene."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion3d.bev.temporal import Frame, Memory, make_temporal, move
from fusion3d.build import build_model
from fusion3d.config import TemporalConfig
from fusion3d.data.augment import bev_matrix, transform_sample
from fusion3d.data.collate import collate
from fusion3d.data.subset import drop_sensors, select_sensors
from fusion3d.types import RADAR_FIELDS, BEVGrid, Sample

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_model import TINY

GRID = BEVGrid(x=(-8.0, 8.0), y=(-6.0, 6.0), resolution=0.5)
OPERATORS = ["concat", "recurrent"]


def pose(x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> torch.Tensor:
    """[1, 4, 4] global_from_ego."""
    matrix = bev_matrix(yaw)
    matrix[:2, 3] = x, y
    return torch.from_numpy(matrix)[None]


def frame(bev: torch.Tensor, place: torch.Tensor) -> Frame:
    return Frame(bev, place, torch.ones(len(bev), dtype=torch.bool))


def test_standing_still_moves_nothing():
    bev = torch.randn(2, 3, *GRID.shape)
    place = pose(5.0, -3.0, 0.4).repeat(2, 1, 1)
    moved = move(frame(bev, place), place, GRID)
    torch.testing.assert_close(moved[:, :3], bev, atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[:, 3], torch.ones_like(moved[:, 3]), atol=1e-4, rtol=0)


def test_whole_cells_forward_shift_the_map_back():
    bev = torch.randn(1, 2, *GRID.shape)
    moved = move(frame(bev, pose()), pose(2 * GRID.resolution, -3 * GRID.resolution), GRID)
    torch.testing.assert_close(moved[:, :2, 3:, :-2], bev[:, :, :-3, 2:], atol=1e-4, rtol=0)
    assert (moved[:, :, :3] == 0).all() and (moved[..., -2:] == 0).all()  # what was not in view


@pytest.mark.parametrize("augmented", [False, True])
def test_a_world_function_stays_where_it_is(augmented):
    """A smooth function of the global position, drawn from two places, agrees after one is moved to the other."""

    def drawn(global_from_grid):
        x, y = (global_from_grid[0, :2, :2] @ GRID.centers().double()[..., None])[..., 0].unbind(-1)
        x, y = x + global_from_grid[0, 0, 3], y + global_from_grid[0, 1, 3]
        return ((x / 3).sin() + (y / 4).cos())[None, None].float()

    before, now = pose(10.0, 4.0, 0.3), pose(11.3, 4.7, 0.5)
    if augmented:  # the same turn, scale and mirror of both egos
        undo = torch.linalg.inv(torch.from_numpy(bev_matrix(0.7, 1.1, flip_y=True)))
        before, now = before @ undo, now @ undo
    moved = move(frame(drawn(before), before), now, GRID)
    inside = moved[0, 1] > 0.999
    assert 0.6 < inside.float().mean() < 1
    assert (moved[0, 0] - drawn(now)[0, 0]).abs()[inside].max() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", OPERATORS)
def test_bfloat16_stays_near_float32(operator, dtype):
    """Maps come in either type: some fusion operators end in a normalisation, which autocast leaves in float32."""
    torch.manual_seed(0)
    temporal = make_temporal(TemporalConfig(operator), 4, GRID)
    moved, there = torch.randn(2, 5, *GRID.shape), torch.tensor([True, False])
    bev = torch.randn(2, 4, *GRID.shape)
    for past in ([], [(moved, there)]):
        exact, kept = temporal.combine(bev, past)
        with torch.autocast("cpu", torch.bfloat16):
            rough, kept_rough = temporal.combine(bev.to(dtype), past)
        torch.testing.assert_close(rough.float(), exact, atol=0.1, rtol=0.1)
        torch.testing.assert_close(kept_rough.float(), kept, atol=0.1, rtol=0.1)
        rough.float().sum().backward()


def a_clip(seed: int, start: float = 0.0, length: int = 3, scene: str = "a") -> list[Sample]:
    """Keyframes of a vehicle that drives on, with a little LiDAR and radar."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for step in range(length):
        lidar = torch.rand(80, 5, generator=generator) * torch.tensor([20.0, 16.0, 2.0, 1.0, 0.0])
        lidar[:, :2] -= torch.tensor([10.0, 8.0])
        radar = torch.rand(9, len(RADAR_FIELDS), generator=generator) * 4
        samples.append(
            Sample(
                token=f"{scene}-{step}",
                scene=scene,
                timestamp=round((start + 0.5 * step) * 1e6),
                global_from_ego=pose(1.5 * step, 0.1 * step, 0.05 * step)[0],
                aug_from_ego=torch.eye(4),
                lidar=lidar,
                radar=radar,
            )
        )
    return samples


def with_history(samples: list[Sample]) -> Sample:
    return dataclasses.replace(samples[-1], history=tuple(reversed(samples[:-1])))


def tiny_model(operator: str, keyframes: int = 3):
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, temporal=TemporalConfig(operator, keyframes))  # type: ignore[arg-type]
    model = build_model(config).eval()
    assert model.temporal is not None
    with torch.no_grad():  # let the past matter
        for p in model.temporal.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_stream_says_what_the_clips_say(operator):
    model, samples = tiny_model(operator), a_clip(1)
    memory = None
    for step in range(3):
        streamed = model(collate([samples[step]]), memory)
        clip = model(collate([with_history(samples[: step + 1])]))
        torch.testing.assert_close(streamed["detection"].heatmap, clip["detection"].heatmap, atol=1e-5, rtol=1e-5)
        memory = streamed["memory"]
    alone = model(collate([samples[2]]))
    assert (alone["detection"].heatmap - clip["detection"].heatmap).abs().max() > 1e-3


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_sample_with_its_past_does_not_depend_on_the_others(operator):
    model = tiny_model(operator)
    long, short, other = a_clip(1), a_clip(2, length=2, scene="b"), a_clip(3, length=1, scene="a")
    clips = [with_history(clip) for clip in (long, short, other)]
    together = model(collate(clips))["detection"].heatmap
    for row, clip in enumerate(clips):
        alone = model(collate([clip]))["detection"].heatmap
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    "change",
    [{"scene": "b"}, {"timestamp": 500_000}, {"timestamp": 400_000}, {"timestamp": 2_100_000}],
    ids=["scene", "same time", "back in time", "gap"],
)
def test_memory_is_lost_with_its_scene(operator, change):
    model, samples = tiny_model(operator), a_clip(1)
    memory = model(collate([samples[1]]), None)["memory"]
    after = collate([dataclasses.replace(samples[2], **change)])
    torch.testing.assert_close(model(after, memory)["detection"].heatmap, model(after)["detection"].heatmap)
    kept = model(collate([samples[2]]), memory)["detection"].heatmap
    assert (kept - model(collate([samples[2]]))["detection"].heatmap).abs().max() > 1e-3


def test_streams_are_told_apart_in_any_order():
    model = tiny_model("recurrent")
    a, b = a_clip(1), a_clip(2, scene="b")
    memory = model(collate([a[0], b[0]]))["memory"]
    turned = model(collate([b[1], a[1]]), memory)["detection"].heatmap
    alone = model(collate([a[1]]), model(collate([a[0]]))["memory"])["detection"].heatmap
    torch.testing.assert_close(turned[1:], alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="comes twice in the batch"):
        model(collate([a[1], a[2]]), memory)
    with pytest.raises(ValueError, match="comes twice in the memory"):
        model(collate([a[2]]), model(collate([a[0], a[1]]))["memory"])


def test_keyframes_before_do_not_go_through_what_only_losses_read():
    detection = dataclasses.replace(TINY.detection, sensor_weight=0.3)  # type: ignore[type-var]
    model = build_model(dataclasses.replace(TINY, temporal=TemporalConfig(keyframes=3), detection=detection)).train()
    asked: list[int] = []
    model.get_submodule("sensors").register_forward_hook(lambda *_: asked.append(1))
    outputs = model(collate([with_history(a_clip(1))]))
    assert len(asked) == 1 and set(outputs["sensors"]) == {"lidar", "radar"}


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_subset_and_dropped_sensors_train(operator):
    model = tiny_model(operator).train()
    batch = collate([with_history(a_clip(1)), with_history(a_clip(2, length=2))])
    for sensors in (["lidar"], ["radar"], ["lidar", "radar"], []):
        seen = drop_sensors(select_sensors(batch, sensors), TINY.train, torch.Generator().manual_seed(1))
        assert all({k for k, v in past.batch.present.items() if v.any()} <= set(sensors) for past in seen.history)
        model.zero_grad()
        model(seen)["detection"].heatmap.square().sum().backward()
        grads = [p.grad for p in model.temporal.parameters()]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)
        assert any(grad.any() for grad in grads)  # type: ignore[union-attr]


def test_what_is_lost_now_is_lost_before_too():
    batch = collate([with_history(a_clip(seed)) for seed in range(40)])
    config = dataclasses.replace(TINY.train, drop_sensor=0.5)
    seen = drop_sensors(batch, config, torch.Generator().manual_seed(0))
    for kind in ("lidar", "radar"):
        now = seen.present[kind]
        assert 0 < now.sum() < 40
        assert all(torch.equal(past.batch.present[kind], now) for past in seen.history)


def test_clips_are_augmented_as_one_world():
    """The warp between augmented keyframes is the augmented warp: a map function of the world does not see it."""
    samples = a_clip(1)
    matrix = bev_matrix(0.5, 1.1, flip_x=True)
    clip = transform_sample(with_history(samples), matrix)
    for before, plain in zip(clip.history, reversed(samples[:-1]), strict=True):
        assert before.lidar is not None and plain.lidar is not None
        expected = plain.lidar[:, :3].double().numpy() @ matrix[:3, :3].T
        np.testing.assert_allclose(before.lidar[:, :3].numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(before.aug_from_ego.numpy(), matrix, atol=1e-6)
        now, past = (s.global_from_ego @ torch.linalg.inv(s.aug_from_ego.double()) for s in (clip, before))
        warp = torch.linalg.inv(past) @ now
        plain_warp = torch.linalg.inv(plain.global_from_ego) @ samples[-1].global_from_ego
        a = torch.from_numpy(matrix)
        torch.testing.assert_close(warp, a @ plain_warp @ torch.linalg.inv(a), atol=1e-6, rtol=0)


def test_recall_reads_time_and_stream():
    config = TemporalConfig("recurrent")
    memory = Memory((frame(torch.randn(2, 1, 2, 2), pose().repeat(2, 1, 1)),), ("a", "b"), torch.tensor([0, 0]))
    (found,) = memory.recall(["b", "c", "a"], torch.tensor([500_000, 500_000, 1_000_001]), config.max_gap)
    assert found.there.tolist() == [True, False, False]
    assert torch.equal(found.bev[0], memory.frames[0].bev[1])


def test_state_of_a_recurrent_map_is_bounded():
    temporal = make_temporal(TemporalConfig("recurrent"), 4, GRID)
    batch = collate([a_clip(1)[0]])
    memory = None
    for step in range(20):
        now = dataclasses.replace(batch, timestamp=batch.timestamp + step * 500_000)
        out, memory = temporal(100 * torch.randn(1, 4, *GRID.shape), now, memory, ["a"])
    assert memory is not None and memory.frames[0].bev.abs().max() <= 1 and out.isfinite().all()
    assert math.isclose(float(memory.timestamp[0]), 9.5e6)
