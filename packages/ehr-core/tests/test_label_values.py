"""Values of labels in whatever type they come: those that mean one thing are taken, no other becomes one in silence."""

import math
from datetime import date, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core.errors import DataError, FormatError
from ehr_core.formats.label_layout import has_labels
from ehr_core.formats.labels import read_labels

SUBJECTS = [1, 2, 3, 4]
SPLIT_OF = dict.fromkeys(SUBJECTS, "train")
TIMES = [datetime(2020, 1, n) for n in SUBJECTS]
TRUE = [True, False, True, False]
ONES = [1, 0, 1, 0]
ZONED = pa.timestamp("us", "Asia/Tokyo")
PLAIN = {"subject_id": pa.array(SUBJECTS), "prediction_time": pa.array(TIMES), "boolean_value": pa.array(TRUE)}


def read(folder, columns, kind=None):
    pq.write_table(
        pa.table({name: column for name, column in columns.items() if column is not None}), folder / "t.parquet"
    )
    return read_labels(folder / "t.parquet", kind, SPLIT_OF)


SAME = {
    "int32 ids": ("subject_id", pa.array(SUBJECTS, pa.int32())),
    "unsigned ids": ("subject_id", pa.array(SUBJECTS, pa.uint64())),
    "whole float ids": ("subject_id", pa.array(SUBJECTS, pa.float64())),
    "decimal ids": ("subject_id", pa.array(map(Decimal, SUBJECTS), pa.decimal128(9, 0))),
    "dictionary of ids": ("subject_id", pa.array(SUBJECTS).dictionary_encode()),
    "ones": ("boolean_value", pa.array(ONES, pa.int8())),
    "float ones": ("boolean_value", pa.array(ONES, pa.float32())),
    "decimal ones": ("boolean_value", pa.array(map(Decimal, ONES), pa.decimal128(3, 1))),
    "dictionary of bool": ("boolean_value", pa.array(TRUE).dictionary_encode()),
    "seconds": ("prediction_time", pa.array(TIMES, pa.timestamp("s"))),
    "milliseconds": ("prediction_time", pa.array(TIMES, pa.timestamp("ms"))),
    "nanoseconds": ("prediction_time", pa.array(TIMES, pa.timestamp("ns"))),
    "zone": ("prediction_time", pa.array(TIMES).cast(pa.timestamp("us", "UTC")).cast(ZONED)),
    "nanoseconds of a zone": ("prediction_time", pa.array(TIMES).cast(pa.timestamp("ns", "+05:30"))),
    "dates": ("prediction_time", pa.array([time.date() for time in TIMES], pa.date32())),
    "long dates": ("prediction_time", pa.array([time.date() for time in TIMES], pa.date64())),
    "text": ("prediction_time", pa.array([str(time) for time in TIMES])),
    "text of a zone": ("prediction_time", pa.array([f"{time.isoformat()}Z" for time in TIMES], pa.large_string())),
    "text of two forms": ("prediction_time", pa.array(["2020-01-01", *(str(time) for time in TIMES[1:])])),
}


@pytest.mark.parametrize("form", SAME)
def test_the_same_values_in_another_type_are_the_same_labels(tmp_path, form):
    name, column = SAME[form]
    assert read(tmp_path, PLAIN | {name: column}).digest == read(tmp_path, PLAIN).digest


FURTHER = {
    "struct": pa.array([{"a": [1]}] * 4),
    "map": pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
    "dictionary": pa.array(["x"] * 4).dictionary_encode(),
    "binary": pa.array([b"\xff"] * 4),
    "duration": pa.array([timedelta(1)] * 4),
    "decimal": pa.array([Decimal("1.5")] * 4),
    "null": pa.nulls(4),
    "nested": pa.array([[["a"]]] * 4),
}


def test_further_columns_of_any_type_and_order_change_nothing(tmp_path):
    plain = read(tmp_path, PLAIN)
    assert read(tmp_path, FURTHER | PLAIN).digest == plain.digest
    assert read(tmp_path, dict(reversed([*PLAIN.items(), *FURTHER.items()]))).digest == plain.digest


@pytest.mark.parametrize("empty", [pa.nulls(4), pa.array([math.nan] * 4), pa.array([None] * 4, pa.string())])
def test_columns_that_are_empty_throughout_are_not_the_outcome(tmp_path, empty):
    others = dict.fromkeys(["time_days", "event", "boolean_values", "integer_value", "float_value"], empty)
    assert read(tmp_path, others | PLAIN).digest == read(tmp_path, PLAIN).digest


