"""Windows packed into rows, and the batches of them.

Rows hold several windows side by side; `ehr_core.batch` says what a model is given. Tokens stay in the memory map until
a batch is made.

Shapes: W windows, M of them at hand, R rows, B rows of a batch, T positions of a row, P positions of a prefix,
N samples.
"""

import dataclasses
import functools

import numpy as np
import torch
from ehr_core.batch import Batch

from ehr_train.loader.timelines import Timelines, ragged_arange


@dataclasses.dataclass(frozen=True)
class Rows:
    """Windows packed into rows: makes any batch of rows."""

    timelines: Timelines
    context: int
    subject_W: np.ndarray
    start_W: np.ndarray
    """First token of the window in its shard."""
    length_W: np.ndarray
    """Tokens of the window, without prefix and tail."""
    lead_W: np.ndarray
    """Positions before the first token: the prefix, or one token where a window would be empty."""
    lead_WP: np.ndarray
    window_W: np.ndarray
    """Windows in order of row."""
    bound_R1: np.ndarray
    label_N: np.ndarray | None = None
    """float32 in the shape of the kind of outcome; None where the samples have no label."""
    sample_N: np.ndarray | None = None
    """Samples in order of window."""
    last_N: np.ndarray | None = None
    """Place in its window of the last visible token, of each sample (in their own order)."""
    sample_bound_W1: np.ndarray | None = None
    """Window w answers for the samples ``sample_N[sample_bound_W1[w]:sample_bound_W1[w + 1]]``."""
    tail_W: np.ndarray | None = None
    """One more token (id) after the window's own, for predictors that look one step ahead."""

    def __len__(self) -> int:
        return len(self.bound_R1) - 1

    @functools.cached_property
    def size_W(self) -> np.ndarray:  # noqa: N802 - the shape is part of the name
        """Positions that each window takes."""
        size: np.ndarray = self.lead_W + self.length_W + (0 if self.tail_W is None else 1)
        return size

    @property
    def tokens_R(self) -> np.ndarray:  # noqa: N802
        """Positions in use of each row."""
        return np.add.reduceat(self.size_W[self.window_W], self.bound_R1[:-1])

    def windows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows of these rows (M,), row after row, and how many each row has (B,)."""
        count_B = self.bound_R1[rows + 1] - self.bound_R1[rows]
        place_M = np.repeat(self.bound_R1[rows], count_B) + ragged_arange(count_B)
        return self.window_W[place_M], count_B

    def samples(self, window_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples of these windows, window after window, and how many each window has (M,)."""
        assert self.sample_N is not None and self.sample_bound_W1 is not None, "these rows carry no samples"  # noqa: PT018
        count_M = self.sample_bound_W1[window_M + 1] - self.sample_bound_W1[window_M]
        place = np.repeat(self.sample_bound_W1[window_M], count_M) + ragged_arange(count_M)
        return self.sample_N[place], count_M

    def batch(self, rows: np.ndarray) -> Batch:
        """The batch of these rows. A loop over windows, none over tokens.

        A column has no value of its own on a prefix: integers repeat the window's first token there, floats are NaN.
        """
        window_M, count_B = self.windows(rows)
        before_M = np.cumsum(self.size_W[window_M]) - self.size_W[window_M]
        first_M = np.repeat(np.cumsum(count_B) - count_B, count_B)
        begin_M = np.repeat(np.arange(len(rows)) * self.context, count_B) + before_M - before_M[first_M]
        flat = self._fill(window_M, begin_M, ragged_arange(count_B) + 1, len(rows) * self.context)
        tensors = {name: torch.from_numpy(values.reshape(len(rows), -1)) for name, values in flat.items()}
        fixed = {name: tensors.pop(name) for name in ("token_BT", "position_BT", "segment_BT", "static_BT")}
        if self.last_N is None:
            return Batch(**fixed, columns=tensors)
        sample, count_M = self.samples(window_M)
        label_N = None if self.label_N is None else torch.from_numpy(self.label_N[sample])
        last_N = torch.from_numpy(np.repeat(begin_M, count_M) + self.last_N[sample])
        return Batch(**fixed, columns=tensors, label_N=label_N, last_N=last_N)

    def _fill(
        self, window_M: np.ndarray, begin_M: np.ndarray, number_M: np.ndarray, total: int
    ) -> dict[str, np.ndarray]:
        """Every array of the batch, flat: window m goes to position ``begin_M[m]`` as segment ``number_M[m]``."""
        token, position, segment = (np.zeros(total, np.int64) for _ in range(3))
        static = np.zeros(total, bool)
        tables, count_T = self.timelines.tables, np.arange(self.context)
        columns = {name: _empty_column(tables[0].columns[name], total) for name in self.timelines.column_names}
        extra = 0 if self.tail_W is None else 1
        arrays = (self.timelines.shard_S[self.subject_W[window_M]], self.start_W[window_M], self.length_W[window_M])
        places = (begin_M, self.lead_W[window_M], number_M, window_M)
        for shard, start, length, begin, lead, number, window in zip(
            *(a.tolist() for a in arrays + places), strict=True
        ):
            first, end = begin + lead, begin + lead + length + extra
            token[begin:first] = self.lead_WP[window, :lead]
            token[first : first + length] = tables[shard].token[start : start + length]
            if self.tail_W is not None:
                token[end - 1] = self.tail_W[window]
            position[begin:end] = count_T[: end - begin]
            segment[begin:end] = number
            static[begin:first] = True
            for name, out in columns.items():
                values = tables[shard].columns[name][start : start + length]
                out[first : first + length] = values
                if length and out.dtype != np.float32:
                    out[begin:first] = values[0]
                    out[first + length : end] = values[-1]
        return {"token_BT": token, "position_BT": position, "segment_BT": segment, "static_BT": static, **columns}


def _empty_column(like: np.ndarray, total: int) -> np.ndarray:
    if like.dtype.kind == "f":
        return np.full(total, np.nan, np.float32)
    return np.zeros(total, bool if like.dtype.kind == "b" else np.int64)
