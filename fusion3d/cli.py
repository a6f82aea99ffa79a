"""The ``fusion3d`` command: each verb is a ``main(argv) -> int`` in the package, imported only when it is called.

``tools/VERB.py`` are the same verbs. An error made on purpose (``Fusion3DError``) ends as one line on stderr and
exit status 1.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from fusion3d import __version__
from fusion3d.errors import Fusion3DError

VERBS = {
    "train": ("fusion3d.engine.train:main", "train a model by a configuration, or go on with an interrupted run"),
    "evaluate": (
        "fusion3d.cli:evaluate",
        "score a checkpoint under every subset of its sensors, or failing ones (--suite robustness), or a result file",
    ),
    "compare": (
        "fusion3d.analysis.difference:main",
        "the difference of two evaluations with its interval, and whether it is more than chance",
    ),
    "evaluate_plans": (
        "fusion3d.engine.evaluate_plans:main",
        "score anybody's plans by every planning protocol side by side, beside baselines and the human",
    ),
    "audit_planner": (
        "fusion3d.analysis.audit.main:main",
        "change everything that a planner is given: what do its plans depend on, and do they look at the answer?",
    ),
    "predict": (
        "fusion3d.engine.predict:main",
        "write a checkpoint's boxes and plans for a data set, annotated or not",
    ),
    "visualize": ("fusion3d.engine.visualize:main", "draw cameras, bird's-eye view and the 3-D scene"),
    "explain": (
        "fusion3d.analysis.explain.main:main",
        "draw what speaks for an answer of a checkpoint: Grad-CAM",
    ),
    "similarity": ("fusion3d.analysis.similarity:main", "how alike the sensors' maps are over a split: linear CKA"),
    "calibrate": ("fusion3d.analysis.calibration:main", "make scores say how often they are right: temperatures, ECE"),
    "report": ("fusion3d.analysis.report:main", "everything of an evaluation as one HTML page, its worst samples too"),
    "make_synthetic": ("fusion3d.synthetic.writer:main", "make a synthetic data set in the nuScenes format"),
    "make_objects": ("fusion3d.data.paste.make:main", "cut the training split's objects out, to paste them elsewhere"),
    "check_dataset": ("fusion3d.engine.check:main", "check the geometry of a data set, sensor by sensor"),
    "check_submission": (
        "fusion3d.engine.check_submission:main",
        "check a result file, anybody's, by the rules of the nuScenes benchmark",
    ),
    "benchmark": (
        "fusion3d.cli:benchmark",
        "time the loader, metrics, operations or whole models: benchmark data | metrics | ops | planning | recipes",
    ),
    "describe": (
        "fusion3d.engine.describe:main",
        "the walk through a model: shapes, parameters, operations, memory and time of each stage",
    ),
    "compare_fusion": (
        "fusion3d.analysis.comparison.main:main",
        "train every way to fuse on the same data, seeds and budget: one table with intervals, one plot",
    ),
    "compare_subsets": (
        "fusion3d.analysis.specialists.main:main",
        "train one model for every subset of the sensors and a specialist for each: one table, one plot",
    ),
    "demo": ("fusion3d.demo:main", "synthetic data, training, evaluation and a report, in one go"),
}
BENCHMARKS = {
    "data": ("fusion3d.engine.benchmark_data:main", "samples per second, against the official devkit"),
    "metrics": ("fusion3d.engine.benchmark_metrics.run:main", "scoring and loading of full size, against the devkit"),
    "ops": ("fusion3d.engine.benchmark_ops.run:main", "each operation against what others offer for the same work"),
    "planning": ("fusion3d.engine.benchmark_planning:main", "scoring plans by every protocol, against shapely"),
    "recipes": ("fusion3d.engine.benchmark_recipes:main", "what models cost, beside what is published of them"),
}
SUITES = {"robustness": "fusion3d.analysis.robustness.main:main"}  # of evaluate
INTERRUPTED = 130  # the shell's exit status for Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """The ``fusion3d`` command. Returns its exit status."""
    return _choose("fusion3d", VERBS, list(sys.argv[1:] if argv is None else argv))


def benchmark(argv: list[str]) -> int:
    """The verb ``benchmark``: chooses what is timed."""
    return _choose("fusion3d benchmark", BENCHMARKS, argv)


def evaluate(argv: list[str]) -> int:
    """The verb ``evaluate``: as the sensors are, or a suite."""
    parser = argparse.ArgumentParser("evaluate", add_help=False, allow_abbrev=False)
    parser.add_argument("--suite", choices=SUITES)
    options, rest = parser.parse_known_args(argv)
    return _call("fusion3d.engine.evaluate:main" if options.suite is None else SUITES[options.suite], rest)


def run(verb: str, argv: Sequence[str] | None = None) -> int:
    """Run one verb and turn an expected error into a line on stderr.

    Args:
        verb: a key of ``VERBS``.
        argv: its arguments; the command line's by default.

    Returns:
        Exit status: the verb's own, 1 after a ``Fusion3DError``, 130 after Ctrl-C.
    """
    return _call(VERBS[verb][0], list(sys.argv[1:] if argv is None else argv))


def _call(target: str, argv: list[str]) -> int:
    module, function = target.split(":")
    try:
        return int(getattr(importlib.import_module(module), function)(argv) or 0)
    except Fusion3DError as error:
        print(f"fusion3d: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fusion3d: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (such as `head`) is gone: nothing is left to say, and nowhere to say it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _choose(program: str, verbs: dict[str, tuple[str, str]], argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help(program, verbs))
        return 0 if argv else 2
    name, rest = argv[0].replace("-", "_"), argv[1:]
    if argv[0] == "--version":
        print(f"fusion3d {__version__}")
        return 0
    if name not in verbs:
        near = difflib.get_close_matches(name, verbs, n=1, cutoff=0.0)[0]
        print(f"{program}: unknown verb {argv[0]!r}; did you mean {near!r}? known: {', '.join(verbs)}", file=sys.stderr)
        return 2
    return _call(verbs[name][0], rest)


def _help(program: str, verbs: dict[str, tuple[str, str]]) -> str:
    width = max(map(len, verbs))
    lines = [f"usage: {program} VERB [arguments]      ({program} VERB --help says more)", ""]
    return "\n".join([*lines, *(f"  {verb:<{width}}  {text}" for verb, (_, text) in verbs.items())])
