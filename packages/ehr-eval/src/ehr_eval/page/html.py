"""Pieces of a page: tables, cells and lists. Text is escaped here; cells and headings of rows are HTML already."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

DASH = '<td class="number">&ndash;</td>'


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = ()) -> str:
    """A table; the first cell of a row is its header."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = []
    for index, (first, *cells) in enumerate(rows):
        kind = f' class="{classes[index]}"' if classes and classes[index] else ""
        tds = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr{kind}><th scope="row">{first}</th>{tds}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def number(text: str) -> str:
    """A cell with a number that does not break."""
    return f'<td class="number">{text}</td>'


def score(row: Mapping[str, Any] | None, best: bool = False, signed: bool = False, percent: bool = False) -> str:
    """A cell with a value and its interval."""
    if row is None or row["value"] is None:
        return DASH

    def text(value: float) -> str:
        return f"{value:.0%}" if percent else f"{value:+.3f}" if signed else f"{value:.3f}"

    inside = "" if row["low"] is None else f'<span class="interval">[{text(row["low"])}, {text(row["high"])}]</span>'
    return f'<td class="number{" best" if best else ""}">{text(row["value"])}{inside}</td>'


def bullets(texts: Iterable[str]) -> str:
    """A list of sentences, each once."""
    return f"<ul class=notes>{''.join(f'<li>{escape(text)}</li>' for text in dict.fromkeys(texts))}</ul>"


def row(figures: Iterable[str]) -> str:
    """Figures side by side."""
    return f'<div class="row">{"".join(figures)}</div>'


def details(summary: str, inside: str) -> str:
    """Something to open."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def code(text: str) -> str:
    """Text as it would be typed."""
    return f"<code>{escape(text)}</code>"
