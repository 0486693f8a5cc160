"""The source ``patients_json``: patients in the JSON of ExMed-BERT, to MEDS.

A patient is an object with ``patient_id`` and, where they are known, ``birth_year`` (or ``birth_date``), ``sex`` and
``patient_state`` (or ``state``, ``region``). Diagnoses, drugs and procedures come in one of two forms:

    nested   "diagnoses": [{"code": "E11.65", "date": "2020-01-15"}], "prescriptions": [...], "procedures": [...]
    flat     "diagnoses": ["E11.65"], "diagnosis_dates": ["20200115"], "drugs" and "prescription_dates", "procedures"
             and "procedure_dates"

They become ``ICD10CM//E11.65``, ``ATC//N02BE01`` and ``CPT//99213`` at midnight of their day (or at the time, where one
is given, on the clock that was written), ``GENDER//F`` and ``REGION//CA`` without a time, and MEDS_BIRTH, on 1 January
where only a year is known. A whole number is kept as subject id; any other ``patient_id`` becomes a hash of 63 bits:
see ``metadata/subject_ids.parquet``. Entries without a code or a date are left out and counted.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from ehr_core.constants import MEDS_BIRTH, SPLITS
from ehr_core.errors import ConfigError, DataError, FormatError, NotApplicable
from ehr_core.formats.folder import file_digest
from ehr_core.formats.parquet import write_frame
from ehr_core.progress import Progress
from ehr_core.protocols import Executor
from ehr_tokenize.sources.cells import Reading, check_clocks, reading_of
from ehr_tokenize.sources.splits import shares_of, split_of
from ehr_tokenize.sources.times import is_placeholder, parse_times
from ehr_tokenize.sources.to_meds import BOOK, left_and_treated, write_events, write_metadata, write_treated

from ehr_exmed_bert.__about__ import __version__
from ehr_exmed_bert.json_stream import patients
from ehr_exmed_bert.plugin import PatientsJsonConfig

EVENTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("ICD10CM", ("diagnoses",), "diagnosis_dates"),
    ("ATC", ("drugs", "prescriptions"), "prescription_dates"),
    ("CPT", ("procedures",), "procedure_dates"),
)
"""Prefix of the code, names of the list, name of the list of dates in the flat form."""
STATICS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("GENDER", ("sex", "gender")),
    ("REGION", ("patient_state", "state", "region")),
)
BIRTHS = ("birth_date", "birth_year")
READINGS = ("patient", *(name for _, names, _ in EVENTS for name in names))
"""What is counted apart."""
KEYS = frozenset({
    "patient_id", *BIRTHS, *(name for _, names in STATICS for name in names),
    *(name for _, names, dates in EVENTS for name in (*names, dates)),
})  # fmt: skip
"""What a patient may have. Others are ignored and counted, or refused when they look like one of these."""
SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
}


@dataclass
class Rows:
    """Events of some patients, as lists."""

    subject_id: list[int] = field(default_factory=list)
    time: list[datetime | None] = field(default_factory=list)
    code: list[str] = field(default_factory=list)

    def add(self, subject: int, time: datetime | None, code: str) -> None:
        """One event."""
        self.subject_id.append(subject)
        self.time.append(time)
        self.code.append(code)

    def frame(self) -> pl.DataFrame:
        """MEDS events, sorted; those of one time keep their order."""
        columns = {"subject_id": self.subject_id, "time": self.time, "code": self.code}
        events = pl.DataFrame(columns | {"numeric_value": [None] * len(self.code)}, SCHEMA)
        return events.sort("subject_id", "time", nulls_last=False, maintain_order=True)


class PatientsJson:
    """See the module. Raises ConfigError for shares that do not add up to 1, and a zone that does not exist."""

    place = None

    def __init__(self, settings: PatientsJsonConfig):
        self.shares = shares_of(settings.train, settings.tuning, settings.held_out)
        if settings.shard_subjects < 1:
            raise ConfigError(f"source.shard_subjects is {settings.shard_subjects}; it must be at least 1")
        reading_of(settings)
        self.settings = settings
        self.path = Path(settings.path)
        self._ignored: Counter[str] = Counter()
        self._readings: dict[str, Reading] = {}

    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of the file. Raises FormatError when it is missing."""
        self._refuse_folder()
        if not self.path.is_file():
            raise FormatError(f"{self.path} is missing")
        return {self.path.name: file_digest(self.path)}

    def _refuse_folder(self) -> None:
        if self.path.is_dir():
            raise NotApplicable(
                f"{self.path} is a folder; source=patients_json reads one JSON file (MEDS: source=meds)"
            )

    def provide(self, output: Path, executor: Executor) -> Path:
        """Fill ``output`` with the dataset. Raises DataError or FormatError that names a patient by its number."""
        self._refuse_folder()
        self._ignored.clear()
        self._readings = {name: reading_of(self.settings) for name in READINGS}
        ids: dict[int, str] = {}
        splits: list[np.ndarray] = []
        codes: set[str] = set()
        written = dict.fromkeys(SPLITS, 0)
        found = enumerate(patients(self.path), 1)
        bar = Progress("patients_json", None, "patients")
        for rows, subjects in self._batches(found, ids):
            events = rows.frame()
            codes.update(events["code"].unique())
            splits.append(split_of(np.array(subjects, np.int64), self.settings.seed, self.shares))
            owner = pl.DataFrame({"subject_id": subjects, "split": splits[-1]})
            owned = events.join(owner, on="subject_id", how="left", maintain_order="left")
            for index, split in enumerate(SPLITS):
                part = owned.filter(pl.col("split") == index).drop("split")
                if len(part):
                    self._write(output, split, written, part)
            bar.update(len(subjects))
        bar.close()
        if self._ignored:
            often = ", ".join(f"{key} ({number:,} patients)" for key, number in self._ignored.most_common(10))
            print(f"patients_json: {len(self._ignored)} unknown keys ignored: {often}", file=sys.stderr)
        if not ids:
            raise DataError(f"{self.path} has no patient")
        for split in SPLITS:
            if not written[split]:  # MEDS wants a file in each split, also one without rows
                self._write(output, split, written, pl.DataFrame(schema=SCHEMA))
        check_clocks(self._readings)
        write_treated(output, *left_and_treated(self._readings), {})
        self._write_metadata(output, ids, np.concatenate(splits), sorted(codes))
        return output

    def _batches(
        self, found: Iterator[tuple[int, dict[str, Any]]], ids: dict[int, str]
    ) -> Iterator[tuple[Rows, list[int]]]:
        while batch := list(itertools.islice(found, self.settings.shard_subjects)):
            rows, subjects = Rows(), []
            for number, patient in batch:
                where = f"{self.path}, patient {number}"
                subject, name = subject_of(patient, where, self._readings["patient"].empty)
                if subject in ids:
                    raise DataError(f"{where}: an earlier patient has the same patient_id")
                ids[subject] = name
                self._ignored.update(unknown_keys(patient, where))
                read_patient(patient, subject, rows, where, self._readings)
                subjects.append(subject)
            yield rows, subjects

    def _write(self, output: Path, split: str, written: dict[str, int], events: pl.DataFrame) -> None:
        write_events(output / "data" / split / f"{written[split]}.parquet", events)
        written[split] += 1

    def _write_metadata(self, output: Path, ids: dict[int, str], split_S: np.ndarray, codes: list[str]) -> None:
        nothing = [None] * len(codes)
        book = pl.DataFrame({"code": codes, "description": nothing, "parent": nothing}, BOOK)
        facts = {"dataset_name": self.path.stem, "etl_name": "ehr-exmed-bert", "etl_version": __version__}
        splits = [SPLITS[index] for index in split_S.tolist()]
        write_metadata(output, list(ids), splits, book, facts | {"code_modifier_columns": []})
        columns = {"subject_id": pl.Series(list(ids), dtype=pl.Int64), "patient_id": pl.Series(list(ids.values()))}
        write_frame(output / "metadata" / "subject_ids.parquet", pl.DataFrame(columns))


