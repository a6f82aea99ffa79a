"""Pooling plans are found again for the same calibration, and for no other."""

from __future__ import annotations

import copy
import pickle

import torch

from fusion3d.bev.lift import DepthBins, LiftSplat
from fusion3d.engine.benchmark_ops.pooling import six_cameras
from fusion3d.types import BEVGrid, Cameras

SHAPE = (4, 6)


def lift() -> LiftSplat:
    return LiftSplat(DepthBins(1.0, 13.0, 1.0), BEVGrid(resolution=4.0), 64, 2).eval()


def moved(cameras: Cameras, by: float) -> Cameras:
    shifted = cameras.ego_from_cam.clone()
    shifted[0, 0, 3] += by
    return Cameras(cameras.images, cameras.image_from_cam, shifted, cameras.batch_index, cameras.channels)


def test_the_same_bytes_give_the_same_plan_and_others_never_do():
    layer, cameras, sample = lift(), six_cameras(), torch.zeros(6, dtype=torch.int64)
    first = layer.plan(cameras, sample, 1, SHAPE)
    assert layer.plan(moved(cameras, 0.0), sample.clone(), 1, SHAPE) is first
    for other in (
        layer.plan(moved(cameras, 3.0), sample, 1, SHAPE),
        layer.plan(cameras, torch.tensor([0, 0, 0, 1, 1, 1]), 2, SHAPE),
        layer.plan(cameras, sample, 2, SHAPE),
        layer.plan(cameras, sample, 1, (4, 7)),
    ):
        assert other is not first
    changed = moved(cameras, 0.0)
    changed.ego_from_cam[:, 2, 3] += 2.0  # in place, as an augmentation may
    found, want = layer.plan(changed, sample, 1, SHAPE), lift().plan(changed, sample, 1, SHAPE)
    assert torch.equal(found.cell, want.cell) and torch.equal(found.sample, want.sample)


def test_few_plans_are_kept_and_the_least_used_goes():
    layer, cameras, sample = lift(), six_cameras(), torch.zeros(6, dtype=torch.int64)
    first = layer.plan(cameras, sample, 1, SHAPE)
    for step in range(1, 10):
        layer.plan(moved(cameras, float(step)), sample, 1, SHAPE)
        if step < 5:
            assert layer.plan(cameras, sample, 1, SHAPE) is first
    assert len(layer.plans) == 4
    assert layer.plan(cameras, sample, 1, SHAPE) is not first


def test_training_makes_plans_anew_and_keeps_none():
    layer, cameras, sample = lift().train(), six_cameras(), torch.zeros(6, dtype=torch.int64)
    assert layer.plan(cameras, sample, 1, SHAPE) is not layer.plan(cameras, sample, 1, SHAPE)
    assert len(layer.plans) == 0


def test_plans_are_no_part_of_the_weights_nor_of_copies():
    layer, cameras, sample = lift(), six_cameras(), torch.zeros(6, dtype=torch.int64)
    before = set(layer.state_dict())
    layer.plan(cameras, sample, 1, SHAPE)
    assert set(layer.state_dict()) == before
    assert len(copy.deepcopy(layer).plans) == 0
    assert len(pickle.loads(pickle.dumps(layer.plans))) == 0


def test_a_plan_made_in_inference_mode_serves_a_pass_with_gradients():
    layer, sample = lift(), torch.zeros(6, dtype=torch.int64)
    with torch.inference_mode():
        cameras = six_cameras()
        layer.plan(cameras, sample, 1, SHAPE)
    depth, context = torch.rand(6, 12, *SHAPE, requires_grad=True), torch.rand(6, 2, *SHAPE)
    layer.splat(depth, context, six_cameras(), sample, 1).sum().backward()
    assert len(layer.plans) == 1 and depth.grad is not None and depth.grad.any()
