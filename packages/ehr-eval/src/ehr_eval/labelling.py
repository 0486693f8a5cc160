"""Ask clinical questions of a MEDS dataset: one labels folder a task, of the task's kind of outcome."""

import functools
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from ehr_core import plugins
from ehr_core.config import from_plain, to_plain
from ehr_core.errors import ConfigError, DataError, NotApplicable
from ehr_core.formats.folder import Manifest, new_folder
from ehr_core.formats.labels import (
    FORMAT,
    KEY,
    VERSION,
    Labels,
    label_array,
    label_table,
    read_labels,
    write_label_folder,
)
from ehr_core.formats.meds import Shard, last_time, read_treated, shards, subject_splits
from ehr_core.outcomes import COLUMNS, Question
from ehr_core.progress import track
from ehr_core.protocols import Executor, OutcomeCodes
from ehr_core.stages import NOT_APPLICABLE, read_reason, write_reason

from ehr_eval.__about__ import __version__
from ehr_eval.datasets import output_folder, provided
from ehr_eval.label_notes import describe_labels
from ehr_eval.settings import MISSING, LabelConfig


@dataclass
class ShardLabels:
    """What one shard says: labels by task, which needed groups of codes it has, as (task, group), and what was odd."""

    labels: dict[str, pl.DataFrame] = field(default_factory=dict)
    seen: set[tuple[str, str]] = field(default_factory=set)
    treated: dict[str, int] = field(default_factory=dict)


def label(settings: LabelConfig) -> dict[str, Labels]:
    """Write OUTPUT/<task>/ for every task, and open what was written; see `label_tasks`."""
    if not settings.task:
        raise ConfigError("task is required: give task=[in_hospital_mortality], for example")
    output = output_folder(settings.output)
    executor = None if settings.executor in (MISSING, None) else plugins.build("executor", settings.executor)
    with provided(settings.source, executor) as dataset:
        return label_tasks(settings.task, dataset.path, output, executor=executor, source=dataset.digest)


def label_tasks(
    tasks: Mapping[str, Any], meds: Path, output: Path, *, executor: Executor | None = None, source: str = ""
) -> dict[str, Labels]:
    """Labels of each task (name to settings) on a MEDS folder, written to OUTPUT/<task>/ in one pass over the records.

    ``source`` is the digest of the records, kept in the manifests. A task that the dataset cannot answer leaves
    ``not_applicable.json`` with the reason. Raises NotApplicable when that is all of them.
    """
    built = {name: plugins.build("task", part) for name, part in tasks.items()}
    found = shards(meds)
    subject_splits(found)
    end = last_time(meds, found)
    work = functools.partial(_label_shard, dict(tasks), end)
    mapped = executor.map(work, found) if executor else map(work, found)
    parts = list(zip(found, track(mapped, "label", len(found), "shards"), strict=True))
    treated = _say_treated(answer for _, answer in parts)
    result: dict[str, Labels] = {}
    reasons: dict[str, str] = {}
    with new_folder(output) as folder:
        for name, part in tasks.items():
            (folder / name).mkdir()
            try:
                _check_needed(name, built[name].needed(), [answer for _, answer in parts])
            except NotApplicable as reason:
                reasons[name] = str(reason)
                write_reason(folder / name, str(reason))
                continue
            labels = _collected(name, part, Question(_kind(part), tuple(built[name].names)), parts, meds)
            facts = {"end": end.isoformat(), "treated": treated, "notes": describe_labels(labels, fit=False)}
            result[name] = _written(folder / name, labels, part, source, facts)
        if len(reasons) == len(tasks):
            raise NotApplicable("; ".join(reasons.values()))
    return result


def reasons_in(folder: Path) -> dict[str, str]:
    """Why some tasks of a folder that `label_tasks` wrote have no labels, by name."""
    paths = sorted(folder.glob(f"*/{NOT_APPLICABLE}"))
    return {path.parent.name: read_reason(path.parent) or "" for path in paths}


def task_codes(labels: Labels, task: Any = None) -> OutcomeCodes | None:
    """The codes that decide labels, where their task is known: as given (name, settings or group of one), by their
    manifest, or by a name that a task has. None for a question that no code answers."""
    settings = _task_settings(task)
    known = plugins.registry().components["task"]
    if settings is None and labels.content.get("task", {}).get("name") in known:
        settings = from_plain("task", labels.content["task"])
    if settings is None and labels.name in known:
        settings = _task_settings(labels.name)
    codes: OutcomeCodes | None = plugins.build("task", settings).codes() if settings is not None else None
    return codes