def subject_of(patient: Mapping[str, Any], where: str, empty: frozenset[str] = frozenset()) -> tuple[int, str]:
    """Subject id and ``patient_id`` as text. Raises DataError for a patient without one."""
    found = patient.get("patient_id")
    if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 63:
        return found, str(found)
    if not isinstance(found, str) or _nothing(found, empty):
        raise DataError(f"{where}: patient_id must be a text or a whole number that is not negative")
    return int.from_bytes(hashlib.blake2b(found.encode(), digest_size=8).digest(), "little") >> 1, found


def unknown_keys(patient: Mapping[str, Any], where: str) -> list[str]:
    """Keys of a patient that are not read. Raises DataError for one that looks like a known key that is missing."""
    unknown = sorted(patient.keys() - KEYS)
    for key in unknown:
        if near := difflib.get_close_matches(key.lower(), sorted(KEYS - patient.keys()), n=1, cutoff=0.85):
            raise DataError(f"{where}: there is no key {key!r}; did you mean {near[0]}?")
    return unknown


def read_patient(
    patient: Mapping[str, Any], subject: int, rows: Rows, where: str, readings: Mapping[str, Reading]
) -> None:
    """Add a patient's events to the rows. Raises DataError that says which entry is wrong, without its content."""
    for prefix, names in STATICS:
        value = next((patient[name] for name in names if patient.get(name) not in (None, "")), None)
        if isinstance(value, dict | list):
            raise DataError(f"{where}: {' or '.join(names)} must be a single value")
        if value is not None:
            rows.add(subject, None, f"{prefix}//{value}")
    birth = _birth(patient, where, readings["patient"])
    if birth is not None:
        rows.add(subject, birth, MEDS_BIRTH)
    for prefix, names, dates in EVENTS:
        for name in names:
            reading = readings[name]
            for number, (code, date) in enumerate(_entries(patient, name, dates, where), 1):
                if not (code is None or isinstance(code, str)):
                    raise DataError(f"{where}: code {number} of {name} is no text")
                if code is None or not code.strip():
                    reading.left_out["no code"] += 1
                elif _nothing(date, reading.empty):
                    reading.left_out["no time"] += 1
                else:
                    time = _time(date, reading)
                    if time is None:
                        raise DataError(f"{where}: date {number} of {name} is not {FORMS}")
                    rows.add(subject, time, f"{prefix}//{code.strip()}")


