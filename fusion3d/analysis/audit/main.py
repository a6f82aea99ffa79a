"""The verb ``audit_planner``: what a trained planner's plans depend on, and whether they depend on what they must not.

After the audits of Li et al. (BEV-Planner, 2024: blank cameras, a speed of 100 m/s) and Zhai et al. (AD-MLP, 2023: a
planner without sensors). Unlike there a sensor's content is exchanged between scenes, besides being taken away, every
field of a batch is changed and not two of them, and each number has its interval.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fusion3d.analysis.audit.future import check_future
from fusion3d.analysis.audit.numbers import measure
from fusion3d.analysis.audit.run import choose_samples, run_changes
from fusion3d.analysis.audit.verdict import REACTS, describe, find_leaks, make_card
from fusion3d.config import Config, DataConfig, override
from fusion3d.data.dataset import NuScenesDataset
from fusion3d.engine.checkpoint import load_config_of, load_model
from fusion3d.engine.drives import drives_of
from fusion3d.engine.seed import set_deterministic
from fusion3d.engine.split import open_split
from fusion3d.errors import ConfigError, DataError
from fusion3d.files import write_json
from fusion3d.metrics.planning.drives import sample_hash

FILE = "audit.json"
SAMPLES = 64
READ_TWICE = 8  # samples whose future is shuffled


def audit_planner(
    checkpoint: str | Path,
    config: Config | None = None,
    samples: int = SAMPLES,
    device: str | None = None,
    ema: bool = True,
) -> dict[str, Any]:
    """Audit the planner of a checkpoint on ``config.data.split``.

    Args:
        checkpoint: checkpoint or run folder.
        config: the checkpoint's own with other data; None takes it as it is. A stream is audited in clips.
        samples: at most so many keyframes, evenly over the scenes.
        device: torch device name; None takes the GPU where there is one.
        ema: use the averaged weights.

    Returns:
        As ``audit``, and ``checkpoint`` and ``split``.

    Raises:
        ConfigError: the model does not plan, or ``samples`` is below 1.
        CheckpointError: the checkpoint cannot be used.
        DataError: the data set cannot be read, the split is empty, or nothing is driven after any of its samples.
    """
    config = load_config_of(checkpoint) if config is None else config
    if config.planning is None:
        raise ConfigError("planning is null: this model plans nothing that could be audited; take one that does")
    declared = config.planning.ego_status
    set_deterministic(config.deterministic)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, stream=False))
    model, _ = load_model(checkpoint, ema, config)
    dataset = open_split(config, config.data.split, training=False)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    odometry = config.radar is not None and config.radar.odometry
    found = audit(model, dataset, samples, config.train.batch_size, where, declared, odometry)
    return {"checkpoint": str(checkpoint), "split": config.data.split, **found}


def audit(
    model: Any,
    dataset: NuScenesDataset,
    samples: int,
    batch_size: int,
    device: torch.device,
    declared: str = "none",
    odometry: bool = False,
) -> dict[str, Any]:
    """Audit a planner.

    Args:
        model: as of ``run_changes``.
        dataset: without augmentation.
        samples: at most so many keyframes.
        batch_size: samples of a forward pass.
        device: where the model runs.
        declared: what it says of ``planning.ego_status``.
        odometry: do its radars' maps hold how fast the vehicle moves?

    Returns:
        ``samples`` (their number), ``scenes``, ``hash`` (of the samples), ``steps`` of a plan, ``ego_status`` as
        declared; ``changes``: the rows of ``measure``; ``future``: ``FutureCheck``; ``card``, ``says`` and ``leaks``:
        in words.

    Raises:
        ConfigError: ``samples`` is below 1, or there is no plan.
        DataError: the split is empty, or nothing is driven after any of its samples.
        Fusion3DError: the model is not deterministic.
    """
    if samples < 1:
        raise ConfigError(f"--samples is {samples}: expected at least 1")
    if not len(dataset):
        raise DataError(f"split {dataset.split!r} has no sample: there is nothing to audit; choose another one")
    chosen = choose_samples(dataset.scenes, samples, dataset.steps)
    tokens = dataset.tokens
    drives = drives_of(dataset.tables, [tokens[index] for index in chosen], agents=False)
    if not drives.known.any():
        raise DataError(
            f"nothing is driven after any of {len(chosen)} samples of split {dataset.split!r}; an audit needs the ego "
            "poses of following keyframes: choose a split with longer scenes"
        )
    check = check_future(dataset, chosen[:: -(-len(chosen) // READ_TWICE)])
    audited = run_changes(model, dataset, chosen, batch_size, device)
    table = measure(audited, drives)
    rows = {row["name"]: row for row in table}
    return {
        "samples": len(chosen),
        "scenes": len(set(audited.scenes)),
        "hash": sample_hash(audited.tokens),
        "steps": audited.plan.shape[1],
        "ego_status": declared,
        "changes": table,
        "future": dataclasses.asdict(check),
        "card": make_card(rows, check, declared, dataset.keyframes - 1, _older_sweeps(dataset.config), odometry),
        "says": describe(audited, rows, check),
        "leaks": find_leaks(rows, check, declared),
    }


def _older_sweeps(config: DataConfig) -> list[str]:
    """The sensors whose clouds hold more than the keyframe's own sweep; the older ones are moved by ego poses."""
    counts = {"lidar": config.lidar_sweeps, "radar": config.radar_sweeps}
    return [f"{sensor} ({count} sweeps)" for sensor, count in counts.items() if sensor in config.sensors and count > 1]


