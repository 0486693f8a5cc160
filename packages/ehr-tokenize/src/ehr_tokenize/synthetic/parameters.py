"""Every number of the synthetic cohort, as tables. The laws that use them are in `laws`; the values are plausible, not
fitted to anyone's patients. Codes of diseases, reasons and signals are disjoint, so that a record says which is which.
"""

from dataclasses import dataclass, field

SEVERITIES = 4
"""Levels of the latent acute severity of a stay: 0 mild, 1 moderate, 2 severe, 3 critical."""


@dataclass(frozen=True)
class Disease:
    """A chronic disease; log odds at first admission: logit(prevalence) + age_slope (age - 65)/10 + male + parents."""

    name: str
    prevalence: float
    """Among women of 65 without any parent disease."""
    age_slope: float
    male: float
    icd: tuple[str, ...]
    atc: tuple[str, ...]
    parents: dict[str, float] = field(default_factory=dict)
    """Earlier diseases of the list that raise the log odds."""
    severity: float = 0.0
    """Added to the linear predictor of acute severity."""
    death: float = 0.0
    """Log hazard ratio of death in hospital."""
    readmission: float = 0.0
    """Log hazard ratio of admission within 30 days of a discharge."""
    home_death: float = 0.0
    """Log hazard ratio of death out of hospital."""


# fmt: off
DISEASES: tuple[Disease, ...] = (
    Disease("hypertension", 0.45, 0.45, 0.0, ("I10", "I11.9", "I15.9"), ("C09AA02", "C08CA01", "C09CA01")),
    Disease("type 2 diabetes", 0.18, 0.20, 0.25, ("E11.9", "E11.65", "E11.22", "E11.40"), ("A10BA02", "A10AE04"),
            {"hypertension": 0.3}, readmission=0.1),
    Disease("coronary artery disease", 0.10, 0.45, 0.60, ("I25.10", "I25.2", "I25.5"), ("B01AC06", "C10AA05"),
            {"hypertension": 0.5, "type 2 diabetes": 0.3}, home_death=0.2),
    Disease("atrial fibrillation", 0.06, 0.65, 0.30, ("I48.0", "I48.2", "I48.91"), ("B01AF02", "C07AB02", "C01AA05"),
            {"hypertension": 0.3}),
    Disease("chronic kidney disease", 0.08, 0.45, 0.0, ("N18.3", "N18.4", "N18.9"), ("V03AE02", "B03XA01"),
            {"hypertension": 0.5, "type 2 diabetes": 0.6}, severity=0.25, death=0.2, readmission=0.45, home_death=0.3),
    Disease("heart failure", 0.05, 0.55, 0.20, ("I50.9", "I50.22", "I50.32", "I50.23"), ("C03CA01", "C03DA01"),
            {"hypertension": 0.4, "coronary artery disease": 0.8, "atrial fibrillation": 0.6},
            severity=0.35, death=0.3, readmission=0.9, home_death=0.6),
    Disease("stroke", 0.04, 0.50, 0.10, ("I63.9", "I69.30", "Z86.73"), ("B01AC04",),
            {"hypertension": 0.4, "atrial fibrillation": 0.5}, severity=0.2, home_death=0.2),
    Disease("COPD", 0.11, 0.30, 0.10, ("J44.9", "J44.1", "J44.0"), ("R03BB04", "R03AK06"),
            severity=0.25, readmission=0.6, home_death=0.3),
    Disease("asthma", 0.09, -0.15, -0.35, ("J45.909", "J45.40", "J45.20"), ("R03AC02", "R03BA02")),
    Disease("cancer", 0.11, 0.35, 0.10, ("C34.90", "C50.919", "C61", "C18.9"), ("L01XC03", "A04AA01"),
            severity=0.4, death=0.5, readmission=0.9, home_death=1.2),
    Disease("depression", 0.19, -0.10, -0.55, ("F32.9", "F33.1", "F33.9"), ("N06AB06", "N06AX16"), readmission=0.4),
    Disease("hypothyroidism", 0.13, 0.20, -1.20, ("E03.9", "E03.8", "E06.3"), ("H03AA01",)),
)
# fmt: on
ONSET_PER_YEAR = 0.04
"""Hazard of a disease's onset between stays, a year, as a multiple of its probability at that age."""
RECODED = 0.6
"""Chance that a disease that is known already is coded again at an admission; a new one always is."""
TREATED = 0.75
"""Chance that a disease's drug is given in a stay."""


@dataclass(frozen=True)
class Reason:
    """Why a patient comes: the first diagnosis of each stay."""

    name: str
    icd: tuple[str, ...]
    weight: float
    """Relative frequency among unplanned stays; planned ones use ``planned``."""
    planned: float
    severity: float
    unit: str
    """Intensive care unit that would take the patient."""


