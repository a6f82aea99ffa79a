"""What detection heads share: targets, peaks, and loss terms that are what the formula says."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch

from fusion3d.config import DetectionConfig
from fusion3d.heads.detection import box_losses, heatmap_loss, top_peaks, weigh
from fusion3d.heads.targets import by_class, draw_heatmap, encode_boxes, gaussian_radius
from fusion3d.types import DETECTION_CLASSES, Boxes

sys.path.insert(0, str(Path(__file__).parent))
from known import BARRIER, CAR, CONE, GRID, PARTS, PEDESTRIAN, perfect_maps, some_boxes


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
    targets = encode_boxes((boxes,), GRID, {"pedestrian": 4, "car": 1})
    rows, cols = GRID.shape
    expected = torch.zeros(len(DETECTION_CLASSES), rows, cols)
    for i in range(len(boxes)):
        length, width = (boxes.size[i, :2] / GRID.resolution).tolist()
        least = {CAR: 1, PEDESTRIAN: 4}.get(int(boxes.label[i]), 2)
        radius = max(least, int(gaussian_radius(torch.tensor(length), torch.tensor(width))))
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


def perfect_rows(boxes: Boxes) -> dict[str, torch.Tensor]:
    """What the cells of the boxes say in perfect maps, attributes with certainty."""
    maps, cell = perfect_maps((boxes,)), encode_boxes((boxes,), GRID).cell
    said = {name: getattr(maps, name)[0, 0].flatten(1)[:, cell].T for name in PARTS}
    return said | {"yaw": said["yaw"] / 1.7, "attribute": said["attribute"] * 10}


def test_perfect_maps_cost_nothing_and_unknowns_are_masked():
    boxes = some_boxes(0)
    assert boxes.velocity.isnan().any() and (boxes.attribute < 0).any()
    targets = encode_boxes((boxes,), GRID)
    said = perfect_rows(boxes)
    assert all(value.item() < 1e-5 for value in box_losses(said, targets).values())
    wrong = said | {"velocity": said["velocity"] + 1}
    torch.testing.assert_close(box_losses(wrong, targets)["velocity"], torch.tensor(2.0))  # 1 + 1 m/s on those known


def test_a_barrier_may_be_turned_by_half_and_a_cone_by_anything():
    def loss(label: int) -> float:
        boxes = some_boxes(0)
        boxes = boxes[boxes.label == label]
        said = perfect_rows(boxes)
        return box_losses(said | {"yaw": -said["yaw"]}, encode_boxes((boxes,), GRID))["yaw"].item()

    assert loss(BARRIER) < 1e-5 and loss(CONE) == 0 and loss(CAR) > 1


def test_drawing_nothing():
    empty = torch.zeros(0, dtype=torch.int64)
    assert draw_heatmap(2, empty, empty, empty, torch.zeros(0, 3), torch.zeros(0), (4, 5)).shape == (2, 10, 4, 5)


def test_groups_are_averaged_each_over_its_own_objects():
    boxes = (some_boxes(0, 25), some_boxes(1, 12))
    targets, counts = encode_boxes(boxes, GRID), torch.tensor([True, True])
    member = torch.zeros(10, 3).index_put((torch.arange(10), torch.arange(10) % 3), torch.tensor(1.0))
    torch.manual_seed(0)
    logits = torch.randn(2, 10, *GRID.shape)
    said = {name: torch.randn(len(targets.cell), width) for name, width in PARTS.items()}
    terms, heatmap = box_losses(said, targets, member), torch.tensor(0.0)
    sums = dict.fromkeys(terms, torch.tensor(0.0))
    for group in range(3):
        own = targets.label % 3 == group
        few = encode_boxes(tuple(b[b.label % 3 == group] for b in boxes), GRID)
        rows = {name: value[own] for name, value in said.items()}
        sums = {name: sums[name] + value for name, value in box_losses(rows, few).items()}
        others = torch.arange(10) % 3 != group
        heatmap = heatmap + heatmap_loss(logits.masked_fill(others[:, None, None], -1e9), few, counts)
    for name, value in terms.items():
        torch.testing.assert_close(value, sums[name])
    torch.testing.assert_close(heatmap_loss(logits, targets, counts, member), heatmap)


def test_weights_go_by_name():
    config = DetectionConfig(loss_weight=2.0, regression_weight=0.5, velocity_weight=0.2, code_weights={"yaw": 3.0})
    terms = weigh({"heatmap": torch.tensor(1.0)}, {name: torch.tensor(1.0) for name in PARTS}, config)
    assert {name: round(value.item(), 6) for name, value in terms.items()} == {
        "heatmap": 2.0, "offset": 1.0, "height": 1.0, "size": 1.0, "yaw": 3.0, "velocity": 0.2, "attribute": 1.0
    }  # fmt: skip


def test_peaks_equal_a_loop_and_ties_go_by_index():
    torch.manual_seed(0)
    logits = torch.randint(-3, 4, (2, 10, 6, 7)).float()  # full of ties
    logits[1] += torch.rand(10, 6, 7)
    logits[0, 3, 2, 2] = torch.nan
    found = top_peaks(logits, 100, torch.tensor([name in ("pedestrian", "traffic_cone") for name in DETECTION_CLASSES]))
    for sample in range(2):
        peaks = []
        for label, (row, col) in ((n, divmod(i, 7)) for n in range(10) for i in range(42)):
            near = logits[sample, label, max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2]
            value = logits[sample, label, row, col]
            if DETECTION_CLASSES[label] in ("pedestrian", "traffic_cone") or (value >= near).all():
                peaks.append((-value.sigmoid().item(), label, row * 7 + col))
        best = sorted(peaks)[:100]
        assert len(best) == 100
        assert list(zip(found.label[sample].tolist(), found.cell[sample].tolist(), strict=True)) == [
            p[1:] for p in best
        ]
        torch.testing.assert_close(found.score[sample], -torch.tensor([p[0] for p in best]))


def test_fewer_peaks_than_asked_for_score_nothing():
    found = top_peaks(torch.zeros(1, 10, 4, 4).index_fill(1, torch.tensor([2]), 1.0), 1000)
    assert found.score.shape == (1, 160) and found.label[0, :16].eq(2).all()
    found = top_peaks(torch.arange(160.0).view(1, 10, 4, 4), 20)
    assert (found.score > 0).sum() == 10 and found.cell[0, :10].eq(15).all()


def test_a_value_for_each_class():
    values = by_class({name: float(i) for i, name in enumerate(DETECTION_CLASSES)}, {"pedestrian": 0.5})
    assert values == [0.5 if name == "pedestrian" else i for i, name in enumerate(DETECTION_CLASSES)]
    assert by_class(3, {"car": 1}) == [1] + [3] * 9
