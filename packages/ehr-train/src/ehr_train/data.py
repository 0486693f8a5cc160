"""Windows of timelines, packed into rows: what the trainer and the predictors read from a token store.

A window is a static prefix, as known at the time of its first token, followed by consecutive tokens of one subject. It
never crosses subjects. Rows hold several windows side by side; `ehr_core.batch` says what a model is given. Everything
is a pure function of (seed, epoch). Tokens stay in the memory map until a batch is made.

Shapes: S subjects, W windows, R rows, B rows of a batch, T positions of a row, P positions of a prefix, N samples.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from ehr_core.batch import Batch
from ehr_core.constants import YEAR_US
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.tables import read_labels
from ehr_core.formats.tokens import NO_TIME, Prefix, TokenStore, TokenTable
from ehr_core.formats.vocabulary import BOS

from ehr_train.packing import pack


class Timelines:
    """One split of a store, with where each subject's tokens are."""

    def __init__(self, store: TokenStore, split: str):
        self.name = f"{store.path.name}/{split}"
        self.tables = list(store.tables(split))
        self.prefix = store.prefix
        self.column_names = store.columns
        sizes = [len(table.subject_id) for table in self.tables]
        self.subject_S = np.concatenate([table.subject_id for table in self.tables])
        self.shard_S = np.repeat(np.arange(len(sizes)), sizes)
        self.place_S = np.concatenate([np.arange(size) for size in sizes])
        self.start_S = np.concatenate([table.offset[:-1] for table in self.tables])
        self.length_S = np.concatenate([np.diff(table.offset) for table in self.tables])

    def prefixes(self, subject_W: np.ndarray, time_W: np.ndarray) -> np.ndarray:
        """Static prefixes (W, P) of subjects at times."""
        prefix_WP = np.empty((len(subject_W), len(self.prefix)), np.int64)
        shard_W = self.shard_S[subject_W]
        for shard in np.unique(shard_W):
            mine = np.flatnonzero(shard_W == shard)
            places = self.place_S[subject_W[mine]]
            prefix_WP[mine] = prefix_block(self.prefix, self.tables[shard], places, time_W[mine])
        return prefix_WP

    def times(self, subject_W: np.ndarray, start_W: np.ndarray) -> np.ndarray:
        """Time (W,) of the tokens at places ``start_W`` of their subjects' shards."""
        time_W = np.empty(len(subject_W), np.int64)
        shard_W = self.shard_S[subject_W]
        for shard in np.unique(shard_W):
            mine = np.flatnonzero(shard_W == shard)
            time_W[mine] = self.tables[shard].time[start_W[mine]]
        return time_W


