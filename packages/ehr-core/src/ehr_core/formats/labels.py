"""Labels: what is asked of whom and when, and the answer; MEDS labels, one row a sample.

    LABELS/manifest.json  LABELS/<split>.parquet        as written here
    LABELS/<split>.{parquet,csv}                        a user's own
    LABELS/<split>/**/*.{parquet,csv}                   sharded, as ACES writes them
    LABELS/*.{parquet,csv}, or one such file            all splits together; the dataset says where a subject belongs

``subject_id`` int64 and ``prediction_time`` timestamp[us]; the columns of one kind of outcome (`ehr_core.outcomes`), or
none where only predictions are wanted; and, in a synthetic cohort, the truth. Other columns are not read.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import MANIFEST, Manifest, check_listed, digest_of, read_manifest, write_manifest
from ehr_core.formats.folder import typed as as_type
from ehr_core.formats.label_layout import label_files
from ehr_core.formats.label_values import check_outcome, typed
from ehr_core.formats.parquet import read_table, write_table
from ehr_core.outcomes import (
    BINARY,
    COLUMNS,
    KINDS,
    MULTICLASS,
    MULTILABEL,
    REGRESSION,
    SURVIVAL,
    Question,
)

FORMAT, VERSION = "labels", 2
TEXT = ("categorical_value",)
"""Columns of a CSV that are text, whatever they look like."""
MOST_CLASSES = 10_000
"""More numbers than this are no classes."""
KEY = ("subject_id", "prediction_time")
EVIDENCE: dict[str, str] = {
    "time_days": SURVIVAL,
    "boolean_values": MULTILABEL,
    "boolean_value": BINARY,
    "categorical_value": MULTICLASS,
    "integer_value": MULTICLASS,
    "float_value": REGRESSION,
}
"""Column to the kind of outcome that it means; the first that is there, and not null throughout, decides."""


@dataclass(frozen=True)
class Labels:
    """Labels in memory: a table a split, ordered by subject and time, of checked types."""

    name: str
    """The task's."""
    question: Question | None
    """None: only subjects and times, whose outcome is not known."""
    tables: Mapping[str, pa.Table]
    content: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the manifest where there was one: the task's settings, the cohort's counts."""

    @property
    def splits(self) -> list[str]:
        """Splits with a table, in the usual order; a table may be empty."""
        return [split for split in SPLITS if split in self.tables]

    @functools.cached_property
    def digest(self) -> str:
        """sha256 of names, kinds and rows; it does not depend on how files were laid out."""
        rows = {split: _digest(table) for split, table in self.tables.items()}
        return digest_of([self.name, self.question, rows])

    def asked(self) -> Question:
        """The question. Raises DataError for rows without an outcome."""
        if self.question is None:
            columns = "; ".join(f"{kind}: {', '.join(columns.label)}" for kind, columns in COLUMNS.items())
            raise DataError(f"the labels {self.name!r} have no outcome; give one of these columns: {columns}")
        return self.question

    def array(self, split: str) -> np.ndarray:
        """The labels of a split as float64, in the shape of the kind (`ehr_core.outcomes`)."""
        return label_array(self.tables[split], self.asked())

    def truth(self, split: str) -> np.ndarray | None:
        """The best possible predictions of a synthetic cohort's split, in the shape of one; None elsewhere."""
        column = COLUMNS[self.asked().kind].truth
        table = self.tables[split]
        if column not in table.column_names or table[column].null_count:
            return None
        return _matrix(table[column]) if pa.types.is_list(table[column].type) else table[column].to_numpy()

    def counts(self, split: str) -> dict[str, Any]:
        """``rows`` and ``subjects`` of a split, and ``positives`` where an outcome is yes or no."""
        table = self.tables[split]
        found: dict[str, Any] = {"rows": len(table), "subjects": len(pc.unique(table["subject_id"]))}
        if self.question and self.question.kind in (BINARY, MULTILABEL):
            found["positives"] = int(np.nansum(self.array(split)))
        if self.question and self.question.kind == SURVIVAL:
            found["positives"] = int(self.array(split)[:, 1].sum())
        return found


class LabelsContent(msgspec.Struct):
    """What readers need of the content of a labels folder's manifest."""

    question: Question | None
    name: str | None = None


def label_array(table: pa.Table, question: Question) -> np.ndarray:
    """The outcome's columns of a table as float64, in the shape of the kind."""
    columns = [table[name] for name in COLUMNS[question.kind].label]
    if question.kind == MULTILABEL:
        return _matrix(columns[0]) if len(table) else np.empty((0, len(question.names)))
    flat = [column.cast(pa.float64()).to_numpy() for column in columns]
    return np.stack(flat, axis=1) if len(flat) > 1 else flat[0]


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """(N, K) float64 of a column of lists of one length; null is NaN."""
    whole = column.combine_chunks()
    flat = whole.flatten().cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(whole), -1))


