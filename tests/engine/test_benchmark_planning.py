"""The benchmark of scoring plans: its map, and what it writes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fusion3d.cli import run
from fusion3d.engine.benchmark_planning import STREET, random_drives, street_map
from fusion3d.metrics.planning import score_plans


def test_all_that_a_map_says_is_looked_for():
    """Streets of two lanes that cross: who stands at a junction is on the road, and what lies in a block is not."""
    drives = random_drives(40, 5)
    maps = street_map(drives)
    assert maps.ground.known.all() and not maps.ground.by_mask.any() and maps.boundaries.known.all()
    for row in range(40):
        assert maps.ground.drivable(row, np.zeros((1, 2))).all(), "the car stands on the road"
        around = np.stack([np.cos(np.arange(64) / 10.1), np.sin(np.arange(64) / 10.1)], axis=-1)
        assert 0 < maps.ground.drivable(row, 2 * STREET * around).mean() < 1
        assert maps.ground.lanes(row, 2 * STREET * around).any(axis=0).sum() >= 4
        edges = maps.boundaries.segment[maps.boundaries.sample == row].reshape(-1, 2)
        assert len(edges) and (np.abs(edges) < (50, 25)).all()
    scores = score_plans({}, drives, maps=maps)
    assert 0 < scores["pdm"]["human"]["DAC"] < 1 and scores["pdm"]["human"]["num_with_map"] == 40
    assert 0 < scores["protocols"]["bev_planner"]["planners"]["ctrv"]["boundary_raw@3s"] < 1


def test_the_command_says_how_long_it_takes(tmp_path, capsys):
    pytest.importorskip("shapely")
    out = tmp_path / "planning.json"
    sizes = ["--samples", "30", "--agents", "5", "--peer-samples", "5", "--repeats", "1"]
    assert run("benchmark", ["planning", *sizes, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["samples"] == 30 and result["all_protocols_seconds"] > 0 and result["map_seconds"] > 0
    assert "for the map around them" in capsys.readouterr().out
