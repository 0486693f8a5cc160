"""Architectures of transformers inside our contract: exact on packed rows, saved and loaded, refused with a line."""

import copy
import pickle

import pytest
import torch
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_models.gpt import build as build_gpt
from ehr_models.hf import HFModel, build
from ehr_models.hf_settings import HFConfig
from ehr_models.settings import GPTConfig
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM

SHAPE = {"num_layers": 2, "num_heads": 4, "width": 32, "context_length": 64}
ARCHITECTURES = [
    ("llama", "causal", "mask"),
    ("qwen2", "causal", "mask"),
    ("gpt2", "causal", "mask"),
    ("mistral", "causal", "mask"),
    ("mamba", "causal", "rows"),
    ("gemma2", "causal", "mask"),
    ("modernbert", "masked", "rows"),
    ("bert", "masked", "mask"),
    ("roberta", "masked", "rows"),
]


def sharp(architecture: str, kind: str = "causal", **settings) -> HFModel:
    """A small network in evaluation mode, with weights that are large enough to tell positions apart."""
    torch.manual_seed(0)
    made = build(HFConfig(architecture=architecture, kind=kind, **(SHAPE | settings)), 100).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return made


def states(model, batch):
    return model(**batch.inputs()).last_hidden_state


@pytest.fixture
def llama():
    return sharp("llama")


@pytest.mark.parametrize(("architecture", "kind", "packing"), ARCHITECTURES)
def test_a_window_gives_the_same_states_alone_padded_and_packed(architecture, kind, packing, pack, windows):
    model = sharp(architecture, kind)
    assert (model.config.packing, model.causal) == (packing, kind == "causal")
    window, other, short = windows(24, 31, 5)
    alone = model.inner.base_model(input_ids=window[None]).last_hidden_state[0]
    for batch, row, start in [
        (pack([window]), 0, 0),
        (pack([window], width=60), 0, 0),
        (pack([short, window, other], [other, short, short], []), 0, 5),
        (pack([other, short], [short, window], [window, other]), 1, 5),
    ]:
        found = states(model, batch)
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found[row, start : start + 24], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("architecture", "kind", "packing"), ARCHITECTURES)
def test_logits_are_those_of_the_inner_network_and_padded_ids_are_impossible(architecture, kind, packing, windows):
    model, token = sharp(architecture, kind), windows(20)[0][None]
    logits = model.lm_logits(model(token).last_hidden_state)
    assert logits.shape == (1, 20, 128)
    torch.testing.assert_close(logits[..., :100], model.inner(input_ids=token).logits[..., :100])
    assert torch.isneginf(logits[..., 100:]).all()


@pytest.mark.parametrize("packing", ["mask", "rows"])
def test_both_ways_of_packing_have_the_same_gradients(packing, pack, windows):
    batch = pack(windows(20, 30), windows(40))
    grads = []
    for way in ("mask", packing):
        model = sharp("llama", packing=way)
        assert model.config.packing == way
        found = states(model, batch)
        (found * (batch.segment_BT != 0)[..., None]).square().sum().backward()
        grads.append({name: w.grad for name, w in model.named_parameters() if w.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("packing", ["mask", "rows"])
def test_an_attention_mask_of_ones_and_zeros_is_understood(side, packing, windows):
    model, window = sharp("llama", packing=packing), windows(24)[0]
    padding = torch.zeros(9, dtype=torch.int64)
    token = torch.cat([padding, window] if side == "left" else [window, padding])[None]
    mask = (token != 0).long()
    found = model(token, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], model(window[None]).last_hidden_state[0], atol=1e-4, rtol=1e-4)


def test_a_window_may_be_as_long_as_the_context_says(pack, windows):
    for architecture, kind, _ in ARCHITECTURES:
        assert torch.isfinite(states(sharp(architecture, kind), pack(windows(64), windows(30, 34)))).all()


def test_a_layer_that_looks_less_far_than_a_window_has_windows_as_rows(pack, windows):
    model = sharp("mistral", overrides={"sliding_window": 8})
    assert model.config.packing == "rows"
    with pytest.raises(ConfigError, match=r"packing=mask does not keep the windows of mistral apart.*rows"):
        sharp("mistral", overrides={"sliding_window": 8}, packing="mask")


@pytest.mark.parametrize(
    ("architecture", "kind"), [("llama", "causal"), ("gpt2", "causal"), ("mamba", "causal"), ("modernbert", "masked")]
)
def test_a_saved_model_loads_bit_for_bit(architecture, kind, pack, windows, tmp_path):
    model, batch = sharp(architecture, kind), pack(windows(20, 30))
    model.save_pretrained(tmp_path)
    for loader in (HFModel, AutoModel):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, HFModel)
        assert (loaded.config.packing, loaded.causal) == (model.config.packing, model.causal)
        assert torch.equal(states(loaded, batch), states(model, batch))
        hidden = torch.randn(3, 32)
        assert torch.equal(loaded.lm_logits(hidden), model.lm_logits(hidden))
    with pytest.raises(FormatError, match="vocabulary of 100 tokens, not 99"):
        HFModel.from_pretrained(tmp_path, vocab_size=99)


