"""From settings to the graph of stages, with everything that can be refused before any work."""

import dataclasses
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core.config import to_plain
from ehr_core.constants import SPLITS as SPLITS_OF_MEDS
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.folder import digest_of
from ehr_core.formats.labels import Labels, read_labels
from ehr_core.formats.meds import shards, subject_splits
from ehr_core.formats.run import Run
from ehr_core.formats.tokens import TokenStore
from ehr_core.outcomes import BINARY, MULTICLASS, Question
from ehr_core.plugin import MedsConfig
from ehr_core.plugins import build, registry
from ehr_core.stages import Given, Graph, Stage, check_writable, settings_key
from ehr_eval.evaluation import check_scoring
from ehr_eval.label_notes import say_notes
from ehr_eval.parts import choose_metrics, choose_predictors, kind_of, needs_run
from ehr_eval.settings import ScoringConfig
from ehr_eval.user_labels import label_folders, read_user_labels

from ehr_train.check import Plan as Guess
from ehr_train.check import check_job
from ehr_train.job import FREE, TrainJob
from ehr_train.predictors.finetuned import objective_of
from ehr_train.runner import steps
from ehr_train.runner.settings import CHOICES, RunnerConfig
from ehr_train.settings import FinetunedConfig

SPLITS = ("tuning", "held_out")
"""Predicted beside the one that is scored."""


@dataclass
class Plan:
    """The stages of one composed configuration. Make it with `make_plan`."""

    settings: RunnerConfig
    graph: Graph
    world_size: int
    outcomes: dict[str, Question] = field(default_factory=dict)
    """What each task asks."""
    labels: dict[str, Stage] = field(default_factory=dict)
    fitted: dict[tuple[str, str], Stage] = field(default_factory=dict)
    """(task, predictor) to the stage that fits it."""
    predicted: dict[tuple[str, str], Stage] = field(default_factory=dict)
    run: Stage | None = None
    """The stage that trains the model."""
    view: tempfile.TemporaryDirectory[str] | None = None
    """Where MEDS records are seen as the source's settings say; it lives as long as the plan."""

    def job(self) -> TrainJob:
        """The training job, whose store may still be to be made; without labels and vectors that are."""
        assert self.run is not None
        later = [name for name in ("labels", "vectors") if not self._there(name)]
        folders = {name: part.path for name, part in self.run.inputs.items() if name not in later}
        labels = folders.pop("labels", None)
        return steps.training_job(
            self.run.path, self.run.settings, self.run.free, labels=steps.task_folder(labels), **folders
        )

    @property
    def ready(self) -> bool:
        """Whether everything that training reads is there."""
        assert self.run is not None
        return all(self._there(name) for name in self.run.inputs)

    def _there(self, name: str) -> bool:
        part = self.run.inputs.get(name) if self.run else None
        return isinstance(part, Given) or (isinstance(part, Stage) and part.done and part.reason is None)


def make_plan(settings: RunnerConfig, stages: Path, world_size: int) -> Plan:
    """The graph, checked. Raises EhrError in one line for whatever the run would refuse."""
    s = settings
    plan = Plan(s, Graph(stages), world_size)
    _check_settings(s, stages)
    if s.store is not None:
        store = TokenStore(s.store)
        _add_training(plan, Given(store.path, store.manifest.digest), _given_store_labels(plan))
        _check_training(plan, tuple(store.columns))
        return plan
    meds = _records(plan)
    _add_labels(plan, meds)
    predictors = _chosen_predictors(plan)
    choose_metrics(s.metric, {task: question.kind for task, question in plan.outcomes.items()})
    tokens = _add_tokens(plan, meds)
    label = _training_task(plan)
    _add_training(plan, tokens, plan.labels[label] if label else None)
    _check_training(plan, tuple(build("tokenizer", s.tokenizer).columns), plan.outcomes.get(label or ""))
    if predictors:
        _add_predictions(plan, meds, tokens, predictors)
        _add_scores(plan, meds)
    return plan


