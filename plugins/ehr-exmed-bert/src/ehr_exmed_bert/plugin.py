"""What ehr-exmed-bert brings: the tokenizer exmed_bert and the source patients_json. Nothing heavy is imported here."""

from collections.abc import Iterator
from dataclasses import dataclass

from ehr_core import Component, hookimpl
from ehr_tokenize.visits_settings import VisitsConfig
from omegaconf import MISSING


@dataclass
class ExMedBertConfig(VisitsConfig):
    """Codes with age, visit, entity, sex and region at each position, as in ExMed-BERT (Lentzen et al. 2023)."""

    name: str = "exmed_bert"
    grouping: str = "same_day"
    sep: bool = False
    cls: bool = False
    entity: bool = True
    static: str = "columns"


@dataclass
class PatientsJsonConfig:
    """Patients in the JSON of ExMed-BERT, nested or flat, read as a stream and written as MEDS."""

    name: str = "patients_json"
    path: str = MISSING
    """The JSON file: a list of patients, or an object whose ``patients`` is one."""
    train: float = 0.8
    """Share of the split train; a hash of (seed, subject) decides where a subject goes."""
    tuning: float = 0.1
    """Share of the split tuning."""
    held_out: float = 0.1
    """Share of the split held_out."""
    shard_subjects: int = 10_000
    """Subjects in one shard at most: the bound of memory."""
    seed: int = 0
    """Part of the hash that splits."""


@hookimpl
def ehr_sources() -> Iterator[Component]:
    yield Component(
        name="patients_json",
        target="ehr_exmed_bert.patients:PatientsJson",
        config=PatientsJsonConfig,
        summary="Patients as JSON: diagnoses, drugs and procedures with dates",
    )


@hookimpl
def ehr_tokenizers() -> Iterator[Component]:
    yield Component(
        name="exmed_bert",
        target="ehr_exmed_bert.tokenizer:ExMedBert",
        config=ExMedBertConfig,
        summary="Codes with age, visit, entity, sex and region at each position",
    )
