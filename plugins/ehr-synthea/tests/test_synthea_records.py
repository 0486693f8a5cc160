"""The source ``synthea`` on odd records: each kind of trouble has one treatment, counted, or is one line."""

import json

import polars as pl
import pytest
from ehr_core.errors import DataError, EhrError
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build
from ehr_synthea.plugin import SyntheaConfig
from ehr_synthea.source import SyntheaSource, subject_of
from hypothesis import given, settings
from hypothesis import strategies as st

PATIENTS = "Id,BIRTHDATE,DEATHDATE\n"
ENCOUNTERS = "Id,START,STOP,PATIENT,ENCOUNTERCLASS,CODE\n"
CONDITIONS = "START,STOP,PATIENT,ENCOUNTER,CODE\n"
OBSERVATIONS = "DATE,PATIENT,ENCOUNTER,CODE,VALUE,UNITS,TYPE\n"
SUPPLIES = "DATE,PATIENT,ENCOUNTER,CODE,QUANTITY\n"
IN, OUT = "HOSPITAL_ADMISSION//INPATIENT", "HOSPITAL_DISCHARGE//INPATIENT"


def make(folder, tables, **chosen):
    (folder / "csv").mkdir()
    (folder / "meds").mkdir()
    for name, text in ({"patients": PATIENTS + "a,1960-01-01,\n"} | tables).items():
        (folder / "csv" / f"{name}.csv").write_text(text)
    shares = {"train": 1.0, "tuning": 0.0, "held_out": 0.0}
    source = SyntheaSource(SyntheaConfig(path=folder / "csv", **shares, **chosen))
    return source.provide(folder / "meds", build("executor", SerialConfig()))


def rows(meds, patient="a"):
    frame = pl.concat([pl.read_parquet(path) for path in sorted((meds / "data" / "train").glob("*.parquet"))])
    frame = frame.filter(pl.col("subject_id") == subject_of(patient), pl.col("time").is_not_null())
    frame = frame.filter(pl.col("code") != "MEDS_BIRTH").with_columns(pl.col("time").cast(pl.String).str.head(16))
    return frame.select("time", "code", "numeric_value").rows()


def told(meds, name):
    return json.loads((meds / "metadata" / f"{name}.json").read_text())


def test_ends_before_their_starts_are_no_events_and_counted(tmp_path):
    meds = make(
        tmp_path,
        {
            "encounters": ENCOUNTERS + "e1,2020-01-10T08:00:00Z,2020-01-09T08:00:00Z,a,inpatient,\n",
            "conditions": CONDITIONS + "2020-01-10,2020-01-08,a,e1,1234567\n2020-01-10,2020-01-12,a,e1,1234567\n",
        },
    )
    assert [(time, code) for time, code, _ in rows(meds)] == [
        ("2020-01-10 08:00", IN),
        *[("2020-01-10 08:00", "SNOMED//1234567")] * 2,
        ("2020-01-12 00:00", "SNOMED//1234567//END"),
    ]
    ended = {"end before its start": 1}
    assert told(meds, "left_out") == {"encounters.end": ended, "conditions": ended}


def test_an_encounter_that_is_told_twice_or_lies_in_another_is_no_second_stay(tmp_path):
    outer = "e1,2020-01-10T08:00:00Z,2020-01-20T08:00:00Z,a,inpatient,\n"
    inner = "e2,2020-01-12T08:00:00Z,2020-01-13T08:00:00Z,a,inpatient,\n"
    meds = make(tmp_path, {"encounters": ENCOUNTERS + outer * 2 + inner})
    assert [code for _, code, _ in rows(meds)] == [IN, "VISIT_START//INPATIENT", "VISIT_END//INPATIENT", OUT]
    assert "VISIT_START//INPATIENT" in pl.read_parquet(meds / "metadata" / "codes.parquet")["code"].to_list()
    assert told(meds, "treated")["times"] == {
        "start or end of a visit that has another (left out)": 2,
        "start or end of a stay within or across another (that of a visit)": 2,
    }


@pytest.mark.parametrize("word", ["", "NULL", "N/A", "nan", "\\N", "-", "?"])
def test_words_for_nothing_are_no_encounter_no_time_and_no_category_of_a_number(tmp_path, word):
    meds = make(
        tmp_path,
        {
            "patients": PATIENTS + f"a,1960-01-01,{word}\n",
            "encounters": ENCOUNTERS + f"e1,2020-01-10T08:00:00Z,{word},a,inpatient,\n",
            "observations": OBSERVATIONS
            + f"2020-01-10,a,{word},718-7,{word},g/dL,numeric\n2020-01-10,a,e1,718-7,NA,,text\n",
        },
    )
    assert rows(meds) == [
        ("2020-01-10 00:00", "LOINC//718-7", None),
        ("2020-01-10 08:00", IN, None),
        ("2020-01-10 08:00", "LOINC//718-7//NA", None),
    ]


