"""Overlap of oriented boxes against shapely and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
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
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rectangles import DTYPES, polygon, random_boxes, shapely_iou

from fusion3d import ops
from fusion3d.ops import reference


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
@example((7e-14, 0, 384.5, 212.5, -1.1), (7e-14, 0, 384.5, 383.8, -1.1), 0)
@example((0, 0, 1e3, 1e3, 1), (9, 9, 1e-3, 1e-3, 2), 1e3)
def test_iou_of_any_two_boxes(a, b, shift):
    # Shapely too rounds where it is far from the origin, so it gets the boxes before they are shifted.
    overlap = polygon(a).intersection(polygon(b)).area
    if overlap == 0:  # where edges all but coincide, it may find nothing without a grid to snap to
        overlap = shapely.intersection(polygon(a), polygon(b), grid_size=1e-13 * max(a[2:4] + b[2:4])).area
    want = overlap / (a[2] * a[3] + b[2] * b[3] - overlap)
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
    needs_kernel(device)
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


def pair(device="cpu", count=30):
    return random_boxes(count, 4, 1, torch.float32, device), random_boxes(count, 4, 2, torch.float32, device)


@compiled
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    op = torch.ops.fusion3d
    a, b = pair(device, 9)
    opcheck(op.box_iou_bev, a, b[:5])
    opcheck(op.box_iou_bev_aligned, a.clone().requires_grad_(), b.clone().requires_grad_())
    opcheck(op.box_iou_bev_aligned_backward, torch.ones(9, device=device), a, b)


@compiled
@pytest.mark.parametrize("face", [ops.box_iou_bev, ops.box_iou_bev_aligned])
def test_traces(face):
    assert_traces(lambda a, b: face(a, b), *pair())
    rows = torch.export.Dim("rows")
    program, args = exported(face, *pair(), dynamic_shapes=[{0: rows}] * 2), pair(count=7)
    torch.testing.assert_close(program(*args), face(*args), rtol=0, atol=0)


@compiled
def test_compiled_gradient():
    a, b = (random_boxes(20, 2, seed, torch.float32).requires_grad_() for seed in (1, 2))
    want = torch.autograd.grad(ops.box_iou_bev_aligned(a, b).sum(), (a, b))
    traced = torch.compile(ops.box_iou_bev_aligned, backend="aot_eager", fullgraph=True)
    assert all(map(torch.equal, torch.autograd.grad(traced(a, b).sum(), (a, b)), want))


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_for_any_run_and_thread_count(device):
    a, b = random_boxes(2000, 20, 1, torch.float32, device), random_boxes(2000, 20, 2, torch.float32, device)
    a.requires_grad_()

    def run():
        rows = ops.box_iou_bev_aligned(a, b)
        return rows, torch.autograd.grad(rows.sum(), a), ops.box_iou_bev(a[:300], b)

    assert_same_bits(run)


def test_non_contiguous_and_mixed_dtypes():
    a, b = random_boxes(30, 4, 1), random_boxes(40, 4, 2)
    strided = a.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(ops.box_iou_bev(strided, b[::2]), ops.box_iou_bev(a, b[::2].contiguous()))
    found = ops.box_iou_bev(a.float(), b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ops.box_iou_bev(a.float().double(), b).float())


def test_autocast_leaves_coordinates_alone():
    a, b = random_boxes(30, 4, 1, torch.float32), random_boxes(30, 4, 2, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ops.box_iou_bev_aligned(a, b), ops.box_iou_bev_aligned(a, b).float())
        found = ops.box_iou_bev(a, b)
    assert torch.equal(found, ops.box_iou_bev(a, b))


def test_without_library_the_twin_runs_with_one_warning(monkeypatch):
    a, b = pair()
    assert_twin_warns_once(monkeypatch, lambda: (ops.box_iou_bev(a, b), ops.box_iou_bev_aligned(a, b)))


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
    for call, message in [
        (lambda: op.box_iou_bev(a, a.T.contiguous().T), "contiguous"),
        (lambda: op.box_iou_bev(a, a.double()), "wrong dtype"),
        (lambda: op.box_iou_bev_aligned(a, a[:2]), "as many rows"),
        (lambda: op.box_iou_bev_aligned_backward(torch.ones(2), a, a), "grad must have"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call()
