"""The temperatures of a checkpoint's scores: a file beside its weights, written by ``calibrate``.

They are by subset of the sensors and class, for a model is as sure with one sensor as it is right with that one; and
they are of the weights that they were fitted with, the averaged ones or the last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.engine.checkpoint import weights_file
from fusion3d.errors import CheckpointError
from fusion3d.files import read_json, write_json
from fusion3d.metrics.calibration import apply_temperature
from fusion3d.types import DETECTION_CLASSES

FILE = "temperatures.json"

Temperatures = dict[str, dict[str, float]]  # by subset, then class


def save_temperatures(
    checkpoint: str | Path, temperatures: Temperatures, about: Mapping[str, Any], ema: bool = True
) -> Path:
    """Write a checkpoint's temperatures beside its weights, with what is said ``about`` them.

    Args:
        checkpoint: or its run.
        temperatures: by subset and class.
        about: what else a reader should know.
        ema: they are of the averaged weights, where there are any.

    Raises:
        CheckpointError: there is no checkpoint.
        Fusion3DError: the file cannot be written.
    """
    weights = weights_file(checkpoint, ema)
    return write_json(weights.parent / FILE, {**about, "weights": weights.name, "temperatures": temperatures})


def load_temperatures(checkpoint: str | Path, subsets: Sequence[str], ema: bool = True) -> Temperatures:
    """A checkpoint's temperatures for these subsets, and the averaged weights or (not ``ema``) the last.

    Raises:
        CheckpointError: there are none, or they are of the other weights, cannot be read, lack a subset or class, or
            are not positive.
    """
    weights = weights_file(checkpoint, ema)
    path = weights.with_name(FILE)
    again = f"run calibrate{'' if ema else ' --no-ema'} with this checkpoint"
    file = read_json(path, f"for evaluation.calibrated {again}", error=CheckpointError)
    if file.get("weights") != weights.name:
        raise CheckpointError(f"{path} is of {file.get('weights')}, and {weights.name} is evaluated; {again}")
    found = file.get("temperatures", {})
    known: Temperatures = {}
    for subset in subsets:
        try:
            known[subset] = {name: float(found[subset][name]) for name in DETECTION_CLASSES}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} has no temperature of {error} with {subset}; {again} for it") from error
        for name, value in known[subset].items():
            if not 0 < value < math.inf:
                raise CheckpointError(
                    f"{path}: the temperature of {name} with {subset} is {value}; expected more than 0"
                )
    return known


def soften(
    records: Mapping[str, Sequence[Mapping[str, Any]]], temperature: Mapping[str, float]
) -> dict[str, list[dict[str, Any]]]:
    """The same boxes with scores at the temperature of their class.

    The order within a class stays and so does every AP. Errors of true positives are interpolated over scores by the
    official rules, and may change in their last digits.

    Args:
        records: by sample token, boxes in the submission's format.
        temperature: by class.
    """
    softened = {}
    for token, boxes in records.items():
        score = np.array([box["detection_score"] for box in boxes], dtype=np.float64)
        of_class = np.array([temperature[box["detection_name"]] for box in boxes], dtype=np.float64)
        scores = apply_temperature(score, of_class).tolist()
        softened[token] = [{**box, "detection_score": value} for box, value in zip(boxes, scores, strict=True)]
    return softened
