"""The table of recipes: what is measured stands in it, beside what is published, and nothing else does."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from fusion3d import cli
from fusion3d.build import build_model
from fusion3d.config import load_config
from fusion3d.engine import benchmark_recipes, published
from fusion3d.engine.benchmark_recipes import Recipe, markdown, measure
from fusion3d.engine.describe import Stage, stages
from fusion3d.engine.published import PUBLISHED, Published

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_model import TINY

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from small_models import build, small

CONFIGS = Path(__file__).parents[2] / "configs"


def cells(page: str, section: str) -> dict[str, list[str]]:
    """The rows of a section's table by their first cell."""
    table = page.split(f"## {section}")[1].split("##")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line]
    return {row[0]: row[1:] for row in rows}


def a_recipe(name: str = "crn", beside: Published | None = None) -> Recipe:
    forward = (Stage("trunk", (), 2_500_000, 4_000_000_000, 7, 12.0), Stage("whole", (), 3_000_000, 6 * 10**9, 9, 30.0))
    step = (*forward[:1], Stage("sensors", (), 10_000, 0, 7, 1.0), Stage("backward", (), 0, 8 * 10**9, 9, 60.0))
    return Recipe(name, "camera", forward, (*step, Stage("whole", (), 3_010_000, 14 * 10**9, 2**20 * 5, 99.0)), beside)


def test_every_figure_is_where_it_belongs():
    other = Published("Theirs", ("https://example.org",), "it is smaller", "4.2", "", {"trunk": 3.4})
    page = markdown([a_recipe("first", other), a_recipe("second")], 1000, 20)
    first, second = page.split("## Why they differ")[0].splitlines()[-3:-1]
    assert first == "| first | camera | 3.0 | 4.2 | 3.0 (6.0) | not published | 30 | 99 | 5 |"
    assert second == "| second | camera | 3.0 |  | 3.0 (6.0) |  | 30 | 99 | 5 |"
    assert "- `first`, beside Theirs: it is smaller." in page and page.endswith("- https://example.org")
    parameters = cells(page, "Parameters by part [millions]")
    assert parameters["part"] == ["first", "second"]
    assert parameters["trunk"] == ["2.50 (3.4)", "2.50"] and parameters["sensors"] == ["0.01", "0.01"]
    assert "backward" not in parameters, "it has no parameters"
    assert cells(page, "Multiply-adds")["trunk"] == ["2.00", "2.00"], "two operations are one multiply-add"
    steps = cells(page, "A training step by part [ms]")
    assert list(steps)[2:] == ["trunk", "sensors", "backward", "whole"] and steps["backward"] == ["60", "60"]
    assert "1,000 LiDAR points, 20 random radar returns" in page


@pytest.mark.parametrize("stage", ["middle", "hierarchical", "early", "late", "hybrid"])
def test_parts_are_in_the_order_of_the_walk(stage):
    """Whatever the stage: model by model where there are several, and within one as they are called."""
    there = list(stages(build(small(fusion__stage=stage, camera__image_loss=0.1, temporal={"keyframes": 2}))))
    assert all(benchmark_recipes._place(name)[1] >= 0 for name in there), "a part has no place"
    of_model = {name.split(".")[1] if stage in ("late", "hybrid") else "" for name in there}
    found = sorted([*there, "whole", "losses"], key=benchmark_recipes._place)
    assert found[-2:] == ["losses", "whole"]
    models = [name.split(".")[1] for name in found[:-2]] if len(of_model) > 1 else []
    assert sorted(set(models), key=models.index) == [m for m in ("camera", "lidar", "radar", "joint") if m in of_model]
    for model in of_model:
        parts = [name.rpartition(f"models.{model}.")[2] for name in found if f".{model}." in name or not model]
        for before, after in (("camera.encoder", "trunk"), ("trunk", "detection"), ("detection", "map")):
            if before in parts:
                assert parts.index(before) < parts.index(after)


def test_nothing_is_compared_where_nothing_is_published():
    page = markdown([a_recipe("demo")], 1, 1)
    assert "## Why" not in page and "## Sources" not in page


def test_a_model_is_measured_in_both_ways():
    said: list[str] = []
    recipe = measure("tiny", TINY, 300, 20, say=said.append)
    assert said == ["tiny: inference", "tiny: a training step"] and recipe.published is None
    inference, step = ({stage.name: stage for stage in way} for way in (recipe.inference, recipe.training))
    assert inference["decode"].milliseconds > 0 and step["backward"].flops > inference["whole"].flops
    assert recipe.sensors == "camera+lidar+radar" and step["whole"].parameters == inference["whole"].parameters


def test_what_is_published_is_of_a_shipped_recipe_and_adds_up():
    assert set(PUBLISHED) == {path.stem for path in CONFIGS.glob("*.yaml")} - {"demo", "planner", "camera_lidar_radar"}
    for name, other in PUBLISHED.items():
        assert other.model and other.differs and other.parameters and other.sources, name
        assert all(source.startswith("https://") for source in other.sources)
        if other.parts:
            assert sum(other.parts.values()) == pytest.approx(float(other.parameters), abs=0.1), name


def test_the_page_has_every_configuration_as_it_is():
    page = json.loads((CONFIGS.parent / "docs" / "benchmarks" / "recipes.json").read_text())
    noted = {
        recipe["name"]: stage["parameters"]
        for recipe in page["recipes"]
        for stage in recipe["inference"]
        if stage["name"] == "whole"
    }
    counted = {}
    for path in CONFIGS.glob("*.yaml"):
        with torch.device("meta"):
            model = build_model(load_config(path), pretrained=False)
        counted[path.stem] = sum(p.numel() for p in model.parameters())
    assert noted == counted


def test_the_command_writes_the_page_and_every_figure(tmp_path, capsys, monkeypatch):
    import yaml

    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(TINY)))))
    monkeypatch.setitem(published.PUBLISHED, "own", Published("Theirs", ("https://example.org",), "of size"))
    asked = ["recipes", str(path), "--points", "300", "--json", str(tmp_path / "a.json"), "--markdown"]
    assert cli.benchmark([*asked, str(tmp_path / "a.md")]) == 0
    page, figures = (tmp_path / "a.md").read_text(), json.loads((tmp_path / "a.json").read_text())
    assert page in capsys.readouterr().out and "| own | camera+lidar+radar |" in page and "not published" in page
    (recipe,) = figures["recipes"]
    whole = recipe["training"][-1]
    assert whole["name"] == "whole" and f" {whole['milliseconds']:.0f} " in page and figures["points"] == 300
    assert benchmark_recipes.PUBLISHED is published.PUBLISHED
