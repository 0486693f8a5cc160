"""Cells that the ETL would stumble over, or take at their word, and that can be taken in one way only.

- A word for nothing (``source.empty``) where the ETL expects a time, a number or a key is an empty cell.
- A key that a spreadsheet or pandas has written as ``20001.0`` is ``20001``: as text it would join nothing.
- An end before its start is an empty cell: no event, as in every other source.

Each is counted by column. A table that has none of them reaches the ETL as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from ehr_mimic_iv.spec import Needs

SUBJECT = "subject_id"
ENDS: dict[str, tuple[tuple[str, str], ...]] = {
    "admissions": (("admittime", "dischtime"), ("edregtime", "edouttime")),
    "pharmacy": (("starttime", "stoptime"),),
    "icustays": (("intime", "outtime"),),
    "procedureevents": (("starttime", "endtime"),),
    "inputevents": (("starttime", "endtime"),),
}
"""Starts and ends in the tables that have both, by name of the file."""
WHOLE = r"^(\d+)\.0+$"
NOTHING = "{}: words for nothing (taken as empty)"
FLOAT = "{}: whole numbers written with .0 (taken without)"
BEFORE = "{}: end before its start (no event)"


def mended(
    lines: pl.LazyFrame, table: str, columns: frozenset[str], needs: Needs, empty: Sequence[str]
) -> tuple[pl.LazyFrame, dict[str, pl.Expr]]:
    """A table as text with such cells mended, and an expression of the unmended table for the number of each kind."""
    ends = [pair for pair in ENDS.get(table, ()) if set(pair) <= columns]
    keys = (needs.keys | ({SUBJECT} if needs.subjects else set())) & columns
    cells = sorted((keys | set(needs.times) | needs.numbers | {name for pair in ends for name in pair}) & columns)
    nothing = {name: _is_nothing(name, empty) for name in cells}
    whole = {name: pl.col(name).str.contains(WHOLE).fill_null(False) for name in sorted(keys)}
    better: dict[str, pl.Expr] = {name: pl.when(~nothing[name]).then(name) for name in cells}
    better |= {name: better[name].str.replace(WHOLE, "$1") for name in whole}
    before = {end: _is_before(better[start], better[end]) for start, end in ends}
    counts = {NOTHING.format(name): bad.sum() for name, bad in nothing.items()}
    counts |= {FLOAT.format(name): bad.sum() for name, bad in whole.items()}
    counts |= {BEFORE.format(name): bad.sum() for name, bad in before.items()}
    better |= {name: pl.when(~bad).then(better[name]) for name, bad in before.items()}
    return lines.with_columns(cell.alias(name) for name, cell in better.items()), counts


def _is_nothing(name: str, empty: Sequence[str]) -> pl.Expr:
    cell = pl.col(name).str.strip_chars().str.to_lowercase()
    return cell.is_in([*empty, ""]).fill_null(False)


def _is_before(start: pl.Expr, end: pl.Expr) -> pl.Expr:
    """An end at midnight sharp is known by its day, and not before anything on that day."""
    begun, ended = (
        pl.coalesce(
            text.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False),
            text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
        )
        for text in (start, end)
    )
    day = begun.dt.truncate("1d")
    midnight = ended == ended.dt.truncate("1d")
    return ((ended < begun) & ~(midnight & (ended >= day))).fill_null(False)
