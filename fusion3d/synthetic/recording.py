"""One synthetic scene driven and recorded: every sensor file, and the scene's part of the tables.

Times: a scene is simulated from t = 0 and its first keyframe is at ``LEAD``, so that past sweeps exist. Keyframes
follow every 0.5 s, at LIDAR_TOP's time; the other sensors fire at their own offset to it. A timestamp is ``BASE`` plus
the scene's hour plus t, in whole microseconds, and sensors are simulated at exactly the time that is written.

Frames: the simulation's global frame is moved by whole metres so that no coordinate on the map is negative.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from fusion3d.geometry import apply, transform_from
from fusion3d.synthetic import tables
from fusion3d.synthetic.camera import render_camera
from fusion3d.synthetic.can_bus import pose_messages, route_points
from fusion3d.synthetic.lidar import scan_lidar
from fusion3d.synthetic.pcd import encode_pcd
from fusion3d.synthetic.radar import scan_radar
from fusion3d.synthetic.rig import RIG
from fusion3d.synthetic.roadmap import encode_mask, map_expansion, map_frame
from fusion3d.synthetic.scene import SIM_STEP, Scene
from fusion3d.synthetic.tables import Record, link, token_of
from fusion3d.synthetic.world import MAX_DURATION, build_scene
from fusion3d.types import TIME_STEP

BASE = 1_577_836_800_000_000  # [us] 2020-01-01, the hour of scene 0
LEAD = 1.0  # [s] simulated before the first keyframe
TAIL = 0.5  # [s] simulated after the last one
RANGE = 80.0  # [m] objects whose centre is nearer to the ego than this are annotated
MAX_SWEEPS = {"camera": 0, "lidar": 9, "radar": 6}  # between two keyframes: what 20 Hz and 13 Hz have room for
MAX_KEYFRAMES = 1 + int((MAX_DURATION - LEAD - TAIL) / TIME_STEP)  # in a scene
EXTENSION = {"camera": "jpg", "lidar": "pcd.bin", "radar": "pcd"}
JPEG_QUALITY = 92

Write = Callable[[str, bytes], None]  # (path below the dataroot, content): writes all of it or raises


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of a data set."""

    version: str
    scenes: int
    keyframes: int
    image_size: tuple[int, int]  # (height, width) [px]
    sweeps: int  # LiDAR clouds between keyframes; radars have as many, up to their own limit
    seed: int
    val_scenes: int

    @property
    def duration(self) -> float:
        """Simulated seconds of a scene."""
        return LEAD + TIME_STEP * (self.keyframes - 1) + TAIL


@dataclass(frozen=True)
class Shot:
    """One firing of one sensor."""

    channel: str
    timestamp: int  # [us]
    time: float  # [s] in the scene
    is_key_frame: bool


def shots_of(keyframe: int, sweeps: int, start: int) -> list[Shot]:
    """What is recorded for a keyframe: all sensors once, and before it the sweeps nearest to it, in order of time.

    Args:
        keyframe: its number in the scene.
        sweeps: number of sweeps of each LiDAR and radar, capped by ``MAX_SWEEPS``.
        start: [us] timestamp of t = 0.
    """
    shots = []
    for channel, mount in RIG.items():
        for back in range(min(sweeps, MAX_SWEEPS[tables.modality_of(channel)]), -1, -1):
            ticks = round(1e6 * (LEAD + keyframe * TIME_STEP + mount.offset - back / mount.rate))
            shots.append(Shot(channel, start + ticks, ticks / 1e6, back == 0))
    return shots


def record_scene(index: int, recipe: Recipe, write: Write, progress: Callable[[], None]) -> dict[str, list[Record]]:
    """Simulate scene ``index`` and write its sensor, map and CAN bus files.

    Args:
        index: number of the scene in the data set.
        recipe: of the data set.
        write: takes each file.
        progress: called after each keyframe.

    Returns:
        The scene's records of every table in ``tables.SCENE_TABLES``.
    """
    scene = build_scene(index, recipe.seed, recipe.duration)
    recorder = Recorder(scene, index, recipe, write)
    for keyframe in range(recipe.keyframes):
        recorder.record_keyframe(keyframe)
        progress()
    return recorder.finish()


