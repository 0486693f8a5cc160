"""What is said of labels before anything is made of them: odd times, and what nothing can be learned or scored with."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ehr_core.formats.labels import Labels
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, SURVIVAL

from ehr_eval.timing import check_times, describe_times, odd_times


def noted(meds: Path, labels: Labels, fit: bool) -> Labels:
    """The labels with ``times`` (counts of odd ones) and ``notes`` (sentences) in their content.

    With ``fit`` something is to be learned from them. Raises DataError for prediction times that cannot be.
    """
    counts = odd_times(meds, labels)
    check_times(counts, labels)
    notes = [*describe_times(counts, labels), *describe_labels(labels, fit)]
    content = {"times": {name: count for name, count in counts.items() if count}, "notes": notes}
    return dataclasses.replace(labels, content={**labels.content, **content})


def say_notes(labels: Labels) -> None:
    """The notes of labels on standard error."""
    for line in labels.content.get("notes", ()):
        print(f"note: {line}", file=sys.stderr)


def describe_labels(labels: Labels, fit: bool = True) -> list[str]:
    """What cannot be learned, chosen or scored with these labels, as sentences."""
    if labels.question is None:
        return []
    there = [split for split in labels.splits if len(labels.tables[split])]
    if not there:
        return [f"{labels.name}: there is no sample"]
    found = [text for split in there for text in _uniform(labels, split)]
    if labels.question.kind in (MULTICLASS, MULTILABEL):
        found += _absent(labels, [split for split in there if split == "train" or not fit])
    if fit and "tuning" not in there:
        found.append("there is no sample of the split 'tuning', so nothing is chosen, or stopped early, by it")
    return [f"{labels.name}: {text}" for text in found]


def _uniform(labels: Labels, split: str) -> Iterator[str]:
    """Where all samples of a split have the same outcome, and nothing can be told apart."""
    question, label = labels.asked(), labels.array(split)
    if question.kind == SURVIVAL:
        if not label[:, 1].any():
            yield f"no sample of the split {split!r} has an event, so scores of risks are not defined on it"
    elif question.kind != MULTILABEL and len(np.unique(label)) == 1:
        one = "class" if question.kind in (BINARY, MULTICLASS) else "value"
        yield f"all samples of the split {split!r} have one {one}, so scores that compare are not defined on it"


def _absent(labels: Labels, splits: list[str]) -> Iterator[str]:
    """Classes or labels that no sample of these splits has."""
    question = labels.asked()
    arrays = [labels.array(split) for split in splits]
    if question.kind == MULTICLASS:
        seen = {int(number) for array in arrays for number in array}
    else:
        seen = {number for array in arrays for number in np.flatnonzero(np.nansum(array, axis=0)).tolist()}
    absent = [name for number, name in enumerate(question.names) if number not in seen]
    if absent and arrays:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        where = f"of the split {splits[0]!r}" if len(splits) == 1 else "at all"
        word = "classes" if question.kind == MULTICLASS else "labels"
        yield f"{len(absent)} of {len(question.names)} {word} have no sample {where}: {shown}"
