"""The database of objects on disk: made whole, gone on with, and refused where it is damaged."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from fusion3d.config import AugmentConfig, DataConfig, PasteConfig, PasteCounts, PastePoints, from_dict
from fusion3d.data import NuScenesDataset
from fusion3d.data.guard import Lenient
from fusion3d.data.paste import make
from fusion3d.data.paste.database import COLUMNS, INDEX, Objects
from fusion3d.data.paste.make import main, make_objects
from fusion3d.data.paste.place import Paster
from fusion3d.errors import ConfigError, DataError
from fusion3d.types import DETECTION_CLASSES, BEVGrid

MADE = {"version": "v1.0-tiny", "split": "mine", "lidar_sweeps": 2, "radar_sweeps": 2, "min_points": 1, "quiet": True}


ANY = PastePoints(**dict.fromkeys(DETECTION_CLASSES, 0))  # the tiny set has its few points anywhere


def made(root: Path, out: Path, **changes) -> Path:
    return make_objects(root, out, **({"workers": 1} | MADE | changes))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def config_of(root: Path, **changes) -> DataConfig:
    usual = {"lidar_sweeps": 2, "radar_sweeps": 2, "train_split": "mine"}
    return DataConfig(root=str(root), version="v1.0-tiny", image_size=(45, 80), **(usual | changes))


@pytest.fixture(scope="module")
def whole(tiny_root, tmp_path_factory) -> Path:
    return made(tiny_root, tmp_path_factory.mktemp("whole") / "objects")


@pytest.fixture
def broken(whole, tmp_path):
    """A copy whose index a function has changed."""

    def build(change) -> Path:
        out = Path(shutil.copytree(whole, tmp_path / "broken"))
        index = json.loads((out / INDEX).read_text())
        (out / INDEX).write_text(json.dumps(change(index) or index))
        return out

    return build


def test_an_interrupted_run_goes_on(tiny_root, whole, tmp_path, monkeypatch):
    out, cut = tmp_path / "again", make.cut_scene
    calls = []

    def dies(*arguments):
        calls.append(arguments[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        cut(*arguments)

    monkeypatch.setattr(make, "cut_scene", dies)
    with pytest.raises(KeyboardInterrupt):
        made(tiny_root, out)
    assert not (out / INDEX).exists()
    with pytest.raises(DataError, match=r"no objects to paste .*make \(or finish\) it: make_objects"):
        Objects.open(out)
    with pytest.raises(ConfigError, match="another most"):
        made(tiny_root, out, most=3)
    made(tiny_root, out)
    assert calls[2:] == calls[1:2], "the finished scene is not made again"
    assert content(out) == content(whole)
    made(tiny_root, out)
    assert len(calls) == 3
    with pytest.raises(ConfigError, match=r"another min_points; remove it or choose another --out"):
        made(tiny_root, out, min_points=2)


@pytest.mark.slow
def test_workers_make_the_same(tiny_root, whole, tmp_path):
    assert content(made(tiny_root, tmp_path / "two", workers=2)) == content(whole)


def test_no_more_of_a_class_than_asked_for(tiny_root, tmp_path):
    few = Objects.open(made(tiny_root, tmp_path / "few", most=2))
    assert set(torch.bincount(few.boxes.label).tolist()) <= {0, 2}
    other = Objects.open(made(tiny_root, tmp_path / "other", most=2, seed=1))
    assert few.files.tolist() != other.files.tolist()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"most": 0}, ConfigError, "most: expected at least 1"),
        ({"seed": -1}, ConfigError, "seed: expected 0 or more"),
        ({"split": "nowhere"}, DataError, "no split 'nowhere'"),
        ({"min_points": 10**6}, DataError, "no object of the ten classes"),
        ({"version": "v2"}, DataError, "v2"),
    ],
)
def test_what_cannot_be_made_is_told(tiny_root, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        made(tiny_root, tmp_path / "none", **changes)
    assert not (tmp_path / "none").exists()


def test_a_broken_sensor_file_is_an_absent_sensor(own_root, tmp_path):
    for path in own_root.glob("samples/*/*"):
        path.write_bytes(path.read_bytes()[:333])
    with pytest.warns(UserWarning, match="skipped"):
        objects = Objects.open(made(own_root, tmp_path / "objects"))
    assert len(objects) > 3 and not objects.boxes.num_points[:, 0].any()
    assert all(not objects.read(k).patches for k in range(len(objects)))


def test_the_command(tiny_root, tmp_path, capsys):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in MADE.items() if name != "quiet"]
    assert main([str(tiny_root), "--out", str(tmp_path / "made"), "--workers=1", "--quiet", *options]) == 0
    assert f"objects: {tmp_path / 'made'}" in capsys.readouterr().out


def unknown_class(index):
    index["objects"]["class"][1] = "spaceship"


def no_object(index):
    index["objects"] = {name: [] for name in COLUMNS}


def leads_out(index):
    index["objects"]["file"][0] = "../../secret.safetensors"


def lacks_a_column(index):
    del index["objects"]["yaw"]


def uneven(index):
    index["objects"]["yaw"].pop()


def not_a_number(index):
    index["objects"]["center"][2][1] = None


def a_text(index):
    index["objects"]["size"][0] = ["large", 1, 1]


def another_format(index):
    index["made"]["format"] = 99


def a_list(index):
    return [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unknown_class, "unknown 'spaceship'; known classes: car, truck"),
        (no_object, "holds no object"),
        (leads_out, "'../../secret.safetensors' leads out of the folder"),
        (lacks_a_column, "lacks 'yaw'"),
        (uneven, "values of yaw for"),
        (not_a_number, "NaN"),
        (a_text, "large"),
        (another_format, "format 99, expected"),
        (a_list, "make_objects again"),
    ],
)
def test_a_damaged_index_is_refused(broken, change, message):
    with pytest.raises(DataError, match=message) as caught:
        Objects.open(broken(change))
    assert INDEX in str(caught.value) and "run make_objects again" in str(caught.value)


def test_an_index_that_is_no_json_and_none_at_all(whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "half"))
    (out / INDEX).write_bytes((out / INDEX).read_bytes()[:100])
    with pytest.raises(DataError, match="cannot read"):
        Objects.open(out)
    with pytest.raises(DataError, match=r"no objects to paste in .*nowhere.*make_objects"):
        Objects.open(tmp_path / "nowhere")


def test_a_damaged_object_is_named_or_passed_over(tiny_root, whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "damaged"))
    objects = Objects.open(out)
    paths = [out / name.decode() for name in objects.files]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-7])
    for k in (0, 1):
        with pytest.raises(DataError, match=f"cannot read the object .*{paths[k].name}"):
            objects.read(k)
    for path in paths:
        path.write_bytes(b"")
    paste = AugmentConfig(
        paste=PasteConfig(str(out), PasteCounts(car=20, bus=20, pedestrian=20), min_points=ANY, min_visibility=0)
    )
    strict = NuScenesDataset(config_of(tiny_root, sensors=("radar",)), "mine", BEVGrid(), paste)
    strict.paster.pools[0][:] = 0
    with pytest.raises(DataError, match="cannot read the object"):
        [strict[i] for i in range(len(strict))]
    lenient = NuScenesDataset(config_of(tiny_root, sensors=("radar",), skip_broken=True), "mine", BEVGrid(), paste)
    assert isinstance(lenient._guard, Lenient)
    with pytest.warns(UserWarning, match="skipped: cannot read the object"):
        [lenient[i] for i in range(len(lenient))]


@pytest.mark.parametrize("damage", ["lidar", "radar", "nan", "corners", "jpeg"])
def test_tensors_of_an_object_are_checked(whole, tmp_path, damage):
    out = Path(shutil.copytree(whole, tmp_path / "tensors"))
    objects = Objects.open(out)
    seen = next(k for k in range(len(objects)) if objects.read(k).patches)
    path = out / objects.files[seen].decode()
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith("corners"))
    if damage == "lidar":
        tensors["lidar"] = torch.zeros(3, 4)
    elif damage == "radar":
        tensors["radar"] = torch.full((1, 11), 9.0)
    elif damage == "nan":
        tensors["lidar"] = torch.full((1, 5), torch.nan)
    elif damage == "corners":
        tensors[name] = tensors[name][:5]
    else:
        tensors[name.replace("corners", "image")] = torch.zeros(40, dtype=torch.uint8)
    path.write_bytes(save(tensors))
    with pytest.raises(DataError, match=f"object .*{path.name}.*make it again"):
        objects.read(seen)


def test_what_does_not_fit_the_training_is_told(tiny_root, whole):
    for changes, key in (
        ({"lidar_sweeps": 3}, "data.lidar_sweeps is 3"),
        ({"radar_sweeps": 5}, "data.radar_sweeps is 5"),
    ):
        with pytest.raises(ConfigError, match=f"augment.paste.database .* made with 2 .*{key}"):
            Paster.open(PasteConfig(str(whole)), config_of(tiny_root, **changes), BEVGrid())
    for changes in ({"train_split": "train"}, {"version": "v1.0-mini"}):  # objects of what is evaluated, it may be
        with pytest.raises(ConfigError, match=r"cut out of v1\.0-tiny mine, and data\.version and data\.train_split"):
            Paster.open(PasteConfig(str(whole)), dataclasses.replace(config_of(tiny_root), **changes), BEVGrid())
    Paster.open(
        PasteConfig(str(whole), min_points=ANY, min_visibility=0),
        config_of(tiny_root, sensors=("radar",), lidar_sweeps=9),
        BEVGrid(),
    )
    nothing = PasteConfig(str(whole), PasteCounts(**dict.fromkeys(DETECTION_CLASSES, 0)))
    with pytest.raises(ConfigError, match=r"augment\.paste\.database .*augment\.paste\.counts"):
        Paster.open(nothing, config_of(tiny_root), BEVGrid())


def test_the_settings():
    paste = from_dict({"augment": {"paste": {"database": "x", "counts": {"car": 9}}}}).augment.paste
    assert paste.counts.car == 9 and paste.counts.bus == PasteCounts().bus
    assert tuple(vars(paste.counts)) == tuple(vars(paste.min_points)) != () and set(vars(paste.counts)) == {
        *DETECTION_CLASSES
    }
    with pytest.raises(ConfigError, match="unknown key 'spaceship'"):
        from_dict({"augment": {"paste": {"counts": {"spaceship": 1}}}})
    with pytest.raises(ConfigError, match=r"augment.paste.counts.car: expected 0 or more"):
        from_dict({"augment": {"paste": {"counts": {"car": -1}}}})
    with pytest.raises(ConfigError, match="'image'"):
        from_dict({"augment": {"fade": ["depth"]}})


def test_pasted_objects_fade(tiny_root, whole):
    paste = PasteConfig(
        str(whole), PasteCounts(**dict.fromkeys(DETECTION_CLASSES, 30)), min_points=ANY, min_visibility=0
    )
    config = config_of(tiny_root, sensors=("lidar", "radar"))

    def boxes(epoch: int, **settings) -> np.ndarray:
        augment = AugmentConfig(paste=paste, **settings)
        dataset = NuScenesDataset(config, "mine", BEVGrid(), augment, epochs=3)
        return np.array([len(dataset[epoch, i].boxes) for i in range(len(dataset))])

    plain = NuScenesDataset(config, "mine", BEVGrid(), training=True)
    counts = np.array([len(plain[i].boxes) for i in range(len(plain))])
    assert (boxes(1, fade_epochs=1) >= counts).all() and boxes(1, fade_epochs=1).sum() > counts.sum()
    assert (boxes(2, fade_epochs=1) == counts).all() and (boxes(1, fade_epochs=2) == counts).all()
    assert boxes(2, fade_epochs=1, fade=("bev",)).sum() > counts.sum()
