"""Batches in order, made ahead of time by one background thread.

Global batch b of an epoch is rows ``b*G`` to ``(b+1)*G``; rank r of W takes every W-th of them from r on and works
through them in micro-batches. So which rows make an optimizer step depends on the global batch size G only, and a place
in the data is (epoch, batch), whatever the number of processes. The last, incomplete global batch is dropped unless it
is the only one. Every rank has as many micro-batches: one without rows of its own borrows one and counts it zero times.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from ehr_core.batch import Batch

from ehr_train.loader.samples import Samples
from ehr_train.loader.windows import Windows


@dataclass(frozen=True)
class Step:
    """What one rank does for one optimizer step."""

    epoch: int
    index: int
    """Number of the global batch within its epoch."""
    last: bool
    """Whether the epoch ends with it."""
    micro: list[Batch]
    weights: list[float]
    """1 for each micro-batch, 0 for one that is there only so that every rank has as many."""
    tokens: int
    """Positions in use, over all ranks."""


@dataclass(frozen=True)
class Share:
    """How steps are divided among ranks and micro-batches."""

    rank: int
    world_size: int
    batch_size: int
    accumulate: int

    @property
    def rows(self) -> int:
        """Rows of a global batch."""
        return self.batch_size * self.accumulate * self.world_size


def num_steps(rows: int, share: Share) -> int:
    """Optimizer steps in an epoch of so many rows."""
    return max(rows // share.rows, 1)


def steps(data: Windows | Samples, share: Share, epoch: int, index: int) -> Iterator[Step]:
    """Steps from a place on, epoch after epoch without end."""
    while True:
        rows = data.epoch(epoch)
        tokens_R, total = rows.tokens_R, num_steps(len(rows), share)
        for number in range(index, total):
            everyone = np.arange(number * share.rows, min((number + 1) * share.rows, len(rows)))
            parts = micro_batches(everyone, share)
            micro = [rows.batch(part if len(part) else everyone[:1]) for part in parts]
            weights = [float(len(part) > 0) for part in parts]
            yield Step(epoch, number, number == total - 1, micro, weights, int(tokens_R[everyone].sum()))
        epoch, index = epoch + 1, 0


def micro_batches(rows: np.ndarray, share: Share) -> list[np.ndarray]:
    """This rank's part of some rows, divided into micro-batches; as many on every rank, so that some may be empty."""
    mine = rows[share.rank :: share.world_size]
    most = -(-len(rows) // share.world_size)
    return [mine[start : start + share.batch_size] for start in range(0, most, share.batch_size)]


class Feed:
    """The steps of a generator, a few of them made in advance; page-locked for a GPU."""

    def __init__(self, source: Iterator[Step], pin: bool, depth: int = 3):
        self._ready: queue.Queue[Step | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(source, pin), daemon=True, name="ehr-feed")
        self._thread.start()

    def _work(self, source: Iterator[Step], pin: bool) -> None:
        try:
            for step in source:
                self._put(_pinned(step) if pin else step)
                if self._stop.is_set():
                    return
        except BaseException as error:  # it is raised where the batch is asked for
            self._put(error)

    def _put(self, item: Step | BaseException) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def __next__(self) -> Step:
        found = self._ready.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()


def _pinned(step: Step) -> Step:
    def pin(batch: Batch) -> Batch:
        fields = {name: value.pin_memory() for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        columns = {name: value.pin_memory() for name, value in batch.columns.items()}
        return Batch(**fields, columns=columns)

    return Step(step.epoch, step.index, step.last, [pin(b) for b in step.micro], step.weights, step.tokens)
