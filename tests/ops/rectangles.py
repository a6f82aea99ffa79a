"""Oriented rectangles at random, and their overlap by shapely: for the tests of what is done with boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def polygon(box):
    shapely, affinity = pytest.importorskip("shapely"), pytest.importorskip("shapely.affinity")
    x, y, length, width, yaw = box
    flat = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(flat, yaw, origin=(0, 0), use_radians=True), x, y)


def shapely_iou(a, b):
    first, second = [polygon(box) for box in a], [polygon(box) for box in b]
    return np.array([[p.intersection(q).area / p.union(q).area for q in second] for p in first])


def random_boxes(count, spread, seed=0, dtype=torch.float64, device="cpu"):
    random = np.random.default_rng(seed)
    columns = [random.uniform(-spread, spread, (count, 2)), random.uniform(0.2, 6, (count, 2))]
    boxes = np.column_stack([*columns, random.uniform(-4, 4, count)])
    return torch.tensor(boxes, dtype=dtype, device=device)
