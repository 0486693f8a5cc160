"""One sequence of tokens out of the parts that each event becomes, and the columns beside it. Shapes as in `stages`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ehr_tokenize.prepare import stages


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
    token, total_N = stages.interleave([(s.token_N, s.count_N) for s in strands], dtype)
    columns = {}
    if value:
        none_N = np.full(len(time_N), np.nan, np.float32)
        parts = [(none_N if s.value_N is None else s.value_N, s.count_N) for s in strands]
        columns["value"] = stages.interleave(parts, np.dtype(np.float32))[0]
    return token, np.repeat(time_N, total_N), np.cumsum(total_N), columns


def last_of_subject(subject_N: np.ndarray) -> np.ndarray:
    """(N,) whether the next row is another subject's, or there is none."""
    last_N = np.ones(len(subject_N), bool)
    np.not_equal(subject_N[1:], subject_N[:-1], out=last_N[:-1])
    return last_N
