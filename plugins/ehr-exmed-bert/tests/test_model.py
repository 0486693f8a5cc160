"""The network of ExMed-BERT, and the objectives that stand on it."""

import pytest
import torch
from ehr_core import config
from ehr_core.batch import Batch
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.outcomes import Question
from ehr_core.plugins import build
from ehr_exmed_bert.objectives import masked_mean
from ehr_exmed_bert.plugin import EndpointConfig, ExMedBertModelConfig, MlmPlosConfig
from ehr_models.layers.rotary import sinusoid

COLUMNS = ["age_days", "visit", "segment", "entity", "sex", "region"]
VOCABULARY = Vocabulary.build([Token(f"CODE//{number}", "code") for number in range(93)])
HEADS = ["ffn", "lstm", "gru", "rnn"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    settings = ExMedBertModelConfig(num_layers=1, width=32, mlp_width=48, dropout=0.0, attention_dropout=0.0)
    return build("model", settings, vocabulary_size=100, columns=COLUMNS).eval()


def pack(*rows, width=0, labels=()):
    """Rows of windows of tokens, with columns that follow from token and place."""
    width = max([width, *(sum(map(len, row)) for row in rows)])
    token, place, segment = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(3))
    last = []
    for b, row in enumerate(rows):
        start = 0
        for number, window in enumerate(row, start=1):
            here = slice(start, start + len(window))
            token[b, here], place[b, here], segment[b, here] = window, torch.arange(len(window)), number
            start += len(window)
            last.append(b * width + start - 1)
    columns = {"age_days": 9000 + 31 * place, "visit": 1 + place // 2, "entity": token % 4, "sex": token % 3}
    columns |= {"region": token % 5, "segment": place % 2}
    columns = {name: torch.where(segment != 0, column, 0) for name, column in columns.items()}
    label = torch.tensor(labels, dtype=torch.float32) if labels else None
    return Batch(token, place, segment, torch.zeros_like(segment, dtype=torch.bool), columns, label, torch.tensor(last))


def windows(*lengths):
    return [torch.randint(7, 100, (length,)) for length in lengths]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("tiny", 147_384), ("small", 343_672), ("medium", 1_088_568), ("large", 5_299_608)],
)
def test_presets_have_the_parameters_that_are_documented(name, parameters):
    built = build("model", config.preset("model", f"exmed_bert_{name}"), vocabulary_size=3000, columns=COLUMNS)
    assert built.num_parameters() == parameters


def test_the_visit_is_the_position_as_a_sine_that_nothing_overwrites(model, tmp_path):
    def difference(network):
        """What the fifth visit adds to the sum, beyond what the first does."""
        found = []
        network.embeddings.norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
        batch = pack(windows(6))
        for visit in (1, 5):
            network(**{**batch.inputs(), "visit": torch.full((1, 6), visit)})
        return found[1] - found[0]

    expected = (sinusoid(torch.tensor(5), 32) - sinusoid(torch.tensor(1), 32)).expand(1, 6, 32)
    torch.testing.assert_close(difference(model), expected, atol=1e-6, rtol=1e-6)
    model.init_weights()
    torch.testing.assert_close(difference(model), expected, atol=1e-6, rtol=1e-6)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(difference(type(model).from_pretrained(tmp_path)), expected, atol=1e-6, rtol=1e-6)
    assert not [name for name in model.state_dict() if "position" in name]


def test_a_record_with_one_code_a_visit_that_fills_the_context_is_read(model):
    batch = pack(windows(256))
    batch.columns["visit"] = torch.arange(1, 257)[None]
    assert torch.isfinite(model(**batch.inputs()).last_hidden_state).all()


def objective_of(settings, width=32):
    return build("objective", settings, width=width, vocabulary=VOCABULARY, question=Question("binary"))


def objectives(width=32):
    torch.manual_seed(3)
    made = {head: objective_of(EndpointConfig(head=head, final_blocks=1), width) for head in HEADS}
    made["plos"] = objective_of(MlmPlosConfig(), width)
    for objective in made.values():
        for weight in objective.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return {name: objective.eval() for name, objective in made.items()}


