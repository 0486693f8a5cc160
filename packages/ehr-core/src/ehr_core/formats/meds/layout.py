"""Which files a dataset has, the split of each subject, and the times that its records can have."""

import functools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehr_core.constants import DATA, SPLITS
from ehr_core.errors import DataError, FormatError
from ehr_core.formats.folder import read_json
from ehr_core.formats.meds.rows import check_columns, read_events
from ehr_core.formats.meds.shard import EPOCH, LATEST, Given, Reading, Shard, day_after, microseconds, reading_of
from ehr_core.formats.pages import checked

SUBJECT_SPLITS = Path("metadata") / "subject_splits.parquet"


def shards(folder: Path, now: int | None = None) -> list[Shard]:
    """All shards of the splits in order, their footers and column types checked.

    Files lie in ``data/{train,tuning,held_out}``, of which some may be missing; or elsewhere below ``data``, where
    ``metadata/subject_splits.parquet`` says the split of each subject. ``now`` (microseconds since 1970, else the
    clock) is when the dataset was made at the latest, where it does not say itself.

    Raises FormatError for a folder or file that is missing or damaged, DataError for a column of another type.
    """
    given = reading_of(folder)
    paths = _files(folder)
    said = records_folder(folder)
    with ThreadPoolExecutor() as pool:
        last = list(pool.map(_last_time, paths))
    reading = _reading(folder, given, dict(zip(paths, last, strict=True)), now)
    root = _root(folder)
    folders = {path: path.relative_to(root).parts[0] for path in paths}
    if given.split is not None:
        _check_nothing_says_another(said, folders, given.split)
        return [Shard(given.split, number, path, reading) for number, path in enumerate(paths)]
    if all(name in SPLITS for name in folders.values()):
        return _by_folder(folders, reading)
    return _by_subject(said, paths, reading)


def need_split(found: Sequence[Shard], split: str, folder: Path) -> list[Shard]:
    """The shards of a split. Raises FormatError when the dataset does not have it."""
    folder = records_folder(folder)
    chosen = [shard for shard in found if shard.split == split]
    if not chosen:
        there = ", ".join(dict.fromkeys(shard.split for shard in found))
        raise FormatError(f"{folder} has no split {split!r}, which is needed to fit on; it has {there}")
    return chosen


def _files(folder: Path) -> list[Path]:
    """The Parquet files below ``data``: by the number of signs of each part of the path first, so that 10 follows 9."""
    splits = ",".join(SPLITS)
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected a MEDS dataset with data/{{{splits}}}")
    root = _root(folder)
    if not root.is_dir():
        raise FormatError(f"{folder} is no MEDS dataset: {folder / DATA} is missing; expected data/{{{splits}}}")
    found = []
    for below, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(below, name) for name in names if name.lower().endswith(".parquet") and name[0] != "."]
    for split in SPLITS:
        place = root / split
        if place.is_dir() and not any(path.is_relative_to(place) for path in found):
            raise FormatError(f"{folder / DATA / split} has no Parquet file; remove the folder if it is meant so")
    if not found:
        raise FormatError(f"{folder / DATA} has no Parquet file; expected data/{{{splits}}} with at least one each")
    return sorted(found, key=lambda path: [(len(part), part) for part in path.relative_to(root).parts])


def _root(folder: Path) -> Path:
    """The folder ``data``, or where it is a link to: what lies below a link is not looked for."""
    return (folder / DATA).resolve() if (folder / DATA).is_symlink() else folder / DATA


def records_folder(folder: Path) -> Path:
    """Where a dataset's files lie: another folder than its own where it is a view (`write_view`)."""
    return (folder / DATA).resolve().parent if (folder / DATA).is_symlink() else folder


def _check_nothing_says_another(folder: Path, folders: dict[Path, str], split: str) -> None:
    """Raise DataError when a folder, or the table of splits, puts subjects elsewhere than ``source.split``."""
    other = next((name for name in folders.values() if name in SPLITS and name != split), None)
    if other is not None:
        raise DataError(f"source.split={split} contradicts {folder / DATA / other}; leave it out: the folders say it")
    table = folder / SUBJECT_SPLITS
    if not table.is_file():
        return
    id_M, split_M, _ = read_splits(table)
    subject_S = np.concatenate([subjects_of(path) for path in folders])
    elsewhere = int(np.isin(subject_S, id_M[split_M != SPLITS.index(split)]).sum())
    if elsewhere:
        raise DataError(
            f"source.split={split} contradicts {table}, which has {elsewhere} of the {len(subject_S)} subjects in "
            "other splits; leave it out: the table says it"
        )


