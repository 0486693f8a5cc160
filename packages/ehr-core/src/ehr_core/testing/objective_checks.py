"""Checks of objectives, for each kind of outcome that they learn from; they need torch and transformers.

The model is `small_network`, which satisfies the contract and no more.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ehr_core.batch import Batch
from ehr_core.component import Component
from ehr_core.errors import NotApplicable
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL, Question
from ehr_core.protocols import PROVISIONS
from ehr_core.testing.base import Check, small_settings
from ehr_core.testing.model_maker import V, batch_of, close, tokens_of, vocabulary_of_checks
from ehr_core.testing.small_network import small_network

NAMES = {MULTICLASS: ("none", "some", "all"), MULTILABEL: ("first", "second")}
LABELS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    BINARY: lambda high_N: high_N,
    MULTICLASS: lambda high_N: 2 * high_N,
    MULTILABEL: lambda high_N: torch.stack([high_N, torch.full_like(high_N, torch.nan)], 1),
    REGRESSION: lambda high_N: 40 + 20 * high_N,
    SURVIVAL: lambda high_N: torch.stack([torch.where(high_N > 0, 10.0, 900.0), high_N], 1),
}
"""Kind of outcome to the labels of samples that are high (1.0) or low (0.0)."""
HIGH, LOW = 7, 8
"""The last token of a sample that is high, or low."""


class Subject:
    """An objective under check: made as the trainer makes it, for one kind of outcome or for none."""

    def __init__(self, component: Component, kind: str | None):
        self.component = component
        self.question = None if kind is None else Question(kind, NAMES.get(kind, ()))
        self.model = small_network(V)
        missing = [need for need in component.needs if need not in self.model.provides]
        if missing:
            raise NotApplicable(f"{component.name} needs a model that provides {missing[0]}, and the kit has none")
        self.objective = self.make()

    def make(self) -> Any:
        """The objective in evaluation mode, from a fixed seed."""
        torch.manual_seed(1)
        arguments = {"width": self.model.width, "vocabulary": vocabulary_of_checks(), "question": self.question}
        return self.component.load()(small_settings(self.component), **arguments).eval()

    def batch(self, tokens_BT: torch.Tensor, padding: int = 0) -> Batch:
        """One sample a row, which ends in HIGH or LOW, by turns; labels where the objective learns from them."""
        rows, length = tokens_BT.shape
        high_N = (torch.arange(rows) % 2 == 0).float()
        tokens_BT = tokens_BT.clone()
        tokens_BT[:, -1] = torch.where(high_N > 0, HIGH, LOW)
        segment_BT = torch.ones_like(tokens_BT)
        if padding:
            nothing = torch.zeros(rows, padding, dtype=torch.int64)
            tokens_BT, segment_BT = (torch.cat([part, nothing], dim=1) for part in (tokens_BT, segment_BT))
        last_N = torch.arange(rows) * (length + padding) + length - 1
        label_N = None if self.question is None else LABELS[self.question.kind](high_N)
        return dataclasses.replace(batch_of(tokens_BT, segment_BT), label_N=label_N, last_N=last_N)


ObjectiveCheck = Callable[[Subject], None]


def every_kind(check: ObjectiveCheck) -> Check:
    """The check for all kinds of outcome of the component, or for none; an error says for which."""

    @functools.wraps(check)
    def run(kind: str, component: Component, folder: Path) -> None:
        for outcome in component.outcomes or (None,):
            try:
                check(Subject(component, outcome))
            except Exception as error:
                error.add_note(f"objective {component.name}, labels of the kind {outcome}")
                raise

    return run


def check_objective_needs(kind: str, component: Component, folder: Path) -> None:
    """What it needs of a model has a name that models know."""
    unknown = [need for need in component.needs if need not in PROVISIONS]
    assert not unknown, f"needs has {unknown[0]!r}; allowed: {', '.join(PROVISIONS)}"


@every_kind
def check_objective_is_a_sum(subject: Subject) -> None:
    """Loss and count of a batch are the sums over its halves."""
    whole = subject.batch(tokens_of(4))
    halves = [_rows(whole, part) for part in (slice(0, 2), slice(2, 4))]
    loss = subject.objective.loss(subject.model, whole)
    parts = [subject.objective.loss(subject.model, half) for half in halves]
    assert torch.isfinite(loss.total), "the loss is not finite"
    close(parts[0].total + parts[1].total, loss.total, "the sum of a batch's halves")
    assert int(loss.count) == int(parts[0].count) + int(parts[1].count) > 0, "counts do not add up"


def _rows(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch with one sample a row."""
    fixed = {name: getattr(batch, name)[rows] for name in ("token_BT", "position_BT", "segment_BT", "static_BT")}
    columns = {name: column[rows] for name, column in batch.columns.items()}
    assert batch.last_N is not None
    last_N = batch.last_N[rows] - batch.token_BT.shape[1] * rows.start
    label_N = None if batch.label_N is None else batch.label_N[rows]
    return Batch(**fixed, columns=columns, label_N=label_N, last_N=last_N)


