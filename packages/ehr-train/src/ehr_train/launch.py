"""From a training job to a run folder, in this process, in processes of its own, or in those that torchrun started."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ehr_core.config import from_plain
from ehr_core.errors import ConfigError, EhrError, FormatError
from ehr_core.formats.folder import check_free, digest_of, file_digest, file_digests, publish, write_json
from ehr_core.formats.run import Run
from ehr_core.formats.tables import label_splits
from ehr_core.formats.tokens import TokenStore
from ehr_core.plugins import build
from filelock import FileLock, Timeout

from ehr_train import checkpoint, data, runfolder
from ehr_train.group import RENDEZVOUS, Group, is_shared, revive
from ehr_train.job import TrainJob, adapter_folder, running
from ehr_train.learner import context_length, make_learner, open_run, start_from
from ehr_train.trainer import Trainer


def train(job: TrainJob, world_size: int | str = "auto") -> Path:
    """Make the run folder ``job.output``, or continue where an earlier attempt was killed; returns its path.

    ``world_size`` is the number of processes (``auto``: the GPUs there are, else 1). Processes that torchrun started
    are used as they are. Raises EhrError of one line, also for what went wrong in another process.
    """
    group = Group.join()
    if group.size > 1:
        if group.leading:
            group.tell(job.to_plain())
            group.busy = True
        try:
            train_here(job)
        except EhrError as error:
            group.busy = group.busy and not is_shared(error)
            raise
        group.busy = False
        return Path(job.output)
    size = processes(world_size)
    if size == 1:
        train_here(job)
    else:
        _spawn(job, size)
    return Path(job.output)


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
        group.together(lambda: stack.enter_context(_held(output)) if group.rank == 0 else None)
        trainer, job, inputs, content, trackers = group.together(lambda: _prepare(job, folder))
        continued = group.together(trainer.resume)
        if group.rank == 0:
            if continued:
                print(f"continuing {output.name} at step {trainer.state.step} of {trainer.total}", file=sys.stderr)
            elif job.adapter is not None:
                print(runfolder.describe_parameters(trainer.parameters), file=sys.stderr)
            runfolder.begin(folder, job, Path(job.store))
            for tracker in trackers:
                tracker.start(folder, job.to_plain(), trainer.state.step + 1)
        status = "failed"
        try:
            trainer.fit()
            status = "finished"
        finally:
            for tracker in trackers:
                tracker.finish(status)
        if group.rank == 0:
            runfolder.finish(folder, job, trainer, inputs, content)
            publish(folder, output)
        group.gather(None)  # nobody opens the run before it is there


@contextlib.contextmanager
def _held(output: Path) -> Iterator[None]:
    """Hold the lock beside the output and make the folder to work in."""
    check_free(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output.with_name(f"{output.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise EhrError(f"another process is training {output}; wait for it, or give another output") from None
    try:
        check_free(output)  # it may have been finished between the two
        for name in ("checkpoints", "logs"):
            (running(output) / name).mkdir(parents=True, exist_ok=True)
        yield
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


Prepared = tuple[Trainer, TrainJob, dict[str, str], dict[str, Any], list[Any]]


def _prepare(job: TrainJob, folder: Path) -> Prepared:
    """Open the data and build the learner, the same on every rank."""
    store = TokenStore(job.store)
    begin = None
    if job.adapter is not None and job.start is None:
        raise ConfigError("an adapter needs a trained model to sit on; give the run to start from")
    if job.start is not None:
        run, begin = open_run(job.start)
        run.check_vocabulary(store.vocabulary, store.path)
        settings: dict[str, Any] = dict(run.settings)
        job = dataclasses.replace(job, model=from_plain("model", settings["model"]))
        if begin["model_configs"]["columns"] != store.columns:
            raise FormatError(f"{store.path} has columns {store.columns}; {job.start} was trained with others")
    checkpoint.seed_all(job.seed)
    learner = make_learner(job.model, job.objective, store.vocabulary, store.columns)
    if begin is not None:
        start_from(learner, begin, Path(job.start or ""))
    if job.adapter is not None:
        learner.adapt(job.adapter, job.model.name)
    labels = _labels(job, learner.objective.labelled)
    context = context_length(job.train.context_length, learner.model)
    share = bool(learner.model.causal)
    train = data.load(store, "train", labels, context, job.seed, share)
    known = store.splits() if labels is None else label_splits(labels)
    tuning = data.load(store, "tuning", labels, context, job.seed, share) if "tuning" in known else None
    strategy = build("strategy", job.strategy)
    inputs = input_digests(job, labels)
    configs = {**job.to_plain()["model"], "vocabulary_size": len(store.vocabulary), "columns": store.columns}
    card = {
        "model_configs": configs,
        "vocab_stoi": dict(store.vocabulary.ids),
        "hydra_config_full": job.to_plain(),
        "job_digest": job.digest(inputs, strategy.world_size),
    }
    trackers = [build("tracker", settings) for settings in job.trackers.values()] if strategy.rank == 0 else []

    def log(step: int, values: dict[str, float]) -> None:
        for tracker in trackers:
            tracker.log(step, values)

    trainer = Trainer(learner, strategy, job.train, train, tuning, folder, card, log)
    checkpoint.seed_all(job.seed, 1 + strategy.rank)
    content: dict[str, Any] = {"job": card["job_digest"], "vocabulary": store.vocabulary.digest}
    content |= {"vocabulary_size": len(store.vocabulary)}
    content |= {"columns": store.columns, "context_length": context, "labelled": labels is not None}
    return trainer, job, inputs, content, trackers


def input_digests(job: TrainJob, labels: Path | None) -> dict[str, str]:
    """Name to digest of everything that a job reads."""
    inputs = {"store": TokenStore(job.store).manifest.digest}
    if job.start is not None:
        inputs["start"] = Run(job.start).manifest.digest
    if (folder := adapter_folder(job.adapter)) is not None:
        inputs["adapter"] = digest_of(file_digests(folder))
    if labels is not None:
        inputs |= {f"labels/{name}": file_digest(labels / f"{name}.parquet") for name in label_splits(labels)}
    return inputs


def is_made(job: TrainJob, world_size: int) -> bool:
    """Whether ``job.output`` is the finished run of this very job (with the model's settings as they are in it)."""
    try:
        found = Run(job.output).manifest.content.get("job")
    except FormatError:
        return False
    return bool(found == job.digest(input_digests(job, Path(job.labels) if job.labels else None), world_size))


def _labels(job: TrainJob, labelled: bool) -> Path | None:
    if not labelled:
        return None
    if job.labels is None:
        raise ConfigError(f"objective {job.objective.name!r} learns from labels; give labels=DIR")
    return Path(job.labels)


def _spawn(job: TrainJob, size: int) -> None:
    """Run the job in processes of its own and wait for them; raise the first error of any."""
    if job.strategy.name == "single":
        raise ConfigError(f"strategy=single is one process, and world_size is {size}; use strategy=ddp")
    with tempfile.TemporaryDirectory(prefix="ehr-train-") as name:
        place = Path(name)
        write_json(place / "job.json", job.to_plain())
        threads = str(max((os.cpu_count() or size) // size, 1))
        # The reducer warns each time that unused parameters are allowed and there are none; errors stay.
        defaults = {"OMP_NUM_THREADS": threads, "TORCH_CPP_LOG_LEVEL": "ERROR"}
        shared = {**defaults, **os.environ, RENDEZVOUS: str(place / "meeting"), "WORLD_SIZE": str(size)}
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(size):
                workers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "ehr_train.worker", str(place)],
                        env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.PIPE,  # a worker ends when this pipe does: no orphans after a kill
                        start_new_session=True,  # Ctrl-C is for us; we end the workers
                    )
                )
            _wait(workers, place, job)
        finally:
            _end(workers)


