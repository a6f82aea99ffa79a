"""Alignment: nothing moves at the start, a known shift is learned, a sensor alone stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fusion3d.bev.align import DeformableAlign, make_align
from fusion3d.bev.tokens import interpolation
from fusion3d.config import FusionConfig
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid

GRID = BEVGrid(x=(-10.0, 11.0), y=(-8.0, 9.0), resolution=1.0)
Y, X = GRID.shape
CHANNELS = {"camera": 4, "lidar": 6, "radar": 2}


def make(channels: dict[str, int] = CHANNELS, amount: float = 0.0) -> DeformableAlign:
    torch.manual_seed(0)
    align = make_align(FusionConfig(align="deformable"), channels, GRID)
    assert align is not None
    for parameter in align.parameters():
        parameter.data += amount * torch.randn_like(parameter)
    return align


def maps(size: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(size, count, Y, X) for name, count in CHANNELS.items()}


def everywhere(size: int = 3) -> dict[str, torch.Tensor]:
    return dict.fromkeys(CHANNELS, torch.ones(size, dtype=torch.bool))


def test_nothing_moves_at_the_start():
    moved = make()(maps(), everywhere())
    assert all(torch.equal(moved[name], given) for name, given in maps().items())


def test_it_is_off_by_default_and_needs_two_sensors():
    assert make_align(FusionConfig(), CHANNELS, GRID) is None
    with pytest.raises(ConfigError, match=r"fusion\.align.*lidar"):
        make_align(FusionConfig(align="deformable"), {"lidar": 4}, GRID)


def test_resampling_is_bilinear():
    align, given = make(), maps()["lidar"]
    offset = torch.empty(3, 2, Y, X)
    offset[:, 0], offset[:, 1] = 2.25, -1.5
    moved = align.resample(given, offset)
    padded = F.pad(given, (4, 4, 4, 4))
    expected = torch.zeros_like(given)
    for dy, wy in ((-2, 0.5), (-1, 0.5)):
        for dx, wx in ((2, 0.75), (3, 0.25)):
            expected += wy * wx * padded[:, :, 4 + dy : 4 + dy + Y, 4 + dx : 4 + dx + X]
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("fine", "coarse"), [(16, 4), (17, 5), (3, 1)])
def test_interpolation_is_linear_between_the_middles(fine, coarse):
    ramp = torch.arange(coarse) * 4 + 1.5  # the middles of the coarse cells, in fine ones
    expected = torch.arange(fine).float().clamp(1.5, ramp[-1].item())
    matrix = interpolation((torch.arange(fine) + 0.5) / 4 - 0.5, coarse)
    torch.testing.assert_close(matrix @ ramp, expected)
    assert (matrix.sum(1) == 1).all()


def test_no_offset_is_farther_than_the_reach():
    align = make(amount=5.0)
    seen = {name: align.enter[name](x) for name, x in maps().items()}
    offset = align.offsets("lidar", ["camera", "radar"], seen, everywhere())
    assert 3.0 < offset.abs().amax() <= 4.0


def test_a_sensor_alone_in_its_sample_is_not_moved():
    align, given = make(amount=0.5), maps()
    there = {name: torch.tensor([True, name == "lidar", True]) for name in CHANNELS}
    moved = align(given, there)
    assert torch.equal(moved["lidar"][1], given["lidar"][1])
    assert not torch.allclose(moved["lidar"][0], given["lidar"][0], atol=0.1)
    lone = align({"camera": None, "lidar": given["lidar"], "radar": None}, there)
    assert lone["camera"] is None and lone["lidar"] is given["lidar"]
    assert align(dict.fromkeys(CHANNELS), there) == dict.fromkeys(CHANNELS)


def test_a_sample_does_not_depend_on_the_others():
    align, given = make(amount=0.2), maps()
    there = {"camera": [True, True, False], "lidar": [True, False, True], "radar": [True, True, True]}
    there = {name: torch.tensor(marks) for name, marks in there.items()}
    together = align(given, there)
    noise = {name: x.masked_fill(~there[name][:, None, None, None], 1e4) for name, x in given.items()}
    for sample in range(3):
        row = slice(sample, sample + 1)
        some = {name: noise[name][row] if there[name][sample] else None for name in CHANNELS}
        alone = align(some, {name: marks[row] for name, marks in there.items()})
        for name in CHANNELS:
            if there[name][sample]:
                torch.testing.assert_close(alone[name], together[name][row], atol=1e-5, rtol=1e-5)


def test_gradients_reach_everything_and_bfloat16_is_exact_where_nothing_moves():
    align, given = make(amount=0.1), {name: x.requires_grad_() for name, x in maps().items()}
    with torch.autocast("cpu", torch.bfloat16):
        moved = align(given, everywhere())
        still = make()(given, everywhere())
    assert all(torch.equal(still[name], given[name]) for name in CHANNELS)
    torch.stack([x.float().square().sum() for x in moved.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in align.parameters())
    assert all(x.grad is not None and x.grad.isfinite().all() for x in given.values())


@pytest.mark.slow
def test_the_shift_of_each_sample_is_found_from_what_the_sensors_see():
    """LiDAR stands up to two cells beside where it should, in every sample elsewhere: a bias cannot put it back."""
    torch.manual_seed(0)
    align, size, steps = make({"camera": 4, "lidar": 4}), 16, 1200
    optimizer = torch.optim.AdamW(align.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps, pct_start=0.05)
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    there = {name: torch.ones(size, dtype=torch.bool) for name in ("camera", "lidar")}

    def scenes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        world, shift = torch.randn(size, 4, Y + 14, X + 14), torch.randint(-2, 3, (size, 2))
        for _ in range(2):
            world = 2 * F.avg_pool2d(world, 5, 1, 2)
        cut = [of[:, 7 - y : 7 - y + Y, 7 - x : 7 - x + X] for of, (x, y) in zip(world, shift.tolist(), strict=True)]
        return world[..., 7 : 7 + Y, 7 : 7 + X], torch.stack(cut), shift.float()

    for _ in range(steps):
        true, shifted, _ = scenes()
        moved = align({"camera": true, "lidar": shifted}, there)
        loss = torch.stack([F.mse_loss(of[inner], true[inner]) for of in moved.values() if of is not None]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        true, shifted, shift = scenes()
        moved = align({"camera": true, "lidar": shifted}, there)["lidar"]
        seen = {"camera": align.enter["camera"](true), "lidar": align.enter["lidar"](shifted)}
        offset = align.offsets("lidar", ["camera"], seen, there).mean((2, 3))
    assert moved is not None
    assert F.mse_loss(moved[inner], true[inner]) < 0.15 * F.mse_loss(shifted[inner], true[inner])
    assert (offset - shift).abs().mean() < 0.4 * shift.abs().mean()


def test_a_known_shift_is_learned():
    """LiDAR stands 2 cells ahead and 1 to the right of where it should: it is put back."""
    torch.manual_seed(0)
    align = make({"camera": 4, "lidar": 4})
    optimizer = torch.optim.AdamW(align.parameters(), 1e-2)
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    there = {name: torch.ones(2, dtype=torch.bool) for name in ("camera", "lidar")}

    def scene() -> tuple[torch.Tensor, torch.Tensor]:
        world = torch.randn(2, 4, Y + 14, X + 14)
        for _ in range(2):
            world = 2 * F.avg_pool2d(world, 5, 1, 2)
        return world[..., 7 : 7 + Y, 7 : 7 + X], world[..., 8 : 8 + Y, 5 : 5 + X]

    for _ in range(100):
        true, shifted = scene()
        moved = align({"camera": true, "lidar": shifted}, there)
        loss = sum(F.mse_loss(moved[name][inner], true[inner]) for name in moved)
        before = F.mse_loss(shifted[inner], true[inner])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * before, (loss.item(), before.item())
    seen = {"camera": align.enter["camera"](true), "lidar": align.enter["lidar"](shifted)}
    offset = align.offsets("lidar", ["camera"], seen, there).mean((0, 2, 3))
    torch.testing.assert_close(offset, torch.tensor([2.0, -1.0]), atol=0.3, rtol=0)
