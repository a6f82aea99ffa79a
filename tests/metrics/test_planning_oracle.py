"""The published protocols' collisions against a plain second writing of each: grids that OpenCV paints, and shapely.

Everything here is in the frame of the released code, one sample, step and car at a time, and shares nothing with
``fusion3d.metrics.planning`` but the world.
"""

from __future__ import annotations

import dataclasses
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from nuscenes.eval.detection.utils import category_to_detection_name

sys.path.insert(0, str(Path(__file__).parent))

from worlds import traffic

from fusion3d.engine.drives import GRID
from fusion3d.metrics.planning import Boundaries, Drives, published
from fusion3d.metrics.planning.protocols import BEV_PLANNER, PUBLISHED
from fusion3d.metrics.planning.published import cross, ego_heading, score_published

LENGTH, WIDTH = 4.084, 1.85
KINDS = (
    "animal", "human.pedestrian.adult", "human.pedestrian.child", "human.pedestrian.stroller",
    "movable_object.barrier", "vehicle.bicycle", "vehicle.bus.rigid", "vehicle.car", "vehicle.emergency.police",
    "vehicle.truck",
)  # fmt: skip
VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")


def world(seed: int, count: int) -> tuple[Drives, np.ndarray]:
    """Traffic with agents of all kinds, some hidden or without points, and LiDARs askew; plans of all kinds too."""
    rng = np.random.default_rng(seed)
    of = traffic(seed, count, people=40)
    kind = (of.agents.track + of.agents.sample) % len(KINDS)
    visible, seen = rng.random((2, len(of.agents))) > 0.3
    agents = dataclasses.replace(of.agents, category=kind, names=KINDS, visible=visible, seen=seen)
    agents.box[:, 2:4] *= 1.5
    of = dataclasses.replace(of, agents=agents, mount=of.mount + rng.normal(0, 0.03, of.mount.shape))
    plan = of.future + rng.normal(0, 0.5, of.future.shape)
    plan[::6] *= 0.02  # some stand
    plan[1::6] *= (3, 3, 1)  # some leave the grid
    plan[2::6, 4] = plan[2::6, 2]
    plan[3::6, :, :2] += rng.uniform((-25, -30), (0, 0), plan[3::6, :1, :2].shape)  # where VAD's point is among them
    plan[4::6, :, :2] += rng.uniform(-6, 6, plan[4::6, :1, :2].shape)
    return of, plan


def quad(box: np.ndarray) -> np.ndarray:
    """[4, 2] corners of x, y, length, width, yaw."""
    turn = np.exp(1j * box[4])
    around = turn * (np.array([1, 1, -1, -1]) * box[2] / 2 + 1j * np.array([1, -1, -1, 1]) * box[3] / 2)
    return np.column_stack([box[0] + around.real, box[1] + around.imag])


def from_lidar_of_now(xy: np.ndarray, mount: np.ndarray) -> np.ndarray:
    """[..., 2] positions in ego to the LiDAR's x (right) and y (forward)."""
    away = ((xy - mount[:2]) @ [1, 1j]) * np.exp(-1j * mount[2])
    return np.stack([away.real, away.imag], axis=-1)


def lidar_track(path: np.ndarray, mount: np.ndarray) -> np.ndarray:
    """[6, 2] where the LiDAR will be, in the LiDAR's frame of now."""
    lever = complex(*mount[:2]) * np.exp(1j * path[:, 2])
    return from_lidar_of_now(path[:, :2] + np.column_stack([lever.real, lever.imag]), mount)


def footprint(cell: float, ahead: float) -> np.ndarray:
    """[Q, 2] cells (forward, side) whose centres are in the car's box, when it stands in the middle."""
    size = round(100 / cell)
    box = shapely.box(ahead - LENGTH / 2, -WIDTH / 2, ahead + LENGTH / 2, WIDTH / 2)
    middle = (np.arange(size) + 0.5) * cell - 50
    return np.argwhere(shapely.contains_xy(box, *np.meshgrid(middle, middle, indexing="ij")))


COARSE, FINE = footprint(0.5, 0.5), footprint(0.1, 0.5 + 0.985793)


def painted(size: int, polygons: list[np.ndarray]) -> np.ndarray:
    """A grid with polygons of (column, row)."""
    grid = np.zeros((size, size), dtype=np.uint8)
    for corners in polygons:
        cv2.fillPoly(grid, [np.ascontiguousarray(corners, dtype=np.int32)], 1)
    return grid


