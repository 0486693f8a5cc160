"""``ehr-eval benchmark``: labels and a dataset to predictions, scores and a report in one go."""

from pathlib import Path

from ehr_core.errors import FormatError
from ehr_core.formats.folder import read_json
from ehr_core.formats.tables import label_splits

from ehr_eval.dataset import output_folder, provided
from ehr_eval.evaluate import evaluate
from ehr_eval.label import NOT_APPLICABLE
from ehr_eval.plugin import BenchmarkConfig, EvaluateConfig, ReportConfig
from ehr_eval.predict import check, open_labels, predict_task, token_store
from ehr_eval.report import report


def benchmark(settings: BenchmarkConfig) -> None:
    """Write OUTPUT/predictions/<task>/<predictor>/, OUTPUT/scores.json and OUTPUT/report.html."""
    check(settings)
    output = output_folder(settings.output)
    paths, notes = _tasks(Path(settings.labels))
    folders = [open_labels(path, settings.task) for path in paths]
    with provided(settings.source) as dataset, token_store(settings) as store:
        for folder in folders:
            predict_task(settings, folder, output / "predictions" / folder.name, dataset, store)
    evaluate(
        EvaluateConfig(
            predictions=str(output / "predictions"),
            metric=settings.metric,
            num_bootstrap=settings.num_bootstrap,
            confidence=settings.confidence,
            seed=settings.seed,
            split="held_out" if "held_out" in settings.splits else settings.splits[-1],
            output=str(output),
        )
    )
    report(
        ReportConfig(
            scores=str(output),
            predictions=str(output / "predictions"),
            runs=[settings.run] if settings.run else [],
            title=settings.title,
            notes=notes,
            output=str(output),
        )
    )


def _tasks(labels: Path) -> tuple[list[Path], list[str]]:
    """Folders of labels, each of one task, and why some tasks have none."""
    if label_splits(labels):
        return [labels], []
    if not labels.is_dir():
        raise FormatError(f"{labels} is not a folder; expected labels, or one folder of labels a task")
    below = sorted(path for path in labels.iterdir() if path.is_dir())
    found = [path for path in below if label_splits(path)]
    if not found:
        raise FormatError(f"{labels} has no labels: expected <split>.parquet or <task>/<split>.parquet")
    reasons = [path / NOT_APPLICABLE for path in below if (path / NOT_APPLICABLE).is_file()]
    return found, [f"{path.parent.name}: {read_json(path)['reason']}" for path in reasons]
