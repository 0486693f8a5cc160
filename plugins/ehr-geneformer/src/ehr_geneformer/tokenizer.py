"""The tokenizer ``rank_value``: a record is one sentence, its codes ranked by value over the code's median.

After Geneformer (Theodoris et al., Transfer learning enables predictions in network biology, Nature 2023), where a
record is a cell, a code a gene and a value a count of transcripts: values are (if ``scale_total`` says so) scaled to a
common sum, divided by the median of the code's non-zero values over the subjects of train, and sorted from high to low;
equal ones by id. The first ``max_length`` stay. For clinical numbers:

- Several values of a code become their mean, or the last one. Zero and missing values leave no token, as in Geneformer.
- A number may be negative: the median is of absolute values, so that negative values rank last.
- An unseen code has no median. Its [UNK] ranks behind all others. A published vocabulary without [UNK] leaves it out.
- A sentence is known when its last value is: all its tokens stand one microsecond after the record's last event, or
  with ``hours`` at the end of the first so many hours. So nothing of it is visible to a prediction made earlier.

Shapes: N rows, S subjects, C distinct codes, K values (one a subject and code), M values that become tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from ehr_core.constants import HOUR_US, MEDS_BIRTH
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.tokens import NO_TIME, TokenTable
from ehr_core.formats.vocabulary import SPECIALS, UNK, Token, Vocabulary
from ehr_tokenize.fit import quantiles
from ehr_tokenize.grammars.spine import FittedTokenizer
from ehr_tokenize.prepare import arrays
from ehr_tokenize.prepare.preparation import LONGEST

from ehr_geneformer.plugin import RankValueConfig
from ehr_geneformer.published import described, read_medians, read_vocabulary

NOTHING = quantiles.Counts([], np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.float32))


class RankValue(FittedTokenizer):
    """See the module. Implements `ehr_core.protocols.Tokenizer`."""

    settings: RankValueConfig
    saved = ("medians", "files")
    summary_type = quantiles.Counts

    def __init__(self, settings: RankValueConfig):
        self.medians: dict[str, float] = {}
        """Token to the median that its values are divided by."""
        self.files: dict[str, dict[str, str]] = {}
        """Name and sha256 of the published files."""
        super().__init__(settings)

    def configure(self) -> None:
        """Check the settings."""
        super().configure()
        settings = self.settings
        if settings.reduce not in ("mean", "last"):
            raise ConfigError(f"tokenizer.reduce is {settings.reduce!r}; allowed: mean, last")
        for name, least in (("max_length", 1), ("scale_total", 0), ("hours", 0)):
            if not least <= getattr(settings, name) < float("inf"):
                raise ConfigError(f"tokenizer.{name} is {getattr(settings, name)}; it must be at least {least}")
        if settings.hours > LONGEST:
            raise ConfigError(f"tokenizer.hours is {settings.hours}; it must be at most {LONGEST:,}")

    @property
    def columns(self) -> dict[str, str]:
        """None: a sentence has no numbers left."""
        return {}

    # -- fit

    def summarize(self, events: pl.DataFrame) -> quantiles.Counts:
        """Absolute values of one shard, one a subject and code; nothing where all is published."""
        if self.settings.vocabulary and self.settings.medians:
            return NOTHING
        rows = reduced(self.records(events), self.settings)
        rows = rows.where(rows.value_N != 0)
        return quantiles.count(dataclasses.replace(rows, value_N=np.abs(rows.value_N)))

    def fit(self, summaries: Iterable[quantiles.Counts]) -> None:
        """Fit or read vocabulary and medians. Raises DataError when train has no number other than 0."""
        found = quantiles.merge(list(summaries))
        self.read_published()
        medians = self.medians if self.settings.medians else medians_of(found)
        if not self.settings.vocabulary:
            if not found.names_C:
                raise DataError("the train split has no number other than 0, so there is nothing to rank by")
            self.vocabulary = _build(found, self.often(found))
        codes = {token.token for token in self.vocabulary.tokens if token.kind == "code"}
        self.medians = {name: median for name, median in sorted(medians.items()) if name in codes}
        if not self.medians:
            raise DataError("no code has a token and a median; tokenizer.vocabulary and the codes are of other origins")

    def unfitted(self) -> Self:
        """One of the same settings that fits a vocabulary and medians of its own."""
        new = super().unfitted()
        new.settings = dataclasses.replace(self.settings, vocabulary=None, medians=None)
        return new

    def read_published(self) -> None:
        """Read the vocabulary and the medians that the settings name. Raises FormatError."""
        if self.settings.vocabulary:
            self.vocabulary = read_vocabulary(Path(self.settings.vocabulary))
            self.files["vocabulary"] = described(Path(self.settings.vocabulary))
        if self.settings.medians:
            self.medians = read_medians(Path(self.settings.medians))
            self.files["medians"] = described(Path(self.settings.medians))

    def count(self, count_V: np.ndarray) -> None:
        """Set how often train has each token."""
        pairs = zip(self.vocabulary.tokens, count_V.tolist(), strict=True)
        self.vocabulary = Vocabulary([dataclasses.replace(token, count=number) for token, number in pairs])

    # -- encode

    def encode(self, events: pl.DataFrame) -> TokenTable:
        """One sentence a subject; see the module."""
        if not self.medians:
            raise DataError(
                "this tokenizer has no medians to rank by: it was made from ranked sentences without medians="
            )
        rows = self.records(events)
        known_S = known_at(rows, self.settings)
        values = reduced(rows, self.settings)
        values = values.where(values.value_N != 0)
        unknown = self.vocabulary.ids.get(SPECIALS[UNK], -1)
        id_C = values.per_code(lambda code: self.vocabulary[code] if code in self.medians else unknown, np.int64)
        median_C = values.per_code(lambda code: self.medians.get(code, np.nan), np.float64)
        rank_K = values.value_N / median_C[values.code_N]
        id_K, subject_K = id_C[values.code_N], values.subject_N
        size = len(rows.subject_id_S)
        kept = np.flatnonzero(id_K >= 0)
        # NaN, where there is no median, sorts last; equal ranks and unknown codes are in the order of ids.
        kept = kept[np.lexsort((id_K[kept], -rank_K[kept], subject_K[kept]))]
        start_S = arrays.offsets(subject_K[kept], size)
        kept = kept[np.arange(len(kept)) - start_S[subject_K[kept]] < self.settings.max_length]
        return sentences(rows.subject_id_S, subject_K[kept], id_K[kept].astype(self.dtype), known_S)

    def unknown_events(self, events: pl.DataFrame) -> dict[str, int]:
        """Code to how many of its ranked numbers have no median, so that they become [UNK] or, without one, nothing."""
        rows = numbers(self.records(events), self.settings)
        unknown_C = ~rows.per_code(self.medians.__contains__, bool)
        often_C = np.bincount(rows.code_N[rows.value_N != 0], minlength=len(rows.names_C))
        return {rows.names_C[c]: int(often_C[c]) for c in np.flatnonzero(unknown_C & (often_C > 0))}

    def portable_settings(self) -> dict[str, Any]:
        """The settings as JSON values, without places of files."""
        plain = super().portable_settings()
        names = [name for name in ("vocabulary", "medians") if plain[name]]
        return plain | {name: Path(plain[name]).name for name in names}


def _build(found: quantiles.Counts, often: dict[str, int]) -> Vocabulary:
    """The specials, then codes by (-subjects, code)."""
    clash = sorted(often.keys() & set(SPECIALS))
    if clash:
        raise DataError(f"the code {clash[0]!r} has the name of a token that the tokenizer makes itself; rename it")
    rare = int(found.rows_C.sum()) - sum(often.values())
    special = [Token(name, "special", (), rare if index == UNK else 0) for index, name in enumerate(SPECIALS)]
    names = sorted(often, key=lambda name: (-often[name], name))
    return Vocabulary(special + [Token(name, "code", (name,), often[name]) for name in names])


def medians_of(found: quantiles.Counts) -> dict[str, float]:
    """Median of the values of each code; the mean of the middle two for an even number."""
    return {code: breaks[0] for code, breaks in quantiles.quantile_breaks(found, 2).items()}


def _ends(rows: arrays.Records) -> tuple[np.ndarray, np.ndarray]:
    """(S,) first and last time of an event other than birth; NO_TIME where there is none."""
    birth_C = rows.per_code(MEDS_BIRTH.__eq__, bool)
    at = np.flatnonzero((rows.time_N != NO_TIME) & ~birth_C[rows.code_N])
    size = len(rows.subject_id_S)
    first_S, last_S = np.full(size, NO_TIME), np.full(size, NO_TIME)
    last_S[rows.subject_N[at]] = rows.time_N[at]  # in order of time: the last assignment stays
    first_S[rows.subject_N[at[::-1]]] = rows.time_N[at[::-1]]
    return first_S, last_S


def known_at(rows: arrays.Records, settings: RankValueConfig) -> np.ndarray:
    """(S,) the time from which a subject's sentence is known; 0 for a record without times."""
    first_S, last_S = _ends(rows)
    end_S = first_S + int(settings.hours * HOUR_US) if settings.hours else last_S + 1
    return np.where(first_S == NO_TIME, 0, end_S)


