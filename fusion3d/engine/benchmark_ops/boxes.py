"""Overlap, suppression and points in boxes, against what others offer: torch, shapely, and loops in numba.

Letters: N K boxes, P points or pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion3d import ops
from fusion3d.engine.benchmark_ops.case import Case
from fusion3d.engine.benchmark_ops.inputs import lidar_sweeps
from fusion3d.ops import reference
from fusion3d.ops.boxes import Metric

_THRESHOLD = 0.2  # intersection over union
_RADIUS = 2.0  # [m]
_CLASSES = 10
_SIZES = (4.6, 1.9), (0.7, 0.7), (7.0, 2.5), (1.8, 0.8), (2.5, 0.5)  # [m] car, pedestrian, truck, bicycle, barrier


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Suppression of a detector's candidates, pairwise and aligned overlap, and points in boxes."""
    for count in (500,) if quick else (500, 1000, 4096):
        yield from _suppression(count, device)
    yield from _suppression(500 if quick else 4096, device, num_classes=1, metrics=("rotated",))
    yield from _overlap(200 if quick else 1000, device)
    yield _points(20_000 if quick else 270_000, device)


def candidates(count: int, device: str, objects_each: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes [N, 5], scores [N] and classes [N] as a detector gives them: some around each object, within 54 m."""
    random = np.random.default_rng(count)
    objects = max(count // objects_each, 1)
    kind = random.integers(0, len(_SIZES), objects)
    lanes = np.column_stack([random.uniform(-54, 54, objects), np.clip(random.normal(0, 20, objects), -54, 54)])
    yaw = random.choice([0, math.pi, math.pi / 2], objects) + random.normal(0, 0.05, objects)
    which = random.integers(0, objects, count)
    center = lanes[which] + random.normal(0, 0.3, (count, 2))
    size = np.asarray(_SIZES)[kind[which]] * random.lognormal(0, 0.1, (count, 2))
    boxes = np.column_stack([center, size, yaw[which] + random.normal(0, 0.1, count)])
    label = kind[which] * 2 + (random.uniform(size=count) < 0.1)
    tensors = torch.tensor(boxes).float(), torch.tensor(random.beta(1, 4, count)).float(), torch.tensor(label)
    boxes_N5, scores_N, labels_N = (tensor.to(device) for tensor in tensors)
    return boxes_N5, scores_N, labels_N


def _same(ours: ops.KeptBoxes, theirs: Any) -> None:
    found, want = ours.trim().tolist(), theirs.tolist() if isinstance(theirs, Tensor) else list(theirs)
    assert found == want, f"{len(found)} boxes kept, the peer keeps {len(want)}"


def _close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def _suppression(
    count: int, device: str, num_classes: int = _CLASSES, metrics: Sequence[Metric] = ("rotated", "circle", "axis")
) -> Iterator[Case]:
    boxes, scores, labels = candidates(count, device)
    labels = labels % num_classes
    num_bytes = count * (5 * 4 + 4 + 8) + count * 8
    limits: dict[Metric, float] = {"rotated": _THRESHOLD, "circle": _RADIUS, "axis": _THRESHOLD}
    several = num_classes == _CLASSES
    for metric in metrics:
        threshold = limits[metric]

        def ours(metric: Metric = metric, threshold: float = threshold) -> ops.KeptBoxes:
            return ops.nms_bev(boxes, scores, labels, threshold, count, metric)

        def twin(metric=metric, threshold=threshold) -> Tensor:
            keep, number = reference.nms_bev(boxes, scores, labels, [threshold], count, metric)
            return keep[: int(number)]

        peers: dict[str, Callable[[], Any]] = {"torch": twin}
        chosen = metric == "rotated" and count == 4096 and several
        target = {"torch": 200.0, "shapely": 200.0} if chosen and device == "cpu" else {}
        if device == "cpu" and metric == "rotated":
            peers["shapely"] = lambda: _shapely_nms(boxes.numpy(), scores.numpy(), labels.numpy(), _THRESHOLD)
        if device == "cpu" and metric == "circle":
            loop = _circle_loop()
            peers["numba loop"] = lambda loop=loop: loop(boxes.numpy(), scores.numpy(), labels.numpy(), _RADIUS)
        shape = f"{count} boxes of {num_classes} class{'es' if several else ''}, {metric}"
        most = 25e-6 if chosen and device == "cuda" else None
        yield Case("nms_bev", shape, ours, peers, _same, num_bytes, target, limit=most)


def _shapely_nms(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float) -> list[int]:
    """By a tree over the outlines: the pairs that meet, their overlaps at once, then the greedy choice."""
    import shapely

    order = np.argsort(-scores, kind="stable")
    boxes, labels = boxes[order].astype(np.float64), labels[order]
    cos, sin = np.cos(boxes[:, 4, None]), np.sin(boxes[:, 4, None])
    x, y = boxes[:, 2, None] / 2 * [1, -1, -1, 1], boxes[:, 3, None] / 2 * [1, 1, -1, -1]
    corners = np.stack([cos * x - sin * y, sin * x + cos * y], axis=2) + boxes[:, None, :2]
    outlines: Any = shapely.polygons(corners)
    first, second = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    chosen = (first < second) & (labels[first] == labels[second])
    first, second = first[chosen], second[chosen]
    overlap = shapely.area(shapely.intersection(outlines[first], outlines[second]))
    area: Any = shapely.area(outlines)
    clash = overlap / (area[first] + area[second] - overlap) > threshold
    worse: list[list[int]] = [[] for _ in boxes]
    for one, other in zip(first[clash].tolist(), second[clash].tolist(), strict=True):
        worse[one].append(other)
    gone = np.zeros(len(boxes), dtype=bool)
    keep = []
    for i in range(len(boxes)):
        if not gone[i]:
            keep.append(int(order[i]))
            gone[worse[i]] = True
    return keep


@lru_cache(maxsize=1)
def _circle_loop() -> Callable[[np.ndarray, np.ndarray, np.ndarray, float], list[int]]:
    """The usual pair of nested loops over boxes in order of their scores, here for all classes at once."""
    import numba

    @numba.njit
    def loop(xy, labels, order, radius):
        gone = np.zeros(len(xy), dtype=np.bool_)
        keep = []
        for i in range(len(order)):
            one = order[i]
            if gone[one]:
                continue
            keep.append(one)
            for j in range(i + 1, len(order)):
                other = order[j]
                if gone[other] or labels[one] != labels[other]:
                    continue
                dx, dy = xy[one, 0] - xy[other, 0], xy[one, 1] - xy[other, 1]
                if dx * dx + dy * dy < radius * radius:
                    gone[other] = True
        return keep

    def run(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, radius: float) -> list[int]:
        return loop(boxes[:, :2].astype(np.float64), labels, np.argsort(-scores, kind="stable"), radius)

    return run


def _overlap(count: int, device: str) -> Iterator[Case]:
    boxes, _, _ = candidates(count, device)
    others, _, _ = candidates(count + 1, device)
    others = others[:count]

    def ours() -> Tensor:
        return ops.box_iou_bev(boxes, others)

    peers: dict[str, Callable[[], Any]] = {"torch": lambda: reference.box_iou_bev(boxes, others)}
    num_bytes = 2 * count * 5 * 4 + count * count * 4
    yield Case("box_iou_bev", f"{count} x {count} boxes", ours, peers, _close, num_bytes)
    noise = torch.randn(boxes.shape, generator=torch.Generator().manual_seed(0)).to(device) * 0.2
    said, true = boxes.repeat(10, 1).requires_grad_(), (boxes + noise).clamp(min=-54).repeat(10, 1)
    true = torch.cat([true[:, :2], true[:, 2:4].clamp(min=0.3), true[:, 4:]], dim=1)
    shape = f"{len(said)} pairs"
    num_bytes = len(said) * (10 * 4 + 4)
    peers = {"torch": lambda: reference.box_iou_bev_aligned(said.detach(), true)}
    yield Case(
        "box_iou_bev_aligned", shape, lambda: ops.box_iou_bev_aligned(said.detach(), true), peers, _close, num_bytes
    )

    def gradient(face: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(face(said, true).sum(), said)[0]

    peers = {"torch": lambda: gradient(reference.box_iou_bev_aligned)}
    yield Case(
        "box_iou_bev_aligned backward",
        shape,
        lambda: gradient(ops.box_iou_bev_aligned),
        peers,
        _close,
        num_bytes + len(said) * 6 * 4,
    )


def _points(count: int, device: str) -> Case:
    points = torch.from_numpy(lidar_sweeps(count)).to(device)
    flat, _, _ = candidates(80, device, objects_each=1)
    height = torch.full_like(flat[:, :1], 1.0)
    boxes = torch.cat([flat[:, :2], height, flat[:, 2:4], 2 * height, flat[:, 4:]], dim=1)

    def torch_broadcast() -> tuple[Tensor, Tensor]:
        box, number = reference.points_in_boxes(points, boxes, None, None, 0.0)
        return box, number

    def agree(mine: ops.PointsInBoxes, theirs: Any) -> None:
        assert np.array_equal(mine.box.cpu().numpy(), np.asarray(theirs[0].cpu() if device != "cpu" else theirs[0]))
        assert np.array_equal(mine.count.cpu().numpy(), np.asarray(theirs[1].cpu() if device != "cpu" else theirs[1]))

    peers: dict[str, Callable[[], Any]] = {"torch": torch_broadcast}
    if device == "cpu":
        loop = _points_loop()
        peers["numba loop"] = lambda: loop(points.numpy(), boxes.numpy())
    num_bytes = points.nbytes + boxes.nbytes + count * 8
    shape = f"{count} points, {len(boxes)} boxes"
    return Case("points_in_boxes", shape, lambda: ops.points_in_boxes(points, boxes), peers, agree, num_bytes)


@lru_cache(maxsize=1)
def _points_loop() -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """For each point each box, the height first, as in the kernels of the usual detectors."""
    import numba

    @numba.njit
    def loop(points, boxes):
        found = np.full(len(points), -1, dtype=np.int64)
        count = np.zeros(len(boxes), dtype=np.int64)
        cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
        for p in range(len(points)):
            for b in range(len(boxes)):
                if abs(points[p, 2] - boxes[b, 2]) > boxes[b, 5] / 2:
                    continue
                x, y = points[p, 0] - boxes[b, 0], points[p, 1] - boxes[b, 1]
                along, across = cos[b] * x + sin[b] * y, cos[b] * y - sin[b] * x
                if abs(along) <= boxes[b, 3] / 2 and abs(across) <= boxes[b, 4] / 2:
                    count[b] += 1
                    if found[p] < 0:
                        found[p] = b
        return found, count

    def run(points: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return loop(points[:, :3].astype(np.float64), boxes.astype(np.float64))

    return run
