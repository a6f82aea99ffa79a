"""Corruptions at work in a data set: what is read, where it is believed to be, and that chance follows names alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from fusion3d.config import AugmentConfig, Config, DataConfig, EvaluationConfig, TemporalConfig
from fusion3d.data.corruptions import KINDS, Corruption, Corruptor, parse
from fusion3d.data.corruptions.kinds import CHANNELS, SEVERITY, choices, draw_one
from fusion3d.data.corruptions.rig import earlier, misaligned, shifted, turned
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.data.lidar import read_lidar
from fusion3d.data.loader import make_loader
from fusion3d.data.nuscenes import Tables
from fusion3d.engine.share import run_shared
from fusion3d.engine.split import open_split
from fusion3d.errors import ConfigError
from fusion3d.types import CAMERAS, RADARS, SENSORS, BEVGrid, Sample

VERSION = "v1.0-tiny"
MIX = (
    "camera.fog:2", "camera.missing:1", "CAM_BACK.dark:3", "lidar.snow:2", "lidar.points:1", "radar.ghosts:3",
    "radar.doppler:2", "radar.keep:3", "lidar.late:70", "camera.turned:2", "radar.stale:3",
)  # fmt: skip


def data(root, *corruptions: str, augment=None, keyframes=1, seed=0, **changes) -> NuScenesDataset:
    settings = {"root": str(root), "version": VERSION, "image_size": (45, 80), "lidar_sweeps": 3, "radar_sweeps": 2}
    config = DataConfig(**settings | {"corruptions": corruptions} | changes)
    split = "mine" if config.version == VERSION else config.split
    return NuScenesDataset(config, split, BEVGrid(), augment, seed, with_map=False, keyframes=keyframes)


def parts(value) -> list:
    """Every tensor and plain value of a sample."""
    if dataclasses.is_dataclass(value):
        return [leaf for f in dataclasses.fields(value) for leaf in parts(getattr(value, f.name))]
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in parts(item)]
    return [value.numpy().tobytes() if isinstance(value, torch.Tensor) else value]


def sensed(sample: Sample, sensor: str):
    return sample.cameras if sensor == "camera" else getattr(sample, sensor)


# ---- nothing wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nothing",
    ["camera.keep:6", "radar.keep:5", *(f"{s}.{k}:0" for s in SENSORS for k in ("late", "shifted", "turned"))],
)
def test_an_amount_of_nothing_is_nothing_to_the_bit(tiny_root, nothing):
    assert parts(data(tiny_root, nothing)[2]) == parts(data(tiny_root)[2])


@pytest.mark.parametrize("text", [f"{s}.{name}:{k.amounts[-1]:g}" for name, k in KINDS.items() for s in k.sensors])
def test_only_that_sensor_is_changed_and_never_the_truth(tiny_root, text):
    clean, wrong = data(tiny_root)[3], data(tiny_root, text)[3]
    of = text.partition(".")[0]
    for f in dataclasses.fields(Sample):
        if f.name != ("cameras" if of == "camera" else of):
            assert parts(getattr(clean, f.name)) == parts(getattr(wrong, f.name)), f.name
    there = sensed(wrong, of)
    if there is not None:
        assert (
            all(torch.isfinite(leaf).all() for leaf in vars(there).values() if isinstance(leaf, torch.Tensor))
            if (of == "camera")
            else torch.isfinite(there).all()
        )


# ---- chance ----------------------------------------------------------------------------------------------------------


def test_chance_follows_names_not_order_nor_processes(tiny_root, tmp_path):
    dataset = data(tiny_root, *MIX, keyframes=2)
    forward = [parts(dataset[index]) for index in range(len(dataset))]
    backward = [parts(data(tiny_root, *MIX, keyframes=2)[index]) for index in reversed(range(len(dataset)))]
    assert forward == backward[::-1]
    elsewhere = shutil.copytree(tiny_root, tmp_path / "elsewhere")
    assert parts(data(elsewhere, *MIX, keyframes=2)[4]) == forward[4]
    batches = [[parts(batch) for batch in make_loader(dataset, 2, workers=workers)] for workers in (0, 2)]
    assert batches[0] == batches[1]


def test_a_sweep_of_two_keyframes_is_the_same_for_both(tiny_root):
    """Each file has its own draw; a frame as history is what it is as a sample."""
    dataset = data(tiny_root, *MIX, keyframes=2)
    now, after = dataset[2], dataset[3]
    assert after.history[0].token == now.token
    for name in ("cameras", "lidar", "radar"):
        assert parts(getattr(after.history[0], name)) == parts(getattr(now, name))


def test_what_light_severity_takes_a_heavy_one_takes_too(tiny_root):
    tables = Tables.open(tiny_root, VERSION)
    for sensor in SENSORS:
        for sample in range(len(tables.sample_token)):
            there = [
                set(Corruptor([Corruption(sensor, "missing", n)]).there(tables, sample, CHANNELS[sensor]))
                for n in (1, 2, 3)
            ]
            assert there[0] >= there[1] >= there[2]
    for sensor in ("camera", "radar"):
        kept = [Corruptor([Corruption(sensor, "keep", n)]).there(tables, 3, CHANNELS[sensor]) for n in range(7)]
        assert [len(of) for of in kept] == [min(n, len(CHANNELS[sensor])) for n in range(7)]
        assert all(set(few) <= set(more) for few, more in itertools.pairwise(kept))


def test_odds_of_failures(tiny_root):
    tables = Tables.open(tiny_root, VERSION)
    for level, odds in enumerate((0.2, 0.4, 0.6), 1):
        lost = [
            6 - len(Corruptor([Corruption("camera", "missing", level)], seed).there(tables, 1, CAMERAS))
            for seed in range(300)
        ]
        assert sum(lost) / 1800 == pytest.approx(odds, abs=0.035)


# ---- what is absent --------------------------------------------------------------------------------------------------


def test_absent_is_absent(tiny_root):
    corruptions = [f"{s}.{name}:1" for name, kind in KINDS.items() for s in kind.sensors]
    sample = data(tiny_root, *corruptions, sensors=("radar",))[0]
    assert sample.cameras is None and sample.lidar is None
    sample = data(tiny_root, "camera.keep:0", "radar.keep:0", "LIDAR_TOP.missing:3")[1]
    assert sample.cameras is None and sample.radar is None
    some = [data(tiny_root, "lidar.missing:3")[index].lidar is None for index in range(10)]
    assert any(some) and not all(some)
    one = data(tiny_root, "CAM_BACK.missing:3", cameras=("CAM_FRONT", "CAM_BACK"))
    seen = {one[index].cameras.channels for index in range(10)}
    assert seen == {("CAM_FRONT",), ("CAM_FRONT", "CAM_BACK")}


def test_a_missing_table_entry_stays_missing(own_root):
    path = own_root / VERSION / "sample_data.json"
    rows = [row for row in json.loads(path.read_text()) if "/LIDAR_TOP/" not in row["filename"]]
    path.write_text(json.dumps(rows))
    sample = data(own_root, "lidar.fog:2", "lidar.late:100", "lidar.stale:3", "lidar.turned:2")[2]
    assert sample.lidar is None and sample.radar is not None


def test_a_radar_that_saw_nothing_is_there(tiny_root):
    tables = Tables.open(tiny_root, VERSION)
    sample = data(tiny_root, "radar.points:3", radar_filter="devkit", radars=("RADAR_FRONT",))[0]
    assert sample.radar is not None and tables.key(0, "RADAR_FRONT") >= 0


# ---- misplaced -------------------------------------------------------------------------------------------------------


@given(degrees=st.floats(0, 20), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_turned_is_a_rotation_by_that_angle(degrees, seed):
    matrix = turned(degrees, np.random.default_rng(seed))
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.degrees(Rotation.from_matrix(matrix[:3, :3]).magnitude()) == pytest.approx(degrees, abs=1e-5)
    assert (matrix[:3, 3] == 0).all()
    assert np.linalg.norm(shifted(degrees, np.random.default_rng(seed))[:3, 3]) == pytest.approx(degrees)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_misaligned_is_multicorrupts_matrix(level):
    angle = -np.radians(level + 1)
    about = [Rotation.from_euler(axis, angle).as_matrix() for axis in "xyz"]
    np.testing.assert_allclose(misaligned(level)[:3, :3], about[0] @ about[1] @ about[2], atol=1e-12)
    np.testing.assert_array_equal(misaligned(level)[:3, 3], [2, 0, 0])


@pytest.mark.parametrize("kind", ["turned:3", "shifted:0.5"])
@pytest.mark.parametrize("sensor", SENSORS)
def test_a_misplaced_sensor_is_believed_elsewhere_by_one_matrix(tiny_root, sensor, kind):
    """Of all its sweeps and in all samples; the matrix acts in the sensor's frame, on what is believed."""
    tables = Tables.open(tiny_root, VERSION)
    clean, wrong = data(tiny_root), data(tiny_root, f"{sensor}.{kind}")
    channel = {"camera": "CAM_FRONT", "lidar": "LIDAR_TOP", "radar": "RADAR_BACK_LEFT"}[sensor]
    errors = []
    for index in (0, 4, 7):
        sample = int(clean.rows[index])
        readings = Corruptor([parse(f"{sensor}.{kind}")]).readings(tables, sample, channel, 3)
        assert all(reading.row == reading.content for reading in readings)
        errors += [reading.error for reading in readings]
        ego_from_sensor = tables.reference_from_sensor(sample, [readings[0].row])[0]
        before, after = clean[index], wrong[index]
        if sensor == "camera":
            at = before.cameras.channels.index(channel)
            expected = ego_from_sensor @ errors[0]
            np.testing.assert_allclose(after.cameras.ego_from_cam[at].numpy(), expected, atol=1e-5)
            assert torch.equal(after.cameras.images, before.cameras.images)
            assert torch.equal(after.cameras.image_from_cam, before.cameras.image_from_cam)
        else:
            time = {"lidar": 4, "radar": 6}[sensor]
            lag = np.float32(tables.lag(sample, readings[0].row))
            clouds = [sensed(of, sensor).numpy() for of in (before, after)]
            if sensor == "radar":
                clouds = [cloud[cloud[:, 10] == RADARS.index(channel)] for cloud in clouds]
            old, new = (cloud[cloud[:, time] == lag].astype(float) for cloud in clouds)
            moved = ego_from_sensor @ errors[0] @ np.linalg.inv(ego_from_sensor)
            np.testing.assert_allclose(new[:, :3], old[:, :3] @ moved[:3, :3].T + moved[:3, 3], atol=1e-3)
    for error in errors[1:]:
        np.testing.assert_array_equal(error, errors[0])


