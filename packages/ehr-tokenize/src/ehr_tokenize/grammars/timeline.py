"""What grammars with one timeline a subject share: which rows are static, and how they fill the prefix.

A tokenizer derives from `TimelineTokenizer` and adds `summarize`, `fit` and `encode_timeline`.

Shapes: N rows (events), S subjects, C distinct codes.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
from ehr_core.constants import MEDS_BIRTH
from ehr_core.errors import ConfigError
from ehr_core.formats.tokens import NO_TIME, Prefix, TokenTable
from ehr_core.formats.vocabulary import UNK, Token

from ehr_tokenize.fit import quantiles
from ehr_tokenize.grammars.spine import SpacedTokenizer
from ehr_tokenize.prepare import arrays

TENS = tuple(f"AGE_TENS//{digit}" for digit in range(10))
UNITS = tuple(f"AGE_UNITS//{digit}" for digit in range(10))
AGE_UNKNOWN = "AGE//UNKNOWN"


@dataclasses.dataclass(frozen=True)
class Parts:
    """The rows of a shard, told apart."""

    timeline: arrays.Records
    static: arrays.Records
    birth_S: np.ndarray
    """int64 microseconds, the first MEDS_BIRTH; NO_TIME if unknown."""

    @property
    def births(self) -> int:
        """Subjects whose birth is known."""
        return int(np.count_nonzero(self.birth_S != NO_TIME))


class TimelineTokenizer(SpacedTokenizer):
    """One timeline a subject, static rows as a prefix. Settings also have ``num_quantiles`` and ``static_codes``."""

    saved: ClassVar[tuple[str, ...]] = (*SpacedTokenizer.saved, "static_breaks")
    births_are_events: bool = False
    """Whether MEDS_BIRTH is in the timeline, too."""

    def __init__(self, settings: Any):
        self.static_breaks: dict[str, list[float]] = {}
        """As ``breaks``, for static codes with numbers."""
        super().__init__(settings)

    def configure(self) -> None:
        """Check the settings and make what follows from them."""
        super().configure()
        if self.settings.num_quantiles < 2:
            raise ConfigError(f"tokenizer.num_quantiles is {self.settings.num_quantiles}; it must be at least 2")

    @abc.abstractmethod
    def encode_timeline(self, parts: Parts, dtype: np.dtype) -> dict[str, Any]:
        """``offset``, ``token``, ``time`` and ``columns`` of a token table."""

    # -- rows

    def parts(self, rows: arrays.Records) -> Parts:
        """Timeline, static rows and births of a shard."""
        birth_N = rows.per_code(MEDS_BIRTH.__eq__, bool)[rows.code_N]
        starts = tuple(f"{prefix}//" for prefix in self.settings.static_codes)
        exact = frozenset(self.settings.static_codes)
        static_N = rows.per_code(lambda code: code.startswith(starts) or code in exact, bool)[rows.code_N]
        timed_N = rows.time_N != NO_TIME
        static_N |= ~timed_N
        out_N = static_N if self.births_are_events else birth_N | static_N
        return Parts(
            rows.where(~out_N),
            rows.where(static_N & ~birth_N).compact(),  # few codes are static
            births(rows, rows.where(birth_N & timed_N)),
        )

    def encode(self, events: pl.DataFrame) -> TokenTable:
        """Tokens of a shard whose rows are sorted by (subject_id, time), null times first."""
        rows = self.records(events)
        parts = self.parts(rows)
        dtype = self.dtype
        static = self.static_rows(parts)
        return TokenTable(
            subject_id=rows.subject_id_S,
            birth=parts.birth_S,
            **self.encode_timeline(parts, dtype),
            **static_arrays(*static, size=len(rows.subject_id_S), dtype=dtype),
        )

    def code_id(self, code: str) -> int:
        """The token of a timeline code; UNK for one that has none."""
        index: int = self.vocabulary.ids.get(code, UNK)
        return index if self.vocabulary.tokens[index].kind == "code" else UNK

    def breaks_of(self, counts: quantiles.Counts) -> dict[str, list[float]]:
        """Breaks of every code that has numbers, static or not: a number in both places means one thing."""
        return quantiles.quantile_breaks(counts, self.settings.num_quantiles)

    # -- static prefix

    def slot(self, code: str) -> str:
        """The prefix slot that a static code without a number fills: ``GENDER`` of ``GENDER//F``.

        Beyond ``static_codes`` it is the code without its last component, so that ``DEMO//SEX//F`` and ``DEMO//HEIGHT``
        do not push each other out of one slot ``DEMO``.
        """
        chosen = [p for p in self.settings.static_codes if code == p or code.startswith(f"{p}//")]
        return chosen[0] if chosen else code.rpartition("//")[0] or code

    def fit_static(self, static: quantiles.Counts) -> tuple[list[str], list[Token]]:
        """Slots in order, and their tokens: the unknown one, then values by name or quantile."""
        size, least = self.settings.num_quantiles, self.settings.min_count
        length_C = np.diff(static.offset_C)
        breaks = self.breaks_of(static)
        enough = {c for c, n in zip(static.names_C, length_C, strict=True) if n >= least}
        self.static_breaks = {code: found for code, found in breaks.items() if code in enough}
        bins = quantiles.bin_counts(static, self.static_breaks, size)
        filled: dict[str, list[Token]] = {}
        for code, rows, length in zip(static.names_C, static.rows_C.tolist(), length_C.tolist(), strict=True):
            if code in self.static_breaks:
                fused = [
                    Token(f"{code}//Q{k + 1}", "static", (code,), int(bins[code][k]))
                    for k in range(len(breaks[code]) + 1)
                ]
                filled.setdefault(code, []).extend(fused)
            elif length == 0 and rows >= least:
                filled.setdefault(self.slot(code), []).append(Token(code, "static", (code,), rows))
        tokens = []
        for slot in sorted(filled):
            unknown = f"{slot}//UNKNOWN"
            if all(token.token != unknown for token in filled[slot]):  # RACE//UNKNOWN may well be in the data
                tokens.append(Token(unknown, "static"))
            tokens += filled[slot]
        return sorted(filled), tokens

    def make_prefix(self, slots: Sequence[str], age: bool) -> Prefix:
        """The prefix with these slots, and age digits at its end if asked for, from the vocabulary."""
        ids = self.vocabulary
        return Prefix(
            slots=tuple(slots),
            unknown=tuple(ids[f"{slot}//UNKNOWN"] for slot in slots),
            tens=tuple(ids[name] for name in TENS) if age else (),
            units=tuple(ids[name] for name in UNITS) if age else (),
            age_unknown=ids[AGE_UNKNOWN] if age else 0,
        )

    def static_rows(self, parts: Parts) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Subject, slot, token and time of each static value, in order of time.

        A number that is missing says nothing; a new value is unknown.
        """
        static = parts.static
        slot_ids = {slot: index for index, slot in enumerate(self.prefix.slots)}
        numeric_C = static.per_code(self.static_breaks.__contains__, bool)
        slot_C = static.per_code(lambda c: slot_ids.get(c if c in self.static_breaks else self.slot(c), -1), np.int64)
        token_C = static.per_code(self._static_id, np.int64)
        bin_N = quantiles.find_bins(static, self.static_breaks, self.settings.num_quantiles)
        slot_N, token_N, numeric_N = slot_C[static.code_N], token_C[static.code_N], numeric_C[static.code_N]
        unknown = np.array((*self.prefix.unknown, 0))  # the last one stands in for slot -1, which is dropped
        token_N = np.where(token_N < 0, unknown[slot_N], token_N) + np.where(numeric_N, bin_N - 1, 0)
        # A number of a code that had none in train belongs to no slot that we know.
        keep_N = (slot_N >= 0) & np.where(
            numeric_N, bin_N > 0, (token_C[static.code_N] >= 0) | np.isnan(static.value_N)
        )
        return static.subject_N[keep_N], slot_N[keep_N], token_N[keep_N], static.time_N[keep_N]

    def _static_id(self, code: str) -> int:
        """Token of a static code; for one with numbers that of its first quantile; -1 for a new one."""
        if code in self.static_breaks:
            return int(self.vocabulary[f"{code}//Q1"])
        index: int = self.vocabulary.ids.get(code, -1)
        return index if index >= 0 and self.vocabulary.tokens[index].kind in ("static", "code") else -1


def births(rows: arrays.Records, found: arrays.Records) -> np.ndarray:
    """(S,) time of the first of the rows ``found`` of each subject; NO_TIME for none."""
    birth_S = np.full(len(rows.subject_id_S), NO_TIME)
    birth_S[found.subject_N[::-1]] = found.time_N[::-1]  # backwards, so that the first birth stays
    return birth_S


def static_arrays(
    subject_N: np.ndarray, slot_N: np.ndarray, token_N: np.ndarray, time_N: np.ndarray, size: int, dtype: np.dtype
) -> dict[str, Any]:
    """The static arrays of a token table, from rows in order of time."""
    order = np.lexsort((slot_N, subject_N))  # stable: time order stays within a slot
    subject, token = subject_N[order], token_N[order]
    new = np.ones(len(order), bool)  # what repeats the value before it changes no prefix
    new[1:] = (subject[1:] != subject[:-1]) | (token[1:] != token[:-1])
    return {
        "static_offset": arrays.offsets(subject[new], size),
        "static_slot": slot_N[order][new].astype(np.uint16),
        "static_token": token[new].astype(dtype),
        "static_time": time_N[order][new],
    }
