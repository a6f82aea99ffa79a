"""The simulated sensors against closed forms, shapely and the projection code, on small scenes built by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

import numba
import numpy as np
import pytest
import shapely
import torch

from fusion3d.geometry import apply, box_corners, invert, rotation_from_quaternion
from fusion3d.synthetic.camera import render_camera
from fusion3d.synthetic.lidar import scan_lidar
from fusion3d.synthetic.radar import MAX_RETURNS, RADAR_DTYPE, scan_radar
from fusion3d.synthetic.rays import MISS, X_FACE, Y_FACE, bell, hit_box, hit_cylinder, random_bits, seed_of, unit
from fusion3d.synthetic.rig import RIG, RING_ELEVATION
from fusion3d.synthetic.scene import (
    BOX,
    CYLINDER,
    MATERIALS,
    SIM_STEP,
    Actor,
    RoadMap,
    Scene,
    Solids,
    Track,
    Weather,
)
from fusion3d.synthetic.stage import ASPHALT, GRASS, PAINT, SHADOW, ego_at, global_from_ego, ground_at, stage_of

CAMERA_SIZE = (198, 352)
TIME = 2.0
CLEAR = Weather()


def solids(*rows: tuple) -> Solids:
    """Rows of (kind, center, size, yaw, material, color)."""
    kind, center, size, yaw, material, color = zip(*rows, strict=True) if rows else [()] * 6
    return Solids(
        kind=np.array(kind, np.uint8),
        center=np.array(center, np.float64).reshape(-1, 3),
        size=np.array(size, np.float64).reshape(-1, 3),
        yaw=np.array(yaw, np.float64),
        material=np.array([MATERIALS.index(name) for name in material], np.uint8),
        color=np.array(color, np.uint8).reshape(-1, 3),
        texture=np.zeros(len(kind), np.uint8),
    )


def straight(x: float, y: float, z: float, yaw: float = 0.0, speed: float = 0.0, turning: float = 0.0) -> Track:
    """Four seconds along the heading, which may turn [rad/s]."""
    time = np.arange(round(4 / SIM_STEP) + 1) * SIM_STEP
    heading = yaw + turning * time
    step = speed * SIM_STEP * np.stack([np.cos(heading), np.sin(heading)], axis=-1)
    path = np.array([x, y]) + np.concatenate([np.zeros((1, 2)), np.cumsum(step[:-1], axis=0)])
    return Track(np.column_stack([path, np.full(len(time), z)]), heading)


def block(x: float, y: float, extent: Sequence[float] = (4.0, 2.0, 1.6), yaw=0.0, speed=0.0, rcs=10.0) -> Actor:
    """A car that is one plain box, standing on the ground."""
    size = np.array(extent)
    body = solids((BOX, (0, 0, 0), size, 0.0, "plastic", (200, 40, 40)))
    track = straight(x, y, size[2] / 2, yaw, speed)
    return Actor("vehicle.car", size, body, track, np.zeros(len(track.yaw), np.int8), rcs)


def scene_of(*actors: Actor, static: Solids | None = None, ego: Track | None = None, weather: Weather = CLEAR) -> Scene:
    """A scene with a road along x."""
    road = np.array([[-100.0, -8.0], [100.0, -8.0], [100.0, 8.0], [-100.0, 8.0]])
    zebra = np.array([[20.0, -8.0], [23.0, -8.0], [23.0, 8.0], [20.0, 8.0]])
    roads = RoadMap((road,), (road,), (), (), (zebra,), (np.array([[-90.0, 4.0], [90.0, 4.0]]),))
    ego = straight(0, 0, 0) if ego is None else ego
    return Scene("scene-0000", "test", 7, 4.0, ego, actors, solids() if static is None else static, roads, weather)


def in_frame_of(actor: Actor, points_global: np.ndarray, time: float) -> np.ndarray:
    """[P, 3] points in the frame of the actor's box."""
    position, yaw = actor.track.at(time)
    return apply(invert(global_from_ego(np.append(position, yaw))), points_global)


def lidar_to_global(scene: Scene, points: np.ndarray, time: float) -> np.ndarray:
    """[P, 3] points of a scan in global."""
    return apply(
        global_from_ego(ego_at(scene, time)) @ RIG["LIDAR_TOP"].ego_from_sensor, points[:, :3].astype(np.float64)
    )


