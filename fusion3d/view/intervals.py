"""Rows of a table as a picture: each value a dot, each mean a bar with its interval; a panel for each number."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion3d.files import write_whole

INK, FAINT, LINE = "#1f4e79", "#7fa8cf", "#d5dbe1"
# [inch] height of a row and of the titles; width of a panel and of the names
_ROW, _TOP, _PANEL, _NAMES = 0.27, 0.75, 3.6, 2.0


@dataclass(frozen=True)
class Spread:
    """One number of one row."""

    values: tuple[float, ...]
    mean: float
    half: float | None  # of the interval around the mean


def draw_intervals(
    path: str | Path,
    names: Sequence[str],
    panels: dict[str, Sequence[Spread | None]],
    separate: Sequence[int] = (),
) -> Path:
    """Write an SVG.

    Args:
        path: file.
        names: of the rows, from the top.
        panels: title to the number of every row, None where it has none.
        separate: rows above which a line is drawn.

    Raises:
        Fusion3DError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    size = (_NAMES + _PANEL * len(panels), _TOP + _ROW * len(names))
    with matplotlib.rc_context({"svg.hashsalt": "fusion3d", "font.size": 8.5, "font.family": "sans-serif"}):
        figure = Figure(size, layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (title, column) in zip(axes, panels.items(), strict=True):
            axis.set_title(title, fontsize=9, loc="left")
            axis.grid(axis="x", color=LINE, linewidth=0.6)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            for row in separate:
                axis.axhline(row - 0.5, color=LINE, linewidth=1.0)
            for row, spread in enumerate(column):
                if spread is None:
                    continue
                axis.plot(spread.values, [row] * len(spread.values), "o", color=FAINT, markersize=3.5, zorder=3)
                axis.plot([spread.mean], [row], "|", color=INK, markersize=9, markeredgewidth=2, zorder=4)
                if spread.half is not None:
                    ends = [spread.mean - spread.half, spread.mean + spread.half]
                    axis.plot(ends, [row, row], color=INK, linewidth=1.4, zorder=2)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return write_whole(path, buffer.getvalue())
