"""Building blocks of sources: events spooled by shard, settled in time, and counted where they were treated."""

import json
from datetime import datetime

import numpy as np
import polars as pl
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build
from ehr_tokenize.sources import settling, to_meds
from ehr_tokenize.sources.cells import Reading
from ehr_tokenize.sources.settings import TablesConfig
from hypothesis import given, settings
from hypothesis import strategies as st


def at(*parts):
    return datetime(2020, 1, *parts)


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


moments = st.sampled_from([at(3), at(3, 8), at(4), at(5, 9), datetime(1900, 1, 1), datetime(9999, 12, 31), None])


visits = st.sampled_from([10, 11, None])


def told_by(role):
    codes = {"starts": "HOSPITAL_ADMISSION", "ends": "HOSPITAL_DISCHARGE", "": "LAB", "deaths": "MEDS_DEATH"}
    return st.lists(st.tuples(moments, st.just(codes[role]), visits), max_size=4)


records = st.fixed_dictionaries({role: told_by(role) for role in ("starts", "", "ends", "deaths")})


@settings(max_examples=15, deadline=None)
@given(records, records)
def test_no_trouble_of_one_subject_changes_another_and_no_event_is_lost_untold(tmp_path_factory, ours, theirs):
    def made(*subjects):
        folder = tmp_path_factory.mktemp("meds")
        steps = {
            role: [(number, *row) for number, found in enumerate(subjects, 1) for row in found[role]] for role in ours
        }
        (rows,) = convert(folder, steps)
        return [row for row in rows if row[0] == 1], folder

    rows, folder = made(ours)
    assert made(ours, theirs)[0] == rows
    assert rows == sorted(rows, key=lambda row: row[1])
    lost = sum(time is None for found in ours.values() for time, *_ in found)
    repeated = treated(folder).get("times", {}).get(settling.REPEATED, 0)
    assert len(rows) + lost + repeated == sum(map(len, ours.values()))
    kept = [code for *_, code in rows]
    for role, code in (("starts", "HOSPITAL_ADMISSION"), ("ends", "HOSPITAL_DISCHARGE")):
        named = {row if visit is None else visit for row, (_, _, visit) in enumerate(ours[role])}
        assert kept.count(code) <= len(named)


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
