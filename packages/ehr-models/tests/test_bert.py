"""What must hold for the encoder whatever its weights are."""

import pytest
import torch
from ehr_core.errors import ConfigError, DataError
from ehr_models.bert import Bert, BertForMaskedLM, build
from ehr_models.bert_settings import BertConfig, ColumnConfig
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

COLUMNS = ["age_days", "visit", "sex"]
VARIANTS = {
    "plain": {},
    "pre": {"norm": "pre", "tied": False, "embedding_width": 16},
    "columns": {"columns": {"age_days": ColumnConfig(22, "age", 5.0), "visit": ColumnConfig(8)}, "token_types": 2},
    "sines": {"positions": "sinusoidal", "position_column": "visit", "columns": {"sex": ColumnConfig(3, "index")}},
    "rotary": {"positions": "rotary"},
    "by_age": {"positions": "rotary", "position_column": "age_days", "rotary_base": 50_000.0},
}


def make(name: str, **further) -> Bert:
    settings = BertConfig(
        **{"num_layers": 2, "width": 32, "mlp_width": 48, "context_length": 64, **VARIANTS[name], **further}
    )
    torch.manual_seed(0)
    model = build(settings, 100, COLUMNS)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()


def columns_of(batch):
    """Ages, visits and sex that follow from token and position, the same wherever a window stands."""
    found = {
        "age_days": 9000 + 400 * batch.position_BT + batch.token_BT,
        "visit": 1 + batch.position_BT // 3,
        "sex": batch.token_BT % 3,
    }
    batch.columns.update({name: torch.where(batch.segment_BT != 0, column, 0) for name, column in found.items()})
    return batch


def states(model, batch):
    return model(**columns_of(batch).inputs()).last_hidden_state


@pytest.fixture(params=VARIANTS)
def encoder(request):
    return make(request.param)


def test_a_window_gives_the_same_states_alone_padded_batched_and_packed(encoder, pack, windows):
    window, other, short = windows(24, 31, 5)
    alone = states(encoder, pack([window]))[0]
    places = [
        (pack([window], width=60), 0, 0),
        (pack([other], [window]), 1, 0),
        (pack([short, window, other], [other, short, short]), 0, 5),
        (pack([other, short], [short, short, window, short], [window, other]), 1, 10),
    ]
    for batch, row, start in places:
        torch.testing.assert_close(states(encoder, batch)[row, start : start + 24], alone, atol=2e-5, rtol=1e-4)


def test_every_position_sees_the_whole_window(encoder, pack, windows):
    batch = pack(windows(20, 20))
    before = states(encoder, batch)
    batch.token_BT[0, 19] = (batch.token_BT[0, 19] - 7 + 1) % 93 + 7
    after = states(encoder, batch)
    assert not torch.isclose(after[0, :20], before[0, :20], atol=1e-6).all(dim=-1).any()
    assert torch.equal(after[0, 20:], before[0, 20:])


def test_saving_keeps_every_bit_and_the_auto_classes_know_the_model(encoder, pack, windows, tmp_path):
    encoder.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "ehr-bert"
    batch = pack(windows(20, 13), windows(30))
    expected = states(encoder, batch)
    for loader in (Bert, AutoModel):
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, Bert)
        assert loaded.config.columns == encoder.config.columns
        assert torch.equal(states(loaded, batch), expected)
    masked = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert isinstance(masked, BertForMaskedLM)
    output = masked(**batch.inputs(), labels=batch.token_BT)
    assert torch.equal(output.logits, encoder.lm_logits(expected))
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("size", [50, 101, 300])
def test_resizing_keeps_rows_and_biases_bit_for_bit(encoder, tmp_path, size):
    rows, bias = encoder.embeddings.token.weight.detach().clone(), encoder.head.bias.detach().clone()
    decoder = None if encoder.head.decoder is None else encoder.head.decoder.weight.detach().clone()
    encoder.resize_token_embeddings(size)
    kept = min(size, 100)
    assert torch.equal(encoder.embeddings.token.weight[:kept], rows[:kept])
    assert torch.equal(encoder.head.bias[:kept], bias[:kept])
    if decoder is not None:
        assert torch.equal(encoder.head.decoder.weight[:kept], decoder[:kept])
    logits = encoder.lm_logits(torch.randn(3, 32))
    assert torch.isfinite(logits[:, :size]).all()
    assert (logits[:, size:] == -torch.inf).all()
    encoder.save_pretrained(tmp_path)
    assert torch.equal(Bert.from_pretrained(tmp_path).head.bias, encoder.head.bias)


