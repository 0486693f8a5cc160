"""The generation engine against a loop that computes every context from scratch."""

import numpy as np
import pytest
import torch
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.intervals import Interval, Intervals
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_models import gpt, hf
from ehr_models.generation.engine import Engine, _Work
from ehr_models.generation.noise import draw_keys
from ehr_models.generation.rows import Prompt
from ehr_models.generation.sampling import Sampler
from ehr_models.generation.settings import GenerationConfig
from ehr_models.gpt import build
from ehr_models.hf_settings import HFConfig
from ehr_models.settings import GPTConfig

CODES = [Token(f"CODE//{index}", "code") for index in range(50)]
INTERVALS = [Token("1h", "interval"), Token("1d", "interval"), Token("9d", "interval")]
VOCABULARY = Vocabulary.build([*CODES, *INTERVALS, Token("TIMELINE_END", "end")])
PREFILL = _Work._prefill
SHAPE = {"num_layers": 2, "num_heads": 4, "width": 16, "context_length": 14}
FAMILIES = {
    "experts": (gpt, GPTConfig(**SHAPE, num_experts=4)),
    "modern": (gpt, GPTConfig(**SHAPE, norm="rms", mlp="swiglu", positions="rotary", qk_norm=True)),
    "llama": (hf, HFConfig(**SHAPE)),
    "qwen3": (hf, HFConfig(**SHAPE, architecture="qwen3", overrides={"num_key_value_heads": 2})),
    "gpt2": (hf, HFConfig(**SHAPE, architecture="gpt2")),
}
SECONDS = {"1h": 3600.0, "1d": 86400.0, "9d": 9 * 86400.0}


@pytest.fixture
def model():
    """In double precision, so that no two tokens are too close to call; weights large enough for a varied choice."""
    made = build(GPTConfig(num_layers=2, num_heads=2, width=16, context_length=24), len(VOCABULARY)).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return made


def prompts(*lengths, prefix=2, seed=5):
    random = np.random.default_rng(seed)
    return [
        Prompt(subject, 1_000 * subject, random.integers(7, len(VOCABULARY) - 1, length), min(prefix, length - 1))
        for subject, length in enumerate(lengths, start=1)
    ]


def engine(model, intervals=SECONDS, **settings):
    lengths = Intervals({name: Interval(seconds, 0.0, None) for name, seconds in (intervals or {}).items()})
    return Engine(model, VOCABULARY, GenerationConfig(**{"draws": 3, "max_new_tokens": 12} | settings), lengths)


def drawn(engine, asked):
    found = {(one.subject_id, one.time, one.draw): one for one in engine.generate(asked)}
    return {key: (one.tokens.tolist(), one.stop_reason, one.seconds) for key, one in sorted(found.items())}


@torch.no_grad()
def from_scratch(engine, prompt, draw):
    """One trajectory, one token at a time, without a cache."""
    settings, model, window = engine.settings, engine.model, engine.window
    never = set(range(7)) - set(engine.stops)
    sampler = Sampler(settings, sorted(never), model.num_rows, 1, torch.device("cpu"))
    key = draw_keys(settings.seed, prompt.subject_id, prompt.time, torch.tensor([draw]))
    context, new, seconds, prefix = prompt.tokens.tolist(), [], 0.0, prompt.prefix
    while True:
        if len(context) > window:
            context = context[:prefix] + context[len(context) - (window - prefix) // 2 :]
        hidden = model(torch.tensor([context])).last_hidden_state[:, -1]
        token = int(sampler(model.lm_logits(hidden), key, torch.tensor([len(new)])))
        context.append(token)
        new.append(token)
        seconds += SECONDS.get(VOCABULARY.tokens[token].token, 0.0)
        if token in engine.stops:
            return new, "stop_token", seconds
        if settings.horizon_days is not None and seconds > settings.horizon_days * 86400:
            return new, "horizon", seconds
        if len(new) == settings.max_new_tokens:
            return new, "budget", seconds


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_new_tokens": 80},
        {"max_new_tokens": 80, "window": 11},
        {"max_new_tokens": 1},
        {"stop_tokens": ["CODE//3", "CODE//4", "CODE//11"], "horizon_days": 3.0, "max_new_tokens": 60},
        {"temperature": 1.7, "top_k": 9, "max_new_tokens": 30},
        {"temperature": 0.6, "top_p": 0.8, "seed": 3},
    ],
)
def test_trajectories_are_those_of_a_loop_that_recomputes_everything(model, settings):
    made = engine(model, rows=4, **settings)
    asked = prompts(5, 9, 3, 11, 7)
    expected = {(p.subject_id, p.time, draw): from_scratch(made, p, draw) for p in asked for draw in range(3)}
    assert drawn(made, asked) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_other_networks_draw_as_a_loop_would_and_go_on_from_full_contexts(name):
    module, settings = FAMILIES[name]
    made = module.build(settings, len(VOCABULARY)).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    drawing = engine(made, rows=3, draws=2, max_new_tokens=30)
    asked = prompts(5, 9)
    expected = {(p.subject_id, p.time, draw): from_scratch(drawing, p, draw) for p in asked for draw in range(2)}
    assert drawn(drawing, asked) == expected
    assert max(len(tokens) for tokens, _, _ in expected.values()) > 2 * made.config.max_position_embeddings


