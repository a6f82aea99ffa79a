"""The demo, small: everything it promises is there, and a second call keeps what the first made."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from fusion3d import demo as demo_module
from fusion3d.demo import DemoConfig, Stages, demo
from fusion3d.errors import DataError
from fusion3d.view.sections import Findings

SUBSETS = {"camera", "lidar", "radar", "camera+lidar", "camera+radar", "lidar+radar", "camera+lidar+radar"}
SCORES = {"NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE"}
PLANS = {"L2@1s", "L2@2s", "L2@3s", "collision@1s", "collision@2s", "collision@3s"}


def small_options(folder: Path) -> DemoConfig:
    values = yaml.safe_load(Path("configs/demo.yaml").read_text())
    values["data"] |= {"root": str(folder / "data"), "image_size": [64, 176], "workers": 0}
    values["grid"]["resolution"], values["lidar"]["pillar"] = 3.2, 1.6
    values["train"] |= {"epochs": 1, "log_every": 1}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return DemoConfig(
        config=path,
        out=folder / "run",
        scenes=2,
        val_scenes=1,
        keyframes=8,  # fewer would leave no sample with three seconds of future
        image_size=(99, 176),
        sweeps=1,
        pictures=2,
        worst=1,
    )


def test_the_demo_makes_what_it_promises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small_options(tmp_path)
    demo(options)
    metrics = json.loads((options.out / "metrics.json").read_text())
    assert set(metrics["subsets"]) == SUBSETS
    for row in metrics["subsets"].values():
        assert row.keys() >= SCORES
        assert all(0 <= row[name] <= 1 for name in ("NDS", "mAP"))
    assert metrics["planning"].keys() >= {"model", "constant_velocity", "stationary"}
    for row in metrics["planning"].values():
        assert row.keys() >= PLANS and all(math.isfinite(row[name]) for name in PLANS)
    seconds = metrics["seconds"]
    assert seconds["total"] == pytest.approx(sum(v for k, v in seconds.items() if k != "total"))
    page = (options.out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert f"{metrics['subsets']['lidar+radar']['NDS']:.3f}" in page
    for heading in ("What is left without a sensor", "What each sensor is worth", "What the model looks at"):
        assert f">{heading}</h2>" in page
    assert metrics["shapley"]["NDS"].keys() == {"camera", "lidar", "radar"}
    assert sorted(path.parent.name for path in options.out.glob("evaluation/*/*.png")) == ["explain", "worst"]
    first = capsys.readouterr().out
    assert "[4/4]" in first and "camera+lidar+radar" in first

    checkpoint = next((options.out / "checkpoints").iterdir())
    before = checkpoint.stat().st_mtime_ns
    monkeypatch.setattr(demo_module, "draw", lambda *_: [])  # which would draw the same pictures again
    monkeypatch.setattr(demo_module, "find_out", lambda *_: Findings())
    demo(options)
    again = json.loads((options.out / "metrics.json").read_text())
    assert checkpoint.stat().st_mtime_ns == before
    assert again["subsets"] == metrics["subsets"]
    assert again["seconds"]["train"] >= seconds["train"]


def test_seconds_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "seconds.json"
    path.write_text("{")
    with pytest.raises(DataError, match=r"cannot read .*seconds\.json"):
        Stages(path)
