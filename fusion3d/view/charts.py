"""Small charts as SVG text, coloured by the style sheet of the page that they stand in."""

from __future__ import annotations

import math
from collections.abc import Sequence

_WIDTH, _HEIGHT = 360, 190  # [user units] of the whole drawing
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 8, 24  # margins
_POINTS = 300  # more than one a unit are not seen


def line_chart(steps: Sequence[float], values: Sequence[float], name: str) -> str:
    """An SVG of a noisy curve: every value faintly, and its running mean.

    Args:
        steps: ascending.
        values: as many; those that are not finite are left out.
        name: said to those who do not see the drawing; must be escaped already.
    """
    pairs = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v) and math.isfinite(s)]
    if not pairs:
        return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}: no values"></svg>'
    x = [s for s, _ in pairs]
    y = [v for _, v in pairs]
    smooth = running_mean(y, max(1, len(y) // 20))
    ticks = round_ticks(min(0.0, *y) if len(y) > 1 else min(0.0, y[0]), _quantile(y, 0.99))
    low, high = ticks[0], ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - x[0]) / ((x[-1] - x[0]) or 1)
        up = (min(max(value, low), high) - low) / (high - low)
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}, {smooth[-1]:.3g} at the end">']
    for tick in ticks:
        _, at = place(x[0], tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{x[0]:g}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">step {x[-1]:g}</text>')
    stride = max(1, math.ceil(len(x) / _POINTS))
    for curve, kind in ((y, "raw"), (smooth, "line")):
        points = " ".join("{:.1f},{:.1f}".format(*place(x[i], curve[i])) for i in _thin(len(x), stride))
        parts.append(f'<polyline class="{kind}" points="{points}"/>')
    return "".join([*parts, "</svg>"])


def reliability_chart(
    confidence: Sequence[float | None], precision: Sequence[float | None], count: Sequence[int], name: str
) -> str:
    """An SVG of a reliability diagram: a bar to the share of right boxes in each bin, a dot at their mean score.

    Args:
        confidence: mean score of each bin; None or NaN where it is empty.
        precision: share of right boxes, as many.
        count: boxes, as many; the bar of a bin with fewer is fainter.
        name: said to those who do not see the drawing; must be escaped already.
    """
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    bottom = _HEIGHT - _BOTTOM
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}, reliability diagram">']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        at = bottom - tick * high
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    each, most = wide / len(count), max(count)
    for i, (said, right) in enumerate(zip(confidence, precision, strict=True)):
        if said is None or right is None or not (math.isfinite(said) and math.isfinite(right)):
            continue
        left, up = _LEFT + i * each, right * high
        faint = 0.25 + 0.75 * math.sqrt(count[i] / most)
        parts.append(
            f'<rect class="column" x="{left + 1:.1f}" y="{bottom - up:.1f}" width="{each - 2:.1f}" height="{up:.1f}" '
            f'opacity="{faint:.2f}"><title>{count[i]} boxes of score {said:.3f}: {right:.3f} right</title></rect>'
        )
        parts.append(f'<circle class="dot" cx="{_LEFT + said * wide:.1f}" cy="{bottom - up:.1f}" r="2.5"/>')
    parts.append(f'<line class="line" x1="{_LEFT}" y1="{bottom}" x2="{_WIDTH - _RIGHT}" y2="{_TOP}"/>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">score 0</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">1</text>')
    return "".join([*parts, "</svg>"])


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value with up to ``reach`` neighbours on either side."""
    total = [0.0]
    for value in values:
        total.append(total[-1] + value)
    spans = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(total[end] - total[start]) / (end - start) for start, end in spans]


def round_ticks(low: float, high: float) -> list[float]:
    """Three to seven evenly spaced round numbers that enclose [low, high]."""
    span = high - low if high > low else max(abs(high), 1e-6)
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if span / (m * power) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(max(high, low + span) / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _thin(count: int, stride: int) -> list[int]:
    """Every ``stride``-th index, and the last."""
    return sorted({*range(0, count, stride), count - 1})


def _quantile(values: Sequence[float], fraction: float) -> float:
    return sorted(values)[min(len(values) - 1, round(fraction * (len(values) - 1)))]
