"""Checks of baselines, predictors and metrics, each with every kind of outcome that its component names.

Shapes: N samples, K classes or labels, F features.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ehr_core.component import Component
from ehr_core.errors import NotApplicable
from ehr_core.formats.folder import Manifest
from ehr_core.formats.labels import Labels, read_labels, write_label_folder, write_labels
from ehr_core.outcomes import BINARY, COLUMNS, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL, Question, Sample
from ehr_core.protocols import Features, FitJob, PredictJob
from ehr_core.testing.base import Check, small_settings, tiny_dataset
from ehr_core.testing.tiny import SUBJECTS

QUESTIONS = {
    BINARY: Question(BINARY),
    MULTICLASS: Question(MULTICLASS, ("low", "middle", "high")),
    MULTILABEL: Question(MULTILABEL, ("first", "second")),
    REGRESSION: Question(REGRESSION),
    SURVIVAL: Question(SURVIVAL),
}


def easy_labels(kind: str, score_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Labels that a standard normal score decides, up to some noise, in the shape of the kind."""
    noisy_N = score_N + 0.3 * random.normal(size=len(score_N))
    if kind == BINARY:
        return (noisy_N > 0).astype(np.float64)
    if kind == MULTICLASS:
        return np.digitize(noisy_N, [-0.5, 0.5]).astype(np.float64)
    if kind == MULTILABEL:
        label_NK = np.stack([noisy_N > 0, noisy_N < 0.5], axis=1).astype(np.float64)
        label_NK[::7, 1] = np.nan  # not known
        return label_NK
    if kind == REGRESSION:
        return 100.0 + 20.0 * noisy_N
    return np.stack([np.exp(-noisy_N) * 10, (random.random(len(score_N)) < 0.7).astype(np.float64)], axis=1)


def agreement(kind: str, prediction: np.ndarray, score_N: np.ndarray) -> float:
    """Rank correlation of what is predicted with the score that decides."""
    flat = prediction[:, -1] if kind == MULTICLASS else prediction[:, 0] if kind == MULTILABEL else prediction
    ranks = np.stack([np.argsort(np.argsort(values)) for values in (flat, score_N)])
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def check_prediction(kind: str, prediction: np.ndarray, count: int) -> None:
    """Raise AssertionError unless these are predictions of the kind."""
    width = QUESTIONS[kind].num_outputs
    expected = (count, width) if COLUMNS[kind].many else (count,)
    assert prediction.shape == expected, f"{kind}: predictions have shape {prediction.shape}, expected {expected}"
    assert np.isfinite(prediction).all(), f"{kind}: a prediction is not finite"
    if kind in (BINARY, MULTICLASS, MULTILABEL):
        assert prediction.min() >= 0, f"{kind}: a probability is below 0"
        assert prediction.max() <= 1, f"{kind}: a probability is above 1"
    if kind == MULTICLASS:
        assert np.allclose(prediction.sum(1), 1, atol=1e-5), f"{kind}: the probabilities of a sample do not add up to 1"


def check_baseline(kind: str, component: Component, folder: Path) -> None:
    """It learns an easy rule of every kind, missing values allowed, the same twice, and is loaded as it was saved."""
    for outcome in component.outcomes:
        random = np.random.default_rng(0)
        value_NF = random.normal(size=(360, 6)).astype(np.float32)
        score_N = value_NF[:, 0].copy()
        label = easy_labels(outcome, score_N, random)
        value_NF[random.random(value_NF.shape) < 0.05] = np.nan
        names = tuple(f"feature {number}" for number in range(6))
        train, tuning = (Features(names, value_NF[rows], label[rows]) for rows in (slice(240), slice(240, 300)))
        found = []
        for _ in range(2):
            estimator = component.load()(small_settings(component))
            estimator.fit(QUESTIONS[outcome], train, tuning)
            found.append(np.asarray(estimator.predict(value_NF[300:])))
        check_prediction(outcome, found[0], 60)
        assert np.array_equal(found[0], found[1]), f"{outcome}: the same seed gave other predictions"
        assert agreement(outcome, found[0], score_N[300:]) > 0.5, f"{outcome}: it did not learn an easy rule"
        place = folder / outcome
        place.mkdir()
        estimator.save(place)
        again = component.load()(small_settings(component))
        again.load(place, QUESTIONS[outcome])
        same = np.array_equal(found[0], np.asarray(again.predict(value_NF[300:])))
        assert same, f"{outcome}: what was saved and loaded predicts otherwise"
        nothing = Features(names, value_NF[:0], label[:0])
        component.load()(small_settings(component)).fit(QUESTIONS[outcome], train, nothing)


