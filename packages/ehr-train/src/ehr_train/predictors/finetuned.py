"""``finetuned``: the run's model, trained further on the labels of the train split, with a head for the question.

The same trainer as for pretraining makes ``run`` in the job's work folder, where a killed one continues: packed
samples, the loss of the labels' kind, early stopping on the tuning labels. What is fitted is that run, whole.
"""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ehr_core.config import component_settings, from_plain
from ehr_core.errors import ConfigError, NotApplicable
from ehr_core.formats.labels import Labels
from ehr_core.formats.run import Run, link
from ehr_core.formats.tokens import TokenStore
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL, Question
from ehr_core.plugins import build
from ehr_core.protocols import FitJob, PredictJob

from ehr_train.check import check_train
from ehr_train.devices import autocast, choose_device
from ehr_train.job import TrainJob, adapter_folder, adapter_of
from ehr_train.launch import is_made, train
from ehr_train.learner import is_causal, load_run
from ehr_train.loader.samples import Samples, open_labels
from ehr_train.predictors.applying import RUN, fitted_run, predict_splits, score
from ehr_train.prepare import check_kind
from ehr_train.settings import DdpConfig, FinetunedConfig, TrainConfig

OBJECTIVES = {
    BINARY: "classification",
    MULTICLASS: "multiclass",
    MULTILABEL: "multilabel",
    REGRESSION: "regression",
    SURVIVAL: "survival",
}
"""Kind of outcome to the objective that learns it, unless another is asked for."""


class Finetuned:
    """See the module. Raises ConfigError for an objective or an adapter that does not exist."""

    needs_run = True

    def __init__(self, settings: FinetunedConfig):
        self.settings = settings
        choose_device(settings.device)
        if settings.objective is not None:
            component_settings("objective", settings.objective)
        if settings.adapter is not None and adapter_folder(settings.adapter) is None:
            build("adapter", adapter_of(settings.adapter)[0])
        check_train(schedule(settings, 1), "predictors.finetuned")
        if settings.min_labels < 1:
            raise ConfigError(f"predictors.finetuned.min_labels is {settings.min_labels}; it must be at least 1")

    def fit(self, job: FitJob) -> None:
        """Raises NotApplicable when the train labels are too few or of one class."""
        if job.run is None or job.store is None:
            raise ConfigError("finetuned trains a run's model; give run=RUN and the dataset tokenized for it")
        labels = open_labels(job.labels, TokenStore(job.store))
        check_labels(labels, self.settings.min_labels)
        if "tuning" not in labels.splits or not len(labels.tables["tuning"]):
            print(f"{labels.name}: no tuning labels, so training does not stop early", file=sys.stderr)
        output = Path(job.work) / RUN
        training = self.training(job, labels, output)
        if not is_made(training, job.world_size):
            shutil.rmtree(output, ignore_errors=True)  # a run for other labels, say
            train(training, job.world_size)
        shutil.copytree(output, Path(job.output) / RUN, copy_function=link)

    def training(self, job: FitJob, labels: Labels, output: Path) -> TrainJob:
        """The job that fine-tunes."""
        settings = self.settings
        begin = Run(job.run or "")
        model: Any = begin.settings["model"]
        question = labels.asked()
        objective = objective_of(settings, question)
        # The output layer of a model that does not tie it gets no gradient here.
        strategy = DdpConfig(device=settings.device, find_unused_parameters=True)
        if job.strategy is not None:
            strategy = job.strategy
            if isinstance(strategy, DdpConfig):
                strategy = dataclasses.replace(strategy, find_unused_parameters=True)
        return TrainJob(
            store=str(job.store),
            output=str(output),
            model=from_plain("model", model),
            objective=objective,
            strategy=strategy,
            trackers=dict(job.trackers),
            train=schedule(settings, begin.context_length),
            seed=job.seed,
            labels=str(job.labels),
            start=str(job.run),
            adapter=settings.adapter,
            stage=job.stage or f"finetuned/{labels.name}",
        )

    def predict(self, job: PredictJob) -> dict[str, np.ndarray]:
        """Predictions of each split, from the best weights."""
        device = choose_device(self.settings.device)
        run, learner = load_run(fitted_run(job.fitted).path, device)

        def scorer(samples: Samples) -> np.ndarray:
            with autocast("auto", device):
                return score(
                    samples.evaluation(),
                    self.settings.batch_size,
                    device,
                    lambda batch: learner.objective.predict(learner.model, batch),
                )

        question = run.question
        width = len(question.names) if question and question.kind in (MULTICLASS, MULTILABEL) else 0
        return dict(predict_splits(job, run, scorer, width, share=is_causal(learner.model)))

    def tokenizer(self, fitted: Path) -> Path | None:
        """The run's."""
        return fitted_run(fitted).tokenizer


def objective_of(settings: FinetunedConfig, question: Question) -> Any:
    """Settings of the objective that learns a question. Raises ConfigError for one that was chosen and does not."""
    objective = component_settings("objective", settings.objective or OBJECTIVES[question.kind])
    check_kind(objective.name, question)
    return objective


def schedule(settings: FinetunedConfig, context: int) -> TrainConfig:
    """How long, and with which optimizer, a model of this context is fine-tuned."""
    return TrainConfig(
        name="finetune",
        context_length=context,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_epochs=settings.max_epochs,
        max_steps=settings.max_steps,
        patience=settings.patience,
        keep_epochs=0,
    )


def check_labels(labels: Labels, least: int) -> None:
    """Raise NotApplicable unless there are enough train labels, with enough of what they tell apart."""
    question = labels.asked()
    if "train" not in labels.splits:
        raise NotApplicable(f"{labels.name} has no labels of the train split, so there is nothing to fine-tune on")
    values = labels.array("train")
    if len(values) < least:
        raise NotApplicable(f"{len(values)} train labels are too few to fine-tune on; at least {least} are needed")
    if question.kind in (BINARY, MULTICLASS):
        counts = np.unique(values, return_counts=True)[1]
        rarer = 0 if len(counts) < 2 else int(np.sort(counts)[-2])
        if rarer < 2:
            raise NotApplicable(
                f"of {len(values)} train labels all but {rarer} are of one class, so there is nothing to tell apart; "
                "at least 2 of a second class are needed"
            )
    elif question.kind == SURVIVAL and values[:, 1].sum() < 2:
        raise NotApplicable(f"{int(values[:, 1].sum())} train labels have an event; at least 2 are needed")
    elif question.kind == MULTILABEL and not (np.nansum(values, 0) * np.nansum(1 - values, 0)).any():
        raise NotApplicable("every label is the same in all train samples, so there is nothing to tell apart")
    elif question.kind == REGRESSION and np.ptp(values) == 0:
        raise NotApplicable("all train labels are the same number, so there is nothing to tell apart")