@pytest.mark.parametrize("kind", ["ehr-gpt", "llama"])
def test_a_folder_with_a_model_of_another_kind_is_refused_before_any_is_made(kind, tmp_path, llama, monkeypatch):
    (build_gpt(GPTConfig(), 100) if kind == "ehr-gpt" else llama.inner).save_pretrained(tmp_path)
    monkeypatch.setattr(HFModel, "__init__", None)
    with pytest.raises(FormatError, match=f"is a model of type '{kind}', not 'ehr-hf'; load it with") as raised:
        HFModel.from_pretrained(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("architecture", "kind", "packing"), ARCHITECTURES)
def test_a_copy_is_the_same_network_and_shares_nothing(architecture, kind, packing, windows):
    model, token = sharp(architecture, kind), windows(20)[0][None]
    expected = model.lm_logits(model(token).last_hidden_state)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.lm_logits(other(token).last_hidden_state), expected)
        with torch.no_grad():
            for weight in other.parameters():
                weight.zero_()
        assert not other.lm_logits(other(token).last_hidden_state)[..., :100].any()
    assert torch.equal(model.lm_logits(model(token).last_hidden_state), expected)


def test_the_inner_network_is_saved_as_one_of_its_own(llama, windows, tmp_path):
    llama.inner.save_pretrained(tmp_path)
    theirs, token = AutoModelForCausalLM.from_pretrained(tmp_path), windows(20)[0][None]
    assert type(theirs) is LlamaForCausalLM
    torch.testing.assert_close(theirs(token).logits, llama.inner(token).logits)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("size", [60, 101, 300])
def test_resizing_keeps_old_rows_bit_for_bit(architecture, size, tmp_path):
    model = sharp(architecture)
    before = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(size)
    kept = min(100, size)
    assert torch.equal(model.get_input_embeddings().weight[:kept], before[:kept])
    logits = model.lm_logits(model(torch.tensor([[size - 1]])).last_hidden_state)
    assert logits.shape[-1] == (size + 63) // 64 * 64
    assert torch.isfinite(logits[..., :size]).all()
    assert torch.isneginf(logits[..., size:]).all()
    model.save_pretrained(tmp_path)
    assert HFModel.from_pretrained(tmp_path).config.vocab_size == size


@pytest.mark.parametrize("architecture", ["ibert", "esm"])
def test_an_architecture_that_cannot_change_its_vocabulary_says_so_in_one_line(architecture):
    with pytest.raises(ConfigError, match=f"the vocabulary of {architecture} cannot be changed") as raised:
        sharp(architecture, "masked").resize_token_embeddings(300)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("architecture", "kind", "overrides", "length"),
    [
        ("mamba", "causal", {}, 16),  # has states
        ("bloom", "causal", {}, 16),  # adds distances to the scores
        ("gemma2", "causal", {}, 16),  # caps the scores
        ("mistral", "causal", {"sliding_window": 8}, 16),  # forgets what is further away
        ("modernbert", "masked", {}, 16),
    ],
)
def test_networks_that_do_not_keep_keys_and_values_of_all_tokens_refuse_to_generate(
    architecture, kind, overrides, length
):
    model = sharp(architecture, kind, overrides=overrides)
    with pytest.raises(ConfigError, match=f"{architecture} cannot generate contexts of 16 tokens here") as raised:
        model.make_cache(4, length)
    assert "\n" not in str(raised.value)
    assert torch.isfinite(model(torch.full((1, 9), 9)).last_hidden_state).all()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "phi", "granite", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_networks_of_attention_alone_generate(architecture, dtype):
    assert sharp(architecture).to(dtype).make_cache(4, 16).length == 16


def test_overrides_reach_the_architecture():
    overrides = {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 500000.0}}
    model = sharp("llama", overrides=overrides, mlp_width=72)
    found = model.inner.config
    assert (found.num_key_value_heads, found.intermediate_size, found.rope_parameters["rope_theta"]) == (2, 72, 5e5)
    assert model.inner.lm_head.weight is model.inner.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"architecture": "lama"}, "no architecture 'lama'. Did you mean llama"),
        ({"architecture": "t5"}, "t5 has no causal language model"),
        ({"architecture": "llama", "kind": "masked"}, "llama has no masked language model"),
        ({"overrides": {"num_layer": 3}}, "llama has no setting 'num_layer'. Did you mean"),
        ({"overrides": {"hidden_act": "none such"}}, "llama cannot be made"),
        ({"kind": "prefix"}, "kind is 'prefix'; it must be one of causal, masked"),
        ({"packing": "tight"}, "packing is 'tight'"),
        ({"width": 30}, "width is 30; it must be a multiple of model.num_heads, 4"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"architecture": "fnet", "kind": "masked"}, "fnet mixes padding into the states of a window"),
        (
            {"architecture": "fnet", "kind": "masked", "packing": "rows"},
            "fnet mixes padding into the states of a window",
        ),
        ({"architecture": "electra", "kind": "masked"}, "how it computes logits is not known here"),
    ],
)
def test_what_cannot_be_is_one_clear_error(wrong, message):
    with pytest.raises(ConfigError, match=message) as raised:
        build(HFConfig(**(SHAPE | wrong)), 100)
    assert "\n" not in str(raised.value)


def test_ids_and_positions_out_of_range_are_refused(llama):
    with pytest.raises(DataError, match="token id 100, but the model knows ids 0 to 99"):
        llama(torch.tensor([[3, 100]]))
    with pytest.raises(DataError, match="position 64"):
        llama(torch.ones(1, 65, dtype=torch.int64))
