"""Classes seen from a camera: where boxes fall, which is nearest, and what is not counted."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fusion3d.config import Config
from fusion3d.data.augment import bev_matrix
from fusion3d.engine.random_batch import random_batch
from fusion3d.geometry import apply, box_corners
from fusion3d.heads.detection import focal_loss
from fusion3d.heads.image import HIDDEN, ImageClasses, ImageOutput, image_classes
from fusion3d.types import Boxes, Cameras

STRIDE, SHAPE = 8, (16, 32)
EGO_FROM_CAM = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])  # looks along ego x


def a_camera(batch_index: int = 0) -> Cameras:
    intrinsics = torch.eye(4)
    intrinsics[0, 0] = intrinsics[1, 1] = 128.0
    intrinsics[0, 2], intrinsics[1, 2] = 127.5, 63.5
    return Cameras(
        images=torch.zeros(1, 3, SHAPE[0] * STRIDE, SHAPE[1] * STRIDE),
        image_from_cam=intrinsics[None],
        ego_from_cam=EGO_FROM_CAM[None],
        batch_index=torch.tensor([batch_index]),
        channels=("CAM_FRONT",),
    )


def boxes(*rows: tuple[float, ...], visibility: list[int] | None = None) -> Boxes:
    """Rows of x, y, z, length, width, height, yaw, label."""
    table = torch.tensor(rows)
    seen = None if visibility is None else torch.tensor(visibility)
    return Boxes.of(table[:, :3], table[:, 3:6], table[:, 6], label=table[:, 7], visibility=seen)


def test_the_cells_of_a_box_are_those_inside_its_projection() -> None:
    camera, box = a_camera(), boxes((20.0, 1.0, 1.0, 4.0, 2.0, 2.0, 0.6, 0))
    label = image_classes(camera, (box,), SHAPE, STRIDE)[0]
    cam = apply(torch.linalg.inv(EGO_FROM_CAM), box_corners(box.center, box.size, box.yaw)[0])
    pixel = apply(camera.image_from_cam[0], cam)
    pixel = pixel[:, :2] / pixel[:, 2:]
    center = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(32.0), indexing="ij")[::-1], -1) * 8 + 3.5
    low, high = pixel.amin(0), pixel.amax(0)
    surely = ((center > low + 8) & (center < high - 8)).all(-1)
    maybe = ((center > low - 8) & (center < high + 8)).all(-1)
    assert (label >= 0).sum() >= 4
    assert (label[~maybe] == -1).all()
    assert (label[surely] == 0).all()


def test_the_nearest_box_is_what_is_seen() -> None:
    pair = boxes((20.0, 0.0, 1.0, 4.0, 12.0, 6.0, 0.0, 1), (10.0, 0.0, 1.0, 1.0, 1.0, 3.0, 0.3, 5))
    label = image_classes(a_camera(), (pair,), SHAPE, STRIDE)[0]
    assert label[8, 16] == 5
    assert (label == 1).any()
    swapped = pair[torch.tensor([1, 0])]
    assert torch.equal(label, image_classes(a_camera(), (swapped,), SHAPE, STRIDE)[0])


def test_a_far_and_small_box_still_has_a_cell() -> None:
    cone = boxes((45.0, 3.0, 0.5, 0.4, 0.4, 1.0, 0.0, 8))
    assert (image_classes(a_camera(), (cone,), SHAPE, STRIDE) == 8).any()


@pytest.mark.parametrize(
    "hidden",
    [
        boxes((-20.0, 0.0, 1.0, 4.0, 4.0, 4.0, 0.0, 1)),  # behind the camera
        boxes((0.5, 0.0, 1.5, 4.0, 4.0, 4.0, 0.0, 1)),  # around the camera
        Boxes.empty(),
    ],
)
def test_what_cannot_be_seen_is_not_asked_for(hidden: Boxes) -> None:
    assert (image_classes(a_camera(), (hidden,), SHAPE, STRIDE) == -1).all()


def test_a_box_around_the_camera_hides_nothing() -> None:
    ahead = (20.0, 0.0, 1.0, 4.0, 4.0, 4.0, 0.0, 1)
    label = image_classes(a_camera(), (boxes(ahead, (0.5, 0.0, 1.5, 4.0, 4.0, 4.0, 0.0, 2)),), SHAPE, STRIDE)
    assert torch.equal(label, image_classes(a_camera(), (boxes(ahead),), SHAPE, STRIDE)) and (label == 1).any()


def test_a_hidden_box_is_neither_its_class_nor_background() -> None:
    batch, box = one_camera_batch(), (20.0, 0.0, 1.0, 4.0, 4.0, 4.0, 0.0, 1)
    hidden = boxes(box, visibility=[1])
    label = image_classes(a_camera(), (hidden,), SHAPE, STRIDE)
    seen = image_classes(a_camera(), (boxes(box, visibility=[4]),), SHAPE, STRIDE)
    assert torch.equal(label == HIDDEN, seen == 1) and (label == HIDDEN).any()
    batch = dataclasses.replace(batch, boxes=(hidden,))
    logits = torch.randn(1, 10, *SHAPE)
    other = torch.where(label[:, None] == HIDDEN, 7.0, logits)
    head = ImageClasses(4, STRIDE, weight=1.0)
    one, two = (head.losses(ImageOutput(x, a_camera()), batch)["image"] for x in (logits, other))
    assert torch.equal(one, two) and one > 0


def one_camera_batch():
    config = Config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=(64, 64)))
    return dataclasses.replace(random_batch(config, 1), cameras=a_camera())


def test_samples_without_annotations_do_not_count_and_the_weight_does() -> None:
    one = one_camera_batch()
    assert one.boxes is not None
    pair = Cameras(
        images=torch.zeros(2, 3, SHAPE[0] * STRIDE, SHAPE[1] * STRIDE),
        image_from_cam=a_camera().image_from_cam.expand(2, 4, 4),
        ego_from_cam=EGO_FROM_CAM.expand(2, 4, 4),
        batch_index=torch.tensor([0, 1]),
        channels=("CAM_FRONT", "CAM_FRONT"),
    )
    box = boxes((20.0, 0.0, 1.0, 4.0, 4.0, 4.0, 0.0, 1))
    alone = dataclasses.replace(one, boxes=(box,))
    both = dataclasses.replace(one, boxes=(box, Boxes.empty()), annotated=torch.tensor([True, False]))
    logits = torch.randn(2, 10, *SHAPE)
    expected = ImageClasses(4, STRIDE, weight=1.0).losses(ImageOutput(logits[:1], a_camera()), alone)["image"]
    found = ImageClasses(4, STRIDE, weight=3.0).losses(ImageOutput(logits, pair), both)["image"]
    torch.testing.assert_close(found, 3 * expected)


@pytest.mark.parametrize(("angle", "scale", "flip_y"), [(0.0, 1.0, True), (0.7, 1.0, False), (0.0, 1.1, False)])
def test_the_world_may_be_augmented(angle: float, scale: float, flip_y: bool) -> None:
    """A mirrored, turned or scaled world, seen by an equally moved camera, shows the same."""
    pair = boxes((20.0, 0.0, 1.0, 4.0, 12.0, 6.0, 0.3, 1), (10.0, 1.0, 1.0, 1.0, 1.0, 3.0, 0.3, 5))
    matrix = torch.as_tensor(bev_matrix(angle, scale, flip_y=flip_y), dtype=torch.float32)
    moved = dataclasses.replace(
        pair,
        center=apply(matrix, pair.center),
        size=pair.size * scale,
        yaw=-pair.yaw if flip_y else pair.yaw + angle,
    )
    camera = dataclasses.replace(a_camera(), ego_from_cam=matrix @ a_camera().ego_from_cam)
    wanted = image_classes(a_camera(), (pair,), SHAPE, STRIDE)
    assert {-1, 1, 5} == set(wanted.unique().tolist())
    assert torch.equal(image_classes(camera, (moved,), SHAPE, STRIDE), wanted)


def test_each_image_is_told_about_its_own_sample() -> None:
    one = boxes((20.0, 0.0, 1.0, 4.0, 4.0, 4.0, 0.0, 3))
    assert (image_classes(a_camera(1), (one, Boxes.empty()), SHAPE, STRIDE) == -1).all()
    assert (image_classes(a_camera(1), (Boxes.empty(), one), SHAPE, STRIDE) == 3).any()


def test_the_loss_is_small_for_the_truth_and_zero_without_annotations() -> None:
    torch.manual_seed(0)
    config = Config()
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=(64, 64)))
    batch = random_batch(config, 2)
    assert batch.cameras is not None and batch.boxes is not None
    head = ImageClasses(4, STRIDE, weight=2.0)
    label = image_classes(batch.cameras, batch.boxes, (8, 8), STRIDE)
    truth = torch.nn.functional.one_hot(label + 1, 11)[..., 1:].permute(0, 3, 1, 2).float()
    right = head.losses(ImageOutput(truth * 40 - 20, batch.cameras), batch)["image"]
    wrong = head.losses(ImageOutput(20 - truth * 40, batch.cameras), batch)["image"]
    assert right < 1e-4 < 1 < wrong
    logits = torch.randn(len(label), 10, 8, 8, requires_grad=True)
    none = head.losses(ImageOutput(logits, batch.cameras), dataclasses.replace(batch, boxes=None))["image"]
    none.backward()
    assert none.item() == 0 and logits.grad is not None


def test_focal_loss_by_hand() -> None:
    logits, target = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([1.0, 0.4, 0.0])
    p = [1 / (1 + math.exp(-x)) for x in logits.tolist()]
    expected = [
        -((1 - p[0]) ** 2) * math.log(p[0]),
        -((1 - 0.4) ** 4) * p[1] ** 2 * math.log(1 - p[1]),
        -(p[2] ** 2) * math.log(1 - p[2]),
    ]
    torch.testing.assert_close(focal_loss(logits, target), torch.tensor(expected))
