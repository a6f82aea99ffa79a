"""The verb ``explain``: Grad-CAM of what a checkpoint says of a sample, drawn on its cameras and from above."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from fusion3d.analysis.explain.gradcam import Explanation, Method, explain
from fusion3d.analysis.explain.targets import parse_target
from fusion3d.analysis.features import POINTS
from fusion3d.config import Config, override
from fusion3d.data.collate import collate
from fusion3d.engine.checkpoint import load_config_of, load_model
from fusion3d.engine.seed import set_deterministic
from fusion3d.engine.visualize import choose, open_clips, restrict
from fusion3d.errors import Fusion3DError
from fusion3d.late import Model
from fusion3d.rows import to_device
from fusion3d.types import Sample
from fusion3d.view import pictures
from fusion3d.view.heat import draw_heat

EARLY_NOTE = "early fusion: the sensors meet as points, and have no map from above of their own; this one is of all"


def explain_samples(
    checkpoint: str | Path,
    config: Config | None,
    indices: Sequence[int],
    out_dir: str | Path,
    targets: Sequence[str] = (),
    method: Method = "grad",
    against: bool = False,
    device: str | None = None,
    ema: bool = True,
) -> list[tuple[str, Path]]:
    """Draw why a checkpoint says what it says.

    Args:
        checkpoint: checkpoint or run folder.
        config: the checkpoint's own with other data; None takes it as it is.
        indices: samples of ``config.data.split``.
        out_dir: gets ``<scene>-<index>-<target>.png``.
        targets: names as in ``targets.py``; none takes what the model is surest of.
        method: "grad" or "hires", see ``gradcam.py``.
        against: what speaks against it, instead.
        device: torch device name; None takes the GPU where there is one.
        ema: use the averaged weights.

    Returns:
        Caption and file of each picture.

    Raises:
        Fusion3DError: as in ``explain``, and where data or checkpoint cannot be used.
    """
    wanted = [parse_target(name) for name in targets] or [None]
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, config = load_model(checkpoint, ema, load_config_of(checkpoint) if config is None else config)
    model = model.to(where)
    dataset = open_clips(config)
    written = []
    for index in indices:
        sample = dataset[index]
        for number, target in enumerate(wanted):
            said = explain(model, collate([sample]).to(where), target, method, against)
            name = targets[number] if targets else "surest"
            path = Path(out_dir, f"{_plain(sample.scene)}-{index:04d}-{_plain(name)}{'-against' * against}.png")
            caption = describe(said, against)
            _draw(model, sample, said, path, config, caption)
            written.append((f"{sample.scene}, sample {index}: {caption}", path))
    return written


def describe(said: Explanation, against: bool = False) -> str:
    """What was explained, in words; with late fusion by each model that has a say."""
    texts = [one.text if len(said.answers) == 1 else f"{name}: {one.text}" for name, one in said.answers.items()]
    return f"what speaks {'against' if against else 'for'} {'; '.join(dict.fromkeys(texts))}"


def _draw(model: Model, sample: Sample, said: Explanation, path: Path, config: Config, title: str) -> None:
    boxes = plan = None
    batch = collate([sample]).to(next(model.parameters()).device)
    with torch.no_grad():
        found = to_device(model.decode(model(batch), batch), "cpu")
    if found.boxes is not None:
        boxes = found.boxes[0][found.boxes[0].score >= pictures.MIN_SCORE]
    if found.plan is not None:
        plan = found.plan[0]
    name, maps = next(reversed(said.images.items()), ("", ()))  # the joint model's, where there are several
    channels = () if sample.cameras is None else sample.cameras.channels
    images = {channel: heat.numpy() for channel, heat in zip(channels, maps, strict=False)}
    shares = {name: f"{100 * share:.0f} % of the sensors' heat" for name, share in said.shares().items()}
    places = {one.place for one in said.answers.values()}
    notes = [EARLY_NOTE] * any(name.endswith(POINTS) for name in said.bev)
    notes += [f"on the images: {name}"] * (len(said.images) > 1)
    notes += said.notes
    bev = {name: heat.numpy() for name, heat in said.bev.items()}
    place = places.pop() if len(places) == 1 else None
    draw_heat(sample, boxes, plan, bev, images, path, config.grid, title, shares, place, notes)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.,-]+", "_", text)


def main(argv: list[str] | None = None) -> int:
    """``explain --checkpoint X [--index I | --token T] [--target car@12,-3 ...] --out DIR [--data.root R ...]``."""
    parser = argparse.ArgumentParser(
        "explain",
        description="Grad-CAM of what a checkpoint says of a sample, on each sensor's map and on the images.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", required=True, help="checkpoint or run folder")
    parser.add_argument("--out", required=True, help="folder for the PNGs")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--index", type=int, help="sample of the split, counted from 0 (default: 0)")
    which.add_argument("--token", help="sample token")
    parser.add_argument(
        "--target", nargs="+", default=(), metavar="WHAT",
        help="a detection class, plan, a map class, vehicle, vru or static (who is where), motion (of a box); "
        "car@12,-3: at this x, y in ego [m]; plan@2: after 2 s; vehicle@12,-3,2: both "
        "(default: the class that the model is surest of)",
    )  # fmt: skip
    parser.add_argument(
        "--method", choices=("grad", "hires"), default="grad",
        help="grad: Grad-CAM; hires: HiResCAM, each cell weighed by its own gradient, for things in one place",
    )  # fmt: skip
    parser.add_argument("--against", action="store_true", help="what speaks against it")
    parser.add_argument("--sensors", nargs="+", help="kinds and channels to use, e.g. camera lidar RADAR_FRONT")
    parser.add_argument("--device", help="torch device (default: the GPU where there is one)")
    parser.add_argument("--no-ema", action="store_true", help="the last weights instead of their average")
    options, overrides = parser.parse_known_args(argv)
    config = override(load_config_of(options.checkpoint), overrides)
    config = dataclasses.replace(config, data=restrict(config.data, options.sensors))
    set_deterministic(config.deterministic)
    if not config.data.sensors:
        raise Fusion3DError("--sensors leaves none that is read; name at least one of data.sensors")
    indices = choose(open_clips(config), options.index, options.token)
    for caption, path in explain_samples(
        options.checkpoint, config, indices, options.out, options.target, options.method, options.against,
        options.device, not options.no_ema,
    ):  # fmt: skip
        print(caption)
        print(f"written: {path}", flush=True)
    return 0
