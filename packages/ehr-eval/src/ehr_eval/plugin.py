"""ehr-eval's components and their settings. Nothing heavy is imported here."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ehr_core import MISSING, Component, hookimpl

# -- tasks


@dataclass
class InHospitalMortalityConfig:
    """Death before the discharge of a stay, asked some hours after admission."""

    name: str = "in_hospital_mortality"
    admission: list[str] = field(default_factory=lambda: ["HOSPITAL_ADMISSION"])
    """Prefixes of codes that begin a stay."""
    discharge: list[str] = field(default_factory=lambda: ["HOSPITAL_DISCHARGE"])
    """Prefixes of codes that end a stay."""
    death: list[str] = field(default_factory=lambda: ["MEDS_DEATH"])
    """Prefixes of codes that mean death."""
    prediction_offset_hours: float = 24.0
    """Hours from admission to the prediction time."""


@dataclass
class Readmission30dConfig:
    """A new admission within some days of a live discharge, asked at the discharge."""

    name: str = "readmission_30d"
    admission: list[str] = field(default_factory=lambda: ["HOSPITAL_ADMISSION"])
    """Prefixes of codes that begin a stay."""
    discharge: list[str] = field(default_factory=lambda: ["HOSPITAL_DISCHARGE"])
    """Prefixes of codes that end a stay."""
    death: list[str] = field(default_factory=lambda: ["MEDS_DEATH"])
    """Prefixes of codes that mean death."""
    horizon_days: float = 30.0
    """Days after the discharge in which an admission counts."""


# -- baselines and metrics


@dataclass
class LogisticConfig:
    """L2-penalised logistic regression on imputed, clipped and standardised features."""

    name: str = "logistic"
    strengths: list[float] = field(default_factory=lambda: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
    """Inverse penalties to try; the one with the lowest log loss on the tuning split is kept."""
    clip_quantile: float = 0.005
    """Values outside these quantiles of the train split are set to them: records hold implausible numbers."""
    max_iter: int = 1000
    """Iterations of the solver, at most."""


@dataclass
class AurocConfig:
    """Area under the ROC curve."""

    name: str = "auroc"


@dataclass
class AuprcConfig:
    """Average precision."""

    name: str = "auprc"


@dataclass
class BrierConfig:
    """Mean squared error of the probability."""

    name: str = "brier"


# -- commands


@dataclass
class FeaturesConfig:
    """The count-and-value features that all baselines share."""

    min_count: int = 10
    """A code becomes a feature when it is visible in at least so many samples of the train split."""
    max_codes: int = 500
    """At most so many codes, the most frequent ones."""


@dataclass
class LabelConfig:
    """MEDS events to MEDS labels."""

    defaults: list[Any] = field(
        default_factory=lambda: [
            {"source": "meds"},
            {"executor": "serial"},
            {"task": ["in_hospital_mortality", "readmission_30d"]},
            "_self_",
        ]
    )
    source: Any = MISSING
    executor: Any = MISSING
    task: dict[str, Any] = field(default_factory=dict)
    """Which questions to ask, and their settings."""
    output: str | None = None
    """Folder to make: OUTPUT/<task>/<split>.parquet. None: outputs/DATE/TIME."""


@dataclass
class PredictConfig:
    """Labels and a dataset (and a run) to predictions."""

    defaults: list[Any] = field(
        default_factory=lambda: [{"source": "meds"}, {"predictors": ["logistic"]}, "_self_", {"task": None}]
    )
    source: Any = MISSING
    labels: str = MISSING
    """One task's labels: a folder with one Parquet file a split."""
    predictors: dict[str, Any] = field(default_factory=dict)
    """Baselines and predictors, and their settings. Empty: logistic."""
    run: str | None = None
    """A finished run folder, for the predictors that need one."""
    store: str | None = None
    """The dataset tokenized with the run's tokenizer. None: it is tokenized into a temporary folder when needed."""
    task: Any = None
    """The task that the labels answer, for predictors that read codes off a model. None: as the labels say."""
    splits: list[str] = field(default_factory=lambda: ["tuning", "held_out"])
    """Splits to predict."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    output: str | None = None
    """Folder: OUTPUT/<predictor>/predictions.parquet. None: outputs/DATE/TIME."""
    seed: int = 42
    world_size: int = 1
    """Processes for predictors that can use several."""


@dataclass
class EvaluateConfig:
    """Predictions to scores with intervals."""

    defaults: list[Any] = field(default_factory=lambda: [{"metric": []}, "_self_"])
    predictions: str = MISSING
    """Folder with <task>/<predictor>/predictions.parquet or <predictor>/predictions.parquet."""
    metric: dict[str, Any] = field(default_factory=dict)
    """Metrics. Empty: all that are installed."""
    num_bootstrap: int = 1000
    """Resamples of subjects."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    seed: int = 42
    split: str = "held_out"
    output: str | None = None
    """Folder for scores.json. None: outputs/DATE/TIME."""


