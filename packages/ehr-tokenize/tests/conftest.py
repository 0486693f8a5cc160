"""Small worlds: MEDS datasets written row by row, and token stores read back as strings."""

import json
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core.formats.tokens import TokenStore, prefix_tokens
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.testing.tiny import SUBJECTS, write_tiny_meds
from ehr_tokenize import plugin

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


class Dataset:
    """A valid dataset to break, and what comes of tokenizing it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.folder = write_tiny_meds(folder / "meds")
        self.file = self.folder / "data" / "train" / "0.parquet"
        self.store = folder / "store"
        self.subject = SUBJECTS["train"][0]

    def table(self) -> pa.Table:
        return pq.read_table(self.file)

    def write(self, table: pa.Table) -> None:
        pq.write_table(table, self.file)

    def insert(self, at: int, **changes) -> None:
        """Put an event of the first subject, with changes, before row ``at`` (from 0) of the first train file."""
        row = {"subject_id": self.subject, "time": datetime(2015, 6, 1), "code": "LAB//glucose//mg/dL"}
        table = self.table()
        new = pa.Table.from_pylist([row | {"numeric_value": 100.0} | changes], schema=table.schema)
        self.write(pa.concat_tables([table[:at], new, table[at:]]))

    def last(self) -> int:
        """The place after the last row of the first subject."""
        return int(np.flatnonzero(self.table()["subject_id"].to_numpy() == self.subject)[-1]) + 1

    def first_timed(self) -> int:
        """The place of the first row with a time."""
        return self.table()["time"].is_valid().to_pylist().index(True)

    def replace(self, column: str, array: pa.Array | pa.ChunkedArray) -> None:
        table = self.table()
        self.write(table.set_column(table.column_names.index(column), column, array))

    def content(self) -> dict:
        return json.loads((self.store / "manifest.json").read_text())["content"]

    def event(self, **changes) -> None:
        """One more event at the end of the first subject."""
        last = self.table()["time"][self.last() - 1].as_py()
        self.insert(self.last(), time=last, **changes)

    def tokenize(self) -> tuple[int, str]:
        """Exit status and what went to stderr, from the console script."""
        self._capsys.readouterr()
        arguments = ["source=meds", f"source.path={self.folder}", f"output={self.store}"]
        self._monkeypatch.setattr(sys, "argv", ["ehr-tokenize", *arguments, "tokenizer.min_count=1"])
        status = plugin.main()
        return status, self._capsys.readouterr().err


@pytest.fixture
def dataset(tmp_path, monkeypatch, capsys):
    """A small dataset that tokenizes without a word, to break."""
    return Dataset(tmp_path, monkeypatch, capsys)
