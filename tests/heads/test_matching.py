"""Matching: the assignment against all permutations, overlap and costs against formulas by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fusion3d.heads.matching import assign, box_overlap, matching_cost, pair_up, sigmoid_focal_loss
from fusion3d.types import BEVGrid, Boxes


@pytest.mark.parametrize(("queries", "count"), [(5, 3), (4, 4), (3, 5), (6, 0), (1, 1)])
def test_the_assignment_is_the_cheapest_of_all(queries, count):
    for seed in range(5):
        cost = np.random.default_rng(seed).normal(size=(queries, count))
        rows, cols = assign(cost)
        assert len(rows) == min(queries, count) == len(set(rows)) == len(set(cols))
        if queries >= count:
            every = (
                sum(cost[q, k] for k, q in enumerate(chosen))
                for chosen in itertools.permutations(range(queries), count)
            )
        else:
            every = (
                sum(cost[q, k] for q, k in enumerate(chosen))
                for chosen in itertools.permutations(range(count), queries)
            )
        assert cost[rows, cols].sum() == pytest.approx(min(every))


def test_pairs_know_their_layer_sample_and_box():
    torch.manual_seed(0)
    costs = [torch.randn(2, 4, count) for count in (3, 0, 5)]
    pairs = pair_up(costs)
    rows = list(zip(*(part.tolist() for part in (pairs.sample, pairs.layer, pairs.query, pairs.box)), strict=True))
    expected, first = [], 0
    for sample, cost in enumerate(costs):
        for layer in range(2):
            expected += [(sample, layer, q, k + first) for q, k in zip(*assign(cost[layer].numpy()), strict=True)]
        first += cost.shape[2]
    assert rows == expected and len(rows) == 2 * (3 + 4)


def upright(rows: list[list[float]]) -> Boxes:
    values = torch.tensor(rows)
    return Boxes.of(values[:, :3], values[:, 3:6], values[:, 6])


def test_overlap_by_hand():
    a = upright([[0, 0, 0, 4, 2, 2, 0]])
    b = upright(
        [
            [0, 0, 0, 4, 2, 2, math.pi],  # the same
            [2, 0, 1, 4, 2, 2, 0],  # half of the area, half of the height
            [0, 0, 0, 4, 2, 2, math.pi / 2],  # crossed: 2 x 2 of 4 x 2
            [0, 0, 2.5, 4, 2, 2, 0],  # above
            [9, 0, 0, 4, 2, 2, 0],
            [0, 0, 0.5, 2, 1, 1, 0],  # inside
        ]
    )
    expected = torch.tensor([[1, 1 / 7, 8 / 24, 0, 0, 2 / 16]])
    torch.testing.assert_close(box_overlap(a, b), expected)
    torch.testing.assert_close(box_overlap(b, a), expected.T)


def test_focal_loss_by_hand():
    logits = torch.randn(50, dtype=torch.float64)
    p = logits.sigmoid()
    torch.testing.assert_close(sigmoid_focal_loss(logits, torch.ones(50)), -0.25 * (1 - p) ** 2 * p.log())
    torch.testing.assert_close(sigmoid_focal_loss(logits, torch.zeros(50)), -0.75 * p**2 * (1 - p).log())
    assert sigmoid_focal_loss(torch.tensor([1e4, -1e4]), torch.tensor([0.0, 1.0])).isfinite().all()


def test_cost_by_hand_and_nothing_that_is_not_a_number():
    grid = BEVGrid(x=(-20.0, 20.0), y=(-10.0, 10.0), resolution=1.0)
    boxes = upright([[0, 0, 0, 4, 2, 2, 0], [math.nan] * 7])
    truth = Boxes.of(torch.tensor([[2.0, 0.0, 0.0], [4.0, 5.0, 0.0]]), boxes.size[:1].repeat(2, 1), torch.zeros(2))
    truth.label.copy_(torch.tensor([3, 0]))
    logits = torch.zeros(2, 10)
    logits[:, 3] = 2.0
    cost = matching_cost(logits, boxes, truth, grid)

    def focal(p: float) -> float:
        return -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)

    p = 1 / (1 + math.exp(-2))
    assert cost[0, 0].item() == pytest.approx(0.15 * focal(p) + 0.25 * 2 / 40 - 0.25 * 8 / 24, abs=1e-6)
    assert cost[0, 1].item() == pytest.approx(0.15 * focal(0.5) + 0.25 * (4 / 40 + 5 / 20), abs=1e-6)
    assert cost.isfinite().all() and (cost[1] > 1e5).all()
    assign(cost.numpy())