def _check_settings(s: RunnerConfig, stages: Path) -> None:
    check_writable(stages)
    if s.output is not None:
        check_writable(Path(s.output))
    for group in ("source", "tokenizer", "model", "objective", "strategy", "executor"):
        unused = s.store is not None and group in ("source", "tokenizer", "executor")
        if getattr(s, group) is None and not unused and not (group == "model" and s.start_from):
            raise ConfigError(f"{group} is required: give {group}=NAME (see --help)")
    if (s.adapter is not None or s.adapter_from is not None) and s.start_from is None:
        raise ConfigError(
            "adapter needs a trained model: give start_from=RUN, or fine-tune this run's model with "
            "predictors.finetuned.adapter"
        )
    if s.adapter_from is not None and not (Path(s.adapter_from) / "adapter.json").is_file():
        raise ConfigError(f"adapter_from={s.adapter_from} is no folder with an adapter.json")
    if s.start_from is not None:
        Run(s.start_from)
        if s.model is not None and s.model != _usual("model"):
            raise ConfigError(f"start_from={s.start_from} goes on with that run's model; leave out model")
    scoring_of(s)


def scoring_of(s: RunnerConfig) -> ScoringConfig:
    """How predictions are scored. Raises ConfigError for settings that cannot be."""
    given = {f.name: getattr(s.evaluation, f.name) for f in dataclasses.fields(s.evaluation)}
    scoring = ScoringConfig(metric=s.metric, seed=s.seed, **given)
    check_scoring(scoring)
    return scoring


# -- records, labels, tokens


def _records(plan: Plan) -> Stage | Given:
    """The MEDS dataset: written once, or the user's folder where it is, checked."""
    s = plan.settings
    source = build("source", s.source)
    if isinstance(s.source, MedsConfig) and source.place is None:  # links, made at once so that all can be checked
        plan.view = tempfile.TemporaryDirectory(prefix="ehr-records-")
        place = source.provide(Path(plan.view.name), build("executor", s.executor))
        return Given(place, digest_of(settings_key(s.source)))
    if source.place is None:
        return plan.graph.add("data", steps.write_records, s.source, words=s.source.name, free=s.executor)
    place = source.provide(source.place, build("executor", s.executor))
    return Given(place, digest_of(settings_key(s.source)))


def _add_labels(plan: Plan, meds: Stage | Given) -> None:
    """One stage a task: the user's labels, or what the tasks find in the records."""
    s = plan.settings
    if s.labels is None:
        read = s.predictors or registry().get("objective", s.objective.name).outcomes
        for name, task in s.task.items() if read else ():
            built = build("task", task)
            plan.outcomes[name] = Question(registry().get("task", task.name).outcomes[0], tuple(built.names))
            stage = plan.graph.add(
                f"labels/{name}", steps.label_task, {name: task}, {"meds": meds}, words="by task", free=s.executor
            )
            plan.labels[name] = stage
        return
    splits = subject_splits(shards(meds.path)) if isinstance(meds, Given) else _Unwritten()
    for folder in label_folders(Path(s.labels)):
        labels = read_labels(folder, s.kind, splits)
        plan.outcomes[labels.name] = labels.asked()
        given = {"labels": Given.of(folder), "meds": meds}
        settings = steps.GivenLabels(labels.name, s.kind)
        words = f"given, {_told(labels)}"
        stage = plan.graph.add(f"labels/{labels.name}", steps.take_labels, settings, given, words=words, whole=True)
        plan.labels[labels.name] = stage
    if isinstance(meds, Given) and not all(stage.done for stage in plan.labels.values()):
        scored = [s.evaluation.split] if s.predictors else []
        checked = read_user_labels(Path(s.labels), meds.path, s.kind, splits=scored)  # everything about them, now
        for labels in checked.values() if s.dry_run else ():  # a run says it when it takes them
            say_notes(labels)


class _Unwritten(dict[int, str]):
    """Splits of subjects whose records are still to be written: what the labels ask does not depend on them."""

    def get(self, key: int, default: Any = None) -> Any:
        return SPLITS_OF_MEDS[0]


