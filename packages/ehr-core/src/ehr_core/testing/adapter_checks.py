"""Checks of adapters, on a network that knows nothing of them; they need torch and transformers."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ehr_core.component import Component
from ehr_core.config import to_plain
from ehr_core.errors import FormatError
from ehr_core.formats.folder import read_json
from ehr_core.testing.base import Check, small_settings
from ehr_core.testing.model_maker import V, batch_of, close, hidden_of, refuses, tokens_of
from ehr_core.testing.small_network import small_network


def _adapter(component: Component) -> Any:
    return component.load()(small_settings(component))


def _head(seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(32, 1)


@torch.no_grad()
def _outputs(model: Any) -> torch.Tensor:
    """Hidden states and logits side by side."""
    hidden = hidden_of(model.eval(), batch_of(tokens_of()))
    return torch.cat([hidden, model.lm_logits(hidden)], dim=-1)


def _train(model: Any, head: nn.Module) -> None:
    """Three steps, in which half of an adapter that starts at zero gets its first gradient, too."""
    model.train()
    weights = [weight for weight in [*model.parameters(), *head.parameters()] if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        tokens = tokens_of(4)
        hidden = hidden_of(model, batch_of(tokens))
        logits = model.lm_logits(hidden)[:, :-1, :V].flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()) + head(hidden).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def check_adapter_starts_unchanged(kind: str, component: Component, folder: Path) -> None:
    """Before training the outputs are those of the plain model, and the adapted one answers for its fields."""
    plain = small_network(V)
    before = _outputs(plain)
    model = _adapter(component).apply(copy.deepcopy(plain))
    close(_outputs(model), before, "outputs before training")
    for name in ("width", "max_positions", "provides"):
        found = getattr(model, name, None)
        assert found == getattr(plain, name), f"{name} of the adapted model is {found}, not {getattr(plain, name)}"


def check_adapter_trains_little(kind: str, component: Component, folder: Path) -> None:
    """Few parameters are trained, every one of them learns, and all others keep every bit."""
    model = _adapter(component).apply(small_network(V))
    named = dict(model.named_parameters())
    trained = {name for name, weight in named.items() if weight.requires_grad}
    share = sum(named[name].numel() for name in trained) / sum(weight.numel() for weight in named.values())
    assert 0 < share < 0.5, f"{share:.0%} of the parameters are trained"
    before = {name: weight.detach().clone() for name, weight in named.items()}
    _train(model, _head())
    idle = [name for name in trained if torch.equal(named[name], before[name])]
    assert not idle, f"no gradient reaches {sorted(idle)}"
    moved = [name for name in named.keys() - trained if not torch.equal(named[name], before[name])]
    assert not moved, f"frozen parameters were changed: {sorted(moved)}"


def check_adapter_merges(kind: str, component: Component, folder: Path) -> None:
    """Merged equals adapted, and is a plain model with the tensors that it had."""
    plain, adapter = small_network(V), _adapter(component)
    before, names, shape = _outputs(plain), set(plain.state_dict()), type(plain)
    model = adapter.apply(plain)
    _train(model, _head())
    expected = _outputs(model)
    assert not torch.allclose(expected, before, atol=1e-4), "training the adapter changes nothing"
    merged = adapter.merge(model)
    assert type(merged) is shape, f"merged it is a {type(merged).__name__}, not a {shape.__name__}"
    assert set(merged.state_dict()) == names, "merged it has other tensors than the plain model"
    close(_outputs(merged), expected, "merged and not")


def check_adapter_survives_saving(kind: str, component: Component, folder: Path) -> None:
    """Saved and loaded on the same base, with its head, it computes the same bits; on another it is refused."""
    plain, adapter, head = small_network(V), _adapter(component), _head()
    model = adapter.apply(copy.deepcopy(plain))
    _train(model, head)
    place = folder / "adapter"
    adapter.save(model, place, head)
    facts = read_json(place / "adapter.json", dict[str, Any])
    assert facts.get("name") == component.name, f"adapter.json names {facts.get('name')!r}, not {component.name!r}"
    expected = to_plain(small_settings(component))
    assert facts.get("settings") == expected, f"adapter.json has settings {facts.get('settings')}, not {expected}"
    again, fresh = _adapter(component), _head(seed=4)
    loaded = again.load(copy.deepcopy(plain), place, fresh)
    assert torch.equal(_outputs(loaded), _outputs(model)), "outputs are others after loading"
    for name, value in head.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), f"the head's {name} is another after loading"
    refuses(lambda: adapter.save(model, place, head), "a folder that exists already")
    other = small_network(V)
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    error = refuses(lambda: _adapter(component).load(other, place, _head()), "another base")
    assert isinstance(error, FormatError), f"another base gives {error!r}; raise a FormatError"


ADAPTER_CHECKS: list[Check] = [
    check_adapter_starts_unchanged,
    check_adapter_trains_little,
    check_adapter_merges,
    check_adapter_survives_saving,
]
