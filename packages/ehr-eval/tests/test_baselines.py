"""The logistic baseline: what it learns, what it survives, and what it never looks at."""

import warnings

import numpy as np
import pytest
from ehr_core.errors import ConfigError
from ehr_core.outcomes import BINARY, Question
from ehr_core.protocols import Features
from ehr_eval.baselines.logistic import Logistic
from ehr_eval.settings import LogisticConfig
from sklearn.metrics import roc_auc_score

BINARY_QUESTION = Question(BINARY)


def given(value, label):
    """Features with the label in the shape of its kind."""
    return Features(tuple(f"f{k}" for k in range(value.shape[1])), value, label.astype(np.float64))


def world(rng, rows):
    signal = rng.normal(size=rows)
    label = rng.random(rows) < 1 / (1 + np.exp(-2 * signal))
    measured = np.where(rng.random(rows) < 0.7, signal, np.nan)
    never, constant = np.full(rows, np.nan), np.ones(rows)
    return np.stack([measured, never, constant, rng.normal(size=rows)], axis=1).astype(np.float32), label


@pytest.fixture
def fitted():
    rng = np.random.default_rng(0)
    train, tuning = world(rng, 800), world(rng, 200)
    model = Logistic(LogisticConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.fit(BINARY_QUESTION, given(*train), given(*tuning))
    return model, train, tuning


def test_it_learns_from_what_is_measured_and_ignores_empty_and_constant_columns(fitted):
    model, _, _ = fitted
    features, label = world(np.random.default_rng(1), 2000)
    probability = model.predict(features)
    assert roc_auc_score(label, probability) > 0.75
    assert abs(probability.mean() - label.mean()) < 0.05


def test_an_implausible_value_counts_as_the_largest_plausible_one(fitted):
    model, (train, _), _ = fitted
    row = np.array([[np.nanmax(train[:, 0]), np.nan, 1.0, 0.0]], np.float32)
    wild = row.copy()
    wild[0, 0] = 1e9
    assert model.predict(row) == model.predict(wild)


def test_a_sample_does_not_depend_on_its_batch(fitted):
    model, (train, _), _ = fitted
    together = model.predict(train[:50])
    alone = np.concatenate([model.predict(train[i : i + 1]) for i in range(50)])
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_the_penalty_is_the_one_that_tuning_likes_best(fitted):
    model, train, tuning = fitted
    losses = {}
    for strength in model.settings.strengths:
        single = Logistic(LogisticConfig(strengths=[strength]))
        single.fit(BINARY_QUESTION, given(*train), given(*tuning))
        p = single.predict(tuning[0])
        losses[strength] = -np.mean(np.log(np.where(tuning[1], p, 1 - p)))
    assert losses[model.strength] <= min(losses.values()) + 1e-4


def test_equals_scikit_learn_on_the_same_columns():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(2)
    features = rng.normal(size=(300, 5)).astype(np.float32)
    label = features[:, 0] + rng.normal(size=300) > 0
    ours = Logistic(LogisticConfig(strengths=[0.1], clip_quantile=0.0))
    ours.fit(BINARY_QUESTION, given(features, label), given(features[:0], label[:0]))
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    theirs = LogisticRegression(C=0.1, tol=1e-8).fit(scaled, label).predict_proba(scaled)[:, 1]
    np.testing.assert_allclose(ours.predict(features), theirs, atol=2e-3)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="strengths"):
        Logistic(LogisticConfig(strengths=[0.0]))
    with pytest.raises(ConfigError, match="clip_quantile"):
        Logistic(LogisticConfig(clip_quantile=0.5))
