"""Intervals against a slow resampling by hand, and against a world whose truth is known."""

import time

import numpy as np
import pytest
from ehr_core.metrics import repeated
from ehr_core.outcomes import BINARY, Question, Sample
from ehr_eval import bootstrap
from ehr_eval.metrics.classes import Brier
from ehr_eval.metrics.ranking import Auprc, Auroc
from ehr_eval.settings import AuprcConfig, AurocConfig, BrierConfig
from scipy import stats
from sklearn.metrics import roc_auc_score

AUROC = {"auroc": Auroc(AurocConfig())}


def resample(metrics, label, predictions, subject, num_resamples, seed):
    """`bootstrap.resample` of binary samples of one time."""
    samples = {
        name: Sample(
            Question(BINARY), label.astype(np.float64), np.asarray(probability), subject, np.zeros(len(label), np.int64)
        )
        for name, probability in predictions.items()
    }
    return bootstrap.resample(metrics, samples, num_resamples, seed)


def world(rng, subjects, rows_each=1):
    subject = np.repeat(np.arange(subjects), rows_each)
    label = np.repeat(rng.random(subjects) < 0.4, rows_each)
    probability = 1 / (1 + np.exp(-(rng.normal(size=len(label)) + 1.5 * label)))
    return label, probability, subject


def test_resamples_equal_rows_drawn_by_hand():
    label, probability, subject = world(np.random.default_rng(0), 30, 3)
    subject = subject * 7 + 100
    weights = np.concatenate(list(bootstrap.draws(subject, 50, seed=3)))
    scores = resample(AUROC, label, {"a": probability}, subject, 50, seed=3)["a", "auroc"]
    for weight, score in zip(weights, scores, strict=True):
        take = np.repeat(np.arange(len(label)), weight.astype(int))
        assert score == pytest.approx(roc_auc_score(label[take], probability[take]), abs=1e-12)


def test_a_subjects_rows_are_drawn_together():
    subject = np.array([5, 9, 5, 7, 9, 9])
    for weights in bootstrap.draws(subject, 40, seed=0):
        assert (weights[:, 0] == weights[:, 2]).all()
        assert (weights[:, 1] == weights[:, 4]).all()
        per_subject = weights[:, [0, 1, 3]]
        assert (per_subject.sum(axis=1) == 3).all()
        assert (per_subject.std(axis=1) > 0).any()


def test_the_interval_is_scipys_when_every_subject_has_one_row():
    label, probability, subject = world(np.random.default_rng(1), 150)
    scores = resample(AUROC, label, {"a": probability}, subject, 3000, seed=1)["a", "auroc"]
    theirs = stats.bootstrap(
        (label, probability),
        lambda y, p: roc_auc_score(y, p),
        paired=True,
        vectorized=False,
        n_resamples=1500,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert bootstrap.interval(scores, 0.95) == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_intervals_cover_the_truth_as_often_as_they_say():
    truth = stats.norm.cdf(1.5 / np.sqrt(2))
    covered = []
    for seed in range(200):
        label, probability, subject = world(np.random.default_rng(seed), 120)
        scores = resample(AUROC, label, {"a": probability}, subject, 400, seed)["a", "auroc"]
        low, high = bootstrap.interval(scores, 0.9)
        covered.append(low <= truth <= high)
    assert 0.83 <= np.mean(covered) <= 0.96


def test_repeating_each_subjects_row_does_not_make_the_interval_narrower():
    label, probability, subject = world(np.random.default_rng(2), 100)
    scores = resample(AUROC, label, {"a": probability}, subject, 500, 0)["a", "auroc"]
    once = bootstrap.interval(scores, 0.95)
    many = [np.repeat(part, 9) for part in (label, probability, subject)]
    scores = resample(AUROC, many[0], {"a": many[1]}, many[2], 500, 0)["a", "auroc"]
    assert bootstrap.interval(scores, 0.95) == pytest.approx(once, abs=1e-12)


def test_the_same_seed_gives_the_same_resamples_and_predictors_share_them():
    label, probability, subject = world(np.random.default_rng(3), 80)
    first = resample(AUROC, label, {"a": probability, "b": probability}, subject, 100, 9)
    again = resample(AUROC, label, {"a": probability}, subject, 100, 9)
    other = resample(AUROC, label, {"a": probability}, subject, 100, 10)
    assert (first["a", "auroc"] == first["b", "auroc"]).all()
    assert (first["a", "auroc"] == again["a", "auroc"]).all()
    assert (first["a", "auroc"] != other["a", "auroc"]).any()


def test_a_metric_that_knows_no_weights_is_resampled_too():
    label, probability, subject = world(np.random.default_rng(4), 60)

    class Plain:
        higher_is_better = True

        def __call__(self, sample):
            return roc_auc_score(sample.label, sample.prediction)

        def weighted(self, sample, weight_RN):
            return repeated(self, sample, weight_RN)

    found = resample(AUROC | {"plain": Plain()}, label, {"a": probability}, subject, 50, 0)
    assert found["a", "plain"] == pytest.approx(found["a", "auroc"], abs=1e-12)


def test_one_class_has_no_interval():
    scores = resample(AUROC, np.ones(5, bool), {"a": np.full(5, 0.3)}, np.arange(5), 20, 0)["a", "auroc"]
    assert np.isnan(bootstrap.interval(scores, 0.95)).all()


def test_a_thousand_resamples_of_five_thousand_rows_take_seconds_not_minutes():
    label, probability, subject = world(np.random.default_rng(5), 5000)
    metrics = AUROC | {"auprc": Auprc(AuprcConfig()), "brier": Brier(BrierConfig())}
    started = time.perf_counter()
    resample(metrics, label, {"a": probability}, subject, 1000, 0)
    assert time.perf_counter() - started < 10  # under two on an idle machine; the bound is for busy ones
