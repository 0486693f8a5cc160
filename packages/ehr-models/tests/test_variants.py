"""The parts that settings exchange in ``gpt``: norms, MLPs, rotary positions, normalised queries and keys."""

import pytest
import torch
from ehr_core.errors import ConfigError, DataError
from ehr_models.gpt import build
from ehr_models.layers.blocks import GatedMLP
from ehr_models.settings import GPTConfig
from transformers import Qwen3Config, Qwen3ForCausalLM

SHAPE = {"num_layers": 2, "num_heads": 4, "width": 32, "context_length": 64}
MODERN = SHAPE | {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}


def sharp(settings: GPTConfig, columns=()):
    made = build(settings, 100, columns).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return made


def states(model, batch, **columns):
    return model(**batch.inputs(), **columns).last_hidden_state


@pytest.fixture
def model():
    return sharp(GPTConfig(**MODERN))


def test_all_modern_parts_together_are_qwen3(model, pack, windows):
    config = Qwen3Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=85,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
    )
    reference = Qwen3ForCausalLM(config).eval()
    names = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "attention": "self_attn"}
    state = {"model.embed_tokens.weight": model.embeddings.token.weight[:100], "model.norm.weight": model.norm.weight}
    for name, weight in model.blocks.named_parameters():
        index, part, rest = name.split(".", 2)
        state[f"model.layers.{index}.{names.get(part, part)}.{rest}"] = weight
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    reference.load_state_dict(state, strict=True)
    for layer in reference.model.layers:  # theirs takes one epsilon for all norms
        layer.self_attn.q_norm.variance_epsilon = layer.self_attn.k_norm.variance_epsilon = 1e-6
    batch = pack(windows(50), windows(50))
    with torch.no_grad():
        theirs = reference(batch.token_BT).logits
    ours = model.lm_logits(states(model, batch))[..., :100]
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", [{"norm": "rms"}, {"mlp": "swiglu"}, {"positions": "rotary"}, {"qk_norm": True}])
def test_each_part_alone_keeps_windows_apart_and_the_future_hidden(pack, windows, change):
    model = sharp(GPTConfig(**(SHAPE | change)))
    window, other = windows(24, 31)
    alone = states(model, pack([window]))[0]
    packed = states(model, pack([other, window], [window, other]))
    torch.testing.assert_close(packed[0, 31:], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[1, :24], alone, atol=1e-5, rtol=1e-5)
    longer = states(model, pack([torch.cat([window, other])]))[0]
    torch.testing.assert_close(longer[:24], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(states(model, pack([window.flip(0)]))[0].flip(0), alone, atol=1e-3)


def test_rotary_positions_have_no_table_and_count_only_differences(model, pack, windows):
    assert model.embeddings.position is None
    token = windows(30)[0][None]
    place = torch.arange(30)[None]
    one = model(token, position_ids=place).last_hidden_state
    two = model(token, position_ids=place + 20).last_hidden_state
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_rotary_positions_may_be_taken_from_a_column(pack, windows):
    model = sharp(GPTConfig(**MODERN, position_column="age"), ["age", "visit"])
    window = windows(30)[0]
    batch = pack([window])
    days = torch.tensor([[20000, *range(20001, 20030)]])
    found = states(model, batch, age=days)
    later = states(model, batch, age=days + 365)
    torch.testing.assert_close(later, found, atol=2e-2, rtol=2e-2)  # angles of ages are rounded to float32
    other = states(model, batch, age=days * 3)
    assert not torch.allclose(other, found, atol=0.1)
    with pytest.raises(DataError, match="no column 'age', which the model takes positions from"):
        states(model, batch)


def test_a_gated_mlp_has_as_many_parameters_as_an_ungated_one():
    gated, plain = (build(GPTConfig(width=96, mlp=name), 128).num_parameters() for name in ("swiglu", "gelu"))
    assert gated == plain
    assert isinstance(build(GPTConfig(mlp="swiglu"), 128).blocks[0].mlp, GatedMLP)


def test_normalised_queries_and_keys_do_not_grow_with_their_weights(pack, windows):
    model = sharp(GPTConfig(**(SHAPE | {"qk_norm": True})))
    batch = pack(windows(40))
    before = states(model, batch)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.q_proj.weight.mul_(100)
    torch.testing.assert_close(states(model, batch), before, atol=1e-3, rtol=1e-3)


def test_saved_and_loaded_it_is_the_same_model(model, pack, windows, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    batch = pack(windows(40))
    assert torch.equal(states(loaded, batch), states(model, batch))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 30}, "width is 30; it must be a multiple of model.num_heads, 4"),
        ({"norm": "batch"}, "norm is 'batch'; it must be one of layer, rms"),
        ({"mlp": "relu"}, "mlp is 'relu'; it must be one of gelu, swiglu"),
        ({"positions": "sines"}, "positions is 'sines'; it must be one of learned, rotary"),
        ({"positions": "rotary", "width": 36}, "even width, and theirs is 9"),
        ({"position_column": "age"}, "position_column=age needs model.positions=rotary"),
        ({"positions": "rotary", "position_column": "age"}, "'age'; columns of the token store: visit"),
    ],
)
def test_parts_that_cannot_be_are_one_clear_error(wrong, message):
    with pytest.raises(ConfigError, match=message):
        build(GPTConfig(**(SHAPE | wrong)), 100, ["visit"])
