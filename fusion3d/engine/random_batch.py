"""A batch of random numbers that are plausible: for tests, and for measuring a model without any data.

Letters: B samples, M images, P points, R returns, K boxes, T future steps.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from fusion3d.config import Config
from fusion3d.heads.planning import AnchorPlanner
from fusion3d.heads.rollout import constant_turn
from fusion3d.heads.targets import allowed_attributes, usual_sizes
from fusion3d.types import (
    CAMERAS,
    DETECTION_CLASSES,
    MAP_CLASSES,
    RADAR_FIELDS,
    RADARS,
    TIME_STEP,
    Batch,
    Boxes,
    Cameras,
    EgoStatus,
    History,
    Motion,
    PointCloud,
    Trajectory,
)

_SPEED = 5.0  # [m/s] of the vehicle, ahead


def random_batch(
    config: Config,
    size: int = 1,
    num_points: int = 270_000,
    num_returns: int = 600,
    num_boxes: int = 30,
    seed: int = 0,
) -> Batch:
    """A batch with every sensor and every target, random but plausible: six cameras around, points on the ground and
    on the boxes, some unknown velocities and attributes. The same for the same arguments.

    A model with memory gets as many keyframes before as it is trained with, in which sensors read what they do now.

    Args:
        config: gives the image size, the grid, the numbers of steps ahead and of keyframes.
        size: B.
        num_points: LiDAR points of each sample, all sweeps together.
        num_returns: radar returns of each sample.
        num_boxes: objects of each sample.
        seed: of everything random.
    """
    generator = torch.Generator().manual_seed(seed)
    boxes = tuple(_random_boxes(config, num_boxes, generator) for _ in range(size))
    lidar = torch.cat([_random_points(config, b, num_points, generator) for b in boxes])
    radar = torch.cat([_random_returns(config, num_returns, generator) for _ in range(size)])
    present = torch.ones(size, dtype=torch.bool)
    steps = config.steps
    speed = torch.rand(size, 1, 1, generator=generator) * 5
    along = torch.arange(1, steps + 1)[None, :, None] * speed * torch.tensor([1.0, 0.1])
    mask = torch.ones(size, steps, dtype=torch.bool)
    sample = torch.arange(size)
    batch = Batch(
        tokens=tuple(f"sample-{i}" for i in range(size)),
        scenes=tuple(f"scene-{i}" for i in range(size)),
        timestamp=torch.zeros(size, dtype=torch.int64),
        global_from_ego=torch.eye(4, dtype=torch.float64).repeat(size, 1, 1),
        aug_from_ego=torch.eye(4).repeat(size, 1, 1),
        cameras=_random_cameras(config, size, generator),
        lidar=PointCloud(lidar, sample.repeat_interleave(num_points), present),
        radar=PointCloud(radar, sample.repeat_interleave(num_returns), present),
        boxes=boxes,
        future=Trajectory(along, torch.full((size, steps), math.atan(0.1)), mask),
        past=Trajectory(-along, torch.full((size, steps), math.atan(0.1)), mask),
        status=EgoStatus(2 * along[:, 0], torch.zeros(size, 2), torch.full((size,), torch.nan)),
        command=torch.randint(-1, 3, (size,), generator=generator),
        map_mask=_random_map(config, size, generator),
        map_known=torch.ones(size, len(MAP_CLASSES), dtype=torch.bool),
        annotated=present,
    )
    batch = dataclasses.replace(batch, motion=tuple(_random_motion(b, steps, generator) for b in boxes))
    before = range(1, 1 if config.temporal is None else config.temporal.keyframes)
    return dataclasses.replace(batch, history=tuple(_past(batch, speed[:, 0, 0], steps_ago) for steps_ago in before))


def _past(batch: Batch, speed: Tensor, steps_ago: int) -> History:
    """The same readings, so many keyframes before, from where vehicles of that speed [B] [m/s] were then."""
    pose = batch.global_from_ego.clone()
    pose[:, 0, 3] -= speed * TIME_STEP * steps_ago
    targets = ("boxes", "future", "past", "status", "map_mask", "map_known", "motion")
    sensors = dataclasses.replace(
        batch,
        timestamp=batch.timestamp - round(TIME_STEP * 1e6) * steps_ago,
        global_from_ego=pose,
        annotated=torch.zeros_like(batch.annotated),
        **dict.fromkeys(targets),
    )
    return History(sensors, tuple(range(len(batch))))


def _random_cameras(config: Config, size: int, generator: torch.Generator) -> Cameras:
    """Six level cameras 1.6 m above the ground, 60 degrees apart, 70 degrees wide."""
    height, width = config.data.image_size
    turn = torch.arange(len(CAMERAS)) * -math.pi / 3
    cos, sin, zero, one = turn.cos(), turn.sin(), torch.zeros(len(CAMERAS)), torch.ones(len(CAMERAS))
    rows = [
        [sin, zero, cos, cos],
        [-cos, zero, sin, sin],
        [zero, -one, zero, 1.6 * one],
        [zero, zero, zero, one],
    ]
    ego_from_cam = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    focal = width / 2 / math.tan(math.radians(35))
    image_from_cam = torch.eye(4)
    image_from_cam[:2, :3] = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, height * 0.4]])
    count = size * len(CAMERAS)
    return Cameras(
        images=torch.rand(count, 3, height, width, generator=generator),
        image_from_cam=image_from_cam.repeat(count, 1, 1),
        ego_from_cam=ego_from_cam.repeat(size, 1, 1),
        batch_index=torch.arange(size).repeat_interleave(len(CAMERAS)),
        channels=CAMERAS * size,
    )


def _random_boxes(config: Config, count: int, generator: torch.Generator) -> Boxes:
    """Boxes at least a few cells apart, of the usual sizes give or take 10 %."""
    grid = config.grid
    rows, cols = grid.shape
    spots = torch.randperm((rows // 4) * (cols // 4), generator=generator)[:count]
    count = len(spots)
    corner = torch.stack([spots % (cols // 4), spots // (cols // 4)], dim=1)
    cell = corner * 4 + 1 + torch.rand(count, 2, generator=generator)
    xy = grid.xy_of(cell)
    label = torch.arange(count) % len(DETECTION_CLASSES)
    size = usual_sizes()[label] * (0.9 + 0.2 * torch.rand(count, 3, generator=generator))
    velocity = torch.randn(count, 2, generator=generator) * 3
    velocity[::5] = torch.nan
    choice = torch.rand(count, 8, generator=generator).masked_fill(~allowed_attributes()[label], -1)
    attribute = torch.where(choice.amax(1) > 0, choice.argmax(1), -1)
    return Boxes.of(
        center=torch.cat([xy, size[:, 2:] / 2], dim=1),
        size=size,
        yaw=(torch.rand(count, generator=generator) - 0.5) * 2 * math.pi,
        velocity=velocity,
        label=label,
        attribute=attribute,
        visibility=torch.full((count,), 4),
        num_points=torch.full((count, 2), 5),
    )


def _random_motion(boxes: Boxes, steps: int, generator: torch.Generator) -> Motion:
    """Boxes that turn as they go on; nothing is known of those whose velocity is not."""
    rate = torch.randn(len(boxes), generator=generator) * 0.3
    position, yaw = constant_turn(boxes, torch.arange(1, steps + 1) * TIME_STEP, rate)
    mask = boxes.velocity.isfinite().all(1)[:, None].expand(-1, steps).clone()
    now = Trajectory(boxes.center[:, :2], boxes.yaw, torch.ones(len(boxes), dtype=torch.bool))
    return Motion(now, Trajectory(position, yaw, mask), boxes.size, boxes.label)


def give_anchors(model: nn.Module) -> None:
    """A fan of plausible anchors for every planner that needs some: turns at several speeds."""
    for part in model.modules():
        if isinstance(part, AnchorPlanner):
            count, steps = part.anchors.shape[:2]
            number, seconds = torch.arange(count)[:, None], TIME_STEP * torch.arange(1, steps + 1)
            speed, rate = 1 + 12 * number / count, 0.1 * (number % 5 - 2)
            yaw = rate * seconds
            far = speed * seconds
            part.set_anchors(torch.stack([far * (yaw / 2).cos(), far * (yaw / 2).sin(), yaw], dim=-1))


def _random_map(config: Config, size: int, generator: torch.Generator) -> Tensor:
    """[B, 6, Y, X] in the map's grid: a road straight ahead of random width, and a band across it for each class."""
    x, y = config.map_grid.centers().unbind(-1)
    half = 4 + 6 * torch.rand(size, 1, 1, 1, generator=generator)
    low, high = config.map_grid.x
    at = (torch.rand(size, len(MAP_CLASSES) - 1, 1, 1, generator=generator) - 0.5) * (high - low) / 2
    at += (low + high) / 2
    return torch.cat([(y.abs() < half), ((x - at).abs() < 1.5) & (y.abs() < 2 * half)], dim=1)


