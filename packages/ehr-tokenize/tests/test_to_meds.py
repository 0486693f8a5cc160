"""Building blocks of sources: cells of files as numbers and times, and events spooled by shard and settled in time."""

import json
from collections import Counter
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from ehr_core.errors import ConfigError, DataError
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build
from ehr_tokenize.sources import record_files, settling, to_meds
from ehr_tokenize.sources.cells import Batch, Reading, reading_of
from ehr_tokenize.sources.record_files import batches, find_tables
from ehr_tokenize.sources.settings import TablesConfig
from ehr_tokenize.sources.times import day_and_time, ends_before, parse_times
from hypothesis import given
from hypothesis import strategies as st


def at(*parts):
    return datetime(2020, 1, *parts)


def batch(values, reading=None, **types):
    return Batch("x.csv", 5, pl.DataFrame({"c": values}, **types), reading or reading_of(TablesConfig()))


def times_of(*texts):
    return parse_times(pl.Series(texts, dtype=pl.String))[0].to_list()


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-31 12:00:00",
        "2020-01-31T12:00:00",
        "2020-01-31T12:00:00Z",
        "2020-01-31 12:00",
        "2020-01-31 12:00:00.000",
        "2020-01-31 12:00:00.0000000",
        "2020-01-31T12:00:00+02:00",
        "2020-01-31 12:00:00-05",
        "2020-01-31 12:00:00 -0530",
        "2020-01-31 12:00:00 UTC",
        "20200131 12:00",
        "2020-1-31 12:00",
    ],
)
def test_a_time_is_the_clock_that_was_written_however_it_is_written(text):
    assert times_of(text, None) == [datetime(2020, 1, 31, 12), None]
    assert times_of("2019-05-06", text) == [datetime(2019, 5, 6), datetime(2020, 1, 31, 12)]


def test_with_a_zone_a_time_is_read_off_the_clock_of_that_zone():
    texts = ["2020-07-01T02:00:00Z", "2020-07-01T01:00:00-01:00", "2020-01-01 05:00:00+00", "2020-07-01 02:00:00"]
    found, offsets = parse_times(pl.Series(texts), "America/New_York")
    evening = datetime(2020, 6, 30, 22)
    assert found.to_list() == [evening, evening, datetime(2020, 1, 1), datetime(2020, 7, 1, 2)]
    assert offsets == {0: 2, -60: 1}
    with pytest.raises(ConfigError, match=r"source.time_zone is 'Amerika'; expected a zone such as America/New_York"):
        reading_of(TablesConfig(time_zone="Amerika"))


@pytest.mark.parametrize("text", ["2020-01-31 24:00:00", "2020-01-31T24:00", "2020-01-31 24:00:00.000", "2020-02-01"])
def test_the_end_of_a_day_is_the_next_midnight(text):
    assert times_of(text) == [datetime(2020, 2, 1)]


def test_a_date_is_its_midnight_and_nonsense_is_null():
    assert times_of("2020-01-31", "20200131") == [datetime(2020, 1, 31)] * 2
    nonsense = ["2020-02-31", "2020-13-01", "31.1.2020", "soon", "2020111", "43861", "20202-01-01", "+20202-01-01"]
    nonsense += ["0000-01-01", "-0001-01-01", "2020-01-31 25:00:00", "2020-01-31 24:01", "2020-01-31 12:00+15:00"]
    assert times_of(*nonsense) == [None] * len(nonsense)


@pytest.mark.parametrize("year", [1, 1753, 1900, 2999, 9999])
def test_a_date_that_stands_for_nothing_is_brought_over_where_a_dataset_can_hold_it(year):
    found = times_of(f"{year:04}-12-31", f"{year:04}-12-31 23:59:59")
    assert found == [datetime(year, 12, 31), datetime(year, 12, 31, 23, 59, 59)]
    assert batch([date(year, 1, 1)]).time("c").to_list() == [datetime(year, 1, 1)]


def test_times_of_a_parquet_file_that_no_library_can_show_are_refused():
    for kind, day in ((pl.Date, 1), (pl.Datetime("ms"), 86_400_000), (pl.Datetime("us"), 86_400_000_000)):
        far = pl.Series([0, 3_000_000 * day]).cast(kind)
        with pytest.raises(DataError, match=r"row 6: column 'c' is no date or time of the years 1 to 9999"):
            batch(far).time("c")


