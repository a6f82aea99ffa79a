"""Hand-made samples for the tests of the view."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from fusion3d.types import (
    CAMERAS,
    OCCUPANCY_TIMES,
    OCCUPANTS,
    PLAN_SCORES,
    BEVGrid,
    Boxes,
    Cameras,
    EgoStatus,
    Occupancy,
    PlanModes,
    Sample,
    Trajectory,
)

YAWS = {
    "CAM_FRONT": 0.0, "CAM_FRONT_RIGHT": -55.0, "CAM_BACK_RIGHT": -110.0,
    "CAM_BACK": 180.0, "CAM_BACK_LEFT": 110.0, "CAM_FRONT_LEFT": 55.0,
}  # fmt: skip


def pose_of_camera(yaw_degrees: float) -> torch.Tensor:
    """[4, 4] ego_from_cam of a camera at 1.5 m height that looks along a yaw."""
    yaw = math.radians(yaw_degrees)
    right = [math.sin(yaw), -math.cos(yaw), 0.0]
    forward = [math.cos(yaw), math.sin(yaw), 0.0]
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.tensor([right, [0.0, 0.0, -1.0], forward]).T
    matrix[:3, 3] = torch.tensor([1.5 * forward[0] * 0.5, 0.5 * forward[1], 1.5])
    return matrix


def make_cameras(channels: tuple[str, ...] = CAMERAS, size: tuple[int, int] = (198, 352)) -> Cameras:
    rows, cols = size
    intrinsics = torch.eye(4)
    intrinsics[0, 0] = intrinsics[1, 1] = cols * 0.79
    intrinsics[0, 2], intrinsics[1, 2] = cols / 2, rows / 2
    sky = torch.linspace(0.75, 0.25, rows)[None, :, None] * torch.tensor([0.7, 0.85, 1.0])[:, None, None]
    return Cameras(
        images=sky.expand(len(channels), 3, rows, cols).clone(),
        image_from_cam=intrinsics.repeat(len(channels), 1, 1),
        ego_from_cam=torch.stack([pose_of_camera(YAWS[c]) for c in channels]),
        batch_index=torch.zeros(len(channels), dtype=torch.int64),
        channels=channels,
    )


def make_boxes() -> Boxes:
    """One box of each of the ten classes, on a ring of 15 m, and one that reaches behind the front camera."""
    angle = torch.arange(10) * (2 * math.pi / 10)
    size = torch.tensor(
        [[4.6, 1.9, 1.7], [7.0, 2.5, 2.8], [11.0, 2.9, 3.5], [12.0, 2.9, 3.8], [6.5, 2.8, 3.1],
         [0.7, 0.7, 1.8], [2.1, 0.8, 1.5], [1.7, 0.6, 1.3], [0.4, 0.4, 1.0], [0.5, 2.5, 1.0]]
    )  # fmt: skip
    center = torch.stack([15 * angle.cos(), 15 * angle.sin(), size[:, 2] / 2], dim=-1)
    center = torch.cat([center, torch.tensor([[1.0, 3.0, 0.85]])])
    size = torch.cat([size, size[:1]])
    yaw = torch.cat([angle + 1.2, torch.zeros(1)])
    velocity = torch.stack([4 * yaw.cos(), 4 * yaw.sin()], dim=-1)
    velocity[8:10] = torch.nan
    return Boxes.of(center, size, yaw, velocity, torch.cat([torch.arange(10), torch.zeros(1)]).long())


def make_sample(channels: tuple[str, ...] | None = CAMERAS, sensors: bool = True, truth: bool = True) -> Sample:
    generator = torch.Generator().manual_seed(0)
    ground = torch.rand(20000, 5, generator=generator)
    ground[:, :2] = (ground[:, :2] - 0.5) * 100
    ground[:, 2] *= 3
    ground[:, 4] = (ground[:, 4] * 3).floor() * 0.05
    radar = torch.zeros(60, 11)
    radar[:, :2] = (torch.rand(60, 2, generator=generator) - 0.5) * 80
    radar[:30, 4:6] = torch.randn(30, 2, generator=generator) * 5
    radar[:, 10] = torch.arange(60) % 5
    steps = torch.arange(1, 7) * 0.5
    future = Trajectory(torch.stack([8 * steps, 0.3 * steps**2], -1), 0.07 * steps, torch.ones(6, dtype=torch.bool))
    past = Trajectory(torch.stack([-8 * steps[:4], 0 * steps[:4]], -1), 0 * steps[:4], torch.ones(4, dtype=torch.bool))
    grid = BEVGrid()
    x, y = grid.centers().unbind(-1)
    return Sample(
        token="0123456789abcdef0123456789abcdef",
        scene="scene-0000",
        timestamp=1_532_402_927_647_951,
        global_from_ego=torch.eye(4, dtype=torch.float64),
        aug_from_ego=torch.eye(4),
        cameras=None if channels is None else make_cameras(channels),
        lidar=ground if sensors else None,
        radar=radar if sensors else None,
        boxes=make_boxes() if truth else None,
        future=future if truth else None,
        past=past,
        status=EgoStatus(torch.tensor([8.0, 0.0]), torch.zeros(2), torch.tensor(0.0)),
        command=0 if truth else -1,
        map_mask=torch.stack(
            [(y.abs() < 8) | (x.abs() < 8), *(torch.zeros_like(x) > 1 for _ in range(4)), y.abs() < 0.5]
        )
        if sensors
        else None,
    )


def make_predictions() -> tuple[Boxes, Trajectory]:
    """Boxes a little off the truth, with falling scores, and a plan a little off the driven path."""
    truth = make_boxes()
    count = len(truth)
    boxes = Boxes.of(
        truth.center + 0.3, truth.size * 1.05, truth.yaw + 0.1, truth.velocity * 0.8, truth.label,
        torch.linspace(0.95, 0.05, count),
    )  # fmt: skip
    future = make_sample().future
    assert future is not None
    return boxes, Trajectory(future.position + torch.tensor([0.5, 0.2]), future.yaw, future.mask)


def make_occupancy(grid: BEVGrid, anybody: torch.Tensor, drivable: torch.Tensor) -> Occupancy:
    """Vehicles now where anybody [Y, X] says so, and nobody later."""
    agents = torch.zeros(len(OCCUPANCY_TIMES), len(OCCUPANTS), *grid.shape)
    agents[0, 0] = anybody
    return Occupancy(agents, drivable)


def make_modes() -> PlanModes:
    """Straight on, to the left and to the right at 4 m/s; the left way is the cheapest, the right one is rejected."""
    steps = torch.arange(1, 7) * 2.0
    angle = torch.tensor([0.0, 0.6, -0.6])[:, None]
    position = torch.stack([steps * angle.cos(), steps * angle.sin()], -1)
    path = Trajectory(position, angle.expand(3, 6), torch.ones(3, 6, dtype=torch.bool))
    score = torch.full((3, len(PLAN_SCORES)), 0.1)
    cost, rejected = torch.tensor([3.0, 1.0, 9.0]), torch.tensor([0.0, 0.0, 1.0])
    return PlanModes(path, torch.full((3,), 1 / 3), score, cost, rejected, torch.tensor(1))


@pytest.fixture
def sample() -> Sample:
    """A sample with every sensor and everything that is known about it."""
    return make_sample()


@pytest.fixture
def sample_with() -> Callable[..., Sample]:
    """The maker of samples with less: (channels or None, sensors, truth)."""
    return make_sample


@pytest.fixture
def predicted() -> tuple[Boxes, Trajectory]:
    """Boxes with scores from 0.95 down to 0.05, and a plan."""
    return make_predictions()


@pytest.fixture
def occupancy() -> Callable[[BEVGrid, torch.Tensor, torch.Tensor], Occupancy]:
    """The maker of occupancies: (grid, where somebody is now [Y, X], what is drivable [Y, X])."""
    return make_occupancy


@pytest.fixture
def modes() -> PlanModes:
    """Three paths that a plan was chosen among."""
    return make_modes()


@pytest.fixture
def front_camera() -> Cameras:
    return make_cameras(("CAM_FRONT",))