def _random_points(config: Config, boxes: Boxes, count: int, generator: torch.Generator) -> Tensor:
    """[P, 5] LiDAR: three quarters on the ground, denser near the vehicle, the rest inside of boxes."""
    radius = max(map(abs, (*config.grid.x, *config.grid.y))) * torch.rand(count, generator=generator) ** 2
    angle = torch.rand(count, generator=generator) * 2 * math.pi
    xyz = torch.stack([radius * angle.cos(), radius * angle.sin(), torch.zeros(count)], dim=1)
    on_box = count // 4 if len(boxes) else 0
    owner = torch.randint(0, max(len(boxes), 1), (on_box,), generator=generator)
    xyz[:on_box] = boxes.center[owner] + (torch.rand(on_box, 3, generator=generator) - 0.5) * boxes.size[owner] * 0.7
    intensity = torch.rand(count, 1, generator=generator)
    sweep = torch.randint(0, max(config.data.lidar_sweeps, 1), (count, 1), generator=generator) * 0.05
    return torch.cat([xyz, intensity, sweep], dim=1)


def _random_returns(config: Config, count: int, generator: torch.Generator) -> Tensor:
    """[R, 14] radar returns all over the grid, some of them invalid or ambiguous."""

    def codes(number: int) -> Tensor:
        return torch.randint(0, number, (count,), generator=generator).float()

    ranges = config.grid.x, config.grid.y
    half, middle = torch.tensor([[(high - low) / 2, (low + high) / 2] for low, high in ranges]).T[..., None]
    xy = (torch.rand(2, count, generator=generator) * 2 - 1) * half + middle
    columns = {
        "x": xy[0],
        "y": xy[1],
        "z": torch.full((count,), 0.5),
        "rcs": torch.randn(count, generator=generator) * 8,
        "vx": torch.randn(count, generator=generator) * 2,
        "vy": torch.randn(count, generator=generator),
        "time": codes(6) * 0.075,
        "invalid_state": codes(18),
        "ambig_state": codes(5),
        "dyn_prop": codes(8),
        "sensor": codes(len(RADARS)),
    }
    columns |= dict(zip(("ray_x", "ray_y"), torch.nn.functional.normalize(xy, dim=0), strict=True))
    columns["doppler"] = (columns["vx"] - _SPEED) * columns["ray_x"] + columns["vy"] * columns["ray_y"]
    return torch.stack([columns[name] for name in RADAR_FIELDS], dim=1)
