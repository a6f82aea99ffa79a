"""Box overlap against shapely and finite differences; suppression and points in boxes by their definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fusion3d import ops
from fusion3d.ops import library, reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
METRICS = ["rotated", "circle", "axis"]
compiled = pytest.mark.skipif("cpu" not in library.DEVICES, reason=f"no compiled kernel: {library.PROBLEM}")


@pytest.fixture
def only_twin(monkeypatch):
    """The pure-torch versions, as where nothing is compiled."""
    monkeypatch.setattr(library, "DEVICES", frozenset())
    monkeypatch.setattr(library, "_warned", {library.PROBLEM or "the kernels of fusion3d were compiled without cpu"})


def rectangle(box):
    import shapely
    from shapely import affinity

    x, y, length, width, yaw = box
    flat = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
    return affinity.translate(affinity.rotate(flat, yaw, origin=(0, 0), use_radians=True), x, y)


def shapely_iou(a, b):
    first, second = [rectangle(box) for box in a], [rectangle(box) for box in b]
    return np.array([[p.intersection(q).area / p.union(q).area for q in second] for p in first])


def random_boxes(count, spread, seed=0, dtype=torch.float64, device="cpu"):
    random = np.random.default_rng(seed)
    columns = [random.uniform(-spread, spread, (count, 2)), random.uniform(0.2, 6, (count, 2))]
    boxes = np.column_stack([*columns, random.uniform(-4, 4, count)])
    return torch.tensor(boxes, dtype=dtype, device=device)


# ---- overlap


@pytest.mark.parametrize("seed", range(5))
def test_iou_equals_shapely(seed):
    a, b = random_boxes(25, 5, seed), random_boxes(20, 5, seed + 100)
    a[:, 0] += 700 * seed
    b[:, 0] += 700 * seed
    want = shapely_iou(a.numpy(), b.numpy())
    np.testing.assert_allclose(ops.box_iou_bev(a, b), want, atol=1e-9)
    rows = ops.box_iou_bev_aligned(a.repeat_interleave(20, 0), b.repeat(25, 1))
    np.testing.assert_allclose(rows.reshape(25, 20), want, atol=1e-9)


sizes = st.floats(1e-3, 1e3)
places = st.floats(-10, 10)


@settings(max_examples=80, deadline=None)
@given(*[st.tuples(places, places, sizes, sizes, st.floats(-7, 7))] * 2, st.sampled_from([0, 1e3, -1e6]))
@example((0, 0, 4, 2, 0.3), (0, 0, 4, 2, 0.3), 0)
@example((0, 0, 4, 2, 0.3), (1, 0, 4, 2, 0.3 + 1e-13), 0)
@example((0, 0, 1e3, 1e3, 1), (9, 9, 1e-3, 1e-3, 2), 1e3)
def test_iou_of_any_two_boxes(a, b, shift):
    # Shapely too rounds where it is far from the origin, so it gets the boxes before they are shifted.
    import shapely

    p, q = rectangle(a), rectangle(b)
    want = shapely.intersection(p, q).area / (a[2] * a[3] + b[2] * b[3] - shapely.intersection(p, q).area)
    there = torch.tensor([a, b], dtype=torch.float64)
    there[:, 0] += shift
    found = ops.box_iou_bev_aligned(there[:1], there[1:]).item()
    back = ops.box_iou_bev_aligned(there[1:], there[:1]).item()
    scale = max(abs(shift), 1) / min(*a[2:4], *b[2:4])
    assert found == pytest.approx(want, abs=1e-9 + 1e-14 * scale)
    assert found == pytest.approx(back, abs=1e-12 + 1e-15 * scale)
    assert found == pytest.approx(ops.box_iou_bev(there[:1], there[1:]).item(), abs=1e-15)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(-2, 2)] * 2, *[st.integers(1, 4)] * 2, st.integers(-3, 3)),
        min_size=2,
        max_size=5,
    ),
    st.booleans(),
)
def test_iou_of_aligned_boxes_with_shared_edges(boxes, use_twin):
    # Integer boxes at right angles share edges and corners: the case that trips clipping. The answer is exact.
    def edges(box):
        x, y, length, width, quarter = box
        if quarter % 2:
            length, width = width, length
        return x - length / 2, x + length / 2, y - width / 2, y + width / 2

    tensor = torch.tensor(boxes, dtype=torch.float64)
    tensor[:, 4] *= math.pi / 2
    found = (reference if use_twin else ops).box_iou_bev(tensor, tensor)
    for i, first in enumerate(map(edges, boxes)):
        for j, second in enumerate(map(edges, boxes)):
            width = min(first[1], second[1]) - max(first[0], second[0])
            height = min(first[3], second[3]) - max(first[2], second[2])
            overlap = max(width, 0) * max(height, 0)
            areas = sum((e[1] - e[0]) * (e[3] - e[2]) for e in (first, second))
            assert found[i, j] == pytest.approx(overlap / (areas - overlap), abs=1e-14)


@pytest.mark.parametrize("device", DEVICES)
def test_iou_of_known_boxes(device):
    a = torch.tensor([[0.0, 0, 4, 2, 0.3]], device=device)
    b = torch.tensor([
        [0.0, 0, 4, 2, 0.3],  # itself
        [0.0, 0, 4, 2, 0.3 + math.pi],  # turned about
        [0.0, 0, 2, 1, 0.3],  # inside
        [9.0, 0, 4, 2, 0.3],  # far away
        [0.0, 0, 0, 2, 0.3],  # no area
        [0.0, 0, 4, -2, 0.3],
        [0.0, 0, 4, 2, math.nan],
        [math.nan, 0, 4, 2, 0.3],
        [math.inf, 0, 4, 2, 0.3],
        [0.0, 0, math.inf, 2, 0.3],
    ], device=device)  # fmt: skip
    want = torch.tensor([1.0, 1, 0.25, 0, 0, 0, 0, 0, 0, 0], device=device)
    for face in (ops, reference):
        torch.testing.assert_close(face.box_iou_bev(a, b)[0], want, rtol=0, atol=1e-6)
        torch.testing.assert_close(face.box_iou_bev(b, a)[:, 0], want, rtol=0, atol=1e-6)
        torch.testing.assert_close(face.box_iou_bev_aligned(a.expand(10, 5), b), want, rtol=0, atol=1e-6)
    octagon = ops.box_iou_bev(a.new_tensor([[0.0, 0, 2, 2, 0]]), a.new_tensor([[0.0, 0, 2, 2, math.pi / 4]]))
    area = 8 * (math.sqrt(2) - 1)  # of the octagon in which two squares at 45 degrees meet
    assert octagon.item() == pytest.approx(area / (8 - area), abs=1e-6)
    assert ops.box_iou_bev(a[:0], b).shape == (0, 10) and ops.box_iou_bev(a, b[:0]).shape == (1, 0)
    assert ops.box_iou_bev_aligned(a[:0], a[:0]).shape == (0,)


@pytest.mark.parametrize("size", [1e-140, 1e-30, 1e-9, 1.0, 1e9, 1e38, 1e90])
def test_iou_does_not_depend_on_the_scale(size):
    boxes = torch.tensor([[0.0, 0, 4, 2, 0.3], [1.0, 0.5, 3, 2, 1.3]], dtype=torch.float64)
    want = ops.box_iou_bev(boxes, boxes)
    boxes[:, :4] *= size
    torch.testing.assert_close(ops.box_iou_bev(boxes, boxes), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (17, 33), (70, 129)])
def test_iou_kernel_equals_twin(device, dtype, rows, columns):
    if device not in library.DEVICES:
        pytest.skip(f"no compiled kernel for {device}: {library.PROBLEM or 'compiled without'}")
    a, b = random_boxes(rows, 4, 1, dtype, device), random_boxes(columns, 4, 2, dtype, device)
    found, want = ops.box_iou_bev(a, b), reference.box_iou_bev(a, b)
    assert found.dtype == dtype and (rows == 1 or found.any())
    torch.testing.assert_close(
        found.double(), want.double(), rtol=1e-14 if dtype == torch.float64 else 1e-2, atol=1e-14
    )
    a, b = [boxes[: min(rows, columns)].clone().requires_grad_() for boxes in (a, b)]
    exact = [boxes.detach().double().requires_grad_() for boxes in (a, b)]
    found, want = ops.box_iou_bev_aligned(a, b), reference.box_iou_bev_aligned(*exact)
    grad = torch.randn(len(a), generator=torch.Generator().manual_seed(1)).to(device, dtype)
    found.backward(grad)
    want.backward(grad.double())
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert a.grad is not None and b.grad is not None and a.grad.dtype == dtype
    for one, other in ((found, want), (a.grad, exact[0].grad), (b.grad, exact[1].grad)):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_iou_gradcheck(device):
    a, b = (
        random_boxes(40, 2, 3, device=device).requires_grad_(),
        random_boxes(40, 2, 4, device=device).requires_grad_(),
    )
    assert torch.autograd.gradcheck(ops.box_iou_bev_aligned, (a, b), atol=1e-6)
    assert torch.autograd.gradcheck(reference.box_iou_bev_aligned, (a, b), atol=1e-6)


@compiled
def test_gradient_at_a_kink_is_the_mean_of_both_slopes():
    """Equal boxes are best and stay; a shared edge pulls with half the force; boxes apart do not pull."""
    a = torch.tensor([[1.0, 2, 4, 2, 0.7], [300.0, 5, 0.6, 0.8, -2.0]], dtype=torch.float64, requires_grad=True)
    iou = ops.box_iou_bev_aligned(a, a.detach())
    assert torch.autograd.grad(iou.sum(), a)[0].abs().max() < 1e-12
    for boxes in ([[0.0, 0, 2, 2, 0], [2.0, 0, 2, 2, 0]], [[0.0, 0, 4, 2, 0.4], [0.0, 0, 2, 2, 0.4]]):
        pair = torch.tensor(boxes, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda p: ops.box_iou_bev_aligned(p[:1], p[1:]), (pair,), atol=1e-5)
    apart = torch.tensor([[0.0, 0, 2, 2, 0], [9.0, 0, 2, 2, 0]], requires_grad=True)
    assert not torch.autograd.grad(ops.box_iou_bev_aligned(apart[:1], apart[1:]).sum(), apart)[0].any()


@pytest.mark.parametrize("use_twin", [False, True])
def test_gradient_of_boxes_that_are_none_is_zero(use_twin, request):
    if use_twin:
        request.getfixturevalue("only_twin")
    a = torch.tensor([[0.0, 0, 4, 2, 0.3]] * 4, requires_grad=True)
    b = torch.tensor([[0, 0, 0, 2, 0.3], [0, 0, -1, 2, 0.3], [math.nan, 0, 4, 2, 0.3], [0, 0, 4, 2, math.inf]])
    b.requires_grad_()
    iou = ops.box_iou_bev_aligned(a, b)
    iou.sum().backward()
    assert not iou.any() and a.grad is not None and b.grad is not None and not a.grad.any() and not b.grad.any()


def test_a_loss_finds_the_box():
    """Descent on 1 - IoU from every side ends on the box."""
    goal = torch.tensor([[3.0, -1, 4.5, 1.9, 0.4]]).expand(6, 5)
    random = torch.Generator().manual_seed(0)
    box = (goal + torch.randn(6, 5, generator=random) * torch.tensor([0.7, 0.4, 0.6, 0.3, 0.3])).requires_grad_()
    optimizer = torch.optim.Adam([box], lr=0.03)
    for step in range(500):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 * (1 - step / 500)
        optimizer.zero_grad()
        (1 - ops.box_iou_bev_aligned(box, goal)).sum().backward()
        optimizer.step()
    assert ops.box_iou_bev_aligned(box, goal).min() > 0.98


# ---- suppression


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
    assert found.tolist() == brute_nms(boxes.numpy(), scores, labels, threshold, max_out, metric)


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
    if device not in library.DEVICES:
        pytest.skip(f"no compiled kernel for {device}: {library.PROBLEM or 'compiled without'}")
    boxes, scores, labels = clustered(count, count, dtype, device)
    limits = [0.1 * k + (1 if metric == "circle" else 0) for k in range(10)]
    for threshold in (0.25, limits):
        found, number = ops.nms_bev_padded(boxes, scores, labels, threshold, max_out, metric)
        listed = threshold if isinstance(threshold, list) else [threshold]
        want, expected = reference.nms_bev(boxes, scores, labels, listed, max_out, metric)
        assert torch.equal(found, want) and int(number) == int(expected)
        assert torch.equal(ops.nms_bev(boxes, scores, labels, threshold, max_out, metric), want[: int(number)])


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
    found, number = ops.nms_bev_padded(*args, threshold, max_out, metric)
    want, expected = reference.nms_bev(*args, [threshold], max_out, metric)
    assert torch.equal(found, want) and int(number) == int(expected)


@pytest.mark.parametrize("labels", [[0] * 4, [10**15, -(10**15), 10**15, 5], [7, 7, 2**62, 7]])
def test_nms_takes_any_label(labels):
    boxes = torch.tensor([[0.0, 0, 4, 2, 0]]).expand(4, 5)
    found = ops.nms_bev(boxes, torch.tensor([0.1, 0.9, 0.2, 0.3]), torch.tensor(labels), 0.5, 9)
    order = [i for i in (1, 3, 2, 0) if labels[i] >= 0]
    assert found.tolist() == [i for n, i in enumerate(order) if labels[i] not in [labels[j] for j in order[:n]]]


@pytest.mark.parametrize("use_twin", [False, True])
def test_nms_small_cases(use_twin, request):
    if use_twin:
        request.getfixturevalue("only_twin")
    boxes = torch.tensor([[0.0, 0, 4, 2, 0], [0.1, 0, 4, 2, 0], [0.1, 0, 4, 2, 0]])
    scores, labels = torch.tensor([0.5, 0.9, 0.4]), torch.tensor([0, 0, 1])
    assert ops.nms_bev(boxes, scores, labels, 0.2, 10).tolist() == [1, 2]
    assert ops.nms_bev(boxes, scores, labels, torch.tensor([0.2, 0.1]), 10).tolist() == [1, 2]
    assert ops.nms_bev(boxes, scores, labels, 0.05, 10, "circle").tolist() == [1, 0, 2]
    assert ops.nms_bev(boxes, scores, labels, math.inf, 10, "circle").tolist() == [1, 2]
    assert ops.nms_bev(boxes[:0], scores[:0], labels[:0], 0.2, 10).tolist() == []
    assert ops.nms_bev(boxes, scores, labels, 0.2, 0).tolist() == []
    assert ops.nms_bev(boxes[:, :].T.contiguous().T, scores, labels, 0.2, 1).tolist() == [1]
    assert ops.nms_bev(boxes, scores, labels * 0 - 1, 0.2, 10).tolist() == []
    # Length along y: beside one another when turned as they are, on one another when the yaw is ignored.
    turned = torch.tensor([[0.0, 0, 4, 1, math.pi / 2], [1.0, 0, 4, 1, 1.5]])
    for metric, kept in (("rotated", 2), ("axis", 2)):
        assert len(ops.nms_bev(turned, scores[:2], labels[:2], 0.2, 10, metric)) == kept
    for args, message in [
        ((boxes[:, :4], scores, labels, 0.2, 5), r"expected \[N, 5\]"),
        ((boxes, scores[:2], labels, 0.2, 5), "as many of each"),
        ((boxes, scores, labels, [0.2], 5), "labels: found 1; expected less than 1, one threshold for each label"),
        ((boxes, scores, labels, [], 5), "threshold: found 0 values"),
        ((boxes, scores, labels, [0.1] * 256, 5), "threshold: found 256 values"),
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
    want = ops.nms_bev_padded(boxes, scores, labels, 0.2, 300)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.nms_bev_padded(boxes, scores, labels, 0.2, 300)
    graph.replay()
    assert torch.equal(found[0], want[0]) and torch.equal(found[1], want[1])


# ---- points in boxes


def cloud(count, num_boxes, seed=0, dtype=torch.float32, device="cpu"):
    random = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 4, generator=random) - 0.5) * torch.tensor([40.0, 40, 4, 1])
    flat = random_boxes(num_boxes, 20, seed)
    height = torch.rand(num_boxes, 2, generator=random, dtype=torch.float64) * torch.tensor([1.0, 3])
    boxes = torch.cat([flat[:, :2], height[:, :1], flat[:, 2:4], height[:, 1:], flat[:, 4:]], dim=1)
    return points.to(device, dtype), boxes.to(device, dtype)


@pytest.mark.parametrize("use_twin", [False, True])
def test_points_equal_loops(use_twin, request):
    if use_twin:
        request.getfixturevalue("only_twin")
    points, boxes = cloud(400, 25, 1, torch.float64)
    batches = torch.arange(400) % 3, torch.arange(25) % 3
    for batch, margin in itertools.product((False, True), (0.0, 0.7)):
        found = ops.points_in_boxes(points, boxes, *(batches if batch else ()), margin=margin)
        first, count = [-1] * 400, [0] * 25
        for p, b in itertools.product(range(400), range(25)):
            x, y, z, length, width, height, yaw = boxes[b].tolist()
            turned = complex(points[p, 0] - x, points[p, 1] - y) * complex(math.cos(yaw), -math.sin(yaw))
            offset = (turned.real, turned.imag, float(points[p, 2]) - z)
            inside = all(abs(o) <= s / 2 + margin for o, s in zip(offset, (length, width, height), strict=True))
            if inside and (not batch or p % 3 == b % 3):
                count[b] += 1
                first[p] = b if first[p] < 0 else first[p]
        assert found.box.tolist() == first and found.count.tolist() == count
        assert sum(count) > 10


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("count", "num_boxes"), [(0, 3), (5, 0), (1, 1), (777, 13), (30_000, 150)])
def test_points_kernel_equals_twin(device, dtype, count, num_boxes):
    if device not in library.DEVICES:
        pytest.skip(f"no compiled kernel for {device}: {library.PROBLEM or 'compiled without'}")
    points, boxes = cloud(count, num_boxes, 2, dtype, device)
    points[::11, 1] = math.nan
    boxes[::5, 3] = -1
    boxes[1::7, 6] = math.nan
    boxes[2::9, 3] = math.inf
    found = ops.points_in_boxes(points, boxes)
    first, number = reference.points_in_boxes(points, boxes, None, None, 0.0)
    assert torch.equal(found.box, first) and torch.equal(found.count, number)
    batches = torch.arange(count, device=device) % 4, torch.arange(num_boxes, device=device) % 4
    found = ops.points_in_boxes(points, boxes, *batches, margin=0.5)
    first, number = reference.points_in_boxes(points, boxes, *batches, 0.5)
    assert torch.equal(found.box, first) and torch.equal(found.count, number)


def test_points_on_faces_far_away_and_in_several_boxes():
    box = torch.tensor([1000.0, -2000, 1, 4, 2, 3, 0])
    corner = box[:3] + box[3:6] / 2
    points = torch.stack([corner, corner + torch.tensor([0.001, 0, 0]), corner - torch.tensor([0, 0, 3.001]), box[:3]])
    found = ops.points_in_boxes(points, torch.stack([box, box]))
    assert found.box.tolist() == [0, -1, -1, 0] and found.count.tolist() == [2, 2]
    assert ops.points_in_boxes(points, box[None], margin=0.01).count.tolist() == [4]
    assert ops.points_in_boxes(points, box[None], margin=-5.0).count.tolist() == [0]


def test_points_wrong_input():
    points, boxes = cloud(3, 2)
    batch = torch.zeros(3, dtype=torch.int64)
    for args, message in [
        ((points[:, :2], boxes), r"points has shape \[3, 2\]"),
        ((points, boxes[:, :6]), r"boxes has shape \[2, 6\]"),
        ((points.long(), boxes), "points is torch.int64"),
        ((points, boxes, batch), "expected both or neither"),
        ((points, boxes, batch, batch), "as many of each"),
        ((points, boxes.to("meta")), "expected one"),
    ]:
        with pytest.raises(ValueError, match=message):
            ops.points_in_boxes(*args)


# ---- what torch asks, and what must hold for all


def calls(device="cpu"):
    a, b = random_boxes(30, 4, 1, torch.float32, device), random_boxes(30, 4, 2, torch.float32, device)
    boxes, scores, labels = clustered(90, 2, device=device)
    points, cuboids = cloud(50, 6, 3, device=device)
    return {
        "box_iou_bev": (lambda a, b: ops.box_iou_bev(a, b), (a, b)),
        "box_iou_bev_aligned": (lambda a, b: ops.box_iou_bev_aligned(a, b), (a, b)),
        "nms_bev": (lambda b, s, n: ops.nms_bev_padded(b, s, n, [0.2] * 10, 40)[0], (boxes, scores, labels)),
        "points_in_boxes": (lambda p, b: ops.points_in_boxes(p, b).count, (points, cuboids)),
    }


@compiled
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    op = torch.ops.fusion3d
    a, b = random_boxes(9, 3, 1, torch.float32, device), random_boxes(9, 3, 2, torch.float32, device)
    torch.library.opcheck(op.box_iou_bev.default, (a, b[:5]))
    torch.library.opcheck(op.box_iou_bev_aligned.default, (a.clone().requires_grad_(), b.clone().requires_grad_()))
    torch.library.opcheck(op.box_iou_bev_aligned_backward.default, (torch.ones(9, device=device), a, b))
    boxes, scores, labels = clustered(40, 2, device=device)
    torch.library.opcheck(op.nms_bev.default, (boxes, scores, labels, [0.2], 10, 0))
    points, cuboids = cloud(20, 4, device=device)
    torch.library.opcheck(op.points_in_boxes.default, (points, cuboids, None, None, 0.1))
    batches = torch.zeros(20, dtype=torch.int64, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    torch.library.opcheck(op.points_in_boxes.default, (points, cuboids, *batches, 0.1))


@compiled
@pytest.mark.parametrize("name", list(calls()))
def test_compiles_and_exports_into_one_graph(name):
    call, inputs = calls()[name]
    want = call(*inputs)
    for backend in ("eager", "aot_eager"):
        assert torch.equal(torch.compile(call, backend=backend, fullgraph=True)(*inputs), want)

    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return call(*inputs)

    exported = torch.export.export(Module(), inputs)
    assert torch.equal(exported.module()(*inputs), want)


@compiled
def test_compiled_gradient():
    a, b = (random_boxes(20, 2, seed, torch.float32).requires_grad_() for seed in (1, 2))
    want = torch.autograd.grad(ops.box_iou_bev_aligned(a, b).sum(), (a, b))
    traced = torch.compile(ops.box_iou_bev_aligned, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, torch.autograd.grad(traced(a, b).sum(), (a, b)), want))


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_for_any_run_and_thread_count(device):
    def bits(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            a, b = random_boxes(2000, 20, 1, torch.float32, device), random_boxes(2000, 20, 2, torch.float32, device)
            a.requires_grad_()
            rows = ops.box_iou_bev_aligned(a, b)
            points, cuboids = cloud(40_000, 60, 1, device=device)
            boxes, scores, labels = clustered(3000, 3, device=device)
            return [
                rows.detach(), *torch.autograd.grad(rows.sum(), a), ops.box_iou_bev(a[:300], b),
                ops.nms_bev(boxes, scores, labels, 0.2, 500), *vars(ops.points_in_boxes(points, cuboids)).values(),
            ]  # fmt: skip
        finally:
            torch.set_num_threads(before)

    first = bits(1)
    for threads in (1, 2, 3, 4):
        assert all(torch.equal(a, b) for a, b in zip(first, bits(threads), strict=True)), threads


def test_non_contiguous_and_mixed_dtypes():
    a, b = random_boxes(30, 4, 1), random_boxes(40, 4, 2)
    strided = a.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(ops.box_iou_bev(strided, b[::2]), ops.box_iou_bev(a, b[::2].contiguous()))
    found = ops.box_iou_bev(a.float(), b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ops.box_iou_bev(a.float().double(), b).float())
    points, boxes = cloud(100, 9)
    assert torch.equal(ops.points_in_boxes(points[::2], boxes).box, ops.points_in_boxes(points, boxes).box[::2])


def test_autocast_leaves_coordinates_alone():
    a, b = random_boxes(30, 4, 1, torch.float32), random_boxes(30, 4, 2, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.box_iou_bev_aligned(a, b), ops.box_iou_bev_aligned(a, b).float())
        found = ops.box_iou_bev(a, b)
    assert torch.equal(found, ops.box_iou_bev(a, b))


def test_without_library_the_twin_runs_with_one_warning(monkeypatch):
    wants = [call(*inputs) for call, inputs in calls().values()]
    monkeypatch.setattr(library, "DEVICES", frozenset())
    monkeypatch.setattr(library, "_warned", set())
    with pytest.warns(RuntimeWarning, match="pure-torch") as caught:
        found = [call(*inputs) for call, inputs in calls().values()]
    assert len(caught) == 1
    for one, want in zip(found, wants, strict=True):
        torch.testing.assert_close(one, want, rtol=1e-5, atol=1e-6)


def test_wrong_boxes_say_what_was_expected():
    a, b = random_boxes(3, 1), random_boxes(4, 1)
    for face in (ops.box_iou_bev, ops.box_iou_bev_aligned):
        for args, message in [
            ((a[:, :4], b), r"a has shape \[3, 4\]; expected \[N, 5\]"),
            ((a, b[0]), r"b has shape \[5\]"),
            ((a.long(), b), "a is torch.int64"),
            ((a, b.to("meta")), "expected one device"),
        ]:
            with pytest.raises(ValueError, match=message):
                face(*args)
    with pytest.raises(ValueError, match="a has 3 boxes and b 4"):
        ops.box_iou_bev_aligned(a, b)


@compiled
def test_the_operations_themselves_reject_what_they_cannot_read():
    op = torch.ops.fusion3d
    a = random_boxes(3, 1, dtype=torch.float32)
    labels = torch.zeros(3, dtype=torch.int64)
    points = torch.zeros(5, 3)
    for call, message in [
        (lambda: op.box_iou_bev(a, a.T.contiguous().T), "contiguous"),
        (lambda: op.box_iou_bev(a, a.double()), "wrong dtype"),
        (lambda: op.box_iou_bev_aligned(a, a[:2]), "as many rows"),
        (lambda: op.box_iou_bev_aligned_backward(torch.ones(2), a, a), "grad must have"),
        (lambda: op.nms_bev(a, a[:, 0].contiguous(), labels, [], 5, 0), "thresholds"),
        (lambda: op.nms_bev(a, a[:, 0].contiguous(), labels, [0.1], 5, 3), "metric"),
        (lambda: op.nms_bev(a, a[:, 0].contiguous(), labels[:2], [0.1], 5, 0), "equally many"),
        (lambda: op.points_in_boxes(points, a, None, None, 0.0), "N, 7"),
        (lambda: op.points_in_boxes(points, torch.zeros(2, 7), labels, None, 0.0), "neither"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
