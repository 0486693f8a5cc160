"""The base of tokenizers: the state on disk, growing for a new site, and saying which events are not known.

A tokenizer derives from `BaseTokenizer` and adds `summarize`, `fit` and `encode`. `ehr_core.protocols.Tokenizer` says
what each member must do.
"""

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ehr_core.config import to_plain
from ehr_core.errors import FormatError
from ehr_core.formats.folder import read_json, verify_below, write_json
from ehr_core.formats.intervals import Intervals
from ehr_core.formats.tokens import TOKENIZER, Prefix, TokenizerFile, TokenTable, load_prefix, write_prefix
from ehr_core.formats.vocabulary import SPECIALS, UNK, Token, Vocabulary

WHEN = datetime(2000, 1, 1)


class BaseTokenizer(abc.ABC):
    """Defaults for all that a tokenizer need not care about."""

    saved: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that are fitted: JSON values, of which dictionaries and lists of names can grow."""
    summary_type: ClassVar[Any] = None

    def __init__(self, settings: Any):
        self.settings = settings
        self.vocabulary = Vocabulary.build([])
        self.prefix = Prefix()
        self.configure()

    def configure(self) -> None:
        """Check the settings and make what follows from them; called whenever they are new. Raises ConfigError."""
        return

    @property
    def columns(self) -> Mapping[str, str]:
        """Further columns of the token tables."""
        return {}

    @property
    def event_columns(self) -> Sequence[str]:
        """Columns of the events beyond the four of MEDS."""
        return ()

    @property
    def intervals(self) -> Intervals:
        """What the tokens for time stand for."""
        return Intervals()

    @abc.abstractmethod
    def summarize(self, events: pl.DataFrame) -> Any:
        """What `fit` needs to know of one shard of train."""

    @abc.abstractmethod
    def fit(self, summaries: Iterable[Any]) -> None:
        """Fit on the summaries of all train shards."""

    @abc.abstractmethod
    def encode(self, events: pl.DataFrame) -> TokenTable:
        """Tokens of a shard whose rows are sorted by (subject_id, time), null times first."""

    # -- what is not known

    def unknown_events(self, events: pl.DataFrame) -> Mapping[str, int]:
        """As the protocol says, by encoding each code that no token names as the only event of a made-up subject.

        So a code that is put together from known pieces is known. Override it where a code needs company.
        """
        return self.events_alone(events, self._has_unknown)

    def _has_unknown(self, probe: pl.DataFrame) -> np.ndarray:
        table = self.encode(probe)
        unknown = self.vocabulary.ids.get(SPECIALS[UNK], -1)
        total = np.concatenate([[0], np.cumsum(np.asarray(table.token) == unknown)])
        return np.asarray(table.subject_id)[total[table.offset[1:]] > total[table.offset[:-1]]]

    def left_out_events(self, events: pl.DataFrame) -> Mapping[str, int]:
        """None: nothing is left out on purpose."""
        return {}

    def mapped_events(self, events: pl.DataFrame) -> Mapping[str, Mapping[str, tuple[int, bool]]]:
        """None: no mapping file is used."""
        return {}

    def events_alone(self, events: pl.DataFrame, which: Any) -> dict[str, int]:
        """Events of the codes that no token names and that ``which`` chooses; by code.

        ``which`` gets them as a frame, each the only event of a subject 1, 2, ..., and returns the subjects that it
        chooses.
        """
        known = {code for token in self.vocabulary.tokens for code in token.codes}
        counts = events.group_by("code").agg(pl.len(), pl.col("time").max(), pl.col("numeric_value").max())
        counts = counts.filter(~pl.col("code").is_in(list(known))).sort("code")
        if counts.is_empty():
            return {}
        probe = counts.select(
            pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("subject_id"),
            # One date for all, as odd dates are not the question; a code that is static stays so.
            pl.when(pl.col("time").is_not_null()).then(pl.lit(WHEN, pl.Datetime("us"))).alias("time"),
            "code",
            "numeric_value",
            *(pl.lit(None, events.schema[name]).alias(name) for name in events.columns[4:]),
        )
        chosen = np.asarray(which(probe), np.int64) - 1
        return dict(counts[chosen].select("code", "len").iter_rows())

    # -- growing

    def unfitted(self) -> Self:
        """One of the same settings that has seen no records."""
        return type(self)(self.settings)

    def origins(self, token: Token) -> Sequence[str]:
        """What must be new to a vocabulary that takes up the token, one of them at least; nothing: its name."""
        return token.codes

    def known_names(self) -> set[str]:
        """Codes, names of tokens and keys of tables that a newly fitted tokenizer cannot change."""
        return {name for token in self.vocabulary.tokens for name in (token.token, *token.codes)}

    def grow(self, new: Self) -> None:
        """Take up what another one, fitted on other records, has besides: its ids follow ours, which stay.

        Of it are taken: tokens of new codes (and tokens without a code, such as a new ``SLOT//UNKNOWN``), new slots of
        the prefix, and in every table of `saved` the entries of new codes. What we have keeps its id, fit and count.
        """
        known, old = self.known_names(), self.vocabulary
        added = [
            token
            for token in new.vocabulary.tokens
            if token.token not in old.ids
            and token.kind != "special"  # a published vocabulary may have its own
            and (not (origins := new.origins(token)) or any(name not in known for name in origins))
        ]
        kept = [_with_codes(token, new.vocabulary, known) for token in old.tokens]
        self.vocabulary = Vocabulary([*kept, *added])
        self.prefix = _joined_prefix(self.prefix, new, self.vocabulary)
        for name in self.saved:
            setattr(self, name, _joined(getattr(self, name), getattr(new, name), known))

    # -- state

    def portable_settings(self) -> dict[str, Any]:
        """The settings as JSON values; a place on this machine is not among them, as the state has the content."""
        plain: dict[str, Any] = to_plain(self.settings)
        return plain

    def state(self) -> dict[str, Any]:
        """What is fitted, as JSON values."""
        return {name: getattr(self, name) for name in self.saved}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave. Raises KeyError or TypeError for anything else."""
        for name in self.saved:
            setattr(self, name, state[name])

    def save(self, folder: Path) -> None:
        """Write vocabulary.json, prefix.json, tokenizer.json and, with tokens for time, intervals.json."""
        self.vocabulary.save(folder)
        write_prefix(folder, self.prefix)
        if self.intervals:
            self.intervals.save(folder)
        found = {"name": self.settings.name, "settings": self.portable_settings(), "state": self.state()}
        write_json(folder / TOKENIZER, found)

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote, settings included. Raises FormatError when it is another tokenizer's."""
        verify_below(folder)
        path, name = folder / TOKENIZER, self.settings.name
        found = read_json(path, TokenizerFile)
        try:
            if found.name != name:
                raise FormatError(f"{path} is of tokenizer {found.name!r}, not {name!r}")
            merged = OmegaConf.merge(OmegaConf.structured(type(self.settings)), found.settings)
            self.settings = OmegaConf.to_object(merged)
            self.configure()
            self.restore(found.state)
        except (KeyError, TypeError, OmegaConfBaseException) as error:
            raise FormatError(f"{path} is not the state of tokenizer {name!r}: {error!r}".splitlines()[0]) from error
        self.vocabulary = Vocabulary.load(folder)
        self.prefix = load_prefix(folder)


def _with_codes(token: Token, new: Vocabulary, known: set[str]) -> Token:
    """The token with the further codes that become it on the other records."""
    if token.kind == "special" or token.token not in new.ids:
        return token
    more = tuple(code for code in new.tokens[new[token.token]].codes if code not in known)
    return dataclasses.replace(token, codes=(*token.codes, *more)) if more else token


def _joined(old: Any, new: Any, known: set[str]) -> Any:
    """The old value, with the entries of its tables, and of its lists of names, that are new."""
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(name, str) for name in [*old, *new]):
        return [*old, *(name for name in new if name not in old and name not in known)]
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old
    more = {key: value for key, value in new.items() if key not in old and key not in known}
    return {key: _joined(value, new.get(key), known) for key, value in old.items()} | more


def _joined_prefix(old: Prefix, new: BaseTokenizer, vocabulary: Vocabulary) -> Prefix:
    """The old slots, then the new ones; age digits where either has them."""

    def ours(ids: Iterable[int]) -> tuple[int, ...]:
        return tuple(vocabulary[new.vocabulary.tokens[index].token] for index in ids)

    slots = [*old.slots, *(slot for slot in new.prefix.slots if slot not in old.slots)]
    unknown = dict(zip(new.prefix.slots, ours(new.prefix.unknown), strict=True))
    unknown |= dict(zip(old.slots, old.unknown, strict=True))
    aged = old
    if new.prefix.tens and not old.tens:
        (age,) = ours([new.prefix.age_unknown])
        aged = Prefix((), (), ours(new.prefix.tens), ours(new.prefix.units), age)
    return dataclasses.replace(aged, slots=tuple(slots), unknown=tuple(unknown[slot] for slot in slots))
