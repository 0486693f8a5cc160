"""The tokenizer ``cehr``: visits between [VS] and [VE], with an artificial time token for the days between them.

After CEHR-BERT and CEHR-GPT (Pang et al. 2021, 2024), for any MEDS dataset: the prefix ``year:2019 age:54 GENDER//F
RACE//WHITE``, then for each visit ``[time token] [VS] type events [VE]``, at the end ``[END]``. A visit is a stay
between an admission and a discharge code (its type is the admission code), or what happens on one day outside any stay
(type ``outside``). A code is followed by ``BIN:0`` to ``BIN:9`` where it has a number. What differs from the original,
on purpose:

- Year, age, gender and race are the prefix of every window, as known at its first token, not of the first one only.
- [VE] is where it becomes known that the visit is over: at the discharge, at midnight after a day outside, or when the
  next visit starts, whichever comes first. A stay that is open at the end of the record has none.
- A zero is a number; one that is missing or that has no bins in train has no bin; an unseen code is [UNK].
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from ehr_core.ages import completed_years
from ehr_core.constants import DAY_SECONDS, DAY_US, HOUR_US
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.tokens import NO_TIME, Prefix
from ehr_core.formats.vocabulary import Token
from ehr_core.stays import find_stays, starts_with
from ehr_tokenize.fit import quantiles
from ehr_tokenize.fit.vocabularies import assemble, subjects_per_code
from ehr_tokenize.grammars.spacing import Lengths, join, measure
from ehr_tokenize.grammars.timeline import Parts, TimelineTokenizer
from ehr_tokenize.grammars.weaving import Strand, last_of_subject, weave
from ehr_tokenize.prepare import arrays

from ehr_cehr.day_tokens import DayTokens, day_of
from ehr_cehr.plugin import CehrConfig

START, STOP, END = "[VS]", "[VE]", "[END]"
AGES, HOURS = 121, 24


@dataclasses.dataclass(frozen=True)
class Visits:
    """The visits of a shard's timeline. Shapes: N rows in a new order, K visits."""

    order_N: np.ndarray
    """Row of the timeline at each place; only the order within an instant is new."""
    visit_N: np.ndarray
    inside_N: np.ndarray
    """Whether the row is in a stay."""
    first_K: np.ndarray
    last_K: np.ndarray
    """First and last row of each visit, in the new order."""
    day_K: np.ndarray
    """Days from the last row of the visit before to the first one; -1 for a subject's first visit."""
    end_K: np.ndarray
    """When it becomes known that the visit is over; NO_TIME: never."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `Cehr.fit` needs to know of one shard."""

    timeline: quantiles.Counts
    subjects: dict[str, int]
    static: quantiles.Counts
    years: dict[int, int]
    """Calendar year to how many subjects have an event in it."""
    fixed: dict[str, int]
    """How often [VS], [VE], [END], the outside type and each hour occur."""
    intervals: Lengths


