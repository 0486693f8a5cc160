"""Hashes of subjects: where one goes depends on its id and a seed, not on who else is there or how shards lie."""

from collections.abc import Sequence

import numpy as np


def hash_ids(id_N: np.ndarray, seed: int | Sequence[int]) -> np.ndarray:
    """(N,) uint64: splitmix64 of each id and a seed, or several; a seed below 0 counts as the one above."""
    seeds = [abs(part) for part in ([seed] if isinstance(seed, int) else seed)]
    key = np.random.SeedSequence(seeds[0] if len(seeds) == 1 else seeds).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):  # splitmix64 is arithmetic modulo 2**64
        x_N = (id_N.astype(np.uint64) ^ key) + np.uint64(0x9E3779B97F4A7C15)
        x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed_N: np.ndarray = x_N ^ (x_N >> np.uint64(31))
    return mixed_N
