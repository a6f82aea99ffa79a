"""Detections in the submission's format as columns, for the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from fusion3d.engine.results import Results
from fusion3d.errors import Fusion3DError
from fusion3d.geometry import yaw_from_quaternion
from fusion3d.metrics.columns import BoxColumns
from fusion3d.types import ATTRIBUTES, DETECTION_CLASSES

_LABEL = {name: label for label, name in enumerate(DETECTION_CLASSES)}
_ATTRIBUTE = {"": -1} | {name: number for number, name in enumerate(ATTRIBUTES)}


def found_columns(results: Mapping[str, Sequence[Mapping[str, Any]]], tokens: Sequence[str]) -> BoxColumns:
    """The boxes of a submission's ``results``, in their order.

    Args:
        results: records by sample token; every sample must be there, with an empty list if nothing was found.
        tokens: of the samples that are scored.

    Raises:
        Fusion3DError: samples are missing or unknown, or a record lacks a field or has a wrong one.
    """
    place = {token: row for row, token in enumerate(tokens)}
    if place.keys() != results.keys():
        missing, unknown = sorted(place.keys() - results.keys()), sorted(results.keys() - place.keys())
        raise Fusion3DError(
            f"the results have {len(missing)} samples too few (first {missing[:1]}) and {len(unknown)} too many "
            f"(first {unknown[:1]}); every sample of the split must be there, with an empty list if nothing was found"
        )
    try:
        return _columns(results, place)
    except (KeyError, TypeError, ValueError, OverflowError):
        for token, records in results.items():
            for number, record in enumerate(records):
                try:
                    _columns({token: [record]}, place)
                except (KeyError, TypeError, ValueError, OverflowError) as error:
                    what = f"{type(error).__name__}: {error}"
                    raise Fusion3DError(
                        f"box {number} of sample {token} is no record of a submission ({what}); expected translation, "
                        "size, rotation, velocity, detection_name, detection_score and attribute_name"
                    ) from error
        raise


def result_columns(results: Results, tokens: Sequence[str]) -> BoxColumns:
    """The boxes of a file of detections, in their order: ``found_columns`` without a record in between.

    It takes some 200 bytes for each box while it works, where records take some 1200.

    Args:
        results: of these samples, as ``read_results`` sees to.
        tokens: of the samples that are scored.
    """
    place = {token: row for row, token in enumerate(tokens)}
    return BoxColumns.of(
        sample=np.array([place[token] for token in results.tokens], dtype=np.int64)[results.sample],
        center=results.translation,
        size=results.size[:, [1, 0, 2]],
        yaw=yaw_from_quaternion(results.rotation),
        velocity=results.velocity,
        label=results.label,
        attribute=results.attribute,
        score=results.score,
        num_points=results.points.astype(np.int64),
    )


def _columns(results: Mapping[str, Sequence[Mapping[str, Any]]], place: Mapping[str, int]) -> BoxColumns:
    records = list(chain.from_iterable(results.values()))
    counts = np.array([len(of_sample) for of_sample in results.values()], dtype=np.int64)

    def numbers(key: str, *shape: int) -> np.ndarray:
        return np.array([record[key] for record in records], dtype=np.float64).reshape(len(records), *shape)

    return BoxColumns.of(
        sample=np.repeat(np.array([place[token] for token in results], dtype=np.int64), counts),
        center=numbers("translation", 3),
        size=numbers("size", 3)[:, [1, 0, 2]],  # a submission has width, length, height
        yaw=yaw_from_quaternion(numbers("rotation", 4)),
        velocity=numbers("velocity", 2),
        label=np.array([_LABEL[record["detection_name"]] for record in records]),
        attribute=np.array([_ATTRIBUTE[record["attribute_name"]] for record in records]),
        score=numbers("detection_score"),
        num_points=np.array([int(record.get("num_pts", -1)) for record in records]),
    )
