"""Packing: windows of varying length into rows of fixed length, with almost nothing left empty.

Best-fit decreasing within shuffled pools: fast (a big integer is the index of rows by free space), deterministic, and
on timelines of varying length within a fraction of a percent of full rows.
"""

import numpy as np

POOL = 8192
"""Windows packed together. Large enough that pools leave no holes, small enough that rows stay well mixed."""


def pack(size_W: np.ndarray, capacity: int, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """Put windows of ``size_W`` positions into rows of ``capacity``.

    Returns ``window_W``, the windows in order of row, and ``bound_R1`` (R+1): row r holds windows
    ``window_W[bound_R1[r]:bound_R1[r + 1]]``. With ``rng`` pools and rows are shuffled; without, order is kept.
    """
    num_windows = len(size_W)
    order_W = np.arange(num_windows) if rng is None else rng.permutation(num_windows)
    row_W = np.empty(num_windows, np.int64)
    num_rows = 0
    for start in range(0, num_windows, POOL):
        pool = order_W[start : start + POOL]
        pool = pool[np.argsort(-size_W[pool], kind="stable")]
        num_full = int((size_W[pool] == capacity).sum())
        row_W[pool[:num_full]] = num_rows + np.arange(num_full)
        num_rows += num_full
        rest = pool[num_full:]
        row_W[rest], num_rows = _best_fit(size_W[rest].tolist(), capacity, num_rows)
    if rng is not None:
        row_W = rng.permutation(num_rows)[row_W]
    window_W = np.argsort(row_W, kind="stable")
    bound_R1 = np.concatenate([[0], np.bincount(row_W, minlength=num_rows).cumsum()])
    return window_W, bound_R1


def _best_fit(sizes: list[int], capacity: int, first_row: int) -> tuple[list[int], int]:
    """Row of each window (sizes descending), each into the fullest open row that takes it; and the next free row."""
    rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]  # open rows by free space
    mask = 0  # bit s is set when a row with free space s is open
    placed = []
    next_row = first_row
    for size in sizes:
        fitting = mask >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            row = rows_with[free].pop()
            if not rows_with[free]:
                mask ^= 1 << free
        else:
            free, row = capacity, next_row
            next_row += 1
        placed.append(row)
        left = free - size
        if left:
            rows_with[left].append(row)
            mask |= 1 << left
    return placed, next_row
