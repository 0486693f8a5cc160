"""``fsdp2``: parameters, gradients and optimizer state divided among processes, block by block."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ehr_train.devices import choose_device
from ehr_train.learner import Learner, blocks
from ehr_train.processes.group import Group
from ehr_train.settings import Fsdp2Config
from ehr_train.strategies.base import Replicated


class Fsdp2(Replicated):
    """torch's fully sharded data parallelism (``fully_shard``); alone it does what ``single`` does.

    Each block of the model, by the classes that it names in ``_no_split_modules``, is gathered for its own forward and
    backward pass; all else is one part, and so is a model that names no classes. Checkpoints hold whole tensors under
    the names of an undivided learner, so that any strategy and number of processes goes on from them.
    """

    max_processes = None

    def __init__(self, settings: Fsdp2Config):
        self.settings = settings
        super().__init__(settings, choose_device(settings.device, Group.join().local_rank))

    def place(self, learner: Learner) -> nn.Module:  # type: ignore[override]
        """The learner itself, its parameters divided among the ranks."""
        super().place(learner)
        if self.world_size == 1:
            return learner
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        for block in reversed(blocks(learner.model)):
            fully_shard(block, mesh=mesh, reshard_after_forward=self.settings.reshard_after_forward)
        # The root stays whole from forward to backward: an objective uses the model's table after its forward pass.
        fully_shard(learner, mesh=mesh, reshard_after_forward=False)
        return learner

    def accumulate(self, placed: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Reduce once, with the last micro-batch."""
        if self.world_size > 1:
            placed.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def whole(self, value: Any) -> Any:
        """Gathered from all ranks; kept on rank 0."""
        if isinstance(value, DTensor):
            value = value.full_tensor()
            if self.rank:
                return value.new_empty(0, device="cpu")
        return super().whole(value)

    def part(self, value: Any, like: torch.Tensor) -> Any:
        """This rank's slice."""
        if isinstance(like, DTensor) and isinstance(value, torch.Tensor) and value.shape == like.shape:
            return distribute_tensor(value.to(self.device), like.device_mesh, like.placements)
        return value

    def weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Complete on rank 0, empty on the others."""
        found = super().weights(module)
        return {} if self.rank else found

    def local(self, gradient: torch.Tensor) -> torch.Tensor:
        """This rank's slice, which may be empty."""
        return gradient.to_local() if isinstance(gradient, DTensor) else gradient

    def norm(self, norms: torch.Tensor) -> torch.Tensor:
        """Over the slices of all ranks."""
        squares = (norms * norms).sum()
        if self.world_size > 1:
            dist.all_reduce(squares)
        return squares.sqrt()
