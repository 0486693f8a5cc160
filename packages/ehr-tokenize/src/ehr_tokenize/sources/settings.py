"""Settings of sources that turn tables of records into MEDS. Import-light, so that a plugin may subclass them."""

from dataclasses import dataclass
from pathlib import Path

from ehr_core import MISSING


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
