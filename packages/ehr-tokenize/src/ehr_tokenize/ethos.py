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
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ehr_core.config import to_plain
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import read_json, write_json
from ehr_core.formats.tokens import NO_TIME, TOKENIZER, Prefix, TokenTable, load_prefix, write_prefix
from ehr_core.formats.vocabulary import SPECIALS, UNK, Token, Vocabulary

from ehr_tokenize import stages
from ehr_tokenize.plugin import EthosConfig

BIRTH = "MEDS_BIRTH"
END = "TIMELINE_END"
MINUTE = 60_000_000
HOUR, DAY = 60 * MINUTE, 1440 * MINUTE
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
TENS = tuple(f"AGE_TENS//{digit}" for digit in range(10))
UNITS = tuple(f"AGE_UNITS//{digit}" for digit in range(10))
AGE_UNKNOWN = "AGE//UNKNOWN"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `Ethos.fit` needs to know of one shard."""

    timeline: stages.Counts
    static: stages.Counts
    intervals: list[tuple[int, int, int]]
    births: int
    timelines: int
    """Subjects with at least one timeline event."""


class Ethos:
    """See the module. Implements `ehr_core.protocols.Tokenizer`."""

    def __init__(self, settings: EthosConfig):
        if settings.num_quantiles < 2:
            raise ConfigError(f"tokenizer.num_quantiles is {settings.num_quantiles}; it must be at least 2")
        if settings.min_count < 1:
            raise ConfigError(f"tokenizer.min_count is {settings.min_count}; it must be at least 1")
        self.settings = settings
        self.vocabulary = Vocabulary.build([])
        self.prefix = Prefix()
        self.breaks: dict[str, list[float]] = {}
        """Per timeline code with numbers in train: its quantile breaks, ascending."""
        self.static_breaks: dict[str, list[float]] = {}
        """The same for static codes with numbers."""
        self.interval_estimates: dict[str, float] = {}
        """Mean seconds that each interval token stands for, in train."""

    @property
    def columns(self) -> dict[str, str]:
        """Further columns of the token tables."""
        return {"value": "float32"} if self.settings.value else {}

    # -- fit

    def _parts(self, rows: stages.Records) -> tuple[stages.Records, stages.Records, stages.Records]:
        """Timeline, static rows and births of a shard."""
        birth_N = rows.per_code(BIRTH.__eq__, bool)[rows.code_N]
        starts = tuple(f"{prefix}//" for prefix in self.settings.static_codes)
        exact = frozenset(self.settings.static_codes)
        static_N = rows.per_code(lambda code: code.startswith(starts) or code in exact, bool)[rows.code_N]
        timed_N = rows.time_N != NO_TIME
        static_N |= ~timed_N
        return rows.where(~(birth_N | static_N)), rows.where(static_N & ~birth_N), rows.where(birth_N & timed_N)

    def _slot(self, code: str) -> str:
        """The prefix slot that a static code without a number fills: ``GENDER`` of ``GENDER//F``.

        Beyond ``static_codes`` it is the code without its last component, so that ``DEMO//SEX//F`` and ``DEMO//HEIGHT``
        do not push each other out of one slot ``DEMO``.
        """
        chosen = [p for p in self.settings.static_codes if code == p or code.startswith(f"{p}//")]
        return chosen[0] if chosen else code.rpartition("//")[0] or code

    def summarize(self, events: pl.DataFrame) -> Summary:
        """Counts and numbers per code, lengths of intervals, births of one shard of train."""
        timeline, static, births = self._parts(stages.records(events))
        return Summary(
            stages.count(timeline),
            stages.count(static),
            SPACING.measure(stages.gaps(timeline)),
            len(births.time_N),
            int(np.count_nonzero(np.diff(timeline.subject_N, prepend=-1))),
        )

    def fit(self, summaries: Iterable[Summary]) -> None:
        """Fit vocabulary, slots, quantiles and interval estimates. Raises DataError when train has no event."""
        parts = list(summaries)
        timeline, static = stages.merge([p.timeline for p in parts]), stages.merge([p.static for p in parts])
        if not timeline.names_C:
            raise DataError("the train split has no event with a time, so there is nothing to fit a tokenizer on")
        size, least = self.settings.num_quantiles, self.settings.min_count
        often = {name: int(n) for name, n in zip(timeline.names_C, timeline.rows_C, strict=True) if n >= least}
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
        slots, statics = self._fit_static(static)
        rare = int(timeline.rows_C.sum()) - sum(often.values())
        self.vocabulary = _assemble(tokens, statics, often, rare)
        self.prefix = Prefix(
            slots=tuple(slots),
            unknown=tuple(self.vocabulary[f"{slot}//UNKNOWN"] for slot in slots),
            tens=tuple(self.vocabulary[name] for name in TENS) if born else (),
            units=tuple(self.vocabulary[name] for name in UNITS) if born else (),
            age_unknown=self.vocabulary[AGE_UNKNOWN] if born else 0,
        )

    def _fit_static(self, static: stages.Counts) -> tuple[list[str], list[Token]]:
        """Slots in order, and their tokens: the unknown one, then values by name or quantile."""
        size, least = self.settings.num_quantiles, self.settings.min_count
        length_C = np.diff(static.offset_C)
        breaks = stages.quantile_breaks(static, size)
        enough = {c for c, n in zip(static.names_C, length_C, strict=True) if n >= least}
        self.static_breaks = {code: found for code, found in breaks.items() if code in enough}
        bins = stages.bin_counts(static, self.static_breaks, size)
        filled: dict[str, list[Token]] = {}
        for code, rows, length in zip(static.names_C, static.rows_C.tolist(), length_C.tolist(), strict=True):
            if code in self.static_breaks:
                fused = [
                    Token(f"{code}//Q{k + 1}", "static", (code,), int(bins[code][k]))
                    for k in range(len(breaks[code]) + 1)
                ]
                filled.setdefault(code, []).extend(fused)
            elif length == 0 and rows >= least:
                filled.setdefault(self._slot(code), []).append(Token(code, "static", (code,), rows))
        tokens = []
        for slot in sorted(filled):
            unknown = f"{slot}//UNKNOWN"
            if all(token.token != unknown for token in filled[slot]):  # RACE//UNKNOWN may well be in the data
                tokens.append(Token(unknown, "static"))
            tokens += filled[slot]
        return sorted(filled), tokens

    # -- encode

    def encode(self, events: pl.DataFrame) -> TokenTable:
        """Tokens of a shard whose rows are sorted by (subject_id, time), null times first."""
        rows = stages.records(events)
        timeline, static, births = self._parts(rows)
        size = len(rows.subject_id_S)
        birth_S = np.full(size, NO_TIME)
        birth_S[births.subject_N[::-1]] = births.time_N[::-1]  # backwards, so that the first birth stays
        dtype = np.dtype(np.uint16 if len(self.vocabulary) <= 1 << 16 else np.uint32)
        return TokenTable(
            subject_id=rows.subject_id_S,
            birth=birth_S,
            **self._encode_timeline(timeline, size, dtype),
            **self._encode_static(static, size, dtype),
        )

    def _encode_timeline(self, rows: stages.Records, size: int, dtype: np.dtype) -> dict[str, Any]:
        """The arrays of a token table that have an entry a token, and where each subject starts."""
        code_N = rows.per_code(self._code_id, np.int64)[rows.code_N]
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
        offset = np.concatenate([[0], end_N])[stages.offsets(rows.subject_N, size)]
        return {"offset": offset, "token": token, "time": time, "columns": columns}

    def _code_id(self, code: str) -> int:
        index: int = self.vocabulary.ids.get(code, UNK)
        return index if self.vocabulary.tokens[index].kind == "code" else UNK

    def _encode_static(self, static: stages.Records, size: int, dtype: np.dtype) -> dict[str, Any]:
        """The static arrays of a token table. A number that is missing says nothing; a new value is unknown."""
        slot_ids = {slot: index for index, slot in enumerate(self.prefix.slots)}
        numeric_C = static.per_code(self.static_breaks.__contains__, bool)
        slot_C = static.per_code(lambda c: slot_ids.get(c if c in self.static_breaks else self._slot(c), -1), np.int64)
        token_C = static.per_code(self._static_id, np.int64)
        bin_N = stages.find_bins(static, self.static_breaks, self.settings.num_quantiles)
        slot_N, token_N, numeric_N = slot_C[static.code_N], token_C[static.code_N], numeric_C[static.code_N]
        unknown = np.array((*self.prefix.unknown, 0))  # the last one stands in for slot -1, which is dropped
        token_N = np.where(token_N < 0, unknown[slot_N], token_N) + np.where(numeric_N, bin_N - 1, 0)
        # A number of a code that had none in train belongs to no slot that we know.
        keep_N = (slot_N >= 0) & np.where(
            numeric_N, bin_N > 0, (token_C[static.code_N] >= 0) | np.isnan(static.value_N)
        )
        kept = np.flatnonzero(keep_N)
        kept = kept[np.lexsort((slot_N[kept], static.subject_N[kept]))]  # stable: time order stays within a slot
        subject, token = static.subject_N[kept], token_N[kept]
        new = np.ones(len(kept), bool)  # what repeats the value before it changes no prefix
        new[1:] = (subject[1:] != subject[:-1]) | (token[1:] != token[:-1])
        return {
            "static_offset": stages.offsets(subject[new], size),
            "static_slot": slot_N[kept][new].astype(np.uint16),
            "static_token": token[new].astype(dtype),
            "static_time": static.time_N[kept][new],
        }

    def _static_id(self, code: str) -> int:
        """Token of a static code; for one with numbers that of its first quantile; -1 for a new one."""
        if code in self.static_breaks:
            return int(self.vocabulary[f"{code}//Q1"])
        index: int = self.vocabulary.ids.get(code, -1)
        return index if index >= 0 and self.vocabulary.tokens[index].kind in ("static", "code") else -1

    # -- state

    def save(self, folder: Path) -> None:
        """Write vocabulary.json, prefix.json and tokenizer.json."""
        self.vocabulary.save(folder)
        write_prefix(folder, self.prefix)
        state = {
            "breaks": self.breaks,
            "static_breaks": self.static_breaks,
            "interval_estimates": self.interval_estimates,
            "interval_days": SPACING.days(),
        }
        found = {"name": self.settings.name, "settings": to_plain(self.settings), "state": state}
        write_json(folder / TOKENIZER, found)

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, settings included. Raises FormatError when it is another tokenizer's."""
        found: dict[str, Any] = read_json(folder / TOKENIZER)
        try:
            if found["name"] != self.settings.name:
                raise FormatError(f"{folder / TOKENIZER} is of tokenizer {found['name']!r}, not {self.settings.name!r}")
            self.settings = EthosConfig(**found["settings"])
            state = found["state"]
            self.breaks, self.static_breaks = state["breaks"], state["static_breaks"]
            self.interval_estimates = state["interval_estimates"]
        except (KeyError, TypeError) as error:
            raise FormatError(f"{folder / TOKENIZER} is not the state of tokenizer 'ethos': {error!r}") from error
        self.vocabulary = Vocabulary.load(folder)
        self.prefix = load_prefix(folder)


def _assemble(fixed: list[Token], statics: list[Token], often: dict[str, int], rare: int) -> Vocabulary:
    """Specials, quantiles, intervals, age, static tokens, then codes by (-count, code).

    A code that is both static and in the timeline is one token of kind ``code``. Raises DataError for a code that has
    the name of one of our own tokens: its meaning would be lost.
    """
    special = [Token(name, "special", (), rare if index == UNK else 0) for index, name in enumerate(SPECIALS)]
    ours = {token.token for token in special + fixed} | {t.token for t in statics if t.codes != (t.token,)}
    clash = sorted((set(often) | {t.token for t in statics if t.codes == (t.token,)}) & ours)
    if clash:
        raise DataError(f"the code {clash[0]!r} has the name of a token that the tokenizer makes itself; rename it")
    shared = [
        dataclasses.replace(token, kind="code", count=token.count + often[token.token])
        if token.token in often
        else token
        for token in statics
    ]
    placed = {token.token for token in shared}
    codes = [
        Token(code, "code", (code,), often[code])
        for code in sorted(often, key=lambda code: (-often[code], code))
        if code not in placed
    ]
    return Vocabulary(special + fixed + shared + codes)
