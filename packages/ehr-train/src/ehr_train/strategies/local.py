"""``single`` and ``ddp``: one process, or a copy of the learner in each of several."""

import contextlib
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from ehr_core.errors import EhrError
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ehr_train.devices import choose_device
from ehr_train.processes.group import Group, shared
from ehr_train.settings import DdpConfig, SingleConfig
from ehr_train.strategies.base import Replicated


class Single(Replicated):
    """One process, one device."""

    def __init__(self, settings: SingleConfig):
        super().__init__(settings, choose_device(settings.device))


class Ddp(Replicated):
    """DistributedDataParallel: gloo on CPU, NCCL on CUDA; alone it does what `Single` does.

    A parameter that gets no gradient on some rank would leave the others waiting for it: after the first step such
    parameters are an error with their names; ``find_unused_parameters=true`` allows them.
    """

    max_processes = None

    def __init__(self, settings: DdpConfig):
        self.settings = settings
        super().__init__(settings, choose_device(settings.device, Group.join().local_rank))
        self.unchecked: dict[nn.Parameter, str] = {}

    def place(self, learner: nn.Module) -> nn.Module:
        """The learner behind DDP, with rank 0's parameters everywhere."""
        learner = super().place(learner)
        if self.world_size == 1:
            return learner
        if not self.settings.find_unused_parameters:
            self.unchecked = {p: name for name, p in learner.named_parameters() if p.requires_grad}
        # Buffers are the same everywhere and need no broadcast a step; newer torch has another word for that.
        known = inspect.signature(DistributedDataParallel).parameters
        word = next(name for name in ("forward_sync_buffers", "broadcast_buffers") if name in known)
        quiet: dict[str, Any] = {word: False}
        return DistributedDataParallel(
            learner,
            gradient_as_bucket_view=True,
            find_unused_parameters=self.settings.find_unused_parameters,
            **quiet,
        )

    def accumulate(self, placed: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Reduce once, with the last micro-batch.

        With unused parameters allowed every micro-batch reduces: one that is used early and not in the last
        micro-batch would otherwise keep its local gradient.
        """
        if isinstance(placed, DistributedDataParallel) and not last and not self.settings.find_unused_parameters:
            return placed.no_sync()
        return contextlib.nullcontext()

    def clip(self, parameters: Sequence[nn.Parameter], scale: torch.Tensor, limit: float) -> torch.Tensor:
        """Raises EhrError, on every rank, when parameters got no gradient in the first step."""
        missing = [name for parameter, name in self.unchecked.items() if parameter.grad is None]
        self.unchecked = {}
        if missing:
            raise shared(
                EhrError(
                    f"{len(missing)} parameters get no gradient, the first is {missing[0]}; with several processes "
                    "give strategy.find_unused_parameters=true"
                )
            )
        return super().clip(parameters, scale, limit)
