"""ehr-core's own components: the source of records that are MEDS already, and executors on this machine."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ehr_core import MISSING, Component, hookimpl


@dataclass
class MedsConfig:
    """A MEDS dataset that is there already; it is checked and used where it is."""

    name: str = "meds"
    path: Path = MISSING
    """Folder with ``data/train``, ``data/tuning`` and ``data/held_out``, each with Parquet files."""


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
