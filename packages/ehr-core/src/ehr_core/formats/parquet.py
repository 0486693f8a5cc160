"""Parquet and CSV tables read with errors that name the file, and Parquet written whole."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ehr_core.errors import FormatError
from ehr_core.formats.folder import replacing


def read_table(path: Path) -> pa.Table:
    """A ``.parquet`` or ``.csv`` file. Raises FormatError that names the file when it is missing or damaged."""
    try:
        # An open file, because a path may hold signs that Arrow would take for a pattern or an address; one of Arrow's
        # own, because buffers of a Python file may be freed on a thread of Arrow's when Python is gone, which aborts.
        with pa.OSFile(str(path)) as file:
            return pa.csv.read_csv(file) if path.suffix == ".csv" else pq.read_table(file)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        kind = "CSV" if path.suffix == ".csv" else "Parquet"
        raise FormatError(f"{path} is not a readable {kind} file: {str(error).splitlines()[0]}") from error


def write_table(path: Path, table: pa.Table) -> None:
    """Write Parquet under a temporary name and rename it; folders above it are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
