"""Ages as people count them: one more on each birthday. Every age in years of every package is made here.

Who is born on 29 February has a birthday on 1 March of a year that has no such day. Birthdays begin at midnight, also
of those who were born in the afternoon. Shapes: N pairs of times, int64 microseconds since 1970.
"""

import numpy as np

from ehr_core.constants import DAY_US

FIRST, LAST = np.datetime64("1600-01-01"), np.datetime64("2500-01-01")


def _calendar(day_N: np.ndarray) -> np.ndarray:
    """(N,) days since 1970 as numbers like 20200131: differences of ten thousand and more are completed years."""
    date_N = day_N.astype("M8[D]")
    month_N = date_N.astype("M8[M]")
    year_N = month_N.astype("M8[Y]").astype(np.int64) + 1970
    day_of_month_N = (date_N - month_N.astype("M8[D]")).astype(np.int64) + 1
    return year_N * 10_000 + (month_N.astype(np.int64) % 12 + 1) * 100 + day_of_month_N


BEGIN, END = int(FIRST.astype(np.int64)), int(LAST.astype(np.int64))
TABLE = _calendar(np.arange(BEGIN, END))
"""Looking a day up is several times as fast as computing it."""


def _dates(day_N: np.ndarray) -> np.ndarray:
    inside = not day_N.size or (day_N.min() >= BEGIN and day_N.max() < END)
    return TABLE[day_N - BEGIN] if inside else _calendar(day_N)


def completed_years(birth_N: np.ndarray, time_N: np.ndarray) -> np.ndarray:
    """(N,) int64 birthdays since birth at each time; below 0 before it."""
    years: np.ndarray = (_dates(time_N // DAY_US) - _dates(birth_N // DAY_US)) // 10_000
    return years


def exact_years(birth_N: np.ndarray, time_N: np.ndarray) -> np.ndarray:
    """(N,) float64 `completed_years`, and the part of the time to the next birthday that has passed."""
    years_N = completed_years(birth_N, time_N)
    date_N = _dates(birth_N // DAY_US)
    month_N = (date_N // 10_000 - 1970 + years_N) * 12 + date_N // 100 % 100 - 1
    last_N, next_N = (
        (month_N + months).astype("M8[M]").astype("M8[D]").astype(np.int64) + date_N % 100 - 1 for months in (0, 12)
    )
    exact: np.ndarray = years_N + (time_N - last_N * DAY_US) / ((next_N - last_N) * DAY_US)
    return exact
