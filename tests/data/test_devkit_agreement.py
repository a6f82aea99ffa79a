"""Our reading against the official devkit's, on the hand-made, the synthetic and the real data root."""

from __future__ import annotations

import dataclasses
from functools import reduce

import numpy as np
import pytest
import torch

from fusion3d.config import DataConfig
from fusion3d.data import NuScenesDataset, Tables, samples_of
from fusion3d.data.annotations import load_boxes, load_motion
from fusion3d.data.lidar import load_lidar
from fusion3d.data.radar import load_radars
from fusion3d.geometry import apply, box_corners, invert
from fusion3d.types import ATTRIBUTES, CAMERAS, DETECTION_CLASSES, RADARS, BEVGrid

TOLERANCE = 1e-4
SAMPLES = 6  # of each data root, spread over it; enough to meet the start of scenes and missing sensors


@pytest.fixture(scope="module")
def nusc(dataroot):
    nuscenes = pytest.importorskip("nuscenes")
    return nuscenes.NuScenes(dataroot.version, str(dataroot.root), verbose=False)


@pytest.fixture(scope="module")
def tables(dataroot) -> Tables:
    return Tables.open(dataroot.root, dataroot.version)


@pytest.fixture(scope="module")
def samples(tables, dataroot) -> list[int]:
    rows = samples_of(tables, dataroot.split)
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, SAMPLES).astype(int))]


def matrix(record) -> np.ndarray:
    from nuscenes.utils.geometry_utils import transform_matrix
    from pyquaternion import Quaternion

    return transform_matrix(record["translation"], Quaternion(record["rotation"]))


def global_from_sensor(nusc, data_token: str) -> np.ndarray:
    data = nusc.get("sample_data", data_token)
    calibration = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    return matrix(nusc.get("ego_pose", data["ego_pose_token"])) @ matrix(calibration)


def reference(nusc, record) -> np.ndarray:
    """global_from_ego of the reference frame, by the convention in words."""
    if "LIDAR_TOP" in record["data"]:
        data = nusc.get("sample_data", record["data"]["LIDAR_TOP"])
        return matrix(nusc.get("ego_pose", data["ego_pose_token"]))
    scene = record["scene_token"]
    poses = [
        nusc.get("ego_pose", d["ego_pose_token"])
        for d in nusc.sample_data
        if nusc.get("sample", d["sample_token"])["scene_token"] == scene
    ]
    return matrix(min(poses, key=lambda pose: abs(pose["timestamp"] - record["timestamp"])))


def test_reference_frame(nusc, tables, samples):
    for row in samples:
        record = nusc.get("sample", tables.token(row))
        np.testing.assert_allclose(tables.global_from_ego(row), reference(nusc, record), atol=1e-9)


def test_boxes_in_ego(nusc, tables, samples):
    from nuscenes.eval.detection.utils import category_to_detection_name

    compared = 0
    for row in samples:
        record = nusc.get("sample", tables.token(row))
        ego_from_global = np.linalg.inv(reference(nusc, record))
        expected = [
            nusc.get("sample_annotation", token)
            for token in record["anns"]
            if category_to_detection_name(nusc.get("sample_annotation", token)["category_name"])
        ]
        boxes = load_boxes(tables, row)
        assert len(boxes) == len(expected)
        compared += len(boxes)
        for k, annotation in enumerate(expected):
            box = nusc.get_box(annotation["token"])
            turned = ego_from_global[:3, :3] @ box.rotation_matrix
            velocity = ego_from_global[:3, :3] @ nusc.box_velocity(annotation["token"])
            center = ego_from_global[:3, :3] @ box.center + ego_from_global[:3, 3]
            np.testing.assert_allclose(boxes.center[k], center, atol=TOLERANCE)
            np.testing.assert_allclose(boxes.size[k], box.wlh[[1, 0, 2]], atol=TOLERANCE)
            yaw = np.arctan2(turned[1, 0], turned[0, 0])
            assert abs((float(boxes.yaw[k]) - yaw + np.pi) % (2 * np.pi) - np.pi) < TOLERANCE
            np.testing.assert_allclose(boxes.velocity[k], velocity[:2], atol=TOLERANCE)
            assert DETECTION_CLASSES[boxes.label[k]] == category_to_detection_name(annotation["category_name"])
            attributes = [nusc.get("attribute", token)["name"] for token in annotation["attribute_tokens"]]
            assert (ATTRIBUTES[boxes.attribute[k]] if boxes.attribute[k] >= 0 else None) == next(iter(attributes), None)
            assert str(int(boxes.visibility[k])) == (annotation["visibility_token"] or "0")
            assert boxes.num_points[k].tolist() == [annotation["num_lidar_pts"], annotation["num_radar_pts"]]
            assert boxes.instance[k] == annotation["instance_token"]
    assert compared > 10


