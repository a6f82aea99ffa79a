"""One JSON table of a nuScenes data set as columns of plain arrays.

It is read piece by piece, by compiled loops: neither its text nor its rows as dicts ever stand in memory whole, and
several tables can be read at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from fusion3d.data import table_kernels as kernels
from fusion3d.errors import DataError

PIECE = 1 << 22  # bytes that are read at once: what is found in them is read while it lies in the caches
CHUNK = 1 << 14  # rows that are looked for at once
ROOM = 1 << 30  # bytes for the strings, or lists, of these rows: all get as much as the longest
_LISTS = (list, list[str])


class Columns:
    """The columns of a table.

    ``columns[key]`` is, by the key's kind: str: bytes [n], as UTF-8; int: int64 [n]; bool: bool [n]; a number k:
    float64 [n, k], of lists of k numbers; list: a Python list of whatever lists the rows have; list[str]: of lists of
    strings.

    What the rows say is what Python's ``json`` reads, where a key stands twice too. Keys are found as they are, not
    with escapes; values that are not asked for are not looked at closely.
    """

    def __init__(self, path: Path, kinds: Mapping[str, Any]) -> None:
        """Reads the table.

        Args:
            path: JSON file, an array of objects.
            kinds: of the keys that are read; "token" is read always, and has to differ from row to row.

        Raises:
            DataError: the file is missing, or is not such a table; the row and the key of what does not fit are named.
        """
        self.path = path
        kinds = {"token": str, **kinds}
        parts: dict[str, list[np.ndarray]] = {key: [] for key in kinds}
        for first, text, spans in _pieces(path, list(kinds)):
            for column, (key, kind) in enumerate(kinds.items()):
                values, wrong = _read(text, np.ascontiguousarray(spans[:, column]), kind)
                if wrong >= 0:
                    raise DataError(_refusal(path, text, list(kinds), spans[wrong], first + wrong, key, kind))
                parts[key].append(values)
        self._columns: dict[str, Any] = {key: _join(path, key, parts.pop(key)) for key in kinds}
        token = self["token"]
        self._index = Index(token)
        if (self._index.index >= 0).sum() < len(token) or (token == b"").any():
            raise DataError(f"{path}: a token is empty, or occurs twice; unpack the table again")
        for key in (key for key, kind in kinds.items() if kind in _LISTS):
            self._columns[key] = _lists(path, key, self[key].tolist(), kinds[key] is not list)

    def __len__(self) -> int:
        return len(self._columns["token"])

    def __getitem__(self, key: str) -> Any:
        return self._columns[key]

    def words(self, key: str) -> list[str]:
        """A column of strings, as Python's."""
        return [word.decode() for word in self[key].tolist()]

    def rows_in(self, key: str, other: Columns, optional: bool = False) -> np.ndarray:
        """[n] int32: the row in ``other`` that each token in ``key`` names; -1 for "" where optional.

        Raises:
            DataError: there is no such row.
        """
        rows = other._index.find(self[key])
        unknown = rows < 0
        if optional:
            unknown &= self[key] != b""
        if unknown.any():
            raise DataError(
                f"{self.path}: {key} names token {self[key][unknown][0].decode()!r}, which {other.path.name} does not "
                "have; the tables are of different versions or damaged: unpack them again"
            )
        return rows


class Index:
    """The rows of words."""

    def __init__(self, words: np.ndarray) -> None:
        """Of bytes [m], without zeros."""
        self._words = _eights(words)
        self.index = kernels.make_index(self._words)

    def find(self, words: np.ndarray) -> np.ndarray:
        """[n] int32: the first row that is the word, for each of bytes [n]; -1 for none."""
        return kernels.find_rows(_eights(words), self._words, self.index)