def _by_folder(folders: dict[Path, str], reading: Reading) -> list[Shard]:
    found = []
    for split in SPLITS:
        paths = [path for path, name in folders.items() if name == split]
        found += [Shard(split, number, path, reading) for number, path in enumerate(paths)]
    return found


def _by_subject(folder: Path, paths: Sequence[Path], reading: Reading) -> list[Shard]:
    """Shards of files that lie in no folder of a split: the part of each file that is in one."""
    table = folder / SUBJECT_SPLITS
    if not table.is_file():
        raise FormatError(
            f"{folder} has Parquet files outside of data/{{{','.join(SPLITS)}}} and no {SUBJECT_SPLITS} that says the "
            "split of their subjects; write one, or say what all of them are: source.split=held_out"
        )
    id_M, split_M, _ = read_splits(table)
    root = _root(folder)
    with ThreadPoolExecutor() as pool:
        subjects = list(pool.map(subjects_of, paths))
    found: dict[str, list[Shard]] = {split: [] for split in SPLITS}
    for path, subject_S in zip(paths, subjects, strict=True):
        at_S = np.minimum(np.searchsorted(id_M, subject_S), max(len(id_M) - 1, 0))
        unnamed = len(subject_S) - int(np.count_nonzero(id_M[at_S] == subject_S)) if len(id_M) else len(subject_S)
        if unnamed:
            raise DataError(f"{table} does not say the split of {unnamed} of the {len(subject_S)} subjects of {path}")
        own = path.relative_to(root).parts[0]
        if own in SPLITS and len(subject_S) and (split_M[at_S] != SPLITS.index(own)).any():
            raise DataError(f"{table} puts subjects of {path} in another split than {own}; mend one of the two")
        for index, split in enumerate(SPLITS):
            chosen = subject_S[split_M[at_S] == index] if len(subject_S) else subject_S
            if len(chosen):
                whole = len(chosen) == len(subject_S)
                found[split].append(Shard(split, len(found[split]), path, reading, None if whole else chosen))
    if not any(found.values()):
        raise DataError(f"{folder / DATA} has no row")
    return [shard for split in SPLITS for shard in found[split]]


