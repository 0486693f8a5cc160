"""Quantiles of numbers per code, exact, in memory that is bounded whatever the size of train.

`count` summarizes a shard. `merge` joins the counts of all shards, which may lie in memory or on disk
(`fit.summaries`); the numbers stay where they are and are read again, a group of codes at a time, by whoever
walks over them. A group has at most ``GROUP`` numbers. A code that has more is not loaded at all: its order statistics
come from two passes of counting, first the upper 16 bits of the numbers as sortable integers, then the lower 16 bits
of the few cells that hold a wanted rank. Both ways are exact, so the result depends neither on the way nor on how the
numbers were sharded.

Shapes: C codes, Q quantiles, M numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ehr_tokenize.prepare import arrays

GROUP = 1 << 23
"""Numbers that are in memory at once: 32 MiB of float32, and as much again while they are sorted."""
CELLS = 64
"""Upper halves whose lower 16 bits are counted at once: 32 MiB."""


class Numbers(Protocol):
    """float32 numbers that can be read in slices: an array, or a stretch of a file."""

    def __getitem__(self, part: slice) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Counts:
    """Rows and numbers of codes: of one shard, or of several after `merge`."""

    names_C: list[str]
    """In order of name."""
    rows_C: np.ndarray
    """int64, at least 1."""
    offset_C: np.ndarray
    """(C+1,) int64: the numbers of code c are ``value[offset_C[c]:offset_C[c+1]]``."""
    value: Any
    """`Numbers`, grouped by code; sorted within a code after `merge`."""

    def without(self, names: set[str]) -> Counts:
        """The same without some codes."""
        keep_C = np.array([name not in names for name in self.names_C], bool)
        length_C = np.diff(self.offset_C)
        offset = np.concatenate([[0], np.cumsum(length_C[keep_C])])
        left = [name for name in self.names_C if name not in names]
        if isinstance(self.value, Merged):
            value: Any = dataclasses.replace(self.value, code_C=self.value.code_C[keep_C], offset_C=offset)
        else:
            value = self.value[np.repeat(keep_C, length_C)]
        return Counts(left, self.rows_C[keep_C], offset, value)


def tally(names_C: Sequence[str], code_N: np.ndarray, value_N: np.ndarray) -> Counts:
    """Rows and numbers per code of one shard, from the code and the number (NaN: none) of each row."""
    rows_C = np.bincount(code_N, minlength=len(names_C))
    there = sorted(np.flatnonzero(rows_C).tolist(), key=names_C.__getitem__)
    rank = np.zeros(len(rows_C), np.uint16 if len(there) <= 1 << 16 else np.uint32)
    rank[there] = np.arange(len(there))
    has_N = ~np.isnan(value_N)
    code_M = rank[code_N[has_N]]
    order_M = np.argsort(code_M, kind="stable")  # a radix sort for 16 bits
    offset = np.concatenate([[0], np.cumsum(np.bincount(code_M, minlength=len(there)))])
    # Adding zero makes -0.0 a 0.0: the two are equal, so which of them a sort puts first is chance.
    return Counts([names_C[c] for c in there], rows_C[there], offset, value_N[has_N][order_M] + np.float32(0))


# -- several shards as one


@dataclasses.dataclass(frozen=True)
class Part:
    """The numbers of one shard."""

    code: np.ndarray
    """uint32, ascending: which of all codes each of the shard's codes is."""
    offset: np.ndarray
    """int64, one more than codes."""
    value: Any

    def between(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes from ``first`` to below ``last``, how many numbers each has, and the numbers."""
        low, high = np.searchsorted(self.code, [first, last]).tolist()
        start, stop = int(self.offset[low]), int(self.offset[high])
        return self.code[low:high].astype(np.int64), np.diff(self.offset[low : high + 1]), self.value[start:stop]


@dataclasses.dataclass(frozen=True)
class Merged:
    """The numbers of many shards as one sorted sequence per code, of which only slices are ever in memory."""

    parts: tuple[Part, ...]
    code_C: np.ndarray
    """int64: which of the parts' codes each code is; ascending."""
    offset_C: np.ndarray
    last: dict[tuple[int, int], np.ndarray] = dataclasses.field(default_factory=dict, compare=False)
    """The group that was loaded last: most data sets are one group."""

    def __len__(self) -> int:
        return int(self.offset_C[-1])

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        if start >= stop:
            return np.zeros(0, np.float32)
        pieces = []
        for first, last in self.groups():
            low, high = int(self.offset_C[first]), int(self.offset_C[last])
            if low < stop and start < high:
                pieces.append(self.load(first, last)[max(start - low, 0) : stop - low])
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def groups(self) -> Iterator[tuple[int, int]]:
        """Runs of codes with at most ``GROUP`` numbers together, or a single code with more."""
        first, size = 0, len(self.code_C)
        while first < size:
            last = int(np.searchsorted(self.offset_C, self.offset_C[first] + GROUP, side="right")) - 1
            last = min(max(last, first + 1), size)
            yield first, last
            first = last

    def load(self, first: int, last: int) -> np.ndarray:
        """The numbers of codes ``first`` to below ``last``, sorted within each code."""
        if (first, last) not in self.last:
            self.last.clear()
            self.last[first, last] = self._load(first, last)
        return self.last[first, last]

    def _load(self, first: int, last: int) -> np.ndarray:
        start = self.offset_C[first:last] - self.offset_C[first]
        value = np.empty(int(self.offset_C[last] - self.offset_C[first]), np.float32)
        next_C = start.copy()
        code_C = self.code_C[first:last]
        cuts = [0, *(np.flatnonzero(np.diff(code_C) != 1) + 1).tolist(), len(code_C)]
        for part in self.parts:
            for low, high in itertools.pairwise(cuts):  # a run of codes is one stretch of the part
                code, length, found = part.between(int(code_C[low]), int(code_C[high - 1]) + 1)
                at = code - code_C[low] + low
                place = next_C[at] - (np.cumsum(length) - length)
                value[np.repeat(place, length) + np.arange(len(found))] = found
                next_C[at] += length
        for begin, end in zip(start.tolist(), [*start[1:].tolist(), len(value)], strict=True):
            value[begin:end].sort()
        return value

    def chunks(self, c: int) -> Iterator[np.ndarray]:
        """The numbers of one code, unsorted, a bounded stretch at a time."""
        code = int(self.code_C[c])
        for part in self.parts:
            low, high = np.searchsorted(part.code, [code, code + 1]).tolist()
            start, stop = int(part.offset[low]), int(part.offset[high])
            for begin in range(start, stop, GROUP):
                yield part.value[begin : min(begin + GROUP, stop)]


def merge(parts: Sequence[Counts]) -> Counts:
    """The counts of all shards together: the same for any way of sharding. Numbers are read when they are used."""
    place: dict[str, int] = {}
    found: list[tuple[np.ndarray, Counts]] = []
    rows, length = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for part in parts:
        names = part.names_C
        at = np.fromiter((place.setdefault(name, len(place)) for name in names), np.int64, len(names))
        grow = len(place) - len(rows)
        rows, length = np.pad(rows, (0, grow)), np.pad(length, (0, grow))
        rows[at] += part.rows_C
        length[at] += np.diff(part.offset_C)
        found.append((at, part))
    names_C = sorted(place)
    order = np.array([place[name] for name in names_C], np.int64)
    rank = np.empty(len(order), np.uint32)
    rank[order] = np.arange(len(order))
    joined = [Part(rank[at], np.asarray(part.offset_C), part.value) for at, part in found]
    for one in joined:
        if (np.diff(one.code.astype(np.int64)) <= 0).any():
            raise ValueError("the codes of a summary are not in order of name")
    offset_C = np.concatenate([[0], np.cumsum(length[order])]).astype(np.int64)
    return Counts(names_C, rows[order], offset_C, Merged(tuple(joined), np.arange(len(order)), offset_C))


# -- what is fitted


def walk(counts: Counts) -> Iterator[tuple[int, int, np.ndarray | None]]:
    """Groups of codes (first, last) with their numbers, or None for a single code that has too many to load."""
    if not isinstance(counts.value, Merged):
        yield 0, len(counts.names_C), counts.value
        return
    for first, last in counts.value.groups():
        many = counts.offset_C[last] - counts.offset_C[first] > GROUP
        yield first, last, None if many else counts.value.load(first, last)


def quantile_breaks(counts: Counts, num_quantiles: int) -> dict[str, list[float]]:
    """Per code with numbers: its quantiles 1/Q, 2/Q, ... (interpolated linearly), each value once."""
    found: dict[str, list[float]] = {}
    for first, last, value in walk(counts):
        start = counts.offset_C[first:last] - counts.offset_C[first]
        length = np.diff(counts.offset_C[first : last + 1])
        has = np.flatnonzero(length)
        # In whole numbers, so that a break that is a value is exactly that value.
        step = np.arange(1, num_quantiles) * (length[has, None] - 1)
        low = step // num_quantiles
        high = np.minimum(low + 1, length[has, None] - 1)
        if value is None:
            both = select(functools.partial(counts.value.chunks, first), np.concatenate([low, high], axis=1)[0])
            below, above = both.reshape(2, 1, -1).astype(np.float64)
        else:
            below, above = (value[start[has, None] + rank].astype(np.float64) for rank in (low, high))
        break_CQ = below + (above - below) * (step % num_quantiles / num_quantiles)
        for c, row in zip(has, break_CQ, strict=True):
            found[counts.names_C[first + c]] = np.unique(row).tolist()
    return found


def bin_counts(counts: Counts, breaks: dict[str, list[float]], num_quantiles: int) -> dict[str, np.ndarray]:
    """Per code with breaks: (Q,) how many of its numbers fall into each quantile."""
    found = {}
    for first, last, value in walk(counts):
        for c in range(first, last):
            name = counts.names_C[c]
            if name not in breaks:
                continue
            found[name] = np.zeros(num_quantiles, np.int64)
            if value is None:
                for chunk in counts.value.chunks(c):
                    index = np.searchsorted(breaks[name], chunk.astype(np.float64), side="left")
                    found[name] += np.bincount(index, minlength=num_quantiles)
            else:
                low, high = (int(counts.offset_C[at] - counts.offset_C[first]) for at in (c, c + 1))
                edge = np.searchsorted(value[low:high].astype(np.float64), breaks[name], side="right")
                found[name][: len(edge) + 1] = np.diff(edge, prepend=0, append=high - low)
    return found


def select(chunks: Callable[[], Iterator[np.ndarray]], rank_K: np.ndarray) -> np.ndarray:
    """(K,) float32 order statistics (rank 0: the smallest) of numbers in chunks, which are read twice or more.

    Memory does not depend on how many numbers there are.
    """
    upper = np.zeros(1 << 16, np.int64)
    for chunk in chunks():
        upper += np.bincount(_sortable(chunk) >> 16, minlength=1 << 16)
    end = np.cumsum(upper)
    cell_K = np.searchsorted(end, rank_K, side="right")
    rest_K = rank_K - (end - upper)[cell_K]
    key_K = np.zeros(len(rank_K), np.uint32)
    wanted = np.unique(cell_K)
    for begin in range(0, len(wanted), CELLS):
        some = wanted[begin : begin + CELLS]
        lower = np.zeros((len(some), 1 << 16), np.int64)
        for chunk in chunks():
            key = _sortable(chunk)
            row = np.searchsorted(some, key >> 16)
            key, row = (part[some[np.minimum(row, len(some) - 1)] == key >> 16] for part in (key, row))
            lower += np.bincount(row << 16 | key & 0xFFFF, minlength=lower.size).reshape(lower.shape)
        for k in np.flatnonzero(np.isin(cell_K, some)):
            row = np.searchsorted(some, cell_K[k])
            key_K[k] = cell_K[k] << 16 | np.searchsorted(np.cumsum(lower[row]), rest_K[k], side="right")
    bits = np.where(key_K >> 31, key_K ^ np.uint32(1 << 31), ~key_K).astype(np.uint32)
    return bits.view(np.float32)


def _sortable(value: np.ndarray) -> np.ndarray:
    """(M,) int64 below 2**32 in the order of the float32 numbers."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


# -- rows of a shard


def count(rows: arrays.Records) -> Counts:
    """Rows and numbers per code of one shard."""
    return tally(rows.names_C, rows.code_N, rows.value_N)


def find_bins(rows: arrays.Records, breaks: dict[str, list[float]], num_quantiles: int) -> np.ndarray:
    """(N,) quantile 1 to Q of each number: 1 + the breaks below it; 0 without a number or without breaks."""
    break_QC = np.full((num_quantiles - 1, len(rows.names_C)), np.inf)
    known_C = rows.per_code(breaks.__contains__, bool)
    for c in np.flatnonzero(known_C):
        found = breaks[rows.names_C[c]]
        break_QC[: len(found), c] = found
    at = np.flatnonzero(known_C[rows.code_N] & ~np.isnan(rows.value_N))
    code, value = rows.code_N[at], rows.value_N[at].astype(np.float64)
    bin_M = np.ones(len(at), np.int16)
    for break_C in break_QC:  # at most Q - 1 rounds, each over a table that stays in the cache
        bin_M += break_C[code] < value
    bin_N = np.zeros(len(rows.code_N), np.int16)
    bin_N[at] = bin_M
    return bin_N


def half_open(breaks: dict[str, list[float]]) -> dict[str, list[float]]:
    """Breaks for `find_bins` and `bin_counts` by which a number equal to a break is above it."""
    return {code: np.nextafter(found, -np.inf).tolist() for code, found in breaks.items()}
