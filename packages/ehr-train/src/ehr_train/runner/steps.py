"""The stages of the runner as functions: each is called as ``function(output, settings, **folders)``.

Every one calls a function of a sibling's Python API on the folders of the stages before it.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core.errors import ConfigError, NotApplicable
from ehr_core.formats.folder import MANIFEST
from ehr_core.formats.labels import read_labels
from ehr_core.formats.predictions import FILE
from ehr_core.plugin import MedsConfig
from ehr_core.plugins import build
from ehr_core.stages import NOT_APPLICABLE
from ehr_embeddings.plugin import EmbedConfig
from ehr_eval.settings import FeaturesConfig, ScoringConfig
from ehr_tokenize.plugin import TokenizeConfig

from ehr_train.job import TrainJob
from ehr_train.settings import TrainConfig

HISTORY = "logs/metrics_history.json"
"""What the report draws of a run; a copy that only serves to predict has none."""

# -- records, labels, tokens


def write_records(output: Path, source: Any, *, free: Any) -> None:
    """The MEDS dataset of a source that writes one; ``free`` are settings of an executor."""
    build("source", source).provide(output, build("executor", free))


def label_task(output: Path, task: Mapping[str, Any], *, meds: Path, free: Any) -> None:
    """OUTPUT/<task>: labels that a task (name to settings) finds in the records."""
    from ehr_eval.label_notes import say_notes
    from ehr_eval.labelling import label_tasks

    for labels in label_tasks(task, meds, output, executor=build("executor", free)).values():
        say_notes(labels)


@dataclass(frozen=True)
class GivenLabels:
    """Labels of the user's own."""

    name: str
    kind: str | None = None


def take_labels(output: Path, settings: GivenLabels, *, labels: Path, meds: Path) -> None:
    """OUTPUT/<task>: a user's labels, checked against the records and written in the one form."""
    from ehr_eval.label_notes import say_notes
    from ehr_eval.user_labels import read_user_labels, write_user_labels

    found = read_user_labels(labels, meds, settings.kind)
    say_notes(found[settings.name])
    write_user_labels(found, output)


@dataclass(frozen=True)
class Tokens:
    """How records become tokens."""

    tokenizer: Any
    """None: as the run that is started from."""


def tokenize_records(output: Path, settings: Tokens, *, meds: Path, fitted: Path | None = None, free: Any) -> None:
    """The token store, fitted on the train split or with a fitted tokenizer; goes on after a kill."""
    from ehr_tokenize import tokenize

    chosen = {} if settings.tokenizer is None else {"tokenizer": settings.tokenizer}
    source = MedsConfig(path=meds)
    tokenize(TokenizeConfig(source=source, executor=free, fitted=fitted, output=output, **chosen))


def embed_tokens(output: Path, embedding: Any, *, tokens: Path) -> None:
    """A vector for every token of the vocabulary."""
    from ehr_embeddings.command import embed

    embed(EmbedConfig(embedding=embedding, store=tokens, output=output))


# -- training


@dataclass(frozen=True)
class Pretraining:
    """What decides the weights of a pretrained model."""

    model: Any
    objective: Any
    train: dict[str, Any]
    """Settings of training that change a weight."""
    rows: int
    """Rows of a global batch."""
    seed: int
    adapter: Any = None


@dataclass(frozen=True)
class Training:
    """What does not: how the work is divided, who watches, what checkpoints say about the command."""

    train: TrainConfig
    strategy: Any
    trackers: Mapping[str, Any]
    world_size: int
    config: dict[str, Any] = field(default_factory=dict)


def training_job(
    output: Path,
    settings: Pretraining,
    free: Training,
    tokens: Path,
    labels: Path | None = None,
    start: Path | None = None,
    adapter: Path | None = None,
    vectors: Path | None = None,
) -> TrainJob:
    """The job that trains the model."""
    return TrainJob(
        store=str(tokens),
        output=str(output),
        model=settings.model if vectors is None else with_vectors(settings.model, vectors),
        objective=settings.objective,
        strategy=free.strategy,
        trackers=dict(free.trackers),
        train=free.train,
        seed=settings.seed,
        labels=str(labels) if labels else None,
        start=str(start) if start else None,
        adapter=settings.adapter if adapter is None else str(adapter),
        config=free.config or None,
    )


