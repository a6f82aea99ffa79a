"""The command that scores plans of anybody's, its baselines and its tables."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings

import numpy as np
import pytest

from fusion3d.cli import run
from fusion3d.data.plans import PlanFile
from fusion3d.data.tracks import read_tracks
from fusion3d.engine import plan_table
from fusion3d.engine.drives import drives_of_tracks
from fusion3d.engine.ego_mlp import EgoMLP
from fusion3d.engine.evaluate_plans import evaluate_plans, trained_baselines
from fusion3d.engine.forecasts import table_line
from fusion3d.errors import ConfigError, DataError, Fusion3DError
from fusion3d.metrics.planning import PROTOCOLS, Agents, score_plans
from fusion3d.metrics.planning.baselines import constant_turn
from fusion3d.metrics.planning.paths import to_lidar

VERSION = "v1.0-synthetic"
KINDS = {
    "uniad": "at,at", "uniad_valid": "at,at", "stp3": "mean,mean", "vad": "mean,mean", "sparsedrive": "mean,mean",
    "bev_planner": "mean,any",
}  # fmt: skip


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


def test_every_protocol_stands_side_by_side(drives):
    """A row for each planner and protocol, with what its numbers are of, and the human's hits as the floor."""
    protocols = score_plans({"mine": 1.3 * drives.future[:, :4]}, drives)["protocols"]
    planners = protocols["uniad"]["planners"]
    lines = plan_table.format_side_by_side(protocols, planners).splitlines()
    lines = lines[next(i for i, line in enumerate(lines) if line.strip().startswith("L2, hit")) + 1 :]
    assert lines[:: 1 + len(PROTOCOLS)] == [*planners] and len(lines) == len(planners) * (1 + len(PROTOCOLS))
    for number, planner in enumerate(planners):
        for i, name in enumerate(PROTOCOLS):
            row, line = protocols[name]["planners"][planner], lines[number * (1 + len(PROTOCOLS)) + 1 + i]
            cells = line.replace(", ", ",").split()
            kind, masked = ("at,any", "-") if name == "exact" else (KINDS[name], f"{row['masked']:.0f}")
            numbers = [f"{row[end]:.0f}" for end in ("N@1s", "N@2s")]  # it has no 3 s
            count = "/".join(numbers) if name == "uniad_valid" else f"{row['N']:.0f}"
            assert cells[:5] == [name, kind, count, f"{row['events']:.0f}", masked]
            ego = protocols[name]["about"]["ego"].split(", ")
            assert line.endswith(f"{protocols[name]['samples']}   {', '.join(ego[:2])}") and "centre" in ego[1]
            assert cells[6] == ("n/a" if np.isnan(row["L2@2s"]) else f"{row['L2@2s']:.3f}")
    human = {"human": planners["human"] | {"raw@3s": 0.0125}}
    text = plan_table.format_side_by_side({"uniad": protocols["uniad"] | {"planners": human}}, ["human"])
    assert " 1.25 " in text.splitlines()[-1]


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
    for wrong in (np.pi / 2, np.pi):  # a yaw of the LiDAR's, or backwards; where it goes is right
        turned = read_plans(
            plan_file(tmp_path / "t.json", drives, change=lambda plan, by=wrong: plan + np.array([0, 0, by]))
        )
        with pytest.warns(UserWarning, match="head (90|180) degrees off the way that they go"):
            evaluate_plans({"t": turned}, drives, ["exact"])
    mirrored = read_plans(plan_file(tmp_path / "m.json", bend, change=lambda plan: plan * (1, -1, 1)))
    with pytest.warns(UserWarning, match="mirrored"):
        evaluate_plans({"m": mirrored}, bend, ["exact"])


def test_plans_that_are_no_positions_are_noticed(drives):
    """Offsets of each step, and what is far from where anybody is, go the right way: the frame shows nothing."""
    far = dataclasses.replace(
        drives,
        future=np.tile(np.array([[6.0 * i, 0, 0] for i in range(1, 7)]), (len(drives), 1, 1)),
        known=np.ones_like(drives.known),
    )

    def warned(plan):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluate_plans({"p": PlanFile("ego", dict(zip(far.tokens, plan, strict=True)))}, far, ["exact"])
        return [str(warning.message) for warning in caught]

    offsets = np.diff(far.future, axis=1, prepend=0)
    assert "go 0.17 times as far: are they positions" in warned(offsets)[0]
    assert "end 60 m away from the human" in warned(far.future + np.array([60, 0, 0]))[0]
    assert warned(0.4 * far.future) == [] == warned(2.2 * far.future)


def test_lidar_plans_without_yaw_are_of_the_same_car(tracks):
    """What was driven, as positions of the rear axle and of the LiDAR: the way back to the axle errs by millimetres.

    The LiDAR's own way points into a bend, which moves the car by up to 14 cm to its side if taken for the heading.
    """

    def without_yaw(frame, path):
        held = np.pad(path[..., :2], ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
        return PlanFile(frame, dict(zip(tracks.tokens, held, strict=True)))

    files = {"ego": without_yaw("ego", tracks.path), "lidar": without_yaw("lidar", to_lidar(tracks.path, tracks.mount))}
    of = evaluate_plans(files, tracks, ["exact"])["protocols"]["exact"]["planners"]
    assert of["ego"]["L2mean@3s"] == 0 and of["lidar"]["L2mean@3s"] < 0.007 and of["lidar"]["L2@3s"] < 0.008
    assert of["lidar"]["heading@3s"] <= of["ego"]["heading@3s"]
    keyframes = {"lidar": without_yaw("lidar", to_lidar(tracks.future, tracks.mount))}
    of = evaluate_plans(keyframes, tracks, ["uniad_valid"])["protocols"]["uniad_valid"]["planners"]
    assert of["lidar"]["L2@3s"] == pytest.approx(0, abs=1e-9)


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
    with pytest.warns(UserWarning, match="short has 2 steps of 6: no row is scored beyond these 1 s"):
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
