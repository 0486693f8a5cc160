"""``ehr-eval report``: one HTML file with the numbers, the curves, and where they come from.

It asks nothing of the network, and holds sums, rates and curves only: no row and no identifier of a subject.
"""

import itertools
import json
import platform
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from ehr_core.constants import SPLITS
from ehr_core.errors import FormatError
from ehr_core.formats.folder import read_json
from ehr_core.formats.run import Run

from ehr_eval import curves
from ehr_eval.dataset import output_folder
from ehr_eval.evaluate import CEILING, SCORES, SCORES_VERSION, Found, Sample, find, read_sample
from ehr_eval.figures import NEUTRAL, Series, figure
from ehr_eval.plugin import ReportConfig

LIBRARIES = ("ehr-core", "ehr-eval", "numpy", "polars", "pyarrow", "scikit-learn")
NAMES = {"auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier"}


def report(settings: ReportConfig) -> Path:
    """Write report.html and return where it is."""
    scores, where = read_scores(Path(settings.scores)), Path(settings.predictions)
    founds = find(where)
    given = output_folder(settings.output)
    path = given if given.suffix == ".html" else given / "report.html"
    body = [_head(settings, scores), _notes([*settings.notes, *_reasons(founds)])]
    # One colour a predictor on the whole page, also where another could not answer.
    colours = {name: place for place, name in enumerate(sorted({found.predictor for found in founds}))}
    colours[CEILING] = NEUTRAL
    for task, group in itertools.groupby(founds, key=lambda found: found.task):
        members = [found for found in group if found.reason is None]
        if members:
            body.append(_task(task, members, scores, colours))
    body += [_run(Path(run)) for run in settings.runs]
    body.append(_provenance(founds, scores, settings.runs))
    style = files("ehr_eval").joinpath("style.css").read_text()
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(settings.title)}</title><style>{style}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    print(f"report: {path}")
    return path


