"""``check_submission``: is a result file what the nuScenes benchmark takes?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.results import Limits, examine_results


@dataclass(frozen=True)
class SplitConfig:
    """The samples that the file must have."""

    root: str = ""
    """Folder of the data set; empty: the samples of the file are not compared with a split."""
    version: str = "v1.0-trainval"
    """Table folder."""
    split: str = "val"
    """Split that the file is about."""


@dataclass(frozen=True)
class CheckSubmissionConfig:
    """Check a detection or tracking result file by the rules of the benchmark. Exit status: 0 if it keeps all, or 1."""

    file: tyro.conf.Positional[Path]
    """The JSON file."""
    data: SplitConfig = field(default_factory=SplitConfig)
    limits: Limits = field(default_factory=Limits)


def main(argv: list[str]) -> int:
    """The verb ``check_submission FILE [--data.root R ...]``: prints what is wrong, returns 0 (nothing) or 1."""
    return check(tyro.cli(CheckSubmissionConfig, args=argv, prog="check_submission"))


def check(config: CheckSubmissionConfig) -> int:
    """Print what the file holds and one line for each rule that it breaks; 0 when it breaks none, else 1.

    Raises:
        DataError: the file is no JSON or too large, or the data set cannot be read.
    """
    tokens = scenes = None
    if config.data.root:
        tables = Tables.open(config.data.root, config.data.version)
        rows = samples_of(tables, config.data.split)
        tokens, scenes = [tables.token(row) for row in rows], [tables.scene(row) for row in rows]
    results, problems = examine_results(config.file, tokens, config.limits, scenes)
    most = "too many" if "many" in problems.count else f"at most {np.bincount(results.sample, minlength=1).max()}"
    used = [flag.removeprefix("use_") for flag, value in results.meta.items() if value]
    print(
        f"{config.file}: {results.task}, {len(results.tokens)} samples, {len(results)} boxes, {most} in a "
        f"sample; made with {', '.join(used) or 'nothing'}"
    )
    for line in problems.lines():
        print(line)
    if tokens is None:
        print("the samples were not compared with a split: name one by --data.root, --data.version and --data.split")
    total = sum(problems.count.values())
    print(f"FAILED: {total} problems of {len(problems.count)} kinds" if total else "passed")
    return 1 if total else 0
