"""Visit grammars: codes in visits, with age, visit, segment and more at each token; the building block of BEHRT's kin.

A subject's timed events become ``[CLS] code code [SEP] code ...``. Columns, each with a number a token:

- ``age_days`` int32: age at the token's time, -1 when birth is unknown or later
- ``visit`` int32: 1, 2, ... within the record, 0 outside all visits; visits of which no code is kept do not count
- ``segment`` int32: 1, 2, 1, 2, ... by visit, 0 outside
- ``entity``, ``sex``, ``region`` int32 and ``value`` float32 where the settings ask for them; tokenizer.json
  says which id means what, and 0 is none

[SEP] says that a visit is over. It stands at the time of the next event, which is when that is known, with the age and
visit of the one that it closes; so a record does not end in [SEP]. Rows of one instant keep their order; sex and region
count from their own row on. Shapes: N rows, S subjects, C distinct codes, K rows that are kept.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from ehr_core.constants import DAY_US, MEDS_BIRTH
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import file_digest, read_json
from ehr_core.formats.tokens import NO_TIME, Prefix, TokenTable
from ehr_core.formats.vocabulary import CLS, SEP, SPECIALS, UNK, Token, Vocabulary
from ehr_core.stays import starts_with

from ehr_tokenize.grammars import visit_rules, weaving
from ehr_tokenize.grammars.spine import FittedTokenizer
from ehr_tokenize.grammars.timeline import births, static_arrays
from ehr_tokenize.grammars.visit_rules import UNKNOWN
from ehr_tokenize.grammars.visits_settings import VisitsConfig
from ehr_tokenize.prepare import arrays

STATICS = ("sex", "region")


@dataclasses.dataclass(frozen=True)
class Summary:
    """What `Visits.fit` needs to know of one shard."""

    codes: Counter[str]
    """Rows per MEDS code."""
    statics: dict[str, Counter[str]]
    """Rows per code, by kind: sex and region."""
    cls: int
    sep: int
    mapped: int
    """Codes that the mapping names, also of rows that are not kept."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """Rows of a shard that become code tokens."""

    rows: arrays.Records
    at_K: np.ndarray
    """Their places among the shard's rows."""
    visit_K: np.ndarray
    first_K: np.ndarray
    """Whether it is the subject's first."""
    sep_K: np.ndarray
    """Whether the row before it closed a visit."""


