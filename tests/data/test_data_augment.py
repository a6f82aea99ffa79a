"""World augmentation: its inverse gives everything back, and what belongs together stays together."""

from __future__ import annotations

import dataclasses
import math
from operator import attrgetter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d import ops
from fusion3d.config import AugmentConfig, DataConfig
from fusion3d.data import NuScenesDataset, collate
from fusion3d.data.augment import (
    bev_matrix,
    draw_bev_augmentation,
    transform_batch,
    transform_boxes,
    transform_sample,
    transform_trajectory,
)
from fusion3d.data.maps import crop_map
from fusion3d.geometry import apply
from fusion3d.types import COMMANDS, BEVGrid, Boxes, EgoStatus, Sample, Trajectory

angles = st.floats(-3.2, 3.2)
scales = st.floats(0.5, 2.0)
shifts = st.tuples(*[st.floats(-3, 3)] * 3)
worlds = {"angle": angles, "scale": scales, "flip_x": st.booleans(), "flip_y": st.booleans(), "shift": shifts}


@pytest.fixture(scope="module")
def sample(tiny_root) -> Sample:
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", image_size=(45, 80), lidar_sweeps=3, radar_sweeps=2)
    return NuScenesDataset(config, "mine", BEVGrid(), with_map=False, with_motion=True)[2]


def tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return [t for f in dataclasses.fields(value) for t in tensors(getattr(value, f.name))]
    return []


@settings(max_examples=25, deadline=None)
@given(**worlds)
def test_the_inverse_gives_everything_back(sample, **world):
    matrix = bev_matrix(**world)
    before = [t.clone() for t in tensors(sample)]
    there = transform_sample(sample, matrix)
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(before, tensors(sample), strict=True))
    back = transform_sample(there, np.linalg.inv(matrix))
    assert back.command == sample.command and back.cameras.channels == sample.cameras.channels
    for name in ("boxes", "future", "past", "motion.now", "motion.path"):
        for value in (attrgetter(name)(back), attrgetter(name)(sample)):
            value.yaw.copy_(torch.remainder(value.yaw + 1e-4, 2 * math.pi))  # -pi is pi
    for ours, original in zip(tensors(back), tensors(sample), strict=True):
        torch.testing.assert_close(ours, original, atol=2e-4, rtol=1e-5, equal_nan=True)


def membership(points, boxes, margin=0.0):
    """[K, P] whether a box holds a point."""
    rows = torch.cat([boxes.center, boxes.size, boxes.yaw[:, None]], dim=1)
    return torch.stack([ops.points_in_boxes(points, row[None], margin=margin).box >= 0 for row in rows])


@settings(max_examples=25, deadline=None)
@given(**worlds)
def test_what_belongs_together_stays_together(sample, **world):
    matrix = bev_matrix(**world)
    there = transform_sample(sample, matrix)
    # The same points are in the same boxes (margin: rounding).
    points = torch.cat(
        [sample.boxes.center + 0.4 * sample.boxes.size * s for s in (-0.5, 0.0, 0.3)] + [sample.lidar[:, :3]]
    )
    moved = apply(torch.from_numpy(matrix), points.double()).float()
    inside = [membership(points, sample.boxes, margin) for margin in (-1e-3, 1e-3)]
    now = membership(moved, there.boxes)
    assert (inside[0] <= now).all() and (now <= inside[1]).all() and inside[0].any()
    # Each camera sees each point at the same pixel.
    for m in range(len(sample.cameras.channels)):
        cam = apply(torch.linalg.inv(sample.cameras.ego_from_cam[m].double()), points.double())
        cam_there = apply(torch.linalg.inv(there.cameras.ego_from_cam[m].double()), moved.double())
        torch.testing.assert_close(cam, cam_there, atol=1e-3, rtol=1e-4)
    # Something that moves on with its velocity is where the moved velocity brings it.
    after = sample.boxes.center.double().clone()
    after[:, :2] += sample.boxes.velocity * 0.5
    after = apply(torch.from_numpy(matrix), after.nan_to_num())[:, :2].where(
        sample.boxes.velocity.isfinite(), torch.nan
    )
    torch.testing.assert_close(
        (there.boxes.center[:, :2] + there.boxes.velocity * 0.5).double(), after, atol=1e-3, rtol=1e-4, equal_nan=True
    )
    assert there.lidar[:, 3:].equal(sample.lidar[:, 3:]) and there.radar[:, 6:-2].equal(sample.radar[:, 6:-2])
    turned = sample.radar[:, -2:].double() @ torch.from_numpy(matrix[:2, :2]).T
    torch.testing.assert_close(there.radar[:, -2:].double(), turned, atol=1e-5, rtol=1e-5)  # the rays


