"""Each check of the conformance kit fails on a network that breaks what it checks."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from ehr_core.errors import ConfigError, NotApplicable
from ehr_core.testing import model_checks
from ehr_models.gpt import GPT, build
from ehr_models.layers.moe import MoE
from ehr_models.settings import GPTConfig


@dataclass
class Settings(GPTConfig):
    """With one variant."""

    variants: ClassVar = {"experts": {"num_experts": 4}}


class Changed(GPT):
    """A network with something done to the hidden states."""

    def forward(self, input_ids, position_ids=None, segment_ids=None, cache=None, **columns):
        output = super().forward(input_ids, position_ids, segment_ids, cache=cache, **columns)
        output.last_hidden_state = self.change(output.last_hidden_state)
        return output


class PredictsPaddedIds(GPT):
    def lm_logits(self, hidden):
        return hidden @ self.embeddings.token.weight.T


class Random(Changed):
    def change(self, hidden):
        return hidden + 1e-3 * torch.randn_like(hidden)


class SeesTheFuture(Changed):
    def change(self, hidden):
        return hidden + 0.01 * hidden.mean(1, keepdim=True)


class SeesTheBatch(Changed):
    def change(self, hidden):
        return hidden + 0.01 * hidden.mean(0, keepdim=True)


class SeesPadding(GPT):
    def forward(self, input_ids, position_ids=None, segment_ids=None, **columns):
        return super().forward(input_ids, position_ids, None, **columns)


class MixesWindows(GPT):
    def forward(self, input_ids, position_ids=None, segment_ids=None, **columns):
        return super().forward(input_ids, position_ids, (segment_ids != 0).long(), **columns)


class CountsWrong(GPT):
    def forward(self, input_ids, position_ids=None, segment_ids=None, cache=None, **columns):
        if cache is not None and position_ids is not None:
            position_ids = position_ids - 1
        return super().forward(input_ids, position_ids, segment_ids, cache=cache, **columns)


class MisstatesItsWidth(GPT):
    width = 64


class ClaimsWhatNobodyKnows(GPT):
    provides = ("causal", "telepathy")


class RefusesItsCache(GPT):
    def make_cache(self, rows, length):
        raise ConfigError("no cache")


class DeniesItsOrder(GPT):
    provides = ()


class HasADeadParameter(GPT):
    def __init__(self, config):
        super().__init__(config)
        self.dead = torch.nn.Parameter(torch.ones(3))


class NeverRecomputes(GPT):
    def gradient_checkpointing_enable(self, *args, **kwargs):
        """Nothing."""


class DeniesCheckpointing(NeverRecomputes):
    supports_gradient_checkpointing = False


class BypassesALinearLayer(GPT):
    not_adapted = ()

    def __init__(self, config):
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, MoE):  # reads the router's weight without calling it
                module.scores = lambda x, router=module.router: torch.nn.functional.linear(x, router.weight)


class ForgetsAScale(Changed):
    scale = 1.0

    def change(self, hidden):
        return hidden * self.scale


class DrawsAllRowsAnew(GPT):
    def resize_token_embeddings(self, *args, **kwargs):
        table = super().resize_token_embeddings(*args, **kwargs)
        table.weight.normal_()
        return table


class ChecksNothing(GPT):
    def _check_position(self, position):
        """Nothing."""


class LearnsNothing(Changed):
    def change(self, hidden):
        return 0 * hidden


BROKEN = [
    ("fields", MisstatesItsWidth, "width is 64, and hidden states have 32"),
    ("fields", ClaimsWhatNobodyKnows, "provides has 'telepathy'; allowed: causal, cache, decode"),
    ("shapes", PredictsPaddedIds, "could be predicted"),
    ("is_deterministic", Random, "chance is at work"),
    ("causality", SeesTheFuture, "later tokens change"),
    ("batch_invariance", SeesTheBatch, "the rest of the batch"),
    ("padding_invariance", SeesPadding, "padding before a window"),
    ("packing_invariance", MixesWindows, "the second window sees"),
    ("cache", CountsWrong, "cached and not"),
    ("cache", RefusesItsCache, "provides a cache, and make_cache refuses: no cache"),
    ("gradients", HasADeadParameter, r"no gradient reaches \['dead'\]"),
    ("gradient_checkpointing", NeverRecomputes, "nothing was computed again"),
    ("gradient_checkpointing", DeniesCheckpointing, "was not refused"),
    ("adapters", BypassesALinearLayer, "no gradient reaches.*router"),
    ("survives_saving", ForgetsAScale, "outputs are others"),
    ("resizing", DrawsAllRowsAnew, "other vectors"),
    ("refuses_what_does_not_fit", ChecksNothing, "context beyond the positions gives IndexError"),
    ("learns_the_grammar", LearnsNothing, "a guess among 8 words"),
]


def component(broken: type[GPT], **fixed):
    """What a plugin would announce, for a network of this class."""

    def make(settings, vocabulary_size, columns):
        model = broken(build(settings, vocabulary_size, columns).config)
        for name, value in fixed.items():
            setattr(model, name, value)
        return model

    return SimpleNamespace(name="broken", config=Settings, load=lambda: make)


@pytest.mark.parametrize(("name", "broken", "words"), BROKEN, ids=[f"{name}-{b.__name__}" for name, b, _ in BROKEN])
def test_a_check_fails_on_a_network_that_breaks_it(name, broken, words, tmp_path):
    check = getattr(model_checks, f"check_model_{name}")
    fixed = {"scale": 1.5} if broken is ForgetsAScale else {}
    with pytest.raises(AssertionError, match=words):
        check("model", component(broken, **fixed), tmp_path)


def test_every_check_has_a_network_that_fails_it():
    assert {f"check_model_{name}" for name, _, _ in BROKEN} == {check.__name__ for check in model_checks.MODEL_CHECKS}


def test_a_failure_says_for_which_settings(tmp_path):
    with pytest.raises(AssertionError) as raised:
        model_checks.check_model_adapters("model", component(BypassesALinearLayer), tmp_path)
    assert raised.value.__notes__ == ["model broken, experts: {'num_experts': 4}"]


def test_what_a_network_declares_not_to_have_is_not_checked(tmp_path):
    encoder = type("Encoder", (GPT,), {"provides": ()})
    with pytest.raises(NotApplicable, match="provides no cache"):
        model_checks.check_model_cache("model", component(encoder), tmp_path)
    with pytest.raises(AssertionError, match="it is causal, and provides does not say so"):
        model_checks.check_model_causality("model", component(DeniesItsOrder), tmp_path)
