"""JSON read piece by piece: a file of any size is walked through, and only one value at a time is in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from fusion3d.errors import DataError

CHUNK = 1 << 20  # characters read at once
LONGEST = 1 << 22  # characters of one value that is taken whole
_SPACE = re.compile(r"[ \t\n\r]*")
_CUT = 16  # an error this near to the end of what was read may come from the cut alone


class JsonStream:
    """A place in a JSON file that moves on: over objects and arrays step by step, over anything else at once.

    Args:
        file: open, at its beginning.
        path: for messages.
        longest: characters that a value taken by ``value`` may have.
    """

    def __init__(self, file: TextIO, path: Path, longest: int = LONGEST) -> None:
        self.path, self.longest = path, longest
        self._file, self._text, self._at, self._before = file, "", 0, 0
        self._decode = json.JSONDecoder().raw_decode

    @property
    def position(self) -> int:
        """Characters of the file that were passed."""
        return self._before + self._at

    def peek(self) -> str:
        """The next character that is no space; "" at the end of the file."""
        while True:
            end = _SPACE.match(self._text, self._at)
            self._at = end.end() if end else self._at
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def members(self) -> Iterator[str]:
        """The keys of the object that begins here. The value of each must be taken before the next key is."""
        self._expect("{")
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            if self.peek() != '"':
                self._refuse("a key")
            yield self.value()
            if self._next_is_last("}"):
                return

    def elements(self) -> Iterator[None]:
        """One turn for each element of the array that begins here, which must be taken in it."""
        self._expect("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield
            if self._next_is_last("]"):
                return

    def member(self) -> None:
        """Step from a key to its value."""
        self._expect(":")

    def value(self) -> Any:
        """The value that begins here, whole."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT
                if not cut or not self._more():
                    self._at = error.pos
                    self._refuse(error.msg)
                continue
            except RecursionError:
                raise DataError(f"{self.path}: character {self.position}: nested too deeply") from None
            except ValueError as error:  # a number of thousands of digits
                raise DataError(f"{self.path}: character {self.position}: {error}") from error
            if isinstance(value, int | float) and end + _CUT > len(self._text) and self._more():
                continue  # a number may go on: 3 of 3e+08
            self._at = end
            return value

    def end(self) -> None:
        """DataError where something follows."""
        if self.peek():
            self._refuse("the end of the file")

    def _next_is_last(self, closing: str) -> bool:
        found = self.peek()
        if found not in (",", closing) or not found:
            self._refuse(f"',' or '{closing}'")
        self._at += 1
        return found == closing

    def _expect(self, character: str) -> None:
        if self.peek() != character:
            self._refuse(f"'{character}'")
        self._at += 1

    def _more(self) -> bool:
        """Read on; False at the end of the file, where all stays as it is."""
        if len(self._text) - self._at > self.longest:
            raise DataError(
                f"{self.path}: character {self.position}: a value of more than {self.longest} characters; "
                "is the file what it should be?"
            )
        chunk = self._file.read(CHUNK)
        if chunk:
            self._before += self._at
            self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)

    def _refuse(self, expected: str) -> None:
        rest = self._text[self._at : self._at + 20]
        found = repr(rest) if rest else "the end of the file: was it cut short?"
        raise DataError(f"{self.path}: no valid JSON at character {self.position}: {expected}; found {found}")


@contextmanager
def open_json(path: str | Path, max_bytes: int) -> Iterator[JsonStream]:
    """Open a JSON file of at most ``max_bytes``.

    Raises:
        DataError: it is missing, no plain file, too large, or, in the block, no valid JSON or not UTF-8.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a plain file' if path.exists() else 'no such file'}")
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(
                f"{path} has {size} bytes and the limit is {max_bytes}; is it the right file? else raise max_bytes"
            )
        with path.open(encoding="utf-8") as file:
            yield JsonStream(file, path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start} of a piece)") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