def test_motion_of_all_around(nusc, tables, samples):
    steps, followed = 6, 0
    for row in samples:
        record = nusc.get("sample", tables.token(row))
        ego_from_global = np.linalg.inv(reference(nusc, record))
        boxes, motion = load_boxes(tables, row, 1), load_motion(tables, row, steps, 1)
        later, known = [], record
        while known["next"] and len(later) < steps:
            known = nusc.get("sample", known["next"])
            later.append({nusc.get("sample_annotation", token)["instance_token"]: token for token in known["anns"]})
        now = {nusc.get("sample_annotation", token)["instance_token"] for token in record["anns"]}
        assert len(motion) == len(now.union(*later))
        np.testing.assert_array_equal(motion.label[: len(boxes)], boxes.label)
        np.testing.assert_array_equal(motion.size[: len(boxes)], boxes.size)
        np.testing.assert_array_equal(motion.now.position[: len(boxes)], boxes.center[:, :2])
        np.testing.assert_array_equal(motion.now.yaw[: len(boxes)], boxes.yaw)
        assert motion.now.mask[: len(now)].all() and not motion.now.mask[len(now) :].any()
        assert not motion.now.position[len(now) :].any()
        for step, there in enumerate(later):
            assert int(motion.path.mask[:, step].sum()) == len(there)
            places = motion.path.position[motion.path.mask[:, step], step]
            for number, instance in enumerate(boxes.instance):
                assert bool(motion.path.mask[number, step]) == (instance in there)
            for instance, token in there.items():
                box = nusc.get_box(token)
                center = (ego_from_global[:3, :3] @ box.center + ego_from_global[:3, 3])[:2]
                turned = ego_from_global[:3, :3] @ box.rotation_matrix
                if instance in boxes.instance:
                    number = boxes.instance.index(instance)
                    np.testing.assert_allclose(motion.path.position[number, step], center, atol=TOLERANCE)
                    turn = float(motion.path.yaw[number, step]) - np.arctan2(turned[1, 0], turned[0, 0])
                    assert abs((turn + np.pi) % (2 * np.pi) - np.pi) < TOLERANCE
                else:
                    assert np.abs(places.numpy() - center).max(axis=1).min() < TOLERANCE
        assert not motion.path.mask[:, len(later) :].any()
        followed += int(motion.path.mask.sum())
    assert followed > 10


def test_boxes_keep_their_motion_where_a_table_has_an_instance_twice(synthetic_root):
    tables = Tables.open(synthetic_root, "v1.0-synthetic")
    now, right = load_boxes(tables, 0), load_motion(tables, 0, 3)
    broken = dataclasses.replace(tables, box_instance=tables.box_instance.copy())
    first = int(tables.box_start[0])
    broken.box_instance[first + 2] = tables.box_instance[first]
    motion = load_motion(broken, 0, 3)
    keep = torch.arange(len(now)) != 2
    torch.testing.assert_close(motion.path.position[: len(now)][keep], right.path.position[: len(now)][keep])
    assert torch.equal(motion.label[: len(now)], now.label) and torch.equal(motion.size[: len(now)], now.size)


