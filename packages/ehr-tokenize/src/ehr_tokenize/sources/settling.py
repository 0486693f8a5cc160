"""The times of a subject's events, settled among themselves: what is known by date, and visits that are told twice.

- Many records have a date where their visit has times, and a midnight would put them before it. So an event at midnight
  sharp moves to the start of its visit, if that is on the same day.
- The end of a visit at midnight sharp moves to the last event of the visit, or the death, on its day: what is on record
  for the last day of a stay happened in it.
- A death at midnight sharp moves to the last event of its day.
- A visit has one start, the first that is no placeholder, and one end, the last such: rows that repeat a visit, or
  correct it, do not make a stay of their own.
"""

from __future__ import annotations

from collections import Counter

import polars as pl
from ehr_core.constants import MEDS_DEATH

from ehr_tokenize.sources.times import placeholder

TO_START = "time at midnight sharp (moved to the start of the visit)"
TO_LAST = "end of a visit at midnight sharp (moved to the last event of the visit on its day)"
TO_DEATH = "death at midnight sharp (moved to the last event of its day)"
REPEATED = "start or end of a visit that has another (left out)"
VISIT = ("subject_id", "visit")


def settled(events: pl.DataFrame) -> tuple[pl.DataFrame, Counter[str]]:
    """Events (columns of `to_meds.EVENTS`, and ``role``) with better times, and how often which rule did something."""
    single = _single(events)
    counts = Counter({REPEATED: len(events) - len(single)})
    time = pl.col("time")
    # A time that another clock wrote is none of a date.
    dated = (time == time.dt.truncate("1d")) & (pl.col("day").is_null() | (pl.col("day") == time.dt.date()))
    events = single.with_columns(dated.fill_null(False).alias("dated"), pl.coalesce("day", time.dt.date()).alias("day"))

    ends = (pl.col("role") == "ends") & pl.col("visit").is_not_null()
    starts = events.filter((pl.col("role") == "starts") & pl.col("visit").is_not_null())
    events, counts[TO_START] = _moved(events, starts, pl.col("dated") & ~ends, (*VISIT, "day"), time.min())
    closing = events.filter(ends & pl.col("dated")).select(*VISIT, "day").unique()
    dead = closing.join(
        events.filter((pl.col("role") == "deaths") & ~pl.col("dated")).drop("visit"), on=["subject_id", "day"]
    )
    inside = events.join(closing, on=[*VISIT, "day"], how="semi")
    known = pl.concat([part.select(*VISIT, "day", "time") for part in (inside, dead)])
    events, counts[TO_LAST] = _moved(events, known, ends & pl.col("dated"), (*VISIT, "day"), time.max())

    events, counts[TO_DEATH] = _with_deaths(events, (pl.col("role") == "deaths") & pl.col("dated"))
    return events, counts


def deaths_settled(events: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """MEDS events, ordered, with deaths at midnight sharp moved to the last event of their day, and how many were."""
    time = pl.col("time")
    dying = (pl.col("code") == MEDS_DEATH) & (time == time.dt.truncate("1d"))
    found, number = _with_deaths(events.with_columns(time.dt.date().alias("day")), dying)
    return found.drop("day").sort("subject_id", "time", nulls_last=False, maintain_order=True), number


def _with_deaths(events: pl.DataFrame, dying: pl.Expr) -> tuple[pl.DataFrame, int]:
    days = events.filter(dying).select("subject_id", "day").unique()
    known = events.join(days, on=["subject_id", "day"], how="semi")
    return _moved(events, known, dying, ("subject_id", "day"), pl.col("time").max())


def _moved(
    events: pl.DataFrame, known: pl.DataFrame, which: pl.Expr, keys: tuple[str, ...], best: pl.Expr
) -> tuple[pl.DataFrame, int]:
    """Events of which some have the best time that is known of their keys, and how many that changed."""
    found = known.group_by(keys).agg(best.alias("best"))
    events = events.join(found, on=keys, how="left", maintain_order="left")
    change = which & pl.col("best").is_not_null() & (pl.col("best") != pl.col("time"))
    number = int(events.select(change.fill_null(False).sum()).item())
    return events.with_columns(pl.when(change).then("best").otherwise("time").alias("time")).drop("best"), number


def _single(events: pl.DataFrame) -> pl.DataFrame:
    """The events, each visit with one start and one end."""
    role, time = pl.col("role"), pl.col("time")
    visits = events.with_row_index("row").filter(role.is_in(["starts", "ends"]) & pl.col("visit").is_not_null())
    if visits.is_empty():
        return events
    keys = (*VISIT, "role", "code")
    good = pl.when(~placeholder(time)).then(time)
    first, last = (
        pl.coalesce(best.over(keys), rest.over(keys))
        for best, rest in ((good.min(), time.min()), (good.max(), time.max()))
    )
    chosen = visits.filter(time == pl.when(role == "starts").then(first).otherwise(last)).unique(keys, keep="first")
    lost = visits.join(chosen, on="row", how="anti")
    return events.with_row_index("row").join(lost, on="row", how="anti", maintain_order="left").drop("row")
