"""The CAN bus: against the devkit, the simulation and closed forms; and that nothing of the future is in it."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.config import DataConfig
from fusion3d.data import NuScenesDataset, can_bus
from fusion3d.data.annotations import load_ego
from fusion3d.data.can_bus import Messages, measured_status, messages_of, route_of
from fusion3d.data.commands import command_on
from fusion3d.data.nuscenes import Tables
from fusion3d.errors import DataError
from fusion3d.geometry import yaw_of
from fusion3d.synthetic.can_bus import pose_messages, route_points
from fusion3d.synthetic.scene import SIM_STEP
from fusion3d.synthetic.world import build_scene
from fusion3d.types import COMMANDS, BEVGrid

VERSION = "v1.0-tiny"
START = 1_533_000_000_000_000  # [us] of the tiny data set's first scene, a bend to the left: see its conftest
RADIUS, SPEED, RATE = 22.5, 9.0, 0.4
LEFT, RIGHT, STRAIGHT = (COMMANDS.index(name) for name in ("left", "right", "straight"))


def pose_at(seconds: float, **change) -> dict:
    """A message from the tiny data set's bend."""
    angle = 0.3 + RATE * seconds
    return {
        "utime": START + round(seconds * 1e6),
        "pos": [60 + RADIUS * np.sin(angle), 50 - RADIUS * np.cos(angle), 0.0],
        "orientation": [np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)],
        "vel": [SPEED + seconds, 0.0, 0.0],  # grows, so that it tells the time
        "accel": [1.0, SPEED * RATE, 9.8],
        "rotation_rate": [0.01, 0.02, RATE],
    } | change


@pytest.fixture
def bus_root(own_root: Path) -> Path:
    """The tiny data set with the CAN bus of its first scene, scene-0003."""
    (own_root / "can_bus").mkdir()
    messages = [pose_at(0.02 * step - 0.5) for step in range(150)]
    around = np.linspace(-0.5, 3.0, 400)
    route = np.stack([60 + RADIUS * np.sin(around), 50 - RADIUS * np.cos(around)], axis=-1)
    (own_root / "can_bus" / "scene-0003_pose.json").write_text(json.dumps(messages))
    (own_root / "can_bus" / "scene-0003_route.json").write_text(json.dumps(route.tolist()))
    return own_root


def of_scene(tables: Tables, name: str) -> list[int]:
    return [row for row in range(len(tables.sample_time)) if tables.scene(row) == name]


def test_the_last_measurement_before_the_sample(bus_root):
    tables = Tables.open(bus_root, VERSION)
    for row in of_scene(tables, "scene-0003"):
        status, seconds = measured_status(tables, row), (int(tables.reference_time[row]) - START) * 1e-6
        said = float(status.velocity[0]) - SPEED
        assert seconds - 0.02 - 1e-5 < said <= seconds + 1e-5, "the last one, and none later than the sample"
        assert float(status.yaw_rate) == pytest.approx(RATE) and float(status.velocity[1]) == 0
        torch.testing.assert_close(status.acceleration, torch.tensor([1.0, SPEED * RATE]))
    for row in of_scene(tables, "scene-0001"):
        assert torch.isnan(torch.cat([*dataclasses.astuple(measured_status(tables, row))[:2]])).all(), "it has none"
        assert route_of(tables, row) is None and messages_of(tables, row, "pose", {"vel": 3}) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=30), st.integers(-(10**5), 11 * 10**5), st.floats(0.001, 0.3))
def test_no_message_is_later_than_asked_or_too_old(times, now, age):
    messages = Messages(np.array(sorted(times), dtype=np.int64), {})
    fitting = [row for row, time in enumerate(sorted(times)) if time <= now and (now - time) * 1e-6 <= age]
    assert messages.before(now, age) == (fitting[-1] if fitting else -1)


