"""Boxes to detect, and what heads say that know the answer."""

from __future__ import annotations

import dataclasses

import torch

from fusion3d.config import Config, DetectionConfig
from fusion3d.engine.random_batch import random_batch
from fusion3d.geometry import wrap_angle
from fusion3d.heads.center import GROUPS, DetectionMaps
from fusion3d.heads.query import QueryBoxes
from fusion3d.heads.targets import USUAL_SIZE, encode_boxes
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, Batch, BEVGrid, Boxes

GRID = BEVGrid(x=(-32.0, 32.0), y=(-24.0, 24.0), resolution=0.8)
SMALL = BEVGrid(x=(-9.6, 9.6), y=(-6.4, 6.4), resolution=0.8)
CAR, PEDESTRIAN, CONE, BARRIER = (
    DETECTION_CLASSES.index(name) for name in ("car", "pedestrian", "traffic_cone", "barrier")
)
PARTS = {"offset": 2, "height": 1, "size": 3, "yaw": 2, "velocity": 2, "attribute": 8}


def some_batch(count: int = 2, boxes: int = 10, grid: BEVGrid = SMALL, seed: int = 0) -> Batch:
    """Samples with boxes, and hardly any points or images."""
    config = dataclasses.replace(Config(), grid=grid, data=dataclasses.replace(Config().data, image_size=(64, 64)))
    return random_batch(config, count, 10, 10, boxes, seed)


def some_boxes(seed: int, count: int = 30) -> Boxes:
    boxes = some_batch(1, count, GRID, seed).boxes
    assert boxes is not None
    return boxes[0]


def perfect_maps(boxes: tuple[Boxes, ...], tasks: str = "one") -> DetectionMaps:
    """Maps of a center head that knows the answer; groups that are not asked say nonsense."""
    targets = encode_boxes(boxes, GRID)
    rows, cols = GRID.shape
    groups = torch.tensor([[name in group for name in DETECTION_CLASSES] for group in GROUPS[tasks]])
    group = groups[:, targets.label].int().argmax(0)

    def paint(values: torch.Tensor) -> torch.Tensor:
        painted = torch.full((len(boxes), len(groups), values.shape[1], rows * cols), 3.0)
        painted[targets.sample, group, :, targets.cell] = values
        return painted.view(len(boxes), len(groups), -1, rows, cols)

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


def perfect_queries(boxes: tuple[Boxes, ...], spare: int = 3) -> QueryBoxes:
    """What a query head says that knows the answer: in each of two layers a query for every box, starting at a cell
    nearby, and some that find nothing. Written box by box."""
    most = max(len(b) for b in boxes) + spare
    rows, cols = GRID.shape
    said = {name: torch.zeros(2, len(boxes), most, width) for name, width in PARTS.items()}
    logits = torch.full((2, len(boxes), most, 10), -20.0)
    label, cell = torch.zeros(len(boxes), most, dtype=torch.int64), torch.zeros(len(boxes), most, dtype=torch.int64)
    heatmap = torch.full((len(boxes), 10, rows, cols), -20.0)
    for sample, several in enumerate(boxes):
        for k in range(len(several)):
            x, y, z = several.center[k].tolist()
            start_x, start_y = int((x + 32) / 0.8) + k % 2, int((y + 24) / 0.8)
            usual = torch.tensor(USUAL_SIZE[DETECTION_CLASSES[several.label[k]]])
            label[sample, k], cell[sample, k] = several.label[k], start_y * cols + start_x
            heatmap[sample, several.label[k], start_y, start_x] = 20.0
            logits[:, sample, k, several.label[k]] = 20.0
            said["offset"][:, sample, k] = torch.tensor(
                [(x + 32) / 0.8 - start_x - 0.5, (y + 24) / 0.8 - start_y - 0.5]
            )
            said["height"][:, sample, k, 0] = z - usual[2] / 2
            said["size"][:, sample, k] = (several.size[k] / usual).log()
            said["yaw"][:, sample, k] = torch.stack([several.yaw[k].sin(), several.yaw[k].cos()])
            said["velocity"][:, sample, k] = several.velocity[k].nan_to_num()
            if several.attribute[k] >= 0:
                said["attribute"][:, sample, k, several.attribute[k]] = 50.0
    return QueryBoxes(heatmap, label, cell, logits, **said)


def assert_found(found: tuple[Boxes, ...], truth: tuple[Boxes, ...]) -> None:
    """Every box is found once, with all that is known of it."""
    assert [len(b) for b in found] == [len(b) for b in truth]
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


def overfit(kind, config: DetectionConfig, steps: int, rate: float) -> float:
    """Train a head on two samples whose map is noise; the fraction of boxes that it then finds within 0.5 m, scoring
    above 0.3, if it finds nothing else."""
    torch.manual_seed(0)
    batch, map_BCYX = some_batch(), torch.randn(2, 16, *SMALL.shape)
    head = kind(config, 16, SMALL)
    optimizer = torch.optim.AdamW(head.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack(list(head.losses(head(map_BCYX, batch), batch).values())).sum().backward()
        optimizer.step()
    assert batch.boxes is not None
    hits = total = 0
    for said, true in zip(head.decode(head(map_BCYX, batch)), batch.boxes, strict=True):
        said = said[said.score > 0.3]
        assert len(said) <= len(true)
        distance = torch.cdist(said.center[:, :2], true.center[:, :2]) + 100 * (said.label[:, None] != true.label[None])
        hits += int((distance.amin(0) < 0.5).sum())
        total += len(true)
    return hits / total
