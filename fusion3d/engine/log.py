"""What a run tells: one line to the person, one to ``log.jsonl``, one to TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType

from fusion3d.files import write_whole, writing


class RunLog:
    """The log of one run. Values that are logged twice after a resume are kept once.

    Args:
        folder: the run's folder; gets ``log.jsonl`` and ``tensorboard/``.
        step: the step that the run starts after: later lines of an earlier, killed run are dropped.
        active: False makes it silent and writes nothing (processes other than the first).

    Raises:
        Fusion3DError: a file cannot be written, here and in ``write`` (no space, no permission).
    """

    def __init__(self, folder: Path, step: int = 0, active: bool = True) -> None:
        self.active = active
        if not active:
            return
        self.path = folder / "log.jsonl"
        kept = [line for line in read_log(self.path) if line["step"] <= step]
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        with writing(self.path):
            self._file = open(self.path, "a", buffering=1)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            print(
                "TensorBoard is not installed: only log.jsonl is written (pip install tensorboard)",
                file=sys.stderr,
            )
            self._board = None
        else:
            with writing(folder / "tensorboard"):
                self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one line of scalars."""
        if not self.active:
            return
        with writing(self.path):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """Print a line."""
        if self.active:
            print(text, flush=True)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.active:
            with writing(self.path):
                self._file.close()
                if self._board is not None:
                    self._board.close()


def read_log(path: str | Path) -> list[dict[str, float]]:
    """The lines of a ``log.jsonl``; a last line that a kill cut short is left out; no file is no lines."""
    path = Path(path)
    lines: list[dict[str, float]] = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class Clock:
    """Rate and time left, over what this process did."""

    def __init__(self, done: int, total: int) -> None:
        self.start, self.first, self.total = time.perf_counter(), done, total

    def left(self, done: int) -> str:
        """Time until ``total`` at the rate so far, as ``1h02m``, ``3m05s`` or ``12s``."""
        spent = time.perf_counter() - self.start
        seconds = round(spent / max(done - self.first, 1) * (self.total - done))
        if seconds >= 3600:
            return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
        return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
