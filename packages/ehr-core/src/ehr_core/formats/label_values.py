"""The columns of labels and their types, and how values that users write become them: never another in silence."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_core.errors import DataError

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


def typed(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """A column in its type of `TYPES`. Raises DataError with file, column and count for values that are none of it."""
    wanted = TYPES[name]
    if pa.types.is_boolean(wanted) and not pa.types.is_boolean(column.type):
        return _truth_values(column, name, path)
    if name == "boolean_values" and _is_list(column.type) and not pa.types.is_boolean(column.type.value_type):
        return _truth_lists(column, path)
    try:
        if pa.types.is_timestamp(wanted):
            return _instants(column)
        if (pa.types.is_integer(wanted) and pa.types.is_floating(column.type)) or (
            pa.types.is_string(wanted) and not _is_text(column.type)
        ):
            raise pa.ArrowInvalid("another type, whose values would become others")
        return column.cast(wanted)
    except pa.ArrowException as error:
        raise DataError(f"{path}: column {name!r} is {column.type}, expected {wanted}") from error


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def _instants(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Microseconds without a zone; an instant of a zone is that of UTC, and a date is its midnight."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        raise pa.ArrowInvalid("numbers say no unit")
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column = pc.local_timestamp(column.cast(pa.timestamp(kind.unit, "UTC")))
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pc.floor_temporal(column, unit="microsecond").cast(pa.timestamp("us"), safe=False)
    return column.cast(pa.timestamp("us"))


def _truth_lists(column: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    """Lists of true and false from lists of 1, 0 and NaN, which is not known."""
    name, whole = "boolean_values", column.combine_chunks()
    if not pa.types.is_integer(column.type.value_type) and not pa.types.is_floating(column.type.value_type):
        raise DataError(f"{path}: column {name!r} is {column.type}, expected lists of true and false, or of 1 and 0")
    number = whole.flatten().cast(pa.float64())
    number = pc.if_else(pc.is_nan(number), None, number)
    flags = _truth_values(pa.chunked_array([number]), name, path).combine_chunks()
    length = pc.fill_null(pc.list_value_length(whole), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(length)]), pa.int32())
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, flags, mask=whole.is_null())])


def _truth_values(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type):
        numbers = column.cast(pa.float64())
        odd = pc.sum(pc.and_(pc.not_equal(numbers, 0.0), pc.not_equal(numbers, 1.0))).as_py() or 0
        if not odd:
            return pc.equal(numbers, 1.0)
        raise DataError(f"{path}: column {name!r} has {odd} values that are neither 0 nor 1, neither true nor false")
    raise DataError(f"{path}: column {name!r} is {column.type}, expected {TYPES[name]}: true and false, or 1 and 0")
