"""What the target of each kind must do. torch and polars are named for type checkers only.

Every target is called with its settings (the component's dataclass) and returns an object of the kind's protocol.
Commands are the exception: a command's target is a function of its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from torch import Tensor, nn

    from ehr_core.batch import Batch, Loss
    from ehr_core.formats.intervals import Intervals
    from ehr_core.formats.tokens import Prefix, TokenTable
    from ehr_core.formats.vocabulary import Vocabulary
    from ehr_core.outcomes import Question, Sample

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs independent pieces of work."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in the order of the items. ``function`` and items can be pickled. An error names its item."""
        ...


class Source(Protocol):
    """Provides a MEDS dataset: ``data/<split>/*.parquet``, ``metadata/``."""

    place: Path | None
    """The dataset's folder where the records are MEDS already and stay where they are; None: `provide` writes them."""

    def provide(self, output: Path, executor: Executor) -> Path:
        """Return the dataset's folder: ``output``, an existing and empty folder that is filled, or ``place``.

        Raises DataError for records that break MEDS.
        """
        ...

    def fingerprint(self) -> Mapping[str, str]:
        """Digests of the files that the source reads, by name; empty when its settings decide everything."""
        ...


class Tokenizer(Protocol):
    """Turns events into tokens; everything that is fitted comes from the train split.

    `ehr_core.tokenizers.BaseTokenizer` has defaults for all but `summarize`, `fit` and `encode`.
    """

    vocabulary: Vocabulary
    prefix: Prefix
    summary_type: Any
    """The type of summaries, by which they are kept on disk: a dataclass, list, tuple, set, dict or Counter, down to
    plain values, numpy arrays and `ehr_tokenize.fit.quantiles.Counts`, such as ``Counter[str]``. None: they stay in
    memory."""

    @property
    def columns(self) -> Mapping[str, str]:
        """Further columns of the token tables: name to numpy dtype name."""
        ...

    @property
    def event_columns(self) -> Sequence[str]:
        """Columns of the events that are wanted beyond the four of MEDS; they come as strings."""
        ...

    @property
    def intervals(self) -> Intervals:
        """What the tokens for time stand for."""
        ...

    def summarize(self, events: pl.DataFrame) -> Any:
        """What `fit` needs to know of one shard of the train split; picklable, of bounded size."""
        ...

    def fit(self, summaries: Iterable[Any]) -> None:
        """Fit on the summaries of all train shards. The result does not depend on their order or number."""
        ...

    def encode(self, events: pl.DataFrame) -> TokenTable:
        """Tokens of a shard. An unseen code becomes UNK. A prefix of a record gives a prefix of its tokens."""
        ...

    def unfitted(self) -> Any:
        """A tokenizer of the same settings that has seen no records, to fit on others."""
        ...

    def grow(self, new: Any) -> None:
        """Take up what ``new``, made by `unfitted` and fitted on other records, has besides: its ids follow.

        What was fitted before stays: ids, and the tokens of whatever has no new code.
        """
        ...

    def unknown_events(self, events: pl.DataFrame) -> Mapping[str, int]:
        """Code to how many of its events in a shard become UNK, or nothing where the vocabulary has none."""
        ...

    def left_out_events(self, events: pl.DataFrame) -> Mapping[str, int]:
        """Code to how many of its events are left out on purpose, as by a limit on codes."""
        ...

    def mapped_events(self, events: pl.DataFrame) -> Mapping[str, Mapping[str, tuple[int, bool]]]:
        """Name of each mapping file to what is looked up in it: in how many events, and whether it is there."""
        ...

    def save(self, folder: Path) -> None:
        """Write vocabulary.json, prefix.json and tokenizer.json (``{"name", "settings", "state"}``), and
        intervals.json where tokens stand for time."""
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


PROVISIONS = {
    "causal": "a position's state depends on itself and what comes before it alone",
    "cache": "`Model.make_cache`: it can go on token by token without computing the past again",
    "decode": "it encodes a window and decodes another sequence from it",
}
"""What `Model.provides` may say, and `Component.needs` of an objective may ask for."""


