"""What the target of each kind must do. torch and polars are named for type checkers only.

Every target is called with its settings (the component's dataclass) and returns an object of the kind's protocol.
Commands are the exception: a command's target is a function of its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from torch import Tensor, nn

    from ehr_core.batch import Batch, Loss
    from ehr_core.formats.tokens import Prefix, TokenTable
    from ehr_core.formats.vocabulary import Vocabulary

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs independent pieces of work."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in the order of the items. ``function`` and items can be pickled. An error names its item."""
        ...


class Source(Protocol):
    """Provides a MEDS dataset: ``data/<split>/*.parquet``, ``metadata/``."""

    def provide(self, output: Path, executor: Executor) -> Path:
        """Return the dataset's folder: ``output`` when the source wrote it there, else where the records are already.

        A source that writes fills ``output`` (an existing, empty folder). Raises DataError for records that break MEDS.
        """
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the files that the source reads, by name; empty when its settings decide everything."""
        ...


class Tokenizer(Protocol):
    """Turns events into tokens; everything that is fitted comes from the train split."""

    vocabulary: Vocabulary
    prefix: Prefix
    columns: Mapping[str, str]
    """Further columns of the token tables: name to numpy dtype name."""

    def summarize(self, events: pl.DataFrame) -> Any:
        """What `fit` needs to know of one shard of the train split; picklable, of bounded size."""
        ...

    def fit(self, summaries: Iterable[Any]) -> None:
        """Fit on the summaries of all train shards. The result does not depend on their order or number."""
        ...

    def encode(self, events: pl.DataFrame) -> TokenTable:
        """Tokens of a shard. An unseen code becomes UNK. A prefix of a record gives a prefix of its tokens."""
        ...

    def save(self, folder: Path) -> None:
        """Write vocabulary.json, prefix.json and tokenizer.json (``{"name", "settings", "state"}``)."""
        ...

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote."""
        ...


class Embedding(Protocol):
    """One vector per token of a vocabulary."""

    def embed(self, vocabulary: Vocabulary, store: Path | None) -> EmbeddingTable:
        """Vectors for a vocabulary; ``store`` is the token store for sources that learn from it."""
        ...


@dataclass(frozen=True)
class EmbeddingTable:
    """``vector_VD`` float32 and, per row, where it came from (empty: no vector, the row is zeros)."""

    vector_VD: np.ndarray
    origin_V: list[str]


class Model(Protocol):
    """A ``transformers.PreTrainedModel``; built as ``target(settings, vocabulary_size=V, columns=[...])``.

    ``forward(input_ids, position_ids=None, segment_ids=None, **columns)`` returns a ``ModelOutput`` with
    ``last_hidden_state`` (B, T, D) and ``losses``: a dict of auxiliary losses as (sum, count) pairs, weighted.
    """

    causal: bool

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., padded V) with ids from V on at minus infinity."""
        ...


class Objective(Protocol):
    """A loss with the head it needs: an ``nn.Module`` built as ``target(settings, width=D)``.

    One that has to know token ids (which one is MASK) has ``set_vocabulary(vocabulary)``, called before training.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Run the model on the batch and return sum and count."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Probability (N,) of each labelled sample; only for objectives with ``labelled = True``."""
        ...

    labelled: bool
    """Whether batches carry ``label_N`` and ``last_N``."""


class Strategy(Protocol):
    """Places a module (model and objective together) on devices. Built in every process after rendezvous."""

    device: Any
    rank: int
    world_size: int

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module to call in training; gradients come out averaged over ranks."""
        ...

    def accumulate(self, wrapped: nn.Module, last: bool) -> Any:
        """Context manager for one micro-batch; communication may wait for the last one."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Small picklable values of all ranks, in order of rank."""
        ...


class Tracker(Protocol):
    """A destination for metrics."""

    def start(self, folder: Path, settings: Mapping[str, Any], step: int) -> None:
        """Open below the run folder, before step ``step``; later entries of an earlier life are dropped."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers at a step; NaN is allowed."""
        ...

    def finish(self, status: str) -> None:
        """Close with ``finished`` or ``failed``; a second call does nothing."""
        ...


class Task(Protocol):
    """A clinical question."""

    def label(self, events: pl.DataFrame, end: Any) -> pl.DataFrame:
        """Labels of one shard: the MEDS label columns, ordered by subject and time.

        ``end`` is the last time in the whole dataset: what would happen after it cannot be known.
        """
        ...

    def outcome(self) -> Outcome:
        """The codes and the horizon that decide the label, for predictors that read them off a model."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Label in terms of codes (matched as prefixes): positive when a positive code comes first, in time."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    horizon_days: float | None = None
    """After so many days without a positive code the label is negative; None: no limit."""


class Baseline(Protocol):
    """An estimator on count-and-value features, columns named; NaN is a value that was not measured."""

    def fit(self, train_NF: np.ndarray, label_N: np.ndarray, tuning_MF: np.ndarray, tuning_M: np.ndarray) -> None:
        """Fit on train; the tuning split serves to stop early or choose."""
        ...

    def predict_proba(self, features_NF: np.ndarray) -> np.ndarray:
        """Probability (N,) of the positive class."""
        ...


@dataclass(frozen=True)
class PredictionJob:
    """What a predictor may use. Folders only; a predictor opens what it needs."""

    meds: Path
    labels: Path
    output: Path
    """The folder to fill with ``predictions.parquet`` and whatever else is worth keeping (a fine-tuned run)."""
    work: Path
    """A folder that is still there when a killed prediction is started again; its content is the predictor's."""
    store: Path | None = None
    """The dataset tokenized with the run's tokenizer."""
    run: Path | None = None
    outcome: Outcome | None = None
    """What decides the label, when the task is known."""
    seed: int = 42
    world_size: int = 1
    splits: tuple[str, ...] = ("tuning", "held_out")


class Predictor(Protocol):
    """Turns a run and labels into predictions."""

    needs_run: bool

    def predict(self, job: PredictionJob) -> None:
        """Write ``job.output / "predictions.parquet"``. Raises NotApplicable when the data cannot answer."""
        ...


class Metric(Protocol):
    """A score; one class only gives NaN."""

    higher_is_better: bool

    def __call__(self, label_N: np.ndarray, probability_N: np.ndarray) -> float:
        """The score."""
        ...


Command = Callable[[Any], Any]
