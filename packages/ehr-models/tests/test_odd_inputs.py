"""Inputs at the edge: empty, out of range, and configurations that nobody could mean."""

import pytest
import torch
from ehr_core import plugins
from ehr_core.config import from_plain
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.testing.model_maker import batch_of
from ehr_models.bert import Bert, EhrBertConfig
from ehr_models.gpt import EhrGPTConfig, GPTForCausalLM

from .parts import VOCABULARY, objective_of

V = 30
SHAPE = {"num_layers": 2, "num_heads": 2, "width": 16, "context_length": 32}


def make(name, **settings):
    found = from_plain("model", {"name": name, **SHAPE, **settings})
    return plugins.build("model", found, vocabulary_size=V, columns=[]).eval()


@pytest.mark.parametrize("settings", [{"name": "gpt"}, {"name": "gpt", "num_experts": 4}, {"name": "bert"}])
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_in_gives_nothing_out(settings, shape):
    assert make(**settings)(torch.zeros(shape, dtype=torch.int64)).last_hidden_state.shape == (*shape, 16)


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_positions_before_the_first_are_refused(name):
    with pytest.raises(DataError, match="position -1; positions are counted from 0"):
        make(name)(torch.full((1, 2), 8), position_ids=torch.tensor([[0, -1]]))


def test_attention_weights_are_not_kept_with_a_cache():
    model = make("gpt")
    with pytest.raises(ConfigError, match="without one"):
        model(torch.full((1, 2), 8), cache=model.make_cache(1, 4), output_attentions=True)


def test_token_types_that_the_model_has_not_are_refused():
    token = torch.full((1, 3), 8)
    model = Bert(EhrBertConfig(vocab_size=V, type_vocab_size=2)).eval()
    assert model(token, token_type_ids=torch.ones_like(token)).last_hidden_state.isfinite().all()
    with pytest.raises(DataError, match="token_type_ids go from 2 to 2, and the model has types 0 to 1"):
        model(token, token_type_ids=torch.full_like(token, 2))


def test_a_token_that_is_hidden_must_be_of_the_vocabulary_too():
    model = make("bert")
    token = torch.full((1, 4), 8)
    token[0, 2] = V
    objective = objective_of(
        "masked", 16, vocabulary=Vocabulary(VOCABULARY.tokens[:V]), rate=1.0, mask_share=1.0, random_share=0.0
    )
    with pytest.raises(DataError, match=f"token id {V}, but the model knows ids 0 to {V - 1}"):
        objective.loss(model, batch_of(token))


@pytest.mark.parametrize(("config", "values", "words"), [
    (EhrGPTConfig, {"norm": "foo"}, "norm is 'foo'; it must be one of layer, rms"),
    (EhrGPTConfig, {"num_attention_heads": 0}, "0 heads"),
    (EhrGPTConfig, {"positions": "rotary", "hidden_size": 18, "num_attention_heads": 2}, "theirs is 9"),
    (EhrBertConfig, {"hidden_act": "foo"}, "hidden_act is 'foo'"),
    (EhrBertConfig, {"positions": "rotary", "hidden_size": 18, "num_attention_heads": 2}, "theirs is 9"),
])  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused(config, values, words):
    with pytest.raises(ConfigError, match=words):
        config(vocab_size=V, **values)


def test_the_losses_of_experts_are_part_of_what_a_causal_model_gives_in_training():
    torch.manual_seed(0)
    model = GPTForCausalLM(make("gpt", num_experts=4).config)
    token = torch.randint(7, V, (2, 12))
    model.train()
    hidden = super(GPTForCausalLM, model).forward(token)
    assert set(hidden.losses) == {"balance", "router_z"}
    plain = model.eval()(token, labels=token).loss
    model.train()
    expected = plain + sum(value / count for value, count in hidden.losses.values())
    torch.testing.assert_close(model(token, labels=token).loss, expected)


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_a_low_rank_adapter_on_the_table_that_is_the_output_layer_too_is_refused(name):
    from peft import LoraConfig, get_peft_model

    hidden = torch.randn(2, 16)
    model = get_peft_model(make(name), LoraConfig(target_modules=["token"]))
    with pytest.raises(ConfigError, match="does not reach the output layer"):
        model.base_model.model.lm_logits(hidden)
    merged = model.merge_and_unload()
    assert merged.lm_logits(hidden).shape == (2, 64)
    for allowed in ({"modules_to_save": ["token"]}, {"trainable_token_indices": {"token": [8, 9]}}):
        found = get_peft_model(make(name), LoraConfig(target_modules=["q_proj"], **allowed))
        assert found.base_model.model.lm_logits(hidden).shape == (2, 64)


def test_a_folder_of_another_kind_of_model_is_refused_before_one_is_made(tmp_path):
    make("gpt").save_pretrained(tmp_path / "gpt")
    with pytest.raises(FormatError, match=r"a model of type 'ehr-gpt', not 'ehr-bert'"):
        Bert.from_pretrained(tmp_path / "gpt")
