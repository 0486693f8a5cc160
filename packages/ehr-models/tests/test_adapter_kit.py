"""Each check of adapters fails on an adapter that breaks what it checks."""

import pytest
import torch
from ehr_core.component import Component
from ehr_core.formats.folder import read_json, write_json
from ehr_core.testing import adapter_checks
from ehr_core.testing.adapter_checks import ADAPTER_CHECKS
from ehr_models.adapter_settings import AdapterConfig
from ehr_models.adapters import LowRank
from ehr_models.digest import weights_digest


class ChangesTheStart(LowRank):
    def apply(self, model):
        adapted = super().apply(model)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.add_(0.3)
        return adapted


class ForgetsTheFields(LowRank):
    def apply(self, model):
        class Hidden(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inside, self.lm_logits = adapted, adapted.lm_logits

            def forward(self, *arguments, **named):
                return self.inside(*arguments, **named)

        adapted = super().apply(model)
        return Hidden()


class TrainsEverything(LowRank):
    def apply(self, model):
        adapted = super().apply(model)
        return adapted.requires_grad_(True)


class HasAnIdleTensor(LowRank):
    def apply(self, model):
        adapted = super().apply(model)
        adapted.idle = torch.nn.Parameter(torch.zeros(3))
        return adapted


class MergesNothing(LowRank):
    def merge(self, model):
        return model.unload()


class StaysAdapted(LowRank):
    def merge(self, model):
        return model


class ForgetsItsHead(LowRank):
    def load(self, model, folder, objective=None):
        return super().load(model, folder)


class TakesAnyBase(LowRank):
    def load(self, model, folder, objective=None):
        facts = read_json(folder / "adapter.json")
        write_json(folder / "adapter.json", {**facts, "base": weights_digest(model)})
        return super().load(model, folder, objective)


class WritesNoName(LowRank):
    def save(self, model, folder, objective=None):
        super().save(model, folder, objective)
        facts = read_json(folder / "adapter.json")
        write_json(folder / "adapter.json", {name: value for name, value in facts.items() if name != "name"})


BROKEN = [
    ("starts_unchanged", ChangesTheStart, "outputs before training"),
    ("starts_unchanged", ForgetsTheFields, "width of the adapted model is None, not 32"),
    ("trains_little", TrainsEverything, "100% of the parameters are trained"),
    ("trains_little", HasAnIdleTensor, r"no gradient reaches \['idle'\]"),
    ("merges", MergesNothing, "merged and not"),
    ("merges", StaysAdapted, "merged it is a PeftModel, not a SmallNetwork"),
    ("survives_saving", ForgetsItsHead, "the head's weight is another"),
    ("survives_saving", TakesAnyBase, "another base was not refused"),
    ("survives_saving", WritesNoName, "adapter.json names None, not 'lora'"),
]


@pytest.mark.parametrize(("name", "broken", "words"), BROKEN, ids=[f"{name}-{b.__name__}" for name, b, _ in BROKEN])
def test_a_check_fails_on_an_adapter_that_breaks_it(name, broken, words, tmp_path):
    class Broken(Component):
        def load(self):
            return broken

    component = Broken(name="lora", target="", config=AdapterConfig)
    with pytest.raises(AssertionError, match=words):
        getattr(adapter_checks, f"check_adapter_{name}")("adapter", component, tmp_path)


def test_every_check_has_an_adapter_that_fails_it():
    assert {f"check_adapter_{name}" for name, _, _ in BROKEN} == {check.__name__ for check in ADAPTER_CHECKS}