def _wait(workers: list[subprocess.Popen[bytes]], place: Path, job: TrainJob) -> None:
    while any(worker.poll() is None for worker in workers):
        if any(worker.poll() for worker in workers):
            break
        time.sleep(0.05)
    if not any(worker.poll() for worker in workers):
        return
    killed = [(rank, -worker.returncode) for rank, worker in enumerate(workers) if (worker.poll() or 0) < 0]
    if killed:
        rank, number = killed[0]
        raise EhrError(
            f"process {rank} of {len(workers)} was ended by {signal.Signals(number).name}; it may have run out of "
            "memory: use a smaller train.batch_size. The same command continues from the last checkpoint"
        )
    time.sleep(0.5)  # the rank that failed first has written first; the others fail because it is gone
    reports = sorted(place.glob("error_*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not reports:
        raise EhrError(f"a process of {len(workers)} ended without saying why")
    report = json.loads(reports[0].read_text())
    traceback = report.get("traceback")
    if traceback:
        path = running(Path(job.output)) / "logs" / f"error_rank_{report['rank']}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback)
        report["message"] += f"; its traceback is in {path}"
    raise revive(report["kind"], report["message"])


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        try:
            worker.wait(5)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        if worker.stdin:
            worker.stdin.close()


__all__ = ["TrainJob", "processes", "serving", "train", "train_here"]
