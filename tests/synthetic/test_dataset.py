"""The written data set against the official devkit, shapely and the simulation it came from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fusion3d.geometry import apply, invert, transform_from
from fusion3d.synthetic.camera import render_camera
from fusion3d.synthetic.recording import LEAD, RANGE, Recipe
from fusion3d.synthetic.rig import RIG
from fusion3d.synthetic.scene import Scene
from fusion3d.synthetic.world import build_scene
from fusion3d.types import ATTRIBUTES, CAMERAS, EGO_CENTER, EGO_SIZE, RADARS

VERSION = "v1.0-synthetic"
RECIPE = Recipe(VERSION, scenes=3, keyframes=6, image_size=(99, 176), sweeps=2, seed=0, val_scenes=1)
CYCLES = ("vehicle.bicycle", "vehicle.motorcycle")
PARKED = ATTRIBUTES.index("vehicle.parked")


@pytest.fixture(scope="module")
def nusc(synthetic_root: Path):
    from nuscenes import NuScenes

    return NuScenes(VERSION, str(synthetic_root), verbose=False)


@pytest.fixture(scope="module")
def simulated() -> list[Scene]:
    return [build_scene(index, RECIPE.seed, RECIPE.duration) for index in range(RECIPE.scenes)]


def global_from(nusc, token: str) -> np.ndarray:
    """[4, 4] global_from_sensor of a sample_data, through its records."""
    data = nusc.get("sample_data", token)
    pose = nusc.get("ego_pose", data["ego_pose_token"])
    mount = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    ego_from_sensor = transform_from(mount["translation"], mount["rotation"])
    return transform_from(pose["translation"], pose["rotation"]) @ ego_from_sensor


def lidar_points(nusc, sample: dict) -> np.ndarray:
    """[P, 3] key LiDAR points in global."""
    token = sample["data"]["LIDAR_TOP"]
    raw = np.fromfile(nusc.get_sample_data_path(token), np.float32).reshape(-1, 5)
    return apply(global_from(nusc, token), raw[:, :3].astype(float))


def in_box_frame(points: np.ndarray, box: dict) -> np.ndarray:
    """[P, 3] global points to a box's own frame: x forward, y left, z up from its centre."""
    return apply(invert(transform_from(box["translation"], box["rotation"])), points)


def half_size(box: dict) -> np.ndarray:
    return np.array(box["size"])[[1, 0, 2]] / 2


def scene_of(nusc, simulated: list[Scene], sample: dict) -> tuple[Scene, float]:
    """The simulated scene of a sample, and the time in it."""
    name = nusc.get("scene", sample["scene_token"])["name"]
    scene = next(s for s in simulated if s.name == name)
    first = nusc.get("sample", nusc.get("scene", sample["scene_token"])["first_sample_token"])
    return scene, LEAD + (sample["timestamp"] - first["timestamp"]) / 1e6


def actors_of(nusc, scene: Scene, sample: dict, time: float) -> dict[str, int]:
    """Annotation token to actor, found by position alone: the simulation's frame differs by the ego's shift."""
    pose = nusc.get("ego_pose", sample["data"]["LIDAR_TOP"])
    shift = np.array(pose["translation"]) - scene.ego.at(time)[0]
    positions = np.stack([actor.track.at(time)[0] for actor in scene.actors]) + shift
    found = {}
    for token in sample["anns"]:
        gap = np.linalg.norm(positions - nusc.get("sample_annotation", token)["translation"], axis=1)
        assert gap.min() < 1e-6
        found[token] = int(gap.argmin())
    return found


