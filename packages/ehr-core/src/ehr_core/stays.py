"""Stays: spans between admission and discharge codes, found without looking ahead and without a loop over events.

Rows of one instant have no order of their own, so they get one: an admission opens, other events follow, a discharge
closes. Where an instant has both while a stay is open, the discharge ends that stay first and the admission opens the
next. A stay that was not discharged ends when the next one opens; one that is still open at the end of a record has no
end. Where rows name their stay, the name decides instead, and stays may overlap (`stays_by_key`).

Everything at or before a time depends on nothing after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ehr_core.formats.tokens import NO_TIME


def starts_with(prefixes: Sequence[str]) -> Callable[[str], bool]:
    """Whether a code equals one of the prefixes, or starts with one and ``//``."""
    exact, longer = frozenset(prefixes), tuple(f"{prefix}//" for prefix in prefixes)
    return lambda code: code in exact or code.startswith(longer)


@dataclasses.dataclass(frozen=True)
class Stays:
    """Stays of a shard in order of subject and start. Shapes: N rows in the new order, K stays."""

    order_N: np.ndarray
    """int64: the row of the shard at each place of the new order; subjects and times stay ascending."""
    stay_N: np.ndarray
    """int64: the stay of each row in the new order; -1 outside."""
    first_K: np.ndarray
    """int64: place of the row that opens the stay."""
    subject_K: np.ndarray
    start_K: np.ndarray
    """int64 microseconds."""
    close_K: np.ndarray
    """int64 microseconds of the discharge, or of the next admission where there was none; NO_TIME: still open."""
    discharged_K: np.ndarray
    """bool: whether a discharge closes it."""


def find_stays(subject_N: np.ndarray, time_N: np.ndarray, opens_N: np.ndarray, closes_N: np.ndarray) -> Stays:
    """Stays of rows in order of subject and time; ``opens_N`` and ``closes_N`` mark admissions and discharges."""
    order_N = _order(subject_N, time_N, opens_N, closes_N)
    subject_N, time_N, opens_N, closes_N = (array[order_N] for array in (subject_N, time_N, opens_N, closes_N))
    instant_N = _instants(subject_N, time_N)
    again_N = np.zeros(len(order_N), bool)  # several admission rows of an instant open one stay
    again_N[1:] = opens_N[:-1] & (instant_N[1:] == instant_N[:-1])
    first_K = np.flatnonzero(opens_N & ~again_N)
    subject_K, start_K = subject_N[first_K], time_N[first_K]
    running_N = np.searchsorted(first_K, np.arange(len(order_N)), side="right") - 1
    inside_N = running_N >= 0
    inside_N[inside_N] = subject_K[running_N[inside_N]] == subject_N[inside_N]

    close_K = np.full(len(first_K), NO_TIME)
    end = np.flatnonzero(closes_N & inside_N)[::-1]
    close_K[running_N[end]] = time_N[end]  # backwards, so that the first discharge stays
    discharged_K = close_K != NO_TIME
    inside_N[inside_N] = ~discharged_K[running_N[inside_N]] | (time_N[inside_N] <= close_K[running_N[inside_N]])
    superseded = np.flatnonzero(~discharged_K[:-1] & (subject_K[1:] == subject_K[:-1]))
    close_K[superseded] = start_K[superseded + 1]
    return Stays(order_N, np.where(inside_N, running_N, -1), first_K, subject_K, start_K, close_K, discharged_K)


def stays_by_key(subject_N: np.ndarray, time_N: np.ndarray, key_N: np.ndarray, closes_N: np.ndarray) -> Stays:
    """Stays of rows in order of subject and time that name theirs: ``key_N`` numbers the names, -1 is none.

    Each begins with the first row of its key, and may overlap with others of its subject. The first discharge of its
    key closes it, and rows of the key that are later are outside; without one it stays open. Rows keep their places.
    """
    named = np.flatnonzero(key_N >= 0)
    pair = subject_N[named] * (int(key_N.max(initial=0)) + 1) + key_N[named]
    _, first, which = np.unique(pair, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    stay_N = np.full(len(key_N), -1)
    stay_N[named] = place[which]
    first_K = named[first[order]]

    close_K = np.full(len(first_K), NO_TIME)
    end = np.flatnonzero(closes_N & (stay_N >= 0))[::-1]
    close_K[stay_N[end]] = time_N[end]  # backwards, so that the first discharge stays
    discharged_K = close_K != NO_TIME
    late = named[discharged_K[stay_N[named]] & (time_N[named] > close_K[stay_N[named]])]
    stay_N[late] = -1
    return Stays(np.arange(len(key_N)), stay_N, first_K, subject_N[first_K], time_N[first_K], close_K, discharged_K)


def _instants(subject_N: np.ndarray, time_N: np.ndarray) -> np.ndarray:
    """(N,) number of the instant of each row: rows of one subject and time share it."""
    new_N = np.zeros(len(time_N), bool)
    new_N[1:] = (subject_N[1:] != subject_N[:-1]) | (time_N[1:] != time_N[:-1])
    return np.cumsum(new_N)


def _order(subject_N: np.ndarray, time_N: np.ndarray, opens_N: np.ndarray, closes_N: np.ndarray) -> np.ndarray:
    """Order of rows within each instant, as the module says; otherwise rows keep their places."""
    instant_N = _instants(subject_N, time_N)
    if not len(instant_N):
        return np.zeros(0, np.int64)
    size = int(instant_N[-1]) + 1
    opens_I, closes_I = (np.bincount(instant_N[mask], minlength=size) > 0 for mask in (opens_N, closes_N))
    # An instant with both leaves the state as it was: it closes and opens, or opens and closes. So a stay is open
    # before an instant when the last instant of the subject with only one of the two was an admission.
    subject_I = np.empty(size, np.int64)
    subject_I[instant_N] = subject_N
    sure_I = opens_I ^ closes_I
    last_I = np.maximum.accumulate(np.where(sure_I, np.arange(size), -1))
    before_I = np.concatenate([[-1], last_I[:-1]])
    known_I = before_I >= 0
    open_I = known_I & opens_I[before_I] & (subject_I[before_I] == subject_I)
    swap_N = (opens_I & closes_I & open_I)[instant_N]
    rank_N = np.where(opens_N, 0, np.where(closes_N, 2, 1))
    rank_N = np.where(swap_N, np.where(closes_N, 0, np.where(opens_N, 1, 2)), rank_N)
    return np.lexsort((rank_N, instant_N))
