"""Prediction times that may not be what was meant are counted and said, and those that cannot be are refused."""

import polars as pl
import pyarrow as pa
import pytest
from ehr_core.errors import DataError
from ehr_core.formats.labels import Labels
from ehr_core.outcomes import Question
from ehr_eval.timing import check_times, describe_times, odd_times


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
    assert {name for name, count in found.items() if count} == ({expected} if expected else set())


def test_counts_come_in_words_without_anything_of_a_patient(records, at):
    def lines(*pairs):
        labels = asked(at, *pairs)
        return describe_times(odd_times(records, labels), labels)

    assert lines((1, 11), (2, -400), (2, 1)) == [
        "task: 1 of 3 samples are asked before the patient's first event with a time: nothing but a birth is known of "
        "them then",
        "task: 1 of 3 samples are asked at or after the patient's death",
    ]
    assert lines((2, 1)) == []


def test_times_a_century_after_the_records_or_before_birth_are_refused(events, dataset, tmp_path, at):
    rows = [(1, 0, "MEDS_BIRTH"), (1, 100, "A"), (2, 400, "B")]
    meds = dataset(tmp_path / "born", train=[events(rows)])

    def check(*pairs):
        labels = Labels("task", None, {"train": asked(at, *pairs).tables["held_out"]})
        counts = odd_times(meds, labels)
        check_times(counts, labels)
        return {name for name, count in counts.items() if count}

    assert check((1, 100), (2, 765), (1, 400)) == set()
    assert check((1, 50), (1, -365)) == {"unseen"}
    with pytest.raises(DataError, match="1 of 2 samples are asked more than 365 days after the last event"):
        check((1, 100), (2, 36_500))
    with pytest.raises(DataError, match="2 of 2 samples are asked more than 365 days before the patient's birth"):
        check((1, -366), (1, -36_500))


def test_an_event_that_cannot_be_moves_no_end_of_the_records(events, dataset, tmp_path, at):
    rows = [(1, 0, "A"), (1, 10, "B"), (2, 5, "A"), (2, 400_000, "TYPO")]
    labels = asked(at, (1, 9), (2, 4000))
    found = odd_times(dataset(tmp_path / "typo", held_out=[events(rows)]), labels)
    assert found["beyond"] == found["late"] == 1


def test_times_to_an_event_that_end_after_the_records_are_counted(records, at):
    table = asked(at, (2, 0), (2, 5)).tables["held_out"]
    days = {"time_days": pa.array([9.0, 90.0]), "event": pa.array([False, True])}
    for name, column in days.items():
        table = table.append_column(name, column)
    labels = Labels("task", Question("survival"), {"held_out": table})
    (line,) = describe_times(odd_times(records, labels), labels)
    assert line == "task: 1 of 2 samples have a time to the event that ends after the last event of the records"
