"""Checks of objectives, and all that need torch; imported only when a package with such a component is tested."""

from pathlib import Path
from typing import Any

import torch

from ehr_core.batch import Batch
from ehr_core.component import Component
from ehr_core.plugins import registry
from ehr_core.testing.base import Check, small_settings
from ehr_core.testing.model_checks import MODEL_CHECKS
from ehr_core.testing.model_maker import Maker, batch_of, hidden_of, tokens_of


def _labelled(tokens: torch.Tensor) -> Batch:
    rows, length = tokens.shape
    last = torch.arange(rows) * length + length - 1
    return batch_of(tokens, label_N=(tokens[:, -1] % 2).float(), last_N=last)


def _learner(component: Component) -> tuple[Any, Any]:
    model = Maker(registry().get("model", "gpt"), {})(sharp=False)
    torch.manual_seed(1)
    objective = component.load()(small_settings(component), width=hidden_of(model, batch_of(tokens_of())).shape[-1])
    return model, objective.eval()


def check_objective_is_a_sum(kind: str, component: Component, folder: Path) -> None:
    """Loss and count of a batch are the sums over its halves."""
    model, objective = _learner(component)
    tokens = tokens_of(4)
    whole = objective.loss(model, _labelled(tokens))
    halves = [objective.loss(model, _labelled(part)) for part in (tokens[:2], tokens[2:])]
    assert torch.isfinite(whole.total)
    torch.testing.assert_close(whole.total, halves[0].total + halves[1].total, rtol=1e-4, atol=1e-4)
    assert int(whole.count) == int(halves[0].count) + int(halves[1].count) > 0


def check_objective_ignores_padding(kind: str, component: Component, folder: Path) -> None:
    """Padding changes neither loss nor count."""
    model, objective = _learner(component)
    tokens = tokens_of(2, 12)
    bare = objective.loss(model, _labelled(tokens))
    padded = torch.cat([tokens, torch.zeros(2, 5, dtype=torch.int64)], dim=1)
    segments = torch.cat([torch.ones(2, 12), torch.zeros(2, 5)], dim=1).long()
    last = torch.arange(2) * 17 + 11
    batch = batch_of(padded, segments, label_N=(tokens[:, -1] % 2).float(), last_N=last)
    loss = objective.loss(model, batch)
    torch.testing.assert_close(loss.total, bare.total, rtol=1e-4, atol=1e-4)
    assert int(loss.count) == int(bare.count)


def check_objective_predicts(kind: str, component: Component, folder: Path) -> None:
    """A labelled objective gives one probability a sample."""
    model, objective = _learner(component)
    if objective.labelled:
        with torch.no_grad():
            probability = objective.predict(model, _labelled(tokens_of(3)))
        assert probability.shape == (3,)
        assert ((probability >= 0) & (probability <= 1)).all()


CHECKS: dict[str, list[Check]] = {
    "model": MODEL_CHECKS,
    "objective": [check_objective_is_a_sum, check_objective_ignores_padding, check_objective_predicts],
}
