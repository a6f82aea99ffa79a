"""The verb ``report``: everything that lies in the folder of an evaluation, as one HTML page.

| file in the folder | from | section |
| --- | --- | --- |
| ``metrics.json``, ``run.json`` | ``evaluate`` | scores, intervals, missing sensors, Shapley values |
| ``<subset>/results_nusc.json`` | ``evaluate`` | reliability, worst samples (with the data set) |
| ``explain/*.png`` | ``explain --out RUN/explain`` | what the model looks at |
| ``similarity.json`` | ``similarity --out RUN`` | how alike the sensors' maps are |
| ``calibration.json`` | ``calibrate --out RUN`` | temperature scaling |
| ``robustness.json``, ``robustness-*.svg`` | ``evaluate --suite robustness --out RUN`` | robustness |
All but the first may be absent.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from fusion3d.analysis.calibration import FILE as CALIBRATION
from fusion3d.analysis.calibration import describe_scores, score_classes
from fusion3d.analysis.similarity import FILE as SIMILARITY
from fusion3d.config import Config, differences, from_dict
from fusion3d.data.nuscenes import Tables
from fusion3d.engine.evaluate import RUN
from fusion3d.engine.ground_truth import detection_truth
from fusion3d.engine.log import read_log
from fusion3d.engine.submission import from_records
from fusion3d.engine.visualize import look, open_clips
from fusion3d.errors import DataError
from fusion3d.geometry import apply, invert
from fusion3d.metrics.faults import Fault, find_faults
from fusion3d.metrics.scored import DISTANCES, ClassBoxes, boxes_by_class
from fusion3d.view.pictures import MIN_SCORE, draw_sample
from fusion3d.view.report import write_report
from fusion3d.view.sections import Findings, WorstSample

EXPLAINED, WORST = "explain", "worst"  # folders of pictures
_LISTED = 8  # wrong boxes of a sample

Records = Mapping[str, Sequence[Mapping[str, Any]]]


def report(run: str | Path, path: str | Path | None = None, worst: int = 4, pictures: bool = True) -> Path:
    """Write the page of an evaluation.

    Args:
        run: folder that ``evaluate`` wrote, or of a training with ``evaluation/`` in it.
        path: of the page; None: ``report.html`` in ``run``.
        worst: samples that are listed as the worst.
        pictures: draw these, which needs the data set's sensor files.

    Returns:
        The page.

    Raises:
        DataError: there is no evaluation, one of its files cannot be read, or the data set cannot.
        Fusion3DError: the page cannot be written.
    """
    run = Path(run)
    folder = run if (run / "metrics.json").is_file() and (run / RUN).is_file() else run / "evaluation"
    metrics, about = read_json(folder / "metrics.json"), read_json(folder / RUN)
    config = from_dict(about["config"], source=str(folder / RUN))
    log = run / "log.jsonl"
    return write_report(
        path or run / "report.html",
        metrics,
        curves=read_log(log) if log.is_file() else (),
        config_text="\n".join(f"{key} = {value!r}" for key, value in differences(config).items()),
        environment={"checkpoint": about["checkpoint"], "data": f"{config.data.version}, split {config.data.split}"},
        title=f"Evaluation of {Path(about['checkpoint']).name}",
        summary=f"{metrics.get('num_samples', '?')} samples of {config.data.version}, split {config.data.split}.",
        findings=collect(folder, config, worst, pictures),
    )


def collect(folder: Path, config: Config, worst: int = 4, pictures: bool = True) -> Findings:
    """What lies in the folder of an evaluation beside its scores, and what follows from its boxes.

    Args:
        folder: that ``evaluate`` wrote.
        config: of the evaluation.
        worst: samples that are listed as the worst, by the boxes that the largest subset of sensors found.
        pictures: draw these into ``worst/``.

    Raises:
        DataError: a file or the data set cannot be read.
    """
    results = [path for path in folder.glob("*/results_nusc.json") if path.parent.name != WORST]
    reliability, samples = None, ()
    if results and config.detection is not None:
        found = read_json(max(results, key=lambda path: (path.parent.name.count("+"), path.parent.name)))["results"]
        tables = Tables.open(config.data.root, config.data.version)
        truths = {token: detection_truth(tables, token) for token in found}
        boxes = boxes_by_class(truths, found)
        reliability = describe_scores(score_classes(boxes))
        samples = _worst(boxes, found, tables, config, worst, folder / WORST if pictures else None)
    optional = {name: folder / name for name in (CALIBRATION, SIMILARITY, "robustness.json")}
    known = {name: read_json(path) if path.is_file() else None for name, path in optional.items()}
    return Findings(
        reliability=reliability,
        calibration=known[CALIBRATION],
        similarity=known[SIMILARITY],
        robustness=known["robustness.json"],
        curves=sorted(folder.glob("robustness-*.svg")),
        explained=[(path.stem, path) for path in sorted((folder / EXPLAINED).glob("*.png"))],
        worst=samples,
    )


def worst_tokens(faults: Sequence[Fault], count: int) -> dict[str, list[Fault]]:
    """The samples whose wrong boxes cost the most together, the most costly first, and these boxes."""
    by_sample = {token: list(of) for token, of in groupby(sorted(faults, key=lambda f: f.token), key=lambda f: f.token)}
    order = sorted(by_sample, key=lambda token: (-sum(f.cost for f in by_sample[token]), token))
    return {token: sorted(by_sample[token], key=lambda f: -f.cost) for token in order[:count]}


def _worst(
    boxes: Mapping[str, ClassBoxes],
    found: Records,
    tables: Tables,
    config: Config,
    count: int,
    folder: Path | None,
) -> list[WorstSample]:
    samples = []
    for token, faults in worst_tokens(find_faults(boxes), count).items():
        row = tables.row_of(token)
        pose = tables.global_from_ego(row)
        told = [_tell(fault, pose) for fault in faults[:_LISTED]]
        name = f"{tables.scene(row)}, {token}"
        picture = None
        if folder is not None:
            picture = _draw(token, folder / f"{token}.png", found[token], config, [spot for _, spot in told])
        lines = tuple(
            (text, fault.name.replace("_", " "), fault.cost) for (text, _), fault in zip(told, faults, strict=False)
        )  # the faults that are not listed have no text
        cost = sum(fault.cost for fault in faults)
        samples.append(WorstSample(name, cost, lines, max(0, len(faults) - _LISTED), picture))
    return samples


def _tell(fault: Fault, pose: np.ndarray) -> tuple[str, tuple[float, float]]:
    """What is wrong, and where: x, y in ego [m]."""
    x, y, _ = apply(invert(pose), np.array([[*fault.xy, pose[2, 3]]]))[0].tolist()
    what = "missed" if fault.missed else f"false positive of score {fault.score:.2f}"
    what += "" if fault.within == max(DISTANCES) else f" within {fault.within:g} m"
    return f"{what}, at x {x:.1f}, y {y:.1f} m", (x, y)


def _draw(
    token: str, path: Path, found: Sequence[Mapping[str, Any]], config: Config, marks: Sequence[tuple[float, float]]
) -> Path:
    """The sample with the boxes that were scored."""
    dataset = open_clips(config)
    sample, _, _ = next(look(dataset, [dataset.index_of(token)]))
    boxes = from_records(found, sample.global_from_ego.numpy())
    return draw_sample(sample, boxes, None, path, config.map_grid, MIN_SCORE, "wrong boxes circled", marks)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"no {path.name} in {path.parent}: expected the folder that evaluate wrote with --out"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; write it anew") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; expected a mapping: write it anew")
    return content


def main(argv: list[str] | None = None) -> int:
    """``report RUN [--out FILE] [--worst N] [--no-pictures]``."""
    parser = argparse.ArgumentParser(
        "report", description="Everything in the folder of an evaluation as one HTML page.", allow_abbrev=False
    )
    parser.add_argument("run", help="folder that evaluate wrote, or of a training with evaluation/ in it")
    parser.add_argument("--out", help="HTML file (default: report.html in the folder)")
    parser.add_argument("--worst", type=int, default=4, metavar="N", help="samples listed as the worst (default: 4)")
    parser.add_argument("--no-pictures", action="store_true", help="do not draw the worst samples")
    options = parser.parse_args(argv)
    print(f"written: {report(options.run, options.out, options.worst, not options.no_pictures)}")
    return 0
