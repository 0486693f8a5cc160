"""``masked``: cross-entropy of hidden tokens given all others of their window (BERT, Devlin et al. 2019).

In training what is hidden changes from batch to batch: its seed is drawn from torch's generator on the CPU, whose state
every checkpoint holds, so that a run that continues hides the same. In evaluation it is fixed.

Shapes: B rows, T positions, D width, P rows of the token table, K positions to predict.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from ehr_core.batch import Batch, Loss
from ehr_core.errors import ConfigError, FormatError
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.outcomes import Question
from torch import Tensor, nn
from torch.nn import functional

from ehr_models.base import check_tokens
from ehr_models.objectives.loss import with_auxiliary
from ehr_models.objectives.masking import Masked, mask, most_chosen
from ehr_models.objectives.settings import MaskedConfig

IGNORED = -100
FIXED_SEED = 20_180_811


class Scores(NamedTuple):
    """What a model makes of the hidden tokens; each (K,)."""

    index_K: Tensor
    """Place among the flattened B*T."""
    target_K: Tensor
    """The token, or IGNORED where there is none to predict."""
    loss_K: Tensor
    """Cross-entropy, 0 where ignored."""
    correct_K: Tensor
    """Whether the likeliest token was the right one."""


class MaskedTokens(nn.Module):
    """No head of its own: the model's output layer is the head."""

    def __init__(self, settings: MaskedConfig, width: int, vocabulary: Vocabulary, question: Question | None):
        super().__init__()
        for name in ("rate", "mask_share", "random_share"):
            if not 0 <= getattr(settings, name) <= 1:
                raise ConfigError(f"objective.{name} is {getattr(settings, name)}; it is a share, from 0 to 1")
        if settings.rate == 0 or settings.mask_share + settings.random_share > 1:
            raise ConfigError("objective: rate must be above 0, and mask_share + random_share at most 1")
        mask_token = vocabulary.special("[MASK]")
        if mask_token is None:
            raise FormatError(
                f"the vocabulary has no [MASK], behind which objective {settings.name!r} hides tokens; use another "
                "objective, or a tokenizer with [MASK]"
            )
        self.settings, self.mask_token, self.size = settings, mask_token, len(vocabulary)
        self.specials = sorted({*vocabulary.ids_of_kind("special"), mask_token})

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Sum of the cross-entropies in float32, and the number of predicted tokens; ``accuracy`` is a part."""
        masked, output = self.run(model, batch)
        scores = self.scores(model, output.last_hidden_state, batch, masked)
        count = (scores.target_K != IGNORED).sum().float()
        loss = with_auxiliary(scores.loss_K.sum(), count, output)
        return Loss(loss.total, loss.count, {**loss.parts, "accuracy": (scores.correct_K.sum().float(), count)})

    def run(self, model: Any, batch: Batch) -> tuple[Masked, Any]:
        """Hide tokens, and give the rest to the model."""
        check_tokens(batch.token_BT, self.size)  # the model does not see the hidden ones
        seed = int(torch.randint(2**31, ())) if self.training else FIXED_SEED
        masked = mask(batch, self.settings, seed, self.mask_token, self.specials, self.size)
        return masked, model(**replace(batch, token_BT=masked.token_BT).inputs())

    def scores(self, model: Any, hidden_BTD: Tensor, batch: Batch, masked: Masked) -> Scores:
        """Losses of the predicted tokens."""
        index_K = self.places(masked)
        chosen_K = masked.chosen_BT.flatten()[index_K]
        target_K = torch.where(chosen_K, batch.token_BT.flatten()[index_K], IGNORED)
        logits_KP = model.lm_logits(hidden_BTD.flatten(0, 1)[index_K]).float()
        with torch.autocast(logits_KP.device.type, enabled=False):
            loss_K = functional.cross_entropy(logits_KP, target_K, ignore_index=IGNORED, reduction="none")
        return Scores(index_K, target_K, loss_K, logits_KP.detach().argmax(-1) == target_K)

    def places(self, masked: Masked) -> Tensor:
        """(K,) indices among B*T that hold all chosen ones.

        An accelerator would have to be waited for to say how many there are, so there K is a bound on their number.
        """
        chosen_N = masked.chosen_BT.flatten()
        if chosen_N.device.type == "cpu":
            return chosen_N.nonzero().flatten()
        return chosen_N.float().topk(most_chosen(len(chosen_N), self.settings)).indices
