"""Codes of interest, and the stays and deaths that they make of a subject's events."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
import polars as pl
from ehr_core.formats.tokens import NO_TIME
from ehr_core.stays import find_stays, starts_with


def codes_with(codes: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    """The codes that begin with one of the prefixes."""
    return [code for code in codes if code.startswith(tuple(prefixes))]


def belongs(events: pl.DataFrame, groups: Mapping[str, Sequence[str]]) -> dict[str, pl.Expr]:
    """For each group whether an event's code begins with one of its prefixes; each code is compared once."""
    codes = events["code"].drop_nulls().unique().to_list()
    return {name: pl.col("code").is_in(codes_with(codes, prefixes)) for name, prefixes in groups.items()}


def stays_of(events: pl.DataFrame, groups: Mapping[str, Sequence[str]], end: datetime) -> pl.DataFrame:
    """One row a stay, in order of subject and start, from events in order of subject and time.

    Columns: ``subject_id``; ``start``; ``close``, the time of the discharge, else of the next admission (null: neither
    is on record); ``discharged``, whether it is a discharge; ``death``, the subject's first (null: none);
    ``next_start`` of the subject's next stay. Events without a time, and events after ``end``, are left out. A code is
    of a group when it is one of the group's, alone or with more after ``//``, as for tokens.
    """
    timed = events.filter(pl.col("time").is_not_null() & (pl.col("time") <= end))
    codes = timed["code"].unique().to_list()
    chosen = {name: pl.col("code").is_in([*filter(starts_with(prefixes), codes)]) for name, prefixes in groups.items()}
    rows = timed.select("subject_id", "time", **chosen).filter(pl.any_horizontal(*groups))
    opens, closes = (rows[name].to_numpy() for name in ("admission", "discharge"))
    found = find_stays(rows["subject_id"].to_numpy(), rows["time"].to_physical().to_numpy(), opens, closes)
    deaths = rows.filter("death").group_by("subject_id").agg(pl.col("time").min().alias("death"))
    return (
        pl.DataFrame(
            {
                "subject_id": found.subject_K,
                "start": _times(found.start_K),
                "close": _times(found.close_K),
                "discharged": found.discharged_K,
            }
        )
        .join(deaths, on="subject_id", how="left", maintain_order="left")
        .with_columns(pl.col("start").shift(-1).over("subject_id").alias("next_start"))
    )


def _times(time_K: np.ndarray) -> pl.Series:
    return pl.Series(time_K, dtype=pl.Int64).cast(pl.Datetime("us")).set(pl.Series(time_K == NO_TIME), None)


def days(duration: pl.Expr) -> pl.Expr:
    """A length of time as float64 days."""
    return duration.dt.total_microseconds() / 86_400_000_000
