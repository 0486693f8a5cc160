"""Tables as other systems export them, read in batches of bounded size: CSV, compressed CSV and Parquet.

Names of files and columns are matched in lower case. Cells of a CSV are text until someone asks for a number or a time:
see `cells`.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from ehr_core.errors import DataError, FormatError
from ehr_core.formats.pages import checked

from ehr_tokenize.sources.cells import Batch, Reading

KINDS = (".parquet", ".csv.gz", ".csv")
BLOCK = 1 << 23
"""Bytes of text in a batch of a CSV."""
ROWS = 1 << 18
"""Rows in a batch of a Parquet file."""


@dataclass(frozen=True)
class Table:
    """A table in one file, or in several that are read one after another."""

    name: str
    paths: tuple[Path, ...]


def find_tables(folder: Path, names: Sequence[str]) -> dict[str, Table]:
    """The tables of these names that a folder has: ``NAME.csv``, ``.csv.gz``, ``.parquet``, or a folder of such files.

    Raises FormatError for what is no folder, and for a table that is there in more than one form.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected one with tables such as {names[0]}.csv")
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if path.is_dir():
            if any(_kind(part) for part in path.iterdir()):
                found.setdefault(name, []).append(path)
        elif kind := _kind(path):
            found.setdefault(name.removesuffix(kind), []).append(path)
    tables = {}
    for name in names:
        forms = found.get(name, [])
        if len(forms) > 1:
            raise FormatError(f"{folder} has {' and '.join(path.name for path in forms)}; keep one of them")
        for path in forms:
            parts = sorted(part for part in path.iterdir() if _kind(part)) if path.is_dir() else [path]
            tables[name] = Table(name, tuple(parts))
    return tables


def _kind(path: Path) -> str:
    return next((kind for kind in KINDS if path.name.lower().endswith(kind)), "")


def batches(
    table: Table, required: Sequence[str], optional: Sequence[str] = (), reading: Reading | None = None
) -> Iterator[Batch]:
    """The rows of a table in order, with these columns; ``reading`` says how cells are read, and counts.

    Raises DataError for a file that lacks a required column or has a broken row, FormatError for a damaged one.
    """
    for path in table.paths:
        first = 1
        read = _parquet if _kind(path) == ".parquet" else _csv
        try:
            for frame in read(path, required, optional):
                yield Batch(path, first, frame, reading or Reading())
                first += len(frame)
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            # Arrow's own text may hold the row.
            kind = "Parquet file" if read is _parquet else "CSV file in UTF-8"
            raise FormatError(f"{path} is damaged or no {kind} (after row {first - 1})") from error


def _columns(path: Path, names: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> dict[str, str]:
    """Name in the file to name in lower case, of the columns that are wanted."""
    spelled = [name.strip().lower() for name in names]
    lower = dict(zip(spelled, names, strict=True))
    twice = [name for name in (*required, *optional) if spelled.count(name) > 1]
    if twice:
        raise DataError(f"{path} has {spelled.count(twice[0])} columns {twice[0]!r}; keep one")
    missing = [name for name in required if name not in lower]
    if missing:
        raise DataError(f"{path} has no column {', '.join(map(repr, missing))}")
    return {lower[name]: name for name in dict.fromkeys([*required, *optional]) if name in lower}


def _frame(batch: pa.RecordBatch, columns: dict[str, str]) -> pl.DataFrame:
    frame = pl.from_arrow(pa.Table.from_batches([batch]))
    assert isinstance(frame, pl.DataFrame)
    return frame.rename(columns)


def _parquet(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[pl.DataFrame]:
    # Times of the old kind (int96) would wrap around in nanoseconds: 9999-12-31 would be in 1816.
    with pq.ParquetFile(checked(path), coerce_int96_timestamp_unit="us") as file:
        columns = _columns(path, file.schema_arrow.names, required, optional)
        for batch in file.iter_batches(ROWS, columns=list(columns)):
            yield _frame(batch, columns)


def _csv(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[pl.DataFrame]:
    packed = _kind(path) == ".csv.gz"
    with gzip.open(path, "rt", encoding="utf-8-sig") if packed else path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    if not header.strip():
        raise FormatError(f"{path} has no header")
    tabs = "\t" in header  # vocabularies are published with tabs, and then without quotes
    names = next(csv.reader([header], delimiter="\t" if tabs else ","))
    columns = _columns(path, [name.rstrip("\r\n") for name in names], required, optional)
    broken: list[Any] = []

    def note(row: Any) -> str:
        broken.append(row)
        return "skip"

    parse = pa_csv.ParseOptions(
        delimiter="\t" if tabs else ",",
        quote_char=False if tabs else '"',
        newlines_in_values=not tabs,
        invalid_row_handler=note,
    )
    convert = pa_csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.string()),
        strings_can_be_null=True,
        null_values=[""],
    )
    # One thread, because only then a broken row has a number.
    read = pa_csv.ReadOptions(block_size=BLOCK, use_threads=False)
    with pa.input_stream(str(path), compression="gzip" if packed else None) as stream:
        for batch in pa_csv.open_csv(stream, read, parse, convert):
            _refuse_broken(path, broken)
            yield _frame(batch, columns)
        _refuse_broken(path, broken)


def _refuse_broken(path: Path, broken: list[Any]) -> None:
    if broken:
        row = broken[0]
        where = f", row {row.number - 1}" if row.number else ""
        raise DataError(f"{path}{where}: {row.actual_columns} cells where the header has {row.expected_columns}")
