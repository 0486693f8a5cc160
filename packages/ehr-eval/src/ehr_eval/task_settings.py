"""Settings of the tasks of ehr-eval. Nothing heavy is imported here."""

from dataclasses import dataclass, field

DISEASES: dict[str, tuple[str, ...]] = {
    "hypertension": ("I10", "I11", "I12", "I13", "I15"),
    "type 2 diabetes": ("E11",),
    "coronary artery disease": ("I25",),
    "atrial fibrillation": ("I48",),
    "chronic kidney disease": ("N18",),
    "heart failure": ("I50",),
    "stroke": ("I63", "I69", "Z86.73", "Z8673"),
    "COPD": ("J44",),
    "asthma": ("J45",),
    "cancer": ("C",),
    "depression": ("F32", "F33"),
    "hypothyroidism": ("E03", "E06.3", "E063"),
}
"""Chronic diseases and the beginnings of their ICD-10-CM codes: those that the synthetic cohort has, in its order."""


@dataclass
class StayCodes:
    """Codes that say when a stay begins and ends; every task has these settings."""

    name: str = ""
    admission: list[str] = field(default_factory=lambda: ["HOSPITAL_ADMISSION"])
    """Prefixes of codes that begin a stay."""
    discharge: list[str] = field(default_factory=lambda: ["HOSPITAL_DISCHARGE"])
    """Prefixes of codes that end a stay."""
    death: list[str] = field(default_factory=lambda: ["MEDS_DEATH"])
    """Prefixes of codes that mean death."""


@dataclass
class InHospitalCodes(StayCodes):
    """What all questions about a stay share that are asked while it goes on."""

    prediction_offset_hours: float = 24.0
    """Hours from admission to the prediction time."""


@dataclass
class InHospitalMortalityConfig(InHospitalCodes):
    """Death before the discharge of a stay, asked some hours after admission."""

    name: str = "in_hospital_mortality"


@dataclass
class LengthOfStayConfig(InHospitalCodes):
    """Days that are left of a stay, asked some hours after admission."""

    name: str = "length_of_stay"


@dataclass
class LengthOfStayClassConfig(InHospitalCodes):
    """Days that are left of a stay in classes, asked some hours after admission."""

    name: str = "length_of_stay_class"
    edges: list[float] = field(default_factory=lambda: [2.0, 5.0])
    """Days at which the next class begins, ascending: K - 1 of them for K classes."""


@dataclass
class TimeToDeathConfig(InHospitalCodes):
    """Days to death in hospital, censored at a live discharge, asked some hours after admission."""

    name: str = "time_to_death"


@dataclass
class Readmission30dConfig(StayCodes):
    """A new admission within some days of a live discharge, asked at the discharge."""

    name: str = "readmission_30d"
    horizon_days: float = 30.0
    """Days after the discharge in which an admission counts."""


@dataclass
class NextDiagnosesConfig(StayCodes):
    """Diagnoses that the next stay brings for the first time, asked at a live discharge."""

    name: str = "next_diagnoses"
    horizon_days: float = 1095.0
    """The next stay has to begin within so many days of the discharge."""
    systems: list[str] = field(default_factory=lambda: ["DIAGNOSIS//ICD10CM//", "DIAGNOSIS//ICD//10//"])
    """What a dataset writes before a diagnosis; each of these with each beginning of ``groups`` is a prefix."""
    groups: dict[str, list[str]] = field(default_factory=dict)
    """Name of a label to beginnings of its codes, for example ``{heart failure: [I50]}``. Empty: the chronic diseases
    of `ehr_eval.task_settings.DISEASES`, by ICD-10-CM."""
