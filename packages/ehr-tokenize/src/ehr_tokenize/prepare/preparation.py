"""What happens to events before they become tokens: moved in time, put in order, completed, rewritten by rules.

Every grammar can start with ``events = Preparation(settings.prepare).apply(events)``; what comes out is a frame of
events like the one that went in. Nothing here is fitted, and nothing after an instant decides what becomes of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ehr_core.config import nearest
from ehr_core.constants import DAY_US, HOUR_US, SECOND_US
from ehr_core.errors import ConfigError
from ehr_core.formats.tokens import NO_TIME

from ehr_tokenize.prepare import arrays
from ehr_tokenize.prepare.code_systems import SYSTEMS, clean, read_mapping, table
from ehr_tokenize.prepare.rules import Made, Rule
from ehr_tokenize.prepare.settings import MappingConfig, PrepareConfig, RuleConfig

LONGEST = 1_000_000
"""Hours, more than a century, that an event may be delayed."""


@functools.lru_cache(maxsize=32)
def _read(name: str, path: Path, stamp: int, source: str, target: str, several: str) -> dict[str, list[str]]:
    """A mapping file, read once a process for all shards; ``stamp`` tells a changed file."""
    return read_mapping(name, MappingConfig(path, source, target, several))


class Preparation:
    """`PrepareConfig` at work. Raises ConfigError for settings that cannot work, FormatError for a mapping file."""

    def __init__(self, settings: PrepareConfig | None = None, mappings: dict[str, dict[str, list[str]]] | None = None):
        """``mappings``: what `state` gave; the files are not looked at then."""
        self._settings = settings = settings or PrepareConfig()
        self._mappings: dict[str, dict[str, list[str]]] = {}
        self._looked: set[tuple[str, str, bool]] = set()
        """What a rule that is being applied has looked up: name of the mapping, value, whether it is there."""
        if mappings is not None:
            self._restore(mappings)
        for start, hours in settings.delay_hours.items():
            if not 0 <= hours <= LONGEST:  # nothing is known before it happens
                raise ConfigError(f"tokenizer.prepare.delay_hours.{start} is {hours}; allowed: 0 to {LONGEST:,}")
        for name, mapping in settings.mappings.items():
            if mapping.several not in ("all", "first", "category"):
                raise ConfigError(f"mapping {name!r}: several is {mapping.several!r}; allowed: all, first, category")
        steps: dict[str, Callable[[str], list[str]]] = {name: table(name, t) for name, t in settings.tables.items()}
        steps |= {name: functools.partial(self._look_up, name) for name in settings.mappings}
        if twice := sorted((set(settings.tables) & set(settings.mappings)) | (set(steps) & set(SYSTEMS))):
            raise ConfigError(f"{twice[0]!r} names two things among tables, mappings and code systems; rename yours")
        drop = [RuleConfig(codes=list(settings.drop))] if settings.drop else []
        self._rules = [
            Rule(rule, number, list(settings.columns), SYSTEMS | steps)
            for number, rule in enumerate([*drop, *settings.rules], start=1 - len(drop))
        ]
        for entry in settings.complete:
            if not (entry.at and entry.without and entry.add):
                raise ConfigError(f"an entry of complete is {entry}; it needs at, without and add")
        self.columns = tuple(settings.columns)
        """Further columns that `apply` wants in its events."""

    # -- mapping files

    def _look_up(self, name: str, text: str) -> list[str]:
        found = self._mapping(name).get(clean(text), [])
        self._looked.add((name, text, bool(found)))
        return found

    def _mapping(self, name: str) -> dict[str, list[str]]:
        if name not in self._mappings:
            chosen = self._settings.mappings[name]
            place = Path(chosen.path) if chosen.path is not None else None
            stamp = place.stat().st_mtime_ns if place is not None and place.is_file() else 0
            # A file that is missing is told by the reader, in words.
            self._mappings[name] = (
                _read(name, Path(chosen.path), stamp, chosen.source, chosen.target, chosen.several)
                if chosen.path
                else {}
            )
        return self._mappings[name]

    def state(self) -> dict[str, dict[str, list[str]]]:
        """The mappings in full: with them a fitted tokenizer needs none of the files again."""
        return {name: self._mapping(name) for name in sorted(self._settings.mappings)}

    def _restore(self, state: dict[str, dict[str, list[str]]]) -> None:
        for name in self._settings.mappings:
            if name not in state:
                raise ConfigError(f"the saved state has no mapping {name!r}.{nearest(name, state)}")
        self._mappings = dict(state)

    def portable(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Settings of a tokenizer as JSON values, for its saved state: a mapping is named there, not placed."""
        for mapping in plain.get("prepare", {}).get("mappings", {}).values():
            mapping["path"] = Path(mapping["path"]).name if mapping["path"] else None
        return plain

    # -- events

    def apply(self, events: pl.DataFrame) -> pl.DataFrame:
        """The prepared events, ordered by (subject_id, time), null times first; further columns go along."""
        events = self._completed(events)
        return self._rewrite(events) if self._rules and len(events) else events

    def mapped(self, events: pl.DataFrame) -> dict[str, dict[str, tuple[int, bool]]]:
        """By name of each mapping, what rules look up in it: in how many events, and whether it is there."""
        found: dict[str, dict[str, tuple[int, bool]]] = {name: {} for name in self._settings.mappings}
        if found and self._rules and len(events):
            self._rewrite(self._completed(events), found)
        return found

    def _completed(self, events: pl.DataFrame) -> pl.DataFrame:
        chosen = self._settings
        if chosen.end_of_day or chosen.delay_hours or chosen.order:
            events = self._arrange(events)
        for entry in chosen.complete:
            events = _complete(events, entry.at, entry.without, entry.add)
        return events

    def _arrange(self, events: pl.DataFrame) -> pl.DataFrame:
        """Times at which events are known, then the order of subject, time and `PrepareConfig.order`."""
        rows = arrays.records(events)
        late, delay, order = tuple(self._settings.end_of_day), self._settings.delay_hours, self._settings.order
        timed_N = rows.time_N != NO_TIME
        late_N = rows.per_code(lambda code: code.startswith(late), bool)[rows.code_N] & (rows.time_N % DAY_US == 0)
        more_C = rows.per_code(lambda code: _longest(delay, code, 0.0) * HOUR_US, np.int64)
        moved_N = np.where(late_N, DAY_US - SECOND_US, 0) + more_C[rows.code_N]
        time_N = np.where(timed_N, rows.time_N + moved_N, rows.time_N)
        rank = {prefix: place for place, prefix in enumerate(order) if prefix != "*"}
        others = order.index("*") if "*" in order else len(order)
        rank_N = rows.per_code(lambda code: _longest(rank, code, others), np.int64)[rows.code_N]
        place_N = np.lexsort((rank_N, time_N, rows.subject_N))
        time = pl.Series("time", time_N).cast(pl.Datetime("us")).set(pl.Series(~timed_N), None)
        return events.with_columns(time)[place_N]

    def _rewrite(
        self, events: pl.DataFrame, found: dict[str, dict[str, tuple[int, bool]]] | None = None
    ) -> pl.DataFrame:
        """Events by the rules; ``found`` takes up what is looked up in the mappings that it names."""
        rows = arrays.records(events)
        recipes: list[list[Made]] = [[Made(name, keeps_value=True)] for name in rows.names_C]
        recipe_N = rows.code_N.astype(np.int64)  # at first every event stays as it is
        open_N = np.ones(len(recipe_N), bool)
        for rule in self._rules:
            match_C = rows.per_code(rule.matches, bool)
            at = np.flatnonzero(match_C[rows.code_N] & open_N) if match_C.any() else np.empty(0, np.int64)
            at = at[_fits(rule, rows.value_N[at])]
            if not len(at):
                continue
            combination, which = _combinations(rows, at, events, rule.columns)
            made, often = [], np.bincount(which, minlength=len(combination)).tolist()
            for (code, columns), n in zip(combination, often, strict=True):
                self._looked.clear()
                made.append(rule.apply(code, columns))
                for name, text, there in self._looked:
                    if found is not None:
                        found[name][text] = (found[name].get(text, (0, there))[0] + n, there)
            number = np.array([-1 if m is None else len(recipes) + k for k, m in enumerate(made)])
            recipes += [m or [] for m in made]
            done = number[which] >= 0
            recipe_N[at[done]] = number[which][done]
            open_N[at[done]] = False
        return _cook(events, rows, recipes, recipe_N)


