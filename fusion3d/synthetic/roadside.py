"""What stands and walks beside the road: parked vehicles, works, pedestrians, and the clutter nobody annotates.

Places on a side of the road are (s, d): ``s`` metres along the outer edge of the lanes in driving direction and ``d``
metres to the right of it: cycle lane, parking strip, walkway (furniture by the kerb, two files of walkers, people who
stand), then hedges, trees and buildings. Nothing is put where it would ever meet something that is already there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion3d.synthetic.bodies import FOLIAGE, PLAIN, WINDOWS, Parts, sample_size
from fusion3d.synthetic.curves import Path, shift
from fusion3d.synthetic.roads import CYCLE_LANE, RING_EDGES, STRIP, WALK, Crossing, Layout, Side
from fusion3d.synthetic.scene import SIM_STEP, Solids
from fusion3d.synthetic.traffic import ever_overlap

KERB = CYCLE_LANE + STRIP  # [m] from the lanes to the walkway
FURNITURE, FILES, STANDING = KERB + 0.5, (KERB + 1.5, KERB + 2.5), KERB + 3.2  # [m] zones of the walkway
POPULATED = 38.0  # [m] from the ego's way: farther off there is no annotated roadside
BUILT = 75.0  # [m] from the ego's way: farther off there are no buildings
# What is parked, in turn on whichever side lags behind: each class comes round every 50 m of road.
DECK = (
    "works",
    "truck",
    "rack",
    "bus",
    "car",
    "trailer",
    "gap",
    "works",
    "construction",
    "car",
    "rack",
    "gap",
    "car",
)
ROOM = {"works": 10.0, "rack": 2.8, "gap": 5.0}  # [m] of strip; vehicles take their length
FACADES = ((168, 92, 70), (190, 178, 160), (140, 140, 146), (206, 196, 170), (120, 82, 66), (176, 184, 192))
LEAVES = ((52, 92, 40), (70, 110, 44), (40, 76, 44), (96, 112, 50))


@dataclass(frozen=True)
class Draft:
    """An actor before it has a body."""

    category: str
    size: np.ndarray  # [3]
    boxes: np.ndarray  # [T, 5] or [1, 5] x, y, length, width, yaw in the local frame
    variant: str = ""  # see bodies.make_body
    parked: bool = False


class Ground:
    """Who is where, so that nothing meets: everything that stands or moves on the ground."""

    def __init__(self, moving: list[np.ndarray]) -> None:
        self._moving = list(moving)  # [T, 5] each
        self._still: list[np.ndarray] = []  # [5] each

    def free(self, boxes: np.ndarray, margin: float) -> bool:
        """Does a track ([T, 5] or [1, 5]) keep ``margin`` from everything at all times?"""
        if self._still:
            still = np.array(self._still)
            near = np.hypot(*(boxes[:, :2].mean(0) - still[:, :2]).T)
            spread = np.hypot(*np.ptp(boxes[:, :2], axis=0)) + boxes[0, 2]
            still = still[near < spread + still[:, 2] + still[:, 3] + margin]
            if len(still) and ever_overlap(boxes, still[:, None], margin).any():
                return False
        return not self._moving or not ever_overlap(boxes, np.stack(self._moving), margin).any()

    def add(self, boxes: np.ndarray) -> None:
        """Occupy the ground."""
        if len(boxes) == 1:
            self._still.append(boxes[0])
        else:
            self._moving.append(boxes)

    def claim(self, boxes: np.ndarray, margin: float) -> bool:
        """Occupy the ground if it is free."""
        free = self.free(boxes, margin)
        if free:
            self.add(boxes)
        return free


def cross_road(
    crossing: Crossing, forward: bool, start: float, speed: float, offset: float, duration: float
) -> np.ndarray:
    """[T, 2] way of a pedestrian who waits by the kerb, crosses from ``start`` seconds on, and stops beyond."""
    a, b = (crossing.start, crossing.end) if forward else (crossing.end, crossing.start)
    along = (b - a) / np.linalg.norm(b - a)
    side = np.array([-along[1], along[0]])
    reach = np.linalg.norm(b - a) + 4.6
    progress = walk(duration, [(start, speed), (start + float(reach) / speed, 0.0)])
    return a + offset * side + (progress[:, None] - 2.3) * along


def walk(duration: float, phases: list[tuple[float, float]]) -> np.ndarray:
    """[T] distance walked; from each (time, speed) on, which may lie before 0, that speed is taken up within 0.5 s."""
    before = max(0, int(np.ceil(-phases[0][0] / SIM_STEP)))
    time = (np.arange(round(duration / SIM_STEP) + 1 + before) - before) * SIM_STEP
    speed = np.zeros_like(time)
    last = 0.0
    for start, value in phases:
        speed += (value - last) * np.clip((time - start) / 0.5, 0.0, 1.0)
        last = value
    return np.r_[0.0, np.cumsum((speed[1:] + speed[:-1]) / 2 * SIM_STEP)][before:]


def place(side: Side, s: float, d: float, size: np.ndarray, turn: float = 0.0) -> np.ndarray:
    """[1, 5] box at (s, d) of a side, turned by ``turn`` from the driving direction."""
    xy = side.path.at(s, d)
    return np.array([[*xy, size[0], size[1], float(side.path.yaw(s)) + turn]])


class Roadside:
    """Fills the sides of a layout around the way that the ego drives."""

    def __init__(self, layout: Layout, ego: Path, driven: np.ndarray, ground: Ground, rng: np.random.Generator) -> None:
        self.layout, self.ego, self.ground, self.rng = layout, ego, ground, rng
        self.driven = driven  # [N, 2] places of the ego
        self.drafts: list[Draft] = []

    def _put(
        self, category: str, side: Side, s: float, d: float, turn: float = 0.0, margin: float = 0.12, **what
    ) -> bool:
        size = what.pop("size", None)
        size = sample_size(category, self.rng) if size is None else size
        return self._put_box(category, size, place(side, s, d, size, turn), margin, **what)

    def _put_box(self, category: str, size: np.ndarray, boxes: np.ndarray, margin: float, **what) -> bool:
        if not self.ground.claim(boxes, margin):
            return False
        self.drafts.append(Draft(category, size, boxes, **what))
        return True

    def _near(self, side: Side, d: float, within: float) -> np.ndarray:
        """[N] arc lengths, 1 m apart, at which offset ``d`` of a side lies near the ego's way."""
        s = np.arange(0.5, side.path.length - 0.5, 1.0)
        if not len(s):
            return s
        apart = np.linalg.norm(side.path.at(s, d)[:, None] - self.driven, axis=-1).min(axis=1)
        return s[apart < within]

    # ---- the parking strip -------------------------------------------------------------------------------------
    def park(self) -> None:
        """Deal the deck out along the strips, always on the side that lags behind on the ego's way."""
        lanes = []  # [side, position, last, direction]
        for side in self.layout.sides:
            near = self._near(side, KERB - STRIP / 2, POPULATED + 8.0 * (self.layout.name == "roundabout"))
            for first, last in side.strips:
                usable = near[(near > first) & (near < last)]
                if len(usable) < 4:
                    continue
                ends = self.ego.nearest(side.path.at(usable[[0, -1]], KERB))[0]
                forward = ends[0] <= ends[1]
                lo, hi = float(usable[0]), float(usable[-1])
                lanes.append([side, lo if forward else hi, hi if forward else lo, 1.0 if forward else -1.0])
        if self.layout.name == "roundabout":
            self._island()
        card = int(self.rng.integers(len(DECK)))
        while lanes:
            progress = [float(self.ego.nearest(side.path.at(at, KERB))[0]) for side, at, _, _ in lanes]
            lane = lanes[int(np.argmin(progress))]
            side, at, last, sign = lane
            kind = DECK[card % len(DECK)]
            category = self._category(kind)
            size = sample_size(category, self.rng) if category else np.array([ROOM[kind], 0.0, 0.0])
            room = ROOM.get(kind, float(size[0]) + 0.9)
            if sign * (last - at) < room:
                if sign * (last - at) > 5.6 and category is not None:
                    self._vehicle("car", side, at + sign * 2.8, sample_size("vehicle.car", self.rng))
                lanes.remove(lane)
                continue
            card += 1
            middle = at + sign * room / 2
            if kind == "works":
                self._works(side, middle)
            elif kind == "rack":
                self._rack(side, middle)
            elif kind != "gap":
                self._vehicle(kind, side, middle, size)
            lane[1] = at + sign * (room + self.rng.uniform(0.2, 1.0))

    def _category(self, kind: str) -> str | None:
        if kind == "bus":
            return "vehicle.bus.bendy" if self.rng.random() < 0.25 else "vehicle.bus.rigid"
        return None if kind in ROOM else f"vehicle.{kind}"

    def _vehicle(self, kind: str, side: Side, s: float, size: np.ndarray) -> None:
        category = self._category(kind) or ""
        wobble = self.rng.normal(0.0, 0.012)
        d = KERB - STRIP / 2 + (self.rng.normal(0.0, 0.08) if kind == "car" else 0.0)
        self._put(category, side, s, d, wobble, size=size, parked=True)

    def _rack(self, side: Side, s: float) -> None:
        """Motorcycles and bicycles, parked across the strip."""
        for i, kind in enumerate(("motorcycle", "bicycle")):
            turn = np.pi / 2 * (1 if self.rng.random() < 0.5 else -1) + self.rng.normal(0.0, 0.06)
            self._put(f"vehicle.{kind}", side, s - 0.65 + 1.3 * i, KERB - 1.5, turn, parked=True)

    def _works(self, side: Side, s: float) -> None:
        """Cones towards the traffic, barriers towards the walkway and at one end, workers between."""
        for x in np.arange(-4.2, 4.3, 2.8):
            self._put("movable_object.trafficcone", side, s + x, CYCLE_LANE + 0.35 + self.rng.uniform(0, 0.12))
        for x in (-2.0, 2.0):
            self._put("movable_object.barrier", side, s + x, KERB - 0.5, np.pi / 2 + self.rng.normal(0.0, 0.03))
        self._put("movable_object.barrier", side, s - 4.5, KERB - 1.3 - 0.4, self.rng.normal(0.0, 0.03))
        for x in self.rng.uniform(-3.5, 3.5, int(self.rng.integers(0, 3))):
            turn = self.rng.uniform(-np.pi, np.pi)
            self._put("human.pedestrian.construction_worker", side, s + x, KERB - 1.7, turn)

    def _island(self) -> None:
        """Works on the island of a roundabout: barriers and cones by turns around it."""
        for i, angle in enumerate(np.arange(8) * np.pi / 4 + self.rng.uniform(0.0, 0.5)):
            category = ("movable_object.barrier", "movable_object.trafficcone")[i % 2]
            size = sample_size(category, self.rng)
            xy = (RING_EDGES[0] - 1.0) * np.array([np.cos(angle), np.sin(angle)])
            self._put_box(category, size, np.array([[*xy, size[0], size[1], angle]]), 0.12)

    # ---- the walkway -------------------------------------------------------------------------------------------
    def furnish(self, parts: Parts) -> None:
        """Poles, planters, parked bicycles and a few barriers and cones along the kerb."""
        for side in self.layout.sides:
            near = self._near(side, FURNITURE, POPULATED)
            for s in near[:: int(self.rng.integers(7, 10))]:
                kind = self.rng.choice(
                    ["pole", "bicycle", "planter", "cones", "barrier"], p=[0.54, 0.05, 0.34, 0.04, 0.03]
                )
                if kind == "pole":
                    self._post(parts, side.path.at(s, FURNITURE - 0.15))
                elif kind == "planter":
                    self._slab(parts, side, s, FURNITURE, (1.3, 0.6, 0.55), "concrete", (150, 148, 142), PLAIN)
                elif kind == "bicycle":
                    self._put("vehicle.bicycle", side, s, FURNITURE, self.rng.choice([0.0, np.pi]), parked=True)
                elif kind == "barrier":
                    self._put("movable_object.barrier", side, s, FURNITURE, np.pi / 2)
                else:
                    for x in range(int(self.rng.integers(1, 3))):
                        self._put("movable_object.trafficcone", side, s + 0.9 * x, FURNITURE)

    def walkers(self, duration: float) -> None:
        """Pedestrians who walk in two files, stand or sit on the walkways."""
        for side in self.layout.sides:
            if not side.strips:
                continue
            for file, d in enumerate(FILES):
                near = self._near(side, d, POPULATED - 8)
                if not len(near):
                    continue
                line = shift(side.path.points, -d)
                path = Path(line if file == 0 else line[::-1])
                s = near[0] if file == 0 else path.length - near[-1]
                s, last = s + self.rng.uniform(0.0, 30.0), s + near[-1] - near[0]
                pace = self.rng.uniform(1.1, 1.5)
                while s < last:
                    self._walker(path, s, pace, duration)
                    s += self.rng.uniform(30.0, 90.0)
            for s in self._near(side, STANDING, POPULATED - 8)[
                int(self.rng.integers(3, 25)) :: int(self.rng.integers(34, 50))
            ]:
                kind = self.rng.choice(["adult", "child", "police_officer", "sitting"], p=[0.62, 0.12, 0.08, 0.18])
                category = f"human.pedestrian.{'adult' if kind == 'sitting' else kind}"
                size, turn = sample_size(category, self.rng), self.rng.uniform(-np.pi, np.pi)
                variant = ""
                if kind == "sitting":  # with the back to the houses
                    size, turn, variant = np.array([0.72, 0.6, 1.22]), np.pi / 2, "sitting"
                self._put(category, side, s, STANDING, turn, size=size, variant=variant)

    def _walker(self, path: Path, s: float, pace: float, duration: float) -> None:
        phases, end = [(-1.0, pace)], (path.length - 1.0 - s) / pace - 1.0
        pause = self.rng.uniform(0.2, 0.7) * duration
        if self.rng.random() < 0.15 and pause + 1.0 < end:  # stops to look at something, and goes on
            phases += [(pause, 0.0), (pause + 3.0, pace)]
            end += 3.0
        s_t = s + walk(duration, [*phases, (float(end), 0.0)])
        if end < 1.0:
            return
        category = "human.pedestrian.child" if self.rng.random() < 0.12 else "human.pedestrian.adult"
        size = sample_size(category, self.rng)
        box = np.tile([size[0], size[1]], (len(s_t), 1))
        boxes = np.concatenate([path.at(s_t), box, np.unwrap(path.yaw(s_t))[:, None]], axis=1)
        if self.ground.claim(boxes, 0.1):
            self.drafts.append(Draft(category, size, boxes))

    # ---- what is never annotated ---------------------------------------------------------------------------------
    def _post(self, parts: Parts, xy: np.ndarray) -> None:
        width = self.rng.uniform(0.14, 0.24)
        if self.ground.claim(np.array([[*xy, width, width, 0.0]]), 0.15):
            height = self.rng.uniform(3.5, 7.5)
            parts.cylinder(float(xy[0]), float(xy[1]), width, (0.0, height), "metal", (110, 112, 116))

    def _slab(
        self,
        parts: Parts,
        side: Side,
        s: float,
        d: float,
        size: tuple,
        material: str,
        color: tuple,
        texture: int,
    ) -> bool:
        """An upright block along the road, if its corners are clear of every other road and of everything there."""
        box = place(side, s, d, np.array(size))
        if not self.ground.claim(box, 0.12):
            return False
        x, y, length, width, yaw = box[0]
        half = ((-length / 2, length / 2), (-width / 2, width / 2), (0.0, size[2]))
        parts.box(
            (x + half[0][0], x + half[0][1]),
            (y + half[1][0], y + half[1][1]),
            half[2],
            material,
            color,
            texture,
            yaw,
        )
        return True

    def _off_road(self, side: Side, s: float, d: float, length: float, width: float) -> bool:
        """Is the whole outline of a block outside of every road and walkway?"""
        x, y = np.meshgrid(np.linspace(-0.5, 0.5, 9) * length, np.linspace(-0.5, 0.5, 7) * width)
        yaw = float(side.path.yaw(s))
        turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        outline = side.path.at(s, d) + np.stack([x.ravel(), y.ravel()], axis=-1) @ turn
        return bool((self.layout.clearance(outline) > 0.3).all())

    def build(self, parts: Parts) -> None:
        """Buildings in rows, and hedges, low walls and trees before them."""
        rng = self.rng
        for side in self.layout.sides:
            near = self._near(side, KERB + WALK, BUILT)
            if not len(near):
                continue
            s = float(near[0])
            while s < near[-1]:
                length, depth, height = rng.uniform(9, 24), rng.uniform(8, 13), rng.uniform(4.5, 22)
                d = KERB + WALK + 4.4 + rng.uniform(0, 3) + depth / 2
                if self._off_road(side, s + length / 2, d, length, depth):
                    material = "brick" if rng.random() < 0.5 else "concrete"
                    color = FACADES[rng.integers(len(FACADES))]
                    self._slab(parts, side, s + length / 2, d, (length, depth, height), material, color, WINDOWS)
                s += length + rng.choice([0.5, 1.5, 6.0])
            for s in near[:: int(rng.integers(6, 9))]:
                self._green(parts, side, float(s))
        if self.layout.name == "roundabout":
            for angle in np.arange(3) * 2.1:
                self._tree(parts, 0.45 * RING_EDGES[0] * np.array([np.cos(angle), np.sin(angle)]), 2.6)

    def _green(self, parts: Parts, side: Side, s: float) -> None:
        rng = self.rng
        d = KERB + WALK + 2.1
        kind = rng.choice(["tree", "hedge", "wall", "none"], p=[0.45, 0.25, 0.15, 0.15])
        if kind == "tree":
            crown = rng.uniform(2.4, 3.6)
            if self.layout.clearance(side.path.at(s, d)[None])[0] > crown / 2 + 0.1:
                self._tree(parts, side.path.at(s, d), crown)
        elif kind != "none":
            size = (rng.uniform(3, 6), 0.9, rng.uniform(0.8, 1.4)) if kind == "hedge" else (rng.uniform(3, 6), 0.3, 0.8)
            look = ("vegetation", LEAVES[rng.integers(4)], FOLIAGE) if kind == "hedge" else ("brick", FACADES[0], PLAIN)
            if self._off_road(side, s, d - 1.2, size[0], size[1]):
                self._slab(parts, side, s, d - 1.2, size, *look)

    def _tree(self, parts: Parts, xy: np.ndarray, crown: float) -> None:
        if self.ground.claim(np.array([[*xy, crown, crown, 0.0]]), 0.1):
            x, y = float(xy[0]), float(xy[1])
            bottom, top = self.rng.uniform(2.0, 2.8), self.rng.uniform(5.0, 8.0)
            parts.cylinder(x, y, self.rng.uniform(0.25, 0.45), (0.0, bottom + 0.5), "wood", (86, 66, 48))
            parts.cylinder(x, y, crown, (bottom, top), "vegetation", LEAVES[self.rng.integers(4)], FOLIAGE)


def all_static(roadside: Roadside) -> Solids:
    """Build everything that is not annotated, in the local frame."""
    parts = Parts()
    roadside.furnish(parts)
    roadside.build(parts)
    return parts.solids()
