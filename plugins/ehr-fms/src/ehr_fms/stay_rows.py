"""Rows of a shard arranged by hospitalization, and what each is by the tables. No loop runs over rows.

Shapes: N rows in order of subject, time and rank within the instant, K hospitalizations, M items (events and suffix).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from ehr_core.ages import exact_years
from ehr_core.constants import DAY_US, HOUR_US, MEDS_BIRTH
from ehr_core.errors import DataError
from ehr_core.formats.tokens import NO_TIME
from ehr_core.stays import Stays, find_stays, starts_with, stays_by_key
from ehr_tokenize.grammars.timeline import births
from ehr_tokenize.prepare import arrays

from ehr_fms.plugin import FmsConfig
from ehr_fms.tables import Entry


@dataclass(frozen=True)
class StayRows:
    """A shard with its hospitalizations."""

    rows: arrays.Records
    frame: pl.DataFrame
    """The rows again, with the columns that expressions know."""
    stays: Stays
    birth_S: np.ndarray
    age_K: np.ndarray
    """Years at the admission; NaN if unknown."""


@dataclass(frozen=True)
class Items:
    """Tokens without bins, each with its number: of rows, or of the prefixes of hospitalizations."""

    names_C: list[str]
    stay_M: np.ndarray
    phase_M: np.ndarray
    """0 for events, 1 and on for the entries of the suffix; in a prefix the place of the entry."""
    name_M: np.ndarray
    """Index into ``names_C``."""
    value_M: np.ndarray
    """float32, NaN where there is none."""
    time_M: np.ndarray
    row_M: np.ndarray
    """The row that it was made of; -1 for none."""
    codes_C: list[set[str]]
    """MEDS codes that became each name."""

    def records(self) -> arrays.Records:
        """As the arrays that `quantiles.count` and `quantiles.find_bins` work on."""
        subjects = np.zeros(1, np.int64)
        return arrays.Records(
            subjects, self.names_C, np.zeros(len(self.stay_M), np.int64), self.time_M, self.name_M, self.value_M
        )


def arrange(events: pl.DataFrame, settings: FmsConfig) -> StayRows:
    """Rows in order with their hospitalizations. Raises DataError when ``stay_column`` is asked for and not there."""
    rows = arrays.records(events)
    timed_N = rows.time_N != NO_TIME
    closes_N = rows.per_code(starts_with(settings.discharge_codes), bool)[rows.code_N] & timed_N
    if settings.stay_column:
        if settings.stay_column not in events.columns:
            raise DataError(f"the events have no column {settings.stay_column!r} (tokenizer.stay_column)")
        name_N = events[settings.stay_column].cast(pl.String)
        key_N = name_N.fill_null("").cast(pl.Categorical).to_physical().to_numpy().astype(np.int64)
        key_N[name_N.is_null().to_numpy() | ~timed_N] = -1
        stays = stays_by_key(rows.subject_N, rows.time_N, key_N, closes_N)
    else:
        opens_N = rows.per_code(starts_with(settings.admission_codes), bool)[rows.code_N] & timed_N
        stays = find_stays(rows.subject_N, rows.time_N, opens_N, closes_N)
    ordered = rows.where(stays.order_N)
    born = rows.where(rows.per_code(MEDS_BIRTH.__eq__, bool)[rows.code_N] & timed_N)
    birth_S = births(rows, born)
    start_N = np.where(stays.stay_N >= 0, np.append(stays.start_K, 0)[stays.stay_N], NO_TIME)
    further = {name: pl.Float64 if kind == "number" else pl.String for name, kind in settings.columns.items()}
    frame = events[stays.order_N].select(
        "code", *(pl.col(name).cast(kind, strict=False) for name, kind in further.items())
    )
    frame = frame.with_columns(
        pl.Series("numeric_value", ordered.value_N.astype(np.float64)).fill_nan(None),
        pl.Series("hours", _span(start_N, ordered.time_N) / HOUR_US).fill_nan(None),
        pl.Series("age", _age(birth_S[ordered.subject_N], ordered.time_N)).fill_nan(None),
    )
    age_K = _age(birth_S[stays.subject_K], stays.start_K)
    return StayRows(ordered, frame, stays, birth_S, age_K)


def _span(from_N: np.ndarray, to_N: np.ndarray) -> np.ndarray:
    """Microseconds between two times; NaN where one is missing or the order is wrong."""
    known_N = (from_N != NO_TIME) & (to_N != NO_TIME)
    span_N = np.where(known_N, to_N, 0) - np.where(known_N, from_N, 0)
    return np.where(known_N & (span_N >= 0), span_N, np.nan)


def _age(birth_N: np.ndarray, time_N: np.ndarray) -> np.ndarray:
    """Years by the calendar; NaN where birth or time is missing, or the order is wrong."""
    known_N = (birth_N != NO_TIME) & (time_N != NO_TIME) & (time_N >= birth_N)
    return np.where(known_N, exact_years(np.where(known_N, birth_N, 0), np.where(known_N, time_N, 0)), np.nan)


class Names:
    """Token texts by number, in order of first use."""

    def __init__(self) -> None:
        self.place: dict[str, int] = {}
        self.codes: list[set[str]] = []

    def of(self, text: str, code: str | None = None) -> int:
        """The number of a text."""
        index = self.place.setdefault(text, len(self.place))
        if index == len(self.codes):
            self.codes.append(set())
        if code is not None:
            self.codes[index].add(code)
        return index

    def of_rows(self, rows: arrays.Records, at: np.ndarray, text: str | None, entry: Entry) -> np.ndarray:
        """(C,) number of the text, or of the entry's, for each code that the rows ``at`` have; else -1."""
        name_C = np.full(len(rows.names_C), -1)
        for c in np.flatnonzero(np.bincount(rows.code_N[at], minlength=len(rows.names_C))).tolist():
            code = rows.names_C[c]
            name_C[c] = self.of(text or entry.text(code) or code, code)
        return name_C


