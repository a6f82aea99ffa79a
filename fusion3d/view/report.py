"""One HTML page about a run, in one file: no script, nothing fetched, pictures and charts inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fusion3d.files import write_whole
from fusion3d.metrics.columns import told_nearest
from fusion3d.metrics.occupancy import occupancy_columns
from fusion3d.types import DETECTION_CLASSES, MAP_CLASSES
from fusion3d.view.charts import line_chart
from fusion3d.view.forecasts import motion
from fusion3d.view.reliability import calibration
from fusion3d.view.sections import (
    Findings,
    audit,
    by_stratum,
    explained,
    missing_sensors,
    planning,
    robustness,
    sensor_worth,
    similarity,
    tracking,
    worst_samples,
)
from fusion3d.view.stylesheet import STYLESHEET
from fusion3d.view.tables import duration, number, picture, sensor_label, shaded, table

# Column, what it is, and whether more of it is better.
DETECTION_COLUMNS = (
    ("NDS", "nuScenes score", True),
    ("mAP", "precision", True),
    ("mATE", "position [m]", False),
    ("mASE", "size [1-IoU]", False),
    ("mAOE", "heading [rad]", False),
    ("mAVE", "velocity [m/s]", False),
    ("mAAE", "attribute [1-acc]", False),
)
MAP_COLUMNS = (
    ("mIoU@0.5", "mean", True),
    ("mIoU@best", "mean, best thresholds", True),
    *((name, "IoU@0.5", True) for name in MAP_CLASSES),
)


def write_report(
    path: str | Path,
    metrics: Mapping[str, Any],
    curves: Sequence[Mapping[str, Any]] = (),
    pictures: Sequence[tuple[str, str | Path]] = (),
    config_text: str = "",
    environment: Mapping[str, Any] | None = None,
    title: str = "fusion3d report",
    summary: str = "",
    findings: Findings | None = None,
) -> Path:
    """Write the report of a run.

    Args:
        path: the ``.html`` file; its folder is made, it appears whole.
        metrics: as ``evaluate`` writes them: ``subsets.<name>.{NDS, mAP, ..., AP.<class>}``,
            ``subsets.<name>.tracking``, ``tracking_protocol``; ``planning.<planner>.{N, L2@1s, ..., collision@3s}``,
            ``subsets.<name>.planning``, ``planning_scores.{pdm, skill}``, ``planning_protocol`` (or ``protocol``),
            ``subsets.<name>.intervals.<number>``, [low, high] or null; ``subsets.<name>.strata.<dimension>.<part>``,
            rows of the same kind; ``kept`` and ``shapley``, as ``BoxScorer.beside`` gives them;
            ``subsets.<name>.map`` and ``map.<baseline>`` as ``Overlap.scores`` gives them, ``map_protocol``;
            the same of ``occupancy``; ``seconds.<stage>``;
            each may be absent, and a number that is absent or not finite is shown as a dash.
        curves: the lines of ``log.jsonl``: ``step``, ``loss`` and ``loss/<part>``.
        pictures: (caption, PNG or JPEG file).
        config_text: how the configuration differs from the defaults, as text.
        environment: name and value of whatever says where and with what it ran.
        title: heading of the page.
        summary: a sentence or two under it.
        findings: what else was found out.

    Returns:
        The path.

    Raises:
        Fusion3DError: a picture cannot be read, or the file cannot be written.
    """
    findings = Findings() if findings is None else findings
    sections = [
        ("sensors", "Detection by sensors", _subsets(metrics)),
        ("missing", "What is left without a sensor", missing_sensors(_subset_rows(metrics), metrics.get("kept") or {})),
        ("worth", "What each sensor is worth", sensor_worth(metrics.get("shapley") or {})),
        ("strata", "By distance, light and the like", by_stratum(_subset_rows(metrics))),
        ("tracking", "Tracking", tracking(metrics)),
        ("planning", "Planning", planning(metrics)),
        ("audit", "What the plan depends on", audit(findings.audit)),
        ("map", "Map", _map(metrics)),
        ("occupancy", "Who is where", _occupancy(metrics)),
        ("motion", "How others go on", motion(metrics)),
        ("classes", "Average precision by class", _classes(metrics)),
        ("explained", "What the model looks at", explained(findings.explained)),
        ("similarity", "How alike the sensors' maps are", similarity(findings.similarity)),
        ("calibration", "How sure, how often right", calibration(findings.reliability, findings.calibration)),
        ("robustness", "Robustness", robustness(findings.robustness, findings.curves)),
        ("worst", "Worst samples", worst_samples(findings.worst)),
        ("pictures", "Pictures", "".join(picture(*one) for one in pictures)),
        ("training", "Training", _curves(curves)),
        ("time", "Time", _seconds(metrics.get("seconds") or {})),
        ("setup", "Configuration and environment", _setup(config_text, environment or {})),
    ]
    there = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in there)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{escape(heading)}</h2>{content}</section>\n'
        for name, heading, content in there
    )
    html = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLESHEET}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(summary)}</p>'
        f'<nav aria-label="Sections">{links}</nav></header>\n'
        f"<main>\n{_headline(metrics)}\n{body}</main>\n</body>\n</html>\n"
    )
    return write_whole(path, html.encode())


def _subset_rows(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {name: row for name, row in (metrics.get("subsets") or {}).items() if "NDS" in row or "mAP" in row}


def _headline(metrics: Mapping[str, Any]) -> str:
    """The few figures that are looked at first."""
    figures: list[tuple[str, str, str]] = []
    scores = {name: score for name, row in _subset_rows(metrics).items() if (score := number(row, "NDS")) is not None}
    if scores:
        full = max(scores, key=lambda name: (name.count("+"), scores[name]))
        figures.append((f"NDS with {full.replace('+', ' + ')}", f"{scores[full]:.3f}", "nuScenes detection score"))
        singles = {name: score for name, score in scores.items() if "+" not in name}
        if singles and "+" in full:
            best = max(singles, key=lambda name: singles[name])
            gain = scores[full] - singles[best]
            figures.append(("NDS gained by fusion", f"{gain:+.3f}", f"over {best} alone ({singles[best]:.3f})"))
    plans = metrics.get("planning") or {}
    ours = number(plans.get("model") or {}, "L2@3s")
    if ours is not None:
        usual = number(plans.get("constant_velocity") or {}, "L2@3s")
        beside = "" if usual is None else f"constant velocity: {usual:.2f} m"
        figures.append(("Plan off the driven path after 3 s", f"{ours:.2f} m", beside))
    total = number(metrics.get("seconds") or {}, "total")
    if total is not None:
        figures.append(("Time", duration(total), "all stages below"))
    tiles = (
        f'<div><dt>{escape(name)}</dt><dd class="figure">{escape(value)}</dd><dd>{escape(note)}</dd></div>'
        for name, value, note in figures
    )
    return f'<dl class="headline">{"".join(tiles)}</dl>' if figures else ""


def _subsets(metrics: Mapping[str, Any]) -> str:
    rows = _subset_rows(metrics)
    if not rows:
        return ""
    count = metrics.get("num_samples")
    over = f" Scored on {escape(str(count))} samples." if count else ""
    return (
        "<p>One checkpoint, given any of its sensors; what is not given is absent, not zero. "
        f"Official nuScenes metrics.{over}</p>"
        + table(rows, DETECTION_COLUMNS, "sensors", sensor_label)
        + '<p class="note">Best of each column marked. NDS and mAP: more is better; errors: less is better.</p>'
        + "".join(f"<p class='note'>{escape(line)}.</p>" for line in _remarks(metrics, rows))
    )


def _remarks(metrics: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was particular about the scored boxes."""
    lines = [f"The file: {line}" for line in metrics.get("remarks") or ()] + told_nearest(rows)
    apart = [row["official"]["difference"] for row in rows.values() if "official" in row]
    return lines + ([f"Greatest difference from the devkit: {max(apart):.1e}"] if apart else [])


