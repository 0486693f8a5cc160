"""Whole timelines for pretraining.

A window is a static prefix, as known at the time of its first token, followed by consecutive tokens of one subject. It
never crosses subjects. Everything is a pure function of (seed, epoch).

Shapes: S subjects, W windows, P positions of a prefix.
"""

import numpy as np
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.tokens import TokenStore
from ehr_core.hashing import hash_ids

from ehr_train.loader.packing import pack
from ehr_train.loader.rows import Rows
from ehr_train.loader.timelines import Timelines, ragged_arange


class Windows:
    """Whole timelines for pretraining: every token of the split once an epoch.

    A timeline that fits stays whole. A longer one is cut into consecutive windows; the first cut is at a random place
    for each (seed, epoch, subject), so that what a window sees varies from epoch to epoch.
    """

    def __init__(self, store: TokenStore, split: str, context: int, seed: int):
        self.timelines, self.context, self.seed = Timelines(store, split), context, seed
        self.chunk = room(context, len(store.prefix))
        if not self.timelines.length_S.sum():
            raise DataError(f"{self.timelines.name} has no tokens")

    def epoch(self, epoch: int) -> Rows:
        """Rows of an epoch, shuffled."""
        rng = np.random.default_rng([abs(self.seed), epoch])
        return self._rows(_phase(self.timelines.subject_S, self.seed, epoch, self.chunk), rng)

    def evaluation(self) -> Rows:
        """Rows without randomness: cuts at multiples of the window, fixed order."""
        return self._rows(np.full(len(self.timelines.subject_S), self.chunk), None)

    def _rows(self, phase_S: np.ndarray, rng: np.random.Generator | None) -> Rows:
        length_S = self.timelines.length_S
        first_S = np.where(length_S > self.chunk, phase_S, length_S)
        count_S = (length_S > 0) + -(-(length_S - first_S) // self.chunk)
        subject_W = np.repeat(np.arange(len(length_S)), count_S)
        number_W = ragged_arange(count_S)
        end_W = np.minimum(first_S[subject_W] + number_W * self.chunk, length_S[subject_W])
        begin_W = np.maximum(first_S[subject_W] + (number_W - 1) * self.chunk, 0)
        begin_W[number_W == 0] = 0
        start_W = self.timelines.start_S[subject_W] + begin_W
        lead_WP = self.timelines.prefixes(subject_W, self.timelines.times(subject_W, start_W))
        lead_W = np.full(len(subject_W), lead_WP.shape[1])
        window_W, bound_R1 = pack(lead_W + end_W - begin_W, self.context, rng)
        return Rows(
            self.timelines, self.context, subject_W, start_W, end_W - begin_W, lead_W, lead_WP, window_W, bound_R1
        )


def room(context: int, prefix: int) -> int:
    """Tokens of a window beside its prefix. Raises ConfigError when none fit."""
    if context <= prefix:
        raise ConfigError(f"train.context_length is {context}; the static prefix alone takes {prefix} positions")
    return context - prefix


def _phase(subject_S: np.ndarray, seed: int, epoch: int, chunk: int) -> np.ndarray:
    """Length of the first window, 1 to chunk: a hash of (seed, epoch, subject), so the layout of shards is nothing."""
    phase_S: np.ndarray = (hash_ids(subject_S, [seed, epoch]) % np.uint64(chunk)).astype(np.int64) + 1
    return phase_S