@dataclass
class ReportConfig:
    """Scores, predictions and runs to one HTML file."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_"])
    scores: str = MISSING
    """scores.json, or the folder that holds it."""
    predictions: str = MISSING
    """The folder that the scores were computed from."""
    runs: list[str] = field(default_factory=list)
    """Run folders whose training curves to draw."""
    title: str = "Evaluation"
    notes: list[str] = field(default_factory=list)
    """Sentences to print, for example why something could not be computed."""
    output: str | None = None
    """Folder for report.html, or a path that ends in .html. None: outputs/DATE/TIME."""


@dataclass
class BenchmarkConfig(PredictConfig):
    """Predict, evaluate and report in one."""

    defaults: list[Any] = field(
        default_factory=lambda: [
            {"source": "meds"},
            {"predictors": ["logistic"]},
            {"metric": []},
            "_self_",
            {"task": None},
        ]
    )
    labels: str = MISSING
    """One task's labels, or a folder of several tasks' labels."""
    metric: dict[str, Any] = field(default_factory=dict)
    """Metrics. Empty: all that are installed."""
    num_bootstrap: int = 1000
    """Resamples of subjects."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    title: str = "Benchmark"
    output: str | None = None
    """Folder for predictions/, scores.json and report.html. None: outputs/DATE/TIME."""


@hookimpl
def ehr_tasks() -> Iterator[Component]:
    yield Component(
        name="in_hospital_mortality",
        target="ehr_eval.tasks:InHospitalMortality",
        config=InHospitalMortalityConfig,
        summary="Death before the discharge of a stay, asked 24 h after admission",
    )
    yield Component(
        name="readmission_30d",
        target="ehr_eval.tasks:Readmission30d",
        config=Readmission30dConfig,
        summary="A new admission within 30 days of a live discharge",
    )


@hookimpl
def ehr_baselines() -> Iterator[Component]:
    yield Component(
        name="logistic",
        target="ehr_eval.baselines:Logistic",
        config=LogisticConfig,
        summary="Logistic regression on counts and values",
    )


@hookimpl
def ehr_metrics() -> Iterator[Component]:
    yield Component(
        name="auroc", target="ehr_eval.metrics:Auroc", config=AurocConfig, summary="Area under the ROC curve"
    )
    yield Component(name="auprc", target="ehr_eval.metrics:Auprc", config=AuprcConfig, summary="Average precision")
    yield Component(
        name="brier", target="ehr_eval.metrics:Brier", config=BrierConfig, summary="Squared error of the probability"
    )


@hookimpl
def ehr_commands() -> Iterator[Component]:
    yield Component(
        name="label", target="ehr_eval.label:label", config=LabelConfig, summary="MEDS events to MEDS labels"
    )
    yield Component(
        name="predict",
        target="ehr_eval.predict:predict",
        config=PredictConfig,
        summary="Labels, a dataset and a run to predictions",
    )
    yield Component(
        name="evaluate",
        target="ehr_eval.evaluate:evaluate",
        config=EvaluateConfig,
        summary="Predictions to scores with intervals",
    )
    yield Component(
        name="report",
        target="ehr_eval.report:report",
        config=ReportConfig,
        summary="Scores and curves as one HTML file",
    )
    yield Component(
        name="benchmark",
        target="ehr_eval.benchmark:benchmark",
        config=BenchmarkConfig,
        summary="Predict, evaluate and report in one",
    )
