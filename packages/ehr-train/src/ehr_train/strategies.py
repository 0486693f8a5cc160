"""Strategies: where a model lives, and how gradients of several processes become one."""

import contextlib
import inspect
from typing import Any

import torch
import torch.distributed as dist
from ehr_core.errors import ConfigError
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ehr_train.group import Group
from ehr_train.settings import DdpConfig, SingleConfig


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as a device. Raises ConfigError for a GPU that is not there."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device is {wanted!r}; it must be auto, cpu or cuda")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not there):
        return torch.device("cpu")
    if local_rank >= there:
        raise ConfigError(f"process {local_rank} of this machine finds {there} GPUs; use fewer processes or device=cpu")
    return torch.device("cuda", local_rank)


class Single:
    """One process, one device."""

    rank = 0
    world_size = 1

    def __init__(self, settings: SingleConfig):
        if Group.join().size > 1:
            raise ConfigError(f"strategy=single is one process, and there are {Group.join().size}; use strategy=ddp")
        self.device = choose_device(settings.device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def accumulate(self, wrapped: nn.Module, last: bool) -> Any:
        """Nothing to wait for."""
        return contextlib.nullcontext()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The values."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """The value of the only rank."""
        return [value]


class Ddp:
    """DistributedDataParallel: gloo on CPU, NCCL on CUDA; alone it does what `Single` does.

    A parameter that gets no gradient on some rank would leave the others waiting for it. The trainer looks for such
    parameters after the first step and stops with their names; ``find_unused_parameters=true`` allows them.
    """

    def __init__(self, settings: DdpConfig):
        self.settings = settings
        self.group = Group.join()
        self.rank, self.world_size = self.group.rank, self.group.size
        self.device = choose_device(settings.device, self.group.local_rank)
        self.needs_all_gradients = self.world_size > 1 and not settings.find_unused_parameters

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module behind DDP, whose parameters start as rank 0's."""
        if self.world_size == 1:
            return module
        # Buffers are the same everywhere and need no broadcast a step; newer torch has another word for that.
        known = inspect.signature(DistributedDataParallel).parameters
        buffers: dict[str, Any] = {
            name: False for name in ("forward_sync_buffers", "broadcast_buffers") if name in known
        }
        return DistributedDataParallel(
            module,
            gradient_as_bucket_view=True,
            find_unused_parameters=self.settings.find_unused_parameters,
            **dict([*buffers.items()][:1]),
        )

    def accumulate(self, wrapped: nn.Module, last: bool) -> Any:
        """Reduce once, with the last micro-batch.

        With unused parameters allowed every micro-batch reduces: one that is used early and not in the last
        micro-batch would otherwise keep its local gradient.
        """
        if isinstance(wrapped, DistributedDataParallel) and not last and not self.settings.find_unused_parameters:
            return wrapped.no_sync()
        return contextlib.nullcontext()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Small values of all ranks, in order of rank."""
        return self.group.gather(value)
