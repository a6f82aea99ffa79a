"""The verb ``compare``, and the files that it reads."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fusion3d.analysis.difference import compare_matches, find_matches, format_differences, main, pair_up
from fusion3d.engine.columns import found_columns
from fusion3d.engine.matches import read_matches, write_matches
from fusion3d.engine.scoring import in_strata
from fusion3d.errors import DataError, Fusion3DError
from fusion3d.metrics.bootstrap import draw_scenes
from fusion3d.metrics.detection import MEANS, score_matches
from fusion3d.metrics.matching import Matches, match_detections
from fusion3d.metrics.protocol import CVPR_2019

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))
from crowds import crowd
from devkit import truth_columns


def result(shift: float = 0.0, scenes: int = 8, lost: float = 0.0, seed: int = 0) -> Matches:
    """Always the same truth; detections moved, and a share of them lost."""
    truth, results, ego = crowd(seed, 0.4, None, samples=scenes, boxes=20)
    rng = np.random.default_rng(1)
    moved = {
        token: [
            {**box, "translation": [box["translation"][0] + shift, *box["translation"][1:]]}
            for box in boxes
            if rng.random() >= lost
        ]
        for token, boxes in results.items()
    }
    return match_detections(truth_columns(truth, ego), found_columns(moved, tuple(truth)))


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Two evaluations: B has lost half of what A found with LiDAR, and is the same with the camera."""
    for name, lost in (("a", 0.0), ("b", 0.5)):
        write_matches(tmp_path / name / "camera" / "matches.npz", result(shift=0.5))
        write_matches(tmp_path / name / "camera+lidar" / "matches.npz", result(lost=lost))
        (tmp_path / name / "metrics.json").write_text("{}")
    return tmp_path / "a", tmp_path / "b"


def test_matches_come_back_as_they_were(tmp_path):
    matches = result()
    again = read_matches(write_matches(tmp_path / "matches.npz", matches))
    assert again.protocol == CVPR_2019 and again.samples.tokens == matches.samples.tokens
    np.testing.assert_equal(score_matches(again), score_matches(matches))
    np.testing.assert_equal(in_strata(again, 100), in_strata(matches, 100))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pair": np.full((3, 4), 9, dtype=np.int32)}, "pair has shape"),
        ({"pair_truth": np.array([10**6], dtype=np.int32)}, "pair_error has shape|pair_truth has rows"),
        ({"truth_label": np.array([0.5])}, "truth_label has"),
        ({"score": None}, "score"),
        ({"header": np.frombuffer(b"{}", dtype=np.uint8)}, "format"),
        ({"header": np.frombuffer(b"no json", dtype=np.uint8)}, "Expecting value"),
        ({"found_label": "far"}, "found_label has rows out of 0..9"),
        ({"pair": "all the first"}, "a truth box is found twice"),
        ({"found_label": "turned"}, "or by a detection of another sample or class"),
        ({"found_sample": "turned"}, "or by a detection of another sample or class"),
    ],
)
def test_damaged_matches_are_refused(tmp_path, change, told):
    path = write_matches(tmp_path / "matches.npz", result())
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    rules = {"far": lambda of: of + 100, "all the first": lambda of: 0 * of, "turned": lambda of: of[::-1]}
    for name, value in change.items():
        arrays[name] = rules[value](arrays[name]) if isinstance(value, str) else value
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(DataError, match=rf"matches\.npz holds no matches of this version \(.*({told})"):
        read_matches(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="holds no matches of this version"):
        read_matches(path)
    with pytest.raises(DataError, match="evaluate writes it"):
        read_matches(tmp_path / "none.npz")


def test_a_byte_that_changed_is_told_wherever_it_is(tmp_path):
    path = write_matches(tmp_path / "matches.npz", result(scenes=1))
    content, rng = path.read_bytes(), np.random.default_rng(0)
    told = 0
    for place in rng.integers(len(content), size=150).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            read_matches(path)
        except DataError:
            told += 1
    assert told > 100, "the rest are times and names of the archive"


