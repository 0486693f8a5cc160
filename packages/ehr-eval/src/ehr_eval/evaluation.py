"""Scores with intervals, differences between predictors, and the way to the ceiling.

``scores.json`` holds flat lists: ``scores`` (task, kind, predictor, split, metric, value, low, high, rows, subjects,
positives), ``differences`` (paired: first minus second) and ``ceilings`` (the share of the way from a useless predictor
to the true probabilities in the kind's `MAIN` metric). The predictor called ``ceiling`` is that truth itself.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ehr_core import plugins
from ehr_core.config import to_plain
from ehr_core.constants import SPLITS
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import digest_of, file_digest, read_json, write_sealed
from ehr_core.formats.predictions import FILE
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL, Question, Sample

from ehr_eval import bootstrap
from ehr_eval.__about__ import __version__
from ehr_eval.datasets import output_folder
from ehr_eval.found import Found, find
from ehr_eval.parts import choose_metrics
from ehr_eval.settings import EvaluateConfig, ScoringConfig

CEILING = "ceiling"
SCORES, VERSION = "scores.json", 2
MAIN = {
    BINARY: ("auroc", 0.5),
    MULTICLASS: ("macro_auroc", 0.5),
    MULTILABEL: ("macro_auroc", 0.5),
    REGRESSION: ("r2", 0.0),
    SURVIVAL: ("c_index", 0.5),
}
"""Kind to the metric in which predictors are compared first, and its value for a useless predictor."""


@dataclass(frozen=True)
class Scores:
    """scores.json opened for reading."""

    path: Path
    content: dict[str, Any]

    @property
    def scores(self) -> list[dict[str, Any]]:
        """One row a task, predictor and metric."""
        return list(self.content["scores"])

    @property
    def differences(self) -> list[dict[str, Any]]:
        """One row a task, metric and pair of predictors."""
        return list(self.content["differences"])

    @property
    def ceilings(self) -> list[dict[str, Any]]:
        """One row a task and predictor, where the truth is known."""
        return list(self.content["ceilings"])

    def value(self, task: str, predictor: str, metric: str) -> float | None:
        """One score; None where it is not defined."""
        rows = [r for r in self.scores if (r["task"], r["predictor"], r["metric"]) == (task, predictor, metric)]
        if not rows:
            raise ConfigError(f"{self.path} has no score of {predictor!r} in {metric!r} for {task!r}")
        value: float | None = rows[0]["value"]
        return value


def evaluate(settings: EvaluateConfig) -> Scores:
    """Write OUTPUT/scores.json and open it; see `evaluate_predictions`."""
    return evaluate_predictions(Path(settings.predictions), settings, output_folder(settings.output))


def evaluate_predictions(predictions: Path, settings: ScoringConfig, output: Path) -> Scores:
    """Score every predictor of every task below a folder, and write OUTPUT/scores.json.

    Raises ConfigError for a split or metric that cannot be, before any work; DataError when predictors of one task
    have different rows.
    """
    check_scoring(settings)
    founds = [found for found in find(predictions) if found.reason is None]
    groups = {task: list(members) for task, members in itertools.groupby(founds, key=lambda found: found.task)}
    outcomes = {task: members[0].question.kind for task, members in groups.items()}
    chosen = choose_metrics(settings.metric, outcomes) if groups else {}
    if groups and not any(len(found.predictions.of(settings.split)) for found in founds):
        raise DataError(f"{predictions} has no prediction of the split {settings.split!r}; choose one with split=NAME")
    scores: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    ceilings: list[dict[str, Any]] = []
    inputs: dict[str, str] = {}
    for task, members in groups.items():
        samples = read_samples(members, settings.split)
        inputs |= {f"{task}/{m.predictor}": file_digest(m.path / FILE) for m in members}
        parts = evaluate_task(samples, chosen[task], settings)
        facts = {"task": task, "kind": outcomes[task], "split": settings.split}
        for rows, found in zip((scores, differences, ceilings), parts, strict=True):
            rows.extend({**facts, **row} for row in found)
    metrics = {name: metric for parts in chosen.values() for name, metric in parts.items()}
    names = {settings.metric[name].name if name in settings.metric else name for name in metrics}
    made_by = {f"ehr-eval=={__version__}", *(plugins.registry().version("metric", name) for name in names)}
    plain = to_plain(settings)
    result = {
        "format": "scores",
        "version": VERSION,
        "made_by": sorted(made_by),
        "settings": {key: plain[key] for key in ("metric", "num_bootstrap", "confidence", "seed", "split")},
        "inputs": {"predictions": digest_of(inputs)},
        "metrics": [{"name": n, "higher_is_better": bool(m.higher_is_better)} for n, m in metrics.items()],
        "scores": scores,
        "differences": differences,
        "ceilings": ceilings,
    }
    output.mkdir(parents=True, exist_ok=True)
    write_sealed(output / SCORES, result)
    return Scores(output / SCORES, result)


def check_scoring(settings: ScoringConfig) -> None:
    """Raise ConfigError for settings that no predictions could be scored with."""
    if not 0 <= settings.seed < 2**32:
        raise ConfigError(f"seed is {settings.seed}; it must be a number from 0 to {2**32 - 1}")
    if settings.split not in SPLITS:
        raise ConfigError(f"split is {settings.split!r}; allowed: {', '.join(SPLITS)}")
    if not 0 < settings.confidence < 1 or settings.num_bootstrap < 0:
        raise ConfigError("confidence must be between 0 and 1, and num_bootstrap must not be negative")


def read_scores(path: Path) -> Scores:
    """scores.json, given itself or by its folder. Raises FormatError when it is something else."""
    path = path / SCORES if path.is_dir() else path
    head = read_json(path, _Head)
    if head.format != "scores" or head.version != VERSION:
        raise FormatError(f"{path} holds no scores of version {VERSION}; make it with ehr-eval evaluate")
    read_json(path, _Content)
    return Scores(path, read_json(path, dict[str, Any]))


class _Head(msgspec.Struct):
    format: str = ""
    version: int = 0


class _Score(msgspec.Struct):
    task: str
    kind: str
    split: str
    metric: str
    value: float | None
    low: float | None
    high: float | None


class _OfOne(_Score):
    predictor: str


class _Counted(_OfOne):
    rows: int
    subjects: int
    positives: int | None


class _OfTwo(_Score):
    first: str
    second: str


class _Settings(msgspec.Struct):
    split: str
    confidence: float
    num_bootstrap: int
    seed: int


class _Metric(msgspec.Struct):
    name: str
    higher_is_better: bool


class _Content(_Head, forbid_unknown_fields=True, kw_only=True):
    """``scores.json``, whose readers take the rows as they are."""

    made_by: list[str]
    settings: _Settings
    inputs: dict[str, str]
    metrics: list[_Metric]
    scores: list[_Counted]
    differences: list[_OfTwo]
    ceilings: list[_OfOne]


# -- one task


def read_samples(founds: list[Found], split: str) -> dict[str, Sample]:
    """What each predictor of one task says of the same rows; ``ceiling`` is the truth, where the labels have it.

    Raises DataError when predictors do not have the same rows with the same labels, or the split has none.
    """
    samples: dict[str, Sample] = {}
    truth: np.ndarray | None = None
    for found in founds:
        if found.predictor == CEILING:
            raise ConfigError(f"{found.path}: the name {CEILING!r} is taken by the truth itself; rename the folder")
        whole, question = found.predictions, found.question
        part, tuning = whole.of(split), whole.of("tuning")
        if not whole.labelled:
            raise DataError(f"{found.path / FILE} has no outcomes, so there is nothing to compare its predictions with")
        sample = _sample(part.table, part.label, part.prediction, question)
        if len(tuning) and split != "tuning":
            other = _sample(tuning.table, tuning.label, tuning.prediction, question)
            sample = dataclasses.replace(sample, tuning=other)
        if samples:
            _check_same_rows(next(iter(samples.values())), sample, founds[0], found, split)
        samples[found.predictor] = sample
        truth = part.truth if truth is None else truth
    first = next(iter(samples.values()))
    if truth is not None and len(first):
        samples[CEILING] = Sample(first.question, first.label, truth, first.subject_N, first.time_N)
    return samples


def _sample(table: Any, label: np.ndarray, prediction: np.ndarray, question: Question) -> Sample:
    time_N = table["prediction_time"].to_numpy().astype("datetime64[us]").astype(np.int64)
    return Sample(question, label, prediction, table["subject_id"].to_numpy(), time_N)


def _check_same_rows(first: Sample, sample: Sample, one: Found, found: Found, split: str) -> None:
    rows, others = (set(zip(s.subject_N.tolist(), s.time_N.tolist(), strict=True)) for s in (first, sample))
    if rows != others:
        raise DataError(
            f"{found.task}, split {split!r}: {one.predictor} has {len(rows)} rows and {found.predictor} has "
            f"{len(others)}, {len(rows & others)} of them the same; predictors can only be compared on the same rows: "
            "predict both from one labels folder"
        )
    if first.label.shape != sample.label.shape or not np.array_equal(first.label, sample.label, equal_nan=True):
        raise DataError(
            f"{found.task}, split {split!r}: {one.predictor} and {found.predictor} have other labels for the same "
            "rows; predictors can only be compared on the same labels: predict both from one labels folder"
        )


def evaluate_task(
    samples: Mapping[str, Sample], metrics: Mapping[str, Any], settings: ScoringConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Scores, paired differences and shares of the ceiling for one task, as rows of numbers (None: not defined)."""
    first = next(iter(samples.values()))
    values = {(p, m): float(metrics[m](samples[p])) for p in samples for m in metrics}
    drawn = bootstrap.resample(metrics, samples, settings.num_bootstrap, settings.seed)
    facts = {"rows": len(first), "subjects": len(np.unique(first.subject_N)), "positives": positives(first)}
    scores = [
        {"predictor": p, "metric": m, **_row(values[p, m], drawn[p, m], settings.confidence), **facts}
        for p, m in values
    ]
    names = [name for name in samples if name != CEILING]
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
    main, floor = MAIN[first.question.kind]
    if CEILING in samples and main in metrics:
        top, top_R = values[CEILING, main] - floor, drawn[CEILING, main] - floor
        for name in names:
            share = (values[name, main] - floor) / top if top else math.nan
            with np.errstate(divide="ignore", invalid="ignore"):
                share_R = (drawn[name, main] - floor) / top_R
            ceilings.append({"predictor": name, "metric": main, **_row(share, share_R, settings.confidence)})
    return scores, differences, ceilings


def positives(sample: Sample) -> int | None:
    """Outcomes that are true, or events; None for kinds where that means nothing."""
    if sample.question.kind in (BINARY, MULTILABEL):
        return int(np.nansum(sample.label))
    return int(sample.label[:, 1].sum()) if sample.question.kind == SURVIVAL else None


def _row(value: float, scores_R: np.ndarray, confidence: float) -> dict[str, float | None]:
    low, high = bootstrap.interval(scores_R, confidence)
    numbers = {"value": value, "low": low, "high": high}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def text(row: Mapping[str, Any]) -> str:
    """``0.873 [0.833, 0.909]``, or a dash for what is not defined."""
    if row["value"] is None:
        return "-"
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['value']:.3f}{interval}"
