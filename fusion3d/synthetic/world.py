"""A whole synthetic scene from a number: roads, traffic, the ego's drive, everything beside the road, and the weather.

Attributes follow nuScenes. A vehicle is ``vehicle.parked`` when it stands beside the lanes; in traffic it is
``vehicle.moving`` where it is faster than ``MOVING`` and ``vehicle.stopped`` otherwise. A cycle is with or without a
rider. A pedestrian is ``pedestrian.sitting_lying_down`` when drawn so, else moving above ``MOVING`` and standing
otherwise. Cones and barriers have none.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fusion3d.synthetic.bodies import RCS, make_body, sample_size
from fusion3d.synthetic.curves import turned
from fusion3d.synthetic.roads import Layout, Route, make_layout
from fusion3d.synthetic.roadside import Draft, Ground, Roadside, all_static, cross_road
from fusion3d.synthetic.scene import SIM_STEP, Actor, RoadMap, Scene, Solids, Track, Weather
from fusion3d.synthetic.traffic import Gate, Mover, ever_overlap, footprints, simulate
from fusion3d.types import ATTRIBUTES, EGO_CENTER, EGO_SIZE

MAX_DURATION = 22.0  # [s] that the roads are made for; the 40 keyframes of nuScenes with what is round them are 21
MOVING = 0.2  # [m/s] above it something moves
SPACING = 700.0  # [m] between the middles of two scenes on the map
# Layout, the ego's manoeuvre and how its drive begins: "go" drives on, "wait" starts at a closed stop line,
# "arrive" comes to a closed stop line or to somebody on the crossing. The order mixes them within any few scenes.
PLANS = (
    ("intersection", "left", "go"),
    ("straight", "straight", "arrive"),
    ("curve", "right", "go"),
    ("t-junction", "right", "wait"),
    ("roundabout", "straight", "go"),
    ("intersection", "straight", "arrive"),
    ("intersection", "right", "go"),
    ("curve", "left", "go"),
    ("t-junction", "left", "wait"),
    ("roundabout", "right", "go"),
)
# Night, rain and fog by turns; any two neighbours hold a clear and an adverse one.
WEATHERS = (
    (), ("rain",), (), ("night",), (), ("fog",), (), ("night", "rain"),
)  # fmt: skip
STRENGTH = {"night": (0.85, 1.0), "rain": (0.5, 0.9), "fog": (0.4, 0.8)}
RIDDEN = ("vehicle.motorcycle", "vehicle.bicycle")


def scene_name(index: int) -> str:
    """Name of a scene, such as scene-0003."""
    return f"scene-{index:04d}"


def build_scene(index: int, seed: int, duration: float) -> Scene:
    """Simulate one scene; the same arguments give the same scene, bit for bit.

    Args:
        index: which scene; decides layout, manoeuvre, weather and place on the map.
        seed: of everything random.
        duration: [s], at most MAX_DURATION. States are stored at 0, SIM_STEP, ... up to it.

    Raises:
        ValueError: index or seed is negative, or the duration is not in [1, MAX_DURATION].
    """
    if index < 0 or seed < 0:
        raise ValueError(f"scene index and seed must not be negative, found index {index}, seed {seed}")
    if not 1.0 <= duration <= MAX_DURATION:
        raise ValueError(f"duration of a scene must be in [1, {MAX_DURATION:g}] s, found {duration:g}")
    rng = np.random.default_rng([seed, index])
    name, turn, mode = PLANS[index % len(PLANS)]
    layout = make_layout(name, turn, 90.0 + 9.0 * duration, rng)
    movers, walks = _traffic(layout, turn, mode, duration, rng)
    movers, boxes, walks, ego_s = _run(movers, walks, duration)
    ego_xy = movers[0].path.at(ego_s)
    ground = Ground([*boxes, *(draft.boxes for draft in walks)])
    roadside = Roadside(layout, movers[0].path, ego_xy[::10], ground, rng)
    roadside.park()
    static = all_static(roadside)
    roadside.walkers(duration)
    drafts = [
        Draft(mover.category, mover.size, box, "rider" if mover.category in RIDDEN else "")
        for mover, box in zip(movers[1:], boxes[1:], strict=True)
        if np.linalg.norm(box[:, None, :2] - ego_xy[None, ::10], axis=-1).min() < 90.0
    ]
    drafts += walks + roadside.drafts
    heading, origin = rng.uniform(-np.pi, np.pi), _origin(index)
    ego = _track(ego_xy, np.zeros(1), np.unwrap(movers[0].path.yaw(ego_s)), heading, origin)
    actors = tuple(_actor(draft, len(ego.yaw), heading, origin, rng) for draft in drafts)
    conditions = WEATHERS[index % len(WEATHERS)]
    return Scene(
        name=scene_name(index),
        description=_describe(conditions, name, ego, actors),
        seed=seed,
        duration=duration,
        ego=ego,
        actors=actors,
        static=_moved(static, heading, origin),
        roads=_moved_roads(layout.roads, heading, origin),
        weather=Weather(**{key: float(rng.uniform(*STRENGTH[key])) for key in conditions}),
        route=turned(movers[0].path.points, heading) + origin,
    )


def _origin(index: int) -> np.ndarray:
    """[2] middle of a scene on the map: square shells, so that few scenes need a small map."""
    shell = int(np.sqrt(index))
    rest = index - shell * shell
    cell = (shell, rest) if rest <= shell else (2 * shell - rest, shell)
    return SPACING * (np.array(cell) + 0.6)


# ---- traffic -------------------------------------------------------------------------------------------------------
def _traffic(
    layout: Layout, turn: str, mode: str, duration: float, rng: np.random.Generator
) -> tuple[list[Mover], list[Draft]]:
    """The ego first, then everybody on the lanes, and the pedestrians who cross."""
    routes = [r for r in layout.routes if r.start == 0 and r.turn == turn and not r.cycles]
    route = routes[int(rng.integers(len(routes)))]
    cruise = float(rng.uniform(8.5, 11.5))
    approach = {
        "go": np.clip(1.9 * duration, 9.0, 42.0),
        "wait": 1.0,
        "arrive": np.clip(3.2 * duration, 14.0, 55.0),
    }
    ego = Mover(route.path, "ego", np.array(EGO_SIZE), 0.0, cruise, EGO_CENTER, (), 0.0 if mode == "wait" else None)
    ego = replace(ego, s=route.anchor - ego.front - float(approach[mode]))
    red = _lights(layout, mode, duration, rng)
    walks = _crossers(layout, ego, mode, duration, rng)
    movers = [_gated(ego, route, red, layout, walks)]
    starts = [footprints(ego, np.array([ego.s]))]
    wanted = [(route, ego.s + rng.uniform(17.0, 27.0))] if mode != "wait" and rng.random() < 0.6 else []
    wanted += [(route, ego.s - rng.uniform(13.0, 22.0))] if rng.random() < 0.7 else []
    for other in (layout.routes[i] for i in rng.permutation(len(layout.routes))):
        places = np.cumsum(rng.uniform(17.0, 48.0, 40)) if not other.cycles else np.cumsum(rng.uniform(30.0, 90.0, 30))
        wanted += [(other, s) for s in places]
    for other, s in wanted:
        mover = _sampled(other, float(s), layout, rng)
        if mover is None or len(movers) >= 18:
            continue
        start = footprints(mover, np.array([mover.s]))
        if np.linalg.norm(start[0, :2] - starts[0][0, :2]) > 45.0 + 3.5 * duration:
            continue
        spaced = start + np.array([0.0, 0.0, 7.0, 0.0, 0.0])
        if ever_overlap(spaced, np.stack(starts), 0.3).any():
            continue
        movers.append(_gated(mover, other, red, layout, walks))
        starts.append(start)
    return movers, walks


def _sampled(route: Route, s: float, layout: Layout, rng: np.random.Generator) -> Mover | None:
    """Somebody on a route; None where nothing may start. Long vehicles keep to routes on which they fit their lane."""
    if route.cycles:
        category, speed = "vehicle.bicycle", rng.uniform(3.0, 5.0)
    else:
        tight = route.turn == "right" or layout.name == "roundabout"
        long = route.turn == "straight" and layout.name in ("straight", "intersection", "t-junction")
        odds = np.array([0.66, 0.0 if tight else 0.13, 0.09 if long else 0.0, 0.16])
        kinds = ("vehicle.car", "vehicle.truck", "vehicle.bus.rigid", "vehicle.motorcycle")
        category, speed = kinds[rng.choice(4, p=odds / odds.sum())], rng.uniform(7.5, 12.0)
    size = sample_size(category, rng)
    if category in RIDDEN:
        size[2] = rng.uniform(1.62, 1.82)
    mover = Mover(route.path, category, size, s, float(speed), 0.28 * float(size[0]))
    in_junction = route.clear[0] < s + mover.front and s - mover.front < route.clear[1]
    return None if in_junction or s + mover.front > route.path.length - 25.0 else mover


def _gated(
    mover: Mover, route: Route, red: list[list[tuple[float, float]]], layout: Layout, walks: list[Draft]
) -> Mover:
    """The same mover with its closed places: red at its stop line, and crossings while somebody is on its way."""
    gates = [Gate(route.stop, *span) for span in red[route.start]] if np.isfinite(route.stop) else []
    for walk in walks:
        crossing = layout.crossings[int(walk.variant)]
        met = crossing.meets(mover.path)
        if met is None:
            continue
        along = crossing.end - crossing.start
        along = along / np.linalg.norm(along)
        ahead = (walk.boxes[:, :2] - crossing.start) @ along - met[1]  # [T] of the pedestrian, beyond the path
        ahead *= np.sign(ahead[-1] - ahead[0]) or 1.0
        near = np.flatnonzero((ahead > -4.6) & (ahead < 2.4))
        if len(near) and np.ptp(ahead) > 0.5:
            gates.append(Gate(met[0] - 1.0, near[0] * SIM_STEP, (near[-1] + 1) * SIM_STEP))
    return replace(mover, gates=tuple(gates))


def _lights(layout: Layout, mode: str, duration: float, rng: np.random.Generator) -> list[list[tuple[float, float]]]:
    """For each leg the spans [s] in which its stop line is closed: one leg at a time has green."""
    length, clear = 9.0, 2.5
    first = {
        "go": 0.0,
        "wait": rng.uniform(0.12, 0.22) * duration,
        "arrive": rng.uniform(0.5, 0.6) * duration,
    }[mode]
    green: list[list[tuple[float, float]]] = [[] for _ in range(layout.num_legs)]
    green[0].append((-1.0 if mode == "go" else first, first + length))
    green[-1].append((-1.0, first - clear - 1.0))
    at, leg = first + length + clear, 1
    while at < duration:
        green[leg % layout.num_legs].append((at, at + length))
        at, leg = at + length + clear, leg + 1
    red = []
    for spans in green:
        edges = [-1.0, *(t for span in sorted(spans) for t in span if span[1] > span[0]), duration + 1.0]
        red.append([(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a])
    return red


def _crossers(layout: Layout, ego: Mover, mode: str, duration: float, rng: np.random.Generator) -> list[Draft]:
    """Pedestrians on the crossings; ``variant`` holds the crossing's number until the scene is assembled."""
    drafts: list[Draft] = []
    for i, crossing in enumerate(layout.crossings):
        met = crossing.meets(ego.path)
        if met is not None and layout.num_legs > 2 and (crossing.leg == 0 or rng.random() < 0.5):
            continue  # the ego's way through a junction stays mostly free, or short scenes would only wait
        for k in range(int(rng.integers(0, 3)) + (layout.num_legs == 2)):
            speed, forward = float(rng.uniform(1.25, 1.6)), bool(rng.random() < 0.5)
            start = float(rng.uniform(-4.0, 0.85 * duration))
            if met is not None and k == 0 and layout.name == "straight":
                # so timed that the ego has to stop: on its lane when the ego would be there
                length = float(np.linalg.norm(crossing.end - crossing.start))
                walked = 2.3 + (met[1] if forward else length - met[1])
                arrival = (met[0] - ego.s - ego.front) / ego.speed
                start = arrival + 0.6 - walked / speed
            elif met is not None and layout.name == "straight":
                start += 0.5 * duration
            offset = (k - 1) * 0.95 + float(rng.uniform(-0.05, 0.05))
            category = "human.pedestrian.child" if rng.random() < 0.15 else "human.pedestrian.adult"
            size = sample_size(category, rng)
            xy = cross_road(crossing, forward, start, speed, offset, duration)
            along = crossing.end - crossing.start if forward else crossing.start - crossing.end
            rest = np.tile([size[0], size[1], np.arctan2(along[1], along[0])], (len(xy), 1))
            drafts.append(Draft(category, size, np.concatenate([xy, rest], axis=1), str(i)))
    return drafts


