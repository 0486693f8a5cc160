"""The source ``omop`` on records as hospitals have them: a trouble has one treatment, counted, or is one line."""

import json
from datetime import datetime

import polars as pl
import pytest
from ehr_core.errors import DataError, EhrError
from ehr_core.formats.meds import read_events, shards
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build, registry
from ehr_omop.plugin import OmopConfig
from ehr_omop.source import OmopSource
from hypothesis import given, settings
from hypothesis import strategies as st

PERSON = "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,birth_datetime\n"
VISIT = (
    "visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime,visit_end_date,"
    "visit_end_datetime\n"
)
CONDITION = "person_id,condition_concept_id,condition_start_date,condition_end_date,visit_occurrence_id\n"
MEASUREMENT = (
    "person_id,measurement_concept_id,measurement_date,measurement_datetime,value_as_number,visit_occurrence_id,"
    "measurement_source_value,unit_source_value\n"
)
DEATH = "person_id,death_date,death_datetime\n"
ONE = PERSON + "1,8507,1960,,,\n"


def write(folder, tables):
    folder.mkdir()
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)


@pytest.fixture
def provide(tmp_path):
    def make(**tables):
        chosen = {name: tables.pop(name) for name in ("time_zone", "empty", "units") if name in tables}
        number = len(list(tmp_path.iterdir()))
        folder, output = tmp_path / f"{number}", tmp_path / f"{number}.meds"
        write(folder, {"person": ONE} | tables)
        output.mkdir()
        shares = {"train": 1.0, "tuning": 0.0, "held_out": 0.0}
        return OmopSource(OmopConfig(path=folder, **shares, **chosen)).provide(
            output, build("executor", SerialConfig())
        )

    return make


def written(meds):
    """What the source wrote: the reader of all that follows leaves out times that cannot be."""
    return pl.concat([pl.read_parquet(path) for path in sorted((meds / "data" / "train").glob("*.parquet"))])


def rows(meds, person=1):
    frame = written(meds).filter(pl.col("subject_id") == person, pl.col("time").is_not_null())
    return [(str(time), code) for time, code in frame.select("time", "code").rows()][1:]


def told(meds, name):
    return json.loads((meds / "metadata" / f"{name}.json").read_text())


IN, OUT = "HOSPITAL_ADMISSION//VISIT//IP", "HOSPITAL_DISCHARGE//VISIT//IP"


@pytest.mark.parametrize(
    "end",
    [
        "2020-01-09,2020-01-09 08:00:00",
        "2020-01-10,2020-01-10 07:59:00",
        "2020-01-09,",
        "1900-01-01,",
        "1900-01-01,1900-01-01 00:00:00",
        "0001-01-01,",
    ],
)
def test_the_end_of_a_visit_before_its_start_is_no_event_and_counted(provide, capsys, end):
    meds = provide(visit_occurrence=VISIT + f"10,1,9201,2020-01-10,2020-01-10 08:00:00,{end}\n")
    assert rows(meds) == [("2020-01-10 08:00:00", IN)]
    assert told(meds, "left_out") == {"visit_occurrence.end": {"end before its start": 1}}
    assert "left out of visit_occurrence.end: 1 rows with end before its start" in capsys.readouterr().err


@pytest.mark.parametrize("start", ["2020-01-10,2020-01-10 08:00:00", "2020-01-10,", ",2020-01-10 08:00:00"])
def test_a_visit_that_ended_on_its_day_by_date_is_none_that_ended_before_its_start(provide, start):
    meds = provide(visit_occurrence=VISIT + f"10,1,9201,{start},2020-01-10,\n")
    assert [code for _, code in rows(meds)] == [IN, OUT]
    assert told(meds, "left_out") == {}


def test_ends_of_records_before_their_starts_are_counted_by_table(provide):
    meds = provide(
        condition_occurrence=CONDITION + "1,5,2020-01-10,2020-01-09,\n1,5,2020-01-10,2020-01-11,\n1,5,2020-01-10,,\n"
    )
    assert [code for _, code in rows(meds)] == ["OMOP//5"] * 3 + ["OMOP//5//END"]
    assert told(meds, "left_out") == {"condition_occurrence": {"end before its start": 1}}


def test_visits_that_end_before_they_start_are_no_readmissions(provide):
    def visits(swapped):
        text = VISIT
        for person in (1, 2, 3):
            for number, (start, end) in enumerate((("2020-01-10", "2020-01-14"), ("2020-03-10", "2020-03-14"))):
                if swapped and person == 1:
                    start, end = end, start
                text += f"{person}{number},{person},9201,{start},{start} 09:00:00,{end},{end} 09:00:00\n"
        return provide(person=PERSON + "1,0,1960,,,\n2,0,1960,,,\n3,0,1960,,,\n", visit_occurrence=text)

    task = build("task", registry().get("task", "readmission_30d").config())
    for swapped in (False, True):
        found = read_events(shards(visits(swapped))[0].path)
        labels = task.label(found, datetime(2030, 1, 1))
        assert labels["boolean_value"].to_list() == [False] * len(labels)
        assert len(labels) == (4 if swapped else 6)


