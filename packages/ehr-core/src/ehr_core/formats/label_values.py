"""The columns of labels and their types, and how values that users write become them: never another in silence.

A value is taken where it means one thing: a whole number is an integer however wide its type is, 1 and 0 are true and
false, a date is its midnight. Text is no number, a truth value no id, and a number no time. What is none of a column's
type is refused with file, column and count.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_core.errors import DataError
from ehr_core.outcomes import COLUMNS, MULTILABEL, Question

TYPES: dict[str, pa.DataType] = {
    "subject_id": pa.int64(),
    "prediction_time": pa.timestamp("us"),
    "boolean_value": pa.bool_(),
    "integer_value": pa.int64(),
    "categorical_value": pa.string(),
    "boolean_values": pa.list_(pa.bool_()),
    "float_value": pa.float64(),
    "time_days": pa.float64(),
    "event": pa.bool_(),
    "true_probability": pa.float64(),
    "true_probabilities": pa.list_(pa.float64()),
    "true_value": pa.float64(),
    "true_risk": pa.float64(),
}
"""Every column that a label file may have and its type."""
PREDICTED: dict[str, pa.DataType] = {
    "split": pa.string(),
    **{columns.prediction: pa.list_(pa.float64()) if columns.many else pa.float64() for columns in COLUMNS.values()},
}
"""The further columns of predictions."""
EXACT = {"halffloat": 2**11, "float": 2**24}
"""Whole numbers below are exact in these types; of float64 and of what is cast to it, those below 2**53 are."""
"""Whole numbers beyond this are not told apart by a column of floating point."""
LARGEST = 1e15
"""No outcome is beyond this; sums of squares of such numbers still fit into 32 bits."""
MOST_DAYS = 100_000
"""No time to an event is longer, 273 years."""
YEARS = (np.datetime64("0001-01-01", "us"), np.datetime64("9999-12-31", "us"))
PROBABILITIES = ("true_probability", "true_probabilities")


def typed(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """A column in its type of `TYPES` or `PREDICTED`.

    Raises DataError with file, column and count for values that are none of it.
    """
    found, kind = _plain(column), (TYPES | PREDICTED)[name]
    try:
        if pa.types.is_null(found.type):
            return found.cast(kind)
        if pa.types.is_list(kind):
            return _lists(found, kind.value_type, name, path)
        return _single(found, kind, name, path)
    except pa.ArrowException:
        raise DataError(f"{path}: column {name!r} is {column.type}, expected {_words(kind)}") from None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionaries and run lengths, which are ways to write the same values."""
    while pa.types.is_dictionary(column.type) or pa.types.is_run_end_encoded(column.type):
        column = column.cast(column.type.value_type)
    return column


def _words(kind: pa.DataType) -> str:
    words = {
        pa.bool_(): "bool: true and false, or 1 and 0",
        pa.list_(pa.bool_()): "lists of true and false, or of 1 and 0",
    }
    return words.get(kind, str(kind))


def _single(column: pa.ChunkedArray, kind: pa.DataType, name: str, path: Path) -> pa.ChunkedArray:
    """One value a row. Raises ArrowInvalid for another type."""
    if pa.types.is_timestamp(kind):
        return _instants(column, name, path)
    if pa.types.is_string(kind):
        if not _is_text(column.type):
            raise pa.ArrowInvalid("text is expected")
        column = column.cast(kind)
        _refuse(pc.equal(pc.binary_length(column), 0), name, path, "empty text, which names nothing")
        return column
    if pa.types.is_boolean(kind) and pa.types.is_boolean(column.type):
        return column
    if not _is_number(column.type):
        raise pa.ArrowInvalid("numbers are expected")
    if pa.types.is_boolean(kind):
        return _truth_values(column, name, path)
    return _whole(column, name, path) if pa.types.is_integer(kind) else column.cast(pa.float64(), safe=False)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _refuse(bad: pa.ChunkedArray, name: str, path: Path, words: str) -> None:
    """Raise DataError when some of ``bad`` are true; nulls are not."""
    count = pc.sum(bad).as_py() or 0
    if count:
        raise DataError(f"{path}: column {name!r} has {count} values that are {words}")


