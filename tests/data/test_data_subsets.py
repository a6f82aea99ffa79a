"""Several subsets of each sample's sensors: none twice, as likely as they should be, the same for any processes."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.config import TrainConfig, from_dict
from fusion3d.data import draw_subsets, drop_sensors
from fusion3d.engine.random_batch import random_batch
from fusion3d.types import SENSORS, Batch, History, PointCloud

SMALL = from_dict({"data": {"image_size": [64, 64]}, "grid": {"x": [-6.4, 6.4], "y": [-6.4, 6.4], "resolution": 0.8}})
QUIET = TrainConfig(drop_sensor=0.5, drop_camera=0.0, drop_radar=0.0)


def batch_of(there: list[set[str]], history: bool = False) -> Batch:
    """A batch whose samples have some kinds of sensors each, of which little is kept: it is about who is there."""
    size = len(there)
    full = random_batch(SMALL, 1, 8, 5, 1)
    assert full.cameras is not None and full.lidar is not None and full.radar is not None
    has = {kind: torch.tensor([kind in kinds for kinds in there]) for kind in SENSORS}
    index = has["camera"].nonzero()[:, 0].repeat_interleave(2)
    channels = tuple(full.cameras.channels[:2]) * int(has["camera"].sum())
    image, matrix = torch.zeros(len(index), 3, 2, 2), torch.eye(4).expand(len(index), 4, 4)
    cameras = dataclasses.replace(full.cameras, images=image, image_from_cam=matrix, ego_from_cam=matrix,
                                  batch_index=index, channels=channels)  # fmt: skip

    def cloud(of: PointCloud, kind: str) -> PointCloud | None:
        rows = has[kind].nonzero()[:, 0].repeat_interleave(len(of.points))
        return PointCloud(of.points.repeat(int(has[kind].sum()), 1), rows, has[kind]) if len(rows) else None

    batch = dataclasses.replace(
        full,
        tokens=tuple(f"sample-{i}" for i in range(size)),
        command=full.command.expand(size),
        cameras=cameras if len(index) else None,
        lidar=cloud(full.lidar, "lidar"),
        radar=cloud(full.radar, "radar"),
    )
    if not history:
        return batch
    rows = tuple(range(0, size, 2))
    return dataclasses.replace(batch, history=(History(batch_of([there[row] for row in rows]), rows),))


def kinds(batch: Batch) -> list[tuple[str, ...]]:
    """The kinds of sensors of each sample."""
    return [tuple(kind for kind in SENSORS if batch.present[kind][i]) for i in range(len(batch.tokens))]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


some_kinds = st.sets(st.sampled_from(SENSORS))


@settings(max_examples=60, deadline=None)
@given(
    there=st.lists(some_kinds, min_size=1, max_size=5),
    seed=st.integers(0, 999),
    count=st.integers(1, 9),
    p=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)
def test_subsets_are_of_what_is_there_and_none_comes_twice_while_there_are_others(there, seed, count, p):
    batch = batch_of(there)
    seen, subsets = draw_subsets(batch, dataclasses.replace(QUIET, drop_sensor=p), count, generator(seed))
    assert kinds(seen) == kinds(batch) and len(subsets) == count
    for i, has in enumerate(there):
        drawn = [kinds(subset)[i] for subset in subsets]
        assert all(set(one) <= has and bool(one) == bool(has) for one in drawn)
        possible = 1 if p == 0 else len(has) if p == 1 else 2 ** len(has) - 1
        assert len(set(drawn)) == min(count, max(possible, 1))
        assert drawn == [drawn[number % len(set(drawn))] for number in range(count)], "in turn, from the first on"
    for subset in subsets:
        assert subset.tokens == batch.tokens and subset.boxes is batch.boxes
        for kind in SENSORS:  # absent is absent
            assert (subset.sensor(kind) is None) == (not subset.present[kind].any())


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_the_first_subset_is_drawn_as_one_alone_would_be_and_the_second_from_the_others(p):
    size = 4000
    batch, config = batch_of([set(SENSORS)] * size), dataclasses.replace(QUIET, drop_sensor=p)
    _, (first, second) = draw_subsets(batch, config, 2, generator(0))
    of_one = Counter(kinds(drop_sensors(batch, config, generator(1))))
    of_first, pairs = Counter(kinds(first)), Counter(zip(kinds(first), kinds(second), strict=True))
    every = [s for count in (1, 2, 3) for s in itertools.combinations(SENSORS, count)]
    chance = {s: p ** (3 - len(s)) * (1 - p) ** len(s) + (p**3 / 3 if len(s) == 1 else 0) for s in every}
    assert sum(chance.values()) == pytest.approx(1)
    for subset in every:
        spread = 4 * (chance[subset] / size) ** 0.5
        assert of_one[subset] / size == pytest.approx(chance[subset], abs=spread)
        assert of_first[subset] / size == pytest.approx(chance[subset], abs=spread)
        for other in every:
            expected = 0 if other == subset else chance[subset] * chance[other] / (1 - chance[subset])
            assert pairs[subset, other] / size == pytest.approx(expected, abs=4 * (expected / size) ** 0.5)


def test_processes_draw_what_one_would_and_the_past_lacks_what_now_does():
    there = [set(SENSORS), {"camera", "radar"}, set(SENSORS), {"lidar"}, set(), set(SENSORS), {"radar"}, set(SENSORS)]
    _, together = draw_subsets(batch_of(there, history=True), QUIET, 3, generator(5))
    for rank in range(2):
        _, mine = draw_subsets(batch_of(there[rank::2]), QUIET, 3, generator(5), rank, 2)
        assert [kinds(subset) for subset in mine] == [kinds(subset)[rank::2] for subset in together]
    assert any(kinds(subset) != kinds(together[0]) for subset in together)
    for subset in together:
        (past,) = subset.history
        assert kinds(past.batch) == [kinds(subset)[row] for row in past.row]


def test_single_cameras_and_radars_are_lost_once_for_all_subsets():
    batch, config = batch_of([set(SENSORS)] * 6), TrainConfig(drop_sensor=0.5, drop_camera=0.5, drop_radar=0.5)
    seen, subsets = draw_subsets(batch, config, 7, generator(2))
    alone = drop_sensors(batch, dataclasses.replace(config, drop_sensor=0.0), generator(2))
    assert seen.cameras is not None and alone.cameras is not None and batch.cameras is not None
    assert seen.cameras.channels == alone.cameras.channels != batch.cameras.channels
    for subset in subsets:
        for i in range(6):
            for kind, rows in (("camera", "channels"), ("radar", "points")):
                of_subset, of_seen = subset.sensor(kind), seen.sensor(kind)
                if of_subset is not None and of_seen is not None and subset.present[kind][i]:
                    a, b = (
                        [getattr(x, rows)[j] for j in (x.batch_index == i).nonzero()[:, 0].tolist()]
                        for x in (of_subset, of_seen)
                    )
                    assert len(a) == len(b) and all(x is y or (x == y).all() for x, y in zip(a, b, strict=True))
