"""What the trees learn, how they stop, and that they are the same each time."""

import numpy as np
import pytest
from ehr_core.errors import ConfigError
from ehr_core.outcomes import BINARY, Question
from ehr_core.protocols import Features
from ehr_xgboost.baseline import XGBoost
from ehr_xgboost.plugin import XGBoostConfig


def world(seed, rows):
    """The sign of a product, which no line separates; the first column is often not measured."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, 4)).astype(np.float32)
    label = features[:, 0] * features[:, 1] + 0.3 * rng.normal(size=rows) > 0
    features[rng.random(rows) < 0.1, 0] = np.nan
    return features, label


def features(seed, rows):
    values, label = world(seed, rows)
    return Features(("a", "b", "c", "d"), values, label.astype(np.float64))


def fitted(**settings):
    settings = {"num_rounds": 300, "learning_rate": 0.1, "num_threads": 1, "colsample": 0.5, **settings}
    model = XGBoost(XGBoostConfig(**settings))
    model.fit(Question(BINARY), features(0, 800), features(1, 300))
    return model


def accuracy(model):
    values, label = world(2, 1000)
    return np.mean((model.predict(values) > 0.5) == label)


def best_accuracy():
    """Of the rule that made the labels; noise and missing values take the rest."""
    values, label = world(2, 1000)
    return np.mean((np.nan_to_num(values[:, 0]) * values[:, 1] > 0) == label)


def test_it_learns_what_no_line_separates_with_values_missing():
    model = fitted()
    probability = model.predict(world(2, 1000)[0])
    assert accuracy(model) > best_accuracy() - 0.05
    assert probability.shape == (1000,)
    assert probability.dtype == np.float64
    assert ((probability >= 0) & (probability <= 1)).all()


def test_it_stops_at_the_round_that_tuning_likes_best():
    model = fitted(num_rounds=2000, early_stopping_rounds=20)
    values, label = world(1, 300)
    p = model.predict(values)
    assert model.models[0].num_boosted_rounds() == model.models[0].best_iteration + 1 < 1900
    assert -np.mean(np.log(np.where(label, p, 1 - p))) == pytest.approx(model.models[0].best_score, abs=1e-5)


def test_the_same_seed_gives_the_same_trees_and_another_does_not():
    values = world(2, 200)[0]
    first = fitted(seed=1).predict(values)
    assert (first == fitted(seed=1).predict(values)).all()
    assert (first == fitted(seed=1, num_threads=2).predict(values)).all()
    assert (first != fitted(seed=2).predict(values)).any()


def test_without_tuning_samples_all_rounds_are_grown():
    train = features(0, 200)
    model = XGBoost(XGBoostConfig(num_rounds=7, num_threads=1))
    model.fit(Question(BINARY), train, Features(train.names, train.value_NF[:0], train.label[:0]))
    assert model.models[0].num_boosted_rounds() == 7


@pytest.mark.parametrize(("name", "value"), [("max_depth", 0), ("learning_rate", 0.0), ("colsample", 1.5)])
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"predictors.xgboost.{name}"):
        XGBoost(XGBoostConfig(**{name: value}))
