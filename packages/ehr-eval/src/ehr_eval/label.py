"""``ehr-eval label``: ask clinical questions of a MEDS dataset."""

import functools
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
from ehr_core import plugins
from ehr_core.config import to_plain
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, DataError, NotApplicable
from ehr_core.formats.folder import Manifest, new_folder, write_json, write_manifest
from ehr_core.formats.tables import TRUTH, write_labels
from ehr_core.progress import track

from ehr_eval.__about__ import __version__
from ehr_eval.dataset import Dataset, last_time, output_folder, provided, read_events, shards, splits
from ehr_eval.plugin import MISSING, LabelConfig
from ehr_eval.tasks import LABEL_COLUMNS, codes_with

FORMAT, VERSION = "labels", 1
NOT_APPLICABLE = "not_applicable.json"
EMPTY = pl.DataFrame(schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "boolean_value": pl.Boolean})


@dataclass
class ShardLabels:
    """What one shard says: labels by task, and which needed groups of codes it has, as (task, group)."""

    labels: dict[str, pl.DataFrame] = field(default_factory=dict)
    seen: set[tuple[str, str]] = field(default_factory=set)


def label(settings: LabelConfig) -> None:
    """Write OUTPUT/<task>/<split>.parquet with a manifest each.

    A task that the dataset cannot answer leaves ``not_applicable.json`` with the reason. Raises NotApplicable when
    that is all of them.
    """
    if not settings.task:
        raise ConfigError("task is required: give task=[in_hospital_mortality], for example")
    output = output_folder(settings.output)
    executor = None if settings.executor in (MISSING, None) else plugins.build("executor", settings.executor)
    with new_folder(output) as folder, provided(settings.source, executor) as dataset:
        reasons = []
        end = last_time(dataset.path)
        found = _label_splits(settings, dataset, end, executor)
        for name, task in settings.task.items():
            try:
                _check_needed(name, task, found)
            except NotApplicable as reason:
                reasons.append(str(reason))
                (folder / name).mkdir()
                write_json(folder / name / NOT_APPLICABLE, {"reason": str(reason)})
                print(f"{name}: not applicable: {reason}")
                continue
            _write_task(folder / name, name, task, found, dataset, end)
        if len(reasons) == len(settings.task):
            raise NotApplicable("; ".join(reasons))


def _label_splits(
    settings: LabelConfig, dataset: Dataset, end: datetime, executor: Any
) -> dict[str, list[ShardLabels]]:
    """Labels of every shard, by split."""
    known = [split for split in SPLITS if split in splits(dataset.path)]
    if not known:
        raise DataError(f"{dataset.path} has none of the splits {', '.join(SPLITS)}")
    work = functools.partial(_label_shard, settings.task, end)
    result = {}
    for split in known:
        paths = shards(dataset.path, split)
        mapped = executor.map(work, paths) if executor else map(work, paths)
        result[split] = list(track(mapped, f"label {split}", len(paths), "shards"))
    return result


def _label_shard(tasks: dict[str, Any], end: datetime, path: Path) -> ShardLabels:
    events = read_events(path)
    codes = events["code"].drop_nulls().unique().to_list()
    result = ShardLabels()
    for name, settings in tasks.items():
        task = plugins.build("task", settings)
        for group, prefixes in getattr(task, "needed", dict)().items():
            if codes_with(codes, prefixes):
                result.seen.add((name, group))
        result.labels[name] = task.label(events, end)
    return result


def _check_needed(name: str, settings: Any, found: dict[str, list[ShardLabels]]) -> None:
    """Raise NotApplicable when codes without which the task means nothing occur nowhere in the dataset."""
    seen = {pair for parts in found.values() for part in parts for pair in part.seen}
    needed: dict[str, list[str]] = getattr(plugins.build("task", settings), "needed", dict)()
    missing = {group: prefixes for group, prefixes in needed.items() if (name, group) not in seen}
    if missing:
        looked = "; ".join(f"{group}: codes that begin with {' or '.join(p)}" for group, p in missing.items())
        raise NotApplicable(f"the dataset has no event for {looked} (set them with task.{name}.*)")


def _write_task(
    folder: Path, name: str, task: Any, found: dict[str, list[ShardLabels]], dataset: Dataset, end: datetime
) -> None:
    counts = {}
    folder.mkdir()
    for split, parts in found.items():
        table = pl.concat([EMPTY, *(part.labels[name].select(LABEL_COLUMNS) for part in parts)])
        table = table.sort("subject_id", "prediction_time")
        # The dataset's truth belongs to the question as it is usually asked, not to one with other settings.
        if task == type(task)():
            table = with_truth(table, dataset.path / "labels" / name / f"{split}.parquet")
        write_labels(folder / f"{split}.parquet", table.to_arrow())
        counts[split] = count(table)
        rows, positives = counts[split]["rows"], counts[split]["positives"]
        share = f", {positives / rows:.1%} positive" if rows else ""
        print(f"{name} {split}: {rows:,} samples of {counts[split]['subjects']:,} subjects{share}")
    made_by = [f"ehr-eval=={__version__}", plugins.registry().version("task", task.name)]
    content = {"name": name, "task": to_plain(task), "end": end.isoformat(), "splits": counts}
    manifest = Manifest(FORMAT, VERSION, sorted(set(made_by)), to_plain(task), {"source": dataset.digest}, content)
    write_manifest(folder, manifest)


def count(table: pl.DataFrame) -> dict[str, Any]:
    """Rows, subjects, positives and prevalence of labels (None without rows)."""
    rows, positives = len(table), int(table["boolean_value"].sum())
    share = positives / rows if rows else None
    return {"rows": rows, "subjects": table["subject_id"].n_unique(), "positives": positives, "prevalence": share}


def with_truth(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Add ``true_probability`` from a synthetic cohort's own labels, where it has some.

    Raises DataError when the cohort's labels are not the ones that the task found: one of the two is wrong.
    """
    if not path.is_file() or TRUTH not in pl.read_parquet_schema(path):
        return table
    columns = [*LABEL_COLUMNS, TRUTH]
    truth = pl.read_parquet(path, columns=columns).with_columns(pl.col("prediction_time").cast(pl.Datetime("us")))
    truth = truth.select(columns).sort("subject_id", "prediction_time")
    if not truth.select(LABEL_COLUMNS).equals(table.select(LABEL_COLUMNS)):
        only = len(table.join(truth, on=LABEL_COLUMNS, how="anti"))
        other = len(truth.join(table, on=LABEL_COLUMNS, how="anti"))
        raise DataError(
            f"{path} does not agree with the task: {only} rows only from the task, {other} only in the file; "
            "the true probabilities cannot be used"
        )
    return table.with_columns(truth[TRUTH].cast(pl.Float64))
