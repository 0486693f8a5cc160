"""The tokenizer ``ethos``: a timeline of code, quantile and time-interval tokens behind a static prefix.

After ETHOS (Renc et al., Zero shot health trajectory prediction using transformer, npj Digital Medicine 2024), for any
MEDS dataset. An event becomes ``[interval...] code [quantile]``, all at the time of the event. Events of one instant
keep the order of their rows. What differs from the original, on purpose:

- An unseen code is [UNK]; a missing or infinite number never has a quantile.
- A static value counts from its own time on, not by the nearest time, which may lie in the future.
- Age is two digits of completed years; the original rounds the second one, so that 54.75 years are 55.
- Means of interval tokens are exact over all shards, not means of shard means.
- Quantiles, counts and slots come from the train split only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import polars as pl
from ehr_core.constants import DAY_US, HOUR_US, MEDS_BIRTH, MINUTE_US
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.tokens import NO_TIME
from ehr_core.formats.vocabulary import Token
from ehr_core.stays import starts_with

from ehr_tokenize.fit import frequent, quantiles
from ehr_tokenize.fit.vocabularies import assemble
from ehr_tokenize.grammars.number_tokens import Numbers, equal_width
from ehr_tokenize.grammars.spacing import Lengths, Spacing, join
from ehr_tokenize.grammars.timeline import AGE_UNKNOWN, TENS, UNITS, Parts, TimelineTokenizer
from ehr_tokenize.grammars.weaving import Strand, last_of_subject, weave
from ehr_tokenize.plugin import EthosConfig
from ehr_tokenize.prepare import arrays
from ehr_tokenize.prepare.rules import limits

END = "TIMELINE_END"
INTERVALS = {
    "5m-15m": 5 * MINUTE_US,
    "15m-45m": 15 * MINUTE_US,
    "45m-1h15m": 45 * MINUTE_US,
    "1h15m-2h": 75 * MINUTE_US,
    "2h-3h": 2 * HOUR_US,
    "3h-5h": 3 * HOUR_US,
    "5h-8h": 5 * HOUR_US,
    "8h-12h": 8 * HOUR_US,
    "12h-18h": 12 * HOUR_US,
    "18h-1d": 18 * HOUR_US,
    "1d-2d": 1 * DAY_US,
    "2d-4d": 2 * DAY_US,
    "4d-7d": 4 * DAY_US,
    "7d-12d": 7 * DAY_US,
    "12d-20d": 12 * DAY_US,
    "20d-30d": 20 * DAY_US,
    "30d-2mt": 30 * DAY_US,
    "2mt-6mt": 60 * DAY_US,
    "=6mt": 180 * DAY_US,
}
"""Token to its lower bound in microseconds; the last one is repeated."""
SPACING = Spacing(tuple(INTERVALS), np.array(list(INTERVALS.values()), np.int64))


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `Ethos.fit` needs to know of one shard."""

    timeline: quantiles.Counts
    static: quantiles.Counts
    intervals: Lengths
    births: int
    timelines: int
    """Subjects with at least one timeline event."""
    instants: frequent.Instants | None = None
    """With ``top_codes``: what intervals and timelines are found from, once it is known which codes stay."""


