"""Settings of the trainer and of this package's components. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Any


@dataclass
class TrainConfig:
    """How a model is trained; presets are in ``conf/train``."""

    name: str = "default"
    context_length: int | None = None
    """Positions in a row; None: as many as the model has."""
    batch_size: int = 16
    """Rows a process works on at once. A row is full of windows: it holds ``context_length`` positions."""
    accumulate: int = 1
    """Micro-batches of ``batch_size`` rows before an optimizer step."""
    max_steps: int | None = None
    """Optimizer steps at most; None: ``max_epochs`` alone decides."""
    max_epochs: int | None = 4
    """Passes over the train split at most, in steps of the first one (others may be packed a little differently)."""
    learning_rate: float = 2e-3
    min_learning_rate_ratio: float = 0.1
    """Share of the learning rate that the cosine ends at."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; None: ``warmup_share`` of all steps."""
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    """Decay of matrices; vectors (biases, norms) are never decayed."""
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    precision: str = "auto"
    """auto (bf16 on CUDA, fp32 on CPU), fp32 or bf16 (autocast; parameters and optimizer stay fp32)."""
    compile: bool = False
    """Compile the model with torch.compile."""
    eval_every: int | None = None
    """Steps between evaluations on the tuning split; None: at the end of each epoch."""
    patience: int | None = None
    """Evaluations without a better tuning loss before training stops; None: never stops early."""
    log_every: int = 10
    """Steps between entries of the history."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, besides the one after each evaluation."""
    checkpoint_every_seconds: float = 300.0
    """A checkpoint is also due after so many seconds; looked at when metrics are logged."""
    keep_epochs: int = 1
    """How many of the latest ``checkpoint_epoch_N.pt`` are kept."""


@dataclass
class SingleConfig:
    """One process, one device."""

    name: str = "single"
    device: str = "auto"
    """auto (a GPU when there is one), cpu, cuda or cuda:N."""


@dataclass
class DdpConfig:
    """The same model in every process, gradients averaged; alone it is the same as single."""

    name: str = "ddp"
    device: str = "auto"
    """auto (a GPU when there is one), cpu or cuda."""
    find_unused_parameters: bool = False
    """Allow parameters that get no gradient in a step. Costs a walk over the graph and a reduction a micro-batch."""


@dataclass
class Fsdp2Config:
    """Parameters, gradients and optimizer state divided among all processes; alone it is the same as single."""

    name: str = "fsdp2"
    device: str = "auto"
    """auto (a GPU when there is one), cpu or cuda."""
    reshard_after_forward: bool = True
    """Let go of a block's parameters between its forward and its backward pass: less memory, more traffic."""


@dataclass
class JsonlConfig:
    """One JSON object a line in ``logs/metrics.jsonl``."""

    name: str = "jsonl"


@dataclass
class TensorBoardConfig:
    """Event files in ``tensorboard/``."""

    name: str = "tensorboard"


@dataclass
class DirectConfig:
    """Probability of the outcome's codes as the next token, read off one forward pass."""

    name: str = "direct"
    batch_size: int = 16
    """Rows in a forward pass."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu or cuda."""


@dataclass
class FinetunedConfig:
    """The run's model trained further on the task's train labels, with early stopping on the tuning labels."""

    name: str = "finetuned"
    objective: Any = None
    """Objective to train with: its name, or a mapping such as ``{name: survival, num_bins: 4}``. None: the one for the
    labels' kind: classification, multiclass, multilabel, regression or survival."""
    adapter: Any = None
    """Train an adapter on the frozen model: its name, a mapping such as ``{name: lora, rank: 4}``, or a folder with an
    adapter. None: train all of the model."""
    learning_rate: float = 6e-4
    max_epochs: int = 2
    max_steps: int | None = None
    """Optimizer steps at most; None: ``max_epochs`` alone decides."""
    patience: int = 2
    """Evaluations without a better tuning loss before training stops."""
    batch_size: int = 16
    """Rows a process works on at once."""
    weight_decay: float = 0.1
    min_labels: int = 20
    """Fewer train labels than this, or fewer than two of a class or of those with an event, are not enough."""
    device: str = "auto"
    """auto (a GPU when there is one), cpu or cuda; where it predicts, and trains unless a strategy is given."""
