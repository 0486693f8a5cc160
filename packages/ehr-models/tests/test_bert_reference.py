"""The encoder against transformers' BertForMaskedLM with the same weights, and its weights there and back."""

import pytest
import torch
from ehr_core.errors import ConfigError, FormatError
from ehr_models.bert import Bert, build
from ehr_models.bert_settings import BertConfig, ColumnConfig
from ehr_models.bert_weights import bert_state, import_bert, load_bert
from transformers import BertConfig as TheirConfig
from transformers import BertForMaskedLM


def reference(activation: str = "gelu") -> BertForMaskedLM:
    torch.manual_seed(1)
    config = TheirConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        type_vocab_size=2,
        hidden_act=activation,
        layer_norm_eps=1e-12,
    )
    found = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for weight in found.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return found


def ours(activation: str = "gelu") -> Bert:
    settings = BertConfig(num_layers=2, width=32, mlp_width=48, context_length=40, token_types=2, activation=activation)
    return build(settings, 100).eval()


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_logits_and_gradients_are_those_of_bert(activation, pack, windows):
    theirs, model = reference(activation), ours(activation)
    load_bert(model, theirs.state_dict())
    batch = pack(windows(30), windows(21), width=30)
    real = batch.segment_BT != 0
    found = model.lm_logits(model(**batch.inputs()).last_hidden_state)[..., :100]
    expected = theirs(batch.token_BT, attention_mask=real.long()).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)
    for logits in (found, expected):
        torch.nn.functional.cross_entropy(logits[real], batch.token_BT[real]).backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    for mine, yours in (
        ("embeddings.token.weight", "bert.embeddings.word_embeddings.weight"),
        ("blocks.0.attention.q_proj.weight", "bert.encoder.layer.0.attention.self.query.weight"),
        ("blocks.1.mlp.down_proj.bias", "bert.encoder.layer.1.output.dense.bias"),
        ("head.bias", "cls.predictions.bias"),
    ):
        torch.testing.assert_close(model.get_parameter(mine).grad[:100], grads[yours][:100], atol=1e-5, rtol=1e-3)


def test_weights_go_to_bert_and_back(tmp_path):
    theirs = reference()
    theirs.save_pretrained(tmp_path)
    model = import_bert(tmp_path)
    assert (model.config.num_hidden_layers, model.config.vocab_size, model.num_rows) == (2, 100, 128)
    fresh = reference("relu")
    fresh.load_state_dict(bert_state(model), strict=True)
    again, first = fresh.state_dict(), theirs.state_dict()
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_weights_of_another_shape_are_refused(tmp_path):
    state = reference().state_dict()
    with pytest.raises(FormatError, match="position_embeddings"):
        load_bert(build(BertConfig(num_layers=2, width=32, mlp_width=48, token_types=2), 100), state)
    with pytest.raises(ConfigError, match="is BERT"):
        bert_state(build(BertConfig(columns={"visit": ColumnConfig(4)}), 100, ["visit"]))
    with pytest.raises(FormatError, match=r"config\.json is missing"):
        import_bert(tmp_path)
