"""Makes a synthetic data set in the nuScenes schema: ``tools/make_synthetic.py``.

What ends up in the dataroot::

    samples/<channel>/   keyframes: JPEG, LiDAR ``.pcd.bin`` (float32 x, y, z, intensity, ring), radar ``.pcd``
    sweeps/<channel>/    the LiDAR and radar clouds between them
    maps/                a mask and a file of the map expansion for each scene (see :mod:`fusion3d.synthetic.roadmap`)
    can_bus/             what the vehicle measures, and its route (see :mod:`fusion3d.synthetic.can_bus`)
    <version>/           the 13 tables, ``splits.json`` and ``manifest.json`` (what made it, from which parameters)

``splits.json`` has ``train`` and ``val``, and the same lists as ``synthetic_train`` and ``synthetic_val``: the official
``DetectionEval`` takes only names that are not official splits for custom ones.

Until all is done the tables lie in ``.<version>.part/``, one file a scene, so that an interrupted run goes on where
it stopped; ``<version>/`` then appears complete, by one rename. The bytes depend on the parameters alone, not on the
number of workers or on interruptions.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from fusion3d import __version__
from fusion3d.errors import ConfigError, DataError, Fusion3DError
from fusion3d.files import write_whole
from fusion3d.synthetic.kernels import source_digest
from fusion3d.synthetic.recording import MAX_KEYFRAMES, MAX_SWEEPS, Recipe, record_scene
from fusion3d.synthetic.tables import SCENE_TABLES, SHARED_TABLES, shared_tables

MANIFEST = "manifest.json"


def make_dataset(
    root: Path | str,
    version: str = "v1.0-synthetic",
    scenes: int = 8,
    keyframes: int = 16,
    image_size: tuple[int, int] = (198, 352),
    sweeps: int = 4,
    seed: int = 0,
    workers: int = 2,
    val_scenes: int = 2,
    quiet: bool = False,
) -> Path:
    """Write a synthetic data set that the nuScenes devkit opens, or finish one that was interrupted.

    Args:
        root: Folder to write to (the dataroot); made where it does not exist.
        version: Name of the table folder.
        scenes: Number of scenes.
        keyframes: Keyframes of each scene, 0.5 s apart, 42 at most (nuScenes has 40).
        image_size: Height and width of the camera images [px].
        sweeps: LiDAR clouds written between two keyframes, 0 to 9 (20 Hz), those nearest to the later one;
            radars write as many, up to 6.
        seed: Another seed is another world.
        workers: Processes; the result does not depend on it.
        val_scenes: How many scenes, the last ones, make the split val; the others are train.
        quiet: Show no progress.

    Returns:
        ``root``.

    Raises:
        ConfigError: A parameter out of its range, or a data set of other parameters already in ``root``.
        DataError: A file could not be written (such as when the disk is full), or a worker died.
    """
    root = Path(root)
    recipe = Recipe(version, scenes, keyframes, (image_size[0], image_size[1]), sweeps, seed, val_scenes)
    _check(recipe, workers)
    tables = root / version
    files = Files(root, root / f".{version}.part")
    if _same_recipe(tables, recipe):
        shutil.rmtree(files.part, ignore_errors=True)  # of a run that ended between its last two steps
        return root
    if tables.exists():
        raise ConfigError(f"{tables} is there but was not made here (no {MANIFEST}); choose another folder or version")
    if not any(files.part.glob("scene-*.json")):  # nothing is finished there, so any recipe may begin
        shutil.rmtree(files.part, ignore_errors=True)
    if not _same_recipe(files.part, recipe):
        files.write(f"{files.part.name}/{MANIFEST}", _to_json(_manifest(recipe)))
    todo = [index for index in range(scenes) if not files.fragment(index).exists()]
    with _progress(recipe, done=scenes - len(todo), quiet=quiet) as progress:
        if workers == 1:
            for index in todo:
                _make_scene(index, recipe, files, progress)
        elif todo:
            _make_scenes(todo, recipe, files, min(workers, len(todo)), progress)
    _write_tables(recipe, files)
    return root


def main(argv: list[str]) -> int:
    """``make_synthetic``: the command-line face of :func:`make_dataset`."""
    import tyro

    root = tyro.cli(
        make_dataset, args=argv, prog="make_synthetic.py", config=(tyro.conf.PositionalRequiredArgs,)
    )  # fmt: skip
    print(f"synthetic data set: {root}")
    return 0


@dataclass(frozen=True)
class Files:
    """Writes files so that under a final name there is always a whole file.

    Unlike :func:`fusion3d.files.write_whole` alone it does not wait for the disk (a scene has hundreds of files) and
    keeps what is unfinished in ``part``, so that a killed run leaves nothing beside the sensor files.
    """

    root: Path
    part: Path  # where unfinished things lie, on the same file system

    def write(self, name: str, content: bytes) -> None:
        """Write ``content`` to ``name`` below the root.

        Raises:
            DataError: The system refused; nothing is left behind.
        """
        try:
            write_whole(self.root / name, content, flush=False, beside=self.part)
        except Fusion3DError as error:
            raise DataError(f"{error}; then run the same command again: finished scenes are kept") from error

    def fragment(self, index: int) -> Path:
        """The tables of one finished scene."""
        return self.part / f"scene-{index:04d}.json"


def _check(recipe: Recipe, workers: int) -> None:
    limits = {
        "scenes": (recipe.scenes, 1, 9999),
        "keyframes": (recipe.keyframes, 1, MAX_KEYFRAMES),
        "image-size (height)": (recipe.image_size[0], 16, 900),
        "image-size (width)": (recipe.image_size[1], 16, 1600),
        "sweeps": (recipe.sweeps, 0, MAX_SWEEPS["lidar"]),
        "seed": (recipe.seed, 0, 2**31 - 1),
        "workers": (workers, 1, 256),
        "val-scenes": (recipe.val_scenes, 0, recipe.scenes),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise ConfigError(f"{name}: found {value}, expected {low} to {high}")
    version = recipe.version
    if (
        not version
        or version.startswith(".")
        or Path(version).name != version
        or version in ("samples", "sweeps", "maps", "can_bus")
    ):
        raise ConfigError(f"version: found {version!r}, expected a plain folder name such as v1.0-synthetic")


def _manifest(recipe: Recipe) -> dict[str, Any]:
    made_by = {"made_by": f"fusion3d {__version__}", "generator": source_digest()}
    return made_by | json.loads(json.dumps(asdict(recipe)))


def _same_recipe(folder: Path, recipe: Recipe) -> bool:
    """Was ``folder`` begun with this recipe? An error if with another one, False if it was not begun."""
    path, wanted = folder / MANIFEST, _manifest(recipe)
    if not path.exists():
        return False
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); remove {folder} and run again") from error
    remedy = f"choose another folder, or remove {folder}, samples, sweeps, maps and can_bus to make it anew"
    for key, value in wanted.items():
        if found.get(key) == value:
            continue
        if key in ("made_by", "generator"):
            raise ConfigError(
                f"{folder.parent} holds a synthetic data set of another generator (its sources have changed since: "
                f"{key} {found.get(key)!r}, now {value!r}); {remedy}"
            )
        raise ConfigError(
            f"{folder.parent} holds a synthetic data set with {key} {found.get(key)!r}, asked for {value!r}; {remedy}"
        )
    return True


def _make_scene(index: int, recipe: Recipe, files: Files, progress: Callable[[], None]) -> None:
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        records = record_scene(index, recipe, files.write, progress)
    finally:
        numba.set_num_threads(before)
    files.write(f"{files.part.name}/{files.fragment(index).name}", _to_json(records))


def _make_scenes(todo: list[int], recipe: Recipe, files: Files, workers: int, progress: Callable[[], None]) -> None:
    """Make scenes in worker processes. On an error or an interruption the scenes under way are finished first."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch and numba
    ticks = context.SimpleQueue()
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(ticks,)) as pool:
        pending: set[Future[None]] = {pool.submit(_work, index, recipe, files) for index in todo}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                while not ticks.empty():
                    ticks.get()
                    progress()
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process died (was memory short?); run the same command again, with fewer --workers: finished "
                "scenes are kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    while not ticks.empty():
        ticks.get()
        progress()