def test_rows_that_repeat_or_correct_a_visit_make_no_stay_of_their_own(provide):
    row = "10,1,9201,2020-01-10,2020-01-10 08:00:00,{},\n"
    meds = provide(
        visit_occurrence=VISIT + row.format("2020-01-12") * 2 + row.format("2020-01-13") + row.format("9999-12-31")
    )
    assert rows(meds) == [("2020-01-10 08:00:00", IN), ("2020-01-13 00:00:00", OUT)]
    assert told(meds, "treated") == {"times": {"start or end of a visit that has another (left out)": 6}}


def test_a_stay_with_dates_only_keeps_its_last_day_and_its_death(provide):
    meds = provide(
        visit_occurrence=VISIT + "10,1,9201,2020-01-10,,2020-01-12,\n",
        measurement=MEASUREMENT + "1,5,2020-01-12,2020-01-12 09:30:00,1,10,,\n",
        death=DEATH + "1,2020-01-12,\n",
    )
    last = "2020-01-12 09:30:00"
    assert rows(meds) == [("2020-01-10 00:00:00", IN), (last, "OMOP//5"), (last, OUT), (last, "MEDS_DEATH")]
    counted = told(meds, "treated")["times"]
    assert counted == {
        "death at midnight sharp (moved to the last event of its day)": 1,
        "end of a visit at midnight sharp (moved to the last event of the visit on its day)": 1,
    }


@pytest.mark.parametrize(
    ("start", "found"),
    [
        ("2020-01-10 21:00:00-05:00", "2020-01-10 21:00:00"),
        ("2020-01-10T21:00:00Z", "2020-01-10 21:00:00"),
        ("2020-01-11 02:00:00", "2020-01-11 02:00:00"),
        ("2020-01-09 15:00:00", "2020-01-09 15:00:00"),
        ("1900-01-01 21:00:00", "2020-01-10 00:00:00"),
        ("1970-01-01 00:00:00", "2020-01-10 00:00:00"),
    ],
)
def test_what_is_known_by_date_is_known_at_the_start_of_the_visit_and_not_hours_before(provide, start, found):
    meds = provide(
        visit_occurrence=VISIT + f"10,1,9201,2020-01-10,{start},2020-01-14,\n",
        condition_occurrence=CONDITION + "1,5,2020-01-10,,10\n",
    )
    assert rows(meds)[:2] == [(found, IN), (found, "OMOP//5")]


def test_a_time_of_another_clock_at_midnight_is_a_time_and_does_not_move(provide):
    meds = provide(
        visit_occurrence=VISIT + "10,1,9201,2020-01-10,2020-01-10 22:00:00,,\n",
        measurement=MEASUREMENT + "1,5,2020-01-10,2020-01-11 00:00:00,1,10,,\n1,6,2020-01-10,,1,10,,\n",
    )
    started = "2020-01-10 22:00:00"
    assert rows(meds) == [(started, IN), (started, "OMOP//6"), ("2020-01-11 00:00:00", "OMOP//5")]


def test_a_time_that_contradicts_its_date_is_counted_once(provide, capsys):
    meds = provide(
        visit_occurrence=VISIT + "10,1,9201,2020-01-10,1900-01-01 10:00:00,2020-01-14,2020-01-14 10:00:00\n",
        measurement=MEASUREMENT
        + "1,5,2020-03-01,1900-01-01 10:00:00,12.5,,,\n1,5,1900-01-01,2020-03-02 10:00:00,12.5,,,\n",
    )
    assert rows(meds)[2:] == [("2020-03-01 00:00:00", "OMOP//5"), ("2020-03-02 10:00:00", "OMOP//5")]
    assert told(meds, "treated") == {
        "measurement": {
            "measurement: date and time that contradict (the date taken)": 1,
            "measurement: date that is a placeholder beside another time (the time taken)": 1,
        },
        "visit_occurrence.start": {"visit_start: date and time that contradict (the date taken)": 1},
    }
    assert "treated in measurement: measurement: date and time that contradict" in capsys.readouterr().err


