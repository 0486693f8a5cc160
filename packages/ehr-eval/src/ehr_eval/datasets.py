"""The datasets that commands work on, and the places where they put their output."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from ehr_core import plugins
from ehr_core.constants import DATA, SPLITS
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.executors import Serial
from ehr_core.formats.folder import digest_of, read_json
from ehr_core.formats.meds import shards
from ehr_core.plugin import MedsConfig, SerialConfig
from ehr_core.protocols import Executor
from ehr_core.stages import settings_key

from ehr_eval.settings import MISSING


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
        yield Dataset(Path(path), digest_of(settings_key(source)))


@contextlib.contextmanager
def with_all_splits(source: Any) -> Iterator[Any]:
    """Settings of the source; of records on disk that lack splits, those of a folder of links that has them.

    Records to predict need none: files right below ``data`` count as held_out, and a split that is not there is empty.
    """
    data = Path(source.path) / DATA if isinstance(source, MedsConfig) and source.path != MISSING else None
    if data is None or not data.is_dir() or all((data / split).is_dir() for split in SPLITS):
        yield source
        return
    places = {split: data / split for split in SPLITS if (data / split).is_dir()} or {"held_out": data}
    found = {split: sorted(place.rglob("*.parquet")) for split, place in places.items()}
    if not any(found.values()):
        raise FormatError(f"{data} has no Parquet file; expected data/*.parquet or data/{{{','.join(SPLITS)}}}")
    with tempfile.TemporaryDirectory(prefix="ehr-eval-") as scratch:
        view = Path(scratch)
        empty = pl.DataFrame(schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String})
        for split in SPLITS:
            (view / DATA / split).mkdir(parents=True)
            for number, path in enumerate(found.get(split, ())):
                _link(path, view / DATA / split / f"{number}.parquet")
            if not found.get(split):
                empty.write_parquet(view / DATA / split / "0.parquet")
        for path in sorted((data.parent / "metadata").glob("*")):
            if path.name != "subject_splits.parquet":  # what it says of flat files is not how they are read here
                (view / "metadata").mkdir(exist_ok=True)
                _link(path, view / "metadata" / path.name)
        yield replace(source, path=view)


def _link(path: Path, place: Path) -> None:
    if os.name == "nt":  # links need a privilege there
        shutil.copy(path, place)
    else:
        place.symlink_to(path.resolve())


def dataset_name(meds: Path) -> str:
    """What ``metadata/dataset.json`` calls the dataset; empty where it does not say."""
    path = meds / "metadata" / "dataset.json"
    facts = read_json(path) if path.is_file() else {}
    return str(facts.get("dataset_name") or "") if isinstance(facts, dict) else ""


def last_time(meds: Path) -> datetime:
    """The last time in the whole dataset: what would happen after it cannot be known."""
    frames = [pl.scan_parquet(s.path).select(pl.col("time").cast(pl.Datetime("us")).max()) for s in shards(meds)]
    try:
        found = pl.concat(pl.collect_all(frames))["time"].max()
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{meds / DATA}: {str(error).splitlines()[0]}") from error
    if not isinstance(found, datetime):
        raise DataError(f"{meds / DATA} has no event with a time")
    return found


def output_folder(given: Path | str | None) -> Path:
    """The folder that a command was told to make, or a fresh one below ``outputs/``."""
    return Path(given) if given else Path(datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S"))
