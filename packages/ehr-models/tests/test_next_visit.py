import dataclasses

import numpy as np
import pytest
import torch
from ehr_core.batch import Batch
from ehr_core.config import from_plain
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.vocabulary import CLS, PAD, SEP, SPECIALS, Token, Vocabulary
from ehr_core.plugins import build
from ehr_models.base import EhrOutput
from ehr_models.objectives.next_visit import average_precision
from sklearn.metrics import average_precision_score

from .parts import objective_of

WIDTH = 32
CODES = [Token(f"{kind}//{number}", "code", (), 100 - 10 * number) for kind in "DM" for number in range(5)]
VOCABULARY = Vocabulary([*(Token(name, "special", (), 900) for name in SPECIALS), *CODES, Token("SEX", "static")])
D0, D1, D2, D3, D4, M0 = (VOCABULARY[name] for name in ("D//0", "D//1", "D//2", "D//3", "D//4", "M//0"))
SEX = VOCABULARY["SEX"]


def batch_of(*rows, width=24, prefix=()):
    """Rows of records of visits of codes, as the tokenizer `visits` writes them: [CLS] code [SEP] code ..."""
    names = ("token", "position", "segment", "visit", "age_days")
    flat = {name: torch.zeros(len(rows), width, dtype=torch.int64) for name in names}
    static = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, records in enumerate(rows):
        at = 0
        for number, record in enumerate(records, start=1):
            tokens = [(token, 1) for token in prefix] + [(CLS, 1)]
            for visit, codes in enumerate(record, start=1):
                tokens += [(SEP, visit - 1)] * (visit > 1) + [(code, visit) for code in codes]
            end = at + len(tokens)
            flat["token"][row, at:end] = torch.tensor([token for token, _ in tokens])
            flat["visit"][row, at:end] = torch.tensor([visit for _, visit in tokens])
            flat["age_days"][row, at:end] = 365 * flat["visit"][row, at:end]
            flat["position"][row, at:end] = torch.arange(len(tokens))
            flat["segment"][row, at:end] = number
            static[row, at : at + len(prefix)] = True
            at = end
    columns = {name: flat.pop(name) for name in ("visit", "age_days")}
    return Batch(*(flat[name] for name in ("token", "position", "segment")), static, columns=columns)


def objective(**settings):
    return objective_of("next_visit", WIDTH, vocabulary=VOCABULARY, **settings).eval()


@pytest.fixture(params=["bert", "gpt"])
def model(request):
    columns = {"columns": {"visit": {"size": 32}, "age_days": {"size": 128, "transform": "age"}}}
    shape = {"name": request.param, "num_layers": 2, "num_heads": 2, "width": WIDTH, "context_length": 64}
    settings = from_plain("model", shape | (columns if request.param == "bert" else {}))
    made = build("model", settings, vocabulary_size=len(VOCABULARY), columns=["visit", "age_days"])
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return made.eval()


def test_the_sentence_ends_before_the_visit_that_is_asked_and_its_codes_are_the_labels():
    sentences = objective(max_labels=4).cut(batch_of([[[D0, M0], [D1, D4, D1, SEX]]], prefix=(SEX,)))
    assert objective(max_labels=4).labels == ["D//0", "M//0", "D//1", "M//1"]
    (tokens,) = sentences.batch.token_BT.tolist()
    assert tokens[:6] == [SEX, CLS, D0, M0, SEP, PAD]
    assert sentences.batch.segment_BT[0].tolist() == [1] * 5 + [0] * 19
    assert sentences.batch.last_N.tolist() == [4]
    assert sentences.label_NK.tolist() == [[0.0, 0.0, 1.0, 0.0]]  # D//4 is not among the labels, nor is SEX


def test_only_visits_with_enough_before_them_are_asked():
    record = [[D0], [D1], [D2], [D3]]
    asked = set()
    made = objective(min_visits=2).train()
    for _ in range(60):
        sentences = made.cut(batch_of([record, [[D0], [D1]]], [[[D4, M0]]], [[]]))
        assert len(sentences.label_NK) == 1
        asked.add(tuple(sentences.label_NK[0].nonzero().flatten().tolist()))
        assert sentences.batch.segment_BT[0].tolist().count(2) == 4, "a window that asks nothing stays as it is"
        assert sentences.batch.segment_BT[1].tolist().count(1) == 3
    names = {objective().labels[place] for (place,) in asked}
    assert names == {"D//2", "D//3"}


def test_the_visit_that_is_asked_is_fixed_in_evaluation_and_is_the_same_in_any_batch():
    made = objective()
    records = [[[D0, D1], [D2], [D3, M0], [D4]], [[D1], [D2, D3], [D0]], [[M0], [D2], [D4], [D1]]]
    together = made.cut(batch_of(records, width=40))
    again = made.cut(batch_of(records, width=40))
    assert torch.equal(together.label_NK, again.label_NK)
    for number, record in enumerate(records):
        alone = made.cut(batch_of([record]))
        assert torch.equal(alone.label_NK[0], together.label_NK[number])


def with_visits(batch, *numbers):
    """The batch with these visits at its tokens from the second visit on."""
    visit = batch.columns["visit"].clone()
    visit[0, 3 : 3 + len(numbers)] = torch.tensor(numbers)
    return dataclasses.replace(batch, columns={"visit": visit})


def test_events_outside_of_visits_are_seen_when_they_come_before_and_are_no_labels():
    batch = batch_of([[[D0], [D1, D2, D3]]])
    for numbers, seen, labels in (
        ((2, 2, 0), [CLS, D0, SEP], ["D//1", "D//2"]),
        ((0, 2, 2), [CLS, D0, SEP, D1], ["D//2", "D//3"]),
        ((2, 0, 2), [CLS, D0, SEP], ["D//1", "D//3"]),
    ):
        made = objective().train()
        for _ in range(5):
            sentences = made.cut(with_visits(batch, *numbers))
            assert sentences.batch.token_BT[0].tolist() == seen + [PAD] * (24 - len(seen))
            assert sorted(made.labels[place] for place in sentences.label_NK[0].nonzero().flatten()) == labels


