"""``ehr-eval predict``: fit baselines, ask predictors, and write what they say in one form."""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from ehr_core import config, plugins
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, FormatError, NotApplicable
from ehr_core.formats.folder import (
    MANIFEST,
    Manifest,
    check_free,
    digest_of,
    file_digest,
    new_folder,
    read_manifest,
    write_json,
    write_manifest,
)
from ehr_core.formats.run import Run
from ehr_core.formats.tables import TRUTH, label_splits, prediction_table, read_predictions, write_predictions
from ehr_core.protocols import Outcome, PredictionJob

from ehr_eval import features, label
from ehr_eval.__about__ import __version__
from ehr_eval.dataset import Dataset, output_folder, provided
from ehr_eval.plugin import LogisticConfig, PredictConfig

FORMAT, VERSION = "predictions", 1
FILE = "predictions.parquet"
ROW = ["subject_id", "prediction_time", "boolean_value"]


@dataclasses.dataclass(frozen=True)
class LabelFolder:
    """One task's labels: where, what they are called, and what decides them where that is known."""

    path: Path
    name: str
    outcome: Outcome | None
    digest: str
    content: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Matrices:
    """Features (N, F) and labels (N,) of each split, with the names of the columns."""

    names: list[str]
    feature: dict[str, np.ndarray]
    samples: dict[str, pl.DataFrame]

    def label(self, split: str) -> np.ndarray:
        """Labels of a split as bool (N,)."""
        return self.samples[split]["boolean_value"].to_numpy()


def predict(settings: PredictConfig) -> None:
    """Write OUTPUT/<predictor>/predictions.parquet and a manifest for every chosen baseline and predictor.

    One that cannot answer leaves ``not_applicable.json`` with the reason, and the others go on. Raises ConfigError
    when a predictor needs a run and none is given, FormatError when its output exists or its rows are not the labels'.
    """
    check(settings)
    output = output_folder(settings.output)
    folder = open_labels(Path(settings.labels), settings.task)
    with provided(settings.source) as dataset, token_store(settings) as store:
        predict_task(settings, folder, output, dataset, store)


def chosen(settings: PredictConfig) -> dict[str, Any]:
    """The predictors and their settings by the name of their output folder."""
    return settings.predictors or {"logistic": LogisticConfig()}


def kind_of(settings: Any) -> str:
    """``baseline`` or ``predictor``, by the component's name."""
    return "baseline" if settings.name in plugins.registry().components["baseline"] else "predictor"


def needs_run(settings: Any) -> bool:
    """Whether a component works from a run folder."""
    return kind_of(settings) == "predictor" and bool(plugins.build("predictor", settings).needs_run)


def check(settings: PredictConfig) -> None:
    """Refuse, before any work, settings that cannot lead to predictions."""
    for name, part in chosen(settings).items():
        plugins.registry().get(kind_of(part), part.name)
        if needs_run(part) and not settings.run:
            raise ConfigError(f"predictor {name!r} needs a trained run: give run=DIR, or leave it out of predictors")
    wrong = [split for split in settings.splits if split not in SPLITS]
    if wrong or not settings.splits:
        raise ConfigError(f"splits has {wrong[0] if wrong else 'nothing'!r}; allowed: {', '.join(SPLITS)}")
    if settings.run:
        Run(settings.run)


def open_labels(path: Path, task: Any = None) -> LabelFolder:
    """A labels folder, with a manifest or without. ``task`` is a task's name or settings, where the user gave one."""
    if not label_splits(path):
        raise FormatError(f"{path} has no labels: expected {', '.join(f'{split}.parquet' for split in SPLITS)}")
    content: dict[str, Any] = {}
    settings = _task_settings(task)
    if (path / MANIFEST).is_file():
        content = read_manifest(path, label.FORMAT, label.VERSION).content
        settings = settings or config.from_plain("task", content["task"])
    elif settings is None and path.resolve().name in plugins.registry().components["task"]:
        settings = _task_settings(path.resolve().name)
    outcome = plugins.build("task", settings).outcome() if settings is not None else None
    digest = digest_of({split: file_digest(path / f"{split}.parquet") for split in label_splits(path)})
    return LabelFolder(path, content.get("name") or path.resolve().name, outcome, digest, content)


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


@contextlib.contextmanager
def token_store(settings: PredictConfig) -> Iterator[Path | None]:
    """The dataset tokenized with the run's tokenizer: what was given, or made for the time being. None: not needed."""
    if settings.store or not settings.run or not any(needs_run(part) for part in chosen(settings).values()):
        yield Path(settings.store) if settings.store else None
        return
    with tempfile.TemporaryDirectory(prefix="ehr-eval-") as scratch:
        store = Path(scratch) / "store"
        composed = config.compose("tokenize", [f"source={settings.source.name}"])
        composed["source"] = settings.source
        composed["fitted"] = str(Run(settings.run).tokenizer)
        composed["output"] = str(store)
        plugins.registry().load("command", "tokenize")(config.to_settings(composed))
        yield store


