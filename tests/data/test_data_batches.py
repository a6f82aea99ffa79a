"""Packing, choosing and losing sensors, and the order of batches."""

from __future__ import annotations

import dataclasses
import multiprocessing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.config import AugmentConfig, DataConfig, TrainConfig
from fusion3d.data import BatchOrder, NuScenesDataset, collate, drop_sensors, make_loader, select_sensors
from fusion3d.types import CAMERAS, RADARS, SENSORS, BEVGrid, Boxes, Cameras, EgoStatus, Sample, Trajectory


def make_sample(seed: int, cameras=(), points=None, radars=None, boxes=None, future=True, size=(4, 6)) -> Sample:
    """A sample of random content: ``points``, ``boxes`` are counts, ``radars`` indices in RADARS; None is absent."""
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=draw)

    radar = None
    if radars is not None:
        radar = rand(3 * len(radars), 11)
        radar[:, 10] = torch.tensor(radars).repeat_interleave(3)
    count = len(cameras)
    return Sample(
        token=f"sample-{seed}", scene="s", timestamp=seed, global_from_ego=torch.eye(4, dtype=torch.float64) * seed,
        aug_from_ego=torch.eye(4),
        cameras=Cameras(
            rand(count, 3, *size), rand(count, 4, 4), rand(count, 4, 4), torch.zeros(count, dtype=torch.int64),
            tuple(CAMERAS[c] for c in cameras),
        ) if cameras else None,
        lidar=None if points is None else rand(points, 5), radar=radar,
        boxes=None if boxes is None else Boxes.of(rand(boxes, 3), rand(boxes, 3), rand(boxes)),
        future=Trajectory(rand(6, 2), rand(6), torch.ones(6, dtype=torch.bool)) if future else None,
        status=EgoStatus(rand(2), rand(2), rand(1)[0]) if future else None, command=seed % 3,
    )  # fmt: skip


samples = st.builds(
    make_sample,
    seed=st.integers(0, 99),
    cameras=st.lists(st.integers(0, 5), unique=True, max_size=6),
    points=st.none() | st.integers(0, 5),
    radars=st.none() | st.lists(st.integers(0, 4), unique=True, max_size=5),
    boxes=st.none() | st.integers(0, 3),
    future=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(samples, min_size=1, max_size=4))
def test_a_batch_holds_each_sample_and_nothing_else(items):
    batch = collate(items)
    assert len(batch) == len(items) and batch.tokens == tuple(s.token for s in items)
    for kind, there in (("camera", "cameras"), ("lidar", "lidar"), ("radar", "radar")):
        assert batch.present[kind].tolist() == [getattr(s, there) is not None for s in items]
        assert (getattr(batch, there) is None) == all(getattr(s, there) is None for s in items)
    assert batch.annotated.tolist() == [s.boxes is not None for s in items]
    for index, one in enumerate(items):
        for cloud, points in ((batch.lidar, one.lidar), (batch.radar, one.radar)):
            if cloud is not None:
                mine = cloud.points[cloud.batch_index == index]
                assert torch.equal(mine, points if points is not None else mine[:0])
        if batch.cameras is not None:
            mine = batch.cameras.batch_index == index
            assert int(mine.sum()) == (0 if one.cameras is None else len(one.cameras.channels))
            if one.cameras is not None:
                assert torch.equal(batch.cameras.images[mine], one.cameras.images)
                chosen = mine.nonzero()[:, 0].tolist()
                assert tuple(batch.cameras.channels[i] for i in chosen) == one.cameras.channels
        if batch.future is not None:
            assert bool(batch.future.mask[index].all()) == (one.future is not None)
            assert bool(batch.status.velocity[index].isnan().all()) == (one.status is None)
        if batch.boxes is not None:
            assert len(batch.boxes[index]) == (0 if one.boxes is None else len(one.boxes))
    for cloud in (batch.lidar, batch.radar):
        assert cloud is None or (cloud.batch_index.diff() >= 0).all()


def test_what_does_not_fit_together():
    with pytest.raises(ValueError, match="at least one"):
        collate([])
    with pytest.raises(ValueError, match="different sizes"):
        collate([make_sample(0, cameras=[0]), make_sample(1, cameras=[0], size=(5, 6))])
    maps = [
        dataclasses.replace(make_sample(0), map_mask=torch.ones(6, *shape).bool(), map_known=torch.ones(6).bool())
        for shape in ((2, 2), (2, 3))
    ]
    with pytest.raises(ValueError, match="different shapes"):
        collate(maps)