def test_worse_is_told_and_the_same_is_not(folders, capsys, tmp_path):
    file = tmp_path / "differences.json"
    options = ["--resamples", "200", "--strata", "--classes", "--json", str(file)]
    assert main([str(folders[0]), str(folders[1] / "metrics.json"), *options]) == 0
    printed = capsys.readouterr().out
    told = json.loads(file.read_text())
    rows = {(row["subset"], row["part"], row["metric"]): row for row in told["differences"]}
    assert all(row["verdict"] == "not distinguishable" for (subset, *_), row in rows.items() if subset == "camera")
    assert all(row["difference"] in (0, None) for (subset, *_), row in rows.items() if subset == "camera")
    worse = rows["camera+lidar", "all", "mAP"]
    assert worse["verdict"] == "A better" and worse["one"] > worse["other"] and worse["interval"][0] > 0
    assert worse["difference"] == pytest.approx(worse["one"] - worse["other"])
    assert rows["camera+lidar", "all", "AP.barrier"]["verdict"] == "not distinguishable", "there is none"
    assert ("camera+lidar", "distance 10-20 m", "NDS") in rows and ("camera+lidar", "light night", "NDS") not in rows
    assert "A better" in printed and "not distinguishable" in printed and "out of 8" in printed
    assert printed.index("camera\n") < printed.index("camera+lidar\n")


def test_errors_are_better_when_they_are_less():
    found = compare_matches("all", result(), result(shift=0.3), draw_scenes(8, 200))
    ate = next(row for row in found if row.metric == "mATE")
    assert ate.difference < 0 and ate.verdict == "A better"
    swapped = compare_matches("all", result(shift=0.3), result(), draw_scenes(8, 200))
    other = next(row for row in swapped if row.metric == "mATE")
    assert other.verdict == "B better" and other.interval == pytest.approx((-ate.interval[1], -ate.interval[0]))
    assert [row.metric for row in found] == [*MEANS, "micro.AP"]


def test_few_scenes_say_nothing(folders, capsys, tmp_path):
    for name, lost in (("few", 0.0), ("less", 0.5)):
        write_matches(tmp_path / name / "matches.npz", result(lost=lost, scenes=5))
    assert main([str(tmp_path / "few"), str(tmp_path / "less" / "matches.npz")]) == 0
    printed = capsys.readouterr().out
    assert "better" not in printed and "with fewer than 6 nothing is distinguishable" in printed
    assert "few - less" in printed


def test_what_cannot_be_compared(folders, tmp_path):
    draws = draw_scenes(8, 100)
    with pytest.raises(DataError, match=r"camera: A and B cannot be compared.*8 and 5"):
        compare_matches("camera", result(), result(scenes=5), draws)
    with pytest.raises(DataError, match="other annotations"):
        compare_matches("camera", result(), result(seed=1), draws)
    protocol = dataclasses.replace(CVPR_2019, min_recall=0.2)
    with pytest.raises(DataError, match="another protocol"):
        compare_matches("camera", result(), dataclasses.replace(result(), protocol=protocol), draws)
    with pytest.raises(Fusion3DError, match=r"no evaluation with matches\.npz"):
        find_matches(tmp_path / "nothing")
    with pytest.raises(DataError, match="no subset of sensors in common"):
        pair_up({"camera": Path("a"), "lidar": Path("b")}, {"radar": Path("c")})
    with pytest.raises(SystemExit):
        main([*map(str, folders), "--resamples", "5"])


def test_one_scene_has_no_interval():
    found = compare_matches("all", result(scenes=1), result(scenes=1, lost=0.5), draw_scenes(1, 100))
    assert all(row.interval is None and row.verdict == "not distinguishable" for row in found)
    assert "  -  " in format_differences(found)