def test_tables_and_splits(nusc, synthetic_root: Path):
    assert len(nusc.scene) == RECIPE.scenes and len(nusc.sample) == RECIPE.scenes * RECIPE.keyframes
    assert [c["name"] for c in nusc.category][:2] == ["human.pedestrian.adult", "human.pedestrian.child"]
    assert len(nusc.category) == 23 and len(nusc.attribute) == 8 and len(nusc.sensor) == 12
    splits = json.loads((synthetic_root / VERSION / "splits.json").read_text())
    names = [scene["name"] for scene in nusc.scene]
    assert splits["train"] + splits["val"] == names and len(splits["val"]) == RECIPE.val_scenes
    assert splits["synthetic_val"] == splits["val"] and splits["synthetic_train"] == splits["train"]
    for table in ("sample_data", "sample_annotation", "instance", "ego_pose", "sample", "calibrated_sensor"):
        tokens = [record["token"] for record in getattr(nusc, table)]
        assert len(set(tokens)) == len(tokens) and all(len(token) == 32 for token in tokens)
    left_over = [p for p in synthetic_root.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]
    assert not left_over


def test_descriptions_name_the_weather(nusc, simulated):
    for record, scene in zip(nusc.scene, simulated, strict=True):
        for word in ("night", "rain", "fog"):
            assert (word in record["description"].lower()) == (getattr(scene.weather, word) > 0)


def test_sample_chains(nusc):
    for scene in nusc.scene:
        token, times, last = scene["first_sample_token"], [], ""
        while token:
            sample = nusc.get("sample", token)
            assert sample["prev"] == last and sample["scene_token"] == scene["token"]
            assert set(sample["data"]) == set(RIG)
            assert sample["timestamp"] == nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["timestamp"]
            times.append(sample["timestamp"])
            last, token = token, sample["next"]
        assert last == scene["last_sample_token"] and len(times) == scene["nbr_samples"]
        assert (np.diff(times) == 500_000).all()


def test_sensor_chains(nusc, synthetic_root: Path):
    walked = 0
    files = set()
    for scene in nusc.scene:
        first = nusc.get("sample", scene["first_sample_token"])
        for channel in RIG:
            record = nusc.get("sample_data", first["data"][channel])
            while record["prev"]:
                assert nusc.get("sample_data", record["prev"])["next"] == record["token"]
                record = nusc.get("sample_data", record["prev"])
            chain = [record]
            while chain[-1]["next"]:
                chain.append(nusc.get("sample_data", chain[-1]["next"]))
            walked += len(chain)
            sweeps = 0 if channel in CAMERAS else RECIPE.sweeps
            assert [r["is_key_frame"] for r in chain] == ([False] * sweeps + [True]) * RECIPE.keyframes
            assert (np.diff([r["timestamp"] for r in chain]) > 0).all()
            for record in chain:
                sample, pose = nusc.get("sample", record["sample_token"]), nusc.get("ego_pose", record["token"])
                assert record["channel"] == channel and pose["timestamp"] == record["timestamp"]
                lag = sample["timestamp"] - record["timestamp"]
                assert -50_000 < lag < 500_000, "a sweep belongs to the keyframe that follows it"
                if channel == "LIDAR_TOP":
                    assert lag % 50_000 == 0
                folder = "samples" if record["is_key_frame"] else "sweeps"
                ending = ".jpg" if channel in CAMERAS else ".pcd.bin" if channel == "LIDAR_TOP" else ".pcd"
                log = nusc.get("log", scene["log_token"])["logfile"]
                name = f"{folder}/{channel}/{log}__{channel}__{record['timestamp']}{ending}"
                assert record["filename"] == name and (synthetic_root / name).stat().st_size > 0
                assert (record["height"], record["width"]) == (RECIPE.image_size if channel in CAMERAS else (0, 0))
                files.add(name)
    assert walked == len(nusc.sample_data)
    stored = {
        str(p.relative_to(synthetic_root)) for top in ("samples", "sweeps") for p in (synthetic_root / top).rglob("*.*")
    }
    assert stored == files


def test_instance_chains(nusc):
    walked = 0
    for instance in nusc.instance:
        token, last, count, time = instance["first_annotation_token"], "", 0, 0
        while token:
            record = nusc.get("sample_annotation", token)
            assert record["prev"] == last and record["instance_token"] == instance["token"]
            assert nusc.get("sample", record["sample_token"])["timestamp"] > time
            time = nusc.get("sample", record["sample_token"])["timestamp"]
            last, token, count = token, record["next"], count + 1
        assert last == instance["last_annotation_token"] and count == instance["nbr_annotations"]
        walked += count
    assert walked == len(nusc.sample_annotation) > 100