def _digest(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks(), max_chunksize=len(table) or 1)
    return digest_of(sink.getvalue().to_pybytes().hex())


# -- reading


def read_labels(folder: Path, kind: str | None = None, split_of: Mapping[int, str] | None = None) -> Labels:
    """Labels of one task, in any of the layouts above, every row checked.

    ``kind`` says what the columns leave open: whether ``integer_value`` is a class or a number (``regression``).
    ``split_of`` is a dataset's split of each subject, for labels that do not say it themselves. Raises FormatError for
    files, DataError for rows that cannot be: nulls, a sample twice, another type.
    """
    files = label_files(folder)
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"the kind of outcome is {kind!r}; allowed: {', '.join(KINDS)}")
    content: dict[str, Any] = {}
    stated: LabelsContent | None = None
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder, FORMAT, VERSION)
        check_listed(folder, manifest, [path for paths in files.values() for path in paths])
        content = manifest.content
        stated = as_type(content, LabelsContent, folder / MANIFEST, "$.content")
        kind = stated.question.kind if stated.question else None
    raw = {split: [(path, read_table(path, text=TEXT)) for path in paths] for split, paths in files.items()}
    parts = [pair for pairs in raw.values() for pair in pairs]
    if not any(name in EVIDENCE for _, table in parts for name in table.column_names):
        kind = None
    question = stated.question if stated else _question(parts, kind)
    columns = _columns(question)
    tables: dict[str, pa.Table] = {}
    for split, pairs in raw.items():
        checked = [_checked(table, path, columns, question) for path, table in pairs]
        tables[split] = pa.concat_tables(checked, promote_options="default")
    if "" in tables:
        tables = _divided(tables[""], folder, split_of)
    ordered = {split: tables[split].sort_by([(key, "ascending") for key in KEY]) for split in tables}
    _refuse_twins(ordered, folder)
    place = folder.resolve()
    name = (stated.name if stated else None) or (place.name if place.is_dir() else place.stem)
    if Path(name).name != name or name in (".", ".."):
        raise FormatError(f"{folder / MANIFEST} has a name of the task that is no plain name")
    return Labels(name, question, ordered, content)


def _present(parts: Iterable[tuple[Path, pa.Table]], name: str) -> bool:
    """Whether some file has the column with a value in it."""
    return any(_has(table, name) for _, table in parts)


def _question(parts: list[tuple[Path, pa.Table]], kind: str | None) -> Question | None:
    if kind is None:
        kind = next((meant for column, meant in EVIDENCE.items() if _present(parts, column)), None)
        empty = not any(len(table) for _, table in parts)
        named = next((m for c, m in EVIDENCE.items() if any(c in table.column_names for _, table in parts)), None)
        kind = named if kind is None and empty else kind
        if kind is None:
            return None
    return Question(kind, _names(parts, kind))


def _names(parts: list[tuple[Path, pa.Table]], kind: str) -> tuple[str, ...]:
    """Classes or labels, as far as the values say; of a column of numbers, those up to the largest."""
    if kind == MULTICLASS and _present(parts, "categorical_value"):
        columns = [
            typed(column, "categorical_value", path) for path, column in _columns_named(parts, "categorical_value")
        ]
        return tuple(sorted({text for column in columns for text in pc.unique(column).to_pylist() if text is not None}))
    if kind == MULTICLASS:
        found = [
            (_whole(column, path).max(initial=-1), path) for path, column in _columns_named(parts, "integer_value")
        ]
        most, path = max(found, default=(-1, None))
        if most >= MOST_CLASSES:
            raise DataError(
                f"{path}: integer_value has a class above {MOST_CLASSES - 1:,}; classes are numbered from 0. Give "
                "categorical_value for codes, or kind=regression for numbers"
            )
        return _numbers(int(most) + 1)
    if kind == MULTILABEL:
        lists = [typed(column, "boolean_values", path) for path, column in _columns_named(parts, "boolean_values")]
        lengths = {n for column in lists for n in pc.list_value_length(column).to_pylist() if n is not None}
        if len(lengths) > 1:
            raise DataError(
                f"{parts[0][0].parent}: boolean_values has lists of {min(lengths)} to {max(lengths)} labels; every "
                "sample needs all of them, null where one is not known"
            )
        return _numbers(max(lengths, default=0))
    return ()


def _columns_named(parts: list[tuple[Path, pa.Table]], name: str) -> list[tuple[Path, pa.ChunkedArray]]:
    return [(path, table[name]) for path, table in parts if name in table.column_names]


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(count))


