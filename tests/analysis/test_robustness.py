"""The robustness suite: what it tries, what it keeps, and what it makes of the numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from fusion3d.analysis.robustness import suite as module
from fusion3d.analysis.robustness.conditions import CLEAN, FAMILIES, GROUPS, MULTICORRUPT, Family, choose
from fusion3d.analysis.robustness.main import main
from fusion3d.analysis.robustness.page import write_page
from fusion3d.analysis.robustness.suite import Suite, run_suite
from fusion3d.analysis.robustness.summary import TEN, summarise
from fusion3d.build import build_model
from fusion3d.config import Config, from_dict
from fusion3d.data.corruptions import KINDS, parse
from fusion3d.engine.checkpoint import Position, save_checkpoint
from fusion3d.engine.evaluate import evaluate
from fusion3d.errors import ConfigError, DataError
from fusion3d.types import SENSORS

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from tiny import run_ranks

# ---- what is tried ---------------------------------------------------------------------------------------------------


def test_every_family_can_be_written_and_every_kind_has_one():
    for family in FAMILIES:
        for amount in family.amounts:
            found = [parse(text) for text in family.at(amount).corruptions]
            assert all(one.amount == amount for one in found)
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert {f"{s}.{name}" for name, kind in KINDS.items() for s in kind.sensors} <= set(names)
    assert set(MULTICORRUPT) <= set(names) and len(MULTICORRUPT) == 10
    assert not GROUPS.keys() & set(names)


def test_families_are_chosen_by_name_group_severity_and_sensors():
    everything = choose(Config())
    assert [family.name for family in everything] == [family.name for family in FAMILIES]
    assert {f.name for f in choose(Config(), ["turned", "fog"])} == {*(f"{s}.turned" for s in SENSORS), "fog"}
    (beams,) = choose(Config(), ["lidar.beams"], [3, 1])
    assert beams.amounts == (1, 3)
    without = dataclasses.replace(Config(), camera=None)
    assert all("camera" not in family.sensors for family in choose(without))
    unread = from_dict({"data": {"sensors": ["camera", "radar"], "radars": ["RADAR_FRONT", "RADAR_BACK_LEFT"]}})
    families = {family.name: family for family in choose(unread)}
    assert families["radar.keep"].amounts == (1,) and families["camera.keep"].amounts == (1, 2, 3, 4, 5)
    assert not any("lidar" in family.sensors for family in families.values())
    part = {family.sensors for family in choose(Config(), subsets=["radar", "camera+lidar"])}  # the largest suffers
    assert part == {("camera",), ("lidar",), ("camera", "lidar")}
    with pytest.raises(ConfigError, match="leave nothing to try with the sensors lidar"):
        choose(Config(), ["camera", "fog"], subsets=["lidar"])
    with pytest.raises(ConfigError, match=r"unknown 'lidar\.fgo'; did you mean 'lidar\.fog'"):
        choose(Config(), ["lidar.fgo"])
    with pytest.raises(ConfigError, match="leave nothing to try with the sensors lidar, radar"):
        choose(without, ["camera"])


# ---- what is made of the numbers -------------------------------------------------------------------------------------


def result_of(scores: dict[str, tuple[float, float]]) -> dict:
    """A condition's result by subset; in two of three draws all is better or worse by a tenth of it."""
    numbers = {name: {"NDS": nds, "mAP": average} for name, (nds, average) in scores.items()}
    drawn = {name: {m: [value * part for part in DRAWS] for m, value in of.items()} for name, of in numbers.items()}
    return {"numbers": numbers, "drawn": drawn, "scenes": 9, "samples": 7}


DRAWS = (0.9, 1.0, 1.1)


def results_of(families, score, subsets=("lidar", "camera+lidar")) -> dict:
    results = {CLEAN.name: result_of(dict.fromkeys(subsets, (0.5, 0.4)))}
    for family in families:
        for amount in family.amounts:
            results[family.at(amount).name] = result_of({subsets[-1]: score(family, amount)})
    return results


