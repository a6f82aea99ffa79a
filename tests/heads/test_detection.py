"""Detection: targets and decoding are each other's inverse, and every loss term is what the formula says."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fusion3d.config import Config, DetectionConfig
from fusion3d.engine.random_batch import random_batch
from fusion3d.geometry import wrap_angle
from fusion3d.heads.detection import DetectionHead, DetectionMaps, box_losses, heatmap_loss
from fusion3d.heads.targets import allowed_attributes, draw_heatmap, encode_boxes, gaussian_radius
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, BEVGrid, Boxes

GRID = BEVGrid(x=(-32.0, 32.0), y=(-24.0, 24.0), resolution=0.8)
CAR, PEDESTRIAN, CONE, BARRIER = (
    DETECTION_CLASSES.index(name) for name in ("car", "pedestrian", "traffic_cone", "barrier")
)


def some_boxes(seed: int, count: int = 30) -> Boxes:
    config = dataclasses.replace(Config(), grid=GRID)
    boxes = random_batch(config, 1, 0, 0, count, seed).boxes
    assert boxes is not None
    return boxes[0]


def perfect_maps(boxes: tuple[Boxes, ...]) -> DetectionMaps:
    """Maps of a head that knows the answer."""
    targets = encode_boxes(boxes, GRID)
    rows, cols = GRID.shape

    def paint(values: torch.Tensor) -> torch.Tensor:
        painted = torch.zeros(len(boxes), values.shape[1], rows * cols)
        painted[targets.sample, :, targets.cell] = values
        return painted.view(len(boxes), -1, rows, cols)

    attribute = torch.zeros(len(targets.cell), len(ATTRIBUTES))
    known = targets.attribute >= 0
    attribute[known, targets.attribute[known]] = 5.0
    return DetectionMaps(
        heatmap=torch.logit(targets.heatmap.clamp(1e-4, 1 - 1e-4)),
        offset=paint(targets.offset),
        height=paint(targets.height),
        size=paint(targets.size),
        yaw=paint(targets.yaw * 1.7),  # only the direction counts
        velocity=paint(targets.velocity.nan_to_num()),
        attribute=paint(attribute),
    )


@pytest.mark.parametrize("nms", ["circle", "rotated", "none"])
def test_decoding_the_targets_gives_the_boxes_back(nms):
    truth = (some_boxes(0), Boxes.empty(), some_boxes(1, 45))
    head = DetectionHead(DetectionConfig(nms=nms, score_threshold=0.9), 4, GRID)
    found = head.decode(perfect_maps(truth))
    assert [len(b) for b in found] == [30, 0, 45]
    for said, true in zip(found, truth, strict=True):
        if not len(true):
            continue
        distance = torch.cdist(said.center, true.center) + 100 * (said.label[:, None] != true.label[None])
        nearest = distance.argmin(1)
        assert sorted(nearest.tolist()) == list(range(len(true)))
        true = true[nearest]
        torch.testing.assert_close(said.center, true.center, atol=1e-3, rtol=0)
        torch.testing.assert_close(said.size, true.size, atol=1e-3, rtol=0)
        torch.testing.assert_close(wrap_angle(said.yaw - true.yaw), torch.zeros(len(true)), atol=1e-3, rtol=0)
        known = true.velocity.isfinite().all(1)
        torch.testing.assert_close(said.velocity[known], true.velocity[known], atol=1e-3, rtol=0)
        known = true.attribute >= 0
        assert torch.equal(said.attribute[known], true.attribute[known])
        assert (said.score > 0.99).all() and (said.num_points == -1).all()


def test_radius_is_that_of_the_published_recipe():
    """At 0.6 m: car 2, bus 3, trailer 3; a pedestrian's is below the smallest radius used."""
    size = torch.tensor([[4.6, 1.95], [11.2, 2.95], [12.3, 2.9], [0.73, 0.67]]) / 0.6
    radius = gaussian_radius(size[:, 0], size[:, 1])
    assert radius.floor().tolist() == [2, 3, 3, 0]
    # Each case is a root of its quadratic; the one for a car is 4 o r^2 + 2 o (l + w) r = (1 - o) l w over 2.
    length, width = size[0].tolist()
    a, b, c = 0.4, -0.2 * (length + width), -0.9 * length * width
    assert radius[0].item() == pytest.approx((b + math.sqrt(b * b - 4 * a * c)) / 2, rel=1e-5)