# ---- late ------------------------------------------------------------------------------------------------------------


def test_a_late_lidar_shows_the_earlier_sweep(tiny_root):
    """At exactly the time of a sweep: that file's points where they would be had they been measured now."""
    tables = Tables.open(tiny_root, VERSION)
    dataset = data(tiny_root, "lidar.late:50", lidar_sweeps=1, lidar_min_distance=0.0)
    sample = int(dataset.rows[3])
    key = tables.key(sample, "LIDAR_TOP")
    before = int(tables.data_prev[key])
    assert tables.data_time[key] - tables.data_time[before] == 50_000
    points = read_lidar(tables.path(before))[:, :3].astype(float)
    moved = tables.reference_from_sensor(sample, [key])[0]
    got = dataset[3].lidar.numpy()
    np.testing.assert_allclose(got[:, :3], points @ moved[:3, :3].T + moved[:3, 3], atol=1e-4)
    assert (got[:, 4] == np.float32(tables.lag(sample, key))).all()  # nobody knows
    assert earlier(tables, key, 0.05) == (before, None)


@given(seconds=st.floats(0.0, 1.2), index=st.integers(0, 9), channel=st.sampled_from(["LIDAR_TOP", "CAM_BACK"]))
@settings(max_examples=60, deadline=None)
def test_a_late_sensor_sees_the_standing_world_as_it_was(tiny_root, seconds, index, channel):
    """A point that stands still, seen in the file that is read, is where the pose of the wanted moment puts it."""
    tables = Tables.open(tiny_root, VERSION)
    data_row = tables.key(index, channel)
    content, error = earlier(tables, data_row, seconds)
    wanted = int(tables.data_time[data_row]) - round(seconds * 1e6)
    chain = tables.sweeps(data_row, 1000)
    times = tables.data_time[chain]
    if wanted <= times[-1]:
        assert content == chain[-1] and error is None  # nothing is before
        return
    assert abs(tables.data_time[content] - wanted) == np.abs(times - wanted).min()
    newer, older = [row for row in chain if tables.data_time[row] >= wanted][-1], None
    older = int(tables.data_prev[newer]) if tables.data_time[newer] > wanted else newer

    def pose(row: int) -> tuple[np.ndarray, Rotation]:
        at = tables.data_pose[row]
        return tables.pose_translation[at], Rotation.from_quat(np.roll(tables.pose_rotation[at], -1))

    (start, from_), (end, to) = pose(older), pose(newer)
    span = max(int(tables.data_time[newer] - tables.data_time[older]), 1)
    part = (wanted - int(tables.data_time[older])) / span if newer != older else 0.0
    turn = Slerp([0, 1], Rotation.concatenate([from_, to]))(part).as_matrix() if newer != older else from_.as_matrix()
    calibration = tables.data_calibration[data_row]
    mount = np.eye(4)
    mount[:3, :3] = Rotation.from_quat(np.roll(tables.calibration_rotation[calibration], -1)).as_matrix()
    mount[:3, 3] = tables.calibration_translation[calibration]
    then = np.eye(4)
    then[:3, :3], then[:3, 3] = turn, start + part * (end - start)
    here = np.eye(4)
    here[:3, :3], here[:3, 3] = pose(content)[1].as_matrix(), pose(content)[0]
    world = np.array([70.0, 40.0, 2.0, 1.0])
    measured = np.linalg.inv(here @ mount) @ world
    expected = np.linalg.inv(then @ mount) @ world
    believed = measured if error is None else error @ measured
    np.testing.assert_allclose(believed, expected, atol=1e-3)  # a rotation turns evenly but for a hair


