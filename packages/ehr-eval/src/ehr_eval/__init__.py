"""Clinical tasks, labels, count-and-value baselines, metrics with intervals, and the report. No torch anywhere.

What a notebook or another room needs is here, imported on first use: functions from settings to what they made
(`label`, `fit`, `predict`, `apply`, `evaluate`, `report`, `benchmark`), and those with explicit arguments that they
are made of.
"""

import importlib
from typing import Any

_PLACES = {
    "label": "labelling",
    "label_tasks": "labelling",
    "task_codes": "labelling",
    "reasons_in": "labelling",
    "read_user_labels": "user_labels",
    "write_user_labels": "user_labels",
    "fit": "predicting",
    "predict": "predicting",
    "fit_predictor": "fitting",
    "open_fitted": "fitted",
    "Fitted": "fitted",
    "apply": "applying",
    "apply_fitted": "applying",
    "last_events": "applying",
    "choose_metrics": "parts",
    "choose_predictors": "parts",
    "kind_of": "parts",
    "needs_run": "parts",
    "evaluate": "evaluation",
    "evaluate_predictions": "evaluation",
    "read_scores": "evaluation",
    "Scores": "evaluation",
    "report": "page.report",
    "write_report": "page.report",
    "benchmark": "benchmarking",
    "LabelConfig": "settings",
    "FitConfig": "settings",
    "PredictConfig": "settings",
    "ApplyConfig": "settings",
    "ScoringConfig": "settings",
    "EvaluateConfig": "settings",
    "ReportConfig": "settings",
    "BenchmarkConfig": "settings",
    "FeaturesConfig": "settings",
}
"""Name to the module that has it; no module is called as one of the functions."""
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"ehr_eval.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'ehr_eval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
