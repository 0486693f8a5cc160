"""28 synthetic persons in CDM 5.4, against counts made from the tables themselves, and against the public OMOP_MEDS.

The second needs that program in an environment of its own: ``nox -s etl_omop`` makes one and sets EHR_OMOP_ETL.
"""

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from ehr_core.formats.meds import read_events, shards
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build
from ehr_omop.plugin import OmopConfig
from ehr_omop.source import OmopSource


@pytest.fixture(scope="module")
def tables():
    root = os.environ.get("EHR_REAL_DATA")
    if root is None or not (Path(root) / "omop_synthea27").is_dir():
        pytest.skip("EHR_REAL_DATA does not name a folder with omop_synthea27")
    return Path(root) / "omop_synthea27"


@pytest.fixture(scope="module")
def meds(tables, tmp_path_factory):
    output = tmp_path_factory.mktemp("omop")
    return OmopSource(OmopConfig(path=str(tables))).provide(output, build("executor", SerialConfig()))


@pytest.fixture(scope="module")
def events(meds):
    return pl.concat([read_events(shard.path, ["unit"]) for shard in shards(meds)])


def raw(tables, name):
    """A table with the code of each row, by a join."""
    concept = pl.read_parquet(tables / "concept.parquet")
    code = pl.col("vocabulary_id").str.to_uppercase() + "//" + pl.col("concept_code")
    stem = {"visit_occurrence": "visit", "drug_exposure": "drug", "procedure_occurrence": "procedure"}.get(name, name)
    stem = stem.removesuffix("_occurrence")
    found = pl.read_parquet(tables / f"{name}.parquet")
    return found.join(
        concept.select(pl.col("concept_id").alias(f"{stem}_concept_id"), code=code), on=f"{stem}_concept_id"
    )


def counts(frame, *columns):
    return Counter(frame.select(*columns).rows())


def having(events, *prefixes):
    return events.filter(pl.col("code").str.contains(f"^(?:{'|'.join(prefixes)})"))


def test_births_deaths_and_sexes_are_those_of_the_tables(tables, events):
    person = pl.read_parquet(tables / "person.parquet")
    birth = pl.datetime("year_of_birth", "month_of_birth", "day_of_birth")
    assert counts(having(events, "MEDS_BIRTH"), "subject_id", "time") == counts(person, "person_id", birth)
    death = pl.read_parquet(tables / "death.parquet")
    dead = having(events, "MEDS_DEATH")
    assert counts(dead, "subject_id", "time") == counts(
        death, "person_id", pl.col("death_date").cast(pl.Datetime("us"))
    )
    sexes = person.select("person_id", pl.col("gender_source_value").replace({"M": "GENDER//M", "F": "GENDER//F"}))
    assert counts(having(events, "GENDER//"), "subject_id", "code") == Counter(sexes.rows())


def test_every_visit_has_its_start_and_its_end(tables, events):
    visit = raw(tables, "visit_occurrence")
    for event, stay, time in (
        ("START", "HOSPITAL_ADMISSION", "visit_start_datetime"),
        ("END", "HOSPITAL_DISCHARGE", "visit_end_datetime"),
    ):
        inpatient = pl.col("visit_concept_id") == 9201
        name = pl.when(inpatient).then(pl.lit(stay)).otherwise(pl.lit(f"VISIT_{event}")) + "//" + pl.col("code")
        ours = having(events, stay, f"VISIT_{event}")
        assert counts(ours, "subject_id", "time", "code") == counts(visit, "person_id", time, name)


def test_conditions_and_drugs_have_starts_and_ends(tables, events):
    for table, stem, prefix in (
        ("condition_occurrence", "condition", ""),
        ("drug_exposure", "drug_exposure", "RXNORM"),
    ):
        rows = raw(tables, table)
        start, end = pl.col(f"{stem}_start_datetime"), pl.col(f"{stem}_end_datetime")
        expected = counts(rows, "person_id", start, "code")
        expected += counts(rows.filter(end > start), "person_id", end, pl.col("code") + "//END")
        ours = counts(having(events, prefix), "subject_id", "time", "code")
        assert not expected - ours
        assert prefix == "" or not ours - expected


