"""The two pieces of work on a shard, which any executor may run anywhere: summarize it for the fit, and encode it.

Each leaves files in the folder of the run and returns little. A file is there whole or not at all, so whoever starts
the run again takes what is there and does the rest.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ehr_core.config import from_plain
from ehr_core.errors import FormatError
from ehr_core.formats.folder import file_digest, read_json, verify_below, write_sealed
from ehr_core.formats.meds import Shard, read_events, read_treated
from ehr_core.formats.tokens import TOKENIZER, TokenizerFile
from ehr_core.plugins import build
from ehr_core.protocols import Tokenizer

from ehr_tokenize.fit import summaries
from ehr_tokenize.store import coverage
from ehr_tokenize.store.treated import has_units, odd_rows, other_units


def load_tokenizer(folder: Path) -> Tokenizer:
    """The fitted tokenizer whose state lies in a folder."""
    tokenizer: Tokenizer = build("tokenizer", tokenizer_settings(folder))
    tokenizer.load(folder)
    return tokenizer


def tokenizer_settings(folder: Path) -> Any:
    """The settings of that tokenizer."""
    verify_below(folder)
    found = read_json(folder / TOKENIZER, TokenizerFile)
    return from_plain("tokenizer", {**found.settings, "name": found.name})


# -- fit


@dataclass(frozen=True)
class SummarizeJob:
    """A shard of train to summarize for a tokenizer of these settings, or for one that grows."""

    shard: Shard
    tokenizer: Any
    fitted: Path | None
    drop_duplicates: bool
    file: Path
    """Where the summary is kept."""


def summarize(job: SummarizeJob) -> Any:
    """The summary; None when it is in the job's file."""
    tokenizer: Tokenizer = load_tokenizer(job.fitted).unfitted() if job.fitted else build("tokenizer", job.tokenizer)
    events = read_events(job.shard, tokenizer.event_columns, job.drop_duplicates)
    found = tokenizer.summarize(events)
    if tokenizer.summary_type is None:
        return found
    summaries.keep(tokenizer.summary_type, found, job.file)
    return None


# -- encode


@dataclass(frozen=True)
class EncodeJob:
    """A shard to encode with the tokenizer whose state lies in the store."""

    shard: Shard
    store: Path
    stamp: str
    """Names the run, so that a process may keep a loaded tokenizer for all shards of it and no longer."""
    drop_duplicates: bool
    record: Path
    """Where the counts of the shard go."""

    @property
    def file(self) -> Path:
        """The tokens of the shard."""
        return self.store / self.shard.split / f"{self.shard.number}.safetensors"


@lru_cache(maxsize=1)
def _kept(folder: Path, stamp: str) -> Tokenizer:
    return load_tokenizer(folder)


def encode(job: EncodeJob) -> None:
    """Write the shard's tokens, then its record: a shard with a record is done."""
    tokenizer = _kept(job.store, job.stamp)
    columns = tokenizer.event_columns
    units = ["unit"] if has_units(job.shard.path) and "unit" not in columns else []
    events, treated = read_treated(job.shard, [*columns, *units], job.drop_duplicates)
    treated["other_units"] = other_units(events)
    events = events.drop(units)
    table = tokenizer.encode(events)
    temporary = job.file.with_name(f".{job.file.name}.{os.getpid()}")
    table.write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(job.file)
    unk = int(np.count_nonzero(np.asarray(table.token) == coverage.unk_id(tokenizer.vocabulary)))
    counts = {"subjects": len(table.subject_id), "events": len(events), "tokens": len(table.token), "unk": unk}
    record = {
        "counts": counts | {"non_finite": treated.pop("non_finite")},
        "treated": treated | odd_rows(events),
        "codes": coverage.code_events(events, tokenizer),
        "mapped": {name: dict(found) for name, found in tokenizer.mapped_events(events).items()},
        "digest": file_digest(job.file),
    }
    job.record.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(job.record, record)


@dataclass(frozen=True)
class Record:
    """What is known of a shard that is done."""

    counts: dict[str, int]
    treated: dict[str, int]
    codes: coverage.Codes
    mapped: coverage.Mapped
    digest: str
    """Of the shard's tokens."""


def is_done(job: EncodeJob) -> bool:
    """Whether an earlier attempt encoded the shard; what it left and is damaged is made again."""
    try:
        return file_digest(job.file) == read_json(job.record, Record).digest
    except (OSError, FormatError):
        return False
