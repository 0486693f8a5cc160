"""The rows of one shard, checked and put into the form that everything works on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehr_core.errors import DataError, FormatError
from ehr_core.formats.meds import times
from ehr_core.formats.meds.shard import Shard
from ehr_core.formats.pages import checked
from ehr_core.formats.tokens import NO_TIME

TREATED = {
    "non_finite": "numbers that were NaN, infinite or beyond float32; they are missing",
    "dropped": "repeated rows that were left out (duplicates=drop)",
    "shards_empty": "shards without a row",
    "shards_sorted": "shards whose rows were not in order of subject and time, and were put in order",
    "shards_with_time_zone": "shards whose times had a time zone and became UTC",
    "shards_without_values": "shards without a column numeric_value, or with one of nulls; all numbers are missing",
    **times.TREATED,
}
"""Names of what a reader counts, and what they count."""


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)


COLUMNS = {
    "subject_id": ("int64", pa.types.is_integer),
    "time": ("timestamp", lambda kind: pa.types.is_timestamp(kind) or pa.types.is_date(kind)),
    "code": ("string", _is_text),
    "numeric_value": ("float32 or another number", _is_number),
}


def check_columns(path: Path) -> list[str]:
    """Columns of a Parquet file that we read. Raises FormatError (unreadable) or DataError (a column is wrong).

    A column in which everything is null may have the type null, as some writers infer it.
    """
    try:
        schema = pq.read_schema(checked(path, pages=False))
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path} is damaged or no Parquet file: {str(error).splitlines()[0]}") from error
    present = []
    for name, (expected, fits) in COLUMNS.items():
        if schema.names.count(name) > 1:
            raise DataError(f"{path} has {schema.names.count(name)} columns {name!r}; MEDS has one")
        if name in schema.names:
            found = schema.field(name).type
            if not fits(found) and not pa.types.is_null(found):
                raise DataError(f"{path}: column {name!r} is {found}, expected {expected}")
            present.append(name)
        elif name != "numeric_value":
            raise DataError(f"{path} has no column {name!r}; MEDS needs subject_id, time and code")
    return present


def read_events(shard: Shard | Path, more: Sequence[str] = (), drop_duplicates: bool = False) -> pl.DataFrame:
    """Checked events of a shard: subject_id int64, time datetime[us], code string, numeric_value float32.

    Rows are ordered by (subject_id, time) with null times first; the order of rows of one instant is the file's.
    ``more`` names further columns, which come as strings; one that the file lacks is null throughout, because MEDS
    leaves them to the dataset. Raises DataError that names the file, the first bad row (counted from 1) and the rule.
    """
    return read_treated(shard, more, drop_duplicates)[0]


def read_treated(
    shard: Shard | Path, more: Sequence[str] = (), drop_duplicates: bool = False
) -> tuple[pl.DataFrame, dict[str, int]]:
    """As `read_events`, and what was changed: how often, by the names of TREATED."""
    if isinstance(shard, Path):
        shard = Shard("train", 0, shard)
    path = shard.path
    events, zoned, valued = _typed(path, more)
    _check_rows(events, path)
    id_N, time_N = _arrays(events)
    treated = {
        "shards_empty": int(not len(events)),
        "shards_with_time_zone": int(zoned),
        "shards_without_values": int(not valued),
        "shards_sorted": int(not _in_order(id_N, time_N)),
    }
    if treated["shards_sorted"]:
        events = events.sort("subject_id", "time", nulls_last=False, maintain_order=True)
    if shard.subject_id is not None:
        events = events.filter(events["subject_id"].is_in(shard.subject_id))
    if treated["shards_sorted"] or shard.subject_id is not None:
        id_N, time_N = _arrays(events)
    finite = events["numeric_value"].is_finite()  # null for null
    treated["non_finite"] = int((~finite).sum())
    if treated["non_finite"]:
        events = events.with_columns(events["numeric_value"].set(~finite, None))
    events, counts = times.settle(events, id_N, time_N, shard.reading)
    rows = len(events)
    if drop_duplicates:
        events = events.unique(keep="first", maintain_order=True)
    return events, treated | counts | {"dropped": rows - len(events)}


def _typed(path: Path, more: Sequence[str]) -> tuple[pl.DataFrame, bool, bool]:
    """Rows as they are, in our types; whether their times had a zone, and whether there are numbers."""
    present = check_columns(path)
    further = _further(path, more)
    try:
        events = pl.read_parquet(checked(path), columns=[*present, *(name for name, there in further.items() if there)])
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        _refuse_bad_text(path)
        raise FormatError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    kind = events.schema["time"]
    zoned = isinstance(kind, pl.Datetime) and kind.time_zone is not None
    time = pl.col("time")
    if zoned:
        time = time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if isinstance(kind, pl.Datetime) and kind.time_unit == "ms":  # what does not fit would become any time at all
        most = (2**63 - 1) // 1000
        time = time.to_physical().clip(-most, most).cast(pl.Datetime("ms"))
    valued = "numeric_value" in present and events.schema["numeric_value"] != pl.Null
    value = pl.col("numeric_value") if valued else pl.lit(None)
    try:
        typed = events.select(
            pl.col("subject_id").cast(pl.Int64),
            time.cast(pl.Datetime("us")).alias("time"),
            pl.col("code").cast(pl.String),
            value.cast(pl.Float32).alias("numeric_value"),
            *((pl.col(name) if there else pl.lit(None)).cast(pl.String).alias(name) for name, there in further.items()),
        )
    except pl.exceptions.PolarsError:
        raise DataError(f"{path}: a subject_id is beyond int64") from None
    return typed, zoned, valued


def _refuse_bad_text(path: Path) -> None:
    """Raise DataError for the first row whose code is not UTF-8; return when that is not what is wrong."""
    try:
        column = pq.read_table(path, columns=["code"])["code"]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        for row, code in enumerate(column.cast(pa.large_binary()).to_pylist(), 1):
            try:
                (code or b"").decode()
            except UnicodeDecodeError:
                raise DataError(f"{path}, row {row}: code is not UTF-8 text") from None
    except (pa.ArrowException, OSError):
        return


def _further(path: Path, more: Sequence[str]) -> dict[str, bool]:
    """Each further column and whether the file has it. Raises DataError for one that has no text form."""
    schema = pq.read_schema(path) if more else pa.schema([])
    for name in set(more) & set(schema.names):
        if pa.types.is_nested(schema.field(name).type):
            raise DataError(f"{path}: column {name!r} is {schema.field(name).type}; only single values can be read")
    return {name: name in schema.names for name in more}


def _check_rows(events: pl.DataFrame, path: Path) -> None:
    """Raise DataError for the first row that breaks a rule of MEDS."""
    subject, code = events["subject_id"], events["code"]
    if subject.null_count():
        raise DataError(f"{path}, row {_first(subject.is_null())}: subject_id is null")
    empty = code.is_null() | (code.str.len_bytes() == 0)
    if empty.any():
        raise DataError(f"{path}, row {_first(empty)}: code is null or empty")


def _arrays(events: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Subjects and times (N,) int64 of the rows; NO_TIME for null."""
    return events["subject_id"].to_numpy(), events["time"].to_physical().fill_null(NO_TIME).to_numpy()


def _in_order(id_N: np.ndarray, time_N: np.ndarray) -> bool:
    """Whether rows are in order of subject and time, null times first."""
    same_N = id_N[1:] == id_N[:-1]
    return not bool(((id_N[1:] < id_N[:-1]) | (same_N & (time_N[1:] < time_N[:-1]))).any())


def _first(bad: pl.Series) -> int:
    return int(np.asarray(bad).argmax()) + 1
