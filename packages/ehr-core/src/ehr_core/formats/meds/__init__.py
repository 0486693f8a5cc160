"""MEDS datasets on disk: the one reader that every stage of every package uses.

A dataset is checked in steps. `shards` looks at folders, footers and column types, which is cheap, and finds out how
the records are to be read; `subject_splits` reads one column, and makes sure that each subject has its place;
`read_events` checks every row of a shard, vectorized, when the shard is read. Nothing is repaired in silence: a row
that breaks MEDS is an error that names file, row and rule, and what is treated is counted under a name of `TREATED`.
"""

from ehr_core.formats.meds.layout import (
    SUBJECT_SPLITS,
    check_subjects,
    last_time,
    need_split,
    read_splits,
    records_folder,
    shards,
    subject_splits,
    subjects_of,
)
from ehr_core.formats.meds.rows import COLUMNS, TREATED, check_columns, read_events, read_treated
from ehr_core.formats.meds.shard import READING, Given, Reading, Shard, reading_of, write_view

__all__ = [
    "COLUMNS",
    "READING",
    "SUBJECT_SPLITS",
    "TREATED",
    "Given",
    "Reading",
    "Shard",
    "check_columns",
    "check_subjects",
    "last_time",
    "need_split",
    "read_events",
    "read_splits",
    "read_treated",
    "reading_of",
    "records_folder",
    "shards",
    "subject_splits",
    "subjects_of",
    "write_view",
]
