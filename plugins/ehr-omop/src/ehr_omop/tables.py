"""What becomes of the rows of each OMOP table: tables of column names, and one function for all of them.

The columns of CDM 5.3 and 5.4 are both known. A time is the ``_datetime`` column where it is filled, else the ``_date``
column, which is all that the CDM requires; `ehr_tokenize.sources.times` says what happens when they contradict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl
from ehr_core.constants import MEDS_BIRTH, MEDS_DEATH
from ehr_core.errors import DataError
from ehr_tokenize.sources.cells import Batch, Reading
from ehr_tokenize.sources.record_files import Table, batches
from ehr_tokenize.sources.times import day_and_time, ends_before
from ehr_tokenize.sources.to_meds import EVENTS

from ehr_omop.concepts import Concepts
from ehr_omop.plugin import OmopConfig


@dataclass(frozen=True)
class Step:
    """Events of one table."""

    table: str
    stem: str
    """``condition`` of condition_concept_id, condition_source_concept_id and condition_source_value."""
    start: str
    """``condition_start`` of condition_start_datetime and condition_start_date."""
    end: str = ""
    """The same for the end, where the table has one."""
    fallback: str = ""
    """First part of the code of a record that is mapped to no concept, before its source value; empty: UNKNOWN. Source
    values of visits are ids, so they never become codes."""
    values: bool = False
    """Whether rows have value_as_number, value_as_concept_id and a unit."""
    visit: str = ""
    """``start`` or ``end``: the rows are visits, and this is which event of theirs."""

    @property
    def name(self) -> str:
        """Name of the table, and of the part of it."""
        return f"{self.table}.{self.visit}" if self.visit else self.table

    @property
    def role(self) -> str:
        """What its events are to the times of others; see `ehr_tokenize.sources.to_meds`."""
        roles = {"visit_occurrence.start": "starts", "visit_occurrence.end": "ends", "death": "deaths"}
        return roles.get(self.name, "")


def visit(table: str, stem: str, which: str) -> Step:
    """Starts of visits come before all else that happened at that time, and ends after it: two steps."""
    return Step(table, stem, f"{stem}_start", f"{stem}_end", visit=which)


STEPS = (
    visit("visit_occurrence", "visit", "start"),
    visit("visit_detail", "visit_detail", "start"),
    Step("condition_occurrence", "condition", "condition_start", "condition_end", "CONDITION"),
    Step("drug_exposure", "drug", "drug_exposure_start", "drug_exposure_end", "DRUG"),
    Step("procedure_occurrence", "procedure", "procedure", "procedure_end", "PROCEDURE"),
    Step("device_exposure", "device", "device_exposure_start", "device_exposure_end", "DEVICE"),
    Step("measurement", "measurement", "measurement", fallback="MEASUREMENT", values=True),
    Step("observation", "observation", "observation", fallback="OBSERVATION", values=True),
    Step("specimen", "specimen", "specimen", fallback="SPECIMEN"),
    visit("visit_detail", "visit_detail", "end"),
    visit("visit_occurrence", "visit", "end"),
    Step("death", "cause", "death"),
)
"""In the order of events at one time."""
TABLES = tuple(dict.fromkeys(step.table for step in STEPS))
FROM = ("admitted_from_concept_id", "admitting_source_concept_id")
TO = ("discharged_to_concept_id", "discharge_to_concept_id")
"""Names in CDM 5.4 and in 5.3."""


def parts(
    step: Step, table: Table, concepts: Concepts, settings: OmopConfig, reading: Reading
) -> Iterator[pl.DataFrame]:
    """The events of a table, batch by batch."""
    required = ("person_id",) if step.table == "death" else ("person_id", f"{step.stem}_concept_id")
    for batch in batches(table, required, _optional(step), reading):
        _need_time(batch, step)
        if step.table == "death":
            yield from _death(batch, concepts)
        elif step.visit:
            yield from _visits(batch, step, concepts, settings)
        else:
            yield from _records(batch, step, concepts, settings)


def _optional(step: Step) -> list[str]:
    names = [f"{step.stem}_{part}" for part in ("concept_id", "source_concept_id", "source_value")]
    names += ["visit_occurrence_id"]
    names += [f"{time}_{kind}" for time in (step.start, step.end) if time for kind in ("datetime", "date")]
    if step.values:
        names += ["value_as_number", "value_as_concept_id", "value_as_string", "value_source_value"]
        names += ["unit_concept_id", "unit_source_value"]
    return [*names, *FROM, *TO] if step.visit else names


def _need_time(batch: Batch, step: Step) -> None:
    if not {f"{step.start}_date", f"{step.start}_datetime"} & set(batch.frame.columns):
        raise DataError(f"{batch.path} has neither column '{step.start}_date' nor '{step.start}_datetime'")


def _first(*columns: pl.Series | pl.Expr) -> pl.Series:
    return pl.select(pl.coalesce(*columns)).to_series()


def _either(batch: Batch, names: Sequence[str]) -> pl.Series:
    return _first(*(batch.integer(name) for name in names))


def _event(batch: Batch, when: pl.DataFrame, code: pl.Series, parent: pl.Series | None = None) -> pl.DataFrame:
    columns = [batch.integer("person_id").alias("subject_id"), batch.integer("visit_occurrence_id").alias("visit")]
    columns += [*when, code.alias("code")]
    return pl.DataFrame(columns if parent is None else [*columns, parent.alias("parent")])


def _narrowed(code: pl.Series, by: pl.Series) -> pl.Series:
    """``CODE//BY`` where there is something to narrow it by."""
    return _first(code + "//" + by, code)


