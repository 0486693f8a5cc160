"""The source ``omop``: tables of the OMOP Common Data Model to MEDS, one table at a time.

Memory is bounded by a batch of rows, the ids of persons and concepts, and a shard of events.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from ehr_core.errors import ConfigError, NotApplicable
from ehr_core.formats.folder import file_digest
from ehr_core.protocols import Executor
from ehr_tokenize.sources import to_meds
from ehr_tokenize.sources.cells import reading_of
from ehr_tokenize.sources.record_files import Table, find_tables

from ehr_omop.__about__ import __version__
from ehr_omop.concepts import load_concepts, names, write_concepts
from ehr_omop.plugin import OmopConfig
from ehr_omop.tables import STEPS, TABLES, Step, parts, person_ids, persons


@dataclass(frozen=True)
class Context:
    """What every step needs; picklable."""

    plan: to_meds.Plan
    tables: dict[str, Table]
    settings: OmopConfig
    work: Path

    @property
    def concepts(self) -> Path:
        """Where ids and codes of the concepts are."""
        return self.work / "concepts.parquet"


class OmopSource:
    """See the module. Raises ConfigError for settings that make no dataset."""

    place = None

    def __init__(self, settings: OmopConfig):
        unknown = sorted(set(settings.tables) - set(TABLES))
        if unknown:
            raise ConfigError(f"source.tables has {', '.join(unknown)}; allowed: {', '.join(TABLES)}")
        reading_of(settings)
        self.settings = settings
        self.path = Path(settings.path)

    def fingerprint(self) -> Mapping[str, str]:
        """sha256 of each file that is read."""
        tables = self._tables()
        paths = [path for table in tables.values() for path in table.paths]
        return {path.relative_to(self.path).as_posix(): file_digest(path) for path in paths}

    def _tables(self) -> dict[str, Table]:
        tables = find_tables(self.path, ("person", "concept", *self.settings.tables))
        if "person" not in tables:
            raise NotApplicable(f"{self.path} has no table person; source=omop reads person.csv, .csv.gz or .parquet")
        return tables

    def provide(self, output: Path, executor: Executor) -> Path:
        """Fill ``output`` with the dataset. Raises DataError or FormatError with file, row and column."""
        tables = self._tables()
        plan = to_meds.plan(person_ids(tables["person"], reading_of(self.settings)).to_numpy(), self.settings)
        work = output / ".work"
        work.mkdir()
        try:
            context = Context(plan, tables, self.settings, work)
            write_concepts(tables.get("concept"), context.concepts, reading_of(self.settings))
            steps: dict[str, Step | None] = {"person": None}
            steps |= {step.name: step for step in STEPS if step.table in tables}
            book = to_meds.convert(plan, output, steps, functools.partial(spool_step, context), executor)
        finally:
            load_concepts.cache_clear()
            shutil.rmtree(work, ignore_errors=True)
        facts = {"dataset_name": self.path.resolve().name, "etl_name": "ehr-omop", "etl_version": __version__}
        to_meds.write_metadata(
            output, plan.subject_id_S, plan.split_names, _described(book, tables.get("concept")), facts
        )
        return output


def spool_step(context: Context, step: Step | None) -> to_meds.Spooled:
    """Leave the events of one step on disk; None: those of the persons."""
    concepts = load_concepts(context.concepts)
    table = context.tables["person" if step is None else step.table]
    reading = reading_of(context.settings)
    found: Iterator[pl.DataFrame]
    found = (
        persons(table, concepts, reading) if step is None else parts(step, table, concepts, context.settings, reading)
    )
    name, role = ("person", "") if step is None else (step.name, step.role)
    return to_meds.spool(context.plan, context.work / f"{name}.arrow", found, reading, role)


def _described(book: pl.DataFrame, concept: Table | None) -> pl.DataFrame:
    """The codes with the names of their concepts."""
    base = pl.coalesce("parent", "code")
    named = names(concept, book.select(base).to_series().unique())
    known = book.with_columns(base.alias("base")).join(
        named.rename({"code": "base"}), on="base", how="left", maintain_order="left"
    )
    return known.with_columns(pl.col("name").alias("description")).select(book.columns)
