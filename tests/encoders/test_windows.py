"""Windowed attention among pillars, against plain loops."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fusion3d.config import DenseConfig, LidarConfig, WindowConfig
from fusion3d.encoders.lidar import make_lidar
from fusion3d.encoders.windows import WindowLayer, WindowNet
from fusion3d.errors import ConfigError
from fusion3d.types import BEVGrid

sys.path.insert(0, str(Path(__file__).parent))
from encoder_cases import cloud, points

GRID = BEVGrid(x=(-8.0, 8.0), y=(-4.0, 4.0), z=(-4.0, 4.0), resolution=1.0)
CONFIG = LidarConfig(
    encoder="windows",
    channels=8,
    windows=WindowConfig(pillar=0.5, channels=16, heads=2, blocks=2, window=(6, 2)),
    dense=DenseConfig(channels=(8, 12), blocks=(1, 1)),
)


def make_net() -> WindowNet:
    torch.manual_seed(0)
    return WindowNet(CONFIG, GRID, 2).eval()


def cells(net: WindowNet, count: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    """Pillars of two samples, and their flat cells."""
    every = points(count)
    return net.pillars.pillars(every[:, :3], every[:, 3:], torch.arange(count) // (count // 2), 2)


@pytest.mark.parametrize("shifted", [False, True])
def test_partitions_are_oblong_windows_long_in_x_and_then_in_y(shifted):
    net = make_net()
    _, cell = cells(net)
    rows, cols = net.pillars.grid.shape
    assert (rows, cols) == (16, 32)
    for (high, wide), partition in zip([(2, 6), (6, 2)], net.partition(cell, 2, shifted), strict=True):
        of_window: dict[tuple[int, ...], list[int]] = {}
        for row, number in enumerate(cell.tolist()):
            b, iy, ix = number // (rows * cols), number // cols % rows, number % cols
            y, x = iy + (high // 2 if shifted else 0), ix + (wide // 2 if shifted else 0)
            of_window.setdefault((b, y // high, x // wide), []).append(row)
            assert partition.place[row] == (y % high) * wide + x % wide
        windows = partition.windows
        bounds = windows.cu_seqlens.tolist()
        found = [windows.order[i:j].tolist() for i, j in itertools.pairwise(bounds)]
        assert sorted(found) == sorted(of_window.values()) and len(found) > 20


def test_a_layer_equals_a_plain_loop_over_windows():
    net = make_net()
    layer = net.blocks[0].layers[1]
    assert isinstance(layer, WindowLayer)
    x, cell = cells(net)
    partition = net.partition(cell, 2, True)[1]
    bounds = partition.windows.cu_seqlens.tolist()
    want = torch.empty_like(x)
    with torch.no_grad():
        for i, j in itertools.pairwise(bounds):
            rows = partition.windows.order[i:j].long()
            place = partition.place[rows]
            offset = torch.stack([(place // 2 - 2.5) / 3, (place % 2 - 0.5) / 1], dim=1)  # windows of 6 x 2
            here = x[rows]
            query, key = layer.query_key(here + layer.position(offset)).chunk(2, dim=1)
            value = layer.value(here)
            heads = []
            for head in range(2):
                part = slice(8 * head, 8 * head + 8)
                weight = (query[:, part] @ key[:, part].T / 8**0.5).softmax(1)
                heads.append(weight @ value[:, part])
            here = F.layer_norm(here + layer.out(torch.cat(heads, dim=1)), (16,), *layer.norm_attention.parameters())
            want[rows] = F.layer_norm(here + layer.feed(here), (16,), *layer.norm_feed.parameters())
        torch.testing.assert_close(layer(x, partition), want, atol=1e-5, rtol=1e-5)


def test_pillars_see_along_x_and_along_y_and_across_shifted_borders():
    """A change of one point reaches what its windows reach, and no more before the dense layers."""
    net = make_net()
    line = torch.arange(-7.75, 8, 0.5)
    along_x = torch.stack([line, torch.full_like(line, 0.25)], dim=1)
    along_y = torch.stack([torch.full((16,), 0.25), torch.arange(-3.75, 4, 0.5)], dim=1)
    xy = torch.cat([along_x, along_y[torch.arange(16) != 8]])
    every = torch.cat([xy, torch.zeros(len(xy), 3)], dim=1)

    def run(every):
        sample = torch.zeros(len(every), dtype=torch.int64)
        x, cell = net.pillars.pillars(every[:, :3], every[:, 3:], sample, 1)
        partition = net.partition(cell, 1, False)
        with torch.no_grad():
            return cell, net.blocks[0].layers[0](x, partition[0]), net.blocks[0](x, partition)

    changed = every.clone()
    changed[16, 3] = 1.0  # at x 0.25, y 0.25: column 16, row 8 of the pillars
    (cell, wide, block), (_, wide_changed, block_changed) = run(every), run(changed)
    differs = ((wide - wide_changed).abs() > 1e-6).any(1)
    assert sorted((cell[differs] % 32).tolist()) == [12, 13, 14, 15, 16, 16, 17]  # with its neighbour in row 9
    assert set((cell[differs] // 32).tolist()) == {8, 9}
    differs = ((block - block_changed).abs() > 1e-6).any(1)
    assert set((cell[differs] // 32).tolist()) == {6, 7, 8, 9, 10, 11}


def test_order_of_points_does_not_matter_nor_do_other_samples():
    encoder = make_lidar(CONFIG, GRID).eval()
    mine, others = points(300), points(200, seed=1)
    mine[0, 0] = float("nan")
    with torch.no_grad():
        alone, shuffled = (encoder(cloud(p)) for p in (mine, mine[torch.randperm(300)]))
        among = encoder(cloud(torch.cat([others, mine]), [0] * 200 + [2] * 300, (True, False, True)))
    assert alone is not None and among is not None and alone.isfinite().all()
    torch.testing.assert_close(alone, shuffled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(among[2:], alone, atol=1e-5, rtol=1e-5)
    assert not among[1].any() and among[0].any()


@pytest.mark.parametrize("count", [0, 1, 400])
def test_clouds_of_any_size_train(count):
    torch.manual_seed(0)
    encoder = make_lidar(CONFIG, GRID).train()
    result = encoder(cloud(points(400)[:count] * 0.5))
    assert result is not None and result.shape == (1, 8, 8, 16) and result.isfinite().all()
    (result * torch.randn_like(result)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    if count > 1:
        assert all(p.grad.any() for p in encoder.parameters() if p.grad is not None)


def test_bfloat16_stays_near():
    encoder = make_lidar(CONFIG, GRID).eval()
    every = cloud(points(500))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = encoder(every)
    exact = encoder(every)
    assert rough is not None and (rough.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_settings_that_do_not_fit_are_refused_with_both_keys():
    cases = {
        r"lidar\.windows\.pillar.*grid\.resolution": {"pillar": 0.3},
        r"lidar\.windows\.pillar: 2.*grid\.resolution": {"pillar": 2.0},
        r"lidar\.windows\.channels.*lidar\.windows\.heads": {"heads": 3},
    }
    for message, change in cases.items():
        with pytest.raises(ConfigError, match=message):
            make_lidar(dataclasses.replace(CONFIG, windows=dataclasses.replace(CONFIG.windows, **change)), GRID)