def test_the_world_of_these_tests_ends_trajectories_in_every_way(model):
    made = engine(model, stop_tokens=["CODE//3", "CODE//4", "CODE//11"], horizon_days=3.0, max_new_tokens=10, draws=20)
    found = drawn(made, prompts(5, 9))
    assert {reason for _, reason, _ in found.values()} == {"stop_token", "horizon", "budget"}
    assert len({tuple(tokens) for tokens, _, _ in found.values()}) > 0.8 * len(found)


def test_neither_the_number_of_rows_nor_the_company_nor_the_order_changes_a_trajectory(model):
    asked = prompts(5, 9, 3, 24, 7, 12)
    settings = {"stop_tokens": ["CODE//3", "CODE//4"], "max_new_tokens": 40}
    alone = {key: one for prompt in asked for key, one in drawn(engine(model, rows=1, **settings), [prompt]).items()}
    for rows in (2, 5, 64):
        assert drawn(engine(model, rows=rows, **settings), asked) == alone
        assert drawn(engine(model, rows=rows, **settings), asked[::-1]) == alone


def test_prompts_as_long_as_the_context_settle_on_their_own_like_others(model):
    asked = prompts(5, 7, 9, 24, 24, 24, 6, 24, 24)
    settings = {"draws": 5, "stop_tokens": ["CODE//3", "CODE//4"], "max_new_tokens": 15}
    alone = drawn(engine(model, rows=1, **settings), asked)
    for rows in (11, 16, 17):
        assert drawn(engine(model, rows=rows, **settings), asked) == alone


def test_many_steps_between_looks_at_the_results_change_nothing(model):
    """As on an accelerator, where rows go on past their end until the host looks, and several prompts wait."""
    asked = prompts(5, 9, 3, 24, 7, 12)
    settings = {"stop_tokens": ["CODE//3", "CODE//4"], "max_new_tokens": 40, "horizon_days": 20.0}
    patient = engine(model, rows=5, **settings)
    patient.steps, patient.waiting_rows = 7, 3
    assert drawn(patient, asked) == drawn(engine(model, rows=5, **settings), asked)


def test_fewer_draws_are_the_first_of_more_and_another_seed_gives_others(model):
    asked = prompts(5, 9)
    more, fewer = (drawn(engine(model, draws=number), asked) for number in (6, 2))
    assert fewer == {key: one for key, one in more.items() if key[2] < 2}
    other = drawn(engine(model, draws=6, seed=7), asked)
    assert not any(other[key] == more[key] for key in more)


def test_padded_ids_and_specials_are_never_drawn_however_likely(model):
    with torch.no_grad():
        model.embeddings.token.weight[:7] *= 40
        model.embeddings.token.weight[len(VOCABULARY) :] = 100.0
    found = drawn(engine(model, draws=16, max_new_tokens=50, rows=32), prompts(5, 9, 4))
    tokens = {token for new, _, _ in found.values() for token in new}
    assert min(tokens) >= 7
    assert max(tokens) < len(VOCABULARY)


def test_the_end_of_a_timeline_stops_and_a_special_token_only_where_it_is_named(model):
    end = VOCABULARY["TIMELINE_END"]
    with torch.no_grad():
        model.norm.weight.zero_()  # all tokens alike
    found = drawn(engine(model, draws=40, max_new_tokens=100), prompts(5))
    stopped = [tokens for tokens, reason, _ in found.values() if reason == "stop_token"]
    assert stopped
    assert all(tokens[-1] == end and end not in tokens[:-1] for tokens in stopped)
    named = drawn(engine(model, draws=40, max_new_tokens=100, stop_tokens=["[EOS]"]), prompts(5))
    assert any(tokens[-1] == VOCABULARY["[EOS]"] for tokens, _, _ in named.values())


def test_a_horizon_is_passed_by_the_last_token_only(model):
    found = drawn(engine(model, draws=30, horizon_days=2.0, max_new_tokens=200), prompts(5, 9))
    ended = [(tokens, seconds) for tokens, reason, seconds in found.values() if reason == "horizon"]
    assert len(ended) > 10
    for tokens, seconds in ended:
        each = [SECONDS.get(VOCABULARY.tokens[token].token, 0.0) for token in tokens]
        assert seconds == pytest.approx(sum(each))
        assert sum(each[:-1]) <= 2 * 86400 < sum(each)