@every_kind
def check_objective_ignores_padding(subject: Subject) -> None:
    """Padding changes neither loss nor count, nor a prediction."""
    bare, padded = subject.batch(tokens_of(2, 12)), subject.batch(tokens_of(2, 12), padding=5)
    one, two = (subject.objective.loss(subject.model, batch) for batch in (bare, padded))
    close(two.total, one.total, "the loss with padding")
    assert int(two.count) == int(one.count), "padding is counted"
    if subject.question is not None:
        found, expected = (subject.objective.predict(subject.model, batch) for batch in (padded, bare))
        close(found, expected, "the prediction with padding")


@every_kind
@torch.no_grad()
def check_objective_predicts(subject: Subject) -> None:
    """With labels: a prediction of each sample in the shape of the kind, the same twice, and without its label."""
    if subject.question is None:
        return
    batch = subject.batch(tokens_of(3))
    found = subject.objective.predict(subject.model, dataclasses.replace(batch, label_N=None))
    kind, K = subject.question.kind, len(subject.question.names)
    expected = (3, K) if K else (3,)
    assert tuple(found.shape) == expected, f"predict gives {tuple(found.shape)}; {kind} is {expected}"
    assert torch.isfinite(found).all(), "a prediction is not finite"
    if kind in (BINARY, MULTICLASS, MULTILABEL):
        assert ((found >= 0) & (found <= 1)).all(), "a probability is not between 0 and 1"
    if kind == MULTICLASS:
        close(found.sum(1), torch.ones(3), "the sum of a sample's probabilities")
    assert torch.equal(subject.objective.predict(subject.model, batch), found), "two predictions differ"


@every_kind
def check_objective_learns(subject: Subject) -> None:
    """With labels: an easy rule is learned, so that predictions of high samples are above those of low ones."""
    if subject.question is None:
        return
    objective, model = subject.objective.train(), subject.model.train()
    weights = [weight for weight in [*model.parameters(), *objective.parameters()] if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    for step in range(1, 301):
        loss = objective.loss(model, subject.batch(torch.roll(tokens_of(8), step, 1)))
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
        if step % 50 == 0 and _tells_apart(subject):
            return
    raise AssertionError("an easy rule was not learned in 300 steps")


@torch.no_grad()
def _tells_apart(subject: Subject) -> bool:
    """Whether predictions of all high samples are above those of all low ones."""
    assert subject.question is not None
    found = subject.objective.eval().predict(subject.model.eval(), subject.batch(tokens_of(8)))
    subject.objective.train()
    subject.model.train()
    if subject.question.kind in NAMES:
        found = found[:, 0 if subject.question.kind == MULTILABEL else 2]
    return bool(found[::2].min() > found[1::2].max())


@every_kind
@torch.no_grad()
def check_objective_survives_saving(subject: Subject) -> None:
    """Its weights are all that it knows: another one with these weights predicts the same."""
    for weight in subject.objective.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    again, batch = subject.make(), subject.batch(tokens_of(4))
    again.load_state_dict(subject.objective.state_dict())
    one, two = (made.loss(subject.model, batch).total for made in (subject.objective, again))
    assert torch.equal(one, two), "the loss is another after loading the weights"
    if subject.question is not None:
        found, expected = (made.predict(subject.model, batch) for made in (again, subject.objective))
        assert torch.equal(found, expected), "predictions are others after loading the weights"


OBJECTIVE_CHECKS: list[Check] = [
    check_objective_needs,
    check_objective_is_a_sum,
    check_objective_ignores_padding,
    check_objective_predicts,
    check_objective_learns,
    check_objective_survives_saving,
]
