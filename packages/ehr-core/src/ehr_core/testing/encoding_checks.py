"""Checks of tokenizers: fitting, saving, encoding; `tokenizer_checks` has those on random records. They need polars."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehr_core.component import Component
from ehr_core.formats.vocabulary import UNK, Vocabulary
from ehr_core.testing.base import Check, events_of, small_settings, tiny_dataset
from ehr_core.testing.tiny import SUBJECTS, subject_rows, write_events
from ehr_core.testing.tokenizer_checks import PROPERTIES


def _fitted(component: Component, folder: Path, reverse: bool = False) -> Any:
    tokenizer = component.load()(small_settings(component))
    shards = sorted((tiny_dataset(folder) / "data" / "train").glob("*.parquet"))
    tokenizer.fit([tokenizer.summarize(events_of(shard)) for shard in (reversed(shards) if reverse else shards)])
    return tokenizer


def _same_tables(one: Any, two: Any) -> None:
    for name, array in one.arrays().items():
        assert np.array_equal(array, two.arrays()[name], equal_nan=array.dtype.kind == "f"), f"{name} differs"


def check_tokenizer_survives_saving(kind: str, component: Component, folder: Path) -> None:
    """Saved and loaded, a tokenizer encodes as before."""
    tokenizer = _fitted(component, folder)
    state = folder / "state"
    state.mkdir()
    tokenizer.save(state)
    again = component.load()(small_settings(component))
    again.load(state)
    assert Vocabulary.load(state).digest == tokenizer.vocabulary.digest
    events = events_of(tiny_dataset(folder) / "data" / "held_out" / "0.parquet")
    _same_tables(tokenizer.encode(events), again.encode(events))


def check_tokenizer_ignores_shard_order(kind: str, component: Component, folder: Path) -> None:
    """The order of the train shards does not change what is fitted."""
    one, two = _fitted(component, folder), _fitted(component, folder, reverse=True)
    assert one.vocabulary.tokens == two.vocabulary.tokens
    events = events_of(tiny_dataset(folder) / "data" / "tuning" / "0.parquet")
    _same_tables(one.encode(events), two.encode(events))


def check_tokenizer_does_not_look_ahead(kind: str, component: Component, folder: Path) -> None:
    """Tokens up to a time are the same whether or not later events exist."""
    tokenizer = _fitted(component, folder)
    subject = SUBJECTS["held_out"][0]
    events = events_of(tiny_dataset(folder) / "data" / "held_out" / "0.parquet").filter(pl.col("subject_id") == subject)
    whole = tokenizer.encode(events)
    times = sorted(set(events["time"].drop_nulls().to_list()))
    for cut in times[1::4]:
        part = tokenizer.encode(events.filter(pl.col("time").is_null() | (pl.col("time") <= cut)))
        limit = int(np.datetime64(cut, "us").astype(np.int64))
        seen, alone = whole.token[whole.time <= limit], part.token[part.time <= limit]
        assert np.array_equal(seen, alone), f"tokens up to {cut} change when later events are known"


def check_tokenizer_marks_unseen_codes(kind: str, component: Component, folder: Path) -> None:
    """A code that the train split lacks becomes UNK, whatever its value."""
    tokenizer = _fitted(component, folder)
    rows = subject_rows(201)
    last = rows[-1]
    rows.append((201, last[1], "LAB//never seen before//mmol/L", 4.2))
    write_events(folder / "unseen.parquet", rows)
    table = tokenizer.encode(events_of(folder / "unseen.parquet"))
    assert UNK in table.token.tolist(), "an unseen code left no UNK"
    assert int(table.token.max()) < len(tokenizer.vocabulary), "a token id is outside the vocabulary"


CHECKS: dict[str, list[Check]] = {
    "tokenizer": [
        check_tokenizer_survives_saving,
        check_tokenizer_ignores_shard_order,
        check_tokenizer_does_not_look_ahead,
        check_tokenizer_marks_unseen_codes,
        *PROPERTIES,
    ]
}
