"""What predictors share: the samples of a split, scored batch by batch, in the order of the labels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from ehr_core.batch import Batch
from ehr_core.errors import ConfigError
from ehr_core.formats.tables import label_splits, prediction_table, read_labels, write_predictions
from ehr_core.formats.tokens import TokenStore
from ehr_core.progress import track
from ehr_core.protocols import PredictionJob

from ehr_train.data import Rows, Samples
from ehr_train.learner import open_run

Scorer = Callable[[Samples], np.ndarray]
"""Samples of a split to a probability for each (N,)."""


@torch.no_grad()
def score(rows: Rows, batch_size: int, device: torch.device, function: Callable[[Batch], torch.Tensor]) -> np.ndarray:
    """``function(batch)`` (n, ...) over all rows; the result (N, ...) float64 is in the order of the samples."""
    found: np.ndarray | None = None
    starts = range(0, len(rows), batch_size)
    for start in track(starts, "predicting", len(starts), "batches"):
        chosen = np.arange(start, min(start + batch_size, len(rows)))
        windows, _ = rows.windows(chosen)
        samples, _ = rows.samples(windows)
        values = function(rows.batch(chosen).to(device)).double().cpu().numpy()
        if found is None:
            assert rows.label_N is not None
            found = np.empty((len(rows.label_N), *values.shape[1:]))
        found[samples] = values
    assert found is not None, "there is at least one row"
    return found


def open_store(job: PredictionJob) -> TokenStore:
    """The store of a job, which must have been made with the run's vocabulary."""
    if job.run is None or job.store is None:
        raise ConfigError("this predictor needs a trained run: give run=RUN, and the dataset tokenized for it")
    store = TokenStore(job.store)
    run, _ = open_run(job.run)
    run.check_vocabulary(store.vocabulary, store.path)
    return store


def predict_splits(
    job: PredictionJob, store: TokenStore, context: int, scorer: Scorer, reserve: int = 0, share: bool = False
) -> None:
    """Score every split of the job that the labels have, and write ``predictions.parquet``."""
    tables = []
    for split in [name for name in job.splits if name in label_splits(job.labels)]:
        labels = read_labels(job.labels, split)
        if not len(labels):
            continue
        samples = Samples(store, split, labels, context, job.seed, reserve, share)
        tables.append(prediction_table(labels, split, np.clip(scorer(samples), 0.0, 1.0)))
    if not tables:
        raise ConfigError(f"{job.labels} has no labels for {', '.join(job.splits)}")
    write_predictions(Path(job.output) / "predictions.parquet", pa.concat_tables(tables))
