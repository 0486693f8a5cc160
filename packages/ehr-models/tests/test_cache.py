"""Keys and values that are kept give what a pass over the whole context gives."""

import pytest
import torch
from ehr_models.gpt import build
from ehr_models.layers.cache import KVCache
from ehr_models.settings import GPTConfig

CPU = torch.device("cpu")
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
        self.cache.prefill(list(rows), CPU)
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

    def share(self, source, rows):
        """Rows begin with the context of ``source``."""
        self.cache.share(source, rows, len(self.rows[source]))
        self.rows |= {row: list(self.rows[source]) for row in rows}

    def check(self, found):
        """Logits of the first rows are those of a pass over the whole context."""
        for row, logits in enumerate(found):
            close(logits, whole(self.model, self.rows[row])[-1])

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
        cached.check(cached.go_on(new))
        assert [len(cached.rows[row]) for row in range(3)] == [length + step + 1 for length in lengths]


@torch.no_grad()
def test_padding_behind_shorter_contexts_does_not_reach_them(model):
    contexts = draw(3, 20, 11)
    for tokens, found in zip(contexts, Cached(model, rows=3).read(dict(enumerate(contexts))).values(), strict=True):
        close(found, whole(model, tokens))


@torch.no_grad()
def test_rows_that_share_their_beginning_go_on_apart(model):
    """Two groups, one of them with its rows apart, a row that shares nothing, and groups that begin at other steps."""
    cached = Cached(model, rows=8)
    first, second, alone = draw(12, 5, 7)
    cached.read({6: first, 7: second, 3: alone})
    cached.share(6, [0, 2])
    cached.share(7, [1])
    for new in draw(4, 4, 4):
        cached.check(cached.go_on(new))
    cached.share(7, [4, 5])
    for new in draw(6, 6, 6):
        cached.check(cached.go_on(new))
    cached.cache.settle(7)
    cached.cache.prefill([7], CPU)
    cached.read({7: draw(20)[0]})
    for new in draw(6, 6):
        cached.check(cached.go_on(new))


@torch.no_grad()
def test_a_row_that_moves_keeps_what_it_shares(model):
    cached = Cached(model, rows=6)
    context, alone = draw(9, 4)
    cached.read({5: context, 2: alone})
    cached.share(5, [0, 1, 3])
    cached.check(cached.go_on(draw(4)[0]))
    cached.cache.move([3, 2], [0, 1], [len(cached.rows[3]), len(cached.rows[2])])
    cached.rows[0], cached.rows[1] = list(cached.rows[3]), list(cached.rows[2])
    assert cached.cache.sharing(5) == [0]
    for new in draw(2, 2, 2):
        cached.check(cached.go_on(new))


@torch.no_grad()
def test_shared_beginnings_are_attended_to_in_bfloat16_nearly_as_well():
    model = build(GPTConfig(**SHAPE), 100).eval().bfloat16()
    cached = Cached(model, rows=3)
    cached.read({2: draw(12)[0]})
    cached.share(2, [0, 1])
    for new in draw(2, 2, 2):
        found = cached.go_on(new)
    expected = whole(model, cached.rows[0])[-1]
    torch.testing.assert_close(found[0], expected, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_a_row_that_held_a_longer_context_starts_afresh(model):
    cached = Cached(model, rows=1)
    cached.read({0: draw(30)[0]})
    cached.read({0: draw(5)[0]})
    cached.check(cached.go_on([9]))
