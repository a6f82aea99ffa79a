"""Box overlap against shapely; suppression against a brute-force one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d import ops


def rectangle(box):
    import shapely
    from shapely import affinity

    x, y, length, width, yaw = box
    flat = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(flat, yaw, origin=(0, 0), use_radians=True), x, y)


def shapely_iou(a, b):
    first, second = [rectangle(box) for box in a], [rectangle(box) for box in b]
    return np.array([[p.intersection(q).area / p.union(q).area for q in second] for p in first])


def random_boxes(random, count, spread):
    return np.column_stack(
        [
            random.uniform(-spread, spread, (count, 2)),
            random.uniform(0.2, 6, (count, 2)),
            random.uniform(-4, 4, count),
        ]
    )


@pytest.mark.parametrize("seed", range(5))
def test_iou_equals_shapely(seed):
    random = np.random.default_rng(seed)
    a, b = random_boxes(random, 25, 5), random_boxes(random, 20, 5)
    a[:, 0] += 700 * seed
    b[:, 0] += 700 * seed
    found = ops.box_iou_bev(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(found, shapely_iou(a, b), atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(-2, 2)] * 2, *[st.integers(1, 4)] * 2, st.integers(-3, 3)),
        min_size=2,
        max_size=5,
    )
)
def test_iou_of_aligned_boxes_with_shared_edges(boxes):
    # Integer boxes at right angles share edges and corners: the case that trips clipping. The answer is exact.
    def edges(box):
        x, y, length, width, quarter = box
        if quarter % 2:
            length, width = width, length
        return x - length / 2, x + length / 2, y - width / 2, y + width / 2

    tensor = torch.tensor(boxes, dtype=torch.float64)
    tensor[:, 4] *= math.pi / 2
    found = ops.box_iou_bev(tensor, tensor)
    for i, first in enumerate(map(edges, boxes)):
        for j, second in enumerate(map(edges, boxes)):
            width = min(first[1], second[1]) - max(first[0], second[0])
            height = min(first[3], second[3]) - max(first[2], second[2])
            overlap = max(width, 0) * max(height, 0)
            areas = sum((e[1] - e[0]) * (e[3] - e[2]) for e in (first, second))
            assert found[i, j] == pytest.approx(overlap / (areas - overlap), abs=1e-7)


def test_iou_of_known_boxes():
    a = torch.tensor([[0.0, 0, 4, 2, 0.3]])
    b = torch.tensor([
        [0.0, 0, 4, 2, 0.3],  # itself
        [0.0, 0, 4, 2, 0.3 + math.pi],  # turned about
        [0.0, 0, 2, 1, 0.3],  # inside
        [9.0, 0, 4, 2, 0.3],  # far away
        [0.0, 0, 0, 2, 0.3],  # no area
    ])  # fmt: skip
    torch.testing.assert_close(ops.box_iou_bev(a, b)[0], torch.tensor([1.0, 1, 0.25, 0, 0]), rtol=0, atol=1e-6)
    octagon = ops.box_iou_bev(torch.tensor([[0.0, 0, 2, 2, 0]]), torch.tensor([[0.0, 0, 2, 2, math.pi / 4]]))
    area = 8 * (math.sqrt(2) - 1)  # of the octagon in which two unit squares at 45 degrees meet
    assert octagon.item() == pytest.approx(area / (8 - area), abs=1e-6)
    assert ops.box_iou_bev(torch.zeros(0, 5), b).shape == (0, 5)


def brute_nms(boxes, scores, labels, threshold, max_out, metric):
    """Suppression by its definition, one pair at a time."""
    keep = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        for j in keep:
            if labels[i] == labels[j]:
                if metric == "circle" and math.dist(boxes[i][:2], boxes[j][:2]) < threshold[labels[j]]:
                    break
                if metric == "rotated" and shapely_iou([boxes[j]], [boxes[i]])[0, 0] > threshold[labels[j]]:
                    break
        else:
            keep.append(i)
    return keep[:max_out]


@pytest.mark.parametrize("metric", ["rotated", "circle"])
@pytest.mark.parametrize("max_out", [7, 100])
def test_nms_equals_brute_force(metric, max_out):
    random = np.random.default_rng(3)
    boxes = random_boxes(random, 60, 8)
    scores = random.integers(0, 20, 60) / 20  # with ties
    labels = random.integers(0, 3, 60)
    threshold = [0.1, 0.3, 0.5] if metric == "rotated" else [1.0, 2.0, 4.0]
    found = ops.nms_bev(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), threshold, max_out, metric)
    assert found.tolist() == brute_nms(boxes, scores, labels, threshold, max_out, metric)


def test_nms_small_cases():
    boxes = torch.tensor([[0.0, 0, 4, 2, 0], [0.1, 0, 4, 2, 0], [0.1, 0, 4, 2, 0]])
    scores, labels = torch.tensor([0.5, 0.9, 0.4]), torch.tensor([0, 0, 1])
    assert ops.nms_bev(boxes, scores, labels, 0.2, 10).tolist() == [1, 2]
    assert ops.nms_bev(boxes, scores, labels, 0.05, 10, "circle").tolist() == [1, 0, 2]
    assert ops.nms_bev(boxes[:0], scores[:0], labels[:0], 0.2, 10).tolist() == []
    assert ops.nms_bev(boxes, scores, labels, 0.2, 0).tolist() == []
    for args, message in [
        ((boxes[:, :4], scores, labels, 0.2, 5), r"expected \[N, 5\]"),
        ((boxes, scores[:2], labels, 0.2, 5), "as many of each"),
        ((boxes, scores, labels, [0.2], 5), "one threshold for each label"),
        ((boxes, scores, labels, 0.2, 5, "axis"), "metric: found 'axis'"),
        ((boxes, scores, labels.float(), 0.2, 5), "labels is torch.float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.nms_bev(*args)