def _longest(table: dict[str, Any], code: str, default: Any) -> Any:
    """The entry of the longest start of the code."""
    fitting = [prefix for prefix in table if code.startswith(prefix)]
    return table[max(fitting, key=len)] if fitting else default


def _fits(rule: Rule, value_M: np.ndarray) -> np.ndarray:
    """(M,) whether the numbers are as the rule wants them."""
    fits = np.ones(len(value_M), bool)
    if rule.numeric is not None:
        fits &= np.isnan(value_M) != rule.numeric
    if rule.range is not None:
        fits &= (value_M >= rule.range[0]) & (value_M <= rule.range[1])
    return fits


def _combinations(
    rows: arrays.Records, at: np.ndarray, events: pl.DataFrame, columns: tuple[str, ...]
) -> tuple[list[tuple[str, dict[str, str | None]]], np.ndarray]:
    """Distinct codes with their columns among the rows ``at``, and (M,) which of them each row has."""
    if not columns:
        distinct, which = np.unique(rows.code_N[at], return_inverse=True)
        return [(rows.names_C[code], {}) for code in distinct.tolist()], which
    keys = events.select(columns)[at].with_columns(pl.Series("#code", rows.code_N[at]))
    grouped = keys.with_row_index("#row").group_by("#code", *columns, maintain_order=True).agg("#row")
    which = np.empty(len(at), np.int64)
    lengths = grouped["#row"].list.len().to_numpy()
    which[grouped["#row"].to_arrow().flatten().to_numpy()] = np.repeat(np.arange(len(grouped)), lengths)
    found = [(rows.names_C[code], dict(zip(columns, texts, strict=True))) for code, *texts, _ in grouped.iter_rows()]
    return found, which


