"""The source ``synthea``: the CSV files of Synthea's exporter to MEDS, one file at a time.

Memory is bounded by a batch of rows, the ids of the patients and a shard of events. A patient's UUID becomes a hash of
63 bits, and ``metadata/subject_ids.parquet`` says which.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from ehr_core.errors import DataError, NotApplicable
from ehr_core.formats.folder import file_digest
from ehr_core.formats.parquet import read_frame, write_frame
from ehr_core.protocols import Executor
from ehr_tokenize.sources import to_meds
from ehr_tokenize.sources.cells import Reading, reading_of
from ehr_tokenize.sources.record_files import Table, batches, find_tables

from ehr_synthea.__about__ import __version__
from ehr_synthea.plugin import SyntheaConfig
from ehr_synthea.tables import STEPS, TABLES, Step, parts


def subject_of(patient: str) -> int:
    """A hash of 63 bits of the patient's id: the same in every export that has the patient."""
    return int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Context:
    """What every step needs; picklable."""

    plan: to_meds.Plan
    tables: dict[str, Table]
    settings: SyntheaConfig
    work: Path
    patients: Path


class SyntheaSource:
    """See the module. Raises ConfigError for settings that make no dataset."""

    place = None

    def __init__(self, settings: SyntheaConfig):
        reading_of(settings)
        self.settings = settings
        self.path = Path(settings.path)

    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of each file that is read."""
        paths = [path for table in self._tables().values() for path in table.paths]
        return {path.relative_to(self.path).as_posix(): file_digest(path) for path in paths}

    def _tables(self) -> dict[str, Table]:
        tables = find_tables(self.path, TABLES)
        if "patients" not in tables:
            raise NotApplicable(f"{self.path} has no patients.csv; source=synthea reads the CSV files of one export")
        return tables

    def provide(self, output: Path, executor: Executor) -> Path:
        """Fill ``output`` with the dataset. Raises DataError or FormatError with file, row and column."""
        tables = self._tables()
        patients = read_patients(tables["patients"], reading_of(self.settings))
        plan = to_meds.plan(patients["subject_id"].to_numpy(), self.settings)
        work = output / ".work"
        work.mkdir()
        try:
            context = Context(plan, tables, self.settings, work, work / "patients.parquet")
            write_frame(context.patients, patients)
            steps = {step.name: step for step in STEPS if step.table in tables}
            book = to_meds.convert(plan, output, steps, functools.partial(spool_step, context), executor)
        finally:
            load_patients.cache_clear()
            shutil.rmtree(work, ignore_errors=True)
        facts = {"dataset_name": self.path.resolve().name, "etl_name": "ehr-synthea", "etl_version": __version__}
        to_meds.write_metadata(output, plan.subject_id_S, plan.split_names, book, facts)
        ids = patients.select("subject_id", pl.col("patient").alias("patient_id")).sort("subject_id")
        write_frame(output / "metadata" / "subject_ids.parquet", ids)
        return output


@functools.lru_cache(maxsize=1)
def load_patients(path: Path) -> pl.DataFrame:
    """Subject by patient, kept for the next file."""
    return read_frame(path)


def spool_step(context: Context, step: Step) -> to_meds.Spooled:
    """Leave the events of one step on disk."""
    reading = reading_of(context.settings)
    found = parts(step, context.tables[step.table], load_patients(context.patients), context.settings, reading)
    return to_meds.spool(context.plan, context.work / f"{step.name}.arrow", found, reading, step.role)


def read_patients(table: Table, reading: Reading) -> pl.DataFrame:
    """``patient`` and ``subject_id`` of each. DataError for an id that is empty, repeated or hashes like another."""
    found = [pl.Series("patient", [], pl.String)]
    for batch in batches(table, ("id",), (), reading):
        found.append(batch.identifier("id").alias("patient"))
    patient = pl.concat(found)
    where = table.paths[0]
    if not len(patient):
        raise DataError(f"{where} has no row")
    subject = pl.Series("subject_id", [subject_of(name or "") for name in patient], pl.Int64)
    for bad, what in (
        (patient.is_null(), "Id is empty"),
        (~patient.is_first_distinct(), "Id repeats an earlier one"),
        (~subject.is_first_distinct(), "Id has the hash of an earlier one; give one of the two another Id"),
    ):
        if bad.any():
            raise DataError(f"{where}, row {int(bad.arg_max() or 0) + 1}: {what}")
    return pl.DataFrame([patient, subject])