def read_scores(path: Path) -> dict[str, Any]:
    """scores.json, given itself or by its folder. Raises FormatError when it is something else."""
    path = path / SCORES if path.is_dir() else path
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != "scores" or found.get("version") != SCORES_VERSION:
        raise FormatError(f"{path} holds no scores of version {SCORES_VERSION}; make it with ehr-eval evaluate")
    return found


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = ()) -> str:
    """A table whose cells are HTML already; the first cell of a row is its header."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    lines = []
    for index, (first, *cells) in enumerate(rows):
        kind = f' class="{classes[index]}"' if classes and classes[index] else ""
        tds = "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr{kind}><th scope="row">{first}</th>{tds}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def number(row: dict[str, Any] | None, best: bool = False, signed: bool = False, percent: bool = False) -> str:
    """A cell with a value and its interval."""
    if row is None or row["value"] is None:
        return '<td class="number">&ndash;</td>'

    def text(value: float) -> str:
        return f"{value:.0%}" if percent else f"{value:+.3f}" if signed else f"{value:.3f}"

    inside = "" if row["low"] is None else f'<span class="interval">[{text(row["low"])}, {text(row["high"])}]</span>'
    return f'<td class="number{" best" if best else ""}">{text(row["value"])}{inside}</td>'


def _head(settings: ReportConfig, scores: dict[str, Any]) -> str:
    used = scores["settings"]
    return (
        f"<h1>{escape(settings.title)}</h1><p class=soft>Split <code>{escape(used['split'])}</code>. Brackets hold "
        f"{used['confidence']:.0%} intervals from {used['num_bootstrap']:,} resamples of subjects; the best value of a "
        "column is shaded, which does not make it better than its neighbours: see the differences.</p>"
    )


def _reasons(founds: list[Found]) -> list[str]:
    return [f"{f.task}, {f.predictor}: not applicable: {f.reason}" for f in founds if f.reason is not None]


def _notes(notes: list[str]) -> str:
    if not notes:
        return ""
    unique = dict.fromkeys(notes)
    return f"<h3>Notes</h3><ul class=notes>{''.join(f'<li>{escape(note)}</li>' for note in unique)}</ul>"


def _task(task: str, members: list[Found], scores: dict[str, Any], colours: dict[str, int]) -> str:
    sample = read_sample(members, scores["settings"]["split"])
    parts = [f"<h2>{escape(task)}</h2>", _summary(task, sample, scores), _pairs(task, scores)]
    if 0 < sample.label_N.sum() < len(sample.label_N):
        parts.append(_figures(sample, colours))
    else:
        parts.append("<p>The labels of this split have one class only, so there are no curves.</p>")
    parts.append(_facts(members))
    return "".join(parts)


def _summary(task: str, sample: Sample, scores: dict[str, Any]) -> str:
    rows = {(r["predictor"], r["metric"]): r for r in scores["scores"] if r["task"] == task}
    shares = {r["predictor"]: r for r in scores["ceilings"] if r["task"] == task}
    metrics = [facts["name"] for facts in scores["metrics"]]
    names = [name for name in sample.probabilities if name != CEILING]
    best = {}
    for metric, facts in zip(metrics, scores["metrics"], strict=True):
        known = [n for n in names if rows.get((n, metric), {}).get("value") is not None]
        sign = 1 if facts["higher_is_better"] else -1
        best[metric] = (
            max(known, key=lambda n: sign * rows[n, metric]["value"], default=None) if len(names) > 1 else None
        )
    lines, classes = [], []
    for name in [*names, *([CEILING] if CEILING in sample.probabilities else [])]:
        error = curves.reliability(sample.label_N, sample.probabilities[name]).error if len(sample.label_N) else None
        line = ["ceiling (true probability)" if name == CEILING else escape(name)]
        line += [number(rows.get((name, m)), best=best[m] == name) for m in metrics]
        line.append(f'<td class="number">{"&ndash;" if error is None else f"{error:.3f}"}</td>')
        if shares:
            line.append(number(shares.get(name), percent=True))
        lines.append(line)
        classes.append("ceiling" if name == CEILING else "")
    arrows = {facts["name"]: "↑" if facts["higher_is_better"] else "↓" for facts in scores["metrics"]}
    heads = ["Predictor", *(f"{NAMES.get(m, m)} {arrows[m]}" for m in metrics), "ECE ↓"]
    heads += ["Share of the way from 0.5 to the ceiling's AUROC"] if shares else []
    positives, count = int(sample.label_N.sum()), len(sample.label_N)
    subjects = len(np.unique(sample.subject_N))
    share = f", {positives / count:.1%} positive" if count else ""
    return table(f"{count:,} samples of {subjects:,} subjects{share}", heads, lines, classes)


def _pairs(task: str, scores: dict[str, Any]) -> str:
    found = [r for r in scores["differences"] if r["task"] == task and r["metric"] == "auroc"]
    if not found:
        return ""
    rows = [[f"{escape(r['first'])} &minus; {escape(r['second'])}", number(r, signed=True), _reading(r)] for r in found]
    return "<h3>Differences in AUROC</h3>" + table(
        "Both predictors on the same resamples", ["Pair", "Difference", "Reading"], rows
    )


def _reading(row: dict[str, Any]) -> str:
    if row["low"] is None:
        return "not defined"
    if row["low"] > 0 or row["high"] < 0:
        return f"{escape(row['first'] if row['low'] > 0 else row['second'])} is ahead"
    return "the interval holds zero"


def _figures(sample: Sample, colours: dict[str, int]) -> str:
    label_N = sample.label_N
    lines: dict[str, list[Series]] = {"roc": [], "pr": [], "calibration": []}
    top = 0.0
    for name, probability_N in sample.probabilities.items():
        colour = colours[name]
        lines["roc"].append(Series(name, *curves.roc(label_N, probability_N), colour))
        lines["pr"].append(Series(name, *curves.precision_recall(label_N, probability_N), colour))
        bins = curves.reliability(label_N, probability_N)
        hints = [f"{count:,} samples" for count in bins.count_B]
        lines["calibration"].append(Series(name, bins.predicted_B, bins.observed_B, colour, True, hints))
        top = max(top, bins.predicted_B.max(), bins.observed_B.max())
    top = min(1.0, np.ceil(top * 10 + 0.5) / 10)
    unit = (0.0, 1.0)
    return (
        '<div class="row">'
        + "".join(
            [
                figure("ROC", lines["roc"], "false positive rate", "true positive rate", unit, unit, diagonal=True),
                figure("Precision and recall", lines["pr"], "recall", "precision", unit, unit),
                figure(
                    "Calibration: ten bins of equal count",
                    lines["calibration"],
                    "predicted probability",
                    "observed share",
                    (0.0, top),
                    (0.0, top),
                    diagonal=True,
                ),
            ]
        )
        + "</div>"
        + _bins(sample)
    )


def _bins(sample: Sample) -> str:
    rows = []
    for name, probability_N in sample.probabilities.items():
        bins = curves.reliability(sample.label_N, probability_N)
        for place, (predicted, observed, count) in enumerate(
            zip(bins.predicted_B, bins.observed_B, bins.count_B, strict=True), start=1
        ):
            cells = [str(place), f"{count:,}", f"{predicted:.3f}", f"{observed:.3f}"]
            rows.append([escape(name), *(f'<td class="number">{cell}</td>' for cell in cells)])
    heads = ["Predictor", "Bin", "Samples", "Mean predicted", "Observed"]
    return f"<details><summary>Calibration as a table</summary>{table('Calibration', heads, rows)}</details>"


def _facts(members: list[Found]) -> str:
    content = next((m.content for m in members if m.content.get("splits")), None)
    if content is None:
        return ""
    rows = []
    for split, facts in sorted(content["splits"].items(), key=lambda item: SPLITS.index(item[0])):
        share = "&ndash;" if facts["prevalence"] is None else f"{facts['prevalence']:.1%}"
        cells = [f"{facts['rows']:,}", f"{facts['subjects']:,}", f"{facts['positives']:,}", share]
        rows.append([escape(split), *(f'<td class="number">{cell}</td>' for cell in cells)])
    text = table("Labels", ["Split", "Samples", "Subjects", "Positive", "Share"], rows)
    question = content.get("task_settings")
    asked = f"<p class=soft>Task settings: <code>{escape(json.dumps(question))}</code></p>" if question else ""
    return f"<h3>Labels</h3>{text}{asked}"


def _run(path: Path) -> str:
    run = Run(path)
    history = run.history
    metrics = sorted({key for row in history for key in row} - {"step", "epoch", "time"})
    losses = [metric for metric in metrics if metric.endswith("loss")]
    groups = ([losses] if losses else []) + [[metric] for metric in metrics if metric not in losses]
    figures = []
    for group in groups[:12]:
        lines = [_curve(history, metric, colour) for colour, metric in enumerate(group)]
        if any(len(line.x) > 1 for line in lines):
            title = "loss" if group == losses else group[0]
            figures.append(figure(title, lines, "step", title))
    body = f'<div class="row">{"".join(figures)}</div>' if figures else "<p>No metric was logged more than once.</p>"
    return f"<h2>Training: {escape(run_name(run))}</h2>{body}"


def _curve(history: list[dict[str, float]], metric: str, colour: int) -> Series:
    known = [row for row in history if isinstance(row.get(metric), int | float)]
    x, y = [float(row["step"]) for row in known], [float(row[metric]) for row in known]
    return Series(metric, x, y, colour, points=len(known) < 30)


def run_name(run: Run) -> str:
    """Model, objective and the end of the path: a fine-tuned run is called ``run`` in its predictor's folder."""
    parts = [run.settings.get(kind) for kind in ("model", "objective")]
    names = [str(part["name"]) for part in parts if isinstance(part, dict) and "name" in part]
    path = run.path.resolve()
    place = "/".join(path.parts[-3:]) if path.name == "run" else path.name
    return f"{', '.join(names)} ({place})" if names else place


