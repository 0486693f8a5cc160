"""Settings of the runner. Light: imports no torch."""

from dataclasses import dataclass, field
from typing import Any

from ehr_core import MISSING
from ehr_core.plugins import KINDS, registry

from ehr_train.settings import TrainConfig


@dataclass
class RecipeConfig:
    """A named set of choices; a recipe is a YAML file in a plugin's ``conf/recipe`` folder."""

    name: str = "demo"
    title: str = "EHR foundation model"
    """Heading of the report."""


@dataclass
class EvaluationConfig:
    """How predictions are scored."""

    num_bootstrap: int = 1000
    """Resamples of subjects for the confidence intervals."""
    confidence: float = 0.95
    split: str = "held_out"


CHOICES: dict[str, str | list[str]] = {
    "source": "synthetic",
    "tokenizer": "ethos",
    "model": "gpt",
    "objective": "next_token",
    "strategy": "ddp",
    "tracker": ["jsonl", "tensorboard"],
    "task": ["in_hospital_mortality", "readmission_30d"],
    "predictors": ["direct", "finetuned", "xgboost"],
    "executor": "serial",
}
"""What runs when nothing is said, as far as it is installed."""


def _defaults() -> list[Any]:
    installed = {(place.group, name) for kind, place in KINDS.items() for name in registry().components[kind]}
    found: list[Any] = []
    for group, choice in CHOICES.items():
        if isinstance(choice, list):
            found.append({group: [name for name in choice if (group, name) in installed]})
        elif (group, choice) in installed:
            found.append({group: choice})
    return [*found, {"train": "default"}, "_self_", {"recipe": "demo"}]


@dataclass
class RunnerConfig:
    """``ehr-train``: any MEDS dataset to a trained and evaluated model. With no arguments, a synthetic cohort."""

    defaults: list[Any] = field(default_factory=_defaults)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    source: Any = MISSING
    labels: str | None = None
    """MEDS labels: a folder with one Parquet file a split, or a folder of such folders. None: ask the tasks."""
    tokenizer: Any = MISSING
    store: str | None = None
    """A token store that was made earlier: the model is trained on it, and that is all. There are no records then, so
    leave out source, tokenizer and labels; ``ehr-eval predict`` predicts with the run."""
    start_from: str | None = None
    """Run folder whose model is trained further, in place of ``model``, with its tokenizer; settings of a tokenizer
    that differ from that one's are refused."""
    adapter: Any = None
    """Train an adapter on the model of ``start_from``, which stays frozen: ``lora``, ``lora_all``, ``dora``,
    ``rslora``, ``{name: lora, rank: 4}``, or a folder with an adapter."""
    model: Any = MISSING
    objective: Any = MISSING
    strategy: Any = MISSING
    tracker: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    predictors: dict[str, Any] = field(default_factory=dict)
    executor: Any = MISSING
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    world_size: Any = "auto"
    """Number of training processes; auto: the GPUs there are, else 1."""
    seed: int = 42
    output: str | None = None
    """Folder for the report and predictions. None: outputs/DATE/TIME."""
    stages: str | None = None
    """Folder for finished stages. None: OUTPUT/stages, or outputs/stages when no output is given."""
    dry_run: bool = False
    """Say what would run, and stop."""
