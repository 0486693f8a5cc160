"""One sequence of tokens out of the parts that each event becomes, and the columns beside it.

Shapes: N rows (events of a shard), T tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Strand:
    """One part of what an event becomes: ``token_N[n]``, ``count_N[n]`` times."""

    token_N: np.ndarray
    count_N: np.ndarray
    value_N: np.ndarray | None = None
    """The number that the token carries into the column ``value``."""


def weave(
    strands: Sequence[Strand], time_N: np.ndarray, dtype: np.dtype, value: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Tokens (T,), their times (T,), where each event's tokens end (N,), and further columns."""
    token, total_N = interleave([(s.token_N, s.count_N) for s in strands], dtype)
    columns = {}
    if value:
        none_N = np.full(len(time_N), np.nan, np.float32)
        parts = [(none_N if s.value_N is None else s.value_N, s.count_N) for s in strands]
        columns["value"] = interleave(parts, np.dtype(np.float32))[0]
    return token, np.repeat(time_N, total_N), np.cumsum(total_N), columns


def last_of_subject(subject_N: np.ndarray) -> np.ndarray:
    """(N,) whether the next row is another subject's, or there is none."""
    last_N = np.ones(len(subject_N), bool)
    np.not_equal(subject_N[1:], subject_N[:-1], out=last_N[:-1])
    return last_N


def interleave(parts: Sequence[tuple[np.ndarray, np.ndarray]], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Weave parts into one sequence: for each event in turn, part 0 so many times, then part 1, ...

    Each part is (item_N, count_N). Returns the sequence (T,) and (N,) how many items each event has.
    """
    total_N = np.asarray(np.sum([count_N for _, count_N in parts], axis=0, dtype=np.int64))
    end_N = np.cumsum(total_N)
    woven = np.empty(int(end_N[-1]) if len(end_N) else 0, dtype)
    next_N = end_N - total_N
    for item_N, count_N in parts:
        at = np.flatnonzero(count_N)
        item, place, often = item_N[at], next_N[at], count_N[at].astype(np.int64)
        if often.max(initial=0) > 1:
            start = np.cumsum(often) - often
            item, place = np.repeat(item, often), np.repeat(place - start, often) + np.arange(often.sum())
        woven[place] = item
        next_N = next_N + count_N
    return woven, total_N
