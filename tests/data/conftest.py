"""A hand-made data root with every habit of nuScenes in a few files, and the data roots that the devkit reads too."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from fusion3d.types import CAMERAS, RADARS

VERSION = "v1.0-tiny"
START = 1_533_000_000_000_000  # [us]
IMAGE = (90, 160)
RADAR_RECORD = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("dyn_prop", "i1"), ("id", "<i2"), ("rcs", "<f4"), ("vx", "<f4"),
     ("vy", "<f4"), ("vx_comp", "<f4"), ("vy_comp", "<f4"), ("is_quality_valid", "i1"), ("ambig_state", "i1"),
     ("x_rms", "i1"), ("y_rms", "i1"), ("invalid_state", "i1"), ("pdh0", "i1"), ("vx_rms", "i1"), ("vy_rms", "i1")]
)  # fmt: skip


@dataclass(frozen=True)
class Dataroot:
    root: Path
    version: str
    split: str


def encode_pcd(points: np.ndarray, width: int | None = None, tail: bytes = b"\n") -> bytes:
    names = points.dtype.names
    kinds = [points.dtype[name] for name in names]
    header = [
        "# .PCD v0.7 - Point Cloud Data file format", "VERSION 0.7", "FIELDS " + " ".join(names),
        "SIZE " + " ".join(str(kind.itemsize) for kind in kinds),
        "TYPE " + " ".join("F" if kind.kind == "f" else "I" for kind in kinds), "COUNT " + " ".join("1" for _ in names),
        f"WIDTH {len(points) if width is None else width}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(points) if width is None else width}", "DATA binary", "",
    ]  # fmt: skip
    return "\n".join(header).encode() + points.tobytes() + tail


def random_returns(rng: np.random.Generator, count: int) -> np.ndarray:
    points = np.zeros(count, dtype=RADAR_RECORD)
    points["x"], points["y"] = rng.uniform(0.2, 60, count), rng.uniform(-20, 20, count)
    points["x"][: count // 8], points["y"][: count // 8] = 0.5, 0.3  # close to the sensor
    for name in ("rcs", "vx", "vy", "vx_comp", "vy_comp"):
        points[name] = rng.normal(0, 5, count)
    points["dyn_prop"], points["ambig_state"] = rng.integers(0, 8, count), rng.integers(2, 5, count)
    points["invalid_state"] = rng.choice([0, 0, 0, 4, 1, 17], count)
    return points


class _Writer:
    """Collects the rows of the tables; tokens are ``<table>-<number>``."""

    def __init__(self, root: Path) -> None:
        self.root, self.rng = root, np.random.default_rng(7)
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, **row: Any) -> str:
        rows = self.tables.setdefault(table, [])
        token = f"{table}-{len(rows)}"
        rows.append({"token": token, **row})
        return token

    def pose(self, time: float) -> dict[str, Any]:
        """A left-hand bend with some roll and pitch, far from the global origin."""
        angle = 0.3 + 0.4 * time
        quaternion = Rotation.from_euler("ZYX", [angle, 0.02 * np.sin(3 * time), 0.03 * np.cos(2 * time)]).as_quat()
        x, y = 60 + 9 / 0.4 * np.sin(angle), 50 - 9 / 0.4 * np.cos(angle)
        return {"translation": [x, y, 0.0], "rotation": quaternion[[3, 0, 1, 2]].tolist()}

    def file(self, channel: str, number: int, key: bool) -> tuple[str, str]:
        """Write a sensor file with random content; its name and format."""
        suffix = {"C": "jpg", "L": "pcd.bin", "R": "pcd"}[channel[0]]
        name = f"{'samples' if key else 'sweeps'}/{channel}/tiny__{channel}__{number}.{suffix}"
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "jpg":
            coarse = self.rng.integers(0, 255, (9, 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(IMAGE[::-1], Image.Resampling.BICUBIC).save(path, quality=95)
        elif suffix == "pcd.bin":
            points = self.rng.normal(0, 20, (300, 5)).astype(np.float32)
            points[:40, :2] = self.rng.uniform(-1.5, 1.5, (40, 2))
            points[:, 3] = self.rng.integers(0, 256, 300)
            points.tofile(path)
        else:
            returns = random_returns(self.rng, 24)
            if number % 7 == 0:
                returns["x"][0] = np.nan  # marks an empty cloud
            path.write_bytes(encode_pcd(returns, tail=b"\n" + bytes(37)))
        return name, suffix.split(".")[0]

    def save(self) -> None:
        folder = self.root / VERSION
        folder.mkdir(parents=True)
        for table, rows in self.tables.items():
            (folder / f"{table}.json").write_text(json.dumps(rows, indent=0))
        (folder / "splits.json").write_text(json.dumps({"mine": ["scene-0003", "scene-0001"], "one": ["scene-0001"]}))


def _chain(rows: list[dict[str, Any]]) -> None:
    for before, after in itertools.pairwise(rows):
        before["next"], after["prev"] = after["token"], before["token"]


def write_tiny(root: Path, keyframes: int = 5) -> None:
    w = _Writer(root)
    for name in ("vehicle.car", "human.pedestrian.adult", "movable_object.barrier", "animal", "vehicle.bus.rigid"):
        w.add("category", name=name, description="")
    for name in ("vehicle.moving", "pedestrian.standing"):
        w.add("attribute", name=name, description="")
    for number, level in enumerate(("v0-40", "v40-60", "v60-80", "v80-100")):
        w.tables.setdefault("visibility", []).append({"token": str(number + 1), "level": level, "description": ""})
    channels = ["LIDAR_TOP", *CAMERAS, *RADARS]
    for channel in channels:
        modality = {"C": "camera", "L": "lidar", "R": "radar"}[channel[0]]
        sensor = w.add("sensor", channel=channel, modality=modality)
        turn = Rotation.from_euler("ZYX", w.rng.uniform(-3, 3, 3) * [1, 0.02, 0.02])
        if modality == "camera":
            turn = turn * Rotation.from_matrix([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        w.add(
            "calibrated_sensor", sensor_token=sensor, translation=w.rng.uniform(-1, 2, 3).tolist(),
            rotation=turn.as_quat()[[3, 0, 1, 2]].tolist(),
            camera_intrinsic=[[126.6, 0, 81.6], [0, 126.6, 49.1], [0, 0, 1]] if modality == "camera" else [],
        )  # fmt: skip
    (root / "maps").mkdir(parents=True)
    mask = w.rng.random((100, 120)) < 0.5
    Image.fromarray(np.kron(mask, np.ones((10, 10))).astype(np.uint8) * 255).save(root / "maps/mask.png")
    for scene, name in enumerate(("scene-0003", "scene-0001")):
        log = w.add("log", logfile="", vehicle="", date_captured="", location="tiny-town")
        first = len(w.tables.get("sample", []))
        token = w.add(
            "scene", name=name, description="Rain", log_token=log, nbr_samples=keyframes,
            first_sample_token=f"sample-{first}", last_sample_token=f"sample-{first + keyframes - 1}",
        )  # fmt: skip
        _write_scene(w, token, START + scene * 100_000_000, keyframes, channels)
    w.add("map", category="semantic_prior", filename="maps/mask.png", log_tokens=["log-0", "log-1"])
    w.save()


def _write_scene(w: _Writer, scene: str, start: int, keyframes: int, channels: list[str]) -> None:
    samples = []
    for number in range(keyframes):
        jitter = int(w.rng.integers(-40_000, 40_000)) if number else 0
        token = w.add("sample", timestamp=start + 500_000 * number + jitter, scene_token=scene, prev="", next="")
        samples.append(w.tables["sample"][int(token.split("-")[1])])
    _chain(samples)
    for row, channel in enumerate(channels):
        files = []
        for sample in samples:
            offset = 0 if channel == "LIDAR_TOP" else int(w.rng.integers(-45_000, 5_000))
            steps = {"L": (3, 2, 1, 0), "R": (2, 1, 0), "C": (0,)}[channel[0]]
            for step in steps:
                time = sample["timestamp"] + offset - 50_000 * step
                pose = w.add("ego_pose", timestamp=time, **w.pose((time - start) * 1e-6))
                filename, kind = w.file(channel, len(w.tables.get("sample_data", [])), step == 0)
                camera = channel[0] == "C"
                token = w.add(
                    "sample_data", sample_token=sample["token"], ego_pose_token=pose,
                    calibrated_sensor_token=f"calibrated_sensor-{row}", timestamp=time, fileformat=kind,
                    is_key_frame=step == 0, height=IMAGE[0] if camera else 0, width=IMAGE[1] if camera else 0,
                    filename=filename, prev="", next="",
                )  # fmt: skip
                files.append(w.tables["sample_data"][int(token.split("-")[-1])])
        _chain(files)
    for number in range(7):
        _write_instance(w, number, samples)


def _write_instance(w: _Writer, number: int, samples: list[dict[str, Any]]) -> None:
    category = number % 5
    instance = w.add("instance", category_token=f"category-{category}")
    here = samples[2:3] if number == 5 else samples[::3] if number == 6 else samples  # alone; a gap of 1.5 s; always
    start, speed = np.array([60, 50, 1]) + w.rng.uniform(-30, 30, 3) * [1, 1, 0.02], w.rng.normal(0, 4, 3) * [1, 1, 0]
    rows = []
    for sample in here:
        seconds = (sample["timestamp"] - samples[0]["timestamp"]) * 1e-6
        turn = Rotation.from_euler("ZYX", [number + seconds, 0.01, 0.02]).as_quat()
        token = w.add(
            "sample_annotation", sample_token=sample["token"], instance_token=instance,
            visibility_token=str(number % 4 + 1) if number else "",
            attribute_tokens=["attribute-0"] if category == 0 else [],
            translation=(start + speed * seconds + 0.3 * np.sin(seconds)).tolist(), size=[1.9, 4.5, 1.6],
            rotation=turn[[3, 0, 1, 2]].tolist(), prev="", next="",
            num_lidar_pts=number % 3, num_radar_pts=number % 2,
        )  # fmt: skip
        rows.append(w.tables["sample_annotation"][int(token.split("-")[-1])])
    _chain(rows)
    w.tables["instance"][int(instance.split("-")[1])] |= {
        "nbr_annotations": len(rows), "first_annotation_token": rows[0]["token"],
        "last_annotation_token": rows[-1]["token"],
    }  # fmt: skip


@pytest.fixture
def pcd_bytes():
    """The function that encodes a structured array as ``.pcd``."""
    return encode_pcd


@pytest.fixture
def returns() -> np.ndarray:
    """Seventeen radar returns."""
    return random_returns(np.random.default_rng(3), 17)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write into it."""
    root = tmp_path_factory.mktemp("tiny") / "data"
    root.mkdir()
    write_tiny(root)
    return root


@pytest.fixture
def own_root(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_root, tmp_path / "own"))


@pytest.fixture(scope="session", params=["tiny", "synthetic", "real"])
def dataroot(request: pytest.FixtureRequest) -> Dataroot:
    version, split = {
        "tiny": (VERSION, "mine"), "synthetic": ("v1.0-synthetic", "val"), "real": ("v1.0-mini", "real_0061"),
    }[request.param]  # fmt: skip
    return Dataroot(request.getfixturevalue(f"{request.param}_root"), version, split)
