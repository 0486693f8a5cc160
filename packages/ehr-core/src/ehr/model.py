"""A trained model or a fitted predictor, opened to be applied to records."""

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats import run as run_format
from ehr_core.formats.folder import MANIFEST, Manifest, read_json
from ehr_core.formats.label_layout import label_files
from ehr_core.formats.label_values import typed
from ehr_core.formats.labels import KEY
from ehr_core.formats.parquet import read_table, write_table
from ehr_core.formats.predictions import Predictions
from ehr_core.formats.run import Run
from ehr_core.recipes import literal

from ehr.reaching import reach, settings


class Model:
    """A run folder, or a fitted folder of a predictor or baseline. Raises FormatError when it is neither.

    Whom and when, below, is a labels folder, a CSV or Parquet file, or a table (pyarrow, polars, pandas or a dict of
    columns) with ``subject_id`` and ``prediction_time``; with the columns of an outcome, these are carried along. None
    asks everyone, at the last event. Answers are in the order of the rows of a table or file; otherwise ordered by
    split, subject and time.
    """

    def __init__(self, path: Any):
        self.path = Path(path)
        if not (self.path / MANIFEST).is_file():
            raise FormatError(f"{self.path} has no {MANIFEST}, so it is neither a run nor a fitted predictor")
        self.format = read_json(self.path / MANIFEST, Manifest).format
        if self.format not in (run_format.FORMAT, "fitted"):
            raise FormatError(f"{self.path} is a {self.format}; a run or a fitted predictor can be applied")
        inside = self.path if self.format == run_format.FORMAT else self.path / "run"
        self.run: Run | None = Run(inside) if (inside / MANIFEST).is_file() else None
        """The run of a trained model; None for a baseline."""

    def predict(self, meds: Any, samples: Any = None) -> Predictions:
        """Predictions for records in MEDS form; nothing is trained.

        Raises FormatError for records of another vocabulary, ConfigError for a run that was not trained on labels.
        """
        if self.format == run_format.FORMAT and self.run is not None and self.run.question is None:
            raise ConfigError(
                f"{self.path} was not trained on labels, so it has no answer; fine-tune it, or use represent"
            )
        with _folder(samples) as (labels, scratch):
            given = {
                "source.path": Path(meds),
                "fitted": self.path,
                "output": scratch / "predictions",
                "labels": labels,
            }
            overrides = [f"{key}={literal(value)}" for key, value in given.items()]
            found: Predictions = reach("ehr-eval", "ehr_eval:apply")(settings("apply", "source=meds", *overrides))
            order = _order(labels, found.table)
            return found if order is None else dataclasses.replace(found, table=found.table.take(order))

    def represent(self, meds: Any, samples: Any = None) -> np.ndarray:
        """Hidden states (N, D) float32 of the last token that is visible to each sample, one row each as in `predict`.

        Raises ConfigError for a baseline, which has none.
        """
        if self.run is None:
            raise ConfigError(f"{self.path} is a baseline; it has no hidden states")
        with _folder(samples) as (labels, scratch):
            represent = reach("ehr-train", "ehr_train.runner.represent:represent_records")
            table: pa.Table = represent(self.run.path, Path(meds), labels, scratch)
            order = _order(labels, table)
            hidden = (table if order is None else table.take(order))["hidden"].combine_chunks()
            return np.asarray(hidden.flatten().to_numpy().reshape(len(hidden), -1))


def _order(samples: Path | None, answers: pa.Table) -> np.ndarray | None:
    """Place (N,) in the answers of each row of a file, or of the one file in a folder; None: the file says no order."""
    if samples is None:
        return None
    files = label_files(samples)
    if set(files) != {""} or len(files[""]) > 1:
        return None
    rows = read_table(files[""][0])
    asked, told = ([typed(table[key], key, samples).to_pylist() for key in KEY] for table in (rows, answers))
    place = {key: number for number, key in enumerate(zip(*told, strict=True))}
    return np.array([place[key] for key in zip(*asked, strict=True)], np.int64)


@contextmanager
def _folder(samples: Any) -> Iterator[tuple[Path | None, Path]]:
    """A path to the samples, and a folder for the time being."""
    with tempfile.TemporaryDirectory(prefix="ehr-") as name:
        scratch = Path(name)
        if samples is None or isinstance(samples, str | Path):
            yield (Path(samples) if samples is not None else None), scratch
            return
        if hasattr(samples, "collect"):  # a LazyFrame of polars
            samples = samples.collect()
        if isinstance(samples, dict):
            table = pa.table(samples)
        elif hasattr(samples, "to_arrow"):
            table = samples.to_arrow()
        else:
            table = samples if isinstance(samples, pa.Table) else pa.Table.from_pandas(samples, preserve_index=False)
        if not len(table):
            raise DataError("the table of samples has no row")
        write_table(scratch / "samples" / "samples.parquet", table)
        yield scratch / "samples", scratch
