"""Troubles of labels and predictions in combination: one treatment or one line, and no row changes another."""

import math
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core.constants import SPLITS
from ehr_core.errors import EhrError
from ehr_core.formats.labels import read_labels
from ehr_core.formats.predictions import read_predictions

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

START = datetime(2020, 1, 1)
ZONED = pa.timestamp("ns", "Asia/Tokyo")
FORMS = {
    "subject_id": [pa.int64(), pa.int32(), pa.uint64(), pa.float64(), "dictionary"],
    "prediction_time": [pa.timestamp("us"), pa.timestamp("s"), ZONED, pa.date32(), pa.string(), "dictionary"],
    "boolean_value": [pa.bool_(), pa.int8(), pa.float32(), "dictionary"],
    "predicted_boolean_probability": [pa.float64(), pa.float32(), "dictionary"],
}
"""Types in which the values of a column mean the same."""
WRONG = {
    "subject_id": [(1.5, pa.float64()), (2**64 - 1, pa.uint64()), (None, pa.int64()), ("7", pa.string())],
    "prediction_time": [(None, pa.timestamp("us")), ("soon", pa.string()), (7, pa.int64())],
    "boolean_value": [
        (0.3, pa.float64()),
        (2, pa.int8()),
        ("maybe", pa.string()),
        (math.nan, pa.float64()),
        (None, pa.bool_()),
    ],
    "predicted_boolean_probability": [
        *((value, pa.float64()) for value in (1.2, -0.1, math.nan, math.inf, None)),
        (1.5, pa.float32()),
        ("x", pa.string()),
    ],
}
"""Values of a column that are none, and a type that a file may hold them in."""
FURTHER = [pa.nulls, lambda n: pa.array([{"a": [1]}] * n), lambda n: pa.array([timedelta(1)] * n)]


@dataclass
class World:
    """Rows (subject, day, outcome, probability) as they are meant, and the columns that a file has of them."""

    rows: list
    columns: dict
    wrong: list
    """Columns with a value that is none."""
    twice: bool


@st.composite
def worlds(draw, names):
    rows = draw(
        st.lists(
            st.tuples(st.integers(1, 30), st.integers(0, 3000), st.booleans(), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
            min_size=1, max_size=8, unique_by=lambda row: row[:2],
        )
    )  # fmt: skip
    twice = draw(st.integers(0, 5)) == 0
    written = [*rows, draw(st.sampled_from(rows))] if twice else rows
    meant = dict(zip(names, zip(*written, strict=True), strict=False))
    meant["prediction_time"] = [START + timedelta(days=day) for day in meant["prediction_time"]]
    columns = {name: formed(list(meant[name]), draw(st.sampled_from(FORMS[name]))) for name in names}
    wrong = [name for name in names if draw(st.integers(0, 7)) == 0]
    for name in wrong:
        value, kind = draw(st.sampled_from(WRONG[name]))
        values = formed(list(meant[name]), kind if kind not in (pa.uint64(),) else pa.int64()).to_pylist()
        values[draw(st.integers(0, len(values) - 1))] = value
        columns[name] = pa.array(values, kind)
    further = draw(st.lists(st.sampled_from(FURTHER), max_size=2))
    columns |= {f"more{n}": make(len(written)) for n, make in enumerate(further)}
    order = draw(st.permutations(list(columns)))
    return World(rows, {name: columns[name] for name in order}, wrong, twice)


def formed(values, kind):
    if kind == "dictionary":
        return pa.array(values).dictionary_encode()
    if kind == pa.string():
        return pa.array([str(value) for value in values])
    if kind == pa.date32():
        return pa.array([value.date() for value in values])
    if isinstance(values[0], bool) and kind != pa.bool_():
        values = [int(value) for value in values]
    return pa.array(values).cast(kind)


def outcome(read, columns):
    """What is read, or the one line that says why not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.parquet"
        pq.write_table(pa.table(columns), path)
        try:
            return read(path)
        except EhrError as error:
            message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return message


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(worlds(["subject_id", "prediction_time", "boolean_value"]), st.data())
def test_labels_are_what_was_meant_or_one_line_that_names_file_and_column(world, data):
    split_of = {subject: data.draw(st.sampled_from(SPLITS)) for subject in {row[0] for row in world.rows}}
    found = outcome(lambda path: read_labels(path, split_of=split_of), world.columns)
    if isinstance(found, str):
        assert world.wrong or world.twice, found
        assert "more than once" in found or any(repr(name) in found for name in world.wrong), found
        return
    assert not world.twice
    if found.question is None:  # null or NaN throughout: whom and when, without an outcome
        assert world.wrong == ["boolean_value"]
        return
    assert not world.wrong
    rows = {
        (row["subject_id"], row["prediction_time"]): (split, row["boolean_value"])
        for split in found.splits
        for row in found.tables[split].to_pylist()
    }
    assert rows == {(s, START + timedelta(days=d)): (split_of[s], y) for s, d, y, _ in world.rows}


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(worlds(["subject_id", "prediction_time", "boolean_value", "predicted_boolean_probability"]))
def test_predictions_are_what_was_meant_or_one_line_that_names_file_and_column(world):
    found = outcome(read_predictions, world.columns)
    if isinstance(found, str):
        assert world.wrong or world.twice, found
        assert "more than once" in found or any(name in found for name in world.wrong), found
        return
    assert not world.twice
    assert set(world.wrong) <= {"boolean_value"}  # null throughout: not known
    part = found.of("held_out")
    times = [START + timedelta(days=row[1]) for row in sorted(world.rows)]
    assert part.table["prediction_time"].to_pylist() == times
    assert part.prediction.tolist() == [row[3] for row in sorted(world.rows)]
    if not world.wrong:
        assert part.label.tolist() == [row[2] for row in sorted(world.rows)]
