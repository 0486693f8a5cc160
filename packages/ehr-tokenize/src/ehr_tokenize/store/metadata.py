"""What the folder ``metadata`` of a MEDS dataset says, held against the events.

MEDS asks for ``dataset.json``, ``codes.parquet`` and ``subject_splits.parquet``. Tokens need none of them, so a missing
file is noted and no error; one that is damaged, or that puts a subject in another split than the folders do, is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ehr_core.constants import SPLITS
from ehr_core.errors import DataError, FormatError
from ehr_core.formats.folder import read_json
from ehr_core.formats.meds import SUBJECT_SPLITS, read_splits, records_folder
from ehr_core.formats.parquet import read_frame

FILES = ("codes.parquet", "dataset.json", "subject_splits.parquet")


def missing(meds: Path) -> list[str]:
    """The files of the folder ``metadata`` that are not there."""
    return [name for name in FILES if not (meds / "metadata" / name).is_file()]


def dataset_facts(meds: Path) -> dict[str, Any]:
    """``dataset.json``; empty where there is none. Raises FormatError when it is no JSON object."""
    path = meds / "metadata" / "dataset.json"
    if not path.is_file():
        return {}
    return read_json(path, dict[str, Any])


def check_splits(meds: Path, shards: Iterable[tuple[str, Path, np.ndarray]]) -> int:
    """Raise DataError when ``subject_splits.parquet`` puts a subject elsewhere than the folder that it lies in.

    ``shards`` are split, file and subjects. Returns how many subjects the file does not name; all when it is missing.
    """
    path = records_folder(meds) / SUBJECT_SPLITS
    nothing = np.zeros(0, np.int64)
    id_M, split_M, row_M = read_splits(path) if path.is_file() else (nothing, nothing, nothing)
    unnamed = 0
    for split, file, subject_S in shards:
        at = np.searchsorted(id_M, subject_S)
        known = np.flatnonzero(at < len(id_M))
        known = known[id_M[at[known]] == subject_S[known]]
        unnamed += len(subject_S) - len(known)
        wrong = at[known][split_M[at[known]] != SPLITS.index(split)]
        if len(wrong):
            raise DataError(
                f"{path}, row {row_M[wrong[0]]}: the subject is in split {SPLITS[split_M[wrong[0]]]!r}, but its "
                f"events are in {file} ({len(wrong)} subjects of that file contradict the table); mend one of the two"
            )
    return unnamed


def codes_without_metadata(meds: Path, codes: Collection[str]) -> int:
    """How many of the codes ``codes.parquet`` does not describe; all when it is missing."""
    path = meds / "metadata" / "codes.parquet"
    if not path.is_file():
        return len(codes)
    return len(set(codes) - set(_read(path, {"code": pl.String})["code"].to_list()))


def _read(path: Path, columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.DataFrame:
    try:
        return read_frame(path, list(columns)).cast(dict(columns))  # type: ignore[arg-type]
    except pl.exceptions.PolarsError as error:
        raise FormatError(f"{path} is damaged or lacks {', '.join(columns)}: {str(error).splitlines()[0]}") from error