def test_boxes_in_every_sensor_frame(nusc, tables, samples):
    from nuscenes.eval.detection.utils import category_to_detection_name
    from nuscenes.utils.geometry_utils import BoxVisibility

    for row in samples:
        record = nusc.get("sample", tables.token(row))
        boxes = load_boxes(tables, row)
        for channel, token in record["data"].items():
            _, expected, _ = nusc.get_sample_data(token, box_vis_level=BoxVisibility.NONE)
            expected = [box for box in expected if category_to_detection_name(box.name)]
            sensor_from_ego = invert(tables.reference_from_sensor(row, [tables.key(row, channel)])[0])
            centers = apply(sensor_from_ego, boxes.center.double().numpy())
            np.testing.assert_allclose(
                centers, np.array([box.center for box in expected]).reshape(-1, 3), atol=TOLERANCE
            )


def test_boxes_and_lidar_in_every_camera(nusc, tables, samples, dataroot):
    """Corners and points in the camera's frame to 1e-4 m, through the matrices that a sample carries."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import BoxVisibility, view_points

    # Full-size images, so that the image matrix is the camera's own.
    sizes = {tuple(tables.data_size[tables.key(row, "CAM_FRONT")].tolist()) for row in samples}
    assert len(sizes) == 1
    config = DataConfig(
        root=str(dataroot.root),
        version=dataroot.version,
        image_size=sizes.pop(),
        lidar_sweeps=1,
        lidar_min_distance=0.0,
    )
    dataset = NuScenesDataset(config, dataroot.split, BEVGrid())
    seen = 0
    for row in samples:
        sample = dataset[dataset.index_of(tables.token(row))]
        record = nusc.get("sample", sample.token)
        assert sample.cameras.channels == tuple(c for c in CAMERAS if c in record["data"])
        corners = box_corners(sample.boxes.center.double(), sample.boxes.size.double(), sample.boxes.yaw.double())
        for m, channel in enumerate(sample.cameras.channels):
            cam_from_ego = np.linalg.inv(sample.cameras.ego_from_cam[m].double().numpy())
            image_from_cam = sample.cameras.image_from_cam[m].double().numpy()
            _, expected, intrinsic = nusc.get_sample_data(record["data"][channel], box_vis_level=BoxVisibility.NONE)
            np.testing.assert_allclose(image_from_cam[:3, :3], intrinsic, rtol=1e-6, atol=1e-4)
            by_instance = dict(zip(sample.boxes.instance, corners.numpy(), strict=True))
            for box in expected:
                instance = nusc.get("sample_annotation", box.token)["instance_token"]
                if instance in by_instance:
                    # Yaw boxes drop roll and pitch: centres agree, corners where the box is upright in ego.
                    ours = apply(cam_from_ego, by_instance[instance])
                    np.testing.assert_allclose(ours.mean(0), box.center, atol=TOLERANCE)
                    if box.center[2] > 2:
                        pixel = apply(image_from_cam, ours.mean(0)[None])[0]
                        devkit = view_points(box.center[:, None], intrinsic, normalize=True)[:2, 0]
                        np.testing.assert_allclose(pixel[:2] / pixel[2], devkit, rtol=1e-4, atol=5e-3)
                        seen += 1
            if sample.lidar is None:
                continue
            data = nusc.get("sample_data", record["data"]["LIDAR_TOP"])
            points = LidarPointCloud.from_file(str(dataroot.root / data["filename"])).points.astype(np.float64)
            chain = np.linalg.inv(global_from_sensor(nusc, record["data"][channel]))
            moved = (chain @ global_from_sensor(nusc, data["token"]))[:3] @ np.vstack(
                [points[:3], np.ones(points.shape[1])]
            )
            np.testing.assert_allclose(
                apply(cam_from_ego, sample.lidar[:, :3].double().numpy()), moved.T, atol=TOLERANCE
            )
    assert seen > 10


def test_points_in_the_image_as_the_devkit_draws_them(nusc, tables, dataroot):
    row = next(row for row in samples_of(tables, dataroot.split) if tables.key(row, "LIDAR_TOP") >= 0)
    record = nusc.get("sample", tables.token(row))
    points = load_lidar(tables, row, min_distance=0.0).double().numpy()
    for channel in (c for c in CAMERAS if c in record["data"]):
        data = tables.key(row, channel)
        expected, depth, image = nusc.explorer.map_pointcloud_to_image(
            record["data"]["LIDAR_TOP"], record["data"][channel]
        )
        local = apply(invert(tables.reference_from_sensor(row, [data])[0]), points[:, :3])
        pixel = local @ tables.intrinsic(data).T
        pixel = pixel[:, :2] / pixel[:, 2:]
        ours = (local[:, 2] > 1) & (pixel > 1).all(1) & (pixel < np.array(image.size) - 1).all(1)
        # The devkit moves float32 points through global coordinates of kilometres: it is the one that is off here.
        order, devkit_order = np.argsort(local[ours, 2]), np.argsort(depth)
        if ours.sum() == len(depth):
            np.testing.assert_allclose(np.sort(depth), local[ours, 2][order], atol=2e-3)
            away = np.abs(expected[:2].T[devkit_order] - pixel[ours][order]).max(1)
            assert np.quantile(away, 0.95) < 0.5 if len(away) else True
        else:
            assert abs(int(ours.sum()) - len(depth)) <= 3


@pytest.mark.parametrize("sweeps", [1, 3, 10])
def test_lidar_sweeps(nusc, tables, samples, sweeps):
    from nuscenes.utils.data_classes import LidarPointCloud

    compared = 0
    for row in samples:
        record = nusc.get("sample", tables.token(row))
        ours = load_lidar(tables, row, sweeps)
        if "LIDAR_TOP" not in record["data"]:
            assert ours is None
            continue
        cloud, times = LidarPointCloud.from_file_multisweep(nusc, record, "LIDAR_TOP", "LIDAR_TOP", nsweeps=sweeps)
        data = nusc.get("sample_data", record["data"]["LIDAR_TOP"])
        ego_from_lidar = matrix(nusc.get("calibrated_sensor", data["calibrated_sensor_token"]))
        expected = apply(ego_from_lidar, cloud.points[:3].T.astype(np.float64))
        np.testing.assert_allclose(ours[:, :3], expected, atol=TOLERANCE)
        np.testing.assert_allclose(ours[:, 3] * 255, cloud.points[3], atol=TOLERANCE)
        np.testing.assert_allclose(ours[:, 4], times[0], atol=TOLERANCE)
        assert ours[:, 4].min() == 0
        compared += len(ours)
    assert compared > 100


@pytest.mark.parametrize("radar_filter", ["none", "devkit"])
@pytest.mark.parametrize("sweeps", [1, 4])
def test_radar_sweeps(nusc, tables, samples, sweeps, radar_filter):
    from nuscenes.utils.data_classes import RadarPointCloud
    from pyquaternion import Quaternion

    compared = 0
    try:
        RadarPointCloud.default_filters() if radar_filter == "devkit" else RadarPointCloud.disable_filters()
        for row in samples:
            record = nusc.get("sample", tables.token(row))
            ours = load_radars(tables, row, RADARS, sweeps, radar_filter, min_distance=1.0).numpy()
            ego_from_global = np.linalg.inv(reference(nusc, record))
            for number, channel in enumerate(RADARS):
                mine = ours[ours[:, 10] == number]
                if channel not in record["data"]:
                    assert len(mine) == 0
                    continue
                token = record["data"][channel]
                cloud, times = RadarPointCloud.from_file_multisweep(nusc, record, channel, channel, nsweeps=sweeps)
                expected = apply(ego_from_global @ global_from_sensor(nusc, token), cloud.points[:3].T)
                np.testing.assert_allclose(mine[:, :3], expected, atol=TOLERANCE)
                np.testing.assert_allclose(mine[:, 3], cloud.points[5], atol=TOLERANCE)
                np.testing.assert_array_equal(mine[:, 7:10], cloud.points[[14, 11, 3]].T)
                lag = 1e-6 * (tables.reference_time[row] - nusc.get("sample_data", token)["timestamp"])
                np.testing.assert_allclose(mine[:, 6], times[0] + lag, atol=TOLERANCE)
                np.testing.assert_allclose(
                    mine[:, 4:6], _velocities(nusc, token, sweeps, ego_from_global, Quaternion), atol=TOLERANCE
                )
                compared += len(mine)
    finally:
        RadarPointCloud.default_filters()
    assert compared > 50


def _velocities(nusc, token, sweeps, ego_from_global, quaternion) -> np.ndarray:
    """Compensated velocities of each sweep's file, turned by quaternions: sensor -> ego -> global -> reference ego."""
    from nuscenes.utils.data_classes import RadarPointCloud

    found = []
    for _ in range(sweeps):
        data = nusc.get("sample_data", token)
        cloud = RadarPointCloud.from_file(nusc.get_sample_data_path(token))
        cloud.remove_close(1.0)
        turns = [
            nusc.get("calibrated_sensor", data["calibrated_sensor_token"]),
            nusc.get("ego_pose", data["ego_pose_token"]),
        ]
        turn = reduce(lambda a, b: b * a, [quaternion(record["rotation"]) for record in turns])
        vectors = np.vstack([cloud.points[8:10], np.zeros(cloud.nbr_points())])
        found.append((ego_from_global[:3, :3] @ turn.rotation_matrix @ vectors)[:2].T)
        token = data["prev"]
        if not token:
            break
    return np.concatenate(found)


