"""What predictors share: a run's folder inside of what was fitted, and samples predicted batch by batch."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from ehr_core.batch import Batch
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.labels import Labels
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore
from ehr_core.progress import track
from ehr_core.protocols import PredictJob

from ehr_train.loader.rows import Rows
from ehr_train.loader.samples import Samples, open_labels

RUN = "run"
"""Folder of the run within what was fitted."""
Scorer = Callable[[Samples], np.ndarray]
"""Samples of a split to a prediction of each, (N,) or (N, K)."""


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
            assert rows.last_N is not None
            found = np.empty((len(rows.last_N), *values.shape[1:]))
        found[samples] = values
    assert found is not None, "there is at least one row"
    return found


def fitted_run(fitted: Path) -> Run:
    """The run that a predictor left in what it fitted; a run folder that was trained on labels is one itself."""
    return Run(fitted / RUN if (fitted / RUN).is_dir() else fitted)


def open_store(path: Path | None, run: Run) -> TokenStore:
    """A store made with the run's vocabulary. Raises FormatError that names both where it was made with another."""
    if path is None:
        raise ConfigError(f"predicting with {run.path} needs tokens; tokenize the dataset with fitted={run.tokenizer}")
    store = TokenStore(path)
    run.check_vocabulary(store.vocabulary, store.path)
    return store


def predict_splits(
    job: PredictJob, run: Run, scorer: Scorer, width: int, reserve: int = 0, share: bool = False
) -> Mapping[str, np.ndarray]:
    """Predictions of every split of the job that has samples; ``width`` is K, or 0 for kinds with one number."""
    store = open_store(job.store, run)
    labels = open_labels(job.labels, store)
    found = {}
    for split in usable(labels, job.splits):
        if len(table := labels.tables[split]):
            samples = Samples(store, split, table, None, run.context_length, job.seed, reserve, share)
            found[split] = scorer(samples)
        else:
            found[split] = np.empty((0, width) if width else 0)
    return found


def usable(labels: Labels, splits: tuple[str, ...]) -> list[str]:
    """The splits that are asked for and there. Raises DataError when none has a sample."""
    there = [split for split in splits if split in labels.splits]
    if not any(len(labels.tables[split]) for split in there):
        raise DataError(f"the labels {labels.name!r} have no sample in {', '.join(splits)}")
    return there
