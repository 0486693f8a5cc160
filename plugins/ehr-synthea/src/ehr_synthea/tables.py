"""What becomes of the rows of each of Synthea's CSV files.

Columns came and went over the years: START was DATE, SYSTEM and CATEGORY are recent. What a file lacks is null; only
the columns without which a row says nothing are required.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl
from ehr_core.constants import MEDS_BIRTH
from ehr_core.errors import DataError
from ehr_tokenize.sources.cells import Batch, Reading
from ehr_tokenize.sources.record_files import Table, batches
from ehr_tokenize.sources.times import ends_before

from ehr_synthea.plugin import SyntheaConfig

MOST_TEXT = 100
"""Characters of a text value that still becomes part of a code; a longer one is no category."""
SYSTEMS = (
    ("snomed", "SNOMED"),
    ("rxnorm", "RXNORM"),
    ("loinc", "LOINC"),
    ("cvx", "CVX"),
    ("icd-?10", "ICD10CM"),
    ("icd-?9", "ICD9CM"),
)
"""What a SYSTEM contains, name or URL, and the first part of codes."""


@dataclass(frozen=True)
class Step:
    """Events of one file."""

    table: str
    kind: str = "code"
    """``code``, ``start`` and ``end`` of encounters, ``value``, ``image``, ``person`` or ``death``."""
    system: str = "SNOMED"
    """First part of the code where no column SYSTEM says it."""
    prefix: str = ""
    """Before that, for what is not an event of the code itself: an allergy to a drug is not the drug."""

    @property
    def name(self) -> str:
        """Name of the file, and of the part of it."""
        return self.table if self.kind == "code" else f"{self.table}.{self.kind}"

    @property
    def role(self) -> str:
        """What its events are to the times of others, as `to_meds` has it. Pictures of one study count once."""
        return {"start": "starts", "end": "ends", "death": "deaths", "image": "once"}.get(self.kind, "")


STEPS = (
    Step("patients", "person"),
    Step("encounters", "start"),
    Step("conditions"),
    Step("allergies", prefix="ALLERGY//"),
    Step("careplans", prefix="CAREPLAN//"),
    Step("procedures"),
    Step("imaging_studies", "image"),
    Step("observations", "value", "LOINC"),
    Step("medications", system="RXNORM"),
    Step("immunizations", system="CVX"),
    Step("devices"),
    Step("supplies"),
    Step("encounters", "end"),
    Step("patients", "death"),
)
"""In the order of events at one time."""
TABLES = tuple(dict.fromkeys(step.table for step in STEPS))
REQUIRED = {
    "start": ("patient", "encounterclass"),
    "end": ("patient", "encounterclass", "stop"),
    "code": ("patient", "code"),
    "value": ("patient", "code", "value"),
    "image": ("patient", "modality_code"),
    "person": ("id", "birthdate"),
    "death": ("id",),
}
OPTIONAL: tuple[str, ...] = (
    "id",
    "encounter",
    "start",
    "date",
    "stop",
    "code",
    "description",
    "system",
    "units",
    "type",
    "quantity",
    "deathdate",
)
OPTIONAL += ("bodysite_code", "bodysite_description", "modality_description", "race", "ethnicity", "gender")


def parts(
    step: Step, table: Table, patients: pl.DataFrame, settings: SyntheaConfig, reading: Reading
) -> Iterator[pl.DataFrame]:
    """The events of a file, batch by batch. ``patients`` has the subject of each patient's id."""
    for batch in batches(table, REQUIRED[step.kind], OPTIONAL, reading):
        key = batch.identifier("id" if step.table == "patients" else "patient").alias("patient")
        subject = key.to_frame().join(patients, on="patient", how="left", maintain_order="left")["subject_id"]
        visit = _visit(batch, step)
        for event in _events(batch, step, settings):
            yield event.with_columns(subject.gather(event["row"]), visit.gather(event["row"])).drop("row")


def _visit(batch: Batch, step: Step) -> pl.Series:
    """A number for each encounter: a hash, which has to tell apart no more than the encounters of one patient."""
    name = batch.identifier("id" if step.table == "encounters" else "encounter")
    number = name.hash().cast(pl.Int64, wrap_numerical=True).alias("visit")
    return number.set(name.is_null(), None)