def _provenance(founds: list[Found], scores: dict[str, Any], runs: list[str]) -> str:
    rows = []
    for found in founds:
        manifest = found.manifest
        if manifest:
            inputs = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(manifest["inputs"].items()))
            made_by, settings = ", ".join(manifest["made_by"]), json.dumps(manifest["settings"], sort_keys=True)
            name = f"{escape(found.task)} / {escape(found.predictor)}"
            rows.append([name, *(f"<code>{escape(text)}</code>" for text in (made_by, inputs, settings))])
    for path in runs:
        run = Run(path)
        inputs = ", ".join(f"{name} {digest[:12]}" for name, digest in sorted(run.manifest.inputs.items()))
        cells = (", ".join(run.manifest.made_by), inputs, json.dumps(run.settings, sort_keys=True))
        rows.append([f"run {escape(run_name(run))}", *(f"<code>{escape(cell)}</code>" for cell in cells)])
    made_by, digest = ", ".join(scores["made_by"]), f"predictions {scores['inputs']['predictions'][:12]}"
    cells = (made_by, digest, json.dumps(scores["settings"], sort_keys=True))
    rows.append(["scores", *(f"<code>{escape(text)}</code>" for text in cells)])
    libraries = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    place = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {libraries}"
    heads = ["Part", "Made by", "Inputs (sha256)", "Settings"]
    return f"<h2>Provenance</h2>{table('Who made what from what', heads, rows)}<p class=soft>{escape(place)}</p>"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
