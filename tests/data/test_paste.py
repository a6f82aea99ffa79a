"""Pasting objects: what is cut out is what was there, and what is set in fits with everything that is there."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from shapely.geometry import Polygon

from fusion3d.config import AugmentConfig, Config, DataConfig, PasteConfig, PasteCounts, PastePoints
from fusion3d.data import NuScenesDataset
from fusion3d.data.paste.cut import lidar_inside, project, radar_inside
from fusion3d.data.paste.database import Cutting, Objects, Patch
from fusion3d.data.paste.images import paint, warp
from fusion3d.data.paste.make import make_objects
from fusion3d.data.paste.place import Paster
from fusion3d.engine.split import open_split
from fusion3d.geometry import corners_bev
from fusion3d.types import (
    CAMERAS,
    DETECTION_CLASSES,
    EGO_CENTER,
    EGO_SIZE,
    KEY_SWEEP,
    RADARS,
    BEVGrid,
    Boxes,
    Cameras,
    Sample,
    Trajectory,
)

VERSION = "v1.0-synthetic"
MANY = PasteCounts(**dict.fromkeys(DETECTION_CLASSES, 14))


@pytest.fixture(scope="module")
def database(synthetic_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("objects") / "made"
    return make_objects(synthetic_root, out, VERSION, "train", 3, 3, workers=1, quiet=True)


def data_config(root: Path, **changes) -> DataConfig:
    settings = {"version": VERSION, "image_size": (64, 112), "lidar_sweeps": 3, "radar_sweeps": 3}
    return DataConfig(root=str(root), **(settings | changes))


def opened(root: Path, paste: PasteConfig | None, split: str = "train", changes=None, **augment) -> NuScenesDataset:
    still = {"bev_rotation": 0.0, "bev_scale": (1.0, 1.0), "bev_flip": False}
    images = {"image_scale": (0.0, 0.0), "image_rotation": 0.0, "image_flip": False}
    config = AugmentConfig(paste=paste, **(still | images | augment))
    known = data_config(root, **(changes or {}))
    return NuScenesDataset(known, split, BEVGrid(), config, 5, with_map=False, with_motion=True)


def counts_of(cloud: torch.Tensor, boxes: Boxes, k: int) -> tuple[int, int]:
    """How many points, at least and at most, are in a box where the box was when they were measured (to 1 mm)."""
    points, age = cloud[:, :3].double().numpy(), cloud[:, 4:5].double().numpy()
    center, size, yaw = boxes.center[k].double().numpy(), boxes.size[k].double().numpy(), float(boxes.yaw[k])
    moved = np.r_[boxes.velocity[k].nan_to_num().double().numpy(), 0.0] * age
    x, y, z = (points - (center - moved)).T
    own = np.stack([np.cos(yaw) * x + np.sin(yaw) * y, -np.sin(yaw) * x + np.cos(yaw) * y, z], axis=1)
    least, most = ((np.abs(own) <= size / 2 + slack).all(1).sum() for slack in (-1e-3, 1e-3))
    return int(least), int(most)


def test_the_database_holds_what_the_sensors_saw(synthetic_root, database):
    objects = Objects.open(database)
    plain = NuScenesDataset(data_config(synthetic_root, image_size=(99, 176)), "train", BEVGrid(), with_map=False)
    assert len(objects) > 100 and objects.lidar_sweeps == 3 and len(set(objects.boxes.label.tolist())) >= 8
    assert len(list(database.rglob("*.safetensors"))) == len(objects) and not (database / ".part").exists()
    compared = 0
    for sample in (plain[1], plain[8]):
        wanted = torch.tensor([f"/{plain.tables.row_of(sample.token):06d}-" in str(f) for f in objects.files])
        for row in wanted.nonzero()[:12, 0].tolist():
            box, cutting = objects.boxes[torch.tensor([row])], objects.read(row)
            k = sample.boxes.instance.index(box.instance[0])
            for name in ("center", "size", "yaw", "velocity", "label", "attribute", "visibility"):
                there = getattr(sample.boxes, name)[k]
                torch.testing.assert_close(getattr(box, name)[0], there, atol=1e-5, rtol=0, equal_nan=True)
            least, most = counts_of(sample.lidar, box, 0)
            assert least <= len(cutting.lidar) == int(box.num_points[0, 0]) <= most
            compared += _same_pixels(sample.cameras, box, cutting.patches)
    assert compared > 5


def _same_pixels(cameras: Cameras, box: Boxes, patches) -> int:
    """Each patch is a piece of its image: the corners in both say where."""
    corners, _, _ = project(cameras, box)
    for channel, patch in patches.items():
        m = cameras.channels.index(channel)
        offset = (corners[m, 0] - patch.corners).mean(0)
        assert (corners[m, 0] - patch.corners - offset).abs().max() < 1e-3 and (
            offset - offset.round()
        ).abs().max() < 1e-3
        left, top = offset.round().int().tolist()
        rows, cols = patch.image.shape[-2:]
        piece = cameras.images[m, :, top : top + rows, left : left + cols]
        assert (piece - patch.image / 255).abs().mean() < 0.02
    return len(patches)


def test_a_sample_gets_back_what_was_cut_out_of_it(synthetic_root, database):
    """Objects set into their own sample, emptied before: points where they were, and pixels as they were."""
    changed = {"image_scale": (0.05, 0.05), "image_rotation": 4.0, "image_flip": True}
    dataset = opened(synthetic_root, PasteConfig(str(database), MANY), **changed)
    paster = dataset.paster
    whole = opened(synthetic_root, None, **changed)[3]
    mine = np.array([f"/{dataset.tables.row_of(whole.token):06d}-" in str(f) for f in paster.objects.files])
    paster = dataclasses.replace(paster, pools=tuple(pool[mine[pool]] for pool in paster.pools))
    empty = dataclasses.replace(
        whole,
        boxes=Boxes.empty(),
        lidar=whole.lidar[:0],
        radar=whole.radar[:0],
        cameras=dataclasses.replace(whole.cameras, images=torch.zeros_like(whole.cameras.images)),
    )
    filled = paster(empty, Boxes.empty(), np.random.default_rng(0))
    assert len(filled.boxes) >= 5 and sum(pool.size for pool in paster.pools) >= len(filled.boxes)
    places = {tuple(row) for row in whole.lidar.tolist()}
    assert len(filled.lidar) == int(filled.boxes.num_points[:, 0].sum()) > 50
    assert all(tuple(row) in places for row in filled.lidar.tolist())
    painted = filled.cameras.images.amax(1) > 0.02
    difference = (filled.cameras.images - whole.cameras.images).abs().mean(1)[painted]
    contrast = (whole.cameras.images.mean((2, 3), keepdim=True) - whole.cameras.images).abs().mean(1)[painted]
    assert painted.sum() > 150 and difference.mean() < 0.03 < contrast.mean()


def polygons(boxes: Boxes) -> list[Polygon]:
    return [Polygon(c.tolist()) for c in corners_bev(boxes.center, boxes.size, boxes.yaw).double()]


def way_of(sample: Sample) -> list[Polygon]:
    """The vehicle's own footprint at every known step, without any margin."""
    poses = [(0.0, 0.0, 0.0)]
    poses += [
        (*p, y)
        for p, y, known in zip(
            sample.future.position.tolist(), sample.future.yaw.tolist(), sample.future.mask, strict=True
        )
        if known
    ]
    center = torch.tensor([[x + EGO_CENTER * np.cos(yaw), y + EGO_CENTER * np.sin(yaw), 0] for x, y, yaw in poses])
    return polygons(Boxes.of(center, torch.tensor(EGO_SIZE).expand(len(poses), 3), torch.tensor([p[2] for p in poses])))


