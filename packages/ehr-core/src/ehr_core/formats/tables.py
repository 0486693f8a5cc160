"""Labels and predictions: Parquet tables in the MEDS spelling, one row a sample.

Labels: ``subject_id`` int64, ``prediction_time`` timestamp[us], ``boolean_value`` bool; more columns may follow, for
example ``true_probability`` of a synthetic cohort. A labels folder has one file a split: ``train.parquet``,
``tuning.parquet``, ``held_out.parquet``. Predictions add ``split`` and ``predicted_boolean_probability`` (and
``predicted_boolean_value`` at 0.5) to the labels' columns.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ehr_core.constants import SPLITS
from ehr_core.errors import DataError, FormatError

LABEL_SCHEMA = pa.schema(
    [("subject_id", pa.int64()), ("prediction_time", pa.timestamp("us")), ("boolean_value", pa.bool_())]
)
PREDICTION_SCHEMA = pa.schema(
    [
        *LABEL_SCHEMA,
        ("split", pa.string()),
        ("predicted_boolean_value", pa.bool_()),
        ("predicted_boolean_probability", pa.float64()),
    ]
)
TRUTH = "true_probability"
"""Column of a synthetic cohort's labels: P(label | everything visible at the prediction time)."""


def _check(table: pa.Table, schema: pa.Schema, path: Path, what: str) -> pa.Table:
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: {what} lack the column {', '.join(missing)}; they need {', '.join(schema.names)}")
    for field in schema:
        column = table[field.name]
        if column.null_count:
            raise DataError(f"{path}: column {field.name!r} of the {what} has {column.null_count} nulls")
        try:
            table = table.set_column(table.column_names.index(field.name), field, column.cast(field.type))
        except pa.ArrowException as error:
            raise DataError(f"{path}: column {field.name!r} is {column.type}, expected {field.type}") from error
    return table


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file. Raises FormatError that names the file when it is missing or damaged."""
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error


def read_labels(folder: Path, split: str) -> pa.Table:
    """Labels of one split, ordered by (subject_id, prediction_time). Raises DataError or FormatError."""
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected MEDS labels, one Parquet file a split")
    table = _check(read_table(folder / f"{split}.parquet"), LABEL_SCHEMA, folder / f"{split}.parquet", "labels")
    return table.sort_by([("subject_id", "ascending"), ("prediction_time", "ascending")])


def label_splits(folder: Path) -> list[str]:
    """Splits that a labels folder has a file for, in the usual order."""
    return [split for split in SPLITS if (folder / f"{split}.parquet").is_file()]


def write_labels(path: Path, table: pa.Table) -> None:
    """Write one split of labels; the three columns are checked, further ones are kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(_check(table, LABEL_SCHEMA, path, "labels"), path)


def prediction_table(labels: pa.Table, split: str, probability: object) -> pa.Table:
    """Predictions for the rows of ``labels`` (in the same order) from probabilities (N,)."""
    values = pa.array(probability, pa.float64())
    import pyarrow.compute as pc

    table = labels.append_column("split", pa.array([split] * len(labels), pa.string()))
    table = table.append_column("predicted_boolean_value", pc.greater_equal(values, 0.5))
    return table.append_column("predicted_boolean_probability", values)


def write_predictions(path: Path, table: pa.Table) -> None:
    """Write predictions. Raises DataError when a probability is not in [0, 1]."""
    import pyarrow.compute as pc

    table = _check(table, PREDICTION_SCHEMA, path, "predictions")
    values = table["predicted_boolean_probability"]
    fine = pc.and_(pc.greater_equal(values, 0.0), pc.less_equal(values, 1.0))
    bad = len(table) - (pc.sum(fine).as_py() or 0)
    if bad:
        raise DataError(f"{path}: {bad} predicted probabilities are not in [0, 1]")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def read_predictions(path: Path) -> pa.Table:
    """Read predictions. Raises DataError or FormatError."""
    return _check(read_table(path), PREDICTION_SCHEMA, path, "predictions")