REASONS: tuple[Reason, ...] = (
    Reason("sepsis", ("A41.9", "A41.51", "A41.01"), 0.10, 0.0, 1.5, "MICU"),
    Reason("pneumonia", ("J18.9", "J15.9"), 0.14, 0.0, 0.6, "MICU"),
    Reason("respiratory failure", ("J96.01", "J96.02"), 0.06, 0.0, 1.2, "MICU"),
    Reason("myocardial infarction", ("I21.4", "I21.3"), 0.10, 0.0, 0.6, "CCU"),
    Reason("gastrointestinal bleeding", ("K92.2", "K92.1"), 0.10, 0.0, 0.4, "MICU"),
    Reason("urinary tract infection", ("N39.0",), 0.14, 0.0, 0.0, "MICU"),
    Reason("cellulitis", ("L03.115", "L03.116"), 0.10, 0.0, -0.3, "MICU"),
    Reason("hip fracture", ("S72.001A", "S72.002A"), 0.10, 0.0, 0.1, "SICU"),
    Reason("syncope", ("R55",), 0.16, 0.0, -0.6, "CCU"),
    Reason("knee replacement", ("M17.11", "M17.12"), 0.0, 0.5, -0.5, "SICU"),
    Reason("gallstones", ("K80.20", "K81.0"), 0.0, 0.3, -0.2, "SICU"),
    Reason("hernia", ("K40.90", "K43.9"), 0.0, 0.2, -0.5, "SICU"),
)

ADMISSIONS: tuple[tuple[str, float, float, float], ...] = (
    ("EMERGENCY", 0.66, 0.0, 0.25),
    ("URGENT", 0.16, -0.3, 0.0),
    ("ELECTIVE", 0.18, -0.9, -0.35),
)
"""Kind, share, effect on severity, log hazard ratio of readmission."""
PLANNED = 2
"""Place of the kind that has the planned reasons."""

SEVERITY_CUTS = (0.5, 1.8, 3.0)
"""P(severity >= j) = sigmoid(predictor - cut j)."""
SEVERITY_AGE = 0.30
"""Per ten years above 65."""
DEATH_PER_DAY = (0.0036, 0.0115, 0.034, 0.095)
"""Hazard of death in hospital by severity, at 65 without disease."""
DEATH_AGE = 0.40
DISCHARGE_PER_DAY = (0.32, 0.24, 0.16, 0.12)
"""Hazard of discharge by severity, from `DISCHARGE_FROM_HOURS` on."""
DISCHARGE_FROM_HOURS = 12
DESTINATIONS: tuple[tuple[str, tuple[float, ...], float], ...] = (
    ("HOME", (0.80, 0.70, 0.55, 0.40), 0.0),
    ("HOME_HEALTH", (0.12, 0.17, 0.22, 0.25), 0.2),
    ("SNF", (0.08, 0.13, 0.23, 0.35), 0.4),
)
"""Code, probability by severity, log hazard ratio of readmission."""

READMISSION_PER_DAY = 0.0019
"""Hazard in the first 30 days after a discharge, at 65, without disease, first stay, urgent, severity 0, to home."""
READMISSION_AGE = 0.05
READMISSION_SEVERITY = (0.0, 0.1, 0.2, 0.3)
READMISSION_PREVIOUS = 0.32
"""Log hazard ratio per previous stay, up to `PREVIOUS_CAP`."""
PREVIOUS_CAP = 4
READMISSION_DAYS = 30
NEXT_HORIZON_DAYS = 1095
"""The question of the next diagnoses is asked of who comes back within so many days."""
LENGTH_EDGES = (2.0, 5.0)
"""Days that are left of a stay at which its next class begins."""
LATE_PER_DAY = 0.0006
"""Hazard of admission from day 30 on, times the square root of the visible part of the readmission ratio."""
HOME_DEATH_PER_DAY = 0.00005
HOME_DEATH_AGE = 0.70


@dataclass(frozen=True)
class Signal:
    """An event of the first hours whose probability depends on severity alone."""

    code: str
    name: str
    probability: tuple[float, float, float, float]


SIGNALS: tuple[Signal, ...] = (
    Signal("ICU_ADMISSION", "intensive care", (0.02, 0.10, 0.45, 0.85)),
    Signal("ATC//C01CA03", "norepinephrine", (0.002, 0.02, 0.15, 0.55)),
    Signal("ATC//J01CR05", "piperacillin and tazobactam", (0.05, 0.10, 0.25, 0.40)),
    Signal("CPT//31500", "intubation", (0.002, 0.01, 0.10, 0.40)),
    Signal("CPT//36556", "central venous catheter", (0.005, 0.03, 0.20, 0.50)),
)
"""The first is admission to the reason's intensive care unit."""
ICU_MEAN_DAYS = 2.0

