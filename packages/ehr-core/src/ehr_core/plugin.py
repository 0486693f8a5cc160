"""ehr-core's own components: the source of records that are MEDS already, and executors on this machine."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ehr_core import MISSING, Component, hookimpl
from ehr_core.constants import MEDS_BIRTH


@dataclass
class MedsConfig:
    """A MEDS dataset that is there already; it is checked and used where it is."""

    name: str = "meds"
    path: Path = MISSING
    """Folder with Parquet files in ``data/train``, ``data/tuning`` and ``data/held_out``, of which some may be missing;
    or anywhere below ``data``, with ``metadata/subject_splits.parquet``."""
    split: str | None = None
    """The split of all files, whatever their folders say, for records that are only to be predicted: held_out. None: by
    folder, else by subject."""
    birth: list[str] = field(default_factory=lambda: [MEDS_BIRTH])
    """Codes of births, alone or with more after ``//``. They are read as MEDS_BIRTH."""
    latest: str | None = None
    """Date after which an event stands for nothing and is left out. None: when the dataset was made (``created_at``),
    else now; and no such date where most events are later, because then dates were shifted for privacy."""


@dataclass
class SerialConfig:
    """One piece after the other, in this process."""

    name: str = "serial"


@dataclass
class ProcessesConfig:
    """A pool of processes on this machine."""

    name: str = "processes"
    num_workers: int = 2
    """How many processes."""


@hookimpl
def ehr_sources() -> Iterator[Component]:
    yield Component(
        name="meds",
        target="ehr_core.sources:MedsSource",
        config=MedsConfig,
        summary="A MEDS dataset on disk, checked and used where it is",
    )


@hookimpl
def ehr_executors() -> Iterator[Component]:
    yield Component(
        name="serial", target="ehr_core.executors:Serial", config=SerialConfig, summary="One after the other, here"
    )
    yield Component(
        name="processes",
        target="ehr_core.executors:Processes",
        config=ProcessesConfig,
        summary="A pool of processes on this machine",
    )
