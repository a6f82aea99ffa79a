"""What the sections of the report are made of: numbers, tables and pictures as HTML."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fusion3d.errors import Fusion3DError
from fusion3d.types import SENSORS

_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}
_COUNTS = ("IDS", "FRAG", "N", "events", "masked")

_SHARES = ("collision", "at_fault", "raw")  # in per cent


def number(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number of a row, or None."""
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def show(value: float | None, key: str) -> str:
    """A number as text: three digits, rates of collision in per cent, counts whole, a dash for none."""
    if value is None:
        return "\N{EN DASH}"
    if key in _COUNTS:
        return f"{value:.0f}"
    return f"{100 * value:.2f}" if key.startswith(_SHARES) else f"{value:.3f}"


def table(
    rows: Mapping[str, Mapping[str, Any]],
    columns: Sequence[tuple[str, str, bool]],
    first: str,
    label: Callable[[str], str] = escape,
    contest: Sequence[str] | None = None,
) -> str:
    """Rows of numbers; the best of each column (among ``contest``, or all rows) is marked.

    Where a row has ``intervals``, from a column's name to [low, high], that stands under the number.
    """
    head = "".join(f'<th scope="col">{escape(name)}<small>{escape(what)}</small></th>' for name, what, _ in columns)
    best: dict[str, float] = {}
    contest = list(rows) if contest is None else contest
    for key, _, more in columns:
        values = [value for name in contest if (value := number(rows[name], key)) is not None]
        if len(values) > 1:
            best[key] = max(values) if more else min(values)
    lines = []
    for name, row in rows.items():
        cells = []
        for key, _, _ in columns:
            value, under = number(row, key), _interval(row, key)
            # Equal as shown is equal: nobody can see why one 0.431 would be marked and another not.
            marked = key in best and name in contest and show(value, key) == show(best[key], key)
            cells.append(
                f'<td class="best">{show(value, key)}<span class="hidden"> best</span>{under}</td>'
                if marked
                else f"<td>{show(value, key)}{under}</td>"
            )
        lines.append(f'<tr><th scope="row">{label(name)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="wide"><table><thead><tr><th scope="col">{escape(first)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def ends_of(intervals: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """An interval, where there is one of two finite numbers."""
    ends = intervals.get(key)
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or any(e is None or not math.isfinite(e) for e in ends):
        return None
    return ends[0], ends[1]


def _interval(row: Mapping[str, Any], key: str) -> str:
    ends = ends_of(row.get("intervals") or {}, key)
    return f'<small class="soft">{show(ends[0], key)} to {show(ends[1], key)}</small>' if ends else ""


def shaded(
    rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], first: str, label: Callable[[str], str] = escape
) -> str:
    """Rows of numbers in [0, 1], a column for each name, shaded by value; intervals as in ``table``."""
    head = "".join(f'<th scope="col">{escape(name.replace("_", " "))}</th>' for name in names)
    lines = []
    for row_name, row in rows.items():
        cells = []
        for name in names:
            value = number(row, name)
            shade = 0.0 if value is None else min(max(value, 0.0), 1.0)
            cells.append(f'<td class="heat" style="--v:{shade:.3f}">{show(value, name)}{_interval(row, name)}</td>')
        lines.append(f'<tr><th scope="row">{label(row_name)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="wide"><table class="heatmap"><thead><tr><th scope="col">{escape(first)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def bars(rows: Mapping[str, Sequence[tuple[str, float]]], columns: Sequence[str], first: str) -> str:
    """Rows of numbers with a bar each, as long as the number is large; one below 0 is marked.

    Args:
        rows: by name, the text and the value of each column.
        columns: their names.
        first: name of the rows.
    """
    head = "".join(f'<th scope="col" colspan="2">{escape(name)}</th>' for name in columns)
    longest = max((abs(value) for row in rows.values() for _, value in row), default=0) or 1
    lines = []
    for name, row in rows.items():
        cells = (
            f'<td>{escape(text)}</td><td class="bar{" below" * (value < 0)}">'
            f'<span style="width:{100 * abs(value) / longest:.1f}%"></span></td>'
            for text, value in row
        )
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="wide"><table><thead><tr><th scope="col">{escape(first)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def sensor_label(name: str) -> str:
    """The name of a subset behind three dots that say which sensors are in it."""
    parts = name.split("+")
    if not set(parts) <= set(SENSORS):
        return escape(name)
    dots = "".join(f'<i class="{"on" if sensor in parts else "off"}"></i>' for sensor in SENSORS)
    return f'<span class="dots" aria-hidden="true">{dots}</span>{escape(" + ".join(parts))}'


def duration(seconds: float) -> str:
    """123.4 → "2 min 03 s"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def picture(caption: str, path: str | Path) -> str:
    """A picture with its caption, inside of the page.

    Raises:
        Fusion3DError: it is of a kind that is not shown, or cannot be read.
    """
    path = Path(path)
    kind = _TYPES.get(path.suffix.lower())
    if kind is None:
        raise Fusion3DError(f"cannot put {path} into the report: expected one of {', '.join(_TYPES)}")
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise Fusion3DError(f"cannot read the picture {path}: {error.strerror}; draw it before the report") from error
    text = escape(caption)
    return (
        f'<figure class="picture"><img alt="{text}" src="data:{kind};base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>\n"
    )
