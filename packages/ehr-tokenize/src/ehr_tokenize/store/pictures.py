"""Pictures of a token store as inline SVG, and the page around them: one file that asks for nothing from anywhere."""

from __future__ import annotations

import html
from collections.abc import Sequence

WIDTH = 720
BAR = 18
INK, QUIET, ACCENT, WARN = "#1f2933", "#7b8794", "#2f6f9f", "#c2571a"
STYLE = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; color: {INK}; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2.2rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .15rem .9rem .15rem 0; text-align: right; font-weight: 400; }}
th {{ color: {QUIET}; border-bottom: 1px solid #d8dee4; }} td:first-child, th:first-child {{ text-align: left; }}
p.note {{ color: {QUIET}; }} svg {{ display: block; max-width: 100%; height: auto; }}
svg text {{ font: 12px system-ui, sans-serif; fill: {INK}; }} code {{ font-size: .85rem; }}
"""


def shortened(text: str, size: int = 48) -> str:
    """A text that fits into a row."""
    return text if len(text) <= size else text[: size - 1] + "…"


def escaped(text: object) -> str:
    """Text as HTML."""
    return html.escape(str(text))


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" '
        f'aria-label="{escaped(title)}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: object, anchor: str = "start", fill: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{fill}">{escaped(text)}</text>'


def bars(rows: Sequence[tuple[str, float, str]], title: str, color: str = ACCENT, whole: float = 0.0) -> str:
    """Horizontal bars: label, length and the text behind each. ``whole``: the longest possible; 0: the longest."""
    left, room = 330, WIDTH - 330 - 110
    most = whole or max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for index, (label, value, note) in enumerate(rows):
        y = index * BAR
        parts.append(_text(left - 8, y + 13, shortened(label), "end"))
        parts.append(
            f'<rect x="{left}" y="{y + 3}" width="{max(room * value / most, 0.5):.1f}" height="{BAR - 6}" '
            f'fill="{color}"><title>{escaped(label)}: {escaped(note)}</title></rect>'
        )
        parts.append(_text(left + room * value / most + 6, y + 13, note, fill=QUIET))
    return _svg(max(len(rows), 1) * BAR + 4, parts, title)


def histogram(edges: Sequence[int], counts: Sequence[int], title: str) -> str:
    """Columns over ranges ``edges[i]`` to ``edges[i + 1] - 1``."""
    height, base = 200, 160
    wide = (WIDTH - 40) / max(len(counts), 1)
    most = max(counts, default=0) or 1
    parts = [f'<line x1="20" x2="{WIDTH - 20}" y1="{base}" y2="{base}" stroke="{QUIET}"/>']
    for index, count in enumerate(counts):
        x, tall = 20 + index * wide, (base - 24) * count / most
        label = f"{edges[index]:,}" if edges[index + 1] - edges[index] == 1 else f"{edges[index]:,}+"
        parts.append(
            f'<rect x="{x + 1:.1f}" y="{base - tall:.1f}" width="{wide - 2:.1f}" height="{tall:.1f}" fill="{ACCENT}">'
            f"<title>{edges[index]:,} to {edges[index + 1] - 1:,} tokens: {count:,} subjects</title></rect>"
        )
        parts.append(_text(x + wide / 2, base + 16, label, "middle", QUIET))
        if count:
            parts.append(_text(x + wide / 2, base - tall - 5, f"{count:,}", "middle"))
    return _svg(height, parts, title)


def timeline(days: Sequence[float], kinds: Sequence[str], labels: Sequence[str], title: str) -> str:
    """A dot for each token: days since the first one to the right, a row for each kind."""
    rows = list(dict.fromkeys(kinds))
    left, room, last = 110, WIDTH - 140, max(days, default=0.0) or 1.0
    base = len(rows) * 26 + 10
    parts = []
    for index, kind in enumerate(rows):
        y = index * 26 + 18
        parts.append(_text(left - 12, y + 4, kind, "end", QUIET))
        parts.append(f'<line x1="{left}" x2="{left + room}" y1="{y}" y2="{y}" stroke="#e4e7eb"/>')
    for day, kind, label in zip(days, kinds, labels, strict=True):
        color = WARN if label == "[UNK]" else ACCENT
        parts.append(
            f'<circle cx="{left + room * day / last:.1f}" cy="{rows.index(kind) * 26 + 18}" r="4" fill="{color}" '
            f'fill-opacity="0.5"><title>{escaped(label)}, day {day:.1f}</title></circle>'
        )
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_text(left + room * share, base + 14, f"day {last * share:,.0f}", "middle", QUIET))
    return _svg(base + 24, parts, title)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells; numbers with separators of thousands."""

    def cell(value: object) -> str:
        return f"{value:,}" if isinstance(value, int) else escaped(value)

    head = "".join(f"<th>{escaped(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole page from headings and their HTML."""
    body = "".join(f"<h2>{escaped(heading)}</h2>{content}" for heading, content in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escaped(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escaped(title)}</h1>{body}</body></html>\n"
    )
