"""The tokenizer ``cehr`` and its settings. Import-light: the code behind the target loads on first use."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ehr_core import Component, hookimpl
from ehr_tokenize.grammars.settings import GrammarConfig


@dataclass
class CehrConfig(GrammarConfig):
    """Visits with artificial time tokens between them, as in CEHR-GPT."""

    name: str = "cehr"
    admission_codes: list[str] = field(default_factory=lambda: ["HOSPITAL_ADMISSION", "ADMISSION"])
    """Codes that equal one of these, or start with one and ``//``, open a stay; the code itself is the visit type."""
    discharge_codes: list[str] = field(default_factory=lambda: ["HOSPITAL_DISCHARGE", "DISCHARGE"])
    """Codes of this kind close the stay that is open."""
    outside: str = "VISIT//OUTPATIENT"
    """The visit type of events outside any stay; those of one day are one visit."""
    time_tokens: str = "cehr_bert"
    """Names of the tokens between visits: cehr_bert, day, week, month, mix or mix_long."""
    stay_time_tokens: str = "none"
    """The same for days within a stay (``i-D1``); none: there are no such tokens."""
    stay_hours: bool = False
    """Whether a stay has tokens ``i-H9``: the hour of its start and of a new day's first event, else hours passed."""
    num_quantiles: int = 10
    """Numbers become one of so many tokens ``BIN:0``, ``BIN:1``, ... by breaks fitted per code."""
    min_subjects: int = 1
    """A code that fewer subjects of train have becomes [UNK]."""
    static_codes: list[str] = field(default_factory=lambda: ["GENDER", "RACE"])
    """Codes that equal one of these, or start with one and ``//``, follow year and age in the prefix of a window."""
    timeline_end: bool = True
    """Whether [END] follows a subject's last token."""


@hookimpl
def ehr_tokenizers() -> Iterator[Component]:
    yield Component(
        name="cehr",
        target="ehr_cehr.tokenizer:Cehr",
        config=CehrConfig,
        summary="Visits with artificial time tokens between them",
    )
