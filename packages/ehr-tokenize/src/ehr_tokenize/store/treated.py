"""What is odd in records without breaking MEDS: it is counted, shard by shard, and the manifest shows it.

Numbers that were NaN, infinite or beyond float32 become missing; they are ``non_finite`` among the counts of a split.
The README has the table of what happens in each case. Only ``dropped`` takes events away, and only when it was asked
for (``duplicates=drop``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from ehr_core.constants import MEDS_BIRTH
from ehr_core.formats.meds import TREATED
from ehr_core.formats.tokens import NO_TIME

LONG_CODE = 256
"""Bytes from which on a code is counted as a long one; it may be a free text that should not be there."""
NAMES = TREATED | {
    "before_birth": "events in the year before the subject's MEDS_BIRTH",
    "duplicates": "rows with a time that repeat an earlier row of the subject in every column that is read",
    "duplicate_static": "rows without a time that do so",
    "other_units": "numbers in another `unit` (or none) than most of their code in the shard; they are kept",
    "long_codes": f"events whose code has {LONG_CODE} or more bytes",
}
"""Names of the counts, and what they count."""


def odd_rows(events: pl.DataFrame) -> dict[str, int]:
    """Counts of the rows of a shard as `read_events` gives it."""
    time_N = events["time"].to_physical().fill_null(NO_TIME).to_numpy()
    static = int(np.count_nonzero(time_N == NO_TIME))
    repeated = _repeated(events)
    repeated_static = _repeated(events.filter(pl.col("time").is_null())) if repeated and static else 0
    return {
        "before_birth": _before_birth(events, time_N),
        "duplicates": repeated - repeated_static,
        "duplicate_static": repeated_static,
        "long_codes": int((events["code"].str.len_bytes() >= LONG_CODE).sum()),
    }


def has_units(path: Path) -> bool:
    """Whether a shard has a text column ``unit``, as several ETLs write it; MEDS leaves it to them."""
    schema = pq.read_schema(path)
    return "unit" in schema.names and schema.field("unit").type in (pa.string(), pa.large_string())


def other_units(events: pl.DataFrame) -> int:
    """Numbers whose ``unit`` is not the most frequent one of their code."""
    if "unit" not in events.columns:
        return 0
    numbers = events.lazy().filter(pl.col("numeric_value").is_not_null()).group_by("code", "unit").agg(pl.len())
    most = numbers.group_by("code").agg(pl.col("len").sum() - pl.col("len").max())
    return int(most.select(pl.col("len").sum()).collect().item() or 0)


def _repeated(events: pl.DataFrame) -> int:
    """Rows that are equal to an earlier one: by 64-bit hashes, as a wrong count by chance does no harm."""
    hashes = np.sort(events.hash_rows().to_numpy())
    return int(np.count_nonzero(hashes[1:] == hashes[:-1]))


def _before_birth(events: pl.DataFrame, time_N: np.ndarray) -> int:
    """Events before the subject's first MEDS_BIRTH that has a time."""
    birth_N = (events["code"] == MEDS_BIRTH).to_numpy() & (time_N != NO_TIME)
    if not birth_N.any():
        return 0
    id_N = events["subject_id"].to_numpy()
    subject_N = np.cumsum(np.concatenate([[False], id_N[1:] != id_N[:-1]]))
    birth_S = np.full(int(subject_N[-1]) + 1, NO_TIME)
    at = np.flatnonzero(birth_N)[::-1]  # backwards, so that the first birth stays
    birth_S[subject_N[at]] = time_N[at]
    return int(np.count_nonzero((time_N != NO_TIME) & (time_N < birth_S[subject_N])))
