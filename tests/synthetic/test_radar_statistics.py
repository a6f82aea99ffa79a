"""What the simulated front radar finds, beside what the real one found in the 38 keyframes of nuScenes scene-0061."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from fusion3d.data.radar import read_pcd
from fusion3d.data.tables import CLASS_OF
from fusion3d.geometry import invert, transform_from, yaw_of
from fusion3d.synthetic.radar import scan_radar
from fusion3d.synthetic.rig import RIG
from fusion3d.synthetic.stage import ego_at, global_from_ego, stage_of
from fusion3d.synthetic.world import build_scene

REACH, FIELD = 50.0, np.radians(45)  # [m], [rad] from the sensor: the objects that are asked for
MARGIN = 0.5  # [m] round a box in which a return is its own; the sensor is coarse
HITS = {  # of the annotated objects, those with any return in a scan
    "car": 0.86, "truck": 0.98, "pedestrian": 0.32, "barrier": 0.56, "bicycle": 0.39, "traffic_cone": 0.03,
}  # fmt: skip
OWNED = 0.15  # of the returns, those in the box of an annotated object
VALID, RESTING = 0.55, {1: 0.48, 3: 0.40}  # of the returns: invalid_state 0; dyn_prop stationary, and so perhaps


class Tally:
    """Scans, object by object."""

    def __init__(self) -> None:
        self.hits: dict[str, list[bool]] = defaultdict(list)
        self.owned: list[np.ndarray] = []
        self.points: list[np.ndarray] = []

    def add(self, points: np.ndarray, categories: list[str], boxes: np.ndarray) -> None:
        """One scan and the objects round it: [K, 5] x, y, length, width, yaw in the sensor's frame."""
        place = np.stack([points["x"], points["y"]], axis=-1).astype(np.float64)
        owned = np.zeros(len(points), bool)
        for category, (x, y, length, width, yaw) in zip(categories, boxes, strict=True):
            if category not in CLASS_OF or np.hypot(x, y) > REACH or abs(np.arctan2(y, x)) > FIELD:
                continue
            offset = place - (x, y)
            along = offset @ (np.cos(yaw), np.sin(yaw))
            across = offset @ (-np.sin(yaw), np.cos(yaw))
            inside = (np.abs(along) < length / 2 + MARGIN) & (np.abs(across) < width / 2 + MARGIN)
            self.hits[CLASS_OF[category]].append(bool(inside.any()))
            owned |= inside
        self.owned.append(owned)
        self.points.append(points[["dyn_prop", "invalid_state"]])

    def rate(self, name: str) -> float:
        """Of the objects of a class, those with any return."""
        return float(np.mean(self.hits[name]))


def real_scans(root: Path) -> Tally:
    """The scans of a real scene, by its tables alone."""
    rows = {name: json.loads((root / "v1.0-mini" / f"{name}.json").read_text()) for name in (
        "sample_data", "ego_pose", "calibrated_sensor", "sample_annotation", "instance", "category")}  # fmt: skip
    by = {name: {row["token"]: row for row in table} for name, table in rows.items()}
    tally = Tally()
    for frame in rows["sample_data"]:
        if "/RADAR_FRONT/" not in frame["filename"]:
            continue
        placed = (by["ego_pose"][frame["ego_pose_token"]], by["calibrated_sensor"][frame["calibrated_sensor_token"]])
        ego, mount = (transform_from(np.array(p["translation"]), np.array(p["rotation"])) for p in placed)
        sensor_from_global = invert(ego @ mount)
        categories, boxes = [], []
        for box in rows["sample_annotation"]:
            if box["sample_token"] == frame["sample_token"]:
                here = sensor_from_global @ transform_from(np.array(box["translation"]), np.array(box["rotation"]))
                width, length, _ = box["size"]
                categories.append(by["category"][by["instance"][box["instance_token"]]["category_token"]]["name"])
                boxes.append((here[0, 3], here[1, 3], length, width, float(yaw_of(here[:3, :3]))))
        tally.add(read_pcd(root / frame["filename"]), categories, np.array(boxes))
    return tally


def simulated_scans(scenes: int) -> Tally:
    """A scan a second of several scenes."""
    tally, mount = Tally(), RIG["RADAR_FRONT"].ego_from_sensor
    for index in range(scenes):
        scene = build_scene(index, 0, 7.0)
        sizes = np.array([actor.size[:2] for actor in scene.actors])
        for time in np.arange(0.5, 7.0):
            pose = global_from_ego(ego_at(scene, time)) @ mount
            state = stage_of(scene).actors_at(time)
            place = (state[:, :2] - pose[:2, 3]) @ pose[:2, :2]
            turn = state[:, 3:4] - np.arctan2(pose[1, 0], pose[0, 0])
            boxes = np.concatenate([place, sizes, turn], axis=1)
            points = scan_radar(scene, "RADAR_FRONT", time, 0).points
            tally.add(points, [actor.category for actor in scene.actors], boxes)
    return tally


def test_the_figures_are_those_of_the_real_scene(real_root: Path) -> None:
    tally = real_scans(real_root)
    assert {name: pytest.approx(tally.rate(name), abs=0.006) for name in HITS} == HITS
    points = np.concatenate(tally.points)
    assert np.concatenate(tally.owned).mean() == pytest.approx(OWNED, abs=0.01)
    assert (points["invalid_state"] == 0).mean() == pytest.approx(VALID, abs=0.01)
    assert {code: pytest.approx((points["dyn_prop"] == code).mean(), abs=0.01) for code in RESTING} == RESTING


def test_the_simulated_radar_finds_about_as_much() -> None:
    tally = simulated_scans(6)
    assert {name: pytest.approx(tally.rate(name), abs=0.18) for name in HITS} == HITS
    points = np.concatenate(tally.points)
    assert np.concatenate(tally.owned).mean() == pytest.approx(OWNED, abs=0.06)
    assert (points["invalid_state"] == 0).mean() == pytest.approx(VALID, abs=0.1)
    assert {code: pytest.approx((points["dyn_prop"] == code).mean(), abs=0.12) for code in RESTING} == RESTING
