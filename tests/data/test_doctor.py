"""The geometry doctor passes what is sound, and names what was broken on purpose."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion3d.config import DataConfig
from fusion3d.data import dataset as data_dataset
from fusion3d.data import images as data_images
from fusion3d.data.augment import transform_sample
from fusion3d.data.doctor import Finding, examine
from fusion3d.data.nuscenes import Tables
from fusion3d.engine.check import CheckConfig, check
from fusion3d.errors import ConfigError
from fusion3d.geometry import quaternion_from_rotation, quaternion_from_yaw, rotation_from_quaternion, transform_from
from fusion3d.types import CAMERAS, RADARS

VERSION = "v1.0-synthetic"
Row = dict[str, Any]


@pytest.fixture
def copy(synthetic_root: Path, tmp_path: Path) -> Path:
    """A data root of its own tables, whose files are links to the sound ones."""
    root = tmp_path / "copy"
    (root / VERSION).mkdir(parents=True)
    for entry in synthetic_root.iterdir():
        if entry.name != VERSION and not entry.name.startswith("."):
            (root / entry.name).symlink_to(entry)
    for table in (synthetic_root / VERSION).glob("*.json"):
        (root / VERSION / table.name).write_bytes(table.read_bytes())
    return root


def edit(root: Path, table: str, change: Callable[[Row], None]) -> None:
    path = root / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    for row in rows:
        change(row)
    path.write_text(json.dumps(rows))


def of_channel(root: Path, channel: str) -> set[str]:
    """Tokens of the calibrations of a channel."""
    sensors = json.loads((root / VERSION / "sensor.json").read_text())
    token = next(row["token"] for row in sensors if row["channel"] == channel)
    rows = json.loads((root / VERSION / "calibrated_sensor.json").read_text())
    return {row["token"] for row in rows if row["sensor_token"] == token}


def edit_calibration(root: Path, channel: str, change: Callable[[Row], None]) -> None:
    tokens = of_channel(root, channel)
    edit(root, "calibrated_sensor", lambda row: change(row) if row["token"] in tokens else None)


def turn(row: Row, yaw_degrees: float) -> None:
    """Turn a calibration (or a pose) about the vertical axis of what it is mounted on."""
    turned = rotation_from_quaternion(quaternion_from_yaw(np.radians(yaw_degrees)))
    row["rotation"] = quaternion_from_rotation(turned @ rotation_from_quaternion(np.array(row["rotation"]))).tolist()


def data_of(root: Path, channel: str) -> list[Row]:
    tokens = of_channel(root, channel)
    rows = json.loads((root / VERSION / "sample_data.json").read_text())
    return [row for row in rows if row["calibrated_sensor_token"] in tokens]


def failures(root: Path, only: str) -> list[Finding]:
    found = list(examine(DataConfig(root=str(root), version=VERSION), num_samples=12, only=[only]))
    return [finding for finding in found if finding.passed is False]


def test_a_sound_data_set_passes_every_check(synthetic_root: Path) -> None:
    found = list(examine(DataConfig(root=str(synthetic_root), version=VERSION), num_samples=12))
    assert [str(f) for f in found if not f.passed] == []
    names = {
        "files", "mounting", "time", "ego poses", "ego motion", "box motion", "box heading", "ground", "boxes",
        "sweeps", "image edges", "radar doppler", "radar in boxes", "round trip", "augmentation",
    }  # fmt: skip
    assert {f.check for f in found} == names
    with pytest.raises(ConfigError) as error:
        next(examine(DataConfig(root=str(synthetic_root), version=VERSION), only=["colour"]))
    known = str(error.value).split("known: ")[1].split(", ")
    assert set(known) == names, "what a finding is called is what `only` takes"


def camera_turned_left(root: Path) -> None:
    edit_calibration(root, "CAM_FRONT", lambda row: turn(row, 5.0))


def camera_turned_right(root: Path) -> None:
    edit_calibration(root, "CAM_FRONT", lambda row: turn(row, -5.0))


def swapped_quaternions(root: Path) -> None:
    edit_calibration(root, "LIDAR_TOP", lambda row: row.update(rotation=[*row["rotation"][1:], row["rotation"][0]]))


def wrong_ego_poses(root: Path) -> None:
    mine = {row["ego_pose_token"] for row in data_of(root, "CAM_BACK")}

    def shift(row: Row) -> None:
        if row["token"] in mine:
            row["translation"][0] += 2.0

    edit(root, "ego_pose", shift)


def unturned_ego(root: Path) -> None:
    edit(root, "ego_pose", lambda row: row.update(rotation=[1.0, 0.0, 0.0, 0.0]))


def shifted_time(root: Path) -> None:
    mine = {row["token"] for row in data_of(root, "RADAR_FRONT")}
    edit(
        root,
        "sample_data",
        lambda row: row.update(timestamp=row["timestamp"] + 300_000) if row["token"] in mine else None,
    )


def rewrite(root: Path, channel: str, change: Callable[[bytes], bytes]) -> None:
    """Let the channel's rows name files of changed content (the sound ones are links)."""
    mine = {row["token"] for row in data_of(root, channel)}

    def move(row: Row) -> None:
        if row["token"] in mine:
            own = root / "own" / row["filename"]
            own.parent.mkdir(parents=True, exist_ok=True)
            own.write_bytes(change((root / row["filename"]).read_bytes()))
            row["filename"] = f"own/{row['filename']}"

    edit(root, "sample_data", move)


