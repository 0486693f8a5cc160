"""From a training job to its opened parts: data, labels and learner, the same on every rank."""

import dataclasses
from pathlib import Path
from typing import Any

from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import digest_of, file_digests
from ehr_core.formats.labels import Labels
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore
from ehr_core.outcomes import COLUMNS, REGRESSION, Question
from ehr_core.plugins import registry

from ehr_train import checkpoint
from ehr_train.job import TrainJob, adapter_folder, adapter_of
from ehr_train.learner import (
    Learner,
    check_provided,
    context_length,
    grow_model,
    is_causal,
    make_learner,
    make_objective,
    model_of,
    open_run,
)
from ehr_train.loader.samples import Samples, load, open_labels
from ehr_train.loader.windows import Windows


@dataclasses.dataclass
class Parts:
    """What a job names, opened and checked."""

    job: TrainJob
    """With the model's own settings where it starts from a run."""
    store: TokenStore
    labels: Labels | None
    learner: Learner
    """On the CPU, before a strategy placed it."""
    context: int
    train: Windows | Samples
    tuning: Windows | Samples | None
    inputs: dict[str, str]
    """Name to digest of all that is read."""

    @property
    def question(self) -> Question | None:
        """What the labels ask."""
        return self.labels.question if self.labels else None


def open_job(job: TrainJob) -> Parts:
    """Open and check all that a job names. Raises EhrError of one line for whatever does not fit."""
    if job.adapter is not None and job.start is None:
        raise ConfigError("an adapter needs a trained model to sit on; give the run to start from")
    store = TokenStore(job.store)
    labels = job_labels(job, store)
    job = resolve(job, labels)
    learner = build_learner(job, store, labels.question if labels else None)
    context = context_length(job.train.context_length, learner.model)
    share = is_causal(learner.model)
    train = load(store, "train", labels, context, job.seed, share)
    there = store.splits() if labels is None else labels.splits
    tuning = None
    if "tuning" in there and (labels is None or len(labels.tables["tuning"])):
        tuning = load(store, "tuning", labels, context, job.seed, share)
    return Parts(job, store, labels, learner, context, train, tuning, _inputs(job, store, labels))


def resolve(job: TrainJob, labels: Labels | None) -> TrainJob:
    """The job with what others decide: the model of the run that it starts from, and where numbers lie.

    Settings ``center`` and ``scale`` of an objective for numbers that are null become mean and standard deviation of
    the train labels, so that the run keeps them.
    """
    job = job.resolved()
    if labels is None or labels.asked().kind != REGRESSION:
        return job
    value_N = labels.array("train")
    spread = {"center": float(value_N.mean()), "scale": float(value_N.std()) or 1.0}
    names = {field.name for field in dataclasses.fields(job.objective)}
    wanted = [name for name in spread if name in names and getattr(job.objective, name) is None]
    objective = dataclasses.replace(job.objective, **{name: spread[name] for name in wanted})
    return dataclasses.replace(job, objective=objective)


def job_labels(job: TrainJob, store: TokenStore) -> Labels | None:
    """The labels of a job whose objective learns from labels. Raises ConfigError where the two do not fit."""
    if not needs_labels(job.objective.name, job.labels is not None):
        return None
    labels = open_labels(Path(job.labels or ""), store)
    check_kind(job.objective.name, labels.asked())
    if "train" not in labels.splits:
        raise DataError(f"{job.labels} has no labels of the split train, so there is nothing to learn from")
    return labels


def needs_labels(objective: str, given: bool) -> bool:
    """Whether an objective learns from labels. Raises ConfigError when it does and none are given."""
    kinds = registry().get("objective", objective).outcomes
    if kinds and not given:
        columns = "; ".join(f"{kind}: {', '.join(COLUMNS[kind].label)}" for kind in kinds)
        raise ConfigError(f"objective {objective!r} learns from labels ({columns}); give labels=DIR")
    return bool(kinds)


def check_kind(objective: str, question: Question) -> None:
    """Raise ConfigError for labels of a kind that an objective does not learn from."""
    kinds = registry().get("objective", objective).outcomes
    if question.kind not in kinds:
        others = [name for name, part in registry().components["objective"].items() if question.kind in part.outcomes]
        raise ConfigError(
            f"the labels are of kind {question.kind}, and objective {objective} learns from "
            f"{', '.join(kinds) or 'no labels'}; for these labels choose "
            f"{' or '.join(others) or 'no objective that is installed'}"
        )


def build_learner(job: TrainJob, store: TokenStore, question: Question | None) -> Learner:
    """The learner of a resolved job before its first step: the same bits every time, on one device."""
    checkpoint.seed_all(job.seed)
    if job.start is None:
        return make_learner(job.model, job.objective, store.vocabulary, store.columns, question)
    model = start_from(job, store)
    check_provided(job.model.name, model, job.objective.name)
    learner = Learner(model, make_objective(job.objective, model, store.vocabulary, question))
    if job.adapter is not None:
        learner.adapt(*adapter_of(job.adapter))
    return learner


def start_from(job: TrainJob, store: TokenStore) -> Any:
    """The model of the run that a job starts from; its vocabulary grows where the store's has.

    Raises FormatError for a store of another vocabulary or with other columns.
    """
    run, content = open_run(job.start or "")
    run.check_vocabulary(store.vocabulary, store.path, grown=True)
    columns = content.model_configs.columns
    if columns != store.columns:
        raise FormatError(
            f"{store.path} has the columns {', '.join(store.columns) or 'none'}, and {run.path} was trained with "
            f"{', '.join(columns) or 'none'}; tokenize with fitted={run.tokenizer}"
        )
    model = model_of(run, content)
    if len(store.vocabulary) > len(run.vocabulary):
        grow_model(model, len(store.vocabulary))
    return model


def _inputs(job: TrainJob, store: TokenStore, labels: Labels | None) -> dict[str, str]:
    inputs = {"store": store.manifest.digest}
    if job.start is not None:
        inputs["start"] = Run(job.start).digest
    if (folder := adapter_folder(job.adapter)) is not None:
        inputs["adapter"] = digest_of(file_digests(folder))
    if labels is not None:
        inputs["labels"] = labels.digest
    return inputs


def is_made(job: TrainJob, world_size: int) -> bool:
    """Whether ``job.output`` is the finished run of this very job."""
    try:
        found = Run(job.output).manifest.content.get("job")
    except FormatError:
        return False
    store = TokenStore(job.store)
    labels = job_labels(job, store)
    return bool(found == resolve(job, labels).digest(_inputs(job, store, labels), world_size))
