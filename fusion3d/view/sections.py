"""Sections of the report about what an evaluation found out beside its scores; each is empty where it has nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fusion3d.metrics.columns import told_nearest
from fusion3d.metrics.planning.drives import box_of, sample_counts
from fusion3d.metrics.planning.pdm import about_ground
from fusion3d.types import DETECTION_CLASSES, SENSORS
from fusion3d.view.tables import bars, ends_of, number, picture, sensor_label, shaded, table

# Column, what it is, and whether more of it is better.
PLANNING_COLUMNS = tuple(
    (f"{what}@{t}s", unit, False) for what, unit in (("L2", "[m]"), ("collision", "[% of samples]")) for t in (1, 2, 3)
)
COUNT_COLUMNS = (("N", "samples", True), ("events", "collisions", False))
PDM_COLUMNS = (
    ("PDMS", "all together", True),
    ("NC", "no collision at fault", True),
    ("DAC", "drivable area", True),
    ("TTC", "time to collision", True),
    ("EP", "progress", True),
    ("C", "comfort", True),
)
TRACKING_COLUMNS = (
    ("AMOTA", "over recalls", True),
    ("AMOTP", "position [m], over recalls", False),
    ("MOTA", "", True),
    ("MOTP", "position [m]", False),
    ("recall", "", True),
    ("IDS", "identities switched", False),
    ("FRAG", "tracks broken", False),
)
_SCORES = ("NDS", "mAP")
_INTERVALS = "In small or in brackets: 95 % intervals by drawing scenes again, where there are enough"


@dataclass(frozen=True)
class WorstSample:
    """A sample, and the wrong boxes in it that cost the most."""

    name: str
    cost: float  # [mAP] of all its wrong boxes
    faults: tuple[tuple[str, str, float], ...]  # what is wrong, class and score, cost [mAP]
    left_out: int = 0  # wrong boxes that are not listed
    picture: Path | None = None


@dataclass(frozen=True)
class Findings:
    """What was found out beside the scores, each as it lies in a file; None where nothing was."""

    # Of the scored boxes "all" and "class", as ``reliability`` gives them; or why there is none.
    reliability: Mapping[str, Any] | str | None = None
    calibration: Mapping[str, Any] | None = None  # calibration.json
    similarity: Mapping[str, Any] | None = None  # similarity.json
    robustness: Mapping[str, Any] | None = None  # robustness.json
    curves: Sequence[Path] = ()  # robustness-*.svg
    explained: Sequence[tuple[str, Path]] = ()  # caption and picture
    worst: Sequence[WorstSample] = ()
    audit: Mapping[str, Any] | None = None  # audit.json


def missing_sensors(rows: Mapping[str, Mapping[str, Any]], kept: Mapping[str, Mapping[str, Any]]) -> str:
    """What is left of NDS and mAP without each sensor, and with it alone.

    Args:
        rows: detection numbers by subset.
        kept: the same as parts of what all sensors reach.
    """
    sensors = [sensor for sensor in SENSORS if any(sensor in name.split("+") for name in rows)]
    whole = "+".join(sensors)
    if whole not in rows or len(sensors) < 2:
        return ""
    cases = {f"without {sensor}": "+".join(s for s in sensors if s != sensor) for sensor in sensors}
    cases |= {f"{sensor} alone": sensor for sensor in sensors if len(sensors) > 2}
    lines: dict[str, dict[str, Any]] = {}
    for case, name in {f"all of {', '.join(sensors)}": whole, **cases}.items():
        if name in rows:
            part = kept.get(name, {}) if name != whole else {}
            lines[case] = {key: rows[name].get(key) for key in _SCORES}
            lines[case] |= {f"{key} kept": part.get(key) for key in _SCORES}
            between = part.get("intervals", {})
            lines[case]["intervals"] = {f"{key} kept": between.get(key) for key in _SCORES}
    columns = [(key, what, True) for score in _SCORES for key, what in ((score, ""), (f"{score} kept", "of all"))]
    note = f'<p class="note">{_INTERVALS}; the same scenes above and below.</p>'
    return table(lines, columns, "sensors", contest=()) + note if len(lines) > 1 else ""


def sensor_worth(shapley: Mapping[str, Any]) -> str:
    """Shapley values as bars with their intervals, and by class and stratum."""
    whole = {key: shapley[key] for key in _SCORES if key in shapley}
    if not whole:
        return ""
    sensors = list(next(iter(whole.values())))
    between = shapley.get("intervals") or {}
    lines: dict[str, list[tuple[str, float]]] = {sensor: [] for sensor in sensors}
    for key, of_sensor in whole.items():
        total = math.fsum(number(of_sensor, sensor) or 0.0 for sensor in sensors)
        for sensor in sensors:
            value = number(of_sensor, sensor) or 0.0
            text = f"{value:.3f} ({100 * value / total:.0f} %)" if total > 0 else f"{value:.3f}"
            ends = ends_of(between.get(key) or {}, sensor)
            lines[sensor].append((text + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""), value))
    parts = [
        "<p>The Shapley value: what a sensor adds to those that came before it, mean over all orders in which they may "
        f"come. The values sum to the score of all sensors. {_INTERVALS}.</p>",
        bars(lines, list(whole), "sensor"),
    ]
    of_class = shapley.get("AP") or {}
    if of_class:
        rows = {
            sensor: {
                **{name: value.get(sensor) for name, value in of_class.items()},
                "intervals": {name: (between.get(f"AP.{name}") or {}).get(sensor) for name in of_class},
            }
            for sensor in sensors
        }
        names = [name for name in DETECTION_CLASSES if name in of_class]
        parts += ["<h3>In the average precision of each class</h3>", shaded(rows, names, "sensor")]
    for path, strata in _strata(shapley):
        columns = [(sensor, "", True) for sensor in sensors]
        parts += [f"<h3>In mAP by {escape(path)}</h3>", table(strata, columns, "part", contest=())]
    return "".join(parts)


def _strata(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """Wherever several parts have a value of mAP: where that is, and the values by part."""
    below = {key: value for key, value in tree.items() if key not in ("AP", "intervals") and isinstance(value, Mapping)}
    parts = {key: value["mAP"] for key, value in below.items() if isinstance(value.get("mAP"), Mapping)}
    found = [(" ".join(part for part in path if part != "strata") or "part", parts)] if parts else []
    for key, value in below.items():
        if key not in parts:
            found += _strata(value, (*path, key))
    return found


def by_stratum(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Average precision in every part of the truth, by subset: the mean over classes, and of all boxes in one ranking.

    Args:
        rows: detection numbers by subset; those with ``strata`` are shown.
    """
    known = {name: row["strata"] for name, row in rows.items() if row.get("strata")}
    tables = []
    for dimension in next(iter(known.values()), ()):
        macro: dict[str, dict[str, Any]] = {}
        micro: dict[str, dict[str, Any]] = {}
        for name, strata in known.items():
            for part, of_part in strata.get(dimension, {}).items():
                between = of_part.get("intervals") or {}
                pooled = (of_part.get("micro") or {}).get("AP")
                for lines, value, key in ((macro, of_part.get("mAP"), "mAP"), (micro, pooled, "micro.AP")):
                    line = lines.setdefault(part, {"intervals": {}})
                    line[name], line["intervals"][name] = value, between.get(key)
        tables.append(f"<h3>{escape(dimension)}</h3>")
        for lines, what in ((macro, "mAP"), (micro, "AP, one ranking")):
            tables.append(table(lines, [(name, what, True) for name in known], "part", contest=()))
    note = (
        '<p class="note">mAP: the mean over the classes that the part has; one ranking: of all its boxes together. '
        f"{_INTERVALS}.</p>"
    )
    return "".join([*tables, note]) if tables else ""


