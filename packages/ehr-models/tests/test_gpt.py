"""What must hold for the network whatever its weights are."""

import pytest
import torch
from ehr_core.errors import ConfigError, DataError
from ehr_models.gpt import build
from ehr_models.settings import GPTConfig


def states(model, batch):
    return model(**batch.inputs()).last_hidden_state


def logits(model, batch):
    return model.lm_logits(states(model, batch))


@pytest.mark.parametrize("lengths", [(60,), (20, 40), (5, 30, 9, 16)])
def test_changing_later_tokens_leaves_earlier_logits_equal(model, pack, windows, lengths):
    batch = pack(windows(*lengths), windows(sum(lengths)))
    before = logits(model, batch)
    for t in (1, 19, 20, 44, 59):
        batch.token_BT[:, t:] = torch.randint(7, 100, batch.token_BT[:, t:].shape)
        after = logits(model, batch)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t:], before[:, t:])
        before = after


def test_a_window_gives_the_same_states_alone_padded_batched_and_packed(model, pack, windows):
    window, other, short = windows(24, 31, 5)
    alone = states(model, pack([window]))[0]
    places = [
        (pack([window], width=60), 0, 0),
        (pack([other], [window]), 1, 0),
        (pack([other, window]), 0, 31),
        (pack([short, window, other], [other, short, short]), 0, 5),
        (pack([other, short], [short, short, window, short], [window, other]), 1, 10),
    ]
    for batch, row, start in places:
        torch.testing.assert_close(states(model, batch)[row, start : start + 24], alone, atol=1e-5, rtol=1e-5)


def test_packing_long_windows_changes_nothing(pack, windows):
    model = build(GPTConfig(num_layers=1, width=32, context_length=512), 100).eval()
    row = windows(200, 312)
    packed = states(model, pack(row, windows(512)))[0]
    alone = torch.cat([states(model, pack([window]))[0] for window in row])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_attention_mask_of_ones_and_zeros_is_understood(model, pack, windows, side):
    window = windows(24)[0]
    alone = states(model, pack([window]))[0]
    padding = torch.zeros(9, dtype=torch.int64)
    token = torch.cat([padding, window] if side == "left" else [window, padding])[None]
    mask = (token != 0).long()
    found = model(token, attention_mask=mask).last_hidden_state
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[mask.bool()], alone, atol=1e-5, rtol=1e-5)


def test_positions_and_segments_may_be_left_out(model, pack, windows):
    batch = pack(windows(40), windows(40))
    assert torch.equal(model(batch.token_BT).last_hidden_state, states(model, batch))
    packed = pack(windows(10, 30), windows(25, 15))
    found = model(packed.token_BT, segment_ids=packed.segment_BT).last_hidden_state
    assert torch.equal(found, states(model, packed))


def test_columns_that_the_network_does_not_use_do_no_harm(model, pack, windows):
    batch = pack(windows(12))
    found = model(**batch.inputs(), age=torch.ones(1, 12)).last_hidden_state
    assert torch.equal(found, states(model, batch))


def test_evaluation_is_deterministic_with_dropout_and_training_is_not(pack, windows):
    model = build(GPTConfig(dropout=0.5), 100)
    batch = pack(windows(30, 30), windows(50))
    assert not torch.equal(states(model, batch), states(model, batch))
    model.eval()
    assert torch.equal(states(model, batch), states(model, batch))


def test_padding_and_rows_of_padding_give_no_nan(model, pack, windows):
    model.train()
    batch = pack(windows(7), [], windows(20, 20), width=64)
    found = states(model, batch)
    assert torch.isfinite(found).all()
    found[batch.segment_BT != 0].sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_padded_ids_are_never_predicted_and_training_on_them_is_finite(model, pack, windows):
    found = logits(model, pack(windows(12)))
    assert found.shape[-1] == 128
    assert torch.isfinite(found[..., :100]).all()
    assert (found[..., 100:] == -torch.inf).all()
    assert (found.softmax(-1)[..., 100:] == 0).all()
    torch.nn.functional.cross_entropy(found[0], torch.arange(12)).backward()
    table = model.embeddings.token.weight.grad
    assert torch.isfinite(table).all()
    assert (table[100:] == 0).all()
    assert (table[:100] != 0).any(dim=1).all()


def test_a_vocabulary_that_needs_no_padding_gets_none():
    assert build(GPTConfig(width=96), 128).lm_logits(torch.randn(3, 96)).shape == (3, 128)


@pytest.mark.parametrize("segmented", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(model, pack, windows, segmented):
    model.train()
    batch = pack(windows(30, 30), windows(60)) if segmented else pack(windows(60), windows(60))
    grads = []
    calls = []
    for block in model.blocks:
        block.attention.register_forward_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        states(model, batch).square().sum().backward()
        grads.append([weight.grad.clone() for weight in model.parameters()])
    assert len(calls) == 2 + 2 * 2  # once without, and twice with
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_weights_start_as_in_gpt2():
    model = build(GPTConfig(num_layers=8, width=256), 512)
    block = model.blocks[3]
    for weight in (block.attention.q_proj.weight, block.mlp.up_proj.weight, model.embeddings.token.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    for weight in (block.attention.o_proj.weight, block.mlp.down_proj.weight):
        assert weight.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert not [name for name, _ in model.named_parameters() if "bias" in name]


def test_an_id_out_of_the_vocabulary_is_one_clear_error(model):
    with pytest.raises(DataError, match=r"token id 100, but the model knows ids 0 to 99.*another vocabulary"):
        model(torch.tensor([[3, 100]]))
    with pytest.raises(DataError, match="token id -1"):
        model(torch.tensor([[3, -1]]))


def test_a_position_out_of_the_context_is_one_clear_error(model):
    with pytest.raises(DataError, match=r"position 64, but the model has positions 0 to 63.*context_length"):
        model(torch.ones(1, 65, dtype=torch.int64))
    with pytest.raises(DataError, match="position 64"):
        model(torch.ones(1, 2, dtype=torch.int64), position_ids=torch.tensor([[0, 64]]))


def test_a_row_of_packed_windows_may_be_longer_than_the_context(model, pack, windows):
    assert states(model, pack(windows(60, 60))).shape == (1, 120, 32)


def test_a_mask_of_another_shape_is_one_clear_error(model):
    with pytest.raises(DataError, match=r"attention_mask is \(1, 3\)"):
        model(torch.ones(1, 2, dtype=torch.int64), attention_mask=torch.ones(1, 3))


@pytest.mark.parametrize("wrong", [{"width": 30}, {"num_layers": 0}, {"dropout": 1.0}])
def test_a_shape_that_cannot_be_is_one_clear_error(wrong):
    with pytest.raises(ConfigError):
        build(GPTConfig(**wrong), 100)
