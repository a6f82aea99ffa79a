"""Files: written whole or not at all, and JSON that anybody may have written read. The only place that knows how."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, get_origin

from fusion3d.errors import DataError, Fusion3DError

MAX_JSON = 1 << 28  # bytes of a file that is read whole

Content = TypeVar("Content", dict[str, Any], list[Any])
Made = TypeVar("Made")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block, such as a full disk, into one that names the file and the remedy.

    Raises:
        Fusion3DError: in its place.
    """
    try:
        yield
    except OSError as error:
        reason, folder = error.strerror or error, Path(path).parent
        raise Fusion3DError(f"cannot write {path}: {reason}; check free space and permissions of {folder}") from error


def write_whole(
    path: str | Path,
    content: bytes | Callable[[BinaryIO], object],
    *,
    flush: bool = True,
    beside: str | Path | None = None,
) -> Path:
    """Write a file under a temporary name, flush it to the disk and rename it.

    A reader (or a crash) sees the old file or the new one, never half of it.

    Args:
        path: file; its folder is made where it is missing.
        content: all of it, or a function that writes it to the open file.
        flush: wait for the disk. False for what a power failure may take, such as one of thousands of files.
        beside: folder of the temporary file, on the same file system; by default that of ``path``. What a killed
            process leaves is there.

    Raises:
        Fusion3DError: the folder cannot be made or the file cannot be written (no space, no permission).
    """
    path = Path(path)
    temporary = Path(beside or path.parent) / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with writing(path):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                content(file) if callable(content) else file.write(content)
                if flush:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
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


def read_json(
    path: str | Path,
    remedy: str,
    *,
    kind: type[Content] = dict[str, Any],
    error: type[Fusion3DError] = DataError,
    max_bytes: int = MAX_JSON,
    unique: bool = False,
) -> Content:
    """The object, or the list, that a JSON file holds.

    Args:
        path: file, in UTF-8.
        remedy: what to do where it is missing or damaged; the end of the message.
        kind: dict or list.
        error: what is raised then.
        max_bytes: a larger file is not read.
        unique: an object with a key twice is an error too.

    Raises:
        Fusion3DError: of the kind ``error``: there is no such file, it cannot be read, is too large, is no JSON, is
            nested too deeply or holds something else.
    """
    try:
        if (size := Path(path).stat().st_size) > max_bytes:
            raise ValueError(f"it has {size} bytes, expected at most {max_bytes}")
        content = json.loads(Path(path).read_bytes(), object_pairs_hook=_unique if unique else None)
    except FileNotFoundError:
        raise error(f"no {path}; {remedy}") from None
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f"cannot read {path}: {reason}; {remedy}") from reason
    if not isinstance(content, get_origin(kind) or kind):
        expected = "a list" if kind is list else "an object"
        raise error(f"{path} holds a {type(content).__name__}, expected {expected}; {remedy}")
    return content


def read_json_as(
    path: str | Path,
    make: Callable[[Any], Made],
    remedy: str,
    *,
    kind: type = dict,
    max_bytes: int = MAX_JSON,
) -> Made:
    """What ``make`` makes of a JSON file of somebody else's, in which anything may be missing or of another type.

    Args:
        path: file, in UTF-8.
        make: takes the content; a ValueError, TypeError, LookupError and the like of it are the file's fault.
        remedy: what to do where the file is missing or damaged; the end of the message.
        kind: of the content, dict or list.
        max_bytes: a larger file is not read.

    Raises:
        DataError: as of ``read_json``, or ``make`` found it of another form.
    """
    content = read_json(path, remedy, kind=kind, max_bytes=max_bytes)
    try:
        return make(content)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise DataError(f"cannot read {path}: {reason}; {remedy}") from error


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder to fill: it becomes ``path`` (replacing it) if the block ends well, else vanishes.

    At every moment the old content or the new one is whole: between two renames the old one is beside ``path``, as
    ``.<name>.<number>.old``.

    Raises:
        Fusion3DError: something in it cannot be written (no space, no permission).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    aside = temporary.with_name(f"{temporary.name}.old")
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                _flush(file)
            if path.exists():  # a folder cannot be renamed onto a full one: the old one steps aside, whole
                os.replace(path, aside)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists() and not path.exists():
            os.replace(aside, path)  # the new one did not get there
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def held(path: str | Path) -> Iterator[None]:
    """Keep other processes out of the same block, by a lock on a file that ends with the process, however it ends.

    Children that are forked meanwhile do not keep it: a loader's workers may outlive a process that was killed.

    A file system without locks keeps nobody out.

    Raises:
        Fusion3DError: another process is in there.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")
    os.register_at_fork(after_in_child=file.close)  # whoever has it open has the lock
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fusion3DError(f"another process works in {path.parent}; wait for it, or end it") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        yield


def cache_folder() -> Path:
    """Where derived files are kept: ``$FUSION3D_CACHE`` or ``~/.cache/fusion3d``."""
    return Path(os.environ.get("FUSION3D_CACHE") or Path.home() / ".cache" / "fusion3d").expanduser()


def write_cache(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file that can be made again at any time; where it cannot be written, only warn."""
    try:
        write_whole(path, write, flush=False)
    except Fusion3DError as error:
        warnings.warn(f"no cache: {error}; or set FUSION3D_CACHE to another folder", stacklevel=3)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{Counter(name for name, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