class Recorder:
    """Collects the records of one scene while its sensors are simulated."""

    def __init__(self, scene: Scene, index: int, recipe: Recipe, write: Write) -> None:
        self.scene, self.recipe, self.write = scene, recipe, write
        self.name = partial(token_of, "synthetic", recipe.seed, index)  # token of anything in this scene
        self.start = BASE + index * 3_600_000_000
        self.location = f"synthetic-{recipe.seed}-{index:04d}"
        self.corner, self.size = map_frame(scene, RANGE + 20)
        self.calibration = self._calibrate()
        self.samples: list[Record] = []
        self.poses: list[Record] = []
        self.data: dict[str, list[Record]] = {channel: [] for channel in RIG}
        self.annotations: dict[int, list[Record]] = {}

    def record_keyframe(self, keyframe: int) -> None:
        """Fire all sensors for a keyframe and annotate it."""
        shots = shots_of(keyframe, self.recipe.sweeps, self.start)
        now = next(shot for shot in shots if shot.channel == "LIDAR_TOP" and shot.is_key_frame)
        sample = self.name("sample", keyframe)
        self.samples.append({"token": sample, "timestamp": now.timestamp, "scene_token": self.name("scene")})
        lidar, radar = np.zeros((0, 3)), [np.zeros((0, 3))]
        visible = np.zeros(len(self.scene.actors))
        for shot in shots:
            record, pose = self._expose(shot, sample)
            seed = int(record["token"][:8], 16)
            modality = tables.modality_of(shot.channel)
            if modality == "camera":
                view = render_camera(self.scene, shot.channel, shot.time, self.recipe.image_size, seed)
                np.maximum(visible, view.fraction, out=visible)
                content = _encode_jpeg(view.image)
            elif modality == "lidar":
                points = np.ascontiguousarray(scan_lidar(self.scene, shot.time, seed).points, dtype="<f4")
                content = points.tobytes()
                if shot.is_key_frame:
                    lidar = self._to_global(points[:, :3], shot.channel, pose)
            else:
                returns = scan_radar(self.scene, shot.channel, shot.time, seed).points
                content = encode_pcd(returns)
                if shot.is_key_frame:
                    xyz = np.stack([returns["x"], returns["y"], returns["z"]], axis=-1)
                    radar.append(self._to_global(xyz, shot.channel, pose))
            self.write(record["filename"], content)
        self._annotate(sample, now.time, lidar, np.concatenate(radar), visible)

    def finish(self) -> dict[str, list[Record]]:
        """Write the map and the CAN bus, and close all chains."""
        self.write(f"maps/{self.name('map')}.png", encode_mask(self.scene.roads, self.corner, self.size))
        for name, content in {
            f"maps/expansion/{self.location}.json": map_expansion(self.scene.roads, self.corner, self.size),
            f"can_bus/{self.scene.name}_pose.json": pose_messages(self.scene, self.start, self.corner),
            f"can_bus/{self.scene.name}_route.json": route_points(self.scene, self.corner),
        }.items():
            self.write(name, json.dumps(content, separators=(",", ":")).encode())
        link(self.samples)
        chains = [link(records) for records in self.data.values()]
        tracks = {actor: link(records) for actor, records in sorted(self.annotations.items())}
        log, scene = self.name("log"), self.scene
        return {
            "log": [{
                "token": log, "logfile": self.location, "vehicle": "synthetic", "date_captured": "2020-01-01",
                "location": self.location,
            }],
            "map": [{
                "token": self.name("map"), "log_tokens": [log], "category": "semantic_prior",
                "filename": f"maps/{self.name('map')}.png",
            }],
            "scene": [{
                "token": self.name("scene"), "log_token": log, "nbr_samples": len(self.samples),
                "first_sample_token": self.samples[0]["token"], "last_sample_token": self.samples[-1]["token"],
                "name": scene.name, "description": scene.description,
            }],
            "sample": self.samples,
            "calibrated_sensor": list(self.calibration.values()),
            "ego_pose": self.poses,
            "sample_data": [record for chain in chains for record in chain],
            "instance": [{
                "token": self.name("instance", actor),
                "category_token": token_of("category", scene.actors[actor].category),
                "nbr_annotations": len(track),
                "first_annotation_token": track[0]["token"], "last_annotation_token": track[-1]["token"],
            } for actor, track in tracks.items()],
            "sample_annotation": [record for track in tracks.values() for record in track],
        }  # fmt: skip

    def _calibrate(self) -> dict[str, Record]:
        """A ``calibrated_sensor`` for every channel of the rig, intrinsics scaled to the images that are written."""
        calibration = {}
        for channel, mount in RIG.items():
            size = self.recipe.image_size
            calibration[channel] = {
                "token": self.name("calibrated_sensor", channel),
                "sensor_token": token_of("sensor", channel),
                "translation": mount.translation.tolist(),
                "rotation": (mount.quaternion / np.linalg.norm(mount.quaternion)).tolist(),
                "camera_intrinsic": [] if mount.intrinsic is None else mount.intrinsic_at(size).tolist(),
            }
        return calibration

    def _expose(self, shot: Shot, sample: str) -> tuple[Record, Record]:
        """The ``sample_data`` and the ``ego_pose`` of a shot, under one token as in nuScenes."""
        modality = tables.modality_of(shot.channel)
        token = self.name("sample_data", shot.channel, shot.timestamp)
        height, width = self.recipe.image_size if modality == "camera" else (0, 0)
        folder = "samples" if shot.is_key_frame else "sweeps"
        file = f"{self.location}__{shot.channel}__{shot.timestamp}.{EXTENSION[modality]}"
        record = {
            "token": token,
            "sample_token": sample,
            "ego_pose_token": token,
            "calibrated_sensor_token": self.calibration[shot.channel]["token"],
            "timestamp": shot.timestamp,
            "fileformat": "jpg" if modality == "camera" else "pcd",
            "is_key_frame": shot.is_key_frame,
            "height": height,
            "width": width,
            "filename": f"{folder}/{shot.channel}/{file}",
        }
        position, yaw = self.scene.ego.at(shot.time)
        pose = tables.pose(token, shot.timestamp, self._on_map(position), float(yaw))
        self.data[shot.channel].append(record)
        self.poses.append(pose)
        return record, pose

    def _annotate(self, sample: str, time: float, lidar: np.ndarray, radar: np.ndarray, visible: np.ndarray) -> None:
        """Annotate what is in range at ``time`` with the points (global, m) and the visibility found there.

        LiDAR points are counted inside the box, radar returns of all five radars, unfiltered, inside its footprint.
        """
        ego, _ = self.scene.ego.at(time)
        step = round(time / SIM_STEP)
        for index, actor in enumerate(self.scene.actors):
            position, yaw = actor.track.at(time)
            if np.hypot(*(position - ego)[:2]) >= RANGE:
                continue
            attribute = int(actor.attribute[min(step, len(actor.attribute) - 1)])
            record = tables.annotation(
                self.name("sample_annotation", index, sample), sample, self.name("instance", index),
                self._on_map(position), actor.size, float(yaw), attribute,
            )  # fmt: skip
            record["num_lidar_pts"] = tables.count_points(lidar, record)
            record["num_radar_pts"] = tables.count_points(radar, record, footprint=True)
            record["visibility_token"] = tables.visibility_token(visible[index])
            self.annotations.setdefault(index, []).append(record)

    def _on_map(self, position: np.ndarray) -> np.ndarray:
        """[3] position in the simulation's frame to the global frame that is written."""
        return position - [*self.corner, 0.0]

    def _to_global(self, points: np.ndarray, channel: str, pose: Record) -> np.ndarray:
        """[P, 3] points in a sensor's frame, as stored, to global through the records that a reader will use."""
        calibrated = self.calibration[channel]
        ego_from_sensor = transform_from(calibrated["translation"], calibrated["rotation"])
        global_from_ego = transform_from(pose["translation"], pose["rotation"])
        return apply(global_from_ego @ ego_from_sensor, points.astype(np.float64))


def _encode_jpeg(image: np.ndarray) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY)
    return data.getvalue()
