"""Map head: its loss against loops, other grids against grid_sample, what is not known, and learning."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from fusion3d.config import Config, MapConfig
from fusion3d.engine.random_batch import random_batch
from fusion3d.errors import ConfigError
from fusion3d.heads.map import MapHead, Resample
from fusion3d.types import MAP_CLASSES, Batch, BEVGrid

GRID = BEVGrid(x=(-16.0, 16.0), y=(-12.8, 12.8), resolution=0.8)
FINE = BEVGrid(x=(-10.0, 14.0), y=(-12.5, 8.0), resolution=0.5)


def make_head(grid: BEVGrid | None = None, **settings) -> MapHead:
    torch.manual_seed(0)
    return MapHead(MapConfig(grid=grid, channels=16, **settings), 8, GRID)


def make_batch(size: int = 2, grid: BEVGrid | None = None) -> Batch:
    return random_batch(dataclasses.replace(Config(), grid=GRID, map=MapConfig(grid=grid)), size, 0, 0, 1)


def slow_loss(logits: torch.Tensor, batch: Batch) -> float:
    """Classes summed; of each the mean over the cells of the samples that know it."""
    assert batch.map_mask is not None and batch.map_known is not None
    total = 0.0
    for number in range(len(MAP_CLASSES)):
        terms = []
        for sample in range(len(batch)):
            if batch.map_known[sample, number]:
                for logit, true in zip(
                    logits[sample, number].flatten().tolist(),
                    batch.map_mask[sample, number].flatten().tolist(),
                    strict=True,
                ):
                    p = 1 / (1 + math.exp(-logit))
                    p = p if true else 1 - p
                    terms.append(-((1 - p) ** 2) * math.log(p))
        total += sum(terms) / len(terms) if terms else 0.0
    return total


def test_the_loss_is_that_of_a_loop_over_known_cells():
    batch, head = make_batch(), make_head(loss_weight=3.0)
    known = torch.tensor([[True, True, False, False, True, True], [True, False, True, False, False, True]])
    batch = dataclasses.replace(batch, map_known=known)
    logits = (4 * torch.randn(2, len(MAP_CLASSES), *GRID.shape)).requires_grad_()
    loss = head.losses(logits, batch)["map"]
    assert loss.item() == pytest.approx(3 * slow_loss(logits, batch), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.flatten(2).any(2), known)  # what is not known teaches nothing


def test_extreme_logits_have_finite_losses_and_gradients():
    batch, head = make_batch(), make_head()
    for value in (-1e4, 1e4):
        logits = torch.full((2, len(MAP_CLASSES), *GRID.shape), value, requires_grad=True)
        loss = head.losses(logits, batch)["map"]
        loss.backward()
        assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("change", [{"map_mask": None, "map_known": None}, {"map_known": torch.zeros(2, 6).bool()}])
def test_no_map_is_a_zero_in_the_graph(change):
    head, batch = make_head(FINE), dataclasses.replace(make_batch(2, FINE), **change)
    loss = head.losses(head(torch.rand(2, 8, *GRID.shape)), batch)["map"]
    loss.backward()
    assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_a_map_of_another_grid_is_refused():
    head = make_head(FINE)
    with pytest.raises(ValueError, match=r"map_mask has shape \[2, 6, 32, 40\].*\[2, 6, 41, 48\].*map_grid"):
        head.losses(head(torch.rand(2, 8, *GRID.shape)), make_batch())


@pytest.mark.parametrize(
    "target",
    [FINE, dataclasses.replace(GRID, resolution=0.2), BEVGrid(x=(-8.0, 8.0), y=(0.0, 8.0), resolution=2.0)],
)
def test_resampling_is_that_of_grid_sample(target):
    """Also at the edge; and a map of positions gives the positions of the new centres."""
    bev = torch.randn(2, 3, *GRID.shape, requires_grad=True)
    found = Resample(GRID, target)(bev)
    low, size = torch.tensor([GRID.x[0], GRID.y[0]]), torch.tensor([32.0, 25.6])
    at = (2 * (target.centers() - low) / size - 1).expand(2, -1, -1, -1)
    expected = F.grid_sample(bev, at, padding_mode="border", align_corners=False)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    weight = torch.randn_like(found)
    grads = [torch.autograd.grad((of * weight).sum(), bev)[0] for of in (found, expected)]
    torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-3)
    places = Resample(GRID, target)(GRID.centers().permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    inside = (target.centers()[..., 0].abs() < 15.6) & (target.centers()[..., 1].abs() < 12.4)
    torch.testing.assert_close(places[inside], target.centers()[inside], atol=1e-4, rtol=0)


def test_a_grid_beyond_the_models_is_refused_with_both_keys():
    with pytest.raises(ConfigError, match=r"map\.grid\.y: expected to lie in grid\.y \(-12\.8, 12\.8\)"):
        make_head(BEVGrid(x=(-10.0, 10.0), y=(-13.0, 10.0), resolution=0.5))


def test_a_sample_does_not_depend_on_its_neighbours():
    head, bev = make_head(FINE), torch.randn(3, 8, *GRID.shape)
    together = head(bev)
    for sample in range(3):
        torch.testing.assert_close(head(bev[sample : sample + 1])[0], together[sample], atol=1e-5, rtol=1e-5)


def test_what_it_says_at_first_is_unlikely_and_a_probability():
    head = make_head(FINE)
    said = head.decode(head(torch.randn(2, 8, *GRID.shape)).bfloat16())
    assert said.shape == (2, len(MAP_CLASSES), *FINE.shape) and said.dtype == torch.float32
    assert 0 < said.min() and said.max() < 0.5 and not said.requires_grad


def test_it_learns_two_maps_by_heart():
    """From features that hold them, mixed and noisy."""
    head, batch = make_head(), make_batch()
    assert batch.map_mask is not None
    bev = torch.einsum("cn,bnyx->bcyx", torch.randn(8, len(MAP_CLASSES)), batch.map_mask.float())
    bev = bev + 0.3 * torch.randn_like(bev)
    optimizer = torch.optim.AdamW(head.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        head.losses(head(bev), batch)["map"].backward()
        optimizer.step()
    said = head.decode(head(bev)) >= 0.5
    iou = (said & batch.map_mask).sum((0, 2, 3)) / (said | batch.map_mask).sum((0, 2, 3))
    assert iou.min() > 0.8 and iou.mean() > 0.9


def test_bfloat16_stays_near_float32():
    head, batch, bev = make_head(FINE), make_batch(2, FINE), torch.randn(2, 8, *GRID.shape)
    exact = head.losses(head(bev), batch)["map"]
    with torch.autocast("cpu", torch.bfloat16):
        rough = head.losses(head(bev), batch)["map"]
    assert rough.dtype == torch.float32 and rough.item() == pytest.approx(exact.item(), rel=0.03)
