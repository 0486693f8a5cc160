"""``classification``: the probability of a binary label, from the hidden states up to the prediction time.

Shapes: B rows, T positions, D width, N samples. A row may hold several samples.
"""

from typing import Any

import torch
from ehr_core.batch import Batch, Loss
from ehr_core.errors import ConfigError, DataError
from torch import Tensor, nn
from torch.nn import functional

from ehr_models.objectives import with_auxiliary
from ehr_models.settings import ClassificationConfig

POOLINGS = ("last", "mean")


class Classification(nn.Module):
    """Dropout and one linear unit on a sample's pooled hidden state."""

    labelled = True

    def __init__(self, settings: ClassificationConfig, width: int):
        super().__init__()
        if settings.pooling not in POOLINGS:
            raise ConfigError(f"objective.pooling is {settings.pooling!r}; allowed: {', '.join(POOLINGS)}")
        self.pooling = settings.pooling
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(width, 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sum of the binary cross-entropies in float32, and the number of samples."""
        logit_N, losses = self._logits(model, batch)
        if batch.label_N is None:
            raise DataError("the batch has no labels; classification needs a loader with a task's labels")
        total = functional.binary_cross_entropy_with_logits(logit_N, batch.label_N.float(), reduction="sum")
        return with_auxiliary(total, torch.full_like(total, logit_N.numel()).detach(), losses)

    def predict(self, model: Any, batch: Batch) -> Tensor:
        """Probabilities (N,) float32."""
        return torch.sigmoid(self._logits(model, batch)[0])

    def _logits(self, model: Any, batch: Batch) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]] | None]:
        if batch.last_N is None:
            raise DataError("the batch does not say where its samples end; classification needs last_N")
        output = model(**batch.inputs())
        hidden_BTD = output.last_hidden_state
        if self.pooling == "last":
            pooled_ND = hidden_BTD.flatten(0, 1)[batch.last_N]
        else:
            pooled_ND = mean_to_last(hidden_BTD, batch.segment_BT, batch.last_N)
        return self.head(self.dropout(pooled_ND)).squeeze(-1).float(), output.losses


def mean_to_last(hidden_BTD: Tensor, segment_BT: Tensor, last_N: Tensor) -> Tensor:
    """(N, D): for each sample the mean of the hidden states of its segment up to its last visible token."""
    T = segment_BT.shape[1]
    segment = segment_BT.flatten()
    place = torch.arange(segment.numel(), device=segment.device)
    same_row = place // T == (last_N // T)[:, None]
    seen = same_row & (segment == segment[last_N][:, None]) & (place <= last_N[:, None])
    weight = seen.to(hidden_BTD.dtype) / seen.sum(1, keepdim=True)
    return weight @ hidden_BTD.flatten(0, 1)
