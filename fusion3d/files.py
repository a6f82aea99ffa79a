"""Writing to disk: whole or not at all. The only place that knows how."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusion3d.errors import Fusion3DError


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write a file under a temporary name beside it, flush it to the disk and rename it.

    A reader (or a crash) sees the old file or the new one, never half of it.

    Raises:
        Fusion3DError: the folder cannot be made or the file cannot be written (no space, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise Fusion3DError(_cannot_write(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write plain values as JSON, whole or not at all; a float that is not finite becomes null.

    Raises:
        Fusion3DError: as in ``write_whole``.
    """
    return write_whole(path, (json.dumps(_finite(value), indent=1, allow_nan=False) + "\n").encode())


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder to fill: it becomes ``path`` (replacing it) if the block ends well, else vanishes.

    Raises:
        Fusion3DError: something in it cannot be written (no space, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            _flush(file)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise Fusion3DError(_cannot_write(path, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError) -> str:
    reason = error.strerror or error
    return f"cannot write {path}: {reason}; check free space and permissions of {path.parent}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