def _events(batch: Batch, step: Step, settings: SyntheaConfig) -> Iterator[pl.DataFrame]:
    """Events with the place of their row in the batch, ``row``."""
    rows = pl.int_range(len(batch), eager=True).alias("row")
    if step.kind == "person":
        for static in _statics(batch):
            yield pl.DataFrame([rows, static, _nowhen(batch), pl.repeat(True, len(batch), eager=True).alias("static")])
        yield _event(rows, batch.time("birthdate"), pl.repeat(MEDS_BIRTH, len(batch), dtype=pl.String, eager=True))
        return
    if step.kind == "death":
        dead = _event(rows, batch.time("deathdate"), pl.repeat("MEDS_DEATH", len(batch), dtype=pl.String, eager=True))
        yield dead.filter(dead["time"].is_not_null())
        return
    dates = batch.quietly() if step.kind == "end" else batch  # the other step of encounters counts their starts
    start = _first(dates.time("start"), _date(dates, step))
    stop = _stop(batch, step, start, settings)
    described = batch.text("description").alias("description")
    if step.kind in ("start", "end"):
        yield from _encounters(batch, step, settings, rows, start, stop)
    elif step.kind == "value":
        yield _values(batch, _event(rows, start, _loinc(batch.text("code"))), settings).with_columns(described)
    elif step.kind == "image":
        yield _images(batch, rows, start)
    else:
        code = step.prefix + _system(batch, step) + "//" + batch.text("code")
        number = batch.number("quantity", strict=False).alias("numeric_value")
        _count_texts(batch, "quantity", number)
        yield _event(rows, start, code).with_columns(described, number)
        if settings.ends:
            ended = _event(rows, stop, code + "//END").with_columns(described, code.alias("parent"))
            yield ended.filter((stop > start) & code.is_not_null())


def _stop(batch: Batch, step: Step, start: pl.Series, settings: SyntheaConfig) -> pl.Series:
    """Ends of rows; null where there is none, and where it is before the start, which is counted."""
    stop = batch.time("stop")
    if step.kind == "start" or (step.kind == "code" and not settings.ends):
        return stop
    nowhere = pl.Series("day", [None] * len(batch), pl.Date)
    before = ends_before(*(pl.DataFrame([time.alias("time"), nowhere]) for time in (start, stop))).fill_null(False)
    if before.any():
        batch.reading.left_out["end before its start"] += int(before.sum())
    return stop.set(before, None)


def _count_texts(batch: Batch, name: str, number: pl.Series, which: pl.Series | None = None) -> None:
    """Count cells that should be numbers and are texts such as ``<0.1``; which of the rows should be."""
    texts = number.is_null() & batch.identifier(name).is_not_null()
    found = int((texts if which is None else texts & which).sum())
    if found:
        batch.reading.treated[f"{name}: text where a number is expected (no number)"] += found


def _first(*columns: pl.Series | pl.Expr) -> pl.Series:
    return pl.select(pl.coalesce(*columns)).to_series()


def _event(rows: pl.Series, time: pl.Series, code: pl.Series) -> pl.DataFrame:
    return pl.DataFrame([rows, time.alias("time"), code.alias("code")])


def _nowhen(batch: Batch) -> pl.Series:
    return pl.Series("time", [None] * len(batch), pl.Datetime("us"))


def _date(batch: Batch, step: Step) -> pl.Series:
    if not {"start", "date"} & set(batch.frame.columns):
        raise DataError(f"{batch.path} has neither column 'start' nor 'date'")
    return batch.time("date")


def _clean(text: pl.Series) -> pl.Series:
    """In capitals, ``_`` for blanks."""
    return text.str.to_uppercase().str.replace_all(r"\s+", "_")


def _statics(batch: Batch) -> Iterator[pl.Series]:
    """Sex, race and ethnicity. Marital status and address are those of the day of the export: the past did not know."""
    for kind in ("gender", "race", "ethnicity"):
        yield _first(f"{kind.upper()}//" + _clean(batch.text(kind)), pl.lit(f"{kind.upper()}//UNKNOWN")).alias("code")


