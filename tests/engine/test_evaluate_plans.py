"""What plans are scored against, read from a data set; and the command, on plans of anybody's."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from fusion3d.cli import run
from fusion3d.data.annotations import load_ego
from fusion3d.data.maps import mask_file, vector_file
from fusion3d.data.nuscenes import Tables
from fusion3d.data.plans import PlanFile
from fusion3d.data.splits import samples_of
from fusion3d.data.tracks import read_tracks
from fusion3d.engine import plan_table
from fusion3d.engine.drives import drives_of, drives_of_tracks, map_of
from fusion3d.engine.ego_mlp import EgoMLP
from fusion3d.engine.evaluate_plans import evaluate_plans, trained_baselines
from fusion3d.engine.forecasts import table_line
from fusion3d.errors import ConfigError, DataError, Fusion3DError
from fusion3d.metrics.planning import PROTOCOLS, Agents, score_plans
from fusion3d.metrics.planning.baselines import constant_turn
from fusion3d.metrics.planning.paths import to_lidar, with_heading
from fusion3d.metrics.planning.pdm import between_lanes

VERSION = "v1.0-synthetic"


@pytest.fixture(scope="module")
def tables(synthetic_root):
    return Tables.open(synthetic_root, VERSION)


@pytest.fixture(scope="module")
def tokens(tables):
    return [tables.token(row) for row in samples_of(tables, "all")]


@pytest.fixture(scope="module")
def drives(tables, tokens):
    return drives_of(tables, tokens)


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
    table = score_plans({}, drives, ["exact"])["protocols"]["exact"]["planners"]
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
    assert run("evaluate_plans", options(tmp_path)) == 0
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


def plan_file(path, drives, frame="ego", steps=4, change=lambda plan: plan):
    path_of = drives.future if frame == "ego" else to_lidar(drives.future, drives.mount)
    plans = {token: change(plan[:steps]).tolist() for token, plan in zip(drives.tokens, path_of, strict=True)}
    times = [0.5 * i for i in range(1, steps + 1)]
    path.write_text(json.dumps({"frame": frame, "times": times, "plans": plans}))
    return path


def options(root, *more):
    return ["--root", str(root), "--version", VERSION, "--split", "all", *map(str, more)]


def test_plans_in_either_frame_are_the_same(synthetic_root, drives, tmp_path, capsys):
    """What the human drove, written down in ego and from the LiDAR: no error in any protocol."""
    files = [plan_file(tmp_path / f"{frame}.json", drives, frame) for frame in ("ego", "lidar")]
    assert run("evaluate_plans", [*map(str, files), *options(synthetic_root, "--out", tmp_path / "out.json")]) == 0
    text = capsys.readouterr().out
    scores = json.loads((tmp_path / "out.json").read_text())
    assert list(scores["protocols"]) == list(PROTOCOLS)
    for name, table in scores["protocols"].items():
        for frame in ("ego", "lidar"):
            row = table["planners"][frame]
            known = name in ("exact", "uniad", "uniad_valid")  # no scene has 3 s of future, which the others want
            assert row["L2@2s"] == pytest.approx(0, abs=1e-9) if known else row["N"] == 0, (name, frame)
            assert row["L2@3s"] is None
        assert f"{name}   samples {table['samples']}" in text
        assert list(table["planners"]) == ["ego", "lidar", "ctrv", "constant_velocity", "stationary", "human"]
    assert "PDM-style score" in text and "not distinguishable" in text and "known bugs, kept" in text
    assert "floor: the human's own path hits" in text


def test_some_protocols_and_plans_of_some_samples(synthetic_root, drives, tmp_path, capsys):
    path = plan_file(tmp_path / "some.json", drives)
    content = json.loads(path.read_text())
    whole = dict(content["plans"])
    for token in drives.tokens[:2]:
        del content["plans"][token]
    path.write_text(json.dumps(content))
    chosen = ("--protocol", "uniad", "uniad_valid")
    assert run("evaluate_plans", [str(path), *options(synthetic_root, *chosen)]) == 1
    error = capsys.readouterr().err
    assert "uniad: 2 of its 18 samples have no plan" in error and error.count("\n") == 1
    assert run("evaluate_plans", [str(path), *options(synthetic_root, *chosen, "--partial")]) == 0
    assert "16 of 18 samples have a plan" in capsys.readouterr().out
    content["plans"] = {f"x{token}": plan for token, plan in whole.items()}
    path.write_text(json.dumps(content))
    assert run("evaluate_plans", [str(path), *options(synthetic_root)]) == 1
    assert "none of its 18 sample tokens is one of the 18" in capsys.readouterr().err
    assert run("evaluate_plans", options(synthetic_root, "--protocol", "best")) == 1
    assert "no protocol 'best'; known: exact, uniad" in capsys.readouterr().err
    assert run("evaluate_plans", []) == 1
    assert "expected either --root" in capsys.readouterr().err


def test_a_wrong_frame_is_noticed(drives, tmp_path):
    from fusion3d.data.plans import read_plans

    far = dataclasses.replace(drives, future=drives.future * (3, 0, 0) + (6, 0, 0), known=np.ones_like(drives.known))
    turned = read_plans(plan_file(tmp_path / "t.json", far, change=lambda plan: plan[:, [1, 0]]))
    with pytest.warns(UserWarning, match="90 degrees to the left"):
        evaluate_plans({"t": turned}, far, ["exact"])
    bend = dataclasses.replace(
        far, future=far.future + np.where(np.arange(len(far)) % 2, 3, -3)[:, None, None] * (0, 1, 0)
    )
    mirrored = read_plans(plan_file(tmp_path / "m.json", bend, change=lambda plan: plan * (1, -1, 1)))
    with pytest.warns(UserWarning, match="mirrored"):
        evaluate_plans({"m": mirrored}, bend, ["exact"])


@pytest.fixture(scope="module")
def tracks(tracks_root):
    return drives_of_tracks(read_tracks(tracks_root))


def test_real_people_do_not_collide(tracks):
    """323 keyframes of eight real scenes: exact has no false collision, drives in comfort and out of danger."""
    scores = score_plans({}, tracks, ["exact", "sparsedrive"])
    human = scores["protocols"]["exact"]["planners"]["human"]
    assert len(tracks) == 323 and human["N"] == 267 and human["events"] == 0 and 0.5 < human["clearance_p5"] < 1
    assert scores["pdm"]["human"]["PDMS"] > 0.98
    table = scores["protocols"]["exact"]["planners"]
    errors = [table[name]["L2mean@3s"] for name in ("human", "ctrv", "constant_velocity", "stationary")]
    assert errors == sorted(errors) and 0.7 < errors[1] < 0.95 and errors[3] > 5
    fractions = [scores["pdm"][name]["PDMS"] for name in ("human", "ctrv", "constant_velocity", "stationary")]
    assert fractions == sorted(fractions, reverse=True)


def test_the_ego_mlp_learns_from_others_and_is_the_same_twice(tracks):
    scenes = np.array(tracks.scenes)
    held = scenes == scenes[0]
    training = tracks[~held]
    model = EgoMLP(training)
    plan = model.plan(tracks[held])
    alone = dataclasses.replace(training, agents=Agents.none())
    order = np.random.default_rng(0).permutation(len(training))
    np.testing.assert_array_equal(EgoMLP(alone[order]).plan(tracks[held]), plan, err_msg="by the order of its samples")
    at_home = np.linalg.norm(model.plan(training)[..., :2] - training.future[..., :2], axis=-1)
    base = np.linalg.norm(constant_turn(training, 6)[..., :2] - training.future[..., :2], axis=-1)
    whole = training.known.all(axis=1) & training.past_known[:, 0]
    assert at_home[whole].mean() < 0.95 * base[whole].mean(), "it learns nothing"
    future = dataclasses.replace(tracks[held], future=tracks[held].future[:, ::-1] + 1, known=~tracks[held].known)
    np.testing.assert_array_equal(model.plan(future), plan, err_msg="it looks ahead")


def test_training_and_evaluation_do_not_share_scenes(tracks):
    with pytest.raises(DataError, match="evaluated and trained on"):
        trained_baselines(tracks, tracks[:50])
    with pytest.raises(DataError, match="expected at least 20"):
        EgoMLP(tracks[:12])


@pytest.mark.slow
def test_the_command_on_real_tracks(tracks_root, tmp_path, capsys):
    assert run("evaluate_plans", ["--tracks", str(tracks_root), "--out", str(tmp_path / "out.json")]) == 0
    scores = json.loads((tmp_path / "out.json").read_text())
    assert {"ego_mlp", "nearest_anchor"} <= set(scores["protocols"]["exact"]["planners"])
    assert "skill over ctrv" in capsys.readouterr().out


def test_what_cannot_be_scored(drives):
    with pytest.raises(ConfigError, match="no protocol 'uniat'"):
        evaluate_plans({}, drives, ["uniat"])
    names = ("ego_mlp", "human")
    for name in names:  # a file of such a name must not be replaced, nor replace what it is compared with
        with pytest.raises(Fusion3DError, match=f"called '{name}' as a baseline is"):
            file = PlanFile("ego", {token: np.zeros((6, 3)) for token in drives.tokens})
            evaluate_plans({name: file}, drives, ["exact"], others={"ego_mlp": np.zeros((len(drives), 6, 3))})


def test_a_shorter_file_is_named(drives):
    files = {
        name: PlanFile("ego", {token: np.zeros((steps, 3)) for token in drives.tokens})
        for name, steps in (("long", drives.future.shape[1]), ("short", 2))
    }
    with pytest.warns(UserWarning, match="short has 2 steps, others have more: no row is scored beyond these"):
        evaluate_plans(files, drives, ["exact"])


def test_what_is_not_known_is_said():
    nothing = {"skill": np.nan, "low": np.nan, "high": np.nan, "N": 5, "scenes": 2, "L2mean": 0.0, "says": "?"}
    text = plan_table.format_skill({"mine": {"macro": nothing, "manoeuvre: stand": nothing}})
    assert "nan" not in text and text.count("n/a") == 2
    row = dict.fromkeys(("PDMS", *plan_table.PARTS), 0.5) | {"N": 4.0}
    for mapped, masked, said in (
        (0.0, 0.0, (0, 0, 4)),
        (3.0, 1.0, (2, 1, 1)),
        (4.0, 4.0, (0, 4, 0)),
        (4.0, 0.0, (4, 0, 0)),
    ):
        text = plan_table.format_pdm({"mine": row | {"num_with_map": mapped, "num_by_mask": masked}})
        assert [int(count) for count in re.findall(r"(\d+) (?:by polygons|by the mask alone|unknown)", text)] == [*said]
        assert "Drivable area of 4 samples" in text
    assert "n/a" in table_line("mine", [np.nan, 1.0]) and "nan" not in table_line("mine", [np.nan, 1.0])


def test_tracks_of_one_scene(tracks_root, tmp_path, capsys):
    """Nothing to train on: the others are scored all the same."""
    (tmp_path / "scene-0061.npz").write_bytes((tracks_root / "scene-0061.npz").read_bytes())
    assert run("evaluate_plans", ["--tracks", str(tmp_path), "--protocol", "uniad_valid"]) == 0
    text = capsys.readouterr().out
    assert "without ego_mlp and nearest_anchor" in text and "\nctrv " in text
    assert run("evaluate_plans", ["--tracks", str(tmp_path), "--train-split", "train"]) == 1
    assert "--train-split is of --root" in capsys.readouterr().err
