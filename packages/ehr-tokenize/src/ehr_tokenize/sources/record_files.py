"""Tables as other systems export them, read in batches of bounded size: CSV, compressed CSV and Parquet.

Names of files and columns are matched in lower case. Cells of a CSV are text until someone asks for a number or a time;
what cannot be one is an error that names file, row (counted from 1, without the header) and column, never the cell.
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

KINDS = (".parquet", ".csv.gz", ".csv")
BLOCK = 1 << 23
"""Bytes of text in a batch of a CSV."""
ROWS = 1 << 18
"""Rows in a batch of a Parquet file."""
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M", "%Y%m%d")


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


@dataclass(frozen=True)
class Batch:
    """Some rows of a file. Columns that the file does not have are null throughout."""

    path: Path
    first: int
    """Number of the first row."""
    frame: pl.DataFrame

    def __len__(self) -> int:
        return len(self.frame)

    def _column(self, name: str) -> pl.Series:
        return self.frame[name] if name in self.frame.columns else pl.Series(name, [None] * len(self), pl.Null)

    def _refuse(self, name: str, bad: pl.Series, expected: str) -> None:
        if bad.any():
            row = self.first + int(bad.fill_null(False).arg_max() or 0)
            raise DataError(f"{self.path}, row {row}: column {name!r} is no {expected}")

    def text(self, name: str) -> pl.Series:
        """Text without blanks around it; null where there is none. A number is written without ``.0``."""
        column = self._column(name)
        if column.dtype == pl.String:
            column = column.str.strip_chars()
            return column.set(column == "", None)
        if column.dtype.is_float() and not (column != column.round()).any():
            column = column.fill_nan(None).cast(pl.Int64)
        return column.cast(pl.String)

    def integer(self, name: str) -> pl.Series:
        """Whole numbers, also where they were exported as ``7.0``. Raises DataError for what is none."""
        column = self._column(name)
        if column.dtype == pl.String:
            text = self.text(name)
            number = text.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
            self._refuse(name, number.is_null() & text.is_not_null(), "whole number")
            return number
        if column.dtype.is_float():
            column = column.fill_nan(None)
            self._refuse(name, column != column.round(), "whole number")
        elif not (column.dtype.is_integer() or column.dtype.is_decimal() or column.dtype == pl.Null):
            raise DataError(f"{self.path}: column {name!r} is {column.dtype}, expected whole numbers")
        return column.cast(pl.Int64)

    def number(self, name: str, strict: bool = True) -> pl.Series:
        """Float64; null where there is no finite number. With ``strict``, DataError for text that is none."""
        column = self._column(name)
        if column.dtype == pl.String:
            text = self.text(name)
            number = text.cast(pl.Float64, strict=False)
            if strict:
                self._refuse(name, number.is_null() & text.is_not_null(), "number")
        elif column.dtype.is_numeric() or column.dtype == pl.Null:
            number = column.cast(pl.Float64)
        else:
            raise DataError(f"{self.path}: column {name!r} is {column.dtype}, expected numbers")
        return number.set(number.is_finite().not_(), None)

    def time(self, name: str) -> pl.Series:
        """Microseconds, in UTC where there is a time zone; a date is its midnight. DataError for what is neither."""
        column = self._column(name)
        if column.dtype == pl.String:
            text = self.text(name)
            time = parse_times(text)
            self._refuse(name, time.is_null() & text.is_not_null(), "date or time such as 2020-01-31 12:00:00")
            return time
        if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone:
            column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        elif not (column.dtype in (pl.Date, pl.Null) or isinstance(column.dtype, pl.Datetime)):
            raise DataError(f"{self.path}: column {name!r} is {column.dtype}, expected dates or times")
        return column.cast(pl.Datetime("us"))


def parse_times(text: pl.Series) -> pl.Series:
    """Datetimes of ISO dates and times, with ``T`` or a blank, with or without a zone; null for anything else."""
    plain = text.str.replace(r"(?:Z| UTC)$", "").str.replace("T", " ", literal=True)
    time = pl.Series(text.name, [None] * len(text), pl.Datetime("us"))
    for form in TIME_FORMATS:
        left = plain.set(time.is_not_null(), None)
        if left.null_count() == len(left):
            break
        found = left.str.to_datetime(form, time_unit="us", strict=False, exact=True)
        if found.dtype.time_zone:  # type: ignore[attr-defined]
            found = found.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        time = time.zip_with(time.is_not_null(), found)
    return time


def batches(table: Table, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Batch]:
    """The rows of a table in order, with these columns.

    Raises DataError for a file that lacks a required column or has a broken row, FormatError for a damaged one.
    """
    for path in table.paths:
        first = 1
        read = _parquet if _kind(path) == ".parquet" else _csv
        try:
            for frame in read(path, required, optional):
                yield Batch(path, first, frame)
                first += len(frame)
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            # Arrow's own text may hold the row.
            kind = "Parquet file" if read is _parquet else "CSV file in UTF-8"
            raise FormatError(f"{path} is damaged or no {kind} (after row {first - 1})") from error


def _columns(path: Path, names: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> dict[str, str]:
    """Name in the file to name in lower case, of the columns that are wanted."""
    lower = {name.strip().lower(): name for name in names}
    missing = [name for name in required if name not in lower]
    if missing:
        raise DataError(f"{path} has no column {', '.join(map(repr, missing))}")
    return {lower[name]: name for name in dict.fromkeys([*required, *optional]) if name in lower}


def _frame(batch: pa.RecordBatch, columns: dict[str, str]) -> pl.DataFrame:
    frame = pl.from_arrow(pa.Table.from_batches([batch]))
    assert isinstance(frame, pl.DataFrame)
    return frame.rename(columns)


def _parquet(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[pl.DataFrame]:
    with pq.ParquetFile(path) as file:
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