def test_poses_and_boxes_are_the_simulated_ones(nusc, simulated):
    """Ego motion at every sensor's own time, relative to the first LiDAR pose; boxes complete within the range."""
    for sample in nusc.sample:
        scene, time = scene_of(nusc, simulated, sample)
        reference = np.array(nusc.get("ego_pose", sample["data"]["LIDAR_TOP"])["translation"])
        for channel, token in sample["data"].items():
            pose = nusc.get("ego_pose", token)
            position, yaw = scene.ego.at(time + RIG[channel].offset)
            moved = np.array(pose["translation"]) - reference
            np.testing.assert_allclose(moved, position - scene.ego.at(time)[0], atol=1e-6)
            np.testing.assert_allclose(pose["rotation"], [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)], atol=1e-9)
        found = actors_of(nusc, scene, sample, time)
        gaps = [np.linalg.norm((a.track.at(time)[0] - scene.ego.at(time)[0])[:2]) for a in scene.actors]
        assert sorted(found.values()) == [i for i, gap in enumerate(gaps) if gap < RANGE]
        for token, index in found.items():
            record = nusc.get("sample_annotation", token)
            assert record["category_name"] == scene.actors[index].category
            np.testing.assert_allclose(2 * half_size(record), scene.actors[index].size)
            assert len(record["attribute_tokens"]) == (not record["category_name"].startswith("movable_object"))


def test_counts_of_lidar_points(nusc):
    """Equal to our own count, and to the devkit's, but for points within a micrometre of a face."""
    from nuscenes.utils.geometry_utils import points_in_box

    total = 0
    for sample in nusc.sample[::2]:
        points = lidar_points(nusc, sample)
        for token in sample["anns"]:
            record = nusc.get("sample_annotation", token)
            local = np.abs(in_box_frame(points, record)) - half_size(record)
            low, high = (local <= -1e-6).all(1).sum(), (local <= 1e-6).all(1).sum()
            assert low <= record["num_lidar_pts"] <= high
            official = points_in_box(nusc.get_box(token), points.T).sum()
            assert low <= official <= high
            total += record["num_lidar_pts"]
    assert total > 2000


def test_counts_of_radar_returns(nusc):
    """Unfiltered returns of the five key radars inside the footprint, read and counted through the devkit."""
    from nuscenes.utils.data_classes import RadarPointCloud

    total = 0
    for sample in nusc.sample[::2]:
        clouds = []
        for channel in RADARS:
            token = sample["data"][channel]
            codes = list(range(18))
            cloud = RadarPointCloud.from_file(nusc.get_sample_data_path(token), codes, codes, codes)
            clouds.append(apply(global_from(nusc, token), cloud.points[:3].T))
        points = np.concatenate(clouds)
        for token in sample["anns"]:
            record = nusc.get("sample_annotation", token)
            inside = (np.abs(in_box_frame(points, record)) <= half_size(record))[:, :2].all(1).sum()
            assert inside == record["num_radar_pts"]
            total += inside
    assert total > 20


def test_static_boxes_have_points_on_their_faces(nusc):
    """A standing vehicle that is well seen has points within 5 cm of each side that faces the sensor."""
    checked = 0
    for sample in nusc.sample:
        points = lidar_points(nusc, sample)
        sensor = global_from(nusc, sample["data"]["LIDAR_TOP"])[:3, 3][None]
        for token in sample["anns"]:
            record = nusc.get("sample_annotation", token)
            still = np.linalg.norm(nusc.box_velocity(token)) < 1e-6
            if not record["category_name"].startswith("vehicle.car") or not still or record["num_lidar_pts"] < 150:
                continue
            half, eye = half_size(record), in_box_frame(sensor, record)[0]
            local = in_box_frame(points, record)
            near = local[(np.abs(local) <= half + 0.05).all(1)]
            for axis in (0, 1):
                if abs(eye[axis]) < half[axis] + 0.35 * abs(eye[1 - axis]):
                    continue  # seen from the edge
                side = np.sign(eye[axis])
                assert (np.abs(side * near[:, axis] - half[axis]) <= 0.05).sum() >= 3, (token, axis)
                checked += 1
    assert checked >= 5


