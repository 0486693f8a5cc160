"""Splits by a hash of the subject: where a subject goes depends on its id and a seed, not on who else is there."""

from __future__ import annotations

import numpy as np
from ehr_core.errors import ConfigError
from ehr_core.hashing import hash_ids


def shares_of(train: float, tuning: float, held_out: float) -> tuple[float, float, float]:
    """The shares of the splits. Raises ConfigError unless they add up to 1."""
    shares = (train, tuning, held_out)
    if not min(shares) >= 0 or not abs(sum(shares) - 1) <= 1e-6:
        raise ConfigError(
            f"train, tuning and held_out are {', '.join(f'{share:g}' for share in shares)}; "
            "they must be 0 or more and add up to 1"
        )
    return shares


def split_of(subject_id_S: np.ndarray, seed: int, shares: tuple[float, float, float]) -> np.ndarray:
    """(S,) 0 for train, 1 for tuning, 2 for held_out: a hash of id and seed, as a number in [0, 1)."""
    place_S = (hash_ids(subject_id_S, seed) >> np.uint64(11)).astype(np.float64) / 2.0**53
    # With a held_out share of 0 the second bound must be above every place, also after rounding.
    bounds = [shares[0], shares[0] + shares[1] if shares[2] else 1.0]
    return np.searchsorted(bounds, place_S, side="right")
