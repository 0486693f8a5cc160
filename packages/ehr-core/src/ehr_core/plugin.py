"""ehr-core's own components: the executors that need nothing but Python."""

from collections.abc import Iterator
from dataclasses import dataclass

from ehr_core import Component, hookimpl


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
