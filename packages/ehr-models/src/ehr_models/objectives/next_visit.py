"""``next_visit``: which codes occur in a subject's next visit, from the visits before it.

The next-visit task of BEHRT (Li et al. 2020, "BEHRT: Transformer for Electronic Health Records"). Of each window one
visit is predicted: the sentence ends before it, what follows becomes padding, and a head on the pooled state gives a
probability to every code of the label vocabulary. In training the visit changes from batch to batch, drawn as
`ehr_models.objectives.masked` draws; in evaluation it is fixed. A window in which no visit has enough visits before it
counts for nothing.

What a window holds of a visit is all that is known of it: of a record that is cut into windows, a visit at the cut is
predicted with the codes before the cut. Choosing windows waits for the device once a batch.

Shapes: B rows, T positions, P = B*T flattened, W windows, N samples, K labels, D width,
V vocabulary.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from ehr_core.batch import Batch, Loss
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.vocabulary import PAD, Vocabulary
from ehr_core.outcomes import Question
from torch import Tensor, nn
from torch.nn import functional

from ehr_models.base import check_tokens
from ehr_models.objectives.heads import SampleHead, linear
from ehr_models.objectives.loss import with_auxiliary
from ehr_models.objectives.masked import FIXED_SEED
from ehr_models.objectives.masking import hash_of, windows_of
from ehr_models.objectives.settings import NextVisitConfig

NEVER = torch.iinfo(torch.int64).max


class Sentences(NamedTuple):
    """What becomes of a batch."""

    batch: Batch
    """Each window up to the visit to predict; ``last_N`` is the last token before it."""
    label_NK: Tensor
    """float32, 1 for the codes of the visit."""


class NextVisit(SampleHead):
    """BERT's head for tokens on the pooled state: Linear, GELU, LayerNorm, and a linear layer to the label codes."""

    label_V: Tensor
    """int64: which label a token is, or -1."""

    def __init__(self, settings: NextVisitConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        if min(settings.max_labels, settings.min_count, settings.min_visits) < 1:
            raise ConfigError(
                f"objective: max_labels is {settings.max_labels}, min_count {settings.min_count} and min_visits "
                f"{settings.min_visits}; each must be at least 1"
            )
        chosen = label_ids(settings, vocabulary)
        super().__init__(settings, width, len(chosen))
        self.labels = [vocabulary.tokens[index].token for index in chosen]
        """The codes to predict, most frequent first."""
        self.head = nn.Sequential(linear(width, width), nn.GELU(), nn.LayerNorm(width), linear(width, len(chosen)))
        label_V = torch.full((len(vocabulary),), -1, dtype=torch.int64)
        label_V[chosen] = torch.arange(len(chosen))
        self.register_buffer("label_V", label_V, persistent=False)

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sum of the binary cross-entropies over samples and labels, and their number.

        In evaluation ``average_precision`` is a part: the mean over samples, as BEHRT reports.
        """
        check_tokens(batch.token_BT, len(self.label_V))  # the model does not see those of the visit to predict
        sentences = self.cut(batch)
        output_NK, output = self.outputs(model, sentences.batch)
        with torch.autocast(output_NK.device.type, enabled=False):
            total = functional.binary_cross_entropy_with_logits(output_NK, sentences.label_NK, reduction="sum")
        loss = with_auxiliary(total, total.new_tensor(float(output_NK.numel())), output)
        if self.training:
            return loss
        precision = average_precision(output_NK.detach(), sentences.label_NK)
        return Loss(loss.total, loss.count, {**loss.parts, "average_precision": precision})

    def cut(self, batch: Batch) -> Sentences:
        """Choose a visit of each window and end the sentence before it."""
        if self.settings.column not in batch.columns:
            raise DataError(
                f"next_visit reads the column {self.settings.column!r}, and the store has "
                f"{', '.join(sorted(batch.columns)) or 'no columns'}; use a tokenizer that writes it, such as behrt"
            )
        window_P, visit_P = windows_of(batch), batch.columns[self.settings.column].flatten().long()
        place_P = torch.arange(len(window_P), device=window_P.device)
        may_P = starts(batch, window_P, visit_P, self.settings.min_visits)
        seed = int(torch.randint(2**31, ())) if self.training else FIXED_SEED
        order_P = torch.where(may_P, hash_of(batch, window_P, seed), NEVER)
        # Windows have numbers below B * (T + 1); those without a visit to predict have their cut at no place.
        none_W = window_P.new_full((batch.token_BT.shape[0] * (batch.token_BT.shape[1] + 1),), NEVER)
        lowest_W = none_W.scatter_reduce(0, window_P, order_P, "amin")
        first_N = (may_P & (order_P == lowest_W[window_P])).nonzero().flatten()
        cut_W = none_W.scatter(0, window_P[first_N], first_N)
        visible = (place_P < cut_W[window_P]).view_as(batch.token_BT)
        before = replace(
            batch,
            token_BT=torch.where(visible, batch.token_BT, PAD),
            segment_BT=torch.where(visible, batch.segment_BT, 0),
            last_N=first_N - 1,
            label_N=None,
        )
        N, K = len(first_N), len(self.labels)
        number_W = torch.full_like(none_W, N).scatter(0, window_P[first_N], torch.arange(N, device=first_N.device))
        visit_W = torch.zeros_like(none_W).scatter(0, window_P[first_N], visit_P[first_N])
        inside_P = ~visible.flatten() & (visit_P == visit_W[window_P])
        label_P = self.label_V[batch.token_BT.flatten().clamp(max=len(self.label_V) - 1)]
        # What is no label goes to a row and a column that are cut off.
        row_P = torch.where(inside_P, number_W[window_P], N)
        label_NK = torch.zeros(N + 1, K + 1, device=first_N.device)
        label_NK[row_P, torch.where(label_P >= 0, label_P, K)] = 1.0
        return Sentences(before, label_NK[:N, :K])


def label_ids(settings: NextVisitConfig, vocabulary: Vocabulary) -> list[int]:
    """Ids of the codes to predict: the most frequent ones in train. Raises ConfigError when there is none."""
    prefixes = tuple(settings.prefixes)
    ranked = [
        (-entry.count, index)
        for index, entry in enumerate(vocabulary.tokens)
        if entry.kind in settings.kinds
        and entry.count >= settings.min_count
        and (not prefixes or entry.token.startswith(prefixes))
    ]
    if not ranked:
        raise ConfigError(
            f"next_visit finds no code to predict: no token of kind {', '.join(settings.kinds)} occurs "
            f"{settings.min_count} times in train; see objective.kinds, prefixes and min_count"
        )
    return [index for _, index in sorted(ranked)[: settings.max_labels]]


def starts(batch: Batch, window_P: Tensor, visit_P: Tensor, min_visits: int) -> Tensor:
    """(P,) bool: the first tokens of visits that have at least so many visits before them in their window."""
    timed_P = ((batch.segment_BT != 0) & ~batch.static_BT).flatten() & (visit_P > 0)
    border_P = torch.ones_like(timed_P)
    border_P[1:] = window_P[1:] != window_P[:-1]
    # Numbers that rise from window to window and, within one, with the visit: a visit begins where they never were.
    rise_P = (border_P.cumsum(0) << 32) + torch.where(timed_P, visit_P, 0)
    new_P = timed_P.clone()
    new_P[1:] &= rise_P[1:] > rise_P.cummax(0).values[:-1]
    before_P = new_P.cumsum(0) - new_P.long()
    inside_P = before_P - torch.where(border_P, before_P, 0).cummax(0).values
    return new_P & (inside_P >= min_visits)


def average_precision(output_NK: Tensor, label_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over samples with a label, and their number; as scikit-learn's, but that equal outputs keep their order."""
    hit_NK = label_NK.gather(1, output_NK.sort(dim=1, descending=True, stable=True).indices)
    rank_K = torch.arange(1, hit_NK.shape[1] + 1, device=hit_NK.device)
    each_N = (hit_NK * hit_NK.cumsum(1) / rank_K).sum(1) / hit_NK.sum(1).clamp_min(1.0)
    return each_N.sum(), (label_NK.sum(1) > 0).sum().float()