@given(st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)) | st.none()))
def test_iso_times_of_any_kind_in_one_column_survive(times):
    forms = ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%fZ")
    text = [time and time.strftime(forms[index % 2]) for index, time in enumerate(times)]
    assert times_of(*text) == times


NOTHING = ["", " ", "NULL", "null", "NA", "N/A", "NaN", "nan", "NaT", "None", "\\N", ".", "-", "?", "#N/A", "(null)"]


@pytest.mark.parametrize("word", NOTHING)
def test_a_word_for_nothing_is_an_empty_number_date_or_id_and_counted_but_a_text_as_it_is(word):
    cells = batch([word, "7"])
    assert cells.integer("c").to_list() == cells.integer("c").to_list() == [None, 7]
    assert cells.number("c").to_list() == [None, 7.0]
    assert cells.identifier("c").to_list() == [None, "7"]
    assert cells.text("c").to_list() == [word.strip() or None, "7"]
    assert batch([word, "2020-01-03"]).time("c").to_list() == [None, at(3)]
    assert cells.reading.treated.total() == (1 if word.strip() else 0)


def test_words_for_nothing_can_be_chosen():
    chosen = reading_of(TablesConfig(empty=["unknown", "2020-02-31"]))
    assert batch(["UNKNOWN", "7"], chosen).integer("c").to_list() == [None, 7]
    assert batch(["2020-02-31", "20200103"], chosen).time("c").to_list() == [None, at(3)]
    with pytest.raises(DataError, match=r"column 'c' is no whole number that is exact; mend it, or name"):
        batch(["NULL"], chosen).integer("c")


@pytest.mark.parametrize("text", ["00123", "NA", "NULL", "1.0E+05", "-", "007.50", "nan"])
def test_a_code_stays_what_it_is(text):
    assert batch([text]).text("c").to_list() == [text]


def test_whole_numbers_are_read_from_text_floats_and_decimals():
    for values in (["7", "8.0", ""], [" 7 ", "+8", "NA"], [7.0, 8.0, None], [7.0, 8.0, float("nan")], [7, 8, None]):
        assert batch(values, strict=False).integer("c").to_list() == [7, 8, None]
    big = 2**62 + 1
    assert batch([str(big)]).integer("c").to_list() == [big]
    assert batch([1]).integer("missing").to_list() == [None]
    assert batch([Decimal("7"), None]).integer("c").to_list() == [7, None]


@pytest.mark.parametrize(
    "values",
    [
        ["7", "x"],
        ["7", "7.5"],
        ["7", "1.0E+05"],
        ["7", "1,000"],
        ["7", str(2**63)],
        [7.0, 7.5],
        [7.0, float("inf")],
        [7.0, 2.0**60],
        pl.Series([7, 2**63], dtype=pl.UInt64),
        [Decimal("7.0"), Decimal("7.5")],
    ],
)
def test_what_is_no_whole_number_or_may_have_lost_digits_is_refused(values):
    with pytest.raises(DataError, match=r"x.csv, row 6: column 'c' is no whole number"):
        batch(values).integer("c")


def test_numbers_are_finite_and_text_is_an_error_only_where_it_must_be_none():
    cells = batch(["1.5", "1e5", "inf", " ", "1e39", "-7.", "NaN"])
    assert cells.number("c").to_list() == [1.5, 100_000.0, None, None, None, -7.0, None]
    assert cells.reading.treated == {
        "c: infinite, or too large for a float32 (taken as missing)": 2,
        "c: words for nothing (taken as empty)": 1,
    }
    assert batch([1.5, float("nan"), float("inf")]).number("c").to_list() == [1.5, None, None]
    assert batch(["1.5", "many"]).number("c", strict=False).to_list() == [1.5, None]


@pytest.mark.parametrize("text", ["many", "1,5", "<0.1", "12 mg", "0x10", "1_000", "1.5.2", "TRUE"])
def test_what_is_no_number_is_refused_and_never_another_one(text):
    with pytest.raises(DataError, match=r"row 6: column 'c' is no number"):
        batch(["1.5", text]).number("c")


def test_codes_that_pandas_has_made_floats_do_not_depend_on_their_neighbours():
    assert batch([250.0, 401.9, None]).text("c").to_list() == ["250", "401.9", None]
    assert batch([250.0]).text("c").to_list() == ["250"]


