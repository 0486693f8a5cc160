"""The network against transformers' GPT-2 with the same weights and biases of zero."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel


@pytest.fixture
def reference(model):
    c = model.config
    config = GPT2Config(
        vocab_size=model.num_rows,
        n_positions=c.max_position_embeddings,
        n_embd=c.hidden_size,
        n_layer=c.num_hidden_layers,
        n_head=c.num_attention_heads,
        n_inner=c.intermediate_size,
        activation_function="gelu",
        bos_token_id=None,
        eos_token_id=None,
    )
    gpt2 = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in gpt2.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
        inner = gpt2.transformer
        inner.wte.weight.copy_(model.embeddings.token.weight)
        inner.wpe.weight.copy_(model.embeddings.position.weight)
        inner.ln_f.weight.copy_(model.norm.weight)
        for theirs, ours in zip(inner.h, model.blocks, strict=True):
            attention = ours.attention
            qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
            theirs.attn.c_attn.weight.copy_(qkv.T)  # GPT-2 keeps its matrices as (in, out)
            theirs.attn.c_proj.weight.copy_(attention.o_proj.weight.T)
            theirs.mlp.c_fc.weight.copy_(ours.mlp.up_proj.weight.T)
            theirs.mlp.c_proj.weight.copy_(ours.mlp.down_proj.weight.T)
            theirs.ln_1.weight.copy_(ours.attention_norm.weight)
            theirs.ln_2.weight.copy_(ours.mlp_norm.weight)
    return gpt2


def test_logits_are_those_of_gpt2(model, reference, pack, windows):
    batch = pack(windows(50), windows(50))
    with torch.no_grad():
        ours = model.lm_logits(model(**batch.inputs()).last_hidden_state)[..., :100]
        theirs = reference(batch.token_BT).logits[..., :100]
    assert theirs.std() > 0.5  # the weights say something
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_gpt2(model, reference, pack, windows):
    batch = pack(windows(50), windows(50))
    target = batch.token_BT.flatten()
    for network, run in (
        (model, lambda: model.lm_logits(model(**batch.inputs()).last_hidden_state)),
        (reference, lambda: reference(batch.token_BT).logits),
    ):
        network.zero_grad()
        torch.nn.functional.cross_entropy(run().flatten(0, 1)[:, :100], target).backward()
    block, theirs = model.blocks[0], reference.transformer.h[0]
    torch.testing.assert_close(block.mlp.up_proj.weight.grad, theirs.mlp.c_fc.weight.grad.T, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        model.embeddings.token.weight.grad, reference.transformer.wte.weight.grad, atol=1e-5, rtol=1e-3
    )
