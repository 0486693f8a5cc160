"""The training loop.

Losses are sums and counts. Gradients of sums are accumulated over micro-batches and divided by the count over all ranks
before clipping, so N ranks with k micro-batches take the same step as one rank with one big batch. Nothing in the loop
waits for the device except where metrics are logged.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ehr_core.batch import Loss
from ehr_core.errors import EhrError, FormatError
from ehr_core.formats.folder import write_json
from ehr_core.progress import Progress

from ehr_train import checkpoint
from ehr_train.data import Rows, Samples, Windows
from ehr_train.feed import Feed, Share, Step, num_steps, steps
from ehr_train.group import shared
from ehr_train.learner import Learner, autocast
from ehr_train.optim import learning_rate, make_optimizer, scale_and_clip
from ehr_train.settings import TrainConfig

Sums = dict[str, torch.Tensor]
"""Name to (sum, count), float64, on the device."""


@dataclasses.dataclass
class State:
    """Where training is. With weights, optimizer and generators it is all that a checkpoint holds."""

    step: int = 0
    epoch: int = 0
    index: int = 0
    """Next global batch of the epoch."""
    best_loss: float | None = None
    best_step: int = 0
    worse: int = 0
    """Evaluations since the best one."""
    stopped: str = ""
    """Why training is over."""
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


class Trainer:
    """Trains a learner on one split and compares losses on another; every rank has one and runs the same steps."""

    def __init__(
        self,
        learner: Learner,
        strategy: Any,
        settings: TrainConfig,
        train: Windows | Samples,
        tuning: Windows | Samples | None,
        folder: Path,
        card: dict[str, Any],
        log: Callable[[int, dict[str, float]], None],
    ):
        """``card`` is kept in every checkpoint as it is; ``log`` is called on rank 0 with a step and its metrics."""
        self.settings, self.strategy, self.data, self.card, self.log_to = settings, strategy, train, card, log
        self.folder, self.device = folder, strategy.device
        self.learner = learner.to(self.device)
        self.parameters = learner.parameters_by_kind()
        self.share = Share(strategy.rank, strategy.world_size, settings.batch_size, settings.accumulate)
        self.per_epoch = num_steps(train.epoch(0), self.share)
        limits = [settings.max_steps, settings.max_epochs and settings.max_epochs * self.per_epoch]
        self.total = min((limit for limit in limits if limit is not None), default=10 * self.per_epoch)
        self.tuning = tuning.evaluation() if tuning else None
        self.optimizer = make_optimizer(self.learner, settings)
        self.autocast = autocast(settings.precision, self.device)
        self.state = State()
        self.sums: Sums = {}
        self.bad_step = torch.zeros((), dtype=torch.int64, device=self.device)
        self.saved_at = time.monotonic()
        if settings.compile:
            self.learner.model.compile()

    def fit(self) -> None:
        """Train until the last step or until patience ends."""
        state, settings = self.state, self.settings
        wrapped = self.strategy.wrap(self.learner)
        feed = Feed(steps(self.data, self.share, state.epoch, state.index), pin=self.device.type == "cuda")
        bar = Progress("training", self.total, "steps") if self.strategy.rank == 0 else None
        started = time.monotonic() - state.seconds
        try:
            while state.step < self.total and not state.stopped:
                step = next(feed)
                self.update(wrapped, step)
                over = state.step == self.total
                state.seconds = time.monotonic() - started
                if state.step % settings.log_every == 0 or over:
                    self.log_metrics()
                if step.last:
                    self.keep_epoch(step.epoch)
                if over or (step.last if settings.eval_every is None else state.step % settings.eval_every == 0):
                    self.evaluate()
                    self.save()
                elif self.checkpoint_due():
                    self.save()
                if bar:
                    losses = [entry["loss"] for entry in state.history[-2:] if "loss" in entry]
                    bar.update(1, f"loss {losses[-1]:.4f}" if losses else "")
        finally:
            feed.close()
            if bar:
                bar.close()
        state.stopped = state.stopped or "all steps done"

    def update(self, wrapped: torch.nn.Module, step: Step) -> None:
        """One optimizer step."""
        state = self.state
        self.learner.train()
        local = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(step.micro):
            last = number == len(step.micro) - 1
            with self.strategy.accumulate(wrapped, last):
                with self.autocast:
                    loss: Loss = wrapped(batch.to(self.device))
                (loss.total * step.weight).backward()
            local += torch.stack([loss.total.detach().double(), loss.count.detach().double()]) * step.weight
            if step.weight:
                add(self.sums, loss.parts)
        if state.step == 0:
            self.check_gradients()
        both = self.strategy.sum(local)
        count = both[1].clamp(min=1.0)
        rate = learning_rate(self.settings, state.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = scale_and_clip(self.optimizer, (self.share.world_size / count).float(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += step.tokens
        state.epoch, state.index = (step.epoch + 1, 0) if step.last else (step.epoch, step.index + 1)
        fine = torch.isfinite(both[0]) & torch.isfinite(norm)
        self.bad_step = torch.where((self.bad_step == 0) & ~fine, state.step, self.bad_step)
        if self.share.rank == 0:  # already summed over ranks
            add(self.sums, {"loss": (both[0], both[1])})
            add(self.sums, {"gradient_norm": (norm, torch.ones_like(norm))})

    def check_gradients(self) -> None:
        """After the first step: parameters without a gradient would make ranks wait for each other."""
        if not getattr(self.strategy, "needs_all_gradients", False):
            return
        named = self.learner.named_parameters()
        missing = [name for name, parameter in named if parameter.requires_grad and parameter.grad is None]
        if missing:
            raise shared(
                EhrError(
                    f"{len(missing)} parameters get no gradient, the first is {missing[0]}; with several processes "
                    "give strategy.find_unused_parameters=true"
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
        """An entry of the history, and of the trackers on rank 0."""
        state = self.state
        epoch = state.epoch + state.index / self.per_epoch
        self.state.history.append({"step": state.step, "epoch": round(epoch, 6), **values})
        if self.strategy.rank == 0:
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
        """Sums over this rank's share of the rows, without randomness."""
        self.learner.eval()
        sums: Sums = {}
        size = self.settings.batch_size
        for start in range(self.share.rank * size, len(rows), size * self.share.world_size):
            batch = rows.batch(np.arange(start, min(start + size, len(rows)))).to(self.device)
            with self.autocast:
                loss: Loss = self.learner(batch)
            add(sums, {"loss": (loss.total, loss.count), **loss.parts})
        return sums

    def checkpoint_due(self) -> bool:
        """Whether settings ask for a checkpoint now; all ranks agree."""
        every = self.settings.checkpoint_every
        if every is not None and self.state.step % every == 0:
            return True
        if self.state.step % self.settings.log_every:
            return False
        late = time.monotonic() - self.saved_at > self.settings.checkpoint_every_seconds
        return bool(self.strategy.gather(late)[0])

    def content(self) -> dict[str, Any]:
        """What every checkpoint holds."""
        return {**self.card, **self.learner.weights(), "step": self.state.step}

    def keep_best(self) -> None:
        """Write ``best_model.pt``."""
        self.state.best_step = self.state.step
        if self.strategy.rank == 0:
            checkpoint.write(self.folder / "checkpoints" / "best_model.pt", self.content())

    def keep_epoch(self, epoch: int) -> None:
        """Write ``checkpoint_epoch_N.pt`` (N counts from 1), and drop the oldest beyond ``keep_epochs``."""
        if self.strategy.rank == 0 and self.settings.keep_epochs > 0:
            folder = self.folder / "checkpoints"
            checkpoint.write(folder / f"checkpoint_epoch_{epoch + 1}.pt", self.content())
            for old in folder.glob("checkpoint_epoch_*.pt"):
                if int(old.stem.rpartition("_")[2]) <= epoch + 1 - self.settings.keep_epochs:
                    old.unlink()

    def save(self) -> None:
        """Write ``latest.pt`` and the history, from which training continues bit for bit."""
        self.check_finite()
        ranks = self.strategy.gather(
            {"random": checkpoint.random_state(), "sums": {name: both.cpu() for name, both in self.sums.items()}}
        )
        if self.strategy.rank == 0:
            content = self.content() | {
                "optimizer": self.optimizer.state_dict(),
                "schedule": {"step": self.state.step, "total": self.total},
                "state": dataclasses.asdict(self.state),
                "ranks": ranks,
            }
            checkpoint.write(self.folder / "checkpoints" / "latest.pt", content)
            write_json(self.folder / "logs" / "metrics_history.json", self.state.history)
        self.saved_at = time.monotonic()

    def resume(self) -> bool:
        """Continue from ``latest.pt`` when there is one. Raises FormatError for the checkpoint of another job."""
        path = self.folder / "checkpoints" / "latest.pt"
        if not path.is_file():
            return False
        found = checkpoint.read(path)
        if found.get("job_digest") != self.card["job_digest"]:
            raise FormatError(
                f"{self.folder} holds an unfinished run of another job (settings, data or number of processes "
                "differ); give another output, or remove that folder"
            )
        self.learner.restore(found, path)
        self.optimizer.load_state_dict(found["optimizer"])
        self.state = State(**found["state"])
        mine = found["ranks"][self.strategy.rank]
        self.sums = {name: both.to(self.device) for name, both in mine["sums"].items()}
        checkpoint.set_random_state(mine["random"])
        return True


def add(sums: Sums, parts: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Add (sum, count) pairs by name, on the device."""
    for name, (total, count) in parts.items():
        both = torch.stack([total.detach().double(), torch.as_tensor(count, device=total.device).double()])
        sums[name] = sums[name] + both if name in sums else both


def numbers(sums: Sums) -> dict[str, tuple[float, float]]:
    """Sums as Python numbers; waits for the device."""
    return {name: (float(both[0]), float(both[1])) for name, both in sums.items()}


def means_of(ranks: list[dict[str, tuple[float, float]]]) -> dict[str, float]:
    """Means over all ranks by name; what was counted nowhere, or is not a number, is left out."""
    means = {}
    for name in sorted({name for rank in ranks for name in rank}):
        total = sum(rank[name][0] for rank in ranks if name in rank)
        count = sum(rank[name][1] for rank in ranks if name in rank)
        if count and math.isfinite(total):
            means[name] = total / count
    return means