def tiny_labels(folder: Path, kind: str) -> Labels:
    """Labels of a kind for the subjects of the tiny dataset, written to a folder."""
    tables = {}
    for split, subjects in SUBJECTS.items():
        count = len(subjects)
        values: dict[str, Any] = {
            "boolean_value": [number % 2 == 0 for number in range(count)],
            "integer_value": [number % 3 for number in range(count)],
            "boolean_values": [[number % 2 == 0, None] for number in range(count)],
            "float_value": [float(number) for number in range(count)],
            "time_days": [1.0 + number for number in range(count)],
            "event": [number % 2 == 0 for number in range(count)],
        }
        time = pa.array([1_600_000_000_000_000] * count, pa.timestamp("us"))
        columns = {name: values[name] for name in COLUMNS[kind].label}
        table = pa.table({"subject_id": pa.array(list(subjects), pa.int64()), "prediction_time": time, **columns})
        write_labels(folder / "raw" / f"{split}.parquet", table, kind)
        tables[split] = table
    labels = read_labels(folder / "raw", kind)
    (folder / "labels").mkdir()
    write_label_folder(folder / "labels", labels, Manifest("labels", 2, ["ehr-core"], {}))
    return labels


def check_predictor(kind: str, component: Component, folder: Path) -> None:
    """What is fitted fills a folder that serves wherever it is moved to, for labels that it was not fitted on, too."""
    for outcome in component.outcomes:
        predictor = component.load()(small_settings(component))
        if predictor.needs_run:
            raise NotApplicable(f"{component.name} needs a trained run, which a general check does not have")
        place = folder / outcome
        place.mkdir()
        labels = tiny_labels(place, outcome)
        meds = tiny_dataset(folder)
        fitted, work = place / "fitted", place / "work"
        for path in (fitted, work):
            path.mkdir()
        predictor.fit(FitJob(labels=place / "labels", output=fitted, work=work, meds=meds))
        assert predictor.tokenizer(fitted) is None or predictor.tokenizer(fitted).is_dir()
        moved = place / "elsewhere"
        shutil.move(fitted, moved)
        shutil.rmtree(work)
        job = PredictJob(fitted=moved, labels=place / "labels", splits=("tuning", "held_out"), meds=meds)
        found = [component.load()(small_settings(component)).predict(job) for _ in range(2)]
        for split in job.splits:
            check_prediction(outcome, np.asarray(found[0][split]), len(labels.tables[split]))
            assert np.array_equal(found[0][split], found[1][split]), "two predictions from one fit differ"


def sample_of(kind: str, label: np.ndarray, prediction: np.ndarray) -> Sample:
    """A sample whose subjects are all different."""
    number_N = np.arange(len(label))
    return Sample(QUESTIONS[kind], label, prediction, number_N, number_N)


def perfect(kind: str, label: np.ndarray) -> np.ndarray:
    """Predictions that say what the labels are."""
    if kind == MULTICLASS:
        return np.eye(QUESTIONS[kind].num_outputs)[label.astype(int)] * 0.9 + 0.1 / 3
    if kind == MULTILABEL:
        return 0.1 + 0.8 * np.nan_to_num(label)
    if kind == SURVIVAL:
        return -label[:, 0]
    return label if kind == REGRESSION else 0.1 + 0.8 * label


def check_metric(kind: str, component: Component, folder: Path) -> None:
    """Good predictions beat bad ones, a resample is scored as its rows are, and one class is no crash."""
    metric = component.load()(small_settings(component))
    for outcome in component.outcomes:
        random = np.random.default_rng(0)
        label = easy_labels(outcome, random.normal(size=40), random)
        good = perfect(outcome, label)
        bad = good[::-1]
        better, worse = (metric(sample_of(outcome, label, prediction)) for prediction in (good, bad))
        assert better != worse, f"{outcome}: it gives good and bad predictions the same score"
        assert (better > worse) == metric.higher_is_better, f"{outcome}: higher_is_better is the other way round"
        whole = sample_of(outcome, label, good * 0.5 + bad * 0.5)
        weight_RN = random.integers(0, 3, (4, 40)).astype(np.float64)
        weight_RN[0] = 1.0
        found = metric.weighted(whole, weight_RN)
        for row, score in zip(weight_RN, found, strict=True):
            take = np.repeat(np.arange(40), row.astype(int))
            alone = metric(sample_of(outcome, whole.label[take], whole.prediction[take]))
            assert np.isclose(alone, score, equal_nan=True), (
                f"{outcome}: a weighted row is not scored as repeated rows are"
            )
        one = sample_of(outcome, np.zeros_like(label), good)
        assert isinstance(float(metric(one)), float), f"{outcome}: one class gives no number, nor NaN"


CHECKS: dict[str, list[Check]] = {
    "baseline": [check_baseline],
    "predictor": [check_predictor],
    "metric": [check_metric],
}
