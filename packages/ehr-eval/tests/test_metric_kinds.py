"""Metrics of classes, many labels, numbers and times against scikit-learn, lifelines and counting by hand."""

import itertools
import math

import numpy as np
import pytest
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL, Question, Sample
from ehr_eval.metrics.classes import F1, Accuracy, LogLoss, MacroF1
from ehr_eval.metrics.errors import R2, Mae, Rmse
from ehr_eval.metrics.ranking import CIndex, MacroAuroc, MicroAuroc
from ehr_eval.settings import F1Config
from sklearn import metrics

CLASSES = ("one", "two", "three")


def lifelines_index(label, prediction):
    utils = pytest.importorskip("lifelines.utils")
    return utils.concordance_index(label[:, 0], -prediction, label[:, 1])


def one_against_others(label, prediction):
    return np.mean([metrics.roc_auc_score(label == k, prediction[:, k]) for k in range(len(CLASSES))])


def known(label, prediction):
    return [(label[~np.isnan(label[:, k]), k], prediction[~np.isnan(label[:, k]), k]) for k in range(label.shape[1])]


def macro(label, prediction):
    return np.mean([metrics.roc_auc_score(*pair) for pair in known(label, prediction)])


def micro(label, prediction):
    there = ~np.isnan(label)
    return metrics.roc_auc_score(label[there], prediction[there])


CASES = {
    "accuracy": (MULTICLASS, Accuracy, lambda y, p: metrics.accuracy_score(y, p.argmax(1))),
    "macro_f1": (MULTICLASS, MacroF1, lambda y, p: metrics.f1_score(y, p.argmax(1), average="macro")),
    "log_loss": (MULTICLASS, LogLoss, lambda y, p: metrics.log_loss(y, p, labels=range(len(CLASSES)))),
    "macro_auroc": (MULTICLASS, MacroAuroc, one_against_others),
    "log_loss_of_two": (BINARY, LogLoss, metrics.log_loss),
    "macro_auroc_of_labels": (MULTILABEL, MacroAuroc, macro),
    "micro_auroc": (MULTILABEL, MicroAuroc, micro),
    "mae": (REGRESSION, Mae, metrics.mean_absolute_error),
    "rmse": (REGRESSION, Rmse, metrics.root_mean_squared_error),
    "r2": (REGRESSION, R2, metrics.r2_score),
    "c_index": (SURVIVAL, CIndex, lifelines_index),
}


def world(kind, rng, rows=300, digits=2):
    """Labels and predictions of a kind, with many ties."""
    if kind == BINARY:
        return (rng.random(rows) < 0.4).astype(float), np.clip(np.round(rng.random(rows), digits), 0.01, 0.99)
    if kind == MULTICLASS:
        score = rng.dirichlet(np.ones(3), rows)
        return rng.integers(0, 3, rows).astype(float), score
    if kind == MULTILABEL:
        label = (rng.random((rows, 4)) < [0.5, 0.3, 0.2, 0.6]).astype(float)
        label[rng.random((rows, 4)) < 0.2] = np.nan
        return label, np.round(rng.random((rows, 4)), digits)
    if kind == REGRESSION:
        label = rng.normal(5, 2, rows)
        return label, label + rng.normal(0, 1.5, rows)
    time = np.round(rng.exponential(10, rows))
    event = rng.random(rows) < 0.6
    return np.stack([time, event], 1).astype(float), np.round(-time / 10 + rng.normal(0, 1, rows), 1)


def sample_of(kind, label, prediction):
    names = CLASSES if kind == MULTICLASS else ("a", "b", "c", "d") if kind == MULTILABEL else ()
    count = len(label)
    return Sample(Question(kind, names), label, prediction, np.arange(count), np.zeros(count, np.int64))


@pytest.mark.parametrize("name", CASES)
def test_a_score_equals_the_reference(name):
    kind, metric, reference = CASES[name]
    for seed in range(3):
        label, prediction = world(kind, np.random.default_rng(seed))
        assert metric(None)(sample_of(kind, label, prediction)) == pytest.approx(
            reference(label, prediction), abs=1e-10
        )


@pytest.mark.parametrize("name", CASES)
def test_a_weight_is_a_repeated_row(name):
    kind, metric, _ = CASES[name]
    rng = np.random.default_rng(7)
    label, prediction = world(kind, rng, rows=60)
    weight = rng.integers(0, 4, size=(10, 60))
    scores = metric(None).weighted(sample_of(kind, label, prediction), weight.astype(float))
    for one, score in zip(weight, scores, strict=True):
        take = np.repeat(np.arange(60), one)
        repeated = sample_of(kind, label[take], prediction[take])
        assert score == pytest.approx(metric(None)(repeated), abs=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_without_rows_there_is_no_score(name):
    kind, metric, _ = CASES[name]
    label, prediction = world(kind, np.random.default_rng(0))
    assert math.isnan(metric(None)(sample_of(kind, label[:0], prediction[:0])))


def test_concordance_is_that_of_all_pairs_counted_one_by_one():
    label, risk = world(SURVIVAL, np.random.default_rng(3), rows=40)
    wins = pairs = 0.0
    for i, j in itertools.permutations(range(40), 2):
        sooner = label[i, 0] < label[j, 0] or (label[i, 0] == label[j, 0] and not label[j, 1])
        if label[i, 1] and sooner:
            pairs += 1
            wins += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    assert CIndex(None)(sample_of(SURVIVAL, label, risk)) == pytest.approx(wins / pairs, abs=1e-12)


def test_a_class_that_is_called_and_never_occurs_counts_against_macro_f1():
    probabilities = np.eye(3)[[0, 1, 2, 1]]
    label = np.array([0.0, 1.0, 0.0, 1.0])
    found = MacroF1(None)(sample_of(MULTICLASS, label, probabilities))
    assert found == pytest.approx(metrics.f1_score(label, [0, 1, 2, 1], average="macro"))


def test_a_label_of_one_side_counts_for_nothing_in_the_mean():
    label, prediction = world(MULTILABEL, np.random.default_rng(1))
    label[:, 2] = 0.0
    expected = np.mean([metrics.roc_auc_score(*known(label, prediction)[k]) for k in (0, 1, 3)])
    assert MacroAuroc(None)(sample_of(MULTILABEL, label, prediction)) == pytest.approx(expected)


def test_f1_calls_from_the_threshold_that_is_best_on_tuning():
    rng = np.random.default_rng(2)
    label, prediction = world(BINARY, rng)
    tuning = sample_of(BINARY, *world(BINARY, rng))
    sample = Sample(Question(BINARY), label, prediction, np.arange(300), np.zeros(300, np.int64), tuning=tuning)
    metric = F1(F1Config())
    threshold = metric.threshold(sample)
    tried = [metrics.f1_score(tuning.label, tuning.prediction >= at) for at in np.unique(tuning.prediction)]
    assert metrics.f1_score(tuning.label, tuning.prediction >= threshold) == pytest.approx(max(tried))
    assert metric(sample) == pytest.approx(metrics.f1_score(label, prediction >= threshold))
    assert F1(F1Config(threshold=0.5))(sample) == pytest.approx(metrics.f1_score(label, prediction >= 0.5))


def test_a_number_that_never_varies_has_no_r2():
    flat = np.full(5, 3.1)
    assert math.isnan(R2(None)(sample_of(REGRESSION, flat, flat + 1)))
    assert Mae(None)(sample_of(REGRESSION, flat, flat + 1)) == pytest.approx(1)