def test_times_of_several_clocks_are_refused_unless_the_clock_is_named(provide):
    tables = {
        "visit_occurrence": VISIT + "10,1,9201,2020-01-10,2020-01-10 21:00:00-05:00,,\n",
        "measurement": MEASUREMENT + "1,5,2020-01-10,2020-01-11 03:00:00Z,1,10,,\n",
    }
    with pytest.raises(DataError, match=r"zones from -05:00 \(visit_occurrence.start\) to \+00:00 \(measurement\)"):
        provide(**tables)
    meds = provide(**tables, time_zone="America/New_York")
    assert rows(meds) == [("2020-01-10 21:00:00", IN), ("2020-01-10 22:00:00", "OMOP//5")]


@pytest.mark.parametrize(
    ("row", "born"),
    [
        ("1,0,1960,5,6,1960-05-06 07:08:09", "1960-05-06 07:08:09"),
        ("1,0,1960,,,1960-05-06 07:08:09", "1960-05-06 07:08:09"),
        ("1,0,1960,5,6,1900-01-01", "1960-05-06 00:00:00"),
        ("1,0,1960,,,1900-01-01", "1960-01-01 00:00:00"),
        ("1,0,1960,5,6,1960-05-05 23:00:00", "1960-05-06 00:00:00"),
        ("1,0,1900,1,1,1960-05-06", "1960-05-06 00:00:00"),
        ("1,0,1960,2,29,NULL", "1960-02-29 00:00:00"),
        ("1,0,NULL,NA,\\N,1960-05-06", "1960-05-06 00:00:00"),
    ],
)
def test_a_birth_is_the_year_month_and_day_and_a_time_that_contradicts_them_is_not_used(provide, row, born):
    frame = written(provide(person=PERSON + row + "\n"))
    assert [str(time) for time in frame.filter(pl.col("code") == "MEDS_BIRTH")["time"]] == [born]


@pytest.mark.parametrize("word", ["", "NULL", "na", "N/A", "NaN", "\\N", "None", ".", "-", "?", "NaT"])
def test_words_for_nothing_in_cells_of_numbers_dates_and_ids_are_empty_and_codes_stay(provide, word):
    meds = provide(
        person=PERSON + f"1,{word},1960,{word},{word},{word}\n",
        visit_occurrence=VISIT + f"10,1,9201,2020-01-10,2020-01-10 08:00:00,{word},{word}\n",
        measurement=MEASUREMENT + "1,W,2020-01-10,W,W,W,NULL,\n1,0,2020-01-10,W,5,10,00123,\n".replace("W", word),
    )
    assert rows(meds) == [
        ("2020-01-10 00:00:00", "MEASUREMENT//NULL"),
        ("2020-01-10 08:00:00", IN),
        ("2020-01-10 08:00:00", "MEASUREMENT//00123"),
    ]
    counted = told(meds, "treated").get("measurement", {})
    assert counted.get("value_as_number: words for nothing (taken as empty)", 0) == bool(word)


@pytest.mark.parametrize("value", ["1,5", "<0.1", "12 mg", "0x10", "1.2.3"])
def test_a_number_that_is_none_is_one_line_and_never_another_number(provide, value):
    with pytest.raises(EhrError, match=r"row 1: column 'value_as_number' is no number; mend it") as error:
        provide(measurement=MEASUREMENT + f'1,5,2020-01-10,,"{value}",,,\n')
    assert value not in str(error.value)


@pytest.mark.parametrize("person", ["1.0E+05", "9223372036854775808", "1.5", "1 000"])
def test_an_id_that_may_have_lost_digits_is_one_line(provide, person):
    with pytest.raises(EhrError, match=r"person.csv, row 1: column 'person_id' is no whole number") as error:
        provide(person=PERSON + f"{person},0,1960,,,\n")
    assert person not in str(error.value)


@pytest.mark.parametrize("date", ["2020-02-31", "20202-01-01", "0000-01-01", "2020-01-31 25:00:00", "31/01/2020"])
def test_a_date_that_is_none_is_one_line_and_one_at_24_hours_the_next_midnight(provide, date):
    with pytest.raises(EhrError, match=r"measurement.csv, row 1: column 'measurement_datetime' is no date or time"):
        provide(measurement=MEASUREMENT + f"1,5,2020-01-31,{date},1,,,\n")
    meds = provide(measurement=MEASUREMENT + "1,5,2020-01-31,2020-01-31 24:00:00,1,,,\n")
    assert rows(meds) == [("2020-02-01 00:00:00", "OMOP//5")]


def test_placeholders_are_brought_over_for_the_reader_to_count_and_move_nothing_else(provide):
    meds = provide(
        visit_occurrence=VISIT
        + "10,1,9201,2020-01-10,2020-01-10 08:00:00,9999-12-31,\n11,1,9202,1753-01-01,,1753-01-01,\n",
        condition_occurrence=CONDITION + "1,5,2020-01-10,2999-12-31,10\n",
        death=DEATH + "1,9999-12-31,\n",
    )
    assert rows(meds)[-5:] == [
        ("2020-01-10 08:00:00", IN),
        ("2020-01-10 08:00:00", "OMOP//5"),
        ("2999-12-31 00:00:00", "OMOP//5//END"),
        ("9999-12-31 00:00:00", OUT),
        ("9999-12-31 00:00:00", "MEDS_DEATH"),
    ]


