"""The verb ``report``: everything that lies in the folder of an evaluation, as one HTML page.

| file in the folder | from | section |
| --- | --- | --- |
| ``metrics.json``, ``run.json`` | ``evaluate`` | scores, intervals, missing sensors, Shapley values |
| ``<subset>/matches.npz`` | ``evaluate`` | reliability, worst samples |
| ``<subset>/results_nusc.json``, or what ``--results`` was | ``evaluate`` | pictures of these (with the data set) |
| ``explain/*.png`` | ``explain --out RUN/explain`` | what the model looks at |
| ``similarity.json`` | ``similarity --out RUN`` | how alike the sensors' maps are |
| ``calibration.json`` | ``calibrate --out RUN`` | temperature scaling |
| ``robustness.json``, ``robustness-*.svg`` | ``evaluate --suite robustness --out RUN`` | robustness |
All but the first may be absent.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from fusion3d.analysis.audit.main import FILE as AUDIT
from fusion3d.analysis.calibration import FILE as CALIBRATION
from fusion3d.analysis.calibration import describe_scores, score_classes
from fusion3d.analysis.similarity import FILE as SIMILARITY
from fusion3d.config import Config, differences, from_dict
from fusion3d.engine.environment import RUN
from fusion3d.engine.log import read_log
from fusion3d.engine.matches import matches_of, read_matches
from fusion3d.engine.results import Limits, read_results
from fusion3d.engine.submission import RESULTS_FILE, from_records
from fusion3d.engine.visualize import look, open_clips
from fusion3d.errors import DataError
from fusion3d.files import read_json
from fusion3d.metrics.faults import Fault, find_faults
from fusion3d.metrics.matching import Matches
from fusion3d.view.pictures import MIN_SCORE, draw_sample
from fusion3d.view.report import write_report
from fusion3d.view.sections import Findings, WorstSample

EXPLAINED, WORST = "explain", "worst"  # folders of pictures
_LISTED = 8  # wrong boxes of a sample
_REMEDY = "give the folder that evaluate wrote with --out, or write it anew"


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
    metrics, about = (read_json(folder / name, _REMEDY) for name in ("metrics.json", RUN))
    what = next((key for key in ("checkpoint", "results") if isinstance(about.get(key), str)), None)
    if what is None or not isinstance(about.get("config"), dict):
        raise DataError(f"{folder / RUN} lacks config, or what was scored; {_REMEDY}")
    config = from_dict(about["config"], source=str(folder / RUN))
    log = run / "log.jsonl"
    return write_report(
        path or run / "report.html",
        metrics,
        curves=read_log(log) if log.is_file() else (),
        config_text="\n".join(f"{key} = {value!r}" for key, value in differences(config).items()),
        environment={what: about[what], "data": f"{config.data.version}, split {config.data.split}"},
        title=f"Evaluation of {Path(about[what]).name}",
        summary=f"{metrics.get('num_samples', '?')} samples of {config.data.version}, split {config.data.split}.",
        findings=collect(folder, config, scored=about.get("results"), worst=worst, pictures=pictures),
    )


def collect(
    folder: Path, config: Config, *, scored: str | None = None, worst: int = 4, pictures: bool = True
) -> Findings:
    """What lies in the folder of an evaluation beside its scores, and what follows from its boxes.

    Args:
        folder: that ``evaluate`` wrote.
        config: of the evaluation.
        scored: the result file that was scored, where it was no checkpoint.
        worst: samples that are listed as the worst, by the boxes that the largest subset of sensors found.
        pictures: draw these into ``worst/``.

    Raises:
        DataError: a file or the data set cannot be read.
    """
    reliability: dict[str, Any] | str | None = None
    samples: list[WorstSample] = []
    if files := matches_of(folder):
        largest = [*files.values()][-1]
        matches = read_matches(largest)
        if matches.score.max(initial=0) > 1:
            reliability = "Scores above 1 are no confidences: nothing is said of how often they are right."
        else:
            reliability = describe_scores(score_classes(matches))
        told = worst_tokens(find_faults(matches), worst)
        boxes = Path(scored) if scored else largest.with_name(RESULTS_FILE)
        drawn = _draw_all(told, boxes, matches, config, folder / WORST) if pictures and told else {}
        samples = [_tell(token, faults, matches, drawn.get(token)) for token, faults in told.items()]
    optional = {name: folder / name for name in (CALIBRATION, SIMILARITY, "robustness.json", AUDIT)}
    known = {name: read_json(path, _REMEDY) if path.is_file() else None for name, path in optional.items()}
    return Findings(
        reliability=reliability,
        calibration=known[CALIBRATION],
        similarity=known[SIMILARITY],
        robustness=known["robustness.json"],
        curves=_curves(folder, known["robustness.json"] or {}),
        explained=[(path.stem, path) for path in sorted((folder / EXPLAINED).glob("*.png"))],
        worst=samples,
        audit=known[AUDIT],
    )


def _curves(folder: Path, robustness: Mapping[str, Any]) -> list[Path]:
    """The plots of the suite that was run last; those of an earlier one may lie beside them."""
    kinds = {name.partition(".")[2] for name in robustness.get("curves") or ()}
    return sorted(path for path in folder.glob("robustness-*.svg") if path.stem.partition("-")[2] in kinds)


def worst_tokens(faults: Sequence[Fault], count: int) -> dict[str, list[Fault]]:
    """The samples whose wrong boxes cost the most together, the most costly first, and these boxes."""
    by_sample = {token: list(of) for token, of in groupby(sorted(faults, key=lambda f: f.token), key=lambda f: f.token)}
    order = sorted(by_sample, key=lambda token: (-sum(f.cost for f in by_sample[token]), token))
    return {token: sorted(by_sample[token], key=lambda f: -f.cost) for token in order[:count]}


def _tell(token: str, faults: Sequence[Fault], matches: Matches, picture: Path | None) -> WorstSample:
    """A sample and what is wrong in it, in words."""
    samples = matches.samples
    scene = samples.scenes[samples.scene[samples.tokens.index(token)]]
    lines = []
    for fault in faults[:_LISTED]:
        what = "missed" if fault.missed else f"false positive of score {fault.score:.2f}"
        what += "" if fault.within == max(matches.protocol.dist_ths) else f" within {fault.within:g} m"
        x, y = fault.xy
        lines.append((f"{what}, at x {x:.1f}, y {y:.1f} m", fault.name.replace("_", " "), fault.cost))
    cost = sum(fault.cost for fault in faults)
    return WorstSample(f"{scene}, {token}", cost, tuple(lines), max(0, len(faults) - _LISTED), picture)


def _draw_all(
    faults: Mapping[str, Sequence[Fault]], results: Path, matches: Matches, config: Config, folder: Path
) -> dict[str, Path]:
    """Pictures of samples with the boxes of a result file, by token; the listed faults are circled."""
    limits = Limits(boxes_per_sample=matches.protocol.max_boxes_per_sample)
    try:
        found = read_results(results, matches.samples.tokens, limits).records(faults)
    except DataError as error:
        raise DataError(f"{error}; with --no-pictures the page needs no boxes") from error
    dataset = open_clips(config)
    pictures = {}
    for token, of_sample in faults.items():
        sample = next(look(dataset, [dataset.index_of(token)])).sample
        boxes = from_records(found[token], sample.global_from_ego.numpy())
        marks = [fault.xy for fault in of_sample[:_LISTED]]
        path = folder / f"{token}.png"
        pictures[token] = draw_sample(
            sample, boxes, None, path, config.map_grid, MIN_SCORE, "wrong boxes circled", marks
        )
    return pictures


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
    if options.worst < 0:
        parser.error(f"--worst: expected 0 or more, found {options.worst}")
    print(f"written: {report(options.run, options.out, options.worst, not options.no_pictures)}")
    return 0