def test_velocity(nusc, simulated):
    """The devkit's ``box_velocity`` is the track's difference over the same keyframes, and nearly its true velocity."""
    moving = 0
    for sample in nusc.sample:
        scene, time = scene_of(nusc, simulated, sample)
        for token, index in actors_of(nusc, scene, sample, time).items():
            record = nusc.get("sample_annotation", token)
            ends = [time]
            for way in ("prev", "next"):
                if record[way]:
                    other = nusc.get("sample", nusc.get("sample_annotation", record[way])["sample_token"])
                    ends.append(time + (other["timestamp"] - sample["timestamp"]) / 1e6)
            found, track = nusc.box_velocity(token)[:2], scene.actors[index].track
            if len(ends) == 1 or max(ends) - min(ends) > 1.5 * (len(ends) - 1):
                assert np.isnan(found).all()
                continue
            first, last = track.at(min(ends))[0], track.at(max(ends))[0]
            np.testing.assert_allclose(found, (last - first)[:2] / (max(ends) - min(ends)), atol=1e-3)
            true = track.velocity(time)
            moving += np.linalg.norm(true) > 2
            assert np.linalg.norm(found - true) < 0.1 + 1.6 * (0.5 if len(ends) == 2 else 0.25) * 2.5
    assert moving > 20


def test_no_two_boxes_overlap_and_the_ego_hits_nothing(nusc):
    from shapely import STRtree
    from shapely.geometry import Polygon

    def footprint(center: np.ndarray, yaw: float, length: float, width: float) -> Polygon:
        corners = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [length / 2, width / 2]
        cos, sin = np.cos(yaw), np.sin(yaw)
        return Polygon(corners @ np.array([[cos, sin], [-sin, cos]]) + center)

    for sample in nusc.sample:
        pose = transform_from(
            *(nusc.get("ego_pose", sample["data"]["LIDAR_TOP"])[k] for k in ("translation", "rotation"))
        )
        shapes = [footprint((pose @ [EGO_CENTER, 0, 0, 1])[:2], np.arctan2(pose[1, 0], pose[0, 0]), *EGO_SIZE[:2])]
        names = ["ego"]
        for token in sample["anns"]:
            box = nusc.get_box(token)
            yaw = box.orientation.yaw_pitch_roll[0]
            shapes.append(footprint(box.center[:2], yaw, box.wlh[1], box.wlh[0]))
            names.append(box.name)
        pairs = STRtree(shapes).query(shapes, predicate="intersects").T
        for a, b in pairs[pairs[:, 0] < pairs[:, 1]]:
            assert shapes[a].intersection(shapes[b]).area < 1e-4, (names[a], names[b], sample["token"])


