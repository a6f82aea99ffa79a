"""What actors look like: sizes, radar cross-sections and the solids of each category, all inside the annotated box.

A body reaches every face of its box (the annotators draw boxes tightly), and tells front from back: lamps, cab, arm.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fusion3d.synthetic.scene import BOX, CYLINDER, MATERIALS, Solids

PLAIN, WINDOWS, STRIPES, FOLIAGE = 0, 1, 2, 3

# Mean and standard deviation of length, width, height [m]; samples stay within 1.5 standard deviations.
SIZES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "vehicle.car": ((4.6, 1.93, 1.70), (0.35, 0.09, 0.15)),
    "vehicle.truck": ((6.8, 2.45, 2.85), (0.8, 0.12, 0.35)),
    "vehicle.bus.rigid": ((11.0, 2.85, 3.40), (0.8, 0.06, 0.15)),
    "vehicle.bus.bendy": ((9.2, 2.85, 3.35), (0.4, 0.06, 0.1)),  # one section: each is annotated by itself
    "vehicle.trailer": ((10.5, 2.70, 3.75), (1.0, 0.1, 0.2)),
    "vehicle.construction": ((6.3, 2.70, 3.15), (0.6, 0.1, 0.25)),
    "vehicle.motorcycle": ((2.1, 0.78, 1.42), (0.13, 0.07, 0.1)),
    "vehicle.bicycle": ((1.72, 0.60, 1.28), (0.1, 0.05, 0.1)),
    "human.pedestrian.adult": ((0.72, 0.66, 1.76), (0.08, 0.05, 0.09)),
    "human.pedestrian.child": ((0.52, 0.48, 1.30), (0.04, 0.03, 0.1)),
    "human.pedestrian.construction_worker": ((0.74, 0.70, 1.78), (0.06, 0.04, 0.07)),
    "human.pedestrian.police_officer": ((0.74, 0.70, 1.80), (0.06, 0.04, 0.06)),
    "movable_object.trafficcone": ((0.42, 0.42, 0.95), (0.03, 0.03, 0.12)),
    "movable_object.barrier": ((0.52, 2.30, 1.02), (0.06, 0.2, 0.05)),
}
# Mean radar cross-section [dBsm].
RCS = {
    "vehicle.car": 10.0, "vehicle.truck": 15.0, "vehicle.bus.rigid": 18.0, "vehicle.bus.bendy": 18.0,
    "vehicle.trailer": 17.0, "vehicle.construction": 14.0, "vehicle.motorcycle": 1.0, "vehicle.bicycle": -3.0,
    "human.pedestrian.adult": -5.0, "human.pedestrian.child": -8.0, "human.pedestrian.construction_worker": -4.0,
    "human.pedestrian.police_officer": -5.0, "movable_object.trafficcone": -18.0, "movable_object.barrier": 2.0,
}  # fmt: skip
CAR_COLORS = (
    (235, 235, 235), (180, 182, 186), (30, 30, 34), (95, 98, 104), (150, 22, 28), (28, 52, 120), (20, 82, 60),
    (190, 160, 110),
)  # fmt: skip
TRUCK_COLORS = ((240, 240, 240), (170, 40, 36), (36, 74, 140), (226, 180, 40))
BUS_COLORS = ((200, 40, 40), (40, 120, 70), (40, 80, 170), (225, 130, 30))
CLOTHES = (
    (30, 40, 80), (150, 30, 40), (60, 60, 64), (220, 220, 210), (40, 100, 60), (190, 150, 60), (110, 60, 120),
    (20, 20, 22),
)  # fmt: skip
TROUSERS = ((28, 32, 52), (60, 56, 50), (20, 20, 20), (96, 92, 84))
SKIN = ((222, 180, 150), (160, 112, 82), (104, 70, 50))
YELLOW, ORANGE, DARK, GLASS = (232, 178, 20), (240, 96, 20), (24, 24, 26), (44, 58, 70)
WHITE, RED, LAMP = (238, 238, 232), (196, 20, 20), (250, 246, 220)

Span = tuple[float, float]


class Parts:
    """Collects solids, given by their extent from the ground up, into columns."""

    def __init__(self) -> None:
        self._rows: list[tuple] = []

    def box(
        self,
        x: Span,
        y: Span,
        z: Span,
        material: str,
        color: tuple[int, ...],
        texture: int = PLAIN,
        yaw: float = 0.0,
    ) -> None:
        """An upright box between the given extents [m], turned about its own axis by ``yaw``."""
        center = tuple((a + b) / 2 for a, b in (x, y, z))
        size = tuple(b - a for a, b in (x, y, z))
        self._rows.append((BOX, center, size, yaw, MATERIALS.index(material), color, texture))

    def cylinder(
        self,
        x: float,
        y: float,
        diameter: float,
        z: Span,
        material: str,
        color: tuple[int, ...],
        texture: int = PLAIN,
    ) -> None:
        """An upright cylinder about (x, y)."""
        center, size = (x, y, (z[0] + z[1]) / 2), (diameter, diameter, z[1] - z[0])
        self._rows.append((CYLINDER, center, size, 0.0, MATERIALS.index(material), color, texture))

    def solids(self, lower: float = 0.0) -> Solids:
        """All of them; ``lower`` moves the origin up by that much, to the middle of the box."""
        rows = list(zip(*self._rows, strict=True)) if self._rows else [[] for _ in range(7)]
        return Solids(
            kind=np.array(rows[0], dtype=np.uint8),
            center=np.array(rows[1], dtype=np.float64).reshape(-1, 3) - [0.0, 0.0, lower],
            size=np.array(rows[2], dtype=np.float64).reshape(-1, 3),
            yaw=np.array(rows[3], dtype=np.float64),
            material=np.array(rows[4], dtype=np.uint8),
            color=np.array(rows[5], dtype=np.uint8).reshape(-1, 3),
            texture=np.array(rows[6], dtype=np.uint8),
        )


def sample_size(category: str, rng: np.random.Generator) -> np.ndarray:
    """[3] length, width, height of one example [m]."""
    mean, spread = (np.array(value) for value in SIZES[category])
    return mean + spread * np.clip(rng.standard_normal(3), -1.5, 1.5)


def make_body(category: str, size: np.ndarray, variant: str, rng: np.random.Generator) -> Solids:
    """The solids of one actor in its own frame.

    Args:
        category: nuScenes category.
        size: [3] of its box [m].
        variant: "rider" puts someone on a cycle, "sitting" bends a pedestrian; "" otherwise.
        rng: chooses colours.
    """
    parts = Parts()
    human = category.startswith("human")
    kind = variant or category.split(".")[-1]
    _BUILDERS["pedestrian" if human else category](parts, size, kind, rng)
    if category == "human.pedestrian.construction_worker":
        parts.box(
            (-0.12, 0.12),
            (-size[1] / 2 + 0.03, size[1] / 2 - 0.03),
            (1.05, 1.2),
            "reflective",
            (230, 250, 60),
        )
    return parts.solids(lower=size[2] / 2)


def _pick(colors: tuple, rng: np.random.Generator) -> tuple[int, ...]:
    """One of the colours, a little lighter or darker."""
    color = np.array(colors[rng.integers(len(colors))], dtype=np.float64)
    return tuple(int(c) for c in np.clip(color * rng.uniform(0.88, 1.08), 0, 255))


def _wheels(parts: Parts, size: np.ndarray, diameter: float, places: tuple[float, ...]) -> None:
    length, width, _ = size
    for place in places:
        x = place * length
        parts.box((x - diameter / 2, x + diameter / 2), (-width / 2, width / 2), (0.0, diameter), "rubber", DARK)


def _lamps(parts: Parts, size: np.ndarray, z: Span, front: bool = True) -> None:
    """Head lamps on the front face and tail lamps on the rear face; thin, and flush with the box."""
    length, width, _ = size
    for side in (-1, 1):
        y = sorted((side * width * 0.47, side * width * 0.28))
        if front:
            parts.box((length / 2 - 0.03, length / 2), (y[0], y[1]), z, "glass", LAMP)
        parts.box((-length / 2, -length / 2 + 0.03), (y[0], y[1]), z, "reflective", RED)


def _car(parts: Parts, size: np.ndarray, variant: str, rng: np.random.Generator) -> None:
    length, width, height = size
    paint, inset = _pick(CAR_COLORS, rng), width / 2 - 0.01
    belt = height * rng.uniform(0.52, 0.58)
    front, rear = length * rng.uniform(0.16, 0.22), -length * rng.uniform(0.36, 0.49)
    parts.box((-length / 2 + 0.01, length / 2 - 0.01), (-inset, inset), (0.22, belt), "metal", paint)
    parts.box((rear, front), (-inset + 0.06, inset - 0.06), (belt, height - 0.07), "glass", GLASS)
    parts.box((rear + 0.05, front - 0.35), (-inset + 0.04, inset - 0.04), (height - 0.07, height), "metal", paint)
    for x in (rear + 0.1, front - 0.75):  # pillars, so that the windows are framed
        parts.box((x, x + 0.12), (-inset + 0.05, inset - 0.05), (belt, height - 0.07), "metal", paint)
    _wheels(parts, size, 0.66, (0.3, -0.3))
    _lamps(parts, size, (belt - 0.28, belt - 0.1))


def _truck(parts: Parts, size: np.ndarray, variant: str, rng: np.random.Generator) -> None:
    length, width, height = size
    paint, cargo = _pick(TRUCK_COLORS, rng), _pick((WHITE, (200, 200, 196), (150, 170, 190)), rng)
    cab, half = length / 2 - 0.01 - min(2.1, 0.3 * length), width / 2
    top = height * 0.82
    parts.box((cab, length / 2 - 0.01), (-half + 0.05, half - 0.05), (0.45, top), "metal", paint)
    window = (-half + 0.12, half - 0.12)
    parts.box((length / 2 - 0.4, length / 2 - 0.005), window, (top * 0.6, top * 0.92), "glass", GLASS)
    parts.box((cab + 0.7, cab + 1.3), (-half + 0.04, half - 0.04), (top * 0.6, top * 0.92), "glass", GLASS)
    parts.box((-length / 2 + 0.01, cab - 0.15), (-half, half), (0.95, height), "metal", cargo)
    parts.box((-length / 2 + 0.1, cab), (-half + 0.5, half - 0.5), (0.55, 0.95), "metal", DARK)
    _wheels(parts, size, 0.95, (0.34, -0.28))
    _lamps(parts, size, (0.6, 0.8))


def _bus(parts: Parts, size: np.ndarray, variant: str, rng: np.random.Generator) -> None:
    length, width, height = size
    paint, half, end = _pick(BUS_COLORS, rng), width / 2, length / 2
    parts.box((-end + 0.01, end - 0.01), (-half, half), (0.35, height * 0.42), "metal", paint)
    parts.box((-end + 0.03, end - 0.03), (-half + 0.02, half - 0.02), (height * 0.42, height * 0.76), "glass", GLASS)
    parts.box((-end + 0.01, end - 0.01), (-half, half), (height * 0.76, height), "metal", paint)
    for x in np.arange(-end + 1.6, end - 1.0, 1.7):  # window posts
        parts.box((x, x + 0.15), (-half + 0.01, half - 0.01), (height * 0.42, height * 0.76), "metal", paint)
    parts.box(
        (end - 0.02, end),
        (-half * 0.6, half * 0.6),
        (height * 0.82, height * 0.93),
        "plastic",
        (250, 180, 40),
    )
    _wheels(parts, size, 0.95, (0.28, -0.28))
    _lamps(parts, size, (0.55, 0.8))


def _trailer(parts: Parts, size: np.ndarray, variant: str, rng: np.random.Generator) -> None:
    length, width, height = size
    cargo, half, end = (
        _pick((WHITE, (60, 96, 160), (170, 60, 50), (150, 152, 150)), rng),
        width / 2,
        length / 2,
    )
    parts.box((-end, end), (-half, half), (1.15, height), "metal", cargo)
    parts.box((-end + 0.3, end - 0.3), (-0.45, 0.45), (0.95, 1.15), "metal", DARK)
    parts.box((-end + 0.5, end - 2.8), (-half, half), (height * 0.55, height * 0.62), "paint", RED)
    for side in (-1, 1):  # support legs
        parts.box(
            (end - 2.6, end - 2.4),
            (side * half * 0.7 - 0.08, side * half * 0.7 + 0.08),
            (0.0, 1.15),
            "metal",
            DARK,
        )
    _wheels(parts, size, 0.95, (-0.24, -0.35))
    _lamps(parts, size, (1.18, 1.3), front=False)


def _construction(parts: Parts, size: np.ndarray, variant: str, rng: np.random.Generator) -> None:
    """A wheel loader or an excavator: yellow, tracks, a cab at the back and an arm with a bucket in front."""
    length, width, height = size
    half, end = width / 2, length / 2
    for side in (-1, 1):
        y = sorted((side * half, side * (half - 0.5)))
        parts.box((-end, end * 0.45), (y[0], y[1]), (0.0, 0.9), "rubber", DARK)
    parts.box((-end, end * 0.35), (-half + 0.1, half - 0.1), (0.75, 1.7), "metal", YELLOW)
    cab = -end * (0.15 if rng.random() < 0.5 else 0.45)
    parts.box((cab - 0.7, cab + 0.7), (-half * 0.55, half * 0.55), (1.7, height - 0.12), "glass", GLASS)
    parts.box((cab - 0.75, cab + 0.75), (-half * 0.6, half * 0.6), (height - 0.12, height), "metal", YELLOW)
    parts.box((end * 0.2, end - 0.75), (-0.22, 0.22), (1.5, 1.95), "metal", YELLOW)
    parts.box((end - 1.0, end - 0.65), (-0.2, 0.2), (0.5, 1.95), "metal", YELLOW)
    parts.box((end - 0.85, end), (-half + 0.15, half - 0.15), (0.15, 0.95), "metal", (90, 84, 70))


def _cycle(parts: Parts, size: np.ndarray, variant: str, rng: np.random.Generator) -> None:
    length, width, height = size
    motor = length > 1.95
    end, rider = length / 2, variant == "rider"
    wheel, thick = (0.62, 0.16) if motor else (0.66, 0.05)
    for x in (-end + wheel / 2, end - wheel / 2):
        parts.box((x - wheel / 2, x + wheel / 2), (-thick / 2, thick / 2), (0.0, wheel), "rubber", DARK)
    paint = _pick(((170, 20, 24), (20, 20, 24), (30, 60, 150), (40, 110, 60)), rng)
    bar = min(1.08, height - 0.15)
    if motor:
        parts.box((-end * 0.55, end * 0.5), (-0.17, 0.17), (0.3, 0.85), "metal", paint)
        parts.box((-end * 0.8, -end * 0.05), (-0.15, 0.15), (0.7, 0.88), "plastic", DARK)
        parts.box((end * 0.55, end * 0.68), (-0.12, 0.12), (0.75, 0.95), "glass", LAMP)
    else:
        parts.box((-end * 0.5, end * 0.5), (-0.03, 0.03), (0.52, 0.6), "metal", paint)
        parts.box((-end * 0.36, -end * 0.28), (-0.03, 0.03), (0.4, 0.92), "metal", paint)
        parts.box((-end * 0.48, -end * 0.14), (-0.08, 0.08), (0.9, 0.97), "plastic", DARK)
    top = bar if rider else height  # without a rider the bar or its mirrors are the highest point
    parts.box((end * 0.45, end * 0.55), (-0.03, 0.03), (wheel * 0.5, top - 0.1), "metal", paint)
    parts.box((end * 0.35, end * 0.5), (-width / 2, width / 2), (top - 0.1, top), "metal", DARK)
    if rider:
        clothes, seat = _pick(CLOTHES, rng), 0.88
        head = height - 0.26
        for side in (-1, 1):
            y = sorted((side * (0.12 if motor else 0.07), side * width * 0.42))
            parts.box((-0.25, 0.3), (y[0], y[1]), (0.3, seat + 0.12), "skin_cloth", _pick(TROUSERS, rng))
        parts.cylinder(-0.15, 0.0, min(0.48, width - 0.06), (seat, head), "skin_cloth", clothes)
        parts.box(
            (-0.1, end * 0.45),
            (-width / 2 + 0.06, width / 2 - 0.06),
            (head - 0.42, head - 0.26),
            "skin_cloth",
            clothes,
        )
        parts.cylinder(-0.1, 0.0, 0.26, (head, height), "plastic", WHITE if not motor else DARK)


def _pedestrian(parts: Parts, size: np.ndarray, variant: str, rng: np.random.Generator) -> None:
    length, width, height = size
    shirt, trousers = _pick(CLOTHES, rng), _pick(TROUSERS, rng)
    if variant == "construction_worker":
        shirt = ORANGE
    elif variant == "police_officer":
        shirt = trousers = (22, 28, 60)
    half, end = width / 2, length / 2
    if variant == "sitting":
        parts.box((-end, -end + 0.35), (-half, half), (0.3, height - 0.26), "skin_cloth", shirt)
        for side in (-1, 1):
            y = sorted((side * 0.04, side * (half - 0.03)))
            parts.box((-end + 0.2, end), (y[0], y[1]), (0.38, 0.56), "skin_cloth", trousers)
            parts.box((end - 0.16, end), (y[0], y[1]), (0.0, 0.4), "skin_cloth", trousers)
        parts.cylinder(-end + 0.18, 0.0, 0.24, (height - 0.26, height), "skin_cloth", _pick(SKIN, rng))
        return
    hip, neck = height * 0.48, height * 0.84
    parts.box((-0.04, end), (0.02, half * 0.7), (0.0, hip), "skin_cloth", trousers)  # one leg forward, one back
    parts.box((-end, 0.04), (-half * 0.7, -0.02), (0.0, hip), "skin_cloth", trousers)
    parts.cylinder(0.0, 0.0, min(width * 0.72, length), (hip, neck), "skin_cloth", shirt)
    for side, (x0, x1) in ((1, (-end, end * 0.25)), (-1, (-end * 0.25, end))):  # arms swing against the legs
        y = sorted((side * half, side * half * 0.68))
        parts.box((x0, x1), (y[0], y[1]), (hip * 0.95, neck - 0.05), "skin_cloth", shirt)
    helmet = {"construction_worker": YELLOW, "police_officer": (22, 28, 60)}.get(variant)
    brow = height - (0.1 if helmet else 0.05)
    parts.cylinder(0.0, 0.0, height * 0.13, (neck, brow), "skin_cloth", _pick(SKIN, rng))
    parts.cylinder(0.0, 0.0, height * 0.14, (brow, height), "plastic" if helmet else "skin_cloth", helmet or DARK)


def _cone(parts: Parts, size: np.ndarray, variant: str, rng: np.random.Generator) -> None:
    length, width, height = size
    parts.box((-length / 2, length / 2), (-width / 2, width / 2), (0.0, 0.06), "rubber", DARK)
    levels = np.linspace(0.06, height, 6)
    for i in range(5):  # narrowing rings, orange and white by turns
        color, material = (ORANGE, "plastic") if i % 2 == 0 else (WHITE, "reflective")
        diameter = min(length, width) * (0.92 - 0.17 * i)
        parts.cylinder(0.0, 0.0, diameter, (levels[i], levels[i + 1]), material, color)


def _barrier(parts: Parts, size: np.ndarray, variant: str, rng: np.random.Generator) -> None:
    """A board on two feet, wide across its heading as nuScenes annotates it."""
    length, width, height = size
    for side in (-1, 1):
        y = sorted((side * width / 2, side * (width / 2 - 0.3)))
        parts.box((-length / 2, length / 2), (y[0], y[1]), (0.0, 0.25), "plastic", (70, 70, 72))
    board, material = (WHITE, "reflective") if rng.random() < 0.7 else ((190, 190, 184), "concrete")
    parts.box(
        (-length / 2 + 0.04, length / 2 - 0.04),
        (-width / 2, width / 2),
        (0.25, height),
        material,
        board,
        STRIPES,
    )


_BUILDERS: dict[str, Callable[[Parts, np.ndarray, str, np.random.Generator], None]] = {
    "vehicle.car": _car, "vehicle.truck": _truck, "vehicle.bus.rigid": _bus, "vehicle.bus.bendy": _bus,
    "vehicle.trailer": _trailer, "vehicle.construction": _construction, "vehicle.motorcycle": _cycle,
    "vehicle.bicycle": _cycle, "pedestrian": _pedestrian, "movable_object.trafficcone": _cone,
    "movable_object.barrier": _barrier,
}  # fmt: skip