def _map(metrics: Mapping[str, Any]) -> str:
    """The ground by sensors, the baselines under it."""
    subsets = {name: row["map"] for name, row in (metrics.get("subsets") or {}).items() if "map" in row}
    if not subsets:
        return ""
    rows = {name: {**row, **row.get("IoU@0.5", {})} for name, row in (subsets | (metrics.get("map") or {})).items()}
    return _contest(rows, MAP_COLUMNS, list(subsets), metrics.get("map_protocol"))


def _occupancy(metrics: Mapping[str, Any]) -> str:
    """The occupancy by sensors, under it that nothing moves."""
    subsets = {name: row["occupancy"] for name, row in (metrics.get("subsets") or {}).items() if "occupancy" in row}
    if not subsets:
        return ""
    every = subsets | (metrics.get("occupancy") or {})
    rows = {name: occupancy_columns(row, "IoU@best") for name, row in every.items() if "IoU@best" in row}
    if not rows:
        return ""
    columns = [(name, "IoU@best", True) for name in next(iter(rows.values()))]
    return _contest(rows, columns, [name for name in subsets if name in rows], metrics.get("occupancy_protocol"))


def _contest(rows: Mapping[str, Any], columns: Any, of_model: list[str], protocol: Any) -> str:
    """A table in which more is better, with what is counted under it."""
    return (
        table(rows, columns, "sensors", sensor_label, contest=of_model)
        + '<p class="note">More is better; best of the model in each column marked.</p>'
        + (f"<p class='note'><b>Protocol.</b> {escape(str(protocol))}</p>" if protocol else "")
    )


