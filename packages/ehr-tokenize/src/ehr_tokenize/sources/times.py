"""Times as other systems write them: text to microseconds, zones, and what a date and a time of one row say together.

A record has one clock, and a date is a day on it. So a time with a zone is read off the clock on the wall that was
written, or, with a setting, the clock of one zone; naive times are on that clock already.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import polars as pl
from ehr_core.errors import ConfigError

FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d", "%Y-%m-%d %H:%M")
COMPACT = r"^(\d{4})(\d{2})(\d{2})( |$)"
ZONE = r":\d{2}(?:\.\d+)? ?(Z|U[T ]C|GM[T ]?|[+-]\d{2}(?::?\d{2})?)$"
"""At the end of a time of day; the ``T`` of UTC may have been taken for that before a time."""
MIDNIGHT = r" 24:00(?::00(?:\.0+)?)?$"
"""The end of a day, as ISO 8601 has it: the next day's midnight."""
MOST_OFFSET = 14 * 60
"""Minutes that the clock of a zone is away from UTC at most."""
FIRST, LAST = pl.datetime(1, 1, 1), pl.datetime(9999, 12, 31, 23, 59, 59, 999999)
"""What the libraries of all who read a dataset can hold."""
DAY = pl.duration(days=1)
SHIFT = pl.duration(hours=14)


def check_zone(name: str) -> None:
    """Raise ConfigError for a zone that does not exist; empty is allowed."""
    try:
        pl.Series([0], dtype=pl.Datetime("us")).dt.replace_time_zone(name or None)
    except pl.exceptions.PolarsError:
        raise ConfigError(
            f"source.time_zone is {name!r}; expected a zone such as America/New_York, or nothing"
        ) from None


def parse_times(text: pl.Series, zone: str = "") -> tuple[pl.Series, Counter[int]]:
    """Microseconds of ISO dates and times, null for anything else; and how many were written with which offset.

    With ``T`` or a blank between date and time, with or without seconds, 24:00:00, or a date as 20200131. A zone's
    offset is in minutes.
    """
    plain = text.str.replace("T", " ", literal=True)
    time = _by_formats(plain)
    at = (plain.is_not_null() & time.is_null()).arg_true()
    offsets: Counter[int] = Counter()
    if len(at):
        found, offsets = _odd_forms(plain.gather(at), zone)
        time = time.scatter(at, found)
    return holdable(time), offsets


def _by_formats(text: pl.Series) -> pl.Series:
    time = pl.Series(text.name, [None] * len(text), pl.Datetime("us"))
    for form in FORMATS:
        left = text.set(time.is_not_null(), None)
        if left.null_count() == len(left):
            break
        time = time.zip_with(time.is_not_null(), left.str.to_datetime(form, time_unit="us", strict=False, exact=True))
    return time


def holdable(time: pl.Series) -> pl.Series:
    """Null for what is not in the years 1 to 9999."""
    return (
        time.to_frame("t").select(pl.when(pl.col("t").is_between(FIRST, LAST)).then("t")).to_series().alias(time.name)
    )


def _odd_forms(text: pl.Series, zone: str) -> tuple[pl.Series, Counter[int]]:
    """Times with a zone, dates without hyphens, and days that end with 24:00; offsets as `parse_times` has them."""
    written = text.str.extract(ZONE)
    offset_of = {name: _minutes(name) for name in written.unique().drop_nulls()}
    offset = written.replace_strict(offset_of, default=None, return_dtype=pl.Int64)
    parts = pl.DataFrame([text.alias("text"), written.fill_null("").alias("zone")])
    plain = parts.select(pl.col("text").str.strip_suffix(pl.col("zone")).str.strip_chars_end()).to_series()
    if plain.str.contains(COMPACT).any():
        plain = plain.str.replace(COMPACT, "$1-$2-$3$4")
    late = plain.str.contains(MIDNIGHT).fill_null(False)
    time = _by_formats(plain.str.replace(MIDNIGHT, "") if late.any() else plain)
    time = time.dt.offset_by("1d").zip_with(late, time) if late.any() else time
    time = time.set(written.is_not_null() & offset.is_null(), None)
    if zone:
        shifted = pl.DataFrame([time.alias("time"), offset.alias("offset")]).select(
            (pl.col("time") - pl.duration(minutes="offset")).dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
        )
        time = shifted.to_series().dt.replace_time_zone(None).zip_with(offset.is_not_null(), time)
    return time, Counter(dict(offset.filter(time.is_not_null()).drop_nulls().value_counts().rows()))


