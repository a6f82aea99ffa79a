"""The command line that the comparisons share: a configuration first, where runs and page go, and overrides for all."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion3d.analysis.comparison.runs import changes
from fusion3d.config import Config, load_config
from fusion3d.errors import ConfigError
from fusion3d.files import read_json_as


def make_parser(
    verb: str, description: str, config: str, out: str, page: str, seeds: Sequence[int]
) -> argparse.ArgumentParser:
    """A parser with what every comparison asks for.

    Args:
        verb: its name.
        description: what it does.
        config: what the configuration is.
        out: folder of the runs, unless said.
        page: files of the page without their suffix, unless said.
        seeds: of the runs, unless said.
    """
    parser = argparse.ArgumentParser(verb, description=description, allow_abbrev=False)
    parser.add_argument("config", help=f"YAML file of {config}, e.g. configs/demo.yaml")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the runs")
    parser.add_argument("--page", type=Path, default=Path(page), help="files without their suffix")
    parser.add_argument("--seeds", nargs="+", type=int, default=tuple(seeds))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once, each on one thread")
    parser.add_argument("--report", action="store_true", help="train nothing: write the page from what is there")
    parser.epilog = "Every setting can be overridden for all runs, e.g. --data.root PATH: fusion3d/config/."
    return parser


def read_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, Config]:
    """The options, ``seeds`` without repetition, and the configuration with its overrides.

    ``options.name`` is what a page calls it: its file, and whatever overrides make other numbers.

    Raises:
        ConfigError: the configuration does not come first or has a wrong setting, or there are no jobs.
    """
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        raise ConfigError(f"{parser.prog}: expected the configuration file first, found {argv[0]!r}")
    options, overrides = parser.parse_known_args(argv)
    if options.jobs < 1:
        raise ConfigError(f"--jobs: expected at least 1, found {options.jobs}")
    options.seeds = tuple(dict.fromkeys(options.seeds))
    base = load_config(options.config, overrides)
    overridden = changes(base, load_config(options.config)).items()
    options.name = " ".join([options.config, *(f"--{key} {value}" for key, value in overridden)])
    return options, base


def commands_of(base: Config, command: str) -> list[str]:
    """What makes a page again: its data, where they are synthetic, and its numbers.

    Args:
        base: with the data set.
        command: without ``fusion3d`` and the data's folder.

    Raises:
        Fusion3DError: what the data set says of itself cannot be read.
    """
    made = Path(base.data.root, base.data.version, "manifest.json")
    if not made.is_file():
        return [f"fusion3d {command} --data.root DATA"]
    said = read_json_as(made, _options, "make the data set anew")
    return [f"fusion3d make_synthetic DATA {said}", f"fusion3d {command} --data.root DATA"]


def _options(recipe: Mapping[str, Any]) -> str:
    names = ("scenes", "keyframes", "val_scenes", "image_size", "sweeps", "seed")
    values = (" ".join(map(str, recipe[name])) if name == "image_size" else recipe[name] for name in names)
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in zip(names, values, strict=True))
