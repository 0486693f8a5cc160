"""Events of a shard as arrays, on which every step is columnar: no loop runs over events or subjects.

Shapes: N rows (events), S subjects, C distinct codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import polars as pl
from ehr_core.formats.tokens import NO_TIME


@dataclasses.dataclass(frozen=True)
class Records:
    """Events of a shard as arrays, in order of subject and time."""

    subject_id_S: np.ndarray
    """int64, ascending; every subject of the shard, also one that has lost all rows to `where`."""
    names_C: list[str]
    """Codes in no order; after `where` some may have no row."""
    subject_N: np.ndarray
    """int64 index into ``subject_id_S``."""
    time_N: np.ndarray
    """int64 microseconds; NO_TIME for static rows."""
    code_N: np.ndarray
    """uint32 index into ``names_C``."""
    value_N: np.ndarray
    """float32; NaN where there is no finite number."""

    def where(self, keep_N: np.ndarray) -> Records:
        """The rows for which the mask holds."""
        rows = {name: getattr(self, name)[keep_N] for name in ("subject_N", "time_N", "code_N", "value_N")}
        return dataclasses.replace(self, **rows)

    def compact(self) -> Records:
        """The same rows, with no code in ``names_C`` that has none."""
        used_C, code_N = np.unique(self.code_N, return_inverse=True)
        return dataclasses.replace(
            self, names_C=[self.names_C[c] for c in used_C.tolist()], code_N=code_N.astype(np.uint32)
        )

    def per_code(self, function: Callable[[str], object], dtype: type | str) -> np.ndarray:
        """(C,) values of a function of the code; index it with ``code_N``. Runs once a code, not once a row."""
        return np.fromiter((function(name) for name in self.names_C), dtype, len(self.names_C))


def records(events: pl.DataFrame) -> Records:
    """Arrays of a frame with subject_id, time, code and numeric_value that is sorted as MEDS wants it."""
    codes = events["code"].cast(pl.Categorical)
    distinct = codes.unique()
    physical = distinct.to_physical().to_numpy()
    dense = np.zeros(int(physical.max(initial=0)) + 1, np.uint32)
    dense[physical] = np.arange(len(physical))
    value_N = events["numeric_value"].cast(pl.Float32).fill_null(float("nan")).to_numpy()
    finite_N = np.isfinite(value_N)
    id_N = events["subject_id"].to_numpy()
    new_N = np.ones(len(id_N), bool)
    np.not_equal(id_N[1:], id_N[:-1], out=new_N[1:])
    return Records(
        subject_id_S=id_N[new_N],
        names_C=distinct.cast(pl.String).to_list(),
        subject_N=np.cumsum(new_N) - 1,
        time_N=events["time"].to_physical().fill_null(NO_TIME).to_numpy(),
        code_N=dense[codes.to_physical().to_numpy()],
        value_N=value_N if finite_N.all() else np.where(finite_N, value_N, np.float32("nan")),
    )


def gaps(rows: Records) -> np.ndarray:
    """(N,) microseconds since the row before of the same subject; 0 at the first one."""
    gap_N = np.diff(rows.time_N, prepend=rows.time_N[:1])
    gap_N[1:][rows.subject_N[1:] != rows.subject_N[:-1]] = 0
    return gap_N


def offsets(index_N: np.ndarray, size: int) -> np.ndarray:
    """(S+1,) where the items of each subject start, from the ascending subject index of each item."""
    return np.searchsorted(index_N, np.arange(size + 1)).astype(np.int64)