def test_files_of_one_split_may_differ_in_types_and_further_columns(tmp_path):
    for number, subject in enumerate(SUBJECTS):
        only = {name: column[number : number + 1] for name, column in PLAIN.items()}
        more = {
            "subject_id": only["subject_id"].cast(pa.int32()),
            "true_probability": pa.array([0.5]),
            "x": pa.nulls(1),
        }
        (tmp_path / "train").mkdir(exist_ok=True)
        pq.write_table(pa.table(only | more if number else only), tmp_path / "train" / f"{subject}.parquet")
    found = read_labels(tmp_path)
    assert found.array("train").tolist() == ONES
    assert found.truth("train") is None  # one sample lacks it


def test_names_of_classes_decide_before_numbers_beside_them(tmp_path):
    columns = PLAIN | {
        "boolean_value": None,
        "categorical_value": pa.array(["low", "high", "mid", "low"]).dictionary_encode(),
    }
    found = read(tmp_path, columns | {"integer_value": pa.array([0, 2, 1, 0])})
    assert [found.question.names[int(n)] for n in found.array("train")] == ["low", "high", "mid", "low"]


REFUSED = {
    "share": ("boolean_value", pa.array([0.3, 1, 0, 0.3]), "'boolean_value' has 2 values that are neither 0 nor 1"),
    "decimal share": ("boolean_value", pa.array([Decimal("0.3")] * 4), "'boolean_value' has 4 values that are neither"),
    "two": ("boolean_value", pa.array([2, 1, 0, 0]), "'boolean_value' has 1 values that are neither 0 nor 1"),
    "not known": ("boolean_value", pa.array([math.nan, 1.0, 0.0, 0.0]), "'boolean_value' has 1 values"),
    "words": ("boolean_value", pa.array(["maybe"] * 4), "'boolean_value' is string, expected bool"),
    "true as text": ("boolean_value", pa.array(["true"] * 4).dictionary_encode(), "expected bool"),
    "bytes": ("boolean_value", pa.array([b"1"] * 4), "'boolean_value' is binary"),
    "half an id": ("subject_id", pa.array([1.5, 2.0, 3.0, 4.0]), "'subject_id' has 1 values that are not whole"),
    "huge float": ("subject_id", pa.array([1e30, 2.0, 3.0, 4.0]), "'subject_id' has 1 values that are not whole"),
    "huge": ("subject_id", pa.array([2**63, 2, 3, 4], pa.uint64()), "'subject_id' has 1 values that are too large"),
    "text for ids": ("subject_id", pa.array(["1", "2", "3", "4"]), "'subject_id' is string, expected int64"),
    "truth for ids": ("subject_id", pa.array(TRUE), "'subject_id' is bool, expected int64"),
    "times for ids": ("subject_id", pa.array(TIMES), r"'subject_id' is timestamp\[us\], expected int64"),
    "no id": ("subject_id", pa.array([None, 2, 3, 4]), "'subject_id' of the labels has 1 nulls"),
    "no id in floats": ("subject_id", pa.array([math.nan, 2, 3, 4]), "'subject_id' of the labels has 1 nulls"),
    "numbers for times": ("prediction_time", pa.array(SUBJECTS), "'prediction_time' is int64, expected timestamp"),
    "day and month": ("prediction_time", pa.array(["01/02/2020"] * 4), "'prediction_time' is string"),
    "far past": ("prediction_time", pa.array([-(2**61)] * 4).cast(pa.timestamp("us")), "4 values that are outside of"),
    "hours": ("prediction_time", pa.array([1] * 4, pa.time32("s")), "'prediction_time' is time32"),
    "no times": ("prediction_time", pa.nulls(4), "'prediction_time' of the labels has 4 nulls"),
    "text for classes": ("integer_value", pa.array(["1"] * 4), "'integer_value' is string, expected int64"),
    "truth for classes": ("integer_value", pa.array(TRUE), "'integer_value' is bool, expected int64"),
    "negative": ("integer_value", pa.array([-1, 0, 1, 1]), "'integer_value' has 1 values that are not classes from 0"),
    "codes": ("integer_value", pa.array([2**62, 0, 1, 1]), "has a class above 9,999"),
    "text for numbers": ("float_value", pa.array(["0.5"] * 4), "'float_value' is string, expected double"),
    "large": ("float_value", pa.array([1e30, 0, 1, 1]), "'float_value' has 1 values that are not finite"),
    "infinite": ("float_value", pa.array([-math.inf, 0, 1, 1]), "'float_value' has 1 values that are not finite"),
    "empty name": ("categorical_value", pa.array(["", "a", "b", "b"]), "has 1 values that are empty text"),
    "no name": ("categorical_value", pa.array([None, "a", "b", "b"]), "'categorical_value' of the labels has 1 nulls"),
    "no labels": ("boolean_values", pa.array([[]] * 4, pa.list_(pa.bool_())), "4 samples do not have"),
    "words for labels": ("boolean_values", pa.array([["a"]] * 4), "expected lists of true and false"),
    "true of no chance": ("true_probability", pa.array([1.2, 0, 1, math.nan]), "'true_probability' has 2 values"),
    "text for truth": ("true_probability", pa.array(["x"] * 4), "'true_probability' is string"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_no_value_of_its_column_is_refused_with_file_and_column(tmp_path, fault):
    name, column, message = REFUSED[fault]
    others = PLAIN if name in PLAIN or name == "true_probability" else PLAIN | {"boolean_value": None}
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, others | {name: column})
    assert str(tmp_path / "t.parquet") in str(error.value)


def test_times_to_an_event_have_a_length_and_an_end(tmp_path):
    days = {"boolean_value": None, "event": pa.array(TRUE)}
    for value in (-1.0, math.nan, math.inf, 1e6):
        with pytest.raises(DataError, match="'time_days' has 1 values that are not finite numbers of days"):
            read(tmp_path, PLAIN | days | {"time_days": pa.array([value, 0.0, 1.0, 2.0])})
    found = read(tmp_path, PLAIN | days | {"time_days": pa.array([3, 0, 1, 2], pa.int32())})
    assert found.array("train").tolist() == [[3, 1], [0, 0], [1, 1], [2, 0]]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.bool_()), pa.large_list(pa.int8()), pa.list_(pa.float32(), 2), pa.list_view(pa.bool_())]
)
def test_lists_of_any_form_are_labels(tmp_path, kind):
    number = bool if pa.types.is_boolean(kind.value_type) else int
    rows = [[number(1), None], [number(0), number(1)], [number(1), number(1)], [number(0), number(0)]]
    found = read(tmp_path, PLAIN | {"boolean_value": None, "boolean_values": pa.array(rows, kind)})
    np.testing.assert_array_equal(found.array("train"), [[1, np.nan], [0, 1], [1, 1], [0, 0]])


