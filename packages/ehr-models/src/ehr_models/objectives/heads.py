"""What objectives with labels share: from the hidden states of a batch to one vector a sample, and the head on it.

Shapes: B rows, T positions, D width, N samples, O outputs of a head. A row may hold several samples.
"""

from typing import Any

import torch
from ehr_core.batch import Batch, Loss
from ehr_core.errors import ConfigError, DataError
from ehr_core.outcomes import Question
from torch import Tensor, nn

from ehr_models.objectives.loss import with_auxiliary

POOLINGS = ("last", "cls", "mean", "attention")


def seen_by(segment_BT: Tensor, last_N: Tensor) -> Tensor:
    """(N, B*T) bool: for each sample the positions of its segment up to its last visible token."""
    T = segment_BT.shape[1]
    segment = segment_BT.flatten()
    place = torch.arange(segment.numel(), device=segment.device)
    same_row = place // T == (last_N // T)[:, None]
    return same_row & (segment == segment[last_N][:, None]) & (place <= last_N[:, None])


class Pooling(nn.Module):
    """One vector (N, D) a sample: its last visible token, its first, the mean, or a mean with learned weights."""

    def __init__(self, kind: str, width: int):
        super().__init__()
        if kind not in POOLINGS:
            raise ConfigError(f"objective.pooling is {kind!r}; allowed: {', '.join(POOLINGS)}")
        self.kind = kind
        self.query = nn.Linear(width, 1, bias=False) if kind == "attention" else None
        if self.query is not None:
            nn.init.zeros_(self.query.weight)  # starts as the mean

    def forward(self, hidden_BTD: Tensor, segment_BT: Tensor, last_N: Tensor) -> Tensor:
        """(B, T, D) to (N, D)."""
        hidden = hidden_BTD.flatten(0, 1)
        if self.kind == "last":
            return hidden[last_N]
        seen = seen_by(segment_BT, last_N)
        if self.kind == "cls":
            return hidden[seen.byte().argmax(1)]
        if self.query is None:
            return (seen.to(hidden.dtype) / seen.sum(1, keepdim=True)) @ hidden
        score = self.query(hidden).squeeze(-1).float()
        weight = torch.where(seen, score, -torch.inf).softmax(-1)
        return weight.to(hidden.dtype) @ hidden


class SampleHead(nn.Module):
    """Pooling, dropout and a linear head, for objectives whose predictions are of samples."""

    def __init__(self, settings: Any, width: int, outputs: int):
        super().__init__()
        if not 0 <= settings.dropout < 1:
            raise ConfigError(f"objective.dropout is {settings.dropout}; it must be at least 0 and below 1")
        self.settings = settings
        self.pooling = Pooling(settings.pooling, width)
        self.dropout = nn.Dropout(settings.dropout)
        self.head: nn.Module = linear(width, outputs)

    def outputs(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        """(N, O) float32 from the head, and the model's output."""
        if batch.last_N is None:
            raise DataError(f"the batch does not say where its samples end; {self.settings.name} needs last_N")
        output = model(**batch.inputs())
        pooled_ND = self.pooling(output.last_hidden_state, batch.segment_BT, batch.last_N)
        return self.transform(self.head(self.dropout(pooled_ND))), output

    def transform(self, head_NO: Tensor) -> Tensor:
        """What the head gives, in float32."""
        return head_NO.float()


class LabelObjective(SampleHead):
    """Base of objectives with labels. A subclass has `total` and `prediction`, from what the head gives."""

    def total(self, output_NO: Tensor, label_N: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the losses in float32, and the number of what it sums over."""
        raise NotImplementedError

    def prediction(self, output_NO: Tensor) -> Tensor:
        """(N,) or (N, K) float32, as the question's kind has it."""
        raise NotImplementedError

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sum and count over the samples of a batch. Raises DataError for a batch without fitting labels."""
        if batch.label_N is None:
            raise DataError(f"the batch has no labels; {self.settings.name} needs a loader with a task's labels")
        output_NO, output = self.outputs(model, batch)
        with torch.autocast(output_NO.device.type, enabled=False):
            total, count = self.total(output_NO, batch.label_N.float())
        return with_auxiliary(total, count.detach(), output)

    def predict(self, model: Any, batch: Batch) -> Tensor:
        """The prediction of each sample, float32, in the shape of the question's kind (`ehr_core.outcomes`)."""
        output_NO, _ = self.outputs(model, batch)
        with torch.autocast(output_NO.device.type, enabled=False):
            return self.prediction(output_NO)

    def check_labels(self, label: Tensor, shape: tuple[int, ...]) -> None:
        """Raise DataError for labels of another shape."""
        if tuple(label.shape) != shape:
            raise DataError(f"{self.settings.name} got labels of shape {tuple(label.shape)}; expected {shape}")


def linear(width: int, out: int) -> nn.Linear:
    """A linear layer that starts as BERT's and GPT-2's do."""
    layer = nn.Linear(width, out)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def question_of(settings: Any, question: Question | None, *kinds: str) -> Question:
    """What the labels ask, where it is of one of these kinds. Raises ConfigError."""
    if question is None:
        raise ConfigError(f"objective {settings.name!r} learns from labels; give labels=DIR")
    if question.kind not in kinds:
        raise ConfigError(
            f"objective {settings.name!r} learns from {' and '.join(kinds)} labels, and these are {question.kind}; "
            "choose another objective, see `ehr plugins`"
        )
    return question


def number_of(label: Tensor) -> Tensor:
    """How many samples, as a scalar like the labels."""
    return label.new_tensor(float(len(label)))


def check_binary(name: str, label: Tensor) -> None:
    """Raise DataError, on CPU, for labels that are neither 0 nor 1.

    Elsewhere a look at the values would wait for the device.
    """
    if label.device.type == "cpu" and not ((label == 0) | (label == 1)).all():
        raise DataError(f"labels of {name} must be 0 or 1, and none may be missing")
