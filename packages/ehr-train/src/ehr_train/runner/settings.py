"""Settings of the runner. Light: imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core import MISSING
from ehr_core.plugins import default_choices
from ehr_eval.settings import FeaturesConfig, ScoringConfig
from ehr_models.generation.settings import GenerationConfig

from ehr_train.settings import TrainConfig

CHOICES: dict[str, str | list[str] | None] = {
    "source": "synthetic",
    "tokenizer": "ethos",
    "embedding": None,
    "model": "gpt",
    "objective": "next_token",
    "strategy": "ddp",
    "adapter": None,
    "tracker": ["jsonl", "tensorboard"],
    "task": ["in_hospital_mortality", "readmission_30d"],
    "predictors": ["direct", "finetuned", "xgboost"],
    "metric": [],
    "executor": "serial",
}
"""What runs when nothing is said, as far as it is installed."""


@dataclass
class EvaluationConfig:
    """How predictions are scored; metrics are chosen with ``metric``."""

    num_bootstrap: int = ScoringConfig.num_bootstrap
    """Resamples of subjects for the confidence intervals."""
    confidence: float = ScoringConfig.confidence
    """Coverage of the intervals."""
    split: str = ScoringConfig.split
    """Split to score: train, tuning or held_out."""


@dataclass
class RunnerConfig:
    """``ehr-train``: any MEDS dataset to a trained and evaluated model. With no arguments, a synthetic cohort."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", *default_choices(CHOICES), {"train": "default"}])
    recipe: str | None = None
    """A named set of choices, or a YAML file of your own; what the command line says comes after it and wins."""
    source: Any = MISSING
    labels: Path | None = None
    """Labels of one task, or a folder of such folders (`docs/formats.md`). None: ask the tasks."""
    kind: str | None = None
    """Kind of outcome, where the columns of the labels leave it open: ``integer_value`` is a class unless this is
    ``regression``."""
    tokenizer: Any = MISSING
    store: Path | None = None
    """A token store that was made earlier: the model is trained on it, and that is all. There are no records then, so
    leave out source and tokenizer; ``ehr-eval predict`` predicts with the run."""
    start_from: Path | None = None
    """Run folder whose model is trained further, in place of ``model``, with its tokenizer; settings of a tokenizer
    that differ from that one's are refused. With ``store`` the vocabulary may have grown since."""
    adapter: Any = None
    """Train an adapter on the model of ``start_from``, which stays frozen."""
    adapter_from: Path | None = None
    """Folder of an adapter that was trained before, to go on with."""
    embedding: Any = None
    """Learn or read a vector for each token first, and start the model's token table from them."""
    model: Any = MISSING
    objective: Any = MISSING
    label_task: str | None = None
    """The task that an objective with labels is pretrained on, where there are several."""
    strategy: Any = MISSING
    tracker: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    predictors: dict[str, Any] = field(default_factory=dict)
    """Baselines and predictors to fit and compare. Empty: the model is trained, and that is all."""
    metric: dict[str, Any] = field(default_factory=dict)
    """Metrics. Empty: all that are installed and speak a task's kind of outcome."""
    executor: Any = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    title: str | None = None
    """Heading of the report. None: the dataset's name and the tasks."""
    world_size: Any = "auto"
    """Number of training processes; auto: the GPUs there are, else 1."""
    seed: int = 42
    output: Path | None = None
    """Folder for the report and predictions. None: outputs/DATE/TIME."""
    stages: Path | None = None
    """Folder for finished stages. None: OUTPUT/stages, or outputs/stages when no output is given."""
    dry_run: bool = False
    """Check everything, say what would run and how long it would take, and stop."""


@dataclass
class SamplesConfig:
    """Which patients of which records, and when."""

    defaults: list[Any] = field(default_factory=lambda: ["_self_", *default_choices({"source": "meds"})])
    source: Any = MISSING
    run: Path = MISSING
    """A finished run folder."""
    labels: Path | None = None
    """Whom and when: labels, or subjects and times without an outcome, as a folder or a file. None: everyone, at the
    last event."""
    splits: list[str] = field(default_factory=lambda: ["train", "tuning", "held_out"])
    """Splits to take samples from."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu or cuda."""
    max_unknown: float = 0.5
    """Records of which a larger share of events is unknown to the run are refused."""
    output: Path = MISSING
    """Folder to make."""


@dataclass
class GenerateConfig(SamplesConfig):
    """Draw futures of patients from a trained run. A folder that was begun is gone on with."""

    generation: GenerationConfig = field(default_factory=GenerationConfig)


@dataclass
class RepresentConfig(SamplesConfig):
    """Hidden states of patients from a trained run."""

    layer: int = -1
    """-1: what the model's head sees; 0, 1, ...: the output of a block."""
    pooling: str = "last"
    """``last`` (the last visible token) or ``mean`` (over all that is visible)."""
