"""Numbers along something that gets worse, as a picture: a panel for each number, a line for each sensor."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusion3d.files import write_whole

COLORS = {"camera": "#1f77b4", "lidar": "#d1495b", "radar": "#2e8b57"}
OTHER, LINE = "#444444", "#d5dbe1"
_PANEL, _HEIGHT = 3.6, 2.7  # [inch]


@dataclass(frozen=True)
class Curve:
    """One line."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]  # those that are not finite are left out


def draw_curves(
    path: str | Path, panels: Mapping[str, Sequence[Curve]], label: str, reference: Mapping[str, float]
) -> Path:
    """Write an SVG.

    Args:
        path: file.
        panels: by the name of the number.
        label: of the x axis.
        reference: by the name of the number, a value that is drawn all along.

    Raises:
        Fusion3DError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "fusion3d", "font.size": 8.5, "font.family": "sans-serif"}):
        figure = Figure((_PANEL * len(panels), _HEIGHT), layout="constrained")
        for axis, (title, curves) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            axis.set_title(title, fontsize=9, loc="left")
            axis.set_xlabel(label)
            axis.grid(color=LINE, linewidth=0.6)
            axis.spines[:].set_visible(False)
            axis.tick_params(length=0)
            if title in reference:
                axis.axhline(reference[title], color=OTHER, linewidth=0.9, linestyle=":", label="nothing wrong")
            for curve in curves:
                pairs = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
                color = COLORS.get(curve.name, OTHER)
                axis.plot(
                    [x for x, _ in pairs],
                    [y for _, y in pairs],
                    "o-",
                    color=color,
                    markersize=3.5,
                    linewidth=1.4,
                    label=curve.name,
                )
            axis.set_ylim(bottom=0)
        figure.axes[0].legend(frameon=False, loc="lower left", fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return write_whole(path, buffer.getvalue())
