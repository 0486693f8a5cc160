"""The training loop.

Losses are sums and counts. Gradients of sums are accumulated over micro-batches and divided by the count over all ranks
before clipping, so N ranks with k micro-batches take the same step as one rank with one big batch. Nothing in the loop
waits for the device except where metrics are logged. Where the learner and its state live is the strategy's affair;
every rank makes the same calls in the same order.
"""

import math
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ehr_core.batch import Loss
from ehr_core.errors import EhrError
from ehr_core.progress import Progress

from ehr_train.devices import autocast
from ehr_train.learner import Learner
from ehr_train.loader.feed import Feed, Share, Step, micro_batches, num_steps, steps
from ehr_train.loader.rows import Rows
from ehr_train.loader.samples import Samples
from ehr_train.loader.windows import Windows
from ehr_train.optim import learning_rate, make_optimizer
from ehr_train.processes.group import shared
from ehr_train.processes.stops import Stopped, Stops
from ehr_train.saving import Checkpoints, State, Sums, add, means_of, numbers
from ehr_train.settings import TrainConfig


class Trainer:
    """Trains a learner on one split and compares losses on another; every rank has one and runs the same steps."""

    def __init__(
        self,
        learner: Learner,
        strategy: Any,
        settings: TrainConfig,
        train: Windows | Samples,
        tuning: Windows | Samples | None,
        checkpoints: Checkpoints,
    ):
        self.settings, self.strategy, self.data, self.checkpoints = settings, strategy, train, checkpoints
        self.device, self.learner = strategy.device, learner
        self.log_to: Callable[[int, dict[str, float]], Any] = lambda step, values: None
        """Called with a step and its metrics."""
        self.parameters = learner.parameters_by_kind()
        self.share = Share(strategy.rank, strategy.world_size, settings.batch_size, settings.accumulate)
        self.per_epoch = num_steps(len(train.epoch(0)), self.share)
        self.total = total_steps(settings, self.per_epoch)
        self.tuning = tuning.evaluation() if tuning else None
        self.placed = strategy.place(learner)
        self.optimizer = make_optimizer(learner, settings)
        self.autocast = autocast(settings.precision, self.device)
        self.state = State()
        self.sums: Sums = {}
        self.bad_step = torch.zeros((), dtype=torch.int64, device=self.device)
        self.saved_at = time.monotonic()
        if settings.compile:
            learner.model.compile()

    def fit(self, stops: Stops) -> None:
        """Train until the last step or until patience ends. After a signal: a checkpoint, and `Stopped` is raised."""
        state, settings = self.state, self.settings
        feed = Feed(steps(self.data, self.share, state.epoch, state.index), pin=self.device.type == "cuda")
        bar = Progress("training", self.total, "steps") if self.strategy.rank == 0 else None
        started = time.monotonic() - state.seconds
        try:
            while state.step < self.total and not state.stopped:
                step = next(feed)
                self.update(step)
                over = state.step == self.total
                state.seconds = time.monotonic() - started
                if state.step % settings.log_every == 0 or over:
                    self.log_metrics()
                if step.last:
                    self.checkpoints.epoch(step.epoch + 1, state.step, settings.keep_epochs)
                evaluating = over or (step.last if not settings.eval_every else state.step % settings.eval_every == 0)
                if evaluating:
                    self.evaluate()
                stop, late = self.agree(stops)
                if evaluating or late or stop:
                    self.save()
                if stop and not over and not state.stopped:
                    self.stop(stops)
                if bar:
                    losses = [entry["loss"] for entry in state.history[-2:] if "loss" in entry]
                    bar.update(1, f"loss {losses[-1]:.4f}" if losses else "")
        finally:
            feed.close()
            if bar:
                bar.close()
        state.stopped = state.stopped or "all steps done"

    def update(self, step: Step) -> None:
        """One optimizer step."""
        state = self.state
        self.learner.train()
        local = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, (batch, weight) in enumerate(zip(step.micro, step.weights, strict=True)):
            with self.strategy.accumulate(self.placed, number == len(step.micro) - 1):
                with self.autocast:
                    loss: Loss = self.placed(batch.to(self.device))
                (loss.total * weight).backward()
            if weight:
                local += torch.stack([loss.total.detach().double(), loss.count.detach().double()])
                add(self.sums, loss.parts)
        both = self.strategy.sum(local)
        rate = learning_rate(self.settings, state.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        scale = (self.share.world_size / both[1].clamp(min=1.0)).float()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = self.strategy.clip(parameters, scale, self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += step.tokens
        state.epoch, state.index = (step.epoch + 1, 0) if step.last else (step.epoch, step.index + 1)
        fine = torch.isfinite(both[0]) & torch.isfinite(norm)
        self.bad_step = torch.where((self.bad_step == 0) & ~fine, state.step, self.bad_step)
        once = float(self.share.rank == 0)  # these are over all ranks already
        add(
            self.sums, {"loss": (both[0] * once, both[1] * once), "gradient_norm": (norm * once, norm.new_tensor(once))}
        )

    def agree(self, stops: Stops) -> tuple[bool, bool]:
        """Whether to stop, and whether a checkpoint is due; the same on every rank, and the device is not asked."""
        every, step = self.settings.checkpoint_every, self.state.step
        late = time.monotonic() - self.saved_at > self.settings.checkpoint_every_seconds
        flags = torch.tensor([float(stops.number > 0), float(late and self.share.rank == 0)])
        stop, due = (value > 0 for value in self.strategy.sum(flags).tolist())
        return stop, due or bool(every and step % every == 0)

    def stop(self, stops: Stops) -> None:
        """Raise `Stopped` on every rank, once rank 0 has written the checkpoint."""
        self.strategy.gather(None)
        raise shared(
            Stopped(
                f"stopped after step {self.state.step} of {self.total}; all of it is kept in "
                f"{self.checkpoints.folder}, and the same command goes on from there",
                stops.clear() or signal.SIGTERM,
            )
        )

    def check_finite(self) -> None:
        """Raise on every rank, naming the first step whose loss or gradient was not finite."""
        bad = int(self.bad_step)
        if bad:
            raise shared(
                EhrError(
                    f"the loss or its gradient is not finite at step {bad}; the last checkpoint is from before. "
                    "Lower train.learning_rate, raise train.warmup_steps, or use train.precision=fp32"
                )
            )

    def log_metrics(self) -> None:
        """Means since the last entry, over all ranks, into the history."""
        self.check_finite()
        means = means_of(self.strategy.gather(numbers(self.sums)))
        self.sums = {}
        rate = learning_rate(self.settings, self.state.step - 1, self.total)
        self.record({**means, "learning_rate": rate})

    def record(self, values: dict[str, float]) -> None:
        """An entry of the history, and of the trackers."""
        state = self.state
        epoch = state.epoch + state.index / self.per_epoch
        self.state.history.append({"step": state.step, "epoch": round(epoch, 6), **values})
        speed = {"tokens_per_second": state.tokens / state.seconds} if state.seconds else {}
        self.log_to(state.step, {"epoch": epoch, **values, **speed})

    def evaluate(self) -> None:
        """Loss on the tuning split, divided among ranks; keeps the best weights and counts towards patience."""
        self.check_finite()
        state = self.state
        if self.tuning is None:
            self.keep_best()
            return
        means = means_of(self.strategy.gather(numbers(self.score(self.tuning))))
        self.record({f"tuning_{name}": value for name, value in means.items()})
        loss = means.get("loss", math.nan)
        if not math.isfinite(loss):
            raise shared(EhrError(f"the loss on the tuning split is not a number at step {state.step}"))
        if state.best_loss is None or loss < state.best_loss:
            state.best_loss, state.worse = loss, 0
            self.keep_best()
        else:
            state.worse += 1
            if self.settings.patience is not None and state.worse >= self.settings.patience:
                state.stopped = f"no better tuning loss in {state.worse} evaluations"

    @torch.no_grad()
    def score(self, rows: Rows) -> Sums:
        """Sums over this rank's share of the rows, without randomness; as many forward passes on every rank."""
        self.learner.eval()
        sums: Sums = {}
        for part in micro_batches(np.arange(len(rows)), self.share):
            batch = rows.batch(part if len(part) else np.arange(1)).to(self.device)
            with self.autocast:
                loss: Loss = self.placed(batch)
            if len(part):
                add(sums, {"loss": (loss.total, loss.count), **loss.parts})
        return sums

    def keep_best(self) -> None:
        """Remember this step's weights as the best."""
        self.state.best_step = self.state.step
        self.checkpoints.best(self.state.step)

    def save(self) -> None:
        """Write the checkpoint from which training continues bit for bit."""
        self.check_finite()
        self.checkpoints.latest(self.state, self.optimizer, self.sums, self.total)
        self.saved_at = time.monotonic()

    def resume(self) -> bool:
        """Continue from ``latest.pt`` when there is one. Raises FormatError for the checkpoint of another job."""
        found = self.checkpoints.resume(self.optimizer)
        if found is not None:
            self.state, self.sums = found
        return found is not None


def total_steps(settings: TrainConfig, per_epoch: int) -> int:
    """Optimizer steps that settings ask for."""
    limits = [settings.max_steps, settings.max_epochs and settings.max_epochs * per_epoch]
    return min((limit for limit in limits if limit is not None), default=10 * per_epoch)
