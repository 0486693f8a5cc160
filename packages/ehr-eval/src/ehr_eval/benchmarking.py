"""Labels and a dataset to fitted predictors, predictions, scores and a report in one go."""

from dataclasses import dataclass, fields
from pathlib import Path

from ehr_core.errors import ConfigError

from ehr_eval.datasets import output_folder
from ehr_eval.evaluation import Scores, check_scoring, evaluate_predictions
from ehr_eval.page.report import write_report
from ehr_eval.parts import choose_metrics
from ehr_eval.predicting import predict, reasons_without_labels
from ehr_eval.settings import BenchmarkConfig, ScoringConfig


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark left."""

    path: Path
    scores: Scores
    report: Path
    notes: list[str]
    """Why something could not be answered."""


def benchmark(settings: BenchmarkConfig) -> Benchmark:
    """Write OUTPUT/{labels,fitted,predictions}/<task>/..., OUTPUT/scores.json and OUTPUT/report.html."""
    scoring = ScoringConfig(**{field.name: getattr(settings, field.name) for field in fields(ScoringConfig)})
    check_scoring(scoring)
    if settings.split not in settings.splits:
        raise ConfigError(f"split={settings.split} is to be scored, and splits={','.join(settings.splits)} lacks it")
    settings.output = output = output_folder(settings.output)
    done = predict(settings, lambda outcomes: choose_metrics(scoring.metric, outcomes), scored=settings.split)
    notes = reasons_without_labels(Path(settings.labels))
    notes += [f"{task}, {name}: not applicable: {reason}" for (task, name), reason in done.reasons.items()]
    scores = evaluate_predictions(output / "predictions", scoring, output)
    path = write_report(
        output / "predictions",
        scores.path,
        output,
        runs=[Path(settings.run)] if settings.run else [],
        fitted="fitted",
        title=settings.title,
        notes=reasons_without_labels(Path(settings.labels)),
    )
    return Benchmark(output, scores, path, notes)