SIDE_PROCEDURES: tuple[tuple[str, str, float], ...] = (
    ("CPT//71045", "chest X-ray, one view", 0.5),
    ("CPT//93000", "electrocardiogram", 0.4),
)
"""Code, name, chance in a stay; they say nothing about severity."""
EMERGENCY_VISIT = ("CPT//99285", "emergency department visit, high severity")


@dataclass(frozen=True)
class Analyte:
    """A lab or vital: normal (or log-normal) around a mean, rounded to the grid and clipped to its ends."""

    code: str
    log: bool
    base: float
    """Mean (median if log) at severity 0 without disease."""
    sd: float
    """On the natural logarithm if log."""
    shift: tuple[float, float, float]
    """Added to the mean at severity 1, 2, 3 in the first 24 hours: units, or a logarithm if log."""
    step: float
    low: float
    high: float
    disease: dict[str, float] = field(default_factory=dict)
    """At most two diseases that move the mean, at any time."""
    repeated: bool = False
    """Measured again 20 to 23 hours after admission."""
    daily: bool = False
    """Measured each day from the second on."""


# fmt: off
ANALYTES: tuple[Analyte, ...] = (
    Analyte("VITAL//heart_rate//bpm", False, 78, 12, (9, 21, 33), 1, 20, 220, {"atrial fibrillation": 7}, True, True),
    Analyte("VITAL//systolic_bp//mmHg", False, 130, 14, (-7, -20, -36), 1, 40, 250, {"hypertension": 9}, True, True),
    Analyte("VITAL//respiratory_rate//breaths/min", False, 16, 3, (2, 5, 10), 1, 4, 60, {"COPD": 2}, True),
    Analyte("VITAL//spo2//%", False, 97, 1.8, (-1, -3, -6), 1, 50, 100, {"COPD": -3}, True),
    Analyte("VITAL//temperature//C", False, 36.9, 0.5, (0.2, 0.5, 0.7), 0.1, 30, 43),
    Analyte("VITAL//gcs//score", False, 15.0, 1.4, (-0.6, -2.6, -6.0), 1, 3, 15, {"stroke": -0.6}, True),
    Analyte("LAB//lactate//mmol/L", True, 1.2, 0.33, (0.32, 0.80, 1.45), 0.1, 0.3, 25, {}, True),
    Analyte("LAB//creatinine//mg/dL", True, 0.9, 0.28, (0.20, 0.50, 0.85), 0.1, 0.2, 15,
            {"chronic kidney disease": 0.6}, True, True),
    Analyte("LAB//wbc//10^9/L", True, 8.0, 0.35, (0.15, 0.35, 0.55), 0.1, 0.1, 80),
    Analyte("LAB//platelets//10^9/L", False, 245, 60, (-10, -35, -75), 1, 5, 900),
    Analyte("LAB//bilirubin//mg/dL", True, 0.6, 0.45, (0.1, 0.4, 0.8), 0.1, 0.1, 40),
    Analyte("LAB//hemoglobin//g/dL", False, 13.2, 1.5, (-0.3, -0.8, -1.2), 0.1, 3, 20,
            {"chronic kidney disease": -1.2, "cancer": -1.0}, False, True),
    Analyte("LAB//sodium//mmol/L", False, 139, 3.2, (0, 0, 0), 1, 105, 175, {"heart failure": -1.5}),
    Analyte("LAB//potassium//mmol/L", False, 4.1, 0.45, (0, 0.1, 0.3), 0.1, 1.5, 9, {"chronic kidney disease": 0.4}),
    Analyte("LAB//glucose//mg/dL", True, 105, 0.18, (0.05, 0.12, 0.2), 1, 20, 900, {"type 2 diabetes": 0.45}),
    Analyte("LAB//bnp//pg/mL", True, 60, 0.7, (0.1, 0.2, 0.3), 5, 5, 4500, {"heart failure": 2.0}),
)
# fmt: on
LATER = 0.3
"""Share of the severity shift that is left in labs and vitals from 24 hours on."""
MAX_DAILY = 7
"""Daily measurements are on days 1 to `MAX_DAILY` - 1 of a stay."""

ETHNICITIES: tuple[tuple[str, float], ...] = (
    ("WHITE", 0.66),
    ("BLACK", 0.14),
    ("HISPANIC", 0.10),
    ("ASIAN", 0.06),
    ("OTHER", 0.04),
)
"""Race and share; nothing depends on it."""
MALE = 0.48
AGE_MEAN, AGE_SD, AGE_LOW, AGE_HIGH = 62.0, 17.0, 18.0, 95.0
"""Age at first admission: normal, clipped."""
ENTRY_SHARE = 0.8
"""First admissions are uniform over this first share of the study."""
NOVEL_VARIANTS = 4
"""Variants of a code, written as ``CODE`` + N1 .. N4; no published vocabulary has such codes."""
