"""One split of a token store: where each subject's tokens are, and static prefixes for many windows at once.

Shapes: S subjects, W windows, P positions of a prefix, M rows of static values. Tokens stay in the memory map.
"""

import numpy as np
from ehr_core.ages import completed_years
from ehr_core.formats.tokens import NO_TIME, Prefix, TokenStore, TokenTable


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
        age_W = np.minimum(completed_years(np.where(known_W, birth_W, 0), np.where(known_W, time_W, 0)), 99)
        out_WP[:, -2] = np.where(known_W, np.array(prefix.tens)[age_W // 10], prefix.age_unknown)
        out_WP[:, -1] = np.where(known_W, np.array(prefix.units)[age_W % 10], prefix.age_unknown)
    return out_WP


def ragged_arange(count_W: np.ndarray) -> np.ndarray:
    """0..count-1 for each count, one after the other."""
    ends = np.cumsum(count_W)
    flat: np.ndarray = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - count_W, count_W)
    return flat