def test_nothing_of_the_visit_or_of_what_follows_reaches_the_answer(model):
    """Other codes, ages and visits from the asked visit on leave the outputs equal, bit for bit."""
    made = objective()
    one = batch_of([[[D0, D1], [D2, M0]], [[D3], [D1]]])
    answer, _ = made.outputs(model, made.cut(one).batch)
    token, columns = one.token_BT.clone(), {name: values.clone() for name, values in one.columns.items()}
    later = torch.tensor([4, 5])
    assert token[0, later].tolist() == [D2, M0]
    token[0, later] = torch.tensor([D4, D3])
    columns["age_days"][0, later] = 30 * 365
    changed = made.cut(dataclasses.replace(one, token_BT=token, columns=columns))
    assert changed.label_NK[0].tolist() != made.cut(one).label_NK[0].tolist()
    assert torch.equal(made.outputs(model, changed.batch)[0], answer)
    short = made.cut(batch_of([[[D0, D1], [D4]], [[D3], [D1]]]))
    torch.testing.assert_close(made.outputs(model, short.batch)[0], answer, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_sum_over_samples_and_labels_by_hand(model):
    made = objective(max_labels=3, pooling="mean")
    records = [[[D0], [D1, M0]], [[D2, D0], [D0]]]
    loss = made.loss(model, batch_of(records))
    assert made.labels == ["D//0", "M//0", "D//1"]
    labels = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    expected = torch.zeros(())
    for tokens, label in zip([[CLS, D0, SEP], [CLS, D2, D0, SEP]], labels, strict=True):
        ids = torch.tensor([tokens])
        given = {"visit": torch.ones_like(ids), "age_days": torch.full_like(ids, 365)}
        state = model(ids, torch.arange(len(tokens))[None], torch.ones_like(ids), **given).last_hidden_state
        output = made.head(state.mean(1))[0]
        probability = output.sigmoid()
        expected = expected - (label * probability.log() + (1 - label) * (1 - probability).log()).sum()
    torch.testing.assert_close(loss.total, expected, rtol=1e-4, atol=1e-4)
    assert float(loss.count) == 6


def test_average_precision_is_that_of_scikit_learn_over_samples():
    rng = np.random.default_rng(3)
    output, label = torch.tensor(rng.normal(size=(40, 12))), torch.tensor(rng.random((40, 12)) < 0.2).float()
    label[:3] = 0.0
    total, count = average_precision(output, label)
    known = label.sum(1) > 0
    expected = average_precision_score(label[known].numpy(), output[known].numpy(), average="samples")
    assert float(total / count) == pytest.approx(expected, rel=1e-6)
    assert float(count) == int(known.sum())
    made = objective(max_labels=2)
    assert "average_precision" not in made.train().loss(_zero(), batch_of([[[D0], [D0]]])).parts


class _zero(torch.nn.Module):  # noqa: N801
    def forward(self, input_ids, **inputs):
        hidden = torch.zeros(*input_ids.shape, WIDTH)
        return EhrOutput(last_hidden_state=hidden, losses={})


def test_labels_are_the_most_frequent_codes_of_the_kinds_and_names_that_are_wanted():
    assert objective(max_labels=3, prefixes=["M//"]).labels == ["M//0", "M//1", "M//2"]
    assert objective(min_count=90).labels == ["D//0", "M//0", "D//1", "M//1"]
    assert len(objective().labels) == len(CODES)


def test_a_batch_that_asks_nothing_has_no_loss_and_every_parameter_still_gets_a_gradient(model):
    made = objective()
    loss = made.loss(model, batch_of([[[D0, D1]]]))
    assert (loss.total.item(), loss.count.item()) == (0.0, 0.0)
    loss.total.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in made.parameters())


def test_what_cannot_be_asked_is_one_clear_line():
    with pytest.raises(ConfigError, match="max_labels is 0"):
        objective(max_labels=0)
    with pytest.raises(ConfigError, match="no token of kind code occurs 1000 times"):
        objective(min_count=1000)
    batch = batch_of([[[D0], [D1]]])
    with pytest.raises(DataError, match="reads the column 'visit', and the store has age_days"):
        objective().cut(dataclasses.replace(batch, columns={"age_days": batch.columns["age_days"]}))


def test_a_grammar_of_visits_is_learned(model):
    """Code n is followed by code n + 1 (modulo 5) of its kind in the next visit: from chance to nearly certain."""
    torch.manual_seed(0)
    made = objective(dropout=0.0).train()
    optimizer = torch.optim.AdamW([*model.parameters(), *made.parameters()], lr=1e-3)
    rng = np.random.default_rng(0)

    def draw(rows):
        records = []
        for _ in range(rows):
            kind, number, length = rng.integers(2), rng.integers(5), int(rng.integers(2, 5))
            records.append([[[7 + 5 * int(kind) + int(number + step) % 5] for step in range(length)]])
        return batch_of(*records, width=12)

    start = made.eval().loss(model, draw(64))
    model.train()
    made.train()
    for _ in range(250):
        loss = made.loss(model, draw(16))
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()
    end = made.eval().loss(model.eval(), draw(64))
    before, after = (float(part.parts["average_precision"][0]) / 64 for part in (start, end))
    assert before < 0.6
    assert after > 0.95
    assert (end.total / end.count).item() < 0.5 * (start.total / start.count).item()