def _truth_values(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    numbers = column.cast(pa.float64(), safe=False)
    odd = pc.and_(pc.not_equal(numbers, 0.0), pc.not_equal(numbers, 1.0))
    _refuse(odd, name, path, "neither 0 nor 1, neither true nor false")
    return pc.equal(numbers, 1.0)


def _whole(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """Integers of 64 bits; of floating point those that it holds exactly, and NaN is null, as pandas writes both."""
    if pa.types.is_unsigned_integer(column.type):
        large = pc.greater(column.cast(pa.uint64()), pa.scalar(2**63 - 1, pa.uint64()))
        _refuse(large, name, path, "too large for an integer of 64 bits")
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        exact = float(EXACT.get(str(column.type), 2**53))
        numbers = column.cast(pa.float64(), safe=False)
        numbers = pc.if_else(pc.is_nan(numbers), None, numbers)
        odd = pc.or_(pc.not_equal(pc.floor(numbers), numbers), pc.greater_equal(pc.abs(numbers), exact))
        _refuse(odd, name, path, "not whole numbers, or too large to be exact in floating point")
        return numbers.cast(pa.int64())
    return column.cast(pa.int64())


def _instants(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """Microseconds without a zone; an instant of a zone is that of UTC, and a date is its midnight."""
    kind = column.type
    if _is_text(kind):
        try:
            column = column.cast(pa.timestamp("us"))
        except pa.ArrowInvalid:
            column = column.cast(pa.timestamp("us", "UTC"))
    elif not pa.types.is_timestamp(kind) and not pa.types.is_date(kind):
        raise pa.ArrowInvalid("numbers say no unit")
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        column = pc.floor_temporal(column, unit="microsecond").cast(pa.timestamp("us", kind.tz), safe=False)
    numbers = column.cast(pa.timestamp("us")).cast(pa.int64())
    first, last = (int(end.astype(np.int64)) for end in YEARS)
    _refuse(pc.or_(pc.less(numbers, first), pc.greater(numbers, last)), name, path, "outside of the years 1 to 9999")
    return numbers.cast(pa.timestamp("us"))


def _lists(column: pa.ChunkedArray, kind: pa.DataType, name: str, path: Path) -> pa.ChunkedArray:
    """Lists, whose values are taken as those of a column are; NaN is a truth value that is not known."""
    form = column.type
    if pa.types.is_list_view(form) or pa.types.is_large_list_view(form):
        whole = pa.array(column.to_pylist(), pa.list_(form.value_type))
    elif pa.types.is_list(form) or pa.types.is_large_list(form) or pa.types.is_fixed_size_list(form):
        whole = column.combine_chunks()
    else:
        raise pa.ArrowInvalid("lists are expected")
    flat = _plain(pa.chunked_array([whole.flatten()]))
    if pa.types.is_floating(flat.type) and pa.types.is_boolean(kind):
        numbers = flat.cast(pa.float64())
        flat = pc.if_else(pc.is_nan(numbers), None, numbers)
    values = flat.cast(kind) if pa.types.is_null(flat.type) else _single(flat, kind, name, path)
    length = pc.fill_null(pc.list_value_length(whole), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(length)]), pa.int32())
    rebuilt = pa.ListArray.from_arrays(offsets, values.combine_chunks(), mask=pc.is_null(whole))
    return pa.chunked_array([rebuilt])


# -- what an outcome can be


def check_outcome(found: Mapping[str, pa.ChunkedArray], question: Question, path: Path) -> None:
    """Raise DataError for numbers that no outcome of the kind, and no best possible prediction of one, can be."""
    columns = COLUMNS[question.kind]
    last = len(question.names) - 1
    outcomes: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
        "integer_value": (f"not classes from 0 to {last}", lambda v: (v >= 0) & (v <= last)),
        "float_value": (f"not finite numbers up to {LARGEST:g}", lambda v: np.abs(v) <= LARGEST),
        "time_days": (f"not finite numbers of days, 0 or more, up to {MOST_DAYS:,}",
                      lambda v: (v >= 0) & (v <= MOST_DAYS)),
    }  # fmt: skip
    for name, (words, fits) in outcomes.items():
        if name in found and name in columns.label:
            _refuse(pa.chunked_array([~fits(found[name].to_numpy())]), name, path, words)
    if question.kind == MULTILABEL and "boolean_values" in found:
        _check_length(found["boolean_values"], "boolean_values", len(question.names), path)
    if columns.truth in found:
        _check_truth(found[columns.truth], columns.truth, question, path)


def _check_length(column: pa.ChunkedArray, name: str, wanted: int, path: Path) -> None:
    odd = pc.sum(pc.not_equal(pc.list_value_length(column), wanted)).as_py() or 0
    if odd or not wanted:
        raise DataError(f"{path}: {odd or len(column)} samples do not have {wanted or 1} values in {name}")


def _check_truth(column: pa.ChunkedArray, name: str, question: Question, path: Path) -> None:
    """A row may lack it; then there is no truth to compare with."""
    if pa.types.is_list(column.type):
        _check_length(column.drop_null(), name, len(question.names), path)
        column = pa.chunked_array([column.combine_chunks().flatten()])
        _refuse(pc.is_null(column), name, path, "null")
    bounded = name in PROBABILITIES
    values = column.drop_null().to_numpy()
    fits = (values >= 0) & (values <= 1) if bounded else np.isfinite(values)
    _refuse(pa.chunked_array([~fits]), name, path, f"not {'in [0, 1]' if bounded else 'finite'}")
