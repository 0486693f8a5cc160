"""What ehr-synthea brings: the source `synthea`. Nothing heavy is imported here."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ehr_core import Component, hookimpl
from ehr_tokenize.sources.settings import TablesConfig


@dataclass
class SyntheaConfig(TablesConfig):
    """The folder of CSV files that Synthea's exporter writes, as MEDS."""

    name: str = "synthea"
    ends: bool = True
    """Whether the end of a condition, medication, care plan, allergy or device is an event, ``CODE//END``, when it is
    after its start. Encounters always have theirs."""
    units: bool = True
    """Whether the unit of a number is part of its code, ``LOINC//29463-7//kg``, so that no quantile mixes units."""
    inpatient: list[str] = field(default_factory=lambda: ["inpatient"])
    """Classes of encounters that become HOSPITAL_ADMISSION and HOSPITAL_DISCHARGE; others become VISIT_START and
    VISIT_END."""


@hookimpl
def ehr_sources() -> Iterator[Component]:
    yield Component(
        name="synthea",
        target="ehr_synthea.source:SyntheaSource",
        config=SyntheaConfig,
        summary="Synthea's CSV files: patients, encounters, conditions, ...",
    )
