"""The simulated world: what the issue promises about it, checked with shapely and finite differences."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import shapely

from fusion3d.synthetic.bodies import SIZES, make_body, sample_size
from fusion3d.synthetic.curves import Path
from fusion3d.synthetic.roads import make_layout
from fusion3d.synthetic.scene import CYLINDER, SIM_STEP, Scene, Solids
from fusion3d.synthetic.traffic import Gate, Mover, overlap, simulate
from fusion3d.synthetic.world import MOVING, PLANS, build_scene, scene_name
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES, EGO_CENTER, EGO_SIZE

DURATION = 8.0
KEYFRAMES = np.arange(0.0, DURATION + 1e-6, 0.5)
# Class and range in which the nuScenes detection evaluation counts it [m].
CLASSES = {
    "vehicle.car": ("car", 50.0), "vehicle.truck": ("truck", 50.0), "vehicle.bus": ("bus", 50.0),
    "vehicle.trailer": ("trailer", 50.0), "vehicle.construction": ("construction_vehicle", 50.0),
    "human.pedestrian": ("pedestrian", 40.0), "vehicle.motorcycle": ("motorcycle", 40.0),
    "vehicle.bicycle": ("bicycle", 40.0), "movable_object.trafficcone": ("traffic_cone", 30.0),
    "movable_object.barrier": ("barrier", 30.0),
}  # fmt: skip


def class_of(category: str) -> tuple[str, float]:
    return next(value for key, value in CLASSES.items() if category.startswith(key))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [build_scene(index, 0, DURATION) for index in range(len(PLANS))]


def rectangles(xy: np.ndarray, size: np.ndarray, yaw: np.ndarray) -> Any:
    """Shapely polygons of boxes seen from above, from their corners."""
    corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * np.asarray(size)[..., None, :2] / 2
    c, s = np.cos(yaw)[..., None], np.sin(yaw)[..., None]
    x = corners[..., 0] * c - corners[..., 1] * s
    y = corners[..., 0] * s + corners[..., 1] * c
    return shapely.polygons(np.stack([x, y], axis=-1) + np.asarray(xy)[..., None, :])


def ego_box(scene: Scene, time: float, grow: float = 0.0) -> Any:
    position, yaw = scene.ego.at(time)
    center = position[:2] + EGO_CENTER * np.array([np.cos(yaw), np.sin(yaw)])
    return rectangles(center, np.add(EGO_SIZE[:2], grow), yaw)


def all_boxes(scene: Scene, time: float) -> np.ndarray:
    at = [actor.track.at(time) for actor in scene.actors]
    return rectangles(
        np.array([p[:2] for p, _ in at]),
        np.array([a.size for a in scene.actors]),
        np.array([yaw for _, yaw in at]),
    )


def arrays(value: object) -> list[np.ndarray]:
    """Every array inside nested dataclasses and tuples, in order."""
    if isinstance(value, np.ndarray):
        return [value]
    if dataclasses.is_dataclass(value):
        return [a for f in dataclasses.fields(value) for a in arrays(getattr(value, f.name))]
    return [a for item in value for a in arrays(item)] if isinstance(value, tuple) else []


def test_same_arguments_same_scene(scenes: list[Scene]) -> None:
    again = build_scene(3, 0, DURATION)
    pairs = list(zip(arrays(scenes[3]), arrays(again), strict=True))
    assert len(pairs) > 100 and all(np.array_equal(a, b) for a, b in pairs)
    assert again.description == scenes[3].description and again.name == scene_name(3) == "scene-0003"
    assert not np.array_equal(build_scene(3, 1, DURATION).ego.position, again.ego.position)


@pytest.mark.parametrize(("index", "seed", "duration"), [(-1, 0, 8.0), (0, -1, 8.0), (0, 0, 0.0), (0, 0, 60.0)])
def test_bad_arguments(index: int, seed: int, duration: float) -> None:
    with pytest.raises(ValueError, match="scene"):
        build_scene(index, seed, duration)


def test_states_cover_the_duration(scenes: list[Scene]) -> None:
    steps = round(DURATION / SIM_STEP) + 1
    for scene in scenes:
        assert len(scene.ego.yaw) == steps
        for actor in scene.actors:
            assert actor.track.position.shape == (steps, 3) and actor.attribute.shape == (steps,)
            np.testing.assert_allclose(actor.track.position[:, 2], actor.size[2] / 2)
        assert np.all(scene.ego.position[:, 2] == 0)


def test_nothing_overlaps_at_any_time(scenes: list[Scene]) -> None:
    for scene in scenes:
        static = rectangles(scene.static.center[:, :2], scene.static.size, scene.static.yaw)
        circles = scene.static.kind == CYLINDER
        static[circles] = shapely.buffer(
            shapely.points(scene.static.center[circles, :2]), scene.static.size[circles, 0] / 2
        )
        for time in np.arange(0.0, DURATION + 1e-6, 0.25):
            boxes = all_boxes(scene, time)
            pairs = shapely.STRtree(boxes).query(boxes, predicate="intersects")
            assert (pairs[0] == pairs[1]).all(), (scene.name, time, pairs[:, pairs[0] != pairs[1]])
            ego = ego_box(scene, time, grow=0.3)
            assert not shapely.intersects(boxes, ego).any(), (scene.name, time)
            assert not shapely.intersects(static, ego).any(), (scene.name, time)


def test_actors_stand_clear_of_buildings_and_walls(scenes: list[Scene]) -> None:
    for scene in scenes:
        low = scene.static.center[:, 2] - scene.static.size[:, 2] / 2 < 2.0
        s = scene.static
        static = rectangles(s.center[low, :2], s.size[low], s.yaw[low])
        for time in (0.0, DURATION / 2, DURATION):
            assert not len(shapely.STRtree(static).query(all_boxes(scene, time), predicate="intersects")[0])


def test_every_class_is_where_the_evaluation_counts_it(scenes: list[Scene]) -> None:
    for scene in scenes:
        ego, _ = scene.ego.at(KEYFRAMES)
        seen = {name: np.zeros(len(KEYFRAMES), dtype=int) for name in DETECTION_CLASSES}
        around = np.zeros(len(KEYFRAMES))
        for actor in scene.actors:
            name, reach = class_of(actor.category)
            distance = np.linalg.norm((actor.track.at(KEYFRAMES)[0] - ego)[:, :2], axis=1)
            seen[name] += distance < reach
            around += distance < 50.0
        share = {name: float((count > 0).mean()) for name, count in seen.items()}
        assert min(share.values()) >= 0.4, (scene.name, share)
        assert around.min() >= 25 and around.max() <= 90, (scene.name, around)


def test_long_scenes_too() -> None:
    scene = build_scene(0, 5, 20.0)
    times = np.arange(0.0, 20.0 + 1e-6, 0.5)
    ego, _ = scene.ego.at(times)
    found: dict[str, np.ndarray] = {}
    for actor in scene.actors:
        name, reach = class_of(actor.category)
        near = np.linalg.norm((actor.track.at(times)[0] - ego)[:, :2], axis=1) < reach
        found[name] = found.get(name, np.zeros(len(times), dtype=bool)) | near
    assert set(found) == set(DETECTION_CLASSES)
    assert all(near.mean() > 0.4 for near in found.values())
    for time in np.arange(0.0, 20.0, 0.5):
        boxes = all_boxes(scene, time)
        pairs = shapely.STRtree(boxes).query(boxes, predicate="intersects")
        assert (pairs[0] == pairs[1]).all()
        assert not shapely.intersects(boxes, ego_box(scene, time)).any()


def corners_of(solids: Solids) -> tuple[np.ndarray, np.ndarray]:
    """[S, 3] least and greatest coordinates of solids that are not turned."""
    assert not solids.yaw.any()
    return solids.center - solids.size / 2, solids.center + solids.size / 2


VARIANTS = [(category, "", None) for category in sorted(SIZES)] + [
    ("vehicle.motorcycle", "rider", 1.7), ("vehicle.bicycle", "rider", 1.7),
    ("human.pedestrian.adult", "sitting", 1.22),
]  # fmt: skip


@pytest.mark.parametrize(("category", "variant", "height"), VARIANTS)
def test_a_body_fills_its_box(category: str, variant: str, height: float | None) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        size = sample_size(category, rng)
        size[2] = height or size[2]
        low, high = corners_of(make_body(category, size, variant, rng))
        assert (high > low).all()
        assert (low >= -size / 2 - 1e-9).all() and (high <= size / 2 + 1e-9).all()
        np.testing.assert_allclose(low.min(0), -size / 2, atol=0.02)
        np.testing.assert_allclose(high.max(0), size / 2, atol=0.02)


def test_ego_drives_smoothly(scenes: list[Scene]) -> None:
    for scene in scenes:
        xy, yaw = scene.ego.position[:, :2], scene.ego.yaw
        velocity = np.diff(xy, axis=0) / SIM_STEP
        speed = np.linalg.norm(velocity, axis=1)
        acceleration = np.linalg.norm(np.diff(velocity, axis=0), axis=1) / SIM_STEP
        rate = np.diff(yaw) / SIM_STEP
        assert speed.max() < 13.0 and acceleration.max() <= 4.0, (scene.name, speed.max(), acceleration.max())
        assert np.abs(rate).max() < 0.8 and np.abs(np.diff(rate)).max() / SIM_STEP < 1.5, scene.name
        moving = speed > 0.1
        off = np.angle(np.exp(1j * (np.arctan2(velocity[:, 1], velocity[:, 0]) - (yaw[1:] + yaw[:-1]) / 2)))
        assert np.abs(off[moving]).max() < 0.02, scene.name
        assert np.abs(np.diff(yaw)).max() < 0.1  # unwrapped


def test_others_move_as_vehicles_do(scenes: list[Scene]) -> None:
    for scene in scenes:
        for actor in scene.actors:
            velocity = np.diff(actor.track.position[:, :2], axis=0) / SIM_STEP
            acceleration = np.linalg.norm(np.diff(velocity, axis=0), axis=1) / SIM_STEP
            assert acceleration.max() < 6.5, (scene.name, actor.category, acceleration.max())
            assert np.linalg.norm(velocity, axis=1).max() < 14.0


def test_drives_differ(scenes: list[Scene]) -> None:
    first = scenes[:8]
    turned = np.array([scene.ego.yaw[-1] - scene.ego.yaw[0] for scene in first])
    assert (turned > np.pi / 4).any() and (turned < -np.pi / 4).any() and (np.abs(turned) < 0.2).any()
    slowest = [np.linalg.norm(scene.ego.velocity(KEYFRAMES), axis=-1).min() for scene in first]
    assert sum(speed < 0.3 for speed in slowest) >= 2
    for scene, speed in zip(first, slowest, strict=True):
        assert np.linalg.norm(np.diff(scene.ego.position, axis=0), axis=1).sum() > 12.0, scene.name
        assert ("wait" in scene.description) == bool(
            (np.linalg.norm(np.diff(scene.ego.position[:, :2], axis=0), axis=1) / SIM_STEP < MOVING).any()
        ), (scene.name, speed)


def test_weather_is_mixed_and_told(scenes: list[Scene]) -> None:
    eight = scenes[:8]
    assert sum(scene.weather.night > 0 for scene in eight) == 2
    assert sum(scene.weather.rain > 0 for scene in eight) == 2
    assert sum(scene.weather.fog > 0 for scene in eight) == 1
    for scene in scenes:
        for word in ("night", "rain", "fog"):
            assert (word in scene.description.lower()) == (getattr(scene.weather, word) > 0)
    for a, b in itertools.pairwise(scenes):
        clear = [max(dataclasses.astuple(scene.weather)) == 0 for scene in (a, b)]
        assert clear.count(True) == 1


def test_traffic_is_on_the_road(scenes: list[Scene]) -> None:
    for scene in scenes:
        drivable = shapely.union_all([shapely.Polygon(p).buffer(0.02) for p in scene.roads.drivable])
        lanes = shapely.union_all([shapely.Polygon(p).buffer(0.3) for p in scene.roads.lanes])
        moving = [
            actor
            for actor in scene.actors
            if actor.category.startswith("vehicle") and np.ptp(actor.track.position[:, :2], axis=0).max() > 1.0
        ]
        assert len(moving) >= 3, scene.name
        for time in KEYFRAMES[::2]:
            assert drivable.contains(ego_box(scene, time)), (scene.name, time)
            for actor in moving:
                point, _ = actor.track.at(time)
                place = drivable if actor.category == "vehicle.bicycle" else lanes
                assert place.contains(shapely.Point(point[:2])), (scene.name, actor.category, time)


def test_parked_vehicles_leave_the_lanes_free(scenes: list[Scene]) -> None:
    parked = ATTRIBUTES.index("vehicle.parked")
    for scene in scenes:
        lanes = shapely.union_all([shapely.Polygon(p).buffer(-0.05) for p in scene.roads.lanes])
        boxes = all_boxes(scene, 0.0)
        standing = [box for box, actor in zip(boxes, scene.actors, strict=True) if actor.attribute[0] == parked]
        assert len(standing) >= 8
        assert not shapely.intersects(lanes, standing).any()


def test_pedestrians_keep_to_walkways_and_crossings(scenes: list[Scene]) -> None:
    for scene in scenes:
        allowed = shapely.union_all(
            [shapely.Polygon(p).buffer(0.3) for p in (*scene.roads.walkways, *scene.roads.crossings)]
        )
        walkers = crossers = 0
        for actor in scene.actors:
            if not actor.category.startswith("human") or np.ptp(actor.track.position[:, :2], axis=0).max() < 0.5:
                continue
            walkers += 1
            line = shapely.LineString(actor.track.position[::5, :2])
            assert allowed.contains(line), scene.name
            crossers += line.intersects(shapely.MultiPolygon([shapely.Polygon(p) for p in scene.roads.crossings]))
        assert walkers >= 3 and crossers >= 1, scene.name


def test_map_polygons_are_valid_and_counter_clockwise(scenes: list[Scene]) -> None:
    for scene in scenes:
        roads = scene.roads
        for name in ("drivable", "lanes", "walkways", "crossings", "carparks"):
            for points in getattr(roads, name):
                ring = shapely.LinearRing(points)
                assert ring.is_valid and ring.is_ccw, (scene.name, name)
        assert len(roads.stop_lines) >= 2 and len(roads.dividers) >= 2 and roads.road_dividers and roads.carparks
        for lane, center in zip(roads.lanes, roads.lane_centers, strict=True):
            assert shapely.Polygon(lane).buffer(1e-6).contains(shapely.LineString(center)), scene.name
        walkways = shapely.union_all([shapely.Polygon(p) for p in roads.walkways])
        drivable = shapely.union_all([shapely.Polygon(p) for p in roads.drivable])
        assert walkways.intersection(drivable).area < 0.01 * drivable.area


def test_attributes_agree_with_motion(scenes: list[Scene]) -> None:
    times = np.arange(round(DURATION / SIM_STEP) + 1) * SIM_STEP
    seen = set()
    for scene in scenes:
        for actor in scene.actors:
            speed = np.linalg.norm(actor.track.velocity(times), axis=-1)
            names = np.array([ATTRIBUTES[code] if code >= 0 else "" for code in actor.attribute])
            seen |= set(names)
            family = actor.category.split(".")[0]
            if family == "movable_object":
                assert (names == "").all()
            elif actor.category.endswith("cycle"):
                assert (names == names[0]).all() and names[0].startswith("cycle.")
                assert names[0] == "cycle.with_rider" or speed.max() == 0
            else:
                assert all(name.startswith("pedestrian" if family == "human" else "vehicle") for name in names)
                np.testing.assert_array_equal(np.char.endswith(names, ".moving"), speed > MOVING)
    assert seen == set(ATTRIBUTES) | {""}


def test_velocity_is_the_finite_difference(scenes: list[Scene]) -> None:
    track = scenes[0].ego
    times = np.array([0.0, 0.4, 1.0, 3.35, DURATION])
    grid = np.clip(np.rint(times / SIM_STEP).astype(int), 1, len(track.yaw) - 2)
    inner = slice(1, 4)
    expected = (track.position[grid + 1] - track.position[grid - 1])[:, :2] / (2 * SIM_STEP)
    np.testing.assert_allclose(track.velocity(times)[inner], expected[inner], atol=1e-9)
    ends = np.diff(track.position[:, :2], axis=0)[[0, -1]] / SIM_STEP
    np.testing.assert_allclose(track.velocity(times)[[0, -1]], ends, atol=1e-9)


def test_scenes_lie_apart_and_turned(scenes: list[Scene]) -> None:
    hulls = [shapely.MultiPoint(np.concatenate(scene.roads.walkways)).convex_hull for scene in scenes]
    for i, a in enumerate(hulls):
        assert not any(a.intersects(b) for b in hulls[:i])
    headings = np.array([scene.ego.yaw[0] for scene in scenes]) % (2 * np.pi)
    assert np.ptp(headings) > 2.0 and len(np.unique(np.round(headings, 3))) == len(scenes)


@pytest.mark.parametrize("seed", range(4))
def test_overlap_against_shapely(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (
        np.concatenate(
            [rng.uniform(-4, 4, (500, 2)), rng.uniform(0.3, 6, (500, 2)), rng.uniform(-7, 7, (500, 1))],
            axis=1,
        )
        for _ in range(2)
    )
    polygons = [rectangles(x[:, :2], x[:, 2:4], x[:, 4]) for x in (a, b)]
    expected = shapely.intersects(*polygons)
    assert 100 < expected.sum() < 450
    np.testing.assert_array_equal(overlap(a, b), expected)


def test_path_of_a_circle() -> None:
    angle = np.linspace(0.0, np.pi, 200)
    path = Path(20.0 * np.stack([np.cos(angle), np.sin(angle)], axis=-1))
    middle = slice(10, -10)
    np.testing.assert_allclose(path.curvature[middle], 1 / 20.0, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(path.points[middle], axis=1), 20.0, atol=0.1)
    np.testing.assert_allclose(path.at(30.0, 2.0) - path.at(30.0), 2.0 * np.array(
        [np.sin(path.yaw(30.0)), -np.cos(path.yaw(30.0))]), atol=1e-9)  # fmt: skip


def line_mover(s: float, speed: float, gates: tuple[Gate, ...] = ()) -> Mover:
    path = Path(np.array([[0.0, 0.0], [300.0, 0.0]]))
    return Mover(path, "vehicle.car", np.array([4.6, 1.9, 1.6]), s, speed, 1.3, gates)


def test_followers_stop_behind_each_other_and_at_gates() -> None:
    gate = Gate(100.0, 0.0, 12.0)
    movers = [line_mover(40.0, 10.0, (gate,)), line_mover(20.0, 12.0, (gate,)), line_mover(2.0, 12.0)]
    motion = simulate(movers, 20.0)
    at = round(11.9 / SIM_STEP)
    fronts = motion.s[:, at] + movers[0].front
    assert 97.0 < fronts[0] < 100.0 and motion.speed[0, at] < 0.1
    gaps = motion.s[:-1] - motion.s[1:] - 4.6
    assert gaps.min() > 0.8
    assert motion.speed[0, -1] > 5.0  # it opened
    assert np.abs(np.diff(motion.speed, axis=1)).max() / SIM_STEP <= 3.3


def test_unknown_layout() -> None:
    with pytest.raises(ValueError, match="roundabout"):
        make_layout("spiral", "left", 100.0, np.random.default_rng(0))
