"""Reading MEDS datasets shard by shard, and the places where commands put their output."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from ehr_core import config, plugins
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.executors import Serial
from ehr_core.formats.folder import digest_of
from ehr_core.plugin import SerialConfig
from ehr_core.protocols import Executor

from ehr_eval.plugin import MISSING

NEEDED: dict[str, Any] = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}


@dataclass(frozen=True)
class Dataset:
    """A MEDS dataset that a source provided: where it is, and what identifies it."""

    path: Path
    digest: str


@contextlib.contextmanager
def provided(source: Any, executor: Executor | None = None) -> Iterator[Dataset]:
    """The dataset of a source's settings. What the source writes goes to a temporary folder, removed at the end."""
    if source == MISSING or source is None:
        raise ConfigError("source is required: give source=NAME, for example source=meds source.path=DIR")
    built = plugins.build("source", source)
    with tempfile.TemporaryDirectory(prefix="ehr-eval-") as scratch:
        path = built.provide(Path(scratch), executor or Serial(SerialConfig()))
        files = dict(built.fingerprint())
        yield Dataset(Path(path), digest_of([files, config_of_source(source)]))


def config_of_source(source: Any) -> dict[str, Any]:
    """Settings of a source without the place of its files: that differs between machines, the files count."""
    return {key: value for key, value in config.to_plain(source).items() if key not in ("path", "root", "folder")}


def splits(meds: Path) -> list[str]:
    """Names of the splits that a dataset has. Raises FormatError when there is none."""
    found = sorted(path.name for path in (meds / "data").glob("*") if path.is_dir())
    if not found:
        raise FormatError(f"{meds} is no MEDS dataset: expected data/<split>/*.parquet")
    return found


def shards(meds: Path, split: str) -> list[Path]:
    """Files of one split in order of name. Raises FormatError when the split is missing."""
    found = sorted((meds / "data" / split).rglob("*.parquet"))
    if not found:
        raise FormatError(f"{meds} has no split {split!r}; it has {', '.join(splits(meds))}")
    return found


def read_events(path: Path) -> pl.DataFrame:
    """``subject_id``, ``time``, ``code``, ``numeric_value`` of one shard, in the order of the file.

    Raises DataError for a column that is missing or of a type that cannot be used, FormatError for a damaged file.
    """
    try:
        lazy = pl.scan_parquet(path)
        names = lazy.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise FormatError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise DataError(f"{path}: events lack the column {', '.join(missing)}; MEDS needs {', '.join(NEEDED)}")
    value = pl.col("numeric_value") if "numeric_value" in names else pl.lit(None)
    columns = [pl.col(name).cast(dtype) for name, dtype in NEEDED.items()]
    try:
        return lazy.select(*columns, value.cast(pl.Float32).alias("numeric_value")).collect()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: {str(error).splitlines()[0]}") from error


def last_time(meds: Path) -> datetime:
    """The last time in the whole dataset: what would happen after it cannot be known."""
    paths = [path for split in splits(meds) for path in shards(meds, split)]
    frames = [pl.scan_parquet(path).select(pl.col("time").cast(pl.Datetime("us")).max()) for path in paths]
    try:
        found = pl.concat(pl.collect_all(frames))["time"].max()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{meds / 'data'}: {str(error).splitlines()[0]}") from error
    if not isinstance(found, datetime):
        raise DataError(f"{meds / 'data'} has no event with a time")
    return found


def output_folder(given: str | None) -> Path:
    """The folder that a command was told to make, or a fresh one below ``outputs/``."""
    return Path(given) if given else Path(datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))
