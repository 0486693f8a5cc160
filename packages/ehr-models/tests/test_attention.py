"""Every way to compute attention against a loop over positions."""

import pytest
import torch
from ehr_core import plugins
from ehr_core.config import from_plain
from ehr_models.layers.attention import attend
from ehr_models.layers.layout import Layout, block_mask, dense_mask, make_layout, positions_of

SEGMENTS = {
    "whole rows": [[1] * 192, [1] * 192],
    "long segments": [[1] * 100 + [2] * 92, [1] * 192],
    "right padding": [[1] * 192, [1] * 80 + [0] * 112],
    "left padding": [[0] * 60 + [1] * 132, [1] * 192],
    "a row of padding": [[1] * 192, [0] * 192],
    "short segments": [[1 + i // 3 for i in range(192)], [1] * 180 + [0] * 12],
    "a hole": [[1] * 80 + [0] * 20 + [1] * 92, [1] * 192],
}


def by_hand(q, k, v, segment, causal):
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = segment[b] == segment[b, t]
            if causal:
                seen = seen & (torch.arange(q.shape[1]) <= t)
            score = torch.einsum("hc,shc->hs", q[b, t], k[b, seen]) / q.shape[-1] ** 0.5
            out[b, t] = torch.einsum("hs,shc->hc", score.softmax(-1), v[b, seen])
    return out


def kind(layout: Layout) -> str:
    if layout.lengths is not None:
        return "runs"
    return "blocks" if layout.blocks is not None else "whole" if layout.mask is None else "mask"


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", SEGMENTS)
def test_the_layout_chosen_for_any_segments_agrees_with_a_loop(name, causal):
    segment = torch.tensor(SEGMENTS[name])
    q, k, v = torch.randn(3, 2, 192, 2, 8)
    found = attend(q, k, v, make_layout(segment, causal, 8))
    real = segment != 0
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[real], by_hand(q, k, v, segment, causal)[real])


def test_each_kind_of_batch_gets_the_cheapest_exact_layout():
    chosen = {name: kind(make_layout(torch.tensor(rows), True, 8)) for name, rows in SEGMENTS.items()}
    assert chosen == {
        "whole rows": "whole",
        "long segments": "runs",
        "right padding": "runs",
        "left padding": "runs",
        "a row of padding": "runs",
        "short segments": "mask",  # too little work in them to be worth a call each
        "a hole": "mask",  # its two parts see each other
    }
    assert kind(make_layout(None, True, 8)) == "whole"


@pytest.mark.parametrize("causal", [True, False])
def test_the_block_mask_shows_what_the_dense_mask_shows(causal):
    segment = torch.tensor([[1] * 100 + [2] * 140 + [0] * 16, [1] * 7 + [2] * 249])
    blocks = block_mask(segment, causal)
    index = torch.arange(256)
    shown = blocks.mask_mod(torch.arange(2)[:, None, None], torch.tensor(0), index[:, None], index[None, :])
    assert torch.equal(shown, dense_mask(segment, causal)[:, 0])


def test_flex_attention_agrees_with_a_loop():
    from torch.nn.attention.flex_attention import flex_attention

    segment = torch.tensor([[1] * 100 + [2] * 140 + [0] * 16])
    q, k, v = torch.randn(3, 1, 256, 2, 16)
    found = flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=block_mask(segment, True))
    real = segment != 0
    torch.testing.assert_close(found.transpose(1, 2)[real], by_hand(q, k, v, segment, True)[real])


@pytest.mark.parametrize("name", SEGMENTS)
def test_gradients_do_not_depend_on_the_layout(name):
    segment = torch.tensor(SEGMENTS[name])
    weight = torch.randn(2, 192, 2, 8) * (segment != 0)[..., None, None]
    grads = []
    for layout in (make_layout(segment, True, 8), Layout(True, mask=dense_mask(segment, True))):
        torch.manual_seed(1)
        qkv = torch.randn(3, 2, 192, 2, 8, requires_grad=True)
        (attend(*qkv, layout) * weight).sum().backward()
        grads.append(qkv.grad)
    torch.testing.assert_close(*grads)


def test_positions_count_from_zero_in_each_run():
    segment = torch.tensor([[1, 1, 1, 2, 2, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
    assert positions_of(segment).tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 1, 0, 1, 2, 3, 4]]


@pytest.mark.parametrize("kind", ["gpt", "bert"])
@pytest.mark.parametrize("name", ["whole rows", "long segments", "right padding", "a hole"])
def test_attention_weights_are_given_when_asked_for_and_change_nothing(kind, name):
    settings = {"num_layers": 2, "num_heads": 2, "width": 16, "context_length": 192}
    model = plugins.build(
        "model", from_plain("model", {"name": kind, **settings}), vocabulary_size=30, columns=[]
    ).eval()
    segment, token = torch.tensor(SEGMENTS[name]), torch.randint(7, 30, (2, 192))
    plain = model(token, segment_ids=segment)
    found = model(token, segment_ids=segment, output_attentions=True)
    real = segment != 0
    torch.testing.assert_close(found.last_hidden_state[real], plain.last_hidden_state[real], rtol=1e-4, atol=1e-5)
    assert plain.attentions is None
    assert len(found.attentions) == 2
    seen = dense_mask(segment, model.causal)
    for weight in found.attentions:
        assert weight.shape == (2, 2, 192, 192)
        torch.testing.assert_close(weight.sum(-1), torch.ones(2, 2, 192))
        assert not weight.masked_select(~seen).any()


def test_attention_weights_are_those_of_transformers():
    from transformers import GPT2Config, GPT2Model

    theirs = GPT2Model(GPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2)).eval()
    theirs.set_attn_implementation("eager")
    ours = plugins.build(
        "model",
        from_plain("model", {"name": "gpt", "num_layers": 1, "num_heads": 2, "width": 8, "context_length": 16}),
        vocabulary_size=30,
        columns=[],
    ).eval()
    with torch.no_grad():
        ours.embeddings.token.weight[:30] = theirs.wte.weight
        ours.embeddings.position.weight.copy_(theirs.wpe.weight)
        parts = theirs.h[0].attn.c_attn.weight.T.chunk(3)
        for name, part in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True):
            getattr(ours.blocks[0].attention, name).weight.copy_(part)
    token = torch.randint(7, 30, (2, 9))
    expected = theirs(token, output_attentions=True).attentions[0]
    torch.testing.assert_close(ours(token, output_attentions=True).attentions[0], expected)
