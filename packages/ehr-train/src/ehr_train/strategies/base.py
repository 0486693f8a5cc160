"""Base of strategies that keep a whole copy of the learner in every process."""

import contextlib
import math
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from ehr_core.errors import ConfigError
from torch import nn

from ehr_train.processes.group import Group


class Replicated:
    """One process by default. A subclass says in ``__init__`` on which device, and changes what it does otherwise.

    See `ehr_core.protocols.Strategy` for what each method promises.
    """

    max_processes: int | None = 1

    def __init__(self, settings: Any, device: torch.device | str):
        """Raises ConfigError when there are more processes than the strategy can use."""
        self.group = Group.join()
        self.rank, self.world_size = self.group.rank, self.group.size
        self.device = torch.device(device)
        check_processes(settings.name, self.max_processes, self.world_size)

    def place(self, learner: nn.Module) -> nn.Module:
        """On the device."""
        return learner.to(self.device)

    def accumulate(self, placed: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Nothing to wait for."""
        return contextlib.nullcontext()

    @torch.no_grad()
    def clip(self, parameters: Sequence[nn.Parameter], scale: torch.Tensor, limit: float) -> torch.Tensor:
        """Scale the gradients, then clip their norm. Returns the norm before clipping, on the device."""
        gradients = [self.local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        norm = self.norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])) * scale
        factor = scale * torch.clamp(limit / (norm + 1e-6), max=1.0) if limit else scale
        torch._foreach_mul_(gradients, factor)
        return norm

    def weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """The module's state as whole tensors on the CPU."""
        return {name: self.whole(tensor) for name, tensor in module.state_dict().items()}

    def load_weights(self, module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
        """Put back all of it. Raises RuntimeError for names and shapes that the module does not have."""
        own = module.state_dict()
        state = {name: self.part(value, own[name]) if name in own else value for name, value in weights.items()}
        module.load_state_dict(state, strict=True)

    def optimizer_state(self, learner: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """``state`` by name of the parameter, as whole tensors on the CPU, and the settings of the ``groups``."""
        names: dict[Any, str] = {parameter: name for name, parameter in learner.named_parameters()}
        state = {
            names[parameter]: {key: self.whole(value) for key, value in values.items()}
            for parameter, values in optimizer.state.items()
        }
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            | {"names": [names[parameter] for parameter in group["params"]]}
            for group in optimizer.param_groups
        ]
        return {"state": state, "groups": groups}

    def restore_optimizer(self, learner: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Put it back. Raises RuntimeError, before anything is changed, for the state of other parameters or shapes."""
        parameters = dict(learner.named_parameters())
        adam = isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW)
        check_optimizer(parameters, state, ADAM if adam else frozenset())
        names = {parameter: name for name, parameter in parameters.items()}
        order = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        if order != [group["names"] for group in state["groups"]]:
            raise RuntimeError("the optimizer's state is of other parameters")
        index = {name: number for number, name in enumerate(name for group in order for name in group)}
        parts = {
            index[name]: {key: self.part(value, parameters[name]) for key, value in values.items()}
            for name, values in state["state"].items()
        }
        groups = [
            {key: value for key, value in group.items() if key != "names"}
            | {"params": [index[name] for name in group["names"]]}
            for group in state["groups"]
        ]
        optimizer.load_state_dict({"state": parts, "param_groups": groups})

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Small values of all ranks, in order of rank."""
        return self.group.gather(value)

    # -- what a strategy that cuts tensors into parts changes

    def whole(self, value: Any) -> Any:
        """A copy on the CPU of the whole tensor that ``value`` is (a part of); no tensor stays as it is."""
        return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value

    def part(self, value: Any, like: torch.Tensor) -> Any:
        """What this rank keeps of a whole tensor, laid out as ``like``; one of another shape stays as it is."""
        return value

    def local(self, gradient: torch.Tensor) -> torch.Tensor:
        """What is on this rank of a gradient."""
        return gradient

    def norm(self, norms: torch.Tensor) -> torch.Tensor:
        """The norm of all gradients from those of the parts on this rank."""
        return torch.linalg.vector_norm(norms)


ADAM = frozenset({"step", "exp_avg", "exp_avg_sq"})
"""What Adam and AdamW keep of each parameter."""


class _Group(msgspec.Struct):
    """What every optimizer keeps of a group."""

    names: list[str]
    lr: float


class _Saved(msgspec.Struct):
    """What `Replicated.optimizer_state` gives."""

    state: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]


def check_optimizer(parameters: Mapping[str, torch.Tensor], state: Mapping[str, Any], needed: Set[str]) -> None:
    """Raise RuntimeError unless all that an optimizer keeps of a parameter is a finite number or in its shape.

    ``needed`` is what it keeps of each. A rank that alone finds out later leaves the others waiting for it.
    """
    found = msgspec.convert(dict(state), _Saved)
    for group in found.groups:
        msgspec.convert(group, _Group)
    kinds = {frozenset(values) for values in found.state.values()}
    if found.state and (len(kinds) > 1 or not found.state.keys() <= parameters.keys()):
        raise RuntimeError("the optimizer's state is of other parameters")
    for name, values in found.state.items():
        if missing := sorted(needed - values.keys()):
            raise RuntimeError(f"{missing[0]} of {name} is missing in the optimizer's state")
        for key, value in values.items():
            if not isinstance(value, torch.Tensor):
                fits = isinstance(value, int | float)
            else:
                fits = value.shape in ((), parameters[name].shape) and value.is_floating_point()
            if not fits:
                raise RuntimeError(f"{key} of {name} in the optimizer's state is not in the shape of the parameter")
    numbers = [(key, value) for group in found.groups for key, value in group.items() if isinstance(value, float)]
    if odd := [key for key, value in numbers if not math.isfinite(value)]:
        raise RuntimeError(f"{odd[0]} in the optimizer's state is no finite number")


def check_processes(name: str, most: int | None, size: int) -> None:
    """Raise ConfigError when a strategy cannot use so many processes."""
    if most is not None and size > most:
        word = "one process" if most == 1 else f"at most {most} processes"
        raise ConfigError(f"strategy={name} is {word}, and world_size is {size}; use strategy=ddp")
