"""Pieces of hospitalizations put one after the other.

Shapes: K hospitalizations, P entries of the prefix, M items in order of hospitalization, phase and time, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ehr_core.formats.tokens import NO_TIME
from ehr_tokenize.grammars import weaving


def place_items(stay_M: np.ndarray, time_M: np.ndarray) -> np.ndarray:
    """(M,) microseconds since the item before in the same hospitalization; 0 at its first one."""
    gap_M = np.diff(time_M, prepend=time_M[:1])
    gap_M[1:][stay_M[1:] != stay_M[:-1]] = 0
    return gap_M


def chain(parts: Sequence[tuple[np.ndarray, np.ndarray]], dtype: np.dtype) -> np.ndarray:
    """For each hospitalization in turn its share of part 0, then of part 1, ...: parts are (flat, count_K)."""
    total_K = np.sum([count_K for _, count_K in parts], axis=0, dtype=np.int64)
    next_K = np.cumsum(total_K) - total_K
    out = np.empty(int(total_K.sum()), dtype)
    for flat, count_K in parts:
        first_K = np.cumsum(count_K) - count_K
        out[np.repeat(next_K - first_K, count_K) + np.arange(len(flat))] = flat
        next_K = next_K + count_K
    return out


def lay_out(
    pieces: Mapping[str, tuple[np.ndarray, np.ndarray]],
    stay_M: np.ndarray,
    phase_M: np.ndarray,
    time_M: np.ndarray,
    value_M: np.ndarray,
    fused: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Token, time, hospitalization and number of each token (T,)."""
    (start_K, begin_K), (prefix_PK, _) = pieces["start"], pieces["prefix"]
    (ellipsis_K, first_K), (end_K, close_K) = pieces["ellipsis"], pieces["end"]
    size, width = len(start_K), len(prefix_PK)
    (spacing_M, often_M), (base_M, bin_M) = pieces["spacing"], pieces["code"]
    has_M = bin_M >= 0
    one_M = np.ones(len(stay_M), np.int64)
    if fused:
        woven = [(spacing_M, often_M), (np.where(has_M, bin_M, base_M), one_M)]
    else:
        woven = [(spacing_M, often_M), (base_M, one_M), (bin_M, has_M.astype(np.int64))]
    token, total_M = weaving.interleave(woven, np.dtype(np.int64))
    none_M = np.full(len(stay_M), np.nan, np.float32)
    values = [(value_M if place == 1 else none_M, count_M) for place, (_, count_M) in enumerate(woven)]
    value, _ = weaving.interleave(values, np.dtype(np.float32))
    time, phase = np.repeat(time_M, total_M), np.repeat(phase_M, total_M)
    event = phase == 0
    events_K = np.bincount(np.repeat(stay_M, total_M)[event], minlength=size)
    suffix_K = np.bincount(np.repeat(stay_M, total_M)[~event], minlength=size)
    has_ellipsis_K, has_end_K = (t != NO_TIME for t in (first_K, close_K))
    counts = [np.full(size, width + 1), events_K, has_ellipsis_K.astype(np.int64), suffix_K, has_end_K.astype(np.int64)]

    def join(parts: list[np.ndarray], dtype: type) -> np.ndarray:
        return chain(list(zip(parts, counts, strict=True)), np.dtype(dtype))

    head = np.concatenate([start_K[None, :], prefix_PK]).T.ravel()
    nothing = [np.full(int(count_K.sum()), np.nan, np.float32) for count_K in counts]
    return (
        join([head, token[event], ellipsis_K[has_ellipsis_K], token[~event], end_K[has_end_K]], np.int64),
        join([np.repeat(begin_K, width + 1), time[event], first_K[has_ellipsis_K], time[~event], close_K[has_end_K]],
             np.int64),
        np.repeat(np.arange(size), np.sum(counts, axis=0, dtype=np.int64)),
        join([nothing[0], value[event], nothing[2], value[~event], nothing[4]], np.float32),
    )  # fmt: skip
