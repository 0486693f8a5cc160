"""Where training is, and the checkpoints that hold it. Every method is a collective; rank 0 writes the files."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from ehr_core.errors import FormatError
from ehr_core.formats.folder import write_json

from ehr_train import checkpoint
from ehr_train.learner import Learner

Natural = Annotated[int, msgspec.Meta(ge=0)]
Sums = dict[str, torch.Tensor]
"""Name to (sum, count), float64, on the device."""


@dataclasses.dataclass
class State:
    """Where training is. With weights, optimizer and generators it is all that a checkpoint holds."""

    step: Natural = 0
    epoch: Natural = 0
    index: Natural = 0
    """Next global batch of the epoch."""
    best_loss: float | None = None
    best_step: Natural = 0
    worse: Natural = 0
    """Evaluations since the best one."""
    stopped: str = ""
    """Why training is over."""
    tokens: Natural = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


class Rank(msgspec.Struct):
    """What each process adds to ``latest.pt``."""

    random: dict[str, Any]
    sums: dict[str, torch.Tensor]


class Latest(checkpoint.Weights, kw_only=True):
    """``latest.pt``."""

    optimizer: dict[str, Any]
    """As the strategy wrote it, and checks it."""
    state: State
    ranks: Annotated[list[Rank], msgspec.Meta(min_length=1)]


class Checkpoints:
    """The checkpoints of one run.

    They hold whole tensors under the names of a learner on one device, so that any strategy and any number of processes
    goes on from them. With the same number of processes it goes on bit for bit: each rank takes up its generators.
    With another number there are no such generators; every rank then starts its own from (seed, step, number of
    processes, rank), which is as good and the same each time, but draws other dropout than the run would have drawn.
    """

    def __init__(self, folder: Path, header: dict[str, Any], strategy: Any, learner: Learner, seed: int, rows: int):
        """``header`` is kept in every checkpoint as it is; ``rows`` are those of a global batch."""
        self.folder, self.header, self.strategy, self.learner = folder / "checkpoints", header, strategy, learner
        self.seed, self.rows = seed, rows

    def content(self, step: int) -> dict[str, Any]:
        """What every checkpoint holds; complete on rank 0."""
        return {**self.header, **self.learner.weights(self.strategy.weights), "step": step}

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a file, on rank 0."""
        if self.strategy.rank == 0:
            checkpoint.write(self.folder / name, content)

    def best(self, step: int) -> None:
        """Write ``best_model.pt``."""
        self.write("best_model.pt", self.content(step))

    def epoch(self, number: int, step: int, keep: int) -> None:
        """Write ``checkpoint_epoch_N.pt`` (N counts from 1), and drop the oldest beyond the ``keep`` latest."""
        if keep < 1:
            return
        self.write(f"checkpoint_epoch_{number}.pt", self.content(step))
        for old in self.folder.glob("checkpoint_epoch_*.pt") if self.strategy.rank == 0 else ():
            if int(old.stem.rpartition("_")[2]) <= number - keep:
                old.unlink()

    def latest(self, state: State, optimizer: torch.optim.Optimizer, sums: Sums, total: int) -> None:
        """Write ``latest.pt``, from which training goes on, and the history beside it."""
        rank = {"random": checkpoint.random_state(), "sums": {name: both.cpu() for name, both in sums.items()}}
        content = self.content(state.step) | {
            "optimizer": self.strategy.optimizer_state(self.learner, optimizer),
            "schedule": {"step": state.step, "total": total},
            "state": dataclasses.asdict(state),
            "ranks": self.strategy.gather(rank),
        }
        self.write("latest.pt", content)
        if self.strategy.rank == 0:
            write_json(self.folder.parent / "logs" / "metrics_history.json", state.history)

    def resume(self, optimizer: torch.optim.Optimizer) -> tuple[State, Sums] | None:
        """Take up ``latest.pt``: weights, optimizer and generators here; None when there is none.

        Raises FormatError for the checkpoint of another job.
        """
        path = self.folder / "latest.pt"
        if not path.is_file():
            return None
        content = checkpoint.read(path)
        if content.get("job_digest") != self.header["job_digest"]:
            raise FormatError(
                f"{self.folder.parent} holds an unfinished run of another job: settings, data or the global batch "
                f"differ (this one takes {self.rows} rows a step: train.batch_size x train.accumulate x world_size); "
                "give another output, or remove that folder"
            )
        found = checkpoint.as_type(content, Latest, path)  # all of it, before anything is put into its place
        if any(both.shape != (2,) for rank in found.ranks for both in rank.sums.values()):
            raise FormatError(f"{path} is not a checkpoint as it is written: sums are pairs of a sum and a count")
        self.learner.restore(content, path, self.strategy.load_weights)
        try:
            self.strategy.restore_optimizer(self.learner, optimizer, found.optimizer)
            return found.state, self._take_up(found.ranks, found.state.step)
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise FormatError(f"{path} cannot be gone on from: {words}; remove it to begin anew") from error

    def _take_up(self, ranks: list[Rank], step: int) -> Sums:
        """Set this rank's generators; returns what it had summed up for the next entry of the history."""
        rank, size = self.strategy.rank, self.strategy.world_size
        if len(ranks) == size:
            checkpoint.set_random_state(ranks[rank].random)
            return {name: both.to(self.strategy.device) for name, both in ranks[rank].sums.items()}
        checkpoint.seed_all(self.seed, step, size, rank)
        sums: Sums = {}
        for each in ranks if rank == 0 else ():
            add(sums, {name: (both[0], both[1]) for name, both in each.sums.items()})
        return {name: both.to(self.strategy.device) for name, both in sums.items()}


def add(sums: Sums, parts: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
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