def test_a_late_camera_without_sweeps_moves_with_the_vehicle(tiny_root):
    clean, wrong = data(tiny_root)[3], data(tiny_root, "camera.late:100")[3]
    assert torch.equal(clean.cameras.images, wrong.cameras.images)  # 0.5 s lie between its images
    step = (clean.cameras.ego_from_cam - wrong.cameras.ego_from_cam)[:, :3, 3].norm(dim=1)
    assert (step > 0.3).all() and (step < 1.5).all()  # at 9 m/s
    half = data(tiny_root, "camera.late:500")[3]
    assert not torch.equal(clean.cameras.images[0], half.cameras.images[0])


def test_stale_is_the_keyframe_before(tiny_root):
    tables = Tables.open(tiny_root, VERSION)
    for sensor, channel in (("camera", "CAM_FRONT"), ("lidar", "LIDAR_TOP"), ("radar", "RADAR_FRONT")):
        corruptor, clean = Corruptor([Corruption(sensor, "stale", 3)]), Corruptor()
        stale = 0
        for sample in range(len(tables.sample_token)):
            rows = [reading.row for reading in clean.readings(tables, sample, channel, 3)]
            readings = corruptor.readings(tables, sample, channel, 3)
            contents = [reading.content for reading in readings]
            assert [reading.row for reading in readings] == rows[: len(readings)]
            before = int(tables.sample_prev[sample])
            if before < 0:
                assert contents == rows
            elif contents != rows:
                stale += 1
                assert contents == tables.sweeps(tables.key(before, channel), 3)
        assert 0 < stale < len(tables.sample_token)


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lidr.fog:2", "unknown sensor 'lidr'; did you mean 'lidar'"),
        ("CAM_FRNT.fog:2", "did you mean 'CAM_FRONT'"),
        ("radar.fog:2", "no corruption 'fog' of radar"),
        ("lidar.fgo:2", "did you mean 'fog'"),
        ("lidar.fog:4", "a severity of 1, 2 or 3; found '4'"),
        ("lidar.fog", "found ''"),
        ("lidar.turned:nan", "a number of degrees, 0 or more; found 'nan'"),
        ("lidar.late:-3", "found '-3'"),
        ("camera.keep:2.5", "found '2.5'"),
        ("", "unknown sensor ''"),
    ],
)
def test_a_wrong_corruption_is_named(tiny_root, text, message):
    with pytest.raises(ConfigError, match=r"data\.corruptions") as caught:
        data(tiny_root, text)
    assert message in str(caught.value)