class Visits(FittedTokenizer):
    """See the module. Implements `ehr_core.protocols.Tokenizer`."""

    saved = ("mapping", "files")
    summary_type = Summary
    settings: VisitsConfig

    def __init__(self, settings: VisitsConfig):
        self.values: dict[str, list[str]] = {kind: [] for kind in STATICS}
        """Sexes and regions of train, of which the first has the id 2."""
        self.mapping: dict[str, str] | None = None
        """Code to code, once the file is read."""
        self.files: dict[str, str] = {}
        """sha256 of the files that the settings name."""
        super().__init__(settings)

    def configure(self) -> None:
        """Check the settings and make what follows from them."""
        super().configure()
        visit_rules.check(self.settings)
        names = set(self.settings.entities.values()) - {"other"}
        self.entity_ids = {"other": UNKNOWN} | {name: UNKNOWN + 1 + k for k, name in enumerate(sorted(names))}

    @property
    def columns(self) -> dict[str, str]:
        """Further columns of the token tables."""
        found = dict.fromkeys(("age_days", "visit", "segment"), "int32")
        if self.settings.entity:
            found["entity"] = "int32"
        if self.settings.static == "columns":
            found |= dict.fromkeys(STATICS, "int32")
        return found | super().columns

    # -- rows

    def _name(self, code: str) -> str:
        """The token's name of a MEDS code."""
        return self._known_mapping().get(code) or visit_rules.shorten(code, self.settings)

    def _known_mapping(self) -> dict[str, str]:
        if self.mapping is None:
            self.mapping = self._read_mapping()
        return self.mapping

    def _read_mapping(self) -> dict[str, str]:
        if not self.settings.mapping:
            return {}
        path = Path(self.settings.mapping)
        if path.is_dir():
            raise FormatError(f"tokenizer.mapping: {path} is a folder; give a JSON file {{code: code}}")
        found = read_json(path, dict[str, str])
        if not all(found.values()):
            raise FormatError(f"{path} has codes that become nothing; it must be a JSON object of codes to codes")
        self.files = {"mapping": file_digest(path)}
        return found

    def mapped_events(self, events: pl.DataFrame) -> Mapping[str, Mapping[str, tuple[int, bool]]]:
        """As the protocol says: every code that may become a token is looked up in ``mapping``."""
        keys, found = self._known_mapping(), dict(super().mapped_events(events))
        if keys:
            rows = self.records(events)
            kept = self._keep(rows)
            rows_C = np.bincount(rows.code_N[kept.at_K], minlength=len(rows.names_C)).tolist()
            found["mapping"] = {name: (n, name in keys) for name, n in zip(rows.names_C, rows_C, strict=True) if n}
        return found

    def _useless_mapping(self, codes: Counter[str]) -> ConfigError:
        """The error when no key is a code of train. Its example is a code with a key in it, else the most frequent."""
        keys = self._known_mapping()
        often = sorted(codes, key=lambda code: (-codes[code], code))
        example = next((code for code in often if not keys.keys().isdisjoint(code.split("//"))), often[0])
        return ConfigError(
            f"tokenizer.mapping: none of the {len(keys)} keys in {self.settings.mapping} is a code of the train split; "
            f"a key must be a whole code, such as {example!r}"
        )

    def _entity(self, name: str) -> str:
        return self.settings.entities.get(name.partition("//")[0], "other")

    def _keep(self, rows: arrays.Records) -> Kept:
        """Sort a shard's rows into visits and keep those that become tokens."""
        settings = self.settings
        static_C = rows.per_code(lambda code: code == MEDS_BIRTH or self._static_kind(code) is not None, bool)
        at_N = np.flatnonzero((rows.time_N != NO_TIME) & ~static_C[rows.code_N])
        code_N, subject_N = rows.code_N[at_N], rows.subject_N[at_N]
        admit_C = rows.per_code(starts_with(settings.admission_codes), bool)
        leave_C = rows.per_code(starts_with(settings.discharge_codes), bool)
        group_N = visit_rules.group(subject_N, rows.time_N[at_N], admit_C[code_N], leave_C[code_N], settings)
        keep_N = np.ones(len(at_N), bool)
        if settings.only_entities:
            wanted = set(settings.only_entities)
            keep_N = rows.per_code(lambda code: self._entity(self._name(code)) in wanted, bool)[code_N]
        if settings.unique:
            keep_N &= visit_rules.first_of_visit(group_N, self._name_index(rows)[code_N], keep_N)
        at_K, subject_K, group_K = at_N[keep_N], subject_N[keep_N], group_N[keep_N]
        first_K = np.ones(len(at_K), bool)
        first_K[1:] = subject_K[1:] != subject_K[:-1]
        new_K = first_K.copy()
        new_K[1:] |= group_K[1:] != group_K[:-1]
        over_K = new_K & ~first_K
        over_K[1:] &= group_K[:-1] >= 0
        count_K = np.cumsum(new_K & (group_K >= 0))
        before_K = np.maximum.accumulate(np.where(first_K, count_K - (group_K >= 0), 0))
        visit_K = np.where(group_K >= 0, count_K - before_K, 0)
        no_K = np.zeros(len(at_K), bool)
        return Kept(rows, at_K, visit_K, first_K if settings.cls else no_K, over_K if settings.sep else no_K)

    def _name_index(self, rows: arrays.Records) -> np.ndarray:
        """(C,) equal for codes that become the same token."""
        seen: dict[str, int] = {}
        return rows.per_code(lambda code: seen.setdefault(self._name(code), len(seen)), np.int64)

    def _static_kind(self, code: str) -> str | None:
        if starts_with(self.settings.sex_codes)(code):
            return "sex"
        return "region" if starts_with(self.settings.region_codes)(code) else None

    # -- fit

    def summarize(self, events: pl.DataFrame) -> Summary:
        """Rows per code of one shard of train."""
        rows = self.records(events)
        kept = self._keep(rows)
        rows_C = np.bincount(rows.code_N[kept.at_K], minlength=len(rows.names_C))
        all_C = np.bincount(rows.code_N, minlength=len(rows.names_C))
        statics: dict[str, Counter[str]] = {kind: Counter() for kind in STATICS}
        for code, number in zip(rows.names_C, all_C.tolist(), strict=True):
            if kind := self._static_kind(code):
                statics[kind][code] += number
        codes = Counter({rows.names_C[c]: int(rows_C[c]) for c in np.flatnonzero(rows_C)})
        mapped = sum(name in self._known_mapping() for name in rows.names_C)
        return Summary(codes, statics, int(kept.first_K.sum()), int(kept.sep_K.sum()), mapped)

    def fit(self, summaries: Iterable[Summary]) -> None:
        """Fit vocabulary, sexes and regions.

        Raises DataError when train has no event to make a token of, ConfigError when the mapping names no code of it.
        """
        codes: Counter[str] = Counter()
        statics: dict[str, Counter[str]] = {kind: Counter() for kind in STATICS}
        special: Counter[str] = Counter()
        mapped = 0
        for part in summaries:
            mapped += part.mapped
            codes.update(part.codes)
            special.update({SPECIALS[CLS]: part.cls, SPECIALS[SEP]: part.sep})
            for kind in STATICS:
                statics[kind].update(part.statics[kind])
        if not codes:
            raise DataError("the train split has no event with a time to make a token of; see tokenizer.only_entities")
        self._known_mapping()
        if self.files and not mapped:
            raise self._useless_mapping(codes)
        found: dict[str, list[str]] = {}
        for code in sorted(codes):
            found.setdefault(self._name(code), []).append(code)
        count = {name: sum(codes[code] for code in sources) for name, sources in found.items()}
        kept = {name for name, sources in found.items() if any(self.is_kept(code) for code in (name, *sources))}
        often = [name for name in count if count[name] >= self.settings.min_count or name in kept]
        often.sort(key=lambda name: (-count[name], name))
        special[SPECIALS[UNK]] = sum(count.values()) - sum(count[name] for name in often)
        tokens = [Token(name, "special", (), special[name]) for name in SPECIALS]
        tokens += self._fit_statics(statics)
        clash = sorted({token.token for token in tokens} & set(often))
        if clash:
            raise DataError(f"the code {clash[0]!r} has the name of a token that the tokenizer makes itself; rename it")
        self.vocabulary = Vocabulary(tokens + [Token(n, "code", tuple(found[n]), count[n]) for n in often])
        self.prefix = self._make_prefix()

    def _fit_statics(self, statics: dict[str, Counter[str]]) -> list[Token]:
        """Give ids to sexes and regions; return their tokens when they stand in the prefix."""
        tokens = []
        for kind, most in (("sex", self.settings.max_sexes), ("region", self.settings.max_regions)):
            values: Counter[str] = Counter()
            sources: dict[str, list[str]] = {}
            for code in sorted(statics[kind]):
                values[_value(code)] += statics[kind][code]
                sources.setdefault(_value(code), []).append(code)
            ranked = sorted(values, key=lambda value: (-values[value], value))[: most - UNKNOWN - 1]
            self.values[kind] = ranked
            if self.settings.static == "prefix" and ranked:
                tokens.append(Token(_static_token(kind), "static"))
                tokens += [Token(_static_token(kind, v), "static", tuple(sources[v]), values[v]) for v in ranked]
        return tokens

    def _make_prefix(self) -> Prefix:
        slots = tuple(kind for kind in STATICS if _static_token(kind) in self.vocabulary.ids)
        return Prefix(slots=slots, unknown=tuple(self.vocabulary[_static_token(kind)] for kind in slots))

    # -- encode

    def encode(self, events: pl.DataFrame) -> TokenTable:
        """Tokens of a shard whose rows are sorted by (subject_id, time), null times first."""
        rows = self.records(events)
        kept = self._keep(rows)
        size = len(rows.subject_id_S)
        born_N = rows.per_code(MEDS_BIRTH.__eq__, bool)[rows.code_N] & (rows.time_N != NO_TIME)
        birth_S = births(rows, rows.where(born_N))
        code_N = rows.per_code(self._code_id, np.int64)[rows.code_N]
        number = len(kept.at_K)
        often = [kept.first_K, kept.sep_K, np.ones(number, np.int8)]
        ids = [np.full(number, CLS), np.full(number, SEP), code_N[kept.at_K]]
        token, total_K = weaving.interleave(list(zip(ids, often, strict=True)), self.dtype)
        columns = {}
        for name, (own_K, marks) in self._column_values(kept, birth_S).items():
            kind = np.dtype(self.columns[name])
            # [CLS] has what the first code has, [SEP] what the row before it has; some columns mean nothing there.
            parts = [own_K, np.roll(own_K, 1)] if marks is None else [np.full(number, marks)] * 2
            columns[name] = weaving.interleave(list(zip([*parts, own_K], often, strict=True)), kind)[0]
        offset = np.concatenate([[0], np.cumsum(total_K)])[arrays.offsets(rows.subject_N[kept.at_K], size)]
        return TokenTable(
            subject_id=rows.subject_id_S,
            birth=birth_S,
            offset=offset,
            token=token,
            time=np.repeat(rows.time_N[kept.at_K], total_K),
            columns=columns,
            **self._encode_prefix(rows, size),
        )

    def _code_id(self, code: str) -> int:
        index: int = self.vocabulary.ids.get(self._name(code), UNK)
        return index if self.vocabulary.tokens[index].kind == "code" else UNK

    def _column_values(self, kept: Kept, birth_S: np.ndarray) -> dict[str, tuple[np.ndarray, float | None]]:
        """Per column the values (K,) of the codes, and what the marks [CLS] and [SEP] have (None: a neighbour's)."""
        rows = kept.rows
        subject_K, time_K, code_K = rows.subject_N[kept.at_K], rows.time_N[kept.at_K], rows.code_N[kept.at_K]
        known_K = (birth_S[subject_K] != NO_TIME) & (birth_S[subject_K] <= time_K)
        age_K = (time_K - np.where(known_K, birth_S[subject_K], time_K)) // DAY_US
        values: dict[str, tuple[np.ndarray, float | None]] = {
            "age_days": (np.where(known_K, age_K, -1), None),
            "visit": (kept.visit_K, None),
            "segment": (np.where(kept.visit_K > 0, 2 - kept.visit_K % 2, 0), None),
        }
        if self.settings.entity:
            entity_C = rows.per_code(lambda code: self.entity_ids[self._entity(self._name(code))], np.int64)
            values["entity"] = (entity_C[code_K], 0)
        if self.settings.static == "columns":
            values |= {kind: (self._last_static(rows, kind)[kept.at_K], None) for kind in STATICS}
        if self.settings.value:
            values["value"] = (rows.value_N[kept.at_K], np.nan)
        return values

    def _last_static(self, rows: arrays.Records, kind: str) -> np.ndarray:
        """(N,) id of the sex or region that the rows up to each one give."""
        ids = self._ids(kind)
        is_C = rows.per_code(lambda code: self._static_kind(code) == kind, bool)
        id_C = rows.per_code(lambda code: ids.get(_value(code), UNKNOWN), np.int64)
        if not len(rows.code_N):
            return np.zeros(0, np.int64)
        last_N = np.maximum.accumulate(np.where(is_C[rows.code_N], np.arange(len(rows.code_N)), -1))
        known_N = (last_N >= 0) & (rows.subject_N[last_N] == rows.subject_N)
        return np.where(known_N, id_C[rows.code_N[last_N]], UNKNOWN)

    def _encode_prefix(self, rows: arrays.Records, size: int) -> dict[str, np.ndarray]:
        """The static arrays of a token table; a new value is unknown."""
        slot_of = {kind: index for index, kind in enumerate(self.prefix.slots)}
        slot_C = rows.per_code(lambda code: slot_of.get(self._static_kind(code) or "", -1), np.int64)
        token_C = rows.per_code(self._prefix_id, np.int64)
        rows = rows.where(slot_C[rows.code_N] >= 0)
        slot_N, token_N = slot_C[rows.code_N], token_C[rows.code_N]
        return static_arrays(rows.subject_N, slot_N, token_N, rows.time_N, size, self.dtype)

    def _prefix_id(self, code: str) -> int:
        kind = self._static_kind(code)
        if kind not in self.prefix.slots:
            return 0
        assert kind is not None
        return self.vocabulary.get(_static_token(kind, _value(code)), self.vocabulary[_static_token(kind)])

    # -- state

    def _ids(self, kind: str) -> dict[str, int]:
        """Sex or region to its id in the column."""
        return {value: UNKNOWN + 1 + index for index, value in enumerate(self.values[kind])}

    def unfitted(self) -> Self:
        """One of the same settings, mapping file included, that has seen no records."""
        new = super().unfitted()
        new.mapping = self.mapping
        return new

    def grow(self, new: Self) -> None:
        """As in the base; new sexes and regions have the ids after the old ones, as far as the column's ids reach."""
        super().grow(new)
        for kind, most in (("sex", self.settings.max_sexes), ("region", self.settings.max_regions)):
            more = [value for value in new.values[kind] if value not in self.values[kind]]
            self.values[kind] = [*self.values[kind], *more][: most - UNKNOWN - 1]

    def portable_settings(self) -> dict[str, Any]:
        """The settings as JSON values, without places of files."""
        plain = super().portable_settings()
        return plain | {"mapping": Path(plain["mapping"]).name if plain["mapping"] else None}

    def state(self) -> dict[str, Any]:
        """What is fitted, and what each id of a column means."""
        columns = {"entity": self.entity_ids, **{kind: self._ids(kind) for kind in STATICS}}
        return super().state() | columns | {"mapping": self.mapping or {}}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        super().restore(state)
        self.values = {kind: sorted(state[kind], key=state[kind].__getitem__) for kind in STATICS}


def _value(code: str) -> str:
    """``F`` of ``GENDER//F``."""
    return code.partition("//")[2]


def _static_token(kind: str, value: str | None = None) -> str:
    return f"{kind.upper()}//{value}" if value is not None else f"[{kind.upper()} UNKNOWN]"
