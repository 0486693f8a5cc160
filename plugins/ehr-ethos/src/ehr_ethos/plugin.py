"""What ehr-ethos contributes: the presets below ``conf/`` and the way to checkpoints of ETHOS and EHR_FM and back."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ehr_core import MISSING, Component, hookimpl


@dataclass
class ImportConfig:
    """Make a run folder of a checkpoint of EHR_FM or ETHOS."""

    positional: ClassVar[tuple[str, ...]] = ("checkpoint", "output")
    checkpoint: Path = MISSING
    """``best_model.pt`` or another checkpoint. Nothing in it is executed."""
    output: Path = MISSING
    """Run folder to make."""
    num_heads: int | None = None
    """Attention heads, for a checkpoint that does not say."""
    vocabulary: Path | None = None
    """File with one token a line (``vocab_t....csv``), for a checkpoint without a vocabulary."""
    interval_estimates: Path | None = None
    """``interval_estimates.json`` of the data that it was trained on; null: the middles of the tokens' borders."""


@dataclass
class ExportConfig:
    """Write a run of the model gpt as a checkpoint of EHR_FM."""

    positional: ClassVar[tuple[str, ...]] = ("run", "output")
    run: str = MISSING
    """Run folder."""
    output: Path = MISSING
    """File to write, such as ``best_model.pt``."""


@hookimpl
def ehr_commands() -> Iterator[Component]:
    yield Component(
        name="import-checkpoint",
        target="ehr_ethos.runs:import_checkpoint",
        config=ImportConfig,
        summary="A checkpoint of ETHOS or EHR_FM to a run folder",
    )
    yield Component(
        name="export-checkpoint",
        target="ehr_ethos.runs:export_checkpoint",
        config=ExportConfig,
        summary="A run of gpt to a checkpoint of EHR_FM",
    )
