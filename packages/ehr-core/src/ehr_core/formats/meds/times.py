"""One rule for times that cannot be, for births and for deaths, whatever the records are read for.

A time outside of what the dataset can have (`Reading`) stands for nothing, and so does one over a year before a birth
or over 130 years after it. Such events are left out; where most of a subject's events contradict the birth, it is the
birth that is left out. A death at midnight sharp is known by its date only: it moves to the subject's last event of
that day.
"""

import numpy as np
import polars as pl

from ehr_core.constants import DAY_US, MEDS_BIRTH, MEDS_DEATH, YEAR_US
from ehr_core.formats.meds.shard import Reading
from ehr_core.formats.tokens import NO_TIME

TREATED = {
    "long_ago": "events before 1850, which were left out",
    "future": "events later than `source.latest`, else than the dataset was made, which were left out",
    "beyond_life": "events over a year before the birth, or over 130 years after it, which were left out",
    "births_dropped": "births that contradict most events of their subject, which were left out",
    "births_renamed": "births under another code, which became MEDS_BIRTH",
    "deaths_moved": "deaths known by their date only, which moved to the last event of that day",
    "subjects_without_birth": "subjects whose birth has no time on record; their age is unknown",
}
BEFORE_US, AFTER_US = int(YEAR_US), int(130 * YEAR_US)
"""Care begins before birth; nobody has lived longer."""


def settle(events: pl.DataFrame, reading: Reading) -> tuple[pl.DataFrame, dict[str, int]]:
    """Events in order with what cannot be left out, births under their one name, and deaths at the end of their day."""
    events, renamed = _named(events, reading.birth)
    counts = dict.fromkeys(TREATED, 0) | {"births_renamed": renamed}
    id_N = events["subject_id"].to_numpy()
    time_N = events["time"].to_physical().fill_null(NO_TIME).to_numpy()
    subject_N = np.cumsum(np.concatenate([[False], id_N[1:] != id_N[:-1]])) if len(id_N) else np.zeros(0, np.int64)
    timed_N = time_N != NO_TIME
    long_ago_N, future_N = timed_N & (time_N < reading.earliest), time_N > reading.latest
    counts |= {"long_ago": int(long_ago_N.sum()), "future": int(future_N.sum())}
    keep_N = ~(long_ago_N | future_N)
    birth_N = (events["code"] == MEDS_BIRTH).to_numpy()
    size = int(subject_N[-1]) + 1 if len(subject_N) else 0
    keep_N, dropped, beyond = _lives(subject_N, time_N, timed_N, birth_N, keep_N, size)
    counts |= {"births_dropped": dropped, "beyond_life": beyond}
    born_S = np.zeros(size, bool)
    born_S[subject_N[birth_N & timed_N & keep_N]] = True
    counts["subjects_without_birth"] = int(size - born_S.sum())
    if not keep_N.all():
        events, subject_N, time_N = events.filter(pl.Series(keep_N)), subject_N[keep_N], time_N[keep_N]
    events, counts["deaths_moved"] = _deaths(events, subject_N, time_N)
    return events, counts


def _named(events: pl.DataFrame, birth: tuple[str, ...]) -> tuple[pl.DataFrame, int]:
    """Events whose births are MEDS_BIRTH, and how many had another code."""
    codes = events["code"]
    begins = tuple(f"{code}//" for code in birth)
    maybe = codes.str.starts_with(birth[0]) if len(birth) == 1 else codes.str.contains_any([*birth])
    if not maybe.any():
        return events, 0
    names = codes.filter(maybe).unique().to_list()
    others = [name for name in names if (name in birth or name.startswith(begins)) and name != MEDS_BIRTH]
    other = codes.is_in(others) if others else None
    if other is None:
        return events, 0
    return events.with_columns(codes.set(other, MEDS_BIRTH)), int(other.sum())


def _lives(
    subject_N: np.ndarray, time_N: np.ndarray, timed_N: np.ndarray, birth_N: np.ndarray, keep_N: np.ndarray, size: int
) -> tuple[np.ndarray, int, int]:
    """Which rows to keep when lives are as long as they can be, the number of births left out and of other events."""
    born = np.flatnonzero(birth_N & timed_N & keep_N)[::-1]  # backwards, so that the first birth stays
    if not len(born):
        return keep_N, 0, 0
    birth_S = np.full(size, NO_TIME)
    birth_S[subject_N[born]] = time_N[born]
    judged_N = timed_N & keep_N & ~birth_N & (birth_S != NO_TIME)[subject_N]
    since_N = np.where(judged_N, time_N - np.where(birth_S == NO_TIME, 0, birth_S)[subject_N], 0)
    wrong_N = (since_N < -BEFORE_US) | (since_N > AFTER_US)
    if not wrong_N.any():
        return keep_N, 0, 0
    wrong_S, all_S = (np.bincount(subject_N[mask], minlength=size) for mask in (wrong_N, judged_N))
    birth_wrong_S = 2 * wrong_S > all_S
    dropped_N = birth_N & timed_N & keep_N & birth_wrong_S[subject_N]
    beyond_N = wrong_N & ~birth_wrong_S[subject_N]
    return keep_N & ~dropped_N & ~beyond_N, int(dropped_N.sum()), int(beyond_N.sum())


def _deaths(events: pl.DataFrame, subject_N: np.ndarray, time_N: np.ndarray) -> tuple[pl.DataFrame, int]:
    """Events with each death at midnight at the subject's last event of that day, and how many moved."""
    death = events["code"].str.starts_with(MEDS_DEATH)
    if not death.any():
        return events, 0
    at = np.flatnonzero(death.to_numpy() & (time_N != NO_TIME) & (time_N % DAY_US == 0))
    if not len(at):
        return events, 0
    # Rows are in order of subject and time, so the last of a day is the one before the first of a later day.
    width = np.flatnonzero(np.diff(subject_N, append=subject_N[-1] + 1))
    end_S = np.searchsorted(width, at)
    moved, to = [], []
    for row, end in zip(at.tolist(), width[end_S].tolist(), strict=True):
        last = row + int(np.searchsorted(time_N[row : end + 1], time_N[row] + DAY_US)) - 1
        if time_N[last] > time_N[row]:
            moved.append(row)
            to.append(time_N[last])
    if not moved:
        return events, 0
    time_N = time_N.copy()
    time_N[moved] = to
    missing = events["time"].is_null()
    time = pl.Series("time", time_N).cast(pl.Datetime("us")).set(missing, None)
    return events.with_columns(time).sort("subject_id", "time", nulls_last=False, maintain_order=True), len(moved)
