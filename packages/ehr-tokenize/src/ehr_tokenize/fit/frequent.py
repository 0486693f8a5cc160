"""Keeping only the most frequent codes of a prefix, and what that does to the gaps between events.

Which codes stay is known only after all of train was counted, while gaps are measured shard by shard. `Instants`
carries what is needed to measure them afterwards, exactly: the times of a shard, and which of them may disappear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from ehr_tokenize.fit import quantiles
from ehr_tokenize.prepare import arrays


def rare(counts: quantiles.Counts, top: Mapping[str, int]) -> set[str]:
    """Codes of each prefix that are not among its so many most frequent ones; of equals the first by name stay."""
    dropped: set[str] = set()
    for prefix, size in top.items():
        found = [(-int(n), name) for name, n in zip(counts.names_C, counts.rows_C, strict=True)]
        dropped.update(name for _, name in sorted(pair for pair in found if pair[1].startswith(prefix))[size:])
    return dropped


@dataclasses.dataclass(frozen=True)
class Instants:
    """The instants I of a shard, each of one subject, in order."""

    subject_I: np.ndarray
    time_I: np.ndarray
    sure_I: np.ndarray
    """bool; whether the instant has a code that stays whatever is counted."""
    names_C: list[str]
    """Codes that may go."""
    instant_M: np.ndarray
    """Of each code that may go, at an instant that is not sure: which instant,"""
    code_M: np.ndarray
    """and which code."""

    def without(self, dropped: set[str]) -> tuple[np.ndarray, int]:
        """Gaps in microseconds between the instants that are left when codes go, and how many subjects have any."""
        stays_C = np.array([name not in dropped for name in self.names_C], bool)
        keep_I = self.sure_I.copy()
        keep_I[self.instant_M[stays_C[self.code_M]]] = True
        subject, time = self.subject_I[keep_I], self.time_I[keep_I]
        gap = np.diff(time, prepend=time[:1])
        first = np.diff(subject, prepend=-1) != 0
        gap[first] = 0
        return gap, int(first.sum())


def instants(rows: arrays.Records, may_go: Callable[[str], bool]) -> Instants:
    """The instants of timeline rows."""
    new_N = np.ones(len(rows.time_N), bool)
    new_N[1:] = (rows.subject_N[1:] != rows.subject_N[:-1]) | (rows.time_N[1:] != rows.time_N[:-1])
    instant_N = np.cumsum(new_N) - 1
    goes_N = rows.per_code(may_go, bool)[rows.code_N]
    sure_I = np.zeros(int(new_N.sum()), bool)
    sure_I[instant_N[~goes_N]] = True
    at = np.flatnonzero(goes_N & ~sure_I[instant_N])
    pairs = np.unique(np.stack([instant_N[at], rows.code_N[at].astype(np.int64)]), axis=1)
    codes, code_M = np.unique(pairs[1], return_inverse=True)
    names = [rows.names_C[code] for code in codes.tolist()]
    return Instants(rows.subject_N[new_N], rows.time_N[new_N], sure_I, names, pairs[0], code_M)