@given(name=st.sampled_from([f"{s}.{k}" for k, kind in KINDS.items() for s in kind.sensors]), amount=st.integers(1, 3))
@settings(deadline=None)
def test_a_corruption_is_written_as_it_is_read(name, amount):
    assert str(parse(f"{name}:{amount}")) == f"{name}:{amount}"
    assert parse(f"{name}:{amount}").covers(CHANNELS[name.partition(".")[0]][0])


def test_every_kind_says_what_it_is():
    for name, kind in KINDS.items():
        assert kind.text and kind.sensors and set(kind.sensors) <= set(SENSORS)
        assert (kind.unit == SEVERITY) == (kind.amounts == (1, 2, 3)) or name == "keep"


def test_a_corruption_of_what_is_not_read_is_an_error(tiny_root):
    def config(*corruptions: str, augment=None, **changes) -> Config:
        of_data = DataConfig(str(tiny_root), VERSION, "mine", "mine", corruptions=corruptions, **changes)
        return Config(of_data, augment, lidar=None)

    cases = {
        "'lidar.fog:2'": config("camera.fog:2", "lidar.fog:2", sensors=("camera", "radar")),
        "'CAM_BACK.dark:1'": config("CAM_BACK.dark:1", cameras=("CAM_FRONT",)),
        "'radar.keep:2'": config("radar.keep:2", radars=()),
    }
    for named, wrong in cases.items():
        with pytest.raises(ConfigError, match=rf"data\.corruptions: {named} befalls nothing: data\.sensors") as caught:
            open_split(wrong, "mine", training=False)
        assert "\n" not in str(caught.value)
    unseen = config("lidar.fog:2")  # which is read, and of which the model takes nothing
    assert len(open_split(unseen, "mine", training=False)) == 10
    with pytest.raises(ConfigError, match=r"data\.corruptions: 'lidar.fog:2' .*\(camera, radar; of the model and data"):
        run_shared(None, unseen, {"camera": ("camera",), "radar": ("radar",)})
    drawn = AugmentConfig(corrupt=0.5, corruptions=("camera.fog", "lidar.fog:1"))
    with pytest.raises(ConfigError, match=r"augment\.corruptions: 'lidar.fog:1' befalls nothing: data\.sensors"):
        open_split(config(augment=drawn, sensors=("camera",)), "mine", training=True)


