"""From a training job to a run folder, in this process, in processes of its own, or in those that torchrun started."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ehr_core.errors import ConfigError, EhrError
from ehr_core.formats.folder import check_free, publish
from ehr_core.formats.run import Run
from ehr_core.locks import held
from ehr_core.plugins import build

from ehr_train import checkpoint, runfolder
from ehr_train.check import check_job
from ehr_train.job import TrainJob, running
from ehr_train.prepare import Parts, build_learner, is_made, open_job
from ehr_train.processes.group import Group, is_shared
from ehr_train.processes.spawn import spawn
from ehr_train.processes.stops import Stopped, Stops, name_of
from ehr_train.saving import Checkpoints
from ehr_train.trainer import Trainer

__all__ = ["TrainJob", "is_made", "processes", "serving", "train", "train_here"]


def train(job: TrainJob, world_size: int | str = "auto") -> Run:
    """Make the run folder ``job.output``, or continue where an earlier attempt ended; returns the opened run.

    ``world_size`` is the number of processes (``auto``: the GPUs there are, else 1). Processes that torchrun started
    are used as they are. A run may go on with another number of processes, as long as ``batch_size`` times
    ``accumulate`` times the number of processes stays the same. Raises EhrError of one line, also for what went wrong
    in another process, and `Stopped` after a signal.
    """
    group = Group.join()
    if group.size > 1:
        if group.leading:
            group.broadcast(job.to_plain())
            group.busy = True
        try:
            train_here(job)
        except EhrError as error:
            group.busy = group.busy and not is_shared(error)
            raise
        group.busy = False
        return Run(job.output)
    size = processes(world_size)
    if size == 1:
        train_here(job)
    else:
        check_job(job, size, settings_only=True)
        spawn(job, size)
    return Run(job.output)


@contextlib.contextmanager
def serving(world_size: int | str = "auto") -> Iterator[bool]:
    """True where the program is to run. Under torchrun that is rank 0, and the others have trained along until now.

    ::

        with serving(settings.world_size) as leader:
            if leader:
                ...  # whatever calls `train`

    Raises ConfigError when torchrun started another number of processes than was asked for.
    """
    group = Group.join()
    if group.size > 1 and world_size != "auto" and processes(world_size) != group.size:
        raise ConfigError(f"world_size is {world_size}, and {group.size} processes were started; say world_size=auto")
    if group.rank:
        group.serve(lambda found: train_here(TrainJob.from_plain(found)))
        yield False
    else:
        with group.leading_others():
            yield True
    group.leave()


def processes(world_size: int | str) -> int:
    """The number of processes to use. Raises ConfigError for anything but auto and positive numbers."""
    if world_size == "auto":
        return max(torch.cuda.device_count() if torch.cuda.is_available() else 0, 1)
    try:
        size = int(world_size)
    except ValueError:
        size = 0
    if size < 1:
        raise ConfigError(f"world_size is {world_size!r}; it must be auto or a number of processes, at least 1")
    return size


def train_here(job: TrainJob) -> None:
    """Train in this process, as one rank of its group."""
    group = Group.join()
    output, folder = Path(job.output).absolute(), running(Path(job.output).absolute())
    with contextlib.ExitStack() as stack:
        group.together(lambda: check_job(job, group.size, settings_only=True))
        group.together(lambda: stack.enter_context(_held(output)) if group.rank == 0 else None)
        parts = group.together(lambda: open_job(job))
        trainer = group.together(lambda: _trainer(parts, folder))
        continued = group.together(trainer.resume)
        trackers = _begin(parts, folder, trainer, continued) if group.rank == 0 else []
        trainer.log_to = lambda step, values: [tracker.log(step, values) for tracker in trackers]
        status = "failed"
        try:
            with Stops() as stops:
                trainer.fit(stops)
            status = "finished"
        except Stopped:
            status = "stopped"
            raise
        finally:
            for tracker in trackers:
                tracker.finish(status)
            if status == "stopped":
                group.gather(None)  # rank 0 may still write when others are through
        if group.rank == 0:
            _finish(parts, folder, trainer)
            publish(folder, output)
        group.gather(None)  # nobody opens the run before it is there
        if number := stops.clear():
            raise Stopped(f"{name_of(number)} came as training ended; {output} is finished", number)


def _trainer(parts: Parts, folder: Path) -> Trainer:
    """The trainer of this rank, with generators of its own."""
    job = parts.job
    strategy = build("strategy", job.strategy)
    columns, vocabulary = parts.store.columns, parts.store.vocabulary
    header = {
        "model_configs": {**job.to_plain()["model"], "vocabulary_size": len(vocabulary), "columns": columns},
        "vocab_stoi": dict(vocabulary.ids),
        "hydra_config_full": job.config or job.to_plain(),
        "job_digest": job.digest(parts.inputs, strategy.world_size),
    }
    checkpoints = Checkpoints(folder, header, strategy, parts.learner, job.seed, job.rows(strategy.world_size))
    trainer = Trainer(parts.learner, strategy, job.train, parts.train, parts.tuning, checkpoints)
    checkpoint.seed_all(job.seed, 1 + strategy.rank)
    return trainer


def _begin(parts: Parts, folder: Path, trainer: Trainer, continued: bool) -> list[Any]:
    """Write what is known before the first step, and start the trackers."""
    job, state = parts.job, trainer.state
    if continued:
        print(f"continuing {Path(job.output).name} at step {state.step} of {trainer.total}", file=sys.stderr)
    elif job.adapter is not None:
        print(runfolder.describe_parameters(trainer.parameters), file=sys.stderr)
    runfolder.begin(folder, job, Path(job.store))
    trackers = [build("tracker", settings) for settings in job.trackers.values()]
    for tracker in trackers:
        tracker.start(folder, job.config or job.to_plain(), state.step + 1, job.stage)
    return trackers


def _finish(parts: Parts, folder: Path, trainer: Trainer) -> None:
    """The finished run, from an undivided learner with the best weights."""
    learner = build_learner(parts.job, parts.store, parts.question)
    content: dict[str, Any] = {
        "job": trainer.checkpoints.header["job_digest"],
        "vocabulary": parts.store.vocabulary.digest,
        "vocabulary_size": len(parts.store.vocabulary),
        "columns": parts.store.columns,
        "context_length": parts.context,
        "stage": parts.job.stage,
        "question": {"kind": q.kind, "names": list(q.names)} if (q := parts.question) else None,
    }
    runfolder.finish(folder, parts.job, learner, trainer, parts.inputs, content)


@contextlib.contextmanager
def _held(output: Path) -> Iterator[None]:
    """Hold the lock beside the output and make the folder to work in."""
    with held(output, "training"):
        check_free(output)  # it may have been finished between the two
        for name in ("checkpoints", "logs"):
            (running(output) / name).mkdir(parents=True, exist_ok=True)
        yield