def numbers(rows: arrays.Records, settings: RankValueConfig) -> arrays.Records:
    """The rows with a number, among those that the settings rank."""
    keep_N = ~np.isnan(rows.value_N)
    if settings.hours:
        keep_N &= (rows.time_N == NO_TIME) | (rows.time_N <= known_at(rows, settings)[rows.subject_N])
    return rows.where(keep_N)


def reduced(rows: arrays.Records, settings: RankValueConfig) -> arrays.Records:
    """One row per subject and code that has a number: its mean or last value, scaled if the settings say so."""
    rows = numbers(rows, settings)
    order = np.lexsort((rows.code_N, rows.subject_N))  # stable: in order of time within a subject and code
    rows = rows.where(order)
    if not len(order):
        return rows
    new_N = np.ones(len(order), bool)
    new_N[1:] = (rows.subject_N[1:] != rows.subject_N[:-1]) | (rows.code_N[1:] != rows.code_N[:-1])
    first_K = np.flatnonzero(new_N)
    last_K = np.append(first_K[1:], len(order)) - 1
    value_K = rows.value_N[last_K].astype(np.float64)
    if settings.reduce == "mean":
        value_K = np.add.reduceat(rows.value_N.astype(np.float64), first_K) / (last_K - first_K + 1)
    found = rows.where(last_K)
    if settings.scale_total:
        total_S = np.bincount(found.subject_N, np.abs(value_K), len(rows.subject_id_S))
        total_K = total_S[found.subject_N]
        value_K = np.divide(value_K * settings.scale_total, total_K, out=np.zeros_like(value_K), where=total_K > 0)
    return dataclasses.replace(found, value_N=value_K.astype(np.float32))


def sentences(subject_id_S: np.ndarray, subject_M: np.ndarray, token_M: np.ndarray, time_S: np.ndarray) -> TokenTable:
    """A token table of one sentence a subject, all of it at one time, without statics."""
    size = len(subject_id_S)
    return TokenTable(
        subject_id=subject_id_S,
        offset=arrays.offsets(subject_M, size),
        token=token_M,
        time=time_S[subject_M],
        birth=np.full(size, NO_TIME),
        static_offset=np.zeros(size + 1, np.int64),
        static_slot=np.zeros(0, np.uint16),
        static_token=np.zeros(0, token_M.dtype),
        static_time=np.zeros(0, np.int64),
    )
