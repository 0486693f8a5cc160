"""The page itself. It asks nothing of the network, and holds sums, rates and curves only: no id of a subject."""

import itertools
import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from ehr_core.constants import SPLITS
from ehr_core.formats.folder import write_text
from ehr_core.formats.meds import TREATED
from ehr_core.formats.run import Run
from ehr_core.outcomes import BINARY, Sample

from ehr_eval.datasets import output_folder
from ehr_eval.evaluation import CEILING, MAIN, Scores, positives, read_samples, read_scores
from ehr_eval.found import Found, find
from ehr_eval.page import curves
from ehr_eval.page.figures import NEUTRAL, Series, figure
from ehr_eval.page.html import bullets, code, details, number, row, score, table
from ehr_eval.page.kinds import figures_of
from ehr_eval.settings import ReportConfig

FILE = "report.html"
LIBRARIES = ("ehr-core", "ehr-eval", "numpy", "polars", "pyarrow", "scikit-learn")
NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "brier": "Brier",
    "log_loss": "log loss",
    "f1": "F1",
    "macro_f1": "macro F1",
    "macro_auroc": "macro AUROC",
    "micro_auroc": "micro AUROC",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "c_index": "C-index",
}
"""How metrics are spelled; others by their own names."""


def report(settings: ReportConfig) -> Path:
    """Write report.html and return where it is; see `write_report`."""
    given = output_folder(settings.output)
    path = given if given.suffix == ".html" else given / FILE
    fitted = os.path.relpath(settings.fitted, path.parent) if settings.fitted else ""
    return write_report(
        Path(settings.predictions),
        Path(settings.scores),
        path,
        runs=[Path(run) for run in settings.runs],
        fitted=fitted,
        title=settings.title,
        notes=settings.notes,
    )