def prefix_block(prefix: Prefix, table: TokenTable, place_W: np.ndarray, time_W: np.ndarray) -> np.ndarray:
    """`ehr_core.formats.tokens.prefix_tokens` for many (subject, time) of a shard at once: (W, P)."""
    num_slots = len(prefix.slots)
    out_WP = np.empty((len(place_W), len(prefix)), np.int64)
    out_WP[:, :num_slots] = prefix.unknown
    count_W = table.static_offset[place_W + 1] - table.static_offset[place_W]
    window_M = np.repeat(np.arange(len(place_W)), count_W)
    row_M = np.repeat(table.static_offset[place_W], count_W) + ragged_arange(count_W)
    known_M = table.static_time[row_M] <= time_W[window_M]
    window_M, row_M = window_M[known_M], row_M[known_M]
    # Rows are ordered by slot and time, and the last of several assignments to one place stays.
    out_WP[window_M, table.static_slot[row_M].astype(np.int64)] = table.static_token[row_M]
    if prefix.tens:
        birth_W = table.birth[place_W]
        known_W = (birth_W != NO_TIME) & (time_W != NO_TIME) & (time_W >= birth_W)
        lived_W = np.where(known_W, time_W, 0) - np.where(known_W, birth_W, 0)
        age_W = np.minimum((lived_W / YEAR_US).astype(np.int64), 99)
        out_WP[:, -2] = np.where(known_W, np.array(prefix.tens)[age_W // 10], prefix.age_unknown)
        out_WP[:, -1] = np.where(known_W, np.array(prefix.units)[age_W % 10], prefix.age_unknown)
    return out_WP


def ragged_arange(count_W: np.ndarray) -> np.ndarray:
    """0..count-1 for each count, one after the other."""
    ends = np.cumsum(count_W)
    flat: np.ndarray = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - count_W, count_W)
    return flat


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
    """Positions before the first token: the prefix, or BOS where a window would be empty."""
    lead_WP: np.ndarray
    window_W: np.ndarray
    """Windows in order of row."""
    bound_R1: np.ndarray
    label_N: np.ndarray | None = None
    sample_N: np.ndarray | None = None
    """Samples in order of window."""
    last_N: np.ndarray | None = None
    """Place in its window of the last visible token, of each sample (in their own order)."""
    sample_bound_W1: np.ndarray | None = None
    """Window w asks samples ``sample_N[sample_bound_W1[w]:sample_bound_W1[w + 1]]``."""
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
        if self.label_N is None or self.last_N is None:
            return Batch(**fixed, columns=tensors)
        sample, count_M = self.samples(window_M)
        label_N = torch.from_numpy(self.label_N[sample])
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
    key = np.random.SeedSequence([abs(seed), epoch]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):  # splitmix64 is arithmetic modulo 2^64
        x = (subject_S.astype(np.uint64) ^ key) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    phase: np.ndarray = (x % np.uint64(chunk)).astype(np.int64) + 1
    return phase


class Samples:
    """Labelled samples: what is visible of a subject at each prediction time, the latest tokens kept.

    ``reserve`` positions of a window are left free. With ``share`` (for causal models alone) samples of one subject
    whose windows begin together are asked in one pass. Raises DataError for subjects that the split does not have.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        labels: pa.Table,
        context: int,
        seed: int,
        reserve: int = 0,
        share: bool = False,
    ):
        self.timelines, self.context, self.seed = Timelines(store, split), context, seed
        self.share = share
        self.ends = store.vocabulary.ids_of_kind("end")
        chunk = room(context, len(store.prefix) + reserve)
        self.subject_N = self._find(labels["subject_id"].to_numpy())
        time_N = labels["prediction_time"].cast(pa.int64()).to_numpy()
        self.label_N = labels["boolean_value"].to_numpy(zero_copy_only=False).astype(np.float32)
        first_N = self.timelines.start_S[self.subject_N]
        visible_N = self._visible(time_N)
        self.length_N = np.minimum(visible_N, chunk)
        self.start_N = first_N + visible_N - self.length_N
        # A subject with nothing visible has no first token: its prefix is what is known at the prediction time.
        known_N = time_N.copy()
        some = self.length_N > 0
        known_N[some] = self.timelines.times(self.subject_N[some], self.start_N[some])
        self.lead_NP = self.timelines.prefixes(self.subject_N, known_N)
        self.lead_N = np.full(len(time_N), self.lead_NP.shape[1])
        if not len(store.prefix):
            self.lead_NP = np.full((len(time_N), 1), BOS)
            self.lead_N = (~some).astype(np.int64)

    def _find(self, wanted_N: np.ndarray) -> np.ndarray:
        subject_S = self.timelines.subject_S
        order = np.argsort(subject_S, kind="stable")
        place_N = np.minimum(np.searchsorted(subject_S, wanted_N, sorter=order), len(subject_S) - 1)
        found_N: np.ndarray = order[place_N]
        unknown: np.ndarray = np.unique(wanted_N[subject_S[found_N] != wanted_N])
        if len(unknown):
            raise DataError(
                f"{len(unknown)} of the {len(np.unique(wanted_N))} subjects in the labels are not in "
                f"{self.timelines.name}; tokenize the dataset that the labels were made from, with the same splits"
            )
        return found_N

    def _visible(self, time_N: np.ndarray) -> np.ndarray:
        """How many tokens of each sample's subject are at or before the prediction time.

        A closing token of kind ``end`` says that nothing follows, which nobody knows at any prediction time.
        """
        lines = self.timelines
        ends = set(self.ends)
        count_N = np.empty(len(time_N), np.int64)
        for index, (subject, time) in enumerate(zip(self.subject_N.tolist(), time_N.tolist(), strict=True)):
            start = lines.start_S[subject]
            table = lines.tables[lines.shard_S[subject]]
            count = int(np.searchsorted(table.time[start : start + lines.length_S[subject]], time, side="right"))
            while count and int(table.token[start + count - 1]) in ends:
                count -= 1
            count_N[index] = count
        return count_N

    def __len__(self) -> int:
        return len(self.label_N)

    def epoch(self, epoch: int) -> Rows:
        """Rows of an epoch, shuffled."""
        return self.rows(np.random.default_rng([abs(self.seed), epoch]))

    def evaluation(self) -> Rows:
        """Rows in a fixed order."""
        return self.rows(None)

    def rows(self, rng: np.random.Generator | None = None, tail: int | None = None) -> Rows:
        """Samples packed into rows. ``tail`` is one more token after each, and then no two share a window."""
        extra = int(tail is not None)
        window_N = self._windows(share=self.share and not extra)
        order_N = np.lexsort((self.length_N, window_N))  # the longest of a window comes last, and is the window
        bound_W1 = np.searchsorted(window_N[order_N], np.arange(window_N.max(initial=-1) + 2))
        widest_W = order_N[bound_W1[1:] - 1]
        length_W, lead_W = self.length_N[widest_W], self.lead_N[widest_W]
        window_W, bound_R1 = pack(lead_W + length_W + extra, self.context, rng)
        return Rows(
            self.timelines,
            self.context,
            self.subject_N[widest_W],
            self.start_N[widest_W],
            length_W,
            lead_W,
            self.lead_NP[widest_W],
            window_W,
            bound_R1,
            label_N=self.label_N,
            sample_N=order_N,
            last_N=self.lead_N + self.length_N + extra - 1,
            sample_bound_W1=bound_W1,
            tail_W=None if tail is None else np.full(len(widest_W), tail),
        )

    def _windows(self, share: bool) -> np.ndarray:
        """Window of each sample (N,), numbered from 0.

        Windows that begin at the same token of the same subject with the same prefix differ only in where they end.
        A causal model computes the same for a token whatever follows, so one window answers for all of them.
        """
        if not share:
            return np.arange(len(self))
        starts = np.column_stack([self.subject_N, self.start_N, self.length_N > 0, self.lead_N, self.lead_NP])
        # numpy 2.0 gave the inverse another shape.
        window_N: np.ndarray = np.unique(starts, axis=0, return_inverse=True)[1].reshape(-1)
        return window_N


def load(
    store: TokenStore, split: str, labels: Path | None, context: int, seed: int, share: bool = False
) -> Windows | Samples:
    """The split as an objective needs it: whole timelines, or the samples of a labels folder (see `Samples.share`)."""
    if labels is None:
        return Windows(store, split, context, seed)
    samples = Samples(store, split, read_labels(labels, split), context, seed, share=share)
    if not len(samples):
        raise DataError(f"{labels / split}.parquet has no labels")
    return samples
