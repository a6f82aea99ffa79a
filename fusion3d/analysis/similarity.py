"""The verb ``similarity``: linear CKA between what the sensors' maps hold, over a split.

Examples are the cells of the grid in all samples that have both sensors. Neighbouring cells are much alike, so that
there are fewer independent examples than cells.
"""

from __future__ import annotations

import argparse
import dataclasses
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion3d.analysis.features import bev_modules, has, watch
from fusion3d.config import Config, override
from fusion3d.data.loader import make_loader
from fusion3d.engine.checkpoint import load_config_of, load_model
from fusion3d.engine.evaluate import add_checkpoint_options
from fusion3d.engine.seed import set_deterministic
from fusion3d.engine.split import open_split
from fusion3d.errors import ConfigError
from fusion3d.files import write_json
from fusion3d.late import Model
from fusion3d.metrics.cka import Alignment
from fusion3d.types import Batch

FILE = "similarity.json"


def compare_maps(
    checkpoint: str | Path,
    config: Config | None,
    out_dir: str | Path,
    device: str | None = None,
    ema: bool = True,
) -> dict[str, Any]:
    """Linear CKA of every two maps of a model on ``config.data.split``; written to ``out_dir/similarity.json``.

    Args:
        checkpoint: checkpoint or run folder.
        config: the checkpoint's own with other data; None takes it as it is.
        out_dir: folder.
        device: torch device name; None takes the GPU where there is one.
        ema: use the averaged weights.

    Returns:
        ``split``; ``maps``: their names; ``pairs``: ``{"maps": [a, b], "cka", "unbiased", "cells"}`` each.

    Raises:
        ConfigError: the model has not two maps to compare.
        CheckpointError: the checkpoint cannot be used.
        DataError: the data set cannot be read.
    """
    config = load_config_of(checkpoint) if config is None else config
    clips = dataclasses.replace(config.evaluation, stream=False)  # maps are compared sample by sample, with their past
    config = dataclasses.replace(config, evaluation=clips)
    set_deterministic(config.deterministic)
    model, _ = load_model(checkpoint, ema, config)
    names = list(bev_modules(model))
    if len(names) < 2:
        raise ConfigError(
            f"this model has {len(names)} map from above ({', '.join(names)}), and CKA compares two; with early fusion "
            "the sensors have none of their own"
        )
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dataset = open_split(config, config.data.split, training=False)
    loader = make_loader(dataset, config.train.batch_size, workers=config.data.workers)
    known: dict[tuple[str, str], Alignment] = {}
    model = model.to(where)
    for batch in loader:
        add_batch(known, model, batch.to(where))
    pairs = [
        {"maps": [*pair], "cka": found.biased(), "unbiased": found.unbiased(), "cells": found.count}
        for pair, found in known.items()
    ]
    result = {"split": config.data.split, "maps": names, "pairs": pairs}
    write_json(Path(out_dir, FILE), result)
    return result


@torch.inference_mode()
def add_batch(known: dict[tuple[str, str], Alignment], model: Model, batch: Batch) -> None:
    """Add a batch's cells to the alignment of every two maps, of the samples that have both."""
    with watch(bev_modules(model)) as seen:
        model(batch)
    for a, b in combinations([name for name in seen if has(batch, name).any()], 2):
        there = has(batch, a) & has(batch, b)
        rows = [seen[name][there].float().cpu().numpy() for name in (a, b)]
        channels = rows[0].shape[1], rows[1].shape[1]
        cells = [np.moveaxis(row, 1, -1).reshape(-1, count) for row, count in zip(rows, channels, strict=True)]
        known.setdefault((a, b), Alignment(channels)).add(*cells)


def main(argv: list[str] | None = None) -> int:
    """``similarity --checkpoint X --out DIR [--data.root R --data.version V --data.split S ...]``."""
    parser = argparse.ArgumentParser(
        "similarity", description="How alike the maps of the sensors are: linear CKA over a split.", allow_abbrev=False
    )
    add_checkpoint_options(parser)
    options, overrides = parser.parse_known_args(argv)
    config = override(load_config_of(options.checkpoint), overrides)
    result = compare_maps(options.checkpoint, config, options.out, options.device, not options.no_ema)
    for pair in result["pairs"]:
        print(f"{' - '.join(pair['maps']):<28}{pair['cka']:>8.3f}   unbiased {pair['unbiased']:.3f}")
    print(f"written: {Path(options.out, FILE)}")
    return 0
