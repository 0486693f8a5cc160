"""Metrics against scikit-learn and numbers worked out by hand."""

import math

import numpy as np
import pytest
from ehr_core.outcomes import BINARY, Question, Sample
from ehr_eval.metrics.classes import Brier
from ehr_eval.metrics.ranking import Auprc, Auroc
from ehr_eval.settings import AuprcConfig, AurocConfig, BrierConfig
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score


def sample_of(label, prediction, kind=BINARY, names=()):
    count = len(label)
    label, prediction = np.asarray(label, np.float64), np.asarray(prediction, np.float64)
    return Sample(Question(kind, names), label, prediction, np.arange(count), np.zeros(count, np.int64))


METRICS = {
    "auroc": (Auroc(AurocConfig()), roc_auc_score),
    "auprc": (Auprc(AuprcConfig()), average_precision_score),
    "brier": (Brier(BrierConfig()), brier_score_loss),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("digits", [1, 2, 17])
def test_equals_scikit_learn_with_many_and_with_no_ties(name, digits):
    ours, theirs = METRICS[name]
    rng = np.random.default_rng(digits)
    for size in (2, 3, 10, 500):
        label = rng.random(size) < 0.3
        label[:2] = True, False
        probability = np.round(rng.random(size), digits)
        assert ours(sample_of(label, probability)) == pytest.approx(theirs(label, probability), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_is_a_repeated_row(name):
    ours, theirs = METRICS[name]
    rng = np.random.default_rng(5)
    label, probability = rng.random(40) < 0.4, np.round(rng.random(40), 1)
    weights = rng.integers(0, 4, size=(20, 40)).astype(float)
    scores = ours.weighted(sample_of(label, probability), weights)
    for weight, score in zip(weights, scores, strict=True):
        take = np.repeat(np.arange(40), weight.astype(int))
        assert score == pytest.approx(theirs(label[take], probability[take]), abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_one_class_or_no_row_gives_nan(name):
    ours, _ = METRICS[name]
    assert math.isnan(ours(sample_of(np.array([True, True]), np.array([0.2, 0.9]))))
    assert math.isnan(ours(sample_of(np.array([False]), np.array([0.2]))))
    assert math.isnan(ours(sample_of(np.zeros(0, bool), np.zeros(0))))


def test_hand_computed_cases():
    label = np.array([False, True, False, True])
    probability = np.array([0.1, 0.4, 0.4, 0.8])
    # pairs: 0.4 > 0.1, 0.4 = 0.4 (half), 0.8 > 0.1, 0.8 > 0.4
    assert METRICS["auroc"][0](sample_of(label, probability)) == pytest.approx(3.5 / 4)
    # threshold 0.8: precision 1, half of the recall; threshold 0.4: precision 2/3, the other half
    assert METRICS["auprc"][0](sample_of(label, probability)) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert METRICS["brier"][0](sample_of(label, probability)) == pytest.approx((0.01 + 0.36 + 0.16 + 0.04) / 4)
    constant = np.full(4, 0.5)
    assert METRICS["auroc"][0](sample_of(label, constant)) == 0.5
    assert METRICS["auprc"][0](sample_of(label, constant)) == 0.5


def test_directions_are_known():
    assert [metric.higher_is_better for metric, _ in METRICS.values()] == [True, True, False]