# ---- training --------------------------------------------------------------------------------------------------------


def test_training_draws_from_seed_epoch_and_index(tiny_root):
    # Without changes of the world or the images all that differs is what went wrong.
    none = AugmentConfig(
        image_scale=(0, 0), image_rotation=0, image_flip=False, bev_rotation=0, bev_scale=(1, 1), bev_flip=False
    )
    some = dataclasses.replace(none, corrupt=1.0)
    clean, one, two = data(tiny_root, augment=none), data(tiny_root, augment=some), data(tiny_root, augment=some)
    two[5]
    for key in ((0, 1), (0, 2), (3, 1), (0, 1, 1)):
        assert parts(one[key]) == parts(two[key])
    assert len({str(parts(one[epoch, 2])) for epoch in range(8)}) > 4
    assert parts(one[0, 2].boxes) == parts(clean[0, 2].boxes)
    assert len({str(parts(data(tiny_root, augment=some, seed=seed)[2])) for seed in range(5)}) > 1
    never = data(tiny_root, augment=dataclasses.replace(none, corruptions=("lidar.fog",)))
    assert parts(never[3]) == parts(clean[3])


def test_training_takes_what_is_asked_for(tiny_root):
    usual = AugmentConfig()
    assert parts(data(tiny_root, augment=usual)[4]) == parts(data(tiny_root, augment=usual)[4])
    asked = dataclasses.replace(usual, corrupt=0.5, corruptions=("lidar.beams", "radar.late:100"))
    dataset = data(tiny_root, augment=asked)
    drawn = [dataset._draw(epoch, 1).corruptor.corruptions for epoch in range(200)]
    assert {str(one) for of in drawn for one in of} == {
        "lidar.beams:1", "lidar.beams:2", "lidar.beams:3", "radar.late:100",
    }  # fmt: skip
    assert sum(map(len, drawn)) / 200 == pytest.approx(0.5, abs=0.12)
    late = sum(str(one) == "radar.late:100" for of in drawn for one in of) / sum(map(len, drawn))
    assert late == pytest.approx(0.5, abs=0.17)  # every kind alike
    with pytest.raises(ConfigError, match=r"augment\.corruptions.*unknown sensor 'x'"):
        data(tiny_root, augment=dataclasses.replace(asked, corruptions=("x",)))
    candidates = choices((), ("radar",), "augment.corruptions")
    assert {one.sensor for one in candidates} == {"radar"}
    assert draw_one(candidates, np.random.default_rng(0)) in candidates