class Model(Protocol):
    """A ``transformers.PreTrainedModel``; built as ``target(settings, vocabulary_size=V, columns=[...])``.

    ``forward(input_ids, position_ids=None, segment_ids=None, **columns)`` returns a ``ModelOutput`` with
    ``last_hidden_state`` (B, T, D) and, where there are any, ``losses``: auxiliary losses by name as (sum, count)
    pairs, weighted, and ``metrics``: figures to log in the same form.
    """

    width: int
    """D."""
    max_positions: int | None
    """Positions that a window may have; None: no limit, the loader's context length decides."""
    provides: Collection[str]
    """Names of `PROVISIONS` that hold for these settings."""

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) to (..., padded V) with ids from V on at minus infinity."""
        ...

    def make_cache(self, rows: int, length: int) -> Any:
        """Room for the keys and values of so many contexts, for models that provide ``cache``."""
        ...


class Objective(Protocol):
    """A loss with the head it needs: an ``nn.Module``.

    Built as ``target(settings, width=D, vocabulary=vocabulary, question=question)``. ``question`` is what the labels
    ask (kind and names of outcomes), None for an objective without labels. Which kinds it learns from and what it needs
    of a model stand on its component: ``outcomes`` and ``needs``.
    """

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """Run the model on the batch and return sum and count."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Prediction of each labelled sample, in the shape of the question's kind; for objectives with outcomes."""
        ...


