"""The tokenizer ``ethos``: a timeline of code, quantile and time-interval tokens behind a static prefix.

After ETHOS (Renc et al., Zero shot health trajectory prediction using transformer, npj Digital Medicine 2024), for any
MEDS dataset. An event becomes ``[interval...] code [quantile]``, all at the time of the event. Events of one instant
keep the order of their rows. What differs from the original, on purpose:

- An unseen code is [UNK]; a missing or infinite number never has a quantile.
- A static value counts from its own time on, not by the nearest time, which may lie in the future.
- Means of interval tokens are exact over all shards, not means of shard means.
- Quantiles, counts and slots come from the train split only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from ehr_core.errors import DataError
from ehr_core.formats.vocabulary import Token

from ehr_tokenize import stages
from ehr_tokenize.base import (
    AGE_UNKNOWN,
    DAY,
    HOUR,
    MINUTE,
    TENS,
    UNITS,
    Parts,
    TimelineTokenizer,
    assemble,
    often_enough,
)
from ehr_tokenize.plugin import EthosConfig

END = "TIMELINE_END"
INTERVALS = {
    "5m-15m": 5 * MINUTE,
    "15m-45m": 15 * MINUTE,
    "45m-1h15m": 45 * MINUTE,
    "1h15m-2h": 75 * MINUTE,
    "2h-3h": 2 * HOUR,
    "3h-5h": 3 * HOUR,
    "5h-8h": 5 * HOUR,
    "8h-12h": 8 * HOUR,
    "12h-18h": 12 * HOUR,
    "18h-1d": 18 * HOUR,
    "1d-2d": 1 * DAY,
    "2d-4d": 2 * DAY,
    "4d-7d": 4 * DAY,
    "7d-12d": 7 * DAY,
    "12d-20d": 12 * DAY,
    "20d-30d": 20 * DAY,
    "30d-2mt": 30 * DAY,
    "2mt-6mt": 60 * DAY,
    "=6mt": 180 * DAY,
}
"""Token to its lower bound in microseconds; the last one is repeated."""
SPACING = stages.Spacing(tuple(INTERVALS), np.array(list(INTERVALS.values()), np.int64))


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `Ethos.fit` needs to know of one shard."""

    timeline: stages.Counts
    static: stages.Counts
    intervals: list[tuple[int, int, int]]
    births: int
    timelines: int
    """Subjects with at least one timeline event."""


class Ethos(TimelineTokenizer):
    """See the module. Implements `ehr_core.protocols.Tokenizer`."""

    config = EthosConfig
    spacing = SPACING

    # -- fit

    def summarize(self, events: pl.DataFrame) -> Summary:
        """Counts and numbers per code, lengths of intervals, births of one shard of train."""
        parts = self.parts(stages.records(events))
        return Summary(
            stages.count(parts.timeline),
            stages.count(parts.static),
            SPACING.measure(stages.gaps(parts.timeline)),
            parts.births,
            int(np.count_nonzero(np.diff(parts.timeline.subject_N, prepend=-1))),
        )

    def fit(self, summaries: Iterable[Summary]) -> None:
        """Fit vocabulary, slots, quantiles and interval estimates. Raises DataError when train has no event."""
        parts = list(summaries)
        timeline, static = stages.merge([p.timeline for p in parts]), stages.merge([p.static for p in parts])
        if not timeline.names_C:
            raise DataError("the train split has no event with a time, so there is nothing to fit a tokenizer on")
        size, least = self.settings.num_quantiles, self.settings.min_count
        often = often_enough(timeline, least)
        self.breaks = {c: b for c, b in stages.quantile_breaks(timeline, size).items() if c in often}
        measured = [p.intervals for p in parts]
        self.interval_estimates = SPACING.estimates(measured)

        bins = sum(stages.bin_counts(timeline, self.breaks, size).values(), np.zeros(size, np.int64))
        tokens = [Token(f"Q{k + 1}", "quantile", (), int(bins[k])) for k in range(size)]
        for index, name in enumerate(INTERVALS):
            tokens.append(Token(name, "interval", (), sum(shard[index][0] for shard in measured)))
        if self.settings.timeline_end:
            tokens.append(Token(END, "end", (), sum(p.timelines for p in parts)))
        born = any(p.births for p in parts)
        if born:
            tokens += [Token(name, "age") for name in (*TENS, *UNITS, AGE_UNKNOWN)]
        slots, statics = self.fit_static(static)
        rare = int(timeline.rows_C.sum()) - sum(often.values())
        self.vocabulary = assemble(tokens, statics, often, rare)
        self.prefix = self.make_prefix(slots, born)

    # -- encode

    def encode_timeline(self, parts: Parts, dtype: np.dtype) -> dict[str, Any]:
        """The arrays of a token table that have an entry a token, and where each subject starts."""
        rows = parts.timeline
        code_N = rows.per_code(self.code_id, np.int64)[rows.code_N]
        bin_N = stages.find_bins(rows, self.breaks, self.settings.num_quantiles)
        interval_N, repeat_N = SPACING.find(stages.gaps(rows))
        last_N = np.zeros(len(code_N), bool)
        if self.settings.timeline_end:
            last_N[:-1] = rows.subject_N[1:] != rows.subject_N[:-1]
            last_N[-1:] = True
        ids = [
            self.vocabulary[SPACING.names[0]] + interval_N,
            code_N,
            self.vocabulary["Q1"] - 1 + bin_N,
            np.full(len(code_N), self.vocabulary.get(END)),
        ]
        often = [repeat_N, np.ones(len(code_N), np.int8), bin_N > 0, last_N]
        token, total_N = stages.interleave(list(zip(ids, often, strict=True)), dtype)
        end_N = np.cumsum(total_N)
        time = np.repeat(rows.time_N, total_N)
        # Nobody knows at the time of the last event that it is the last one. Were TIMELINE_END at that time, whoever
        # cuts a record at `time <= prediction_time` would show it to a prediction made at the last event.
        time[end_N[last_N] - 1] += 1
        columns = {}
        if self.settings.value:
            none_N = np.full(len(code_N), np.nan, np.float32)
            values = [none_N, rows.value_N, none_N, none_N]
            columns["value"] = stages.interleave(list(zip(values, often, strict=True)), np.dtype(np.float32))[0]
        offset = np.concatenate([[0], end_N])[stages.offsets(rows.subject_N, len(parts.birth_S))]
        return {"offset": offset, "token": token, "time": time, "columns": columns}