def _minutes(name: str) -> int | None:
    """Minutes of ``Z``, ``-05:00``, ``-0530`` or ``+01``; None for what no clock has."""
    if name[0] not in "+-":
        return 0
    digits = name[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    whole = hours * 60 + minutes
    return (-whole if name[0] == "-" else whole) if minutes < 60 and whole <= MOST_OFFSET else None


def on_the_wall(time: pl.Series, zone: str = "") -> tuple[pl.Series, Counter[int]]:
    """As `parse_times`, for a column of times that has a zone."""
    offset = (time.dt.base_utc_offset() + time.dt.dst_offset()).dt.total_minutes()
    counts = offset.drop_nulls().value_counts()
    if zone:
        time = time.dt.convert_time_zone(zone)
    return time.dt.replace_time_zone(None), Counter(dict(counts.rows()))


def offset_name(minutes: int) -> str:
    """As ``-05:00``."""
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


def placeholder(time: pl.Expr) -> pl.Expr:
    """Whether a time stands for none: 1900-01-01, 1970-01-01, and years in which nobody has records."""
    day = time.dt.date()
    known = (day == pl.date(1900, 1, 1)) | (day == pl.date(1970, 1, 1))
    return known | ~time.dt.year().is_between(1850, 2300)


def is_placeholder(time: datetime) -> bool:
    """As `placeholder`, of one time."""
    return (time.year, time.month, time.day) in ((1900, 1, 1), (1970, 1, 1)) or not 1850 <= time.year <= 2300


def day_and_time(date: pl.Series, time: pl.Series, treated: Counter[str]) -> pl.DataFrame:
    """``time`` and ``day`` of rows that have a date and a time: they should say the same, and often do not.

    - A time on the date's day is the time.
    - Up to a zone away (14 hours) it was written on another clock: it stays, and ``day`` is the date, which decides
      what happened on the same day.
    - Farther away one of them is wrong: the date is taken, at midnight, unless only the date is a placeholder.

    Whatever was taken is counted in ``treated``. A date that has a time of day is that time where no other is given.
    """
    both = pl.DataFrame([date.alias("date"), time.alias("time")])
    day, clock = pl.col("date").dt.truncate("1d"), pl.col("time")
    same = (clock >= day) & (clock < day + DAY)
    near = (clock >= day - SHIFT) & (clock < day + DAY + SHIFT)
    wrong = both.select(
        shifted=near & ~same, undated=~near & placeholder(day) & ~placeholder(clock), contradicted=~near
    ).with_columns(pl.col("contradicted") & ~pl.col("undated"))
    for name, reason in CONTRADICTIONS.items():
        if number := int(wrong[name].sum()):
            treated[reason] += number
    found = both.hstack(wrong).with_columns(
        time=pl.when(pl.col("contradicted").fill_null(False)).then(day).otherwise(pl.coalesce("time", "date")),
        day=pl.when(pl.col("shifted").fill_null(False)).then(day.dt.date()),
    )
    return found.select("time", "day")


CONTRADICTIONS = {
    "shifted": "date and time on different days, up to a time zone apart (both kept; see source.time_zone)",
    "undated": "date that is a placeholder beside another time (the time taken)",
    "contradicted": "date and time that contradict (the date taken)",
}


def ends_before(start: pl.DataFrame, end: pl.DataFrame) -> pl.Series:
    """Whether an end is before its start, both as `day_and_time` gives them; null where one is missing.

    An end or start at midnight sharp is known by its day, and not before anything on that day.
    """
    both = pl.DataFrame([start["time"], start["day"], end["time"].alias("end"), end["day"].alias("end_day")])
    by_day = (pl.col("end") == pl.col("end").dt.truncate("1d")) | pl.col("end_day").is_not_null()
    day = pl.coalesce("day", pl.col("time").dt.date())
    end_day = pl.coalesce("end_day", pl.col("end").dt.date())
    before = pl.when(by_day | pl.col("day").is_not_null()).then(end_day < day).otherwise(pl.col("end") < pl.col("time"))
    return both.select(before).to_series()