def test_ego_path_and_status(nusc, tables, samples, dataroot):
    """Future and past are the following and previous keyframes' poses; the status is their backward difference."""
    config = DataConfig(root=str(dataroot.root), version=dataroot.version, sensors=())
    dataset = NuScenesDataset(config, dataroot.split, BEVGrid())
    for row in samples:
        sample = dataset[dataset.index_of(tables.token(row))]
        here = np.linalg.inv(reference(nusc, nusc.get("sample", sample.token)))
        for path, link in ((sample.future, "next"), (sample.past, "prev")):
            token = sample.token
            for step in range(len(path.mask)):
                token = nusc.get("sample", token)[link]
                assert bool(path.mask[step]) == (token != "")
                if not token:
                    break
                pose = here @ reference(nusc, nusc.get("sample", token))
                np.testing.assert_allclose(path.position[step], pose[:2, 3], atol=TOLERANCE)
                np.testing.assert_allclose(path.yaw[step], np.arctan2(pose[1, 0], pose[0, 0]), atol=TOLERANCE)
        speed = sample.status.velocity
        assert bool(speed.isnan().any()) == (not sample.past.mask[0])
        if sample.past.mask[0]:
            seconds = -sample.past.position[0] / speed
            assert ((seconds > 0.3) & (seconds < 0.7)).all() or sample.past.position[0].norm() < 0.05


def test_map_crop(nusc, tables, samples):
    """Every cell centre is drivable exactly where the devkit's mask says so."""
    from fusion3d.data.maps import crop_mask

    grid = BEVGrid(x=(-30.0, 30.0), y=(-24.0, 24.0), resolution=1.5)
    # The devkit decodes masks of hundreds of megabytes whole: once, for the first sample.
    row = samples[0]
    record = nusc.get("sample", tables.token(row))
    scene = nusc.get("scene", record["scene_token"])
    mask = nusc.get("map", nusc.get("log", scene["log_token"])["map_token"])["mask"]
    ego = reference(nusc, record)
    centers = grid.centers().double().numpy().reshape(-1, 2)
    position = centers @ ego[:2, :2].T + ego[:2, 3]
    expected = mask.is_on_mask(position[:, 0], position[:, 1]).reshape(grid.shape)
    np.testing.assert_array_equal(crop_mask(tables, row, grid), expected)
    assert 0 < expected.mean() < 1