def test_stale_messages_and_those_of_another_drive_are_unknown(bus_root):
    path = bus_root / "can_bus" / "scene-0003_pose.json"
    row = of_scene(Tables.open(bus_root, VERSION), "scene-0003")[0]  # at 0 s
    for content, known in (
        ([pose_at(-0.02)], True),
        ([pose_at(-0.2)], False),
        ([pose_at(0.01)], False),
        ([], False),
        ([pose_at(-0.02, pos=[66.0, 20.0, 0.0])], False),
        ([pose_at(0.02), pose_at(-0.02, vel=[7.0, 0, 0]), pose_at(-0.04)], True),  # not in order
    ):
        path.write_text(json.dumps(content))
        velocity = measured_status(Tables.open(bus_root, VERSION), row).velocity
        assert bool(velocity.isfinite().all()) == known
    assert velocity.tolist() == [7.0, 0.0]


def test_other_kinds_of_messages(bus_root):
    rows = [{"utime": START + at, "value": at / 10, "unused": None} for at in (0, 10, 20)]
    (bus_root / "can_bus" / "scene-0003_steeranglefeedback.json").write_text(json.dumps(rows))
    tables = Tables.open(bus_root, VERSION)
    found = messages_of(tables, of_scene(tables, "scene-0003")[0], "steeranglefeedback", {"value": 1})
    assert found is not None and found.value["value"].tolist() == [0, 1, 2] and found.before(START + 15, 1.0) == 1


def ego(x: float = 0.0, y: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, :2], pose[:2, 3] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]], [x, y]
    return pose


def bend(radius: float, length: float = 70.0, back: float = 20.0) -> np.ndarray:
    """A route that touches the x axis at the origin and bends to the left, or for a negative radius to the right."""
    s = np.linspace(-back, length, 500)
    return np.stack([radius * np.sin(s / radius), radius * (1 - np.cos(s / radius))], axis=-1)


def test_commands_of_straight_lines_and_circles():
    straight = np.stack([np.linspace(-50, 50, 30), np.zeros(30)], axis=-1)
    assert command_on(straight, ego()) == STRAIGHT
    assert command_on(np.concatenate([straight, straight[-1:]])[[0, 0, *range(31)]], ego()) == STRAIGHT, "places twice"
    s = np.linspace(20, 30, 11)
    turns = 0
    for radius in (8, 15, 40, 100, 140, 150, 160, 170, 300):
        offset = (radius * (1 - np.cos(s / radius))).mean()
        assert command_on(bend(radius), ego()) == (LEFT if offset > 2 else STRAIGHT), radius
        assert command_on(bend(-radius), ego()) == (RIGHT if offset > 2 else STRAIGHT), radius
        turns += offset > 2
    assert turns == 6
    corner = np.array([[-50.0, 0], [15, 0], [15, -50]])
    assert [command_on(corner, ego(x)) for x in (-20, -12, 0, 14)] == [STRAIGHT, STRAIGHT, RIGHT, RIGHT]


@settings(max_examples=40, deadline=None)
@given(st.floats(-300, 300), st.floats(-300, 300), st.floats(-np.pi, np.pi), st.sampled_from([12.0, -30.0, 900.0]))
def test_a_command_is_the_same_anywhere_and_beside_the_route(x, y, yaw, radius):
    place = ego(x, y, yaw)
    route = bend(radius) @ place[:2, :2].T + place[:2, 3]
    assert command_on(route, place) == command_on(bend(radius), ego()) >= 0
    for aside in (-4.0, 4.0):
        beside = place.copy()
        beside[:2, 3] += aside * place[:2, 1]
        assert command_on(route, beside) == command_on(route, place)
        beside[:2, 3] += 0.3 * aside * place[:2, 1]
        assert command_on(route, beside) == -1, "more than 5 m away"


def test_no_command_without_a_route_ahead():
    straight = np.stack([np.linspace(-50, 29, 30), np.zeros(30)], axis=-1)
    assert command_on(straight, ego()) == -1 and command_on(straight, ego(-2.0)) == STRAIGHT, "it ends"
    assert command_on(straight, ego(-2.0, 0.0, np.pi)) == -1, "heading against it"
    for nothing in (np.zeros((0, 2)), np.zeros((1, 2)), np.zeros((4, 2))):
        assert command_on(nothing, ego()) == -1
    # Where it comes back the other way on the same road, the part that leads the vehicle's way counts.
    back = np.array([[-50.0, 0], [60, 0], [60, 1], [-50, 1]])
    assert command_on(back, ego(0, 0.9)) == STRAIGHT and command_on(back, ego(0, 0.1, np.pi)) == STRAIGHT


