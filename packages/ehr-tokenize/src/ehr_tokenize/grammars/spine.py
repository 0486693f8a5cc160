"""The spine of all grammars: events are prepared, rare codes are told from kept ones, gaps and numbers become tokens.

Saving, loading and growing are those of `ehr_core.tokenizers.BaseTokenizer`. Settings derive from `GrammarConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
from ehr_core.errors import ConfigError
from ehr_core.formats.intervals import Intervals
from ehr_core.formats.vocabulary import Token
from ehr_core.stays import starts_with
from ehr_core.tokenizers import BaseTokenizer

from ehr_tokenize.fit.quantiles import Counts
from ehr_tokenize.grammars.spacing import Lengths, Spacing, means, quartiles
from ehr_tokenize.prepare import arrays
from ehr_tokenize.prepare.preparation import Preparation


class FittedTokenizer(BaseTokenizer):
    """A grammar: whoever derives from it reads events by `records`."""

    def configure(self) -> None:
        """Check the settings and make what follows from them."""
        for name in ("min_count", "min_subjects"):
            if getattr(self.settings, name, 1) < 1:
                raise ConfigError(f"tokenizer.{name} is {getattr(self.settings, name)}; it must be at least 1")
        self.preparation = Preparation(self.settings.prepare)
        self.is_kept = starts_with(self.settings.keep_codes)

    @property
    def columns(self) -> dict[str, str]:
        """Further columns of the token tables."""
        return {"value": "float32"} if self.settings.value else {}

    @property
    def event_columns(self) -> tuple[str, ...]:
        """Columns of the events beyond those of MEDS that the preparation looks at."""
        return self.preparation.columns

    @property
    def dtype(self) -> np.dtype:
        """The type of tokens: the smaller one that holds the vocabulary."""
        return np.dtype(np.uint16 if len(self.vocabulary) <= 1 << 16 else np.uint32)

    def records(self, events: pl.DataFrame) -> arrays.Records:
        """Arrays of the events of a shard, prepared."""
        return arrays.records(self.preparation.apply(events))

    def often(self, counts: Counts, subjects: Mapping[str, int] | None = None) -> dict[str, int]:
        """Rows of each code that gets a token: it is frequent enough, in ``subjects`` too, or kept however rare."""
        least, people = self.settings.min_count, self.settings.min_subjects if subjects is not None else 0
        return {
            name: int(rows)
            for name, rows in zip(counts.names_C, counts.rows_C, strict=True)
            if (rows >= least and (subjects is None or subjects[name] >= people)) or self.is_kept(name)
        }

    def mapped_events(self, events: pl.DataFrame) -> Mapping[str, Mapping[str, tuple[int, bool]]]:
        """What the rules of the preparation look up."""
        return self.preparation.mapped(events)

    # -- state

    def unfitted(self) -> Any:
        """One of the same settings and mappings that has seen no records."""
        new = super().unfitted()
        new.preparation = self.preparation
        return new

    def portable_settings(self) -> dict[str, Any]:
        """The settings as JSON values, without places of files."""
        return self.preparation.portable(super().portable_settings())

    def state(self) -> dict[str, Any]:
        """What is fitted, and the mapping files in full."""
        mappings = self.preparation.state()
        return super().state() | ({"mappings": mappings} if mappings else {})

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        super().restore(state)
        self.preparation = Preparation(self.settings.prepare, state.get("mappings", {}))


class SpacedTokenizer(FittedTokenizer):
    """A grammar with tokens for time and bins for numbers."""

    saved: ClassVar[tuple[str, ...]] = ("breaks", "interval_estimates", "interval_quartiles")
    spacing: ClassVar[Spacing]
    """The tokens for time."""

    def __init__(self, settings: Any):
        self.breaks: dict[str, list[float]] = {}
        """Per timeline code with numbers in train: its breaks, ascending."""
        self.interval_estimates: dict[str, float] = {}
        """Mean seconds that each interval token stands for, in train."""
        self.interval_quartiles: dict[str, list[float]] = {}
        """Least, first quartile, median, third quartile and most of these seconds."""
        super().__init__(settings)

    def interval_days(self) -> dict[str, list[float | None]]:
        """Per token for time the fewest and most days that it stands for; None: no most."""
        return self.spacing.days()

    @property
    def intervals(self) -> Intervals:
        """What the tokens for time stand for; empty before the fit."""
        return Intervals.join(self.interval_estimates, self.interval_days()) if self.interval_estimates else Intervals()

    def fit_intervals(self, lengths: Lengths, names: Sequence[str], middles: Sequence[float]) -> list[Token]:
        """Fit what each token for time stands for, and give the tokens; ``middles``: of one that never occurred."""
        self.interval_estimates = means(lengths, names, middles)
        self.interval_quartiles = quartiles(lengths, names, middles)
        return [Token(name, "interval", (), n) for name, n in zip(names, lengths.count_I.tolist(), strict=True)]

    def state(self) -> dict[str, Any]:
        """What is fitted, and the ranges of tokens for time."""
        return super().state() | {"interval_days": self.interval_days()}
