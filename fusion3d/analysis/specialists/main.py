"""The verb ``compare_subsets``: is one model under any sensors as good as the models that were made for just these?

The one model is trained as the configuration says. A specialist for each subset has the branches of its sensors alone,
which it always sees, and the same data, seed and number of steps. Runs that are finished are kept, one that was killed
goes on, and the page can be written from what is there at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fusion3d.analysis.comparison.command import commands_of, make_parser, read_options
from fusion3d.analysis.comparison.jobs import run_all
from fusion3d.analysis.comparison.page import make_header
from fusion3d.analysis.comparison.rows import Row
from fusion3d.analysis.comparison.runs import Run, check, environments, finished, trained, unfinished
from fusion3d.analysis.specialists.page import write_page
from fusion3d.config import Config
from fusion3d.engine.inference import sensor_subsets
from fusion3d.engine.train import num_subsets
from fusion3d.errors import ConfigError, Fusion3DError

ONE = "one"  # the model that takes every subset


@dataclass(frozen=True)
class Comparison:
    """One model and its specialists, and where they lie."""

    base: Config
    seeds: tuple[int, ...]
    out: Path

    @property
    def subsets(self) -> dict[str, tuple[str, ...]]:
        """Sensors by the name of their subset; all of them last.

        Raises:
            ConfigError: there are fewer than two sensors.
        """
        subsets = sensor_subsets(self.base)
        if len(subsets) < 2:
            raise ConfigError(f"found {', '.join(subsets)} alone; subsets are of two kinds of sensors at least")
        return subsets

    def one(self, seed: int) -> Run:
        """The model that takes every subset."""
        fusion = self.base.fusion
        return trained(self.base, Row(ONE, fusion.stage, fusion.operator), seed, self.out)

    def specialist(self, subset: str, seed: int) -> Run:
        """The model of a subset's sensors; it is trained and scored with just these."""
        sensors, fusion = self.subsets[subset], self.base.fusion
        apart = len(sensors) == 1 and fusion.stage in ("late", "hybrid")  # which merge what several say
        row = Row(subset, "middle" if apart else fusion.stage, fusion.operator, sensors)
        run = trained(self.base, row, seed, self.out, drop_sensor=0.0, subsets=1)
        return Run(run.row, seed, run.config, run.folder, scored=(subset,))

    def runs(self) -> list[Run]:
        """One seed after the other, so that what is there at any time is even.

        Raises:
            ConfigError: the settings of a model do not fit each other.
        """
        runs = self.every()
        for run in runs[: len(self.subsets) + 1]:
            check(run)
        return runs

    def every(self) -> list[Run]:
        """``runs``, without looking at their settings."""
        return [
            run
            for seed in self.seeds
            for run in (self.one(seed), *(self.specialist(name, seed) for name in self.subsets))
        ]


def report(comparison: Comparison, path: Path, name: str) -> str:
    """Write the page from what is there.

    Args:
        comparison: what was compared.
        path: without suffix.
        name: of the configuration.

    Raises:
        Fusion3DError: there is nothing yet to compare, or something else lies there.
    """
    base, seeds = comparison.base, comparison.seeds
    one = finished(comparison.one(seed) for seed in seeds)
    specialists = {
        subset: finished(comparison.specialist(subset, seed) for seed in seeds) for subset in comparison.subsets
    }
    if not any(one.keys() & there.keys() for there in specialists.values()):
        raise Fusion3DError(
            f"{comparison.out} has not yet the one model and a specialist of the same seed; run compare_subsets "
            "without --report first"
        )
    train, count = base.train, num_subsets(base)
    seen = f"{count} of its subsets of sensors in a step" if count > 1 else "one of its subsets of sensors in a step"
    protocol = (
        f"Same data, seeds ({', '.join(map(str, seeds))}) and number of steps for all: {train.epochs} epochs, "
        f"{train.batch_size * train.accumulate} samples a step, peak rate {train.learning_rate:g}. The one model shows "
        f"each sample under {seen}, a kind lost with probability {train.drop_sensor:g}. A specialist has the branches "
        "of its own sensors alone and always sees them all."
    )
    commands = commands_of(base, f"compare_subsets {name} --seeds {' '.join(map(str, seeds))}")
    header = make_header(base, name, environments(comparison.every()), protocol, commands)
    return write_page(path, one, specialists, header)


def main(argv: list[str]) -> int:
    """``compare_subsets CONFIG [--out DIR] [--page FILE] [--seeds N ...] [--jobs N] [--report] [--a.b value ...]``."""
    parser = make_parser(
        "compare_subsets",
        "Train one model for every subset of the sensors and a specialist for each, and compare them.",
        "the one model",
        "runs/subsets",
        "docs/benchmarks/subsets",
        seeds=(0,),
    )
    options, base = read_options(parser, argv)
    comparison = Comparison(base, options.seeds, options.out)
    if not options.report:
        runs = comparison.runs()
        todo = unfinished(runs)
        print(f"{len(todo)} of {len(runs)} runs to do, {options.jobs} at a time, in {options.out}", flush=True)
        run_all(todo, options.jobs)
    print(report(comparison, options.page, options.name))
    print(f"written: {options.page}.md, .svg, .json")
    return 0
