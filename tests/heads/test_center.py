"""The center head: decoding undoes encoding, one group is what it always was, six groups are six heads."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fusion3d.config import DetectionConfig
from fusion3d.heads.center import GROUPS, CenterHead, DetectionMaps
from fusion3d.heads.detection import focal_loss
from fusion3d.heads.targets import allowed_attributes, encode_boxes, usual_sizes
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, Batch, Boxes

sys.path.insert(0, str(Path(__file__).parent))
from known import (
    BARRIER,
    CAR,
    CONE,
    GRID,
    PARTS,
    PEDESTRIAN,
    SMALL,
    assert_found,
    overfit,
    perfect_maps,
    some_batch,
    some_boxes,
)


def make_head(tasks: str = "one", inputs: int = 6, **settings) -> CenterHead:
    torch.manual_seed(0)
    return CenterHead(DetectionConfig(tasks=tasks, channels=8, **settings), inputs, SMALL)  # type: ignore[arg-type]


def noise(batch: Batch, inputs: int = 6) -> torch.Tensor:
    return torch.randn(len(batch), inputs, *SMALL.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tasks", ["one", "six"])
@pytest.mark.parametrize("nms", ["circle", "rotated", "none"])
def test_decoding_the_targets_gives_the_boxes_back(nms, tasks):
    truth = (some_boxes(0), Boxes.empty(), some_boxes(1, 45))
    head = CenterHead(DetectionConfig(nms=nms, tasks=tasks, score_threshold=0.9), 4, GRID)
    assert_found(head.decode(perfect_maps(truth, tasks)), truth)


def plain_forward(weights: dict[str, torch.Tensor], map_BCYX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The head as it was before there were groups: two branches, each a convolution, a norm and a 1x1 convolution."""
    outputs = []
    for name in ("heatmap", "box"):
        x = F.conv2d(map_BCYX, weights[f"{name}.0.0.weight"], padding=1)
        x = F.group_norm(x, 1, weights[f"{name}.0.1.weight"], weights[f"{name}.0.1.bias"]).relu()
        outputs.append(F.conv2d(x, weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]))
    return outputs[0], outputs[1]


def test_one_group_says_and_costs_what_the_head_without_groups_did():
    head, batch = make_head(), some_batch()
    assert batch.boxes is not None
    maps = head(noise(batch), batch)
    weights = {name.removeprefix("tasks.0."): value for name, value in head.state_dict().items()}
    assert len(weights) == 10
    heatmap, box = plain_forward(weights, noise(batch))
    torch.testing.assert_close(maps.heatmap, heatmap)
    parts = dict(zip(PARTS, box.split(list(PARTS.values()), dim=1), strict=True))
    for name, value in parts.items():
        torch.testing.assert_close(getattr(maps, name)[:, 0], value)
    losses, targets = head.losses(maps, batch), encode_boxes(batch.boxes, SMALL)
    torch.testing.assert_close(losses["heatmap"], focal_loss(heatmap, targets.heatmap).sum() / 20)
    at = {name: value.flatten(2).transpose(1, 2)[targets.sample, targets.cell] for name, value in parts.items()}
    torch.testing.assert_close(losses["size"], 0.25 * (at["size"] - targets.size).abs().sum() / 20)
    known = targets.velocity.isfinite().all(1)
    speed = (at["velocity"][known] - targets.velocity[known]).abs().sum() / known.sum()
    torch.testing.assert_close(losses["velocity"], 0.25 * 0.2 * speed)


def test_decoding_equals_a_loop_over_peaks():
    head, batch = make_head(score_threshold=0.1, max_boxes=60), some_batch()
    shapes = {"heatmap": (2, 10), **{name: (2, 1, width) for name, width in PARTS.items()}}
    torch.manual_seed(0)
    maps = DetectionMaps(**{name: torch.randn(*shape, *SMALL.shape) for name, shape in shapes.items()})
    radius = head.select.threshold
    for sample, found in enumerate(head.decode(maps)):
        heat, kept = maps.heatmap[sample], []
        pooled = F.max_pool2d(heat[None], 3, 1, 1)[0]
        order = torch.where(heat == pooled, heat.sigmoid(), 0).flatten().argsort(descending=True, stable=True)
        for index in order.tolist():
            label, row, col = index // (16 * 24), index // 24 % 16, index % 24
            score = heat[label, row, col].sigmoid()
            if score <= 0.1 or heat[label, row, col] != pooled[label, row, col] or len(kept) == 60:
                continue
            said = {name: getattr(maps, name)[sample, 0, :, row, col] for name in PARTS}
            xy = torch.tensor([-9.6 + 0.8 * (col + said["offset"][0]), -6.4 + 0.8 * (row + said["offset"][1])])
            if all(n != label or torch.dist(xy, c) >= radius[label] for n, c, *_ in kept):
                size = usual_sizes()[label] * said["size"].clamp(-2.5, 2.5).exp()
                kept.append((label, xy, score, size, torch.atan2(*said["yaw"])))
        assert found.label.tolist() == [label for label, *_ in kept]
        for column, value in ((1, found.center[:, :2]), (2, found.score), (3, found.size), (4, found.yaw)):
            torch.testing.assert_close(value, torch.stack([row[column] for row in kept]), atol=1e-5, rtol=1e-5)
    assert batch.boxes is not None


