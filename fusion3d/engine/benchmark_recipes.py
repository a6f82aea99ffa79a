"""``fusion3d benchmark recipes CONFIG...``: what models cost, part by part, beside what is published of them.

Each model goes once through inference and once through a training step. LiDAR is a scan, since what sparse layers cost
depends on where points are; the other sensors are random.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fusion3d.config import Config, load_config
from fusion3d.engine.benchmark_ops import inputs
from fusion3d.engine.describe import Stage, describe
from fusion3d.engine.environment import environment, headline
from fusion3d.engine.published import PUBLISHED, Published
from fusion3d.engine.random_batch import random_batch
from fusion3d.files import write_json, write_whole
from fusion3d.late import JOINT
from fusion3d.types import SENSORS, Batch, PointCloud

_ORDER = (
    "camera.encoder", "camera.view", "camera.classes", "lidar", "radar", "align", "represent", "fuse.virtual",
    "fuse.painting", "fuse.cloud", "fuse.mix", "fuse", "temporal", "trunk", "detection", "motion", "occupancy",
    "planning", "map", "sensors", "decode", "losses", "backward", "whole",
)  # fmt: skip
_MODELS = (*SENSORS, JOINT)  # side by side, before what is of all of them
CONVENTIONS = (
    "Operations are multiply-adds (MACs), with those of our own kernels; one is two FLOPs, though papers often call it "
    "one. Norms, activations and sorting are not counted. Inference is of one sample: {points} LiDAR points, {returns} "
    "random radar returns and six random images of the configuration's size; with memory it is one step of a stream. A "
    "training step is of one sample too, with all of its keyframes, in float32. Beside ours, in columns or in "
    "brackets, stands what is published. No model of full size has been trained by these recipes: this is about cost "
    "alone."
)


@dataclass(frozen=True)
class Recipe:
    """A configuration, measured."""

    name: str
    sensors: str
    inference: tuple[Stage, ...]
    training: tuple[Stage, ...]
    published: Published | None

    def of(self, stages: Sequence[Stage], name: str) -> Stage | None:
        """The stage of that name; None where the model has none."""
        return next((stage for stage in stages if stage.name == name), None)


def measure(
    name: str, config: Config, points: int, returns: int, device: str = "cpu", say: Callable[[str], None] = print
) -> Recipe:
    """What a model of ``config`` costs.

    Args:
        name: of the configuration; a key of ``PUBLISHED`` where there is something to compare with.
        config: of the model.
        points: LiDAR points of the sample.
        returns: its radar returns.
        device: "cpu" or "cuda".
        say: gets a line before whatever takes long.
    """
    torch.manual_seed(config.seed)
    batch = _scanned(random_batch(config, 1, 1, returns, seed=config.seed), points).to(device)
    say(f"{name}: inference")
    inference = describe(config, batch, repeats=1)
    say(f"{name}: a training step")
    plain = replace(config, train=replace(config.train, precision="float32", checkpoint_activations=False))
    training = describe(plain, batch, repeats=0, train=True)
    return Recipe(name, "+".join(config.branches), tuple(inference), tuple(training), PUBLISHED.get(name))


def _scanned(batch: Batch, points: int) -> Batch:
    """One sample with a scan for LiDAR, in its past too."""
    scan = torch.from_numpy(inputs.lidar_sweeps(points))
    lidar = PointCloud(scan, torch.zeros(len(scan), dtype=torch.int64), torch.ones(1, dtype=torch.bool))
    before = tuple(replace(past, batch=replace(past.batch, lidar=lidar)) for past in batch.history)
    return replace(batch, lidar=lidar, history=before)


def markdown(recipes: Sequence[Recipe], points: int, returns: int) -> str:
    """The page: a summary, what explains it, and parts by model."""
    sections = {
        "Parameters by part [millions]": _by_part(recipes, _parameters, "training"),
        "Multiply-adds of inference by part [billions]": _by_part(recipes, _macs, "inference"),
        "Inference by part [ms]": _by_part(recipes, _milliseconds, "inference"),
        "A training step by part [ms]": _by_part(recipes, _milliseconds, "training"),
    }
    others = {recipe.name: recipe.published for recipe in recipes if recipe.published is not None}
    if others:
        reasons = [f"`{name}`, beside {other.model}: {other.differs}." for name, other in others.items()]
        sources = dict.fromkeys(source for other in others.values() for source in other.sources)
        sections = {"Why they differ": _list(reasons)} | sections | {"Sources": _list(sources)}
    intro = [CONVENTIONS.format(points=f"{points:,}", returns=returns), _grid([_SUMMARY, *map(_summary, recipes)])]
    return "\n\n".join([*intro, *(f"## {title}\n\n{text}" for title, text in sections.items())])


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


_SUMMARY = ("recipe", "sensors", "parameters [M]", "published [M]", "inference [GMACs] (GFLOPs)", "published [GMACs]",
            "inference [ms]", "training step [ms]", "its memory [MiB]")  # fmt: skip


def _summary(recipe: Recipe) -> Sequence[str]:
    once, step = recipe.of(recipe.inference, "whole"), recipe.of(recipe.training, "whole")
    assert once is not None and step is not None
    parameters = macs = ""
    if recipe.published is not None:
        parameters, macs = (text or "not published" for text in (recipe.published.parameters, recipe.published.macs))
    return (
        recipe.name, recipe.sensors, f"{once.parameters / 1e6:.1f}", parameters,
        f"{once.flops / 2e9:.1f} ({once.flops / 1e9:.1f})", macs,
        f"{once.milliseconds:.0f}", f"{step.milliseconds:.0f}", f"{step.peak / 2**20:.0f}",
    )  # fmt: skip


def _parameters(recipe: Recipe, stage: Stage) -> str:
    printed = {} if recipe.published is None else recipe.published.parts
    beside = f" ({printed[stage.name]:.1f})" if stage.name in printed else ""
    return f"{stage.parameters / 1e6:.2f}{beside}" if stage.parameters else ""


def _macs(recipe: Recipe, stage: Stage) -> str:
    return f"{stage.flops / 2e9:.2f}" if stage.flops else ""


def _milliseconds(recipe: Recipe, stage: Stage) -> str:
    return f"{stage.milliseconds:.0f}"


def _by_part(recipes: Sequence[Recipe], cell: Callable[[Recipe, Stage], str], mode: str) -> str:
    """A row for each part that any model has, a column for each model."""
    found: list[Mapping[str, str]] = []
    for recipe in recipes:
        found.append({stage.name: cell(recipe, stage) for stage in getattr(recipe, mode)})
    names = {name for of_model in found for name, text in of_model.items() if text}
    rows = sorted(names, key=_place)
    return _grid([["part", *(r.name for r in recipes)], *([n, *(f.get(n, "") for f in found)] for n in rows)])


def _place(name: str) -> tuple[int, int, str]:
    """Where a part stands in a table: in the order of the walk, model by model."""
    model, part = name.split(".", 2)[1:] if name.startswith("models.") else ("", name)
    return (
        _MODELS.index(model) if model else len(_MODELS),
        _ORDER.index(part) if part in _ORDER else -1,
        name,
    )


def _grid(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def main(argv: Sequence[str]) -> int:
    """Measure every configuration that is named, and print and write the page."""
    args = _parser().parse_args(list(argv))
    begin = time.monotonic()

    def say(what: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {what}", flush=True)

    configs = {Path(path).stem: load_config(path) for path in args.configs}
    inputs.use_data(args.root)
    recipes = [measure(name, config, args.points, args.returns, args.device, say) for name, config in configs.items()]
    about = environment(args.device, inputs.described())
    page = f"# Recipes\n\n{headline(about)}\n\n{markdown(recipes, args.points, args.returns)}\n"
    print(page)
    if args.json:
        content: dict[str, Any] = {"environment": about, "points": args.points, "returns": args.returns}
        write_json(args.json, content | {"recipes": [asdict(recipe) for recipe in recipes]})
    if args.markdown:
        write_whole(args.markdown, page.encode())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark recipes", description="What models cost, beside what is published."
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML files, e.g. configs/*.yaml")
    parser.add_argument("--points", type=int, default=270_000, help="LiDAR points of the sample")
    parser.add_argument("--returns", type=int, default=600, help="its radar returns")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--root", help="nuScenes data root whose LiDAR is the scan, instead of a synthetic one")
    parser.add_argument("--json", type=Path, help="file to write with every figure")
    parser.add_argument("--markdown", type=Path, help="file to write with the tables")
    return parser
