"""The times of a subject's events, settled among themselves: what is known by date, and visits that are told twice.

- Many records have a date where their visit has times, and a midnight would put them before it. So an event at midnight
  sharp moves to the start of its visit, if that is on the same day.
- The end of a visit at midnight sharp moves to the last event of the visit, or the death, on its day: what is on record
  for the last day of a stay happened in it.
- A death at midnight sharp moves to the last event of its day.
- A visit has one start, the first that is no placeholder, and one end, the last such: rows that repeat a visit, or
  correct it, do not make a stay of their own.
- Whoever is in hospital is there once: stays within or across one another are one, from the first admission to the last
  discharge, and the others are visits in it. Otherwise each would be a readmission. A stay that begins as another ends
  is a transfer, and stays what it is.
"""

from __future__ import annotations

from collections import Counter

import polars as pl

from ehr_tokenize.sources.times import placeholder

TO_START = "time at midnight sharp (moved to the start of the visit)"
TO_LAST = "end of a visit at midnight sharp (moved to the last event of the visit on its day)"
TO_DEATH = "death at midnight sharp (moved to the last event of its day)"
REPEATED = "start or end of a visit that has another (left out)"
INNER = "start or end of a stay within or across another (that of a visit)"
VISIT = ("subject_id", "visit")
STAY_CODES = {"HOSPITAL_ADMISSION": "VISIT_START", "HOSPITAL_DISCHARGE": "VISIT_END"}
"""First part of the codes of stays in hospital, and of other visits."""
LONGEST = pl.duration(days=366)
"""A longer stay, with others within it, has an end that is not believed."""


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
    events, counts[INNER] = _one_stay_at_a_time(events)
    return events, counts


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


def as_visit(code: pl.Expr) -> pl.Expr:
    """Codes of stays as those of visits: ``HOSPITAL_ADMISSION//VISIT//IP`` as ``VISIT_START//VISIT//IP``."""
    for stay, visit in STAY_CODES.items():
        code = pl.when(code.str.starts_with(stay)).then(pl.lit(visit) + code.str.strip_prefix(stay)).otherwise(code)
    return code


def _one_stay_at_a_time(events: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Events without stays inside or across others, and how many starts and ends became those of visits."""
    time, opens = pl.col("time"), pl.col("code").str.starts_with("HOSPITAL_ADMISSION")
    rows = events.with_row_index("row").filter(
        pl.col("role").is_in(["starts", "ends"])
        & pl.col("visit").is_not_null()
        & (opens | pl.col("code").str.starts_with("HOSPITAL_DISCHARGE"))
    )
    end = pl.when(~opens & ~placeholder(time)).then(time).max()
    stays = rows.group_by(VISIT).agg(time.filter(opens).min().alias("start"), end.alias("end"))
    believed = (pl.col("end") >= pl.col("start")) & (pl.col("end") - pl.col("start") <= LONGEST)
    stays = stays.drop_nulls("start").with_columns(pl.when(believed).then("end").otherwise("start").alias("end"))
    stays = stays.sort("subject_id", "start", "end", "visit", descending=[False, False, True, False])
    until = pl.col("end").cum_max().shift(1).over("subject_id")
    stays = stays.with_columns((pl.col("start") < until).fill_null(False).alias("inner"))
    whole = ["subject_id", "whole"]
    stays = stays.with_columns((~pl.col("inner")).cum_sum().over("subject_id").alias("whole"))
    last = (pl.col("end") == pl.col("end").max().over(whole)).alias("last")
    stays = stays.with_columns(last).with_columns(pl.col("last") & (pl.col("last").cum_sum().over(whole) == 1))
    rows = rows.join(stays.select(*VISIT, "inner", "last"), on=VISIT)
    inner = rows.filter((opens & pl.col("inner")) | (~opens & ~pl.col("last")))["row"]
    if inner.is_empty():
        return events, 0
    mine = pl.int_range(pl.len()).cast(pl.UInt32).is_in(inner.implode())
    return events.with_columns(pl.when(mine).then(as_visit(pl.col("code"))).otherwise("code").alias("code")), len(inner)
