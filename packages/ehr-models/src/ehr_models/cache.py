"""Keys and values of all layers, allocated once, so that generation computes each token of a row only once.

A model takes a `KVCache` as ``cache`` and gives its layers the layouts of `KVCache.layouts`, one each. Before a forward
one says what it is: `KVCache.prefill` (whole contexts from position 0) or `KVCache.step` (one more token in each row).

Shapes: S rows of the cache, R of them in use (the first ones), L positions, H heads, C width of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ehr_models.layout import Layout


class KVCache:
    """Room for ``rows`` contexts of up to ``length`` tokens; layers allocate when they first see a key.

    Rows are independent, and what a row holds beyond its own tokens is never looked at.
    """

    def __init__(self, num_layers: int, rows: int, length: int):
        self.rows, self.length = rows, length
        self.layers = [LayerCache(self) for _ in range(num_layers)]
        self.row_G: Tensor | None = None
        self.end = 0
        self.place_R: Tensor | None = None
        self.mask: Tensor | None = None
        self.count = 0

    def layouts(self) -> list[Layout]:
        """One layout a layer, for the forward that was announced."""
        return [Layout(True, cache=layer) for layer in self.layers]

    def prefill(self, row_G: Tensor) -> None:
        """The next forward reads (G, T) tokens from position 0 on, into these rows. Shorter ones are padded at their
        end, where causality keeps it from being seen."""
        self.row_G = row_G

    def step(self, length_R: Sequence[int], place_R: Tensor) -> None:
        """The next forward reads one token in each of the first R rows, which hold so many tokens.

        ``place_R`` is the same on the device, which would else have to be waited for.
        """
        self.row_G, self.count, self.end = None, len(length_R), max(length_R) + 1
        self.place_R = self.mask = None
        if min(length_R) + 1 < self.end:
            self.place_R = place_R
            self.mask = (torch.arange(self.end, device=place_R.device) <= place_R[:, None])[:, None, None]

    def copy(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        """Copy the first ``length`` tokens of rows onto other rows; no row may be in both lists."""
        if not target:
            return
        one, other = (torch.tensor(rows, device=self.layers[0].key.device) for rows in (source, target))
        for layer in self.layers:
            for kept in (layer.key, layer.value):
                kept[other, :, :length] = kept[one, :, :length]


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
        return scaled_dot_product_attention(q, key, value, attn_mask=plan.mask).transpose(1, 2)

    def _allocate(self, k_GHTC: Tensor) -> None:
        _, H, _, C = k_GHTC.shape
        # Zeros, not what is lying around: a hidden position has weight 0, and 0 times NaN would be NaN.
        size = (self.cache.rows, H, self.cache.length, C)
        self.key, self.value = (torch.zeros(size, dtype=k_GHTC.dtype, device=k_GHTC.device) for _ in range(2))
        self.empty = False
