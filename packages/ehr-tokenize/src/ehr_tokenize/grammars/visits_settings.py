"""Settings that all visit grammars share. Import-light, so that a plugin's module may subclass it."""

from dataclasses import dataclass, field
from pathlib import Path

from ehr_tokenize.grammars.settings import GrammarConfig


@dataclass
class VisitsConfig(GrammarConfig):
    """Codes in visits, with age, visit and segment for each; see `ehr_tokenize.grammars.visits`."""

    name: str = "visits"
    grouping: str = "hybrid"
    """``same_day``; ``time_window``: a gap above ``gap_hours`` ends a visit; ``encounter``: from an admission to a
    discharge code, what is outside has visit 0; ``hybrid``: as ``encounter``, what is outside by day."""
    gap_hours: float = 24.0
    """For ``time_window``: hours without an event after which the next one starts a new visit."""
    admission_codes: list[str] = field(default_factory=lambda: ["HOSPITAL_ADMISSION", "ADMISSION"])
    """Codes that equal one of these, or start with one and ``//``, start a visit."""
    discharge_codes: list[str] = field(default_factory=lambda: ["HOSPITAL_DISCHARGE", "DISCHARGE"])
    """Codes that end a visit, in the same way."""
    sep: bool = True
    """Whether [SEP] stands between visits, at the time at which the next one shows that the last is over."""
    cls: bool = True
    """Whether [CLS] stands before a subject's first code."""
    unique: bool = False
    """Whether a code counts once a visit, where it is first seen."""
    icd_level: str = "full"
    """``full``, or ``3-digit``: diagnoses by ICD category, ``ICD10CM//E11`` for E11.65."""
    atc_level: int = 7
    """Characters of an ATC code that are kept: 1, 3, 4, 5 or 7."""
    mapping: Path | None = None
    """JSON file ``{MEDS code: code}``, for example from ICD to phecodes; what it names is not shortened further."""
    entities: dict[str, str] = field(
        default_factory=lambda: {
            **dict.fromkeys(("DIAGNOSIS", "CONDITION", "ICD9CM", "ICD10CM", "PHECODE"), "diagnosis"),
            **dict.fromkeys(("MEDICATION", "DRUG", "ATC", "RXNORM", "NDC"), "drug"),
            **dict.fromkeys(("PROCEDURE", "CPT", "HCPCS", "ICD9PROC", "ICD10PCS"), "procedure"),
            **dict.fromkeys(("LAB", "VITAL", "MEASUREMENT", "LOINC"), "measurement"),
        }
    )
    """First part of a code (before ``//``) to the type of entity; every other code is of type ``other``."""
    only_entities: list[str] = field(default_factory=list)
    """Types of entities to keep; empty: all."""
    entity: bool = False
    """Whether the store has a column ``entity``."""
    static: str = "none"
    """Sex and region: ``columns`` (an id at each token), ``prefix`` (tokens before each window) or ``none``."""
    sex_codes: list[str] = field(default_factory=lambda: ["GENDER", "SEX"])
    """Codes ``GENDER//F`` that give the sex."""
    region_codes: list[str] = field(default_factory=lambda: ["REGION", "STATE"])
    """Codes ``REGION//CA`` that give the region."""
    max_sexes: int = 8
    """Ids of the column ``sex`` are below this: 0 none, 1 unknown, then values by how often train has them."""
    max_regions: int = 64
    """Ids of the column ``region`` are below this, in the same way; rarer values are unknown."""
