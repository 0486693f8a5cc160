"""A model goes on with a vocabulary that has grown."""

import pytest
import torch
from ehr_core.config import from_plain
from ehr_core.errors import ConfigError
from ehr_core.plugins import build
from ehr_core.testing.small_network import SmallNetwork, small_network
from ehr_train.learner import grow_model

SHAPE = {"num_layers": 1, "num_heads": 2, "width": 16, "context_length": 32}
TOKENS = torch.arange(7, 19)[None]


def logits(model):
    with torch.no_grad():
        return model.lm_logits(model(TOKENS).last_hidden_state)


class Growing(SmallNetwork):
    """A stranger's network that shows its tables."""

    def get_input_embeddings(self):
        return self.token

    def set_input_embeddings(self, value):
        self.token = value


class GrowingWhole(Growing):
    def get_output_embeddings(self):
        return self.output

    def set_output_embeddings(self, value):
        self.output = value


@pytest.mark.parametrize("name", ["gpt", "bert", "hf", "stranger"])
def test_tokens_that_stay_keep_what_they_learned_and_new_ones_can_be_predicted(name):
    torch.manual_seed(0)
    if name == "stranger":
        model = GrowingWhole(small_network(100).config).eval()
    else:
        model = build("model", from_plain("model", {"name": name, **SHAPE}), vocabulary_size=100, columns=[]).eval()
    before = logits(model)[..., :100]
    grow_model(model, 150)
    after = logits(model)
    torch.testing.assert_close(after[..., :100], before, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(after[..., :150]).all()
    assert model.config.vocab_size == 150
    assert torch.isfinite(model(torch.tensor([[149, 120]])).last_hidden_state).all()


def test_what_cannot_grow_is_one_clear_line():
    with pytest.raises(ConfigError, match="from 100 to 150 tokens, and SmallNetwork cannot: it has no get_input_emb"):
        grow_model(small_network(100), 150)
    with pytest.raises(ConfigError, match="the output layer of Growing did not: it has 100 rows"):
        grow_model(Growing(small_network(100).config), 150)
    with pytest.raises(ConfigError, match="knows 100 tokens, and the vocabulary has 90; it can only grow"):
        grow_model(small_network(100), 90)
