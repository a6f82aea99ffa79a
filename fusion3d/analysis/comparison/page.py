"""The comparison as a page: one table, one plot, and what the sensors add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusion3d.analysis.comparison.rows import REFERENCE
from fusion3d.analysis.comparison.runs import changes
from fusion3d.analysis.comparison.summary import (
    KEPT,
    Gain,
    Scores,
    above,
    any_of,
    best,
    difference,
    estimate,
    gains,
    mean_nds,
    nds,
    whole,
)
from fusion3d.config import Config
from fusion3d.engine.environment import headline
from fusion3d.files import write_json, write_whole
from fusion3d.view.intervals import Spread, draw_intervals

NOTE = (
    "± is half of the 95 % t-interval over the seeds. mean of subsets: of the NDS under every subset of the sensors. "
    f"to {REFERENCE}: difference in NDS, paired by seed; n.d.: not distinguishable from none by its 95 % t-interval, "
    "which is not corrected for the number of rows. C, L, R: NDS of the same checkpoint with camera, LiDAR or radar "
    "alone, and so on; in the rows of one sensor, of a model that was trained with it alone. mAVE [m/s]: with all "
    "sensors of the row. GFLOPs (two for a multiply-add) and ms (median): inference of one keyframe."
)
LETTERS = {"camera": "C", "lidar": "L", "radar": "R"}


def short(subset: str) -> str:
    """ "camera+radar" as "C+R"."""
    return "+".join(LETTERS[name] for name in subset.split("+"))


def make_header(
    base: Config, name: str, made_on: Sequence[Mapping[str, Any]], protocol: str, commands: Sequence[str]
) -> dict[str, Any]:
    """How numbers were made.

    Args:
        base: what all rows share.
        name: of that configuration.
        made_on: of ``environments``.
        protocol: what was done, in words.
        commands: of ``commands_of``.
    """
    lines = [headline(about) for about in made_on] or [base.data.version]
    about = f"{' | '.join(lines)}; {name}"
    said = {"about": about, "protocol": protocol, "commands": list(commands)}
    return said | {"settings": changes(base), "environments": list(made_on)}


def head_lines(title: str, header: Mapping[str, Any], plot: Path, shown: str) -> list[str]:
    """The beginning of a page: what it is, how its numbers were made, of ``make_header``, and its plot."""
    commands = "\n".join(("```", *header["commands"], "```"))
    said = (f"# {title}", str(header["about"]), commands, str(header["protocol"]), f"![{shown}]({plot.name})")
    return [line for part in said for line in (part, "")]


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown: the first row is its head, the first column is names and the others are numbers."""
    head, *others = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *others]
    return ["| " + " | ".join(line) + " |" for line in lines]


def write_page(
    path: Path,
    alone: Scores,
    joint: Scores,
    costs: Mapping[str, Mapping[str, float]],
    header: Mapping[str, Any],
) -> str:
    """Write ``path`` with the suffixes .md, .svg and .json.

    Args:
        path: without suffix.
        alone: metrics of the sensors' own models, by row and seed.
        joint: of the rows that fuse; not empty.
        costs: of ``measure``, for the rows that have any.
        header: how all this was made: "about" and "protocol" are lines of text.

    Returns:
        The text of the page.

    Raises:
        Fusion3DError: a file cannot be written.
    """
    plot = path.with_suffix(".svg")
    said = gains(joint)
    text = "\n".join(
        [
            *head_lines("Ways to fuse, compared", header, plot, "NDS of every row"),
            *_table(alone, joint, costs),
            "",
            NOTE,
            "",
            "## What the sensors add",
            "",
            *_gain_lines(said, alone, joint),
            "",
        ]
    )
    _draw(plot, alone, joint)
    write_json(path.with_suffix(".json"), _plain(alone, joint, costs, said, header))
    write_whole(path.with_suffix(".md"), text.encode())
    return text


