"""Prediction times that may not be what was meant are counted and said, and nobody is left out for them."""

import polars as pl
import pytest
from ehr_core.formats.labels import Labels
from ehr_eval.timing import describe_times, odd_times


@pytest.fixture
def records(events, dataset, tmp_path):
    rows = [(1, None, "GENDER//F"), (1, 0, "A"), (1, 10, "MEDS_DEATH"), (2, 0, "A"), (2, 5, "B")]
    rows.append((3, None, "GENDER//M"))
    return dataset(tmp_path / "meds", held_out=[events(rows)])


def asked(at, *pairs):
    table = pl.DataFrame(
        {"subject_id": [subject for subject, _ in pairs], "prediction_time": [at(day) for _, day in pairs]},
        {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")},
    )
    return Labels("task", None, {"held_out": table.to_arrow()})


@pytest.mark.parametrize(("subject", "day", "expected"), [
    (1, -1, "unseen"), (1, 0, None), (1, 9.9, None), (1, 10, "dead"), (2, 5, None), (2, 370, None), (2, 371, "late"),
    (3, 4, "unseen"),
])  # fmt: skip
def test_a_time_is_called_what_it_is(records, at, subject, day, expected):
    found = odd_times(records, asked(at, (subject, day)))
    assert found == {name: int(name == expected) for name in ("unseen", "dead", "late")}


def test_counts_come_in_words_without_anything_of_a_patient(records, at):
    lines = describe_times(records, asked(at, (1, 11), (2, -400), (2, 1)))
    assert lines == [
        "task: 1 of 3 samples are asked before the patient's first event with a time: nothing is known of them then",
        "task: 1 of 3 samples are asked at or after the patient's death",
    ]
    assert describe_times(records, asked(at, (2, 1))) == []
