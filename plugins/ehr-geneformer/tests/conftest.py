"""Small worlds: MEDS events row by row, and token tables as strings."""

from datetime import datetime

import polars as pl
import pytest

SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


@pytest.fixture(scope="session")
def frame():
    """Events from rows (subject, "2020-01-01 00:00" or a time or None, code[, value])."""

    def make(rows):
        filled = [
            (s, datetime.fromisoformat(t) if isinstance(t, str) else t, c, *(v or (None,))) for s, t, c, *v in rows
        ]
        return pl.DataFrame(filled, SCHEMA, orient="row")

    return make


@pytest.fixture(scope="session")
def words():
    """The tokens of each subject of a table, as strings."""

    def read(vocabulary, table):
        names = [vocabulary.tokens[i].token for i in table.token]
        bounds = table.offset.tolist()
        return {int(s): names[a:b] for s, a, b in zip(table.subject_id.tolist(), bounds[:-1], bounds[1:], strict=True)}

    return read
