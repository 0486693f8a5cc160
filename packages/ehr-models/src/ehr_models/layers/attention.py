"""Attention within segments: one function for every kernel, and the layer around it.

Shapes: B rows, T positions, H heads, C width of a head, D = H * C width.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import scaled_dot_product_attention

from ehr_models.layers.layout import Layout
from ehr_models.layers.rotary import rotate

Rotation = tuple[Tensor, Tensor]
"""What `ehr_models.layers.rotary.rotation_of` gives."""


def attend(q_BTHC: Tensor, k_BTHC: Tensor, v_BTHC: Tensor, layout: Layout, dropout: float = 0.0) -> Tensor:
    """Softmax attention of each position to what ``layout`` lets it see: (B, T, H, C).

    ``dropout`` is applied to the attention weights. Padding gives finite values without a meaning.
    """
    if layout.weights is not None:
        return _attend_and_keep(q_BTHC, k_BTHC, v_BTHC, layout, dropout)
    if layout.cache is not None:
        cached: Tensor = layout.cache.attend(q_BTHC, k_BTHC, v_BTHC)
        return cached
    if layout.lengths is not None:
        return _attend_to_runs(q_BTHC, k_BTHC, v_BTHC, layout, dropout)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTHC, v_BTHC))
    if layout.blocks is not None:
        assert dropout == 0.0, "FlexAttention has no dropout; make_layout gives a dense mask then"
        return _flex()(q, k, v, block_mask=layout.blocks).transpose(1, 2)
    causal = layout.causal and layout.mask is None
    out = scaled_dot_product_attention(q, k, v, attn_mask=layout.mask, is_causal=causal, dropout_p=dropout)
    return out.transpose(1, 2)


def _attend_and_keep(q_BTHC: Tensor, k_BTHC: Tensor, v_BTHC: Tensor, layout: Layout, dropout: float) -> Tensor:
    """Step by step, with the weights (B, H, T, T) kept; dropout comes after them."""
    assert layout.weights is not None
    assert layout.mask is not None
    q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTHC, v_BTHC))
    score_BHTT = (q @ k.mT).float() / math.sqrt(q.shape[-1])
    weight_BHTT = score_BHTT.masked_fill(~layout.mask, -torch.inf).softmax(-1).to(q.dtype)
    layout.weights.append(weight_BHTT)
    return (functional.dropout(weight_BHTT, dropout) @ v).transpose(1, 2)


def _attend_to_runs(q_BTHC: Tensor, k_BTHC: Tensor, v_BTHC: Tensor, layout: Layout, dropout: float) -> Tensor:
    """Each segment by itself; padding gives zeros and costs nothing."""
    assert layout.lengths is not None
    assert layout.real is not None
    # Heads first: each piece is (H, n, C), a view.
    qs, ks, vs = (x.flatten(0, 1).transpose(0, 1).split(layout.lengths, 1) for x in (q_BTHC, k_BTHC, v_BTHC))
    outs = []
    for q, k, v, real in zip(qs, ks, vs, layout.real, strict=True):
        if real:
            out = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=layout.causal, dropout_p=dropout)
            outs.append(out[0].transpose(0, 1))
        else:
            outs.append(q.new_zeros(q.transpose(0, 1).shape))
    return torch.cat(outs).view(q_BTHC.shape)


@functools.cache
def _flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


class ResidualLinear(nn.Linear):
    """A linear layer that writes to the residual stream; it starts smaller, by the number of such layers."""


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection each for queries, keys, values and output.

    Queries and keys may be normalised (Henry et al. 2020, "Query-Key Normalization") and rotated by their positions.
    """

    def __init__(self, width: int, num_heads: int, dropout: float = 0.0, bias: bool = False, qk_norm: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.q_proj = nn.Linear(width, width, bias=bias)
        self.k_proj = nn.Linear(width, width, bias=bias)
        self.v_proj = nn.Linear(width, width, bias=bias)
        self.o_proj = ResidualLinear(width, width, bias=bias)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // num_heads, eps=1e-6) if qk_norm else None for _ in range(2))

    def forward(self, x_BTD: Tensor, layout: Layout, rotation: Rotation | None = None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        heads = (*x_BTD.shape[:2], self.num_heads, self.q_proj.out_features // self.num_heads)
        q, k, v = (project(x_BTD).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        out = attend(q, k, v, layout, self.dropout if self.training else 0.0)
        return self.o_proj(out.flatten(2))