def _run(
    movers: list[Mover], walks: list[Draft], duration: float
) -> tuple[list[Mover], list[np.ndarray], list[Draft], np.ndarray]:
    """Simulate until nobody meets anybody, taking out whoever does; the ego always stays.

    Who is left after the last try only moved more carefully than needed: taking out cannot make two meet.

    Returns:
        Movers, their boxes [T, 5], the crossing pedestrians that remain, and the ego's arc lengths [T].
    """
    walks = [
        w for i, w in enumerate(walks) if not any(ever_overlap(w.boxes, v.boxes[None], 0.15)[0] for v in walks[:i])
    ]
    motion, boxes = None, []
    for _ in range(4):
        motion = simulate(movers, duration)
        boxes = [footprints(mover, s) for mover, s in zip(movers, motion.s, strict=True)]
        stack = np.stack(boxes)
        met = [ever_overlap(walk.boxes, stack, 0.35) for walk in walks]
        hit = [bool(with_whom[0]) for with_whom in met]  # by the ego: the pedestrian goes; else the other vehicle
        out = {int(i) for with_whom in met if not with_whom[0] for i in np.flatnonzero(with_whom)}
        for i in range(1, len(movers)):
            kept = [j for j in range(i) if j not in out]
            if i not in out and ever_overlap(boxes[i], stack[kept], 0.25).any():
                out.add(i)
        walks = [walk for walk, bad in zip(walks, hit, strict=True) if not bad]
        movers = [mover for i, mover in enumerate(movers) if i not in out]
        boxes = [box for i, box in enumerate(boxes) if i not in out]
        if not out and not any(hit):
            break
    assert motion is not None
    return movers, boxes, [replace(walk, variant="") for walk in walks], motion.s[0]


