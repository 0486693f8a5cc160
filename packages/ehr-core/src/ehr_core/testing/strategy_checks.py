"""Checks of strategies, in one process. They need torch."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ehr_core.component import Component
from ehr_core.testing.base import Check, small_settings


def _learner() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))


def _inputs() -> torch.Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1))


def _step(strategy: Any, placed: Any, learner: nn.Module, optimizer: Any, limit: float) -> float:
    """One optimizer step over two micro-batches of a sum of squares; returns the norm of the gradient."""
    inputs = _inputs().to(strategy.device)
    for number, part in enumerate((inputs[:4], inputs[4:])):
        with strategy.accumulate(placed, number == 1):
            placed(part).square().sum().backward()
    scale = torch.tensor(1 / 8, device=strategy.device)
    norm = strategy.clip([p for p in learner.parameters() if p.grad is not None], scale, limit)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def _expected(steps: int, limit: float) -> tuple[dict[str, torch.Tensor], float]:
    """The same steps with plain torch: weights, and the norm of the last gradient."""
    learner = _learner()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.1)
    norm = 0.0
    for _ in range(steps):
        (learner(_inputs()).square().sum() / 8).backward()
        norm = float(nn.utils.clip_grad_norm_(learner.parameters(), limit or float("inf")))
        optimizer.step()
        optimizer.zero_grad()
    return learner.state_dict(), norm


def check_strategy_trains(kind: str, component: Component, folder: Path) -> None:
    """Alone it takes the steps that plain torch takes, with and without clipping."""
    for limit in (0.0, 0.05):
        strategy = component.load()(small_settings(component))
        learner = _learner()
        placed = strategy.place(learner)
        optimizer = torch.optim.AdamW(learner.parameters(), lr=0.1)
        norms = [_step(strategy, placed, learner, optimizer, limit) for _ in range(3)]
        weights, norm = _expected(3, limit)
        found = strategy.weights(learner)
        assert found.keys() == weights.keys(), f"weights has {list(found)}, the learner has {list(weights)}"
        for name, tensor in weights.items():
            assert found[name].device.type == "cpu", "weights are given on the CPU"
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{name} was trained otherwise")
        assert abs(norms[-1] - norm) < 1e-4, f"clip gives {norms[-1]}, the norm before clipping is {norm}"


def check_strategy_resumes(kind: str, component: Component, folder: Path) -> None:
    """Weights and optimizer put back from a checkpoint go on bit for bit."""
    strategy = component.load()(small_settings(component))
    learner = _learner()
    placed = strategy.place(learner)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=0.1)
    _step(strategy, placed, learner, optimizer, 1.0)
    kept = {"weights": strategy.weights(learner), "optimizer": strategy.optimizer_state(learner, optimizer)}
    torch.save(kept, folder / "checkpoint.pt")
    kept = torch.load(folder / "checkpoint.pt", weights_only=True)
    _step(strategy, placed, learner, optimizer, 1.0)
    again = _learner()
    with torch.no_grad():
        for weight in again.parameters():
            weight.zero_()
    placed = strategy.place(again)
    other = torch.optim.AdamW(again.parameters(), lr=0.1)
    strategy.load_weights(again, kept["weights"])
    strategy.restore_optimizer(again, other, kept["optimizer"])
    _step(strategy, placed, again, other, 1.0)
    found = strategy.weights(again)
    for name, tensor in strategy.weights(learner).items():
        assert torch.equal(found[name], tensor), f"{name} differs after going on from a checkpoint"


def check_strategy_counts(kind: str, component: Component, folder: Path) -> None:
    """Alone, sums are the values, what is gathered is one value, and the ranks are those of one process."""
    strategy = component.load()(small_settings(component))
    assert (strategy.rank, strategy.world_size) == (0, 1)
    assert strategy.max_processes is None or strategy.max_processes >= 1
    values = torch.tensor([1.0, 2.5], dtype=torch.float64, device=strategy.device)
    assert torch.equal(strategy.sum(values.clone()), values), "the sum over one process is not the value"
    assert strategy.gather({"a": 1}) == [{"a": 1}]


CHECKS: dict[str, list[Check]] = {"strategy": [check_strategy_trains, check_strategy_resumes, check_strategy_counts]}
