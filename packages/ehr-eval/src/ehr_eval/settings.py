"""Settings of baselines, metrics and commands. Light: the standard library and the core's names."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core import MISSING
from ehr_core.errors import ConfigError

# -- baselines


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
class LinearConfig:
    """Ridge regression on imputed, clipped and standardised features."""

    name: str = "linear"
    penalties: list[float] = field(default_factory=lambda: [10.0**power for power in range(-1, 6)])
    """L2 penalties to try; the one with the lowest squared error on the tuning split is kept."""
    clip_quantile: float = 0.005
    """Values outside these quantiles of the train split are set to them."""


@dataclass
class CoxConfig:
    """Proportional hazards (Cox 1972) with an L2 penalty on imputed, clipped and standardised features."""

    name: str = "cox"
    penalties: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    """L2 penalties on the mean log partial likelihood to try; the one that the tuning split likes best is kept."""
    clip_quantile: float = 0.005
    """Values outside these quantiles of the train split are set to them."""
    max_iter: int = 500
    """Iterations of the solver, at most."""


# -- metrics


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


@dataclass
class LogLossConfig:
    """Mean negative log likelihood."""

    name: str = "log_loss"


@dataclass
class F1Config:
    """Harmonic mean of precision and recall at one threshold."""

    name: str = "f1"
    threshold: float | None = None
    """Probability from which a sample counts as positive. None: the one with the highest F1 on the tuning split, 0.5
    where there is none."""


@dataclass
class AccuracyConfig:
    """Share of samples whose likeliest class is the true one."""

    name: str = "accuracy"


@dataclass
class MacroF1Config:
    """F1 of each class, averaged over the classes that occur."""

    name: str = "macro_f1"


@dataclass
class MacroAurocConfig:
    """AUROC of each class against the others, or of each label, averaged."""

    name: str = "macro_auroc"


@dataclass
class MicroAurocConfig:
    """AUROC of all labels of all samples together."""

    name: str = "micro_auroc"


@dataclass
class MaeConfig:
    """Mean absolute error."""

    name: str = "mae"


@dataclass
class RmseConfig:
    """Root of the mean squared error."""

    name: str = "rmse"


@dataclass
class R2Config:
    """Share of the variance that is explained."""

    name: str = "r2"


@dataclass
class CIndexConfig:
    """Concordance (Harrell 1982) of risk and time, censored times counted where they can be compared."""

    name: str = "c_index"


# -- commands


@dataclass
class FeaturesConfig:
    """The count-and-value features that all baselines share."""

    min_count: int = 10
    """A code becomes a feature when it is visible in at least so many samples of the train split."""
    max_codes: int = 500
    """At most so many codes, the most frequent ones."""

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that cannot be."""
        for name, value in (("min_count", self.min_count), ("max_codes", self.max_codes)):
            if value < 1:
                raise ConfigError(f"features.{name} is {value}; it must be at least 1")


@dataclass
class LabelConfig:
    """MEDS events to labels."""

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
    output: Path | None = None
    """Folder to make: OUTPUT/<task>/<split>.parquet. None: outputs/DATE/TIME."""