def test_units_that_differ_within_a_code_are_said_unless_they_are_part_of_it(provide, capsys):
    table = MEASUREMENT + "1,5,2020-01-10,,12.5,,,g/dL\n1,5,2020-01-11,,125,,,g/L\n"
    assert "units that differ" not in told(provide(measurement=table), "treated")
    meds = provide(measurement=table, units=False)
    assert told(meds, "treated")["units that differ"] == {"OMOP//5": {"g/L": 1, "g/dL": 1}}
    assert "units differ within 1 codes, as OMOP//5" in capsys.readouterr().err


WORDS = ("", "NULL", "NaN", " ", "\\N", "?")
DATES = ("2020-01-10", "2020-01-12", "1900-01-01", "9999-12-31", "0001-01-01", *WORDS)
TIMES = (
    "2020-01-10 08:00:00", "2020-01-10T21:00:00", "2020-01-12 24:00:00", "2020-01-11 02:00:00", "1900-01-01 00:00:00",
    "9999-12-31 23:59:59", "1970-01-01", *WORDS,
)  # fmt: skip
WRONG = ("2020-02-31", "20202-01-01", "soon")
NUMBERS = ("1", "1e3", " 7 ", "1e300", "inf", "-1.5", *WORDS)


def some(*values):
    return st.sampled_from(values)


visits = st.lists(
    st.tuples(some("10", "11", "12", *WORDS), some("9201", "9202", "0", "NA"), some(*DATES), some(*TIMES), some(*DATES),
              some(*TIMES)),
    max_size=5,
)  # fmt: skip
measurements = st.lists(
    st.tuples(some("5", "0", "NULL"), some(*DATES), some(*TIMES), some(*NUMBERS), some("10", "11", *WORDS)), max_size=5
)
records = st.tuples(visits, measurements, st.lists(st.tuples(some(*DATES), some(*TIMES)), max_size=2))


def tables(subjects):
    people, seen, values, dead = PERSON, VISIT, MEASUREMENT, DEATH
    for person, (stays, labs, deaths) in subjects.items():
        people += f"{person},8507,1960,,,\n"
        for visit, kind, *times in stays:
            seen += f"{visit},{person},{kind},{','.join(times)}\n"
        for concept, date, time, number, visit in labs:
            values += f"{person},{concept},{date},{time},{number},{visit},,\n"
        dead += "".join(f"{person},{date},{time}\n" for date, time in deaths)
    return {"person": people, "visit_occurrence": seen, "measurement": values, "death": dead}


@settings(max_examples=12, deadline=None)
@given(records, records, st.none() | some(*WRONG))
def test_troubles_in_combination_give_one_dataset_or_one_line_and_never_reach_another_subject(
    tmp_path_factory, ours, theirs, wrong
):
    def made(subjects):
        folder = tmp_path_factory.mktemp("omop")
        (folder / "meds").mkdir()
        write(folder / "cdm", tables(subjects))
        source = OmopSource(OmopConfig(path=folder / "cdm", train=1.0, tuning=0.0, held_out=0.0))
        return source.provide(folder / "meds", build("executor", SerialConfig()))

    alone, both = made({1: ours}), made({1: ours, 2: theirs})
    first = written(alone)
    assert written(both).filter(pl.col("subject_id") == 1).equals(first)
    stays, labs, _ = ours
    # Each row is an event or is counted.
    counted = told(alone, "left_out").get("measurement", {}).get("no time", 0)
    codes = first["code"].to_list()
    untold = sum(concept != "5" for concept, *_ in labs)
    no_code = told(alone, "left_out").get("measurement", {}).get("no code", 0)
    assert sum(code.startswith("OMOP//5") for code in codes) + counted + no_code == len(labs)
    assert no_code <= untold
    # There are no more stays than visits, however often a visit is told.
    told_visits = {visit if visit.isdecimal() else row for row, (visit, kind, *_) in enumerate(stays) if kind == "9201"}
    for name in (IN, OUT):
        assert codes.count(name) <= len(told_visits)
    if wrong:
        with pytest.raises(DataError, match=r"row \d+: column 'measurement_datetime' is no date") as error:
            made({1: ours, 2: (*theirs[:1], [*theirs[1], ("5", "2020-01-10", wrong, "1", "10")], theirs[2])})
        assert wrong not in str(error.value)