def _code(batch: Batch, step: Step, concepts: Concepts, settings: OmopConfig) -> pl.Series:
    """The standard concept's code, else the source concept's (or the other way round), else the source's own text."""
    standard = concepts.find(batch.integer(f"{step.stem}_concept_id"))
    source = concepts.find(batch.integer(f"{step.stem}_source_concept_id"))
    order = (source, standard) if settings.source_codes else (standard, source)
    if step.fallback:
        return _first(*order, pl.lit(f"{step.fallback}//") + batch.text(f"{step.stem}_source_value"))
    return _first(*order, pl.lit("UNKNOWN"))


def _records(batch: Batch, step: Step, concepts: Concepts, settings: OmopConfig) -> Iterator[pl.DataFrame]:
    start = batch.when(step.start)
    base = _code(batch, step, concepts, settings)
    if step.values:
        yield _with_values(_event(batch, start, base), batch, concepts, settings)
        return
    yield _event(batch, start, base)
    if step.end and settings.ends:
        end = _end(batch, step)
        yield _event(batch, end, base + "//END", base).filter((end["time"] > start["time"]) & base.is_not_null())


def _end(batch: Batch, step: Step) -> pl.DataFrame:
    """Ends of rows; null where there is none, and where it is before the start, which is counted."""
    end = batch.when(step.end)
    begun = (batch.quietly() if step.visit else batch).when(step.start)
    before = ends_before(begun, end).fill_null(False)
    if before.any():
        batch.reading.left_out["end before its start"] += int(before.sum())
    return end.with_columns(pl.when(~before).then("time").alias("time"))


def _with_values(events: pl.DataFrame, batch: Batch, concepts: Concepts, settings: OmopConfig) -> pl.DataFrame:
    """Number, unit and text of measurements and observations; a value that is a concept becomes part of the code."""
    number = batch.number("value_as_number")
    known = concepts.find(batch.integer("unit_concept_id"))
    source = batch.text("unit_source_value")
    unit = _first(known.set(known.str.starts_with("OMOP//"), None), source, known).str.replace(r"^[^/]*//", "")
    unit = unit.set(number.is_null(), None)
    concept = concepts.find(batch.integer("value_as_concept_id"))
    concept = concept.set(number.is_not_null(), None)
    text = _first(batch.text("value_as_string"), batch.text("value_source_value")).set(number.is_not_null(), None)
    base = events["code"]
    code = _narrowed(base, _first(concept, unit) if settings.units else concept)
    return events.with_columns(
        code.alias("code"),
        base.set(base == code, None).alias("parent"),
        number.alias("numeric_value"),
        text.alias("text_value"),
        unit.alias("unit"),
    )


def _visits(batch: Batch, step: Step, concepts: Concepts, settings: OmopConfig) -> Iterator[pl.DataFrame]:
    kind = _code(batch, step, concepts, settings)
    stays = batch.integer(f"{step.stem}_concept_id").is_in(settings.inpatient)
    begins = step.visit == "start"
    hospital, other = ("HOSPITAL_ADMISSION", "VISIT_START") if begins else ("HOSPITAL_DISCHARGE", "VISIT_END")
    if step.table == "visit_detail":
        hospital = other = f"DETAIL_{other.removeprefix('VISIT_')}"
    name = pl.select(pl.when(stays).then(pl.lit(hospital)).otherwise(pl.lit(other))).to_series()
    when = batch.when(step.start) if begins else _end(batch, step)
    event = _event(batch, when, name + "//" + kind, kind)
    place = concepts.find(_either(batch, FROM if begins else TO))
    beside = _event(batch, when, ("ADMITTED_FROM//" if begins else "DISCHARGED_TO//") + place, place)
    beside = beside.filter(beside["code"].is_not_null() & when["time"].is_not_null())
    # A visit that goes on has no end yet: no event, and nothing to count.
    yield event if begins else event.filter(when["time"].is_not_null())
    yield beside


