"""The operations' benchmark as text, Markdown and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fusion3d.engine.benchmark_ops.timing import Timing

HEADS = ("op", "shape", "ours", "peer", "time", "ratio", "target", "bound", "of bound", "device")
_COLUMNS = 120


@dataclass(frozen=True)
class Row:
    """Ours against one peer, or the reason why there is no such figure."""

    op: str
    shape: str
    device: str
    peer: str  # "" where the case has none
    note: str = ""  # instead of a time: "not installed", "not run", "disagrees: ..."
    ours: Timing | None = None
    theirs: Timing | None = None
    graph: Timing | None = None  # ours as a CUDA graph
    target: float | None = None  # ratio that is wanted at least
    limit: float | None = None  # seconds that are wanted at most
    bound: float | None = None  # seconds that moving the bytes takes at the measured copy rate
    wrong: bool = False  # a result that is not ours, or an error: the run has failed

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is, by the shortest readings."""
        return self.theirs.least / self.ours.least if self.ours and self.theirs else None

    @property
    def fastest(self) -> Timing | None:
        """Ours as a CUDA graph where it could be captured: the device's work, without the host's."""
        return self.graph or self.ours

    @property
    def met(self) -> bool | None:
        """Is all reached that is wanted? None where nothing is, or where there is no time."""
        found = []
        if self.target is not None and self.ratio is not None:
            found.append(self.ratio >= self.target)
        if self.limit is not None and self.fastest is not None:
            found.append(self.fastest.least <= self.limit)
        return all(found) if found else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: seconds, and ratios of the shortest readings and of the medians."""
        times = {name: getattr(self, name) for name in ("ours", "theirs", "graph")}
        both = self.ours and self.theirs
        return {
            **{name: getattr(self, name) for name in ("op", "shape", "device", "peer", "note")},
            **{name: getattr(self, name) for name in ("target", "limit", "bound")},
            **{name: timing and timing.as_dict() for name, timing in times.items()},
            "ratio": self.ratio,
            "ratio_of_medians": self.theirs.median / self.ours.median if both and self.theirs and self.ours else None,
            "met": self.met,
        }

    def cells(self) -> list[str]:
        """What the table shows, in the order of ``HEADS``."""
        wanted = [] if self.target is None else [f">= {self.target:g}"]
        wanted += [] if self.limit is None else [f"<= {seconds(self.limit)}"]
        target = ", ".join(wanted) + ("" if self.met is None else " yes" if self.met else " NO")
        share = f"{self.bound / self.fastest.least:.0%}" if self.bound and self.fastest else ""
        ours = duration(self.ours) + (f" ({duration(self.graph)} graph)" if self.graph else "")
        ratio = f"{self.ratio:.3g}x" if self.ratio else ""
        bound = "" if self.bound is None else seconds(self.bound)
        theirs = self.note or duration(self.theirs)
        return [self.op, self.shape, ours, self.peer or "-", theirs, ratio, target, bound, share, self.device]


def seconds(value: float) -> str:
    """In the unit that suits it."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def duration(timing: Timing | None) -> str:
    """Shortest reading, and how far the readings spread."""
    return "" if timing is None else f"{seconds(timing.least)} +{timing.spread:.0%}"


def markdown(rows: Sequence[Row]) -> str:
    """The table, a line for each row."""
    table = [list(HEADS), ["---"] * len(HEADS), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in table)


def text(rows: Sequence[Row]) -> str:
    """The table for a terminal of 120 columns: what is worked on has a line of its own, and so has a long note."""
    chosen = [HEADS.index(name) for name in ("peer", "ours", "time", "ratio", "target", "bound", "of bound")]
    cells = [[row.cells()[i] for i in chosen] for row in rows]
    time = chosen.index(HEADS.index("time"))
    for row, line in zip(rows, cells, strict=True):
        line[time] = line[time] if row.note == "" else ""
    widths = [max(map(len, column)) for column in zip([HEADS[i] for i in chosen], *cells, strict=True)]

    def laid(line: Sequence[str]) -> str:
        return "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()

    lines, work = [laid([HEADS[i] for i in chosen])], None
    for row, line in zip(rows, cells, strict=True):
        if work != (row.op, row.shape):
            work = row.op, row.shape
            lines.append(f"{row.op}: {row.shape}, {row.device}")
        lines.append(laid(line))
        if row.note and len(f"{lines[-1]}  {row.note}") <= _COLUMNS:
            lines[-1] += f"  {row.note}"
        elif row.note:
            lines += textwrap.wrap(row.note, _COLUMNS, initial_indent=" " * 4, subsequent_indent=" " * 4)
    return "\n".join(lines)


EXPLANATION = (
    "Times are the shortest of the readings, + the distance between the quartiles over the median; ours and the peers "
    "are read in turn, in one process, on the same input, after their results were found equal. ratio: the peer's "
    "time over ours. target: the ratio that is wanted at least, or the time of ours at most, as a graph where there is "
    "one. bound: the bytes that must be read and written at least, at the copy rate measured in the same "
    "run; what lies in a cache can beat it. graph: the same call replayed as a CUDA graph, without the host's share; "
    "for that ours goes backward on CUDA by the operation itself, elsewhere by autograd."
)
