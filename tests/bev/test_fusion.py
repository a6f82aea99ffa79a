"""Fusion: absent is absent."""

from __future__ import annotations

import typing

import pytest
import torch

from fusion3d.bev.fusion import make_fusion
from fusion3d.bev.fusion.entry import shares
from fusion3d.bev.trunk import Trunk
from fusion3d.config import FusionConfig, TrunkConfig
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid

GRID = BEVGrid(x=(-4.0, 4.0), y=(-3.0, 3.0), resolution=1.0)
INPUTS = (4, 6, 2)
OPERATORS = typing.get_args(typing.get_type_hints(FusionConfig)["operator"])


def maps(seed: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(3, count, *GRID.shape) for count in INPUTS]


def present(*rows: str) -> list[torch.Tensor]:
    return [torch.tensor([mark == "x" for mark in row]) for row in rows]


@pytest.fixture(params=OPERATORS)
def fuse(request):
    torch.manual_seed(1)
    fusion = make_fusion(FusionConfig(operator=request.param, channels=8), INPUTS, GRID).train()

    for parameter in fusion.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return fusion


def test_what_stands_in_an_absent_map_does_not_matter(fuse):
    there = present("xx.", ".xx", "..x")
    a, b = maps(), maps()
    for noisy, mark in zip(b, there, strict=True):
        noisy[~mark] = 1e4
    torch.testing.assert_close(fuse(a, there), fuse(b, there), atol=0, rtol=0)


def test_no_map_is_the_same_as_a_map_of_which_no_sample_is_there(fuse):
    there = present("xxx", "...", "x.x")
    camera, lidar, radar = maps()
    torch.testing.assert_close(
        fuse([camera, lidar, radar], there), fuse([camera, None, radar], there), atol=1e-6, rtol=0
    )


def test_a_sensor_that_is_there_does_matter(fuse):
    camera, lidar, radar = maps()
    with_it, without = (fuse([camera, lidar, radar], present("xxx", mark, "xxx")) for mark in ("xxx", "..."))
    assert (with_it - without).abs().amax() > 0.1


def test_samples_do_not_see_each_other(fuse):
    there = present("xx.", ".xx", "..x")
    whole = fuse(maps(), there)
    for sample in range(3):
        alone = fuse([m[sample : sample + 1] for m in maps()], [mark[sample : sample + 1] for mark in there])
        torch.testing.assert_close(whole[sample : sample + 1], alone, atol=1e-5, rtol=1e-5)


def test_nothing_at_all_is_finite_and_has_gradients(fuse):
    result = fuse([None, None, None], present("...", "...", "..."))
    assert result.shape == (3, 8, *GRID.shape) and result.isfinite().all()
    if result.requires_grad:
        result.sum().backward()
    result = fuse(maps(), present("x..", "x..", "x.."))
    result.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fuse.parameters())


def test_weights_are_normalised_over_those_present():
    score = torch.randn(3, 8)
    weights = shares(score, present("xx.", ".x.", "xx."))
    torch.testing.assert_close(weights.sum(0)[:2], torch.ones(2, 8))
    assert (weights[1, 0] == 0).all() and (weights[:, 2] == 0).all()
    torch.testing.assert_close(weights[[0, 2], 0], score[[0, 2]].softmax(0))


@pytest.mark.parametrize("blocks", [(1,), (1, 2), (1, 1, 1)])
def test_trunk_keeps_any_size(blocks):
    trunk = Trunk(TrunkConfig(channels=8, blocks=blocks, out_channels=12), 6)
    assert trunk(torch.rand(1, 6, 7, 9)).shape == (1, 12, 7, 9)


def test_trunk_refuses_no_blocks():
    with pytest.raises(ConfigError, match=r"trunk\.blocks"):
        Trunk(TrunkConfig(blocks=()), 6)
    with pytest.raises(ConfigError, match=r"trunk\.blocks"):
        Trunk(TrunkConfig(blocks=(1, 0)), 6)
