"""Components and settings of ehr-tokenize. Import-light: the code behind the targets loads on first use."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ehr_core import Component, hookimpl
from ehr_core.cli import program
from omegaconf import MISSING

from ehr_tokenize.synthetic.settings import SyntheticConfig


@dataclass
class MedsConfig:
    """A MEDS dataset that is there already; it is checked and used where it is."""

    name: str = "meds"
    path: str = MISSING
    """Folder with ``data/train``, ``data/tuning`` and ``data/held_out``, each with Parquet files."""


@dataclass
class EthosConfig:
    """Code, quantile and time-interval tokens with a static prefix, as in ETHOS (Renc et al. 2024)."""

    name: str = "ethos"
    num_quantiles: int = 10
    """Values become one of so many tokens ``Q1``, ``Q2``, ... by breaks fitted per code."""
    min_count: int = 5
    """A code with fewer rows than this in train becomes [UNK] (a static one: its slot's unknown token)."""
    static_codes: list[str] = field(default_factory=lambda: ["GENDER", "RACE", "ETHNICITY", "MARITAL_STATUS"])
    """Codes that equal one of these, or start with one and ``//``, belong to the static prefix even with a time."""
    timeline_end: bool = True
    """Whether TIMELINE_END follows a subject's last event."""
    value: bool = False
    """Whether the token store has a column ``value``: the number of a code token, NaN where there is none."""


@dataclass
class TokenizeConfig:
    """MEDS dataset to token store."""

    defaults: list[Any] = field(
        default_factory=lambda: [{"source": "synthetic"}, {"tokenizer": "ethos"}, {"executor": "serial"}, "_self_"]
    )
    source: Any = MISSING
    tokenizer: Any = MISSING
    executor: Any = MISSING
    output: str = MISSING
    """Folder to make; it must not exist yet, or be empty."""
    fitted: str | None = None
    """Folder with a fitted tokenizer (a token store, or RUN/tokenizer) to use unchanged instead of ``tokenizer``."""


@hookimpl
def ehr_sources() -> Iterator[Component]:
    yield Component(
        name="meds",
        target="ehr_tokenize.meds:MedsSource",
        config=MedsConfig,
        summary="A MEDS dataset on disk, checked and used where it is",
    )
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
        target="ehr_tokenize.ethos:Ethos",
        config=EthosConfig,
        summary="Code, quantile and time-interval tokens with a static prefix",
    )


@hookimpl
def ehr_commands() -> Iterator[Component]:
    yield Component(
        name="tokenize",
        target="ehr_tokenize.command:tokenize",
        config=TokenizeConfig,
        summary="Turn a MEDS dataset into a token store",
    )


main = program("ehr-tokenize", "ehr-tokenize", "tokenize")
