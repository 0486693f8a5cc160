"""Labels as users have them: found in any layout, checked against the dataset, and written in the one form."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import MANIFEST, Manifest, new_folder, read_manifest
from ehr_core.formats.label_layout import has_labels
from ehr_core.formats.labels import FORMAT, VERSION, Labels, read_labels, write_label_folder
from ehr_core.formats.meds import shards, subject_splits
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, SURVIVAL, Question

from ehr_eval.__about__ import __version__
from ehr_eval.label_notes import noted
from ehr_eval.labelling import reasons_in


def label_folders(path: Path) -> list[Path]:
    """Folders of labels, each of one task: ``path`` itself or those in it. Raises FormatError when there is none."""
    if has_labels(path):
        return [path]
    if not path.exists():
        raise FormatError(f"{path} does not exist; expected labels, or one folder of labels a task")
    if not path.is_dir():
        raise FormatError(f"{path} is not a folder; expected labels, or one folder of labels a task")
    found = [below for below in sorted(path.iterdir()) if below.is_dir() and has_labels(below)]
    if not found:
        why = "".join(f"; {name}: {reason}" for name, reason in reasons_in(path).items())
        raise FormatError(
            f"{path} has no labels: expected <split>.parquet, <split>.csv, or one folder a task with such files{why}"
        )
    return found


def read_user_labels(
    path: Path, meds: Path, kind: str | None = None, fit: bool = True, splits: Sequence[str] = ()
) -> dict[str, Labels]:
    """Task name to labels, of one task or of a folder of tasks, every check done, with notes (`label_notes`).

    Types, nulls and rows that are there twice are checked as they are read; subjects against the dataset and its
    splits; times against its events; where something is to be ``fit``, that the train split has something to learn;
    and that there is a sample in one of ``splits``, where these are to be predicted. Raises FormatError for files,
    DataError for rows.
    """
    split_of = subject_splits(shards(meds))
    result: dict[str, Labels] = {}
    lacking: list[str] = []
    for folder in label_folders(path):
        labels = read_labels(folder, kind, split_of)
        if labels.name in result:
            raise DataError(f"{path} has two folders with labels of the task {labels.name!r}; keep one")
        _check_subjects(labels, split_of, folder)
        if fit:
            labels.asked()
        untaught, unasked = (nothing_to_learn(labels) if fit else None), nothing_to_predict(labels, splits)
        # What our own command asked of a small cohort may be too little; the predictors say so, one by one.
        if (reason := untaught or unasked) and not (folder / MANIFEST).is_file():
            raise DataError(f"{folder}: {reason}")
        if unasked is not None:
            lacking.append(f"{folder}: {unasked}")
        result[labels.name] = noted(meds, labels, fit)
    if len(lacking) == len(result):
        raise DataError("; ".join(lacking))
    return result


def write_user_labels(labels: Mapping[str, Labels], output: Path, source: str = "") -> dict[str, Path]:
    """Write each task's labels to OUTPUT/<task>/ in the one form; what is there already must be the same labels."""
    result = {}
    for name, found in labels.items():
        folder = result[name] = output / name
        if folder.is_dir():
            if read_labels(folder).digest != found.digest:
                raise FormatError(f"{folder} holds other labels already; give another output or remove it first")
            continue
        with new_folder(folder) as target:
            settings = dict(found.content.get("task", {}))
            manifest = Manifest(FORMAT, VERSION, [f"ehr-eval=={__version__}"], settings)
            manifest.inputs.update({"source": source} if source else {})
            write_label_folder(target, found, manifest)
    return result


def source_of(labels: Path) -> dict[str, str]:
    """The digest of the records that a labels folder in the one form belongs to, as ``inputs`` of a manifest."""
    inputs = read_manifest(labels, FORMAT, VERSION).inputs
    return {"source": inputs["source"]} if "source" in inputs else {}


def _check_subjects(labels: Labels, split_of: Mapping[int, str], folder: Path) -> None:
    """Raise DataError unless each label's subject is in the dataset, in the split that the label is in."""
    for split in labels.splits:
        subjects = pc.unique(labels.tables[split]["subject_id"]).to_pylist()
        places = [split_of.get(subject) for subject in subjects]
        unknown = sum(place is None for place in places)
        if unknown:
            raise DataError(
                f"{folder}, split {split!r}: {unknown} of {len(subjects)} subjects are not in the dataset; labels and "
                "dataset do not belong together"
            )
        elsewhere = sum(place != split for place in places)
        if elsewhere:
            raise DataError(
                f"{folder}, split {split!r}: {elsewhere} of {len(subjects)} subjects are in another split of the "
                "dataset; labels and dataset divide subjects differently"
            )


def nothing_to_predict(labels: Labels, splits: Sequence[str]) -> str | None:
    """Why nothing can be predicted for these splits, or None when it can; without any, for all there are."""
    there = [split for split in labels.splits if len(labels.tables[split])]
    if not there:
        return "there is no sample"
    if splits and not set(splits) & set(there):
        return f"there is no sample in the splits {', '.join(splits)}; there are some in {', '.join(there)}"
    return None


def nothing_to_learn(labels: Labels) -> str | None:
    """Why nothing can be fitted on the labels of the train split, or None when it can."""
    if "train" not in labels.tables or not len(labels.tables["train"]):
        return "there is no label of the split 'train' to fit on"
    question, label = labels.asked(), labels.array("train")
    if question.kind == SURVIVAL:
        return None if label[:, 1].any() else "the labels of the train split have no event; nothing can be learned"
    if question.kind == MULTILABEL:
        varied = any(len(np.unique(column[~np.isnan(column)])) > 1 for column in label.T)
        return None if varied else "no label of the train split is both true and false; nothing can be learned"
    if len(np.unique(label)) < 2:
        one = "class" if question.kind in (BINARY, MULTICLASS) else "value"
        return f"the labels of the train split have one {one} only; nothing can be learned from them"
    return None


def as_question(labels: Labels, question: Question) -> Labels:
    """Labels of another dataset in the classes of a question that was learned elsewhere.

    Labels without an outcome stay as they are. Raises ConfigError for another kind, or classes that were not learned.
    """
    found = labels.question
    if found is None or found == question:
        return labels
    if found.kind != question.kind:
        raise ConfigError(f"the labels {labels.name!r} are {found.kind}, and what was fitted predicts {question.kind}")
    strange = [name for name in found.names if name not in question.names]
    if strange or (found.kind == MULTILABEL and len(found.names) != len(question.names)):
        raise ConfigError(
            f"the labels {labels.name!r} have {len(found.names)} classes or labels, {len(strange)} of them unknown to "
            f"what was fitted, which knows {', '.join(question.names)}"
        )
    tables = dict(labels.tables)
    if found.kind == MULTICLASS:
        place = np.array([question.names.index(name) for name in found.names], np.int64)
        for split, table in tables.items():
            numbers = pa.array(place[table["integer_value"].to_numpy()] if len(table) else [], pa.int64())
            at = table.column_names.index("integer_value")
            tables[split] = table.set_column(at, "integer_value", numbers)
    return Labels(labels.name, question, tables, labels.content)
