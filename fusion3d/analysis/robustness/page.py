"""The suite as a page: one table, worst first; mean relative accuracy; curves; all of it as numbers too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion3d.analysis.robustness.summary import METRICS, TEN, Row, Share, Summary
from fusion3d.data.corruptions import KINDS
from fusion3d.files import write_json, write_whole
from fusion3d.view.curves import Curve, draw_curves

NAME = "robustness"
NOTE = (
    "RA: relative accuracy, the mean over severities of the number over the clean one; mRA: its mean over corruptions, "
    "as MultiCorrupt (Beemelmanns et al., 2024) has them. Worst first, by NDS. fog, snow, blur and stale without a "
    "sensor befall camera and LiDAR at once. What is said of MultiCorrupt follows its definitions and severities; "
    "images are corrupted in the network's size, and snow on LiDAR is a model of our own (fusion3d/data/corruptions). "
    "In brackets: 95 % intervals by drawing scenes again, the same for a condition and for none."
)
CLEAN_RADAR = (
    "MultiCorrupt knows camera and LiDAR alone: under its ten the radars of this model stay whole, so that its mRA "
    "compares with that of other models with radar."
)


def write_page(out: Path, summary: Summary, header: str, details: dict[str, Any]) -> str:
    """Write ``robustness.md``, ``robustness.json`` and a plot for each kind of curve.

    Args:
        out: folder.
        summary: of the suite.
        header: a line on the model and the data.
        details: more for the JSON.

    Returns:
        The text of the page.

    Raises:
        Fusion3DError: a file cannot be written.
    """
    lines = ["# Robustness", "", header, "", f"{summary.samples} samples; corrupted: {summary.whole}.", ""]
    lines += _subsets(summary)
    if summary.rows:
        lines += ["", "## Mean relative accuracy", "", *_means(summary)]
        if TEN in summary.means and "radar" in summary.whole.split("+"):
            lines += ["", CLEAN_RADAR]
        lines += ["", "## Corruptions", "", *_corruptions(summary), "", NOTE]
    lines += ["", f"## The worst {len(summary.worst)} of all conditions", "", *_worst(summary)]
    for kind in dict.fromkeys(_kind(row) for row in summary.curves):
        rows = [row for row in summary.curves if _kind(row) == kind]
        plot = _draw(out, kind, rows, summary)
        lines += ["", f"## {kind}: {KINDS[kind].text}", "", f"![{kind}]({plot.name})", ""]
        lines += _curves(rows)
    text = "\n".join([*lines, ""])
    write_json(out / f"{NAME}.json", _plain(summary) | details)
    write_whole(out / f"{NAME}.md", text.encode())
    return text


def _subsets(summary: Summary) -> list[str]:
    lines = [["sensors, not corrupted", *METRICS, *(f"{metric} relative" for metric in METRICS)]]
    for name, numbers in sorted(summary.clean.items(), key=lambda item: item[1]["NDS"]):
        shares = [_share(summary.kept[name][m]) for m in METRICS]
        lines.append([name, *(f"{numbers[m]:.3f}" for m in METRICS), *shares])
    return _table(lines)


def _worst(summary: Summary) -> list[str]:
    lines = [["condition", *METRICS, *(f"{metric} relative" for metric in METRICS)]]
    for one in summary.worst:
        values, shares = [f"{one.values[m]:.3f}" for m in METRICS], [_share(one.relative[m]) for m in METRICS]
        lines.append([one.name, *values, *shares])
    return _table(lines)


def _means(summary: Summary) -> list[str]:
    lines = [["mRA of", *METRICS, "corruptions"]]
    for name, means in summary.means.items():
        lines.append([name, *(_share(means[m]) for m in METRICS), str(summary.counts[name])])
    return _table(lines)


def _corruptions(summary: Summary) -> list[str]:
    severities = sorted({amount for row in summary.rows for amount in row.family.amounts})
    heads = ["corruption", *(f"RA {m}" for m in METRICS)]
    lines = [[*heads, *(f"{m}, severity {s:g}" for m in METRICS for s in severities)]]
    for row in summary.rows:
        cells = [row.family.name, *(_share(row.relative[m]) for m in METRICS)]
        for metric in METRICS:
            at = dict(zip(row.family.amounts, row.values[metric], strict=True))
            cells += [f"{at[s]:.3f}" if s in at else "-" for s in severities]
        lines.append(cells)
    return _table(lines)


def _curves(rows: Sequence[Row]) -> list[str]:
    amounts = sorted({amount for row in rows for amount in row.family.amounts})
    lines = [["sensor", "metric", *(f"{amount:g} {rows[0].family.unit}" for amount in amounts)]]
    for row in rows:
        for metric in METRICS:
            at = dict(zip(row.family.amounts, row.values[metric], strict=True))
            lines.append([row.family.sensors[0], metric, *(f"{at[a]:.3f}" if a in at else "-" for a in amounts)])
    return _table(lines)


def _draw(out: Path, kind: str, rows: Sequence[Row], summary: Summary) -> Path:
    """The curves of all sensors; nothing wrong is on them where the amount can be 0, and no sensor at all at its 0."""
    clean = summary.clean[summary.whole]
    panels: dict[str, list[Curve]] = {}
    for metric in METRICS:
        panels[metric] = []
        for row in rows:
            places, values = list(row.family.amounts), list(row.values[metric])
            sensor = row.family.sensors[0]
            if kind != "keep":
                start = clean[metric]
            else:
                rest = "+".join(name for name in summary.whole.split("+") if name != sensor)
                start = summary.clean.get(rest, {}).get(metric, math.nan)
                places, values = [*places, places[-1] + 1], [*values, clean[metric]]
            panels[metric].append(Curve(sensor, (0, *places), (start, *values)))
    return draw_curves(out / f"{NAME}-{kind}.svg", panels, f"{kind} [{rows[0].family.unit}]", clean)


def _kind(row: Row) -> str:
    return row.family.parts[0].partition(".")[2]


def _share(share: Share) -> str:
    if not math.isfinite(share.value):
        return "-"
    return f"{share.value:.3f}" + (f" [{share.interval[0]:.3f}, {share.interval[1]:.3f}]" if share.interval else "")


def _table(lines: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return ["| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:])]


def _plain(summary: Summary) -> dict[str, Any]:
    """Everything that the page says, as numbers."""

    def row(of: Row) -> dict[str, Any]:
        return {
            "corruptions": list(of.family.parts),
            "unit": of.family.unit,
            "amounts": list(of.family.amounts),
            **{metric: list(values) for metric, values in of.values.items()},
            "RA": shares(of.relative),
        }

    def shares(of: Mapping[str, Share]) -> dict[str, Any]:
        values = {metric: share.value for metric, share in of.items()}
        return {**values, "intervals": {metric: share.interval for metric, share in of.items()}}

    return {
        "samples": summary.samples,
        "corrupted": summary.whole,
        "clean": summary.clean,
        "kept": {name: shares(of) for name, of in summary.kept.items()},
        "mRA": {name: shares(of) for name, of in summary.means.items()},
        "mRA over": summary.counts,
        "corruptions": {of.family.name: row(of) for of in summary.rows},
        "worst": [{"condition": one.name, **one.values, "RA": shares(one.relative)} for one in summary.worst],
        "curves": {of.family.name: row(of) for of in summary.curves},
    }
