"""The objectives of ExMed-BERT: hidden tokens with a prolonged stay, and binary endpoints with four kinds of head.

What is pooled or run over is a sample's own visible tokens, whatever it shares a row or a batch with.

Shapes: B rows, T positions, D width, N samples, L the longest sample, K positions to predict.
"""

from collections.abc import Callable
from typing import Any

import torch
from ehr_core.batch import Batch, Loss
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.outcomes import BINARY, Question
from ehr_models.objectives.heads import check_binary, linear, question_of
from ehr_models.objectives.loss import with_auxiliary
from ehr_models.objectives.masked import IGNORED, MaskedTokens
from ehr_models.objectives.masking import windows_of
from torch import Tensor, nn
from torch.nn import functional

from ehr_exmed_bert.plugin import EndpointConfig, MlmPlosConfig

RNNS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def samples_of(hidden_BTD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states of each sample from its first to its last visible token (N, L, D), zeros after, and lengths (N,).

    Raises DataError for a batch that does not say where its samples end.
    """
    if batch.last_N is None:
        raise DataError("the batch does not say where its samples end; the objective needs last_N")
    length_N = batch.position_BT.flatten()[batch.last_N] + 1
    place_L = torch.arange(int(length_N.max()) if len(length_N) else 0, device=length_N.device)
    inside_NL = place_L < length_N[:, None]
    index_NL = torch.where(inside_NL, (batch.last_N - length_N + 1)[:, None] + place_L, 0)
    return hidden_BTD.flatten(0, 1)[index_NL] * inside_NL[..., None], length_N


def masked_mean(hidden_BTD: Tensor, batch: Batch) -> Tensor:
    """(N, D): the mean of each sample's hidden states."""
    found_NLD, length_N = samples_of(hidden_BTD, batch)
    return found_NLD.sum(1) / length_N[:, None]


def labels_of(batch: Batch) -> Tensor:
    """(N,) float32. Raises DataError when there are none."""
    if batch.label_N is None:
        raise DataError("the batch has no labels; this objective needs labels=DIR")
    label_N = batch.label_N.float()
    check_binary("ExMed-BERT's endpoints", label_N)
    return label_N


class MlmPlos(MaskedTokens):
    """Masked language modelling and prolonged length of stay, on one pass of the model.

    Of each sample: the mean cross-entropy of its hidden tokens plus the weighted one of its label. The loss is the sum
    over samples, so that it does not depend on how they are divided among batches.
    """

    def __init__(self, settings: MlmPlosConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        question_of(settings, question, BINARY)
        super().__init__(settings, width, vocabulary, question)
        if min(settings.plos_weight, settings.negative_weight, settings.positive_weight) < 0:
            raise ConfigError("objective: plos_weight, negative_weight and positive_weight must not be below 0")
        self.plos_weight = settings.plos_weight
        self.weights = (settings.negative_weight, settings.positive_weight)
        self.head = linear(width, 2)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sum over samples and their number; parts: ``mlm`` and ``accuracy`` a hidden token, ``plos`` a sample."""
        masked, output = self.run(model, batch)
        scores = self.scores(model, output.last_hidden_state, batch, masked)
        label_N = labels_of(batch).long()
        logits_N2 = self.head(masked_mean(output.last_hidden_state, batch)).float()
        weight_2 = logits_N2.new_tensor(self.weights)
        plos = functional.cross_entropy(logits_N2, label_N, weight_2, reduction="sum")
        there_K = (scores.target_K != IGNORED).float()
        window_N = windows_of(batch)
        size = batch.segment_BT.shape[0] * (batch.segment_BT.shape[1] + 1)
        count_W = there_K.new_zeros(size).index_add_(0, window_N[scores.index_K], there_K)
        mlm = (scores.loss_K / count_W[window_N[scores.index_K]].clamp(min=1.0)).sum()
        count = torch.full_like(plos, len(label_N)).detach()
        loss = with_auxiliary(mlm + self.plos_weight * plos, count, output)
        tokens = there_K.sum()
        parts = {
            "mlm": (scores.loss_K.sum().detach(), tokens),
            "accuracy": (scores.correct_K.sum().float(), tokens),
            "plos": (plos.detach(), count),
        }
        return Loss(loss.total, loss.count, {**loss.parts, **parts})

    def predict(self, model: Any, batch: Batch) -> Tensor:
        """Probability (N,) of a prolonged stay; nothing is hidden."""
        hidden_BTD = model(**batch.inputs()).last_hidden_state
        return self.head(masked_mean(hidden_BTD, batch)).float().softmax(-1)[:, 1]


class Endpoint(nn.Module):
    """Mean or recurrent network, blocks, and one linear unit."""

    def __init__(self, settings: EndpointConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        question_of(settings, question, BINARY)
        super().__init__()
        s = settings
        if s.head not in ("ffn", *RNNS):
            raise ConfigError(f"objective.head is {s.head!r}; it must be one of ffn, {', '.join(RNNS)}")
        if s.rnn_layers < 1 or s.final_blocks < 0 or not 0 <= s.dropout < 1 or s.positive_weight <= 0:
            raise ConfigError(
                "objective: rnn_layers must be at least 1, final_blocks 0, positive_weight above 0, dropout below 1"
            )
        self.settings = s
        self.positive_weight = s.positive_weight
        self.rnn: nn.RNNBase | None = None
        if s.head in RNNS:
            between = s.dropout if s.rnn_layers > 1 else 0.0
            shape: dict[str, Any] = {"batch_first": True, "bidirectional": True, "dropout": between}
            self.rnn = RNNS[s.head](width, width, s.rnn_layers, **shape)
            width *= 2
        blocks = [(nn.Dropout(s.dropout), linear(width, width), nn.ReLU()) for _ in range(s.final_blocks)]
        self.final = nn.Sequential(*(part for block in blocks for part in block), nn.Dropout(s.dropout))
        self.head = linear(width, 1)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sum of the binary cross-entropies in float32, and the number of samples."""
        output = model(**batch.inputs())
        logit_N = self.logits(output.last_hidden_state, batch)
        weight = logit_N.new_tensor(self.positive_weight)
        total = functional.binary_cross_entropy_with_logits(
            logit_N, labels_of(batch), pos_weight=weight, reduction="sum"
        )
        return with_auxiliary(total, torch.full_like(total, len(logit_N)).detach(), output)

    def predict(self, model: Any, batch: Batch) -> Tensor:
        """Probabilities (N,) float32."""
        return torch.sigmoid(self.logits(model(**batch.inputs()).last_hidden_state, batch))

    def logits(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """(N,) float32."""
        pooled = masked_mean(hidden_BTD, batch) if self.rnn is None else self.read(self.rnn, hidden_BTD, batch)
        return self.head(self.final(pooled)).squeeze(-1).float()

    def read(self, rnn: nn.RNNBase, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """(N, 2 D): the last layer's state after the last token, and backwards after the first."""
        found_NLD, length_N = samples_of(hidden_BTD, batch)
        with torch.autocast(hidden_BTD.device.type, enabled=False):
            packed = nn.utils.rnn.pack_padded_sequence(
                found_NLD.float(), length_N.cpu(), batch_first=True, enforce_sorted=False
            )
            state = rnn(packed)[1]
        last = state[0] if isinstance(state, tuple) else state
        return torch.cat([last[-2], last[-1]], dim=-1)