def _death(batch: Batch, concepts: Concepts) -> Iterator[pl.DataFrame]:
    when = batch.when("death")
    cause = concepts.find(batch.integer("cause_concept_id"))
    because = _event(batch, when, "CAUSE_OF_DEATH//" + cause, cause)
    yield because.filter(because["code"].is_not_null() & when["time"].is_not_null())
    yield _event(batch, when, pl.repeat(MEDS_DEATH, len(batch), dtype=pl.String, eager=True))


# -- persons

PERSON = ("person_id", "year_of_birth")
PERSON_MORE = (
    "month_of_birth",
    "day_of_birth",
    "birth_datetime",
    *(f"{kind}_{part}" for kind in ("gender", "race", "ethnicity") for part in ("concept_id", "source_value")),
)


def persons(table: Table, concepts: Concepts, reading: Reading) -> Iterator[pl.DataFrame]:
    """Sex, race and ethnicity without a time, and births."""
    for batch in batches(table, PERSON, PERSON_MORE, reading):
        nowhen = pl.DataFrame([pl.Series("time", [None] * len(batch), EVENTS["time"])])
        for kind in ("gender", "race", "ethnicity"):
            source = batch.text(f"{kind}_source_value").str.to_uppercase().str.replace_all(r"\s+", "_")
            known = concepts.find(batch.integer(f"{kind}_concept_id"))
            static = _event(batch, nowhen, _first(known, pl.lit(f"{kind.upper()}//") + source))
            yield static.filter(static["code"].is_not_null()).with_columns(pl.lit(True).alias("static"))
        yield _event(batch, _births(batch), pl.repeat(MEDS_BIRTH, len(batch), dtype=pl.String, eager=True))


def _births(batch: Batch) -> pl.DataFrame:
    """Year, month and day, with the time of ``birth_datetime``; a missing month or day is that one's, else the first.

    The year is what the CDM requires: a ``birth_datetime`` of another one, or of another day where that is given, is
    not used, and counted, unless the year is a placeholder.
    """
    given = pl.DataFrame([batch.integer(f"{part}_of_birth").alias(part) for part in ("year", "month", "day")])
    exact = batch.time("birth_datetime").alias("exact")
    parts = given.hstack([exact]).with_columns(
        pl.when(pl.col("year") == pl.col("exact").dt.year()).then("exact").alias("near")
    )
    month = pl.coalesce("month", pl.col("near").dt.month(), pl.lit(1))
    day = pl.coalesce("day", pl.when(month == pl.col("near").dt.month()).then(pl.col("near").dt.day()), pl.lit(1))
    made = parts.select(pl.format("{}-{}-{}", "year", month, day).str.to_date("%Y-%m-%d", strict=False)).to_series()
    if (bad := (made.is_null() | (given["year"] < 1000)) & given["year"].is_not_null()).any():
        raise DataError(
            f"{batch.path}, row {batch.first + int(bad.arg_max() or 0)}: year, month and day of birth are no date"
        )
    seen: Counter[str] = Counter()
    found = day_and_time(made.cast(EVENTS["time"]), exact, seen)
    batch.reading.treated.update({f"birth: {reason}": number for reason, number in seen.items()})
    # A birth has no other clock: the day that is on record is the day.
    return found.select(pl.coalesce(pl.col("day").cast(EVENTS["time"]), "time").alias("time"))


def person_ids(table: Table, reading: Reading) -> pl.Series:
    """All ids of the table ``person``. Raises DataError for a null or repeated one, and for a table without rows."""
    found = [pl.Series("person_id", [], pl.Int64)]
    for batch in batches(table, PERSON, (), reading):
        found.append(batch.integer("person_id"))
    ids = pl.concat(found)
    where = table.paths[0]
    if not len(ids):
        raise DataError(f"{where} has no row")
    for bad, what in ((ids.is_null(), "is empty"), (ids.is_first_distinct().not_(), "repeats an earlier one")):
        if bad.any():
            raise DataError(f"{where}, row {int(bad.arg_max() or 0) + 1}: person_id {what}")
    return ids
