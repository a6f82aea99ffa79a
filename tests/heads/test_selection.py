"""Which boxes stay: each rule against a plain loop, class by class."""

from __future__ import annotations

import pytest
import torch

from fusion3d.config import DetectionConfig
from fusion3d.errors import ConfigError
from fusion3d.heads.selection import Selection
from fusion3d.ops import box_iou_bev
from fusion3d.types import DETECTION_CLASSES, Boxes

CENTER_POINT = {"car": 4, "truck": 12, "bus": 10, "barrier": 1, "motorcycle": 0.85, "pedestrian": 0.175}  # squared [m2]


def crowd(count: int = 160, seed: int = 0) -> Boxes:
    """Two samples of boxes on a small spot; some scores are equal."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    return Boxes.of(
        center=rand(count, 3) * 8,
        size=rand(count, 3) * 3 + 0.3,
        yaw=rand(count) * 6,
        label=torch.randint(0, 10, (count,), generator=generator),
        score=(rand(count) * 50).floor() / 50,
    )


def plain(boxes: Boxes, overlaps, min_score: dict[str, float], most: dict[str, int], max_boxes: int) -> list[int]:
    """Greedy choice in one sample."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-boxes.score[i].item(), i)):
        name = DETECTION_CLASSES[boxes.label[i]]
        same = [j for j in kept if boxes.label[j] == boxes.label[i]]
        if boxes.score[i] > min_score.get(name, 0.1) and not any(overlaps(j, i, name) for j in same):
            kept.append(i)
    ranked: dict[int, int] = {}
    allowed = []
    for i in kept:
        label = int(boxes.label[i])
        ranked[label] = ranked.get(label, 0) + 1
        if ranked[label] <= most.get(DETECTION_CLASSES[label], 1000):
            allowed.append(i)
    return allowed[:max_boxes]


def check(config: DetectionConfig, overlaps, **rules) -> None:
    boxes = crowd()
    found = Selection(config, usual="circle")(boxes, 2)
    for sample in range(2):
        own = boxes[torch.arange(80) + 80 * sample]
        expected = own[torch.tensor(plain(own, overlaps(own), **rules), dtype=torch.int64)]
        assert 5 < len(expected) < 80
        assert torch.equal(found[sample].center, expected.center)


def test_circle_with_radii_by_class():
    def overlaps(own: Boxes):
        return lambda j, i, name: (own.center[j, :2] - own.center[i, :2]).norm() < radius[name]

    radius = {name: CENTER_POINT.get(name, 0) ** 0.5 for name in DETECTION_CLASSES}
    radius |= {"construction_vehicle": 12**0.5, "trailer": 10**0.5, "bicycle": 0.85**0.5, "traffic_cone": 0.175**0.5}
    rules = {"min_score": {}, "most": {}, "max_boxes": 300}
    check(DetectionConfig(score_threshold=0.1), overlaps, **rules)  # none of these distances is between the roundings
    radius |= {"pedestrian": 2.5, "car": 0.1}
    changed = DetectionConfig(score_threshold=0.1, nms="circle", circle_radius={"pedestrian": 2.5, "car": 0.1})
    check(changed, overlaps, **rules)


def test_rotated_with_overlaps_and_scales_by_class():
    scale, limit = {"pedestrian": 2.0, "bus": 0.4}, {"car": 0.5, "barrier": 0.0}

    def overlaps(own: Boxes):
        factor = torch.tensor([scale.get(DETECTION_CLASSES[n], 1.0) for n in own.label])
        flat = torch.cat([own.center[:, :2], own.size[:, :2] * factor[:, None], own.yaw[:, None]], dim=1)
        iou = box_iou_bev(flat, flat)
        return lambda j, i, name: iou[j, i] > limit.get(name, 0.2)

    config = DetectionConfig(score_threshold=0.1, nms="rotated", nms_scale=scale, rotated_overlap=limit)  # type: ignore[arg-type]
    check(config, overlaps, min_score={}, most={}, max_boxes=300)


@pytest.mark.parametrize("max_boxes", [300, 20])
def test_limits_and_scores_by_class(max_boxes):
    config = DetectionConfig(
        nms="none",
        score_threshold=0.1,
        max_boxes=max_boxes,
        class_score_threshold={"car": 0.5, "bus": 0.0},
        class_max_boxes={"pedestrian": 2, "truck": 1},
    )
    rules = {"min_score": {"car": 0.5, "bus": 0.0}, "most": {"pedestrian": 2, "truck": 1}, "max_boxes": max_boxes}
    check(config, lambda own: lambda j, i, name: False, **rules)


def test_auto_is_what_the_head_is_used_to():
    boxes = Boxes.of(torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(2), score=torch.tensor([0.8, 0.9]))
    assert [len(Selection(DetectionConfig(), usual)(boxes, 1)[0]) for usual in ("circle", None)] == [1, 2]
    assert len(Selection(DetectionConfig(nms="rotated"), None)(boxes, 1)[0]) == 1


def test_nothing_at_all():
    boxes = Boxes.of(torch.zeros(4, 3), torch.ones(4, 3), torch.zeros(4), score=torch.zeros(4))
    assert [len(b) for b in Selection(DetectionConfig(class_max_boxes={"car": 3}), "circle")(boxes, 2)] == [0, 0]


@pytest.mark.parametrize(
    ("nms", "key"), [("auto", "nms_scale"), ("none", "rotated_overlap"), ("rotated", "circle_radius")]
)
def test_a_setting_of_another_suppression_is_an_error(nms, key):
    config = DetectionConfig(nms=nms, **{key: {"bus": 0.5}})
    with pytest.raises(ConfigError, match=rf"detection\.{key} is set, and detection\.nms is '{nms}': set it to"):
        Selection(config, usual="circle")