def read_splits(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subjects (M,) int64, ascending, of ``subject_splits.parquet``; the place of each one's split in SPLITS; its row.

    Rows count from 1. Raises FormatError for a damaged file, DataError for a row that says no split, or another one.
    """
    try:
        table = pl.read_parquet(checked(path), columns=["subject_id", "split"])
        id_M = table["subject_id"].cast(pl.Int64).to_numpy()
        names = table["split"].cast(pl.String)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise FormatError(f"{path} is damaged or lacks subject_id, split: {str(error).splitlines()[0]}") from error
    if table["subject_id"].null_count():
        raise DataError(f"{path}, row {_first(table['subject_id'].is_null())}: subject_id is null")
    other = ~names.is_in(SPLITS).fill_null(False)
    if other.any():
        raise DataError(f"{path}, row {_first(other)}: the split is {names[_first(other) - 1]!r}; MEDS has {SPLITS}")
    split_M = np.array([SPLITS.index(name) for name in names.to_list()], np.int64)
    order = np.argsort(id_M, kind="stable")
    id_M, split_M = id_M[order], split_M[order]
    twice = np.flatnonzero((id_M[1:] == id_M[:-1]) & (split_M[1:] != split_M[:-1]))
    if len(twice):
        raise DataError(f"{path}, row {int(order[twice[0] + 1]) + 1}: the subject is in two splits; it belongs to one")
    return id_M, split_M, order + 1


def _first(bad: pl.Series) -> int:
    return int(np.asarray(bad).argmax()) + 1


# -- times


def _last_time(path: Path) -> int | None:
    """The last time of a file in microseconds, by its footer; None: there is none, or the footer does not say."""
    check_columns(path)
    metadata = pq.read_metadata(path)
    place = metadata.schema.to_arrow_schema().get_field_index("time")
    found = []
    for group in range(metadata.num_row_groups):
        column = metadata.row_group(group).column(place)
        if metadata.row_group(group).num_rows == 0:
            continue
        statistics = column.statistics if column.path_in_schema == "time" else None
        if statistics is None or not statistics.has_null_count:
            return _slow_last_time(path)
        if statistics.null_count == metadata.row_group(group).num_rows:
            continue
        try:
            most = statistics.max if statistics.has_min_max else None
        except OverflowError:  # after the year 9999
            return LATEST + 1
        if not isinstance(most, datetime):
            return _slow_last_time(path)
        found.append(microseconds(most))
    return max(found, default=None)


def _slow_last_time(path: Path) -> int | None:
    times = _times(path)
    return int(pc.max(times).as_py()) if len(times) else None


def _times(path: Path) -> pa.ChunkedArray:
    """All times of a file that are not null, int64 microseconds."""
    column = pq.read_table(checked(path), columns=["time"])["time"].drop_null()
    if pa.types.is_null(column.type):
        return column.cast(pa.int64())
    if getattr(column.type, "unit", "") == "ms":
        most = (2**63 - 1) // 1000  # what does not fit would become any time at all
        column = pc.max_element_wise(pc.min_element_wise(column.cast(pa.int64()), most), -most).cast(pa.timestamp("ms"))
    return column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())


def _reading(folder: Path, given: Given, last: dict[Path, int | None], now: int | None) -> Reading:
    """Which times the records can have: see `Reading`."""
    said = given.latest_us()
    limit = min(said if said is not None else day_after(_made(folder, now)), LATEST)
    over = [path for path, time in last.items() if time is not None and time > limit]
    if said is not None or not over:
        return Reading(latest=limit, birth=given.birth)
    parts = [_later(path, path.stat().st_size, path.stat().st_mtime_ns, limit) for path in last]
    later, timed = (sum(part[place] for part in parts) for place in (0, 1))
    shifted = 2 * later > timed
    return Reading(latest=LATEST if shifted else limit, shifted=shifted, birth=given.birth)


@functools.lru_cache(maxsize=100_000)
def _later(path: Path, size: int, changed: int, limit: int) -> tuple[int, int]:
    """How many events are later than the limit, and how many have a time. Size and change belong to the key."""
    times = _times(path)
    return int(pc.sum(pc.greater(times, limit)).as_py() or 0), len(times)


def _made(folder: Path, now: int | None) -> int:
    """When the dataset was made, in microseconds: its own ``created_at``, else now."""
    path = folder / "metadata" / "dataset.json"
    facts = read_json(path, dict[str, Any]) if path.is_file() else {}
    try:
        return microseconds(datetime.fromisoformat(str(facts["created_at"])))
    except (KeyError, TypeError, ValueError, OverflowError):
        return microseconds(datetime.now(UTC)) if now is None else now


def last_time(folder: Path, found: Sequence[Shard]) -> datetime:
    """The last time in a dataset, what cannot be left out: what would happen after it cannot be known."""
    with ThreadPoolExecutor() as pool:
        last = list(pool.map(_last_time, [shard.path for shard in found]))
    order = sorted(((time, k) for k, time in enumerate(last) if time is not None), reverse=True)
    end: int | None = None
    for latest, k in order:
        if end is not None and latest <= end:
            break
        time = read_events(found[k])["time"].max()
        if isinstance(time, datetime):
            end = max(microseconds(time), microseconds(time) if end is None else end)
    if end is None:
        raise DataError(f"{folder / DATA} has no event with a time")
    return EPOCH + timedelta(microseconds=end)


# -- subjects


def subject_splits(found: Sequence[Shard]) -> dict[int, str]:
    """Subject to split, of all shards of a dataset. Raises DataError for a subject in two shards (`check_subjects`)."""
    with ThreadPoolExecutor() as pool:
        subjects = list(pool.map(subjects_of, found))
    check_subjects(found, subjects)
    return {subject: shard.split for shard, ids in zip(found, subjects, strict=True) for subject in ids.tolist()}


def subjects_of(shard: Shard | Path) -> np.ndarray:
    """Subjects (S,) int64 of a shard or a file, ascending. Raises FormatError for a damaged file."""
    if isinstance(shard, Shard) and shard.subject_id is not None:
        return shard.subject_id
    path = shard.path if isinstance(shard, Shard) else shard
    try:
        column = pl.scan_parquet(checked(path)).select(pl.col("subject_id").cast(pl.Int64).drop_nulls().unique().sort())
        return column.collect()["subject_id"].to_numpy()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise FormatError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def check_subjects(found: Sequence[Shard], subjects: Iterable[np.ndarray]) -> None:
    """Raise DataError when a subject is in two shards, and so perhaps in train and held_out at once.

    ``subjects`` has the subjects of each shard, each of them once.
    """
    parts = list(subjects)
    subject = np.concatenate([np.empty(0, np.int64), *parts])
    owner = np.repeat(np.arange(len(parts)), [len(ids) for ids in parts])
    order = np.argsort(subject, kind="stable")
    twice = np.flatnonzero(np.diff(subject[order]) == 0)
    if len(twice):
        first, second = (found[owner[order[twice[0] + step]]].path for step in (0, 1))
        raise DataError(
            f"{len(twice)} subjects are in more than one shard, one of them in {first} and {second}; "
            "MEDS keeps each subject in one shard of one split"
        )