# -- CSV


def csv(folder, *rows, head="subject_id,prediction_time,boolean_value"):
    (folder / "t.csv").write_text("\n".join([head, *rows]))
    return read_labels(folder / "t.csv", split_of=SPLIT_OF)


def test_a_csv_may_say_true_in_the_usual_ways_and_have_empty_cells_elsewhere(tmp_path):
    head = "subject_id,prediction_time,boolean_value,float_value,categorical_value"
    for yes, no in (("true", "false"), ("TRUE", "FALSE"), ("1", "0"), ("1.0", "0.0")):
        for nothing in ("", "NA", "NaN", "null"):
            rows = [f"{n},2020-01-0{n} 10:00:00,{yes if n % 2 else no},{nothing}," for n in SUBJECTS]
            assert csv(tmp_path, *rows, head=head).array("train").tolist() == ONES
    with pytest.raises(DataError, match="'boolean_value' is string, expected bool"):
        csv(tmp_path, "1,2020-01-01,yes", "2,2020-01-01,no")


def test_a_class_of_a_csv_may_be_called_na_and_a_time_may_have_a_zone(tmp_path):
    found = csv(tmp_path, "1,2020-01-01T01:00:00+01:00,NA", "2,2020-01-01T00:00:00Z,nan",
                head="subject_id,prediction_time,categorical_value")  # fmt: skip
    assert found.question.names == ("NA", "nan")
    assert found.tables["train"]["prediction_time"].to_pylist() == [datetime(2020, 1, 1)] * 2
    with pytest.raises(FormatError, match=r"t\.csv has the column 'boolean_value' more than once; keep one"):
        csv(tmp_path, "1,2020-01-01,1,0", head="subject_id,prediction_time,boolean_value,boolean_value")


