"""The file of a city in the nuScenes map expansion, ``maps/expansion/<location>.json``, as plain arrays.

It has tens of megabytes of tokens; what is read of a large one is kept in the cache folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from fusion3d.errors import DataError
from fusion3d.files import cache_folder, read_json_as, write_cache

_FORMAT = 1  # raised when what is read of a file changes its meaning, so that older caches are rebuilt
_REMEDY = "download or make the map again"
_CACHE_FROM = 1_000_000  # [bytes] smaller files are read faster than they are looked up

Read = TypeVar("Read", bound="FromExpansion")


class FromExpansion(Protocol):
    """A dataclass of arrays that is read from the content of such a file."""

    @staticmethod
    def read(content: dict[str, Any]) -> Any:
        """From the file's JSON; anything that is wrong with it may be raised."""
        ...


class Shapes:
    """The places behind the tokens of a file."""

    def __init__(self, content: dict[str, Any]) -> None:
        self._node = {row["token"]: (float(row["x"]), float(row["y"])) for row in content["node"]}
        self._polygon = {row["token"]: row for row in content["polygon"]}
        self._line = {row["token"]: row["node_tokens"] for row in content["line"]}

    def rings(self, polygon: str) -> list[np.ndarray]:
        """[V, 2] of a polygon's outline, and of each of its holes, in global metres."""
        row = self._polygon[polygon]
        return [self._places(row["exterior_node_tokens"])] + [
            self._places(hole["node_tokens"]) for hole in row.get("holes", ())
        ]

    def line(self, line: str) -> np.ndarray:
        """[V, 2] of a line, in global metres."""
        return self._places(self._line[line])

    def _places(self, nodes: list[str]) -> np.ndarray:
        places = np.array([self._node[token] for token in nodes], dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(places).all():
            raise ValueError("a position is not finite")
        return places


def packed(arrays: Sequence[np.ndarray], width: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Arrays [V, width] one after another, and [R + 1] int64, where among the rows each begins and the last ends."""
    return np.concatenate([np.zeros((0, width)), *arrays]), np.cumsum([0, *map(len, arrays)], dtype=np.int64)


def open_expansion(path: Path, kind: type[Read]) -> Read:
    """What a file says, as ``kind`` reads it; what was opened last is kept.

    Raises:
        DataError: it cannot be read, or is not what such a file holds.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"cannot open the map {path}: {error}; download the map again") from error
    return _open(path, kind, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)  # a synthetic data set has a place for every scene, nuScenes four
def _open(path: Path, kind: Any, size: int, modified: int) -> Any:
    if size < _CACHE_FROM:
        return read_json_as(path, kind.read, _REMEDY)
    state = f"{_FORMAT}\n{path.resolve()}\n{size}\n{modified}\n{kind.__name__}"
    digest = hashlib.sha256(state.encode()).hexdigest()[:16]
    cached = cache_folder() / "maps" / f"{digest}.npz"
    names = [f.name for f in dataclasses.fields(kind)]
    try:
        with np.load(cached, allow_pickle=False) as file:
            return kind(**{name: file[name] for name in names})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        found = read_json_as(path, kind.read, _REMEDY)  # there is none, or a damaged one
    arrays: dict[str, Any] = {name: getattr(found, name) for name in names}
    write_cache(cached, lambda file: np.savez(file, allow_pickle=False, **arrays))
    return found
