"""Ages are the calendar's: they change on the birthday, and what is between two birthdays is a part of one year."""

from datetime import date, datetime, timedelta

import numpy as np
import pytest
from ehr_core.ages import completed_years, exact_years
from ehr_core.constants import DAY_US
from hypothesis import given
from hypothesis import strategies as st

EPOCH = datetime(1970, 1, 1)


def us(*times):
    return np.array([(time - EPOCH) // timedelta(microseconds=1) for time in times], np.int64)


def midnight(day):
    return us(datetime(day.year, day.month, day.day))


def by_hand(birth, time):
    before = (time.month, time.day) < (birth.month, birth.day)
    return time.year - birth.year - before


@pytest.mark.parametrize(
    ("birth", "time", "years"),
    [
        ("1950-03-04", "2020-03-03 23:59", 69),
        ("1950-03-04", "2020-03-04 00:00", 70),
        ("1950-03-04 17:00", "2020-03-04 00:00", 70),
        ("1982-01-01", "2000-01-01", 18),
        ("2000-02-29", "2001-02-28 23:59", 0),
        ("2000-02-29", "2001-03-01", 1),
        ("2000-02-29", "2004-02-29", 4),
        ("2000-02-29", "2100-03-01", 100),
        ("2020-01-02", "2020-01-01", -1),
        ("2020-01-02 10:00", "2020-01-02 10:00", 0),
        ("0001-01-01", "9999-12-31", 9998),
    ],
)
def test_years_are_completed_on_the_birthday(birth, time, years):
    birth, time = (us(datetime.fromisoformat(text)) for text in (birth, time))
    assert completed_years(birth, time).tolist() == [years]


@given(st.lists(st.tuples(st.datetimes(), st.datetimes()), min_size=1))
def test_any_two_times_give_what_counting_by_hand_gives(pairs):
    birth, time = (us(*side) for side in zip(*pairs, strict=True))
    assert completed_years(birth, time).tolist() == [by_hand(*pair) for pair in pairs]


@given(st.dates(date(1900, 1, 1), date(2050, 1, 1)), st.integers(0, 110), st.integers(0, 10**15))
def test_an_exact_age_is_whole_on_the_birthday_and_grows_between(birth, years, more):
    born = midnight(birth)
    if (birth.month, birth.day) != (2, 29):
        assert exact_years(born, midnight(birth.replace(year=birth.year + years))).tolist() == [years]
    exact = exact_years(born, born + more)
    assert np.floor(exact).tolist() == completed_years(born, born + more).tolist()
    assert abs(exact - more / (365.2425 * DAY_US)) < 0.006
    assert exact_years(born, born + more + DAY_US) > exact
