"""Parquet and CSV tables read with errors that name the file, and Parquet written whole and with checksums."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ehr_core.errors import FormatError
from ehr_core.formats.folder import replacing
from ehr_core.formats.pages import checked, seal


def read_table(path: Path, text: Collection[str] = ()) -> pa.Table:
    """A ``.parquet`` or ``.csv`` file. Raises FormatError that names the file when it is missing or damaged, or has a
    column twice.

    Columns of a CSV that ``text`` names stay as they were typed, and are null where they are empty.
    """
    try:
        table = _read_csv(path, text) if path.suffix == ".csv" else _read_parquet(path)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        words = str(error).splitlines()[0]
        if path.suffix == ".csv":  # Arrow quotes the row, which is a patient's
            columns = re.search(r"Expected \d+ columns, got \d+", words)
            words = columns[0] if columns else "its text is not a table" if "Empty" not in words else "it is empty"
            raise FormatError(f"{path} is not a readable CSV file: {words}") from None
        raise FormatError(f"{path} is not a readable Parquet file: {words}") from error
    names = table.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FormatError(f"{path} has the column {twice[0]!r} more than once; keep one")
    return table


# An open file, because a path may hold signs that Arrow would take for a pattern or an address; one of Arrow's own,
# because buffers of a Python file may be freed on a thread of Arrow's when Python is gone, which aborts.


def _read_parquet(path: Path) -> pa.Table:
    with pa.OSFile(str(checked(path))) as file:
        return pq.read_table(file)


def _read_csv(path: Path, text: Collection[str]) -> pa.Table:
    table = _csv(path, strings_can_be_null=True)
    for name in text:
        if table.column_names.count(name) == 1:  # again, because NA may be a name as well, and 01 is none but 1
            column = _csv(path, column_types={name: pa.string()}, null_values=[""], include_columns=[name],
                          strings_can_be_null=True)  # fmt: skip
            table = table.set_column(table.column_names.index(name), name, column[name])
    return table


def _csv(path: Path, **options: Any) -> pa.Table:
    with pa.OSFile(str(path)) as file:
        return pa.csv.read_csv(file, convert_options=pa.csv.ConvertOptions(quoted_strings_can_be_null=False, **options))


def write_table(path: Path, table: pa.Table, compression: str = "snappy") -> None:
    """Write Parquet under a temporary name and rename it; folders above it are made.

    Each page has its checksum, and so has the footer (`ehr_core.formats.pages`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression=compression, write_page_checksum=True)
        seal(temporary)


def write_frame(path: Path, frame: pl.DataFrame) -> None:
    """`write_table` of a frame."""
    write_table(path, frame.to_arrow(compat_level=pl.CompatLevel.oldest()))


def read_frame(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """A Parquet file as a frame. Raises FormatError for a file that is missing, damaged or lacks a column."""
    try:
        return pl.read_parquet(checked(path), columns=list(columns) if columns else None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        wanted = f" or lacks {', '.join(columns)}" if columns else ""
        raise FormatError(f"{path} is damaged{wanted}: {str(error).splitlines()[0]}") from error
