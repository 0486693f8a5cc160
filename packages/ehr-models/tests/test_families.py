"""What does not fit is one clear line, for every family."""

import pytest
import torch
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_models import adapters, bert, gpt, hf
from ehr_models.adapter_settings import AdapterConfig
from ehr_models.bert_settings import BertConfig
from ehr_models.hf_settings import HFConfig
from ehr_models.settings import GPTConfig

SHAPE = {"num_layers": 1, "num_heads": 4, "width": 32, "context_length": 40}
FAMILIES = {
    "gpt": (gpt, GPTConfig, {}),
    "modern": (gpt, GPTConfig, {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}),
    "experts": (gpt, GPTConfig, {"num_experts": 4}),
    "bert": (bert, BertConfig, {}),
    "bert, rotary": (bert, BertConfig, {"positions": "rotary", "norm": "pre"}),
    "llama": (hf, HFConfig, {}),
    "qwen3": (hf, HFConfig, {"architecture": "qwen3"}),
    "gpt2": (hf, HFConfig, {"architecture": "gpt2"}),
    "mamba": (hf, HFConfig, {"architecture": "mamba"}),
    "modernbert": (hf, HFConfig, {"architecture": "modernbert", "kind": "masked"}),
}
HAVE_ROTARY = ("modern", "bert, rotary", "llama", "qwen3", "modernbert")


def make(family, vocabulary_size=100, **changes):
    module, config, settings = FAMILIES[family]
    return module.build(config(**(SHAPE | settings | changes)), vocabulary_size, []).eval()


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def refused(kind, words, action):
    with pytest.raises(kind, match=words) as raised:
        action()
    assert "\n" not in str(raised.value)


def test_sizes_that_cannot_be_are_refused(family):
    refused(ConfigError, "30.*multiple of.*4|30 with 4 heads", lambda: make(family, width=30))
    for name in ("num_layers", "num_heads", "width", "context_length"):
        refused(ConfigError, "must be at least 1", lambda name=name: make(family, **{name: 0}))
    refused(ConfigError, "vocabulary", lambda: make(family, vocabulary_size=0))


@pytest.mark.parametrize("family", HAVE_ROTARY)
def test_rotary_positions_need_heads_of_an_even_width(family):
    refused(ConfigError, "even width|even rotary dimension|fails on its first tokens", lambda: make(family, width=36))


def test_ids_of_another_vocabulary_are_refused_even_where_the_table_has_a_row_for_padding(family):
    model = make(family)
    for wrong in (100, 127, 5000, -1):
        token = torch.tensor([[3, 8, wrong]])
        refused(DataError, f"token id {wrong}, but the model knows ids 0 to 99", lambda token=token: model(token))


def test_contexts_beyond_the_positions_are_refused(family):
    model = make(family)
    token = torch.full((1, 41), 9)
    refused(DataError, "position 40, but the model has positions 0 to 39", lambda: model(token))
    segments = torch.ones_like(token)
    refused(DataError, "position 40", lambda: model(token, segment_ids=segments))
    segments[:, 20:] = 2
    assert torch.isfinite(model(token, segment_ids=segments).last_hidden_state).all()


def test_a_saved_model_of_another_vocabulary_is_refused(family, tmp_path):
    make(family).save_pretrained(tmp_path)
    kind = type(make(family))
    refused(FormatError, "100 tokens, not 101", lambda: kind.from_pretrained(tmp_path, vocab_size=101))


def test_an_adapter_for_another_base_is_refused(family, tmp_path):
    torch.manual_seed(1)
    base, other = make(family), make(family)
    settings = AdapterConfig(targets="all")
    if family == "gpt2":  # transformers' has layers of another kind, which adapters are not made for
        refused(ConfigError, "no linear layer", lambda: adapters.wrap(base, settings))
        return
    adapters.save(adapters.wrap(base, settings), tmp_path / "adapter")
    refused(FormatError, "adapter for a base with weights", lambda: adapters.load(other, tmp_path / "adapter"))