def test_contexts_that_are_full_begin_anew_with_the_static_prefix_and_the_newer_half(model, monkeypatch):
    prompt, read = prompts(20, prefix=3)[0], []
    made = engine(model, draws=1, max_new_tokens=20, window=20)
    monkeypatch.setattr(
        _Work, "_prefill", lambda work, rows, contexts: read.extend(contexts) or PREFILL(work, rows, contexts)
    )
    new = drawn(made, [prompt])[1, 1000, 0][0]
    everything = [*prompt.tokens, *new]
    first, *cuts = [context.tolist() for context in read]
    assert first == prompt.tokens.tolist()
    assert len(cuts) == 2
    assert cuts[0] == [*everything[:3], *everything[13:20]]
    assert cuts[1] == [*everything[:3], *everything[23:30]]


@pytest.mark.parametrize(("change", "error", "words"), [
    ({"tokens": np.array([7, len(VOCABULARY)])}, DataError, "token id 61, but the model knows ids 0 to 60"),
    ({"tokens": np.array([7, -1])}, DataError, "token id -1"),
    ({"tokens": np.full(25, 7)}, DataError, "25 tokens, but a context has positions for 24"),
    ({"tokens": np.array([], np.int64)}, DataError, "row of at least one token id"),
    ({"tokens": np.array([0.5])}, DataError, "float64"),
    ({"tokens": np.full(24, 7), "prefix": 22}, DataError, "static prefix of 22"),
])  # fmt: skip
def test_a_prompt_that_does_not_fit_is_one_clear_error(model, change, error, words):
    prompt = Prompt(**{"subject_id": 1, "time": 1, "tokens": np.array([7]), "prefix": 0} | change)
    with pytest.raises(error, match=words):
        drawn(engine(model), [prompt])


@pytest.mark.parametrize(("settings", "words"), [
    ({"draws": 0}, "at least 1"),
    ({"temperature": 0.0}, "temperature is 0.0"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"temperature": np.inf}, "temperature is inf"),
    ({"horizon_days": -1.0}, "horizon_days is -1.0"),
    ({"horizon_days": np.inf}, "horizon_days is inf; it must be above 0 and at most 10,000,000, or null"),
    ({"horizon_days": np.nan}, "horizon_days is nan"),
    ({"horizon_days": 1e12}, "horizon_days is 1000000000000.0"),
    ({"intervals": {"1h": np.nan}}, "'1h' stands for nan seconds; give a number from 0 to 10,000,000 days"),
    ({"intervals": {"1h": np.inf}}, "'1h' stands for inf seconds"),
    ({"intervals": {"1h": -5.0}}, "'1h' stands for -5.0 seconds"),
    ({"seed": 2**63}, "seed is 9223372036854775808; it must fit into 64 bits"),
    ({"seed": -(2**63) - 1}, "seed is -9223372036854775809"),
    ({"window": 25}, "window is 25; the model has positions 0 to 23"),
    ({"stop_tokens": ["DEATH"]}, "no 'DEATH'"),
    ({"horizon_days": 1.0, "intervals": {}}, "needs interval tokens"),
])  # fmt: skip
def test_settings_that_cannot_be_are_one_clear_error(model, settings, words):
    with pytest.raises(ConfigError, match=words) as raised:
        engine(model, **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_settings_at_their_limits_draw(model, seed):
    longest = 1e7
    made = engine(model, {"1h": longest * 86_400}, horizon_days=longest, seed=seed, max_new_tokens=40, never=["code"])
    found = drawn(made, prompts(5))
    assert {reason for _, reason, _ in found.values()} <= {"horizon", "stop_token", "budget"}
    assert all(seconds >= 0 for _, _, seconds in found.values())


def test_another_vocabulary_and_other_models_are_refused(model):
    with pytest.raises(FormatError, match="the model knows 61 tokens and the vocabulary has 60"):
        Engine(model, Vocabulary(VOCABULARY.tokens[:60]), GenerationConfig())
    with pytest.raises(FormatError, match="'2h', which the vocabulary does not have"):
        engine(model, intervals={"2h": 7200.0})
    model.causal = False
    with pytest.raises(ConfigError, match="GPT cannot generate"):
        engine(model)


def test_drawing_does_not_drop_out(model):
    asked = prompts(5, 9)
    plain = drawn(engine(model), asked)
    model.config.dropout = 0.5
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert drawn(engine(model.train()), asked) == plain