# ---- assembly ------------------------------------------------------------------------------------------------------
def _track(xy: np.ndarray, z: np.ndarray, yaw: np.ndarray, heading: float, origin: np.ndarray) -> Track:
    position = np.concatenate([turned(xy, heading) + origin, np.broadcast_to(z, (len(xy), 1))], axis=1)
    return Track(position, yaw + heading)


def _actor(draft: Draft, steps: int, heading: float, origin: np.ndarray, rng: np.random.Generator) -> Actor:
    boxes = np.broadcast_to(draft.boxes, (steps, 5))
    track = _track(boxes[:, :2], draft.size[2:] / 2, boxes[:, 4], heading, origin)
    speed = np.linalg.norm(track.velocity(np.arange(steps) * SIM_STEP), axis=-1)
    family = draft.category.split(".")[0]
    if draft.category in RIDDEN:
        names = np.full(steps, "cycle.with_rider" if draft.variant == "rider" else "cycle.without_rider")
    elif family == "human":
        still = "pedestrian.sitting_lying_down" if draft.variant == "sitting" else "pedestrian.standing"
        names = np.where(speed > MOVING, "pedestrian.moving", still)
    elif family == "vehicle":
        still = "vehicle.parked" if draft.parked else "vehicle.stopped"
        names = np.where(speed > MOVING, "vehicle.moving", still)
    else:
        names = np.full(steps, "")
    codes = {name: i for i, name in enumerate(ATTRIBUTES)} | {"": -1}
    return Actor(
        category=draft.category,
        size=draft.size,
        parts=make_body(draft.category, draft.size, draft.variant, rng),
        track=track,
        attribute=np.array([codes[str(name)] for name in names], dtype=np.int8),
        rcs=RCS[draft.category] + float(rng.normal(0.0, 1.5)),
    )


