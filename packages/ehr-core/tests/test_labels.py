"""Labels in every layout and of every kind that users bring, and the faults that are found when they are read."""

import dataclasses
from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import Manifest
from ehr_core.formats.labels import read_labels, write_label_folder

SPLIT_OF = dict.fromkeys(range(1, 7), "train") | {7: "tuning", 8: "tuning", 9: "held_out"}
SUBJECTS = list(SPLIT_OF)
START = datetime(2020, 1, 1)
OUTCOMES = {
    "binary": {"boolean_value": [n % 2 == 0 for n in SUBJECTS]},
    "multiclass": {"integer_value": [n % 3 for n in SUBJECTS]},
    "multilabel": {"boolean_values": [[n % 2 == 0, None, True] for n in SUBJECTS]},
    "regression": {"float_value": [n / 2 for n in SUBJECTS]},
    "survival": {"time_days": [float(n) for n in SUBJECTS], "event": [n % 2 == 0 for n in SUBJECTS]},
}


def frame(**columns):
    times = [START + timedelta(days=n) for n in SUBJECTS]
    return pl.DataFrame({"subject_id": SUBJECTS, "prediction_time": times} | columns)


def divided(table):
    places = [SPLIT_OF[subject] for subject in table["subject_id"]]
    return {split: table.filter(pl.Series(places) == split) for split in ("train", "tuning", "held_out")}


def one_file(folder, table, suffix):
    write(folder / f"task{suffix}", table)
    return folder / f"task{suffix}"


def one_file_in_a_folder(folder, table, suffix):
    write(folder / "task" / f"all{suffix}", table)
    return folder / "task"


def a_file_a_split(folder, table, suffix):
    for split, part in divided(table).items():
        write(folder / "task" / f"{split}{suffix}", part)
    return folder / "task"


def shards(folder, table, suffix):
    for split, part in divided(table).items():
        write(folder / "task" / split / "0" / f"0{suffix}", part[:2])
        write(folder / "task" / split / "0" / f"1{suffix}", part[2:])
    return folder / "task"


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_csv(path) if path.suffix == ".csv" else table.write_parquet(path)


LAYOUTS = [one_file, one_file_in_a_folder, a_file_a_split, shards]


