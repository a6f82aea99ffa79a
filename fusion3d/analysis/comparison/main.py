"""The verb ``compare_fusion``: train every way to fuse on the same data, and write one table and one plot.

With every seed, first each sensor alone, and all of them together; then every operator in the middle stage and every
stage without an operator, all beginning with what these learned, and what fuses anew; then the other stages with the
operators that were best. Runs that are finished are kept, one that was killed goes on, and the page can be written from
what is there at any time. Seeds may be run on several machines: a page takes in the runs of others.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fusion3d.analysis.comparison import costs
from fusion3d.analysis.comparison.command import commands_of, make_parser, read_options
from fusion3d.analysis.comparison.elsewhere import Elsewhere, read_pages
from fusion3d.analysis.comparison.jobs import run_all
from fusion3d.analysis.comparison.page import make_header, write_page
from fusion3d.analysis.comparison.rows import (
    OPERATORS,
    SETTINGS,
    STAGES,
    TOGETHER,
    WITH_OPERATOR,
    Row,
    alone,
    best_rows,
)
from fusion3d.analysis.comparison.runs import (
    Budget,
    Run,
    check,
    config_digest,
    digest_of,
    environments,
    finished,
    make_run,
    unfinished,
)
from fusion3d.analysis.comparison.summary import Metrics, Scores, nds, seeds_of
from fusion3d.config import Config
from fusion3d.engine.environment import environment, headline
from fusion3d.errors import ConfigError, Fusion3DError
from fusion3d.files import read_json, write_json

ROWS = (*OPERATORS, *STAGES, *WITH_OPERATOR)  # those that fuse
COSTS = "costs.json"


@dataclass(frozen=True)
class Comparison:
    """What is compared, on which budget, and where it lies."""

    base: Config
    budget: Budget
    seeds: tuple[int, ...]
    out: Path
    only: tuple[str, ...] = ()  # rows; empty: all, and the best of the stages with an operator
    elsewhere: Elsewhere = field(default_factory=Elsewhere)  # runs that stand on the page too

    def run(self, row: Row, seed: int) -> Run:
        """A row's run."""
        return make_run(self.base, row, seed, self.budget, self.out)

    def runs(self, rows: Sequence[Row]) -> list[Run]:
        """Of several rows: one seed after the other, so that what is there at any time is even.

        Raises:
            ConfigError: a row's settings do not fit each other.
        """
        runs = [self.run(row, seed) for seed in self.seeds for row in rows]
        for run in runs[: len(rows)]:
            check(run)
        return runs

    def first_rows(self) -> list[Row]:
        """The rows that do not depend on what others reach, or those asked for."""
        if not self.only:
            return [*OPERATORS, *STAGES]
        known = {row.name: row for row in ROWS}
        for name in self.only:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise ConfigError(f"--only: unknown row {name!r}; did you mean {near!r}? known: {', '.join(known)}")
        return [row for row in ROWS if row.name in self.only]

    def last_rows(self) -> list[Row]:
        """The stages with the operators that were best, of ``judge``."""
        return [] if self.only else judge({row.name: self.finished(row) for row in OPERATORS})[1]

    def finished(self, row: Row) -> dict[int, Metrics]:
        """By seed, what is there of a row, and elsewhere.

        Raises:
            CheckpointError: it is of other settings, data or beginnings.
        """
        found = {**self.elsewhere.rows.get(row.name, {}), **finished(self.of_row(row))}
        return dict(sorted(found.items()))

    def of_row(self, row: Row) -> list[Run]:
        """A row's runs here, of every seed."""
        return [self.run(row, seed) for seed in self.seeds]


def judge(scores: Scores) -> tuple[int | None, list[Row]]:
    """The stages with the operators that were best, by the NDS with all sensors, and the seed by which they were.

    That is the first seed that every operator has, here or elsewhere: a place that is given the page of the first seed
    judges as all do. Where there is none, no stage.
    """
    seed = min(set.intersection(*({*scores.get(row.name, {})} for row in OPERATORS)), default=None)
    if seed is None:
        return None, []
    return seed, list(best_rows({row.name: nds(scores[row.name][seed]) for row in OPERATORS}))


def compare(comparison: Comparison, jobs: int) -> None:
    """Train and evaluate whatever is still to be done, and measure what the rows cost.

    Raises:
        ConfigError: a row's settings do not fit each other.
        CheckpointError: a folder holds a run of other settings.
        Fusion3DError: runs failed.
    """
    singles, together, first, _ = map(  # checked before any is trained, those that may be best too
        comparison.runs,
        (
            alone(comparison.base.branches),
            [TOGETHER],
            comparison.first_rows(),
            () if comparison.only else WITH_OPERATOR,
        ),
    )
    steps = {
        "each sensor alone": lambda: singles,
        "all together": lambda: together,
        "rows": lambda: first,
        "stages with the best operators": lambda: comparison.runs(comparison.last_rows()),
    }
    for number, (name, runs) in enumerate(steps.items(), 1):
        todo = unfinished(runs())
        print(f"[{number}/5] {name}: {len(todo)} runs to do, {jobs} at a time, in {comparison.out}", flush=True)
        run_all(todo, jobs, _say)
    known = measured(comparison.out).get("rows", {})
    rows = [row for row in (*alone(comparison.base.branches), *ROWS) if row.name in known or comparison.finished(row)]
    if len(rows) == len(known):
        return
    print(f"[5/5] what {len(rows)} rows cost", flush=True)  # all anew: one after the other, with nothing beside them
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = costs.measure([comparison.run(row, comparison.seeds[0]) for row in rows], device, _say)
    write_json(comparison.out / COSTS, {"about": environment(device, comparison.base.data.version), "rows": found})


