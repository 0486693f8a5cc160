"""Tokens for time: which token a gap becomes, and how long a token was in train.

Shapes: N gaps, I tokens, H distinct lengths of tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from ehr_core.constants import DAY_SECONDS, DAY_US, SECOND_US

QUARTILES = ("min", "q1", "median", "q3", "max")


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long the tokens of one shard, or of several after `join`, were: of bounded size, and exact.

    Sums are exact to the microsecond. Of single lengths the seconds are kept below a day, the minutes from there on;
    most records do not know more.
    """

    count_I: np.ndarray
    seconds_I: np.ndarray
    rest_I: np.ndarray
    """Whole seconds and microseconds that the tokens stand for in all, apart: together they could overflow int64."""
    token_H: np.ndarray
    length_H: np.ndarray
    """Seconds."""
    often_H: np.ndarray


def measure(token_N: np.ndarray, gap_N: np.ndarray, count_N: np.ndarray, size: int) -> Lengths:
    """Lengths from the gaps in microseconds, each of which became ``count_N`` times a token (of ``size`` there are)."""
    seconds_N = gap_N // SECOND_US
    # Float64 weights are exact here, as sums stay below 2**53.
    weights = (count_N, seconds_N, gap_N - seconds_N * SECOND_US)
    count, seconds, rest = (np.bincount(token_N, weight, size).astype(np.int64) for weight in weights)
    each_N = np.floor_divide(seconds_N, count_N, out=seconds_N, where=count_N > 1)
    short_N = each_N < DAY_SECONDS
    cells = np.bincount(token_N[short_N] * DAY_SECONDS + each_N[short_N], count_N[short_N])
    short = np.flatnonzero(cells)
    long, place = np.unique((token_N[~short_N] << 40) + each_N[~short_N] // 60 * 60, return_inverse=True)
    often = np.bincount(place, count_N[~short_N], len(long))
    return Lengths(
        count,
        seconds,
        rest,
        token_H=np.concatenate([short // DAY_SECONDS, long >> 40]),
        length_H=np.concatenate([short % DAY_SECONDS, long & (1 << 40) - 1]),
        often_H=np.concatenate([cells[short], often]).astype(np.int64),
    )


def join(parts: Iterable[Lengths]) -> Lengths:
    """The lengths of all shards together, in any order of shards; memory is that of one and of the result."""
    total: Lengths | None = None
    for part in parts:
        if total is None:
            total = part
            continue
        token, length, often = (
            np.concatenate([getattr(lengths, name) for lengths in (total, part)])
            for name in ("token_H", "length_H", "often_H")
        )
        key, place = np.unique((token << 40) + length, return_inverse=True)
        total = Lengths(
            total.count_I + part.count_I,
            total.seconds_I + part.seconds_I,
            total.rest_I + part.rest_I,
            key >> 40,
            key & (1 << 40) - 1,
            np.bincount(place, often).astype(np.int64),
        )
    assert total is not None, "train has a shard"
    return total


def means(lengths: Lengths, names: Sequence[str], middle_I: Sequence[float]) -> dict[str, float]:
    """Mean seconds per token; one that never occurred stands for the middle of its range."""
    columns = (lengths.count_I, lengths.seconds_I, lengths.rest_I)
    found = zip(names, *(column.tolist() for column in columns), middle_I, strict=True)
    return {
        name: (seconds + rest / SECOND_US) / count if count else middle for name, count, seconds, rest, middle in found
    }


def quartiles(lengths: Lengths, names: Sequence[str], middle_I: Sequence[float]) -> dict[str, list[float]]:
    """Per token the seconds of `QUARTILES`, each of which occurred; the middle of its range for one that never did."""
    found = {}
    for token, (name, middle) in enumerate(zip(names, middle_I, strict=True)):
        its_H = lengths.token_H == token
        order = np.argsort(lengths.length_H[its_H])
        length, reached = lengths.length_H[its_H][order], np.cumsum(lengths.often_H[its_H][order])
        if not len(length):
            found[name] = [middle] * len(QUARTILES)
            continue
        place = np.searchsorted(4 * reached, np.arange(5) * reached[-1])
        found[name] = length[place].astype(float).tolist()
    return found


@dataclasses.dataclass(frozen=True)
class Spacing:
    """Tokens for gaps in time: the last whose lower bound is not above the gap; none below the first bound.

    A gap that reaches the last bound gives that token round(gap / bound) times, so that long gaps keep their length.
    """

    names: tuple[str, ...]
    bounds: np.ndarray
    """int64 microseconds, ascending, one a name."""

    def days(self) -> dict[str, list[float | None]]:
        """Per token the shortest and longest gap in days; None: no longest."""
        lower = (self.bounds / DAY_US).tolist()
        return {name: [low, high] for name, low, high in zip(self.names, lower, [*lower[1:], None], strict=True)}

    def middles(self) -> list[float]:
        """Per token the middle of its range in seconds; of the last one its lower bound."""
        low, high = self.bounds, np.append(self.bounds[1:], self.bounds[-1])
        return ((low + high) / (2 * SECOND_US)).tolist()  # type: ignore[no-any-return]

    def find(self, gap_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) index of the token (-1: none) and (N,) how many of it."""
        index_N = np.searchsorted(self.bounds, gap_N, side="right") - 1
        count_N = (index_N >= 0).astype(np.int64)
        unit = int(self.bounds[-1])
        long_N = np.flatnonzero(index_N == len(self.names) - 1)
        count_N[long_N] = (gap_N[long_N] + unit // 2) // unit
        return index_N, count_N

    def measure(self, gap_N: np.ndarray) -> Lengths:
        """The lengths of the tokens that gaps become."""
        index_N, count_N = self.find(gap_N)
        at = np.flatnonzero(index_N >= 0)
        return measure(index_N[at], gap_N[at], count_N[at], len(self.names))


class Once(Spacing):
    """Tokens for gaps in time, exactly one a gap, however long."""

    def find(self, gap_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N,) index of the token (-1: none) and (N,) 1 or 0."""
        index_N = np.searchsorted(self.bounds, gap_N, side="right") - 1
        return index_N, (index_N >= 0).astype(np.int64)
