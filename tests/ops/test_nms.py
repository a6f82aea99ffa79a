"""Suppression by its definition; the kernel against its twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from harness import (
    DEVICES,
    assert_same_bits,
    assert_traces,
    assert_twin_warns_once,
    compiled,
    exported,
    needs_kernel,
    opcheck,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from rectangles import DTYPES, random_boxes, shapely_iou

from fusion3d import ops
from fusion3d.ops import library, reference

METRICS = ["rotated", "circle", "axis"]


def brute_nms(boxes, scores, labels, threshold, max_out, metric):
    """Suppression by its definition, one pair at a time."""
    keep = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        for j in keep:
            if labels[i] == labels[j]:
                limit = threshold[labels[j]]
                if metric == "circle" and math.dist(boxes[i][:2], boxes[j][:2]) < limit:
                    break
                first, second = boxes[i].copy(), boxes[j].copy()
                if metric == "axis":
                    for box in (first, second):
                        box[4] = round(box[4] / (math.pi / 2)) * math.pi / 2
                if metric != "circle" and shapely_iou([first], [second])[0, 0] > limit:
                    break
        else:
            keep.append(i)
    return keep[:max_out]


@pytest.mark.parametrize("use_twin", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("max_out", [7, 100])
def test_nms_equals_brute_force(metric, max_out, use_twin, request):
    if use_twin:
        request.getfixturevalue("only_twin")
    random = np.random.default_rng(3)
    boxes = random_boxes(60, 8, 3)
    scores = random.integers(0, 20, 60) / 20  # with ties
    labels = random.integers(0, 3, 60)
    threshold = [1.0, 2.0, 4.0] if metric == "circle" else [0.1, 0.3, 0.5]
    found = ops.nms_bev(boxes, torch.tensor(scores), torch.tensor(labels), threshold, max_out, metric)
    assert found.trim().tolist() == brute_nms(boxes.numpy(), scores, labels, threshold, max_out, metric)


def clustered(count, seed, dtype=torch.float32, device="cpu", spread=50.0, labels=10):
    """Boxes as a detector gives them: some for each object, among them small, huge and broken ones."""
    random = torch.Generator().manual_seed(seed)
    objects = torch.rand(max(count // 8, 1), 5, generator=random, dtype=torch.float64)
    objects = objects * torch.tensor([2 * spread, 2 * spread, 5, 2, 7]) - torch.tensor(
        [spread, spread, -0.4, -0.4, 3.5]
    )
    which = torch.randint(0, len(objects), (count,), generator=random)
    noise = torch.randn(count, 5, generator=random, dtype=torch.float64)
    boxes = objects[which] + noise * torch.tensor([0.4, 0.4, 0.2, 0.1, 0.2])
    boxes[::37, 2:4] *= 8
    boxes[1::101] *= 0
    boxes[2::103, 0] = math.nan
    boxes[3::107, 4] = math.inf
    scores = torch.randint(0, 300, (count,), generator=random) / 300 - 0.2
    scores[4::109] = math.nan
    scores[5::53] = -0.0
    label = which % labels
    label[6::71] = -1
    return boxes.to(device, dtype), scores.to(device, dtype), label.to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("count", "max_out"), [(0, 5), (1, 5), (63, 100), (65, 20), (1000, 1000), (1500, 83)])
def test_nms_kernel_equals_twin(device, dtype, metric, count, max_out):
    needs_kernel(device)
    boxes, scores, labels = clustered(count, count, dtype, device)
    limits = [0.1 * k + (1 if metric == "circle" else 0) for k in range(10)]
    for threshold in (0.25, limits):
        kept = ops.nms_bev(boxes, scores, labels, threshold, max_out, metric)
        listed = threshold if isinstance(threshold, list) else [threshold]
        want, expected = reference.nms_bev(boxes, scores, labels, listed, max_out, metric)
        assert torch.equal(kept.index, want) and torch.equal(kept.num_kept, expected)
        assert torch.equal(kept.trim(), want[: int(expected)])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(-3, 3)] * 2, *[st.integers(-1, 3)] * 2, st.integers(-2, 2), st.integers(0, 4)),
        max_size=40,
    ),
    st.sampled_from(METRICS),
    st.sampled_from([0.0, 0.5, 1 / 3, 1.0, 2.0]),
    st.integers(0, 45),
    st.sampled_from([1.0, 1e-3, 1e4]),
)
def test_nms_of_any_boxes(rows, metric, threshold, max_out, scale):
    """Many ties of place, overlap and score, where kernel and twin must still choose the same."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    boxes = table[:, :5] * torch.tensor([scale, scale, scale, scale, math.pi / 4])
    labels = (table[:, 5] % 2).long()
    args = (boxes, table[:, 5], labels)
    if metric == "circle":
        threshold *= scale
    kept = ops.nms_bev(*args, threshold, max_out, metric)
    want, expected = reference.nms_bev(*args, [threshold], max_out, metric)
    assert torch.equal(kept.index, want) and torch.equal(kept.num_kept, expected)