FORMS = "YYYYMMDD or YYYY-MM-DD"


def _entries(patient: Mapping[str, Any], name: str, dates: str, where: str) -> list[tuple[Any, Any]]:
    """Pairs of code and date, from either form."""
    found = patient.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise DataError(f"{where}: {name} is no list")
    nested = sum(isinstance(entry, dict) for entry in found)
    if nested and nested == len(found):
        for place, entry in enumerate(found, 1):
            if not {"code", "date"} <= entry.keys():
                raise DataError(f"{where}: entry {place} of {name} lacks code or date")
        return [(entry["code"], entry["date"]) for entry in found]
    if nested:
        raise DataError(f"{where}: {name} mixes codes and objects with code and date")
    times = patient.get(dates) or []
    if not isinstance(times, list) or len(times) != len(found):
        number = len(times) if isinstance(times, list) else "no list of"
        raise DataError(f"{where}: {len(found)} {name} have {number} {dates}; each needs its own")
    return list(zip(found, times, strict=True))


def _nothing(value: Any, empty: frozenset[str]) -> bool:
    """Whether a value is null, NaN, blank or a word for nothing."""
    if isinstance(value, str):
        return not value.strip() or value.strip().lower() in empty
    return value is None or value != value


def _birth(patient: Mapping[str, Any], where: str, reading: Reading) -> datetime | None:
    """The date of birth, else 1 January of the year; of a date and a year that contradict, the one that is no
    placeholder, else the date, which is counted."""
    found: dict[str, datetime] = {}
    for name, what in zip(BIRTHS, (FORMS, "a year"), strict=True):
        value = patient.get(name)
        if not _nothing(value, reading.empty):
            time = _time(value, reading) if name == "birth_date" else _year(value)
            if time is None:
                raise DataError(f"{where}: {name} is not {what}")
            found[name] = time
    known = list(found.values())
    if len(known) == 2 and known[0].year != known[1].year:
        reading.treated["birth_date and birth_year that contradict (the date taken, unless it is a placeholder)"] += 1
        return known[1] if is_placeholder(known[0]) and not is_placeholder(known[1]) else known[0]
    return known[0] if known else None


def _year(value: Any) -> datetime | None:
    text = str(value).strip().removesuffix(".0")
    return datetime(int(text), 1, 1) if len(text) == 4 and text.isdecimal() and int(text) else None


def _time(value: Any, reading: Reading) -> datetime | None:
    """A date, or date and time, without a zone; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    time, offset = _read(value.strip(), reading.zone)
    if offset is not None:
        reading.offsets[offset] += 1
    return time


@functools.lru_cache(maxsize=1 << 20)
def _read(text: str, zone: str) -> tuple[datetime | None, int | None]:
    """Time and offset in minutes, as `parse_times` has them; dates are few, so that most are known already."""
    if text.isascii() and (text.isdecimal() or (len(text) == 10 and "W" not in text)):
        try:  # what nearly all are, faster
            return (datetime.fromisoformat(text) if len(text) in (8, 10) else None), None
        except ValueError:
            return None, None
    times, offsets = parse_times(pl.Series([text]), zone)
    return times[0], next(iter(offsets), None)
