"""The metrics' benchmark: it compares before it says a time, and its crowds and tables are what they should be."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fusion3d.data.nuscenes import Tables
from fusion3d.engine.benchmark_metrics import run
from fusion3d.engine.benchmark_metrics.crowd import TRUE, make_crowd
from fusion3d.engine.benchmark_metrics.tables import BOXES, FILES, INSTANCES, KEYFRAMES, VERSION, write_tables
from fusion3d.errors import Fusion3DError
from fusion3d.metrics.detection import score_detections


def test_benchmark_prints_and_writes(tmp_path, capsys):
    pytest.importorskip("nuscenes")
    sizes = ["--samples", "5", "--boxes", "40", "--scenes", "1"]
    assert run.main([*sizes, "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "a.md").read_text()
    assert page in printed and "they agree" in printed and "| >= 20 " in page
    races = json.loads((tmp_path / "a.json").read_text())["races"]
    assert len(races) == 4 and all(race["ours"] > 0 and race["ratio"] > 0 for race in races)


def test_scores_that_disagree_are_not_timed(monkeypatch):
    pytest.importorskip("nuscenes")
    monkeypatch.setattr(run, "score_detections", lambda *data: {**score_detections(*data), "mAP": 0.5})
    with pytest.raises(Fusion3DError, match=r"disagree by .* in mAP"):
        run.time_scoring(4, 20, lambda _: None)


def test_a_crowd_is_seeded_and_of_real_size():
    truth, found = make_crowd(200, 50)
    again = make_crowd(200, 50)[1]
    assert all(np.array_equal(getattr(found, name), getattr(again, name)) for name in ("center", "score", "label"))
    assert len(found) == 200 * 50 and abs(len(truth.boxes) / 200 - TRUE) < 2
    assert 0.1 < score_detections(truth, found)["mAP"] < 0.9


def test_tables_have_a_scene_of_nuscenes_size(tmp_path):
    tables = Tables.open(write_tables(tmp_path / "data", 2), VERSION)
    assert len(tables.sample_token) == 2 * KEYFRAMES and (tables.key_data >= 0).all()
    assert len(tables.data_time) == 2 * 12 * FILES and len(tables.box_class) == 2 * INSTANCES * BOXES
    assert np.isfinite(tables.box_velocity).all()
