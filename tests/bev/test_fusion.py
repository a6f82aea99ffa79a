"""Fusion: what holds for every operator. Absent is absent; samples do not see each other; no sensor is preferred."""

from __future__ import annotations

import re
import typing

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from fusion3d.bev.auxiliary import Auxiliary
from fusion3d.bev.fusion import make_fusion
from fusion3d.bev.fusion.entry import shares
from fusion3d.bev.trunk import Trunk
from fusion3d.config import FusionConfig, TrunkConfig
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid

GRID = BEVGrid(x=(-4.0, 4.0), y=(-3.0, 4.0), resolution=1.0)  # no multiple of a window of 6 x 6
INPUTS = (4, 6, 2)
OPERATORS = typing.get_args(typing.get_type_hints(FusionConfig)["operator"])


def maps(seed: int = 0, size: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(size, count, *GRID.shape) for count in INPUTS]


def present(*rows: str) -> list[torch.Tensor]:
    return [torch.tensor([mark == "x" for mark in row]) for row in rows]


def make(operator: str, inputs: tuple[int, ...] = INPUTS, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    fusion = make_fusion(FusionConfig(operator=operator, channels=8), inputs, GRID).train()  # type: ignore[arg-type]
    for parameter in fusion.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return fusion


@pytest.fixture(params=OPERATORS)
def fuse(request):
    return make(request.param)


def test_eleven_operators():
    assert len(OPERATORS) == 11 and len({type(make(name)) for name in OPERATORS}) == 11


def test_what_stands_in_an_absent_map_does_not_matter(fuse):
    there = present("xx.", ".xx", "..x")
    a, b = maps(), maps()
    for noisy, mark in zip(b, there, strict=True):
        noisy[~mark] = 1e4
    torch.testing.assert_close(fuse(a, there), fuse(b, there), atol=0, rtol=0)


def test_no_map_is_the_same_as_a_map_of_which_no_sample_is_there(fuse):
    there = present("xxx", "...", "x.x")
    camera, lidar, radar = maps()
    said, none = fuse([camera, lidar, radar], there), fuse([camera, None, radar], there)
    torch.testing.assert_close(said, none, atol=2e-6, rtol=0)


def test_a_sensor_that_is_there_does_matter(fuse):
    camera, lidar, radar = maps()
    with_it, without = (fuse([camera, lidar, radar], present("xxx", mark, "xxx")) for mark in ("xxx", "..."))
    assert (with_it - without).abs().amax() > 0.1


def test_absent_is_not_the_same_as_a_map_of_zeros(fuse):
    camera, lidar, radar = maps()
    empty, absent = (
        fuse([camera, torch.zeros_like(lidar), radar], present("xxx", mark, "xxx")) for mark in ("xxx", "...")
    )
    assert (empty - absent).abs().amax() > 1e-3


def test_samples_do_not_see_each_other(fuse):
    there = present("xx.", ".xx", "..x")
    whole = fuse(maps(), there)
    for sample in range(3):
        alone = fuse([m[sample : sample + 1] for m in maps()], [mark[sample : sample + 1] for mark in there])
        torch.testing.assert_close(whole[sample : sample + 1], alone, atol=1e-5, rtol=1e-5)


def test_a_sample_without_any_sensor_does_not_see_the_others_either(fuse):
    beside = fuse(maps(), present("xx.", ".x.", "x.."))[2:]
    alone = fuse([None, None, None], [torch.tensor([False])] * 3)
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-5)


def test_nothing_at_all_is_finite_and_has_gradients(fuse):
    result = fuse([None, None, None], present("...", "...", "..."))
    assert result.shape == (3, 8, *GRID.shape) and result.isfinite().all()
    if result.requires_grad:
        result.sum().backward()
    result = fuse(maps(), present("x..", "x..", "x.."))
    result.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fuse.parameters())


def test_gradients_reach_every_parameter_and_every_sensor(fuse):
    inputs = [x.requires_grad_() for x in maps(size=4)]
    weight = torch.randn(4, 8, *GRID.shape)
    (fuse(inputs, present("xxx.", "xx.x", "x.xx")) * weight).sum().backward()
    for name, parameter in fuse.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().amax() > 0, name
    for map_BCYX, mark in zip(inputs, present("xxx.", "xx.x", "x.xx"), strict=True):
        assert map_BCYX.grad is not None
        amount = map_BCYX.grad.abs().amax((1, 2, 3))
        assert (amount[mark] > 0).all() and (amount[~mark] == 0).all()


def test_same_bits_in_deterministic_mode(fuse):
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            fuse.zero_grad()
            out = fuse(maps(), present("xx.", ".xx", "x.x"))
            out.square().sum().backward()
            results.append([out, *(p.grad for p in fuse.parameters())])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_bfloat16_stays_near_float32(fuse):
    there = present("xx.", ".xx", "..x")
    exact = fuse(maps(), there)
    with torch.autocast("cpu", torch.bfloat16):
        rough = fuse(maps(), there)
        rough.float().square().sum().backward()
    assert (rough - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fuse.parameters())