def _task_settings(task: Any) -> Any:
    """Settings from a task's name, its settings, or a group ``{name: settings}`` of one; None stays None."""
    if isinstance(task, dict):
        if len(task) > 1:
            raise ConfigError(f"task names {', '.join(task)}; labels answer one task")
        task = next(iter(task.values()), None)
    if not isinstance(task, str):
        return task
    found = plugins.registry().get("task", task).config
    return found() if found else None


def _kind(part: Any) -> str:
    """The kind of outcome that a task asks."""
    return plugins.registry().get("task", part.name).outcomes[0]


def _label_shard(tasks: dict[str, Any], end: datetime, shard: Shard) -> ShardLabels:
    events, treated = read_treated(shard)
    codes = events["code"].unique().to_list()
    result = ShardLabels(treated=treated)
    for name, settings in tasks.items():
        task = plugins.build("task", settings)
        for group, prefixes in task.needed().items():
            if any(code.startswith(tuple(prefixes)) for code in codes):
                result.seen.add((name, group))
        result.labels[name] = task.label(events, end)
    return result


def _check_needed(name: str, needed: Mapping[str, Any], found: list[ShardLabels]) -> None:
    """Raise NotApplicable when codes without which the task means nothing occur nowhere in the dataset."""
    seen = {pair for part in found for pair in part.seen}
    missing = {group: prefixes for group, prefixes in needed.items() if (name, group) not in seen}
    if missing:
        looked = "; ".join(f"{group}: codes that begin with {' or '.join(p)}" for group, p in missing.items())
        raise NotApplicable(f"the dataset has no event for {looked} (set them with task.{name}.*)")


def _collected(name: str, part: Any, question: Question, parts: list[tuple[Shard, ShardLabels]], meds: Path) -> Labels:
    """All shards' labels of a task, checked; with the truth where a synthetic cohort knows it."""
    tables = {}
    for split in dict.fromkeys(shard.split for shard, _ in parts):
        frames = [answer.labels[name].to_arrow() for shard, answer in parts if shard.split == split]
        table = pa.concat_tables(frames, promote_options="permissive")
        tables[split] = label_table(table, question, Path(name) / split)
    # The dataset's truth belongs to the question as it is usually asked, not to one with other settings.
    own = meds / "labels" / name
    return (
        with_truth(Labels(name, question, tables), own)
        if part == type(part)() and own.is_dir()
        else Labels(name, question, tables)
    )


def with_truth(labels: Labels, path: Path) -> Labels:
    """With the best possible predictions that a synthetic cohort's own labels of the task have beside them.

    Raises DataError when those labels are not the ones that the task found: one of the two is wrong.
    """
    question = labels.asked()
    column = COLUMNS[question.kind].truth
    own = read_labels(path, question.kind)
    tables = dict(labels.tables)
    for split in labels.splits:
        if split not in own.tables or column not in own.tables[split].column_names:
            continue
        _check_same(tables[split], own.tables[split], question, path / split)
        tables[split] = tables[split].append_column(column, own.tables[split][column])
    return Labels(labels.name, question, tables, labels.content)


def _check_same(table: pa.Table, own: pa.Table, question: Question, where: Path) -> None:
    rows, others = table.select(list(KEY)), own.select(list(KEY))
    if rows.equals(others):
        ours, theirs = label_array(table, question), label_array(own, question)
        if ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True):
            return
        wrong = f"{int((~np.isclose(ours, theirs, equal_nan=True)).sum())} outcomes differ"
    else:
        only = len(rows.join(others, list(KEY), join_type="left anti"))
        wrong = f"{only} rows only from the task, {len(others.join(rows, list(KEY), join_type='left anti'))} only in it"
    raise DataError(f"{where} does not agree with the task: {wrong}; the true predictions cannot be used")


def _say_treated(parts: Iterable[ShardLabels]) -> dict[str, int]:
    """What was odd in all shards, by the names of TREATED, without zeros; said on stderr as well."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.treated)
    found = {name: count for name, count in sorted(total.items()) if count}
    said = [f"{name} {count:,}" for name, count in found.items() if name != "subjects_without_birth"]
    if said:  # of births no label depends on
        print("treated: " + ", ".join(said), file=sys.stderr)
    return found


def _written(folder: Path, labels: Labels, part: Any, source: str, facts: dict[str, Any]) -> Labels:
    """Write labels of a task, with facts about the records, and open them again."""
    made_by = {f"ehr-eval=={__version__}", plugins.registry().version("task", part.name)}
    plain = to_plain(part)
    content = {"task": plain, **facts}
    inputs = {"source": source} if source else {}
    write_label_folder(folder, labels, Manifest(FORMAT, VERSION, sorted(made_by), plain, inputs, content))
    return read_labels(folder)
