"""What can be refused before any work is done: settings, devices, places, and whether the parts fit each other."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from ehr_core.errors import ConfigError
from ehr_core.formats.folder import check_free
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.outcomes import Question
from ehr_core.plugins import build, registry

from ehr_train.devices import autocast
from ehr_train.job import TrainJob, adapter_folder, adapter_of
from ehr_train.learner import check_provided, context_length, make_model, open_run
from ehr_train.prepare import Parts, check_kind, needs_labels, open_job
from ehr_train.processes.group import Group
from ehr_train.settings import TrainConfig
from ehr_train.strategies.base import check_processes

LEAST: dict[str, float] = {
    "context_length": 1,
    "batch_size": 1,
    "accumulate": 1,
    "max_steps": 1,
    "max_epochs": 1,
    "warmup_steps": 0,
    "warmup_share": 0,
    "learning_rate": 0,
    "min_learning_rate_ratio": 0,
    "weight_decay": 0,
    "beta1": 0,
    "beta2": 0,
    "clip": 0,
    "eval_every": 1,
    "patience": 1,
    "log_every": 1,
    "checkpoint_every": 1,
    "checkpoint_every_seconds": 0,
    "keep_epochs": 0,
}
"""Setting of `TrainConfig` to its smallest value; one that is None is not looked at."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a store and labels that an earlier stage will make."""

    columns: tuple[str, ...] = ()
    """The tokenizer's further columns."""
    vocabulary_size: int = 64
    """A guess, where it is not known."""
    question: Question | None = None
    """What the labels will ask; None: there will be none."""

    @property
    def vocabulary(self) -> Vocabulary:
        """One of that size, of codes that mean nothing."""
        specials = len(Vocabulary.build([]))
        codes = range(max(self.vocabulary_size - specials, 0))
        return Vocabulary.build([Token(f"CODE//{number}", "code", (f"CODE//{number}",), 1) for number in codes])


def check_job(
    job: TrainJob, world_size: int = 1, plan: Plan | None = None, settings_only: bool = False
) -> Parts | None:
    """Refuse what training would refuse, in one line, without training or writing anything.

    Looks at numbers, precision, device, strategy, the place of the output, the objective and its labels, the model with
    its context, and, where store and labels are there, at every sample. With a ``plan`` they are still to be made, and
    what depends on their content is left out; with ``settings_only`` they are not opened. Returns the opened parts
    otherwise. Raises EhrError.
    """
    check_train(job.train)
    check_strategy(job, world_size)
    check_output(Path(job.output).absolute())
    check_adapter(job)
    if settings_only:
        return None
    if plan is None:
        return open_job(job)
    if needs_labels(job.objective.name, plan.question is not None):
        assert plan.question is not None
        check_kind(job.objective.name, plan.question)
    check_model(job.resolved(), plan)
    return None


def check_train(settings: TrainConfig, where: str = "train") -> None:
    """Raise ConfigError for a number that cannot be; ``where`` the user set it."""
    for name, least in LEAST.items():
        value = getattr(settings, name)
        if value is not None and not value >= least:
            raise ConfigError(f"{where}.{name} is {value}; it must be at least {least:g}")
    for name, most in (("beta1", 1.0), ("beta2", 1.0)):
        if getattr(settings, name) >= most:
            raise ConfigError(f"{where}.{name} is {getattr(settings, name)}; it must be below {most:g}")
    if settings.warmup_share > 1:
        raise ConfigError(f"{where}.warmup_share is {settings.warmup_share}; it must be at most 1")


def check_strategy(job: TrainJob, world_size: int) -> Any:
    """Raise ConfigError for a device, a precision or a number of processes that cannot be; returns the strategy."""
    if Group.join().size == 1:
        most = registry().load("strategy", job.strategy.name).max_processes
        check_processes(job.strategy.name, most, world_size)
    strategy = build("strategy", job.strategy)
    autocast(job.train.precision, strategy.device)
    return strategy


def check_output(output: Path) -> None:
    """Raise FormatError for an output that exists, ConfigError for one that cannot be made."""
    check_free(output)
    there = next(path for path in output.parents if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"{output} cannot be made: {there} cannot be written to; give another output")


def check_adapter(job: TrainJob) -> None:
    """Raise ConfigError for an adapter that does not exist, or has nothing to sit on."""
    if job.adapter is None:
        return
    if job.start is None:
        raise ConfigError("an adapter needs a trained model to sit on; give the run to start from")
    if adapter_folder(job.adapter) is None:
        adapter_of(job.adapter)


def check_model(job: TrainJob, plan: Plan) -> None:
    """Raise ConfigError for a model that cannot be, or that the objective or the context do not fit."""
    if job.start is not None:
        run, content = open_run(job.start)
        model = make_model(job.model, run.vocabulary, content.model_configs.columns)
    else:
        model = make_model(job.model, plan.vocabulary, plan.columns)
    check_provided(job.model.name, model, job.objective.name)
    context_length(job.train.context_length, model)
