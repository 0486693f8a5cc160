"""A file of a dataset, and how its records are to be read."""

import os
import shutil
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from ehr_core.constants import MEDS_BIRTH, SECOND_US, SPLITS
from ehr_core.errors import ConfigError
from ehr_core.formats.folder import read_json, write_json

READING = "reading.json"
"""What a dataset's folder says about reading it, where it is a view of another folder (`write_view`)."""
EPOCH = datetime(1970, 1, 1)


def microseconds(time: datetime) -> int:
    """Microseconds since 1970, exactly; a time with a zone counts in UTC."""
    if time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    return (time - EPOCH) // timedelta(microseconds=1)


EARLIEST, LATEST = microseconds(datetime(1850, 1, 1)), microseconds(datetime(2300, 1, 1))
"""Times outside stand for nothing: records of patients are younger, and no shifting of dates goes further."""


@dataclass(frozen=True)
class Reading:
    """How the records of a dataset are read: which times can be, and which codes are a birth."""

    earliest: int = EARLIEST
    latest: int = LATEST
    """Microseconds since 1970; events before and after are left out and counted."""
    shifted: bool = False
    """Whether most events are later than the dataset was made, so that its dates were shifted for privacy."""
    birth: tuple[str, ...] = (MEDS_BIRTH,)
    """Codes, with whatever follows them after ``//``, that become MEDS_BIRTH."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a dataset, or its subjects of one split: the split, and its number there."""

    split: str
    number: int
    path: Path
    reading: Reading = Reading()
    subject_id: np.ndarray | None = field(default=None, compare=False)
    """(S,) int64, ascending: the subjects that belong to the split; None: all of the file's."""


@dataclass(frozen=True)
class Given:
    """What settings say about reading a dataset; the rest is found in it."""

    split: str | None = None
    """The split of all files, whatever their folders say."""
    birth: tuple[str, ...] = (MEDS_BIRTH,)
    latest: str | None = None
    """A date; later events are left out."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be."""
        if self.split is not None and self.split not in SPLITS:
            raise ConfigError(f"source.split is {self.split!r}; allowed: {', '.join(SPLITS)}")
        if not self.birth or not all(self.birth):
            raise ConfigError("source.birth needs at least one code, none of them empty; [MEDS_BIRTH] is usual")
        self.latest_us()

    def latest_us(self) -> int | None:
        """``latest`` in microseconds since 1970."""
        if self.latest is None:
            return None
        try:
            return microseconds(datetime.fromisoformat(self.latest))
        except ValueError:
            raise ConfigError(
                f"source.latest is {self.latest!r}; write a date, for example source.latest=2024-12-31"
            ) from None


def reading_of(folder: Path) -> Given:
    """What a folder's ``reading.json`` says; the usual where there is none."""
    path = folder / READING
    return read_json(path, Given) if path.is_file() else Given()


def write_view(folder: Path, records: Path, given: Given) -> Path:
    """Make ``folder`` the same dataset as ``records``, read as is said; files are links where links can be."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(records.iterdir()):
        if path.name != READING:
            _link(path.resolve(), folder / path.name)
    write_json(folder / READING, asdict(given))
    return folder


def _link(path: Path, place: Path) -> None:
    if os.name != "nt":  # links need a privilege there
        place.symlink_to(path)
    elif path.is_dir():
        shutil.copytree(path, place)
    else:
        shutil.copy(path, place)


def day_after(time: int) -> int:
    """A day later: clocks of other time zones are up to 14 hours ahead."""
    return time + 24 * 3600 * SECOND_US
