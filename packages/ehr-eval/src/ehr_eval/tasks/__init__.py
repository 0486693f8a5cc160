"""Clinical questions asked of MEDS events, and the blocks that they are built of.

Codes of stays are matched whole or up to a ``//``, those of diagnoses by how they begin; nothing crosses a subject, and
nothing after the end of the data is looked at. Stays are those of `ehr_core.stays`, which tokens have too: the order of
rows within an instant means nothing.
"""

from ehr_eval.tasks.after_discharge import NextDiagnoses, Readmission30d
from ehr_eval.tasks.in_hospital import InHospitalMortality, LengthOfStay, LengthOfStayClass, TimeToDeath
from ehr_eval.tasks.records import codes_with

__all__ = [
    "InHospitalMortality",
    "LengthOfStay",
    "LengthOfStayClass",
    "NextDiagnoses",
    "Readmission30d",
    "TimeToDeath",
    "codes_with",
]