@pytest.fixture
def threads() -> Iterator[int]:
    """The number of numba threads, which is put back after the test."""
    before = numba.get_num_threads()
    yield before
    numba.set_num_threads(before)


# Rays ----------------------------------------------------------------------------------------------------------------


def test_hit_box_equals_shapely_in_the_plane_and_planes_in_space() -> None:
    rng = np.random.default_rng(0)
    half = np.array([2.0, 1.0, 0.8])
    footprint = shapely.box(-half[0], -half[1], half[0], half[1])
    hits = 0
    for _ in range(300):
        origin = rng.uniform(-8, 8, 3)
        direction = rng.uniform(-half, half) - origin + rng.normal(0, 1.5, 3)
        (ox, oy, oz), (dx, dy, dz), (hx, hy, hz) = origin, direction, half
        flat, _ = hit_box(ox, oy, 0.0, dx, dy, 0.0, hx, hy, hz)
        line = shapely.LineString([origin[:2], origin[:2] + 10 * direction[:2]])
        if footprint.contains(shapely.Point(origin[:2])) or not footprint.intersects(line):
            assert flat == MISS
        else:
            first = shapely.Point(origin[:2]).distance(footprint.intersection(line))
            assert flat * np.linalg.norm(direction[:2]) == pytest.approx(first, abs=1e-9)
        near, face = hit_box(ox, oy, oz, dx, dy, dz, hx, hy, hz)
        candidates = []
        for axis in range(3):
            for side in (-1, 1):
                t = (side * half[axis] - origin[axis]) / direction[axis]
                others = np.delete(np.abs(origin + t * direction) - half, axis)
                if t > 0 and (others <= 1e-12).all():
                    candidates.append((t, axis))
        if (np.abs(origin) <= half).all() or not candidates:
            assert near == MISS
        else:
            assert (near, face) == (pytest.approx(min(candidates)[0], abs=1e-9), min(candidates)[1])
            hits += 1
    assert hits > 100


def test_hit_cylinder_equals_the_quadratic_formula() -> None:
    radius, half = 0.7, 1.2
    rng = np.random.default_rng(1)
    sides = caps = 0
    for _ in range(300):
        origin = rng.uniform(-5, 5, 3)
        direction = rng.uniform(-0.7, 0.7, 3) - origin
        roots = np.roots(
            [direction[:2] @ direction[:2], 2 * origin[:2] @ direction[:2], origin[:2] @ origin[:2] - radius**2]
        )
        ts = [
            t.real
            for t in roots.tolist()
            if abs(t.imag) < 1e-9 and t.real > 0 and abs(origin[2] + t.real * direction[2]) <= half
        ]
        sides += bool(ts)
        for z in (-half, half):
            t = (z - origin[2]) / direction[2]
            if t > 0 and np.hypot(*(origin + t * direction)[:2]) <= radius:
                ts.append(t)
                caps += 1
        inside = np.hypot(*origin[:2]) <= radius and abs(origin[2]) <= half
        expected = MISS if inside or not ts else min(ts)
        (ox, oy, oz), (dx, dy, dz) = origin, direction
        assert hit_cylinder(ox, oy, oz, dx, dy, dz, radius, half)[0] == pytest.approx(expected, rel=1e-9)
    assert sides > 100 and caps > 30


def test_rays_along_an_axis_and_beside_a_face() -> None:
    assert hit_box(-5, 0.3, 0, 1, 0, 0, 1, 1, 1) == (4.0, X_FACE)
    assert hit_box(0, -9, 0, 0, 2, 0, 1, 1, 1) == (4.0, Y_FACE)
    assert hit_box(-5, 1.01, 0, 1, 0, 0, 1, 1, 1)[0] == MISS
    assert hit_cylinder(0.1, 0, 5, 0, 0, -1, 0.5, 1)[0] == 4.0
    assert hit_cylinder(0.6, 0, 5, 0, 0, -1, 0.5, 1)[0] == MISS


