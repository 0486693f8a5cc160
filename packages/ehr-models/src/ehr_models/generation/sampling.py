"""Which token comes next: what is allowed, temperature, top-k, top-p, and the draw itself.

Shapes: R rows, P logits a row (V padded), N draws.
"""

import math
from collections.abc import Iterable

import torch
from ehr_core.errors import ConfigError
from ehr_core.formats.vocabulary import Vocabulary
from torch import Tensor

from ehr_models.generation.noise import Gumbel
from ehr_models.generation.settings import LONGEST_DAYS, GenerationConfig


def stop_ids(settings: GenerationConfig, vocabulary: Vocabulary) -> list[int]:
    """Ids of tokens that end a trajectory: those that settings name, and all of the kind ``end``.

    Raises ConfigError for a name that the vocabulary does not have.
    """
    unknown = [name for name in settings.stop_tokens if name not in vocabulary.ids]
    if unknown:
        raise ConfigError(
            f"stop_tokens: the vocabulary of {len(vocabulary)} tokens has no {unknown[0]!r}; "
            "tokens are named as in vocabulary.json"
        )
    return sorted({*(vocabulary[name] for name in settings.stop_tokens), *vocabulary.ids_of_kind("end")})


def never_drawn(settings: GenerationConfig, vocabulary: Vocabulary, stops: Iterable[int]) -> list[int]:
    """Ids of tokens that are never drawn: those of the kinds that settings name, unless they are to stop at."""
    kept = set(stops)
    return [token for kind in settings.never for token in vocabulary.ids_of_kind(kind) if token not in kept]


def check(settings: GenerationConfig) -> None:
    """Raise ConfigError for settings that cannot be."""
    if min(settings.draws, settings.rows, settings.max_new_tokens) < 1:
        raise ConfigError("generation: draws, rows and max_new_tokens must be at least 1")
    if not 0 < settings.temperature < math.inf:
        raise ConfigError(f"generation.temperature is {settings.temperature}; it must be a number above 0")
    if settings.top_k < 0 or not 0 < settings.top_p <= 1:
        raise ConfigError(
            f"generation: top_k is {settings.top_k} and top_p is {settings.top_p}; "
            "top_k must be at least 0 (0: all) and top_p above 0 and at most 1 (1: all)"
        )
    if settings.horizon_days is not None and not 0 < settings.horizon_days <= LONGEST_DAYS:
        raise ConfigError(
            f"generation.horizon_days is {settings.horizon_days}; it must be above 0 and at most {LONGEST_DAYS:,}, "
            "or null for none"
        )
    if not -(2**63) <= settings.seed < 2**63:
        raise ConfigError(f"generation.seed is {settings.seed}; it must fit into 64 bits: -2**63 to 2**63 - 1")


class Sampler:
    """Draws from logits; the same logits, key and step give the same token."""

    def __init__(self, settings: GenerationConfig, never: list[int], size: int, rows: int, device: torch.device):
        self.temperature, self.top_k, self.top_p = settings.temperature, settings.top_k, settings.top_p
        self.gumbel = Gumbel(rows, size, device)
        self.never = torch.tensor(never, dtype=torch.int64, device=device)

    def __call__(self, logits_RP: Tensor, key_R: Tensor, step_R: Tensor) -> Tensor:
        """(R,) int64 tokens; what is not allowed has probability 0. The logits may be overwritten."""
        scores_RP = self.scores(logits_RP)
        return scores_RP.sub_(self.gumbel.negated(key_R, step_R)).argmax(-1)

    def scores(self, logits_RP: Tensor) -> Tensor:
        """(R, P) float32: logits of the distribution that is drawn from; minus infinity for what is left out.

        In the place of ``logits_RP`` where these are float32.
        """
        scores_RP = logits_RP.float().index_fill_(1, self.never, -torch.inf)
        if self.temperature != 1.0:
            scores_RP /= self.temperature
        if 0 < self.top_k < scores_RP.shape[1]:
            lowest = scores_RP.topk(self.top_k).values[:, -1:]
            scores_RP.masked_fill_(scores_RP < lowest, -torch.inf)
        if self.top_p < 1.0:
            in_order = scores_RP.sort(descending=True).values
            share = in_order.softmax(-1)
            before = share.cumsum(-1) - share
            lowest = in_order.masked_fill(before >= self.top_p, torch.inf).amin(-1, keepdim=True)
            scores_RP.masked_fill_(scores_RP < lowest, -torch.inf)
        return scores_RP
