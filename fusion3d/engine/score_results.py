"""Scoring a result file, anybody's, by the metrics that our own checkpoints get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fusion3d.config import DataConfig
from fusion3d.data.nuscenes import Tables
from fusion3d.data.splits import samples_of
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.results import Limits, read_results
from fusion3d.errors import DataError
from fusion3d.files import write_json
from fusion3d.metrics.detection import score_detections


def score_results(
    path: str | Path, data: DataConfig, out_dir: str | Path, limits: Limits | None = None
) -> dict[str, Any]:
    """Score a result file on ``data.split`` and write ``metrics.json`` into ``out_dir``.

    Args:
        path: JSON as in ``read_results``.
        data: root, version and split.
        out_dir: folder.
        limits: of the file's size.

    Returns:
        As ``evaluate``, with one row of ``subsets`` under the file's name without its ending.

    Raises:
        DataError: the file or the data set cannot be read, has samples that the other lacks, or no annotations.
    """
    tables = Tables.open(data.root, data.version)
    if not tables.annotated:
        raise DataError(f"{data.root} ({data.version}) has no annotations to score against")
    tokens = [tables.token(row) for row in samples_of(tables, data.split)]
    results = read_results(path, tokens, limits)
    truths = {token: detection_truth(tables, token) for token in tokens}
    row = score_detections(truths, results.records())
    metrics = {"subsets": {Path(path).stem: row}, "num_samples": len(tokens), "meta": results.meta}
    write_json(Path(out_dir, "metrics.json"), metrics)
    return metrics