@pytest.mark.parametrize("labels", [[0] * 4, [10**15, -(10**15), 10**15, 5], [7, 7, 2**62, 7]])
def test_nms_takes_any_label(labels):
    boxes = torch.tensor([[0.0, 0, 4, 2, 0]]).expand(4, 5)
    found = ops.nms_bev(boxes, torch.tensor([0.1, 0.9, 0.2, 0.3]), torch.tensor(labels), 0.5, 9).trim()
    order = [i for i in (1, 3, 2, 0) if labels[i] >= 0]
    assert found.tolist() == [i for n, i in enumerate(order) if labels[i] not in [labels[j] for j in order[:n]]]


@pytest.mark.parametrize("use_twin", [False, True])
def test_nms_small_cases(use_twin, request):
    if use_twin:
        request.getfixturevalue("only_twin")
    boxes = torch.tensor([[0.0, 0, 4, 2, 0], [0.1, 0, 4, 2, 0], [0.1, 0, 4, 2, 0]])
    scores, labels = torch.tensor([0.5, 0.9, 0.4]), torch.tensor([0, 0, 1])
    assert ops.nms_bev(boxes, scores, labels, 0.2, 10).trim().tolist() == [1, 2]
    assert ops.nms_bev(boxes, scores, labels, torch.tensor([0.2, 0.1]), 10).trim().tolist() == [1, 2]
    for limits in (np.array([0.2, 0.1]), np.float32(0.2), np.array(0.2)):
        assert ops.nms_bev(boxes, scores, labels, limits, 10).trim().tolist() == [1, 2]
    assert ops.nms_bev(boxes, scores, labels, 0.05, 10, "circle").trim().tolist() == [1, 0, 2]
    assert ops.nms_bev(boxes, scores, labels, math.inf, 10, "circle").trim().tolist() == [1, 2]
    assert ops.nms_bev(boxes[:0], scores[:0], labels[:0], 0.2, 10).trim().tolist() == []
    assert ops.nms_bev(boxes, scores, labels, 0.2, 0).trim().tolist() == []
    assert ops.nms_bev(boxes[:, :].T.contiguous().T, scores, labels, 0.2, 1).trim().tolist() == [1]
    assert ops.nms_bev(boxes, scores, labels * 0 - 1, 0.2, 10).trim().tolist() == []
    # Length along y: beside one another when turned as they are, on one another when the yaw is ignored.
    turned = torch.tensor([[0.0, 0, 4, 1, math.pi / 2], [1.0, 0, 4, 1, 1.5]])
    for metric, kept in (("rotated", 2), ("axis", 2)):
        assert len(ops.nms_bev(turned, scores[:2], labels[:2], 0.2, 10, metric).trim()) == kept
    for args, message in [
        ((boxes[:, :4], scores, labels, 0.2, 5), r"expected \[N, 5\]"),
        ((boxes, scores[:2], labels, 0.2, 5), "as many of each"),
        ((boxes, scores, labels, [0.2], 5), "labels: found 1; expected less than 1, one threshold for each label"),
        ((boxes, scores, labels, [], 5), "threshold: found 0 values"),
        ((boxes, scores, labels, [0.1] * 257, 5), "threshold: found 257 values"),
        ((boxes, scores, labels, -0.1, 5), "threshold: found .-0.1.; expected 0 or more"),
        ((boxes, scores, labels, math.nan, 5), "expected 0 or more"),
        ((boxes, scores, labels, 0.2, -1), "max_out: found -1"),
        ((boxes, scores, labels, 0.2, 5, "oval"), "metric: found 'oval'"),
        ((boxes, scores, labels.float(), 0.2, 5), "labels is torch.float32"),
        ((boxes, scores.long(), labels, 0.2, 5), "scores is torch.int64"),
        ((boxes, scores, labels.to("meta"), 0.2, 5), "labels on meta; expected one"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.nms_bev(*args)


@pytest.mark.gpu
def test_nms_fits_in_a_cuda_graph():
    boxes, scores, labels = clustered(1000, 1, device="cuda")
    want = ops.nms_bev(boxes, scores, labels, 0.2, 300)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.nms_bev(boxes, scores, labels, 0.2, 300)
    graph.replay()
    assert torch.equal(found.index, want.index) and torch.equal(found.num_kept, want.num_kept)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_whose_label_has_no_threshold_are_no_boxes(device):
    """By the operation itself: the face refuses them on the CPU, but not where it is traced, or on CUDA."""
    boxes = torch.tensor([[0.0, 0, 4, 2, 0]], device=device).expand(4, 5).contiguous()
    scores, labels = torch.tensor([0.4, 0.3, 0.2, 0.1], device=device), torch.tensor([1, 0, 2, 0], device=device)
    for limits in ([0.2, math.nan], [0.2, math.nan, math.nan]):
        ways = [reference.nms_bev(boxes, scores, labels, limits, 4, "rotated")]
        if device in library.DEVICES:
            ways.append(torch.ops.fusion3d.nms_bev(boxes, scores, labels, limits, 4, 0))
        for index, number in ways:
            assert index.tolist() == [1, -1, -1, -1] and int(number) == 1
    many = ops.nms_bev(boxes, scores, labels, [0.2] * 256, 4)
    assert many.trim().tolist() == [0, 1, 2]


@compiled
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    boxes, scores, labels = clustered(40, 2, device=device)
    opcheck(torch.ops.fusion3d.nms_bev, boxes, scores, labels, [0.2], 10, 0)


@compiled
def test_traces_also_for_any_number_of_boxes():
    def padded(boxes, scores, labels):
        kept = ops.nms_bev(boxes, scores, labels, [0.2] * 10, 40)
        return kept.index, kept.num_kept

    args = clustered(90, 2)
    assert_traces(padded, *args)
    program = exported(padded, *args, dynamic_shapes=[{0: torch.export.Dim("rows")}] * 3)
    for count in (7, 300):
        args = clustered(count, 3)
        torch.testing.assert_close(program(*args), padded(*args), rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_for_any_run_and_thread_count(device):
    boxes, scores, labels = clustered(3000, 3, device=device)
    assert_same_bits(lambda: ops.nms_bev(boxes, scores, labels, 0.2, 500).index)


def test_without_library_the_twin_runs_with_one_warning(monkeypatch):
    args = clustered(90, 2)
    assert_twin_warns_once(monkeypatch, lambda: ops.nms_bev(*args, [0.2] * 10, 40).index)


@compiled
def test_the_operation_itself_rejects_what_it_cannot_read():
    op = torch.ops.fusion3d
    a = random_boxes(3, 1, dtype=torch.float32)
    labels = torch.zeros(3, dtype=torch.int64)
    for call, message in [
        (lambda: op.nms_bev(a, a[:, 0].contiguous(), labels, [], 5, 0), "thresholds"),
        (lambda: op.nms_bev(a, a[:, 0].contiguous(), labels, [0.1], 5, 3), "metric"),
        (lambda: op.nms_bev(a, a[:, 0].contiguous(), labels[:2], [0.1], 5, 0), "equally many"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
