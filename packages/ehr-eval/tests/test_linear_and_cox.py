"""The baselines for numbers and times against scikit-learn and lifelines, and what they do with what is missing."""

import numpy as np
import pytest
from ehr_core.errors import ConfigError
from ehr_core.outcomes import REGRESSION, SURVIVAL, Question
from ehr_core.protocols import Features
from ehr_eval.baselines.cox import Cox
from ehr_eval.baselines.linear import Linear
from ehr_eval.settings import CoxConfig, LinearConfig

NUMBERS, TIMES = Question(REGRESSION), Question(SURVIVAL)


def given(value, label):
    return Features(tuple(f"f{k}" for k in range(value.shape[1])), value, label.astype(np.float64))


def none_of(features):
    return given(features.value_NF[:0], features.label[:0])


@pytest.fixture
def numbers():
    rng = np.random.default_rng(4)
    value = rng.normal(size=(400, 5)).astype(np.float32)
    return given(value, 3 + value @ [1.0, -2.0, 0.0, 0.5, 0.0] + rng.normal(size=400))


@pytest.fixture
def times():
    """Hazards exp(x . weight), censored at random times; no two times are equal."""
    rng = np.random.default_rng(5)
    value = rng.normal(size=(500, 3)).astype(np.float32)
    time = rng.exponential(1 / np.exp(value @ [0.8, -0.5, 0.0]))
    censored = rng.exponential(2.0, 500)
    return given(value, np.stack([np.minimum(time, censored), time <= censored], 1))


def scaled(value):
    value = value.astype(np.float64)
    return (value - value.mean(0)) / value.std(0)


def test_linear_equals_ridge_of_scikit_learn(numbers):
    from sklearn.linear_model import Ridge

    ours = Linear(LinearConfig(penalties=[7.0], clip_quantile=0.0))
    ours.fit(NUMBERS, numbers, none_of(numbers))
    theirs = Ridge(alpha=7.0).fit(scaled(numbers.value_NF), numbers.label).predict(scaled(numbers.value_NF))
    np.testing.assert_allclose(ours.predict(numbers.value_NF), theirs, atol=1e-4)


def test_cox_equals_lifelines(times):
    lifelines = pytest.importorskip("lifelines")
    import pandas as pd

    ours = Cox(CoxConfig(penalties=[1e-9], clip_quantile=0.0))
    ours.fit(TIMES, times, none_of(times))
    columns = scaled(times.value_NF)
    frame = pd.DataFrame({"a": columns[:, 0], "b": columns[:, 1], "c": columns[:, 2]})
    frame["time"], frame["event"] = times.label.T
    theirs = lifelines.CoxPHFitter().fit(frame, "time", "event").params_.to_numpy()
    np.testing.assert_allclose(ours.weight_C, theirs, atol=2e-4)


def test_tuning_chooses_the_penalty(numbers, times):
    rng = np.random.default_rng(6)
    noise = given(rng.normal(size=(40, 30)).astype(np.float32), rng.normal(size=40))
    weak = Linear(LinearConfig(penalties=[1e-6, 1e6]))
    weak.fit(NUMBERS, numbers, numbers)
    assert weak.penalty == 1e-6
    strong = Linear(LinearConfig(penalties=[1e-6, 1e6]))
    strong.fit(NUMBERS, noise, given(rng.normal(size=(40, 30)).astype(np.float32), rng.normal(size=40)))
    assert strong.penalty == 1e6
    risk = Cox(CoxConfig(penalties=[1e-4, 100.0]))
    risk.fit(TIMES, times, times)
    assert risk.penalty == 1e-4


@pytest.mark.parametrize("kind", ["numbers", "times"])
def test_what_was_saved_predicts_the_same_and_missing_or_wild_values_do_not_break_it(kind, request, tmp_path):
    features = request.getfixturevalue(kind)
    make, question = (
        ((lambda: Linear(LinearConfig())), NUMBERS) if kind == "numbers" else ((lambda: Cox(CoxConfig())), TIMES)
    )
    fitted = make()
    fitted.fit(question, features, features)
    fitted.save(tmp_path)
    again = make()
    again.load(tmp_path, question)
    value = features.value_NF[:20].copy()
    value[3] = np.nan
    value[4, 0] = 1e9
    np.testing.assert_array_equal(again.predict(value), fitted.predict(value))
    assert np.isfinite(fitted.predict(value)).all()
    assert abs(fitted.predict(value)[4]) < 2 * np.abs(fitted.predict(features.value_NF)).max()


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"linear\.penalties"):
        Linear(LinearConfig(penalties=[-1.0]))
    with pytest.raises(ConfigError, match=r"cox\.penalties"):
        Cox(CoxConfig(penalties=[]))
