"""Presets by name, and the sizes that the documentation states."""

import pytest
from ehr_core import config
from ehr_core.plugins import build, registry
from ehr_models.settings import GPTConfig


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2_tiny", 467_136),
        ("gpt2_small_monolith", 47_490_816),
        ("gpt2_small_2exp", 75_811_584),
        ("gpt2_small_4exp", 132_443_904),
        ("gpt2_small_8exp", 245_708_544),
        ("gpt_modern", 45_918_720),
        ("gpt", 401_728),
    ],
)
def test_presets_have_the_parameters_that_are_documented(name, parameters):
    settings = config.preset("model", name)
    assert isinstance(settings, GPTConfig)
    model = build("model", settings, vocabulary_size=4480, columns=[])
    assert model.num_parameters() == parameters


def test_the_dense_model_of_the_paper_is_of_its_shape():
    found = config.preset("model", "gpt2_small_monolith")
    assert (found.num_layers, found.num_heads, found.width, found.context_length) == (6, 12, 768, 2048)
    assert found.dropout == 0.3


def test_the_presets_are_offered():
    assert {"gpt", "gpt2_tiny", "gpt2_small_monolith"} <= set(config.options()["model"])


def test_objectives_are_built_by_name():

    kinds = {name: part.outcomes for name, part in registry().components["objective"].items()}
    assert kinds["next_token"] == kinds["masked"] == kinds["next_visit"] == ()
    assert kinds["classification"] == ("binary",)
    assert kinds["survival"] == kinds["time_to_event"] == ("survival", "binary")
    assert registry().get("objective", "next_token").needs == ("causal",)