_tick: Callable[[], None] | None = None  # of a worker process: reports a keyframe


def _start_worker(ticks: Any) -> None:
    """Leave interruptions to the parent, and end when it is gone, however it went."""
    global _tick
    _tick = partial(ticks.put, None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(index: int, recipe: Recipe, files: Files) -> None:
    assert _tick is not None
    _make_scene(index, recipe, files, _tick)


@contextmanager
def _progress(recipe: Recipe, done: int, quiet: bool) -> Iterator[Callable[[], None]]:
    """A bar that counts keyframes."""
    from tqdm import tqdm

    frames = recipe.keyframes
    with tqdm(total=recipe.scenes * frames, initial=done * frames, unit=" keyframes", disable=quiet) as bar:

        def tick() -> None:
            bar.update()

        yield tick


def _write_tables(recipe: Recipe, files: Files) -> None:
    """Join the scenes' tables and let them appear under the version's name, all at once."""
    parts = [json.loads(files.fragment(index).read_bytes()) for index in range(recipe.scenes)]
    tables = shared_tables() | {name: [r for part in parts for r in part[name]] for name in SCENE_TABLES}
    assert set(tables) == {*SHARED_TABLES, *SCENE_TABLES}
    names = [scene["name"] for scene in tables["scene"]]
    train, val = names[: recipe.scenes - recipe.val_scenes], names[recipe.scenes - recipe.val_scenes :]
    splits = {"train": train, "val": val, "synthetic_train": train, "synthetic_val": val}
    contents = {f"{name}.json": records for name, records in tables.items()}
    contents |= {"splits.json": splits, MANIFEST: _manifest(recipe)}
    ready = files.part / "tables"
    shutil.rmtree(ready, ignore_errors=True)
    for name, content in contents.items():
        files.write(f"{files.part.name}/tables/{name}", _to_json(content))
    try:
        os.replace(ready, files.root / recipe.version)
    except OSError as error:
        raise DataError(f"{files.root / recipe.version}: cannot be written ({error.strerror})") from error
    shutil.rmtree(files.part)


def _to_json(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
