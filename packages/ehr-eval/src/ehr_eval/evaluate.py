"""``ehr-eval evaluate``: scores with intervals, differences between predictors, and the way to the ceiling.

``scores.json`` holds flat lists: ``scores`` (task, predictor, split, metric, value, low, high, rows, subjects,
positives), ``differences`` (paired: first minus second) and ``ceilings`` (the share of the way from 0.5 to the AUROC
of the true probabilities). The predictor called ``ceiling`` is that truth itself.
"""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ehr_core import plugins
from ehr_core.config import to_plain
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import MANIFEST, digest_of, file_digest, read_json, read_manifest, write_json
from ehr_core.formats.tables import TRUTH, read_predictions

from ehr_eval import bootstrap
from ehr_eval.__about__ import __version__
from ehr_eval.dataset import output_folder
from ehr_eval.label import NOT_APPLICABLE
from ehr_eval.plugin import EvaluateConfig
from ehr_eval.predict import FILE, FORMAT, ROW, VERSION

CEILING = "ceiling"
SCORES = "scores.json"
SCORES_VERSION = 1


@dataclass(frozen=True)
class Found:
    """One predictor's folder for one task."""

    task: str
    predictor: str
    path: Path

    @property
    def content(self) -> dict[str, Any]:
        """Facts from the manifest; empty where another program wrote the predictions."""
        return dict(self.manifest.get("content", {}))

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as JSON, or an empty dict. Raises FormatError when it is of another format."""
        if not (self.path / MANIFEST).is_file():
            return {}
        read_manifest(self.path, FORMAT, VERSION)
        return dict(read_json(self.path / MANIFEST))

    @property
    def reason(self) -> str | None:
        """Why there are no predictions, where the predictor said so."""
        path = self.path / NOT_APPLICABLE
        return str(read_json(path)["reason"]) if path.is_file() else None


@dataclass(frozen=True)
class Sample:
    """The rows of one task and split, and what each predictor says of them; all arrays in one order."""

    label_N: np.ndarray
    subject_N: np.ndarray
    probabilities: dict[str, np.ndarray]
    """By predictor; ``ceiling`` is the true probability where the labels have it."""


def find(folder: Path) -> list[Found]:
    """Predictor folders below <task>/<predictor>/ or <predictor>/, ordered by task and predictor."""

    def there(path: Path) -> bool:
        return (path / FILE).is_file() or (path / NOT_APPLICABLE).is_file()

    def visible(path: Path) -> list[Path]:
        return sorted(
            p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and ".partial-" not in p.name
        )

    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; expected predictions")
    flat = [path for path in visible(folder) if there(path)]
    if flat:
        named = [Found("", path.name, path).content.get("task") for path in flat]
        task = next((name for name in named if name), folder.resolve().name)
        return [Found(task, path.name, path) for path in flat]
    nested = [Found(task.name, p.name, p) for task in visible(folder) for p in visible(task) if there(p)]
    if not nested:
        raise FormatError(f"{folder} has no predictions: expected <task>/<predictor>/{FILE} or <predictor>/{FILE}")
    return nested


def read_sample(founds: list[Found], split: str) -> Sample:
    """The rows of one task. Raises DataError when predictors do not have the same rows with the same labels."""
    probabilities: dict[str, np.ndarray] = {}
    truth: dict[str, np.ndarray] = {}
    first: pl.DataFrame | None = None
    for found in founds:
        frame = pl.from_arrow(read_predictions(found.path / FILE))
        assert isinstance(frame, pl.DataFrame)
        frame = frame.filter(pl.col("split") == split).sort(ROW)
        if found.predictor == CEILING:
            raise ConfigError(
                f"{found.path}: the name {CEILING!r} is taken by the true probabilities; rename the folder"
            )
        if frame.select("subject_id", "prediction_time").is_duplicated().any():
            raise DataError(f"{found.path / FILE}: the split {split!r} has a sample more than once")
        if first is None:
            first = frame
        elif not first.select(ROW).equals(frame.select(ROW)):
            raise DataError(
                f"{found.task}, split {split!r}: {founds[0].predictor} has {len(first)} rows and {found.predictor} has "
                f"{len(frame)}, {len(frame.join(first, on=ROW, how='semi'))} of them the same; predictors can only be "
                "compared on the same rows and labels: predict both from one labels folder"
            )
        probabilities[found.predictor] = frame["predicted_boolean_probability"].to_numpy()
        if TRUTH in frame.columns and not frame[TRUTH].null_count() and len(frame):
            truth = {CEILING: frame[TRUTH].cast(pl.Float64).to_numpy()}
    assert first is not None
    probabilities |= truth
    return Sample(first["boolean_value"].to_numpy(), first["subject_id"].to_numpy(), probabilities)


def evaluate(settings: EvaluateConfig) -> None:
    """Write OUTPUT/scores.json. Raises DataError when predictors of one task have different rows."""
    if not 0 < settings.confidence < 1 or settings.num_bootstrap < 0:
        raise ConfigError("confidence must be between 0 and 1, and num_bootstrap must not be negative")
    metrics = build_metrics(settings)
    founds = [found for found in find(Path(settings.predictions)) if found.reason is None]
    scores: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    ceilings: list[dict[str, Any]] = []
    inputs: dict[str, str] = {}
    for task, group in itertools.groupby(founds, key=lambda found: found.task):
        members = list(group)
        sample = read_sample(members, settings.split)
        inputs |= {f"{task}/{m.predictor}": file_digest(m.path / FILE) for m in members}
        parts = evaluate_task(sample, metrics, settings)
        for rows, found in zip((scores, differences, ceilings), parts, strict=True):
            rows.extend({"task": task, "split": settings.split, **row} for row in found)
    registry = plugins.registry()
    chosen = _chosen(settings)
    made_by = {f"ehr-eval=={__version__}", *(registry.version("metric", part.name) for part in chosen.values())}
    plain = to_plain(settings)
    result = {
        "format": "scores",
        "version": SCORES_VERSION,
        "made_by": sorted(made_by),
        "settings": {key: plain[key] for key in ("num_bootstrap", "confidence", "seed", "split")},
        "inputs": {"predictions": digest_of(inputs)},
        "metrics": [{"name": n, "higher_is_better": bool(m.higher_is_better)} for n, m in metrics.items()],
        "scores": scores,
        "differences": differences,
        "ceilings": ceilings,
    }
    output = output_folder(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / SCORES, result)
    for row in scores:
        print(f"{row['task']} {row['predictor']:<12} {row['metric']:<8} {show(row)}")


def _chosen(settings: EvaluateConfig) -> dict[str, Any]:
    if settings.metric:
        return settings.metric
    found = plugins.registry().components["metric"]
    return {name: component.config() for name, component in found.items() if component.config is not None}


def build_metrics(settings: EvaluateConfig) -> dict[str, Any]:
    """The chosen metrics, ready to call, by name."""
    return {name: plugins.build("metric", part) for name, part in _chosen(settings).items()}


def evaluate_task(
    sample: Sample, metrics: dict[str, Any], settings: EvaluateConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores, paired differences and shares of the ceiling for one task, as rows of numbers (None: not defined)."""
    label_N, truth = sample.label_N, sample.probabilities
    values = {(p, m): float(metrics[m](label_N, truth[p])) for p in truth for m in metrics}
    drawn = bootstrap.resample(metrics, label_N, truth, sample.subject_N, settings.num_bootstrap, settings.seed)
    facts = {
        "rows": len(label_N),
        "subjects": len(np.unique(sample.subject_N)),
        "positives": int(label_N.sum()),
    }
    scores = [
        {"predictor": p, "metric": m, **_row(values[p, m], drawn[p, m], settings.confidence), **facts}
        for p, m in values
    ]
    names = [name for name in truth if name != CEILING]
    differences = [
        {
            "first": a,
            "second": b,
            "metric": m,
            **_row(values[a, m] - values[b, m], drawn[a, m] - drawn[b, m], settings.confidence),
        }
        for m in metrics
        for a, b in itertools.combinations(names, 2)
    ]
    ceilings = []
    if CEILING in truth and "auroc" in metrics:
        top, top_R = values[CEILING, "auroc"] - 0.5, drawn[CEILING, "auroc"] - 0.5
        for name in names:
            share = (values[name, "auroc"] - 0.5) / top if top else math.nan
            with np.errstate(divide="ignore", invalid="ignore"):
                share_R = (drawn[name, "auroc"] - 0.5) / top_R
            ceilings.append({"predictor": name, **_row(share, share_R, settings.confidence)})
    return scores, differences, ceilings


def _row(value: float, scores_R: np.ndarray, confidence: float) -> dict[str, float | None]:
    low, high = bootstrap.interval(scores_R, confidence)
    numbers = {"value": value, "low": low, "high": high}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def show(row: dict[str, Any]) -> str:
    """``0.873 [0.833, 0.909]``, or a dash for what is not defined."""
    if row["value"] is None:
        return "-"
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{interval}"