def test_heatmap_equals_a_loop():
    boxes = some_boxes(3)
    # Two of a class next to each other, and one in the corner.
    center = boxes.center.clone()
    center[10] = center[0] + torch.tensor([1.7, 0.9, 0.0])
    center[20] = torch.tensor([-31.9, 23.9, 0.5])
    boxes = dataclasses.replace(boxes, center=center)
    targets = encode_boxes((boxes,), GRID)
    rows, cols = GRID.shape
    expected = torch.zeros(len(DETECTION_CLASSES), rows, cols)
    for i in range(len(boxes)):
        length, width = (boxes.size[i, :2] / GRID.resolution).tolist()
        radius = max(2, int(gaussian_radius(torch.tensor(length), torch.tensor(width))))
        cx, cy = math.floor((center[i, 0] + 32) / 0.8), math.floor((center[i, 1] + 24) / 0.8)
        for y in range(max(cy - radius, 0), min(cy + radius + 1, rows)):
            for x in range(max(cx - radius, 0), min(cx + radius + 1, cols)):
                value = math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * ((2 * radius + 1) / 6) ** 2))
                expected[boxes.label[i], y, x] = max(expected[boxes.label[i], y, x].item(), value)
    torch.testing.assert_close(targets.heatmap[0], expected)
    assert (targets.heatmap == 1).sum() == len(boxes)


def test_boxes_outside_of_the_grid_are_not_asked_for():
    boxes = some_boxes(0, 6)
    center = boxes.center.clone()
    center[0, 0] = 32.0  # the far edge is already outside
    center[1, 2] = 3.1
    boxes = dataclasses.replace(boxes, center=center)
    assert encode_boxes((boxes,), GRID).label.tolist() == boxes.label[2:].tolist()
    assert encode_boxes((Boxes.empty(),), GRID).heatmap.sum() == 0


def test_focal_loss_by_hand():
    targets = encode_boxes((some_boxes(0, 1), some_boxes(1, 1)), GRID)
    logits = torch.randn(2, 10, *GRID.shape, dtype=torch.float64)
    p, y = logits.sigmoid(), targets.heatmap
    each = torch.where(y == 1, -((1 - p) ** 2) * p.log(), -((1 - y) ** 4) * p**2 * (1 - p).log())
    both, none = torch.tensor([True, True]), torch.tensor([False, False])
    torch.testing.assert_close(heatmap_loss(logits, targets, both), each.sum() / 2, check_dtype=False)
    only = heatmap_loss(logits, targets, torch.tensor([True, False]))
    torch.testing.assert_close(only, each[0].sum(), check_dtype=False)  # one object
    assert heatmap_loss(logits * 1e4, targets, none) == 0
    extreme = heatmap_loss((logits * 1e4).float().requires_grad_(), targets, both)
    assert extreme.isfinite()


def test_perfect_maps_cost_nothing_and_unknowns_are_masked():
    boxes = some_boxes(0)
    assert boxes.velocity.isnan().any() and (boxes.attribute < 0).any()
    maps = perfect_maps((boxes,))
    maps = dataclasses.replace(maps, yaw=maps.yaw / 1.7, attribute=maps.attribute * 10)
    targets = encode_boxes((boxes,), GRID)
    assert all(value.item() < 1e-5 for value in box_losses(maps, targets).values())
    wrong = dataclasses.replace(maps, velocity=maps.velocity + 1)
    torch.testing.assert_close(box_losses(wrong, targets)["velocity"], torch.tensor(2.0))  # 1 + 1 m/s on those known


