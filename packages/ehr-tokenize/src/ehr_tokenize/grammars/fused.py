"""The tokenizer ``fused``: everything is a code. An event is one token, its number a part of the code's name.

After MEDS-EIC-AR (McDermott et al.): ``CODE//value_[lo,hi)`` where a code has numbers in train, ``TIMELINE//START``
first, ``TIMELINE//DELTA//years//value_[lo,hi)`` before the first event of each later instant, ``TIMELINE//END`` last.
What differs from the original, on purpose:

- A code below the thresholds is [UNK] and counted, where the original drops the event.
- A missing number is the bare code: no bin says "nothing was measured".
- Static rows make the prefix of each window, where the original leaves them out.
- Subjects with few events are kept: whether a record will be long is not known while it grows.
- TIMELINE//END is one microsecond after the last event, so that a cut at that event's time does not show it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from ehr_core.constants import DAY_US, HOUR_US, MINUTE_US, YEAR_US
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.vocabulary import UNK, Token

from ehr_tokenize.fit import quantiles
from ehr_tokenize.fit.vocabularies import assemble, subjects_per_code
from ehr_tokenize.grammars.spacing import Lengths, Once, join
from ehr_tokenize.grammars.timeline import AGE_UNKNOWN, TENS, UNITS, Parts, TimelineTokenizer
from ehr_tokenize.grammars.weaving import Strand, last_of_subject, weave
from ehr_tokenize.plugin import FusedConfig
from ehr_tokenize.prepare import arrays

START, END = "TIMELINE//START", "TIMELINE//END"
EDGES = (
    *(minutes * MINUTE_US for minutes in (1, 5, 10, 30)),
    *(hours * HOUR_US for hours in (1, 3, 6, 12)),
    *(days * DAY_US for days in (1, 2, 4, 7, 14, 30, 60, 120)),
    *(int(years * YEAR_US) for years in (1, 2, 5, 10, 20, 40)),
)
"""Microseconds at which one DELTA token ends and the next begins."""


def bin_names(stem: str, edges: Iterable[float], lowest: str = "-inf") -> list[str]:
    """``stem//value_[lo,hi)`` for each bin; edges in six digits, in all of them where six would not tell them apart."""
    exact = [float(edge) for edge in edges]
    short = [f"{edge:.6g}" for edge in exact]
    texts = short if len(set(short)) == len(short) else [repr(edge) for edge in exact]
    return [f"{stem}//value_[{low},{high})" for low, high in zip([lowest, *texts], [*texts, "inf"], strict=True)]


