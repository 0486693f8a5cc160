"""Predictions: ``predictions.parquet``, one row a sample, in the columns of MEDS-evaluation where it has them.

``subject_id``, ``prediction_time`` and ``split``; the label's columns where the outcome is known; one column of
predictions, by whose name the kind is told (`ehr_core.outcomes`). The decision that follows from it is written beside
it and never read: ``predicted_boolean_value`` (a probability of at least 0.5) or ``predicted_integer_value`` (the
likeliest class). MEDS-evaluation knows no splits: rows of a file without ``split`` are of ``held_out``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_core.constants import SPLITS
from ehr_core.errors import DataError
from ehr_core.formats.label_values import check_outcome, typed
from ehr_core.formats.labels import KEY, label_array
from ehr_core.formats.parquet import read_table, write_table
from ehr_core.outcomes import BINARY, COLUMNS, MULTICLASS, Question

FILE = "predictions.parquet"
DECISIONS = {BINARY: "predicted_boolean_value", MULTICLASS: "predicted_integer_value"}
SUM = 1e-3
"""How far the probabilities of all classes may be from adding up to 1."""
PROBABILITIES = ("predicted_boolean_probability", "predicted_probabilities", "predicted_boolean_probabilities")


@dataclass(frozen=True)
class Predictions:
    """Predictions in memory, rows as in the file."""

    question: Question
    """For kinds with names, they are numbers here: what they are called stands with the labels."""
    table: pa.Table
    labelled: bool
    """Whether the label's columns are there."""

    @property
    def prediction(self) -> np.ndarray:
        """In the shape of the kind."""
        return _array(self.table[COLUMNS[self.question.kind].prediction], self.question)

    @property
    def label(self) -> np.ndarray:
        """In the shape of the kind. Raises DataError where there are none."""
        if not self.labelled:
            raise DataError(
                f"these predictions have no label: {', '.join(COLUMNS[self.question.kind].label)} is missing"
            )
        return label_array(self.table, self.question)

    @property
    def truth(self) -> np.ndarray | None:
        """A synthetic cohort's best possible predictions, in the shape of the kind; None elsewhere."""
        column = COLUMNS[self.question.kind].truth
        if column not in self.table.column_names or self.table[column].null_count:
            return None
        return _array(self.table[column], self.question)

    def of(self, split: str) -> "Predictions":
        """The rows of one split, ordered by subject and time."""
        rows = self.table.filter(pc.equal(self.table["split"], split))
        return Predictions(self.question, rows.sort_by([(key, "ascending") for key in KEY]), self.labelled)

    def __len__(self) -> int:
        return len(self.table)


def _array(column: pa.ChunkedArray, question: Question) -> np.ndarray:
    if not COLUMNS[question.kind].many:
        return np.asarray(column.cast(pa.float64()).to_numpy())
    whole = column.combine_chunks()
    flat = whole.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(whole), -1)) if len(whole) else np.empty((0, question.num_outputs))


def prediction_table(samples: pa.Table, split: str, prediction: np.ndarray, question: Question) -> pa.Table:
    """Predictions (in the shape of the kind) for the rows of ``samples``, a table of labels, in the same order."""
    columns = COLUMNS[question.kind]
    prediction = np.asarray(prediction, np.float64)
    expected: tuple[int, ...] = (len(samples), question.num_outputs) if columns.many else (len(samples),)
    if prediction.shape != expected:
        raise DataError(f"predictions of kind {question.kind} have shape {prediction.shape}, expected {expected}")
    kept = [name for name in (*KEY, *columns.label, columns.truth) if name in samples.column_names]
    found = {name: samples[name] for name in kept} | {"split": pa.array([split] * len(samples), pa.string())}
    if question.kind == BINARY:
        found[DECISIONS[BINARY]] = pa.array(prediction >= 0.5)
    if question.kind == MULTICLASS:
        found[DECISIONS[MULTICLASS]] = pa.array(prediction.argmax(1) if len(prediction) else [], pa.int64())
    values = pa.array(prediction.ravel())
    if columns.many:
        values = pa.ListArray.from_arrays(np.arange(len(samples) + 1, dtype=np.int32) * question.num_outputs, values)
    return pa.table(found | {columns.prediction: values})