def predict_task(
    settings: PredictConfig, folder: LabelFolder, output: Path, dataset: Dataset, store: Path | None
) -> list[str]:
    """Predictions of all chosen predictors for one task; returns why some could not answer."""
    parts = chosen(settings)
    for name in parts:
        check_free(output / name)
    reasons = []
    shared: Matrices | None = None
    for name, part in parts.items():
        try:
            with new_folder(output / name) as target:
                if kind_of(part) == "baseline":
                    shared = shared or make_matrices(settings, folder, dataset)
                    _run_baseline(part, shared, settings, folder, target)
                else:
                    _run_predictor(name, part, settings, folder, dataset, target, store)
                write_manifest(target, _manifest(name, part, settings, folder, dataset))
                print(f"{folder.name} {name}: predicted")
        except NotApplicable as reason:
            reasons.append(f"{folder.name}, {name}: {reason}")
            print(f"{folder.name} {name}: not applicable: {reason}")
            with new_folder(output / name) as target:
                write_json(target / label.NOT_APPLICABLE, {"reason": str(reason)})
    return reasons


def make_matrices(settings: PredictConfig, folder: LabelFolder, dataset: Dataset) -> Matrices:
    """Features of all splits that have labels, with columns chosen on train. Raises FormatError without train."""
    wanted = [s for s in SPLITS if s in ("train", "tuning") or s in settings.splits]
    samples = {split: features.samples_of(folder.path, split) for split in wanted}
    histories = {s: features.read_history(dataset.path, s, frame) for s, frame in samples.items() if len(frame)}
    if "train" not in histories:
        raise NotApplicable(f"{folder.path} has no sample in the split 'train' to fit on")
    columns = features.choose(histories["train"], settings.features)
    empty = np.empty((0, len(columns.names)), np.float32)
    matrices = {s: features.matrix(histories[s], columns) if s in histories else empty for s in samples}
    return Matrices(columns.names, matrices, samples)


def _run_baseline(part: Any, shared: Matrices, settings: PredictConfig, folder: LabelFolder, target: Path) -> None:
    if getattr(part, "seed", 0) is None:
        part = dataclasses.replace(part, seed=settings.seed)
    estimator = plugins.build("baseline", part)
    if len(np.unique(shared.label("train"))) < 2:
        raise NotApplicable("the labels of the train split have one class only; nothing can be learned from them")
    fitted = (shared.feature["train"], shared.label("train"), shared.feature["tuning"], shared.label("tuning"))
    estimator.fit(*fitted)
    tables = []
    for split in settings.splits:
        samples = shared.samples[split]
        scores = estimator.predict_proba(shared.feature[split]) if len(samples) else np.empty(0)
        tables.append(prediction_table(samples.to_arrow(), split, np.clip(scores, 0.0, 1.0)))
    write_predictions(target / FILE, pa.concat_tables(tables, promote_options="default"))
    write_json(target / "features.json", shared.names)


def _run_predictor(
    name: str,
    part: Any,
    settings: PredictConfig,
    folder: LabelFolder,
    dataset: Dataset,
    target: Path,
    store: Path | None,
) -> None:
    # What a killed predictor left is only of use to the same settings on the same inputs.
    manifest = _manifest(name, part, settings, folder, dataset)
    work = target.parent / f".{name}.work-{manifest.digest[:12]}"
    work.mkdir(parents=True, exist_ok=True)
    job = PredictionJob(
        meds=dataset.path,
        labels=folder.path,
        output=target,
        work=work,
        store=store,
        run=Path(settings.run) if settings.run else None,
        outcome=folder.outcome,
        seed=settings.seed,
        world_size=settings.world_size,
        splits=tuple(settings.splits),
    )
    try:
        plugins.build("predictor", part).predict(job)
    except NotApplicable:
        shutil.rmtree(work, ignore_errors=True)
        raise
    _adopt(target / FILE, folder, job.splits)
    shutil.rmtree(work, ignore_errors=True)


def _adopt(path: Path, folder: LabelFolder, splits: tuple[str, ...]) -> None:
    """Check that a predictor's rows are the labels' rows, and carry the labels' true probability over."""
    found = pl.from_arrow(read_predictions(path))
    assert isinstance(found, pl.DataFrame)
    frames = [features.samples_of(folder.path, s).with_columns(split=pl.lit(s)) for s in splits]
    wanted = pl.concat(frames, how="diagonal")
    keys = [*ROW, "split"]
    if not wanted.select(keys).sort(keys).equals(found.select(keys).sort(keys)):
        raise FormatError(
            f"{path.parent.name}: the predictor wrote {len(found)} rows that are not the {len(wanted)} labelled rows "
            f"of {', '.join(splits)}; it must predict each of them once"
        )
    if TRUTH in wanted.columns and TRUTH not in found.columns:
        found = found.join(wanted.select(*keys, TRUTH), on=keys, how="left", maintain_order="left")
        write_predictions(path, found.to_arrow())


def _manifest(name: str, part: Any, settings: PredictConfig, folder: LabelFolder, dataset: Dataset) -> Manifest:
    kind = kind_of(part)
    made_by = {f"ehr-eval=={__version__}", plugins.registry().version(kind, part.name)}
    inputs = {"labels": folder.digest, "source": dataset.digest}
    if settings.run and kind == "predictor":
        inputs["run"] = Run(settings.run).manifest.digest
    plain = {"predictor": config.to_plain(part), "seed": settings.seed, "splits": list(settings.splits)}
    if kind == "baseline":
        plain["features"] = config.to_plain(settings.features)
    frames = {s: features.samples_of(folder.path, s) for s in label_splits(folder.path)}
    content = {
        "task": folder.name,
        "task_settings": folder.content.get("task"),
        "predictor": name,
        "kind": kind,
        "splits": {split: label.count(frame) for split, frame in frames.items()},
    }
    return Manifest(FORMAT, VERSION, sorted(made_by), plain, inputs, content)
