"""Writing to disk: whole or not at all. The only place that knows how."""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
        with suppress(OSError):  # its folder may be what could not be made
            temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> Path:
    """Write plain values as JSON, whole or not at all; a float that is not finite becomes null.

    Args:
        path: file.
        value: dicts, lists, strings and numbers.
        indent: None writes one line, ten times faster: for what no person reads.

    Raises:
        Fusion3DError: as in ``write_whole``.
    """
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:  # rare, and looking for the numbers takes long
        text = json.dumps(_finite(value), indent=indent, allow_nan=False)
    return write_whole(path, f"{text}\n".encode())


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
