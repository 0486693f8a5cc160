"""A finished run in Python: load it, predict with it, and take the hidden states of patients.

::

    run = ehr_train.load("outputs/.../run")
    run.predict("STORE", "LABELS").table
    vector_ND = run.represent("STORE", labels)

Data is a token store that was made with the run's tokenizer, or a MEDS dataset, which is tokenized on the way.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from ehr_core.batch import Batch
from ehr_core.config import component_settings
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, NotApplicable
from ehr_core.formats.folder import MANIFEST
from ehr_core.formats.labels import KEY, Labels
from ehr_core.formats.predictions import Predictions, prediction_table
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.plugins import registry

from ehr_train.devices import autocast, choose_device
from ehr_train.learner import blocks, is_causal, load_run
from ehr_train.loader.samples import Samples, open_labels, subject_splits
from ehr_train.predictors.applying import RUN, open_store, score

POOLINGS = ("last", "mean")
ROWS = 16
"""Rows of a forward pass."""


class Loaded:
    """A run that is in memory. Make it with `load`."""

    def __init__(self, run: Run, learner: Any, device: torch.device):
        self.run, self.learner, self.device = run, learner, device

    @property
    def model(self) -> Any:
        """The network, in evaluation mode."""
        return self.learner.model

    @property
    def vocabulary(self) -> Vocabulary:
        """The run's."""
        return self.run.vocabulary

    @property
    def settings(self) -> dict[str, Any]:
        """Resolved settings of the run."""
        return dict(self.run.settings)

    def predict(self, data: Path | str, labels: Any) -> Predictions:
        """Predictions for samples: a labels folder, with outcomes or without, or a table of subjects and times.

        Rows are in the order of `rows_of`. Raises NotApplicable for a run that was not trained on labels.
        """
        question = self.run.question
        if question is None:
            raise NotApplicable(
                f"{self.run.path} was trained without labels, so it predicts no outcome; fine-tune it first"
            )

        def head(batch: Batch) -> torch.Tensor:
            found: torch.Tensor = self.learner.objective.predict(self.model, batch)
            return found

        tables, labelled = [], True
        for split, table, samples in self._samples(data, labels):
            labelled = labelled and samples[1]
            found = self._score(samples[0], head)
            tables.append(prediction_table(table, split, found, question))
        return Predictions(question, pa.concat_tables(tables, promote_options="default"), labelled)

    def represent(self, data: Path | str, labels: Any, layer: int = -1, pooling: str = "last") -> np.ndarray:
        """Hidden states (N, D) float64 of samples, one row each, in the order of `rows_of`.

        ``pooling`` is ``last`` (the last visible token) or ``mean`` (over all that is visible, the prefix included).
        ``layer`` -1 is what the model's head sees; 0, 1, ... are the outputs of its blocks.
        """
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling is {pooling!r}; it must be {' or '.join(POOLINGS)}")

        def state(batch: Batch) -> torch.Tensor:
            hidden_BTD = hidden_states(self.model, batch, layer)
            return pooled(hidden_BTD, batch, pooling)

        parts = [self._score(samples[0], state) for _, _, samples in self._samples(data, labels)]
        return np.concatenate(parts)

    def _samples(self, data: Path | str, labels: Any) -> Iterator[tuple[str, pa.Table, tuple[Samples, bool]]]:
        """Split, its rows, and its samples with whether they have an outcome, for each split that has rows."""
        with store_of(self.run, Path(data)) as store:
            found = rows_of(labels, store)
            for split in found.splits:
                if len(table := found.tables[split]):
                    samples = Samples(store, split, table, None, self.run.context_length, share=is_causal(self.model))
                    yield split, table, (samples, found.question == self.run.question)

    def _score(self, samples: Samples, function: Any) -> np.ndarray:
        with autocast("auto", self.device):
            return score(samples.evaluation(), ROWS, self.device, function)


