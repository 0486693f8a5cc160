"""Layout: which positions of a batch may see which, worked out once a forward and shared by all layers.

Shapes: B rows, T positions. A row holds segments side by side (0 is padding), and a position sees only its own
segment. There are five ways to say so to the attention kernels, and all give the same numbers:

    whole   every row is one segment: no mask at all
    runs    cut the rows at the segments' borders and attend to each piece alone (CPU: no work across borders)
    mask    a dense boolean mask (B, 1, T, T): for very short segments, and where nothing else serves
    blocks  FlexAttention's block mask (CUDA): blocks without a visible pair are skipped
    cache   keys and values of one layer that were computed before, in generation; each layer has a layout of its own
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLEX_HEAD_WIDTHS = (16, 32, 64, 128)
PIECE_COST = 8192
"""Starting the kernel on one piece costs about as much as this many pairs of a dense mask (measured on CPU)."""


@dataclass(frozen=True)
class Layout:
    """One of the five ways; exactly one of the fields below ``causal`` (and ``real``) is set, none for ``whole``."""

    causal: bool
    lengths: list[int] | None = None
    """Lengths of the runs of equal segment id over the flattened B*T positions; no run goes over the end of a row."""
    real: list[bool] | None = None
    """For each run, whether it is a segment and not padding."""
    mask: Tensor | None = None
    """(B, 1, T, T) bool, True where the query (third axis) may see the key (last axis)."""
    blocks: Any = None
    """A ``torch.nn.attention.flex_attention.BlockMask``."""
    weights: list[Tensor] | None = None
    """Where each layer leaves its attention weights (B, H, T, T), beside ``mask``; None where nobody asks for them."""
    cache: Any = None
    """A `ehr_models.layers.cache.LayerCache`: it takes the new keys and values, and attends to all it has."""


def make_layout(segment_BT: Tensor | None, causal: bool, head_width: int, dropout: bool = False) -> Layout:
    """The fastest exact layout for these segments on their device. ``dropout``: attention weights will be dropped.

    ``None`` says that every row is one whole segment. On CUDA nothing here waits for the device.
    """
    if segment_BT is None:
        return Layout(causal)
    if segment_BT.device.type == "cpu":
        return _layout_on_cpu(segment_BT, causal)
    if segment_BT.device.type == "cuda" and has_flex() and head_width in FLEX_HEAD_WIDTHS and not dropout:
        return Layout(causal, blocks=block_mask(segment_BT, causal))
    return Layout(causal, mask=dense_mask(segment_BT, causal))


def keeping_layout(token_BT: Tensor, segment_BT: Tensor | None, causal: bool) -> Layout:
    """A layout by which every layer keeps its attention weights: slow, and quadratic in memory."""
    segment_BT = torch.ones_like(token_BT) if segment_BT is None else segment_BT
    return Layout(causal, mask=dense_mask(segment_BT, causal), weights=[])


def _layout_on_cpu(segment_BT: Tensor, causal: bool) -> Layout:
    B, T = segment_BT.shape
    lengths, rows, ids = _runs(segment_BT)
    if len(lengths) == B and 0 not in ids:
        return Layout(causal)
    real = [segment != 0 for segment in ids]
    named = [(row, segment) for row, segment in zip(rows, ids, strict=True) if segment != 0]
    torn = len(set(named)) < len(named)  # a segment with a hole in it, as a mask from outside may have
    too_short = PIECE_COST * len(named) > B * T * T
    if torn or too_short:
        return Layout(causal, mask=dense_mask(segment_BT, causal))
    return Layout(causal, lengths=lengths, real=real)


def _runs(segment_BT: Tensor) -> tuple[list[int], list[int], list[int]]:
    """Lengths, rows and segment ids of the runs of equal id, in order. Waits for the device: for CPU tensors."""
    B, T = segment_BT.shape
    starts_BT = torch.ones_like(segment_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segment_BT[:, 1:] != segment_BT[:, :-1]
    start_S = starts_BT.flatten().nonzero().flatten()
    lengths = torch.diff(start_S, append=start_S.new_tensor([B * T])).tolist()
    return lengths, (start_S // T).tolist(), segment_BT.flatten()[start_S].tolist()


def dense_mask(segment_BT: Tensor, causal: bool) -> Tensor:
    """(B, 1, T, T) bool. Padding sees padding, so that no row is empty and no softmax is NaN."""
    mask_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
    if causal:
        T = segment_BT.shape[1]
        mask_BTT = mask_BTT & torch.ones(T, T, dtype=torch.bool, device=segment_BT.device).tril()
    return mask_BTT[:, None]


def block_mask(segment_BT: Tensor, causal: bool) -> Any:
    """The same as a FlexAttention block mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = segment_BT[b, query] == segment_BT[b, key]
        return same & (query >= key) if causal else same

    B, T = segment_BT.shape
    return create_block_mask(visible, B, None, T, T, device=segment_BT.device)


@functools.cache
def has_flex() -> bool:
    """Whether FlexAttention can be compiled here; uncompiled it would be slower than a dense mask."""
    return importlib.util.find_spec("triton") is not None


def positions_of(segment_BT: Tensor) -> Tensor:
    """(B, T) int64 positions counted from 0 within each run of equal segment id."""
    index_T = torch.arange(segment_BT.shape[1], device=segment_BT.device)
    starts_BT = torch.ones_like(segment_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segment_BT[:, 1:] != segment_BT[:, :-1]
    return index_T - torch.where(starts_BT, index_T, 0).cummax(dim=1).values
