"""How large the models are and how long they will take, said before they are trained.

Where tokens and labels are not there yet, those of some subjects are made in a temporary folder, and the rest is
arithmetic. Baselines, metrics and the report are not foreseen.
"""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ehr_core.config import component_settings
from ehr_core.constants import DATA, SPLITS
from ehr_core.errors import DataError, NotApplicable
from ehr_core.formats.labels import Labels, read_labels
from ehr_core.formats.meds import READING, Shard, shards, subject_splits
from ehr_core.formats.pages import checked
from ehr_core.formats.parquet import write_table
from ehr_core.formats.tokens import TokenStore
from ehr_core.stages import Given, Stage
from ehr_eval.user_labels import read_user_labels, write_user_labels

from ehr_train.check import check_job
from ehr_train.estimate import amount, describe_estimate, duration, estimate
from ehr_train.job import TrainJob
from ehr_train.learner import is_causal
from ehr_train.loader.feed import Share
from ehr_train.loader.samples import load, open_labels
from ehr_train.predictors.finetuned import schedule
from ehr_train.runner import steps
from ehr_train.runner.plan import Plan
from ehr_train.settings import FinetunedConfig, TrainConfig

SAMPLE = 60_000
"""Events of a split that stand for all of it; whole subjects, at least one."""


@dataclass
class Data:
    """Tokens and labels of all records, or of some."""

    tokens: Path
    labels: dict[str, Path]
    """Task to its folder; tasks without a label are left out."""
    part: float = 1.0
    """How much of the train split's events they are."""
    seconds: float = 0.0
    """What the tokens take, of all records."""
    vectors: Path | None = None
    """Code vectors for the tokens of a sample, where the model starts from such."""


def sizes(plan: Plan) -> list[str]:
    """Lines about the size of the models and the time for tokens and models; none where the model is there."""
    if plan.run is None or plan.run.done:
        return []
    if plan.ready and all(stage.done for stage in plan.labels.values()):
        found = {task: stage.path / task for task, stage in plan.labels.items() if stage.reason is None}
        return list(_lines(plan, Data(plan.run.inputs["tokens"].path, found)))
    tokens = plan.run.inputs["tokens"]
    records = tokens.inputs["meds"] if isinstance(tokens, Stage) else None
    if isinstance(records, Stage) and not records.done:
        return ["parameters, steps and time depend on the records, and are said when these are written"]
    with tempfile.TemporaryDirectory(prefix="ehr-sample-") as scratch:
        data = sample(plan, tokens, Path(scratch)) if isinstance(tokens, Stage) else Data(tokens.path, {})
        if "vectors" in plan.run.inputs:
            data.vectors = Path(scratch) / "vectors"
            steps.embed_tokens(data.vectors, plan.settings.embedding, tokens=data.tokens)
        try:
            return list(_lines(plan, data))
        except (NotApplicable, DataError) as error:  # a few subjects may lack what all of them have
            return [f"parameters, steps and time cannot be judged from a sample of the records: {error}"]


def _lines(plan: Plan, data: Data) -> Iterator[str]:
    job = _job(plan, data)
    parts = check_job(job, plan.world_size)
    assert parts is not None
    context, causal = parts.context, is_causal(parts.learner.model)
    found = estimate(job, plan.world_size, parts, data.part)
    if data.part < 1:
        yield f"judged from {data.part:.1%} of the events; all of them may have more distinct codes, and so parameters"
    yield f"pretrain: {describe_estimate(found)}"
    seconds = found["seconds"] + data.seconds
    for (task, predictor), stage in plan.fitted.items():
        settings = stage.settings.part
        if isinstance(settings, FinetunedConfig) and task in data.labels and not stage.done:
            training = schedule(settings, context)
            count, rows = _fine_tuning(plan, data, data.labels[task], training, causal)
            took = rows * found["seconds_per_row"] / plan.world_size
            seconds += took
            batch = training.batch_size * plan.world_size
            yield f"{task}, {predictor}: at most {count:,} steps of {batch} rows, about {duration(took)}"
    yield f"tokens and models: about {duration(seconds)} in all"
    if plan.fitted and not any("run" in stage.inputs for stage in plan.fitted.values()):
        yield "note: none of the predictors uses the model; ehr-eval benchmark compares baselines without one"


def _job(plan: Plan, data: Data) -> TrainJob:
    """The plan's training on these tokens and labels."""
    assert plan.run is not None
    job = dataclasses.replace(plan.job(), store=str(data.tokens))
    if data.vectors is not None:
        job = dataclasses.replace(job, model=steps.with_vectors(job.model, data.vectors))
    labels = plan.run.inputs.get("labels")
    if labels is None or isinstance(labels, Given):
        return job
    task = next(name for name, stage in plan.labels.items() if stage is labels)
    if task not in data.labels:
        raise NotApplicable(f"{task} has no label to learn from")
    return dataclasses.replace(job, labels=str(data.labels[task]))


