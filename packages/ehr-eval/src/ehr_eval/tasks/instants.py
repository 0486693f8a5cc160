"""Instants at which something of interest happened to a subject, and what a subject's other instants say about one."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import polars as pl


def codes_with(codes: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    """The codes that begin with one of the prefixes."""
    return [code for code in codes if code.startswith(tuple(prefixes))]


def belongs(events: pl.DataFrame, groups: Mapping[str, Sequence[str]]) -> dict[str, pl.Expr]:
    """For each group whether an event's code begins with one of its prefixes; each code is compared once."""
    codes = events["code"].drop_nulls().unique().to_list()
    return {name: pl.col("code").is_in(codes_with(codes, prefixes)) for name, prefixes in groups.items()}


def instants(events: pl.DataFrame, groups: Mapping[str, Sequence[str]], end: datetime) -> pl.DataFrame:
    """One row per subject and time at which something of a group happened: a bool column a group; ordered.

    Events without a time, and events after ``end``, are left out.
    """
    return (
        events.lazy()
        .filter(pl.col("time").is_not_null() & (pl.col("time") <= end))
        .select("subject_id", "time", **belongs(events, groups))
        .filter(pl.any_horizontal(*groups))
        .group_by("subject_id", "time")
        .agg(pl.col(name).any() for name in groups)
        .sort("subject_id", "time")
        .collect()
    )


def first_later(name: str) -> pl.Expr:
    """Time of the subject's next instant, after this one, of a group; null when there is none."""
    return pl.when(pl.col(name)).then(pl.col("time")).backward_fill().shift(-1).over("subject_id")


def first_of(name: str) -> pl.Expr:
    """Time of the subject's first instant of a group; null when there is none."""
    return pl.when(pl.col(name)).then(pl.col("time")).min().over("subject_id")


def stay_is_open() -> pl.Expr:
    """Whether a stay was open just before this instant.

    An instant with both an admission and a discharge leaves things as they were: it either hands over from one stay
    to the next, or is a stay of no length.
    """
    admission, discharge = pl.col("admission"), pl.col("discharge")
    after = pl.when(admission & ~discharge).then(True).when(discharge & ~admission).then(False)
    return after.forward_fill().shift(1).over("subject_id").fill_null(False)


def days(duration: pl.Expr) -> pl.Expr:
    """A length of time as float64 days."""
    return duration.dt.total_microseconds() / 86_400_000_000
