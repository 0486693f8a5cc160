"""Settings of sources that turn tables of records into MEDS. Import-light, so that a plugin may subclass them."""

from dataclasses import dataclass, field
from pathlib import Path

from ehr_core import MISSING

EMPTY: tuple[str, ...] = (
    "null",
    "(null)",
    "<null>",
    "na",
    "n/a",
    "#n/a",
    "<na>",
    "nan",
    "nat",
    "none",
    "nil",
    "\\N",
    ".",
    "-",
    "--",
    "?",
)
EMPTY += ("0000-00-00", "0000-00-00 00:00:00", "0000-00-00T00:00:00")


@dataclass
class TablesConfig:
    """A folder of tables, written as MEDS: splits by a hash of the subject, shards of bounded size."""

    name: str = "tables"
    path: Path = MISSING
    """Folder with the tables."""
    train: float = 0.8
    """Share of the split train; a hash of (seed, subject) decides where a subject goes."""
    tuning: float = 0.1
    """Share of the split tuning."""
    held_out: float = 0.1
    """Share of the split held_out."""
    shard_subjects: int = 10_000
    """Subjects in one shard at most: the bound of memory."""
    seed: int = 0
    """Part of the hash that splits."""
    empty: list[str] = field(default_factory=lambda: list(EMPTY))
    """What stands for nothing in cells of numbers, dates and ids, in capitals or not; texts and codes stay."""
    time_zone: str = ""
    """Zone of the records' clock, as America/New_York: times that were written with a zone are read off it. Empty: they
    are what was written, without the zone."""