def format_audit(found: Mapping[str, Any]) -> str:
    """The table, the card and the verdict for a terminal."""
    lines = [
        f"{found['samples']} samples ({found['hash']}) of {found['scenes']} scenes; plans of {found['steps']} steps; "
        "how far they move [m],",
        f"how much farther from the driven path [m], with 95 % intervals over scenes; a mean below {REACTS} m is no "
        "reaction",
    ]
    measured = [row for row in found["changes"] if row["refused"] is None]
    times, speeds = list(measured[0]["moved"]), list(measured[0]["speeds"])
    heads = [*(f"@{name}" for name in times[:-1]), f"moved@{times[-1]}", *speeds, f"L2@{times[-1]}"]
    widths = [8] * (len(times) - 1) + [24] + [10] * len(speeds) + [24]
    lines.append(f"{'':<30}{'N':>5}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
    group = None
    for row in found["changes"]:
        if row["group"] != group:
            group = row["group"]
            lines.append(group)
        if row["refused"] is not None:
            lines.append(f"  {row['name']:<28}  n/a: {row['refused']}")
            continue
        if not row["different"]:
            lines.append(f"  {row['name']:<28}{row['N']:>5}   the same plans, to the bit")
            continue
        told = row["L2"].get(times[-1], {"mean": None})
        cells = [_number(row["moved"][name]["mean"]) for name in times[:-1]] + [_sure(row["moved"][times[-1]])]
        cells += [_number(row["speeds"][name]) for name in speeds] + [_sure(told, "+")]
        texts = "".join(f"{text:>{width}}" for text, width in zip(cells, widths, strict=True))
        lines.append(f"  {row['name']:<28}{row['N']:>5}{texts}")
    lines += ["", *(f"{name + ':':<18}{text}" for name, text in found["card"].items())]
    lines += ["", *(f"- {text}" for text in found["says"]), *(f"LEAK {text}" for text in found["leaks"])]
    return "\n".join([*lines, *([] if found["leaks"] else ["no leak found"])])


def _number(value: float | None, sign: str = "") -> str:
    return "n/a" if value is None else f"{value:{sign}.3f}"


def _sure(row: Mapping[str, Any], sign: str = "") -> str:
    between = "" if row.get("low") is None else f" [{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"
    return _number(row["mean"], sign) + between


def main(argv: list[str] | None = None) -> int:
    """``audit_planner CHECKPOINT [--samples N] [--out DIR] [--data.root R --data.split S ...]``; 1 for a leak."""
    parser = argparse.ArgumentParser(
        "audit_planner",
        description="Change everything that a planner is given, one after the other, and say what its plans depend on. "
        "Exit status 1 where they depend on what they must not.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", help="checkpoint or run folder")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help="at most, evenly over scenes (default: %(default)s)"
    )
    parser.add_argument("--out", help=f"folder for {FILE}, which report shows; none: it is not written")
    parser.add_argument("--device", help="torch device, e.g. cpu or cuda:0 (default: the GPU where there is one)")
    parser.add_argument("--no-ema", action="store_true", help="use the last weights instead of their average")
    parser.epilog = (
        "The configuration is the checkpoint's; every setting can be overridden, e.g. --data.split mini_val."
    )
    options, overrides = parser.parse_known_args(argv)
    config = override(load_config_of(options.checkpoint), overrides)
    found = audit_planner(options.checkpoint, config, options.samples, options.device, not options.no_ema)
    print(format_audit(found))
    if options.out is not None:
        print(f"written: {write_json(Path(options.out, FILE), found)}")
    return 1 if found["leaks"] else 0