def test_pixels_lie_in_their_projected_box(nusc, simulated, synthetic_root: Path):
    """The renderer's pixels of an actor fall into its box projected through the records; the JPEG is that picture."""
    from PIL import Image
    from shapely import contains_xy
    from shapely.geometry import MultiPoint

    checked = 0
    for sample in (nusc.sample[2], nusc.sample[8], nusc.sample[14]):
        scene, time = scene_of(nusc, simulated, sample)
        reference = np.array(nusc.get("ego_pose", sample["data"]["LIDAR_TOP"])["translation"])
        shift = reference - scene.ego.at(time)[0]
        for channel in CAMERAS:
            token = sample["data"][channel]
            record = nusc.get("sample_data", token)
            intrinsic = np.array(nusc.get("calibrated_sensor", record["calibrated_sensor_token"])["camera_intrinsic"])
            now = time + (record["timestamp"] - sample["timestamp"]) / 1e6
            view = render_camera(scene, channel, now, RECIPE.image_size, int(token[:8], 16))
            stored = np.asarray(Image.open(synthetic_root / record["filename"]), dtype=float)
            assert np.abs(stored - view.image).mean() < 8
            cam_from_global = invert(global_from(nusc, token))
            for index in np.unique(view.owner[view.owner >= 0]):
                position, yaw = scene.actors[index].track.at(now)
                corners = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3), -1).reshape(-1, 3) * scene.actors[index].size
                turn = transform_from(position + shift, [np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
                cam = apply(cam_from_global @ turn, corners)
                if cam[:, 2].min() < 0.5:
                    continue
                image = cam @ intrinsic.T
                hull = MultiPoint(image[:, :2] / image[:, 2:]).convex_hull.buffer(0.75)
                v, u = np.nonzero(view.owner == index)
                assert contains_xy(hull, u, v).all(), (channel, scene.actors[index].category)
                checked += len(u)
    assert checked > 1000


def test_visibility(nusc):
    levels = Counter(record["visibility_token"] for record in nusc.sample_annotation)
    assert set(levels) <= set("1234") and levels["4"] > 0 and levels["1"] > 0


def test_devkit_reads_sweeps(nusc):
    """Sweeps are there before the first keyframe too; standing things stay where they are over all of them."""
    from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud

    for sample in nusc.sample[:: RECIPE.keyframes]:
        cloud, times = LidarPointCloud.from_file_multisweep(nusc, sample, "LIDAR_TOP", "LIDAR_TOP", nsweeps=10)
        np.testing.assert_allclose(np.unique(times.round(6)), [0, 0.05, 0.1])
        assert cloud.points.shape[1] > 30_000 and np.isfinite(cloud.points).all()
        radar, times = RadarPointCloud.from_file_multisweep(nusc, sample, "RADAR_FRONT", "LIDAR_TOP", nsweeps=6)
        assert len(np.unique(times.round(6))) <= 3 and radar.points.shape[0] == 18


def test_moving_vehicles_in_radar(nusc):
    """Compensated velocities of returns on moving vehicles are the projection of the box's velocity on the ray."""
    from nuscenes.utils.data_classes import RadarPointCloud

    errors, speeds = [], []
    for sample in nusc.sample:
        movers = [t for t in sample["anns"] if np.linalg.norm(nusc.box_velocity(t)) > 3]
        for channel in RADARS:
            token = sample["data"][channel]
            points = RadarPointCloud.from_file(nusc.get_sample_data_path(token)).points
            to_global = global_from(nusc, token)
            xyz = apply(to_global, points[:3].T)
            velocity = np.concatenate([points[8:10].T, np.zeros((points.shape[1], 1))], axis=1) @ to_global[:3, :3].T
            ray = xyz - to_global[:3, 3]
            ray /= np.linalg.norm(ray, axis=1, keepdims=True)
            for box in movers:
                record = nusc.get("sample_annotation", box)
                if not record["category_name"].startswith("vehicle") or record["category_name"] in CYCLES:
                    continue
                inside = (np.abs(in_box_frame(xyz, record)) <= half_size(record))[:, :2].all(1)
                expected = ray[inside] @ np.nan_to_num(nusc.box_velocity(box))
                errors += (np.sum(velocity * ray, axis=1)[inside] - expected).tolist()
                speeds += expected.tolist()
    assert len(errors) >= 10
    assert np.median(np.abs(errors)) < 0.5 and np.median(np.abs(speeds)) > 2


def test_map(nusc, synthetic_root: Path):
    """The mask through the devkit's ``MapMask`` against the polygons, away from their edges; the ego is on it."""
    from shapely import contains_xy, distance, points, union_all
    from shapely.geometry import Polygon

    rng = np.random.default_rng(0)
    for scene in nusc.scene:
        log = nusc.get("log", scene["log_token"])
        record = nusc.get("map", log["map_token"])
        vectors = json.loads((synthetic_root / "maps" / "expansion" / f"{log['location']}.json").read_text())
        node = {row["token"]: (row["x"], row["y"]) for row in vectors["node"]}
        ring = {row["token"]: [node[token] for token in row["exterior_node_tokens"]] for row in vectors["polygon"]}
        area = union_all(
            [Polygon(ring[t]).buffer(0) for row in vectors["drivable_area"] for t in row["polygon_tokens"]]
        )
        width, height = vectors["canvas_edge"]
        assert record["mask"]._base_mask.shape == (round(height * 10), round(width * 10))
        xy = rng.uniform(0, [width, height], (20_000, 2))
        safe = distance(points(xy), area.boundary) > 0.2
        truth = contains_xy(area, xy[:, 0], xy[:, 1])[safe]
        np.testing.assert_array_equal(record["mask"].is_on_mask(*xy[safe].T), truth)
        assert 0.01 < truth.mean() < 0.9
        samples = [s for s in nusc.sample if s["scene_token"] == scene["token"]]
        ego = np.array([nusc.get("ego_pose", s["data"]["LIDAR_TOP"])["translation"] for s in samples])
        assert record["mask"].is_on_mask(ego[:, 0], ego[:, 1]).all()
        boxes = np.array([nusc.get("sample_annotation", t)["translation"] for s in samples for t in s["anns"]])
        assert (boxes > 0).all() and (boxes[:, :2] < [width, height]).all()
        assert np.min(list(node.values())) >= 0


def test_parked_vehicles_are_in_the_parking_strips(simulated):
    """And those of the works too: what the map calls a car park is where they stand."""
    import shapely

    for scene in simulated:
        strips = shapely.union_all([shapely.Polygon(ring) for ring in scene.roads.carparks])
        assert (
            strips.is_valid
            and shapely.union_all([shapely.Polygon(p) for p in scene.roads.lanes]).intersection(strips).area < 1
        )
        cars = [a for a in scene.actors if a.category == "vehicle.car" and (a.attribute == PARKED).all()]
        inside = [strips.contains(shapely.Point(car.track.position[0, :2])) for car in cars]
        assert len(inside) >= 3 and np.mean(inside) > 0.9


def test_official_evaluation_of_the_truth(nusc, tmp_path: Path):
    """``DetectionEval`` on the custom split: the annotations as a submission reach AP 1 for every class in range."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.eval.detection.utils import category_to_detection_name

    names = {a["token"]: a["name"] for a in nusc.attribute}
    results: dict[str, list[dict]] = {}
    val = {scene["token"] for scene in nusc.scene[-RECIPE.val_scenes :]}
    for sample in (s for s in nusc.sample if s["scene_token"] in val):
        boxes = results.setdefault(sample["token"], [])
        for token in sample["anns"]:
            record = nusc.get("sample_annotation", token)
            name = category_to_detection_name(record["category_name"])
            if name is None or record["num_lidar_pts"] + record["num_radar_pts"] == 0:
                continue
            boxes.append({
                "sample_token": sample["token"], "translation": record["translation"], "size": record["size"],
                "rotation": record["rotation"], "velocity": np.nan_to_num(nusc.box_velocity(token))[:2].tolist(),
                "detection_name": name, "detection_score": 1.0,
                "attribute_name": "".join(names[t] for t in record["attribute_tokens"]),
            })  # fmt: skip
    modes = {f"use_{kind}": False for kind in ("camera", "lidar", "radar", "map", "external")}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"meta": modes, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(nusc, config, str(path), "synthetic_val", str(tmp_path), verbose=False)
    metrics, _ = evaluation.evaluate()
    present = {
        box.detection_name for sample in evaluation.gt_boxes.sample_tokens for box in evaluation.gt_boxes[sample]
    }
    assert {"car", "pedestrian"} <= present
    for name, value in metrics.mean_dist_aps.items():
        assert value == pytest.approx(1.0 if name in present else 0.0), name
    for name in present - {"barrier", "traffic_cone"}:
        errors = metrics._label_tp_errors[name]
        assert max(errors["trans_err"], errors["scale_err"], errors["orient_err"]) < 1e-6, name
        assert errors["attr_err"] == 0 and errors["vel_err"] < 1e-6, name
