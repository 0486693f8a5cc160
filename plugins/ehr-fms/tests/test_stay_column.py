"""The tokenizer ``fms`` with ``stay_column``: rows name their hospitalization, and several may go on at once."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from ehr_core.errors import DataError
from ehr_fms.fms import Fms
from ehr_fms.plugin import FmsConfig
from ehr_tokenize.store import coverage
from hypothesis import given, settings
from hypothesis import strategies as st

SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
SCHEMA["hadm_id"] = pl.String
ADMISSION = [{"prefix": "ADMN", "code": "HOSPITAL_ADMISSION//", "when": "admission"}]

OVERLAP = [
    (1, "2020-01-01 00:00", "HOSPITAL_ADMISSION//A", "7"),
    (1, "2020-01-01 01:00", "X", "7"),
    (1, "2020-01-01 01:30", "LOST", None),
    (1, "2020-01-01 02:00", "Y", "8"),
    (1, "2020-01-01 03:00", "Z", "7"),
    (1, "2020-01-01 04:00", "HOSPITAL_DISCHARGE//HOME", "7"),
    (1, "2020-01-01 04:30", "HOSPITAL_DISCHARGE//LOST", None),
    (1, "2020-01-01 05:00", "HOSPITAL_ADMISSION//B", "8"),
    (1, "2020-01-01 06:00", "LATE", "7"),
    (1, "2020-01-01 06:00", "W", "8"),
    (1, "2020-01-01 09:00", "HOSPITAL_DISCHARGE//OTHER", "8"),
]


def keyed(rows):
    """Events from rows (subject, time or its text, code, name of the hospitalization)."""
    times = [datetime.fromisoformat(time) if isinstance(time, str) else time for _, time, *_ in rows]
    return pl.DataFrame([(s, t, c, None, k) for (s, _, c, k), t in zip(rows, times, strict=True)], SCHEMA, orient="row")


class Decoded:
    def __init__(self, tokenizer, rows):
        self.table = tokenizer.encode(keyed(rows))
        self.names = [tokenizer.vocabulary.tokens[i].token for i in self.table.token]

    def stays(self, subject):
        """Tokens of each hospitalization of a subject."""
        row = self.table.subject_id.tolist().index(subject)
        found = {}
        for at in range(*self.table.offset[row : row + 2]):
            found.setdefault(int(self.table.columns["stay"][at]), []).append(self.names[at])
        return [found[number] for number in range(len(found))]


def by_key(rows, **options):
    """The tokenizer, fitted on the rows, and what it makes of them."""
    tokenizer = Fms(FmsConfig(stay_column="hadm_id", **{"time_spacing": False} | options))
    tokenizer.fit([tokenizer.summarize(keyed(rows))])
    return tokenizer, Decoded(tokenizer, rows)


def test_a_column_can_name_the_hospitalization_of_a_row():
    rows = [
        (1, "2020-01-01 00:00", "A", None),
        (1, "2020-01-02 00:00", "B", "h1"),
        (1, "2020-01-02 01:00", "C", None),
        (1, "2020-01-02 02:00", "A", "h1"),
        (1, "2020-01-03 00:00", "HOSPITAL_DISCHARGE//HOME", "h1"),
        (1, "2020-01-04 00:00", "A", "h1"),
        (1, "2020-01-05 00:00", "B", "h2"),
        (1, "2020-01-06 00:00", "C", "h1"),
        (2, "2020-01-06 00:00", "C", "h1"),
    ]
    tokenizer, found = by_key(rows, prefix=[])
    assert tokenizer.event_columns == ("hadm_id",)
    assert found.stays(1) == [["TL_START", "B", "A", "DSCG_HOME", "TL_END"], ["TL_START", "B"]]
    assert found.stays(2) == [["TL_START", "C"]]
    with pytest.raises(DataError, match="no column 'hadm_id'"):
        tokenizer.encode(keyed(rows).drop("hadm_id"))


def test_a_row_is_in_the_hospitalization_that_it_names_though_another_goes_on():
    tokenizer, found = by_key(OVERLAP, prefix=ADMISSION)
    assert found.stays(1) == [
        ["TL_START", "ADMN_A", "X", "Z", "DSCG_HOME", "TL_END"],
        ["TL_START", "ADMN_UNKNOWN", "Y", "W", "DSCG_OTHER", "TL_END"],  # at its first row no admission is known
    ]
    assert found.table.columns["stay"].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    ends = found.table.time[np.array(found.names) == "TL_END"].astype("datetime64[us]")
    assert [str(end)[11:16] for end in ends] == ["04:00", "09:00"]
    assert (np.diff(found.table.time) >= 0).all()
    assert {t.token: t.count for t in tokenizer.vocabulary.tokens}["TL_END"] == 2


def test_of_two_hospitalizations_that_begin_at_once_each_has_its_own_admission():
    rows = [(1, "2020-01-01", f"HOSPITAL_ADMISSION//{key}", key) for key in "BA"]
    _, found = by_key(rows, prefix=ADMISSION)
    assert found.stays(1) == [["TL_START", "ADMN_B"], ["TL_START", "ADMN_A"]]


def test_rows_that_name_no_hospitalization_are_events_of_the_report_and_not_unknown():
    tokenizer, _ = by_key(OVERLAP)
    more = [*OVERLAP, (2, "2020-01-01", "NEW", None), (2, "2020-01-01", "NEWER", "9")]
    found = coverage.code_events(keyed(more), tokenizer)
    assert (found["LOST"], found["NEW"], found["NEWER"]) == ((1, 0, 0), (1, 0, 0), (1, 1, 0))


def test_a_train_split_in_which_no_row_names_a_hospitalization_is_refused():
    with pytest.raises(DataError, match=r"no event with a time names one in column 'hadm_id'; see tokenizer.stay_col"):
        by_key([(1, "2020-01-01", "NOTE", None)])


CODES = ["HOSPITAL_ADMISSION//A", "HOSPITAL_ADMISSION//B", "HOSPITAL_DISCHARGE", "DX", "LAB"]
steps = st.tuples(st.sampled_from([0, 4, 600]), st.sampled_from(CODES), st.sampled_from(["a", "b", "c", None]))
options = st.fixed_dictionaries({
    "time_spacing": st.booleans(), "max_length": st.sampled_from([None, 4]), "cut_hours": st.sampled_from([None, 11.0]),
    "max_event_days": st.sampled_from([None, 0.5]),
})  # fmt: skip
START = datetime(2020, 1, 1)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=20), options)
def test_each_hospitalization_is_what_it_is_alone_and_nothing_shows_before_its_time(found, chosen):
    at, rows = START, [(1, START, "HOSPITAL_ADMISSION//A", "t")]
    for gap, code, key in found:
        at += timedelta(minutes=gap)
        rows.append((7, at, code, key))
    tokenizer, _ = by_key(rows, prefix=ADMISSION, **chosen)
    record = rows[1:]
    table = tokenizer.encode(keyed(record))
    assert (np.diff(table.time) >= 0).all()
    keys = list(dict.fromkeys(key for *_, key in record if key))
    assert set(table.columns["stay"].tolist()) == set(range(len(keys)))
    for number, key in enumerate(keys):
        alone = tokenizer.encode(keyed([row for row in record if row[3] == key]))
        own = table.columns["stay"] == number
        assert np.array_equal(table.token[own], alone.token)
        assert np.array_equal(table.time[own], alone.time)
    for cut in {row[1] for row in record}:
        part = tokenizer.encode(keyed([row for row in record if row[1] <= cut]))
        size = len(part.token)
        assert size == np.count_nonzero(table.time <= (cut - datetime(1970, 1, 1)) // timedelta(microseconds=1))
        assert np.array_equal(table.token[:size], part.token)