def _mask(found: StayRows, entry: Entry, allowed_N: np.ndarray) -> np.ndarray:
    """(N,) rows that an entry is for."""
    match_C = found.rows.per_code(lambda code: entry.text(code) is not None, bool)
    mask_N: np.ndarray = match_C[found.rows.code_N] & allowed_N
    if entry.filter is not None and mask_N.any():
        at = np.flatnonzero(mask_N)
        met = found.frame[at].with_columns(entry.filter.fill_null(False).alias("#met"))["#met"]
        mask_N[at] = met.to_numpy()
    return mask_N


def _numbers(found: StayRows, entry: Entry, at: np.ndarray) -> np.ndarray:
    """(M,) float32 numbers of rows; NaN where there is none."""
    if not entry.numeric:
        return np.full(len(at), np.nan, np.float32)
    if entry.value is None:
        return found.rows.value_N[at]
    return _finite(found.frame[at].with_columns(entry.value.alias("#value"))["#value"])


def _finite(series: pl.Series) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 is as missing as infinite
        value_N = series.cast(pl.Float64).fill_null(float("nan")).to_numpy().astype(np.float32)
    return np.where(np.isfinite(value_N), value_N, np.float32("nan"))


def find_items(found: StayRows, prefix: Sequence[Entry], events: Sequence[Entry], suffix: Sequence[Entry]) -> Items:
    """Events and suffix rows of all hospitalizations; a suffix has the time of the discharge."""
    rows, stays = found.rows, found.stays
    names = Names()
    claimed_C = rows.per_code(lambda code: any(e.text(code) is not None for e in (*prefix, *suffix)), bool)
    birth_C = rows.per_code(MEDS_BIRTH.__eq__, bool)
    inside_N = (stays.stay_N >= 0) & ~birth_C[rows.code_N]
    open_N = inside_N & ~claimed_C[rows.code_N]
    closed_K = np.append(stays.close_K != NO_TIME, False)
    ended_N = inside_N & closed_K[stays.stay_N]
    none = np.zeros(0, np.int64)
    parts = [(none, none, none, none.astype(np.float32), none, none)]
    for phase, entry in [*((0, e) for e in events), *enumerate(suffix, start=1)]:
        allowed_N = ended_N if phase else open_N
        mask_N = _mask(found, entry, allowed_N)
        allowed_N &= ~mask_N  # the first entry that fits takes a row
        at = np.flatnonzero(mask_N)
        name_C = names.of_rows(rows, at, None, entry)
        time_M = stays.close_K[stays.stay_N[at]] if phase else rows.time_N[at]
        parts.append((stays.stay_N[at], np.full(len(at), phase), name_C[rows.code_N[at]],
                      _numbers(found, entry, at), time_M, at))  # fmt: skip
    stay, phase_M, name, value, time, row = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Items(list(names.place), stay, phase_M, name, value, time, row, names.codes)