def write_report(
    predictions: Path,
    scores: Path,
    output: Path,
    *,
    runs: Sequence[Path] = (),
    fitted: str = "",
    title: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write one HTML file (OUTPUT, or report.html in it) about predictions and their scores; returns where it is.

    ``fitted`` is the folder of fitted predictors (<task>/<predictor>), as seen from the page: the page says how to
    apply them. Without a ``title`` it is called by the dataset's name and the tasks.
    """
    found, founds = read_scores(scores), find(predictions)
    path = output if output.suffix == ".html" else output / FILE
    title = title or _title(founds)
    body = [_head(title, found), _notes([*notes, *_noted(founds), *_treated(founds), *_reasons(founds)])]
    # One colour a predictor on the whole page, also where another could not answer.
    colours = {name: place for place, name in enumerate(sorted({found.predictor for found in founds}))}
    colours[CEILING] = NEUTRAL
    for task, group in itertools.groupby(founds, key=lambda found: found.task):
        members = [member for member in group if member.reason is None]
        if members:
            body.append(_task(task, members, found, colours))
    body += [_run(run) for run in runs]
    if fitted:
        body.append(_new_patients([member for member in founds if member.reason is None], fitted))
    body.append(_provenance(founds, found, runs))
    style = files("ehr_eval.page").joinpath("style.css").read_text()
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def _title(founds: list[Found]) -> str:
    names = [found.content["dataset"] for found in founds if found.content.get("dataset")]
    tasks = ", ".join(dict.fromkeys(found.task for found in founds))
    return f"{names[0]}: {tasks}" if names else f"Evaluation: {tasks}"


def _head(title: str, scores: Scores) -> str:
    used = scores.content["settings"]
    return (
        f"<h1>{escape(title)}</h1><p class=soft>Split <code>{escape(used['split'])}</code>. Brackets hold "
        f"{used['confidence']:.0%} intervals from {used['num_bootstrap']:,} resamples of subjects; the best value of a "
        "column is shaded, which does not make it better than its neighbours: see the differences.</p>"
    )


def _reasons(founds: list[Found]) -> list[str]:
    return [f"{f.task}, {f.predictor}: not applicable: {f.reason}" for f in founds if f.reason is not None]


def _treated(founds: list[Found]) -> list[str]:
    """What was odd in the records that were predicted: the most that any predictor met."""
    odd: Counter[str] = Counter()
    for found in founds:
        odd |= Counter(found.content.get("treated", {}))
    return [f"records that were predicted: {count:,} {TREATED.get(name, name)}" for name, count in sorted(odd.items())]


def _noted(founds: list[Found]) -> list[str]:
    """What was noted of the labels and records that are predicted, each once."""
    return list(dict.fromkeys(note for found in founds for note in found.content.get("notes", ())))


def _notes(notes: list[str]) -> str:
    return f"<h3>Notes</h3>{bullets(notes)}" if notes else ""


# -- one task


def _task(task: str, members: list[Found], scores: Scores, colours: dict[str, int]) -> str:
    samples = read_samples(members, scores.content["settings"]["split"])
    parts = [f"<h2>{escape(task)}</h2>", _summary(task, samples, scores), _pairs(task, samples, scores)]
    return "".join([*parts, figures_of(samples, colours), _facts(members)])


def _summary(task: str, samples: Mapping[str, Sample], scores: Scores) -> str:
    rows = {(r["predictor"], r["metric"]): r for r in scores.scores if r["task"] == task}
    shares = {r["predictor"]: r for r in scores.ceilings if r["task"] == task}
    used = {metric for _, metric in rows}
    facts = [fact for fact in scores.content["metrics"] if fact["name"] in used]
    names = [name for name in samples if name != CEILING]
    first = next(iter(samples.values()))
    calibrated = first.question.kind == BINARY
    best = {fact["name"]: _best(names, fact, rows) for fact in facts}
    lines, classes = [], []
    for name, sample in samples.items():
        line = ["ceiling (the truth itself)" if name == CEILING else escape(name)]
        line += [score(rows.get((name, metric)), best=best[metric] == name) for metric in best]
        if calibrated:
            known = len(sample) > 0
            error = f"{curves.reliability(sample.label, sample.prediction).error:.3f}" if known else "&ndash;"
            line.append(number(error))
        if shares:
            line.append(score(shares.get(name), percent=True))
        lines.append(line)
        classes.append("ceiling" if name == CEILING else "")
    heads = ["Predictor", *(f"{_name(f['name'])} {'↑' if f['higher_is_better'] else '↓'}" for f in facts)]
    heads += ["ECE ↓"] if calibrated else []
    main, floor = MAIN[first.question.kind]
    heads += [f"Share of the way from {floor:g} to the ceiling's {_name(main)}"] if shares else []
    return table(_size(first), heads, lines, classes)


def _name(metric: str) -> str:
    return NAMES.get(metric, metric)


def _best(names: list[str], fact: dict[str, Any], rows: dict[tuple[str, str], dict[str, Any]]) -> str | None:
    """The predictor with the best value in a metric, where there are several."""
    metric, sign = fact["name"], 1 if fact["higher_is_better"] else -1
    known = [name for name in names if rows.get((name, metric), {}).get("value") is not None]
    return max(known, key=lambda name: sign * rows[name, metric]["value"], default=None) if len(names) > 1 else None


def _size(sample: Sample) -> str:
    """How many samples, subjects and outcomes, in words."""
    count, positive = len(sample), positives(sample)
    text = f"{count:,} samples of {len(np.unique(sample.subject_N)):,} subjects"
    if sample.question.kind == BINARY:
        return text + (f", {(positive or 0) / count:.1%} positive" if count else "")
    if positive is not None:
        return text + f", {positive:,} events"
    return text + (f", {len(sample.question.names)} classes" if sample.question.names else "")


def _pairs(task: str, samples: Mapping[str, Sample], scores: Scores) -> str:
    main, _ = MAIN[next(iter(samples.values())).question.kind]
    found = [r for r in scores.differences if r["task"] == task and r["metric"] == main]
    if not found:
        return ""
    rows = [[f"{escape(r['first'])} &minus; {escape(r['second'])}", score(r, signed=True), _reading(r)] for r in found]
    heads = ["Pair", "Difference", "Reading"]
    return f"<h3>Differences in {_name(main)}</h3>" + table("Both predictors on the same resamples", heads, rows)


def _reading(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return "not defined"
    if row["low"] > 0 or row["high"] < 0:
        return f"{escape(row['first'] if row['low'] > 0 else row['second'])} is ahead"
    return "the interval holds zero"


def _facts(members: list[Found]) -> str:
    content = next((m.content for m in members if m.content.get("splits")), None)
    if content is None:
        return ""
    counted = any("positives" in facts for facts in content["splits"].values())
    rows = []
    for split, facts in sorted(content["splits"].items(), key=lambda item: SPLITS.index(item[0])):
        cells = [f"{facts['rows']:,}", f"{facts['subjects']:,}"]
        if counted:
            share = f"{facts['positives'] / facts['rows']:.1%}" if facts["rows"] else "&ndash;"
            cells += [f"{facts['positives']:,}", share]
        rows.append([escape(split), *map(number, cells)])
    heads = ["Split", "Samples", "Subjects", *(["Positive", "Per sample"] if counted else [])]
    question = content.get("task_settings")
    settings = f"<p class=soft>Task settings: {code(json.dumps(question))}</p>" if question else ""
    return f"<h3>Labels</h3>{table('Labels', heads, rows)}{settings}"


# -- around


def _new_patients(founds: list[Found], fitted: str) -> str:
    rows = []
    for found in founds:
        place = f"{fitted}/{found.task}/{found.predictor}"
        command = f"ehr-eval apply fitted={place} source=meds source.path=NEW output=OUT"
        rows.append([f"{escape(found.task)} / {escape(found.predictor)}", code(command)])
    text = (
        "<p>Each predictor is kept and answers for any other dataset without training. NEW is a MEDS dataset; without "
        "labels everyone in it is predicted at the last event, and labels=DIR names subjects and times. Paths are as "
        "seen from this file.</p>"
    )
    return f"<h2>New patients</h2>{text}{table('Commands', ['Predictor', 'Command'], rows)}"


def _run(path: Path) -> str:
    run = Run(path)
    history = run.history
    metrics = sorted({key for step in history for key in step} - {"step", "epoch", "time"})
    losses = [metric for metric in metrics if metric.endswith("loss")]
    groups = ([losses] if losses else []) + [[metric] for metric in metrics if metric not in losses]
    figures = []
    for group in groups[:12]:
        lines = [_curve(history, metric, colour) for colour, metric in enumerate(group)]
        if any(len(line.x) > 1 for line in lines):
            title = "loss" if group == losses else group[0]
            figures.append(figure(title, lines, "step", title))
    body = row(figures) if figures else "<p>No metric was logged more than once.</p>"
    return f"<h2>Training: {escape(run_name(run))}</h2>{body}"


def _curve(history: list[dict[str, float]], metric: str, colour: int) -> Series:
    known = [step for step in history if isinstance(step.get(metric), int | float)]
    x, y = [float(step["step"]) for step in known], [float(step[metric]) for step in known]
    return Series(metric, x, y, colour, points=len(known) < 30)


def run_name(run: Run) -> str:
    """Model, objective and the end of the path: a fine-tuned run is called ``run`` in its predictor's folder."""
    parts = [run.settings.get(kind) for kind in ("model", "objective")]
    names = [str(part["name"]) for part in parts if isinstance(part, dict) and "name" in part]
    path = run.path.resolve()
    place = "/".join(path.parts[-3:]) if path.name == "run" else path.name
    return f"{', '.join(names)} ({place})" if names else place


def _provenance(founds: list[Found], scores: Scores, runs: Sequence[Path]) -> str:
    rows = []
    for found in founds:
        manifest = found.manifest
        if manifest:
            name = f"{escape(found.task)} / {escape(found.predictor)}"
            rows.append([name, *_origin(manifest["made_by"], manifest["inputs"], manifest["settings"])])
    for path in runs:
        run = Run(path)
        origin = _origin(run.manifest.made_by, run.manifest.inputs, run.settings)
        rows.append([f"run {escape(run_name(run))}", *origin])
    content = scores.content
    rows.append(["scores", *_origin(content["made_by"], content["inputs"], content["settings"])])
    libraries = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    place = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {libraries}"
    heads = ["Part", "Made by", "Inputs (sha256)", "Settings"]
    inside = f"{table('Who made what from what', heads, rows)}<p class=soft>{escape(place)}</p>"
    return f"<h2>Provenance</h2>{details('Versions, inputs and settings', inside)}"


def _origin(made_by: list[str], inputs: Mapping[str, str], settings: Mapping[str, Any]) -> list[str]:
    digests = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(inputs.items()))
    return [code(text) for text in (", ".join(made_by), digests, json.dumps(settings, sort_keys=True))]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