def mirrored_lidar(root: Path) -> None:
    """Clouds with x negated."""
    rewrite(
        root,
        "LIDAR_TOP",
        lambda raw: (np.frombuffer(raw, "<f4").reshape(-1, 5) * [-1, 1, 1, 1, 1]).astype("<f4").tobytes(),
    )


def raw_radar_velocity(root: Path) -> None:
    """The velocity in which the ego motion still is, under the name of the compensated one."""
    for channel in RADARS:
        rewrite(root, channel, lambda raw: raw.replace(b" vx vy vx_comp vy_comp ", b" vx_comp vy_comp vx vy ", 1))


def pose_not_finite(root: Path) -> None:
    mine = data_of(root, "CAM_BACK")[2]["ego_pose_token"]
    edit(root, "ego_pose", lambda row: row["translation"].__setitem__(0, np.nan) if row["token"] == mine else None)


def pose_of_no_length(root: Path) -> None:
    mine = data_of(root, "CAM_BACK")[2]["ego_pose_token"]
    edit(root, "ego_pose", lambda row: row.update(rotation=[0.0] * 4) if row["token"] == mine else None)


def swapped_instances(root: Path) -> None:
    """In one keyframe the boxes of two instances are taken for each other."""
    rows = json.loads((root / VERSION / "sample_annotation.json").read_text())
    chained = [row for row in rows if row["prev"] and row["next"]]
    one = chained[0]
    other = max(
        (row for row in chained if row["sample_token"] == one["sample_token"]),
        key=lambda row: np.hypot(*np.subtract(row["translation"], one["translation"])[:2]),
    )
    swap = {one["token"]: other["translation"], other["token"]: one["translation"]}
    edit(root, "sample_annotation", lambda row: row.update(translation=swap.get(row["token"], row["translation"])))


def wrong_focal_length(root: Path) -> None:
    def halve(row: Row) -> None:
        row["camera_intrinsic"][0][0] /= 2

    edit_calibration(root, "CAM_FRONT_LEFT", halve)


def swapped_sizes(root: Path) -> None:
    edit(root, "sample_annotation", lambda row: row.update(size=[row["size"][1], row["size"][0], row["size"][2]]))


def negated_headings(root: Path) -> None:
    edit(root, "sample_annotation", lambda row: row.update(rotation=[row["rotation"][0], 0, 0, -row["rotation"][3]]))


def bottom_centers(root: Path) -> None:
    def lower(row: Row) -> None:
        row["translation"][2] -= row["size"][2] / 2

    edit(root, "sample_annotation", lower)


def turned_radar(root: Path) -> None:
    edit_calibration(root, "RADAR_FRONT", lambda row: turn(row, 20.0))


