"""Cells of files as text, ids, numbers and times, whatever an export has made of them."""

from collections import Counter
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from ehr_core.errors import ConfigError, DataError
from ehr_tokenize.sources import record_files
from ehr_tokenize.sources.cells import Batch, reading_of
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


@pytest.mark.parametrize("header", ["id,value,value", "id,Value,VALUE "])
def test_a_column_that_is_there_twice_is_refused_and_none_of_the_two_taken(tmp_path, header):
    (tmp_path / "labs.csv").write_text(f"{header}\n1,12.5,99\n")
    with pytest.raises(DataError, match=r"labs.csv has 2 columns 'value'; keep one"):
        list(batches(find_tables(tmp_path, ["labs"])["labs"], ["id"], ["value"]))


def test_an_id_of_32_bits_of_floating_point_is_exact_below_two_to_the_24_only():
    exact, lost = 2.0**24 - 1, 2.0**24
    assert batch(np.array([exact], np.float32)).integer("c").to_list() == [2**24 - 1]
    with pytest.raises(DataError, match="no whole number that is exact"):
        batch(np.array([lost], np.float32)).integer("c")
