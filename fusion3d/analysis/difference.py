"""The verb ``compare``: two results on the same samples, and which differences are more than chance."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fusion3d.engine.matches import MATCHES, matches_of, read_matches
from fusion3d.errors import DataError
from fusion3d.files import write_json
from fusion3d.metrics.bootstrap import (
    FEWEST_RESAMPLES,
    FEWEST_SCENES,
    RESAMPLES,
    Draws,
    Sampled,
    distinguishable,
    draw_scenes,
    sample_numbers,
)
from fusion3d.metrics.detection import LOWER, MEANS
from fusion3d.metrics.matching import Matches, same_truth
from fusion3d.metrics.strata import make_strata
from fusion3d.types import DETECTION_CLASSES

IN_STRATA = ("NDS", "mAP", "micro.AP")


@dataclass(frozen=True)
class Difference:
    """One number of two results."""

    subset: str  # of the sensors
    part: str  # "all", or dimension and stratum
    metric: str
    one: float
    other: float
    interval: tuple[float, float] | None  # 95 %, of one less other
    scenes: int  # that have truth for it

    @property
    def difference(self) -> float:
        """One less the other."""
        return self.one - self.other

    @property
    def verdict(self) -> str:
        """Who is better, where that is more than chance."""
        if not distinguishable(self.interval, self.scenes):
            return "not distinguishable"
        return "A better" if (self.difference > 0) != _less_is_better(self.metric) else "B better"


def _less_is_better(metric: str) -> bool:
    return metric in LOWER


def compare_matches(
    subset: str, one: Matches, other: Matches, draws: Draws, strata: bool = False, classes: bool = False
) -> list[Difference]:
    """All differences of two results of the same truth.

    Args:
        subset: what they are called.
        one: A.
        other: B.
        draws: of their scenes, the same for both.
        strata: NDS and mAP of every stratum too.
        classes: AP of every class too.

    Raises:
        DataError: they were scored against different truth, or by different protocols.
    """
    if not same_truth(one, other):
        raise DataError(
            f"{subset}: A and B cannot be compared: they were scored on other samples ({len(one.samples)} and "
            f"{len(other.samples)}), other annotations or by another protocol; evaluate both on the same split"
        )

    def rows(part: str, a: Sampled, b: Sampled, metrics: Sequence[str]) -> list[Difference]:
        apart = a - b
        between = apart.intervals(draws, metrics)
        return [
            Difference(subset, part, name, a.value[name], b.value[name], between[name], apart.scenes[name])
            for name in metrics
        ]

    metrics = (*MEANS, "micro.AP", *(f"AP.{name}" for name in DETECTION_CLASSES if classes))
    found = rows("all", sample_numbers(one, draws), sample_numbers(other, draws), metrics)
    if strata:
        ours, theirs = make_strata(one), make_strata(other)
        for dimension, of in ours.items():
            for name in of.names:
                a = sample_numbers(one, draws, of.stratum(name))
                if a.num_truth:
                    b = sample_numbers(other, draws, theirs[dimension].stratum(name))
                    found += rows(f"{dimension} {name}", a, b, IN_STRATA)
    return found


def find_matches(path: str | Path) -> dict[str, Path]:
    """The files of matches of an evaluation, by subset of sensors.

    Args:
        path: folder that ``evaluate`` wrote, or its ``metrics.json``; or the folder of one subset in it, or the
            ``matches.npz`` there.

    Raises:
        DataError: there are none.
    """
    path = Path(path)
    folder = path.parent if path.suffix == ".json" else path
    if path.name == MATCHES:
        return {path.absolute().parent.name: path}
    found = matches_of(folder)
    if not found:
        raise DataError(
            f"{path}: no evaluation with {MATCHES} there; expected a folder that evaluate wrote, with a detection head"
        )
    return found


def pair_up(one: Mapping[str, Path], other: Mapping[str, Path]) -> dict[str, tuple[Path, Path]]:
    """What is compared with what: subsets of the same name; two single ones whatever their names.

    Raises:
        DataError: there is nothing in common.
    """
    common = {name: (one[name], other[name]) for name in one if name in other}
    if common or len(one) > 1 or len(other) > 1:
        if not common:
            raise DataError(f"A has {', '.join(one)} and B has {', '.join(other)}: no subset of sensors in common")
        return common
    (first, mine), (second, theirs) = *one.items(), *other.items()
    return {f"{first} - {second}": (mine, theirs)}


def format_differences(found: Sequence[Difference]) -> str:
    """The differences as a table for a terminal."""
    wide = max(len(row.part) for row in found)
    lines = []
    for number, row in enumerate(found):
        if number == 0 or row.subset != found[number - 1].subset:
            head = f"{'':{wide}}  {'':<10}{'A':>9}{'B':>9}{'A - B':>9}  95 % interval"
            lines += ["", row.subset, head]
        between = "-" if row.interval is None else f"[{row.interval[0]:+.4f}, {row.interval[1]:+.4f}]"
        numbers = f"{row.one:>9.4f}{row.other:>9.4f}{row.difference:>+9.4f}"
        lines.append(f"{row.part:<{wide}}  {row.metric:<10}{numbers}  {between:<20}  {row.verdict}")
    return "\n".join(lines).lstrip("\n")


def main(argv: list[str]) -> int:
    """``compare A B [--strata] [--classes] [--resamples N] [--json FILE]``."""
    parser = argparse.ArgumentParser(
        "compare", description="The difference of two evaluations of the same samples, with paired 95 % intervals."
    )
    parser.add_argument("a", metavar="A", help="folder of an evaluation, its metrics.json, or the folder of one subset")
    parser.add_argument("b", metavar="B", help="the same of another one")
    parser.add_argument("--strata", action="store_true", help="by distance, visibility, speed, weather, ... too")
    parser.add_argument("--classes", action="store_true", help="by class too")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="of the scenes")
    parser.add_argument("--json", type=Path, help="file to write with every difference")
    options = parser.parse_args(argv)
    if options.resamples < FEWEST_RESAMPLES:
        parser.error(f"--resamples: expected at least {FEWEST_RESAMPLES}, found {options.resamples}")
    found: list[Difference] = []
    scenes = 0
    for subset, (mine, theirs) in pair_up(find_matches(options.a), find_matches(options.b)).items():
        one, other = read_matches(mine), read_matches(theirs)
        scenes = len(one.samples.scenes)
        draws = draw_scenes(scenes, options.resamples)
        found += compare_matches(subset, one, other, draws, options.strata, options.classes)
    print(format_differences(found))
    few = f"; with fewer than {FEWEST_SCENES} nothing is distinguishable" if scenes < FEWEST_SCENES else ""
    print(
        f"\nScenes drawn again {options.resamples} times, the same for both, out of {scenes}{few}. Each row is judged "
        "by itself: of twenty rows without any difference one will seem to have one."
    )
    if options.json:
        rows = [{**asdict(row), "difference": row.difference, "verdict": row.verdict} for row in found]
        write_json(options.json, {"a": options.a, "b": options.b, "num_scenes": scenes, "differences": rows})
    return 0
