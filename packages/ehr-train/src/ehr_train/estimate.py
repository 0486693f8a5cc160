"""How large a job is and how long it will take, before it runs."""

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from ehr_core.plugins import build

from ehr_train import checkpoint
from ehr_train.check import check_job
from ehr_train.devices import autocast
from ehr_train.job import TrainJob
from ehr_train.learner import Learner
from ehr_train.loader.feed import Share, num_steps
from ehr_train.loader.rows import Rows
from ehr_train.prepare import Parts
from ehr_train.settings import TrainConfig
from ehr_train.trainer import total_steps

PROBE_SECONDS = 3.0
"""A probe ends after the first micro-batch that is over later than this."""
PROBES = 4
EVALUATION = 1 / 3
"""Work of a forward pass, as a share of that of forward and backward."""


def estimate(job: TrainJob, world_size: int = 1, parts: Parts | None = None, sampled: float = 1.0) -> dict[str, Any]:
    """Size of a job, and seconds that it will take on this machine.

    ``parameters`` and ``trainable``; ``rows`` of an epoch and ``rows_per_step``; ``steps`` and ``steps_per_epoch``;
    ``tokens`` over all steps; ``seconds``, and ``seconds_per_row`` of one process. Time is measured: after one
    micro-batch to warm up, a few are passed forward and backward, and the rest is arithmetic, evaluations included at a
    third of their rows. Early stopping is not foreseen, and processes are taken not to slow each other down. Everything
    that `check_job` refuses is refused. ``parts`` are what it returned, where it was called already; their learner is
    used up. A store that holds a sample of the records says with ``sampled`` how large a part of them.
    """
    parts = parts or check_job(job, world_size)
    assert parts is not None
    settings, rows = job.train, parts.train.epoch(0)
    share = Share(0, world_size, settings.batch_size, settings.accumulate)
    count = round(len(rows) / sampled)
    tuning = round(len(parts.tuning.evaluation()) / sampled) if parts.tuning else 0
    each = seconds_per_row(job, parts.learner, rows)
    parameters = parts.learner.parameters_by_kind()
    steps, work = amount(settings, share, count, tuning)
    trained = steps * min(share.rows, count)
    return {
        "parameters": parameters["total"],
        "trainable": parameters["trainable"],
        "rows": count,
        "rows_per_step": share.rows,
        "steps": steps,
        "steps_per_epoch": num_steps(count, share),
        "tokens": round(float(rows.tokens_R.mean()) * trained),
        "seconds_per_row": each,
        "seconds": round(each * work / world_size, 1),
    }


def amount(settings: TrainConfig, share: Share, rows: int, tuning: int) -> tuple[int, float]:
    """Optimizer steps, and the work of all of them and of the evaluations, in rows that pass forward and backward."""
    per_epoch = num_steps(rows, share)
    steps = total_steps(settings, per_epoch)
    evaluations = -(-steps // (settings.eval_every or per_epoch))
    return steps, steps * min(share.rows, rows) + evaluations * tuning * EVALUATION


def seconds_per_row(job: TrainJob, learner: Learner, rows: Rows) -> float:
    """Seconds that one process needs for forward and backward of a row, measured; no generator is moved."""
    random = checkpoint.random_state()
    strategy = build("strategy", dataclasses.replace(job.strategy))
    device = strategy.device
    learner = learner.to(device).train()
    context = autocast(job.train.precision, device)
    size, begun, took, done = min(job.train.batch_size, len(rows)), time.monotonic(), 0.0, 0
    for number in range(1 + PROBES):
        started = time.monotonic()
        chosen = (number * size + np.arange(size)) % len(rows)
        with context:
            loss = learner(rows.batch(chosen).to(device))
        loss.total.backward()
        learner.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number or time.monotonic() - begun > PROBE_SECONDS:
            took, done = took + time.monotonic() - started, done + size
        if time.monotonic() - begun > PROBE_SECONDS:
            break
    checkpoint.set_random_state(random)
    return took / done


def describe_estimate(found: dict[str, Any]) -> str:
    """One line for people."""
    return (
        f"{found['parameters']:,} parameters ({found['trainable']:,} trained), {found['steps']:,} steps of "
        f"{found['rows_per_step']:,} rows, {found['tokens']:,} tokens, about {duration(found['seconds'])}"
    )


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for limit, size, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 86_400:.3g} days"
