"""One model against its specialists as a page: a row for each subset of the sensors, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fusion3d.analysis.comparison.page import head_lines, short, table_lines
from fusion3d.analysis.comparison.summary import Estimate, Metrics, Scores, estimate, nds
from fusion3d.files import write_json, write_whole
from fusion3d.view.intervals import Spread, draw_intervals

MEAN = "mean"  # of all subsets
NOTE = (
    "NDS on the evaluated split. ratio: the one model's NDS over the specialist's, of the same seed; in the row of the "
    "mean, that of the mean NDS. ± is half of the 95 % t-interval over the seeds, where there are several: it is about "
    "repeating the runs on these same samples."
)
TITLE = "One model for every subset of the sensors, and a specialist for each"
COLUMNS = ("specialist", "one model", "ratio")


@dataclass(frozen=True)
class Pair:
    """A subset's specialists and the one model under that subset: their NDS, by seed."""

    specialist: dict[int, float]
    one: dict[int, float]  # the same seeds

    def columns(self) -> dict[str, list[float]]:
        """The numbers of every seed, by ``COLUMNS``; without a ratio where a specialist scores nothing."""
        values = [[*self.specialist.values()], [*self.one.values()]]
        if min(values[0]) > 0:
            values.append([one / theirs for theirs, one in zip(*values, strict=True)])
        return dict(zip(COLUMNS, values, strict=False))

    def estimates(self) -> dict[str, Estimate]:
        """Each column's mean."""
        return {name: estimate(values) for name, values in self.columns().items()}


def pair_up(one: Mapping[int, Metrics], specialists: Scores) -> dict[str, Pair]:
    """The pairs by subset, where a seed has both; and ``MEAN``, where a seed has them for every subset.

    Args:
        one: metrics of the one model by seed, under every subset.
        specialists: metrics by subset and seed, each under its own.
    """
    pairs = {}
    for subset, runs in specialists.items():
        seeds = sorted(one.keys() & runs.keys())
        if seeds:
            pairs[subset] = Pair(
                {seed: nds(runs[seed], subset) for seed in seeds}, {seed: nds(one[seed], subset) for seed in seeds}
            )
    whole = [seed for seed in one if all(seed in runs for runs in specialists.values())]
    if whole:
        parts = [
            {seed: sum(getattr(pair, side)[seed] for pair in pairs.values()) / len(pairs) for seed in whole}
            for side in ("specialist", "one")
        ]
        pairs[MEAN] = Pair(*parts)
    return pairs


def write_page(path: Path, one: Mapping[int, Metrics], specialists: Scores, header: Mapping[str, Any]) -> str:
    """Write ``path`` with the suffixes .md, .svg and .json.

    Args:
        path: without suffix.
        one: as of ``pair_up``, as is ``specialists``; there is a pair.
        specialists: in the order of the table.
        header: how all this was made, of ``make_header``.

    Returns:
        The text of the page.

    Raises:
        Fusion3DError: a file cannot be written.
    """
    plot, pairs = path.with_suffix(".svg"), pair_up(one, specialists)
    found = {subset: pair.estimates() for subset, pair in pairs.items()}
    missing = [subset for subset in specialists if subset not in pairs]
    text = "\n".join(
        [
            *head_lines(TITLE, header, plot, "NDS of both under every subset"),
            *table_lines(_rows(pairs, found)),
            "",
            *(f"- {line}" for line in _verdicts(found)),
            *([f"- not yet finished: {', '.join(missing)}"] if missing else []),
            "",
            NOTE,
            "",
        ]
    )
    _draw(plot, pairs, found)
    numbers = {
        subset: {
            "seeds": {name: [*values] for name, values in pair.columns().items()} | {"seed": [*pair.one]},
            **{name: asdict(value) for name, value in found[subset].items()},
        }
        for subset, pair in pairs.items()
    }
    write_json(path.with_suffix(".json"), {**header, "subsets": numbers})
    write_whole(path.with_suffix(".md"), text.encode())
    return text


def _label(subset: str) -> str:
    return subset if subset == MEAN else short(subset)


def _rows(pairs: Mapping[str, Pair], found: Mapping[str, Mapping[str, Estimate]]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("sensors", "seeds", *(f"NDS, {name}" for name in COLUMNS[:2]), COLUMNS[2])]
    for subset, of_subset in found.items():
        cells = [str(of_subset[name]) if name in of_subset else "-" for name in COLUMNS]
        rows.append((_label(subset), str(len(pairs[subset].one)), *cells))
    return rows


def _verdicts(found: Mapping[str, Mapping[str, Estimate]]) -> list[str]:
    """The ratio of the mean, and the least of a subset."""
    lines = []
    if MEAN in found and "ratio" in found[MEAN]:
        lines.append(f"**mean over the subsets**: {found[MEAN]['ratio'].mean:.1%} of the specialists' mean")
    ratios = {name: of["ratio"].mean for name, of in found.items() if name != MEAN and "ratio" in of}
    if ratios:
        least = min(ratios, key=lambda name: ratios[name])
        lines.append(f"**least of a subset**: {ratios[least]:.1%} of its specialist ({_label(least)})")
    return lines


def _draw(path: Path, pairs: Mapping[str, Pair], found: Mapping[str, Mapping[str, Estimate]]) -> None:
    def spread(subset: str, name: str) -> Spread | None:
        value = found[subset].get(name)
        return None if value is None else Spread(tuple(pairs[subset].columns()[name]), value.mean, value.half)

    titles = (*(f"NDS, {name}" for name in COLUMNS[:2]), COLUMNS[2])
    panels: dict[str, Sequence[Spread | None]] = {
        title: [spread(subset, name) for subset in pairs] for title, name in zip(titles, COLUMNS, strict=True)
    }
    draw_intervals(path, [*map(_label, pairs)], panels, separate=[len(pairs) - 1] if MEAN in pairs else [])
