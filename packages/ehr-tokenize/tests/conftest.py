"""Small worlds: MEDS datasets written row by row, and token stores read back as strings."""

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from ehr_core.formats.tokens import TokenStore, prefix_tokens
from ehr_core.formats.vocabulary import Vocabulary

SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
SPLITS = ("train", "tuning", "held_out")


def microseconds(text: str) -> int:
    return int((datetime.fromisoformat(text) - datetime(1970, 1, 1)).total_seconds()) * 1_000_000


def frame(rows) -> pl.DataFrame:
    """Events from rows (subject, "2020-01-01 00:00" or None, code[, value])."""
    filled = [(s, datetime.fromisoformat(t) if isinstance(t, str) else t, c, *(v or (None,))) for s, t, c, *v in rows]
    return pl.DataFrame(filled, SCHEMA, orient="row")


def write_meds(folder: Path, **shards) -> Path:
    """A dataset with, per split, a list of shards, each rows or a frame. A split not given has one subject."""
    for index, split in enumerate(SPLITS):
        for number, rows in enumerate(shards.get(split, [[(9000 + index, "2020-01-01", "ADMIT")]])):
            path = folder / "data" / split / f"{number}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            (rows if isinstance(rows, pl.DataFrame) else frame(rows)).write_parquet(path)
    return folder


class Decoded:
    """A token store, or any table with its vocabulary and prefix, as strings."""

    def __init__(self, vocabulary: Vocabulary, prefix, tables):
        self.vocabulary, self._prefix = vocabulary, prefix
        self.tables = list(tables)
        self._at = {int(s): (table, row) for table in self.tables for row, s in enumerate(table.subject_id)}

    @classmethod
    def store(cls, path: Path) -> "Decoded":
        opened = TokenStore(path)
        return cls(opened.vocabulary, opened.prefix, (t for split in opened.splits() for t in opened.tables(split)))

    def slice(self, subject: int, name: str):
        table, row = self._at[subject]
        return table.arrays()[name][table.offset[row] : table.offset[row + 1]]

    def tokens(self, subject: int) -> list[str]:
        return [self.vocabulary.tokens[i].token for i in self.slice(subject, "token")]

    def times(self, subject: int) -> list[int]:
        return self.slice(subject, "time").tolist()

    def prefix(self, subject: int, time: str) -> list[str]:
        ids = prefix_tokens(self._prefix, *self._at[subject], microseconds(time))
        return [self.vocabulary.tokens[i].token for i in ids]


@pytest.fixture(scope="session")
def world():
    """The functions of this module."""

    class World:
        pass

    for function in (microseconds, frame, write_meds, Decoded):
        setattr(World, function.__name__, staticmethod(function))
    return World
