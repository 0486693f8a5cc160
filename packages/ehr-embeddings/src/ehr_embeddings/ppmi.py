"""Vectors from co-occurrence: positive pointwise mutual information, then truncated SVD.

O. Levy and Y. Goldberg, "Neural word embedding as implicit matrix factorization", NeurIPS 2014: skip-gram with
negative sampling factorizes log(P(a, b) / (P(a) P(b))) - log k; with that matrix cut off at zero, U sqrt(S) of its SVD
serves as well. A context here is a window of a subject's time: two tokens co-occur once for every window that holds
both, however often they come in it, so that a vital sign taken every hour does not drown the rest.
V tokens, D width, W windows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse
from ehr_core.constants import DAY_US
from ehr_core.errors import ConfigError, DataError, NotApplicable
from ehr_core.formats.tokens import TokenStore, TokenTable
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.progress import track
from ehr_core.protocols import EmbeddingTable
from scipy.sparse.linalg import svds

DENSE = 400
"""Up to this many tokens a dense SVD is quicker than the iterative one."""


class PPMIEmbedding:
    """The embedding `ppmi`; it learns from the train split of a token store."""

    def __init__(self, settings: Any):
        if settings.width < 1 or settings.window_days <= 0 or settings.shift <= 0:
            raise ConfigError("embedding ppmi needs width >= 1, window_days > 0 and shift > 0")
        self.settings = settings

    def embed(self, vocabulary: Vocabulary, store: Path | None) -> EmbeddingTable:
        """Vectors for a vocabulary. Raises NotApplicable without a store, DataError when too few tokens co-occur."""
        if store is None:
            raise NotApplicable("embedding ppmi learns from a token store; give store=DIR")
        opened = TokenStore(store)
        if opened.vocabulary.digest != vocabulary.digest:
            raise DataError(f"{store} was made with another vocabulary than the one that needs vectors")
        shards = track(opened.tables("train"), "co-occurrence", len(opened.shards("train")), "shards")
        together_VV, windows_V = count(shards, len(vocabulary), self.settings.window_days)
        enough = windows_V >= self.settings.min_count
        special = np.array([entry.kind == "special" for entry in vocabulary.tokens])
        kept = np.flatnonzero(enough & ~special)
        width = self.settings.width
        if width > len(kept):
            raise DataError(
                f"embedding.width={width}, but only {len(kept)} tokens occur in {self.settings.min_count} windows "
                "or more; choose a smaller width or min_count"
            )
        ppmi = positive_pmi(together_VV[kept][:, kept], self.settings.shift)
        vector_VD = np.zeros((len(vocabulary), width), np.float32)
        vector_VD[kept] = factorize(ppmi, width)
        # A token whose every co-occurrence is at or below chance has nothing to say: it stays without a vector.
        return EmbeddingTable(vector_VD, ["ppmi" if row.any() else "" for row in vector_VD])


def window_of(table: TokenTable, window_days: float) -> np.ndarray:
    """Number (N,) of the window that each token of a shard is in, over all subjects: 0, 1, ... without gaps."""
    length = np.diff(table.offset)
    subject_N = np.repeat(np.arange(len(length)), length)
    start_N = np.repeat(table.time[table.offset[:-1][length > 0]], length[length > 0])
    window_N = (table.time - start_N) // max(int(window_days * DAY_US), 1)
    # Tokens are ordered by subject and time, so a window ends where either number changes.
    edge = (np.diff(subject_N) != 0) | (np.diff(window_N) != 0)
    return np.concatenate([[0], np.cumsum(edge)])[: len(subject_N)]


def count(tables: Any, size: int, window_days: float) -> tuple[sparse.csr_array, np.ndarray]:
    """Windows that hold both tokens (V, V), zero on the diagonal, and windows that hold each token (V,)."""
    together = sparse.csr_array((size, size), dtype=np.int64)
    alone_V = np.zeros(size, np.int64)
    for table in tables:
        window_N = window_of(table, window_days)
        pair = np.unique(window_N * size + table.token.astype(np.int64))  # presence: a repeat counts once
        shape = (int(window_N[-1]) + 1 if len(window_N) else 0, size)
        present_WV = sparse.csr_array((np.ones(len(pair), np.int64), (pair // size, pair % size)), shape=shape)
        together = together + present_WV.T @ present_WV
        alone_V += np.asarray(present_WV.sum(axis=0)).ravel()
    together.setdiag(0)
    together.eliminate_zeros()
    return sparse.csr_array(together), alone_V


def positive_pmi(together: sparse.csr_array, shift: float = 1.0) -> sparse.csr_array:
    """max(0, log(n(a, b) N / (n(a) n(b))) - log shift), with n(a) the row sum and N the sum of all; (K, K) float64."""
    pairs = sparse.coo_array(together)
    total_K = np.asarray(together.sum(axis=1), np.float64).ravel()
    value = np.log(pairs.data * total_K.sum()) - np.log(total_K[pairs.row] * total_K[pairs.col]) - np.log(shift)
    matrix = sparse.csr_array((np.maximum(value, 0.0), (pairs.row, pairs.col)), shape=together.shape)
    matrix.eliminate_zeros()
    return matrix


def factorize(matrix: sparse.csr_array, width: int) -> np.ndarray:
    """U sqrt(S) of the leading ``width`` singular vectors, (K, D) float32, largest first, signs fixed."""
    size = matrix.shape[0]
    if size <= DENSE or width >= size:
        left, value, _ = np.linalg.svd(matrix.toarray())
    else:
        start = np.random.default_rng(0).uniform(0.5, 1.5, size)  # a fixed start makes the iteration repeatable
        left, value, _ = svds(matrix, k=width, v0=start)
        order = np.argsort(-value)
        left, value = left[:, order], value[order]
    left, value = left[:, :width], value[:width]
    largest = np.abs(left).argmax(axis=0)
    sign = np.sign(left[largest, np.arange(left.shape[1])])
    vector_KD: np.ndarray = (left * sign * np.sqrt(value)).astype(np.float32)
    return vector_KD
