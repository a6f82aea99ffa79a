"""The page of an evaluation's folder: with everything in it, with little, and broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion3d.analysis.report import main, report, worst_tokens
from fusion3d.engine.evaluate import evaluate
from fusion3d.engine.matches import read_matches
from fusion3d.engine.submission import from_records, to_records
from fusion3d.errors import DataError
from fusion3d.metrics.faults import Fault, find_faults
from fusion3d.metrics.shapley import shapley
from fusion3d.types import Boxes

sys.path.insert(0, str(Path(__file__).parent))
from small_models import on_synthetic, saved


def evaluated(root: Path, folder: Path, split: str) -> Path:
    config = on_synthetic(root, data__split=split, camera=None, map=None, planning=None, detection__max_boxes=40)
    evaluate(saved(config, folder / "checkpoints" / "step-00000001"), config, folder / "evaluation")
    return folder / "evaluation"


@pytest.fixture(scope="module")
def evaluation(synthetic_root, tmp_path_factory) -> Path:
    return evaluated(synthetic_root, tmp_path_factory.mktemp("run"), "val")


def test_the_page_of_a_run_has_what_lies_in_it(evaluation, tmp_path, capsys):
    assert main([str(evaluation.parent), "--worst", "1", "--out", str(tmp_path / "page.html")]) == 0
    assert "written:" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    headings = ("Detection by sensors", "What is left without a sensor", "What each sensor is worth", "Worst samples",
                "How sure, how often right", "Time", "Configuration and environment")  # fmt: skip
    assert all(f">{heading}</h2>" in page for heading in headings)
    assert page.count("data:image/png") == 1 and "Robustness" not in page and "temperature" not in page
    assert len(list((evaluation / "worst").glob("*.png"))) == 1
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert f"{metrics['shapley']['NDS']['lidar']:.3f}" in page and "detection.max_boxes = 40" in page

    token = next((evaluation / "worst").glob("*.png")).stem
    total: dict[str, float] = {}
    for fault in find_faults(read_matches(evaluation / "lidar+radar" / "matches.npz")):
        total[fault.token] = total.get(fault.token, 0) + fault.cost
    assert token == max(total, key=lambda one: total[one])
    assert f"{token}: {total[token]:.4f} mAP" in page


def test_intervals_and_strata_are_where_evaluate_writes_them(synthetic_root, tmp_path):
    evaluation = evaluated(synthetic_root, tmp_path, "train")  # two scenes, so that numbers have intervals
    metrics = json.loads((evaluation / "metrics.json").read_text())
    rows, worth = metrics["subsets"], metrics["shapley"]["strata"]["distance"]
    for band, of_band in worth.items():
        scores = {name: row["strata"]["distance"][band]["mAP"] for name, row in rows.items()}
        if None in scores.values():
            assert set(of_band["mAP"].values()) == {None}, band
        else:
            assert of_band["mAP"] == pytest.approx(shapley(scores), abs=1e-12), band
    assert {band for band, of in worth.items() if None not in of["mAP"].values()} >= {"0-10 m", "10-20 m"}

    # Numbers that can be told from each other, in the places of those that are there.
    for i, row in enumerate(rows.values()):
        band = row["strata"]["distance"]["10-20 m"]
        assert len(row["intervals"]["NDS"]) == len(band["intervals"]["mAP"]) == 2
        row["intervals"]["NDS"], band["intervals"]["mAP"] = [0.411 + i, 0.456 + i], [0.322 + i, 0.377 + i]
        assert band["mAP"] is not None
        band["mAP"] = 0.345 + i
    worth["10-20 m"]["mAP"]["lidar"] = 7.654
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    page = report(evaluation, pictures=False).read_text()
    assert ">By distance, light and the like</h2>" in page and "<h3>In mAP by distance</h3>" in page
    for i in range(len(rows)):
        assert page.count(f"{i}.411 to {i}.456") == page.count(f"{i}.322 to {i}.377") == page.count(f"{i}.345<") == 1
    assert page.count("7.654") == 1


def test_more_files_are_more_sections_and_no_pictures_are_drawn_unasked(evaluation):
    before = set(evaluation.rglob("*"))
    (evaluation / "robustness.json").write_text(
        '{"mRA": {"all": {"NDS": 0.5, "mAP": 0.25}}, "curves": {"camera.late": {}}}'
    )
    plots = [evaluation / f"robustness-{kind}.svg" for kind in ("late", "keep")]  # the second of an earlier suite
    for plot in plots:
        plot.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    try:
        page = report(evaluation, evaluation / "page.html", worst=2, pictures=False).read_text()
    finally:
        for path in (evaluation / "robustness.json", *plots):
            path.unlink()
    assert ">Robustness</h2>" in page and "0.250" in page and "data:image/png" not in page
    assert "robustness late" in page and "robustness keep" not in page
    assert set(evaluation.rglob("*")) == before | {evaluation / "page.html"}


def test_what_is_missing_or_broken_is_named(evaluation, tmp_path):
    with pytest.raises(DataError, match=r"no .*metrics\.json; give the folder that evaluate wrote"):
        report(tmp_path)
    for name in ("metrics.json", "run.json"):
        (tmp_path / name).write_text((evaluation / name).read_text())
    (tmp_path / "similarity.json").write_text('{"pairs": [')
    with pytest.raises(DataError, match=r"cannot read .*similarity\.json"):
        report(tmp_path)
    (tmp_path / "similarity.json").write_text("[]")
    with pytest.raises(DataError, match=r"similarity\.json holds a list, expected an object"):
        report(tmp_path)
    (tmp_path / "similarity.json").unlink()
    page = report(tmp_path).read_text()  # without results: the scores alone
    assert "Worst samples" not in page and "Detection by sensors" in page
    (tmp_path / "run.json").write_text('{"checkpoint": "somewhere"}')
    with pytest.raises(DataError, match=r"run\.json lacks config, or what was scored; give the folder"):
        report(tmp_path)


def test_samples_are_ordered_by_what_their_boxes_cost():
    def fault(token: str, cost: float) -> Fault:
        return Fault(token, "car", True, -1.0, (0.0, 0.0), cost, 4.0)

    found = worst_tokens([fault("a", 0.3), fault("b", 0.2), fault("c", 0.1), fault("b", 0.15)], 2)
    assert {token: [f.cost for f in faults] for token, faults in found.items()} == {"b": [0.2, 0.15], "a": [0.3]}
    assert worst_tokens([], 3) == {}


def test_records_become_the_boxes_that_they_were():
    torch.manual_seed(0)
    count = 20
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64))[0]
    turn[:, 1] *= torch.det(turn)
    pose = np.eye(4)
    pose[:2, :2], pose[:3, 3] = turn.numpy(), [600.0, 1200.0, 1.5]
    boxes = Boxes.of(
        torch.randn(count, 3) * 20, torch.rand(count, 3) + 0.5, torch.rand(count) * 6 - 3, torch.randn(count, 2),
        torch.zeros(count), torch.linspace(0.9, 0.1, count), torch.randint(0, 3, (count,)),
    )  # fmt: skip
    back = from_records(to_records(boxes, pose, "t"), pose)
    for name in ("center", "size", "velocity", "score", "yaw"):
        assert torch.allclose(getattr(back, name), getattr(boxes, name), atol=1e-3), name
    assert torch.equal(back.label, boxes.label) and torch.equal(back.attribute, boxes.attribute)
    assert len(from_records([], pose)) == 0
