"""Components and settings of ehr-tokenize. Import-light: the code behind the targets loads on first use."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ehr_core import MISSING, Component, hookimpl
from ehr_core.cli import program
from ehr_core.constants import MEDS_BIRTH

from ehr_tokenize.grammars.settings import GrammarConfig, outcome_codes
from ehr_tokenize.store.settings import ExportHFConfig, InspectConfig
from ehr_tokenize.synthetic.settings import SyntheticConfig


@dataclass
class EthosConfig(GrammarConfig):
    """Code, quantile and time-interval tokens with a static prefix, as in ETHOS (Renc et al. 2024)."""

    name: str = "ethos"
    num_quantiles: int = 10
    """Values become one of so many tokens ``Q1``, ``Q2``, ... by breaks fitted per code."""
    static_codes: list[str] = field(default_factory=lambda: ["GENDER", "RACE", "ETHNICITY", "MARITAL_STATUS"])
    """Codes that equal one of these, or start with one and ``//``, belong to the static prefix even with a time."""
    timeline_end: bool = True
    """Whether TIMELINE_END follows a subject's last event."""
    top_codes: dict[str, int] = field(default_factory=dict)
    """Start of codes to how many of them stay in the timeline, the most frequent in train; the others are left out."""
    numbers: dict[str, str] = field(default_factory=dict)
    """Start of codes to how their numbers show: ``shared`` (``LAB//K``, ``Q3``; what all others do), ``group``
    (``LAB//K``, ``LAB//Q3``), ``fused`` (``LAB//K//Q3``) or ``alone`` (``Q3``)."""
    equal_width: dict[str, Any] = field(default_factory=dict)
    """Code to [low, high]: its bins have one width between these, instead of being quantiles of train."""
    static_too: list[str] = field(default_factory=list)
    """As ``static_codes``, but the events stay in the timeline as well."""
    weak_static: list[str] = field(default_factory=list)
    """Static tokens from weak to strong, for example ``RACE//UNKNOWN``: none replaces a stronger one of its slot."""


@dataclass
class FusedConfig(GrammarConfig):
    """One token an event, its number binned into the name of its code, as in MEDS-EIC-AR."""

    name: str = "fused"
    num_quantiles: int = 10
    """Numbers fall into so many bins by breaks fitted per code; equal breaks count once."""
    bins: str = "value"
    """How a bin is named: ``value`` (``LAB//K//value_[3.5,4)``) or ``quantile`` (``LAB//K//Q4``)."""
    min_subjects: int = 1
    """A code that fewer subjects of train have becomes [UNK]. The original uses 1000 on MIMIC-IV."""
    keep_codes: list[str] = field(default_factory=lambda: [MEDS_BIRTH, "ADMISSION", "DISCHARGE", *outcome_codes()])
    """Codes that equal one of these, or start with one and ``//``, get a token however rare: outcomes are asked for."""
    birth_event: bool = True
    """Whether MEDS_BIRTH is an event, too, so that a timeline starts at birth."""
    static_codes: list[str] = field(default_factory=lambda: ["GENDER", "RACE", "ETHNICITY", "MARITAL_STATUS"])
    """Codes that equal one of these, or start with one and ``//``, belong to the static prefix even with a time."""
    timeline_end: bool = True
    """Whether TIMELINE//END follows a subject's last event."""


@dataclass
class TokenizeConfig:
    """MEDS dataset to token store."""

    defaults: list[Any] = field(
        default_factory=lambda: [{"source": "synthetic"}, {"tokenizer": "ethos"}, {"executor": "serial"}, "_self_"]
    )
    source: Any = MISSING
    tokenizer: Any = MISSING
    executor: Any = MISSING
    output: Path = MISSING
    """Folder to make; it must not exist yet, or be empty."""
    fitted: Path | None = None
    """Folder with a fitted tokenizer (a token store, or RUN/tokenizer) to use unchanged instead of ``tokenizer``."""
    grow: bool = False
    """Whether the tokenizer of ``fitted`` takes up the codes that are new in this train split, after its own."""
    duplicates: str = "keep"
    """What becomes of a row that repeats an earlier one: ``keep`` or ``drop``. Both count it in the manifest."""


@dataclass
class MakeConfig:
    """A source's records as a MEDS dataset."""

    defaults: list[Any] = field(default_factory=lambda: [{"source": "synthetic"}, {"executor": "serial"}, "_self_"])
    source: Any = MISSING
    executor: Any = MISSING
    output: Path = MISSING
    """Folder to make; it must not exist yet, or be empty."""


@hookimpl
def ehr_sources() -> Iterator[Component]:
    yield Component(
        name="synthetic",
        target="ehr_tokenize.synthetic:SyntheticSource",
        config=SyntheticConfig,
        summary="A made-up cohort with known outcome probabilities",
    )


@hookimpl
def ehr_tokenizers() -> Iterator[Component]:
    yield Component(
        name="ethos",
        target="ehr_tokenize.grammars.ethos:Ethos",
        config=EthosConfig,
        summary="Code, quantile and time-interval tokens with a static prefix",
    )
    yield Component(
        name="fused",
        target="ehr_tokenize.grammars.fused:Fused",
        config=FusedConfig,
        summary="One token an event, its number binned into the code's name",
    )


@hookimpl
def ehr_commands() -> Iterator[Component]:
    yield Component(
        name="tokenize",
        target="ehr_tokenize.commands:tokenize",
        config=TokenizeConfig,
        summary="Turn a MEDS dataset into a token store",
    )
    yield Component(
        name="make",
        target="ehr_tokenize.commands:make",
        config=MakeConfig,
        summary="Write a source's records as a MEDS dataset and keep it",
    )
    yield Component(
        name="inspect-store",
        target="ehr_tokenize.store.inspect_store:inspect",
        config=InspectConfig,
        summary="What is in a token store, as text and as a page with pictures",
    )
    yield Component(
        name="export-hf",
        target="ehr_tokenize.store.export:export_hf",
        config=ExportHFConfig,
        summary="Write a token store's vocabulary as a tokenizer that transformers loads",
    )


main = program("ehr-tokenize", "ehr-tokenize", "tokenize", "make", "export-hf", inspect="inspect-store")