def _told(labels: Labels) -> str:
    """What labels hold, so that a wrong reading of them shows."""
    question = labels.asked()
    rows = sum(len(table) for table in labels.tables.values())
    told = f"{question.kind}, {rows:,} samples"
    if question.kind == BINARY and rows:
        positive = sum(labels.array(split).sum() for split in labels.splits)
        told += f", {positive / rows:.1%} positive"
    if question.kind == MULTICLASS:
        told += f", {len(question.names)} classes"
    return told


def _given_store_labels(plan: Plan) -> Stage | Given | None:
    """Labels for a store that was given: in the one form already, since there are no records to check them against."""
    s = plan.settings
    asked = [name for name in ("source", "tokenizer") if getattr(s, name) != _usual(name)]
    if asked:
        raise ConfigError(
            f"store={s.store} has its tokens already and is only trained on; leave out {', '.join(asked)}, or leave "
            "out store"
        )
    if s.labels is None:
        return None
    labels = read_labels(Path(s.labels), s.kind)
    plan.outcomes[labels.name] = labels.asked()
    return Given.of(Path(s.labels))


def _usual(group: str) -> Any:
    part = registry().components[group].get(str(CHOICES[group]))
    return part.config() if part is not None and part.config is not None else None


def _add_tokens(plan: Plan, meds: Stage | Given) -> Stage:
    s = plan.settings
    inputs: dict[str, Stage | Given] = {"meds": meds}
    tokenizer, words = s.tokenizer, s.tokenizer.name
    if s.start_from is not None:
        run = Run(s.start_from)
        inputs["fitted"] = Given.of(run.tokenizer)
        words = f"as {run.path.name}"
    settings = steps.Tokens(tokenizer)
    return plan.graph.add("tokens", steps.tokenize_records, settings, inputs, words=words, whole=True, free=s.executor)


# -- training


def _training_task(plan: Plan) -> str | None:
    """The task whose labels the objective learns from; None for one without labels."""
    s = plan.settings
    kinds = registry().get("objective", s.objective.name).outcomes
    if not kinds:
        if s.label_task is not None:
            raise ConfigError(
                f"label_task={s.label_task}: objective {s.objective.name!r} learns from no labels; leave it out, or "
                "choose an objective that does"
            )
        return None
    fitting = [name for name, question in plan.outcomes.items() if question.kind in kinds]
    if s.label_task is not None:
        if s.label_task not in plan.outcomes:
            raise ConfigError(f"label_task={s.label_task}: the tasks are {', '.join(plan.outcomes) or 'none'}")
        return s.label_task
    if len(fitting) > 1:
        raise ConfigError(
            f"objective {s.objective.name!r} learns from the labels of one task, and there are {', '.join(fitting)}; "
            "choose with label_task=NAME"
        )
    if not fitting:
        raise ConfigError(
            f"objective {s.objective.name!r} learns from labels of kind {' or '.join(kinds)}; give labels=DIR or a "
            "task of such a kind"
        )
    return fitting[0]


def _add_training(plan: Plan, tokens: Stage | Given, labels: Stage | Given | None) -> None:
    s = plan.settings
    inputs: dict[str, Stage | Given] = {"tokens": tokens}
    words = f"{s.model.name if s.model else 'no model'}, {s.objective.name}"
    if labels is not None and registry().get("objective", s.objective.name).outcomes:
        inputs["labels"] = labels
    if s.embedding is not None:
        words_of = s.embedding.name
        inputs["vectors"] = plan.graph.add(
            "vectors", steps.embed_tokens, s.embedding, {"tokens": tokens}, words=words_of, whole=True
        )
    if s.start_from is not None:
        run = Run(s.start_from)
        inputs["start"] = Given(run.path, run.digest)
        words = f"{run.path.name}, {s.objective.name}"
    if s.adapter_from is not None:
        inputs["adapter"] = Given.of(Path(s.adapter_from))
    if s.adapter is not None or s.adapter_from is not None:
        words += ", adapter"
    free = steps.Training(s.train, s.strategy, s.tracker, plan.world_size, to_plain(s))
    rows = s.train.batch_size * s.train.accumulate * plan.world_size
    deciding = {name: value for name, value in to_plain(s.train).items() if name not in FREE}
    model = None if s.start_from is not None else s.model
    if s.embedding is not None:
        steps.with_vectors(s.model, Path("vectors"))
    settings = steps.Pretraining(model, s.objective, deciding, rows, s.seed, s.adapter)
    plan.run = plan.graph.add("pretrain", steps.pretrain, settings, inputs, words=words, whole=True, free=free)