# ---- every how many-th keyframe --------------------------------------------------------------------------------------


def test_stride_takes_keyframes_evenly(tiny_root):
    config = Config(data=DataConfig(root=str(tiny_root), version=VERSION, split="mine", train_split="mine"))
    whole = open_split(config, "mine", training=False)
    tokens = whole.tokens
    of_scene = list(zip(tokens, whole.scenes, strict=True))
    scenes = [[token for token, scene in of_scene if scene == name] for name in dict.fromkeys(whole.scenes)]
    assert len(scenes) > 1 and all(len(scene) > 3 for scene in scenes)

    def with_stride(stride: int, **more) -> Config:
        return dataclasses.replace(config, evaluation=EvaluationConfig(stride=stride, **more))

    assert open_split(with_stride(3), "mine", training=False).tokens == [t for scene in scenes for t in scene[1::3]]
    assert open_split(with_stride(99), "mine", training=False).tokens == [scene[-1] for scene in scenes]
    assert open_split(with_stride(4), "mine", training=True).tokens == tokens
    streamed = dataclasses.replace(with_stride(2, stream=True), temporal=TemporalConfig())
    with pytest.raises(ConfigError, match=r"evaluation\.stride"):
        open_split(streamed, "mine", training=False)
    streamed = dataclasses.replace(with_stride(1, stream=True), temporal=TemporalConfig())
    wrong = dataclasses.replace(streamed, data=dataclasses.replace(streamed.data, corruptions=("lidar.beams:3",)))
    lidars = [open_split(of, "mine", training=False)[3].lidar for of in (streamed, wrong)]
    assert len(lidars[1]) < len(lidars[0])


# ---- real data -------------------------------------------------------------------------------------------------------


def test_on_real_bytes(real_root):
    real = {"version": "v1.0-mini", "split": "real_0061", "image_size": (128, 352)}
    clean = data(real_root, **real)[0]
    beams = data(real_root, "lidar.beams:3", **real)[0]
    assert len(beams.lidar) / len(clean.lidar) == pytest.approx(4 / 32, abs=0.03)
    fog = data(real_root, "lidar.fog:3", "camera.fog:3", **real)[0]
    assert fog.lidar[:, :2].norm(dim=1).mean() < 0.6 * clean.lidar[:, :2].norm(dim=1).mean()
    assert fog.cameras.images.std() < 0.8 * clean.cameras.images.std()