def _cook(events: pl.DataFrame, rows: arrays.Records, recipes: list[list[Made]], recipe_N: np.ndarray) -> pl.DataFrame:
    """Every event replaced by what its recipe makes of it."""
    length = np.array([len(recipe) for recipe in recipes])
    start = np.cumsum(length) - length
    flat = [made for recipe in recipes for made in recipe]
    names = list(dict.fromkeys(made.code for made in flat))
    place = {name: index for index, name in enumerate(names)}
    code_F = np.array([place[made.code] for made in flat], np.uint32)
    number_F = np.array([math.nan if made.keeps_value else made.number for made in flat], np.float32)
    keeps_F = np.array([made.keeps_value for made in flat], bool)
    many_N = length[recipe_N]
    row_T = np.repeat(np.arange(len(recipe_N)), many_N)
    item_T = np.arange(len(row_T)) - np.repeat(np.cumsum(many_N) - many_N - start[recipe_N], many_N)
    value_T = np.where(keeps_F[item_T], rows.value_N[row_T], number_F[item_T])
    return events[row_T].with_columns(
        pl.Series("code", names, pl.String)[code_F[item_T]],
        pl.Series("numeric_value", value_T, pl.Float32).fill_nan(None),
    )


def _complete(events: pl.DataFrame, at: str, without: str, add: str) -> pl.DataFrame:
    """``add`` after the last event of each instant that has a code ``at...`` and none ``without...``."""
    code = events["code"]
    instant = pl.struct("subject_id", "time").rle_id().alias("instant")
    found = (
        events.select(instant, code.str.starts_with(at).alias("at"), code.str.starts_with(without).alias("without"))
        .with_row_index("row")
        .group_by("instant", maintain_order=True)
        .agg(pl.col("row").last(), pl.col("at").any(), pl.col("without").any())
        .filter(pl.col("at") & ~pl.col("without"))
    )
    after = found["row"].to_numpy().astype(np.int64)
    if not len(after):
        return events
    index = np.sort(np.concatenate([np.arange(len(events)), after]), kind="stable")
    new = np.zeros(len(index), bool)
    new[1:] = index[1:] == index[:-1]
    blank = [
        pl.when(~pl.Series(new)).then(name).alias(name) for name in events.columns if name not in ("subject_id", "time")
    ]
    return events[index].with_columns(blank).with_columns(pl.col("code").fill_null(add))