def _table(alone: Scores, joint: Scores, costs: Mapping[str, Mapping[str, float]]) -> list[str]:
    first = any_of(joint)
    subsets = [name for name in first["subsets"] if name != whole(first)]
    heads = ["row", "seeds", f"NDS, {short(whole(first))}", "mean of subsets", f"to {REFERENCE}"]
    heads += [*map(short, subsets), "mAVE", "parameters", "GFLOPs", "ms"]
    lines = [heads]
    for name, runs in (alone | dict(joint)).items():  # type: ignore[operator]
        every = name in joint
        scores = list(runs.values())
        to = difference(runs, joint[REFERENCE], nds) if every and _compared(name, joint) else None
        cells = [name, str(len(runs)), str(estimate([*map(nds, scores)])) if every else "-"]
        cells += [str(estimate([*map(mean_nds, scores)])) if every else "-"]
        cells += ["-" if to is None else f"{to.mean:+.3f}{'' if to.distinguishable else ' n.d.'}"]
        for subset in subsets:
            there = [nds(metrics, subset) for metrics in scores if subset in metrics["subsets"]]
            cells.append(f"{estimate(there).mean:.3f}" if there else "-")
        cells.append(f"{estimate([m['subsets'][whole(m)]['mAVE'] for m in scores]).mean:.3f}")
        cost = costs.get(name)
        cells += ["-"] * 3 if cost is None else [f"{cost['parameters']:,}", f"{cost['gflops']:.2f}"]
        cells += [] if cost is None else [f"{cost['milliseconds']:.0f}"]
        lines.append(cells)
    return table_lines(lines)


def _compared(name: str, joint: Scores) -> bool:
    return name != REFERENCE and REFERENCE in joint and bool(joint[name].keys() & joint[REFERENCE].keys())


def _gain_lines(said: Sequence[Gain], alone: Scores, joint: Scores) -> list[str]:
    runs, first = sum(map(len, joint.values())), any_of(joint)
    size = whole(first).count("+") + 1
    kinds = {2: "best pair", 1: "best single sensor"}
    own = (above(joint, sensor, trained) for sensor, trained in alone.items())
    return [
        f"Over {runs} runs of {len(joint)} rows, each paired with itself under fewer sensors; 95 % t-intervals with "
        "every row counted once and with every seed counted once (of the rows that have them all), since runs of one "
        "row, or of one seed, may be alike. What is not parted from zero by both is not distinguishable. Other scenes "
        f"may say something else: all runs were scored on the same {first['num_samples']} keyframes. The best of the "
        "smaller subsets is the one with the highest mean on these very runs, which favours it.",
        "",
        *(f"- **{kinds[count]}**: {best(said, count)}" for count in range(size - 1, 0, -1)),
        *(f"- {one}" for one in said),
        *(f"- {one}" for one in own if one is not None),
    ]


def _draw(path: Path, alone: Scores, joint: Scores) -> None:
    def spread(values: list[float]) -> Spread:
        found = estimate(values)
        return Spread(tuple(values), found.mean, found.half)

    names = [*alone, *joint]
    rows = [*alone.values(), *joint.values()]
    first = any_of(joint)
    panels: dict[str, list[Spread | None]] = {
        f"NDS with all sensors of the row ({short(whole(first))}; ± 95 %)": [
            spread([*map(nds, runs.values())]) for runs in rows
        ],
        f"mean NDS over {len(first['subsets'])} subsets": [
            spread([*map(mean_nds, runs.values())]) if name in joint else None
            for name, runs in zip(names, rows, strict=True)
        ],
    }
    draw_intervals(path, names, panels, separate=(len(alone),))  # type: ignore[arg-type]


def _plain(
    alone: Scores,
    joint: Scores,
    costs: Mapping[str, Mapping[str, float]],
    said: Sequence[Gain],
    header: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the page says, as numbers."""
    return {
        **header,
        "num_samples": any_of(joint)["num_samples"],
        "rows": {
            name: {
                "seeds": {
                    str(seed): {subset: {k: of[k] for k in KEPT} for subset, of in metrics["subsets"].items()}
                    for seed, metrics in runs.items()
                },
                "NDS": asdict(estimate([*map(nds, runs.values())])),
                "mean of subsets": asdict(estimate([*map(mean_nds, runs.values())])),
                "cost": costs.get(name),
            }
            for name, runs in [*alone.items(), *joint.items()]
        },
        "gains": [asdict(one) | {"distinguishable": one.distinguishable} for one in said],
    }
