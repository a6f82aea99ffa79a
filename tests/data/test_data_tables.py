"""The tables: columns against the JSON they came from, the cache, the splits, and what is said when they are broken."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from fusion3d.config import DataConfig
from fusion3d.data import NuScenesDataset, Tables, nuscenes, official_scenes, own_splits, samples_of
from fusion3d.errors import ConfigError, DataError
from fusion3d.types import BEVGrid

VERSION = "v1.0-tiny"


def edit(root: Path, table: str, change) -> None:
    """Let ``change(rows)`` alter a table in place."""
    path = root / VERSION / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_the_cache_is_used_and_rebuilt(own_root, monkeypatch, tmp_path):
    monkeypatch.setenv("FUSION3D_CACHE", str(tmp_path / "cache"))
    first = Tables.open(own_root, VERSION)
    assert Tables.open(own_root, VERSION) is first
    (cached,) = (tmp_path / "cache" / "tables").iterdir()
    with np.load(cached, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)

    def forget():
        nuscenes._OPENED.clear()

    forget()
    with monkeypatch.context() as patch:
        patch.setattr(nuscenes, "build_columns", None)  # must not be needed
        again = Tables.open(own_root, VERSION)
    np.testing.assert_array_equal(again.box_velocity, first.box_velocity)
    edit(own_root, "scene", lambda rows: rows[0].update(name="scene-0777"))
    forget()
    assert b"scene-0777" in Tables.open(own_root, VERSION).scene_name
    cached.write_bytes(cached.read_bytes()[:1000])
    forget()
    with pytest.warns(UserWarning, match="damaged"):
        assert b"scene-0777" in Tables.open(own_root, VERSION).scene_name


def test_a_cache_that_cannot_be_written(tiny_root, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FUSION3D_CACHE", str(tmp_path / "file"))
    nuscenes._OPENED.clear()
    with pytest.warns(UserWarning, match="FUSION3D_CACHE"):
        assert len(Tables.open(tiny_root, VERSION).sample_token) == 10


def test_tables_travel_as_their_place(tiny_root):
    opened = Tables.open(tiny_root, VERSION)
    packed = pickle.dumps(opened)
    assert len(packed) < 1000 and pickle.loads(packed) is opened


def test_file_names_come_back(tiny_root):
    opened = Tables.open(tiny_root, VERSION)
    for row, record in enumerate(json.loads((tiny_root / VERSION / "sample_data.json").read_text())):
        assert opened.path(row) == tiny_root / record["filename"]
        assert opened.data_time[row] == record["timestamp"]


@pytest.mark.parametrize("form", ["absent", "empty"])
def test_a_data_set_without_annotations(own_root, form):
    for table in ("instance", "sample_annotation"):
        path = own_root / VERSION / f"{table}.json"
        path.unlink() if form == "absent" else path.write_text("[]")
    dataset = NuScenesDataset(DataConfig(root=str(own_root), version=VERSION, sensors=("radar",)), "mine", BEVGrid())
    sample = dataset[0]
    assert sample.boxes is None and sample.radar is not None and sample.future is not None


def test_splits_are_the_official_ones():
    splits = pytest.importorskip("nuscenes.utils.splits").create_splits_scenes()
    assert {name: list(official_scenes(name)) for name in splits} == {n: sorted(s) for n, s in splits.items()}


def test_own_splits_and_their_order(own_root):
    opened = Tables.open(own_root, VERSION)
    assert own_splits(opened) == {"mine": ["scene-0003", "scene-0001"], "one": ["scene-0001"]}
    names = [opened.scene(row) for row in samples_of(opened, "mine")]
    assert names == ["scene-0003"] * 5 + ["scene-0001"] * 5
    rows = samples_of(opened, "one")
    assert (np.diff(opened.sample_time[rows]) > 0).all() and len(rows) == 5
    with pytest.warns(UserWarning, match=r"names 700 scenes; .* has 1"):
        assert samples_of(opened, "train") == rows  # scene-0001 is an official training scene
    with pytest.raises(DataError, match=r"no split 'walk'.*known: .*mine, one, train, val"):
        samples_of(opened, "walk")
    with pytest.raises(DataError, match="has none of them"):
        samples_of(opened, "mini_val")
    path = own_root / VERSION / "splits.json"
    path.write_text(json.dumps({"train": ["scene-0003"]}))
    assert {opened.scene(row) for row in samples_of(opened, "train")} == {"scene-0003"}  # one's own goes first
    for content in ("{", '{"a": 3}', "[]"):
        path.write_text(content)
        with pytest.raises(DataError, match=r"splits\.json"):
            samples_of(opened, "train")


def test_broken_tables_are_named(own_root):
    def broken(match: str) -> None:
        with pytest.raises(DataError, match=match):
            Tables.open(own_root, VERSION)

    def restore(table: str) -> None:
        path.write_text(content)

    cases = {
        "missing": ("ego_pose", None, r"lacks ego_pose\.json"),
        "one of the two annotation tables": ("instance", None, r"instance\.json is missing"),
        "not JSON": ("sample", "{]", r"sample\.json: expected a JSON array"),
        "cut off": ("sample", '[{"token": "a"', r"sample\.json is no valid JSON"),
        "not objects": ("sample", "[3]", r"sample\.json: expected an array of objects"),
        "another encoding": ("scene", b"[\xff\xfe]", r"scene\.json"),
    }
    for table, damage, match in cases.values():
        path = own_root / VERSION / f"{table}.json"
        content = path.read_text()
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
        broken(match)
        restore(table)
    changes = {
        "a key": (
            "sample",
            lambda rows: rows[3].pop("scene_token"),
            r"row 3 .*scene_token: expected str, found nothing",
        ),
        "a type": ("ego_pose", lambda rows: rows[1].update(translation=[1, 2]), r"row 1.*a list of 3 numbers"),
        "a null": ("ego_pose", lambda rows: rows[1].update(rotation=[1, 0, 0, None]), r"row 1.*a list of 4 numbers"),
        "a reference": ("sample", lambda rows: rows[0].update(scene_token="x"), r"names token 'x', which scene\.json"),
        "twice": ("log", lambda rows: rows[1].update(token="log-0"), "occurs twice"),
        "a box": (
            "sample_annotation",
            lambda rows: rows[2].update(size=[0, 1, 1]),
            "sample_annotation-2.*sizes above 0",
        ),
        "a turn": ("sample_annotation", lambda rows: rows[2].update(rotation=[2, 0, 0, 0]), "unit quaternion"),
        "intrinsics": ("calibrated_sensor", lambda rows: rows[1].update(camera_intrinsic=[[1, 2]]), "3 x 3 numbers"),
    }
    for table, change, match in changes.values():
        path = own_root / VERSION / f"{table}.json"
        content = path.read_text()
        edit(own_root, table, change)
        broken(match)
        restore(table)
    with pytest.raises(DataError, match=r"versions in .*: v1.0-tiny"):
        Tables.open(own_root, "v1.0-nowhere")
    opened = Tables.open(own_root, VERSION)
    with pytest.raises(DataError, match="no sample 'nobody'"):
        opened.row_of("nobody")


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "samples/../../x__1.jpg", ""])
def test_no_file_outside_of_the_root_is_opened(own_root, name):
    edit(
        own_root,
        "sample_data",
        lambda rows: [row.update(filename=name) for row in rows if row["filename"].endswith("jpg")],
    )
    dataset = NuScenesDataset(DataConfig(root=str(own_root), version=VERSION, sensors=("camera",)), "mine", BEVGrid())
    with pytest.raises(DataError, match="leads out of the data root"):
        dataset[0]


def test_wrong_configurations(tiny_root):
    def opened(**values):
        return NuScenesDataset(DataConfig(root=str(tiny_root), version=VERSION, **values), "mine", BEVGrid())

    for values in ({"sensors": ("sonar",)}, {"cameras": ("CAM_UP",)}, {"lidar_sweeps": 0}, {"image_size": (0, 3)}):
        with pytest.raises(ConfigError, match=f"data.{next(iter(values))}"):
            opened(**values)
    dataset = opened()
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert dataset.index_of(dataset.tokens[7]) == 7 and dataset[-1].token == dataset.tokens[-1]


def _calibration(root: Path, channel: str, **values) -> None:
    row = next(
        i for i, s in enumerate(json.loads((root / VERSION / "sensor.json").read_text())) if s["channel"] == channel
    )
    edit(root, "calibrated_sensor", lambda rows: rows[row].update(values))


def test_a_broken_sensor_is_an_error_or_absent(own_root):
    """Each kind of damage names its file; by option the sample loads without that sensor and says so once."""
    record = next(iter(sorted((own_root / "samples" / "CAM_BACK").iterdir())))
    for path in (own_root / "samples" / "CAM_BACK").iterdir():
        path.write_bytes(record.read_bytes()[:400])
    for path in (own_root / "samples" / "RADAR_FRONT").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    for path in (own_root / "sweeps" / "LIDAR_TOP").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    _calibration(own_root, "CAM_FRONT", translation=[float("nan"), 0, 0])
    _calibration(own_root, "CAM_FRONT_LEFT", rotation=[1.2, 0, 0, 0])
    _calibration(own_root, "CAM_FRONT_RIGHT", camera_intrinsic=[[float("nan")] * 3] * 3)
    strict = DataConfig(root=str(own_root), version=VERSION, image_size=(45, 80))
    for values, match in (
        ({"sensors": ("camera",), "cameras": ("CAM_BACK",)}, "CAM_BACK__.*jpg"),
        ({"sensors": ("camera",), "cameras": ("CAM_FRONT",)}, r"calibrated_sensor.json.*nan"),
        ({"sensors": ("camera",), "cameras": ("CAM_FRONT_LEFT",)}, r"norm 1.2"),
        ({"sensors": ("camera",), "cameras": ("CAM_FRONT_RIGHT",)}, "camera_intrinsic"),
        ({"sensors": ("radar",)}, "RADAR_FRONT__.*truncated"),
        ({"sensors": ("lidar",)}, "LIDAR_TOP__.*truncated"),
    ):
        with pytest.raises(DataError, match=match):
            NuScenesDataset(DataConfig(**{**vars(strict), **values}), "mine", BEVGrid())[1]
    lenient = NuScenesDataset(DataConfig(**{**vars(strict), "skip_broken": True}), "mine", BEVGrid())
    with pytest.warns(UserWarning, match="skipped") as told:
        sample = lenient[1]
    assert sample.cameras.channels == ("CAM_BACK_RIGHT", "CAM_BACK_LEFT")
    assert set(sample.radar[:, 10].tolist()) == {1, 2, 3, 4}
    lags = sample.lidar[:, 4].unique()
    assert len(lags) == 2 and lags[0] == 0 and lags[1] > 0.4  # the two keyframes' clouds are whole, those between not
    messages = [str(w.message) for w in told]
    assert len(messages) == len(set(messages))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lenient[1]  # said already
    shutil.rmtree(own_root / "samples" / "LIDAR_TOP")
    with pytest.warns(UserWarning, match="No such file"):
        assert lenient[2].lidar is None
    edit(own_root, "ego_pose", lambda rows: [row.update(rotation=[float("nan")] * 4) for row in rows])
    with pytest.raises(DataError, match=r"ego_pose\.json"):  # without a reference frame there is no sample
        NuScenesDataset(DataConfig(**{**vars(strict), "skip_broken": True}), "mine", BEVGrid())[0]


def test_a_broken_map_is_an_error_or_absent(own_root):
    mask = own_root / "maps" / "mask.png"
    mask.write_bytes(mask.read_bytes()[:200])
    config = DataConfig(root=str(own_root), version=VERSION, sensors=())
    with pytest.raises(DataError, match=r"mask\.png"):
        NuScenesDataset(config, "mine", BEVGrid())[0]
    with pytest.warns(UserWarning, match=r"skipped: .*mask\.png"):
        sample = NuScenesDataset(dataclasses.replace(config, skip_broken=True), "mine", BEVGrid())[0]
    assert sample.map_mask is None and sample.boxes is not None
    assert NuScenesDataset(config, "mine", BEVGrid(), with_map=False)[0].map_mask is None


def test_the_map_is_cut_where_it_is_wanted(tiny_root):
    config = DataConfig(root=str(tiny_root), version=VERSION, sensors=())
    assert NuScenesDataset(config, "mine", BEVGrid())[0].map_mask is not None
    assert NuScenesDataset(config, "mine", BEVGrid(), with_map=False)[0].map_mask is None
