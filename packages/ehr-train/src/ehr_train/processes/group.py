"""Processes that belong together: who is there, and how rank 0 leads while the others wait for work.

Under ``torchrun`` (or SLURM with its variables set) every process enters `ehr_train.launch.serving`: rank 0 runs its
program, the others serve, and each training job that rank 0 comes to is run by all of them together.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from ehr_core import errors
from ehr_core.errors import EhrError

Result = TypeVar("Result")
WAIT = datetime.timedelta(days=30)
"""How long the others wait while rank 0 tokenizes or evaluates."""
RENDEZVOUS = "EHR_TRAIN_RENDEZVOUS"
"""Environment variable: file through which processes of one machine meet (else torchrun's variables are used)."""


class Group:
    """The processes of this program, by rank."""

    active: "Group | None" = None

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, control: Any = None):
        self.rank, self.size, self.local_rank, self.control = rank, size, local_rank, control
        self.leading = False
        self.busy = False

    @classmethod
    def join(cls) -> "Group":
        """The group that the environment describes; of one when it describes none. A second call gives the same."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if cls.active is not None or size == 1:
            return cls.active or cls()
        rank, local_rank = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(local_rank % torch.cuda.device_count())
        meeting = os.environ.get(RENDEZVOUS)
        if meeting:
            dist.init_process_group(backend, init_method=f"file://{meeting}", rank=rank, world_size=size)
        else:
            dist.init_process_group(backend)
        cls.active = cls(rank, size, local_rank, dist.new_group(backend="gloo", timeout=WAIT))
        return cls.active

    def leave(self) -> None:
        """Take the group down."""
        if Group.active is self:
            Group.active = None
            dist.destroy_process_group()

    def gather(self, value: Any) -> list[Any]:
        """Small values of all ranks, in order of rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def broadcast(self, value: Any) -> Any:
        """Rank 0 gives a value to all; the others call it to receive."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def together(self, work: Callable[[], Result]) -> Result:
        """Do work on every rank; when it fails on one with an EhrError, all raise that error."""
        value: Result | None = None
        problem = None
        try:
            value = work()
        except EhrError as error:
            if self.size == 1:
                raise
            problem = (type(error).__name__, str(error))
        problems = [found for found in self.gather(problem) if found]
        if problems:
            raise shared(revive(*problems[0]))
        return value  # type: ignore[return-value]

    @contextlib.contextmanager
    def leading_others(self) -> Iterator[None]:
        """Rank 0 works in this context; the others hear that it is over when it ends, also with an error."""
        self.leading = self.size > 1
        try:
            yield
        finally:
            # In the middle of a job that only rank 0 left, the others are not listening: they end with this process.
            if self.leading and not self.busy:
                self.broadcast(None)
            self.leading = False

    def serve(self, run_job: Callable[[Any], Any]) -> None:
        """On ranks above 0: run the jobs that rank 0 broadcasts until it is over."""
        while (job := self.broadcast(None)) is not None:
            try:
                run_job(job)
            except EhrError as error:
                if not is_shared(error):  # rank 0 does not know; it must not go on alone
                    print(f"rank {self.rank}: error: {error}", file=sys.stderr)
                    raise SystemExit(1) from None


Error = TypeVar("Error", bound=EhrError)


def shared(error: Error) -> Error:
    """Mark an error that every rank raises at the same place."""
    vars(error)["shared"] = True
    return error


def is_shared(error: EhrError) -> bool:
    """Whether every rank raised it."""
    return getattr(error, "shared", False)


def revive(kind: str, message: str) -> EhrError:
    """An EhrError of another process, from the name of its class and its message."""
    found = getattr(errors, kind, EhrError)
    return found(message) if isinstance(found, type) and issubclass(found, EhrError) else EhrError(message)