def _classes(metrics: Mapping[str, Any]) -> str:
    """A row a subset, a column a class, shaded by the value."""
    found = {name: row for name, row in _subset_rows(metrics).items() if row.get("AP")}
    if not found:
        return ""
    there = {name for row in found.values() for name in row["AP"]}
    names = [*(name for name in DETECTION_CLASSES if name in there), *sorted(there - set(DETECTION_CLASSES))]
    rows = {}
    for name, row in found.items():
        between = row.get("intervals") or {}
        rows[name] = {**row["AP"], "intervals": {of: between.get(f"AP.{of}") for of in names}}
    whole, numbers = [*found.items()][-1]
    return (
        '<p class="note">Mean over the matching distances.</p>'
        + shaded(rows, names, "sensors", sensor_label)
        + f"<h3>With {escape(whole.replace('+', ' + '))}: by matching distance, and errors</h3>"
        + _one_by_class(numbers, names)
    )


def _one_by_class(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """A class a row: average precision at every distance, and the errors of true positives with their intervals."""
    at, errors, between = row.get("AP_at") or {}, row.get("TP") or {}, row.get("intervals") or {}
    distances = list(dict.fromkeys(distance for of_class in at.values() for distance in of_class))
    kinds = [column for column in DETECTION_COLUMNS if column[0].endswith("E")]
    rows = {}
    for name in names:
        own = {kind: (errors.get(name) or {}).get(kind[1:]) for kind, _, _ in kinds}
        sure = {kind: between.get(f"{kind[1:]}.{name}") for kind in own}
        rows[name.replace("_", " ")] = {**(at.get(name) or {}), **own, "intervals": sure}
    columns = [(distance, "m, AP", True) for distance in distances] + list(kinds)
    return table(rows, columns, "class", contest=())


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    """A chart for the loss and one for each of its parts."""
    names = [key for record in records for key in record if key == "loss" or key.startswith("loss/")]
    charts = []
    for name in dict.fromkeys(names):
        known = [(float(r["step"]), v) for r in records if "step" in r and (v := number(r, name)) is not None]
        if not known:
            continue
        steps, values = zip(*known, strict=True)
        heading = escape("whole loss" if name == "loss" else name.removeprefix("loss/").replace("_", " "))
        charts.append(
            f"<figure><figcaption><b>{heading}</b><span>{values[0]:.3g} → {values[-1]:.3g}</span></figcaption>"
            f"{line_chart(steps, values, heading)}</figure>"
        )
    if not charts:
        return ""
    note = '<p class="note">Weighted terms by step; the strong line is a running mean.</p>'
    return f'{note}<div class="charts">{"".join(charts)}</div>'


def _seconds(seconds: Mapping[str, Any]) -> str:
    known = {name: value for name in seconds if (value := number(seconds, name)) is not None}
    if not known:
        return ""
    longest = max(known.values()) or 1.0
    lines = "".join(
        f'<tr><th scope="row">{escape(name.replace("_", " "))}</th><td>{duration(value)}</td>'
        f'<td class="bar"><span style="width:{100 * max(value, 0) / longest:.1f}%"></span></td></tr>'
        for name, value in known.items()
    )
    return (
        '<div class="wide"><table><thead><tr><th scope="col">stage</th><th scope="col">time</th>'
        f'<th scope="col"><span class="hidden">share</span></th></tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _setup(config_text: str, environment: Mapping[str, Any]) -> str:
    facts = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
        for name, value in environment.items()
    )
    table = f'<div class="wide"><table class="facts"><tbody>{facts}</tbody></table></div>' if facts else ""
    text = config_text.strip()
    config = f"<p>What is not default:</p><pre>{escape(text)}</pre>" if text else ""
    return config + table
