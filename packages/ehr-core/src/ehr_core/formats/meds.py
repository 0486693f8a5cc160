"""MEDS datasets on disk: the one reader that every stage of every package uses.

A dataset is checked in steps. `shards` looks at folders, footers and column types, which is cheap; `subject_splits`
reads one column, and makes sure that each subject has its place; `read_events` checks every row of a shard, vectorized,
when the shard is read. Nothing is repaired in silence: a row that breaks MEDS is an error that names file, row and
rule, and what is treated otherwise is counted.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehr_core.constants import DATA, SPLITS
from ehr_core.errors import DataError, FormatError
from ehr_core.formats.tokens import NO_TIME


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a dataset: its split and its number within the split."""

    split: str
    number: int
    path: Path


def shards(folder: Path) -> list[Shard]:
    """All shards of the three splits in order, their footers and column types checked.

    Raises FormatError for a folder or file that is missing or damaged, DataError for a column of another type.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected a MEDS dataset with data/{{{','.join(SPLITS)}}}")
    found = []
    for split in SPLITS:
        place = folder / DATA / split
        if not place.is_dir():
            raise FormatError(f"{folder} has no split {split!r}: {place} is missing; MEDS needs {', '.join(SPLITS)}")
        paths = sorted(
            place.rglob("*.parquet"), key=lambda p: [(len(part), part) for part in p.relative_to(place).parts]
        )
        if not paths:
            raise FormatError(f"{place} has no Parquet file; each of {', '.join(SPLITS)} needs at least one")
        found += [Shard(split, number, path) for number, path in enumerate(paths)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda shard: check_columns(shard.path), found))
    return found


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.string_view())


COLUMNS = {
    "subject_id": ("int64", pa.types.is_int64),
    "time": ("timestamp", pa.types.is_timestamp),
    "code": ("string", _is_text),
    "numeric_value": ("float32 or float64", lambda kind: kind in (pa.float32(), pa.float64())),
}


def check_columns(path: Path) -> list[str]:
    """Columns of a Parquet file that we read. Raises FormatError (unreadable) or DataError (a column is wrong)."""
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path} is damaged or no Parquet file: {str(error).splitlines()[0]}") from error
    present = []
    for name, (expected, fits) in COLUMNS.items():
        if name in schema.names:
            found = schema.field(name).type
            if not fits(found):
                raise DataError(f"{path}: column {name!r} is {found}, expected {expected}")
            present.append(name)
        elif name != "numeric_value":
            raise DataError(f"{path} has no column {name!r}; MEDS needs subject_id, time and code")
    return present


def subject_splits(found: Sequence[Shard]) -> dict[int, str]:
    """Subject to split, of all shards of a dataset. Raises DataError for a subject in two shards (`check_subjects`)."""
    with ThreadPoolExecutor() as pool:
        subjects = list(pool.map(lambda shard: subjects_of(shard.path), found))
    check_subjects(found, subjects)
    return {subject: shard.split for shard, ids in zip(found, subjects, strict=True) for subject in ids.tolist()}


def subjects_of(path: Path) -> np.ndarray:
    """Subjects (S,) int64 of one shard, ascending. Raises FormatError for a damaged file."""
    try:
        column = pl.scan_parquet(path).select(pl.col("subject_id").drop_nulls().unique().sort()).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise FormatError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    return column["subject_id"].to_numpy()


def check_subjects(found: Sequence[Shard], subjects: Sequence[np.ndarray]) -> None:
    """Raise DataError when a subject is in two shards, and so perhaps in train and held_out at once.

    ``subjects`` has the subjects of each shard, each of them once.
    """
    subject = np.concatenate([np.empty(0, np.int64), *subjects])
    owner = np.repeat(np.arange(len(subjects)), [len(ids) for ids in subjects])
    order = np.argsort(subject, kind="stable")
    twice = np.flatnonzero(np.diff(subject[order]) == 0)
    if len(twice):
        first, second = (found[owner[order[twice[0] + step]]].path for step in (0, 1))
        raise DataError(
            f"{len(twice)} subjects are in more than one shard, one of them in {first} and {second}; "
            "MEDS keeps each subject in one shard of one split"
        )


def read_events(path: Path, more: Sequence[str] = (), drop_duplicates: bool = False) -> pl.DataFrame:
    """Checked events of a shard: subject_id int64, time datetime[us], code string, numeric_value float32.

    Rows are ordered by (subject_id, time) with null times first; the order of rows of one instant is the file's.
    ``more`` names further columns, which come as strings; one that the file lacks is null throughout, because MEDS
    leaves them to the dataset. Raises DataError that names the file, the first bad row (counted from 1) and the rule.
    """
    return read_treated(path, more, drop_duplicates)[0]


def read_treated(
    path: Path, more: Sequence[str] = (), drop_duplicates: bool = False
) -> tuple[pl.DataFrame, dict[str, int]]:
    """As `read_events`, and what was changed: how often, by name."""
    present = check_columns(path)
    further = _further(path, more)
    try:
        events = pl.read_parquet(path, columns=[*present, *(name for name, there in further.items() if there)])
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        _refuse_bad_text(path)
        raise FormatError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    zoned = events.schema["time"].time_zone is not None  # type: ignore[attr-defined]
    time = pl.col("time")
    if zoned:
        time = time.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    value = pl.col("numeric_value") if "numeric_value" in present else pl.lit(None)
    events = events.select(
        "subject_id",
        time.cast(pl.Datetime("us")),
        pl.col("code").cast(pl.String),
        value.cast(pl.Float32).alias("v"),
        *((pl.col(name) if there else pl.lit(None)).cast(pl.String).alias(name) for name, there in further.items()),
    )
    _check_rows(events, path)
    finite = events["v"].is_finite()  # null for null
    bad = int((~finite).sum())
    numbers = events["v"].set(~finite, None) if bad else events["v"]
    events = events.drop("v").insert_column(3, numbers.alias("numeric_value"))
    rows = len(events)
    if drop_duplicates:
        events = events.unique(keep="first", maintain_order=True)
    return events, {
        "non_finite": bad,
        "dropped": rows - len(events),
        "shards_empty": int(rows == 0),
        "shards_with_time_zone": int(zoned),
        "shards_without_values": int("numeric_value" not in present),
    }


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
    subject_N = subject.to_numpy()
    time_N = events["time"].to_physical().fill_null(NO_TIME).to_numpy()
    same_N = subject_N[1:] == subject_N[:-1]
    back_N = (subject_N[1:] < subject_N[:-1]) | (same_N & (time_N[1:] < time_N[:-1]))
    if back_N.any():
        row = int(back_N.argmax())
        rule = "its time is before the row above (null times come first)" if same_N[row] else "subject_id descends"
        raise DataError(f"{path}, row {row + 2}: {rule}; MEDS rows are sorted by subject_id, then time")


def _first(bad: pl.Series) -> int:
    return int(np.asarray(bad).argmax()) + 1
