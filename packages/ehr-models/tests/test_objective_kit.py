"""Each check of objectives fails on an objective that breaks what it checks."""

import dataclasses

import pytest
import torch
from ehr_core.component import Component
from ehr_core.testing import objective_checks
from ehr_core.testing.objective_checks import OBJECTIVE_CHECKS
from ehr_models.objectives.classification import Classification, Multiclass
from ehr_models.objectives.settings import ClassificationConfig, MulticlassConfig


class GivesAMean(Classification):
    def loss(self, model, batch):
        loss = super().loss(model, batch)
        return dataclasses.replace(loss, total=loss.total / loss.count)


class SeesPadding(Classification):
    def outputs(self, model, batch):
        output_NO, output = super().outputs(model, batch)
        return output_NO + output.last_hidden_state.sum(), output


class GivesLogits(Classification):
    def prediction(self, output_NO):
        return 10 * output_NO[:, 0] - 20


class GivesOneClass(Multiclass):
    def prediction(self, output_NO):
        return super().prediction(output_NO)[:, 1]


class GivesNoDistribution(Multiclass):
    def prediction(self, output_NO):
        return output_NO.sigmoid()


class LearnsNothing(Classification):
    def total(self, output_NO, label_N):
        return super().total(output_NO.detach() + 0 * output_NO, label_N)


class KeepsAState(Classification):
    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.learned = torch.zeros(())  # no buffer, so that it is in no state_dict

    def loss(self, model, batch):
        self.learned = self.learned + 1
        return super().loss(model, batch)

    def prediction(self, output_NO):
        return (output_NO[:, 0] + self.learned).sigmoid()


BROKEN = [
    ("is_a_sum", GivesAMean, "the sum of a batch's halves"),
    ("ignores_padding", SeesPadding, "with padding"),
    ("predicts", GivesLogits, "not between 0 and 1"),
    ("predicts", GivesOneClass, r"predict gives \(3,\); multiclass is \(3, 3\)"),
    ("predicts", GivesNoDistribution, "the sum of a sample's probabilities"),
    ("learns", LearnsNothing, "an easy rule was not learned"),
    ("survives_saving", KeepsAState, "others after loading"),
]


def component(broken, **fields):
    many = issubclass(broken, Multiclass)
    fields = {"outcomes": ("multiclass",) if many else ("binary",), **fields}
    config = MulticlassConfig if many else ClassificationConfig

    class Broken(Component):
        def load(self):
            return broken

    return Broken(name="broken", target="", config=config, **fields)


@pytest.mark.parametrize(("name", "broken", "words"), BROKEN, ids=[f"{name}-{b.__name__}" for name, b, _ in BROKEN])
def test_a_check_fails_on_an_objective_that_breaks_it(name, broken, words, tmp_path, monkeypatch):
    check = getattr(objective_checks, f"check_objective_{name}")
    if broken is KeepsAState:  # one loss more than the copy has seen
        monkeypatch.setattr(KeepsAState, "__init__", _counted(KeepsAState.__init__))
    with pytest.raises(AssertionError, match=words):
        check("objective", component(broken), tmp_path)


def _counted(init):
    made = []

    def start(self, *arguments, **named):
        init(self, *arguments, **named)
        made.append(self)
        self.learned = torch.tensor(float(len(made)))

    return start


def test_needs_have_names_that_models_know(tmp_path):
    with pytest.raises(AssertionError, match="needs has 'wings'; allowed: causal, cache, decode"):
        objective_checks.check_objective_needs("objective", component(Classification, needs=("wings",)), tmp_path)


def test_every_check_has_an_objective_that_fails_it():
    names = {f"check_objective_{name}" for name, _, _ in BROKEN} | {"check_objective_needs"}
    assert names == {check.__name__ for check in OBJECTIVE_CHECKS}


def test_an_error_says_for_which_kind_of_labels(tmp_path):
    with pytest.raises(AssertionError) as raised:
        objective_checks.check_objective_predicts("objective", component(GivesOneClass), tmp_path)
    assert raised.value.__notes__ == ["objective broken, labels of the kind multiclass"]
