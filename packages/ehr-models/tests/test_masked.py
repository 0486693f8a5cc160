"""The masked objective: what is hidden, what is predicted, and that both are the same wherever a window stands."""

from dataclasses import replace

import pytest
import torch
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.vocabulary import SPECIALS, Token, Vocabulary
from ehr_models.bert import build
from ehr_models.bert_settings import BertConfig
from ehr_models.objectives.masking import mask, most_chosen
from ehr_models.objectives.settings import MaskedConfig

from .parts import VOCABULARY, objective_of

MASK = 4


@pytest.fixture
def encoder():
    return build(BertConfig(num_layers=1, width=32, mlp_width=32, context_length=600, dropout=0.0), 100)


def hide(batch, seed=1, **settings):
    return mask(batch, MaskedConfig(**settings), seed, MASK, list(range(7)), 100)


def test_fifteen_percent_are_chosen_and_split_in_eighty_ten_and_ten(pack, windows):
    batch = pack(*([w] for w in windows(*[500] * 400)))
    found = hide(batch)
    chosen, now, before = found.chosen_BT, found.token_BT, batch.token_BT
    assert chosen.float().mean().item() == pytest.approx(0.15, abs=0.003)
    assert torch.equal(now[~chosen], before[~chosen])
    hidden, kept = now[chosen] == MASK, now[chosen] == before[chosen]
    assert hidden.float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / 93, abs=0.008)
    drawn = now[chosen][~hidden & ~kept]
    assert sorted(set(drawn.tolist())) == list(range(7, 100))  # every ordinary token, and no special
    assert torch.bincount(drawn, minlength=100)[7:].float().std() < 8


def test_specials_the_static_prefix_and_padding_are_never_chosen(pack, windows):
    row = windows(200)
    row[0][::3] = torch.arange(67) % 7
    batch = pack(row, width=300, prefix=50)
    for settings in ({"rate": 1.0, "mask_share": 1.0, "random_share": 0.0}, {"rate": 0.9, "exact": True}):
        found = hide(batch, **settings)
        may = (batch.segment_BT != 0) & ~batch.static_BT & (batch.token_BT >= 7)
        assert not (found.chosen_BT & ~may).any()
        assert found.chosen_BT[may].float().mean() > 0.85
        assert torch.equal(found.token_BT[~may], batch.token_BT[~may])


@pytest.mark.parametrize("exact", [False, True])
def test_what_is_hidden_of_a_window_does_not_depend_on_its_batch(exact, pack, windows):
    window, other, short = windows(60, 40, 7)
    alone = hide(pack([window]), exact=exact)
    for batch, row, start in (
        (pack([window], width=90), 0, 0),
        (pack([other], [short, window, other]), 1, 7),
        (pack([short, short, short, window], [other, other]), 0, 21),
    ):
        found = hide(batch, exact=exact)
        assert torch.equal(found.token_BT[row, start : start + 60], alone.token_BT[0])
        assert torch.equal(found.chosen_BT[row, start : start + 60], alone.chosen_BT[0])
    assert not torch.equal(hide(pack([window]), seed=2, exact=exact).chosen_BT, alone.chosen_BT)


def test_one_token_at_one_place_is_hidden_in_some_windows_and_not_in_others(pack, windows):
    rows = [torch.cat([torch.tensor([9]), window]) for window in windows(*[20] * 400)]
    assert hide(pack(*([row] for row in rows))).chosen_BT[:, 0].float().mean().item() == pytest.approx(0.15, abs=0.06)


def test_an_exact_share_is_rounded_limited_and_leaves_one_to_read(pack, windows):
    lengths = [1, 2, 3, 4, 10, 17, 100, 200]
    batch = pack(windows(*lengths), [])
    counts = {}
    for most in (0, 20):
        chosen = hide(batch, exact=True, most=most).chosen_BT
        counts[most] = [int(chosen[batch.segment_BT == number].sum()) for number in range(1, 9)]
    assert counts[0] == [0, 1, 1, 1, 2, 3, 15, 30]
    assert counts[20] == [0, 1, 1, 1, 2, 3, 15, 20]


def test_no_batch_chooses_more_than_the_bound_that_accelerators_use(pack, windows):
    for exact, lengths in ((True, [2] * 50), (True, [3, 4, 5] * 10), (False, [400]), (False, [3])):
        settings = MaskedConfig(exact=exact)
        for seed in range(30):
            batch = pack(windows(*lengths))
            assert hide(batch, seed, exact=exact).chosen_BT.sum() <= most_chosen(batch.token_BT.numel(), settings)


