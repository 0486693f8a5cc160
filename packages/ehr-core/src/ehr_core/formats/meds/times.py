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
    "births_contradicting": "births on another day than the subject's first one, which counts",
    "births_renamed": "births under another code, which became MEDS_BIRTH",
    "deaths_moved": "deaths known by their date only, which moved to the last event of that day",
    "subjects_without_birth": "subjects whose birth has no time on record; their age is unknown",
}
BEFORE_US, AFTER_US = int(YEAR_US), int(130 * YEAR_US)
"""Care begins before birth; nobody has lived longer."""


def settle(
    events: pl.DataFrame, id_N: np.ndarray, time_N: np.ndarray, reading: Reading
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Events in order with what cannot be left out, births under their one name, and deaths at the end of their day.

    ``id_N`` int64 and ``time_N`` int64 microseconds (NO_TIME: null) are the subjects and times of the events.
    """
    events, renamed = _named(events, reading.birth)
    counts = dict.fromkeys(TREATED, 0) | {"births_renamed": renamed}
    if not len(id_N):
        return events, counts
    first_S = np.flatnonzero(np.concatenate([[True], id_N[1:] != id_N[:-1]]))
    future_N, long_ago_N = time_N > reading.latest, (time_N < reading.earliest) & (time_N != NO_TIME)
    counts |= {"long_ago": int(long_ago_N.sum()), "future": int(future_N.sum())}
    keep_N = ~(long_ago_N | future_N)
    birth_N = (events["code"] == MEDS_BIRTH).to_numpy()
    birth_S = _births(first_S, time_N, birth_N & keep_N)
    keep_N, counts["births_dropped"], counts["beyond_life"] = _lives(first_S, time_N, birth_N, birth_S, keep_N)
    counts["births_contradicting"] = _contradicting(first_S, time_N, birth_N & keep_N)
    counts["subjects_without_birth"] = int((_births(first_S, time_N, birth_N & keep_N) == NO_TIME).sum())
    if not keep_N.all():
        events, id_N, time_N = events.filter(pl.Series(keep_N)), id_N[keep_N], time_N[keep_N]
    events, counts["deaths_moved"] = _deaths(events, id_N, time_N)
    return events, counts


def _births(first_S: np.ndarray, time_N: np.ndarray, birth_N: np.ndarray) -> np.ndarray:
    """(S,) time of each subject's first birth that has one; NO_TIME: there is none."""
    birth_S = np.full(len(first_S), NO_TIME)
    at = np.flatnonzero(birth_N)
    at = at[time_N[at] != NO_TIME][::-1]  # backwards, so that the first birth stays
    birth_S[np.searchsorted(first_S, at, side="right") - 1] = time_N[at]
    return birth_S


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


def _contradicting(first_S: np.ndarray, time_N: np.ndarray, birth_N: np.ndarray) -> int:
    """How many births are on another day than the first one of their subject."""
    at = np.flatnonzero(birth_N)
    at = at[time_N[at] != NO_TIME]
    subject = np.searchsorted(first_S, at, side="right") - 1
    first = _births(first_S, time_N, birth_N)[subject]
    return int(np.count_nonzero(time_N[at] // DAY_US != first // DAY_US))


def _lives(
    first_S: np.ndarray, time_N: np.ndarray, birth_N: np.ndarray, birth_S: np.ndarray, keep_N: np.ndarray
) -> tuple[np.ndarray, int, int]:
    """Which rows to keep when lives are as long as they can be, the number of births left out and of other events."""
    # Rows are in order of time, so the first and the last of a subject show whether any can be wrong.
    born_S = birth_S != NO_TIME
    since_S, until_S = (np.where(born_S, birth_S, 0) + span for span in (-BEFORE_US, AFTER_US))
    soonest_S = np.minimum.reduceat(np.where(time_N == NO_TIME, np.iinfo(np.int64).max, time_N), first_S)
    latest_S = time_N[np.append(first_S[1:], len(time_N)) - 1]
    keep_N = keep_N.copy()
    dropped = beyond = 0
    for subject in np.flatnonzero(born_S & ((soonest_S < since_S) | (latest_S > until_S))).tolist():
        end = first_S[subject + 1] if subject + 1 < len(first_S) else len(time_N)
        rows = np.arange(first_S[subject], end)
        judged = keep_N[rows] & ~birth_N[rows] & (time_N[rows] != NO_TIME)
        wrong = judged & ((time_N[rows] < since_S[subject]) | (time_N[rows] > until_S[subject]))
        if not wrong.any():
            continue
        if 2 * np.count_nonzero(wrong) > np.count_nonzero(judged):
            births = rows[birth_N[rows] & keep_N[rows] & (time_N[rows] != NO_TIME)]
            keep_N[births] = False
            dropped += len(births)
        else:
            keep_N[rows[wrong]] = False
            beyond += int(np.count_nonzero(wrong))
    return keep_N, dropped, beyond


def _deaths(events: pl.DataFrame, id_N: np.ndarray, time_N: np.ndarray) -> tuple[pl.DataFrame, int]:
    """Events with each death at midnight at the subject's last event of that day, and how many moved."""
    code = events["code"]
    death = (code == MEDS_DEATH) | code.str.starts_with(f"{MEDS_DEATH}//")
    if not death.any():
        return events, 0
    at = np.flatnonzero(death.to_numpy() & (time_N != NO_TIME) & (time_N % DAY_US == 0))
    if not len(at):
        return events, 0
    # Rows are in order of subject and time, so the last of a day is the one before the first of a later day.
    last_S = np.flatnonzero(np.append(id_N[1:] != id_N[:-1], True))
    moved, to = [], []
    for row, end in zip(at.tolist(), last_S[np.searchsorted(last_S, at)].tolist(), strict=True):
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