def test_relative_accuracy_is_as_multicorrupt_has_it():
    families = choose(Config(), ["severities", "lidar.turned"])
    place = {family.name: n for n, family in enumerate(families)}

    def score(family: Family, amount: float) -> tuple[float, float]:
        return 0.5 - 0.01 * amount - 0.002 * place[family.name], 0.4 / amount

    summary = summarise(families, results_of(families, score), "camera+lidar")
    of = {row.family.name: row for row in summary.rows}
    assert of["lidar.fog"].relative["NDS"].value == pytest.approx(
        sum((0.5 - 0.01 * s - 0.002 * place["lidar.fog"]) / 0.5 for s in (1, 2, 3)) / 3
    )
    assert of["lidar.fog"].relative["mAP"].value == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    worst = [row.relative["NDS"].value for row in summary.rows]
    assert worst == sorted(worst) and len(worst) == len(GROUPS["severities"])
    assert [row.family.name for row in summary.curves] == ["lidar.turned"]
    assert summary.means[TEN]["NDS"].value == pytest.approx(
        sum(of[name].relative["NDS"].value for name in MULTICORRUPT) / 10
    )
    lidar = [name for name in of if name.startswith("lidar.")]
    assert summary.counts == {"all": len(of), "camera": 9, "lidar": len(lidar), "radar": 6, TEN: 10}
    mean = sum(of[name].relative["NDS"].value for name in lidar) / len(lidar)
    assert summary.means["lidar"]["NDS"].value == pytest.approx(mean)
    some = choose(Config(), ["multicorrupt"], [1, 3])
    assert TEN not in summarise(some, results_of(some, lambda *_: (0.4, 0.3)), "camera+lidar").means


def test_intervals_are_of_the_same_draws_as_the_clean_number():
    """What all scenes do to both cancels; what they do to one of them does not."""
    families = choose(Config(), ["lidar.fog"])
    results = results_of(families, lambda *_: (0.4, 0.3))
    summary = summarise(families, results, "camera+lidar")
    assert summary.rows[0].relative["NDS"].interval == pytest.approx((0.8, 0.8))
    assert summary.means["all"]["mAP"].interval == pytest.approx((0.75, 0.75))
    assert summary.kept["lidar"]["NDS"].interval == pytest.approx((1, 1))
    for result in list(results.values())[1:]:
        result["drawn"]["camera+lidar"]["NDS"] = [0.4] * 3
    low, high = summarise(families, results, "camera+lidar").rows[0].relative["NDS"].interval
    assert 0.7 < low < 0.8 < high < 0.9


def test_the_worst_conditions_are_of_curves_too():
    families = choose(Config(), ["lidar.fog", "lidar.beams", "lidar.turned"])
    worst = {"lidar.turned": 0.02, "lidar.fog": 0.01}

    def score(family: Family, amount: float) -> tuple[float, float]:
        return 0.4 - worst.get(family.name, 0.0) * amount, 0.3

    found = summarise(families, results_of(families, score), "camera+lidar").worst
    values = [one.relative["NDS"].value for one in found]
    assert len(found) == 10 and values == sorted(values)
    most = max(next(f for f in families if f.name == "lidar.turned").amounts)
    assert found[0].name == f"lidar.turned, {most:g} {KINDS['turned'].unit}"
    assert {"lidar.fog, severity 3", "lidar.turned, 3 degrees"} <= {one.name for one in found}
    assert found[0].values["NDS"] == pytest.approx(0.4 - 0.02 * most)


def test_nothing_is_relative_to_nothing(tmp_path):
    families = choose(Config(), ["lidar.fog"])
    results = results_of(families, lambda *_: (0.0, 0.0))
    results[CLEAN.name] = result_of({"camera+lidar": (0.0, 0.0)})
    summary = summarise(families, results, "camera+lidar")
    assert math.isnan(summary.rows[0].relative["NDS"].value)
    text = write_page(tmp_path, summary, "a model", {})
    assert "| lidar.fog | - | - |" in text
    assert json.loads((tmp_path / "robustness.json").read_text())["mRA"]["all"] == {
        "NDS": None, "mAP": None, "intervals": {"NDS": None, "mAP": None},
    }  # fmt: skip


