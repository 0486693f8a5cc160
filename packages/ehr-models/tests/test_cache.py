"""Keys and values that are kept give what a pass over the whole context gives."""

import pytest
import torch
from ehr_models.cache import KVCache
from ehr_models.gpt import build
from ehr_models.settings import GPTConfig

SHAPE = {"num_layers": 2, "num_heads": 4, "width": 32, "context_length": 40}
VARIANTS = {
    "gpt": {},
    "modern": {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True},
    "experts": {"num_experts": 4, "top_k": 2},
    "experts in every second block": {"num_experts": 3, "top_k": 1, "stride": 2},
}


@pytest.fixture(params=VARIANTS)
def model(request):
    made = build(GPTConfig(**SHAPE, **VARIANTS[request.param]), 100).double().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return made


def whole(model, tokens):
    return model.lm_logits(model(torch.tensor([tokens])).last_hidden_state)[0, :, :100]


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # routers compute in float32


class Cached:
    """Rows of different lengths that go on token by token."""

    def __init__(self, model, rows, length=40):
        self.model, self.cache, self.rows = model, KVCache(2, rows, length), {}

    def read(self, rows):
        """Whole contexts, by row."""
        token = torch.zeros(len(rows), max(map(len, rows.values())), dtype=torch.int64)
        for index, tokens in enumerate(rows.values()):
            token[index, : len(tokens)] = torch.tensor(tokens)
        self.cache.prefill(torch.tensor(list(rows)))
        hidden = self.model(token, cache=self.cache).last_hidden_state
        self.rows |= {row: list(tokens) for row, tokens in rows.items()}
        return {row: self.logits(hidden[index, : len(tokens)]) for index, (row, tokens) in enumerate(rows.items())}

    def go_on(self, new):
        """One token for each of the first rows."""
        lengths = [len(self.rows[row]) for row in range(len(new))]
        self.cache.step(lengths, torch.tensor(lengths))
        hidden = self.model(torch.tensor(new)[:, None], torch.tensor(lengths)[:, None], cache=self.cache)
        for row, token in enumerate(new):
            self.rows[row].append(token)
        return self.logits(hidden.last_hidden_state[:, 0])

    def logits(self, hidden):
        return self.model.lm_logits(hidden)[..., :100]


def draw(*lengths):
    return [torch.randint(7, 100, (length,)).tolist() for length in lengths]


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 4, 15)])
def test_contexts_that_go_on_are_as_if_read_anew(model, lengths):
    cached, contexts = Cached(model, rows=4), draw(*lengths)
    cached.read(dict(enumerate(contexts)))
    for step in range(6):
        new = draw(3)[0]
        found = cached.go_on(new)
        for row in range(3):
            close(found[row], whole(model, cached.rows[row])[-1])
            assert len(cached.rows[row]) == lengths[row] + step + 1


@torch.no_grad()
def test_padding_behind_shorter_contexts_does_not_reach_them(model):
    contexts = draw(3, 20, 11)
    for tokens, found in zip(contexts, Cached(model, rows=3).read(dict(enumerate(contexts))).values(), strict=True):
        close(found, whole(model, tokens))


@torch.no_grad()
def test_copies_of_a_row_go_on_apart(model):
    cached = Cached(model, rows=4)
    (context,) = draw(12)
    cached.read({3: context})
    cached.cache.copy([3, 3], [0, 1], 12)
    cached.rows |= {0: list(context), 1: list(context)}
    for one, other in zip(*draw(5, 5), strict=True):
        found = cached.go_on([one, other])
        close(found[0], whole(model, cached.rows[0])[-1])
        close(found[1], whole(model, cached.rows[1])[-1])


@torch.no_grad()
def test_a_row_that_held_a_longer_context_starts_afresh(model):
    cached = Cached(model, rows=1)
    cached.read({0: draw(30)[0]})
    cached.read({0: draw(5)[0]})
    close(cached.go_on([9])[0], whole(model, cached.rows[0])[-1])
