"""What ehr-mimic-iv brings: the source ``mimic_iv`` and a command that keeps what it writes. Nothing heavy here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ehr_core import MISSING, Component, hookimpl
from ehr_tokenize.sources.settings import TablesConfig


@dataclass
class MimicIvConfig(TablesConfig):
    """MIMIC-IV as it is distributed, made MEDS by the public MEDS ETL, which runs in an environment of its own."""

    name: str = "mimic_iv"
    path: Path = MISSING
    """The folder that has ``hosp`` and ``icu``, with tables as CSV or CSV.gz. Tables may be missing."""
    environment: str | None = None
    """Virtual environment of the ETL; without it EHR_MIMIC_ETL names one, or ``meds-extract-run`` is on PATH."""
    damaged: str = "refuse"
    """``refuse``: a table that cannot be used is an error; ``skip``: it is left out, and the dataset says so."""
    shard_subjects: int = 1000
    """Subjects in one shard at most: the bound of memory."""
    seed: int = 0
    """Part of the hash that splits, and of the order in which subjects fill shards."""


@dataclass
class ExtractConfig(MimicIvConfig):
    """Keep what the source mimic_iv writes, to be read with source=meds as often as one likes."""

    positional: ClassVar[tuple[str, ...]] = ("path", "output")
    output: Path = MISSING
    """Folder to make: a MEDS dataset."""


@hookimpl
def ehr_sources() -> Iterator[Component]:
    yield Component(
        name="mimic_iv",
        target="ehr_mimic_iv.source:MimicIv",
        config=MimicIvConfig,
        summary="MIMIC-IV's own files, through the public MEDS ETL",
    )


@hookimpl
def ehr_commands() -> Iterator[Component]:
    yield Component(
        name="extract-mimic-iv",
        target="ehr_mimic_iv.source:extract",
        config=ExtractConfig,
        summary="MIMIC-IV's own files to a MEDS dataset that is kept",
    )
