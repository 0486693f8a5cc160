"""What checks of models share: small models of every variant, batches, and what an error must be."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ehr_core.batch import Batch
from ehr_core.component import Component
from ehr_core.errors import EhrError, NotApplicable
from ehr_core.formats.vocabulary import SPECIALS, Token, Vocabulary
from ehr_core.testing.base import Check, small_settings
from ehr_core.testing.tiny import SMALL_MODEL, grammar, tiny_columns

V = 71
"""Vocabulary size of the checks; no multiple of 64, so that padded ids exist."""


def vocabulary_of_checks() -> Vocabulary:
    """V tokens: the specials, and codes that are as frequent as they are early."""
    return Vocabulary.build([Token(f"CODE//{n}", "code", (f"CODE//{n}",), 100 - n) for n in range(V - len(SPECIALS))])


def batch_of(tokens_BT: torch.Tensor, segment_BT: torch.Tensor | None = None, **labels: torch.Tensor) -> Batch:
    """A batch of the given tokens; one whole segment a row unless ``segment_BT`` says otherwise.

    Its columns, such as ages and visits, follow from a token and its place in its segment.
    """
    segments = torch.ones_like(tokens_BT) if segment_BT is None else segment_BT
    place = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
    border = torch.ones_like(segments, dtype=torch.bool)
    border[:, 1:] = segments[:, 1:] != segments[:, :-1]
    position = place - torch.where(border, place, torch.zeros_like(place)).cummax(dim=1).values
    columns = {name: torch.from_numpy(values) for name, values in tiny_columns(position.numpy()).items()}
    return Batch(tokens_BT, position, segments, torch.zeros_like(segments, dtype=torch.bool), columns, **labels)


class Maker:
    """Makes models of a component with some of its settings changed."""

    def __init__(self, component: Component, values: dict[str, Any]):
        self.component, self.values = component, values

    def settings(self, **values: Any) -> Any:
        """Small settings with the variant's values and these."""
        return dataclasses.replace(small_settings(self.component, **SMALL_MODEL), **(self.values | values))

    def build(self, settings: Any) -> Any:
        """The model of these settings, in evaluation mode, from a fixed seed."""
        torch.manual_seed(0)
        columns = list(tiny_columns(torch.zeros(1, 1, dtype=torch.int64).numpy()))
        return self.component.load()(settings, vocabulary_size=V, columns=columns).eval()

    def __call__(self, sharp: bool = True) -> Any:
        """A small model; ``sharp``: with weights that are large enough to tell tokens and places apart."""
        model = self.build(self.settings())
        if sharp:
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.1 * torch.randn_like(weight))
        return model


ModelCheck = Callable[[Maker, Path], None]


def every_variant(check: ModelCheck) -> Check:
    """The check for the defaults and all variants; an error says for which."""

    @functools.wraps(check)
    def run(kind: str, component: Component, folder: Path) -> None:
        variants = {"defaults": {}, **vars(component.config).get("variants", {})}
        reasons = []
        for name, values in variants.items():
            try:
                check(Maker(component, values), folder / name.replace(" ", "_"))
            except NotApplicable as reason:
                reasons.append(reason)
            except Exception as error:
                error.add_note(f"model {component.name}, {name}: {values}")
                raise
        if len(reasons) == len(variants):
            raise reasons[0]

    return run


def refuses(action: Callable[[], Any], what: str, *allowed: type[Exception]) -> Exception:
    """The error of an action that must be refused in one line, by an EhrError or another that is ``allowed``."""
    found: Exception | None = None
    try:
        action()
    except Exception as error:
        found = error
    assert found is not None, f"{what} was not refused"
    assert isinstance(found, (EhrError, *allowed)), f"{what} gives {found!r}; raise an EhrError that says what is wrong"
    assert "\n" not in str(found), f"{what} gives more than a line: {found}"
    return found


def hidden_of(model: Any, batch: Batch) -> Any:
    """Hidden states (B, T, D)."""
    return model(**batch.inputs()).last_hidden_state


def tokens_of(rows: int = 2, length: int = 24) -> torch.Tensor:
    """Sentences of the grammar."""
    return torch.from_numpy(grammar(rows, length, V))


def close(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Raise AssertionError, which says of what, unless the numbers agree to four digits."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=lambda text: f"{what}: {text}")
