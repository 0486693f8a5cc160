"""Samples of a task: what is visible of a subject at each prediction time, with labels where there are any.

Shapes: N samples, S subjects, W windows, P positions of a prefix.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from ehr_core.errors import DataError
from ehr_core.formats.label_layout import label_files
from ehr_core.formats.labels import Labels, label_array, read_labels
from ehr_core.formats.tokens import TokenStore
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.outcomes import Question

from ehr_train.loader.packing import pack
from ehr_train.loader.rows import Rows
from ehr_train.loader.timelines import Timelines
from ehr_train.loader.windows import Windows, room


class Samples:
    """The samples of one split: the latest tokens up to each prediction time.

    ``table`` has ``subject_id`` and ``prediction_time``, and the columns of ``question`` unless that is None: then the
    samples have no label, and can be predicted. ``reserve`` positions of a window are left free. With ``share`` (for
    causal models alone) samples of one subject whose windows begin together are computed in one pass. Raises DataError
    for subjects that the split does not have.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        table: pa.Table,
        question: Question | None,
        context: int,
        seed: int = 0,
        reserve: int = 0,
        share: bool = False,
    ):
        self.timelines, self.context, self.seed = Timelines(store, split), context, seed
        self.share = share
        self.ends = store.vocabulary.ids_of_kind("end")
        self.label_N = None if question is None else label_array(table, question).astype(np.float32)
        chunk = room(context, len(store.prefix) + reserve)
        self.subject_N = self._find(table["subject_id"].to_numpy())
        time_N = table["prediction_time"].cast(pa.int64()).to_numpy()
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
            leads = some.all() or opening_token(store.vocabulary)
            self.lead_NP = np.full((len(time_N), 1), int(leads))
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
        return len(self.subject_N)

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


def opening_token(vocabulary: Vocabulary) -> int:
    """The token that stands alone where nothing is visible and there is no prefix: [BOS], else [CLS].

    A vocabulary with neither has no token that begins a window; its [PAD] then stands for "nothing". Raises DataError
    when it lacks that too.
    """
    for name in ("[BOS]", "[CLS]", "[PAD]"):
        token = vocabulary.special(name)
        if token is not None:
            return token
    raise DataError(
        "some samples have nothing visible before their prediction time, and the vocabulary has none of [BOS], [CLS] "
        "and [PAD] to stand for that; leave those samples out, or use a tokenizer with a static prefix"
    )


def open_labels(folder: Path, store: TokenStore) -> Labels:
    """The labels of a folder; where they do not say which split they are of, the store's subjects do."""
    return read_labels(folder, split_of=subject_splits(store) if "" in label_files(folder) else None)


def subject_splits(store: TokenStore) -> dict[int, str]:
    """The split of each subject of a store."""
    return {
        int(subject): split
        for split in store.splits()
        for table in store.tables(split)
        for subject in table.subject_id.tolist()
    }


def load(
    store: TokenStore, split: str, labels: Labels | None, context: int, seed: int, share: bool = False
) -> Windows | Samples:
    """The split as an objective needs it: whole timelines, or the samples of labels (see `Samples.share`)."""
    if labels is None:
        return Windows(store, split, context, seed)
    samples = Samples(store, split, labels.tables[split], labels.question, context, seed, share=share)
    if not len(samples):
        raise DataError(f"the labels {labels.name!r} have no sample in the split {split!r}")
    return samples