def pretrain(
    output: Path,
    settings: Pretraining,
    *,
    tokens: Path,
    free: Training,
    labels: Path | None = None,
    start: Path | None = None,
    adapter: Path | None = None,
    vectors: Path | None = None,
) -> None:
    """The run folder of the model; goes on after a kill."""
    from ehr_train.launch import train

    job = training_job(output, settings, free, tokens, task_folder(labels), start, adapter, vectors)
    train(job, free.world_size)


def with_vectors(model: Any, vectors: Path) -> Any:
    """Settings of a model that starts from code vectors. Raises ConfigError for one that cannot."""
    names = {found.name for found in dataclasses.fields(model)}
    if "code_vectors" not in names:
        raise ConfigError(
            f"model {model.name!r} cannot start from code vectors; leave out embedding, or use model=bert"
        )
    return dataclasses.replace(model, code_vectors=dataclasses.replace(model.code_vectors, path=vectors))


def task_folder(labels: Path | None) -> Path | None:
    """The one folder of labels in the folder of a stage."""
    if labels is None:
        return None
    return next(path for path in sorted(labels.iterdir()) if (path / MANIFEST).is_file())


# -- prediction


@dataclass(frozen=True)
class Fitting:
    """A baseline or predictor, and what it is fitted with."""

    name: str
    part: Any
    seed: int
    features: FeaturesConfig | None = None
    """Of a baseline."""
    task: Any = None
    """The task whose codes decide labels that do not say it themselves."""
    world_size: int = 1
    """Of a predictor that trains: a batch is one for each process."""


def fit(
    output: Path,
    settings: Fitting,
    *,
    meds: Path,
    labels: Path,
    tokens: Path | None = None,
    run: Path | None = None,
    free: Training,
) -> None:
    """What was fitted, or the reason why nothing could be."""
    from ehr_eval.fitting import fit_predictor
    from ehr_eval.labelling import task_codes

    folder = task_folder(labels)
    assert folder is not None
    found = read_labels(folder)
    fit_predictor(
        settings.name,
        settings.part,
        folder,
        output,
        meds=meds,
        store=tokens,
        run=run,
        codes=task_codes(found, settings.task),
        features=settings.features,
        seed=settings.seed,
        world_size=settings.world_size,
        strategy=free.strategy,
        trackers=free.trackers,
        stage=f"{settings.name}/{found.name}",
    )


@dataclass(frozen=True)
class Applying:
    """Which splits to predict."""

    splits: tuple[str, ...]
    seed: int


def apply(
    output: Path,
    settings: Applying,
    *,
    fitted: Path,
    labels: Path,
    meds: Path,
    tokens: Path | None = None,
    run: Path | None = None,
) -> None:
    """Predictions for the labels' samples."""
    from ehr_eval.applying import apply_fitted

    folder = task_folder(labels)
    assert folder is not None
    apply_fitted(fitted, folder, output, meds=meds, store=tokens, run=run, splits=settings.splits, seed=settings.seed)


# -- scores and report


def collect(output: Path, names: Mapping[str, tuple[str, str]], **predictions: Path) -> None:
    """All predictions in one tree, <task>/<predictor>/; ``names`` says whose each folder is."""
    for key, (task, predictor) in names.items():
        for file in sorted(predictions[key].iterdir()):
            if file.name in (FILE, NOT_APPLICABLE, MANIFEST):
                target = output / task / predictor / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)


def score(output: Path, settings: ScoringConfig, *, predictions: Path) -> None:
    """scores.json. Raises NotApplicable where nothing was predicted."""
    from ehr_eval.evaluation import evaluate_predictions

    if not any(predictions.rglob(FILE)):
        raise NotApplicable("no predictor could answer, so there is nothing to score")
    evaluate_predictions(predictions, settings, output)


@dataclass(frozen=True)
class Page:
    """What the report says besides numbers."""

    title: str | None
    runs: tuple[str, ...]
    """Names of the inputs that are run folders, or fitted folders that have one."""


def write_page(output: Path, settings: Page, *, scores: Path, predictions: Path, **runs: Path) -> None:
    """report.html."""
    from ehr_eval.evaluation import SCORES
    from ehr_eval.page.report import write_report

    if not (scores / SCORES).is_file():
        raise NotApplicable("there are no scores to report")
    places = [runs[name] for name in settings.runs]
    places = [place / "run" if (place / "run" / MANIFEST).is_file() else place for place in places]
    write_report(
        predictions,
        scores,
        output,
        runs=[place for place in places if (place / HISTORY).is_file()],
        fitted="fitted",
        title=settings.title,
    )
