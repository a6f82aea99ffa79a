"""Runs in processes of their own, several at once, each on one thread."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from fusion3d.analysis.comparison.runs import METRICS, Run
from fusion3d.errors import Fusion3DError
from fusion3d.files import held

LOG, LOCK = "output.txt", "lock"
PATIENCE = 20.0  # seconds between lines of progress


def work(run: Run) -> None:
    """Train, or go on where a killed process stopped, and evaluate: with all that is used otherwise too."""
    from fusion3d.engine.evaluate import evaluate
    from fusion3d.engine.train import train

    checkpoint = train(run.config, run.folder)
    evaluate(checkpoint, run.config, (run.folder / METRICS).parent, run.scored)


def run_all(
    runs: Sequence[Run],
    jobs: int,
    say: Callable[[str], None] = print,
    target: Callable[[Run], None] = work,
    patience: float = PATIENCE,
) -> None:
    """Do all runs, ``jobs`` at a time, in this order; the first that fails does not stop the others.

    What a run prints is in ``output.txt`` of its folder.

    Raises:
        Fusion3DError: some failed; each is named with the last that it said.
    """
    waiting = list(runs)
    running: list[tuple[Run, BaseProcess]] = []
    failed: list[str] = []
    start = time.perf_counter()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append((waiting[0], _start(waiting.pop(0), target)))
            ready = wait([process.sentinel for _, process in running], patience)
            ended = [(run, process) for run, process in running if process.sentinel in ready]
            running = [one for one in running if one not in ended]
            for run, process in ended:
                process.join()
                if process.exitcode:
                    told = last_line(run.folder / LOG)
                    failed.append(f"{run}: {told or 'no word'} (exit status {process.exitcode})")
            done = len(runs) - len(waiting) - len(running)
            say(_progress(done, len(runs), [run for run, _ in running], time.perf_counter() - start))
    finally:
        for _, process in running:
            process.terminate()
            process.join()
    if failed:
        raise Fusion3DError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}")


def _start(run: Run, target: Callable[[Run], None]) -> BaseProcess:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the libraries when the process begins
    try:
        process = multiprocessing.get_context("spawn").Process(target=_enter, args=(run, target))
        process.start()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return process


def _enter(run: Run, target: Callable[[Run], None]) -> None:
    """The child: one at a time in a folder, whatever it prints in a file, an expected error as one line."""
    run.folder.mkdir(parents=True, exist_ok=True)
    output = open(run.folder / LOG, "ab")  # closed with the process
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with held(run.folder / LOCK):
            target(run)
    except Fusion3DError as error:
        print(error, flush=True)
        sys.exit(1)


def _end_with_parent() -> None:
    """Whoever kills the comparison, in whatever way, kills its runs: they go on from their checkpoints."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _progress(done: int, total: int, running: Sequence[Run], seconds: float) -> str:
    left = f"; about {seconds / done * (total - done) / 60:.0f} min left" if 0 < done < total else ""
    doing = " | ".join(f"{run}: {last_line(run.folder / LOG)[:44]}" for run in running)
    return f"[{done}/{total}, {seconds / 60:.1f} min{left}] {doing}"


def last_line(path: Path) -> str:
    """Of a file that grows; empty where there is none."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