@pytest.mark.parametrize("kind", OUTCOMES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_labels_are_the_same_in_every_layout(tmp_path, kind, layout, suffix):
    if kind == "multilabel" and suffix == ".csv":
        pytest.skip("CSV has no lists")
    table = frame(**OUTCOMES[kind])
    found = read_labels(layout(tmp_path, table, suffix), split_of=SPLIT_OF)
    assert (found.name, found.question.kind) == ("task", kind)
    assert {split: len(found.tables[split]) for split in found.splits} == {"train": 6, "tuning": 2, "held_out": 1}
    plain = read_labels(a_file_a_split(tmp_path / "plain", table, ".parquet"))
    for split in found.splits:
        np.testing.assert_array_equal(found.array(split), plain.array(split))
        assert found.tables[split]["prediction_time"].to_pylist() == plain.tables[split]["prediction_time"].to_pylist()
    assert found.digest == plain.digest


@pytest.mark.parametrize("kind", OUTCOMES)
def test_labels_become_arrays_in_the_shape_of_their_kind(tmp_path, kind):
    found = read_labels(a_file_a_split(tmp_path, frame(**OUTCOMES[kind]), ".parquet"))
    shape = {"multilabel": (6, 3), "survival": (6, 2)}.get(kind, (6,))
    assert found.array("train").shape == shape
    expected = {
        "binary": [0, 1, 0, 1, 0, 1],
        "multiclass": [1, 2, 0, 1, 2, 0],
        "regression": [0.5, 1, 1.5, 2, 2.5, 3],
    }
    if kind in expected:
        assert found.array("train").tolist() == expected[kind]


def read(folder, **columns):
    table = frame(**columns) if "subject_id" not in columns else pl.DataFrame(columns)
    return read_labels(one_file(folder, table, ".parquet"), split_of=SPLIT_OF)


def test_classes_may_have_names_and_integers_may_be_numbers(tmp_path):
    named = read(tmp_path, categorical_value=["ward", "icu", "home"] * 3)
    assert named.question.names == ("home", "icu", "ward")
    assert named.array("train").tolist() == [2, 1, 0, 2, 1, 0]
    table = frame(integer_value=[7 * n for n in SUBJECTS])
    numbers = read_labels(one_file(tmp_path, table, ".parquet"), kind="regression", split_of=SPLIT_OF)
    assert numbers.question.kind == "regression"
    assert numbers.array("held_out").tolist() == [63.0]


def test_the_first_column_with_a_value_decides_and_others_are_not_read(tmp_path):
    nothing = pl.Series([None] * 9, dtype=pl.Float64)
    found = read(tmp_path, float_value=nothing, integer_value=[0, 1, 2] * 3, boolean_value=nothing, note=["x"] * 9)
    assert found.question.kind == "multiclass"
    assert set(found.tables["train"].column_names) == {"subject_id", "prediction_time", "integer_value"}


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_of_any_unit_and_zone_are_the_same_instants(tmp_path, unit):
    zoned = frame(boolean_value=[True] * 9).with_columns(
        pl.col("prediction_time").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo").dt.cast_time_unit(unit)
    )
    found = read_labels(one_file(tmp_path, zoned, ".parquet"), split_of=SPLIT_OF)
    assert found.tables["held_out"]["prediction_time"].to_pylist() == [START + timedelta(days=9)]


def test_dates_are_midnights(tmp_path):
    found = read(tmp_path, prediction_time=[date(2020, 1, n) for n in SUBJECTS], subject_id=SUBJECTS,
                 boolean_value=[True] * 9)  # fmt: skip
    assert found.tables["held_out"]["prediction_time"].to_pylist() == [datetime(2020, 1, 9)]


def test_lists_of_numbers_are_truth_values_and_nan_is_not_known(tmp_path):
    rows = [[1.0, np.nan, 0.0], [0.0, 1.0, np.nan], [1.0, 1.0, 1.0]] * 3
    found = read(tmp_path, boolean_values=rows)
    np.testing.assert_array_equal(found.array("train"), np.array(rows[:6]))
    assert found.array("held_out").tolist() == [[1.0, 1.0, 1.0]]


def test_names_of_classes_in_csv_stay_as_they_were_typed_and_an_empty_one_is_a_null(tmp_path):
    head = "subject_id,prediction_time,categorical_value"
    rows = [f"{n},2020-01-0{n} 00:00:00,{name}" for n, name in zip(SUBJECTS, ["01", "1", "10"] * 3, strict=True)]
    (tmp_path / "task.csv").write_text("\n".join([head, *rows]))
    assert read_labels(tmp_path / "task.csv", split_of=SPLIT_OF).question.names == ("01", "1", "10")
    (tmp_path / "task.csv").write_text("\n".join([head, *rows[:-1], "9,2020-01-09 00:00:00,"]))
    with pytest.raises(DataError, match="has 1 nulls"):
        read_labels(tmp_path / "task.csv", split_of=SPLIT_OF)


def test_all_columns_of_meds_may_be_there_with_one_that_is_filled(tmp_path):
    empty = {
        "integer_value": pl.Series([None] * 9, dtype=pl.Int64),
        "boolean_value": pl.Series([None] * 9, dtype=pl.Boolean),
    }
    found = read(tmp_path, **empty, categorical_value=["a", "b", "a"] * 3)
    assert found.question.names == ("a", "b")
    assert found.array("held_out").tolist() == [0]


def test_nanoseconds_are_cut_to_microseconds(tmp_path):
    odd = frame(boolean_value=[True] * 9).with_columns(
        pl.col("prediction_time").cast(pl.Datetime("ns")) + pl.duration(nanoseconds=1999)
    )
    found = read_labels(one_file(tmp_path, odd, ".parquet"), split_of=SPLIT_OF)
    assert found.tables["held_out"]["prediction_time"].to_pylist() == [START + timedelta(days=9, microseconds=1)]


def test_no_message_about_a_csv_shows_a_row(tmp_path):
    (tmp_path / "task.csv").write_text("subject_id,prediction_time\n1,2020-01-01\n77,2014-04-30,oops\n")
    with pytest.raises(FormatError, match="not a readable CSV file: Expected 2 columns, got 3") as error:
        read_labels(tmp_path / "task.csv", split_of=SPLIT_OF)
    assert "77" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_folder_with_a_dot_keeps_its_name_and_a_name_that_leads_elsewhere_is_refused(tmp_path):
    folder = a_file_a_split(tmp_path, frame(boolean_value=[True] * 9), ".csv").rename(tmp_path / "los.7d")
    assert read_labels(folder).name == "los.7d"
    found = read_labels(folder)
    (tmp_path / "made").mkdir()
    write_label_folder(
        tmp_path / "made", dataclasses.replace(found, name="../escaped"), Manifest("labels", 2, ["x"], {})
    )
    with pytest.raises(FormatError, match="no plain name"):
        read_labels(tmp_path / "made")


def test_files_that_no_split_is_called_and_several_tasks_in_one_folder_are_refused(tmp_path):
    table = frame(boolean_value=[True] * 9)
    folder = a_file_a_split(tmp_path, table, ".csv")
    write(folder / "test.csv", table)
    with pytest.raises(FormatError, match=r"has test\.csv beside the files of its splits"):
        read_labels(folder)
    for name in ("death", "readmission"):
        write(tmp_path / "two" / f"{name}.csv", table)
    with pytest.raises(FormatError, match="give each task a folder of its own"):
        read_labels(tmp_path / "two", split_of=SPLIT_OF)


def test_whom_and_when_alone_is_labels_without_a_question(tmp_path):
    found = read(tmp_path)
    assert found.question is None
    with pytest.raises(DataError, match="have no outcome; give one of these columns"):
        found.asked()


FAULTS = {
    "nulls": ({"boolean_value": [None, *[True] * 8]}, "column 'boolean_value' of the labels has 1 nulls"),
    "no truth value": ({"boolean_value": [2, *[1] * 8]}, "has 1 values that are neither 0 nor 1"),
    "text for truth": ({"boolean_value": ["yes"] * 9}, "expected bool: true and false, or 1 and 0"),
    "negative class": ({"integer_value": [-1, *[0] * 8]}, "has 1 values that are not classes from 0 to 0"),
    "fraction of a class": (
        {"integer_value": [0.5] * 9},
        "'integer_value' has 9 values that are not whole numbers",
    ),
    "infinite number": ({"float_value": [np.inf, *[0.0] * 8]}, "has 1 values that are not finite numbers"),
    "no number": ({"float_value": [np.nan, *[0.0] * 8]}, "has 1 values that are not finite numbers"),
    "time before": ({"time_days": [-1.0, *[0.0] * 8], "event": [True] * 9}, "numbers of days, 0 or more"),
    "time alone": ({"time_days": [1.0] * 9}, "labels lack the column event"),
    "fraction of a label": ({"boolean_values": [[0.3], *[[1.0]] * 8]}, "has 1 values that are neither 0 nor 1"),
    "code for a class": ({"integer_value": [20_000_000, *[0] * 8]}, "Give categorical_value for codes, or kind=regr"),
    "numbers for names": ({"categorical_value": [1.0] * 9}, "column 'categorical_value' is double, expected string"),
    "beyond 32 bits": ({"float_value": [1e300, *[0.0] * 8]}, "has 1 values that are not finite numbers up to 1e\\+15"),
    "seconds for times": (
        {"subject_id": SUBJECTS, "prediction_time": [1_500_000_000] * 9, "boolean_value": [True] * 9},
        "column 'prediction_time' is int64, expected timestamp",
    ),
    "lists of two lengths": (
        {"boolean_values": [[True], *[[True, False]] * 8]},
        "lists of 1 to 2 labels; every sample needs all of them",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_value_that_is_no_outcome_is_refused_with_file_and_count(tmp_path, fault):
    columns, message = FAULTS[fault]
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, **columns)
    assert str(tmp_path) in str(error.value)


def test_a_sample_twice_a_strange_subject_and_strange_ids_are_refused(tmp_path):
    table = frame(boolean_value=[True] * 9)
    with pytest.raises(DataError, match="6 samples are there more than once"):
        read_labels(a_file_a_split(tmp_path / "twice", table.vstack(table), ".csv"))
    with pytest.raises(DataError, match=r"1 of the 9 labels .* are of subjects that the dataset does not have"):
        read_labels(one_file(tmp_path, table, ".csv"), split_of={k: v for k, v in SPLIT_OF.items() if k != 9})
    with pytest.raises(FormatError, match="does not say which split its labels are of"):
        read_labels(one_file(tmp_path, table, ".csv"))
    for strange in (pl.col("subject_id") + 0.5, pl.lit("A1").alias("subject_id")):
        with pytest.raises(DataError, match="column 'subject_id'"):
            read_labels(one_file(tmp_path, table.with_columns(strange), ".parquet"), split_of=SPLIT_OF)


def test_a_folder_without_labels_or_with_two_of_one_split_is_refused(tmp_path):
    with pytest.raises(FormatError, match="does not exist; expected labels"):
        read_labels(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="has no labels"):
        read_labels(tmp_path / "empty")
    folder = a_file_a_split(tmp_path, frame(boolean_value=[True] * 9), ".csv")
    frame(boolean_value=[True] * 9).write_parquet(folder / "train.parquet")
    with pytest.raises(FormatError, match="remove one"):
        read_labels(folder)
    with pytest.raises(ConfigError, match="the kind of outcome is 'ordinal'"):
        read_labels(one_file(tmp_path, frame(), ".csv"), kind="ordinal")


def test_a_damaged_file_is_one_line_that_names_it(tmp_path):
    folder = a_file_a_split(tmp_path, frame(boolean_value=[True] * 9), ".parquet")
    whole = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match=r"train\.parquet is not a readable Parquet file"):
        read_labels(folder)