def lidar_too_high(root: Path) -> None:
    def lift(row: Row) -> None:
        row["translation"][2] += 0.8

    edit_calibration(root, "LIDAR_TOP", lift)


def swapped_cameras(root: Path) -> None:
    left, right = of_channel(root, "CAM_FRONT_LEFT"), of_channel(root, "CAM_FRONT_RIGHT")
    rows = json.loads((root / VERSION / "calibrated_sensor.json").read_text())
    extrinsics = {row["token"]: (row["translation"], row["rotation"]) for row in rows}
    swap = dict(zip([*left, *right], [*right, *left], strict=True))

    def exchange(row: Row) -> None:
        if row["token"] in swap:
            row["translation"], row["rotation"] = extrinsics[swap[row["token"]]]

    edit(root, "calibrated_sensor", exchange)


def lost_file(root: Path) -> None:
    mine = data_of(root, "RADAR_BACK_LEFT")[3]["token"]
    edit(root, "sample_data", lambda row: row.update(filename="samples/gone.pcd") if row["token"] == mine else None)


def wrong_sweep_poses(root: Path) -> None:
    """Sweeps between keyframes carry the pose of the keyframe before: ego motion is ignored."""
    poses = {row["token"]: row for row in json.loads((root / VERSION / "ego_pose.json").read_text())}
    latest: dict[str, Row] = {}
    for row in sorted(data_of(root, "LIDAR_TOP"), key=lambda row: row["timestamp"]):
        pose = poses[row["ego_pose_token"]]
        if row["is_key_frame"]:
            latest = pose
        elif latest:
            pose.update(translation=latest["translation"], rotation=latest["rotation"])
    (root / VERSION / "ego_pose.json").write_text(json.dumps(list(poses.values())))


def late_annotations(root: Path) -> None:
    """Boxes where they will be one keyframe later."""
    rows = json.loads((root / VERSION / "sample_annotation.json").read_text())
    place = {row["token"]: (row["translation"], row["rotation"]) for row in rows}

    def move(row: Row) -> None:
        if row["next"]:
            row["translation"], row["rotation"] = place[row["next"]]

    edit(root, "sample_annotation", move)


@pytest.mark.parametrize(
    ("break_it", "check_name", "subject", "words"),
    [
        (camera_turned_left, "image edges", "CAM_FRONT", "turned by (-5, 0) deg"),
        (camera_turned_right, "image edges", "CAM_FRONT", "turned by (5, 0) deg"),
        (swapped_quaternions, "mounting", "LIDAR_TOP", "order is swapped"),
        (wrong_ego_poses, "ego poses", "CAM_BACK", "off the path"),
        (unturned_ego, "ego motion", "heading", "off the direction of travel"),
        (shifted_time, "time", "RADAR_FRONT", "ego poses within 300.0 ms"),
        (mirrored_lidar, "boxes", "LIDAR_TOP in boxes", "the LiDAR's x axis mirrored"),
        (wrong_focal_length, "mounting", "CAM_FRONT_LEFT", "fx/fy 0.50"),
        (swapped_sizes, "boxes", "LIDAR_TOP in boxes", "length and width swapped"),
        (negated_headings, "box heading", "annotations", "off the direction of travel"),
        (bottom_centers, "boxes", "LIDAR_TOP in boxes", "bottoms"),
        (turned_radar, "radar doppler", "RADAR_FRONT", "radar turned by"),
        (lidar_too_high, "ground", "LIDAR_TOP", "z = +0.8"),
        (swapped_cameras, "mounting", "CAM_FRONT_LEFT", "off what its name says"),
        (wrong_sweep_poses, "sweeps", "LIDAR_TOP", "times the ego motion"),
        (lost_file, "files", "RADAR_BACK_LEFT", "samples/gone.pcd"),
        (negated_headings, "boxes", "LIDAR_TOP in boxes", "with the boxes' headings negated it would be"),
        (swapped_instances, "box motion", "annotations", "boxes jump"),
        (raw_radar_velocity, "radar in boxes", "all radars", "off the boxes' velocity"),
        (pose_not_finite, "ego poses", "numbers", "1 poses are not finite"),
        (pose_of_no_length, "ego poses", "numbers", "CAM_BACK"),
        (late_annotations, "boxes", "LIDAR_TOP in boxes", "no simple change explains it"),
    ],
)
def test_what_is_broken_is_found_and_named(copy: Path, break_it, check_name: str, subject: str, words: str) -> None:
    break_it(copy)
    found = [f for f in failures(copy, check_name) if f.check == check_name and f.subject == subject]
    assert found, f"{check_name} of {subject} did not fail"
    assert words in found[0].detail, found[0].detail


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_broken_file_stops_one_check_alone(copy: Path, damage: str) -> None:
    """An image that is missing or cut, and radar files without a field: findings name them, and the others go on."""
    image = min(row["filename"] for row in data_of(copy, "CAM_FRONT"))
    rewrite(copy, "CAM_FRONT", lambda raw: raw)
    os.truncate(copy / "own" / image, 500) if damage == "cut" else (copy / "own" / image).unlink()
    rewrite(copy, "RADAR_FRONT", lambda raw: raw.replace(b" vx vy vx_comp", b" wx wy vx_comp", 1))
    found = list(examine(DataConfig(root=str(copy), version=VERSION), num_samples=12))
    failed = {f.check: f.detail for f in found if f.passed is False}
    stopped = {"image edges", "radar doppler", "round trip", "augmentation"}
    assert failed.keys() - {"files"} == stopped and ("files" in failed) == (damage == "missing")
    assert "cannot decode image" in failed["image edges"] and "/own/samples/CAM_FRONT/" in failed["image edges"]
    assert "lacks the fields vx, vy" in failed["radar doppler"] and "/own/" in failed["radar doppler"]
    assert {f.check for f in found if f.passed} >= {"mounting", "time", "boxes", "sweeps"}