def test_the_loss_is_the_cross_entropy_of_hidden_tokens_and_the_same_with_a_bound(encoder, pack, windows):
    objective = objective_of("masked", 32).eval()
    batch = pack(windows(60, 30), windows(80))
    found = objective.loss(encoder.eval(), batch)
    masked, output = objective.run(encoder, batch)
    assert (masked.token_BT == MASK).any()
    logits = encoder.lm_logits(output.last_hidden_state)
    by_hand = -logits.log_softmax(-1).gather(-1, batch.token_BT[..., None])[..., 0][masked.chosen_BT].sum()
    torch.testing.assert_close(found.total, by_hand)
    assert int(found.count) == int(masked.chosen_BT.sum()) > 10
    right, count = found.parts["accuracy"]
    assert int(count) == int(found.count)
    assert int(right) == int((logits.argmax(-1) == batch.token_BT)[masked.chosen_BT].sum())
    bound = most_chosen(batch.token_BT.numel(), objective.settings)
    objective.places = lambda masked: masked.chosen_BT.flatten().float().topk(bound).indices
    again = objective.loss(encoder, batch)
    torch.testing.assert_close(again.total, found.total)
    assert int(again.count) == int(found.count)


def test_training_hides_anew_each_time_and_repeats_itself_from_the_same_random_state(encoder, pack, windows):
    objective = objective_of("masked", 32)
    batch = pack(windows(300))
    state = torch.get_rng_state()
    first = [objective.run(encoder, batch)[0].token_BT for _ in range(3)]
    assert not torch.equal(first[0], first[1])
    torch.set_rng_state(state)
    again = [objective.run(encoder, batch)[0].token_BT for _ in range(3)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    objective.eval()
    fixed = [objective.run(encoder, batch)[0].token_BT for _ in range(2)]
    assert torch.equal(*fixed)


def test_ids_come_from_a_vocabulary_of_its_own_kind(pack, windows):
    published = Vocabulary(
        [Token("[PAD]", "special"), Token("[MASK]", "special"), *(Token(f"G{n}", "code") for n in range(98))]
    )
    objective = objective_of("masked", 32, vocabulary=published)
    assert (objective.mask_token, objective.specials) == (1, [0, 1])
    batch = pack(windows(60), width=70)
    hidden = objective.run(build(BertConfig(num_layers=1, width=32), 100), batch)[0]
    changed = hidden.token_BT[hidden.token_BT != batch.token_BT]
    assert (changed == 1).float().mean() > 0.6
    assert not (hidden.token_BT[:, :60] == 0).any()
    with pytest.raises(FormatError, match=r"no \[MASK\]"):
        objective_of("masked", 32, vocabulary=Vocabulary([Token("[PAD]", "special"), Token("G", "code")]))
    ours = objective_of("masked", 32)
    assert (ours.mask_token, ours.specials) == (4, list(range(len(SPECIALS))))


def test_an_encoder_learns_what_its_neighbours_say(pack):
    torch.manual_seed(0)
    model = build(BertConfig(num_layers=2, width=48, mlp_width=96, dropout=0.0, norm="pre"), 40)
    objective = objective_of("masked", 48, vocabulary=Vocabulary(VOCABULARY.tokens[:40]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def batch():
        return pack(*([token.expand(8)] for token in torch.randint(7, 40, (48,))))

    for _ in range(100):
        loss = objective.loss(model, batch())
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    objective.eval()
    found = objective.loss(model.eval(), batch())
    right, count = found.parts["accuracy"]
    assert right / count > 0.9  # chance is 0.03


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": 1.5}, {"mask_share": 0.8, "random_share": 0.3}])
def test_shares_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        objective_of("masked", 8, **wrong)


def test_the_model_never_sees_what_it_has_to_predict_by_the_mask(encoder, pack, windows):
    objective = objective_of("masked", 32, mask_share=1.0, random_share=0.0).eval()
    batch = pack(windows(100))
    masked, output = objective.run(encoder.eval(), batch)
    token = torch.where(masked.chosen_BT, MASK, batch.token_BT)
    expected = encoder(**replace(batch, token_BT=token).inputs()).last_hidden_state
    assert torch.equal(output.last_hidden_state, expected)