def load(path: Path | str, device: str = "auto") -> Loaded:
    """A run folder, or what a predictor fitted with a run in it. Raises FormatError for anything else."""
    folder = Path(path)
    inner = folder / RUN
    place = choose_device(device)
    run, learner = load_run(inner if (inner / MANIFEST).is_file() else folder, place)
    return Loaded(run, learner, place)


def represent(
    run: Path | str, data: Path | str, labels: Any, layer: int = -1, pooling: str = "last", device: str = "auto"
) -> np.ndarray:
    """`Loaded.represent` of a run folder."""
    return load(run, device).represent(data, labels, layer, pooling)


@contextlib.contextmanager
def store_of(run: Run, data: Path) -> Iterator[TokenStore]:
    """The token store of a dataset: itself, or for a MEDS dataset one that is made for the time being."""
    if not (data / "data").is_dir():
        yield open_store(data, run)
        return
    command = registry().get("command", "tokenize")
    assert command.config is not None
    with tempfile.TemporaryDirectory(prefix="ehr-tokens-") as folder:
        output = Path(folder) / "store"
        source = component_settings("source", {"name": "meds", "path": str(data)})
        command.load()(command.config(source=source, fitted=str(run.tokenizer), output=str(output)))
        yield open_store(output, run)


def rows_of(labels: Any, store: TokenStore) -> Labels:
    """Samples from a labels folder, from `Labels`, or from a table with ``subject_id`` and ``prediction_time``.

    Splits are in the usual order, and within a split rows are ordered by subject and time. A table is of whatever
    library has Arrow's interface, such as polars or pyarrow; the store says of which split a subject is.
    """
    if isinstance(labels, Labels):
        return labels
    if isinstance(labels, str | Path):
        return open_labels(Path(labels), store)
    table = pa.table(labels)
    missing = [name for name in KEY if name not in table.column_names]
    if missing:
        raise ConfigError(f"the table lacks the column {', '.join(missing)}; it needs {', '.join(KEY)}")
    types = {"subject_id": pa.int64(), "prediction_time": pa.timestamp("us")}
    table = pa.table({name: table[name].cast(types[name]) for name in KEY})
    split_of = subject_splits(store)
    split = pa.array([split_of.get(subject) for subject in table["subject_id"].to_pylist()], pa.string())
    if split.null_count:
        raise ConfigError(f"{split.null_count} of the {len(table)} samples are of subjects that {store.path} lacks")
    tables = {name: table.filter(pc.equal(split, name)) for name in SPLITS}
    ordered = {name: part.sort_by([(key, "ascending") for key in KEY]) for name, part in tables.items() if len(part)}
    return Labels("samples", None, ordered)


def hidden_states(model: Any, batch: Batch, layer: int) -> torch.Tensor:
    """(B, T, D) after a block, or for -1 what the model returns. Raises ConfigError for a block that is not there."""
    if layer == -1:
        found: torch.Tensor = model(**batch.inputs()).last_hidden_state
        return found
    parts = blocks(model)
    if not 0 <= layer < len(parts):
        raise ConfigError(f"layer is {layer}, and the model has blocks 0 to {len(parts) - 1}; -1 is its last state")
    kept: list[torch.Tensor] = []

    def keep(module: Any, inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = parts[layer].register_forward_hook(keep)
    try:
        model(**batch.inputs())
    finally:
        handle.remove()
    return kept[0]


def pooled(hidden_BTD: torch.Tensor, batch: Batch, pooling: str) -> torch.Tensor:
    """(N, D) from (B, T, D)."""
    hidden = hidden_BTD.flatten(0, 1).float()
    assert batch.last_N is not None
    if pooling == "last":
        return hidden[batch.last_N]
    begin_N = batch.last_N - batch.position_BT.flatten()[batch.last_N]
    # The sum up to a place less the sum before its window, in float64: rows are long and sums of them large.
    total = torch.cat([hidden.new_zeros(1, hidden.shape[1]).double(), hidden.double().cumsum(0)])
    count_N = (batch.last_N - begin_N + 1)[:, None]
    return (total[batch.last_N + 1] - total[begin_N]) / count_N