def test_the_page_has_everything(tmp_path):
    families = choose(Config(), ["lidar.fog", "lidar.points", "turned", "camera.keep"])
    order = {"lidar.fog": 0.45, "lidar.points": 0.3}
    results = results_of(families, lambda family, amount: (order.get(family.name, 0.4), 0.2))
    text = write_page(tmp_path, summarise(families, results, "camera+lidar"), "a model", {"more": 1})
    assert text.index("| lidar.points | 0.600") < text.index("| lidar.fog | 0.900")
    assert "7 samples; corrupted: camera+lidar" in text
    assert (tmp_path / "robustness.md").read_text() == text
    numbers = json.loads((tmp_path / "robustness.json").read_text())
    assert numbers["more"] == 1 and numbers["curves"]["camera.keep"]["amounts"] == [1, 2, 3, 4, 5]
    assert numbers["corruptions"]["lidar.fog"]["RA"]["NDS"] == pytest.approx(0.9)
    assert (
        numbers["worst"][0]["condition"] == "lidar.points, severity 1" and "| lidar.points, severity 1 | 0.300" in text
    )
    assert "stay whole" not in text
    families = choose(Config(), ["multicorrupt"])
    results = results_of(families, lambda *_: (0.4, 0.2), ("lidar", "camera+lidar+radar"))
    assert "stay whole" in write_page(tmp_path, summarise(families, results, "camera+lidar+radar"), "a model", {})
    for kind in ("turned", "keep"):
        assert f"robustness-{kind}.svg" in text and "<svg" in (tmp_path / f"robustness-{kind}.svg").read_text()


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(synthetic_root, tmp_path_factory) -> Path:
    config = from_dict(
        {
            "data": {
                "root": str(synthetic_root), "version": "v1.0-synthetic", "split": "synthetic_val",
                "image_size": [64, 64], "lidar_sweeps": 2, "radar_sweeps": 1, "workers": 0,
            },
            "grid": {"x": [-51.2, 51.2], "y": [-51.2, 51.2], "resolution": 3.2},
            "camera": {
                "backbone": {"name": "resnet18", "width": 4}, "fpn_channels": 8, "channels": 8, "depth": [1, 51, 10],
            },
            "lidar": {"channels": 8, "pillar": 1.6},
            "radar": {"channels": 8},
            "fusion": {"channels": 8},
            "trunk": {"channels": 8, "blocks": [1, 1, 1], "out_channels": 8},
            "detection": {"channels": 8, "max_boxes": 20, "score_threshold": 0.0},
            "planning": None,
            "evaluation": {"stride": 2},
        }
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    return save_checkpoint(folder, config, build_model(config, pretrained=False).state_dict(), Position())


def suite_of(checkpoint: Path, out: Path, names=("lidar.beams",), **changes) -> Suite:
    config = from_dict(json.loads((checkpoint / "config.json").read_text()))
    return Suite(checkpoint, dataclasses.replace(config, **changes), tuple(choose(config, names, [3])), out)


def test_conditions_are_evaluations_under_corruptions(checkpoint, tmp_path):
    suite = suite_of(checkpoint, tmp_path / "suite", ["lidar.beams", "fog"])
    suite = dataclasses.replace(suite, subsets=("radar", "camera+lidar"))
    results = run_suite(suite, "cpu")
    assert results is not None and list(results) == ["clean", "lidar.beams:3", "fog:3"]
    assert all(result["samples"] == 3 for result in results.values())
    assert set(results["clean"]["numbers"]) == {"radar", "camera+lidar"} and suite.whole == "camera+lidar"
    for condition in suite.conditions():
        config = suite.config_of(condition)
        alone = evaluate(checkpoint, config, tmp_path / "alone", [suite.whole], "cpu")["subsets"][suite.whole]
        there = json.loads(suite.path(condition).read_text())["numbers"][suite.whole]
        assert {k: there[k] for k in ("NDS", "mAP", "mATE")} == {k: alone[k] for k in ("NDS", "mAP", "mATE")}
    assert suite.config_of(suite.conditions()[2]).data.corruptions == ("camera.fog:3", "lidar.fog:3")


def test_what_is_there_is_kept_if_it_is_the_same(checkpoint, tmp_path, monkeypatch):
    done: list[tuple[str, ...]] = []

    def counted(where, model, config, subsets):
        done.append(config.data.corruptions)
        return run_among(where, model, config, subsets)

    run_among = module.run_among
    monkeypatch.setattr(module, "run_among", counted)
    suite = dataclasses.replace(suite_of(checkpoint, tmp_path), subsets=("lidar",))
    first = run_suite(suite, "cpu")
    assert done == [(), ("lidar.beams:3",)]
    done.clear()
    again = run_suite(suite, "cpu")
    assert done == [] and json.dumps(again) == json.dumps(json.loads(json.dumps(again)))
    assert first is not None and again is not None
    assert again["clean"]["numbers"][suite.whole]["NDS"] == first["clean"]["numbers"][suite.whole]["NDS"]

    other = dataclasses.replace(suite.config, detection=dataclasses.replace(suite.config.detection, max_boxes=19))
    run_suite(dataclasses.replace(suite, config=other), "cpu")  # another setting: all anew
    assert len(done) == 2
    done.clear()
    run_suite(dataclasses.replace(suite, config=other, families=tuple(choose(other, ["lidar.beams"], [2, 3]))), "cpu")
    assert done == [("lidar.beams:2",)]  # only what is new
    done.clear()
    suite.path(suite.conditions()[1]).write_text('{"config": {')  # cut off
    run_suite(dataclasses.replace(suite, config=other), "cpu")
    assert done == [("lidar.beams:3",)]


def test_other_weights_are_another_result(checkpoint, tmp_path, monkeypatch):
    suite = suite_of(checkpoint, tmp_path)
    same = {"weights": "a", "data": "b", "whole": suite.whole}
    result = same | {"condition": "clean", "numbers": {name: {} for name in suite.subsets_of(CLEAN)}}
    result |= {"drawn": result["numbers"]}
    result |= {"config": json.loads((checkpoint / "config.json").read_text())}
    suite.path(CLEAN).parent.mkdir(parents=True)
    suite.path(CLEAN).write_text(json.dumps(result))
    assert module._kept(suite, CLEAN, same) == result
    for key in same:
        assert module._kept(suite, CLEAN, same | {key: "another"}) is None
    suite.path(CLEAN).write_text(json.dumps(result | {"numbers": {suite.whole: {}}}))
    assert module._kept(suite, CLEAN, same) is None  # subsets are wanted that are not there


def test_what_cannot_be_measured_is_said(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="detection: found null"):
        suite_of(checkpoint, tmp_path, detection=None)
    good = suite_of(checkpoint, tmp_path)
    wrong = dataclasses.replace(good.config.data, corruptions=("lidar.fog:1",))
    with pytest.raises(ConfigError, match=r"data\.corruptions is .*leave it empty"):
        dataclasses.replace(good, config=dataclasses.replace(good.config, data=wrong))
    with pytest.raises(ConfigError, match="no sensor subset 'sonar'"):
        dataclasses.replace(good, subsets=("sonar",))
    strict = dataclasses.replace(good.config.evaluation, strict=True)
    long = dataclasses.replace(good.config.data, lidar_sweeps=12)
    with pytest.raises(ConfigError, match="lidar 11"):
        refused = dataclasses.replace(good.config, data=long, evaluation=strict)
        run_suite(dataclasses.replace(good, config=refused), "cpu")
    with pytest.raises(DataError):
        nowhere = dataclasses.replace(good.config.data, root=str(tmp_path / "nowhere"))
        run_suite(dataclasses.replace(good, config=dataclasses.replace(good.config, data=nowhere)), "cpu")


def test_the_verb(checkpoint, tmp_path, capsys):
    arguments = ["--checkpoint", str(checkpoint), "--out", str(tmp_path), "--device", "cpu", "--severities", "3"]
    arguments += ["--conditions", "radar.missing", "radar.late", "--subsets", "radar", "lidar+radar"]
    assert main([*arguments, "--evaluation.stride", "6"]) == 0
    printed = capsys.readouterr().out
    assert "corrupted: lidar+radar" in printed and "one keyframe of 6" in printed and "1 samples" in printed
    assert {path.name for path in tmp_path.iterdir()} == {
        "conditions", "robustness.md", "robustness.json", "robustness-late.svg",
    }  # fmt: skip


@pytest.mark.slow
def test_two_processes_do_what_one_does(checkpoint, tmp_path):
    tool = Path(__file__).parents[2] / "tools" / "evaluate.py"
    command = [sys.executable, str(tool), "--suite", "robustness", "--checkpoint", str(checkpoint), "--device", "cpu"]
    command += ["--conditions", "fog", "--severities", "1", "3", "--subsets", "camera+lidar"]
    ranks = run_ranks([*command, "--out", str(tmp_path / "two")])
    assert [status for status, _ in ranks] == [0, 0], ranks[0][1] + ranks[1][1]
    assert ranks[1][1] == "" and "corrupted: camera+lidar" in ranks[0][1]
    suite = dataclasses.replace(suite_of(checkpoint, tmp_path / "one"), subsets=("camera+lidar",))
    suite = dataclasses.replace(suite, families=tuple(choose(suite.config, ["fog"], [1, 3])))
    assert run_suite(suite, "cpu") is not None
    for condition in suite.conditions():
        one, two = (
            json.loads(dataclasses.replace(suite, out=tmp_path / name).path(condition).read_text())
            for name in ("one", "two")
        )
        assert one["numbers"] == two["numbers"] and one["samples"] == two["samples"] == 3