def test_a_sample_without_a_map_knows_no_class_of_it():
    mask, known = torch.ones(6, 2, 3, dtype=torch.bool), torch.tensor([True, False] * 3)
    with_map = dataclasses.replace(make_sample(0), map_mask=mask, map_known=known)
    batch = collate([with_map, make_sample(1)])
    assert batch.map_mask.shape == (2, 6, 2, 3) and not batch.map_mask[1].any()
    assert torch.equal(batch.map_known, torch.stack([known, torch.zeros(6, dtype=torch.bool)]))
    nothing = collate([make_sample(1)])
    assert nothing.map_mask is None and nothing.map_known is None


def full_batch(size: int = 3):
    return collate([make_sample(i, cameras=range(6), points=4, radars=range(5), boxes=2) for i in range(size)])


@pytest.mark.parametrize("subset", range(8))
def test_selecting_kinds(subset):
    names = [kind for bit, kind in enumerate(SENSORS) if subset >> bit & 1]
    batch = full_batch()
    chosen = select_sensors(batch, names)
    assert {kind: bool(there.all()) for kind, there in chosen.present.items()} == {k: k in names for k in SENSORS}
    assert all(
        getattr(chosen, f) is None
        for f, k in (("cameras", "camera"), ("lidar", "lidar"), ("radar", "radar"))
        if k not in names
    )
    assert chosen.boxes is batch.boxes and chosen.future is batch.future


def test_selecting_channels():
    batch = full_batch()
    chosen = select_sensors(batch, ["CAM_BACK", "RADAR_FRONT", "LIDAR_TOP"])
    assert chosen.cameras.channels == ("CAM_BACK",) * 3 and chosen.cameras.batch_index.tolist() == [0, 1, 2]
    assert set(chosen.radar.points[:, 10].tolist()) == {0.0} and chosen.lidar is batch.lidar
    assert select_sensors(batch, ["lidar"]).cameras is None
    mixed = collate([make_sample(0, cameras=[0, 3], radars=[0]), make_sample(1, cameras=[0], radars=[1])])
    chosen = select_sensors(mixed, [CAMERAS[3], RADARS[1]])
    assert chosen.present["camera"].tolist() == [True, False], "known by image"
    assert chosen.present["radar"].tolist() == [True, True], "not known by radar: none there, or none that saw anything"
    with pytest.raises(ValueError, match=r"unknown sensors .*sonar"):
        select_sensors(batch, ["sonar"])


@settings(max_examples=80, deadline=None)
@given(
    items=st.lists(samples, min_size=1, max_size=3), seed=st.integers(0, 999), p=st.sampled_from([0.0, 0.3, 0.9, 1.0])
)
def test_losses_never_take_the_last(items, seed, p):
    batch = collate(items)
    config = TrainConfig(drop_sensor=p, drop_camera=p, drop_radar=p)
    left = drop_sensors(batch, config, torch.Generator().manual_seed(seed))
    for b in range(len(items)):
        before, after = ({k for k in SENSORS if x.present[k][b]} for x in (batch, left))
        assert after <= before and bool(after) == bool(before)
        if p == 1.0 and before:
            assert len(after) == 1
        if "radar" in after:
            radars = [set(x.radar.points[x.radar.batch_index == b, 10].tolist()) for x in (batch, left)]
            assert radars[1] <= radars[0] and bool(radars[1]) == bool(radars[0])
    assert left.boxes is batch.boxes and (p > 0 or left.present["camera"].equal(batch.present["camera"]))
    again = drop_sensors(batch, config, torch.Generator().manual_seed(seed))
    assert (left.cameras is None) == (again.cameras is None)
    if left.cameras is not None:
        assert left.cameras.channels == again.cameras.channels