class Cehr(TimelineTokenizer):
    """See the module. Implements `ehr_core.protocols.Tokenizer`."""

    saved = (*TimelineTokenizer.saved, "interval_parts")
    summary_type = Summary
    settings: CehrConfig

    def configure(self) -> None:
        """Check the settings and make what follows from them."""
        super().configure()
        settings = self.settings
        both = sorted(set(settings.admission_codes) & set(settings.discharge_codes))
        if both:
            raise ConfigError(f"{both[0]!r} is in both tokenizer.admission_codes and tokenizer.discharge_codes")
        self.between = DayTokens(settings.time_tokens, "time_tokens")
        within = settings.stay_time_tokens
        self.within = None if within == "none" else DayTokens(within, "stay_time_tokens (or none)", "i-")
        self.interval_parts = self.between.parts() | (self.within.parts() if self.within else {})
        """Years, months and days of each time token."""

    def interval_days(self) -> dict[str, list[float | None]]:
        """Per time token the fewest and (not included) the most days that it stands for; None: no most."""
        return self.between.days() | (self.within.days() if self.within else {})

    # -- visits

    def visits(self, rows: arrays.Records) -> Visits:
        """The visits of a timeline."""
        opens_N = rows.per_code(starts_with(self.settings.admission_codes), bool)[rows.code_N]
        closes_N = rows.per_code(starts_with(self.settings.discharge_codes), bool)[rows.code_N]
        stays = find_stays(rows.subject_N, rows.time_N, opens_N, closes_N)
        subject_N, time_N, stay_N = rows.subject_N[stays.order_N], rows.time_N[stays.order_N], stays.stay_N
        new_N = np.ones(len(stay_N), bool)
        new_N[1:] = (subject_N[1:] != subject_N[:-1]) | (stay_N[1:] != stay_N[:-1])
        day_N = day_of(time_N)
        new_N[1:] |= (stay_N[1:] < 0) & (day_N[1:] != day_N[:-1])
        first_K = np.flatnonzero(new_N)
        last_K = np.append(first_K[1:], len(new_N))[: len(first_K)] - 1
        day_K = np.full(len(first_K), -1)
        same = np.flatnonzero(subject_N[first_K[1:]] == subject_N[first_K[:-1]]) + 1
        day_K[same] = day_N[first_K[same]] - day_N[last_K[same - 1]]
        outside_K = stay_N[first_K] < 0
        end_K = np.where(outside_K, (day_N[last_K] + 1) * DAY_US, NO_TIME)
        stay_K = stay_N[first_K[~outside_K]]
        end_K[~outside_K] = np.where(stays.discharged_K[stay_K], stays.close_K[stay_K], NO_TIME)
        next_K = time_N[first_K[same]]  # the visit before is over by now
        before = end_K[same - 1]
        end_K[same - 1] = np.where(before == NO_TIME, next_K, np.minimum(before, next_K))
        return Visits(stays.order_N, np.cumsum(new_N) - 1, stay_N >= 0, first_K, last_K, day_K, end_K)

    def _within(self, visits: Visits, time_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per row of a stay: days since the row before (0 for none) and the hour token (-1 for none)."""
        first_N = np.zeros(len(time_N), bool)
        first_N[visits.first_K] = True
        day_N, hour_N = day_of(time_N), time_N % DAY_US // HOUR_US
        passed_N = np.diff(day_N, prepend=day_N[:1])
        hours_N = np.diff(hour_N, prepend=hour_N[:1])
        passed_N[first_N | ~visits.inside_N] = 0
        hours_N = np.where(first_N | (passed_N > 0), hour_N, np.where(hours_N > 0, hours_N, -1))
        hours_N[~visits.inside_N | (not self.settings.stay_hours)] = -1
        return passed_N, hours_N

    # -- fit

    def summarize(self, events: pl.DataFrame) -> Summary:
        """Counts and numbers per code, subjects per code, years and time tokens of one shard of train."""
        parts = self.parts(self.records(events))
        rows = parts.timeline
        visits = self.visits(rows)
        time_N = rows.time_N[visits.order_N]
        passed_N, hours_N = self._within(visits, time_N)
        often = np.bincount(hours_N[hours_N >= 0], minlength=HOURS).tolist()
        fixed = {f"i-H{hour}": count for hour, count in enumerate(often)}
        fixed[START], fixed[STOP] = len(visits.first_K), int(np.count_nonzero(visits.end_K != NO_TIME))
        fixed[self.settings.outside] = int(np.count_nonzero(~visits.inside_N[visits.first_K]))
        fixed[END] = len(np.unique(rows.subject_N))
        year_N = _years(rows.time_N)
        year, number = np.unique(year_N[_changes(rows.subject_N, year_N)], return_counts=True)
        return Summary(
            quantiles.count(rows),
            subjects_per_code(rows),
            quantiles.count(parts.static),
            dict(zip(year.tolist(), number.tolist(), strict=True)),
            fixed,
            self._lengths(visits.day_K[visits.day_K >= 0], passed_N[passed_N > 0]),
        )

    def _lengths(self, between_M: np.ndarray, within_M: np.ndarray) -> Lengths:
        """Lengths of the time tokens between visits and then of those within stays, from days."""
        size = len(self.between.names)
        token = [self.between.find(between_M)]
        if self.within:
            token.append(size + self.within.find(within_M))
            size += len(self.within.names)
        day = np.concatenate([between_M, within_M])[: sum(map(len, token))]
        return measure(np.concatenate(token), day * DAY_US, np.ones(len(day), np.int64), size)

    def fit(self, summaries: Iterable[Summary]) -> None:
        """Fit vocabulary, slots, bins and time estimates. Raises DataError when train has no event."""
        found = list(summaries)
        timeline, static = quantiles.merge([p.timeline for p in found]), quantiles.merge([p.static for p in found])
        if not timeline.names_C:
            raise DataError("the train split has no event with a time, so there is nothing to fit a tokenizer on")
        settings, size = self.settings, self.settings.num_quantiles
        subjects, fixed, years = (
            _total(parts) for parts in ([p.subjects for p in found], [p.fixed for p in found], [p.years for p in found])
        )
        often = self.often(timeline, subjects)
        self.breaks = {c: b for c, b in quantiles.quantile_breaks(timeline, size).items() if c in often}
        ranges = self.interval_days()
        bins = sum(quantiles.bin_counts(timeline, self.breaks, size).values(), np.zeros(size, np.int64))
        tokens = [Token(f"BIN:{k}", "quantile", (), int(bins[k])) for k in range(size)]
        middles = [DAY_SECONDS * _middle(span) for span in ranges.values()]
        tokens += self.fit_intervals(join(p.intervals for p in found), list(ranges), middles)
        if settings.stay_hours:  # an hour of the day is no time that passes
            tokens += [Token(f"i-H{hour}", "hour", (), fixed[f"i-H{hour}"]) for hour in range(HOURS)]
        tokens += [Token(name, "visit", (), fixed[name]) for name in (START, STOP, settings.outside)]
        if settings.timeline_end:
            tokens.append(Token(END, "end", (), fixed[END]))
        tokens.append(Token("year:UNKNOWN", "static"))
        tokens += [Token(f"year:{year}", "static", (), years[year]) for year in sorted(years)]
        tokens += [Token(name, "age") for name in ("age:UNKNOWN", *(f"age:{age}" for age in range(AGES)))]
        slots, statics = self.fit_static(static)
        rare = int(timeline.rows_C.sum()) - sum(often.values())
        self.vocabulary = assemble(tokens, statics, often, rare)
        rest = self.make_prefix(self._ordered(slots), age=False)
        ours = tuple(self.vocabulary[name] for name in ("year:UNKNOWN", "age:UNKNOWN"))
        self.prefix = Prefix(slots=("year", "age", *rest.slots), unknown=(*ours, *rest.unknown))

    def _ordered(self, slots: list[str]) -> list[str]:
        """Slots in the order of ``static_codes``, then others by name."""
        rank = {name: index for index, name in enumerate(self.settings.static_codes)}
        return sorted(slots, key=lambda slot: (rank.get(slot, len(rank)), slot))

    # -- encode

    def static_rows(self, parts: Parts) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Subject, slot, token and time of each static value; year and age at each event."""
        rows = parts.timeline
        year, at = np.unique(_years(rows.time_N), return_inverse=True)
        ids, unknown = self.vocabulary.ids, self.prefix.unknown[0]
        year_Y = np.array([ids.get(f"year:{y}", unknown) for y in year.tolist()], np.int64)
        birth_N = parts.birth_S[rows.subject_N]
        known_N = (birth_N != NO_TIME) & (rows.time_N >= birth_N)
        age_N = completed_years(np.where(known_N, birth_N, 0), np.where(known_N, rows.time_N, 0))
        age_N = np.minimum(age_N, AGES - 1)
        age_N = np.where(known_N, self.vocabulary["age:0"] + age_N, self.prefix.unknown[1])
        subject, slot, token, time = super().static_rows(parts)
        new = [np.flatnonzero(_changes(rows.subject_N, token_N)) for token_N in (year_Y[at], age_N)]
        row = np.concatenate(new)
        return (
            np.concatenate([rows.subject_N[row], subject]),
            np.concatenate([np.repeat([0, 1], [len(rows) for rows in new]), slot]),
            np.concatenate([year_Y[at][new[0]], age_N[new[1]], token]),
            np.concatenate([rows.time_N[row], time]),
        )

    def encode_timeline(self, parts: Parts, dtype: np.dtype) -> dict[str, Any]:
        """The arrays of a token table that have an entry a token, and where each subject starts."""
        visits = self.visits(parts.timeline)
        rows = parts.timeline.where(visits.order_N)
        size, ids = len(rows.time_N), self.vocabulary
        code_N = rows.per_code(self.code_id, np.int64)[rows.code_N]
        bin_N = quantiles.find_bins(rows, self.breaks, self.settings.num_quantiles)
        first_N, outside_N, stop_N = (np.zeros(size, bool) for _ in range(3))
        first_N[visits.first_K] = True
        outside_N[visits.first_K] = ~visits.inside_N[visits.first_K]
        stop_N[visits.last_K] = visits.end_K != NO_TIME
        day_N = np.full(size, -1)
        day_N[visits.first_K] = visits.day_K
        last_N = last_of_subject(rows.subject_N) & self.settings.timeline_end

        def always(name: str) -> np.ndarray:
            return np.full(size, ids.get(name))

        passed_N, hours_N = self._within(visits, rows.time_N)
        hour_N = ids.get("i-H0") + hours_N
        strands = [
            Strand(ids[self.between.names[0]] + self.between.find(day_N), day_N >= 0),
            Strand(always(START), first_N),
            Strand(always(self.settings.outside), outside_N),
            Strand(hour_N, (hours_N >= 0) & ~first_N),
            Strand(code_N, np.ones(size, np.int8), rows.value_N),
            Strand(ids["BIN:0"] - 1 + bin_N, bin_N > 0),
            Strand(hour_N, (hours_N >= 0) & first_N),
            Strand(always(STOP), stop_N),
            Strand(always(END), last_N),
        ]
        if self.within:
            strands.insert(3, Strand(ids[self.within.names[0]] + self.within.find(passed_N), passed_N > 0))
        token, time, end_N, columns = weave(strands, rows.time_N, dtype, self.settings.value)
        stops = visits.end_K != NO_TIME
        place_K = end_N[visits.last_K[stops]] - 1 - last_N[visits.last_K[stops]]
        time[place_K] = visits.end_K[stops]
        ends = end_N[last_N] - 1
        time[ends] = time[ends - 1] + 1  # nobody knows at the time of the last token that it is the last one
        offset = np.concatenate([[0], end_N])[arrays.offsets(rows.subject_N, len(parts.birth_S))]
        return {"offset": offset, "token": token, "time": time, "columns": columns}


def _years(time_N: np.ndarray) -> np.ndarray:
    """(N,) calendar years."""
    return time_N.astype("datetime64[us]").astype("datetime64[Y]").astype(np.int64) + 1970


def _changes(subject_N: np.ndarray, what_N: np.ndarray) -> np.ndarray:
    """(N,) whether something is not as in the row before of the same subject."""
    new_N = np.ones(len(what_N), bool)
    new_N[1:] = (subject_N[1:] != subject_N[:-1]) | (what_N[1:] != what_N[:-1])
    return new_N


def _middle(bounds: list[float | None]) -> float:
    low, high = bounds
    assert low is not None
    return low if high is None else max(low + high - 1, 0) / 2


def _total(parts: Iterable[dict[Any, int]]) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for part in parts:
        total.update(part)
    return total
