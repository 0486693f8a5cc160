"""Losses as sum and count, by hand and over splits."""

import dataclasses

import pytest
import torch
from ehr_core.batch import Batch
from ehr_core.errors import ConfigError, DataError
from ehr_models.base import EhrOutput
from ehr_models.gpt import build
from ehr_models.objectives.next_token import next_tokens
from ehr_models.settings import GPTConfig

from .parts import objective_of


@pytest.fixture
def next_token():
    return objective_of("next_token", 32)


def head(pooling="last", dropout=0.0):
    found = objective_of("classification", 32, pooling=pooling, dropout=dropout)
    torch.nn.init.normal_(found.head.weight, std=0.2)
    return found.eval()


def rows_of(batch: Batch, rows: slice) -> Batch:
    parts = (getattr(batch, name)[rows] for name in ("token_BT", "position_BT", "segment_BT", "static_BT"))
    return Batch(*parts)


def test_next_token_loss_agrees_with_a_loop(model, next_token, pack, windows):
    batch = pack(windows(10, 25), windows(33), windows(4, 4, 4), prefix=3)
    batch.token_BT[1, 20] = 0  # PAD inside a window is never predicted either
    found = next_token.loss(model, batch)
    logits = model.lm_logits(model(**batch.inputs()).last_hidden_state)
    total, count = 0.0, 0
    for b, t in torch.cartesian_prod(torch.arange(3), torch.arange(batch.token_BT.shape[1] - 1)).tolist():
        token, inside = batch.token_BT[b, t + 1], batch.segment_BT[b, t] == batch.segment_BT[b, t + 1] != 0
        if inside and token != 0 and not batch.static_BT[b, t + 1]:
            total -= logits[b, t].log_softmax(-1)[token].item()
            count += 1
    assert found.count.item() == count == (7 + 22) + (30 - 1) + 3 * 1
    assert found.total.item() == pytest.approx(total, rel=1e-5)
    assert found.parts == {}
    assert not found.count.requires_grad


def test_the_first_token_after_the_prefix_is_predicted_and_the_prefix_is_not(pack, windows):
    window = windows(6)[0]
    target = next_tokens(pack([window], prefix=2, width=8))
    assert target.tolist() == [[-100, *window[2:].tolist(), -100, -100, -100]]


def test_padding_is_not_predicted_whatever_ids_are_in_it(pack, windows):
    batch = pack(windows(6), width=12)
    batch.token_BT[:, 6:] = 9
    assert (next_tokens(batch)[:, 5:] == -100).all()


def test_the_loss_is_the_same_with_and_without_leaving_positions_out(model, next_token, pack, windows, monkeypatch):
    batch = pack(windows(10, 25), windows(33), prefix=3)
    plain = next_token.loss(model, batch)
    # On an accelerator no rows are left out; the ignored ones must then count for nothing.
    monkeypatch.setattr("ehr_models.objectives.next_token.gathers", lambda hidden: False)
    other = next_token.loss(model, batch)
    torch.testing.assert_close(other.total, plain.total)
    assert other.count == plain.count


def test_sums_and_counts_add_up_over_a_split_batch(model, next_token, pack, windows):
    batch = pack(windows(10, 25), windows(33), windows(4, 4, 4), windows(50), prefix=3)
    whole = next_token.loss(model, batch)
    parts = [next_token.loss(model, rows_of(batch, slice(*ends))) for ends in ((0, 1), (1, 4))]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    assert sum(part.count for part in parts) == whole.count


def test_a_batch_without_targets_gives_zero_and_a_gradient_of_zero(model, next_token, pack, windows):
    found = next_token.loss(model, pack(windows(3), prefix=3))
    assert (found.total.item(), found.count.item()) == (0, 0)
    found.total.backward()
    assert not model.blocks[0].mlp.up_proj.weight.grad.any()


def test_the_loss_is_float32_under_autocast(model, next_token, pack, windows):
    batch = pack(windows(40), windows(40))
    exact = next_token.loss(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = next_token.loss(model, batch)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, exact.total, rtol=0.02, atol=0)