DELTA = Once(
    tuple(bin_names("TIMELINE//DELTA//years", (edge / YEAR_US for edge in EDGES), lowest="0")),
    np.array([1, *EDGES], np.int64),
)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `Fused.fit` needs to know of one shard."""

    timeline: quantiles.Counts
    subjects: dict[str, int]
    """Subjects that have each timeline code."""
    static: quantiles.Counts
    intervals: Lengths
    births: int
    timelines: int


class Fused(TimelineTokenizer):
    """See the module. Implements `ehr_core.protocols.Tokenizer`."""

    spacing = DELTA
    summary_type = Summary
    settings: FusedConfig

    def configure(self) -> None:
        """Check the settings and make what follows from them."""
        super().configure()
        if self.settings.bins not in ("value", "quantile"):
            raise ConfigError(f"tokenizer.bins is {self.settings.bins!r}; allowed: value, quantile")

    @property
    def births_are_events(self) -> bool:  # type: ignore[override]
        """Whether MEDS_BIRTH is in the timeline, too."""
        return bool(self.settings.birth_event)

    # -- fit

    def summarize(self, events: pl.DataFrame) -> Summary:
        """Counts and numbers per code, subjects per code, lengths of gaps of one shard of train."""
        parts = self.parts(self.records(events))
        return Summary(
            quantiles.count(parts.timeline),
            subjects_per_code(parts.timeline),
            quantiles.count(parts.static),
            DELTA.measure(arrays.gaps(parts.timeline)),
            parts.births,
            int(np.count_nonzero(last_of_subject(parts.timeline.subject_N))),
        )

    def fit(self, summaries: Iterable[Summary]) -> None:
        """Fit vocabulary, slots, bins and interval estimates. Raises DataError when train has no event."""
        found = list(summaries)
        timeline, static = quantiles.merge([p.timeline for p in found]), quantiles.merge([p.static for p in found])
        if not timeline.names_C:
            raise DataError("the train split has no event with a time, so there is nothing to fit a tokenizer on")
        subjects: Counter[str] = Counter()
        for part in found:
            subjects.update(part.subjects)
        often = self.often(timeline, subjects)
        size = self.settings.num_quantiles
        self.breaks = {c: b for c, b in quantiles.quantile_breaks(timeline, size).items() if c in often}
        fused = self._fused(quantiles.bin_counts(timeline, quantiles.half_open(self.breaks), size))
        timelines = sum(p.timelines for p in found)
        tokens = [Token(START, "start", (), timelines)]
        tokens += self.fit_intervals(join(p.intervals for p in found), DELTA.names, DELTA.middles())
        if self.settings.timeline_end:
            tokens.append(Token(END, "end", (), timelines))
        born = any(p.births for p in found)
        if born:
            tokens += [Token(name, "age") for name in (*TENS, *UNITS, AGE_UNKNOWN)]
        slots, statics = self.fit_static(static)
        rare = int(timeline.rows_C.sum()) - sum(often.values())
        bare = {code: rows - sum(token.count for token in fused.get(code, [])) for code, rows in often.items()}
        self.vocabulary = assemble(tokens, statics, bare, rare, fused)
        self.prefix = self.make_prefix(slots, born)

    def _fused(self, counts: dict[str, np.ndarray]) -> dict[str, list[Token]]:
        """The tokens of each code with numbers, one a bin."""
        found = {}
        for code, breaks in self.breaks.items():
            names = (
                bin_names(code, breaks)
                if self.settings.bins == "value"
                else [f"{code}//Q{k + 1}" for k in range(len(breaks) + 1)]
            )
            found[code] = [Token(name, "code", (code,), int(counts[code][k])) for k, name in enumerate(names)]
        return found

    def _first_bin(self, code: str) -> int:
        """Id of the token of a code's lowest bin; the others follow it. 0 for a code without bins."""
        if code not in self.breaks:
            return 0
        name = bin_names(code, self.breaks[code])[0] if self.settings.bins == "value" else f"{code}//Q1"
        return int(self.vocabulary[name])

    # -- encode

    def code_id(self, code: str) -> int:
        """The token of a timeline code; UNK for one that has none. An unseen code named like a bin is no bin."""
        index = super().code_id(code)
        return index if self.vocabulary.tokens[index].codes == (code,) else UNK

    def encode_timeline(self, parts: Parts, dtype: np.dtype) -> dict[str, Any]:
        """The arrays of a token table that have an entry a token, and where each subject starts."""
        rows = parts.timeline
        bin_N = quantiles.find_bins(rows, quantiles.half_open(self.breaks), self.settings.num_quantiles)
        bare_N = rows.per_code(self.code_id, np.int64)[rows.code_N]
        code_N = np.where(bin_N > 0, rows.per_code(self._first_bin, np.int64)[rows.code_N] - 1 + bin_N, bare_N)
        delta_N, often_N = DELTA.find(arrays.gaps(rows))
        first_N = np.diff(rows.subject_N, prepend=-1) != 0
        last_N = last_of_subject(rows.subject_N) & self.settings.timeline_end
        strands = [
            Strand(np.full(len(code_N), self.vocabulary[START]), first_N),
            Strand(self.vocabulary[DELTA.names[0]] + delta_N, often_N),
            Strand(code_N, np.ones(len(code_N), np.int8), rows.value_N),
            Strand(np.full(len(code_N), self.vocabulary.get(END)), last_N),
        ]
        token, time, end_N, columns = weave(strands, rows.time_N, dtype, self.settings.value)
        time[end_N[last_N] - 1] += 1  # nobody knows at the time of the last event that it is the last one
        offset = np.concatenate([[0], end_N])[arrays.offsets(rows.subject_N, len(parts.birth_S))]
        return {"offset": offset, "token": token, "time": time, "columns": columns}
