"""Cells of tables as text, ids, numbers and times, whatever an export has made of them.

What cannot be one is an error that names file, row (counted from 1, without the header) and column, never the cell.
What can be taken in one way only is taken so, and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
from ehr_core.errors import DataError

from ehr_tokenize.sources.settings import TablesConfig
from ehr_tokenize.sources.times import check_zone, day_and_time, holdable, offset_name, on_the_wall, parse_times

EXACT = 2**53
"""Whole numbers beyond it are not all held by a float."""
LARGEST = 3.4028234663852886e38
"""What a numeric value of MEDS, a float32, holds."""
SUMMER = 60
"""Minutes by which the offsets of one zone differ."""
REMEDY = "; mend it, or name what stands for nothing in source.empty"


@dataclass
class Reading:
    """How the cells of a table are read, and what happened. One for each pass over a table."""

    empty: frozenset[str] = frozenset()
    """Words for nothing, in lower case."""
    zone: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that became no event, by reason."""
    treated: Counter[str] = field(default_factory=Counter)
    """Cells that were changed, by reason."""
    offsets: Counter[int] = field(default_factory=Counter)
    """Times by the offset that they were written with, in minutes."""


def reading_of(settings: TablesConfig) -> Reading:
    """A new one, as the settings of a source say. Raises ConfigError for a zone that does not exist."""
    check_zone(settings.time_zone)
    return Reading(frozenset(word.strip().lower() for word in settings.empty), settings.time_zone)


def check_clocks(readings: Mapping[str, Reading]) -> None:
    """Raise DataError when times were written on clocks that no single zone has: dates have none, and a record needs
    one. With a zone in the settings all of them are read off its clock."""
    owner = {offset: name for name, reading in readings.items() if not reading.zone for offset in reading.offsets}
    if owner and max(owner) - min(owner) > SUMMER:
        ends = " to ".join(f"{offset_name(offset)} ({owner[offset]})" for offset in (min(owner), max(owner)))
        raise DataError(
            f"times are written in zones from {ends}, and dates have none; "
            "say on which clock these records are with source.time_zone=America/New_York, or whatever it is"
        )