def find_prefix(found: StayRows, prefix: Sequence[Entry]) -> Items:
    """One item for each hospitalization and entry of the prefix, as known at the admission."""
    rows, stays = found.rows, found.stays
    names = Names()
    size = len(stays.first_K)
    instant_N = np.cumsum((np.diff(rows.subject_N, prepend=0) != 0) | (np.diff(rows.time_N, prepend=0) != 0))
    until_K = np.searchsorted(instant_N, instant_N[stays.first_K], side="right")
    subject_K = np.searchsorted(rows.subject_N, stays.subject_K)
    name_PK, value_PK, row_PK = [], [], []
    for entry in prefix:
        unknown = names.of(f"{entry.prefix}_UNKNOWN")
        name_K, value_K = np.full(size, unknown), np.full(size, np.nan, np.float32)
        source_K = np.full(size, -1)
        if entry.pattern is None:
            name_K[:] = names.of(entry.prefix)
            age = pl.DataFrame({"age": found.age_K}).with_columns(pl.col("age").fill_nan(None))
            assert entry.value is not None
            value_K = _finite(age.with_columns(entry.value.alias("#value"))["#value"])
            if entry.filter is not None:
                met = age.with_columns(entry.filter.fill_null(False).alias("#met"))["#met"].to_numpy()
                value_K = np.where(met, value_K, np.float32("nan"))
        else:
            at = np.flatnonzero(_mask(found, entry, np.ones(len(rows.time_N), bool)))
            if entry.at_admission:  # the stay's own: another one may begin in the same instant
                at = at[stays.stay_N[at] >= 0]
                at = at[instant_N[at] == instant_N[stays.first_K[stays.stay_N[at]]]]
                row_K = np.full(size, -1)
                row_K[stays.stay_N[at]] = at  # ascending, so that the last row stays
                has_K = row_K >= 0
            else:
                last_K = np.searchsorted(at, until_K) - 1  # the last such row up to the admission
                row_K = np.append(at, -1)[last_K]
                has_K = (last_K >= 0) & (row_K >= subject_K)
            chosen = row_K[has_K]
            name_C = names.of_rows(rows, chosen, entry.prefix if entry.numeric else None, entry)
            name_K[has_K] = name_C[rows.code_N[chosen]]
            value_K[has_K] = _numbers(found, entry, chosen)
            source_K[has_K] = chosen
        if entry.numeric:  # without a number nothing is known
            name_K = np.where(np.isnan(value_K), unknown, name_K)
        name_PK.append(name_K)
        value_PK.append(value_K)
        row_PK.append(source_K)
    stay = np.tile(np.arange(size), len(prefix))
    phase = np.repeat(np.arange(len(prefix)), size)
    none = np.zeros(0, np.int64)
    name, row = (np.concatenate([none, *arrays]) for arrays in (name_PK, row_PK))
    value = np.concatenate([none.astype(np.float32), *value_PK])
    return Items(list(names.place), stay, phase, name, value, stays.start_K[stay], row, names.codes)


def within_days(items: Items, stays: Stays, days: float | None) -> tuple[Items, np.ndarray]:
    """Items without events that are later than so many days after the admission, and (K,) the time of the first such
    event (NO_TIME: none)."""
    first_K = np.full(len(stays.start_K), np.iinfo(np.int64).max)
    if days is not None:
        late_M = (items.phase_M == 0) & (items.time_M - stays.start_K[items.stay_M] > days * DAY_US)
        np.minimum.at(first_K, items.stay_M[late_M], items.time_M[late_M])
        names = ("stay_M", "phase_M", "name_M", "value_M", "time_M", "row_M")
        arrays = {name: getattr(items, name)[~late_M] for name in names}
        items = dataclasses.replace(items, **arrays)
    return items, np.where(first_K == np.iinfo(np.int64).max, NO_TIME, first_K)