def write_predictions(path: Path, tables: Sequence[pa.Table]) -> None:
    """Write the predictions of some splits. Raises DataError for a number that is no prediction of the kind."""
    table = pa.concat_tables(tables, promote_options="default")
    write_table(path, _checked(table, path).table)


def read_predictions(path: Path) -> Predictions:
    """Read and check predictions. Raises DataError or FormatError."""
    return _checked(read_table(path), path)


def _checked(table: pa.Table, path: Path) -> Predictions:
    kinds = [kind for kind, columns in COLUMNS.items() if columns.prediction in table.column_names]
    if len(kinds) != 1:
        names = ", ".join(columns.prediction for columns in COLUMNS.values())
        raise DataError(f"{path}: predictions need exactly one of the columns {names}, and {len(kinds)} are there")
    kind = kinds[0]
    columns = COLUMNS[kind]
    missing = [name for name in KEY if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: predictions lack the column {', '.join(missing)}")
    labelled = _labelled(table, columns.label)
    score = typed(table[columns.prediction], columns.prediction, path)
    found = {name: typed(table[name], name, path) for name in (*KEY, *(columns.label if labelled else ()))}
    found |= {"split": _splits(table, path), columns.prediction: score}
    for name, column in found.items():
        if column.null_count:
            raise DataError(f"{path}: column {name!r} of the predictions has {column.null_count} nulls")
    width = _width(score, path) if columns.many else 0
    question = Question(kind, tuple(str(number) for number in range(width)))
    _check_scores(score, columns.prediction, question, path)
    if columns.truth in table.column_names:
        found[columns.truth] = typed(table[columns.truth], columns.truth, path)
    check_outcome(found, question, path)
    whole = pa.table(found)
    twins = len(whole) - len(whole.group_by(list(KEY)).aggregate([]))
    if twins:
        raise DataError(
            f"{path}: {twins} samples are there more than once (the same subject_id and prediction_time); keep one row"
        )
    if kind in DECISIONS:
        whole = whole.append_column(DECISIONS[kind], _decision(kind, score, width))
    return Predictions(question, whole, labelled)


def _labelled(table: pa.Table, names: Sequence[str]) -> bool:
    """Whether the outcome is known: its columns are there, and not null throughout."""
    there = all(name in table.column_names for name in names)
    return there and (not len(table) or any(table[name].null_count < len(table) for name in names))


def _splits(table: pa.Table, path: Path) -> pa.ChunkedArray:
    if "split" not in table.column_names:
        return pa.chunked_array([pa.array(["held_out"] * len(table), pa.string())])
    split = typed(table["split"], "split", path)
    strange = pc.sum(pc.invert(pc.is_in(split.drop_null(), value_set=pa.array(SPLITS)))).as_py() or 0
    if strange:
        raise DataError(f"{path}: column 'split' has {strange} values that are none of {', '.join(SPLITS)}")
    return split


def _check_scores(score: pa.ChunkedArray, name: str, question: Question, path: Path) -> None:
    many = COLUMNS[question.kind].many
    numbers = (pc.list_flatten(score) if many else score).to_numpy()
    fine = (numbers >= 0) & (numbers <= 1) if name in PROBABILITIES else np.isfinite(numbers)
    bad = int((~fine).sum())
    if bad:
        raise DataError(f"{path}: {bad} values of {name} are not {'in [0, 1]' if name in PROBABILITIES else 'finite'}")
    if question.kind == MULTICLASS and len(score):
        odd = int((np.abs(numbers.reshape(len(score), -1).sum(1) - 1) > SUM).sum())
        if odd:
            raise DataError(f"{path}: {odd} rows of {name} do not add up to 1")


def _width(score: pa.ChunkedArray, path: Path) -> int:
    lengths = set(pc.list_value_length(score).to_pylist())
    if len(lengths) > 1:
        raise DataError(f"{path}: rows have lists of {min(lengths)} to {max(lengths)} predictions; all need as many")
    if lengths == {0}:
        raise DataError(f"{path}: rows have lists of no predictions")
    return int(next(iter(lengths), 0))


def _decision(kind: str, score: pa.ChunkedArray, width: int) -> pa.Array:
    if kind == BINARY:
        return pc.greater_equal(score, 0.5)
    flat = pc.list_flatten(score).to_numpy().reshape(-1, max(width, 1))
    return pa.array(flat.argmax(1), pa.int64())