def test_measurements_have_their_numbers_and_units(tables, events):
    unit = pl.read_parquet(tables / "concept.parquet").select(unit_concept_id="concept_id", known="concept_code")
    rows = raw(tables, "measurement").join(unit, on="unit_concept_id", how="left")
    number = pl.col("value_as_number").cast(pl.Float32)
    rows = rows.with_columns(
        unit=pl.when(number.is_not_null()).then(pl.coalesce("known", "unit_source_value")), number=number
    )
    code = pl.concat_str("code", "unit", separator="//", ignore_nulls=True)
    expected = counts(rows, "person_id", "measurement_datetime", code, "number", "unit")
    ours = counts(events, "subject_id", "time", "code", "numeric_value", "unit")
    assert not expected - ours
    assert sum(expected.values()) == 10_040
    assert events["numeric_value"].count() == rows["number"].count() == 9_107


def test_every_row_is_an_event_and_every_code_of_a_concept_has_a_name(tables, meds, events):
    assert (meds / "metadata" / "left_out.json").read_text().strip() == "{}"
    assert len(events) == 26_026
    book = pl.read_parquet(meds / "metadata" / "codes.parquet")
    unnamed = book.filter(pl.col("description").is_null())["code"].to_list()
    assert unnamed == ["MEDS_BIRTH", "MEDS_DEATH", "RACE//HAWAIIAN", "RACE//OTHER"]


# -- against the public program


@pytest.fixture(scope="module")
def theirs(tables, tmp_path_factory):
    environment = os.environ.get("EHR_OMOP_ETL")
    if not environment:
        pytest.skip("EHR_OMOP_ETL does not name an environment with OMOP_MEDS; nox -s etl_omop makes one")
    programs = Path(environment).resolve() / "bin"
    folder, output = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("theirs") / "out"
    for path in tables.glob("*.parquet"):
        shutil.copy(path, folder)
    empty = {"concept_id_1": pl.Int64, "concept_id_2": pl.Int64, "relationship_id": pl.String}
    more = {"valid_start_date": pl.Date, "valid_end_date": pl.Date, "invalid_reason": pl.String}
    pl.DataFrame(schema=empty | more).write_parquet(folder / "concept_relationship.parquet")  # it cannot be missing
    command = [programs / "OMOP_MEDS", f"root_output_dir={output}", f"raw_input_dir={folder}"]
    command += ["do_download=False", "do_demo=False", "do_overwrite=False"]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"  # it starts others by name
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return pl.concat([pl.read_parquet(path) for path in output.glob("MEDS_cohort/data/*/*.parquet")], how="diagonal")


def test_the_public_program_finds_the_same_visits_records_and_deaths(events, theirs):
    """As sets: it leaves out rows that are equal in its columns. Of drugs and devices it writes the concept's id."""
    keys = ("subject_id", "time", "code")
    name = {"HOSPITAL_ADMISSION": "start", "VISIT_START": "start", "HOSPITAL_DISCHARGE": "end", "VISIT_END": "end"}
    visits = having(events, *(f"{start}//" for start in name)).with_columns(pl.col("code").str.split("//"))
    kind = "Visit//" + pl.col("code").list.last() + "//" + pl.col("code").list.first().replace_strict(name)
    found = theirs.filter(pl.col("table_name") == "visit_occurrence")
    assert counts(visits, "subject_id", "time", kind) == counts(found, *keys)

    tables = ["condition_occurrence", "procedure_occurrence", "measurement", "observation"]
    found = theirs.filter(pl.col("table_name").is_in(tables), ~pl.col("code").str.ends_with("//end"))
    found = found.with_columns(pl.col("code").str.strip_suffix("//start"))
    ours = having(events, "LOINC", "SNOMED").filter(~pl.col("code").str.ends_with("//END"))
    ours = ours.with_columns(pl.col("code").str.extract("^([^/]+//[^/]+)")).filter(pl.col("code") != "SNOMED//72506001")
    assert set(ours.select(*keys, "numeric_value").rows()) == set(found.select(*keys, "numeric_value").rows())

    dead = having(theirs, "MEDS_DEATH", "MEDS_BIRTH")
    assert counts(having(events, "MEDS_DEATH", "MEDS_BIRTH"), *keys) == counts(dead, *keys)