class Ethos(TimelineTokenizer):
    """See the module. Implements `ehr_core.protocols.Tokenizer`."""

    saved = (*TimelineTokenizer.saved, "dropped")
    spacing = SPACING
    summary_type = Summary

    def __init__(self, settings: EthosConfig):
        self.dropped: list[str] = []
        """Codes of train that ``top_codes`` leaves out, in order of name."""
        super().__init__(settings)

    def configure(self) -> None:
        """Check the settings and make what follows from them."""
        super().configure()
        settings = self.settings
        self._widths = {code: limits(v, f"tokenizer.equal_width.{code}") for code, v in settings.equal_width.items()}
        for start, size in settings.top_codes.items():
            if size < 0:
                raise ConfigError(f"tokenizer.top_codes.{start} is {size}; it must not be negative")
        self.numbers = Numbers(settings.numbers, settings.num_quantiles)

    def grow(self, new: Self) -> None:
        """As in the base; a code that was left out and that the other one takes in is left out no more."""
        super().grow(new)
        known = self.known_names()
        self.dropped = [code for code in self.dropped if code not in known]

    # -- rows

    def parts(self, rows: arrays.Records) -> Parts:
        """Timeline, static rows and births of a shard; without timeline rows that become no token."""
        found = super().parts(rows)
        if self.settings.static_too:
            too_N = rows.per_code(starts_with(self.settings.static_too), bool)[rows.code_N]
            timed_N = rows.time_N != NO_TIME
            static_N = rows.per_code(starts_with(self.settings.static_codes), bool)[rows.code_N] | ~timed_N | too_N
            static_N &= rows.per_code(lambda code: code != MEDS_BIRTH, bool)[rows.code_N]
            birth_N = rows.per_code(MEDS_BIRTH.__eq__, bool)[rows.code_N]
            timeline_N = ~birth_N & timed_N & (too_N | ~static_N)
            found = dataclasses.replace(found, timeline=rows.where(timeline_N), static=rows.where(static_N))
        timeline = found.timeline
        if self.numbers:
            alone_N = timeline.per_code(lambda code: self.numbers.style(code) == "alone", bool)[timeline.code_N]
            timeline = timeline.where(~(alone_N & np.isnan(timeline.value_N)))
        if self.dropped:
            timeline = timeline.where(~timeline.per_code(frozenset(self.dropped).__contains__, bool)[timeline.code_N])
        return dataclasses.replace(found, timeline=timeline)

    def left_out_events(self, events: pl.DataFrame) -> Mapping[str, int]:
        """Code to how many of its events ``top_codes`` leaves out."""

        def subjects(probe: pl.DataFrame) -> np.ndarray:
            rows = self.records(probe)
            out_N = rows.per_code(frozenset(self.dropped).__contains__, bool)[rows.code_N] & (rows.time_N != NO_TIME)
            return rows.subject_id_S[np.unique(rows.subject_N[out_N])]

        return self.events_alone(events, subjects) if self.dropped else {}

    def slot(self, code: str) -> str:
        """The prefix slot that a static code without a number fills."""
        chosen = [p for p in self.settings.static_too if code == p or code.startswith(f"{p}//")]
        return chosen[0] if chosen else super().slot(code)

    def static_rows(self, parts: Parts) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As in the base, without values that are weaker than one that was there before."""
        found = super().static_rows(parts)
        weak = self.settings.weak_static
        if not weak:
            return found
        rank_V = np.full(len(self.vocabulary), len(weak))
        for rank, name in enumerate(weak):
            if name in self.vocabulary.ids:
                rank_V[self.vocabulary[name]] = rank
        keep_M = not_weaker(found[0], found[1], rank_V[found[2]])
        return found[0][keep_M], found[1][keep_M], found[2][keep_M], found[3][keep_M]

    # -- fit

    def summarize(self, events: pl.DataFrame) -> Summary:
        """Counts and numbers per code, lengths of intervals, births of one shard of train."""
        parts = self.parts(self.records(events))
        limited = tuple(self.settings.top_codes)
        return Summary(
            quantiles.count(parts.timeline),
            quantiles.count(parts.static),
            SPACING.measure(arrays.gaps(parts.timeline)),
            parts.births,
            int(np.count_nonzero(np.diff(parts.timeline.subject_N, prepend=-1))),
            frequent.instants(parts.timeline, lambda code: code.startswith(limited)) if limited else None,
        )

    def fit(self, summaries: Iterable[Summary]) -> None:
        """Fit vocabulary, slots, quantiles and interval estimates. Raises DataError when train has no event."""
        parts = list(summaries)
        timeline, static = quantiles.merge([p.timeline for p in parts]), quantiles.merge([p.static for p in parts])
        if self.settings.top_codes:
            self.dropped = sorted(frequent.rare(timeline, self.settings.top_codes))
            timeline = timeline.without(set(self.dropped))
            parts = [_without(part, set(self.dropped)) for part in parts]
        if not timeline.names_C:
            raise DataError("the train split has no event with a time, so there is nothing to fit a tokenizer on")
        slots, statics = self.fit_static(static)
        self._fit_breaks(timeline)
        bins = quantiles.bin_counts(timeline, self.breaks, self.settings.num_quantiles)
        often, rare = self._spoken(timeline, bins)
        tokens = self.numbers.tokens(bins)
        tokens += self.fit_intervals(join(p.intervals for p in parts), SPACING.names, SPACING.middles())
        if self.settings.timeline_end:
            tokens.append(Token(END, "end", (), sum(p.timelines for p in parts)))
        born = any(p.births for p in parts)
        if born:
            tokens += [Token(name, "age") for name in (*TENS, *UNITS, AGE_UNKNOWN)]
        fused = self.numbers.fused(bins, self.breaks)
        statics = _also_in_timeline(statics, fused)
        self.vocabulary = assemble(tokens, statics, often, rare, fused)
        self.prefix = self.make_prefix(slots, born)

    def breaks_of(self, counts: quantiles.Counts) -> dict[str, list[float]]:
        """As in the base, of one width for the codes of ``equal_width``."""
        found, size = super().breaks_of(counts), self.settings.num_quantiles
        return found | {code: equal_width(*self._widths[code], size) for code in found.keys() & self._widths.keys()}

    def _fit_breaks(self, timeline: quantiles.Counts) -> None:
        """Breaks of the codes that are frequent enough, or whose numbers alone show."""
        rows = dict(zip(timeline.names_C, timeline.rows_C.tolist(), strict=True))
        self.breaks = {
            code: self.static_breaks.get(code, breaks)  # a number in both places means one thing
            for code, breaks in self.breaks_of(timeline).items()
            if rows[code] >= self.settings.min_count or self.numbers.style(code) == "alone"
        }

    def _spoken(self, timeline: quantiles.Counts, bins: dict[str, np.ndarray]) -> tuple[dict[str, int], int]:
        """How often each code with a token is that token, and how many rows become [UNK]."""
        silent = {name for name in timeline.names_C if self.numbers.style(name) == "alone"}
        often = {name: rows for name, rows in self.often(timeline).items() if name not in silent}
        rows = zip(timeline.names_C, timeline.rows_C.tolist(), strict=True)
        rare = sum(n for name, n in rows if name not in silent) - sum(often.values())
        fused = {name: int(bins[name].sum()) for name in often if self.numbers.style(name) == "fused" and name in bins}
        return {name: rows - fused.get(name, 0) for name, rows in often.items()}, rare

    # -- encode

    def encode_timeline(self, parts: Parts, dtype: np.dtype) -> dict[str, Any]:
        """The arrays of a token table that have an entry a token, and where each subject starts."""
        rows = parts.timeline
        code_N = rows.per_code(self.code_id, np.int64)[rows.code_N]
        bin_N = quantiles.find_bins(rows, self.breaks, self.settings.num_quantiles)
        interval_N, repeat_N = SPACING.find(arrays.gaps(rows))
        last_N = last_of_subject(rows.subject_N) & self.settings.timeline_end
        first_N: Any = self.vocabulary["Q1"]
        spoken_N = np.ones(len(code_N), np.int8)
        if self.numbers:
            first_N = rows.per_code(lambda code: self.numbers.first(code, self.vocabulary), np.int64)[rows.code_N]
            silent_N = rows.per_code(lambda code: self.numbers.style(code) in ("fused", "alone"), bool)[rows.code_N]
            spoken_N[silent_N & (bin_N > 0)] = 0
        silent_value_N = np.where(spoken_N > 0, np.float32("nan"), rows.value_N) if self.settings.value else None
        strands = [
            Strand(self.vocabulary[SPACING.names[0]] + interval_N, repeat_N),
            Strand(code_N, spoken_N, rows.value_N),
            Strand(first_N - 1 + bin_N, bin_N > 0, silent_value_N),
            Strand(np.full(len(code_N), self.vocabulary.get(END)), last_N),
        ]
        token, time, end_N, columns = weave(strands, rows.time_N, dtype, self.settings.value)
        # Nobody knows at the time of the last event that it is the last one. Were TIMELINE_END at that time, whoever
        # cuts a record at `time <= prediction_time` would show it to a prediction made at the last event.
        time[end_N[last_N] - 1] += 1
        offset = np.concatenate([[0], end_N])[arrays.offsets(rows.subject_N, len(parts.birth_S))]
        return {"offset": offset, "token": token, "time": time, "columns": columns}


def _without(part: Summary, dropped: set[str]) -> Summary:
    """The intervals and timelines of a shard without some codes."""
    assert part.instants is not None
    gap, timelines = part.instants.without(dropped)
    return dataclasses.replace(part, intervals=SPACING.measure(gap), timelines=timelines)


def _also_in_timeline(statics: list[Token], fused: dict[str, list[Token]]) -> list[Token]:
    """Static tokens; those that are fused tokens of the timeline as well are codes, and leave ``fused``."""
    there = {token.token: token.count for tokens in fused.values() for token in tokens}
    both = {token.token for token in statics} & set(there)
    for code, tokens in fused.items():
        fused[code] = [token for token in tokens if token.token not in both]
    return [
        dataclasses.replace(token, kind="code", count=token.count + there[token.token])
        if token.token in both
        else token
        for token in statics
    ]


def not_weaker(subject_M: np.ndarray, slot_M: np.ndarray, rank_M: np.ndarray) -> np.ndarray:
    """(M,) which static values, in order of subject and time, have no higher rank before them in their slot."""
    order = np.lexsort((slot_M, subject_M))  # stable: time order stays within a slot
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(subject_M[order]) != 0) | (np.diff(slot_M[order]) != 0)
    level = np.cumsum(new) * (int(rank_M.max(initial=0)) + 1) + rank_M[order]  # each slot is above the one before
    keep_M = np.empty(len(order), bool)
    keep_M[order] = level == np.maximum.accumulate(level) if len(level) else False
    return keep_M