@pytest.mark.parametrize("name", [*HEADS, "plos"])
def test_a_prediction_does_not_depend_on_padding_batch_or_packing(model, name):
    objective = objectives()[name]
    window, other, short = windows(20, 33, 4)
    alone = objective.predict(model, pack([window]))
    padded = objective.predict(model, pack([window], width=68))
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)
    packed = objective.predict(model, pack([short, window, other], [other, short]))
    torch.testing.assert_close(packed[1:2], alone, atol=1e-5, rtol=1e-5)
    assert packed.std() > 1e-3


@pytest.mark.parametrize("head", ["lstm", "gru", "rnn"])
def test_a_recurrent_head_reads_each_sample_as_it_would_alone(model, head):
    objective = objectives()[head]
    batch = pack(windows(5, 17), windows(9))
    hidden = model(**batch.inputs()).last_hidden_state
    states = []
    for number, row in ((1, 0), (2, 0), (1, 1)):
        state = objective.rnn(hidden[row][batch.segment_BT[row] == number][None])[1]
        last = state[0] if isinstance(state, tuple) else state
        states.append(torch.cat([last[-2, 0], last[-1, 0]]))
    torch.testing.assert_close(objective.read(objective.rnn, hidden, batch), torch.stack(states), atol=1e-5, rtol=1e-4)


def test_pooling_is_the_mean_over_the_tokens_of_a_sample(model):
    batch = pack(windows(5, 17), windows(9))
    hidden = torch.randn(2, 22, 32)
    expected = torch.stack([hidden[0, :5].mean(0), hidden[0, 5:].mean(0), hidden[1, :9].mean(0)])
    torch.testing.assert_close(masked_mean(hidden, batch), expected)


def test_positive_samples_weigh_more_in_the_loss_of_an_endpoint(model):
    batch = pack(windows(9), windows(8), windows(7), labels=[1, 0, 1])
    objective = objective_of(EndpointConfig(positive_weight=3.0)).eval()
    probability = objective.predict(model, batch)
    found = objective.loss(model, batch)
    by_hand = -(3 * probability[0].log() + (1 - probability[1]).log() + 3 * probability[2].log())
    torch.testing.assert_close(found.total, by_hand)
    assert int(found.count) == 3


def test_the_joint_loss_is_that_of_hidden_tokens_and_that_of_the_stay(model):
    torch.manual_seed(1)
    objective = objective_of(MlmPlosConfig(plos_weight=2.0)).eval()
    batch = pack(windows(30, 12), windows(40), labels=[0, 1, 1])
    found = objective.loss(model, batch)
    masked, output = objective.run(model, batch)
    hidden, chosen = output.last_hidden_state, masked.chosen_BT
    assert [int(chosen[b][batch.segment_BT[b] == s].sum()) for b, s in ((0, 1), (0, 2), (1, 1))] == [4, 2, 6]
    mlm = -model.lm_logits(hidden).log_softmax(-1).gather(-1, batch.token_BT[..., None])[..., 0]
    plos = -objective.head(masked_mean(hidden, batch)).log_softmax(-1)
    total = 2 * (0.25 * plos[0, 0] + plos[1, 1] + plos[2, 1])
    for b, s in ((0, 1), (0, 2), (1, 1)):
        total = total + mlm[b][chosen[b] & (batch.segment_BT[b] == s)].mean()
    torch.testing.assert_close(found.total, total, atol=1e-4, rtol=1e-5)
    assert int(found.count) == 3
    torch.testing.assert_close(found.parts["mlm"][0], mlm[chosen].sum(), atol=1e-4, rtol=1e-5)
    assert int(found.parts["mlm"][1]) == 12
    found.total.backward()
    assert not [name for name, weight in objective.named_parameters() if weight.grad is None]


def test_what_cannot_be_is_one_clear_error(model):
    with pytest.raises(ConfigError, match="head is 'mlp'"):
        objective_of(EndpointConfig(head="mlp"))
    with pytest.raises(ConfigError):
        objective_of(MlmPlosConfig(plos_weight=-1.0))
    with pytest.raises(DataError, match="no labels"):
        objective_of(MlmPlosConfig()).loss(model, pack(windows(9)))