def _fine_tuning(plan: Plan, data: Data, folder: Path, training: TrainConfig, causal: bool) -> tuple[int, float]:
    """Steps of a model that is fine-tuned on labels, and its work in rows."""
    store = TokenStore(data.tokens)
    labels = open_labels(folder, store)
    rows = {"train": 0, "tuning": 0}
    for split in rows:
        if split in labels.splits and len(labels.tables[split]):
            samples = load(store, split, labels, training.context_length or 0, plan.settings.seed, causal)
            rows[split] = round(len(samples.evaluation()) / data.part)
    share = Share(0, plan.world_size, training.batch_size, training.accumulate)
    return amount(training, share, rows["train"], rows["tuning"])


# -- a sample of the records


def sample(plan: Plan, tokens: Stage, scratch: Path) -> Data:
    """Tokens and labels of some subjects, made in a folder for the time being."""
    records = tokens.inputs["meds"].path
    meds, part = copy_some(records, scratch / "meds")
    folders = {name: given.path for name, given in tokens.inputs.items()}
    started = time.monotonic()
    serial = component_settings("executor", "serial")
    steps.tokenize_records(scratch / "tokens", tokens.settings, **{**folders, "meds": meds}, free=serial)
    seconds = 0.0 if tokens.done else (time.monotonic() - started) / part
    return Data(scratch / "tokens", _labels(plan, records, meds, scratch / "labels"), part, seconds)


def copy_some(records: Path, target: Path) -> tuple[Path, float]:
    """A dataset of the first subjects of each split, and how much of the train split's events it has."""
    part = 1.0
    found = shards(records)
    for split in dict.fromkeys(shard.split for shard in found):
        mine = [shard for shard in found if shard.split == split]
        table = first_subjects(mine, SAMPLE)
        write_table(target / DATA / split / "0.parquet", table)
        if split == SPLITS[0]:
            part = len(table) / max(sum(pq.read_metadata(shard.path).num_rows for shard in mine), 1)
    if (records / "metadata").is_dir():
        shutil.copytree(records / "metadata", target / "metadata")
    if (records / READING).is_file():
        shutil.copy(records / READING, target / READING)
    return target, part


def first_subjects(mine: list[Shard], wanted: int) -> pa.Table:
    """Events of the first subjects, of a shard that has any: whole, at least one, as many as have ``wanted`` events."""
    shard = next((shard for shard in mine if pq.read_metadata(shard.path).num_rows), mine[0])
    path = checked(shard.path)
    if shard.subject_id is not None:
        wanted_S = pa.array(shard.subject_id[: max(1, wanted // 100)])
        table = pq.read_table(path)
        return table.filter(pc.is_in(table["subject_id"], value_set=wanted_S))
    subject_E = pq.read_table(path, columns=["subject_id"])["subject_id"].to_numpy()
    end_S = np.append((subject_E[1:] != subject_E[:-1]).nonzero()[0] + 1, len(subject_E))
    end = int(end_S[min(int(np.searchsorted(end_S, wanted)), len(end_S) - 1)])
    with pq.ParquetFile(path) as file:
        batches, rows = [], 0
        for batch in file.iter_batches():
            batches.append(batch)
            rows += len(batch)
            if rows >= end:
                break
    return pa.Table.from_batches(batches, pq.read_schema(path)).slice(0, end)


def _labels(plan: Plan, records: Path, meds: Path, scratch: Path) -> dict[str, Path]:
    """Labels of the sample's subjects: the user's, or what the tasks find."""
    subjects = pa.array(subject_splits(shards(meds)), pa.int64())
    serial = component_settings("executor", "serial")
    found: dict[str, Path] = {}
    for task, stage in plan.labels.items():
        folder = scratch / task
        if isinstance(stage.settings, steps.GivenLabels):
            given = read_user_labels(stage.inputs["labels"].path, records, stage.settings.kind)
            write_user_labels({task: _of(given[task], subjects)}, folder)
        else:
            try:
                steps.label_task(folder, stage.settings, meds=meds, free=serial)
            except NotApplicable:
                continue
        if len(read_labels(folder / task).tables.get("train", ())):
            found[task] = folder / task
    return found


def _of(labels: Labels, subjects: pa.Array) -> Labels:
    tables = {
        split: table.filter(pc.is_in(table["subject_id"], value_set=subjects)) for split, table in labels.tables.items()
    }
    return Labels(labels.name, labels.question, tables, labels.content)