def test_gradients_reach_every_parameter_with_and_without_checkpointing(encoder, pack, windows):
    batch = columns_of(pack(windows(30, 30), windows(60)))
    encoder.train()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            encoder.gradient_checkpointing_enable()
        encoder.zero_grad()
        encoder.lm_logits(states(encoder, batch))[..., :100].log_softmax(-1)[..., 7:].sum().backward()
        assert not [name for name, p in encoder.named_parameters() if p.grad is None]
        grads.append([p.grad.clone() for p in encoder.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_each_column_changes_what_the_model_makes_of_a_window(pack, windows):
    model = make("columns")
    batch = columns_of(pack(windows(12)))
    before = model(**batch.inputs()).last_hidden_state
    for name, value in (("age_days", 30_000), ("visit", 6)):
        after = model(**{**batch.inputs(), name: torch.full((1, 12), value)}).last_hidden_state
        assert not torch.allclose(after, before, atol=1e-3)


def test_ages_become_bins_of_years_with_one_for_an_unknown_birth():
    table = make("columns").embeddings.columns["age_days"]
    day = torch.tensor([0, 1826, 1827, 20 * 1826, 36_524, 36_525, 50_000, -1])
    assert table.rows(day).tolist() == [0, 0, 1, 19, 19, 20, 20, 21]


def test_visits_beyond_the_table_share_its_last_row_and_an_index_beyond_it_is_an_error(pack, windows):
    model = make("sines")
    assert make("columns").embeddings.columns["visit"].rows(torch.tensor([0, 7, 8, 900])).tolist() == [0, 7, 7, 7]
    batch = columns_of(pack(windows(5)))
    with pytest.raises(DataError, match=r"column 'sex' holds 3, and its table has rows 0 to 2"):
        model(**{**batch.inputs(), "sex": torch.full((1, 5), 3)})


def test_positions_by_age_depend_on_differences_of_ages_only(pack, windows):
    model = make("by_age")
    batch = columns_of(pack(windows(20)))
    before = model(**batch.inputs()).last_hidden_state
    shifted = model(**{**batch.inputs(), "age_days": batch.columns["age_days"] + 3650}).last_hidden_state
    stretched = model(**{**batch.inputs(), "age_days": batch.columns["age_days"] * 2}).last_hidden_state
    torch.testing.assert_close(shifted, before, atol=2e-3, rtol=1e-3)
    assert not torch.allclose(stretched, before, atol=1e-2)


def test_sines_are_fixed_unbounded_and_no_initialisation_touches_them(pack, windows, tmp_path):
    model = make("sines", weight_init="orthogonal")
    assert not [name for name in model.state_dict() if "position" in name]
    token = torch.full((1, 3), 9)
    place = torch.tensor([[0, 1, 100_000]])
    read = lambda network: network.embeddings(token, place, {"sex": torch.zeros(1, 3).long()})  # noqa: E731
    network = model.embeddings
    before = read(model)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    model.init_weights()
    network.load_state_dict(kept)
    assert torch.equal(read(model), before)
    model.save_pretrained(tmp_path)
    assert torch.equal(read(Bert.from_pretrained(tmp_path)), before)
    from ehr_models.layers.rotary import sinusoid

    expected = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.841471, 0.540302, 0.0099998, 0.99995]])
    torch.testing.assert_close(sinusoid(torch.tensor([0, 1]), 4), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", ["orthogonal", "xavier", "kaiming"])
def test_weights_start_as_asked_for(start):
    model = build(BertConfig(weight_init=start), 100)
    up = model.blocks[0].mlp.up_proj.weight  # (384, 96)
    if start == "orthogonal":
        torch.testing.assert_close(up.T @ up, torch.eye(96), atol=1e-4, rtol=0)
    else:
        bound = (6 / (384 + 96)) ** 0.5 if start == "xavier" else (6 / 96) ** 0.5
        assert 0.95 * bound < up.abs().max() <= bound
    assert (model.blocks[0].mlp.up_proj.bias == 0).all()


def test_a_column_that_the_store_does_not_have_is_left_out_with_a_notice(capsys, pack, windows):
    settings = BertConfig(columns={"visit": ColumnConfig(8), "region": ColumnConfig(9), "sex": ColumnConfig(0)})
    model = build(settings, 100, ["visit"])
    assert capsys.readouterr().err == "model bert: the token store has no region; going on without\n"
    assert list(model.config.columns) == ["visit"]
    with pytest.raises(DataError, match="no column 'visit'"):
        model(**pack(windows(5)).inputs())


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_heads": 5},
        {"mlp_width": 0},
        {"dropout": 1.0},
        {"activation": "tanh"},
        {"norm": "both"},
        {"positions": "learnt"},
        {"weight_init": "zero"},
        {"columns": {"visit": ColumnConfig(8, "log")}},
    ],
)
def test_a_shape_that_cannot_be_is_one_clear_error(wrong):
    with pytest.raises(ConfigError):
        build(BertConfig(**wrong), 100, ["visit"])


def test_ids_and_positions_out_of_range_are_one_clear_error():
    model = make("plain")
    with pytest.raises(DataError, match="token id 100"):
        model(torch.tensor([[3, 100]]))
    with pytest.raises(DataError, match="position 64"):
        model(torch.ones(1, 65, dtype=torch.int64))
