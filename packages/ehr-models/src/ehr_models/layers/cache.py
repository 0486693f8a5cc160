"""Keys and values of all layers, allocated once, so that generation computes each token of a context only once.

A model takes a `KVCache` as ``cache`` and gives its layers the layouts of `KVCache.layouts`, one each. Before a forward
one says what it is: `KVCache.prefill` (whole contexts from position 0) or `KVCache.step` (one more token in each row).

A row may begin with the tokens of another one (`KVCache.share`). They are kept once, and attention reads them once for
all rows that share them, which is what makes many draws of one prompt cheap: a step is bound by reading the cache.

Shapes: S rows of the cache, R of them in use (the first ones), L positions, H heads, C width of a head, G rows of a
group that begins alike, N tokens that it shares, M tokens of its own that a row holds at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ehr_models.layers.layout import Layout


@dataclass(frozen=True)
class Group:
    """Rows that begin with the same tokens, and where these are."""

    source: int
    shared: int
    rows: Any
    """A slice, or (G,) int64."""


class KVCache:
    """Room for ``rows`` contexts of up to ``length`` tokens; layers allocate when they first see a key.

    Rows are independent, and what a row holds beyond its own tokens is never looked at.
    """

    def __init__(self, num_layers: int, rows: int, length: int):
        self.rows, self.length = rows, length
        self.layers = [LayerCache(self) for _ in range(num_layers)]
        self.source_of: dict[int, int] = {}
        """Row to the row that holds its beginning."""
        self.shared: dict[int, int] = {}
        """Row that is shared to the number of its tokens."""
        self.row_G: Tensor | None = None
        self.count = self.end = 0
        self.place_R: Tensor | None = None
        self.mask: Tensor | None = None
        self.offset_R: Tensor = torch.empty(0)
        self.groups: list[Group] | None = None

    def layouts(self) -> list[Layout]:
        """One layout a layer, for the forward that was announced."""
        return [Layout(True, cache=layer) for layer in self.layers]

    def prefill(self, rows: Sequence[int], device: torch.device) -> None:
        """The next forward reads (G, T) tokens from position 0 on, into these rows. Shorter ones are padded at their
        end, where causality keeps it from being seen."""
        self.row_G = torch.tensor(rows, device=device)
        self._forget(rows)

    def step(self, length_R: Sequence[int], length: Tensor) -> None:
        """The next forward reads one token in each of the first R rows, which have so many tokens with the shared ones.

        ``length`` (R,) is the same on the device, which would else have to be waited for.
        """
        own_R = [number - self._offset(row) for row, number in enumerate(length_R)]
        if self.groups is None or self.count != len(own_R):
            self._group(len(own_R), length.device)
        self.row_G, self.end = None, max(own_R) + 1
        self.place_R = self.mask = None
        if min(own_R) + 1 < self.end:
            self.place_R = length - self.offset_R
            self.mask = (torch.arange(self.end, device=length.device) <= self.place_R[:, None])[:, None, None]

    def share(self, source: int, rows: Sequence[int], length: int) -> None:
        """Rows begin with the first ``length`` tokens of ``source``, which stays as it is while rows share it."""
        self._forget(rows)
        self.shared[source] = length
        self.source_of.update(dict.fromkeys(rows, source))

    def sharing(self, source: int) -> list[int]:
        """Rows that begin with what ``source`` holds."""
        return [row for row, other in self.source_of.items() if other == source]

    def settle(self, source: int) -> None:
        """Give all rows that share ``source`` a copy of their own, so that it may be used for something else."""
        rows, length = self.sharing(source), self.shared[source]
        kept_of_own = self.length - length
        for layer in self.layers:
            for kept in (layer.key, layer.value):
                kept[rows, :, length:] = kept[rows, :, :kept_of_own]
                kept[rows, :, :length] = kept[source, :, :length].clone()  # torch refuses to copy within full rows
        self._forget(rows)

    def move(self, source: Sequence[int], target: Sequence[int], length_R: Sequence[int]) -> None:
        """Make rows what other rows are, which have so many tokens and are not used any more; none may be in both."""
        if not target:
            return
        most = max(length - self._offset(row) for row, length in zip(source, length_R, strict=True))
        one, other = (torch.tensor(rows, device=self.layers[0].key.device) for rows in (source, target))
        for layer in self.layers:
            for kept in (layer.key, layer.value):
                kept[other, :, :most] = kept[one, :, :most]
        shares = [(b, self.source_of[a]) for a, b in zip(source, target, strict=True) if a in self.source_of]
        self._forget([*source, *target])
        self.source_of.update(shares)

    def drop(self, rows: Sequence[int]) -> None:
        """Rows that are not used any more."""
        self._forget(rows)

    def _forget(self, rows: Sequence[int]) -> None:
        self.groups = None
        for row in rows:
            self.source_of.pop(row, None)

    def _offset(self, row: int) -> int:
        """Tokens of a row that another one holds."""
        source = self.source_of.get(row)
        return 0 if source is None else self.shared[source]

    def _group(self, count: int, device: torch.device) -> None:
        """Work out which of the rows in use begin alike."""
        self.count, self.groups = count, []
        self.offset_R = torch.tensor([self._offset(row) for row in range(count)], device=device)
        members: dict[int, list[int]] = {}
        for row in range(count):
            if row in self.source_of:
                members.setdefault(self.source_of[row], []).append(row)
        for source, rows in members.items():
            adjacent = rows[-1] - rows[0] + 1 == len(rows)
            index = slice(rows[0], rows[-1] + 1) if adjacent else torch.tensor(rows, device=device)
            self.groups.append(Group(source, self.shared[source], index))


class LayerCache:
    """One layer's keys and values, each (S, H, L, C)."""

    key: Tensor
    value: Tensor

    def __init__(self, cache: KVCache):
        self.cache = cache
        self.empty = True

    def attend(self, q_BTHC: Tensor, k_BTHC: Tensor, v_BTHC: Tensor) -> Tensor:
        """Keep the new keys and values, and attend to all that the rows hold: (B, T, H, C)."""
        q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTHC, v_BTHC))
        plan = self.cache
        if self.empty:
            self._allocate(k)
        if plan.row_G is not None:
            self.key[plan.row_G, :, : k.shape[2]] = k
            self.value[plan.row_G, :, : k.shape[2]] = v
            return scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        at: Any = (slice(0, plan.count), slice(None), plan.end - 1)
        if plan.place_R is not None:
            at = (torch.arange(plan.count, device=k.device), slice(None), plan.place_R)
        self.key[at], self.value[at] = k[:, :, 0], v[:, :, 0]
        key, value = (kept[: plan.count, :, : plan.end] for kept in (self.key, self.value))
        if plan.groups:
            return self._attend_to_both(q[:, :, 0], key, value, plan.groups)[:, None]
        return scaled_dot_product_attention(q, key, value, attn_mask=plan.mask).transpose(1, 2)

    def _attend_to_both(self, q_RHC: Tensor, key_RHMC: Tensor, value_RHMC: Tensor, groups: list[Group]) -> Tensor:
        """One softmax over the tokens that rows share and their own: (R, H, C).

        Both parts take their exponentials less the larger of their two maxima, and are added before the division.
        """
        q_RHC = q_RHC * q_RHC.shape[-1] ** -0.5
        own = _scores(q_RHC[:, :, None], key_RHMC)
        if self.cache.mask is not None:
            own = own.masked_fill(~self.cache.mask, -torch.inf)
        most = own.amax(-1)  # (R, H, 1)
        scores = []
        for group in groups:
            score_HGN = _scores(q_RHC[group.rows].transpose(0, 1), self.key[group.source, :, : group.shared])
            scores.append(score_HGN)
            most[group.rows] = torch.maximum(most[group.rows], score_HGN.amax(-1).T[..., None])
        weight = own.sub_(most[..., None]).exp_()
        total = weight.sum(-1)
        out = (weight.to(value_RHMC.dtype) @ value_RHMC)[:, :, 0]
        for group, score_HGN in zip(groups, scores, strict=True):
            weight = score_HGN.sub_(most[group.rows].transpose(0, 1)).exp_()
            total[group.rows] += weight.sum(-1).T[..., None]
            seen_HGC = weight.to(out.dtype) @ self.value[group.source, :, : group.shared]
            out[group.rows] += seen_HGC.transpose(0, 1)
        return out / total.to(out.dtype)

    def _allocate(self, k_GHTC: Tensor) -> None:
        _, H, _, C = k_GHTC.shape
        # Zeros, not what is lying around: a hidden position has weight 0, and 0 times NaN would be NaN.
        size = (self.cache.rows, H, self.cache.length, C)
        self.key, self.value = (torch.zeros(size, dtype=k_GHTC.dtype, device=k_GHTC.device) for _ in range(2))
        self.empty = False


def _scores(q: Tensor, key: Tensor) -> Tensor:
    """(..., G, C) and (..., N, C) to (..., G, N), in float32 at least."""
    score = q @ key.transpose(-1, -2)
    return score.float() if score.dtype in (torch.bfloat16, torch.float16) else score