def test_what_a_sample_is_told(bus_root):
    """The settings of the data set, and what is unknown where a scene has no CAN bus."""
    config = DataConfig(root=str(bus_root), version=VERSION, sensors=())

    def told(scene: str, **change) -> tuple[list[int], bool]:
        dataset = NuScenesDataset(dataclasses.replace(config, **change), "mine", BEVGrid(), with_map=False)
        samples = [dataset[index] for index in range(len(dataset)) if dataset.scenes[index] == scene]
        return [sample.command for sample in samples], all(bool(s.status.yaw_rate.isfinite()) for s in samples)

    by_end, _ = told("scene-0003")
    assert by_end == [LEFT, LEFT, STRAIGHT, STRAIGHT, -1], "the less of the drive is left, the less it turns"
    assert told("scene-0003", command="route", status="can_bus") == ([LEFT] * 5, True)
    assert told("scene-0001", command="route", status="can_bus") == ([-1] * 5, False)
    assert told("scene-0003", command="none")[0] == [-1] * 5


def test_the_future_is_not_in_it(bus_root):
    """With every later keyframe and message another one, the command by the route and the status stay to the bit; the
    command by the end does not."""
    tables = Tables.open(bus_root, VERSION)
    row = of_scene(tables, "scene-0003")[1]
    before = {source: load_ego(tables, row, 6, source, "can_bus") for source in ("route", "gt_endpoint")}
    pose = tables.pose_translation.copy()
    pose[tables.sample_pose[tables.sample_time > tables.sample_time[row]]] += [0.0, -1000.0, 0.0]
    path, now = bus_root / "can_bus" / "scene-0003_pose.json", int(tables.reference_time[row])
    spoiled = {name: [7.0, 7.0, 7.0] for name in ("pos", "vel", "accel", "rotation_rate")}
    messages = [m if m["utime"] <= now else m | spoiled for m in json.loads(path.read_text())]
    path.write_text(json.dumps(messages))
    for source, (_, _, status, command) in before.items():
        again = load_ego(dataclasses.replace(tables, pose_translation=pose), row, 6, source, "can_bus")
        assert (again[3] == command) == (source == "route")
        for name, value in vars(status).items():
            assert getattr(again[2], name).equal(value) and value.isfinite().all(), name


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        ("pose", '[{"utime": 1', "delimiter"),
        ("pose", "{}3", "Extra data"),
        ("pose", '{"utime": 3}', ""),
        ("pose", json.dumps([{"utime": START}]), "it lacks 'pos'"),
        ("pose", json.dumps([pose_at(0.0, vel=[1.0, 2.0])]), "reshape"),
        ("pose", json.dumps([pose_at(0.0, vel=[1.0, None, 2.0])]), ""),
        ("pose", json.dumps([pose_at(0.0, accel=[1.0, float("nan"), 2.0])]), "accel is not finite"),
        ("pose", json.dumps([pose_at(0.0, utime="now")]), ""),
        ("pose", "[" * 100_000, "recursion"),
        ("pose", "[" + " " * 3000 + "]", "3002 bytes, expected at most 2000"),
        ("route", "[[1, 2], [3]]", ""),
        ("route", "[[1, 2, 3], [3, 4, 5]]", "reshape"),
        ("route", "[[1, NaN]]", "not finite"),
        ("route", "7", ""),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(bus_root, monkeypatch, kind, content, reason):
    monkeypatch.setattr(can_bus, "MAX_BYTES", 2000 if "  " in content else can_bus.MAX_BYTES)
    for other in ("pose", "route"):
        (bus_root / "can_bus" / f"scene-0003_{other}.json").write_text(content if other == kind else "[]")
    config = DataConfig(root=str(bus_root), version=VERSION, sensors=(), command="route", status="can_bus")
    with pytest.raises(DataError, match=rf"scene-0003_{kind}\.json.*{reason}.*remove it"):
        NuScenesDataset(config, "mine", BEVGrid(), with_map=False)[0]
    with pytest.warns(UserWarning, match="skipped"):
        lenient = dataclasses.replace(config, skip_broken=True)
        sample = NuScenesDataset(lenient, "mine", BEVGrid(), with_map=False)[0]
    assert sample.command == -1 and sample.status.velocity.isnan().all()