def look(grid: np.ndarray, row: np.ndarray, column: np.ndarray) -> bool:
    edge = len(grid) - 1
    return bool(grid[np.clip(row.astype(np.int32), 0, edge), np.clip(column.astype(np.int32), 0, edge)].any())


def look_once(grid: np.ndarray, row: float, column: float) -> bool:
    row, column = int(row), int(column)
    return 0 <= row < len(grid) and 0 <= column < len(grid) and bool(grid[row, column])


@dataclasses.dataclass
class Agent:
    step: int
    box: np.ndarray
    track: int
    name: str
    visible: bool
    seen: bool

    @property
    def label(self) -> str | None:
        return category_to_detection_name(self.name)


def agents_of(of: Drives, sample: int) -> list[Agent]:
    a = of.agents
    return [
        Agent(int(a.step[i]), a.box[i], int(a.track[i]), a.names[a.category[i]], bool(a.visible[i]), bool(a.seen[i]))
        for i in np.flatnonzero(a.sample == sample)
    ]


def uniad(agents: list[Agent], path: np.ndarray, mount: np.ndarray, step: int) -> tuple[bool, bool]:
    """Columns to the right and rows forward, around the LiDAR; corners at the nearest whole number of cells."""
    corners = [from_lidar_of_now(quad(a.box), mount) for a in agents if a.step == step and a.label in VEHICLES]
    grid = painted(200, [np.round((xy - -49.75 + 0.25) / 0.5) for xy in corners])
    right, forward = lidar_track(path, mount)[step - 1]
    box = look(grid, forward / 0.5 + COARSE[:, 0], right / 0.5 + COARSE[:, 1])
    return box, look_once(grid, (forward + 49.75) / 0.5, (right + 49.75) / 0.5)


def stp3(agents: list[Agent], path: np.ndarray, mount: np.ndarray, step: int) -> tuple[bool, bool]:
    """Columns to the left; agents around the rear axle, who were visible before, and the path of the LiDAR."""
    moving = [a for a in agents if a.name.split(".")[0] in ("human", "vehicle")]
    known = {a.track for a in moving if a.visible and a.step in (-2, -1, 0)}
    corners = [quad(a.box) for a in moving if a.step == step and a.track in known]
    grid = painted(200, [np.round((xy[:, ::-1] + 50) / 0.5) for xy in corners])
    right, forward = lidar_track(path, mount)[step - 1]
    box = look(grid, forward / 0.5 + COARSE[:, 0], -right / 0.5 + COARSE[:, 1])
    return box, look_once(grid, (forward + 49.75) / 0.5, (-right + 49.75) / 0.5)


def vad(agents: list[Agent], path: np.ndarray, mount: np.ndarray, step: int) -> tuple[bool, bool]:
    """Rows from the front, counted from 200 for the ego; who is around now, at his step-th annotation from now on."""
    corners = []
    for track in {a.track for a in agents}:
        line = [a for a in agents if a.track == track and a.step >= 0]
        line.sort(key=lambda a: a.step)
        if not line or line[0].step > 0 or not line[0].seen or line[0].label not in (*VEHICLES, "pedestrian"):
            continue
        right, forward = from_lidar_of_now(line[0].box[:2], mount)
        if abs(right) < 15 and abs(forward) < 30 and len(line) > step:
            corners.append(from_lidar_of_now(quad(line[step].box), mount) * (1, -1))
    grid = painted(200, [np.round((xy + 50) / 0.5) for xy in corners])
    right, forward = lidar_track(path, mount)[step - 1]
    box = look(grid, 200 - (forward / 0.5 + COARSE[:, 0]), right / 0.5 + COARSE[:, 1])
    return box, look_once(grid, (49.75 / 2 - forward) / 0.5, (49.75 / 2 + right) / 0.5)


def bev_planner(agents: list[Agent], path: np.ndarray, mount: np.ndarray, step: int) -> tuple[bool, bool]:
    """Columns forward and rows to the left around the rear axle; the car's cells turned by a step of a metre."""
    corners = [quad(a.box) for a in agents if a.step == step and a.label in VEHICLES]
    grid = painted(1000, [np.trunc((xy + 49.95) / 0.1) for xy in corners])
    point = (path[step - 1, :2] + 49.95) / 0.1
    return look(grid, *turned_car(path, step)), look_once(grid, point[1], point[0])