def tracking(metrics: Mapping[str, Any]) -> str:
    """Tracks by sensors."""
    rows = {name: row["tracking"] for name, row in (metrics.get("subsets") or {}).items() if "tracking" in row}
    if not rows:
        return ""
    protocol = metrics.get("tracking_protocol") or ""
    name, whole = [*rows.items()][-1]
    parts = [table(rows, TRACKING_COLUMNS, "sensors", sensor_label)]
    if whole.get("classes"):
        parts += [f"<h3>With {escape(name.replace('+', ' + '))}, by class</h3>"]
        parts += [table(whole["classes"], TRACKING_COLUMNS, "class", contest=())]
    parts += [f"<p class='note'>{escape(line)}.</p>" for line in told_nearest(rows)]
    return "".join([*parts, f"<p class='note'><b>Protocol.</b> {escape(str(protocol))}</p>" if protocol else ""])


def planning(metrics: Mapping[str, Any]) -> str:
    """Plans beside the baselines, and by sensors; the PDM-style score; skill by slices."""
    rows = metrics.get("planning") or {}
    if not rows:
        return ""
    planned = {name.replace("_", " "): row for name, row in rows.items()}
    columns = (*PLANNING_COLUMNS, ("at_fault@3s", "[% of samples]", False), *COUNT_COLUMNS)
    protocol = metrics.get("planning_protocol") or metrics.get("protocol") or ""
    parts = [
        table(planned, columns, "planner", contest=()),
        '<p class="note">Less is better; what is more than chance, the skill below says.</p>',
        f"<p class='note'><b>Protocol.</b> {escape(str(protocol))}</p>" if protocol else "",
    ]
    subsets = {name: row["planning"] for name, row in (metrics.get("subsets") or {}).items() if "planning" in row}
    if len(subsets) > 1:
        parts += ["<h3>By sensors</h3>", table(subsets, columns, "sensors", sensor_label, contest=())]
    scores = metrics.get("planning_scores") or {}
    if subsets and scores.get("protocols"):
        parts.append(_by_protocol(scores["protocols"], list(subsets)[-1]))
    if scores.get("pdm"):
        row = next(iter(scores["pdm"].values()))
        ground = f" {about_ground(row)}" if "num_by_mask" in row else ""  # older results do not say it
        parts += [
            "<h3>PDM-style score</h3>",
            table(scores["pdm"], PDM_COLUMNS, "planner", sensor_label, contest=()),
            f'<p class="note">NC DAC (5 TTC + 5 EP + 2 C) / 12 of each sample, then the mean; 1 is best.{ground}</p>',
        ]
    if scores.get("skill"):
        parts += ["<h3>Skill over constant turn rate and velocity</h3>", _skill(scores["skill"])]
    return "".join(parts)


