"""Each check of baselines, metrics and tasks passes on our own and fails on one that breaks what it checks."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from ehr_core.errors import EhrError
from ehr_core.formats.folder import read_json, write_json
from ehr_core.formats.labels import read_labels
from ehr_core.outcomes import BINARY, MULTICLASS, REGRESSION
from ehr_core.protocols import OutcomeCodes
from ehr_core.testing import score_checks, task_checks
from ehr_eval.baselines.linear import Linear
from ehr_eval.baselines.logistic import Logistic
from ehr_eval.metrics.classes import Brier
from ehr_eval.metrics.ranking import Auroc
from ehr_eval.settings import AurocConfig, BrierConfig, LinearConfig, LogisticConfig
from ehr_eval.task_settings import InHospitalMortalityConfig, LengthOfStayClassConfig, LengthOfStayConfig
from ehr_eval.tasks.in_hospital import InHospitalMortality, LengthOfStay, LengthOfStayClass


def component(target, config, *outcomes):
    return SimpleNamespace(name=config.name, load=lambda: target, config=config, outcomes=outcomes)


# -- baselines


class Forgets(Logistic):
    """Saves, and loads another model."""

    def load(self, folder, question):
        super().load(folder, question)
        self.predict = lambda value: np.full(len(value), 0.5)


class Guesses(Logistic):
    def predict(self, value):
        return np.random.default_rng().random(len(value))


class LearnsNothing(Logistic):
    def predict(self, value):
        return np.linspace(0.2, 0.21, len(value))


class Logits(Logistic):
    def predict(self, value):
        probability = super().predict(value)
        return np.log(probability / (1 - probability))


class OneColumn(Logistic):
    """Answers many classes with one number."""

    def predict(self, value):
        return super().predict(value)[..., 0]


class NeedsTuning(Linear):
    def fit(self, question, train, tuning):
        assert len(tuning.label), "no tuning samples"
        super().fit(question, train, tuning)


BASELINES = [
    (Forgets, LogisticConfig, BINARY, "what was saved and loaded predicts otherwise"),
    (Guesses, LogisticConfig, BINARY, "the same seed gave other predictions"),
    (LearnsNothing, LogisticConfig, BINARY, "it did not learn an easy rule"),
    (Logits, LogisticConfig, BINARY, "a probability is"),
    (OneColumn, LogisticConfig, MULTICLASS, "predictions have shape"),
    (NeedsTuning, LinearConfig, REGRESSION, "no tuning samples"),
]


@pytest.mark.parametrize(("wrong", "config", "outcome", "message"), BASELINES)
def test_a_wrong_baseline_is_told_what_is_wrong(wrong, config, outcome, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        score_checks.check_baseline("baseline", component(wrong, config, outcome), tmp_path)


@pytest.mark.parametrize(("target", "config", "outcomes"), [
    (Logistic, LogisticConfig, (BINARY, MULTICLASS)),
    (Linear, LinearConfig, (REGRESSION,)),
])  # fmt: skip
def test_our_baselines_pass(target, config, outcomes, tmp_path):
    score_checks.check_baseline("baseline", component(target, config, *outcomes), tmp_path)


# -- metrics


class WrongWay(Brier):
    higher_is_better = True


class Blind(Auroc):
    def weighted(self, sample, weight):
        return np.full(len(weight), 0.5)


class Unweighted(Auroc):
    def weighted(self, sample, weight):
        return super().weighted(sample, np.ones_like(weight))


METRICS = [
    (WrongWay, BrierConfig, "higher_is_better is the other way round"),
    (Blind, AurocConfig, "good and bad predictions the same score"),
    (Unweighted, AurocConfig, "a weighted row is not scored as repeated rows are"),
]


@pytest.mark.parametrize(("wrong", "config", "message"), METRICS)
def test_a_wrong_metric_is_told_what_is_wrong(wrong, config, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        score_checks.check_metric("metric", component(wrong, config, BINARY), tmp_path)


# -- tasks


class Restless(InHospitalMortality):
    """Another answer with every call."""

    calls = 0

    def label(self, events, end):
        type(self).calls += 1
        flipped = pl.lit(type(self).calls % 2 == 0)
        return super().label(events, end).with_columns(pl.col("boolean_value") ^ flipped)


class LooksBeyond(InHospitalMortality):
    def label(self, events, end):
        return super().label(events, events["time"].max())


class CountsOthers(InHospitalMortality):
    """Times move by the number of subjects."""

    def label(self, events, end):
        moved = pl.col("prediction_time") + pl.duration(seconds=events["subject_id"].n_unique())
        return super().label(events, end).with_columns(moved)


class Unnamed(LengthOfStayClass):
    def __init__(self, settings):
        super().__init__(settings)
        self.names = ()


class WithoutTimes(LengthOfStay):
    def label(self, events, end):
        return super().label(events, end).drop("float_value")


class CodesForANumber(LengthOfStay):
    def codes(self):
        return OutcomeCodes(("MEDS_DEATH",), ())


TASKS = [
    (Restless, InHospitalMortalityConfig, BINARY, "labels differ between two calls"),
    (LooksBeyond, InHospitalMortalityConfig, BINARY, "events after the end of the data change labels"),
    (CountsOthers, InHospitalMortalityConfig, BINARY, "other subjects change a subject's labels"),
    (Unnamed, LengthOfStayClassConfig, MULTICLASS, "names its classes|values for"),
    (WithoutTimes, LengthOfStayConfig, REGRESSION, "labels of kind regression need"),
    (CodesForANumber, LengthOfStayConfig, REGRESSION, "codes can only decide a binary label"),
]


def check_task(task, folder):
    for number, check in enumerate(task_checks.CHECKS["task"]):
        place = folder / str(number)
        place.mkdir()
        check("task", task, place)


@pytest.mark.parametrize(("wrong", "config", "outcome", "message"), TASKS)
def test_a_wrong_task_is_told_what_is_wrong(wrong, config, outcome, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        check_task(component(wrong, config, outcome), tmp_path)


def test_our_tasks_pass(tmp_path):
    check_task(component(InHospitalMortality, InHospitalMortalityConfig, BINARY), tmp_path)


# -- predictors


@dataclass
class PredictorConfig:
    """Answers with the share of positives of the train labels."""

    name: str = "share"


class Share:
    needs_run = False

    def __init__(self, settings):
        pass

    def fit(self, job):
        write_json(job.output / "share.json", float(read_labels(job.labels).array("train").mean()))

    def predict(self, job):
        answer = read_json(job.fitted / "share.json")
        return {split: np.full(len(read_labels(job.labels).tables[split]), answer) for split in job.splits}

    def tokenizer(self, fitted):
        return None


class KeepsItInWork(Share):
    """Leaves what it needs in the folder that goes away."""

    def fit(self, job):
        super().fit(job)
        write_json(job.output / "share.json", str(job.work / "share.json"))
        write_json(job.work / "share.json", 0.5)

    def predict(self, job):
        return {s: np.full(1, read_json(Path(read_json(job.fitted / "share.json")))) for s in job.splits}


class ForgetsASample(Share):
    def predict(self, job):
        return {split: answers[1:] for split, answers in super().predict(job).items()}


class Wavers(Share):
    def predict(self, job):
        return {split: np.random.default_rng().random(len(a)) for split, a in super().predict(job).items()}


PREDICTORS = [
    (KeepsItInWork, (OSError, EhrError), "share.json"),
    (ForgetsASample, AssertionError, "predictions have shape"),
    (Wavers, AssertionError, "two predictions from one fit differ"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), PREDICTORS)
def test_a_wrong_predictor_is_told_what_is_wrong(wrong, error, message, tmp_path):
    for name, part in (("right", Share), ("wrong", wrong)):
        (tmp_path / name).mkdir()
        if part is Share:
            score_checks.check_predictor("predictor", component(part, PredictorConfig, BINARY), tmp_path / name)
            continue
        with pytest.raises(error, match=message):
            score_checks.check_predictor("predictor", component(part, PredictorConfig, BINARY), tmp_path / name)