def _system(batch: Batch, step: Step) -> pl.Series:
    """First part of the code. An allergy's is ``Unknown``; SNOMED's have six digits or more, RxNorm's fewer."""
    default = pl.lit(step.system)
    if step.table == "allergies":
        default = pl.when(batch.text("code").str.len_bytes() < 6).then(pl.lit("RXNORM")).otherwise(default)
    system = batch.text("system").str.to_lowercase().rename("system")
    known = [pl.when(pl.col("system").str.contains(mark)).then(pl.lit(name)) for mark, name in SYSTEMS]
    other = pl.col("system").str.to_uppercase().str.replace_all(r"[^A-Z0-9]+", "_")
    unknown = pl.col("system").is_null() | (pl.col("system") == "unknown")
    chosen = pl.when(unknown).then(default).otherwise(pl.coalesce(*known, other))
    return system.to_frame().select(chosen).to_series()


def _loinc(code: pl.Series) -> pl.Series:
    """LOINC codes and, among the observations, SNOMED's and what only Synthea knows: ``SYNTHEA//QALY``."""
    name = pl.col("code")
    system = (
        pl.when(name.str.contains(r"^\d{1,7}-\d$"))
        .then(pl.lit("LOINC//"))
        .when(name.str.contains(r"^\d{6,18}$"))
        .then(pl.lit("SNOMED//"))
        .otherwise(pl.lit("SYNTHEA//"))
    )
    return code.alias("code").to_frame().select(system + name).to_series()


def _values(batch: Batch, events: pl.DataFrame, settings: SyntheaConfig) -> pl.DataFrame:
    """Number and unit; a value that is a text becomes part of the code, as long as it can be a category."""
    kind = batch.text("type").str.to_lowercase()
    text = batch.text("value")
    number = batch.number("value", strict=False)
    number = number.set((kind == "text").fill_null(False), None)
    numeric = (kind == "numeric").fill_null(False)
    _count_texts(batch, "value", number, numeric)
    text = batch.identifier("value").zip_with(numeric, text)  # a word for nothing is no category of a number
    text = text.set(number.is_not_null(), None)
    unit = batch.text("units").set(number.is_null(), None)
    category = _clean(text.set((text.str.len_chars() > MOST_TEXT).fill_null(False), None))
    base = events["code"]
    code = _first(base + "//" + (_first(category, unit) if settings.units else category), base)
    return events.with_columns(
        code.alias("code"),
        base.set((base == code).fill_null(False), None).alias("parent"),
        number.alias("numeric_value"),
        text.alias("text_value"),
        unit.alias("unit"),
    )


def _encounters(
    batch: Batch, step: Step, settings: SyntheaConfig, rows: pl.Series, start: pl.Series, stop: pl.Series
) -> Iterator[pl.DataFrame]:
    kind = batch.text("encounterclass")
    names = ("HOSPITAL_ADMISSION", "VISIT_START") if step.kind == "start" else ("HOSPITAL_DISCHARGE", "VISIT_END")
    stays = kind.str.to_lowercase().is_in([name.lower() for name in settings.inpatient])
    name = pl.select(pl.when(stays).then(pl.lit(names[0])).otherwise(pl.lit(names[1]))).to_series()
    code = name + "//" + _first(_clean(kind), pl.lit("UNKNOWN"))
    if step.kind == "end":  # an encounter that goes on has none
        yield _event(rows, stop, code).filter(stop.is_not_null())
        return
    yield _event(rows, start, code)
    what = _event(rows, start, "SNOMED//" + batch.text("code")).with_columns(batch.text("description"))
    yield what.filter(what["code"].is_not_null() & start.is_not_null())


def _images(batch: Batch, rows: pl.Series, start: pl.Series) -> pl.DataFrame:
    """One event a time, modality and part of the body: newer files have a row for each picture."""
    site = "//SNOMED//" + batch.text("bodysite_code")
    code = "IMAGING//" + batch.text("modality_code") + _first(site, pl.lit(""))
    where = _first(" of " + batch.text("bodysite_description").str.to_lowercase(), pl.lit(""))
    return _event(rows, start, code).with_columns((batch.text("modality_description") + where).alias("description"))