@pytest.mark.parametrize("index", [4, 11])
def test_what_is_pasted_stands_clear_and_is_counted(synthetic_root, database, index):
    before = opened(synthetic_root, None)[index]
    dataset = opened(synthetic_root, PasteConfig(str(database), MANY))
    after = dataset[index]
    count = len(after.boxes) - len(before.boxes)
    pasted = after.boxes[torch.arange(len(before.boxes), len(after.boxes))]
    assert count >= 3 and torch.equal(after.boxes.center[: len(before.boxes)], before.boxes.center)
    everything = NuScenesDataset(data_config(synthetic_root), "train", BEVGrid(), with_map=False)[index].boxes
    shapes = polygons(pasted)
    for k, shape in enumerate(shapes):
        others = [*polygons(everything), *shapes[:k], *way_of(before)]
        assert max(shape.intersection(other).area for other in others) < 1e-6
    # The points of each box are those that it says, and no others; what is outside of the boxes has stayed, in order.
    for k in range(count):
        least, most = counts_of(after.lidar, pasted, k)
        assert least <= int(pasted.num_points[k, 0]) <= most and pasted.num_points[k, 0] >= 5
    for name, inside in (("lidar", lidar_inside), ("radar", radar_inside)):
        old, new, column = getattr(before, name), getattr(after, name), ("lidar", "radar").index(name)
        gone = torch.cat(inside(old, pasted)).unique()
        stayed = torch.ones(len(old), dtype=torch.bool).index_fill(0, gone, False)
        assert len(new) == int(stayed.sum()) + int(pasted.num_points[:, column].sum())
        assert new[: int(stayed.sum())].equal(old[stayed])
    # Nobody knows how what was pasted goes on; whatever else there is goes on as it did.
    assert torch.equal(after.motion.label[: len(after.boxes)], after.boxes.label)
    assert not after.motion.path.mask[len(before.boxes) : len(after.boxes)].any()
    kept = torch.cat([torch.arange(len(before.boxes)), torch.arange(len(after.boxes), len(after.motion))])
    assert torch.equal(after.motion[kept].path.position, before.motion.path.position)
    now = after.motion.now[: len(after.boxes)]
    assert now.mask.all() and torch.equal(now.position, after.boxes.center[:, :2])
    assert len(set(after.boxes.instance)) == len(after.boxes)
    assert (
        torch.bincount(pasted.label, minlength=10) <= (14 - torch.bincount(everything.label, minlength=10)).clamp(min=0)
    ).all()
    again, other = dataset[index], dataset[1, index]
    assert again.lidar.equal(after.lidar) and again.cameras.images.equal(after.cameras.images)
    assert other.boxes.instance != after.boxes.instance


