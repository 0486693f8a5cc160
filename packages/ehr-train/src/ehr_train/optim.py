"""AdamW and its schedule. The learning rate is a function of the step alone, so there is no state to lose."""

import math
from collections.abc import Callable

import torch
from ehr_core.errors import ConfigError
from torch import nn

from ehr_train.settings import TrainConfig

GROUPS: dict[str, tuple[Callable[[nn.Parameter], bool], float]] = {
    "matrices": (lambda parameter: parameter.ndim >= 2, 1.0),
    "vectors": (lambda parameter: parameter.ndim < 2, 0.0),
}
"""Name to (which parameters, share of ``weight_decay``)."""


def make_optimizer(module: nn.Module, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters that are trained, in the groups of GROUPS; fused on CPU and CUDA."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("the model and its objective have no parameter that is trained")
    chosen = [
        ([parameter for parameter in trained if belongs(parameter)], settings.weight_decay * share)
        for belongs, share in GROUPS.values()
    ]
    return torch.optim.AdamW(
        [{"params": parameters, "weight_decay": decay} for parameters, decay in chosen if parameters],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=trained[0].device.type in ("cpu", "cuda"),
    )


def learning_rate(settings: TrainConfig, step: int, total: int) -> float:
    """Rate of the step after ``step`` finished ones: linear warm-up, then a cosine down to the smallest rate."""
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = round(settings.warmup_share * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    low = settings.learning_rate * settings.min_learning_rate_ratio
    return low + (settings.learning_rate - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
