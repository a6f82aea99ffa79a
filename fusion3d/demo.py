"""The main job in one go: a synthetic data set, training, evaluation under every subset of sensors, and a report."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from fusion3d.config import Config, differences, load_config
from fusion3d.errors import DataError
from fusion3d.files import read_json, write_json
from fusion3d.view.sections import Findings

_GIB = 1024**2  # in the KiB that getrusage counts


@dataclass(frozen=True)
class DemoConfig:
    """Make a synthetic data set, train on it, evaluate under every subset of sensors, and write a report.

    What is there already is kept: the data set, a finished or interrupted training. Remove ``out`` to train anew.
    """

    config: Path = Path("configs/demo.yaml")
    """Configuration of the model and its training; ``data.root`` is where the data set goes."""
    out: Path = Path("runs/demo")
    """Folder of the run: checkpoints, log, metrics.json, pictures, report.html."""
    scenes: int = 24
    """Scenes of the data set; the last ``val_scenes`` of them are held out."""
    val_scenes: int = 3
    """Scenes that are not trained on, but evaluated."""
    keyframes: int = 16
    """Keyframes of each scene."""
    image_size: tuple[int, int] = (198, 352)
    """Height and width of the stored camera images [px]."""
    sweeps: int = 3
    """LiDAR clouds stored between two keyframes."""
    pictures: int = 3
    """Held-out keyframes that are drawn for the report."""
    worst: int = 2
    """Held-out keyframes that are listed as the worst."""


def main(argv: list[str]) -> int:
    """The verb ``demo``."""
    demo(tyro.cli(DemoConfig, args=argv, prog="demo"))
    return 0


def demo(options: DemoConfig) -> dict[str, Any]:
    """Do the main job; returns what ``metrics.json`` holds."""
    from fusion3d.engine.eval_table import format_table
    from fusion3d.engine.evaluate import evaluate
    from fusion3d.engine.train import train
    from fusion3d.synthetic.writer import make_dataset

    config = load_config(options.config)
    stages = Stages(options.out / "seconds.json")
    data = config.data

    stages.run(
        "data",
        f"synthetic nuScenes: {options.scenes} scenes, {options.scenes * options.keyframes} keyframes -> {data.root}",
        lambda: make_dataset(
            data.root,
            data.version,
            options.scenes,
            options.keyframes,
            options.image_size,
            options.sweeps,
            config.seed,
            max(data.workers, 1),
            options.val_scenes,
        ),
        redo=not Path(data.root, data.version, "sample.json").is_file(),
    )
    checkpoint = stages.run(
        "train",
        f"camera + LiDAR + radar -> detection + planning, {options.config} -> {options.out}",
        lambda: train(config, options.out),
        redo=not any((options.out / "checkpoints").glob("*")),
    )
    metrics = stages.run(
        "evaluate",
        f"official nuScenes metrics on the held-out scenes ({data.split}), every subset of sensors",
        lambda: evaluate(checkpoint, None, options.out / "evaluation"),
    )
    print(format_table(metrics), flush=True)
    pictures, findings = stages.run(
        "draw",
        "held-out keyframes, what the model looks at, the worst samples",
        lambda: (
            draw(config, checkpoint, options.out / "pictures", options.pictures),
            find_out(config, checkpoint, options.out / "evaluation", options.worst),
        ),
    )
    report = options.out / "report.html"
    metrics["seconds"] = {**stages.seconds, "total": sum(stages.seconds.values())}
    metrics["peak_memory_gib"] = peak_memory(data.workers)
    write_json(options.out / "metrics.json", metrics)
    write_report_page(report, metrics, config, options.out, pictures, findings)
    minutes = metrics["seconds"]["total"] / 60
    print(f"{minutes:.1f} minutes, at most {metrics['peak_memory_gib']:.1f} GiB of memory")
    print(f"report: {report}")
    return metrics


class Stages:
    """The steps of the demo: says what is done, and remembers how long each took, also over interruptions.

    Args:
        path: the JSON file in which the seconds are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        self.count = 0
        if path.is_file():
            try:
                self.seconds = {name: float(of) for name, of in read_json(path, "remove it").items()}
            except (ValueError, TypeError) as error:
                raise DataError(f"cannot read {path}: {error}; remove it") from error

    def run(self, name: str, what: str, step: Callable[[], Any], redo: bool = True) -> Any:
        """Do a step. Unless ``redo``, it goes on with earlier work, and its time is added to the earlier time."""
        self.count += 1
        print(f"[{self.count}/4] {name}: {what}", flush=True)
        start = time.perf_counter()
        result = step()
        took = time.perf_counter() - start
        self.seconds[name] = took if redo else self.seconds.get(name, 0.0) + took
        write_json(self.path, self.seconds)
        print(f"      {name}: {took:.0f} s", flush=True)
        return result


def draw(config: Config, checkpoint: Path, folder: Path, count: int) -> list[tuple[str, Path]]:
    """Pictures of ``count`` keyframes, spread over the evaluated split: (caption, file)."""
    from fusion3d.data.dataset import NuScenesDataset
    from fusion3d.engine.visualize import visualize

    dataset = NuScenesDataset(config.data, config.data.split, config.grid)
    count = min(count, len(dataset))
    chosen = [int((i + 0.5) * len(dataset) / count) for i in range(count)]
    files = visualize(config, chosen, folder, checkpoint)
    about = {
        n.decode(): d.decode() for n, d in zip(dataset.tables.scene_name, dataset.tables.scene_description, strict=True)
    }
    scenes = [dataset.tables.scene(int(dataset.rows[i])) for i in chosen]
    return [(f"{scene}: {about[scene]}", file) for scene, file in zip(scenes, files, strict=True)]


def find_out(config: Config, checkpoint: Path, evaluation: Path, worst: int) -> Findings:
    """What the model looks at in the middle of the split, and what its evaluation found out beside its scores."""
    from fusion3d.analysis.explain.main import explain_samples
    from fusion3d.analysis.report import EXPLAINED, collect
    from fusion3d.data.dataset import NuScenesDataset

    middle = len(NuScenesDataset(config.data, config.data.split, config.grid)) // 2
    explained = explain_samples(checkpoint, None, [middle], evaluation / EXPLAINED)
    return replace(collect(evaluation, config, worst=worst), explained=explained)


def peak_memory(workers: int) -> float:
    """An upper bound of the memory in use at once [GiB]: this process, and its largest child for each worker."""
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + max(workers, 1) * child) / _GIB


def write_report_page(
    path: Path,
    metrics: dict[str, Any],
    config: Config,
    run_dir: Path,
    pictures: list[tuple[str, Path]],
    findings: Findings,
) -> None:
    """The run as one HTML page."""
    import torch

    from fusion3d import __version__
    from fusion3d.engine.log import read_log
    from fusion3d.view.report import write_report

    write_report(
        path,
        metrics,
        curves=read_log(run_dir / "log.jsonl"),
        pictures=pictures,
        config_text="\n".join(f"{key} = {value!r}" for key, value in differences(config).items()),
        environment={
            "fusion3d": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        },
        title="fusion3d demo",
        summary=(
            f"One checkpoint, trained on a synthetic data set in the nuScenes format and evaluated on "
            f"{metrics['num_samples']} held-out keyframes under every subset of its sensors."
        ),
        findings=findings,
    )