def turned_car(path: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """[Q] rows (left) and [Q] columns (forward) of the car's cells."""
    before = path[step - 2, :2] if step > 1 else np.zeros(2)
    move = path[step - 1, :2] - before
    turn = np.arctan2(move[1], move[0]) if np.hypot(*move) >= 1 else 0.0
    turned = ((FINE - 499.5) @ [1, 1j]) * np.exp(1j * turn)
    cells = np.round(np.column_stack([turned.real, turned.imag]) + 499.5)
    forward, left = (path[step - 1, :2] / 0.1 + cells).T
    return left, forward


def sparsedrive(agents: list[Agent], path: np.ndarray, mount: np.ndarray, step: int) -> tuple[bool, None]:
    """Polygons, the car's headed along the LiDAR's path; forward where it hardly moves from the first step to the last.

    Two neighbours at the same place are headed along the frame's x, to the right.
    """
    track = np.concatenate([np.zeros((1, 2)), lidar_track(path, mount)])
    move = track[min(step + 1, 6)] - track[step - 1]
    yaw = np.pi / 2 if np.hypot(*(track[6] - track[1])) < 0.5 else np.arctan2(move[1], move[0])
    middle = track[step] + 0.5 * np.array([np.cos(yaw), np.sin(yaw)])
    car = shapely.Polygon(quad(np.array([*middle, LENGTH, WIDTH, yaw])))
    others = [from_lidar_of_now(quad(a.box), mount) for a in agents if a.step == step and a.seen]
    return any(car.intersects(shapely.Polygon(xy)) for xy in others), None


def test_the_boundary_is_the_line_that_opencv_draws():
    """Lines of some points, a cell thick; what is beyond the grid is brought to its last cells."""
    _, plan = world(1, 40)
    plan[::4, :, 0] += 45  # at the edge of the grid
    rng = np.random.default_rng(1)
    lines = np.cumsum(rng.normal(0, 3, (40, 8, 5, 2)), axis=2) + rng.uniform((-20, -15), (70, 15), (40, 8, 1, 2))
    pieces = np.stack([lines[:, :, :-1], lines[:, :, 1:]], axis=3).reshape(40, 32, 2, 2)
    edges = Boundaries(np.repeat(np.arange(40), 32), np.clip(pieces.reshape(-1, 2, 2), -GRID, GRID), np.ones(40, bool))
    path = np.concatenate([plan[..., :2], ego_heading(BEV_PLANNER, plan[..., :2])[..., None]], axis=-1)
    expected = np.zeros((40, 6), dtype=bool)
    for sample in range(40):
        grid = np.zeros((1000, 1000), dtype=np.uint8)
        for line in ((lines[sample] + 49.95) / 0.1).clip(0, 999).astype(np.int32):
            for begin, end in pairwise(line.tolist()):
                cv2.line(grid, begin, end, color=(1,), thickness=1)
        expected[sample] = [look(grid, *turned_car(plan[sample], step)) for step in range(1, 7)]
    np.testing.assert_array_equal(cross(BEV_PLANNER, path, edges), expected)
    assert 0.1 < expected.mean() < 0.9


ORACLES = {
    "uniad": uniad, "uniad_valid": uniad, "stp3": stp3, "vad": vad, "sparsedrive": sparsedrive,
    "bev_planner": bev_planner,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_step_hits_as_the_released_code_says(monkeypatch, name):
    monkeypatch.setattr(published, "HORIZONS", 0.5 * np.arange(1, 7))
    at = dataclasses.replace(PUBLISHED[name], hits="at")
    of, plan = world(0, 120)
    boxes, points = 0, 0
    for sample in range(len(of)):
        agents, mount = agents_of(of, sample), of.mount[sample]
        path = {"plan": plan[sample], "human": of.future[sample]}
        said = {who: [ORACLES[name](agents, path[who], mount, step) for step in range(1, 7)] for who in path}
        rows = score_published(at, {"plan": plan[[sample]]}, of[[sample]])
        human = np.array([box for box, _ in said["human"]])
        for who, row in rows.items():
            box, point = (np.array(of_step) for of_step in zip(*said[who], strict=True))

            def column(title: str, row: dict[str, float] = row) -> list[float]:
                return [row[f"{title}@{0.5 * step}s"] for step in range(1, 7)]

            assert column("raw") == box.tolist(), (sample, who)
            assert column("collision") == (box & ~human).tolist()
            boxes += box.sum()
            if name != "sparsedrive":
                assert column("point") == (point & ~human).tolist()
                points += (point & ~human).sum()
    assert boxes > 50 and (points > 0 or name == "sparsedrive"), "nobody is hit: the test says nothing"
