"""A sheet of pixels: axes placed in pixels from its upper left corner, written as one PNG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from fusion3d.errors import Fusion3DError
from fusion3d.files import write_whole
from fusion3d.view import colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 100


class Sheet:
    """A matplotlib figure (no pyplot, no state left behind), and ``page``, axes over all of it in pixels."""

    def __init__(self, width: float, height: float) -> None:
        """``width`` and ``height`` [px]."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        FigureCanvasAgg(self.figure)
        self.page = self.place(0, 0, width, height)
        self.page.set(xlim=(0, width), ylim=(height, 0))
        self.page.axis("off")

    def place(self, left: float, top: float, wide: float, high: float) -> Axes:
        """Axes at a place [px] from the upper left corner."""
        share = left / self.width, 1 - (top + high) / self.height, wide / self.width, high / self.height
        return self.figure.add_axes(share)

    def write(self, path: Path) -> Path:
        """Write the sheet, whole; its folder is made.

        Raises:
            Fusion3DError: the file cannot be written.
        """
        buffer = io.BytesIO()
        how = {"facecolor": colors.BACKGROUND, "pil_kwargs": {"compress_level": 3}}
        self.figure.savefig(buffer, format="png", dpi=_DPI, **how)
        return write_whole(path, buffer.getvalue())


def png_path(path: str | Path) -> Path:
    """Where a sheet is to be written.

    Raises:
        Fusion3DError: the name does not end in ``.png``.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise Fusion3DError(f"cannot draw to {path}: expected a name that ends in .png")
    return path