def test_auxiliary_losses_enter_as_a_mean_beside_the_mean(model, next_token, pack, windows):
    class WithAuxiliary(torch.nn.Module):
        lm_logits = staticmethod(model.lm_logits)

        def forward(self, **inputs):
            output = model(**inputs)
            weight = model.norm.weight.sum() * 0 + 1
            losses = {"balance": (weight * 3.0, torch.tensor(2.0)), "z": (weight * 0.5, torch.tensor(1.0))}
            return EhrOutput(last_hidden_state=output.last_hidden_state, losses=losses)

    batch = pack(windows(40), windows(20, 20))
    plain, found = next_token.loss(model, batch), next_token.loss(WithAuxiliary(), batch)
    torch.testing.assert_close(found.total / found.count, plain.total / plain.count + 2.0)
    total, count = found.parts["auxiliary"]
    assert (total / count).item() == pytest.approx(2.0)
    assert not total.requires_grad


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_packed_samples_are_classified_as_one_by_one(model, pack, windows, pooling):
    objective = head(pooling)
    row, other = windows(10, 25, 3), windows(33, 20)
    labels = [1.0, 0.0, 0.0, 1.0, 1.0]
    packed = pack(row, other, labels=labels)
    single = [pack([window], labels=[label]) for window, label in zip(row + other, labels, strict=True)]
    together = objective.predict(model, packed)
    assert together.dtype == torch.float32
    assert together.std() > 0.01
    torch.testing.assert_close(together, torch.cat([objective.predict(model, batch) for batch in single]))
    losses = [objective.loss(model, batch) for batch in single]
    whole = objective.loss(model, packed)
    torch.testing.assert_close(whole.total, sum(loss.total for loss in losses))
    assert whole.count == sum(loss.count for loss in losses) == 5


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_several_samples_may_end_within_one_window_and_see_nothing_later(model, pack, windows, pooling):
    objective = head(pooling)
    first, window = windows(8, 30)
    batch = pack([first, window])
    ends = dataclasses.replace(batch, last_N=torch.tensor([12, 20, 37]))
    cut = [pack([window[:length]]) for length in (5, 13, 30)]
    torch.testing.assert_close(
        objective.predict(model, ends), torch.cat([objective.predict(model, part) for part in cut])
    )


def test_classification_loss_and_probability_agree_with_the_formula(model, pack, windows):
    objective = head()
    batch = pack(windows(10, 25), labels=[1.0, 0.0])
    p = objective.predict(model, batch)
    found = objective.loss(model, batch)
    torch.testing.assert_close(found.total, -p[0].log() - (1 - p[1]).log())
    assert found.total.dtype == torch.float32


def test_prediction_is_deterministic_although_training_drops(model, pack, windows):
    objective = head(dropout=0.5)
    batch = pack(windows(10, 25))
    assert torch.equal(objective.predict(model, batch), objective.predict(model, batch))
    objective.train()
    assert not torch.equal(objective.predict(model, batch), objective.predict(model, batch))


def test_wrong_pooling_and_batches_without_samples_are_clear_errors(model, pack, windows):
    with pytest.raises(ConfigError, match=r"objective.pooling is 'first'; allowed: last, cls, mean, attention"):
        head("first")
    batch = pack(windows(5))
    with pytest.raises(DataError, match="no labels"):
        head().loss(model, batch)
    with pytest.raises(DataError, match="last_N"):
        head().predict(model, rows_of(batch, slice(None)))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_every_parameter_gets_a_gradient(pack, windows, pooling):
    model = build(GPTConfig(num_layers=2, width=32, context_length=40), 60)
    objective = head(pooling)
    batch = pack([torch.randint(7, 60, (40,))], [torch.arange(20, 60)], labels=[1.0, 0.0])
    objective.loss(model, batch).total.backward()
    named = [*model.named_parameters(), *objective.named_parameters()]
    missing = [name for name, weight in named if weight.grad is None]
    assert missing == []
    model.zero_grad()
    objective_of("next_token", 32).loss(model, batch).total.backward()
    empty = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert empty == []
    assert model.embeddings.position.weight.grad[:39].any(dim=1).all()


def test_a_toy_grammar_is_learned_to_almost_nothing(pack):
    """A cycle over eleven tokens, started anywhere, in packed rows: after the first token all is certain."""
    model = build(GPTConfig(num_layers=1, num_heads=2, width=32, context_length=32), 20)
    objective = objective_of("next_token", 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def batch():
        starts = torch.randint(0, 11, (8, 2)).tolist()
        return pack(*([7 + (torch.arange(20) + one) % 11, 7 + (torch.arange(12) + two) % 11] for one, two in starts))

    for _ in range(200):
        optimizer.zero_grad()
        loss = objective.loss(model, batch())
        (loss.total / loss.count).backward()
        optimizer.step()
    loss = objective.loss(model.eval(), batch())
    assert (loss.total / loss.count).item() < 0.05


def test_a_label_in_the_tokens_is_learned(pack, windows):
    """Positive when a window holds token 7: the head must find it wherever it is."""
    model = build(GPTConfig(num_layers=1, num_heads=2, width=32, context_length=16), 20)
    objective = objective_of("classification", 32, dropout=0.0, pooling="mean")
    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=3e-3)

    def batch():
        rows = [[torch.randint(7, 20, (8,)), torch.randint(7, 20, (12,))] for _ in range(8)]
        return pack(*rows, labels=[float((window == 7).any()) for row in rows for window in row])

    for _ in range(500):
        optimizer.zero_grad()
        loss = objective.loss(model, batch())
        (loss.total / loss.count).backward()
        optimizer.step()
    model.eval()
    lasts = [batch() for _ in range(16)]
    right = [(objective.predict(model, last) > 0.5).float() == last.label_N for last in lasts]
    assert torch.cat(right).float().mean() > 0.92  # half of the windows are positive