def test_a_data_set_without_the_expansion_says_so(tiny_root):
    def opened(**sources) -> NuScenesDataset:
        return NuScenesDataset(DataConfig(root=str(tiny_root), version=VERSION, **sources), "mine", BEVGrid())

    with pytest.warns(UserWarning, match="data.command: route and data.status: can_bus need the CAN bus expansion"):
        opened(command="route", status="can_bus")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(command="gt_endpoint", status="poses")


def test_a_scene_cannot_lead_out_of_the_root(bus_root):
    tables = Tables.open(bus_root, VERSION)
    outside = dataclasses.replace(tables, scene_name=np.array([b"../../secret"] * 2))
    with pytest.raises(DataError, match="leads out"):
        route_of(outside, 0)


@pytest.mark.parametrize("index", [0, 3])  # drives on and turns; waits, then turns
def test_the_devkit_reads_what_the_generator_writes(index, tmp_path):
    from nuscenes.can_bus.can_bus_api import NuScenesCanBus

    scene, corner = build_scene(index, 0, 5.0), np.array([-40.0, 25.0])
    (tmp_path / "can_bus").mkdir()
    messages, route = pose_messages(scene, START, corner), route_points(scene, corner)
    for kind, content in (("pose", messages), ("route", route)):
        (tmp_path / "can_bus" / f"{scene.name}_{kind}.json").write_text(json.dumps(content))
    devkit = NuScenesCanBus(str(tmp_path))
    assert devkit.get_messages(scene.name, "pose") == messages
    theirs, driven = devkit.get_pose_and_route(scene.name)
    np.testing.assert_array_equal(theirs, np.array(route))
    assert devkit.list_misaligned_routes() == []
    np.testing.assert_allclose(np.diff([m["utime"] for m in messages]), 20_000, atol=1)

    time = np.array([m["utime"] - START for m in messages]) * 1e-6
    position, yaw = scene.ego.at(time)
    np.testing.assert_allclose(driven, position[:, :2] - corner, atol=2e-6)
    speed = np.array([m["vel"][0] for m in messages])
    inner = slice(5, -5)
    np.testing.assert_allclose(speed[inner], np.linalg.norm(scene.ego.velocity(time), axis=1)[inner], atol=0.15)
    rate = np.array([m["rotation_rate"][2] for m in messages])
    np.testing.assert_allclose(rate[inner], np.gradient(yaw, time)[inner], atol=0.06)
    accel = np.array([m["accel"] for m in messages])
    np.testing.assert_allclose(accel[:, 1], speed * rate, atol=1e-4)
    np.testing.assert_allclose(np.cumsum(accel[:, 0]) * 0.02, speed - speed[0], atol=0.25)
    # None of it is of later: with the drive cut off at a time, what was measured until then is the same.
    steps = round(3.0 / SIM_STEP) + 1
    track = dataclasses.replace(scene.ego, position=scene.ego.position[:steps], yaw=scene.ego.yaw[:steps])
    assert pose_messages(dataclasses.replace(scene, ego=track, duration=3.0), START, corner) == messages[:146]


def test_the_synthetic_set_knows_its_route(synthetic_root):
    """Everywhere, before turns too, and it does not depend on how the drive goes."""
    tables = Tables.open(synthetic_root, "v1.0-synthetic")
    commands = {}
    for row in range(len(tables.sample_time)):
        _, past, status, command = load_ego(tables, row, 6, "route", "can_bus")
        commands.setdefault(tables.scene(row), []).append(command)
        if past.mask[0]:
            assert float(status.velocity[0]) == pytest.approx(float(-past.position[0, 0] / 0.5), abs=1.0)
        route = route_of(tables, row)
        assert route is not None and np.linalg.norm(route - tables.global_from_ego(row)[:2, 3], axis=1).min() < 1
        assert np.isfinite(yaw_of(tables.global_from_ego(row)))
    assert commands == {"scene-0000": [LEFT] * 6, "scene-0001": [STRAIGHT] * 6, "scene-0002": commands["scene-0002"]}
    assert RIGHT in commands["scene-0002"] and LEFT not in commands["scene-0002"]