class Adapter(Protocol):
    """Trains a small part of a model and freezes the rest: built as ``target(settings)``, then one model only.

    The adapted model is called as the plain one was, and answers for its fields (`Model`).
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """The model with a fresh adapter; its outputs are unchanged until it is trained. Raises ConfigError."""
        ...

    def load(self, model: nn.Module, folder: Path, objective: nn.Module | None = None) -> nn.Module:
        """The model with the adapter that `save` wrote, and its head into ``objective``. Raises FormatError."""
        ...

    def save(self, model: nn.Module, folder: Path, objective: nn.Module | None = None) -> None:
        """Write the adapter, and the objective's head with it, to a folder that does not exist yet.

        The folder has ``adapter.json`` with the ``name`` of the component and its ``settings``.
        """
        ...

    def merge(self, model: nn.Module) -> nn.Module:
        """A plain model that computes what the adapted one does."""
        ...


class Strategy(Protocol):
    """Owns where a learner (model and objective together) and its state live. Built in every process after rendezvous.

    Every method but ``accumulate`` is a collective: all ranks call it, at the same place. `ehr_train.strategies` has a
    base for strategies that keep a whole copy in every process.
    """

    max_processes: int | None
    """How many processes it can use at most; None: any number."""
    device: Any
    rank: int
    world_size: int

    def place(self, learner: nn.Module) -> nn.Module:
        """Put the learner on its devices, before an optimizer is made or weights are restored; the module to call."""
        ...

    def accumulate(self, placed: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Context for forward and backward of one micro-batch; communication may wait for the last one."""
        ...

    def clip(self, parameters: Sequence[nn.Parameter], scale: Tensor, limit: float) -> Tensor:
        """Multiply the gradients by ``scale`` and clip their global norm; the norm before clipping, after scaling.

        ``limit`` 0 does not clip. Gradients come as the mean over ranks.
        """
        ...

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """The whole state of a module of the learner on the CPU, by the names that it has on one device.

        Complete on rank 0; other ranks may get an empty dictionary.
        """
        ...

    def load_weights(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Put back what `weights` gave; every rank passes the whole state."""
        ...

    def optimizer_state(self, learner: nn.Module, optimizer: Any) -> dict[str, Any]:
        """State of the optimizer for a checkpoint, independent of the number of processes; complete on rank 0."""
        ...

    def restore_optimizer(self, learner: nn.Module, optimizer: Any, state: Mapping[str, Any]) -> None:
        """Put back what `optimizer_state` gave, on any number of processes."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over ranks."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Small picklable values of all ranks, in order of rank."""
        ...


class Tracker(Protocol):
    """A destination for metrics, settings and artifacts. It serves one stage of a run, on rank 0."""

    def start(self, folder: Path, settings: Mapping[str, Any], step: int, stage: str) -> None:
        """Open below the run folder, before step ``step``; later entries of an earlier life are dropped.

        ``stage`` says what is tracked: ``pretrain``, ``finetuned/<task>``, ``report``.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers at a step; NaN is allowed."""
        ...

    def artifact(self, path: Path, name: str) -> None:
        """Keep a file (a picture, scores, a report) under a name; one that keeps none does nothing."""
        ...

    def finish(self, status: str) -> None:
        """Close with ``finished``, ``stopped`` or ``failed``; a second call does nothing."""
        ...


class Task(Protocol):
    """A clinical question. Its component says in ``outcomes`` the one kind that it asks."""

    names: tuple[str, ...]
    """Classes or labels of the outcome; empty for kinds that have none."""

    def needed(self) -> Mapping[str, Sequence[str]]:
        """Groups of codes, as prefixes, without which the question cannot be asked of a dataset."""
        ...

    def label(self, events: pl.DataFrame, end: Any) -> pl.DataFrame:
        """Labels of one shard: subject, time and the columns of the kind, ordered by subject and time.

        ``end`` is the last time in the whole dataset: what would happen after it cannot be known.
        """
        ...

    def codes(self) -> OutcomeCodes | None:
        """The codes and the horizon that decide a binary label, for predictors that read them off a model.

        None for a question that no code answers.
        """
        ...


@dataclass(frozen=True)
class OutcomeCodes:
    """Label in terms of codes (matched as prefixes): positive when a positive code comes first, in time."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    horizon_days: float | None = None
    """After so many days without a positive code the label is negative; None: no limit."""


@dataclass(frozen=True)
class Features:
    """What a baseline sees of N samples: columns named, sparse in meaning; NaN is a value that was not measured."""

    names: tuple[str, ...]
    """F columns."""
    value_NF: np.ndarray
    """float32."""
    label: np.ndarray
    """float64 in the shape of the question's kind; may have no rows (a tuning split without labels)."""


class Baseline(Protocol):
    """An estimator on count-and-value features, for the kinds of outcome on its component."""

    def fit(self, question: Question, train: Features, tuning: Features) -> None:
        """Fit on train; the tuning split serves to stop early or choose, and may be empty."""
        ...

    def predict(self, value_NF: np.ndarray) -> np.ndarray:
        """Predictions in the shape of the kind."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was fitted, in a form that cannot execute code when it is read."""
        ...

    def load(self, folder: Path, question: Question) -> None:
        """Read back what `save` wrote; predictions are the same bit for bit."""
        ...


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """What fitting a predictor may use. Folders only; a predictor opens what it needs."""

    labels: Path
    """A labels folder as written by `ehr_core.formats.labels`."""
    output: Path
    """The folder to fill with whatever `Predictor.predict` needs, so that it can be applied without all else here."""
    work: Path
    """A folder that is still there when a killed fit is started again; its content is the predictor's."""
    meds: Path | None = None
    store: Path | None = None
    """The dataset tokenized with the run's tokenizer."""
    run: Path | None = None
    """The trained run, for predictors that need one."""
    codes: OutcomeCodes | None = None
    """What decides the label, where codes do and the task is known."""
    strategy: Any = None
    """Settings of the strategy to train with; None: the predictor's choice."""
    trackers: Mapping[str, Any] = field(default_factory=dict)
    """Settings of trackers by any name."""
    stage: str = ""
    """What to call the training there."""
    seed: int = 42
    world_size: int = 1


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """What applying a fitted predictor may use."""

    fitted: Path
    """The folder that `Predictor.fit` filled."""
    labels: Path
    """A labels folder, perhaps without outcomes: whom to predict and when."""
    splits: tuple[str, ...]
    meds: Path | None = None
    store: Path | None = None
    """The dataset tokenized with the tokenizer of what was fitted."""
    run: Path | None = None
    seed: int = 42


class Predictor(Protocol):
    """Turns a run and labels into predictions: fitted once, applied again. Its component says for which outcomes."""

    needs_run: bool
    """Whether it works from a trained run, and so from tokens made with that run's tokenizer."""

    def fit(self, job: FitJob) -> None:
        """Fill ``job.output``. Raises NotApplicable when the data or the run cannot answer."""
        ...

    def predict(self, job: PredictJob) -> Mapping[str, np.ndarray]:
        """Predictions of each split, in the order of its labels and the shape of the kind.

        Raises FormatError for data that does not belong to what was fitted (another vocabulary, other features).
        """
        ...

    def tokenizer(self, fitted: Path) -> Path | None:
        """The folder of the tokenizer that `predict` wants its store made with; None: it reads no tokens."""
        ...


class Metric(Protocol):
    """A score, for the kinds of outcome on its component; NaN where it is not defined, as with one class only."""

    higher_is_better: bool

    def __call__(self, sample: Sample) -> float:
        """The score."""
        ...

    def weighted(self, sample: Sample, weight_RN: np.ndarray) -> np.ndarray:
        """Score (R,) of each of R resamples; a row's weight is how often it was drawn.

        `ehr_core.metrics.repeated` does this for a metric that knows no weights.
        """
        ...


Command = Callable[[Any], Any]