def test_times_come_from_dates_zones_and_text_alike():
    zoned = pl.Series([at(3, 12)]).dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin")
    berlin = batch(zoned)
    assert berlin.time("c").to_list() == [at(3, 13)]
    assert berlin.reading.offsets == {60: 1}
    assert batch([date(2020, 1, 3)]).time("c").to_list() == [at(3)]
    with pytest.raises(DataError, match=r"column 'c' is Int64, expected dates or times"):
        batch([5]).time("c")


@pytest.mark.parametrize("block", [40, 1 << 20])
def test_rows_are_counted_across_batches(tmp_path, monkeypatch, block):
    monkeypatch.setattr(record_files, "BLOCK", block)
    (tmp_path / "T.csv").write_text("\ufeffA,B\n" + "".join(f'{row},"x, ""{row}""\ny"\n' for row in range(20)), "utf-8")
    found = list(batches(find_tables(tmp_path, ["t"])["t"], ["b"], ["a", "c"]))
    assert [part.first for part in found] == np.cumsum([1, *map(len, found)])[:-1].tolist()
    assert pl.concat([part.frame for part in found])["b"].to_list() == [f'x, "{row}"\ny' for row in range(20)]
    assert (len(found) > 1) == (block == 40)


def test_the_error_of_a_late_row_names_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(record_files, "BLOCK", 40)
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2020-01-01\n" * 20 + "1,secret\n")
    with pytest.raises(DataError, match=r"t.csv, row 21: column 'b' is no date or time such as"):
        [part.time("b") for part in batches(find_tables(tmp_path, ["t"])["t"], ["b"])]


def convert(tmp_path, steps, **settings):
    """Events by role, for subjects 1 to 6, through spools to the rows of all shards."""
    plan = to_meds.plan(np.arange(1, 7), TablesConfig(**{"train": 1.0, "tuning": 0.0, "held_out": 0.0} | settings))

    def function(role):
        path = tmp_path / f"{role}.arrow"
        names = ("subject_id", "time", "code", "visit")
        parts = [
            pl.DataFrame(
                [row], dict(zip(names, to_meds.EVENTS.values(), strict=False)) | {"visit": pl.Int64}, orient="row"
            )
            for row in steps[role]
        ]
        return to_meds.spool(plan, path, parts, Reading(), role)

    output = tmp_path / "out"
    to_meds.convert(plan, output, {role: role for role in steps}, function, build("executor", SerialConfig()))
    shards = sorted((output / "data" / "train").glob("*.parquet"))
    return [pl.read_parquet(path, columns=["subject_id", "time", "code"]).rows() for path in shards]


def test_what_is_known_by_date_moves_into_its_visit_and_a_death_to_the_end_of_its_day(tmp_path):
    steps = {
        "starts": [(1, at(3, 8), "IN", 10), (2, at(3, 8), "IN", 10)],
        "": [
            (1, at(3), "SAME DAY", 10),
            (1, at(4), "LATER", 10),
            (1, at(3), "ELSEWHERE", 11),
            (1, at(4, 15), "OUT", 10),
        ],
        "deaths": [(1, at(4), "DEATH", None), (2, at(5), "DEATH", None)],
    }
    (rows,) = convert(tmp_path, steps)
    assert rows == [
        (1, at(3), "ELSEWHERE"),
        (1, at(3, 8), "IN"),
        (1, at(3, 8), "SAME DAY"),
        (1, at(4), "LATER"),
        (1, at(4, 15), "OUT"),
        (1, at(4, 15), "DEATH"),
        (2, at(3, 8), "IN"),
        (2, at(5), "DEATH"),
    ]


def test_a_time_of_day_is_never_changed(tmp_path):
    steps = {
        "starts": [(1, at(3, 8), "IN", 10)],
        "": [(1, at(3, 7), "BEFORE", 10)],
        "deaths": [(1, at(3, 6), "D", None)],
    }
    assert convert(tmp_path, steps) == [[(1, at(3, 6), "D"), (1, at(3, 7), "BEFORE"), (1, at(3, 8), "IN")]]


def test_events_of_one_time_keep_the_order_of_steps_and_rows_and_repeats_go_where_once_is_enough(tmp_path):
    steps = {
        "": [(2, at(3, 1), "B", None), (1, at(3, 1), "A", None), (2, at(3, 1), "A", None), (2, at(3, 1), "A", None)],
        "once": [(2, at(3, 1), "C", None), (2, at(3, 1), "C", None)],
    }
    (rows,) = convert(tmp_path, steps)
    assert [(subject, code) for subject, _, code in rows] == [(1, "A"), (2, "B"), (2, "A"), (2, "A"), (2, "C")]


