"""What ehr-omop brings: the source `omop`. Nothing heavy is imported here."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ehr_core import Component, hookimpl
from ehr_tokenize.sources.settings import TablesConfig


@dataclass
class OmopConfig(TablesConfig):
    """A folder with tables of the OMOP CDM 5.3 or 5.4 as CSV, CSV.gz or Parquet, written as MEDS."""

    name: str = "omop"
    tables: list[str] = field(
        default_factory=lambda: [
            "visit_occurrence",
            "condition_occurrence",
            "drug_exposure",
            "procedure_occurrence",
            "device_exposure",
            "measurement",
            "observation",
            "specimen",
            "death",
        ]
    )
    """Tables that give events, beside ``person``; one that the folder lacks is left out. ``visit_detail`` may be added:
    some databases use it for stays on wards, others repeat each visit there."""
    source_codes: bool = False
    """Whether a record's code is that of its source vocabulary (ICD10CM, NDC) where there is one, rather than the
    standard concept (SNOMED, RxNorm)."""
    ends: bool = True
    """Whether the end of a condition, drug, device or procedure is an event, ``CODE//END``, when it is after its start.
    Visits always have theirs."""
    units: bool = True
    """Whether the unit of a number is part of its code, ``LOINC//718-7//g/dL``, so that no quantile mixes units."""
    inpatient: list[int] = field(default_factory=lambda: [9201, 262, 8717, 8971])
    """Concept ids of visits that become HOSPITAL_ADMISSION and HOSPITAL_DISCHARGE; all others become VISIT_START and
    VISIT_END. Inpatient visit, emergency room and inpatient visit, inpatient hospital, inpatient psychiatric."""


@hookimpl
def ehr_sources() -> Iterator[Component]:
    yield Component(
        name="omop",
        target="ehr_omop.source:OmopSource",
        config=OmopConfig,
        summary="OMOP CDM 5.3 or 5.4 tables: CSV, CSV.gz or Parquet",
    )