# -- layouts


def shard(folder, name, subjects):
    path = folder / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    times = [datetime(2020, 1, n) for n in subjects]
    pq.write_table(
        pa.table({"subject_id": subjects, "prediction_time": times, "boolean_value": [True] * len(subjects)}), path
    )


@pytest.mark.parametrize(
    "names",
    [("0", "1"), ("part-0", "part-1"), ("labels_A", "labels_B.parquet"), ("2020-01", "2020-02"), ("0/0", "1/0")],
)
def test_flat_shards_belong_to_one_task_and_the_records_say_the_split(tmp_path, names):
    shard(tmp_path / "task", names[0], [1, 2])
    shard(tmp_path / "task", names[1], [3, 4])
    shard(tmp_path / "task" / ".logs", "0", [1])
    shard(tmp_path / "task" / ".ipynb_checkpoints", "0", [1])
    found = read_labels(tmp_path / "task", split_of=SPLIT_OF)
    assert found.tables["train"]["subject_id"].to_pylist() == SUBJECTS


def test_what_is_hidden_below_a_split_is_not_read(tmp_path):
    shard(tmp_path / "task" / "train", "0", SUBJECTS)
    shard(tmp_path / "task" / "train" / ".ipynb_checkpoints", "0-checkpoint", SUBJECTS)
    assert len(read_labels(tmp_path / "task").tables["train"]) == 4


@pytest.mark.parametrize("names", [("los_3d", "los_7d"), ("death", "readmission")])
def test_files_of_several_tasks_in_one_folder_are_never_mixed(tmp_path, names):
    shard(tmp_path / "task", names[0], [1, 2])
    shard(tmp_path / "task", names[1], [3, 4])
    with pytest.raises(FormatError, match="give each task a folder of its own"):
        read_labels(tmp_path / "task", split_of=SPLIT_OF)


def test_tasks_that_are_called_by_numbers_are_tasks(tmp_path):
    for task in ("30", "90"):
        shard(tmp_path / "tasks" / task, "train", [1, 2])
        shard(tmp_path / "sharded" / task / "train", "0", [1, 2])
    for folder in ("tasks", "sharded"):
        assert not has_labels(tmp_path / folder)
        assert read_labels(tmp_path / folder / "30").name == "30"


def test_a_sample_twice_is_refused_whether_its_outcomes_agree_or_not(tmp_path):
    def twice(count):
        again = pa.table([SUBJECTS[:count], TIMES[:count], [True] * count], names=list(PLAIN))
        return read(tmp_path, pa.concat_tables([pa.table(PLAIN), again]).to_pydict())

    with pytest.raises(DataError, match=r"2 samples are there more than once .*, 1 of them with another outcome"):
        twice(2)
    with pytest.raises(DataError, match=r"1 samples are there more than once .*, 0 of them with another outcome"):
        twice(1)


def test_dates_of_other_centuries_keep_their_day(tmp_path):
    days = [date(1, 1, 1), date(1899, 12, 30), *(time.date() for time in TIMES[2:])]
    found = read(tmp_path, PLAIN | {"prediction_time": pa.array(days)})
    assert found.tables["train"]["prediction_time"][:2].to_pylist() == [datetime(1, 1, 1), datetime(1899, 12, 30)]


@pytest.mark.parametrize(("kind", "limit"), [(pa.float16(), 2**11), (pa.float32(), 2**24), (pa.float64(), 2**53)])
def test_an_id_of_floating_point_is_exact_below_what_its_width_holds(tmp_path, kind, limit):
    for number, fits in ((limit - 1, True), (limit, False)):
        table = pa.table(
            {
                "subject_id": pa.array([float(number)], pa.float64()).cast(kind, safe=False),
                "prediction_time": pa.array([datetime(2020, 1, 1)], pa.timestamp("us")),
                "boolean_value": [True],
            }
        )
        path = tmp_path / str(number)
        path.mkdir()
        pq.write_table(table, path / "train.parquet")
        if fits:
            assert read_labels(path).tables["train"]["subject_id"].to_pylist() == [number]
        else:
            with pytest.raises(DataError, match=r"subject_id.*too large to be exact in floating point"):
                read_labels(path)