@pytest.mark.parametrize("inputs", [(4,), (4, 6), (4, 6, 2, 3, 5)], ids=len)
@pytest.mark.parametrize("operator", OPERATORS)
def test_any_number_of_sensors(operator, inputs):
    fuse = make(operator, inputs)
    out = fuse([torch.randn(2, count, *GRID.shape) for count in inputs], [torch.tensor([True, False])] * len(inputs))
    assert out.shape == (2, 8, *GRID.shape) and out.isfinite().all()


SYMMETRIC = [name for name in OPERATORS if name not in ("concat", "tensor")]
OF_SENSOR = re.compile(r"^(?:project|absent|words|factors|before|after|layers\.\d+)\.(\d+)(?=\.|$)")


def reorder(state: dict[str, torch.Tensor], order: list[int]) -> dict[str, torch.Tensor]:
    """The state of an operator whose sensors come in another order."""
    new = {}
    for name, tensor in state.items():
        found = OF_SENSOR.match(name)
        if found:
            tensor = state[f"{name[: found.start(1)]}{order[int(found[1])]}{name[found.end(1) :]}"]
        elif name in ("weight", "mark", "own_SC") and len(tensor) == len(order):
            tensor = tensor[order]
        elif name.startswith("gates."):
            tensor = torch.cat([tensor.chunk(len(order))[i] for i in order])
            if tensor.ndim == 4:
                tensor = torch.cat([tensor.split(INPUTS, dim=1)[i] for i in order], dim=1)
        elif ".offsets." in name or ".logits." in name:
            tensor = tensor.unflatten(0, (4, len(order), -1))[:, order].flatten(0, 2)
        new[name] = tensor
    return new


@pytest.mark.parametrize("operator", SYMMETRIC)
def test_no_sensor_is_preferred(operator):
    order, there = [2, 0, 1], present("xx.", ".xx", "x.x")
    fuse = make(operator)
    other = make(operator, tuple(INPUTS[i] for i in order), seed=2)
    if operator == "channel_exchange":  # which channels are whose
        for norms in (fuse.before, fuse.after):
            for i, norm in enumerate(norms):
                norm.weight.data[fuse.own_SC[i]] *= 0.01
        other.own_SC.copy_(fuse.own_SC[order])
    other.load_state_dict(reorder(fuse.state_dict(), order))
    expected = fuse(maps(), there)
    actual = other([maps()[i] for i in order], [there[i] for i in order])
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_shares_are_normalised_over_those_present():
    score = torch.randn(3, 8)
    weights = shares(score, present("xx.", ".x.", "xx."))
    torch.testing.assert_close(weights.sum(0)[:2], torch.ones(2, 8))
    assert (weights[1, 0] == 0).all() and (weights[:, 2] == 0).all()
    torch.testing.assert_close(weights[[0, 2], 0], score[[0, 2]].softmax(0))


@pytest.mark.parametrize("operator", OPERATORS)
def test_full_size_is_affordable(operator):
    """Parameters and multiply-adds for three sensors in 180 x 180 cells; without those of the kernels."""
    with FakeTensorMode():  # nothing is computed
        fuse = make_fusion(FusionConfig(operator=operator), (80, 64, 64), BEVGrid())
        inputs = [torch.randn(1, count, 180, 180) for count in (80, 64, 64)]
        with FlopCounterMode(display=False) as counter:
            out = fuse(inputs, [torch.ones(1, dtype=torch.bool)] * 3)
    assert out.shape == (1, 128, 180, 180)
    parameters, products = sum(p.numel() for p in fuse.parameters()), counter.get_total_flops() / 2e9
    print(f"{operator:<18}{parameters:>10,} parameters{products:>8.1f} GMAC")  # pytest -s -k affordable
    assert parameters < 1e6 and products < 32


@pytest.mark.parametrize("operator", ["cross_attention", "bottleneck", "perceiver"])
def test_channels_must_divide_among_the_heads(operator):
    with pytest.raises(ConfigError, match=r"fusion\.channels.*fusion\.operator"):
        make_fusion(FusionConfig(operator=operator, channels=6), INPUTS, GRID)


def test_a_bottleneck_needs_two_layers():
    with pytest.raises(ConfigError, match=r"fusion\.layers.*fusion\.operator"):
        make_fusion(FusionConfig(operator="bottleneck", layers=1), INPUTS, GRID)


def test_only_channel_exchange_has_a_loss_of_its_own():
    assert [name for name in OPERATORS if isinstance(make(name), Auxiliary)] == ["channel_exchange"]


@pytest.mark.parametrize("blocks", [(1,), (1, 2), (1, 1, 1)])
def test_trunk_keeps_any_size(blocks):
    trunk = Trunk(TrunkConfig(channels=8, blocks=blocks, out_channels=12), 6)
    assert trunk(torch.rand(1, 6, 7, 9)).shape == (1, 12, 7, 9)


def test_trunk_refuses_no_blocks():
    with pytest.raises(ConfigError, match=r"trunk\.blocks"):
        Trunk(TrunkConfig(blocks=()), 6)
    with pytest.raises(ConfigError, match=r"trunk\.blocks"):
        Trunk(TrunkConfig(blocks=(1, 0)), 6)
