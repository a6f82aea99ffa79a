"""Points in boxes by their definition; the kernel against its twin."""

from __future__ import annotations

import itertools
import math

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
from rectangles import DTYPES, polygon, random_boxes

from fusion3d import ops
from fusion3d.ops import reference


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
    needs_kernel(device)
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


@pytest.mark.parametrize("count", [3, 200_000])
def test_boxes_that_are_none_or_all_alike(count):
    """Boxes without a place hold nothing; very many that cover one another are a list of no more than themselves."""
    points = cloud(20, 1, 1)[0] * 0.3
    one = torch.tensor([0.0, 0, 0, 10, 6, 3, 0.3])
    inside = ops.points_in_boxes(points, one[None])
    boxes = one.repeat(count, 1)
    boxes[0, 0], boxes[1, 6] = math.nan, math.inf
    found = ops.points_in_boxes(points, boxes)
    want = torch.where(inside.box == 0, 2, -1)
    assert torch.equal(found.box, want) and (want == 2).any() and not found.count[:2].any()
    assert (found.count[2:] == (want == 2).sum()).all()


def test_points_in_a_footprint_as_shapely_says():
    shapely = pytest.importorskip("shapely")
    box = torch.tensor([[1.0, 2, 0.5, 4, 2, 1, 0.7]], dtype=torch.float64)
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 8 - 3
    points[:, 2] = 0.5
    want = torch.from_numpy(shapely.contains_xy(polygon(box[0, [0, 1, 3, 4, 6]].tolist()), *points[:, :2].T.numpy()))
    assert torch.equal(ops.points_in_boxes(points, box).box == 0, want) and 0 < want.sum() < 500


@compiled
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    points, boxes = cloud(20, 4, device=device)
    opcheck(torch.ops.fusion3d.points_in_boxes, points, boxes, None, None, 0.1)
    batches = torch.zeros(20, dtype=torch.int64, device=device), torch.zeros(4, dtype=torch.int64, device=device)
    opcheck(torch.ops.fusion3d.points_in_boxes, points, boxes, *batches, 0.1)


@compiled
def test_traces():
    def both(points, boxes):
        found = ops.points_in_boxes(points, boxes)
        return found.box, found.count

    assert_traces(both, *cloud(50, 6, 3))
    sizes = [{0: torch.export.Dim("points")}, {0: torch.export.Dim("boxes")}]
    program, args = exported(both, *cloud(50, 6, 3), dynamic_shapes=sizes), cloud(90, 7, 4)
    torch.testing.assert_close(program(*args), both(*args), rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_for_any_run_and_thread_count(device):
    points, boxes = cloud(40_000, 60, 1, device=device)
    assert_same_bits(lambda: list(vars(ops.points_in_boxes(points, boxes)).values()))


def test_non_contiguous():
    points, boxes = cloud(100, 9)
    assert torch.equal(ops.points_in_boxes(points[::2], boxes).box, ops.points_in_boxes(points, boxes).box[::2])


def test_without_library_the_twin_runs_with_one_warning(monkeypatch):
    args = cloud(50, 6, 3)
    assert_twin_warns_once(monkeypatch, lambda: list(vars(ops.points_in_boxes(*args)).values()))


@compiled
def test_the_operation_itself_rejects_what_it_cannot_read():
    op, points = torch.ops.fusion3d.points_in_boxes, torch.zeros(5, 3)
    with pytest.raises(RuntimeError, match="N, 7"):
        op(points, torch.zeros(3, 5), None, None, 0.0)
    with pytest.raises(RuntimeError, match="neither"):
        op(points, torch.zeros(2, 7), torch.zeros(5, dtype=torch.int64), None, 0.0)
