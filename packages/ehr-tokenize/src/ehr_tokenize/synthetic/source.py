"""The source ``synthetic``: writes a cohort as a MEDS 0.4.1 dataset, and its labels with true probabilities.

    MEDS/data/<split>/<shard>.parquet
    MEDS/metadata/{codes.parquet,dataset.json,subject_splits.parquet}
    MEDS/labels/<task>/{manifest.json,<split>.parquet}      labels, with the best possible predictions

Shards are numbered through train, tuning and held_out, each of at most ``shard_subjects`` subjects of one split, and
each is drawn from (seed, number) alone. Memory is bounded by one shard and the label rows (about 150 bytes a stay).
"""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError
from ehr_core.formats import labels
from ehr_core.formats.folder import Manifest
from ehr_core.formats.parquet import write_table
from ehr_core.progress import track
from ehr_core.protocols import Executor

from ehr_tokenize.__about__ import __version__
from ehr_tokenize.sources import to_meds
from ehr_tokenize.synthetic.codes import code_book
from ehr_tokenize.synthetic.events import draw_shard
from ehr_tokenize.synthetic.laws import DAY, laws
from ehr_tokenize.synthetic.settings import SyntheticConfig
from ehr_tokenize.synthetic.truth import TASKS


@dataclass(frozen=True)
class Piece:
    """One shard to write."""

    index: int
    split: str
    number: int
    """Number within the split: the file's name."""
    first_id: int
    count: int


@dataclass(frozen=True)
class Written:
    """What is left of a shard once its rows are on disk."""

    labels: dict[str, pa.Table]
    last: int
    """Second of its last event."""


def check(settings: SyntheticConfig) -> None:
    """Raise ConfigError for settings that make no cohort."""
    for name in ("novel_probability", "missingness", "train", "tuning", "held_out"):
        value = getattr(settings, name)
        if not 0.0 <= value <= 1.0:
            raise ConfigError(f"source.{name} is {value}; it must be between 0 and 1")
    for name in ("num_subjects", "shard_subjects"):
        if getattr(settings, name) < 1:
            raise ConfigError(f"source.{name} is {getattr(settings, name)}; it must be at least 1")
    for name in ("severity_signal", "mortality_scale", "readmission_scale"):
        if not 0.0 <= getattr(settings, name) < float("inf"):
            raise ConfigError(f"source.{name} is {getattr(settings, name)}; it must be a number from 0 up")
    if settings.seed < 0:
        raise ConfigError(f"source.seed is {settings.seed}; it must be 0 or more")
    total = settings.train + settings.tuning + settings.held_out
    if abs(total - 1.0) > 1e-6:
        raise ConfigError(f"source.train, source.tuning and source.held_out add up to {total:g}; they must to 1")


def pieces(settings: SyntheticConfig) -> list[Piece]:
    """The shards of a cohort. Subjects are drawn alike, so a split is simply a run of subject ids, from 1 up."""
    train = round(settings.train * settings.num_subjects)
    tuning = min(round(settings.tuning * settings.num_subjects), settings.num_subjects - train)
    found: list[Piece] = []
    first_id = 1
    for split, size in zip(SPLITS, (train, tuning, settings.num_subjects - train - tuning), strict=True):
        for number, start in enumerate(range(0, size, settings.shard_subjects)):
            count = min(settings.shard_subjects, size - start)
            found.append(Piece(len(found), split, number, first_id, count))
            first_id += count
    return found


def write_shard(settings: SyntheticConfig, output: Path, piece: Piece) -> Written:
    """Draw one shard, write its events and return its labels."""
    shard = draw_shard(settings, piece.index, piece.count, piece.first_id)
    write_table(output / "data" / piece.split / f"{piece.number}.parquet", shard.data, "zstd")
    return Written(shard.labels, pc.max(shard.data["time"]).cast(pa.int64()).as_py() // 1_000_000)


class SyntheticSource:
    """Writes the cohort that its settings describe. Raises ConfigError for settings that make none."""

    place = None

    def __init__(self, settings: SyntheticConfig):
        check(settings)
        laws(settings)
        self.settings = settings

    def fingerprint(self) -> dict[str, str]:
        """Nothing is read: the settings decide everything."""
        return {}

    def provide(self, output: Path, executor: Executor) -> Path:
        """Fill ``output``, an empty folder, with the dataset and return it."""
        todo = pieces(self.settings)
        for split in {piece.split for piece in todo}:
            (output / "data" / split).mkdir(parents=True, exist_ok=True)
        work = functools.partial(write_shard, self.settings, output)
        done = list(track(executor.map(work, todo), "synthetic cohort", len(todo), "shards"))
        self._write_metadata(output, todo)
        self._write_labels(output / "labels", todo, done)
        return output

    def _write_metadata(self, output: Path, todo: list[Piece]) -> None:
        codes = code_book()
        size = len(codes.name) if self.settings.novel_probability else codes.plain
        columns = {"code": codes.name, "description": codes.description, "parent": codes.parent}
        book = pl.DataFrame({name: list(column[:size]) for name, column in columns.items()}, to_meds.BOOK)
        ids = np.concatenate([np.arange(p.first_id, p.first_id + p.count) for p in todo])
        splits = np.concatenate([np.full(p.count, p.split) for p in todo])
        facts: dict[str, Any] = {"dataset_name": "synthetic", "dataset_version": f"seed {self.settings.seed}"}
        facts |= {"etl_name": "ehr-tokenize", "etl_version": __version__, "code_modifier_columns": []}
        to_meds.write_metadata(output, ids, splits, book, facts)

    def _write_labels(self, folder: Path, todo: list[Piece], done: list[Written]) -> None:
        """Labels folders of every task. What takes a horizon can be judged when so many days of the dataset follow."""
        last = max(written.last for written in done)
        for name, task in TASKS.items():
            judged = pa.scalar((last - (task.horizon_days or 0) * DAY) * 1_000_000, pa.timestamp("us"))
            tables = {}
            for split in dict.fromkeys(piece.split for piece in todo):
                parts = [w.labels[name] for piece, w in zip(todo, done, strict=True) if piece.split == split]
                table = pa.concat_tables(parts)
                tables[split] = table.filter(pc.less_equal(table["prediction_time"], judged))
            (folder / name).mkdir(parents=True)
            made_by = Manifest(labels.FORMAT, labels.VERSION, [f"ehr-tokenize=={__version__}"], asdict(self.settings))
            labels.write_label_folder(folder / name, labels.Labels(name, task.question, tables), made_by)
