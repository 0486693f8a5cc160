"""The codes that a synthetic cohort can contain, numbered, and how to read them back."""

import functools
import re
from dataclasses import dataclass, field

import numpy as np

from ehr_tokenize.synthetic import parameters as params

NOVEL = re.compile(r"N[1-9]$")
BIRTH, DEATH, END = "MEDS_BIRTH", "MEDS_DEATH", "END_OF_FOLLOW_UP"
TRANSFER = "HOSPITAL_DISCHARGE//TRANSFER"
"""How the stays that are open at the end of the study are closed."""


@dataclass
class Codes:
    """Code book: `name[id]`; blocks of ids are found by the arrays below. Every array holds ids."""

    name: list[str] = field(default_factory=list)
    description: list[str] = field(default_factory=list)
    parent: list[str] = field(default_factory=list)
    """A code of a public vocabulary, or empty."""
    novel: list[bool] = field(default_factory=list)
    """Whether variants of this code exist; the variants of all such codes come after the last plain code."""

    def add(self, name: str, description: str, parent: str = "", novel: bool = False) -> int:
        """Append a code and return its id."""
        self.name.append(name)
        self.description.append(description)
        self.parent.append(parent)
        self.novel.append(novel)
        return len(self.name) - 1

    def diagnoses(self, icd: tuple[str, ...], description: str) -> np.ndarray:
        """Ids of new diagnosis codes."""
        return np.array(
            [self.add(f"DIAGNOSIS//ICD10CM//{c}", description, f"ICD10CM/{c}", novel=True) for c in icd], np.int32
        )

    def drugs(self, atc: tuple[str, ...], description: str) -> np.ndarray:
        """Ids of new drug codes."""
        return np.array([self.add(f"ATC//{c}", description, f"ATC/{c}", novel=True) for c in atc], np.int32)


class CodeBook(Codes):
    """All codes, with the ids that the generator needs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.birth, self.death, self.end = (
            self.add(BIRTH, "Birth"), self.add(DEATH, "Death"), self.add(END, "End of the study, patient alive"),
        )  # fmt: skip
        self.sex = self._each("GENDER//", ("F", "M"))
        self.race = self._each("RACE//", tuple(name for name, _ in params.ETHNICITIES))
        self.admission = self._each("HOSPITAL_ADMISSION//", tuple(kind[0] for kind in params.ADMISSIONS))
        self.discharge = self._each("HOSPITAL_DISCHARGE//", tuple(place[0] for place in params.DESTINATIONS))
        self.transfer = self.add(TRANSFER, "Stay closed by the end of the study")
        self.units = tuple(dict.fromkeys(reason.unit for reason in params.REASONS))
        self.icu = self._each("ICU_ADMISSION//", self.units)
        self.icu_discharge = self.add("ICU_DISCHARGE", "Left intensive care")
        self.reason = [self.diagnoses(reason.icd, f"Admitted for {reason.name}") for reason in params.REASONS]
        self.disease = [self.diagnoses(disease.icd, disease.name) for disease in params.DISEASES]
        self.drug = [self.drugs(disease.atc, f"Drug for {disease.name}") for disease in params.DISEASES]
        self.signal = np.array([-1] + [self._coded(s.code, s.name) for s in params.SIGNALS[1:]], np.int32)
        self.side = np.array([self._coded(code, name) for code, name, _ in params.SIDE_PROCEDURES], np.int32)
        self.visit = self._coded(*params.EMERGENCY_VISIT)
        self.analyte = np.array([self.add(a.code, a.code.split("//")[1]) for a in params.ANALYTES], np.int32)
        self.first_variant = np.full(len(self.name), -1, np.int32)
        self.plain = len(self.name)
        for code in [i for i, novel in enumerate(self.novel) if novel]:
            self.first_variant[code] = len(self.name)
            for variant in range(1, params.NOVEL_VARIANTS + 1):
                self.add(f"{self.name[code]}N{variant}", f"Unpublished variant: {self.description[code]}")

    def _each(self, prefix: str, names: tuple[str, ...]) -> np.ndarray:
        return np.array([self.add(prefix + name, f"{prefix.strip('/')} {name}") for name in names], np.int32)

    def _coded(self, code: str, description: str) -> int:
        vocabulary, _, leaf = code.partition("//")
        return self.add(code, description, f"{vocabulary}/{leaf}", novel=vocabulary == "ATC")


def plain_code(code: str) -> str:
    """The code that a diagnosis or drug code is a variant of; any other code as it is."""
    return NOVEL.sub("", code) if code.startswith(("DIAGNOSIS//", "ATC//")) else code


@functools.cache
def code_book() -> CodeBook:
    """The one code book; it depends on no setting."""
    return CodeBook()