@settings(max_examples=25, deadline=None)
@given(**worlds)
def test_radar_still_measures_along_its_rays(**world):
    """Compensated velocities point along the ray from the radar, which goes with the world like all else."""
    matrix = torch.from_numpy(bev_matrix(**world))
    rng = np.random.default_rng(0)
    radar, returns = torch.tensor([[3.4, 0.6, 0.5]], dtype=torch.float64), torch.zeros(40, 14)
    returns[:, :3] = torch.from_numpy(rng.uniform(-50, 50, (40, 3)))
    ray = torch.nn.functional.normalize(returns[:, :2].double() - radar[:, :2], dim=1)
    speed = torch.from_numpy(rng.normal(0, 8, (40, 1)))
    returns[:, 4:6] = (speed * ray).float()
    there = transform_sample(simple(radar=returns), matrix).radar.double()
    ray_there = torch.nn.functional.normalize(there[:, :2] - apply(matrix, radar)[:, :2], dim=1)
    torch.testing.assert_close(there[:, 4:6], world["scale"] * speed * ray_there, atol=1e-3, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(**worlds)
def test_a_batch_moves_as_its_samples_do(sample, **world):
    matrix = bev_matrix(**world)
    bare = dataclasses.replace(sample, cameras=None, lidar=None, boxes=None, future=None, status=None, command=-1)
    for samples in ([sample, bare], [bare], [sample, sample]):
        ours, expected = (
            transform_batch(collate(samples), matrix),
            collate([transform_sample(s, matrix) for s in samples]),
        )
        for one, other in zip(tensors(ours), tensors(expected), strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)
    back = np.linalg.inv(matrix)
    there = transform_sample(sample, matrix)
    torch.testing.assert_close(transform_boxes(there.boxes, back).center, sample.boxes.center, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        transform_trajectory(there.future, back).position, sample.future.position, atol=1e-4, rtol=1e-5
    )
    with pytest.raises(ValueError, match="map masks"):
        transform_batch(collate([dataclasses.replace(bare, map_mask=torch.ones(1, 2, 2, dtype=torch.bool))]), matrix)


def test_a_shift_moves_places_and_not_directions():
    boxes = Boxes.of(torch.tensor([[10.0, 2, 1]]), torch.ones(1, 3), torch.tensor([0.3]), torch.tensor([[5.0, 1]]))
    path = Trajectory(torch.tensor([[3.0, 1], [0, 0]]), torch.zeros(2), torch.tensor([True, False]))
    status = EgoStatus(torch.tensor([8.0, 0]), torch.tensor([1.0, 2]), torch.tensor(0.4))
    one = simple(boxes=boxes, future=path, past=path, status=status, lidar=torch.tensor([[1.0, 2, 3, 0.5, 0.1]]))
    there = transform_sample(one, bev_matrix(shift=(1, -2, 0.5)))
    torch.testing.assert_close(there.boxes.center, torch.tensor([[11.0, 0, 1.5]]))
    torch.testing.assert_close(there.lidar, torch.tensor([[2.0, 0, 3.5, 0.5, 0.1]]))
    assert there.boxes.velocity.equal(boxes.velocity) and there.status.velocity.equal(status.velocity)
    assert there.boxes.yaw.equal(boxes.yaw)
    # A path is points of the frame; what is not known stays zero, and the vehicle itself is at the translation.
    assert there.future.position.tolist() == [[4.0, -1.0], [0.0, 0.0]]
    assert there.aug_from_ego[:3, 3].tolist() == [1.0, -2.0, 0.5]


def simple(**values) -> Sample:
    return Sample(
        token="t",
        scene="s",
        timestamp=0,
        global_from_ego=torch.eye(4, dtype=torch.float64),
        aug_from_ego=torch.eye(4),
        **values,
    )


def test_a_known_turn_and_a_known_mirror():
    boxes = Boxes.of(
        torch.tensor([[10.0, 2, 1]]), torch.tensor([[4.0, 2, 1.5]]), torch.tensor([0.3]), torch.tensor([[5.0, 1]])
    )
    radar = torch.zeros(1, 14)
    radar[0, :6] = torch.tensor([10.0, 2, 1, 7, 5, 1])
    path = Trajectory(torch.tensor([[3.0, 1]]), torch.tensor([0.2]), torch.tensor([True]))
    status = EgoStatus(torch.tensor([8.0, 0]), torch.tensor([1.0, 2]), torch.tensor(0.4))
    one = simple(boxes=boxes, radar=radar, future=path, past=path, status=status, command=COMMANDS.index("left"))
    turned = transform_sample(one, bev_matrix(math.pi / 2, 2.0))
    torch.testing.assert_close(turned.boxes.center, torch.tensor([[-4.0, 20, 2]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.boxes.size, torch.tensor([[8.0, 4, 3]]))
    torch.testing.assert_close(turned.boxes.yaw, torch.tensor([0.3 + math.pi / 2]))
    torch.testing.assert_close(turned.boxes.velocity, torch.tensor([[-2.0, 10]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.radar[0, :6], torch.tensor([-4.0, 20, 2, 7, -2, 10]), atol=1e-5, rtol=0)
    assert turned.command == one.command and float(turned.status.yaw_rate) == pytest.approx(0.4)
    mirrored = transform_sample(one, bev_matrix(flip_y=True))
    torch.testing.assert_close(mirrored.boxes.yaw, torch.tensor([-0.3]))
    torch.testing.assert_close(mirrored.boxes.velocity, torch.tensor([[5.0, -1]]))
    torch.testing.assert_close(mirrored.future.position, torch.tensor([[3.0, -1]]))
    torch.testing.assert_close(mirrored.past.yaw, torch.tensor([-0.2]))
    torch.testing.assert_close(mirrored.status.acceleration, torch.tensor([1.0, -2]))
    assert COMMANDS[mirrored.command] == "right" and float(mirrored.status.yaw_rate) == pytest.approx(-0.4)
    assert transform_sample(one, bev_matrix(flip_x=True, flip_y=True)).command == one.command
    assert transform_sample(simple(command=-1), bev_matrix(flip_y=True)).command == -1


def test_other_matrices_are_refused():
    shear, tilt, nowhere = np.eye(4), np.eye(4), np.eye(4)
    shear[0, 1], tilt[0, 2], nowhere[0, 3] = 0.5, 0.1, np.nan
    for matrix in (shear, tilt, nowhere, -np.eye(4)):
        with pytest.raises(ValueError, match="aug_from_ego must"):
            transform_sample(simple(), matrix)
    with pytest.raises(ValueError, match="map mask"):
        transform_sample(simple(map_mask=torch.ones(1, 2, 2, dtype=torch.bool)), np.eye(4))


def test_the_map_turns_and_shifts_with_the_world(tiny_root):
    """A quarter turn of the world is a quarter turn of the raster, a mirrored world a mirrored raster, and so on."""
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", sensors=())
    dataset = NuScenesDataset(config, "mine", BEVGrid())
    grid = BEVGrid(x=(-20.0, 20.0), y=(-20.0, 20.0), resolution=0.8)
    plain, _ = crop_map(dataset.tables, 3, grid)
    quarter, _ = crop_map(dataset.tables, 3, grid, bev_matrix(math.pi / 2))
    mirror, _ = crop_map(dataset.tables, 3, grid, bev_matrix(flip_y=True))
    # new (x, y) = (-y, x): the row is the old column, the column the old row backwards.
    assert (quarter[0] == plain[0].T.flip(1)).float().mean() > 0.999
    assert (mirror[0] == plain[0].flip(0)).float().mean() > 0.999
    shift, _ = crop_map(dataset.tables, 3, grid, bev_matrix(shift=(1.6, -0.8, 2.0)))  # two cells on, one back
    assert (shift[0, :-1, 2:] == plain[0, 1:, :-2]).float().mean() > 0.999
    assert 0.2 < plain[0].float().mean() < 0.8


def test_drawn_augmentations_stay_in_their_limits():
    config = AugmentConfig(bev_rotation=30.0, bev_scale=(0.9, 1.2))
    drawn = [draw_bev_augmentation(config, np.random.default_rng(seed)) for seed in range(300)]
    scale = np.array([m[2, 2] for m in drawn])
    assert scale.min() > 0.9 and scale.max() < 1.2 and np.ptp(scale) > 0.25
    mirrored = np.array([np.linalg.det(m) < 0 for m in drawn])
    assert 0.4 < mirrored.mean() < 0.6
    angle = np.array([math.degrees(math.atan2(m[1, 0], abs(m[0, 0]))) for m in drawn])
    assert abs(angle).max() < 30 and np.ptp(angle) > 50
    assert not any(m[:3, 3].any() for m in drawn)
    config = AugmentConfig(bev_shift=0.5)
    shift = np.array([draw_bev_augmentation(config, np.random.default_rng(seed))[:3, 3] for seed in range(300)])
    assert (abs(shift.mean(0)) < 0.12).all() and (abs(shift.std(0) - 0.5) < 0.06).all()
    none = AugmentConfig(bev_rotation=0, bev_scale=(1, 1), bev_flip=False)
    np.testing.assert_array_equal(draw_bev_augmentation(none, np.random.default_rng(0)), np.eye(4))


def test_randomness_belongs_to_seed_epoch_and_index(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", image_size=(45, 80), lidar_sweeps=2)

    def opened(seed: int) -> NuScenesDataset:
        return NuScenesDataset(config, "mine", BEVGrid(), AugmentConfig(), seed)

    one, two = opened(3), opened(3)
    first = [one[i] for i in (4, 2)]
    second = [two[i] for i in (2, 7, 4)]  # in another order, with others between
    for a, b in ((first[0], second[2]), (first[1], second[0])):
        assert all(torch.equal(x.nan_to_num(9), y.nan_to_num(9)) for x, y in zip(tensors(a), tensors(b), strict=True))
    two.set_epoch(1)
    assert torch.equal(two[4].aug_from_ego, one[1, 4].aug_from_ego)
    for other in (two[4], opened(4)[4], one[5]):
        assert not torch.equal(other.aug_from_ego, first[0].aug_from_ego)
    assert not torch.equal(first[0].cameras.image_from_cam[0], first[0].cameras.image_from_cam[1])


def test_boxes_without_points_are_for_evaluation(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", sensors=(), min_points=1)
    everything = NuScenesDataset(config, "mine", BEVGrid())[0].boxes
    training = NuScenesDataset(config, "mine", BEVGrid(), training=True)[0].boxes
    assert (everything.num_points.sum(1) == 0).any() and (training.num_points.sum(1) > 0).all()
    assert len(training) == int((everything.num_points.sum(1) > 0).sum())


def test_what_fades_is_gone_in_the_last_epochs(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", image_size=(45, 80), lidar_sweeps=1)

    def opened(augment: AugmentConfig | None, epochs: int | None = 4) -> NuScenesDataset:
        return NuScenesDataset(config, "mine", BEVGrid(), augment, 3, training=True, epochs=epochs)

    plain, always = opened(None)[4], opened(AugmentConfig())
    for fade in (("bev",), ("image",), ("bev", "image")):
        fading = opened(AugmentConfig(fade=fade, fade_epochs=2))
        for epoch in range(4):
            now, usual = fading[epoch, 4], always[epoch, 4]
            for part, name in ((now.aug_from_ego, "bev"), (now.cameras.image_from_cam, "image")):
                before, without = (
                    x.aug_from_ego if name == "bev" else x.cameras.image_from_cam for x in (usual, plain)
                )
                assert part.equal(without if epoch >= 2 and name in fade else before)
    assert opened(AugmentConfig(fade=("bev",), fade_epochs=9))[0, 4].aug_from_ego.equal(torch.eye(4))
    assert not opened(AugmentConfig(fade=("bev",), fade_epochs=9), None)[0, 4].aug_from_ego.equal(torch.eye(4))


def test_a_sample_that_comes_again_is_changed_anew(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", sensors=())
    dataset = NuScenesDataset(config, "mine", BEVGrid(), AugmentConfig(), 3)
    first, second = dataset[1, 4, 0], dataset[1, 4, 1]
    assert first.token == second.token and not first.aug_from_ego.equal(second.aug_from_ego)
    assert first.aug_from_ego.equal(dataset[1, 4].aug_from_ego)
