"""What happens when a sensor file is broken: an error, or the sensor is absent and a warning says so once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from fusion3d.errors import DataError

Guard = Callable[[Callable[[], Any]], Any]  # calls a reader; returns what it returns, or None where it is broken


def strict(read: Callable[[], Any]) -> Any:
    """A broken file is an error."""
    return read()


class Lenient:
    """A broken file is ``None``; the first time, a warning tells its name and what is wrong."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __call__(self, read: Callable[[], Any]) -> Any:
        """What ``read`` returns, or None where it raises DataError."""
        try:
            return read()
        except DataError as error:
            if str(error) not in self._told:
                self._told.add(str(error))
                warnings.warn(f"skipped: {error}", stacklevel=2)
            return None