def _by_protocol(protocols: Mapping[str, Mapping[str, Any]], planner: str) -> str:
    """A row a protocol: the same plans, with what the numbers are of, and the human's hits as their floor."""
    lines, names = {}, {}
    for name, of in protocols.items():
        human = of["planners"].get("human") or {}
        lines[name] = {**of["planners"][planner], "raw@3s": human.get("raw@3s", human.get("collision@3s"))}
        count = sample_counts(of["planners"][planner])
        those = f"{of['samples']}, {count} at 1, 2 and 3 s" if "/" in count else of["samples"]
        told = f"samples {those}; ego {box_of(of['about'])}"
        names[name] = f"{escape(name.replace('_', ' '))}<small>{escape(told)}</small>"
    columns = (*COUNT_COLUMNS, ("masked", "more, left out", False), *PLANNING_COLUMNS)
    columns = (*columns, ("raw@3s", "of the human [%]", False))
    return (
        f"<h3>The same plans by every protocol: {sensor_label(planner)}</h3>"
        + table(lines, columns, "protocol", lambda name: names[name], contest=())
        + '<p class="note">What each averages, over which samples and with which bugs: metrics.json.</p>'
    )


def _skill(by_planner: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a slice, a column a planner."""
    lines: dict[str, dict[str, Any]] = {}
    for planner, rows in by_planner.items():
        for title, row in rows.items():
            count = f"N {row['N']}" if "scenes" in row else f"{row['N']} manoeuvres"
            line = lines.setdefault(f"{title} ({count})", {"intervals": {}})
            line[planner] = row.get("skill")
            line["intervals"][planner] = (row.get("low"), row.get("high"))
    columns = [(planner, "skill", True) for planner in by_planner]
    return (
        table(lines, columns, "samples", contest=())
        + '<p class="note">1 - error / its error, of the mean distance over the whole plan: 0 is no better, 1 is the '
        "driven path. Under it the 95 % interval by paired bootstrap over scenes, where there are enough.</p>"
    )


def explained(pictures: Sequence[tuple[str, Path]]) -> str:
    """Heat over images and maps."""
    if not pictures:
        return ""
    return (
        "<p>Grad-CAM: the brighter a place, the more it speaks for the answer; on each sensor's own map, before these "
        "are fused, and on the images. A sensor that is absent has no map.</p>"
        + "".join(picture(*one) for one in pictures)
    )


def similarity(found: Mapping[str, Any] | None) -> str:
    """Linear CKA of every two maps."""
    if not found or not found.get("pairs"):
        return ""
    names = list(dict.fromkeys(name for pair in found["pairs"] for name in pair["maps"]))
    rows: dict[str, dict[str, float]] = {name: {name: 1.0} for name in names}
    for pair in found["pairs"]:
        a, b = pair["maps"]
        rows[a][b] = rows[b][a] = pair["unbiased"]
    return (
        f"<p>Linear CKA over the cells of split {escape(str(found.get('split', '')))}, unbiased: 1 for maps that say "
        "the same up to rotation and scale, 0 for maps that say nothing of each other.</p>" + shaded(rows, names, "map")
    )


def robustness(found: Mapping[str, Any] | None, curves: Sequence[Path]) -> str:
    """What is left under each corruption, worst first, and the curves.

    Args:
        found: ``mRA.<group>.{NDS, mAP}``; ``corruptions.<name>``: ``amounts``, ``NDS`` and ``mAP``, a number for each
            amount, and ``RA.{NDS, mAP}``, the mean over the amounts as part of the clean number; ``worst``: conditions
            with ``NDS``, ``mAP`` and ``RA``. mRA and RA have ``intervals`` where there are any.
        curves: pictures.
    """
    if not found:
        return "".join(picture(path.stem.replace("-", " "), path) for path in curves)
    parts = []
    if found.get("mRA"):
        columns = [("NDS", "kept", True), ("mAP", "kept", True)]
        parts += ["<h3>Mean relative accuracy</h3>", table(found["mRA"], columns, "sensor", contest=())]
    rows = {}
    for name, row in (found.get("corruptions") or {}).items():
        values = zip(row.get("amounts") or (), row.get("NDS") or (), strict=False)
        each = {f"NDS {severity:g}": value for severity, value in values}
        rows[name] = {**each, **(row.get("RA") or {})}
    if rows:
        keys = sorted({key for row in rows.values() for key in row if key.startswith("NDS ")})
        columns = [(key, f"severity {key.removeprefix('NDS ')}", True) for key in keys]
        columns += [("NDS", "kept", True), ("mAP", "kept", True)]
        rows = dict(sorted(rows.items(), key=lambda item: number(item[1], "NDS") or 0.0))
        parts += ["<h3>Corruptions, the worst first</h3>", table(rows, columns, "corruption", contest=())]
    worst = {one["condition"]: {"at": one.get("NDS"), **(one.get("RA") or {})} for one in found.get("worst") or ()}
    if worst:
        columns = [("at", "NDS", True), ("NDS", "kept", True), ("mAP", "kept", True)]
        parts += ["<h3>The worst of all conditions</h3>", table(worst, columns, "condition", contest=())]
    return "".join([*parts, *(picture(path.stem.replace("-", " "), path) for path in curves)])


def audit(found: Mapping[str, Any] | None) -> str:
    """What a planner's plans depend on: the verdict, and how far they move under every change."""
    rows = {}
    for row in (found or {}).get("changes") or ():
        told = {f"{what}@{time}": of for what in ("moved", "L2") for time, of in (row.get(what) or {}).items()}
        means = {key: of["mean"] for key, of in told.items()}
        rows[row["name"]] = means | {"intervals": {key: [of["low"], of["high"]] for key, of in told.items()}}
    if not found or not rows:
        return ""
    keys = dict.fromkeys(key for row in rows.values() for key in row if key != "intervals")
    lines = [f"<b>Leak.</b> {escape(text)}" for text in found.get("leaks", ())]
    lines += [escape(text) for text in found.get("says", ())]
    return (
        f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"
        + table(rows, [(key, "[m]", False) for key in keys], "what is changed", contest=())
        + "<p class='note'>How far the plan moves, and how much farther from the driven path it is, with 95 % "
        f"intervals over scenes: {found.get('samples')} samples of {found.get('scenes')} scenes.</p>"
    )


def worst_samples(samples: Sequence[WorstSample]) -> str:
    """Pictures of samples, and what is wrong in them."""
    if not samples:
        return ""
    parts = [
        "<p>What each wrong box costs: by how much mAP would rise if that false positive were not there, or that "
        "missed object were found with the highest score, all else unchanged; counted at those of the matching "
        "distances at which it is wrong. Samples are ordered by the sum over their boxes; the listed boxes are "
        "circled.</p>"
    ]
    for sample in samples:
        lines = "".join(
            f'<tr><th scope="row">{escape(what)}</th><td>{escape(of)}</td><td>{cost:.5f}</td></tr>'
            for what, of, cost in sample.faults
        )
        more = f'<p class="note">and {sample.left_out} more</p>' if sample.left_out else ""
        parts.append(
            f"<h3>{escape(sample.name)}: {sample.cost:.4f} mAP</h3>"
            + (picture(sample.name, sample.picture) if sample.picture else "")
            + '<div class="wide"><table><thead><tr><th scope="col">what is wrong</th><th scope="col">class</th>'
            f'<th scope="col">costs<small>mAP</small></th></tr></thead><tbody>{lines}</tbody></table></div>{more}'
        )
    return "".join(parts)