def _moved(solids: Solids, heading: float, origin: np.ndarray) -> Solids:
    center = solids.center.copy()
    center[:, :2] = turned(center[:, :2], heading) + origin
    return replace(solids, center=center, yaw=solids.yaw + heading)


def _moved_roads(roads: RoadMap, heading: float, origin: np.ndarray) -> RoadMap:
    return RoadMap(
        **{key: tuple(turned(line, heading) + origin for line in lines) for key, lines in vars(roads).items()}
    )


def _describe(conditions: tuple[str, ...], layout: str, ego: Track, actors: tuple[Actor, ...]) -> str:
    """What happens, in the manner of nuScenes: weather, place, manoeuvre, who is there."""
    yaw = float(ego.yaw[-1] - ego.yaw[0])
    speed = np.linalg.norm(np.diff(ego.position[:, :2], axis=0), axis=1) / SIM_STEP
    words = [*conditions, "straight road" if layout == "straight" else layout]
    words.append("turn left" if yaw > np.pi / 5 else "turn right" if yaw < -np.pi / 5 else "straight ahead")
    words += ["wait"] if (speed < MOVING).any() else []
    categories = {actor.category for actor in actors}
    words += ["construction"] if "vehicle.construction" in categories else []
    words += ["bus"] if categories & {"vehicle.bus.rigid", "vehicle.bus.bendy"} else []
    words += ["peds"] if any(category.startswith("human") for category in categories) else []
    if any(actor.category in RIDDEN and ATTRIBUTES[actor.attribute[0]] == "cycle.with_rider" for actor in actors):
        words.append("cyclists")
    text = ", ".join(dict.fromkeys(words))
    return text[0].upper() + text[1:]
