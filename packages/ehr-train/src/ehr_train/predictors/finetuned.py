"""``finetuned``: the run's model, trained further on the labels of the train split, with a head for the question.

The same trainer as for pretraining makes ``run`` in the job's work folder, where a killed one continues: packed
samples, plain binary cross-entropy, early stopping on the tuning labels. The best weights predict, and the run is kept
in the output.
"""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from ehr_core.config import from_plain
from ehr_core.errors import ConfigError, NotApplicable
from ehr_core.formats.run import Run
from ehr_core.formats.tables import label_splits, read_labels
from ehr_core.plugins import registry
from ehr_core.protocols import PredictionJob

from ehr_train.data import Samples
from ehr_train.job import TrainJob
from ehr_train.launch import is_made, train
from ehr_train.learner import autocast, load_run
from ehr_train.predictors.samples import open_store, predict_splits, score
from ehr_train.settings import DdpConfig, FinetunedConfig, TrainConfig
from ehr_train.strategies import choose_device


class Finetuned:
    """See the module."""

    needs_run = True

    def __init__(self, settings: FinetunedConfig):
        self.settings = settings

    def predict(self, job: PredictionJob) -> None:
        """Raises NotApplicable when the train labels are too few or of one class."""
        store = open_store(job)
        check_labels(job.labels, self.settings.min_labels)
        output = Path(job.work) / "run"
        training = self.training(job, output)
        if not is_made(training, job.world_size):
            shutil.rmtree(output, ignore_errors=True)  # a run for other labels, say
            train(training, job.world_size)
        shutil.copytree(output, Path(job.output) / "run", dirs_exist_ok=True)
        device = choose_device(self.settings.device)
        run, learner = load_run(output, device)

        def scorer(samples: Samples) -> np.ndarray:
            with autocast("auto", device):
                return score(
                    samples.evaluation(),
                    self.settings.batch_size,
                    device,
                    lambda batch: learner.objective.predict(learner.model, batch),
                )

        context = int(run.manifest.content["context_length"])
        predict_splits(job, store, context, scorer, share=bool(learner.model.causal))

    def training(self, job: PredictionJob, output: Path) -> TrainJob:
        """The job that fine-tunes."""
        settings = self.settings
        begin = Run(job.run or "")
        found: dict[str, Any] = dict(begin.settings)
        return TrainJob(
            store=str(job.store),
            output=str(output),
            model=from_plain("model", found["model"]),
            objective=self.objective(),
            # The output layer of a model that does not tie it gets no gradient here.
            strategy=DdpConfig(device=settings.device, find_unused_parameters=True),
            train=TrainConfig(
                name="finetune",
                context_length=int(begin.manifest.content["context_length"]),
                batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                weight_decay=settings.weight_decay,
                max_epochs=settings.max_epochs,
                max_steps=settings.max_steps,
                patience=settings.patience,
                keep_epochs=0,
            ),
            seed=job.seed,
            labels=str(job.labels),
            start=str(job.run),
            adapter=settings.adapter,
        )

    def objective(self) -> Any:
        """Settings of the objective. Raises ConfigError when it has no such setting."""
        name = self.settings.objective
        config = registry().get("objective", name).config
        assert config is not None, f"objective {name} has no settings"
        given = {"pooling": self.settings.pooling, "dropout": self.settings.dropout}
        given = {setting: value for setting, value in given.items() if value is not None}
        for setting in given.keys() - {field.name for field in fields(config)}:
            raise ConfigError(f"objective {name} has no {setting}; leave predictors.finetuned.{setting} out")
        return config(**given)


def check_labels(folder: Path, least: int) -> None:
    """Raise NotApplicable unless there are enough train labels of both classes."""
    if "train" not in label_splits(folder):
        raise NotApplicable(f"{folder.name} has no labels of the train split, so there is nothing to fine-tune on")
    values = read_labels(folder, "train")["boolean_value"].to_numpy(zero_copy_only=False)
    fewest = min(int(values.sum()), int((~values).sum()))
    if len(values) < least or fewest < 2:
        raise NotApplicable(
            f"{len(values)} train labels, {fewest} of the rarer class, are too few to fine-tune on; at least {least} "
            "with 2 of each class are needed"
        )
