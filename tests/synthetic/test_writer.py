"""How the data set is written: interruptions, workers, a full disk, parameters that do not fit, the radar format."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fusion3d.errors import ConfigError, DataError
from fusion3d.synthetic.pcd import encode_pcd
from fusion3d.synthetic.radar import RADAR_DTYPE
from fusion3d.synthetic.recording import MAX_KEYFRAMES, Recipe, shots_of
from fusion3d.synthetic.scene import SIM_STEP
from fusion3d.synthetic.world import build_scene
from fusion3d.synthetic.writer import main, make_dataset

TINY = {"scenes": 2, "keyframes": 2, "image_size": (18, 32), "sweeps": 1, "seed": 3, "val_scenes": 1, "quiet": True}


def digests(root: Path) -> dict[str, str]:
    """Every file below ``root`` and the hash of its bytes."""
    files = (p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = make_dataset(tmp_path_factory.mktemp("tiny") / "set", workers=1, **TINY)
    return root, digests(root)


def test_a_killed_run_goes_on_where_it_stopped(tiny, tmp_path: Path):
    """Killed after the first scene, finished by two workers: the bytes of a run of one worker without interruption."""
    root = tmp_path / "set"
    arguments = "--scenes 2 --keyframes 2 --image-size 18 32 --sweeps 1 --seed 3 --val-scenes 1 --workers 1".split()
    code = "import sys; from fusion3d.synthetic.writer import main; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", code, str(root), *arguments], stderr=subprocess.DEVNULL)
    first = root / ".v1.0-synthetic.part" / "scene-0000.json"
    patience = time.monotonic() + 60
    while not first.exists():
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (root / "v1.0-synthetic").exists(), "no tables before everything is there"
    made = first.stat().st_mtime_ns
    some = next((root / "samples" / "LIDAR_TOP").glob("synthetic-3-0000*"))
    written = some.stat().st_mtime_ns
    make_dataset(root, workers=2, **TINY)
    assert some.stat().st_mtime_ns == written < made + 1, "a finished scene is not made again"
    made_again = digests(root)
    assert made_again.keys() == tiny[1].keys()
    assert not [name for name, digest in made_again.items() if digest != tiny[1][name]]


def test_a_finished_set_is_left_alone(tiny, capsys):
    root, before = tiny
    arguments = "--scenes 2 --keyframes 2 --image-size 18 32 --sweeps 1 --seed 3 --val-scenes 1 --quiet".split()
    assert main([str(root), *arguments]) == 0
    assert str(root) in capsys.readouterr().out and digests(root) == before


@pytest.mark.parametrize("change", [{"seed": 4}, {"scenes": 3}, {"image_size": (20, 32)}, {"sweeps": 0}])
def test_other_parameters_into_the_same_folder(tiny, change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))}.*choose another folder"):
        make_dataset(tiny[0], workers=1, **TINY | change)


def test_a_set_of_an_older_generator_is_not_taken_for_a_new_one(tiny, tmp_path: Path):
    root = Path(shutil.copytree(tiny[0], tmp_path / "set"))
    manifest = root / "v1.0-synthetic" / "manifest.json"
    for change in ({"generator": "0123456789abcdef"}, {"generator": None}):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
        with pytest.raises(ConfigError, match=r"another generator.*choose another folder, or remove"):
            make_dataset(root, workers=1, **TINY)


def test_what_was_begun_without_a_finished_scene_binds_nobody(tiny, tmp_path: Path):
    root = tmp_path / "set"
    part = root / ".v1.0-synthetic.part"
    part.mkdir(parents=True)
    begun = json.loads((tiny[0] / "v1.0-synthetic" / "manifest.json").read_text()) | {"seed": 4}
    (part / "manifest.json").write_text(json.dumps(begun))
    make_dataset(root, workers=1, **TINY)
    assert digests(root) == tiny[1]
    shutil.rmtree(root)
    part.mkdir(parents=True)
    (part / "manifest.json").write_text(json.dumps(begun))
    (part / "scene-0000.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"seed 4.*choose another folder"):
        make_dataset(root, workers=1, **TINY)


def test_scenes_may_be_as_long_as_those_of_nuscenes():
    recipe = Recipe("v1.0-synthetic", 1, MAX_KEYFRAMES, (18, 32), 0, 0, 0)
    assert MAX_KEYFRAMES >= 41 and shots_of(MAX_KEYFRAMES - 1, 0, 0)[-1].time < recipe.duration
    scene = build_scene(2, 0, recipe.duration)
    assert len(scene.ego.yaw) == round(recipe.duration / SIM_STEP) + 1
    late = scene.ego.position[-40:, :2]
    assert np.linalg.norm(late[-1] - late[0]) > 5, "still on its way at the end"


def test_another_version_lies_beside(tiny, tmp_path: Path):
    with pytest.raises(ConfigError, match="was not made here"):
        (tmp_path / "v1.0-mini").mkdir()
        make_dataset(tmp_path, version="v1.0-mini", workers=1, **TINY)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"scenes": 0}, "scenes: found 0"),
        ({"keyframes": 0}, "keyframes: found 0"),
        ({"keyframes": 43}, "keyframes: found 43, expected 1 to 42"),
        ({"sweeps": 10}, "sweeps: found 10, expected 0 to 9"),
        ({"image_size": (4, 352)}, r"image-size \(height\): found 4"),
        ({"workers": 0}, "workers: found 0"),
        ({"val_scenes": 3}, "val-scenes: found 3, expected 0 to 2"),
        ({"seed": -1}, "seed: found -1"),
        ({"version": "../elsewhere"}, "version: found '../elsewhere'"),
        ({"version": "samples"}, "version: found 'samples'"),
    ],
)
def test_bad_parameters(tmp_path: Path, bad, message):
    with pytest.raises(ConfigError, match=message):
        make_dataset(tmp_path / "set", **TINY | bad)
    assert not (tmp_path / "set").exists()


def test_full_disk(tiny, tmp_path: Path, monkeypatch):
    """Half a file is written, then the disk is full: an error that says so, no half file, and the next run finishes."""
    root, room = tmp_path / "set", 30
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            os.truncate(source, source.stat().st_size // 2)
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(DataError, match=r"set/s.*No space left on device.*run the same command again"):
            make_dataset(root, workers=1, **TINY)
    kept = {name: digest for name, digest in digests(root).items() if not name.startswith(".")}
    assert kept.items() <= tiny[1].items() and len(kept) >= 20
    make_dataset(root, workers=1, **TINY)
    assert digests(root) == tiny[1]


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        make_dataset(tmp_path / "file" / "set", workers=1, **TINY)


def test_radar_file_through_the_devkit(tmp_path: Path):
    from nuscenes.utils.data_classes import RadarPointCloud

    rng = np.random.default_rng(0)
    points = np.zeros(7, RADAR_DTYPE)
    for name in RADAR_DTYPE.names or ():
        points[name] = rng.normal(size=7) * 20 if RADAR_DTYPE[name].kind == "f" else rng.integers(0, 8, 7)
    path = tmp_path / "cloud.pcd"
    path.write_bytes(encode_pcd(points))
    every = list(range(18))
    cloud = RadarPointCloud.from_file(str(path), every, every, every)
    np.testing.assert_array_equal(cloud.points.T, np.array(points.tolist()))


def test_empty_radar_file_through_the_devkit(tmp_path: Path):
    from nuscenes.utils.data_classes import RadarPointCloud

    path = tmp_path / "cloud.pcd"
    path.write_bytes(encode_pcd(np.zeros(0, RADAR_DTYPE)))
    assert b"POINTS 1\n" in path.read_bytes()
    assert RadarPointCloud.from_file(str(path)).points.shape == (18, 0)


def test_radar_file_has_the_bytes_of_a_real_one(real_root: Path):
    """Header and rows of a real file, read by numpy alone, come out as they were."""
    for path in sorted((real_root / "samples" / "RADAR_FRONT").iterdir())[:5]:
        real = path.read_bytes()
        begin = real.index(b"DATA binary\n") + len(b"DATA binary\n")
        count = int(real[:begin].split(b"POINTS ")[1].split()[0])
        end = begin + count * RADAR_DTYPE.itemsize
        points = np.frombuffer(real[begin:end], RADAR_DTYPE)
        assert encode_pcd(points)[:-1] == real[:end]


def test_radar_clouds_that_do_not_fit():
    with pytest.raises(DataError, match="expected the fields x, y, z"):
        encode_pcd(np.zeros(3, [("x", "f4")]))
    points = np.zeros(3, RADAR_DTYPE)
    points["vx"][1] = np.nan
    with pytest.raises(DataError, match="field vx is not finite"):
        encode_pcd(points)
