"""``next_token``: cross-entropy of each token given what comes before it in its segment.

Shapes: B rows, T positions, D width, P rows of the token table, K positions with a target.
"""

from typing import Any

import torch
from ehr_core.batch import Batch, Loss
from ehr_core.formats.vocabulary import PAD, Vocabulary
from ehr_core.outcomes import Question
from torch import Tensor, nn
from torch.nn import functional

from ehr_models.objectives.loss import with_auxiliary
from ehr_models.objectives.settings import NextTokenConfig

IGNORED = -100


class NextToken(nn.Module):
    """No head of its own: the model's output layer is the head."""

    def __init__(self, settings: NextTokenConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        super().__init__()

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sum of the cross-entropies in float32, and the number of predicted tokens."""
        target_BT = next_tokens(batch)
        output = model(**batch.inputs())
        hidden, target = output.last_hidden_state.flatten(0, 1), target_BT.flatten()
        count = (target != IGNORED).sum().float()
        if gathers(hidden):
            index_K = (target != IGNORED).nonzero().flatten()
            hidden, target = hidden[index_K], target[index_K]
        logits = model.lm_logits(hidden).float()
        with torch.autocast(logits.device.type, enabled=False):
            total = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        return with_auxiliary(total, count, output)


def gathers(hidden: Tensor) -> bool:
    """Whether to compute logits only where there is a target.

    Not on an accelerator: it would have to wait for their number, and packed rows have few positions to leave out.
    """
    return hidden.device.type == "cpu"


def next_tokens(batch: Batch) -> Tensor:
    """(B, T) int64: the token to predict at each position, or IGNORED.

    Ignored: the last position of a segment, positions before a token of the static prefix, and padding.
    """
    token_BT, segment_BT = batch.token_BT, batch.segment_BT
    same = (segment_BT[:, 1:] == segment_BT[:, :-1]) & (segment_BT[:, 1:] != 0)
    wanted = same & ~batch.static_BT[:, 1:] & (token_BT[:, 1:] != PAD)
    target_BT = torch.full_like(token_BT, IGNORED)
    target_BT[:, :-1] = torch.where(wanted, token_BT[:, 1:], IGNORED)
    return target_BT