def test_a_text_where_a_number_is_expected_is_no_number_and_counted(tmp_path):
    meds = make(
        tmp_path,
        {
            "observations": OBSERVATIONS
            + "2020-01-10,a,,718-7,<0.1,g/dL,numeric\n2020-01-10,a,,718-7,1e2,g/dL,numeric\n"
            + "2020-01-10,a,,718-7,inf,g/dL,numeric\n",
            "supplies": SUPPLIES + "2020-01-11,a,,337388004,3 boxes\n",
        },
    )
    assert rows(meds) == [
        ("2020-01-10 00:00", "LOINC//718-7//<0.1", None),
        ("2020-01-10 00:00", "LOINC//718-7//g/dL", 100.0),
        ("2020-01-10 00:00", "LOINC//718-7//INF", None),
        ("2020-01-11 00:00", "SNOMED//337388004", None),
    ]
    counted = told(meds, "treated")
    assert counted["observations.value"]["value: text where a number is expected (no number)"] == 2
    assert counted["supplies"] == {"quantity: text where a number is expected (no number)": 1}


def test_a_death_by_date_is_at_the_last_event_of_its_day(tmp_path):
    stay = "e1,2020-01-10T08:00:00Z,2020-01-12T09:00:00Z,a,inpatient,\n"
    meds = make(tmp_path, {"patients": PATIENTS + "a,1960-01-01,2020-01-12\n", "encounters": ENCOUNTERS + stay})
    assert [(time, code) for time, code, _ in rows(meds)][-1] == ("2020-01-12 09:00", "MEDS_DEATH")
    assert told(meds, "treated")["times"] == {"death at midnight sharp (moved to the last event of its day)": 1}


def test_units_that_differ_within_a_code_are_said(tmp_path, capsys):
    table = OBSERVATIONS + "2020-01-10,a,,718-7,12.5,g/dL,numeric\n2020-01-11,a,,718-7,125,g/L,numeric\n"
    meds = make(tmp_path, {"observations": table}, units=False)
    assert told(meds, "treated") == {"units that differ": {"LOINC//718-7": {"g/L": 1, "g/dL": 1}}}
    assert "units differ within 1 codes" in capsys.readouterr().err


@pytest.mark.parametrize("date", ["2020-02-31", "20202-01-01", "10.1.2020", "43861"])
def test_a_date_that_is_none_is_one_line(tmp_path, date):
    with pytest.raises(EhrError, match=r"conditions.csv, row 1: column 'start' is no date or time such as") as error:
        make(tmp_path, {"conditions": CONDITIONS + f"{date},,a,,1234567\n"})
    assert date not in str(error.value)


WORDS = ("", "NULL", "NaN", " ")
TIMES = ("2020-01-10T08:00:00Z", "2020-01-10", "2020-01-12T24:00:00Z", "1900-01-01", "9999-12-31", "0001-01-01", *WORDS)


def some(*values):
    return st.sampled_from(values)


encounters = st.lists(st.tuples(some("1", "2", *WORDS), some(*TIMES), some(*TIMES)), max_size=5)
conditions = st.lists(st.tuples(some(*TIMES), some(*TIMES), some("1", "2", *WORDS), some("7654321", "")), max_size=5)
records = st.tuples(encounters, conditions, some(*TIMES))


@settings(max_examples=12, deadline=None)
@given(records, records, st.booleans())
def test_troubles_in_combination_never_reach_another_subject(tmp_path_factory, ours, theirs, wrong):
    def made(subjects):
        people, stays, found = PATIENTS, ENCOUNTERS, CONDITIONS
        for name, (visits, ills, death) in subjects.items():
            people += f"{name},1960-01-01,{death}\n"
            for visit, start, stop in visits:
                key = f"{name}{visit}" if visit.isdecimal() else visit
                stays += f"{key},{start},{stop},{name},inpatient,\n"
            for start, stop, visit, code in ills:
                found += f"{start},{stop},{name},{name}{visit},{code}\n"
        tables = {"patients": people, "encounters": stays, "conditions": found}
        return make(tmp_path_factory.mktemp("synthea"), tables)

    alone = made({"a": ours})
    assert rows(made({"a": ours, "b": theirs})) == rows(alone)
    codes = [code for _, code, _ in rows(alone)]
    lost = told(alone, "left_out").get("conditions", {})
    assert codes.count("SNOMED//7654321") + lost.get("no time", 0) + lost.get("no code", 0) == len(ours[1])
    keyed = {visit if visit.isdecimal() else row for row, (visit, *_) in enumerate(ours[0])}
    assert codes.count(IN) <= len(keyed)
    assert codes.count(OUT) <= len(keyed)
    if wrong:
        with pytest.raises(DataError, match=r"row \d+: column 'start' is no date or time"):
            made({"a": ours, "b": (theirs[0], [*theirs[1], ("2020-02-31", "", "1", "1")], theirs[2])})