def split_names(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes [n] up to the last ``__``, which is kept, and from there on; a name without it has nothing before."""
    characters = _characters(names)
    first, last = np.zeros_like(characters), np.zeros_like(characters)
    kernels.split_names(characters, first, last)
    return _words(first), _words(last)


def _join(path: Path, key: str, parts: list[np.ndarray]) -> np.ndarray:
    """``np.concatenate`` without the interpreter's lock, which other tables need meanwhile."""
    widest, rows = max((part.dtype for part in parts), key=lambda dtype: dtype.itemsize), sum(map(len, parts))
    if rows * widest.itemsize > ROOM + 16 * sum(part.nbytes for part in parts):
        raise DataError(f"{path}: {key}: one value has {widest.itemsize} bytes, far more than the others; repair it")
    joined = np.zeros((rows, *parts[0].shape[1:]), dtype=widest)
    end = 0
    for part in parts:
        begin, end = end, end + len(part)
        kernels.copy_rows(_characters(part), _characters(joined[begin:end]))
    return joined


def _characters(words: np.ndarray) -> np.ndarray:
    """Anything [n, ...] as the bytes that it is made of, uint8 [n, W]."""
    width = words.dtype.itemsize * math.prod(words.shape[1:])
    return np.ascontiguousarray(words).view(np.uint8).reshape(len(words), width)


def _eights(words: np.ndarray) -> np.ndarray:
    """Bytes [n] as uint64 [n, W]: eight of them after the other."""
    width = -(-words.dtype.itemsize // 8)
    return np.ascontiguousarray(words, dtype=f"S{8 * width}").view(np.uint64).reshape(len(words), width)


def _words(characters: np.ndarray) -> np.ndarray:
    """uint8 [n, W] as bytes [n], no wider than the longest."""
    used = np.flatnonzero(characters.any(0))
    width = int(used[-1]) + 1 if len(used) else 1
    return np.ascontiguousarray(characters[:, :width]).view(f"S{width}").reshape(len(characters))


def _pieces(path: Path, keys: list[str]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The number of a first row, a text, and where in it the values of the next rows lie [R, keys, 2]; at least once.

    Text and places lie in the same memory each time.
    """
    names = _characters(np.array([key.encode() for key in keys]))
    try:
        with path.open("rb", buffering=0) as file:
            reader = _Reader(path, file)
            reader.more(0)
            head = bytes(reader.text[:4096]).lstrip()
            if head[:1] != b"[":
                raise DataError(f"{path}: expected a JSON array, found {head[:20]!r}; unpack the table again")
            first, at, state = 0, min(len(reader.text), 4096) - len(head) + 1, kernels.MORE
            spans = np.empty((CHUNK, len(keys), 2), dtype=np.int64)
            while state != kernels.END:
                count, at, state, stop = kernels.scan_rows(reader.text, at, names, spans)
                yield first, reader.text, spans[:count]
                first += count
                if state == kernels.NOT_AN_OBJECT:
                    reader.refuse(stop, state)
                if state == kernels.BROKEN:  # or not read yet
                    if not reader.more(at):
                        reader.refuse(stop - at, state)
                    at = 0
            while not (rest := bytes(reader.text[at:]).lstrip()):
                if not reader.more(len(reader.text)):
                    return
                at = 0
            reader.refuse(len(reader.text) - len(rest), kernels.BROKEN)
    except FileNotFoundError as error:
        raise DataError(f"table {path} is missing; check the data root and the version, or unpack it again") from error
    except OSError as error:
        raise DataError(f"cannot read table {path}: {error}") from error


class _Reader:
    """A file's text, piece by piece, always in the same memory."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._room = np.empty(PIECE, dtype=np.uint8)
        self._before = 0  # bytes of the file before the text
        self.text = self._room[:0]

    def more(self, at: int) -> bool:
        """Let the text begin at ``at``, and go on for longer than before; False: the file has no more."""
        kept = self.text[at:].copy()
        if 2 * len(kept) > len(self._room):
            self._room = np.empty(2 * len(self._room), dtype=np.uint8)
        self._room[: len(kept)] = kept
        size = self._file.readinto(memoryview(self._room)[len(kept) :])  # type: ignore[attr-defined]
        self._before += at
        self.text = self._room[: len(kept) + size]
        zero = kernels.find_byte(self.text, len(kept), 0)
        if zero >= 0:  # what a copy or a disk leaves where it failed; no JSON has any
            self.refuse(zero, kernels.BROKEN)
        return size > 0

    def refuse(self, at: int, state: int) -> NoReturn:
        """DataError: of what stands at ``at``."""
        near, place = bytes(self.text[at : at + 20]), self._before + at
        if state == kernels.NOT_AN_OBJECT:
            said = f"{self._path}: expected an array of objects, found {near!r} in it at byte {place}"
        else:
            said = f"{self._path} is no valid JSON ({f'found {near!r} at byte {place}' if near else 'it is cut off'})"
        raise DataError(f"{said}; copy or unpack the table again")


def _read(text: np.ndarray, spans: np.ndarray, kind: Any) -> tuple[np.ndarray, int]:
    """The values at ``spans`` [R, 2], and the first row of them that is none of the kind; -1 where all are."""
    wrong = _first((spans[:, 0] < 0) | (spans[:, 1] - spans[:, 0] > ROOM // max(1, len(spans))))
    if wrong >= 0:
        return np.zeros(0), wrong
    if isinstance(kind, int):
        return _numbers(text, spans, np.empty((len(spans), kind)), kernels.read_vectors)
    if kind is int:
        return _numbers(text, spans, np.empty(len(spans), dtype=np.int64), kernels.read_integers)
    if kind is bool:
        wrong = _first(spans[:, 1] - spans[:, 0] > len("false"))
        words = _copy(text, spans)[0] if wrong < 0 else np.zeros(0, dtype="S1")
        return words == b"true", wrong if wrong >= 0 else _first((words != b"true") & (words != b"false"))
    wrong = _first(text[spans[:, 0]] != ord("[" if kind in _LISTS else '"'))
    if wrong >= 0 or kind in _LISTS:
        return (np.zeros(0) if wrong >= 0 else _copy(text, spans)[0]), wrong
    words, special = _copy(text, spans + np.array([1, -1]))
    for row in np.flatnonzero(special):
        word = _python(text, spans[row])
        if word is None or "\0" in word:  # which ends a word in an array
            return words, int(row)
        words[row] = word.encode()
    return words, -1


def _numbers(text: np.ndarray, spans: np.ndarray, out: np.ndarray, read: Any) -> tuple[np.ndarray, int]:
    """``out`` filled by a compiled loop, and where that does not know what to say, by Python; the row that is wrong."""
    row = read(text, spans, 0, out)
    while row >= 0:
        value = _python(text, spans[row])
        numbers = value if isinstance(value, list) else [value]
        fits = isinstance(value, list) == (out.ndim == 2) and len(numbers) == out[row].size
        if not fits or not all(type(number) in (int, float) for number in numbers):
            return out, row
        if out.ndim == 1 and type(value) is not int:
            return out, row
        try:
            out[row] = value
        except OverflowError:  # an integer of more than 64 bits, or beyond every float
            return out, row
        row = read(text, spans, row + 1, out)
    return out, -1


def _python(text: np.ndarray, span: np.ndarray) -> Any:
    """What Python reads there; None where it refuses to."""
    try:
        value = json.loads(bytes(text[slice(*span)]))
        if isinstance(value, str):
            value.encode()  # half of a character, as an escape, is none
        return value
    except (ValueError, RecursionError):
        return None


def _first(wrong: np.ndarray) -> int:
    """The first true row, -1 where none is."""
    return int(wrong.argmax()) if wrong.any() else -1


def _copy(text: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes [R] at ``spans`` [R, 2], and which of them are not plain."""
    width = max(1, int((spans[:, 1] - spans[:, 0]).max(initial=0)))
    characters = np.zeros((len(spans), width), dtype=np.uint8)
    special = kernels.copy_strings(text, spans, characters)
    return characters.view(f"S{width}").reshape(len(spans)), special


def _lists(path: Path, key: str, texts: list[bytes], of_strings: bool) -> list[list[Any]]:
    """The lists that are written as these; the same one for the same text."""
    values: dict[bytes, list[Any]] = {}
    for text in texts:
        if text not in values:
            value = _python(np.frombuffer(text, dtype=np.uint8), np.array([0, len(text)]))
            if value is None or (of_strings and not all(isinstance(item, str) for item in value)):
                what = "a list of strings" if of_strings else "a list"
                raise DataError(f"{path}: {key}: expected {what}, found {text[:60]!r}; unpack the table again")
            values[text] = value
    return [values[text] for text in texts]


def _refusal(path: Path, text: np.ndarray, keys: list[str], spans: np.ndarray, row: int, key: str, kind: Any) -> str:
    """What to say of a value that is not what it should be.

    Args:
        path: of the table.
        text: the piece of it with the row.
        keys: that are read.
        spans: [keys, 2], where the row's values are.
        row: its number.
        key: whose value it is.
        kind: that was expected.
    """
    of_row = dict(zip(keys, spans, strict=True))
    token, found = (bytes(text[slice(*of_row[name])])[:60].decode(errors="replace") for name in ("token", key))
    expected = f"a list of {kind} numbers" if isinstance(kind, int) else kind.__name__
    expected += " that is shorter" if np.diff(of_row[key]) > ROOM // CHUNK else ""
    return f"{path}: row {row} (token {token or 'nothing'}): {key}: expected {expected}, found {found or 'nothing'}"