def test_hashed_randomness_has_the_moments_it_claims() -> None:
    seed = seed_of(3, -1)
    bits = [np.uint64(random_bits(seed, i)) for i in range(20000)]
    uniform, normal = np.array([unit(b) for b in bits]), np.array([bell(b) for b in bits])
    assert uniform.mean() == pytest.approx(0.5, abs=0.01) and uniform.var() == pytest.approx(1 / 12, abs=0.003)
    assert normal.mean() == pytest.approx(0, abs=0.03) and normal.std() == pytest.approx(1, abs=0.03)
    assert np.abs(np.corrcoef(uniform[:-1], uniform[1:])[0, 1]) < 0.03
    assert len({int(seed_of(*key)) for key in ((1, 2), (2, 1), (1, 2, 0), (-1, 2))}) == 4


# Stage and rig -------------------------------------------------------------------------------------------------------


def test_stage_moves_actors_as_their_tracks_say() -> None:
    actors = (block(10, 0, yaw=0.3, speed=7), block(-5, 4, yaw=-2.0, speed=3))
    stage = stage_of(scene_of(*actors))
    for time in (-1.0, 0.0, 1.234, 4.0, 9.0):
        for row, actor in zip(stage.actors_at(time), actors, strict=True):
            position, yaw = actor.track.at(time)
            np.testing.assert_allclose(row, np.append(position, yaw), atol=1e-12)
    np.testing.assert_allclose(stage.velocities_at(1.3), [actor.track.velocity(1.3) for actor in actors], atol=1e-9)


def test_ground_is_painted_and_shadowed_where_it_should_be() -> None:
    tower = solids((BOX, (0, 40, 10), (4, 4, 20), 0.0, "brick", (90, 60, 50)))
    stage = stage_of(scene_of(static=tower))

    def at(x: float, y: float) -> int:
        return int(ground_at(stage.ground, stage.corner, x, y))

    assert (at(3, 0), at(3, -12), at(500, 0)) == (ASPHALT, GRASS, GRASS)
    line = [at(x, 4.0) for x in np.arange(-40, 40, 0.5)]
    assert 0.3 < np.mean(np.array(line) == PAINT) < 0.6  # dashes of 3 m in every 7 m
    assert {at(21.5, y) for y in np.arange(-7, 7, 0.5)} == {ASPHALT, PAINT}
    tip = np.array([0, 40]) - stage.sun[:2] / stage.sun[2] * 19.0
    assert at(*tip) & SHADOW and not at(*(2 * np.array([0, 40]) - tip)) & SHADOW


def test_rig_equals_the_real_calibration(real_root) -> None:
    tables = real_root / "v1.0-mini"
    channel_of = {row["token"]: row["channel"] for row in json.loads((tables / "sensor.json").read_text())}
    rows = json.loads((tables / "calibrated_sensor.json").read_text())
    assert len(rows) == 8
    for row in rows:
        mount = RIG[channel_of[row["sensor_token"]]]
        np.testing.assert_allclose(mount.translation, row["translation"], atol=1e-6)
        np.testing.assert_allclose(
            mount.ego_from_sensor[:3, :3], rotation_from_quaternion(np.array(row["rotation"])), atol=1e-4
        )
        if mount.intrinsic is not None:
            np.testing.assert_allclose(mount.intrinsic, row["camera_intrinsic"], atol=1e-6)


def test_scaled_intrinsics_keep_pixel_corners() -> None:
    mount = RIG["CAM_FRONT"]
    scaled = mount.intrinsic_at((225, 400))
    ray = np.array([0.1, -0.2, 1.0])
    full, small = (mount.intrinsic @ ray)[:2], (scaled @ ray)[:2]
    np.testing.assert_allclose(small + 0.5, (full + 0.5) / 4, atol=1e-9)
    with pytest.raises(ValueError, match="image size"):
        mount.intrinsic_at((0, 400))
    with pytest.raises(ValueError, match="not a camera"):
        RIG["LIDAR_TOP"].intrinsic_at((225, 400))


# LiDAR ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ego", [straight(0, 0, 0), straight(-20, 0, 0, speed=14.0), straight(0, 0, 0, 0.4, 6.0, 0.5)])
def test_lidar_points_of_a_resting_box_lie_on_its_faces(ego: Track) -> None:
    actor = block(18, 5, yaw=0.6)
    scene = scene_of(actor, ego=ego)
    scan = scan_lidar(scene, TIME, 3)
    local = in_frame_of(actor, lidar_to_global(scene, scan.points, TIME)[scan.owner == 0], TIME)
    assert len(local) > 60
    gap = np.abs(np.abs(local) - actor.size / 2)
    outside = np.linalg.norm(np.maximum(np.abs(local) - actor.size / 2, 0), axis=1)
    distance = np.where(outside > 0, outside, gap.min(1))
    assert np.mean(distance <= 0.05) >= 0.99 and distance.max() < 0.08


