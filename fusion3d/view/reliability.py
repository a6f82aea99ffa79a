"""The section of the report on how sure a model is, and how often right."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fusion3d.types import DETECTION_CLASSES
from fusion3d.view.charts import reliability_chart
from fusion3d.view.tables import number, sensor_label, show, table

_CHARTS_OF_CLASSES = 2  # right boxes that a class needs, to have a diagram of its own


def calibration(reliability: Mapping[str, Any] | str | None, fitted: Mapping[str, Any] | None) -> str:
    """Reliability diagrams of what was scored, and, of another split, diagrams and errors before and after temperature
    scaling.
    """
    parts = []
    if isinstance(reliability, str):
        parts.append(f"<p>{escape(reliability)}</p>")
    elif reliability and sum(reliability["all"]["count"]):
        parts.append(
            "<p>Boxes by how sure the model is of them (across) and how many of these are right (up): true positives "
            "by the official rules. On the diagonal a score says how often it is right.</p>"
            + _diagrams({"": reliability})
        )
    if fitted and fitted.get("subsets"):
        rows = {
            name: {
                "before": row["before"]["all"]["ECE"], "after": row["after"]["all"]["ECE"],
                "by class": row["before"]["mean ECE"], "by class, after": row["after"]["mean ECE"],
            }
            for name, row in fitted["subsets"].items()
        }  # fmt: skip
        columns = [(key, "", False) for key in ("before", "after", "by class", "by class, after")]
        same = fitted.get("same_samples")
        also = f"; {same} samples are in both, so this is better than it would be elsewhere" if same else ""
        parts.append(
            "<h3>Expected calibration error, before and after temperature scaling</h3>"
            + table(rows, columns, "sensors", sensor_label, contest=())
            + f"<p class='note'>Temperatures of each class fitted on split {escape(str(fitted.get('fit_split')))}, "
            f"reported on {escape(str(fitted.get('split')))}{also}. No average precision changes.</p>"
        )
        name, largest = max(fitted["subsets"].items(), key=lambda item: item[0].count("+"))
        when = {f", {when}": largest[when] for when in ("before", "after") if "class" in largest[when]}
        parts.append(f"<p>With {escape(name.replace('+', ' + '))}:</p>{_diagrams(when)}" if when else "")
        of_class = {
            name: {**row["temperature"]}
            for name, row in fitted["subsets"].items()
            if isinstance(row["temperature"], Mapping)
        }
        columns = [(name, "temperature", True) for name in DETECTION_CLASSES]
        parts.append(table(of_class, columns, "sensors", sensor_label, contest=()))
    return "".join(parts)


def _diagrams(described: Mapping[str, Mapping[str, Any]]) -> str:
    """Of all boxes and of each class that has enough right ones: a diagram of each description, side by side.

    Args:
        described: what ``describe_scores`` gives, by what is said behind the class's name.
    """
    first = next(iter(described.values()))
    enough = [name for name, found in first["class"].items() if found["right"] >= _CHARTS_OF_CLASSES]
    charts = [_diagram(f"all classes{when}", of["all"]) for when, of in described.items()]
    charts += [_diagram(f"{name}{when}", of["class"][name]) for name in enough for when, of in described.items()]
    return f'<div class="charts">{"".join(charts)}</div>'


def _diagram(name: str, found: Mapping[str, Any]) -> str:
    heading = escape(name.replace("_", " "))
    chart = reliability_chart(found["confidence"], found["precision"], found["count"], heading)
    error = show(number(found, "ECE"), "ECE")
    return f"<figure><figcaption><b>{heading}</b><span>ECE {error}</span></figcaption>{chart}</figure>"
