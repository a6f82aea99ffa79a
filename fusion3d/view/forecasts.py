"""The section of the report about how others go on."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from fusion3d.view.tables import number, sensor_label, table

_COLUMNS = (
    ("recall", "found", True),
    *((f"{name}_{k}", unit, False) for name, unit in (("minADE", "[m]"), ("minFDE", "[m]")) for k in (1, 5, 10)),
    ("MissRateTopK_2_5", "of found", False),
    ("missed_or_not_found_5", "of all", False),
)


def motion(metrics: Mapping[str, Any]) -> str:
    """Forecasts by sensors over constant velocity of the same boxes, then by the way that agents go.

    Args:
        metrics: ``subsets.<name>.motion`` as ``metrics.forecast.score_forecasts`` gives it, and ``motion_protocol``.
    """
    known = {name: row["motion"] for name, row in (metrics.get("subsets") or {}).items() if "motion" in row}
    if not known:
        return ""
    rows = {name: _of_forecaster(groups["all"], "model") for name, groups in known.items()}
    whole, groups = list(known.items())[-1]
    rows["constant velocity"] = _of_forecaster(groups["all"], "constant_velocity")
    parts = {
        f"{group}{', constant velocity' * (name != 'model')}": _of_forecaster(row, name)
        for group, row in groups.items() if group != "all" and row["true"]
        for name in ("model", "constant_velocity")
    }  # fmt: skip
    protocol = escape(str(metrics.get("motion_protocol") or ""))
    seconds = number(groups["all"], "seconds")
    return (
        (f"<p>Over {seconds:g} s.</p>" if seconds else "")
        + table(rows, _COLUMNS, "sensors", sensor_label, contest=list(known))
        + f"<h3>By kind, with {escape(whole.replace('+', ' + '))}</h3>"
        + table(parts, _COLUMNS, "agents", contest=())
        + (f"<p class='note'><b>Protocol.</b> {protocol}</p>" if protocol else "")
    )


def _of_forecaster(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One forecaster's numbers of a group, with how many of it were found."""
    said = row.get(name) or {}
    return {**said, "recall": row["recall"], "intervals": {**row["intervals"], **(said.get("intervals") or {})}}