def first_box(origin: np.ndarray, ray: np.ndarray, boxes: Boxes) -> int:
    """Which box a ray meets first, by walking along it; -1: none."""
    x, y, z = (origin + np.arange(0.5, 40, 0.01)[:, None] * ray).T
    first = []
    for k in range(len(boxes)):
        cx, cy, cz = boxes.center[k].tolist()
        c, s = np.cos(float(boxes.yaw[k])), np.sin(float(boxes.yaw[k]))
        offset = np.abs([c * (x - cx) + s * (y - cy), -s * (x - cx) + c * (y - cy), z - cz])
        first.append(np.append(np.flatnonzero((offset.T <= boxes.size[k].numpy() / 2).all(1)), len(x))[0])
    return int(np.argmin(first)) if min(first) < len(x) else -1


def test_nothing_is_painted_over_what_is_nearer():
    """Four boxes one before another, one of them beside the camera's own plane; two are pasted, in two colours."""
    image_from_cam = torch.tensor([[60.0, 0, 47.5, 0], [0, 60.0, 31.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    ego_from_cam = torch.tensor([[0.0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
    background = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    cameras = Cameras(
        background, image_from_cam[None], ego_from_cam[None], torch.zeros(1, dtype=torch.int64), ("CAM_FRONT",)
    )
    boxes = Boxes.of(
        torch.tensor([[12.0, 1.0, 1.0], [3.0, -2.0, 1.0], [16.0, 0.0, 1.5], [9.0, -1.2, 0.8]]),
        torch.tensor([[1.0, 1.5, 2.0], [8.0, 1.0, 2.0], [12.0, 3.0, 3.0], [0.8, 0.8, 1.7]]),
        torch.tensor([0.3, 0.1, 0.5, 0.0]),
    )
    there, pasted = boxes[torch.tensor([0, 1])], boxes[torch.tensor([2, 3])]
    corners, _, _ = project(cameras, pasted)
    colors = torch.tensor([[255, 0, 0], [0, 0, 255]], dtype=torch.uint8)
    patches = [
        {"CAM_FRONT": Patch(colors[k][:, None, None].expand(3, 64, 96).contiguous(), corners[0, k].float())}
        for k in (0, 1)
    ]
    painted = paint(cameras, there, pasted, patches)[0]
    assert cameras.images is background and background.equal(
        torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    )
    mixed = paint(cameras, there, pasted, patches, blend=0.4)[0]
    swapped = paint(cameras, there, pasted[torch.tensor([1, 0])], patches[::-1])[0]
    assert swapped.equal(painted)
    origin, seen = ego_from_cam[:3, 3].numpy(), []
    for v, u in itertools.product(range(0, 64, 3), range(0, 96, 3)):
        ray = (ego_from_cam[:3, :3] @ torch.linalg.inv(image_from_cam[:3, :3]) @ torch.tensor([float(u), v, 1])).numpy()
        edges = {
            first_box(origin, ray * np.array([1, 1 + dy, 1 + dz]) + [0, dy, dz], boxes)
            for dy in (-0.01, 0.01)
            for dz in (-0.01, 0.01)
        }
        first = first_box(origin, ray, boxes)
        if edges != {first}:
            continue  # an edge: a hair's breadth decides
        seen.append(first)
        color = colors[first - 2] / 255 if first >= 2 else background[0, :, v, u]
        torch.testing.assert_close(painted[:, v, u], color, atol=1e-5, rtol=0)
        expected = 0.4 * color + 0.6 * background[0, :, v, u] if first >= 2 else background[0, :, v, u]
        torch.testing.assert_close(mixed[:, v, u], expected, atol=1e-5, rtol=0)
    assert {0, 1, 2, 3, -1} == set(seen), "every box is somewhere the first"


def test_a_patch_is_made_small_without_aliasing():
    """A board of single black and white pixels, seen at a third of its size, mirrored: grey, not stripes."""
    board = (torch.arange(90)[:, None] + torch.arange(120)) % 2 * torch.ones(3, 1, 1)
    board[:, :, 60:] = 0.0
    corners = torch.tensor([[0.0, 0], [119, 0], [119, 89], [0, 89], [20, 10], [100, 10], [100, 80], [20, 80]])
    seen = torch.stack([39 - corners[:, 0] / 3, corners[:, 1] / 3 + 1], dim=1)
    image, known = warp(Patch((255 * board).to(torch.uint8), corners), seen, (0, 0, 44, 34))
    assert known[1:31, :40].all() and not known[:, 41:].any() and not known[32:].any()
    assert (image[:, 3:28, 22:38] - 0.5).abs().max() < 0.1 and image[:, 3:28, 2:18].max() < 0.02


def scene(seen: Boxes) -> Sample:
    """A sample with one camera that looks ahead, a cloud of two sweeps on a raster, and some returns."""
    image_from_cam = torch.tensor([[[60.0, 0, 47.5, 0], [0, 60.0, 31.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]]])
    ego_from_cam = torch.tensor([[[0.0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]]])
    images = torch.full((1, 3, 64, 96), 0.5)
    lidar = torch.zeros(800, 5)
    lidar[:, :2] = torch.cartesian_prod(torch.arange(20) * 2.0 + 0.5, torch.arange(20) - 9.5).repeat(2, 1)
    lidar[400:, 4] = 0.05
    radar = torch.zeros(20, 14)
    radar[:, 0], radar[:, 8] = torch.arange(20) * 2.0 + 0.5, 3.0
    return Sample(
        "t", "s", 0, torch.eye(4, dtype=torch.float64), torch.eye(4),
        Cameras(images, image_from_cam, ego_from_cam, torch.zeros(1, dtype=torch.int64), ("CAM_FRONT",)),
        lidar, radar, boxes=seen,
    )  # fmt: skip


def car(x: float, y: float, **fields) -> Boxes:
    center = torch.tensor([[x, y, 0.9]])
    return Boxes.of(center, torch.tensor([[4.0, 2.0, 1.8]]), torch.zeros(1), instance=(f"{x},{y}",), **fields)


def make_paster(boxes: Boxes, cutting, data: DataConfig | None = None, **settings) -> Paster:
    """One that always finds the same cutting, for each of the boxes."""

    class Kept(Objects):
        def read(self, index, channels=CAMERAS):
            if isinstance(cutting, Exception):
                raise cutting
            return dataclasses.replace(
                cutting, patches={c: cutting.patches[c] for c in channels if c in cutting.patches}
            )

    objects = Kept(Path(), 3, 3, (VERSION, "train"), boxes, np.array([b"x"] * len(boxes)))
    pools = (np.arange(len(boxes)), *[np.zeros(0, dtype=np.int64)] * 9)
    config = PasteConfig(counts=PasteCounts(car=9), **settings)
    return Paster(objects, config, data or DataConfig(), BEVGrid(), pools)


def cutting_of(box: Boxes, points: int = 12, returns: int = 3) -> Cutting:
    lidar, radar = torch.zeros(points, 5), torch.zeros(returns, 14)
    lidar[:, :3], radar[:, :3] = box.center, box.center
    lidar[points // 2 :, 4] = torch.linspace(0.04, 0.4, points - points // 2)
    radar[:, 10], radar[:, 8], radar[:, 6] = torch.arange(returns).float(), 3.0, 0.0
    corners, _, _ = project(scene(Boxes.empty()).cameras, box)
    patch = Patch(torch.zeros(3, 64, 96, dtype=torch.uint8), corners[0, 0].float())
    return Cutting(lidar, radar, {"CAM_FRONT": patch})


def paste(paster: Paster, sample: Sample, **settings) -> Sample:
    return paster(sample, sample.boxes, np.random.default_rng(0), **settings)


def test_any_sensor_may_be_absent():
    box = car(15, 2)
    everything, cutting = scene(Boxes.empty()), cutting_of(car(15, 2))
    for kinds in itertools.product((True, False), repeat=3):
        there = {
            name: getattr(everything, name) if has else None
            for name, has in zip(("cameras", "lidar", "radar"), kinds, strict=True)
        }
        after = paste(make_paster(box, cutting), dataclasses.replace(everything, **there))
        assert len(after.boxes) == any(kinds), "what no sensor sees is not pasted"
        assert [getattr(after, name) is not None for name in there] == list(kinds)
        if kinds[0]:
            assert (after.cameras.images == 0).any() and (everything.cameras.images == 0.5).all()
        if kinds[1]:
            near = (after.lidar[:, :3] == box.center).all(1)
            assert int(near.sum()) == after.boxes.num_points[0, 0] == 7, "none of the sweeps that the sample lacks"
            assert float(after.lidar[:, 4].max()) <= 0.05 + KEY_SWEEP
        if any(kinds):
            assert after.boxes.num_points[0].tolist() == [7 * kinds[1], 3 * kinds[2]]


def test_every_sensor_of_the_sample_must_know_the_object():
    box, everything = car(15, 2), scene(Boxes.empty())
    cutting = cutting_of(box)
    blind, few = dataclasses.replace(cutting, patches={}), dataclasses.replace(cutting, lidar=cutting.lidar[:4])
    assert not len(paste(make_paster(box, blind), everything).boxes), "a camera would see it"
    assert not len(paste(make_paster(box, few), everything).boxes), "the LiDAR would see more of it"
    assert len(paste(make_paster(box, few, min_points=PastePoints(car=4)), everything).boxes)
    behind = car(-15, 2)
    assert len(paste(make_paster(behind, dataclasses.replace(cutting_of(behind), patches={})), everything).boxes)
    across = car(2.2, 3)  # one end is behind the camera's plane
    assert not len(paste(make_paster(across, cutting_of(across)), everything).boxes)


def test_returns_pass_the_sample_s_own_filter_and_radars():
    box = car(15, 2)
    cutting = cutting_of(box, returns=5)
    cutting.radar[0, 7] = 2  # invalid
    radar_of = lambda after: after.radar[(after.radar[:, :3] == box.center).all(1), 10].tolist()  # noqa: E731
    assert radar_of(paste(make_paster(box, cutting), scene(Boxes.empty()))) == [0, 1, 2, 3, 4]
    after = paste(make_paster(box, cutting, DataConfig(radar_filter="valid")), scene(Boxes.empty()), radars=RADARS[:3])
    assert radar_of(after) == [1, 2] and after.boxes.num_points[0, 1] == 2
    cutting.radar[3, 6] = 0.3
    assert radar_of(paste(make_paster(box, cutting), scene(Boxes.empty()))) == [0, 1, 2, 4], "an older sweep"


@pytest.mark.parametrize(
    ("there", "candidate", "limit", "fits"),
    [
        (car(15, 4.5), car(15, 2), 0.3, True),  # beside it
        (car(15, 3), car(15, 2), 1.0, False),  # in it
        (car(9, 1.2), car(15, 2), 0.3, False),  # hidden by it
        (car(9, 1.2), car(15, 2), 1.0, True),
        (car(15, 2), car(9, 1.2), 0.3, False),  # hides it
        (car(30, -9), car(4, 0), 1.0, False),  # where the vehicle stands
    ],
)
def test_where_there_is_no_room_nothing_is_pasted(there, candidate, limit, fits):
    paster = make_paster(candidate, cutting_of(candidate), max_occlusion=limit)
    assert len(paste(paster, scene(there)).boxes) == 1 + fits


def test_nothing_is_pasted_in_the_way_or_twice():
    ahead = car(15, 0)
    path = Trajectory(torch.tensor([[9.0, 0.0], [18.0, 0.0]]), torch.zeros(2), torch.tensor([True, True]))
    paster = make_paster(ahead, cutting_of(ahead))
    assert len(paste(paster, scene(Boxes.empty())).boxes) == 1
    assert not len(paste(paster, dataclasses.replace(scene(Boxes.empty()), future=path)).boxes), "between two steps"
    stops = dataclasses.replace(path, mask=torch.tensor([True, False]))
    assert len(paste(paster, dataclasses.replace(scene(Boxes.empty()), future=stops)).boxes) == 1
    same = dataclasses.replace(car(30, 9), instance=ahead.instance)
    assert len(paste(paster, scene(same)).boxes) == 1, "the same object stands elsewhere"
    both = Boxes.cat([ahead, car(15, 1)])
    assert len(paste(make_paster(both, cutting_of(ahead), max_occlusion=1.0), scene(Boxes.empty())).boxes) == 1


def test_points_of_older_sweeps_trail_behind():
    moving = car(20, 0, velocity=torch.tensor([[10.0, 0.0]]))
    points = torch.zeros(4, 5)
    points[:, 2] = 0.9
    points[:, 0] = torch.tensor([20.0, 15.0, 15.0, 20.0])
    points[:, 4] = torch.tensor([0.0, 0.5, 0.0, 0.5])
    assert lidar_inside(points, moving)[0].tolist() == [0, 1]
    unknown = car(20, 0)
    assert lidar_inside(points, unknown)[0].tolist() == [0, 3] and lidar_inside(points[:0], unknown)[0].tolist() == []
    returns = torch.zeros(3, 14)
    returns[:, 0], returns[:, 1], returns[:, 2] = 20, torch.tensor([1.4, 1.6, 0.0]), torch.tensor([5.0, 0.9, 0.9])
    assert radar_inside(returns, unknown)[0].tolist() == [0, 2], "half a metre of margin, at any height"


def test_nothing_is_pasted_where_a_model_is_evaluated_and_no_file_of_later_is_read(
    synthetic_root, database, monkeypatch
):
    dataset = opened(synthetic_root, PasteConfig(str(database), MANY))
    tables, read = dataset.tables, []
    real = type(tables).path

    def watched(self, row):
        read.append(row)
        return real(self, row)

    monkeypatch.setattr(type(tables), "path", watched)
    sample = dataset[1]
    late = tables.data_time[read] - sample.timestamp
    assert len(read) > 10 and (late[~np.isin(read, tables.key_data[dataset.rows[1]])] <= 0).all()
    config = Config(data=data_config(synthetic_root, split="val"), augment=dataset.augment)
    assert open_split(config, "val", training=False).paster is None
