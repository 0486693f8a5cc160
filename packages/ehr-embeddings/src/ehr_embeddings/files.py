"""Vectors by code from files: Parquet, CSV, word2vec text, or a folder of code vectors.

Nothing is guessed and nothing is skipped: a row of the wrong width, a value that is no finite number, or a code that
comes twice is an error that names the file and the row (counted from 1, without a header).
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.parquet import read_table
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.protocols import EmbeddingTable

from ehr_embeddings.vectors import read_vectors, table_of


class FileEmbedding:
    """The embedding `file`."""

    def __init__(self, settings: Any):
        self.settings = settings

    def embed(self, vocabulary: Vocabulary, store: Path | None) -> EmbeddingTable:
        """Vectors for a vocabulary. Raises ConfigError when the file's width is not the one that was asked for."""
        path = Path(self.settings.path)
        codes, vector_ND = read_codes(path)
        width = vector_ND.shape[1]
        if self.settings.width not in (None, width):
            raise ConfigError(f"{path} has vectors of width {width}, but embedding.width={self.settings.width}")
        return table_of(vocabulary, dict(zip(codes, vector_ND, strict=True)), width)


def read_codes(path: Path) -> tuple[list[str], np.ndarray]:
    """Codes (N) and their vectors (N, D) float32, D > 0. Raises ConfigError, FormatError or DataError."""
    if path.is_dir():
        found = read_vectors(path)
        rows = [index for index, origin in enumerate(found.table.origin_V) if origin]
        return [found.vocabulary.tokens[row].token for row in rows], found.table.vector_VD[rows]
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"{path}: vectors are read from {', '.join(READERS)} or a folder, not {path.suffix!r}")
    if not path.is_file():
        raise FormatError(f"{path} is missing")
    codes, vector_ND = reader(path)
    if not vector_ND.size:
        raise DataError(f"{path} holds no vectors")
    bad = np.flatnonzero(~np.isfinite(vector_ND).all(axis=1))
    if bad.size:
        raise DataError(f"{path}: row {bad[0] + 1} ({codes[bad[0]]!r}) has a value that is not a finite 32-bit number")
    _refuse_twins(path, codes)
    return codes, vector_ND


def _refuse_twins(path: Path, codes: list[str]) -> None:
    first: dict[str, int] = {}
    for row, code in enumerate(codes, 1):
        if first.setdefault(code, row) != row:
            raise DataError(f"{path}: rows {first[code]} and {row} both give {code!r}; keep one of them")


def _narrow(values: np.ndarray) -> np.ndarray:
    """float32; what is out of range becomes infinite and is refused later, with its row."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _codes(path: Path, table: pa.Table) -> list[str]:
    column = table["code"] if "code" in table.column_names else None
    if column is None or not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{path} needs a text column 'code'; it has {', '.join(table.column_names[:8])}")
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(f"{path}: row {row + 1} has no code")
    return [str(code) for code in column.to_pylist()]


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    table = read_table(path)
    codes = _codes(path, table)
    if "vector" not in table.column_names:
        return codes, _plain_columns(path, table)
    column = table["vector"].combine_chunks()
    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not pa.types.is_floating(kind.value_type):
        raise DataError(f"{path}: column 'vector' is {kind}; it has to be a list of floats")
    length = np.asarray(pc.fill_null(pc.list_value_length(column), -1))
    wrong = np.flatnonzero(length != (length[0] if len(length) else 0))
    if wrong.size or (len(length) and length[0] < 1):
        row = int(wrong[0]) if wrong.size else 0
        raise DataError(f"{path}: row {row + 1} has {max(length[row], 0)} values, row 1 has {max(length[0], 0)}")
    flat = np.asarray(pc.fill_null(pc.list_flatten(column), float("nan")))
    return codes, _narrow(flat.reshape(len(length), -1))


def _plain_columns(path: Path, table: pa.Table) -> np.ndarray:
    """(N, D) from columns v0, v1, ..."""
    names = [name for name in table.column_names if name != "code"]
    expected = [f"v{place}" for place in range(len(names))]
    if names != expected or not names:
        wrong = next((name for name, right in zip(names, expected, strict=True) if name != right), "none")
        raise DataError(f"{path}: the columns after 'code' have to be v0, v1, ... in order; found {wrong!r}")
    for name in names:
        if not (pa.types.is_floating(table[name].type) or pa.types.is_integer(table[name].type)):
            row = _first_text(table[name])
            raise DataError(f"{path}: row {row + 1}, column {name!r} holds something that is no number")
    columns = [pc.fill_null(table[name].cast(pa.float64()), float("nan")) for name in names]
    return _narrow(np.stack([np.asarray(column) for column in columns], axis=1))


def _first_text(column: pa.ChunkedArray) -> int:
    """Row of the first entry of a column that is no number."""
    for row, value in enumerate(column.to_pylist()):
        try:
            float(value)
        except (TypeError, ValueError):
            return row
    return 0


def _read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    # Codes may look like numbers, and "NA" may be one: only an empty field is nothing.
    options = pyarrow.csv.ConvertOptions(column_types={"code": pa.string()}, null_values=[""])
    try:
        table = pyarrow.csv.read_csv(path, convert_options=options)
    except pa.ArrowException as error:
        raise FormatError(f"{path} is not readable CSV: {str(error).splitlines()[0][:200]}") from error
    return _codes(path, table), _plain_columns(path, table)


def _read_word2vec(path: Path) -> tuple[list[str], np.ndarray]:
    """Lines ``code v1 ... vD`` after an optional line ``N D``; with that line, codes may contain blanks."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not UTF-8 text (binary word2vec is not read): {error.reason}") from error
    head = lines[0].split() if lines else []
    promised = None
    if len(head) == 2 and all(part.isdigit() for part in head):
        promised, width = int(head[0]), int(head[1])
        lines = lines[1:]
    else:
        width = len(head) - 1
    if promised is not None and promised != len(lines):
        raise DataError(f"{path}: the first line promises {promised} rows, but there are {len(lines)}")
    if width < 1:
        raise DataError(f"{path}: no vector in the first line")
    codes, vector_ND = [], np.empty((len(lines), width), np.float32)
    for row, line in enumerate(lines):
        parts = line.rstrip().rsplit(" ", width)
        try:
            if len(parts) != width + 1 or (promised is None and " " in parts[0]):
                raise ValueError
            vector_ND[row] = _narrow(np.array(parts[1:], np.float64))
        except ValueError:
            raise DataError(f"{path}: row {row + 1} is not a code and {width} numbers") from None
        codes.append(parts[0])
    return codes, vector_ND


READERS = {".parquet": _read_parquet, ".csv": _read_csv, ".txt": _read_word2vec, ".vec": _read_word2vec}