def _check_training(plan: Plan, columns: tuple[str, ...], question: Question | None = None) -> None:
    """Refuse a training job that cannot be: in full where its data is there, else as far as settings say."""
    assert plan.run is not None
    if plan.run.done:
        return
    if plan.ready:
        check_job(plan.job(), plan.world_size)
    else:
        check_job(plan.job(), plan.world_size, Guess(columns=columns, question=question))


# -- prediction, scores, report


def _chosen_predictors(plan: Plan) -> dict[str, dict[str, Any]]:
    """Task to its predictors by name. Of the usual ones those that do not speak a kind are left out."""
    s = plan.settings
    if not s.predictors:
        return {}
    if not plan.outcomes:
        raise ConfigError("there is no task to predict; give task=[NAME] or labels=DIR, or predictors=[]")
    given = dict(s.predictors)
    if list(given) == CHOICES["predictors"]:
        kinds = {question.kind for question in plan.outcomes.values()}
        given = {
            name: part for name, part in given.items() if kinds & {*registry().get(kind_of(part), part.name).outcomes}
        }
    outcomes = {task: question.kind for task, question in plan.outcomes.items()}
    return choose_predictors(given, outcomes)


def _add_predictions(plan: Plan, meds: Stage | Given, tokens: Stage, predictors: dict[str, dict[str, Any]]) -> None:
    s = plan.settings
    assert plan.run is not None
    applying = steps.Applying(tuple(dict.fromkeys([*SPLITS, s.evaluation.split])), s.seed)
    for task, chosen in predictors.items():
        for name, part in chosen.items():
            if isinstance(part, FinetunedConfig):
                objective_of(part, plan.outcomes[task])
            inputs: dict[str, Stage | Given] = {"meds": meds, "labels": plan.labels[task]}
            settings = steps.Fitting(name, part, s.seed, task=s.task.get(task))
            if kind_of(part) == "baseline":
                settings = dataclasses.replace(settings, features=s.features, task=None)
            applied: dict[str, Stage | Given] = dict(inputs)
            if needs_run(part):
                inputs |= {"tokens": tokens, "run": plan.run}
                applied |= {"tokens": tokens}
                settings = dataclasses.replace(settings, world_size=plan.world_size)
            free = steps.Training(s.train, s.strategy, s.tracker, plan.world_size)
            where = f"{task}/{name}"
            fitted = plan.graph.add(f"fit/{where}", steps.fit, settings, inputs, whole=True, free=free)
            applied["fitted"] = plan.fitted[task, name] = fitted
            predicted = plan.graph.add(f"predict/{where}", steps.apply, applying, applied, whole=True)
            plan.predicted[task, name] = predicted


def _add_scores(plan: Plan, meds: Stage | Given) -> None:
    s = plan.settings
    assert plan.run is not None
    names = {f"part{number}": pair for number, pair in enumerate(plan.predicted)}
    inputs: dict[str, Stage | Given] = {key: plan.predicted[pair] for key, pair in names.items()}
    predictions = plan.graph.add("predictions", steps.collect, names, inputs, always=True)
    scores = plan.graph.add("scores", steps.score, scoring_of(s), {"predictions": predictions})
    runs: dict[str, Stage | Given] = {"run": plan.run}
    runs |= {f"fit{number}": stage for number, stage in enumerate(plan.fitted.values())}
    page = steps.Page(s.title, tuple(runs))
    plan.graph.add(
        "report", steps.write_page, page, {"scores": scores, "predictions": predictions, **runs}, always=True
    )


def check_some_labels(plan: Plan) -> None:
    """Raise DataError when no task gave a label."""
    reasons = [stage.reason for stage in plan.labels.values()]
    if reasons and all(reasons):
        raise DataError(f"no task gave a label on this dataset; give your own with labels=DIR ({reasons[0]})")