def test_a_barrier_may_be_turned_by_half_and_a_cone_by_anything():
    boxes = some_boxes(0)
    maps = perfect_maps((boxes,))
    turned = dataclasses.replace(maps, yaw=-maps.yaw / 1.7)

    def loss(label: int) -> float:
        targets = encode_boxes((boxes[boxes.label == label],), GRID)
        return box_losses(turned, targets)["yaw"].item()

    assert loss(BARRIER) < 1e-5 and loss(CONE) == 0 and loss(CAR) > 1


def test_attributes_fit_their_class_whatever_the_logits():
    torch.manual_seed(0)
    head = DetectionHead(DetectionConfig(score_threshold=0.0), 4, GRID)
    shapes = {"heatmap": 10, "offset": 2, "height": 1, "size": 3, "yaw": 2, "velocity": 2, "attribute": 8}
    maps = DetectionMaps(**{name: torch.randn(1, count, *GRID.shape) for name, count in shapes.items()})
    boxes = head.decode(maps)[0]
    assert len(boxes) == 300 and boxes.score.diff().le(0).all()
    none = (boxes.label == CONE) | (boxes.label == BARRIER)
    assert none.any() and (boxes.attribute[none] == -1).all()
    assert allowed_attributes()[boxes.label[~none], boxes.attribute[~none]].all()
    assert (
        ATTRIBUTES[7] == "pedestrian.moving" and allowed_attributes()[PEDESTRIAN].tolist() == [False] * 5 + [True] * 3
    )


def test_circle_suppression_keeps_the_better_of_two_close_cars():
    head = DetectionHead(DetectionConfig(score_threshold=0.5), 4, GRID)
    center = torch.tensor([[4.1, 0.4, 0.9], [5.7, 0.4, 0.9], [8.2, 0.4, 0.9], [5.7, 2.0, 0.9]])
    boxes = Boxes.of(center, torch.tensor([[4.6, 1.95, 1.75]]).repeat(4, 1), torch.zeros(4), torch.zeros(4, 2))
    maps = perfect_maps((dataclasses.replace(boxes, label=torch.tensor([CAR, CAR, CAR, PEDESTRIAN])),))
    scores = maps.heatmap.clone()
    cell = encode_boxes((boxes,), GRID).cell
    scores[0, CAR].view(-1)[cell[:3]] = torch.tensor([2.0, 3.0, 1.0])
    found = head.decode(dataclasses.replace(maps, heatmap=scores))[0]
    # 1.6 m from the best: gone. 2.5 m: stays. A pedestrian of another class: stays.
    cars = found[found.label == CAR].center[:, 0]
    torch.testing.assert_close(cars, torch.tensor([5.7, 8.2]), atol=1e-3, rtol=0)
    assert (found.label == PEDESTRIAN).sum() == 1


def test_no_annotation_is_a_zero_that_reaches_every_parameter():
    config = dataclasses.replace(Config(), grid=GRID)
    batch = random_batch(config, 2, 0, 0, 3)
    head = DetectionHead(DetectionConfig(channels=8), 4, GRID)
    maps = head(torch.rand(2, 4, *GRID.shape), batch)
    for unannotated in (
        dataclasses.replace(batch, boxes=None, annotated=torch.zeros(2, dtype=torch.bool)),
        dataclasses.replace(batch, boxes=(Boxes.empty(),) * 2, annotated=torch.zeros(2, dtype=torch.bool)),
    ):
        head.zero_grad()
        losses = head.losses(maps, unannotated)
        total = torch.stack(list(losses.values())).sum()
        assert total == 0
        total.backward(retain_graph=True)
        assert all(p.grad is not None and (p.grad == 0).all() for p in head.parameters())


def test_drawing_nothing():
    empty = torch.zeros(0, dtype=torch.int64)
    assert draw_heatmap(2, empty, empty, empty, torch.zeros(0, 3), (4, 5)).shape == (2, 10, 4, 5)