def measured(out: Path) -> dict[str, Any]:
    """The "rows" of ``costs.measure`` and what they were measured on, "about"; empty where nothing was."""
    path = out / COSTS
    return read_json(path, "remove it to measure anew") if path.is_file() else {}


def _say(line: str) -> None:
    print(f"  {line}", flush=True)


def report(comparison: Comparison, path: Path, name: str) -> str:
    """Write the page from what is there.

    Args:
        comparison: what was compared.
        path: without suffix.
        name: of the configuration.

    Raises:
        Fusion3DError: there is nothing yet, or something else lies there.
    """
    singles = {row.name: comparison.finished(row) for row in alone(comparison.base.branches)}
    joint = {row.name: comparison.finished(row) for row in ROWS}
    singles, joint = ({row: runs for row, runs in of.items() if runs} for of in (singles, joint))
    if not joint:
        raise Fusion3DError(f"no row is finished in {comparison.out}; run compare_fusion without --report first")
    cost, budget = measured(comparison.out), comparison.budget.describe(comparison.base)
    seeds = seeds_of(joint)
    protocol = (
        f"Seeds {', '.join(map(str, seeds))}; same data for every row, and {budget}. The rows that fuse "
        "begin with the weights of the model of all sensors together, or late fusion with those of the sensors' own "
        "models, of the same seed, wherever names and shapes fit (`train.start`); what fuses is new in all of them "
        f"(`train.fresh`). So trunk and heads have learned with {TOGETHER.operator} when a row begins, which is an "
        "advantage of rows that are like it; late fusion, and the sensors' own models, are without the epochs "
        "together; and in the epochs that early's encoder is given, its trunk and heads learn too: longer than any "
        "other's."
    )
    for operator, settings in SETTINGS.items():
        said = ", ".join(f"`fusion.{key}: {value:g}`" for key, value in settings.items())
        protocol += f" {operator} has {said}."
    seed, chosen = judge(joint)
    tried = {row.name for row in WITH_OPERATOR if row.name in joint}
    if chosen and tried == {row.name for row in chosen}:
        protocol += f" Stages are tried with the operators that were best with seed {seed}."
    elif tried:
        protocol += " Stages are tried with operators that were best in some place, or chosen by hand."
    if "about" in cost:
        protocol += f" ms: on {headline(cost['about'])}."
    here = environments(run for row in (*alone(comparison.base.branches), *ROWS) for run in comparison.of_row(row))
    made_on = {headline(about): about for about in (*comparison.elsewhere.environments, *here)}
    arguments = f"{name} {comparison.budget.arguments()} --seeds {' '.join(map(str, seeds))}"
    commands = commands_of(comparison.base, f"compare_fusion {arguments}")
    header = make_header(comparison.base, name, [*made_on.values()], protocol, commands)
    return write_page(path, singles, joint, cost.get("rows", {}), header | same(comparison.base, comparison.budget))


def same(base: Config, budget: Budget) -> dict[str, Any]:
    """What runs must have in common to stand on one page: ``elsewhere.SAME``."""
    early = {"early_epochs": budget.early_epochs(base)}
    return {
        "config": config_digest(base),
        "budget": {**asdict(budget), "alone_epochs": [*budget.alone_epochs], **early},
        "data": digest_of(base),
    }


def main(argv: list[str]) -> int:
    """``compare_fusion CONFIG [--only ROW ...] [--seeds N ...] [--with PAGE ...] [--report] [--a.b value ...]``."""
    parser = make_parser(
        "compare_fusion",
        "Train and evaluate every way to fuse on the same data and seeds: one table, one plot.",
        "what all rows share",
        "runs/compare",
        "docs/benchmarks/fusion",
        seeds=(0, 1, 2),
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="ROW", help="rows, such as gated or hybrid-concat")
    parser.add_argument(
        "--with",
        dest="pages",
        nargs="+",
        type=Path,
        default=(),
        metavar="PAGE.json",
        help="pages of other seeds, whose runs stand on this page too; the first seed of all says which operators are "
        "best, so give its page to the places that run the others",
    )
    parser.add_argument("--epochs", type=int, default=1, help="of each row; early has more")
    parser.add_argument("--together-epochs", type=int, default=4, metavar="N", help="of all sensors before the rows")
    parser.add_argument("--rate", type=float, default=3e-3, help="peak learning rate of these epochs")
    parser.add_argument(
        "--alone-epochs", nargs="+", type=int, default=(20, 8, 8), metavar="N", help="of each sensor's own model"
    )
    options, base = read_options(parser, argv)
    if len(options.alone_epochs) != len(base.branches):
        raise ConfigError(f"--alone-epochs: expected one for each of {base.branches}, found {options.alone_epochs}")
    if min(*options.alone_epochs, options.together_epochs, options.epochs) < 1:
        raise ConfigError("--epochs, --alone-epochs and --together-epochs: expected at least 1")
    budget = Budget(tuple(options.alone_epochs), options.together_epochs, options.epochs, options.rate)
    elsewhere = read_pages(options.pages, same(base, budget), options.seeds)
    comparison = Comparison(base, budget, options.seeds, options.out, tuple(options.only), elsewhere)
    if not options.report:
        compare(comparison, options.jobs)
    print(report(comparison, options.page, options.name))
    print(f"written: {options.page}.md, .svg, .json")
    return 0
