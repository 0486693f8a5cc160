"""Checks of tasks. They need polars."""

from pathlib import Path

import polars as pl
from polars.testing import assert_frame_equal

from ehr_core.component import Component
from ehr_core.formats.labels import KEY, read_labels, write_labels
from ehr_core.outcomes import BINARY, COLUMNS
from ehr_core.testing.base import Check, events_of, small_settings, tiny_dataset


def _same(one: pl.DataFrame, other: pl.DataFrame, what: str) -> None:
    """Raise AssertionError unless frames are equal; the last bit of a quotient depends on where in memory it stands."""
    try:
        assert_frame_equal(one, other, check_exact=False, rel_tol=1e-12)
    except AssertionError as error:
        raise AssertionError(what) from error


def check_task_labels(kind: str, component: Component, folder: Path) -> None:
    """Labels have the columns of the task's kind, lie inside the records, and are the same twice."""
    task = component.load()(small_settings(component))
    events = events_of(tiny_dataset(folder) / "data" / "train" / "0.parquet")
    end = events["time"].max()
    labels = task.label(events, end)
    outcome = component.outcomes[0]
    needed = {*KEY, *COLUMNS[outcome].label}
    assert needed <= set(labels.columns), f"labels of kind {outcome} need {sorted(needed)}, and are {labels.columns}"
    assert labels.equals(task.label(events, end)), "labels differ between two calls"
    spans = events.group_by("subject_id").agg(pl.col("time").min().alias("low"), pl.col("time").max().alias("high"))
    joined = labels.join(spans, on="subject_id", how="left")
    assert joined["low"].null_count() == 0, "a label is for a subject that has no events"
    assert joined.filter(pl.col("prediction_time") > end).is_empty(), "a prediction time lies after the end of the data"
    assert all(prefixes for prefixes in task.needed().values()), "needed has a group without a prefix"
    if COLUMNS[outcome].many:
        assert task.names, f"a task of kind {outcome} names its classes or labels"
    if len(labels):
        write_labels(folder / "labels" / "train.parquet", labels.to_arrow(), outcome)
        question = read_labels(folder / "labels", outcome).asked()
        assert len(question.names) <= len(task.names), f"labels have {len(question.names)} values for {task.names}"


def check_task_sees_no_future(kind: str, component: Component, folder: Path) -> None:
    """A label's row (who is asked, and when) exists whatever happens after the end that is given."""
    task = component.load()(small_settings(component))
    events = events_of(tiny_dataset(folder) / "data" / "train" / "0.parquet")
    end = events["time"].median()
    within = events.filter(pl.col("time").is_null() | (pl.col("time") <= end))
    _same(task.label(within, end), task.label(events, end), "events after the end of the data change labels")


def check_task_crosses_no_subjects(kind: str, component: Component, folder: Path) -> None:
    """A subject's labels are the same alone and among others."""
    task = component.load()(small_settings(component))
    events = events_of(tiny_dataset(folder) / "data" / "train" / "0.parquet")
    end = events["time"].max()
    whole = task.label(events, end)
    for subject in events["subject_id"].unique().to_list():
        mine = pl.col("subject_id") == subject
        _same(task.label(events.filter(mine), end), whole.filter(mine), "other subjects change a subject's labels")


def check_task_codes(kind: str, component: Component, folder: Path) -> None:
    """Codes that decide the label are given for binary questions alone, or not at all."""
    codes = component.load()(small_settings(component)).codes()
    if component.outcomes[0] != BINARY:
        assert codes is None, "codes can only decide a binary label; return None"
    else:
        assert codes is None or codes.positive, "codes need at least one positive prefix; or return None"


CHECKS: dict[str, list[Check]] = {
    "task": [check_task_labels, check_task_sees_no_future, check_task_crosses_no_subjects, check_task_codes]
}