def test_lidar_rings_elevations_order_and_ground() -> None:
    scene = scene_of()
    scan = scan_lidar(scene, TIME, 0)
    points = scan.points.astype(np.float64)
    distance = np.linalg.norm(points[:, :3], axis=1)
    rings = points[:, 4].astype(int)
    np.testing.assert_allclose(np.arcsin(points[:, 2] / distance), RING_ELEVATION[rings], atol=1e-4)
    assert rings.max() < 24  # nothing comes back from the sky
    far = distance > 1.0
    heights = lidar_to_global(scene, scan.points, TIME)[far, 2]
    assert np.abs(heights).max() < 0.06 and 10000 < far.sum() < 20000
    assert 1000 < (~far).sum() < 8000  # the own roof
    assert distance.max() < 100.1 and (scan.owner == -1).all()
    azimuth = np.unwrap(np.arctan2(points[:, 1], points[:, 0]))
    assert np.median(np.diff(azimuth)[np.diff(rings) < 0]) < 0  # clockwise, column by column


def test_lidar_sees_a_moving_actor_where_it_was_when_the_ray_was_fired() -> None:
    actor = block(15, 4, speed=10.0)  # ahead: the rays pass there about 36 ms before the end of the turn
    scene = scene_of(actor)
    scan = scan_lidar(scene, TIME, 0)
    rear = in_frame_of(actor, lidar_to_global(scene, scan.points, TIME)[scan.owner == 0], TIME)[:, 0].min()
    assert rear == pytest.approx(-2.0 - 10.0 * 0.036, abs=0.08)


def test_lidar_flaws_depend_on_weather_material_and_range() -> None:
    def wall(material: str) -> Solids:
        return solids((BOX, (20, 0, 5), (0.5, 30, 10), 0.0, material, (150, 150, 150)))

    def count(material: str, weather: Weather) -> tuple[int, float]:
        scan = scan_lidar(scene_of(static=wall(material), weather=weather), TIME, 0)
        far = np.abs(scan.points[:, 0]) < 10
        on_wall = far & (scan.points[:, 1] > 18) & (scan.points[:, 1] < 20)
        return int(on_wall.sum()), float(scan.points[on_wall, 3].mean())

    concrete, bright = count("concrete", CLEAR)
    glass, dull = count("glass", CLEAR)
    assert concrete > 1500 and glass < 0.9 * concrete and dull < 0.3 * bright
    assert count("reflective", CLEAR)[1] > 3 * bright
    totals = [len(scan_lidar(scene_of(weather=w), TIME, 0).points) for w in (CLEAR, Weather(rain=1), Weather(fog=1))]
    assert totals[1] < 0.95 * totals[0] and totals[2] < totals[0]
    fog = scan_lidar(scene_of(weather=Weather(fog=1)), TIME, 0).points
    floating = (fog[:, 2] > -1.0) & (np.linalg.norm(fog[:, :3], axis=1) > 1)
    assert 50 < floating.sum() < 1500  # droplets near the sensor


def test_lidar_occlusion() -> None:
    near, far = block(10, 0, (1, 6, 3)), block(14, 0, (1, 2, 1.5))
    scan = scan_lidar(scene_of(near, far), TIME, 0)
    assert (scan.owner == 0).sum() > 100 and (scan.owner == 1).sum() == 0


def test_results_do_not_depend_on_threads_but_on_the_seed(threads: int) -> None:
    if threads < 2:
        pytest.skip("one core only: numba has one thread here")
    scene = scene_of(block(12, 3, speed=5), static=solids((CYLINDER, (9, -4, 2), (1, 1, 4), 0.0, "wood", (90, 60, 30))))
    numba.set_num_threads(1)
    scan, picture = scan_lidar(scene, TIME, 5), render_camera(scene, "CAM_FRONT", TIME, (60, 100), 5)
    again = scan_lidar(dataclasses.replace(scene), TIME, 5)
    assert np.array_equal(scan.points, again.points)
    numba.set_num_threads(2)
    scan2, picture2 = scan_lidar(scene, TIME, 5), render_camera(scene, "CAM_FRONT", TIME, (60, 100), 5)
    assert np.array_equal(scan.points, scan2.points) and np.array_equal(scan.owner, scan2.owner)
    assert np.array_equal(picture.image, picture2.image) and np.array_equal(picture.fraction, picture2.fraction)
    assert not np.array_equal(scan.points, scan_lidar(scene, TIME, 6).points)
    assert np.array_equal(
        scan_radar(scene, "RADAR_FRONT", TIME, 1).points, scan_radar(scene, "RADAR_FRONT", TIME, 1).points
    )


