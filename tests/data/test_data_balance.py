"""Class-balanced order: equal shares, the same on every process, entered anywhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.config import AugmentConfig, DataConfig
from fusion3d.data import BatchOrder, NuScenesDataset, make_loader
from fusion3d.types import DETECTION_CLASSES, BEVGrid


def keys(classes: np.ndarray, rank: int = 0, world: int = 1, epoch: int = 0, start: int = 0, batch: int = 3, seed=5):
    order = BatchOrder(len(classes), batch, True, seed, rank, world, classes)
    order.set_epoch(epoch, start)
    batches = list(order)
    assert len(order) == len(batches)
    return batches


def flat(batches) -> list[tuple[int, ...]]:
    return [key for batch in batches for key in batch]


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=10), none=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_class_has_an_equal_share(counts, none, epoch):
    """With one class in each sample, the samples drawn are counted by class."""
    if not any(counts):
        return
    label = np.repeat(np.arange(len(counts)), counts)
    classes = np.zeros((len(label) + none, len(counts)), dtype=bool)
    classes[np.arange(len(label)), label] = True
    drawn = [index for _, index, _ in flat(keys(classes, epoch=epoch))]
    assert len(drawn) == len(label) and max(drawn) < len(label), "a sample without any class is not drawn"
    shares = np.bincount(label[drawn], minlength=len(counts))[np.array(counts) > 0]
    assert np.ptp(shares) <= 1


def test_shares_of_samples_with_several_classes():
    """A class's share of the draws is equal, so a rare class is seen far more often than it was."""
    rng = np.random.default_rng(0)
    classes = rng.random((3000, 4)) < [0.9, 0.5, 0.1, 0.01]
    drawn = np.array([index for _, index, _ in flat(keys(classes))])
    assert len(drawn) == classes.sum()
    # Expected number of samples with class c: draws for c, and those for others that happen to hold it.
    of_each = np.array([[classes[classes[:, a]][:, c].mean() for c in range(4)] for a in range(4)])
    expected = of_each.mean(0) * len(drawn)
    assert abs(classes[drawn].sum(0) / expected - 1).max() < 0.06
    assert classes[drawn][:, 3].mean() > 20 * classes[:, 3].mean()


def test_the_same_for_all_processes_and_from_any_batch():
    classes = np.random.default_rng(1).random((50, 10)) < 0.2
    whole = keys(classes)
    alone = np.array(flat(whole))
    for world in (2, 3):
        shares = [np.array(flat(keys(classes, rank, world))) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        together = np.stack(shares, axis=1).reshape(-1, 3)
        assert (together[: len(alone)] == alone).all() and len(together) - len(alone) < world
    assert keys(classes, start=7) == whole[7:] and keys(classes, start=999) == []
    assert [k[1:] for k in flat(keys(classes, epoch=1))] != [k[1:] for k in flat(whole)]
    assert keys(classes, seed=6) != whole and keys(classes) == whole
    # A sample that comes again says so, and no key comes twice.
    assert len({tuple(key) for key in alone.tolist()}) == len(alone)
    times = {index: sorted(n for _, i, n in alone.tolist() if i == index) for index in set(alone[:, 1].tolist())}
    assert all(n == list(range(len(n))) for n in times.values()) and max(map(len, times.values())) > 1


def test_what_cannot_be_balanced_is_refused():
    for classes, shuffle in (
        (np.zeros((4, 3), bool), True),
        (np.ones((3, 3), bool), True),
        (np.ones((4, 3), bool), False),
    ):
        with pytest.raises(ValueError, match="class-balanced order of 4 samples"):
            BatchOrder(4, 2, shuffle, 0, 0, 1, classes)


def test_classes_of_a_data_set(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", sensors=(), min_points=1)
    for training in (True, False):
        dataset = NuScenesDataset(config, "mine", BEVGrid(), training=training)
        expected = [[label in dataset[i].boxes.label.tolist() for label in range(10)] for i in range(len(dataset))]
        assert dataset.classes().tolist() == expected
    assert dataset.classes().shape == (10, len(DETECTION_CLASSES))


def test_a_loader_gives_the_same_whatever_its_workers(tiny_root):
    config = DataConfig(root=str(tiny_root), version="v1.0-tiny", sensors=("radar",))
    dataset = NuScenesDataset(config, "mine", BEVGrid(), AugmentConfig(bev_shift=0.5), 1)
    here, there = (
        make_loader(dataset, 4, shuffle=True, seed=3, workers=w, start_batch=2, classes=dataset.classes())
        for w in (0, 1)
    )
    pairs = list(zip(here, there, strict=True))
    assert len(pairs) == -(-int(dataset.classes().sum()) // 4) - 2
    for one, other in pairs:
        assert one.tokens == other.tokens and one.radar.points.equal(other.radar.points)
        assert one.aug_from_ego.equal(other.aug_from_ego)