def _whole(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    return np.asarray(typed(column, "integer_value", path).drop_null().to_numpy())


def _columns(question: Question | None) -> tuple[str, ...]:
    return (*KEY, *(COLUMNS[question.kind].label if question else ()))


def _checked(table: pa.Table, path: Path, columns: tuple[str, ...], question: Question | None) -> pa.Table:
    """The columns that are read, of their types and without nulls."""
    if question and question.kind == MULTICLASS:
        table = _numbered(table, question.names, path)
    if question and question.kind == REGRESSION and not _has(table, "float_value") and _has(table, "integer_value"):
        table = table.select([n for n in table.column_names if n != "float_value"])
        table = table.append_column("float_value", table["integer_value"])
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: labels lack the column {', '.join(missing)}; they need {', '.join(columns)}")
    found = {name: typed(table[name], name, path) for name in columns}
    for name, column in found.items():
        _refuse_nulls(column, name, path)
    if question:
        truth = COLUMNS[question.kind].truth
        if truth in table.column_names:
            found[truth] = typed(table[truth], truth, path)
        check_outcome(found, question, path)
    return pa.table(found)


def _refuse_nulls(column: pa.ChunkedArray, name: str, path: Path) -> None:
    if column.null_count:
        raise DataError(f"{path}: column {name!r} of the labels has {column.null_count} nulls")


def _has(table: pa.Table, name: str) -> bool:
    """Whether a table has the column with a value in it; NaN is none."""
    if name not in table.column_names:
        return False
    column = table[name]
    empty = pc.sum(pc.is_null(column, nan_is_null=True)).as_py() if len(column) else 0
    return bool(empty < len(column))


def _numbered(table: pa.Table, names: tuple[str, ...], path: Path) -> pa.Table:
    """With ``integer_value`` from the names of classes, where there are any; numbers beside them are not read."""
    if not _has(table, "categorical_value"):
        return table
    text = typed(table["categorical_value"], "categorical_value", path)
    _refuse_nulls(text, "categorical_value", path)
    table = table.select([name for name in table.column_names if name != "integer_value"])
    return table.append_column("integer_value", pc.index_in(text, value_set=pa.array(names, pa.string())))


def _divided(table: pa.Table, folder: Path, split_of: Mapping[int, str] | None) -> dict[str, pa.Table]:
    """One table a split, by the split of each subject."""
    if split_of is None:
        raise FormatError(
            f"{folder} does not say which split its labels are of; name the files {', '.join(SPLITS)}, or give the "
            "dataset with them"
        )
    where = [split_of.get(subject) for subject in table["subject_id"].to_pylist()]
    unknown = sum(place is None for place in where)
    if unknown:
        raise DataError(
            f"{unknown} of the {len(table)} labels in {folder} are of subjects that the dataset does not have"
        )
    split = pa.array(where, pa.string())
    return {name: table.filter(pc.equal(split, name)) for name in SPLITS if name in set(where)}


def _refuse_twins(tables: Mapping[str, pa.Table], folder: Path) -> None:
    for split, table in tables.items():
        kinds = len(table.group_by(list(KEY)).aggregate([]))
        twins = len(table) - kinds
        if twins:
            single = [name for name in table.column_names if not pa.types.is_list(table[name].type)]
            others = len(table.group_by(single).aggregate([])) - kinds
            raise DataError(
                f"{folder}, split {split!r}: {twins} samples are there more than once (the same subject_id and "
                f"prediction_time), {others} of them with another outcome; keep one row of each"
            )


# -- writing


def write_labels(path: Path, table: pa.Table, kind: str = BINARY) -> None:
    """Write one split of labels of a kind; the columns are checked, others are dropped."""
    question = _question([(path, table)], kind)
    write_table(path, _checked(table, path, _columns(question), question))


def label_table(table: pa.Table, question: Question | None, where: Path) -> pa.Table:
    """One split of labels as they are kept: the question's columns in their types, checked, by subject and time.

    Raises DataError that names ``where`` the table is from, or will be.
    """
    found = _checked(table, where, _columns(question), question)
    found = found.sort_by([(key, "ascending") for key in KEY])
    _refuse_twins({where.stem: found}, where.parent)
    return found


def write_label_folder(folder: Path, labels: Labels, manifest: Manifest) -> None:
    """Write every split and a manifest, whose content gains ``name``, ``question`` and ``splits``, into a folder."""
    for split in labels.splits:
        write_table(folder / f"{split}.parquet", labels.tables[split])
    asked = labels.question
    facts = {
        "name": labels.name,
        "question": {"kind": asked.kind, "names": list(asked.names)} if asked else None,
        "splits": {split: labels.counts(split) for split in labels.splits},
    }
    content = {**labels.content, **manifest.content, **facts}
    write_manifest(folder, dataclasses.replace(manifest, format=FORMAT, version=VERSION, content=content))