@dataclass(frozen=True)
class Batch:
    """Some rows of a file. Columns that the file does not have are null throughout."""

    path: Path
    first: int
    """Number of the first row."""
    frame: pl.DataFrame
    reading: Reading = field(default_factory=Reading)
    _known: dict[tuple[str, str], pl.Series] = field(default_factory=dict)
    """What was converted already: nothing is counted twice."""

    def __len__(self) -> int:
        return len(self.frame)

    def text(self, name: str) -> pl.Series:
        """Text without blanks around it; null where there is none. A whole number is written without ``.0``."""
        return self._once("text", name, self._text)

    def identifier(self, name: str) -> pl.Series:
        """As `text`, of ids: words for nothing are null."""
        return self._once("identifier", name, lambda n: self._without_empty(n, self.text(n)))

    def integer(self, name: str) -> pl.Series:
        """Whole numbers, also where they were exported as ``7.0``. Raises DataError for what is none, or not exact."""
        return self._once("integer", name, self._integer)

    def number(self, name: str, strict: bool = True) -> pl.Series:
        """Float64; null where there is none. With ``strict``, DataError for text that is none.

        What is infinite or too large for a float32 is missing, and counted.
        """
        return self._once(f"number {strict}", name, lambda n: self._number(n, strict))

    def time(self, name: str) -> pl.Series:
        """Microseconds on the record's clock; see `times`. A date is its midnight. DataError for what is neither."""
        return self._once("time", name, self._time)

    def quietly(self) -> Batch:
        """The same rows, of which nothing is counted: another step counts them."""
        return replace(self, reading=Reading(self.reading.empty, self.reading.zone), _known={})

    def when(self, stem: str) -> pl.DataFrame:
        """``time`` and ``day`` of the columns ``STEM_date`` and ``STEM_datetime``: see `day_and_time`."""
        return self._once("when", stem, self._when).struct.unnest()

    def _count(self, reasons: dict[str, int]) -> None:
        self.reading.treated.update({reason: number for reason, number in reasons.items() if number})

    def _once(self, kind: str, name: str, function: Callable[[str], pl.Series]) -> pl.Series:
        key = kind, name
        if key not in self._known:
            self._known[key] = function(name)
        return self._known[key]

    def _column(self, name: str) -> pl.Series:
        if name not in self.frame.columns:
            return pl.Series(name, [None] * len(self), pl.Null)
        column = self.frame[name]
        return column.cast(pl.String) if column.dtype in (pl.Categorical, pl.Enum) else column

    def _refuse(self, name: str, bad: pl.Series, expected: str) -> None:
        if bad.any():
            row = self.first + int(bad.fill_null(False).arg_max() or 0)
            raise DataError(f"{self.path}, row {row}: column {name!r} is no {expected}{REMEDY}")

    def _mistyped(self, name: str, column: pl.Series, expected: str) -> DataError:
        return DataError(f"{self.path}: column {name!r} is {column.dtype}, expected {expected}")

    def _text(self, name: str) -> pl.Series:
        column = self._column(name)
        if column.dtype == pl.String:
            column = column.str.strip_chars()
            return column.set(column == "", None)
        if column.dtype.is_float():
            exact = 2**24 if column.dtype == pl.Float32 else EXACT
            column = column.cast(pl.Float64).fill_nan(None)
            whole = (column == column.round()) & (column.abs() < exact)
            return column.cast(pl.String).zip_with(
                ~whole.fill_null(False), column.cast(pl.Int64, strict=False).cast(pl.String)
            )
        if column.dtype.is_nested() or column.dtype == pl.Binary:
            raise self._mistyped(name, column, "text")
        return column.cast(pl.String)

    def _without_empty(self, name: str, text: pl.Series) -> pl.Series:
        empty = text.str.to_lowercase().is_in(list(self.reading.empty)).fill_null(False)
        self._count({f"{name}: words for nothing (taken as empty)": int(empty.sum())})
        return text.set(empty, None) if empty.any() else text

    def _integer(self, name: str) -> pl.Series:
        column = self._column(name)
        kind = column.dtype
        if kind == pl.String:
            given = self.identifier(name)
            number = given.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
        elif kind.is_float():
            given = column.cast(pl.Float64).fill_nan(None)
            exact = (given == given.round()) & (given.abs() < (2**24 if kind == pl.Float32 else EXACT))
            number = given.set(~exact.fill_null(False), None).cast(pl.Int64)
        elif kind.is_integer() or kind.is_decimal() or kind == pl.Null:
            given = column
            number = column.cast(pl.Int64, strict=False)
            if kind.is_decimal():
                number = number.set(column != column.round(0), None)
        else:
            raise self._mistyped(name, column, "whole numbers")
        self._refuse(name, number.is_null() & given.is_not_null(), "whole number that is exact")
        return number

    def _number(self, name: str, strict: bool) -> pl.Series:
        column = self._column(name)
        if column.dtype == pl.String:
            text = self.identifier(name)
            number = text.cast(pl.Float64, strict=False)
            if strict:
                self._refuse(name, number.is_null() & text.is_not_null(), "number")
        elif column.dtype.is_numeric() or column.dtype == pl.Null:
            number = column.cast(pl.Float64)
        else:
            raise self._mistyped(name, column, "numbers")
        number = number.fill_nan(None)
        large = (number.abs() > LARGEST).fill_null(False)
        self._count({f"{name}: infinite, or too large for a float32 (taken as missing)": int(large.sum())})
        return number.set(large, None)

    def _when(self, stem: str) -> pl.Series:
        seen: Counter[str] = Counter()
        found = day_and_time(self.time(f"{stem}_date"), self.time(f"{stem}_datetime"), seen)
        self._count({f"{stem}: {reason}": number for reason, number in seen.items()})
        return found.to_struct(stem)

    def _time(self, name: str) -> pl.Series:
        column = self._column(name)
        kind = column.dtype
        offsets: Counter[int] = Counter()
        if kind == pl.String:
            given = self.identifier(name)
            time, offsets = parse_times(given, self.reading.zone)
        elif kind == pl.Date or isinstance(kind, pl.Datetime):
            given = column.set(~_within(column), None)
            self._refuse(name, given.is_null() & column.is_not_null(), "date or time of the years 1 to 9999")
            if isinstance(kind, pl.Datetime) and kind.time_zone:
                given, offsets = on_the_wall(given, self.reading.zone)
            time = holdable(given.cast(pl.Datetime("us")))
        elif kind == pl.Null:
            return column.cast(pl.Datetime("us"))
        else:
            raise self._mistyped(name, column, "dates or times")
        self._refuse(name, time.is_null() & given.is_not_null(), "date or time such as 2020-01-31 12:00:00")
        self.reading.offsets.update(offsets)
        return time


DAYS = (-719_162, 2_932_896)
"""0001-01-01 and 9999-12-31 in days since 1970."""
PER_DAY = {"ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}


def _within(column: pl.Series) -> pl.Series:
    """Whether dates or times are in the years 1 to 9999, told from the numbers that they are: others can be shown by
    no library, and some wrap around."""
    per_day = PER_DAY[column.dtype.time_unit] if isinstance(column.dtype, pl.Datetime) else 1  # type: ignore[index]
    days = column.to_physical().cast(pl.Int64) // per_day
    return days.is_between(DAYS[0], DAYS[1]).fill_null(True)
