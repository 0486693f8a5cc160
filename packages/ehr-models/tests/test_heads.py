"""Objectives with labels against hand computation, scikit-learn and lifelines."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from ehr_core.errors import ConfigError, DataError
from ehr_core.plugins import registry
from ehr_models.gpt import build
from ehr_models.objectives.heads import POOLINGS, Pooling
from ehr_models.settings import GPTConfig

from .parts import objective_of, question_of

WIDTH = 8
KINDS = ("classification", "multiclass", "multilabel", "regression", "survival", "time_to_event")
BY_HORIZON = ("survival", "time_to_event")
"""These learn from binary labels, too."""


def built(name, question=None, **settings):
    return objective_of(name, WIDTH, question, **settings)


def some_labels(question, number, seed=0):
    """Labels of a kind, float32."""
    random = np.random.default_rng(seed)
    label = {
        "binary": lambda: random.integers(0, 2, number),
        "multiclass": lambda: random.integers(0, len(question.names), number),
        "multilabel": lambda: np.where(random.random((number, 3)) < 0.2, np.nan, random.integers(0, 2, (number, 3))),
        "regression": lambda: random.normal(500, 100, number),
        "survival": lambda: np.stack([random.exponential(200, number), random.integers(0, 2, number)], 1),
    }[question.kind]()
    return torch.tensor(label, dtype=torch.float32)


def total(objective, output, labels):
    found, count = objective.total(output, torch.as_tensor(labels, dtype=torch.float32))
    return found.item(), count.item()


def cohort(number=400, censored_after=300.0, seed=0):
    """Days and events of an exponential cohort, in whole days so that bins have borders that are met."""
    random = np.random.default_rng(seed)
    day, censored = random.exponential(200.0, number), random.uniform(0, censored_after, number)
    return np.ceil(np.minimum(day, censored)), (day <= censored).astype(float)


# -- pooling


@pytest.mark.parametrize("kind", POOLINGS)
def test_a_pooled_vector_depends_on_what_its_sample_may_see_and_on_nothing_else(kind):
    pooling = Pooling(kind, WIDTH)
    if pooling.query is not None:
        torch.nn.init.normal_(pooling.query.weight)
    hidden = torch.randn(2, 10, WIDTH, requires_grad=True)
    segment = torch.tensor([[1] * 4 + [2] * 5 + [0], [1] * 10])
    last = torch.tensor([6, 19])
    pooled = pooling(hidden, segment, last)
    (gradient,) = torch.autograd.grad(pooled[0].sum(), hidden)
    touched = gradient.abs().sum(-1).flatten().nonzero().flatten().tolist()
    assert touched == {"last": [6], "cls": [4]}.get(kind, [4, 5, 6])
    seen = hidden[0, 4:7]
    expected = {"last": seen[2], "cls": seen[0], "mean": seen.mean(0)}
    if pooling.query is not None:
        expected["attention"] = (seen @ pooling.query.weight[0]).softmax(0) @ seen
    torch.testing.assert_close(pooled[0], expected[kind])


@pytest.mark.parametrize(("name", "kind"), [(name, None) for name in KINDS] + [(name, "binary") for name in BY_HORIZON])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_objective_trains_with_every_pooling_on_packed_rows(name, kind, pooling, model, pack, windows):
    question = question_of(kind or registry().get("objective", name).outcomes[0])
    objective = objective_of(name, 32, question, pooling=pooling)
    label = some_labels(question, 3)
    batch = dataclasses.replace(pack(windows(10, 25), windows(7)), label_N=label)
    loss = objective.loss(model, batch)
    loss.total.backward()
    assert loss.total.isfinite()
    assert loss.total.dtype == torch.float32
    assert all(weight.grad is not None and weight.grad.any() for weight in objective.parameters() if weight.ndim > 1)
    assert all(weight.grad is not None for weight in objective.parameters())
    predicted = objective.eval().predict(model, batch)
    assert predicted.shape == ((3, question.num_outputs) if question.names else (3,))
    assert predicted.dtype == torch.float32
    if question.kind != "regression":
        assert ((predicted > 0) & (predicted < 1)).all()
    if question.kind == "multiclass":
        torch.testing.assert_close(predicted.sum(1), torch.ones(3))


# -- labels that are known at once


def test_multiclass_loss_is_the_log_loss_of_scikit_learn():
    from sklearn.metrics import log_loss

    objective = built("multiclass")
    output, labels = torch.randn(30, 4), np.random.default_rng(0).integers(0, 4, 30)
    probability = objective.prediction(output)
    assert probability.shape == (30, 4)
    expected = log_loss(labels, probability.numpy(), labels=range(4), normalize=False)
    assert total(objective, output, labels) == (pytest.approx(expected, rel=1e-5), 30)


def test_multilabel_loss_is_the_sum_over_labels_that_are_known():
    from sklearn.metrics import log_loss

    objective = built("multilabel")
    output = torch.randn(30, 3)
    labels = np.random.default_rng(0).integers(0, 2, (30, 3)).astype(np.float32)
    labels[:10, 1] = np.nan
    probability = objective.prediction(output).numpy()
    known = [
        (labels[:, 0], probability[:, 0]),
        (labels[10:, 1], probability[10:, 1]),
        (labels[:, 2], probability[:, 2]),
    ]
    expected = sum(log_loss(one, other, normalize=False) for one, other in known)
    assert total(objective, output, labels) == (pytest.approx(expected, rel=1e-5), 80)


def test_regression_is_a_normal_likelihood_whose_best_width_is_the_spread_of_the_errors():
    from scipy.stats import norm

    objective = built("regression", center=100.0, scale=20.0)
    output, labels = torch.randn(50, 1), 100 + torch.randn(50) * 30
    spread = (labels - (100 + 20 * output[:, 0])).square().mean().sqrt().item()
    with torch.no_grad():
        objective.log_width.fill_(math.log(spread / 20) / objective.STRIDE)
        output *= 20 / spread  # the head counts in widths of the error
    expected = -norm.logpdf(labels.numpy(), 100 + spread * output[:, 0].numpy(), spread).sum()
    assert total(objective, output, labels) == (pytest.approx(expected, rel=1e-5), 50)
    np.testing.assert_allclose(objective.prediction(output).detach(), 100 + spread * output[:, 0], rtol=1e-6)
    assert objective.error_width().item() == pytest.approx(spread, rel=1e-5)


@pytest.mark.parametrize("settings", [{"center": 500.0, "scale": 100.0}, {}])
@pytest.mark.parametrize("unit", [1.0, 1e-3])
def test_regression_learns_large_and_small_labels_alike(settings, unit, pack):
    """Labels of mean 500 and standard deviation 100 (times a unit), of which a token decides all but noise of 20."""
    settings = {name: value * unit for name, value in settings.items()}
    model = build(GPTConfig(num_layers=1, num_heads=2, width=32, context_length=16), 20)
    objective = objective_of("regression", 32, dropout=0.0, **settings)
    optimizer = torch.optim.AdamW([*model.parameters(), *objective.parameters()], lr=3e-3)

    def batch(rows=16):
        tokens = torch.randint(7, 20, (rows, 6))
        value = 500 + 26 * (tokens[:, 2] - 13) + 20 * torch.randn(rows)
        return dataclasses.replace(pack(*([row] for row in tokens)), label_N=value * unit)

    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - 0.9 * step / 400)
        loss = objective.loss(model, batch())
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *objective.parameters()], 1.0)
        optimizer.step()
    last = batch(400)
    error = (objective.eval().predict(model.eval(), last).detach() - last.label_N) / unit
    assert error.square().mean().sqrt() < 35  # 100 for the mean alone, 20 at best
    assert 15 < objective.error_width().item() / unit < 60


def test_regression_starts_from_the_center_of_the_labels(model, pack, windows):
    objective = objective_of("regression", 32, center=500.0, scale=100.0).eval()
    predicted = objective.predict(model, pack(windows(10), windows(12)))
    assert ((predicted - 500).abs() < 60).all()


# -- discrete time


def test_survival_by_hand():
    """Four bins of 10 days; hazards 0.1, 0.2, 0.3, 0.4."""
    objective = built("survival", num_bins=4, horizon_days=40.0)
    hazard = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for day, event, expected in (
        (5, 1, [math.log(0.1)]),
        (10, 1, [math.log(0.1)]),
        (10.5, 1, [math.log(0.9), math.log(0.2)]),
        (0, 1, [math.log(0.1)]),
        (0, 0, []),
        (19, 0, [math.log(0.9)]),
        (20, 0, [math.log(0.9), math.log(0.8)]),
        (40, 1, [math.log(0.9), math.log(0.8), math.log(0.7), math.log(0.4)]),
        (41, 1, [math.log(0.9), math.log(0.8), math.log(0.7), math.log(0.6)]),
        (99, 0, [math.log(0.9), math.log(0.8), math.log(0.7), math.log(0.6)]),
    ):
        assert total(objective, hazard.logit()[None], [[day, event]]) == (pytest.approx(-sum(expected), abs=1e-5), 1)
    late = 1 - 0.9 * 0.8 * 0.7 * 0.6
    assert objective.prediction(hazard.logit()[None]).item() == pytest.approx(late)
    binary = built("survival", question_of("binary"), num_bins=4, horizon_days=40.0)
    assert torch.equal(binary.prediction(hazard.logit()[None]), objective.prediction(hazard.logit()[None]))
    found = [total(binary, hazard.logit()[None], [label])[0] for label in (1, 0)]
    assert found == pytest.approx([-math.log(late), -math.log(1 - late)], rel=1e-5)


@pytest.mark.parametrize(("bins", "horizon"), [(6, 90), (12, 360), (52, 364), (365, 365), (7, 30)])
def test_whole_days_at_a_border_are_in_the_bin_that_ends_there(bins, horizon):
    """Days in fractions, by exact arithmetic."""
    from fractions import Fraction

    objective, logits = built("survival", num_bins=bins, horizon_days=float(horizon)), torch.zeros(1, bins)
    ends = [Fraction(horizon * k, bins) for k in range(1, bins + 1)]
    for day in range(horizon + 1):
        questions = {1: min(bins, sum(end < day for end in ends) + 1), 0: sum(end <= day for end in ends)}
        for event, asked in questions.items():
            found = total(objective, logits, [[float(day), float(event)]])[0]
            assert found / math.log(2) == pytest.approx(asked), (day, event)
    logits[0, -1] = 3.0
    came, stayed = (total(objective, logits, [[float(horizon), event]])[0] for event in (1.0, 0.0))
    assert stayed - came == pytest.approx(3.0)


def test_the_best_constant_hazards_are_the_estimate_of_kaplan_and_meier():
    from lifelines import KaplanMeierFitter

    day, event = cohort()
    bins = 60
    objective = built("survival", num_bins=bins, horizon_days=float(bins))
    logits = torch.zeros(bins, requires_grad=True)
    labels = torch.tensor(np.stack([day, event], 1), dtype=torch.float32)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12)

    def closure():
        optimizer.zero_grad()
        loss, _ = objective.total(logits.expand(len(day), -1), labels)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    curve = KaplanMeierFitter().fit(day, event).survival_function_at_times(np.arange(1, bins + 1)).to_numpy()
    np.testing.assert_allclose(objective.survival(logits.detach()[None])[0], curve, atol=2e-4)


# -- continuous time


def test_time_to_event_by_hand():
    """Bins 0-30, 30-90 and 90 on; hazards a day of 1/8, 1/4 and 1/2."""
    objective = built("time_to_event", edges_days=[30.0, 90.0], horizon_days=40.0)
    output = torch.tensor([[-3.0, -2.0, -1.0]])
    for day, event, expected in (
        (20, 0, 20 / 8),
        (20, 1, 20 / 8 + 3 * math.log(2)),
        (30, 1, 30 / 8 + 3 * math.log(2)),
        (31, 1, 30 / 8 + 1 / 4 + 2 * math.log(2)),
        (100, 1, 30 / 8 + 60 / 4 + 10 / 2 + 1 * math.log(2)),
        (0, 1, 3 * math.log(2)),
        (0, 0, 0.0),
    ):
        assert total(objective, output, [[day, event]]) == (pytest.approx(expected, rel=1e-5), 3)
    by = 1 - math.exp(-(30 / 8 + 10 / 4))
    assert objective.prediction(output).item() == pytest.approx(by)
    binary = built("time_to_event", question_of("binary"), edges_days=[30.0, 90.0], horizon_days=40.0)
    found = [total(binary, output, [label])[0] for label in (1, 0)]
    assert found == pytest.approx([-math.log(by), -math.log(1 - by)], rel=1e-4)


def test_the_loss_is_the_likelihood_of_a_piecewise_exponential_model_of_lifelines():
    from lifelines import PiecewiseExponentialFitter

    day, event = cohort()
    edges = [40.5, 120.5]  # no event is at a border, which lifelines counts to the later bin
    fitted = PiecewiseExponentialFitter(edges).fit(day, event)
    hazard = 1 / fitted.params_.to_numpy()
    objective = built("time_to_event", edges_days=edges, horizon_days=150.0)
    output = torch.tensor(hazard, dtype=torch.float32).log2().expand(len(day), -1).clone().requires_grad_()
    loss, _ = objective.total(output, torch.tensor(np.stack([day, event], 1), dtype=torch.float32))
    assert loss.item() == pytest.approx(-fitted.log_likelihood_, rel=1e-5)
    loss.backward()
    assert output.grad.sum(0).abs().max() < 0.5  # of hundreds of events: the fitted hazards are the best ones
    expected = 1 - fitted.survival_function_at_times(150.0).iloc[0]
    assert objective.prediction(output)[0].item() == pytest.approx(expected, rel=1e-4)


def test_time_to_event_starts_from_its_rate(model, pack, windows):
    objective = objective_of("time_to_event", 32, rate_per_day=0.001, horizon_days=100.0).eval()
    with torch.no_grad():
        objective.task.weight.zero_()
        chance = objective.predict(model, pack(windows(10)))
    assert chance.item() == pytest.approx(1 - math.exp(-0.1), rel=1e-5)


# -- errors


@pytest.mark.parametrize(("name", "settings", "words"), [
    ("survival", {"num_bins": 0}, "at least 1 bin"),
    ("survival", {"horizon_days": 0.0}, "horizon_days is 0.0"),
    ("time_to_event", {"edges_days": [30.0, 30.0]}, "must ascend from above 0"),
    ("time_to_event", {"rate_per_day": 0.0}, "above 0"),
    ("regression", {"dropout": 1.0}, "dropout is 1.0"),
    ("regression", {"scale": 0.0}, "scale one above 0"),
    ("regression", {"center": math.nan}, "finite number"),
])  # fmt: skip
def test_settings_that_cannot_be_are_one_clear_error(name, settings, words):
    with pytest.raises(ConfigError, match=words):
        built(name, **settings)


@pytest.mark.parametrize(("name", "kind", "words"), [
    ("classification", "survival", "'classification' learns from binary labels, and these are survival"),
    ("multiclass", "binary", "learns from multiclass labels, and these are binary"),
    ("survival", "regression", "learns from survival and binary labels, and these are regression"),
])  # fmt: skip
def test_labels_of_another_kind_are_refused_when_the_objective_is_made(name, kind, words):
    with pytest.raises(ConfigError, match=words):
        built(name, question_of(kind))


def test_an_objective_without_a_question_asks_for_labels():
    component = registry().get("objective", "multilabel")
    with pytest.raises(ConfigError, match="'multilabel' learns from labels; give labels=DIR"):
        component.load()(component.config(), width=8, vocabulary=None, question=None)


@pytest.mark.parametrize(("name", "kind", "labels", "words"), [
    ("multiclass", None, [0.0, 4.0], "whole numbers from 0 to 3: the labels name 4 classes"),
    ("multiclass", None, [0.0, 0.5], "whole numbers"),
    ("multiclass", None, [[0.0], [1.0]], r"shape \(2, 1\); expected \(2,\)"),
    ("multilabel", None, [[0.0, 1.0], [1.0, 0.0]], r"shape \(2, 2\); expected \(2, 3\)"),
    ("survival", None, [[-1.0, 1.0], [3.0, 0.0]], "days, at least 0"),
    ("survival", "binary", [1.0, math.nan], "0 or 1"),
    ("classification", None, [1.0, 2.0], "0 or 1, and none may be missing"),
    ("classification", None, [1.0, math.nan], "0 or 1"),
    ("multilabel", None, [[1.0, 0.0, math.nan], [-1.0, 0.0, 0.0]], "0 or 1"),
    ("regression", None, [1.0, math.nan], "finite numbers"),
    ("time_to_event", None, [[math.inf, 0.0], [3.0, 0.0]], "days, at least 0"),
    ("time_to_event", None, [[1.0, 0.5], [3.0, 0.0]], "1 .event. or 0"),
    ("time_to_event", None, [1.0, 3.0], r"shape \(2,\); expected \(2, 2\)"),
    ("survival", "binary", [[1.0, 0.0], [3.0, 0.0]], r"shape \(2, 2\); expected \(2,\)"),
])  # fmt: skip
def test_labels_that_do_not_fit_are_one_clear_error(name, kind, labels, words):
    objective = built(name, kind and question_of(kind))
    width = len(objective.offset) if name == "time_to_event" else objective.head.out_features
    with pytest.raises(DataError, match=words):
        total(objective, torch.zeros(2, width), labels)