@dataclass
class FitConfig:
    """Labels and a dataset (and a run) to fitted predictors."""

    defaults: list[Any] = field(
        default_factory=lambda: [{"source": "meds"}, {"predictors": []}, "_self_", {"task": None}]
    )
    source: Any = MISSING
    labels: Path = MISSING
    """Labels of one task, or a folder of several tasks' labels; Parquet or CSV."""
    kind: str | None = None
    """Kind of outcome, where the columns leave it open: ``integer_value`` is a class unless this is regression."""
    predictors: dict[str, Any] = field(default_factory=dict)
    """Baselines and predictors, and their settings. Empty: a linear model for the kind of outcome."""
    run: Path | None = None
    """A finished run folder, for the predictors that need one."""
    store: Path | None = None
    """The dataset tokenized with the run's tokenizer. None: it is tokenized into a temporary folder when needed."""
    max_unknown: float = 0.5
    """Records of which a larger share of events is unknown to the run are refused."""
    task: Any = None
    """The task that the labels answer, for predictors that read codes off a model. None: as the labels say."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    output: Path | None = None
    """Folder for labels/ (as they were read) and fitted/<task>/<predictor>/. None: outputs/DATE/TIME."""
    seed: int = 42
    world_size: int = 1
    """Processes for predictors that can use several."""


@dataclass
class PredictConfig(FitConfig):
    """Fit predictors, and apply them to the other splits of the same labels."""

    splits: list[str] = field(default_factory=lambda: ["tuning", "held_out"])
    """Splits to predict."""
    output: Path | None = None
    """Folder for labels/, fitted/ and predictions/<task>/<predictor>/predictions.parquet. None: outputs/DATE/TIME."""


@dataclass
class ApplyConfig:
    """A fitted predictor and any dataset to predictions. Nothing is trained."""

    defaults: list[Any] = field(default_factory=lambda: [{"source": "meds"}, "_self_"])
    source: Any = MISSING
    fitted: Path = MISSING
    """A fitted predictor (fitted/<task>/<predictor>), or the run folder of a fine-tuned model."""
    labels: Path | None = None
    """Whom to predict and when: labels, or subjects and times without an outcome. None: everyone, at the last event."""
    run: Path | None = None
    """The run that was fitted on, for predictors that do not keep it."""
    store: Path | None = None
    """The dataset tokenized with the tokenizer of what was fitted. None: it is tokenized for the time being."""
    splits: list[str] = field(default_factory=lambda: ["train", "tuning", "held_out"])
    """Splits to predict."""
    max_unknown: float = 0.5
    """Records are refused of which a larger share of events is unknown to a model, or is missing of what the features
    of a baseline saw when they were fitted."""
    output: Path | None = None
    """Folder for predictions.parquet. None: outputs/DATE/TIME."""
    seed: int = 42


@dataclass
class ScoringConfig:
    """How predictions are scored."""

    metric: dict[str, Any] = field(default_factory=dict)
    """Metrics. Empty: all that are installed and speak the task's kind of outcome."""
    num_bootstrap: int = 1000
    """Resamples of subjects."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    seed: int = 42
    split: str = "held_out"
    """Split to score: train, tuning or held_out."""


@dataclass
class EvaluateConfig(ScoringConfig):
    """Predictions to scores with intervals."""

    defaults: list[Any] = field(default_factory=lambda: [{"metric": []}, "_self_"])
    predictions: Path = MISSING
    """Folder with <task>/<predictor>/predictions.parquet, <predictor>/predictions.parquet or predictions.parquet."""
    output: Path | None = None
    """Folder for scores.json. None: outputs/DATE/TIME."""


@dataclass
class ReportConfig:
    """Scores, predictions and runs to one HTML file."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_"])
    scores: Path = MISSING
    """scores.json, or the folder that holds it."""
    predictions: Path = MISSING
    """The folder that the scores were computed from."""
    runs: list[Path] = field(default_factory=list)
    """Run folders whose training curves to draw."""
    fitted: Path | None = None
    """Folder of fitted predictors, <task>/<predictor>, which the report says how to apply."""
    title: str | None = None
    """Heading. None: the dataset's name and the tasks."""
    notes: list[str] = field(default_factory=list)
    """Sentences to print, for example why something could not be computed."""
    output: Path | None = None
    """Folder for report.html, or a path that ends in .html. None: outputs/DATE/TIME."""


@dataclass
class BenchmarkConfig(PredictConfig):
    """Fit, apply, evaluate and report in one."""

    defaults: list[Any] = field(
        default_factory=lambda: [{"source": "meds"}, {"predictors": []}, {"metric": []}, "_self_", {"task": None}]
    )
    metric: dict[str, Any] = field(default_factory=dict)
    """Metrics. Empty: all that are installed and speak the task's kind of outcome."""
    num_bootstrap: int = 1000
    """Resamples of subjects."""
    confidence: float = 0.95
    """Coverage of the intervals."""
    split: str = "held_out"
    """Split to score: train, tuning or held_out."""
    title: str | None = None
    """Heading of the report. None: the dataset's name and the tasks."""
    output: Path | None = None
    """Folder for labels/, fitted/, predictions/, scores.json and report.html. None: outputs/DATE/TIME."""
