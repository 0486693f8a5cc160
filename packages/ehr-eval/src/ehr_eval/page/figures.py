"""Line figures as inline SVG that follows the page's light or dark colours. No library, no script, no request."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 380, 310
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 44
COLOURS = 8
"""Classes ``c0`` ... that the style sheet colours; further series repeat them with other dashes."""
NEUTRAL = -1
"""The colour of what is no predictor, such as the ceiling."""


@dataclass(frozen=True)
class Series:
    """One line. ``colour`` is its place among the predictors, so that one predictor looks the same everywhere."""

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    colour: int
    points: bool = False
    hints: Sequence[str] = ()
    """Text shown for each point."""


def figure(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> str:
    """A figure with axes, lines and a legend. Points that are not finite break the line."""
    x0, x1 = x_range or _range([v for s in series for v in s.x])
    y0, y1 = y_range or _range([v for s in series for v in s.y])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        up = (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += _axes(place, (x0, x1), (y0, y1), x_label, y_label)
    if diagonal:
        (ax, ay), (bx, by) = place(max(x0, y0), max(x0, y0)), place(min(x1, y1), min(x1, y1))
        parts.append(f'<line class="chance" x1="{ax:.1f}" y1="{ay:.1f}" x2="{bx:.1f}" y2="{by:.1f}"/>')
    for one in series:
        parts += _line(one, place)
    parts.append("</svg>")
    return f"<figure><figcaption>{escape(title)}</figcaption>{''.join(parts)}{_legend(series)}</figure>"


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between two bounds."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    if value and (abs(value) >= 100_000 or abs(value) < 0.001):
        return f"{value:.0e}"
    return f"{value:,.10g}" if abs(value) >= 1000 else f"{value:.4g}"


def _axes(place, x_range, y_range, x_label: str, y_label: str) -> list[str]:  # type: ignore[no-untyped-def]
    parts = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in ticks(*x_range):
        x, _ = place(value, y_range[0])
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{_number(value)}</text>')
    for value in ticks(*y_range):
        _, y = place(x_range[0], value)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_number(value)}</text>')
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(f'<text class="axis" x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="rotate(-90 13 {middle_y})"'
    parts.append(f'<text class="axis" x="13" y="{middle_y}" {turned} text-anchor="middle">{escape(y_label)}</text>')
    return parts


def _class(colour: int) -> str:
    if colour == NEUTRAL:
        return "neutral d1"
    return f"c{colour % COLOURS} d{colour // COLOURS % 3}"


def _line(one: Series, place) -> list[str]:  # type: ignore[no-untyped-def]
    runs: list[list[tuple[float, float]]] = [[]]
    parts = []
    for index, (x, y) in enumerate(zip(one.x, one.y, strict=True)):
        if not (math.isfinite(x) and math.isfinite(y)):
            runs.append([])
            continue
        runs[-1].append(place(float(x), float(y)))
        if one.points:
            hint = f"<title>{escape(one.hints[index])}</title>" if one.hints else ""
            at = f'cx="{runs[-1][-1][0]:.1f}" cy="{runs[-1][-1][1]:.1f}"'
            parts.append(f'<circle class="{_class(one.colour)}" {at} r="3.2">{hint}</circle>')
    for run in runs:
        if len(run) > 1:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
            parts.insert(0, f'<polyline class="{_class(one.colour)}" points="{path}"/>')
    return parts


def _legend(series: Sequence[Series]) -> str:
    keys = (
        '<li><svg class="key" viewBox="0 0 22 8" aria-hidden="true">'
        f'<polyline class="{_class(s.colour)}" points="0,4 22,4"/></svg>{escape(s.name)}</li>'
        for s in series
    )
    return f"<ul class=legend>{''.join(keys)}</ul>"
