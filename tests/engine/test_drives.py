"""What plans are scored against, read from a data set: drives, those around and maps."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))

from worlds import drives as drives_in
from worlds import straight

from fusion3d.cli import run
from fusion3d.data.annotations import load_ego
from fusion3d.data.drivable import Area
from fusion3d.data.maps import mask_file, vector_file
from fusion3d.data.nuscenes import Tables
from fusion3d.data.road_edge import RoadEdge
from fusion3d.engine.drives import drives_of, map_around, map_of
from fusion3d.metrics.planning import PROTOCOLS, score_plans
from fusion3d.metrics.planning.paths import with_heading
from fusion3d.metrics.planning.pdm import between_lanes, in_junction

VERSION = "v1.0-synthetic"


def test_paths_are_those_that_are_trained_on(tables, tokens, drives):
    for row, token in enumerate(tokens):
        future, past, status, _ = load_ego(tables, tables.row_of(token), 6)
        np.testing.assert_allclose(drives.future[row, :, :2], future.position.numpy(), atol=1e-4)
        np.testing.assert_allclose(drives.future[row, :, 2], future.yaw.numpy(), atol=1e-5)
        np.testing.assert_array_equal(drives.known[row], future.mask.numpy())
        np.testing.assert_allclose(drives.past[row, :, :2], past.position[:2].numpy(), atol=1e-4)
        np.testing.assert_allclose(drives.velocity[row], status.velocity.numpy(), atol=1e-3, equal_nan=True)
        assert drives.scenes[row] == tables.scene(tables.row_of(token))
    assert drives.known.sum(axis=1).max() == 5 and set(drives.about["light"]) <= {"day", "night"}


def test_light_and_weather_are_words(tables, tokens):
    said = [b"Train station, terrain, foggy", b"Nighttime, after RAIN", b"Knight Street, brainy drivers, clear"]
    described = dataclasses.replace(tables, scene_description=np.array(said))
    about = drives_of(described, tokens, agents=False).about
    assert [about["weather"][i] for i in (0, 6, 12)] == ["fog", "rain", "dry"]
    assert [about["light"][i] for i in (0, 6, 12)] == ["day", "night", "day"]


def test_agents_are_the_devkits_boxes_of_all_keyframes_around(synthetic_root, drives):
    from nuscenes import NuScenes
    from nuscenes.eval.common.utils import quaternion_yaw
    from pyquaternion import Quaternion

    theirs = NuScenes(VERSION, str(synthetic_root), verbose=False)
    first = theirs.get("sample", theirs.scene[1]["first_sample_token"])
    now = theirs.get("sample", first["next"])
    row = drives.tokens.index(now["token"])
    pose = theirs.get("ego_pose", theirs.get("sample_data", now["data"]["LIDAR_TOP"])["ego_pose_token"])
    agents = drives.agents[drives.agents.sample == row]
    sample, seen = first, 0
    for step in range(-1, 5):
        of = agents[agents.step == step]
        expected = []
        for token in sample["anns"]:
            record = theirs.get("sample_annotation", token)
            box = theirs.get_box(token)
            box.translate(-np.array(pose["translation"]))
            box.rotate(Quaternion(pose["rotation"]).inverse)
            yaw = quaternion_yaw(box.orientation)
            expected.append(
                (box.name, [*box.center[:2], box.wlh[1], box.wlh[0]], yaw, record["num_lidar_pts"] > 0,
                 record["visibility_token"] != "1")
            )  # fmt: skip
        assert [of.names[i] for i in of.category] == [name for name, *_ in expected]
        np.testing.assert_allclose(of.box[:, :4], np.array([box for _, box, *_ in expected]), atol=1e-6)
        turned = np.array([yaw for _, _, yaw, *_ in expected]) - of.box[:, 4]
        np.testing.assert_allclose((turned + np.pi) % (2 * np.pi) - np.pi, 0, atol=1e-6)
        assert of.seen.tolist() == [points for *_, points, _ in expected]
        assert of.visible.tolist() == [visible for *_, visible in expected]
        seen += len(expected)
        sample = theirs.get("sample", sample["next"]) if sample["next"] else None
        if sample is None:
            break
    assert seen > 20
    lidar = theirs.get(
        "calibrated_sensor", theirs.get("sample_data", now["data"]["LIDAR_TOP"])["calibrated_sensor_token"]
    )
    np.testing.assert_allclose(drives.mount[row, :2], lidar["translation"][:2])
    np.testing.assert_allclose(drives.mount[row, 2], quaternion_yaw(Quaternion(lidar["rotation"])), atol=1e-9)


def test_the_driven_path_hits_nothing(drives):
    """In the simulated world the ego drives into nobody: a frame or heading mistake would show as a collision."""
    table = score_plans({"m": drives.path[:, :4]}, drives, ["exact"])["protocols"]["exact"]["planners"]
    assert all(table["human"][f"collision@{end}"] == 0 for end in ("1s", "2s"))
    near = drives.agents.box[drives.agents.step > 0, :2]
    assert np.linalg.norm(near, axis=1).min() < 12, "nothing comes near: the test says nothing"


def test_the_drivable_area_is_under_the_human(tables, tokens, drives):
    maps = map_of(tables, tokens, True)
    scores = score_plans({}, drives, ["exact", "bev_planner"], maps)
    assert maps.ground.known.all() and maps.boundaries.known.all()
    for row in range(len(tokens)):
        assert maps.ground.drivable(row, np.array([[0.0, 0.0], [1.4, 0.0]])).all(), "the ego drives on the road"
        assert not maps.ground.drivable(row, np.array([[500.0, 0.0]])).any()
        of = maps.boundaries.segment[maps.boundaries.sample == row]
        assert len(of) and np.abs(of).min(axis=(1, 2)).max() < 60
        on = maps.ground.lanes(row, np.array([[0.0, 0.0], [500.0, 0.0]]))
        assert on[0].any() and not on[1].any(), "and on a lane"
    going = drives.known[:, 1]
    assert not between_lanes(drives.future[going, :2], maps[going].ground).any(), "it keeps its lane"
    assert set(scores["protocols"]) == {"exact", "bev_planner"}


@pytest.mark.parametrize("turn", [0.0, 0.785, 2.0])
def test_the_end_of_the_road_is_found_by_who_drives_fast(turn):
    """At 15 m/s the nose is at 48.4 m after 3 s, and the road ends at 46 m, whichever way it lies on the map."""
    c, s = np.cos(turn), np.sin(turn)
    ring = np.array([[-100.0, -7], [46, -7], [46, 7], [-100, 7]]) @ np.array([[c, s], [-s, c]])
    pose = np.eye(4)
    pose[:2, :2] = [[c, -s], [s, c]]
    pose[:2, 3] = 300.0, -80.0
    road = ring + pose[:2, 3]
    area, edge = Area([road], np.array([0])), RoadEdge.around([[road]])
    maps = map_around(pose[None], [area], [None], [None], [edge])
    scores = score_plans({"fast": straight(15.0), "slow": straight(13.0)}, drives_in(straight(4.0)), maps=maps)
    edge = {name: scores["protocols"]["bev_planner"]["planners"][name]["boundary@3s"] for name in ("fast", "slow")}
    assert edge == {"fast": 1, "slow": 0} and scores["pdm"]["fast"]["DAC"] == 0 and scores["pdm"]["slow"]["DAC"] == 1


def test_intersections_are_the_road_segments_that_say_so(synthetic_root, tokens, tmp_path):
    """A segment that is one around the first sample, one beside that is none, and a map without any."""
    for folder in (VERSION, "maps"):
        shutil.copytree(synthetic_root / folder, tmp_path / folder)
    own = Tables.open(tmp_path, VERSION)
    first, last = own.row_of(tokens[0]), own.row_of(tokens[-1])
    path, other, pose = vector_file(own, first), vector_file(own, last), own.global_from_ego(first)
    assert path != other
    for file in (path, other):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"road_segment": []}))
    assert map_of(own, tokens, False).ground.junction(0, np.zeros((1, 2))).tolist() == [False], "not known"
    content = json.loads(path.read_text())
    for name, shift, yes in (("in", 0.0, True), ("out", 20.0, False)):
        corners = np.array([[-5.0, -5], [5, -5], [5, 5], [-5, 5]]) + np.array([shift, 0])
        places = corners @ pose[:2, :2].T + pose[:2, 3]
        nodes = [{"token": f"{name}{i}", "x": x, "y": y} for i, (x, y) in enumerate(places.tolist())]
        content["node"] += nodes
        content["polygon"].append(
            {"token": name, "exterior_node_tokens": [node["token"] for node in nodes], "holes": []}
        )
        content["road_segment"].append({"token": name, "polygon_token": name, "is_intersection": yes})
    path.write_text(json.dumps(content))
    ground = map_of(own, tokens, False).ground
    assert ground.junction(0, np.array([[0.0, 0], [4, 4], [6, 0], [20, 0]])).tolist() == [True, True, False, False]
    assert not ground.junction(len(tokens) - 1, np.zeros((1, 2))).any()
    plan = np.zeros((len(tokens), 2, 3))
    inside = in_junction(plan, ground)
    assert inside[0].all() and not inside[-1].any()


def test_a_mask_in_place_of_polygons_is_flagged(synthetic_root, tokens, tmp_path, capsys):
    """Of three scenes one has polygons, one the mask alone, one nothing."""
    for folder in (VERSION, "maps"):
        shutil.copytree(synthetic_root / folder, tmp_path / folder)
    own = Tables.open(tmp_path, VERSION)
    first = [own.row_of(token) for token in tokens[::6]]
    for row in first[1:]:
        vector_file(own, row).unlink()
    mask_file(own, first[2]).unlink()
    maps = map_of(own, tokens, True)
    assert maps.ground.known.tolist() == 12 * [True] + 6 * [False]
    assert maps.ground.by_mask.tolist() == 6 * [False] + 6 * [True] + 6 * [False]
    assert maps.boundaries.known.tolist() == 6 * [True] + 12 * [False]
    assert maps[np.arange(18) % 2 == 0].ground.by_mask.tolist() == 3 * [False] + 3 * [True] + 3 * [False]
    for row in (0, 6):
        assert maps.ground.drivable(row, np.array([[0.0, 0.0], [500.0, 0.0]])).tolist() == [True, False]
    plan = {"m": np.zeros((18, 2, 3))}
    row = score_plans(plan, drives_of(own, tokens), ["exact"], maps)["pdm"][
        "m"
    ]  # 3 of 6 have a keyframe before and 1 s
    assert (row["N"], row["num_with_map"], row["num_by_mask"]) == (9, 6, 3)
    assert run("evaluate_plans", ["--root", str(tmp_path), "--version", VERSION, "--split", "all"]) == 0
    assert "Drivable area of 0 samples: 0 by polygons, 0 by the mask alone" in capsys.readouterr().out  # no 3 s here


def moved(root, to, angle: float, shift: tuple[float, ...], lidar: float) -> Tables:
    """The data set with its world turned and moved, map and all, and its LiDAR turned on the roof [rad, m]."""
    from pyquaternion import Quaternion

    turn, mount = (Quaternion(axis=(0, 0, 1), angle=by) for by in (angle, lidar))
    for folder in (VERSION, "maps"):
        shutil.copytree(root / folder, to / folder)

    def change(path, edit) -> None:
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    def turn_rows(rows) -> None:
        for row in rows:
            row["translation"] = (turn.rotate(np.array(row["translation"])) + shift).tolist()
            row["rotation"] = (turn * Quaternion(row["rotation"])).elements.tolist()

    def turn_nodes(content) -> None:
        for node in content["node"]:
            node["x"], node["y"], _ = turn.rotate(np.array([node["x"], node["y"], 0])) + shift

    def turn_mounts(rows) -> None:
        for row in rows:
            row["rotation"] = (mount * Quaternion(row["rotation"])).elements.tolist()

    for name in ("ego_pose", "sample_annotation"):
        change(to / VERSION / f"{name}.json", turn_rows)
    change(to / VERSION / "calibrated_sensor.json", turn_mounts)
    for path in (to / "maps" / "expansion").glob("*.json"):
        change(path, turn_nodes)
    return Tables.open(to, VERSION)


def test_a_turned_world_has_the_same_numbers(synthetic_root, tables, tokens, drives, tmp_path):
    """From the tables to the scores. On the map nothing knows a direction; around the LiDAR the published grids do."""
    at = drives.agents[drives.agents.step == 4]
    order = np.lexsort((np.linalg.norm(at.box[:, :2], axis=1), at.sample))
    rows, first = np.unique(at.sample[order], return_index=True)
    nearest = np.zeros((len(drives), 1, 2))
    nearest[rows, 0] = at.box[order[first], :2]
    goals = {"into": nearest, "beside": nearest + np.array([0, 2]), "off": 0 * nearest + np.array([0, 20])}
    plans = {name: with_heading(0.25 * np.arange(1, 5)[:, None] * goal) for name, goal in goals.items()}

    def scores(of: Tables):
        return score_plans(plans, drives_of(of, tokens), maps=map_of(of, tokens, True))

    ours = scores(tables)
    on_the_map = scores(moved(synthetic_root, tmp_path / "map", 2.1, (400.0, 70.0, 3.0), 0.0))
    on_the_roof = scores(moved(synthetic_root, tmp_path / "roof", -0.7, (0.0, 500.0, 0.0), 0.6))
    assert ours["protocols"]["exact"]["planners"]["into"]["collision@2s"] > 0.5 and ours["pdm"]["off"]["DAC"] < 0.5
    for name in PROTOCOLS:
        assert_same(ours["protocols"][name], on_the_map["protocols"][name])
    for theirs in (on_the_map, on_the_roof):
        assert_same(ours["protocols"]["exact"], theirs["protocols"]["exact"])
        assert_same(ours["pdm"], theirs["pdm"])
        assert_same(ours["skill"], theirs["skill"])
    for name in ("uniad", "uniad_valid"):
        first, second = (found["protocols"][name]["planners"]["beside"] for found in (ours, on_the_roof))
        assert first["raw@2s"] != second["raw@2s"] and first["L2@2s"] == pytest.approx(second["L2@2s"]), name


def assert_same(first, second) -> None:
    """Trees of numbers and words."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_same(value, second[key])
    elif isinstance(first, float):
        assert first == pytest.approx(second, abs=1e-6, nan_ok=True)
    else:
        assert first == second