def test_shards_hold_whole_subjects_in_order(tmp_path):
    steps = {"": [(subject, at(day), "A", None) for day in (9, 2) for subject in (6, 3, 1, 2, 5, 4)]}
    shards = convert(tmp_path, steps, shard_subjects=4)
    assert [[(subject, time.day) for subject, time, _ in rows] for rows in shards] == [
        [(subject, day) for subject in range(1, 5) for day in (2, 9)],
        [(subject, day) for subject in (5, 6) for day in (2, 9)],
    ]


@pytest.mark.parametrize(
    ("date", "time", "found", "reason"),
    [
        (at(3), at(3, 9), (at(3, 9), None), None),
        (at(3), None, (at(3), None), None),
        (None, at(3, 9), (at(3, 9), None), None),
        (at(3), at(4, 2), (at(4, 2), date(2020, 1, 3)), "up to a time zone apart"),
        (at(3), at(2, 19), (at(2, 19), date(2020, 1, 3)), "up to a time zone apart"),
        (at(3), datetime(1900, 1, 1, 10), (at(3), None), "contradict"),
        (at(3), datetime(1970, 1, 1), (at(3), None), "contradict"),
        (at(3), datetime(9999, 12, 31), (at(3), None), "contradict"),
        (at(3), at(20, 9), (at(3), None), "contradict"),
        (datetime(1900, 1, 1), at(3, 9), (at(3, 9), None), "placeholder"),
        (datetime(1, 1, 1), at(3, 9), (at(3, 9), None), "placeholder"),
        (datetime(9999, 12, 31), at(3, 9), (at(3, 9), None), "placeholder"),
        (datetime(1900, 1, 1), datetime(1970, 1, 1), (datetime(1900, 1, 1), None), "contradict"),
    ],
)
def test_a_date_and_a_time_of_one_row_say_one_thing_by_a_rule_that_is_counted(date, time, found, reason):
    sides = (pl.Series([side, None], dtype=pl.Datetime("us")) for side in (date, time))
    treated = Counter()
    assert day_and_time(*sides, treated).rows() == [found, (None, None)]
    assert [reason in name for name in treated] == ([True] if reason else [])


def test_an_end_that_is_known_by_date_is_not_before_what_happened_on_that_day():
    def before(start, end, start_day=None, end_day=None):
        frames = [
            pl.DataFrame({"time": [time], "day": [day]}, {"time": pl.Datetime("us"), "day": pl.Date})
            for time, day in ((start, start_day), (end, end_day))
        ]
        return ends_before(*frames).to_list() == [True]

    assert before(at(3, 9), at(3, 8))
    assert before(at(3, 9), at(2))
    assert before(at(3), at(2, 23))
    assert not before(at(3, 9), at(3))
    assert not before(at(3, 9), at(3, 9))
    assert not before(at(3, 9), None)
    assert before(at(3, 9), datetime(1900, 1, 1))
    assert not before(at(3, 9), datetime(9999, 12, 31))
    assert not before(at(4, 2), at(3), start_day=date(2020, 1, 3))


def test_an_end_by_date_moves_to_the_last_event_of_its_visit_on_that_day_and_a_death_after_it(tmp_path):
    steps = {
        "starts": [(1, at(3), "IN", 10), (2, at(3, 8), "IN", 20), (3, at(3, 8), "IN", 30)],
        "": [(1, at(5, 8), "LAB", 10), (1, at(5, 20), "OTHER", 11), (2, at(6, 1), "LAB", 20), (3, at(3, 9), "LAB", 30)],
        "ends": [(1, at(5), "OUT", 10), (2, at(5), "OUT", 20), (3, at(3), "OUT", 30), (4, at(3), "OUT", None)],
        "deaths": [(3, at(3), "DEATH", None), (2, at(5, 7), "DEATH", None)],
    }
    (rows,) = convert(tmp_path, steps)
    assert [row[1:] for row in rows if row[0] == 1][1:3] == [(at(5, 8), "LAB"), (at(5, 8), "OUT")]
    assert [row[1:] for row in rows if row[0] == 2][1:3] == [(at(5, 7), "OUT"), (at(5, 7), "DEATH")]
    assert [row[1:] for row in rows if row[0] == 3][1:] == [(at(3, 9), "LAB"), (at(3, 9), "OUT"), (at(3, 9), "DEATH")]
    assert rows[-1] == (4, at(3), "OUT")
    assert treated(tmp_path)["times"] == {settling.TO_LAST: 3, settling.TO_DEATH: 1}


