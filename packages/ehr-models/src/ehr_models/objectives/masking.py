"""Which tokens a masked objective hides, and behind what.

Random numbers are hashes of (seed, content of the window, place in the window): what is hidden of a window does not
depend on the batch it is in, on padding or on packing, and it is the same on every device.

Shapes: B rows, T positions, N = B*T flattened.
"""

from dataclasses import dataclass

import torch
from ehr_core.batch import Batch
from torch import Tensor

from ehr_models.hashing import mix
from ehr_models.objectives.settings import MaskedConfig


def uniform(x: Tensor) -> Tensor:
    """Hashes to float32 in [0, 1), in steps of 2^-24."""
    return ((mix(x) >> 40) & 0xFFFFFF).float() * 2.0**-24


@dataclass(frozen=True)
class Masked:
    """What becomes of a batch."""

    token_BT: Tensor
    """Tokens with some of them hidden."""
    chosen_BT: Tensor
    """bool: those to predict."""


def windows_of(batch: Batch) -> Tensor:
    """(N,) int64: a number for each window of the batch; rows do not share any."""
    B, T = batch.segment_BT.shape
    row_B1 = torch.arange(B, device=batch.segment_BT.device)[:, None]
    return (row_B1 * (T + 1) + batch.segment_BT).flatten()


def total_of(value_N: Tensor, window_N: Tensor, batch: Batch) -> Tensor:
    """(B * (T + 1),) int64: the sum over each window; sums of hashes wrap, which does no harm."""
    B, T = batch.token_BT.shape
    return value_N.new_zeros(B * (T + 1), dtype=torch.int64).scatter_add_(0, window_N, value_N.long())


def hash_of(batch: Batch, window_N: Tensor, seed: int) -> Tensor:
    """(N,) int64: a hash for each token from its window's content, its place there, and the seed."""
    place_N = mix(batch.position_BT.flatten() * 1_000_003 + batch.token_BT.flatten() + 1)
    return mix(place_N + seed * 2_654_435_761 + total_of(place_N, window_N, batch)[window_N])


def mask(batch: Batch, settings: MaskedConfig, seed: int, mask_token: int, specials: list[int], size: int) -> Masked:
    """Hide tokens of a batch: never padding, the static prefix or specials. ``size`` is V."""
    token_BT = batch.token_BT
    special_S = torch.tensor(specials, device=token_BT.device)
    may_BT = (batch.segment_BT != 0) & ~batch.static_BT & ~torch.isin(token_BT, special_S)
    window_N = windows_of(batch)
    key_N = hash_of(batch, window_N, seed)
    order_N = uniform(key_N + 1)
    if settings.exact:
        chosen_N = lowest(order_N, may_BT.flatten(), window_N, batch, settings)
    else:
        chosen_N = may_BT.flatten() & (order_N < settings.rate)
    kind_N = uniform(key_N + 2)
    ordinary = torch.ones(size, dtype=torch.bool, device=token_BT.device)
    ordinary[special_S[special_S < size]] = False
    # The ordinary ids in order, without asking the device how many there are.
    id_V = torch.argsort(ordinary.logical_not().byte(), stable=True)
    number = size - len({token for token in specials if token < size})
    drawn_N = id_V[(uniform(key_N + 3) * number).long().clamp(max=number - 1)]
    hidden_N = torch.where(kind_N < settings.mask_share, mask_token, token_BT.flatten())
    drawn = (kind_N >= settings.mask_share) & (kind_N < settings.mask_share + settings.random_share)
    hidden_N = torch.where(drawn, drawn_N, hidden_N)
    return Masked(torch.where(chosen_N, hidden_N, token_BT.flatten()).view_as(token_BT), chosen_N.view_as(token_BT))


def lowest(order_N: Tensor, may_N: Tensor, window_N: Tensor, batch: Batch, settings: MaskedConfig) -> Tensor:
    """(N,) bool: of each window's n candidates the ``round(rate * n)`` with the lowest numbers; ExMed-BERT's rule.

    At least one, no more than ``most``, and one candidate is always left as it is.
    """
    count_W = total_of(may_N, window_N, batch)
    limit_W = (count_W * settings.rate).round().long().clamp(min=1)
    if settings.most:
        limit_W = limit_W.clamp(max=settings.most)
    limit_W = torch.minimum(limit_W, (count_W - 1).clamp(min=0))
    by_order = torch.argsort(torch.where(may_N, order_N, 2.0), stable=True)
    sorted_N = by_order[torch.argsort(window_N[by_order], stable=True)]
    size_W = total_of(torch.ones_like(window_N), window_N, batch)
    first_W = size_W.cumsum(0) - size_W
    rank_N = torch.empty_like(window_N)
    rank_N[sorted_N] = torch.arange(len(window_N), device=window_N.device) - first_W[window_N[sorted_N]]
    return may_N & (rank_N < limit_W[window_N])


def most_chosen(number: int, settings: MaskedConfig) -> int:
    """How many of N positions are chosen at most: by the rule, or but for a chance of less than 10^-14."""
    if settings.exact:
        return max(number // 2, 1)
    expected = number * settings.rate
    return min(number, int(expected + 8 * expected**0.5) + 8)
