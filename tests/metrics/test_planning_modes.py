"""The numbers of a planner's modes, against nuscenes-devkit's own functions of prediction, and by hand."""

from __future__ import annotations

import importlib
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from worlds import arc, boxes, drives, parked, straight, traffic

from fusion3d.metrics.planning.modes import BEST_OF, score_modes


def test_best_of_k_is_the_devkits(monkeypatch):
    pytest.importorskip("nuscenes")
    drawing = ModuleType("descartes")  # what the devkit draws maps with, for which it is imported
    monkeypatch.setitem(sys.modules, "descartes", drawing)
    metrics = importlib.import_module("nuscenes.eval.prediction.metrics")
    rng, of = np.random.default_rng(0), traffic(1, 25, people=0)
    path = of.future[:, None] + rng.normal(0, 3, (25, 12, 1, 3)) * np.arange(1, 7)[:, None] / 3
    likely = rng.dirichlet(np.ones(12), 25)
    found = score_modes(path, likely, np.zeros((25, 12)), likely.argmax(axis=1), of)
    expected: dict[str, list[float]] = {}
    for sample in range(25):
        truth = np.repeat(of.future[sample][None, :, :2], 12, axis=0)
        given = path[sample, :, :, :2], truth, likely[sample]
        devkits = {
            "minADE": metrics.min_ade_k(*given),
            "minFDE": metrics.min_fde_k(*given),
            "miss": metrics.miss_rate_top_k(*given, 2.0),
        }
        for name, values in devkits.items():
            for count in BEST_OF:
                expected.setdefault(f"{name}_{count}", []).append(float(np.ravel(values)[count - 1]))
    assert found["N"] == 25 and found["K"] == 12
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.mean(values)), name
    assert 0 < found["miss_10"] < found["miss_1"]


def test_calibration_and_spread_by_hand():
    """Two paths: the likelier is right in half of the samples; one of them hits a parked car."""
    of = drives(np.repeat(straight(4.0), 4, 0), boxes([row for i in (0, 1) for row in parked(i, 12.0, 0.0)]))
    slow, fast = straight(2.0), straight(4.0)
    path = np.repeat(np.stack([slow, fast], axis=1), 4, axis=0)
    likely = np.array([[0.3, 0.7]] * 2 + [[0.7, 0.3]] * 2)
    found = score_modes(path, likely, np.full((4, 2), 0.25), np.ones(4, dtype=np.int64), of)
    assert found["imitation_ECE"] == pytest.approx(0.2), "0.7 sure, right in half"
    assert found["collision_ECE"] == pytest.approx(0.25), "0.25 sure, half of them hit"
    assert found["spread"] == pytest.approx(2 * 0.3 * 0.7 * 6.0)
    assert found["minADE_1"] == pytest.approx(0.5 * 2.0 * 1.75) and "minADE_5" not in found


def test_only_whole_futures_count():
    known = np.ones((3, 6), dtype=bool)
    known[1, 4:] = False
    of = drives(np.repeat(arc(5.0, 0.1, 0.5 * np.arange(1, 7)), 3, 0), known=known)
    path = np.repeat(of.future[:, None], 2, axis=1)
    path[1] += 50
    likely = np.full((3, 2), 0.5)
    found = score_modes(path, likely, likely, np.zeros(3, dtype=np.int64), of)
    assert found["N"] == 2 and found["minADE_1"] == 0
    nothing = score_modes(path, likely, likely, np.zeros(3, dtype=np.int64), drives(of.future, known=known & False))
    assert nothing["N"] == 0 and np.isnan(nothing["minADE_1"]) and np.isnan(nothing["imitation_ECE"])


def test_pairs_of_many_paths_do_not_fill_the_memory():
    of, count = drives(np.repeat(straight(4.0), 20, 0)), 256
    path = np.repeat(np.concatenate([straight(4.0 + k / count) for k in range(count)])[None], 20, axis=0)
    likely = np.full((20, count), 1 / count)
    tracemalloc.start()
    found = score_modes(path, likely, likely, np.zeros(20, dtype=np.int64), of)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20 * count**2 * 8, "a number for each pair of each sample"
    assert found["spread"] == pytest.approx(3.0 * (count - 1 / count) / count / 3)
