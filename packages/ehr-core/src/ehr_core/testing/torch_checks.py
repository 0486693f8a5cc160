"""Checks of models and objectives; imported only when a package with one is tested, because they need torch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ehr_core.batch import Batch
from ehr_core.component import Component
from ehr_core.plugins import registry
from ehr_core.testing.checks import small_settings
from ehr_core.testing.tiny import grammar

V = 71
"""Vocabulary size of the checks; no multiple of 64, so that padded ids exist."""


def batch_of(tokens_BT: torch.Tensor, segment_BT: torch.Tensor | None = None, **labels: torch.Tensor) -> Batch:
    """A batch of the given tokens; one whole segment a row unless ``segment_BT`` says otherwise."""
    segments = torch.ones_like(tokens_BT) if segment_BT is None else segment_BT
    place = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    border = torch.ones_like(segments, dtype=torch.bool)
    border[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = torch.where(border, place, torch.zeros_like(place)).cummax(dim=1).values
    return Batch(tokens_BT, place - start, segments, torch.zeros_like(segments, dtype=torch.bool), {}, **labels)


def build_model(component: Component, seed: int = 0) -> Any:
    """The model with default settings, in evaluation mode, from a fixed seed."""
    torch.manual_seed(seed)
    return component.load()(small_settings(component), vocabulary_size=V, columns=[]).eval()


def _hidden(model: Any, batch: Batch) -> torch.Tensor:
    return model(**batch.inputs()).last_hidden_state


def _tokens(rows: int = 2, length: int = 24) -> torch.Tensor:
    return torch.from_numpy(grammar(rows, length, V))


def check_model_shapes(kind: str, component: Component, folder: Path) -> None:
    """Hidden states are (B, T, D), logits of real tokens finite, and ids beyond the vocabulary impossible."""
    model = build_model(component)
    hidden = _hidden(model, batch_of(_tokens()))
    assert hidden.shape[:2] == (2, 24)
    logits = model.lm_logits(hidden)
    assert torch.isfinite(logits[..., :V]).all()
    assert torch.isneginf(logits[..., V:]).all(), "an id beyond the vocabulary could be predicted"


def check_model_is_deterministic(kind: str, component: Component, folder: Path) -> None:
    """The same input gives the same output twice in evaluation."""
    model, batch = build_model(component), batch_of(_tokens())
    with torch.no_grad():
        assert torch.equal(_hidden(model, batch), _hidden(model, batch))


def check_model_causality(kind: str, component: Component, folder: Path) -> None:
    """For causal models: other tokens in the future leave earlier outputs as they are."""
    model = build_model(component)
    if not model.causal:
        return
    tokens = _tokens()
    changed = tokens.clone()
    changed[:, 16:] = 7 + (changed[:, 16:] + 5) % (V - 7)
    with torch.no_grad():
        one, two = _hidden(model, batch_of(tokens)), _hidden(model, batch_of(changed))
    torch.testing.assert_close(one[:, :16], two[:, :16], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(one[:, 16:], two[:, 16:])


def check_model_padding_and_packing(kind: str, component: Component, folder: Path) -> None:
    """A window gives the same output alone, padded, and packed beside others."""
    model = build_model(component)
    first, second = _tokens(1, 9), _tokens(2, 12)[1:]
    with torch.no_grad():
        alone = [_hidden(model, batch_of(tokens))[0] for tokens in (first, second)]
        row = torch.cat([first, second, torch.zeros(1, 3, dtype=torch.int64)], dim=1)
        segments = torch.tensor([[1] * 9 + [2] * 12 + [0] * 3])
        packed = _hidden(model, batch_of(row, segments))[0]
    torch.testing.assert_close(packed[:9], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed[9:21], alone[1], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(packed).all(), "padding gave NaN"


def check_model_gradients(kind: str, component: Component, folder: Path) -> None:
    """Every parameter gets a gradient from a language-model loss."""
    model = build_model(component).train()
    logits = model.lm_logits(_hidden(model, batch_of(_tokens(4))))
    loss: Any = logits[..., :V].float().log_softmax(-1)[..., 7:].sum()
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent, f"no gradient reaches {silent}"


def check_model_survives_saving(kind: str, component: Component, folder: Path) -> None:
    """save_pretrained and from_pretrained keep every bit."""
    model, batch = build_model(component), batch_of(_tokens())
    model.save_pretrained(folder / "model")
    again = type(model).from_pretrained(folder / "model").eval()
    with torch.no_grad():
        assert torch.equal(_hidden(model, batch), _hidden(again, batch))


def check_model_learns_the_grammar(kind: str, component: Component, folder: Path) -> None:
    """A causal model learns a rule that a small model can learn."""
    model = build_model(component).train()
    if not model.causal:
        return
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss: Any = None
    for step in range(80):
        tokens = torch.from_numpy(grammar(16, 16, V, seed=step))
        logits = model.lm_logits(_hidden(model, batch_of(tokens)))[:, :-1, :V]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, V), tokens[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.0, f"loss {loss.item():.2f} after 80 steps; a uniform guess has 4.2"


def _labelled(tokens: torch.Tensor) -> Batch:
    rows, length = tokens.shape
    last = torch.arange(rows) * length + length - 1
    return batch_of(tokens, label_N=(tokens[:, -1] % 2).float(), last_N=last)


def _learner(component: Component) -> tuple[Any, Any]:
    model = build_model(registry().get("model", "gpt"))
    torch.manual_seed(1)
    objective = component.load()(small_settings(component), width=_hidden(model, batch_of(_tokens())).shape[-1])
    return model, objective.eval()


def check_objective_is_a_sum(kind: str, component: Component, folder: Path) -> None:
    """Loss and count of a batch are the sums over its halves."""
    model, objective = _learner(component)
    tokens = _tokens(4)
    whole = objective.loss(model, _labelled(tokens))
    halves = [objective.loss(model, _labelled(part)) for part in (tokens[:2], tokens[2:])]
    assert torch.isfinite(whole.total)
    torch.testing.assert_close(whole.total, halves[0].total + halves[1].total, rtol=1e-4, atol=1e-4)
    assert int(whole.count) == int(halves[0].count) + int(halves[1].count) > 0


def check_objective_ignores_padding(kind: str, component: Component, folder: Path) -> None:
    """Padding changes neither loss nor count."""
    model, objective = _learner(component)
    tokens = _tokens(2, 12)
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
            probability = objective.predict(model, _labelled(_tokens(3)))
        assert probability.shape == (3,)
        assert ((probability >= 0) & (probability <= 1)).all()


TORCH_CHECKS: dict[str, list[Callable[[str, Component, Path], None]]] = {
    "model": [
        check_model_shapes,
        check_model_is_deterministic,
        check_model_causality,
        check_model_padding_and_packing,
        check_model_gradients,
        check_model_survives_saving,
        check_model_learns_the_grammar,
    ],
    "objective": [check_objective_is_a_sum, check_objective_ignores_padding, check_objective_predicts],
}
