"""Model and objective together: made by name, started from a run, or loaded from one to predict.

A model may get an adapter: small trained parts, all else frozen. How is the model's own affair: one that can be
adapted has ``adapters`` with ``apply``, ``save``, ``merge`` and ``count_parameters``, as `ehr_models.adapters` has
them. Weights then are those of the adapter; the frozen ones are in the run that it started from.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ehr_core.batch import Batch, Loss
from ehr_core.config import from_plain
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.run import Run
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.plugins import build
from torch import nn

from ehr_train import checkpoint


class Learner(nn.Module):
    """What is placed on devices and optimized: called with a batch it returns the objective's loss."""

    model: Any
    objective: Any
    adapters: Any = None
    """How the model's adapter is saved and merged, where it has one."""

    def __init__(self, model: nn.Module, objective: nn.Module):
        super().__init__()
        self.model, self.objective = model, objective

    def adapt(self, asked: str | Mapping[str, Any], name: str) -> None:
        """Give the model an adapter, and freeze the rest. Raises ConfigError when the model, ``name``, has none."""
        adapters = getattr(self.model, "adapters", None)
        if adapters is None:
            raise ConfigError(f"model {name!r} offers no adapters; leave out adapter, and all of it is trained")
        self.model, self.adapters = adapters.apply(self.model, asked), adapters

    def weights(self) -> dict[str, dict[str, torch.Tensor]]:
        """``model`` (or ``adapter``: all but the frozen parameters) and ``objective``, for a checkpoint."""
        objective = self.objective.state_dict()
        if self.adapters is None:
            return {"model": self.model.state_dict(), "objective": objective}
        return {"adapter": unfrozen(self.model), "objective": objective}

    def restore(self, weights: Mapping[str, Any], path: Path) -> None:
        """Put back what `weights` gave. Raises FormatError that names the file."""
        if self.adapters is None:
            put(self.model, weights["model"], path)
        else:
            put(self.model, weights["adapter"], path, frozen=True)
        put(self.objective, weights["objective"], path)

    def parameters_by_kind(self) -> dict[str, int]:
        """How many: ``model``, ``objective``, ``total``, ``trainable``, ``adapter``, ``frozen``; shared ones once."""
        sizes = {name: sum(p.numel() for p in getattr(self, name).parameters()) for name in ("model", "objective")}
        trainable = sum(p.numel() for p in self.parameters() if p.requires_grad)
        total = sum(p.numel() for p in self.parameters())
        adapter = 0 if self.adapters is None else self.adapters.count_parameters(self.model)["adapter"]
        return {**sizes, "total": total, "trainable": trainable, "adapter": adapter, "frozen": total - trainable}

    def forward(self, batch: Batch) -> Loss:
        """Sum and count of the loss over a batch."""
        loss: Loss = self.objective.loss(self.model, batch)
        return loss


def make_learner(model: Any, objective: Any, vocabulary: Vocabulary, columns: Sequence[str]) -> Learner:
    """Build both parts from their settings."""
    made = build("model", model, vocabulary_size=len(vocabulary), columns=list(columns))
    asked = build("objective", objective, width=made.config.hidden_size)
    if hasattr(asked, "set_vocabulary"):
        asked.set_vocabulary(vocabulary)
    return Learner(made, asked)


def open_run(path: Path | str) -> tuple[Run, dict[str, Any]]:
    """A finished run and the content of its best checkpoint."""
    run = Run(path)
    return run, checkpoint.read(run.path / "checkpoints" / "best_model.pt")


def start_from(learner: Learner, content: dict[str, Any], path: Path) -> None:
    """Give the model the weights of a run's checkpoint; the objective keeps its fresh head."""
    put(learner.model, content["model"], path)


def unfrozen(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a module without its frozen parameters."""
    frozen = {name for name, weight in module.named_parameters(remove_duplicate=False) if not weight.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def put(module: nn.Module, state: dict[str, torch.Tensor], path: Path, frozen: bool = False) -> None:
    """Load all weights, no more and no fewer; with ``frozen`` those that are stay as they are.

    Raises FormatError that names the run.
    """
    if frozen:
        kept = module.state_dict()
        state = {**{name: kept[name] for name in kept.keys() - unfrozen(module).keys()}, **state}
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise FormatError(f"the weights in {path} do not fit the model: {' '.join(lines[1:2])}") from error


def load_run(path: Path | str, device: torch.device) -> tuple[Run, Learner]:
    """A finished run with its best weights, on a device, ready to predict."""
    run, content = open_run(path)
    settings: dict[str, Any] = dict(run.settings)
    model, objective = (from_plain(kind, settings[kind]) for kind in ("model", "objective"))
    learner = make_learner(model, objective, run.vocabulary, content["model_configs"]["columns"])
    put(learner.model, content["model"], run.path)
    put(learner.objective, content["objective"], run.path)
    return run, learner.to(device).eval()


def context_length(wanted: int | None, model: Any) -> int:
    """Positions in a row. Raises ConfigError when the model has fewer, or does not say and none are given."""
    limit: Any = getattr(model.config, "max_position_embeddings", None)
    if wanted is None and limit is None:
        raise ConfigError("the model does not say how many positions it has; give train.context_length")
    if wanted is not None and limit is not None and wanted > limit:
        raise ConfigError(f"train.context_length is {wanted}, and the model has {limit} positions; change one of them")
    return int(limit) if wanted is None else wanted


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context for a forward pass. Raises ConfigError for an unknown precision."""
    if precision not in ("auto", "fp32", "bf16"):
        raise ConfigError(f"train.precision is {precision!r}; it must be auto, fp32 or bf16")
    on = precision == "bf16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)