# Cameras -------------------------------------------------------------------------------------------------------------


def project(scene: Scene, channel: str, points_global: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[P, 3] global points to [P, 3] u, v, depth, by the transforms of the geometry room."""
    global_from_cam = global_from_ego(ego_at(scene, TIME)) @ RIG[channel].ego_from_sensor
    cam = apply(invert(global_from_cam), points_global)
    return np.column_stack([(cam @ RIG[channel].intrinsic_at(size).T)[:, :2] / cam[:, 2:], cam[:, 2]])


def corners_of(actor: Actor) -> np.ndarray:
    """[8, 3] corners of its box in global at TIME."""
    position, yaw = actor.track.at(TIME)
    box = [torch.tensor(v, dtype=torch.float64) for v in (position, actor.size, float(yaw))]
    return box_corners(*box).numpy()


@pytest.mark.parametrize(
    ("channel", "x", "y"),
    [("CAM_FRONT", 14, 1), ("CAM_FRONT_LEFT", 8, 10), ("CAM_BACK_RIGHT", -4, -11), ("CAM_BACK", -13, 2),
     ("CAM_BACK_LEFT", -4, 11), ("CAM_FRONT_RIGHT", 8, -10)],
)  # fmt: skip
def test_pixels_of_a_box_fill_its_projection(channel: str, x: float, y: float) -> None:
    actor = block(x, y, yaw=0.7)
    scene = scene_of(actor, ego=straight(0, 0, 0, speed=3.0))
    scene = dataclasses.replace(scene, ego=straight(-6, 0, 0, speed=3.0))
    view = render_camera(scene, channel, TIME, CAMERA_SIZE, 0)
    hull = shapely.MultiPoint(project(scene, channel, corners_of(actor), CAMERA_SIZE)[:, :2]).convex_hull
    frame = shapely.box(-0.5, -0.5, CAMERA_SIZE[1] - 0.5, CAMERA_SIZE[0] - 0.5)
    rows, columns = np.nonzero(view.owner == 0)
    assert len(rows) > 150
    assert shapely.contains_xy(hull.buffer(1e-6), columns, rows).all()
    assert len(rows) == pytest.approx(hull.intersection(frame).area, rel=0.03)  # a convex body covers all of its hull
    assert view.fraction[0] == 1.0 and view.image.shape == (*CAMERA_SIZE, 3) and view.image.dtype == np.uint8


def test_camera_shows_the_nearest_and_measures_occlusion() -> None:
    near, far = block(10, 0.0, (1, 2, 2)), block(20, 1.2, (1, 4, 2.5))
    scene = scene_of(near, far, block(-20, 0))
    view = render_camera(scene, "CAM_FRONT", TIME, CAMERA_SIZE, 0)
    u, v, _ = project(scene, "CAM_FRONT", np.array([[9.5, 0.0, 1.0]]), CAMERA_SIZE)[0].round().astype(int)
    assert view.owner[v, u] == 0
    hulls = [
        shapely.MultiPoint(project(scene, "CAM_FRONT", corners_of(a), CAMERA_SIZE)[:, :2]).convex_hull
        for a in (near, far)
    ]
    expected = hulls[1].difference(hulls[0]).area / hulls[1].area
    assert 0.2 < expected < 0.8
    assert view.fraction[0] == 1.0 and view.fraction[1] == pytest.approx(expected, abs=0.03) and view.fraction[2] == 0.0


def test_camera_in_a_body_and_beside_a_wall_that_passes_the_image_plane() -> None:
    wall = solids((BOX, (0, 6, 4), (80, 0.5, 8), 0.0, "brick", (160, 60, 50)))
    view = render_camera(scene_of(static=wall), "CAM_FRONT_LEFT", TIME, CAMERA_SIZE, 0)
    bare = render_camera(scene_of(), "CAM_FRONT_LEFT", TIME, CAMERA_SIZE, 0)
    different = np.abs(view.image.astype(int) - bare.image).max(-1) > 25
    assert different[: CAMERA_SIZE[0] // 2].mean() > 0.6  # the wall fills the left of the picture above the ground
    inside = render_camera(scene_of(block(1.5, 0.0, (4, 2, 3))), "CAM_FRONT", TIME, CAMERA_SIZE, 0)
    assert (inside.owner == -1).all()


def test_night_is_dark_fog_is_pale_and_cameras_have_colours() -> None:
    actors = (block(25, 0), block(60, -2, (4, 4, 4)))
    images = {
        name: render_camera(scene_of(*actors, weather=weather), "CAM_FRONT", TIME, CAMERA_SIZE, 0)
        for name, weather in (
            ("day", CLEAR),
            ("night", Weather(night=1)),
            ("fog", Weather(fog=1)),
            ("rain", Weather(rain=1)),
        )
    }
    mean = {name: view.image.mean() for name, view in images.items()}
    assert mean["night"] < 0.6 * mean["day"]
    colour = {}
    for name, view in images.items():
        pixels = view.image[view.owner == 1].astype(float)
        colour[name] = (pixels[:, 0] - pixels[:, 1:].mean(1)).mean()
    assert colour["day"] > 40 and colour["fog"] < 0.5 * colour["day"]
    assert 5 < colour["rain"] < 0.6 * colour["day"]  # a grey sky lights it
    blue = {name: np.subtract(*view.image[:40].reshape(-1, 3).mean(0)[[2, 0]]) for name, view in images.items()}
    assert blue["rain"] < 0.5 * blue["day"], blue
    assert all((view.owner == 0).sum() > 30 for view in images.values()), "weather hides no body from the annotation"


def test_channels_must_fit_the_sensor() -> None:
    with pytest.raises(ValueError, match=r"CAM_TOP.*CAM_FRONT"):
        render_camera(scene_of(), "CAM_TOP", TIME, CAMERA_SIZE, 0)
    with pytest.raises(ValueError, match=r"CAM_FRONT.*RADAR_FRONT"):
        scan_radar(scene_of(), "CAM_FRONT", TIME, 0)


# Radars --------------------------------------------------------------------------------------------------------------


def returns_of(scene: Scene, channel: str, owner: int, num_scans: int = 40) -> np.ndarray:
    """The unambiguous returns of one actor over many noise seeds."""
    scans = [scan_radar(scene, channel, TIME, seed) for seed in range(num_scans)]
    points = np.concatenate([scan.points[scan.owner == owner] for scan in scans])
    return points[points["ambig_state"] == 3]


@pytest.mark.parametrize(
    ("channel", "actor", "ego"),
    [
        ("RADAR_FRONT", block(32, 3, yaw=np.pi - 0.2, speed=9.0), straight(-16, 0, 0, speed=8.0)),
        ("RADAR_FRONT", block(25, -6, yaw=1.57, speed=5.0), straight(0, 0, 0, 0.1, 6.0, 0.3)),
        ("RADAR_FRONT_LEFT", block(6, 16, yaw=0.5, speed=7.0), straight(-16, 0, 0, speed=8.0)),
        ("RADAR_BACK_RIGHT", block(-20, -2, yaw=0.0, speed=4.0), straight(0, 0, 0, speed=3.0)),
    ],
)
def test_radar_doppler_is_the_projected_velocity(channel: str, actor: Actor, ego: Track) -> None:
    scene = scene_of(actor, ego=ego)
    points = returns_of(scene, channel, 0)
    assert len(points) > 40
    global_from_radar = global_from_ego(ego_at(scene, TIME)) @ RIG[channel].ego_from_sensor
    place = np.column_stack([points["x"], points["y"], points["z"]]).astype(np.float64)
    sight = place / np.linalg.norm(place, axis=1, keepdims=True)
    mounted = RIG[channel].translation
    ends = [apply(global_from_ego(ego_at(scene, TIME + d)), mounted[None])[0] for d in (-SIM_STEP / 2, SIM_STEP / 2)]
    own = (ends[1] - ends[0]) / SIM_STEP
    target = np.append(actor.track.velocity(TIME), 0.0)
    over_ground, relative = (sight @ (global_from_radar[:3, :3].T @ v) for v in (target, target - own))
    measured = points["vx"] * sight[:, 0] + points["vy"] * sight[:, 1]
    compensated = points["vx_comp"] * sight[:, 0] + points["vy_comp"] * sight[:, 1]
    slip = 0.06 * np.linalg.norm(target)  # angle noise of a degree or two turns the line of sight
    assert (
        np.abs(np.median(compensated - over_ground)) < 0.1 and np.abs(compensated - over_ground).max() < 0.5 + 2 * slip
    )
    assert np.abs(np.median(measured - relative)) < 0.15 and np.abs(measured - relative).max() < 0.7 + 2 * slip
    across = points["vx_comp"] * sight[:, 1] - points["vy_comp"] * sight[:, 0]
    assert np.abs(across).max() < 1e-3  # the compensated velocity lies along the line of sight
    assert np.isin(points["dyn_prop"], (0, 2, 6)).mean() > 0.5


def test_radar_returns_lie_in_the_body_and_scale_with_its_cross_section() -> None:
    bus, person = block(30, 4, (10, 2.8, 3), rcs=18), block(30, -4, (0.7, 0.7, 1.8), rcs=-5)
    scene = scene_of(bus, person)
    global_from_radar = global_from_ego(ego_at(scene, TIME)) @ RIG["RADAR_FRONT"].ego_from_sensor
    counts, strength = [], []
    for index, actor in enumerate((bus, person)):
        points = returns_of(scene, "RADAR_FRONT", index)
        place = apply(global_from_radar, np.column_stack([points["x"], points["y"], points["z"]]).astype(np.float64))
        local = in_frame_of(actor, place, TIME)
        assert (np.abs(local[:, :2]) <= actor.size[:2] / 2 + 1.0).all(1).mean() > 0.9
        counts.append(len(points))
        strength.append(points["rcs"].mean())
    assert counts[0] > 1.5 * counts[1] > 0 and strength[0] > strength[1] + 6  # what is weak is seen when it is strong


def test_radar_does_not_see_through_walls_nor_behind_itself() -> None:
    wall = solids((BOX, (20, 0, 3), (0.5, 30, 6), 0.0, "concrete", (150, 150, 150)))
    scene = scene_of(block(30, 0), block(-30, 0), static=wall)
    scans = [scan_radar(scene, "RADAR_FRONT", TIME, seed) for seed in range(10)]
    assert all((scan.owner == -1).all() for scan in scans)
    assert np.mean([len(scan.points) for scan in scans]) > 5
    assert len(returns_of(scene_of(block(30, 0), block(-30, 0)), "RADAR_FRONT", 0, 5)) > 5


def test_radar_scan_may_be_empty_and_is_never_too_long() -> None:
    lengths = [len(scan_radar(scene_of(), "RADAR_FRONT", TIME, seed).points) for seed in range(20)]
    assert min(lengths) == 0 and max(lengths) < 15
    places = [(x, y, 2.0) for x in range(8, 70, 2) for y in range(-40, 41, 4)]
    posts = solids(*[(CYLINDER, place, (0.8, 0.8, 4), 0.0, "metal", (90, 90, 90)) for place in places])
    scan = scan_radar(scene_of(static=posts), "RADAR_FRONT", TIME, 0)
    assert len(scan.points) == MAX_RETURNS and (np.diff(scan.points["id"]) == 1).all()
    assert (np.abs(scan.points["x"] / 0.2 - np.round(scan.points["x"] / 0.2)) < 1e-3).all()


def test_radar_fields_have_the_layout_of_real_files(real_root) -> None:
    path = sorted((real_root / "samples" / "RADAR_FRONT").glob("*.pcd"))[0]
    header = dict(
        line.split(" ", 1) for line in path.read_bytes().split(b"DATA")[0].decode().splitlines() if " " in line
    )
    assert header["FIELDS"].split() == list(RADAR_DTYPE.names or ())
    sizes = [RADAR_DTYPE[name].itemsize for name in RADAR_DTYPE.names or ()]
    kinds = [{"f": "F", "i": "I"}[RADAR_DTYPE[name].kind] for name in RADAR_DTYPE.names or ()]
    assert header["SIZE"].split() == [str(s) for s in sizes] and header["TYPE"].split() == kinds
