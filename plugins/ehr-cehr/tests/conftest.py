"""Small worlds: MEDS events row by row, and token tables as strings."""

from datetime import datetime
from types import SimpleNamespace

import polars as pl
import pytest
from ehr_core.formats.tokens import prefix_tokens
from ehr_core.formats.vocabulary import Vocabulary

SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def microseconds(text: str) -> int:
    return int((datetime.fromisoformat(text) - datetime(1970, 1, 1)).total_seconds()) * 1_000_000


def frame(rows) -> pl.DataFrame:
    """Events from rows (subject, "2020-01-01 00:00" or None, code[, value])."""
    filled = [(s, datetime.fromisoformat(t) if isinstance(t, str) else t, c, *(v or (None,))) for s, t, c, *v in rows]
    return pl.DataFrame(filled, SCHEMA, orient="row")


class Decoded:
    """A table with its vocabulary and prefix, as strings."""

    def __init__(self, vocabulary: Vocabulary, prefix, tables):
        self.vocabulary, self._prefix = vocabulary, prefix
        self.tables = list(tables)
        self._at = {int(s): (table, row) for table in self.tables for row, s in enumerate(table.subject_id)}

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
    return SimpleNamespace(microseconds=microseconds, frame=frame, Decoded=Decoded)