def test_groups_hold_every_class_once():
    for groups in GROUPS.values():
        assert sorted(name for group in groups for name in group) == sorted(DETECTION_CLASSES)
    shared = {frozenset(group) for group in GROUPS["six"] if len(group) > 1}  # as CenterPoint's configuration has them
    assert shared == {
        frozenset(pair)
        for pair in (
            ("truck", "construction_vehicle"),
            ("bus", "trailer"),
            ("motorcycle", "bicycle"),
            ("pedestrian", "traffic_cone"),
        )
    }


def test_six_groups_are_six_heads():
    """The same shared features to six heads of one group each, whose other classes are not looked at."""
    head, batch = make_head("six"), some_batch()
    assert batch.boxes is not None
    maps = head(noise(batch), batch)
    losses = head.losses(maps, batch)
    shared, sums = head.shared(noise(batch)), dict.fromkeys(losses, torch.tensor(0.0))
    found: list[Boxes] = []
    for number, group in enumerate(GROUPS["six"]):
        single = make_head("one", inputs=8)
        classes = [DETECTION_CLASSES.index(name) for name in group]
        theirs = head.tasks[number].state_dict()
        mine = single.tasks[0].state_dict()
        for name, value in theirs.items():
            if name.startswith("heatmap.1"):
                mine[name].zero_()[classes] = value
            else:
                mine[name] = value
        mine["heatmap.1.bias"][[n for n in range(10) if n not in classes]] = -1e4
        single.tasks[0].load_state_dict(mine)
        said = single(shared, batch)
        torch.testing.assert_close(maps.heatmap[:, classes], said.heatmap[:, classes])
        for name in PARTS:
            torch.testing.assert_close(getattr(maps, name)[:, number], getattr(said, name)[:, 0])
        own = tuple(b[torch.isin(b.label, torch.tensor(classes))] for b in batch.boxes)
        for name, value in single.losses(said, dataclasses.replace(batch, boxes=own)).items():
            sums[name] = sums[name] + value
        found += single.decode(said)
    for name, value in losses.items():
        torch.testing.assert_close(value, sums[name])
    for sample, boxes in enumerate(head.decode(maps)):
        score = torch.cat([b.score for b in found[sample::2]]).sort(descending=True).values[:300]
        torch.testing.assert_close(boxes.score, score)


def test_attributes_fit_their_class_whatever_the_logits():
    torch.manual_seed(0)
    head = CenterHead(DetectionConfig(score_threshold=0.0), 4, GRID)
    shapes = {"heatmap": (1, 10), **{name: (1, 1, width) for name, width in PARTS.items()}}
    maps = DetectionMaps(**{name: torch.randn(*shape, *GRID.shape) for name, shape in shapes.items()})
    boxes = head.decode(maps)[0]
    assert len(boxes) == 300 and boxes.score.diff().le(0).all()
    none = (boxes.label == CONE) | (boxes.label == BARRIER)
    assert none.any() and (boxes.attribute[none] == -1).all()
    assert allowed_attributes()[boxes.label[~none], boxes.attribute[~none]].all()
    assert (
        ATTRIBUTES[7] == "pedestrian.moving" and allowed_attributes()[PEDESTRIAN].tolist() == [False] * 5 + [True] * 3
    )


def test_circle_suppression_keeps_the_better_of_two_close_cars():
    head = CenterHead(DetectionConfig(score_threshold=0.5), 4, GRID)
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


@pytest.mark.parametrize("tasks", ["one", "six"])
def test_no_annotation_is_a_zero_that_reaches_every_parameter(tasks):
    batch, head = some_batch(boxes=3), make_head(tasks)
    maps = head(noise(batch), batch)
    for unannotated in (
        dataclasses.replace(batch, boxes=None, annotated=torch.zeros(2, dtype=torch.bool)),
        dataclasses.replace(batch, boxes=(Boxes.empty(),) * 2, annotated=torch.zeros(2, dtype=torch.bool)),
    ):
        head.zero_grad()
        losses = head.losses(maps, unannotated)
        assert set(losses) == {"heatmap", *PARTS}
        total = torch.stack(list(losses.values())).sum()
        assert total == 0
        total.backward(retain_graph=True)
        assert all(p.grad is not None and (p.grad == 0).all() for p in head.parameters())


@pytest.mark.parametrize("tasks", ["one", "six"])
def test_every_parameter_learns_and_a_sample_is_alone(tasks):
    head, batch = make_head(tasks), some_batch()
    maps = head(noise(batch), batch)
    torch.stack(list(head.losses(maps, batch).values())).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())
    one = head(noise(batch)[:1], some_batch(1))
    for name in ("heatmap", *PARTS):
        torch.testing.assert_close(getattr(one, name), getattr(maps, name)[:1], atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_near_float32():
    head, batch = make_head("six"), some_batch()
    exact = head.losses(head(noise(batch), batch), batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = head.losses(head(noise(batch), batch), batch)
    for name, value in exact.items():
        assert rough[name].dtype == torch.float32
        assert rough[name].item() == pytest.approx(value.item(), rel=0.03, abs=0.01), name


@pytest.mark.parametrize(("tasks", "rate"), [("one", 5e-3), ("six", 2e-3)])
def test_it_overfits_two_samples(tasks, rate):
    assert overfit(CenterHead, DetectionConfig(tasks=tasks, channels=16), 120, rate) == 1
