"""The verb ``evaluate --suite robustness``: score a checkpoint while its sensors fail, one after the other."""

from __future__ import annotations

import argparse
from pathlib import Path

from fusion3d.analysis.robustness.conditions import GROUPS, choose
from fusion3d.analysis.robustness.page import NAME, write_page
from fusion3d.analysis.robustness.suite import Suite, run_suite
from fusion3d.analysis.robustness.summary import summarise
from fusion3d.engine.evaluate import add_checkpoint_options, add_prediction_options, chosen_config


def main(argv: list[str] | None = None) -> int:
    """``evaluate --suite robustness --checkpoint X --out DIR [--conditions NAME ...] [--severities N ...]``."""
    parser = argparse.ArgumentParser(
        "evaluate --suite robustness",
        description="Score a checkpoint while its sensors fail: corruptions by severity, and curves.",
        allow_abbrev=False,
    )
    add_checkpoint_options(parser)
    add_prediction_options(parser)
    parser.add_argument(
        "--conditions",
        nargs="+",
        metavar="NAME",
        help=f"corruptions such as lidar.fog, or groups: {', '.join(GROUPS)} (default: all)",
    )
    parser.add_argument("--severities", nargs="+", type=int, choices=(1, 2, 3), default=(1, 2, 3))
    parser.add_argument(
        "--subsets", nargs="+", help="scored without corruption; the largest is corrupted (default: all)"
    )
    parser.epilog = (
        f"{parser.epilog} What was done before with the same settings is kept: begin again at any time, or ask for "
        "more. --evaluation.stride 4 looks at every fourth keyframe."
    )
    options, overrides = parser.parse_known_args(argv)
    config = chosen_config(options, overrides)
    suite = Suite(
        checkpoint=Path(options.checkpoint),
        config=config,
        families=tuple(choose(config, options.conditions, options.severities, options.subsets)),
        out=Path(options.out),
        subsets=options.subsets and tuple(options.subsets),
        ema=not options.no_ema,
    )
    results = run_suite(suite, options.device)
    if results is not None:
        seconds = sum(result["seconds"] for result in results.values())
        stride = config.evaluation.stride
        part = "every keyframe" if stride == 1 else f"one keyframe of {stride}"
        header = (
            f"{suite.checkpoint.name}; {config.data.version}, split {config.data.split}, {part}; {len(results)} "
            f"conditions in {seconds / 60:.0f} min"
        )
        details = {"seconds": seconds, "split": config.data.split, "stride": stride}
        print(write_page(suite.out, summarise(suite.families, results, suite.whole), header, details))
        print(f"written: {suite.out / NAME}.md, .json and curves as .svg")
    return 0
