import pytest
import torch
from ehr_models.generation.noise import Gumbel, draw_keys
from ehr_models.generation.sampling import Sampler
from ehr_models.generation.settings import GenerationConfig
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

CPU = torch.device("cpu")


def sampler(size, rows=1, never=(), **settings):
    return Sampler(GenerationConfig(**settings), list(never), size, rows, CPU)


def gumbel(seeds, steps, size):
    keys = torch.cat([draw_keys(seed, 1, 2, torch.tensor([0])) for seed in seeds])
    return -Gumbel(len(keys), size, CPU).negated(keys, torch.tensor(steps))


def test_noise_has_the_moments_and_quantiles_of_a_gumbel_variable():
    noise = gumbel([3] * 50, list(range(50)), 4000).flatten().double()
    assert noise.mean() == pytest.approx(0.5772, abs=0.01)
    assert noise.var() == pytest.approx(torch.pi**2 / 6, rel=0.02)
    uniform = torch.exp(-torch.exp(-noise)).sort().values
    expected = (torch.arange(len(uniform)) + 0.5) / len(uniform)
    assert (uniform - expected).abs().max() < 1.63 / len(uniform) ** 0.5  # Kolmogorov-Smirnov at 1%


@pytest.mark.parametrize("shift", [1, 7, 64])
def test_neighbouring_tokens_steps_draws_and_subjects_are_uncorrelated(shift):
    noise = gumbel([3] * 100, list(range(100)), 2000)
    keys = draw_keys(3, 1, 2, torch.arange(100))
    draws = -Gumbel(100, 2000, CPU).negated(keys, torch.zeros(100, dtype=torch.int64))
    subjects = gumbel(range(100), [0] * 100, 2000)
    pairs = [(noise[:, :-shift], noise[:, shift:]), (noise[:-shift], noise[shift:])]
    pairs += [(draws[:-shift], draws[shift:]), (subjects[:-shift], subjects[shift:])]
    for one, other in pairs:
        correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 5 / one.numel() ** 0.5


def test_tokens_are_drawn_as_often_as_their_probability_says():
    logits = torch.tensor([[2.0, 0.0, -1.0, 1.0, -torch.inf]])
    number = 40_000
    keys = draw_keys(1, 5, 6, torch.arange(number))
    token = sampler(5, number)(logits.repeat(number, 1), keys, torch.zeros(number, dtype=torch.int64))
    share = torch.bincount(token, minlength=5) / number
    expected = logits[0].softmax(-1)
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / number).sqrt() + 1e-9).all()


def test_filters_agree_with_those_of_transformers():
    logits = torch.randn(20, 40) * 3
    found = sampler(40, 20, temperature=0.7, top_k=13, top_p=0.85).scores(logits.clone())
    expected = TemperatureLogitsWarper(0.7)(None, logits)
    expected = TopPLogitsWarper(0.85)(None, TopKLogitsWarper(13)(None, expected))
    assert torch.equal(found.isinf(), expected.isinf())
    torch.testing.assert_close(found, expected)


def test_what_is_never_drawn_does_not_count_for_top_k_and_top_p():
    logits = torch.tensor([[9.0, 1.0, 0.5, 0.0]])
    assert sampler(4, never=[0], top_k=2).scores(logits.clone()).isfinite().tolist() == [[False, True, True, False]]
    assert sampler(4, never=[0], top_p=0.4).scores(logits.clone()).isfinite().tolist() == [[False, True, False, False]]


def test_noise_is_finite_where_the_hash_has_ones_only():
    """Key 16722 has 24 of them for token 4222: a uniform number of 1 there would let a masked token win."""
    noise = Gumbel(1, 4480, CPU).negated(torch.tensor([16722]), torch.tensor([0]))
    assert noise.isfinite().all()
    assert -noise[0, 4222] == pytest.approx(24 * 0.6931472, rel=1e-6)
