"""The tokenizer ``fms``: a timeline for each hospitalization, from tables in YAML.

After fms-ehrs (Burkhart et al. 2025), for any MEDS dataset:

    TL_START  prefix...  [spacing] event [bin]  ...  [ELLIPSIS]  [spacing] suffix...  TL_END

**A hospitalization** is the span from an admission to a discharge code. With ``stay_column``, a row belongs to the one
that it names: that begins with its first row and ends at a discharge that names it, and several may overlap. The store
keeps one row a subject, as for every tokenizer; the hospitalizations of a subject follow each other in it, told apart
by the column ``stay`` (0, 1, ... within the subject). Those that overlap are interleaved, as tokens are in order of
time. What is in none of them is left out.

What differs from the original, on purpose:

- A missing number has no bin; an unseen token is [UNK] and counted, not the token None.
- Nothing shows before it is known. A hospitalization that is not over has no suffix and no TL_END; ELLIPSIS has the
  time of the first event that it replaces. TRUNC takes the place of token number ``max_length`` whether or not more
  would follow, as that is not known at its time.
- Expressions are parsed, never evaluated as code, and a key or name that does not exist is an error.
- Hospitalizations are not dropped for being short: how long one will be is not known at its start.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ehr_core.config import nearest
from ehr_core.constants import DAY_US, HOUR_US, MINUTE_US
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.tokens import NO_TIME, TokenTable
from ehr_core.formats.vocabulary import UNK, Token, Vocabulary
from ehr_tokenize.fit import quantiles
from ehr_tokenize.fit.vocabularies import assemble
from ehr_tokenize.grammars.spacing import Lengths, Once, join
from ehr_tokenize.grammars.spine import SpacedTokenizer
from ehr_tokenize.grammars.timeline import static_arrays
from ehr_tokenize.prepare import arrays

from ehr_fms.layout import lay_out, place_items
from ehr_fms.plugin import FmsConfig
from ehr_fms.quantizers import LABELS, check_ranges, fit_breaks, reachable, read_ranges
from ehr_fms.stay_rows import Items, StayRows, arrange, find_items, find_prefix, within_days
from ehr_fms.tables import TABLES, entries, known_columns, read_tables

START, END, TRUNC, ELLIPSIS = "TL_START", "TL_END", "TRUNC", "ELLIPSIS"
MONTH = int(30.4375 * DAY_US)
SPACING = Once(
    ("T_5m-15m", "T_15m-1h", "T_1h-2h", "T_2h-6h", "T_6h-12h", "T_12h-1d", "T_1d-3d", "T_3d-1w", "T_1w-2w", "T_2w-1mt",
     "T_1mt-3mt", "T_3mt-6mt", "T_6mt+"),
    np.array([*(n * MINUTE_US for n in (5, 15)), *(n * HOUR_US for n in (1, 2, 6, 12)),
              *(n * DAY_US for n in (1, 3, 7, 14)), *(n * MONTH for n in (1, 3, 6))], np.int64),
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """What `Fms.fit` needs to know of one shard."""

    items: quantiles.Counts
    prefix: quantiles.Counts
    codes: dict[str, set[str]]
    """MEDS codes that became each token."""
    intervals: Lengths
    fixed: dict[str, int]
    """How often TL_START, TL_END and ELLIPSIS occur."""


class Fms(SpacedTokenizer):
    """See the module. Implements `ehr_core.protocols.Tokenizer`."""

    settings: FmsConfig
    saved = (*SpacedTokenizer.saved, "prefix_breaks")
    spacing = SPACING
    summary_type = Summary

    def __init__(self, settings: FmsConfig):
        self.prefix_breaks: dict[str, list[float]] = {}
        """As ``breaks``, for the numbers of the prefix."""
        super().__init__(settings)

    def configure(self) -> None:
        """Check the settings and make what follows from them."""
        if self.settings.tables is not None:  # saved settings are complete without the file
            found: dict[str, Any] = read_tables(Path(self.settings.tables))
            self.settings = replace(self.settings, **found, tables=None)
        super().configure()
        settings = self.settings
        if settings.quantizer not in LABELS:
            raise ConfigError(f"tokenizer.quantizer is {settings.quantizer!r}.{nearest(settings.quantizer, LABELS)}")
        if settings.reference_ranges is not None and settings.quantizer != "ventiles":
            raise ConfigError("tokenizer.reference_ranges makes 20 bins; it needs tokenizer.quantizer=ventiles")
        for name, least in (("max_length", 2), ("max_event_days", 0), ("cut_hours", 0)):
            value = getattr(settings, name)
            if value is not None and value < least:
                raise ConfigError(f"tokenizer.{name} is {value}; it must be at least {least}")
        if not (settings.admission_codes or settings.stay_column):
            raise ConfigError("tokenizer.admission_codes is empty: give codes, or tokenizer.stay_column")
        both = sorted(set(settings.admission_codes) & set(settings.discharge_codes))
        if both:
            raise ConfigError(f"{both[0]!r} is in both tokenizer.admission_codes and tokenizer.discharge_codes")
        columns = known_columns(settings.columns)
        self.tables = {name: entries(name, list(getattr(settings, name)), columns) for name in TABLES}
        heads = [entry.prefix for entry in self.tables["prefix"]]
        if twice := [head for head, count in Counter(heads).items() if count > 1]:
            raise ConfigError(f"tokenizer.prefix has two entries with the prefix {twice[0]!r}")
        self.labels = LABELS[settings.quantizer]

    def portable_settings(self) -> dict[str, Any]:
        """The settings as JSON values; ranges are in the breaks, not in a file's name."""
        return super().portable_settings() | {"reference_ranges": None}

    def known_names(self) -> set[str]:
        """Names of tokens, and of what has bins; a MEDS code may become several of them."""
        return {*self.vocabulary.ids, *self.breaks, *self.prefix_breaks}

    def origins(self, token: Token) -> tuple[str, ...]:
        """What a token is a bin of, else its own name."""
        for stem in (*self.breaks, *self.prefix_breaks):
            if token.token in (f"{stem}_{label}" for label in self.labels):
                return (stem,)
        return (token.token,)

    @property
    def columns(self) -> dict[str, str]:
        """Further columns of the token tables: ``stay``, the number of the hospitalization within its subject."""
        return {"stay": "int32", **super().columns}

    @property
    def event_columns(self) -> tuple[str, ...]:
        """Columns of the events beyond those of MEDS that the settings look at."""
        own = [self.settings.stay_column] if self.settings.stay_column else []
        return tuple(dict.fromkeys((*super().event_columns, *own, *self.settings.columns)))

    def _find(self, events: pl.DataFrame) -> tuple[StayRows, Items, Items, np.ndarray]:
        """Rows by hospitalization, items, prefix items, and when each ELLIPSIS is (NO_TIME: none)."""
        found = arrange(self.preparation.apply(events), self.settings)
        items = find_items(found, self.tables["prefix"], self.tables["events"], self.tables["suffix"])
        items, ellipsis_K = within_days(items, found.stays, self.settings.max_event_days)
        return found, items, find_prefix(found, self.tables["prefix"]), ellipsis_K

    # -- fit

    def summarize(self, events: pl.DataFrame) -> Summary:
        """Counts and numbers per token, and lengths of gaps, of one shard of train."""
        found, items, prefix, ellipsis_K = self._find(events)
        codes: dict[str, set[str]] = defaultdict(set)
        for part in (items, prefix):
            for name, own in zip(part.names_C, part.codes_C, strict=True):
                codes[name] |= own
        order = np.lexsort((items.time_M, items.phase_M, items.stay_M))
        gap_M = place_items(items.stay_M[order], items.time_M[order])
        fixed = {
            START: len(found.stays.start_K),
            END: int(np.count_nonzero(found.stays.close_K != NO_TIME)),
            ELLIPSIS: int(np.count_nonzero(ellipsis_K != NO_TIME)),
        }
        counts = quantiles.count(items.records()), quantiles.count(prefix.records())
        return Summary(*counts, dict(codes), SPACING.measure(gap_M), fixed)

    def fit(self, summaries: Iterable[Summary]) -> None:
        """Fit vocabulary, bins and interval estimates. Raises DataError when train has no hospitalization."""
        parts = list(summaries)
        fixed = sum((Counter(p.fixed) for p in parts), Counter())
        if not fixed[START]:
            settings = self.settings
            what = f"no event with {' or '.join(settings.admission_codes)}; set tokenizer.admission_codes"
            if settings.stay_column:
                what = f"no event with a time names one in column {settings.stay_column!r}; see tokenizer.stay_column"
            raise DataError(f"the train split has no hospitalization: {what}")
        items, prefix = (quantiles.merge([getattr(p, name) for p in parts]) for name in ("items", "prefix"))
        codes: dict[str, set[str]] = defaultdict(set)
        for part in parts:
            for name, own in part.codes.items():
                codes[name] |= own
        often = self.often(items)
        self._fit_breaks(items, prefix, often)
        tokens = [Token(START, "start", (), fixed[START]), Token(END, "end", (), fixed[END])]
        tokens += [Token(TRUNC, "cut"), Token(ELLIPSIS, "cut", (), fixed[ELLIPSIS])]
        tokens += self.fit_intervals(join(p.intervals for p in parts), SPACING.names, SPACING.middles())
        bins = quantiles.bin_counts(items, quantiles.half_open(self.breaks), len(self.labels))
        bare, fused = dict(often), {}
        if self.settings.fused:
            for name, counts in bins.items():
                kept = reachable(self.breaks[name])
                fused[name] = [
                    Token(f"{name}_{self.labels[k]}", "code", tuple(sorted(codes[name])), int(counts[k])) for k in kept
                ]
                bare[name] -= int(counts.sum())
        else:
            total = sum(bins.values(), np.zeros(len(self.labels), np.int64))
            tokens += [Token(label, "quantile", (), int(n)) for label, n in zip(self.labels, total, strict=True)]
        rare = int(items.rows_C.sum()) - sum(often.values())
        found = assemble(tokens, self._prefix_tokens(prefix, codes), bare, rare, fused).tokens
        named = {name: tuple(sorted(codes[name])) for name in often}
        self.vocabulary = Vocabulary(
            [replace(t, codes=named[t.token]) if t.kind == "code" and t.token in named else t for t in found]
        )

    def _fit_breaks(self, items: quantiles.Counts, prefix: quantiles.Counts, often: dict[str, int]) -> None:
        settings, path = self.settings, self.settings.reference_ranges
        ranges = read_ranges(Path(path)) if path else {}
        found = fit_breaks(items, settings.quantizer, settings.detect_discrete, ranges)
        check_ranges(ranges, list(found))
        self.breaks = {name: breaks for name, breaks in found.items() if name in often}
        self.prefix_breaks = fit_breaks(prefix, settings.quantizer, settings.detect_discrete, {})

    def _prefix_tokens(self, prefix: quantiles.Counts, codes: dict[str, set[str]]) -> list[Token]:
        """Tokens of the prefix, entry by entry: the unknown one, then bins, or values by (-count, name)."""
        count = dict(zip(prefix.names_C, prefix.rows_C.tolist(), strict=True))
        bins = quantiles.bin_counts(prefix, quantiles.half_open(self.prefix_breaks), len(self.labels))
        tokens: dict[str, Token] = {}
        for entry in self.tables["prefix"]:
            unknown = f"{entry.prefix}_UNKNOWN"
            found = [Token(unknown, "static", tuple(sorted(codes[unknown])), count.get(unknown, 0))]
            if entry.numeric:
                own = tuple(sorted(codes[entry.prefix]))
                for k in reachable(self.prefix_breaks[entry.prefix]) if entry.prefix in bins else []:
                    found.append(Token(f"{entry.prefix}_{self.labels[k]}", "static", own, int(bins[entry.prefix][k])))
            else:
                names = [n for n in count if n == entry.prefix or n.startswith(f"{entry.prefix}_")]
                for name in sorted(names, key=lambda name: (-count[name], name)):
                    if count[name] >= self.settings.min_count:
                        found.append(Token(name, "static", tuple(sorted(codes[name])), count[name]))
            for token in found:
                tokens.setdefault(token.token, token)
        return list(tokens.values())

    # -- encode

    def encode(self, events: pl.DataFrame) -> TokenTable:
        """Tokens of a shard whose rows are sorted by (subject_id, time), null times first."""
        found, items, prefix, ellipsis_K = self._find(events)
        none = np.zeros(0, np.int64)
        size = len(found.rows.subject_id_S)
        return TokenTable(
            subject_id=found.rows.subject_id_S,
            birth=found.birth_S,
            **self._timeline(found, items, prefix, ellipsis_K),
            **static_arrays(none, none, none, none, size=size, dtype=self.dtype),
        )

    def unknown_events(self, events: pl.DataFrame) -> dict[str, int]:
        """MEDS code to how many of its events become [UNK], cut or not. What is in no hospitalization does not."""
        found, items, prefix, _ = self._find(events)
        rows = []
        for part, breaks, kind in ((items, self.breaks, "code"), (prefix, self.prefix_breaks, "static")):
            base_M, bin_M = self._item_ids(part, breaks, kind)
            rows.append(part.row_M[(base_M == UNK) & (bin_M < 0) & (part.row_M >= 0)])
        code_M = found.rows.code_N[np.unique(np.concatenate(rows))]
        often_C = np.bincount(code_M, minlength=len(found.rows.names_C))
        return {found.rows.names_C[c]: int(often_C[c]) for c in np.flatnonzero(often_C)}

    def _timeline(self, found: StayRows, items: Items, prefix: Items, ellipsis_K: np.ndarray) -> dict[str, Any]:
        """``offset``, ``token``, ``time`` and ``columns`` of a token table."""
        stays, settings, ids = found.stays, self.settings, self.vocabulary
        base_M, bin_M = self._item_ids(items, self.breaks, "code")
        order = np.lexsort((items.value_M, bin_M, base_M, items.time_M, items.phase_M, items.stay_M))
        stay_M, time_M, phase_M = items.stay_M[order], items.time_M[order], items.phase_M[order]
        spacing_M, often_M = SPACING.find(place_items(stay_M, time_M))
        shape = len(self.tables["prefix"]), len(stays.start_K)
        head_PK, head_bin_PK = self._item_ids(prefix, self.prefix_breaks, "static")
        pieces = {
            "start": (np.full(len(stays.start_K), ids[START]), stays.start_K),
            "prefix": (np.where(head_bin_PK >= 0, head_bin_PK, head_PK).reshape(shape), stays.start_K),
            "spacing": (ids[SPACING.names[0]] + spacing_M, often_M * settings.time_spacing),
            "code": (base_M[order], bin_M[order]),
            "ellipsis": (np.full(len(ellipsis_K), ids[ELLIPSIS]), ellipsis_K),
            "end": (np.full(len(stays.close_K), ids[END]), stays.close_K),
        }
        token, time, stay, value = lay_out(pieces, stay_M, phase_M, time_M, items.value_M[order], settings.fused)
        keep = np.ones(len(token), bool)
        if settings.cut_hours is not None:
            keep = time - stays.start_K[stay] <= settings.cut_hours * HOUR_US
        token, time, stay, value = token[keep], time[keep], stay[keep], value[keep]
        if settings.max_length is not None:
            place = np.arange(len(token)) - np.searchsorted(stay, stay)
            token = np.where(place == settings.max_length - 1, ids[TRUNC], token)
            value = np.where(place == settings.max_length - 1, np.float32("nan"), value)
            keep = place < settings.max_length
            token, time, stay, value = token[keep], time[keep], stay[keep], value[keep]
        order = np.lexsort((time, stays.subject_K[stay]))  # stable: only those that overlap are interleaved
        token, time, stay, value = token[order], time[order], stay[order], value[order]
        subject_T = stays.subject_K[stay]
        number_K = np.arange(len(stays.subject_K)) - np.searchsorted(stays.subject_K, stays.subject_K)
        columns = {"stay": number_K[stay].astype(np.int32)}
        if settings.value:
            columns["value"] = value
        offset = arrays.offsets(subject_T, len(found.birth_S))
        return {"offset": offset, "token": token.astype(self.dtype), "time": time, "columns": columns}

    def _item_ids(self, items: Items, breaks: dict[str, list[float]], kind: str) -> tuple[np.ndarray, np.ndarray]:
        """(M,) token without bin, and (M,) the token with the bin in it, or of the bin; -1 for none."""
        ids, tokens, size = self.vocabulary.ids, self.vocabulary.tokens, len(self.labels)
        made = {
            f"{name}_{label}" for name in breaks for label in self.labels
        }  # no name of a row, though it may look so
        base_C = np.full(len(items.names_C), UNK)
        bin_CB = np.full((len(items.names_C), size + 1), -1)
        shared = not self.settings.fused and kind == "code"
        for c, name in enumerate(items.names_C):
            index = ids.get(name, UNK)
            if tokens[index].kind == kind and (shared or name not in made):
                base_C[c] = index
            if name in breaks:
                for k in reachable(breaks[name]):
                    bin_CB[c, k + 1] = ids[self.labels[k] if shared else f"{name}_{self.labels[k]}"]
        bin_M = quantiles.find_bins(items.records(), quantiles.half_open(breaks), size)
        return base_C[items.name_M], bin_CB[items.name_M, bin_M]