def test_a_wrong_projection_is_found(synthetic_root: Path, monkeypatch) -> None:
    """Cameras in which the ego motion since their trigger is not; and cropping at the bottom instead of the top."""

    def fit(old, size, change):
        return max(size[0] / old[0], size[1] / old[1]), 0.0, 0.0

    with monkeypatch.context() as patch:
        patch.setattr(data_images, "_fit", fit)
        assert {f.subject for f in failures(synthetic_root, "round trip")} == set(CAMERAS)
    whole = Tables.reference_from_sensor

    def without_ego_motion(tables: Tables, sample: int, data) -> np.ndarray:
        calibration = tables.data_calibration[np.asarray(data)]
        return transform_from(tables.calibration_translation[calibration], tables.calibration_rotation[calibration])

    monkeypatch.setattr(Tables, "reference_from_sensor", without_ego_motion)
    assert failures(synthetic_root, "round trip")
    monkeypatch.setattr(Tables, "reference_from_sensor", whole)
    assert not failures(synthetic_root, "round trip")


def test_a_wrong_augmentation_is_found(synthetic_root: Path, monkeypatch) -> None:
    def forgetful(sample, aug_from_ego):
        return dataclasses.replace(transform_sample(sample, aug_from_ego), lidar=sample.lidar)

    monkeypatch.setattr(data_dataset, "transform_sample", forgetful)
    (found,) = failures(synthetic_root, "augmentation")
    assert "m off after the inverse" in found.detail


def test_the_command_passes_and_fails(synthetic_root: Path, copy: Path, tmp_path: Path, capsys) -> None:
    picture = tmp_path / "picture.png"
    assert check(CheckConfig(root=synthetic_root, samples=2, picture=picture)) == 0
    assert picture.stat().st_size > 10_000
    assert "passed:" in capsys.readouterr().out
    swapped_quaternions(copy)
    assert check(CheckConfig(root=copy, samples=2, picture=tmp_path / "other.png")) == 1
    printed = capsys.readouterr().out
    assert "FAIL mounting" in printed and "FAILED:" in printed


def test_the_real_scene_passes(real_root: Path, tmp_path: Path) -> None:
    assert check(CheckConfig(root=real_root, samples=40, picture=tmp_path / "real.png")) == 0
    assert not os.listdir(tmp_path) == []
