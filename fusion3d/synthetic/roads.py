"""Road layouts: where the lanes, walkways and crossings of a scene lie and which routes lead through them.

Everything is in the scene's local frame: x east, y north, metres, ground at z = 0, right-hand traffic. Every road has
the same cross-section on both sides of its centre line: lanes, cycle lane, parking strip, walkway. The ego always comes
from the south (or, on a road without junction, from the start of the road).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fusion3d.synthetic.curves import Path, band, bezier, resample, shift, turned
from fusion3d.synthetic.scene import RoadMap

LANE = 3.5  # [m] width of a driving lane
CYCLE_LANE = 1.6  # [m] between the outer lane and the parking strip
STRIP = 3.2  # [m] parking strip, drivable
WALK = 3.6  # [m] walkway
CORNER = 4.5  # [m] from the kerb of one road to the start of the next one at a junction
STOP_SETBACK = 4.7  # [m] stop line, outward of the junction's edge
CROSSING = (0.5, 3.5)  # [m] a junction's crossing reaches from .. to, outward of its edge
RING = 13.0  # [m] radius of the lane of a roundabout
RING_EDGES = (9.0, 17.0)  # [m] island and outer kerb of a roundabout
TURNS = {0: "straight", 1: "left", -1: "right"}


@dataclass(frozen=True)
class Route:
    """A way through the layout, for cars (along lane centres) or cycles (along cycle lanes)."""

    path: Path
    start: int  # leg it comes in on
    end: int  # leg it leaves on
    turn: str = "straight"  # or "left" or "right"
    stop: float = np.inf  # [m] arc length of the stop line before the junction; inf where there is none
    anchor: float = 0.0  # [m] arc length of the place that makes the route interesting
    clear: tuple[float, float] = (0.0, 0.0)  # [m] arc lengths between which nothing starts: the junction
    cycles: bool = False


@dataclass(frozen=True)
class Side:
    """One edge of a road: the outer line of its lanes, in driving direction; the roadside lies to its right."""

    path: Path
    strips: tuple[tuple[float, float], ...]  # [m] arc lengths where the parking strip may be used

    def strip(self, first: float, last: float) -> np.ndarray:
        """[V, 2] the parking strip between two arc lengths, counter-clockwise."""
        line = self.path.at(np.linspace(first, last, max(2, round(last - first))))
        return band(line, -CYCLE_LANE, -CYCLE_LANE - STRIP)


@dataclass(frozen=True)
class Crossing:
    """A zebra crossing from kerb to kerb."""

    start: np.ndarray  # [2]
    end: np.ndarray  # [2]
    leg: int
    width: float = CROSSING[1] - CROSSING[0]

    def polygon(self) -> np.ndarray:
        """[4, 2] counter-clockwise."""
        along = (self.end - self.start) / np.linalg.norm(self.end - self.start)
        side = np.array([-along[1], along[0]]) * self.width / 2
        return np.stack([self.start - side, self.end - side, self.end + side, self.start + side])

    def meets(self, path: Path) -> tuple[float, float] | None:
        """Where a path enters the crossing [m of arc length], and how far from ``start`` [m]; None: it does not."""
        along = self.end - self.start
        length = float(np.linalg.norm(along))
        along = along / length
        offset = path.points - self.start
        a, c = offset @ along, offset @ np.array([-along[1], along[0]])
        inside = np.flatnonzero((np.abs(c) < self.width / 2) & (a > 0) & (a < length))
        return (float(path.s[inside[0]]), float(a[inside[0]])) if len(inside) else None


@dataclass(frozen=True)
class Layout:
    """A whole piece of road network, in the local frame."""

    name: str
    roads: RoadMap
    routes: tuple[Route, ...]
    sides: tuple[Side, ...]
    crossings: tuple[Crossing, ...]
    num_legs: int
    blocked: tuple[tuple[np.ndarray, float], ...]  # ([N, 2] line or centre, half width): roads with their walkways

    def clearance(self, xy: np.ndarray) -> np.ndarray:
        """[...] metres from [..., 2] points to the outer edge of the nearest walkway; negative on the road."""
        gaps = [np.linalg.norm(xy[..., None, :] - line, axis=-1).min(-1) - half for line, half in self.blocked]
        return np.min(gaps, axis=0)


@dataclass(frozen=True)
class _Leg:
    """A road; seen from a junction it leads outward."""

    line: np.ndarray  # [N, 2] centre line
    lanes: int  # in each direction

    @property
    def half(self) -> float:
        return self.lanes * LANE + CYCLE_LANE + STRIP

    def lane(self, k: float, outward: bool) -> np.ndarray:
        """Centre line of lane ``k`` (0 is the inner one) in driving direction; ``lanes - 0.5 + x`` is beside it."""
        offset = (k + 0.5) * LANE
        return shift(self.line, -offset) if outward else shift(self.line, offset)[::-1]

    def cycle_lane(self, outward: bool) -> np.ndarray:
        return self.lane(self.lanes - 0.5 + CYCLE_LANE / 2 / LANE, outward)

    def edge(self, outward: bool) -> np.ndarray:
        return self.lane(self.lanes - 0.5, outward)

    def surfaces(self) -> dict[str, list[np.ndarray]]:
        """The polygons and lines of this road alone."""
        half, lanes = self.half, self.lanes
        sides = [(k, outward) for k in range(lanes) for outward in (True, False)]
        return {
            "drivable": [band(self.line, half, -half)],
            "lanes": [
                band(self.line, LANE * (-k if out else k + 1), LANE * (-k - 1 if out else k)) for k, out in sides
            ],
            "lane_centers": [self.lane(k, outward) for k, outward in sides],
            "walkways": [band(self.line, half + WALK, half), band(self.line, -half, -half - WALK)],
            "dividers": [shift(self.line, k * LANE) for k in range(-lanes, lanes + 1) if k],
            "road_dividers": [self.line],
        }


def _collect(parts: list[dict[str, list[np.ndarray]]], crossings: list[Crossing], sides: list[Side]) -> RoadMap:
    keys = ("drivable", "lanes", "lane_centers", "walkways", "dividers", "road_dividers", "stop_lines")
    merged = {key: tuple(item for part in parts for item in part.get(key, [])) for key in keys}
    carparks = tuple(side.strip(*ends) for side in sides for ends in side.strips)
    return RoadMap(crossings=tuple(c.polygon() for c in crossings), carparks=carparks, **merged)


def road_without_junction(name: str, turn: str, lanes: int, reach: float, rng: np.random.Generator) -> Layout:
    """A straight road or a curve with one crossing. ``reach`` is the length before and after the middle [m]."""
    straight = np.array([[0.0, -reach], [0.0, 0.0]])
    if turn == "straight":
        line, anchor, crossing_at = np.array([[0.0, -reach], [0.0, reach]]), reach, reach
    else:
        radius, angle = rng.uniform(30.0, 42.0), rng.uniform(np.radians(65), np.radians(95))
        at = np.linspace(0.0, angle, 60)[:, None]
        arc = radius * np.concatenate([1 - np.cos(at), np.sin(at)], axis=1)
        away = arc[-1] + reach * np.array([np.sin(angle), np.cos(angle)])
        line = np.concatenate([straight[:1], arc, away[None]]) * ([-1.0, 1.0] if turn == "left" else [1.0, 1.0])
        anchor, crossing_at = reach, reach + radius * angle + 12.0
    center = Path(line)
    leg = _Leg(center.points, lanes)
    middle, yaw = center.at(crossing_at), float(center.yaw(crossing_at))
    right = leg.half * np.array([np.sin(yaw), -np.cos(yaw)])
    crossing = Crossing(middle + right, middle - right, 0)
    along = np.array([np.cos(yaw), np.sin(yaw)])
    routes, sides, stops = [], [], []
    for outward in (True, False):
        for k in range(lanes):
            path = Path(leg.lane(k, outward))
            far = float(path.nearest(center.at(anchor))[0])
            bend = turn if outward and k == 0 else "straight"  # the ego takes the first route
            routes.append(Route(path, int(not outward), int(outward), bend, anchor=far))
        path = Path(leg.cycle_lane(outward))
        routes.append(Route(path, 0, 1, anchor=path.length / 2, cycles=True))
        path = Path(leg.edge(outward))
        at = float(path.nearest(middle)[0])
        sides.append(Side(path, ((0.0, at - 9.0), (at + 7.0, path.length))))
        sign = 1.0 if outward else -1.0
        line_at = middle - sign * along * (crossing.width / 2 + 1.2)
        stops.append(np.stack([line_at, line_at + sign * right * lanes * LANE / leg.half]))
    parts = [leg.surfaces(), {"stop_lines": stops}]
    blocked = ((leg.line, leg.half + WALK),)
    roads = _collect(parts, [crossing], sides)
    return Layout(name, roads, tuple(routes), tuple(sides), (crossing,), 2, blocked)


def junction(name: str, quarters: tuple[int, ...], lanes: int, reach: float, ring: bool = False) -> Layout:
    """A crossing of roads at right angles, or a roundabout.

    Args:
        name: of the layout.
        quarters: for each leg its direction in quarter turns from east; the ego's leg, 3 (south), comes first.
        lanes: in each direction, on every leg.
        reach: length of each leg [m].
        ring: a roundabout.
    """
    half = lanes * LANE + CYCLE_LANE + STRIP
    edge = RING_EDGES[1] + 5.0 if ring else half + CORNER
    angles = [q * np.pi / 2 for q in quarters]
    legs = [_Leg(turned(resample(np.array([[edge, 0.0], [edge + reach, 0.0]]), 1.0), a), lanes) for a in angles]
    x = edge + sum(CROSSING) / 2
    crossings = [Crossing(turned([x, -half], a), turned([x, half], a), i) for i, a in enumerate(angles)]
    ways = [
        (i, j, k)
        for i in range(len(legs))
        for j in range(len(legs))
        if i != j
        for k in range(lanes)
        if k == {"left": 0, "right": lanes - 1}.get(_turn(quarters[i], quarters[j]), k)
    ]
    joints = [_joint(legs[i].lane(k, False), legs[j].lane(k, True), angles[i], angles[j], ring) for i, j, k in ways]
    routes = [_route(legs, i, j, quarters, k, joint) for (i, j, k), joint in zip(ways, joints, strict=True)]
    parts = [leg.surfaces() for leg in legs]
    parts.append(_ring_surfaces(quarters, half) if ring else _junction_surfaces(quarters, half, edge))
    inside = [resample(joint, 0.5) for joint in joints]
    parts.append({"lanes": [band(line, LANE / 2, -LANE / 2) for line in inside], "lane_centers": inside})
    stop = [[edge + STOP_SETBACK, 0.0], [edge + STOP_SETBACK, lanes * LANE]]
    parts.append({"stop_lines": [turned(stop, angle) for angle in angles]})
    routes += _cycle_routes(legs, quarters, ring)
    sides = [
        Side(path, ((8.0, path.length),) if outward else ((0.0, path.length - 8.0),))
        for leg in legs
        for outward in (True, False)
        for path in [Path(leg.edge(outward))]
    ]
    for q in set(range(4)) - set(quarters) if not ring else ():
        closed = turned([[lanes * LANE, -edge], [lanes * LANE, edge]], q * np.pi / 2)
        sides.append(Side(Path(closed), ()))
    core = RING_EDGES[1] + WALK if ring else edge * 1.1
    blocked = (*((leg.line, leg.half + WALK) for leg in legs), (np.zeros((1, 2)), core))
    roads = _collect(parts, crossings, sides)
    return Layout(name, roads, tuple(routes), tuple(sides), tuple(crossings), len(legs), blocked)


def _turn(start: int, end: int) -> str:
    """Name of the manoeuvre between two legs given in quarter turns."""
    return TURNS[(end - start - 1) % 4 - 1]


def _joint(came: np.ndarray, leaves: np.ndarray, start: float, end: float, ring: bool) -> np.ndarray:
    """[N, 2] through a junction, from the end of a lane to the beginning of another; their legs lie at two angles."""
    if not ring:
        return bezier(came[-1], start + np.pi, leaves[0], end)
    flare = np.radians(40.0)
    first, last = start + flare, end - flare
    last += 2 * np.pi * np.ceil((first - last) / (2 * np.pi))
    angle = np.linspace(first, last, max(3, int((last - first) * RING)))
    arc = RING * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    into = bezier(came[-1], start + np.pi, arc[0], first + np.pi / 2)
    return np.concatenate([into, arc, bezier(arc[-1], last + np.pi / 2, leaves[0], end)])


def _route(legs: list[_Leg], i: int, j: int, quarters: tuple[int, ...], k: int, joint: np.ndarray) -> Route:
    came, leaves = legs[i].lane(k, False), legs[j].lane(k, True)
    path = Path(np.concatenate([came, joint, leaves]))
    length = float(np.linalg.norm(np.diff(came, axis=0), axis=1).sum())
    stop = length - STOP_SETBACK
    beyond = path.length - float(np.linalg.norm(np.diff(leaves, axis=0), axis=1).sum())
    return Route(path, i, j, _turn(quarters[i], quarters[j]), stop, stop, (stop - 1.0, beyond + 6.0))


def _cycle_routes(legs: list[_Leg], quarters: tuple[int, ...], ring: bool) -> list[Route]:
    """Cycles turn right, so that no car crosses their way; at a roundabout they end before it or start behind it."""
    routes = []
    for i, leg in enumerate(legs):
        came = leg.cycle_lane(False)
        if ring:
            routes += [Route(Path(line), i, i, cycles=True) for line in (came[:-8], leg.cycle_lane(True)[8:])]
            continue
        order = [(quarters[i] + 1) % 4, (quarters[i] + 2) % 4]
        j = next((quarters.index(q) for q in order if q in quarters), None)
        if j is None:
            continue
        leaves = legs[j].cycle_lane(True)
        joint = bezier(came[-1], quarters[i] * np.pi / 2 + np.pi, leaves[0], quarters[j] * np.pi / 2)
        stop = len(came) - 1 - STOP_SETBACK
        clear = (stop - 1.0, stop + STOP_SETBACK + 20.0)
        path = Path(np.concatenate([came, joint, leaves]))
        routes.append(Route(path, i, j, _turn(quarters[i], quarters[j]), stop, stop, clear, cycles=True))
    return routes


def _junction_surfaces(quarters: tuple[int, ...], half: float, edge: float) -> dict[str, list[np.ndarray]]:
    outline, walkways = [], []
    for q in range(4):
        if q in quarters:
            outline += [turned([edge, side], q * np.pi / 2) for side in (-half, half)]
        else:
            closed = [[half, -edge], [half + WALK, -edge], [half + WALK, edge], [half, edge]]
            walkways.append(turned(closed, q * np.pi / 2))
        outline.append(turned([half, half], q * np.pi / 2))
        if q in quarters and (q + 1) % 4 in quarters:
            corner = [[half, half], [edge, half], [edge, edge], [half, edge]]
            walkways.append(turned(corner, q * np.pi / 2))
    return {"drivable": [np.array(outline)], "walkways": walkways}


def _ring_surfaces(quarters: tuple[int, ...], half: float) -> dict[str, list[np.ndarray]]:
    def sector(inner: float, outer: float, first: float, last: float) -> np.ndarray:
        angle = np.linspace(first, last, 24)
        unit = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
        return np.concatenate([outer * unit, inner * unit[::-1]])

    island, kerb = RING_EDGES
    gap = np.arcsin(half / kerb)
    drivable = [sector(island, kerb, q * np.pi / 2, (q + 1) * np.pi / 2) for q in range(4)]
    throat = [[kerb - 3.0, -half], [kerb + 5.0, -half], [kerb + 5.0, half], [kerb - 3.0, half]]
    drivable += [turned(throat, q * np.pi / 2) for q in quarters]
    walkways = []
    for q in range(4):
        first = q * np.pi / 2 + (gap if q in quarters else 0.0)
        last = (q + 1) * np.pi / 2 - (gap if (q + 1) % 4 in quarters else 0.0)
        walkways.append(sector(kerb, kerb + WALK, first, last))
    return {"drivable": drivable, "walkways": walkways}


def make_layout(name: str, turn: str, reach: float, rng: np.random.Generator) -> Layout:
    """The layout of that name: straight, curve, intersection, t-junction or roundabout.

    Args:
        name: which one.
        turn: manoeuvre of the ego; a curve bends that way.
        reach: length of the roads from the middle [m].
        rng: chooses the number of lanes and the radius of a curve.

    Raises:
        ValueError: no such layout.
    """
    if name in ("straight", "curve"):
        return road_without_junction(name, turn, int(rng.integers(1, 3)), reach, rng)
    if name == "intersection":
        return junction(name, (3, 0, 1, 2), int(rng.integers(1, 3)), reach)
    if name == "t-junction":
        return junction(name, (3, 0, 2), 1, reach)
    if name == "roundabout":
        return junction(name, (3, 0, 1, 2), 1, reach, ring=True)
    raise ValueError(f"layout {name!r} is unknown; expected straight, curve, intersection, t-junction or roundabout")
