"""Predictions as other programs write them: what can be ranked is read, and a score that is none is never ranked."""

import math
from datetime import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core.errors import DataError
from ehr_core.formats.predictions import read_predictions

SCORES = [0.1, 0.9, 0.5, 0.0]
PLAIN = {
    "subject_id": pa.array([1, 2, 3, 4]),
    "prediction_time": pa.array([datetime(2020, 1, n) for n in (1, 2, 3, 4)]),
    "boolean_value": pa.array([False, True, True, False]),
    "split": pa.array(["held_out"] * 4),
    "predicted_boolean_probability": pa.array(SCORES),
}


def read(folder, columns):
    path = folder / "predictions.parquet"
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), path)
    return read_predictions(path)


@pytest.mark.parametrize("decision", [pa.array([True] * 4), pa.nulls(4, pa.bool_()), pa.nulls(4), pa.array(["no"] * 4)])
def test_the_decision_follows_from_the_probability_whatever_stands_there(tmp_path, decision):
    found = read(tmp_path, PLAIN | {"predicted_boolean_value": decision})
    assert found.table["predicted_boolean_value"].to_pylist() == [False, True, True, False]
    assert found.table.equals(read(tmp_path, PLAIN).table)


def test_predictions_as_meds_evaluation_has_them_are_of_the_held_out_split(tmp_path):
    # The columns and types of meds-evaluation 0.0.6 (PredictionSchema), which extends the label schema of MEDS 0.4.
    others = {"integer_value": pa.int64(), "float_value": pa.float32(), "categorical_value": pa.string()}
    found = read(
        tmp_path,
        PLAIN
        | {name: pa.nulls(4, kind) for name, kind in others.items()}
        | {"split": None, "predicted_boolean_value": pa.nulls(4, pa.bool_())}
        | {"predicted_boolean_probability": pa.array(SCORES, pa.float32())},
    )
    np.testing.assert_allclose(found.of("held_out").prediction, SCORES)
    assert found.of("held_out").label.tolist() == [0, 1, 1, 0]
    assert len(found.of("tuning")) == 0


@pytest.mark.parametrize("outcome", [None, pa.nulls(4), pa.nulls(4, pa.bool_())])
def test_an_outcome_that_is_not_known_is_absent(tmp_path, outcome):
    found = read(tmp_path, PLAIN | {"boolean_value": outcome})
    assert not found.labelled
    with pytest.raises(DataError, match="have no label"):
        _ = found.label


ONE = pa.array([1] * 4)
CLASSES = {"predicted_boolean_probability": None, "boolean_value": None, "integer_value": pa.array([0, 1, 1, 0])}
REFUSED = {
    "no number": ({"predicted_boolean_probability": pa.array([math.nan, *SCORES[1:]])}, "1 values .* not in"),
    "infinite": ({"predicted_boolean_probability": pa.array([math.inf, *SCORES[1:]])}, "1 values .* not in"),
    "negative": ({"predicted_boolean_probability": pa.array([-0.1, *SCORES[1:]])}, "1 values .* not in"),
    "above 1": ({"predicted_boolean_probability": pa.array([1.2, 1.0000001, 0, 0])}, "2 values .* not in"),
    "missing": ({"predicted_boolean_probability": pa.array([None, *SCORES[1:]])}, "has 1 nulls"),
    "all missing": ({"predicted_boolean_probability": pa.nulls(4)}, "has 4 nulls"),
    "text": ({"predicted_boolean_probability": pa.array(["0.5"] * 4)}, "is string, expected double"),
    "decisions": ({"predicted_boolean_probability": pa.array([True] * 4)}, "is bool, expected double"),
    "no column": ({"predicted_boolean_probability": None}, "exactly one of the columns"),
    "split unheard of": ({"split": pa.array(["test"] * 4)}, "'split' has 4 values that are none of train"),
    "split of numbers": ({"split": pa.array([2] * 4)}, "'split' is int64"),
    "some outcomes": ({"boolean_value": pa.array([None, True, True, False])}, "'boolean_value' .* has 1 nulls"),
    "half an outcome": ({"boolean_value": pa.array([0.3, 1, 1, 0])}, "'boolean_value' has 1 values"),
    "half a subject": ({"subject_id": pa.array([0.5, 1, 2, 3])}, "'subject_id' has 1 values"),
    "twice": ({"subject_id": ONE, "prediction_time": pa.array([datetime(2020, 1, 1)] * 4)}, "3 samples are"),
    "truth above 1": ({"true_probability": pa.array([1.2, 0, 0, math.nan])}, "'true_probability' has 2 values"),
    "truth as text": ({"true_probability": pa.array(["a"] * 4)}, "'true_probability' is string"),
    "classes of no sum": (CLASSES | {"predicted_probabilities": pa.array([[0.9, 0.9], *[[1.0, 0.0]] * 3])}, "1 rows"),
    "class without one": (CLASSES | {"predicted_probabilities": pa.array([[1.0]] * 4)}, "'integer_value' has 2 values"),
    "a null inside": (CLASSES | {"predicted_probabilities": pa.array([[None, 1.0], *[[1.0, 0.0]] * 3])}, "1 values of"),
    "other lengths": (CLASSES | {"predicted_probabilities": pa.array([[1.0], *[[1.0, 0.0]] * 3])}, "lists of 1 to 2"),
    "of nothing": (CLASSES | {"predicted_probabilities": pa.array([[]] * 4, pa.list_(pa.float64()))}, "of no predict"),
    "infinite number": (
        {"predicted_boolean_probability": None, "predicted_float_value": pa.array([math.inf, 0, 0, 0])},
        "1 values of predicted_float_value are not finite",
    ),
    "risk of no number": (
        {"predicted_boolean_probability": None, "predicted_risk": pa.array([math.nan, 0, 0, 0])},
        "1 values of predicted_risk are not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_no_prediction_is_refused_with_file_and_column(tmp_path, fault):
    columns, message = REFUSED[fault]
    with pytest.raises(DataError, match=message) as error:
        read(tmp_path, PLAIN | columns)
    assert str(tmp_path / "predictions.parquet") in str(error.value)


@pytest.mark.parametrize("form", [pa.float32(), pa.float16(), pa.decimal128(9, 4)])
def test_probabilities_of_any_width_are_read(tmp_path, form):
    number = Decimal if pa.types.is_decimal(form) else np.float16 if form == pa.float16() else float
    values = pa.array([number(str(score)) for score in SCORES], form)
    found = read(tmp_path, PLAIN | {"predicted_boolean_probability": values})
    np.testing.assert_allclose(found.prediction, SCORES, atol=1e-3)


def test_integers_0_and_1_are_probabilities(tmp_path):
    found = read(tmp_path, PLAIN | {"predicted_boolean_probability": pa.array([0, 1, 1, 0])})
    assert found.prediction.tolist() == [0, 1, 1, 0]
