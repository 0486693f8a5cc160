"""Objectives for numbers start where the train labels lie."""

import dataclasses
from dataclasses import dataclass

import pyarrow as pa
import pytest
from ehr_core.formats.labels import Labels
from ehr_core.outcomes import Question
from ehr_train.job import TrainJob
from ehr_train.prepare import resolve


@dataclass
class NumberConfig:
    name: str = "number"
    center: float | None = None
    scale: float | None = None


@dataclass
class PlainConfig:
    name: str = "plain"


def labels(*values):
    table = {"subject_id": range(len(values)), "prediction_time": range(len(values)), "float_value": values}
    other = {**table, "float_value": [9e9 for _ in values]}
    return Labels("days", Question("regression"), {"train": pa.table(table), "tuning": pa.table(other)})


def job(objective):
    return TrainJob("store", "out", model=None, objective=objective)


def test_center_and_scale_are_those_of_the_train_labels_unless_they_are_given():
    found = resolve(job(NumberConfig()), labels(400.0, 600.0)).objective
    assert found == NumberConfig(center=500.0, scale=100.0)
    assert resolve(job(NumberConfig(center=3.0)), labels(400.0, 600.0)).objective.center == 3.0
    assert resolve(job(NumberConfig()), labels(7.0, 7.0)).objective == NumberConfig(center=7.0, scale=1.0)


@pytest.mark.parametrize("objective", [NumberConfig(), PlainConfig()])
def test_other_objectives_and_labels_are_left_as_they_are(objective):
    binary = dataclasses.replace(labels(), question=Question("binary"))
    assert resolve(job(objective), None).objective == resolve(job(objective), binary).objective == objective
    assert resolve(job(PlainConfig()), labels(1.0, 2.0)).objective == PlainConfig()
