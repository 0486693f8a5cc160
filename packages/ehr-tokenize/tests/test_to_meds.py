"""Building blocks of sources: cells of files as numbers and times, and events spooled by shard and settled in time."""

from collections import Counter
from datetime import date, datetime

import numpy as np
import polars as pl
import pytest
from ehr_core.errors import DataError
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build
from ehr_tokenize.sources import record_files, to_meds
from ehr_tokenize.sources.record_files import Batch, batches, find_tables, parse_times
from ehr_tokenize.sources.settings import TablesConfig
from hypothesis import given
from hypothesis import strategies as st


def at(*parts):
    return datetime(2020, 1, *parts)


def batch(values, **types):
    return Batch("x.csv", 5, pl.DataFrame({"c": values}, **types))


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-31 12:00:00",
        "2020-01-31T12:00:00",
        "2020-01-31T12:00:00Z",
        "2020-01-31 12:00",
        "2020-01-31 12:00:00.000",
        "2020-01-31T14:00:00+02:00",
        "2020-01-31 07:00:00-05",
        "2020-01-31 12:00:00 UTC",
    ],
)
def test_a_time_is_read_however_it_is_written(text):
    assert parse_times(pl.Series([text, None])).to_list() == [datetime(2020, 1, 31, 12), None]


def test_a_date_is_its_midnight_and_nonsense_is_null():
    found = parse_times(pl.Series(["2020-01-31", "20200131", "2020-02-30", "31.1.2020", "soon"]))
    assert found.to_list() == [datetime(2020, 1, 31)] * 2 + [None] * 3


@given(st.lists(st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)) | st.none()))
def test_iso_times_of_any_kind_in_one_column_survive(times):
    forms = ("%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%fZ")
    text = [time and time.strftime(forms[index % 2]) for index, time in enumerate(times)]
    assert parse_times(pl.Series(text, dtype=pl.String)).to_list() == times


def test_whole_numbers_are_read_from_text_floats_and_decimals():
    for values in (["7", "8.0", ""], [7.0, 8.0, None], [7.0, 8.0, float("nan")], [7, 8, None]):
        assert batch(values, strict=False).integer("c").to_list() == [7, 8, None]
    big = 2**62 + 1
    assert batch([str(big)]).integer("c").to_list() == [big]
    assert batch([1]).integer("missing").to_list() == [None]
    for values in (["7", "x"], [7.0, 7.5]):
        with pytest.raises(DataError, match=r"x.csv, row 6: column 'c' is no whole number"):
            batch(values).integer("c")


def test_numbers_are_finite_and_text_is_an_error_only_where_it_must_be_none():
    assert batch(["1.5", "1e3", "inf", " "]).number("c").to_list() == [1.5, 1000.0, None, None]
    assert batch(["1.5", "many"]).number("c", strict=False).to_list() == [1.5, None]
    with pytest.raises(DataError, match=r"row 6: column 'c' is no number"):
        batch(["1.5", "many"]).number("c")


def test_times_come_from_dates_zones_and_text_alike():
    zoned = pl.Series([at(3, 12)]).dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin")
    assert batch(zoned).time("c").to_list() == [at(3, 12)]
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
        return to_meds.spool(plan, path, parts, Counter(), role)

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