def test_a_visit_has_one_start_and_one_end_and_a_placeholder_is_neither_while_there_is_another(tmp_path):
    steps = {
        "starts": [(1, at(3, 8), "IN", 10), (1, at(3, 8), "IN", 10), (1, datetime(1900, 1, 1), "IN", 10)],
        "": [(1, at(3), "SAME DAY", 10)],
        "ends": [(1, at(5, 9), "OUT", 10), (1, datetime(9999, 12, 31), "OUT", 10), (1, at(6, 9), "OUT", 10)],
    }
    steps["ends"] += [(2, at(5, 9), "OUT", None), (2, at(5, 9), "OUT", None), (2, datetime(9999, 12, 31), "OUT", 20)]
    (rows,) = convert(tmp_path, steps)
    assert rows == [
        (1, at(3, 8), "IN"),
        (1, at(3, 8), "SAME DAY"),
        (1, at(6, 9), "OUT"),
        (2, at(5, 9), "OUT"),
        (2, at(5, 9), "OUT"),
        (2, datetime(9999, 12, 31), "OUT"),
    ]
    assert treated(tmp_path)["times"] == {settling.REPEATED: 4, settling.TO_START: 1}


def test_whoever_is_in_hospital_is_there_once(tmp_path):
    stays = {
        # two stays within another one, and one after them
        1: [(10, at(1, 8), at(20, 8)), (11, at(3, 8), at(5, 8)), (12, at(7, 8), at(9, 8)), (13, at(25, 8), at(26, 8))],
        # one across another, the same one twice under two names, and a transfer
        2: [(20, at(1, 8), at(5, 8)), (21, at(4, 8), at(8, 8)), (22, at(4, 8), at(8, 8)), (23, at(8, 8), at(9, 8))],
        # an end that stands for nothing, or is not believed, covers nothing
        3: [(30, at(1, 8), datetime(9999, 12, 31)), (31, at(3, 8), at(5, 8))],
        4: [(40, at(1, 8), datetime(2099, 12, 31)), (41, at(3, 8), at(5, 8))],
        5: [(50, at(1, 8), None), (51, at(3, 8), at(5, 8))],
    }
    told = [(subject, *stay) for subject, found in stays.items() for stay in found]
    steps = {
        "starts": [(subject, start, "HOSPITAL_ADMISSION//IP", visit) for subject, visit, start, _ in told],
        "ends": [(subject, end, "HOSPITAL_DISCHARGE//IP", visit) for subject, visit, _, end in told if end],
    }
    (rows,) = convert(tmp_path, steps)
    found = {
        subject: [(time.day, code.removesuffix("//IP")) for owner, time, code in rows if owner == subject]
        for subject in stays
    }
    into, out, begin, stop = "HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "VISIT_START", "VISIT_END"
    within = [(3, begin), (5, stop), (7, begin), (9, stop)]
    assert found[1] == [(1, into), *within, (20, out), (25, into), (26, out)]
    assert found[2] == [(1, into), (4, begin), (4, begin), (5, stop), (8, into), (8, out), (8, stop), (9, out)]
    assert found[3] == found[4] == [(1, into), (3, into), (5, out), (31, out)]
    assert found[5] == [(1, into), (3, into), (5, out)]
    assert treated(tmp_path)["times"] == {settling.INNER: 8}


def test_units_that_differ_within_a_code_are_counted_and_said(tmp_path, capsys):
    plan = to_meds.plan(np.array([1]), TablesConfig())
    rows = {"code": ["A", "A", "A", "B", "C"], "unit": ["g/dL", "g/L", None, "mg", "x"]}
    part = pl.DataFrame(rows | {"numeric_value": [1.0, 2.0, 3.0, 4.0, None]}).with_columns(
        pl.lit(1).alias("subject_id"), pl.lit(at(3)).alias("time")
    )

    def function(number):
        return to_meds.spool(plan, tmp_path / f"{number}.arrow", [part], Reading())

    to_meds.convert(plan, tmp_path / "out", {"one": 1, "two": 2}, function, build("executor", SerialConfig()))
    assert treated(tmp_path) == {"units that differ": {"A": {"": 2, "g/L": 2, "g/dL": 2}}}
    assert "units differ within 1 codes, as A: 2 in none, 2 in g/L, 2 in g/dL" in capsys.readouterr().err


def treated(tmp_path):
    return json.loads((tmp_path / "out" / "metadata" / "treated.json").read_text())
