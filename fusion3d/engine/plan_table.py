"""The numbers of plans as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fusion3d.metrics.bootstrap import FEWEST_SCENES
from fusion3d.metrics.planning.drives import box_of, sample_counts
from fusion3d.metrics.planning.exact import NAME
from fusion3d.metrics.planning.pdm import PARTS, about_ground
from fusion3d.metrics.planning.protocols import PUBLISHED
from fusion3d.metrics.planning.published import HORIZONS
from fusion3d.metrics.planning.slices import HUMAN

SHARES = (
    "collision", "masked", "at_fault", "vehicle", "vru", "static", "raw", "point", "boundary", "boundary_raw", "ttc",
)  # fmt: skip
_EXACT = (
    *(f"L2@{t}s" for t in HORIZONS), "L2mean@3s", "longitudinal@3s", "lateral@3s", "heading@3s",
    *(f"collision@{t}s" for t in HORIZONS), "masked@3s", "at_fault@3s", "vehicle@3s", "vru@3s", "static@3s", "ttc",
    "clearance_p5", "jump",
)  # fmt: skip
_ENDS = (*(f"{t}s" for t in HORIZONS), "avg")
_PUBLISHED = tuple(f"{name}@{end}" for name in ("L2", "collision") for end in _ENDS)
_OWN = ("point", "boundary")  # of some protocols alone
_SHORT = {
    "collision": "hit", "longitudinal": "along", "lateral": "across", "heading": "turn", "at_fault": "fault",
    "vehicle": "veh", "clearance_p5": "near p5", "boundary": "edge",
}  # fmt: skip


def format_planning(scores: Mapping[str, Any]) -> str:
    """All tables of ``score_plans``: the protocols side by side, each by itself, the PDM-style score, and the skill."""
    protocols = scores["protocols"]
    planners = next(iter(protocols.values()))["planners"]
    parts = [format_side_by_side(protocols, planners), *(format_protocol(name, of) for name, of in protocols.items())]
    if "pdm" in scores:
        parts += [format_pdm(scores["pdm"]), format_skill(scores["skill"])]
    return "\n\n".join(parts)


def format_side_by_side(protocols: Mapping[str, Any], planners: Iterable[str]) -> str:
    """The same plans by every protocol, a row each."""
    numbers = tuple(f"{column}@{t}s" for column in ("L2", "collision") for t in HORIZONS)
    lines = [
        "side by side: L2 [m] and hit [%] are at the time, the mean over the steps until it, or any until it",
        "  events: hits by 3 s, of a mean those of all steps; masked: more, left out as the human hits there too",
        "  (-: all count); human: hits of the driven path by 3 s [%], the floor; N: at 1, 2 and 3 s where they differ,",
        "  and samples those at 3 s",
        _line("", "L2, hit", "N", ("events", "masked", *map(_head, numbers), "human"), "samples", "ego"),
    ]
    for planner in planners:
        lines.append(planner)
        for name, of in protocols.items():
            row, human = of["planners"][planner], of["planners"][HUMAN]
            exact = name == NAME
            kind = "at, any" if exact else f"{PUBLISHED[name].average}, {PUBLISHED[name].hits}"
            floor = "collision@3s" if exact else "raw@3s"
            counts = (f"{row['events']:.0f}", "-" if exact else f"{row['masked']:.0f}")
            cells = (*counts, *(_show(column, row[column]) for column in numbers), _show(floor, human[floor]))
            lines.append(_line(f"  {name}", kind, sample_counts(row), cells, of["samples"], box_of(of["about"])))
    return "\n".join(lines)


def _line(name: str, kind: str, count: str, cells: Iterable[str], samples: str, ego: str) -> str:
    return f"{name:<15}{kind:<10}{count:>15}" + "".join(f"{cell:>8}" for cell in cells) + f"{samples:>10}   {ego}"


def format_protocol(name: str, scores: Mapping[str, Any]) -> str:
    """One protocol: what it is, and a row for each planner; shares are in percent."""
    about, planners = scores["about"], scores["planners"]
    columns = _EXACT if name == NAME else _PUBLISHED
    columns = (*columns, *(f"{own}@{end}" for own in _OWN if f"{own}@3s" in planners[HUMAN] for end in _ENDS))
    floor = planners[HUMAN].get("collision@3s" if name == NAME else "raw@3s", np.nan)
    lines = [
        f"{name}   samples {scores['samples']}   agents: {about['agents']}",
        f"  ego: {about['ego']}",
        f"  L2: {about['L2']}",
        f"  hit [%]: {about['collision']}",
        f"  masking: {about['masking']}",
        *([f"  clock: {about['clock']}"] if "clock" in about else []),
        f"  floor: the human's own path hits {_show('collision', floor)} % by 3 s"
        "; a gap between planners below that says nothing",
    ]
    if about.get("bugs"):
        lines.append(f"  known bugs, kept: {about['bugs']}")
    heads = ["events", *(_head(column) for column in columns)]
    lines.append(f"{'':<22}{'N':>16}" + "".join(f"{head:>10}" for head in heads))
    for planner, row in planners.items():
        numbers = [f"{row['events']:.0f}", *(_show(column, row[column]) for column in columns)]
        lines.append(f"{planner:<22}{sample_counts(row):>16}" + "".join(f"{text:>10}" for text in numbers))
    return "\n".join(lines)


def format_pdm(table: Mapping[str, Mapping[str, float]]) -> str:
    """The PDM-style score and its parts."""
    lines = [
        "PDM-style score: NC DAC (5 TTC + 5 EP + 2 C) / 12 of each sample, then the mean; 1 is best",
        "  EP: of each way times its NC DAC, as in NAVSIM v1.1, relative to the human's where that is longer",
        "  TTC: at the sides too off the road, between lanes and in an intersection, as far as a map knows them",
        f"  {about_ground(next(iter(table.values())))}",
    ]
    lines.append(f"{'':<22}" + "".join(f"{head:>10}" for head in ("N", "PDMS", *PARTS)))
    for planner, row in table.items():
        numbers = [_show(column, row[column]) for column in ("PDMS", *PARTS)]
        lines.append(f"{planner:<22}" + "".join(f"{text:>10}" for text in (f"{row['N']:.0f}", *numbers)))
    return "\n".join(lines)


def format_skill(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Skill over constant turn and velocity: slices by planners, each with its interval."""
    lines = [
        "skill over ctrv: 1 - error / ctrv's error of mean L2 over the plan [95 % by paired bootstrap over scenes; "
        f"fewer than {FEWEST_SCENES} scenes distinguish nothing]"
    ]
    for planner, rows in table.items():
        lines.append(f"{planner}: macro-average over manoeuvres {_signed(rows['macro']['skill'])}")
        for title, row in rows.items():
            if title == "macro":
                continue
            span = "" if np.isnan(row["low"]) else f"[{_short(row['low'])}, {_short(row['high'])}]"
            counts = f"N {row['N']:>5} of {row['scenes']:>4} scenes"
            lines.append(
                f"  {title:<34}{counts}  L2 {row['L2mean']:6.3f} m  {_signed(row['skill']):>8} {span:<18} {row['says']}"
            )
    return "\n".join(lines)


def _head(column: str) -> str:
    name, _, end = column.partition("@")
    return _SHORT.get(name, name) + (f"@{end}" if end else "")


def _signed(skill: float) -> str:
    return "n/a" if np.isnan(skill) else f"{skill:+.3f}"  # where the reference makes no error, there is none to be less


def _short(skill: float) -> str:
    """In the width of its column: where the reference hardly errs, skill may be thousands below 0."""
    return f"{skill:+.3f}" if abs(skill) < 10 else f"{skill:+.0f}"


def _show(column: str, value: float | None) -> str:
    if value is None or np.isnan(value):
        return "n/a"
    return f"{100 * value:.2f}" if column.partition("@")[0] in SHARES else f"{value:.3f}"
