"""The loader's benchmark: it compares before it measures, and what it writes is whole."""

from __future__ import annotations

import json

import pytest

from fusion3d.data import images
from fusion3d.engine.benchmark_data import STAGES, main
from fusion3d.errors import DataError


@pytest.fixture
def arguments(tiny_root) -> list[str]:
    pytest.importorskip("nuscenes")
    return [
        "--root", str(tiny_root), "--version", "v1.0-tiny", "--split", "mine", "--samples", "2", "--repeats", "2",
        "--image-size", "45", "80",
    ]  # fmt: skip


def test_benchmark_prints_and_writes(arguments, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert all(stage in printed and figures["ratio"][stage] > 0 for stage in (*STAGES, "all"))
    assert figures["counts"]["images"] == 12 and figures["samples_per_second"] > 0


def test_readers_that_disagree_are_not_timed(arguments, monkeypatch):
    load = images.load_cameras

    def dark(*values, **named):
        cameras = load(*values, **named)
        cameras.images.mul_(0.5)
        return cameras

    monkeypatch.setattr(images, "load_cameras", dark)
    with pytest.raises(DataError, match="images of sample"):
        main(arguments)
