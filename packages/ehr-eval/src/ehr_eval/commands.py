"""What ``ehr-eval`` does at a terminal: each command calls the function of its name and says what came out.

Results go to standard output. Why something could not be answered goes to standard error.
"""

import sys

from ehr_core.formats.labels import Labels
from ehr_core.outcomes import BINARY, MULTICLASS

from ehr_eval import applying, benchmarking, evaluation, labelling, predicting
from ehr_eval.datasets import output_folder
from ehr_eval.label_notes import say_notes
from ehr_eval.page import report as page
from ehr_eval.settings import (
    ApplyConfig,
    BenchmarkConfig,
    EvaluateConfig,
    FitConfig,
    LabelConfig,
    PredictConfig,
    ReportConfig,
)


def note(text: str) -> None:
    """One line on standard error."""
    print(text, file=sys.stderr)


def label(settings: LabelConfig) -> None:
    """Labels of tasks, and how many there are."""
    settings.output = output_folder(settings.output)
    found = labelling.label(settings)
    for name, reason in labelling.reasons_in(settings.output).items():
        note(f"{name}: not applicable: {reason}")
    for labels in found.values():
        say_notes(labels)
        for split in labels.splits:
            print(f"{labels.name} {split}: {counts(labels, split)}")


def counts(labels: Labels, split: str) -> str:
    """How many samples, subjects and positives a split has, in words."""
    facts = labels.counts(split)
    question = labels.question
    text = f"{facts['rows']:,} samples of {facts['subjects']:,} subjects"
    if question and question.kind == BINARY and facts["rows"]:
        text += f", {facts['positives'] / facts['rows']:.1%} positive"
    elif question and question.kind == MULTICLASS:
        text += f" in {len(question.names)} classes"
    elif "positives" in facts and facts["rows"]:
        text += f", {facts['positives']:,} events"
    return text


def fit(settings: FitConfig) -> None:
    """Fitted predictors, and where they are."""
    for fitted in predicting.fit(settings):
        if fitted.reason is None:
            print(f"{fitted.task} {fitted.predictor}: {fitted.path}")
        else:
            note(f"{fitted.task} {fitted.predictor}: not applicable: {fitted.reason}")


def predict(settings: PredictConfig) -> None:
    """Predictions, and where they are."""
    done = predicting.predict(settings)
    for (task, name), found in done.predictions.items():
        print(f"{task} {name}: {len(found):,} predictions in {done.path / 'predictions' / task / name}")
    for (task, name), reason in done.reasons.items():
        note(f"{task} {name}: not applicable: {reason}")


def apply(settings: ApplyConfig) -> None:
    """Predictions of something fitted, and where they are."""
    settings.output = output_folder(settings.output)
    found = applying.apply(settings)
    print(f"{len(found):,} predictions in {settings.output / applying.FILE}")


def evaluate(settings: EvaluateConfig) -> None:
    """Scores, one a line."""
    show(evaluation.evaluate(settings))


def show(scores: evaluation.Scores) -> None:
    """Scores as lines of text."""
    for row in scores.scores:
        print(f"{row['task']} {row['predictor']:<12} {row['metric']:<11} {evaluation.text(row)}")


def report(settings: ReportConfig) -> None:
    """The report, and where it is."""
    print(f"report: {page.report(settings)}")


def benchmark(settings: BenchmarkConfig) -> None:
    """Everything, and the scores."""
    done = benchmarking.benchmark(settings)
    for text in done.notes:
        note(text)
    show(done.scores)
    print(f"report: {done.report}")
