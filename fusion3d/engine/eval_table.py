"""The numbers of an evaluation as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusion3d.engine.forecasts import format_motion, table_line
from fusion3d.engine.plan_table import format_side_by_side, format_skill
from fusion3d.engine.scoring import notes
from fusion3d.metrics.columns import told_nearest
from fusion3d.metrics.occupancy import occupancy_columns
from fusion3d.metrics.planning.exact import ABOUT, NAME
from fusion3d.metrics.planning.slices import HUMAN

COLUMNS = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
PLAN_COLUMNS = ("L2@1s", "L2@2s", "L2@3s", "collision@1s", "collision@2s", "collision@3s", "at_fault@3s")
TRACK_COLUMNS = ("AMOTA", "AMOTP", "MOTA", "MOTP", "recall", "IDS", "FRAG")


def format_table(metrics: dict[str, Any]) -> str:
    """All tables of what ``evaluate`` returns."""
    parts = [_detection(metrics), _tracking(metrics), _motion(metrics), _worth(metrics), _planning(metrics)]
    parts += [_overlaps(metrics, "map", _map_columns), _overlaps(metrics, "occupancy", occupancy_columns)]
    parts.append([f"the file: {line}" for line in metrics.get("remarks", ())])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _of_subsets(metrics: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: row[key] for name, row in metrics["subsets"].items() if key in row}


def _detection(metrics: dict[str, Any]) -> list[str]:
    rows = {name: row for name, row in metrics["subsets"].items() if "NDS" in row}
    if not rows:
        return []
    lines = [table_line(name, [row[c] for c in COLUMNS]) for name, row in rows.items()]
    return [table_line("sensors", COLUMNS), *lines, *notes(rows)]


def _tracking(metrics: dict[str, Any]) -> list[str]:
    rows = _of_subsets(metrics, "tracking")
    if not rows:
        return []
    lines = [table_line(name, [row[c] for c in TRACK_COLUMNS]) for name, row in rows.items()]
    return [table_line("tracking", TRACK_COLUMNS), *lines, *told_nearest(rows)]


def _motion(metrics: dict[str, Any]) -> list[str]:
    rows = _of_subsets(metrics, "motion")
    return format_motion(rows) if rows else []


def _worth(metrics: dict[str, Any]) -> list[str]:
    if "shapley" not in metrics:
        return []
    worth = {name: metrics["shapley"][name] for name in ("NDS", "mAP")}
    lines = [table_line(name, [*of_sensor.values()]) for name, of_sensor in worth.items()]
    return [table_line("worth (Shapley)", [*worth["NDS"]]), *lines]


def _planning(metrics: dict[str, Any]) -> list[str]:
    """Plans by sensors and of baselines, the skill of the largest subset, and what it chose among."""
    if "planning" not in metrics:
        return []
    rows, scores = _of_subsets(metrics, "planning"), metrics["planning_scores"]
    rows |= {name: row for name, row in metrics["planning"].items() if name != "model"}
    largest = list(metrics["subsets"])[-1]
    lines = [table_line("planning", [*PLAN_COLUMNS, "N", "events"])]
    for name, row in rows.items():
        counts = [f"{row[column]:.0f}" for column in ("N", "events")]
        lines.append(table_line(name, [*(row[column] for column in PLAN_COLUMNS), *counts]))
    lines += [
        f"the human: at fault in less than {rows[HUMAN]['at_fault_high']:.3f} (95 %, as if samples were independent)",
        f"exact, samples {scores['protocols'][NAME]['samples']}, ego {ABOUT['ego'].split(',')[0]}, nothing masked; in",
        "metrics.json: the PDM-style score, and skill by speed, light, ...",
        "",
        format_side_by_side(scores["protocols"], [largest]),
        "",
        format_skill({largest: _by_manoeuvre(scores["skill"][largest])}),
    ]
    if modes := scores.get("modes"):
        names = [name for name in modes if not name.startswith("minFDE")]
        numbers = [f"{modes[name]:.0f}" if name in ("N", "K") else modes[name] for name in names]
        lines += ["", table_line("paths to choose from", names), table_line("", numbers)]
    return lines


def _by_manoeuvre(skill: dict[str, Any]) -> dict[str, Any]:
    return {title: row for title, row in skill.items() if title in ("macro", "all") or title.startswith("manoeuvre")}


def _overlaps(metrics: dict[str, Any], key: str, columns: Callable[[Any, str], dict[str, float]]) -> list[str]:
    """Of ``map`` or ``occupancy``: one table at the fixed threshold and one at the best, with these columns."""
    if key not in metrics:
        return []
    rows, lines = _of_subsets(metrics, key) | metrics[key], []
    for at in ("IoU@0.5", "IoU@best"):
        numbers = {name: columns(row, at) for name, row in rows.items()}
        lines += ["", table_line(f"{key} {at}", [*next(iter(numbers.values()))])]
        lines += [table_line(name, [*row.values()]) for name, row in numbers.items()]
    return lines[1:]


def _map_columns(row: Any, at: str) -> dict[str, float]:
    return {"mean": row[f"m{at}"], **row[at]}