def test_losses_have_their_probabilities():
    batch = full_batch(1)
    config = TrainConfig(drop_sensor=0.3, drop_camera=0.2, drop_radar=0.4)
    generator = torch.Generator().manual_seed(0)
    left = [drop_sensors(batch, config, generator) for _ in range(1500)]
    for kind, there in (("camera", "cameras"), ("lidar", "lidar"), ("radar", "radar")):
        share = sum(getattr(x, there) is not None for x in left) / len(left)
        assert abs(share - (0.7 + 0.027 / 3)) < 0.04, kind  # 0.3^3 of the samples lose all and get one back
    images = [len(x.cameras.channels) for x in left if x.cameras is not None]
    assert abs(sum(images) / len(images) / 6 - 0.8) < 0.02
    radars = [len(x.radar.points[:, 10].unique()) for x in left if x.radar is not None]
    assert abs(sum(radars) / len(radars) / 5 - 0.6) < 0.02
    nothing = drop_sensors(batch, TrainConfig(drop_sensor=0, drop_camera=0, drop_radar=0), generator)
    assert torch.equal(nothing.radar.points, batch.radar.points) and nothing.cameras.channels == batch.cameras.channels


def test_order_of_batches():
    def order(rank=0, world=1, epoch=0, start=0, shuffle=True, size=11, batch=2):
        made = BatchOrder(size, batch, shuffle, 5, rank, world)
        made.set_epoch(epoch, start)
        batches = list(made)
        assert len(made) == len(batches)
        return batches

    flat = [index for batch in order() for _, index in batch]
    assert sorted(flat) == list(range(11)) and flat != sorted(flat)
    assert order() == order() and order(epoch=1) != [[(1, i) for _, i in b] for b in order()]
    assert order(start=3) == order()[3:] and order(start=99) == []
    shares = [order(rank, 3) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    assert {i for share in shares for batch in share for _, i in batch} == set(range(11))
    plain = [order(rank, 3, shuffle=False) for rank in range(3)]
    assert sorted(i for share in plain for batch in share for _, i in batch) == list(range(11))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        BatchOrder(4, 2, True, 0, 2, 2)


def _same(one, two) -> bool:
    for name in ("lidar", "radar"):
        if not torch.equal(getattr(one, name).points, getattr(two, name).points):
            return False
    return one.tokens == two.tokens and torch.equal(one.cameras.images, two.cameras.images)


def test_loaders_agree_whatever_the_workers(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", image_size=(45, 80), lidar_sweeps=2)
    dataset = NuScenesDataset(config, "mine", BEVGrid(), AugmentConfig(), 1)
    here = make_loader(dataset, 4, shuffle=True, seed=3)
    there = make_loader(dataset, 4, shuffle=True, seed=3, workers=2)
    for epoch, start in ((0, 0), (1, 1)):
        here.batch_sampler.set_epoch(epoch, start)
        there.batch_sampler.set_epoch(epoch, start)
        pairs = list(zip(here, there, strict=True))
        assert len(pairs) == 3 - start and all(_same(a, b) for a, b in pairs)


def test_a_spawned_worker_reads_the_same(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", sensors=("radar",))
    dataset = NuScenesDataset(config, "mine", BEVGrid(), AugmentConfig(), 1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (other,) = pool.map(dataset.__getitem__, [3])
    assert torch.equal(other.radar, dataset[3].radar) and other.token == dataset.tokens[3]


def test_the_real_scene_loads_and_batches(real_root):
    """Most keyframes have one camera, one radar and no LiDAR; the first has six cameras and LiDAR."""
    config = DataConfig(root=str(real_root), version="v1.0-mini", image_size=(128, 352))
    dataset = NuScenesDataset(config, "real_0061", BEVGrid(), AugmentConfig())
    assert len(dataset) == 38
    batch = collate([dataset[i] for i in (0, 1, 20, 37)])
    assert batch.present["lidar"].tolist() == [True, False, False, False]
    assert batch.present["camera"].all() and batch.present["radar"].all()
    assert torch.bincount(batch.cameras.batch_index).tolist() == [6, 1, 1, 1]
    assert batch.cameras.channels[6:] == ("CAM_FRONT",) * 3 and set(batch.radar.points[:, 10].tolist()) == {0.0}
    assert batch.command.tolist()[3] == -1 and not batch.future.mask[3].any() and batch.map_mask.shape[0] == 4
    assert len(RADARS) == 5 and all(len(boxes) > 20 for boxes in batch.boxes)
    left = drop_sensors(batch, TrainConfig(drop_sensor=1.0), torch.Generator().manual_seed(0))
    assert sum(int(there.sum()) for there in left.present.values()) == 4
