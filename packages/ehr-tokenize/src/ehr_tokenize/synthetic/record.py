"""The best possible prediction computed again from a subject's record alone.

The generator gets its predictions from what it drew. This module reads codes, times and values of one subject, drops
everything after the prediction time, and arrives at the same numbers; it serves as proof that the truth looks at
nothing else, and gives the truth for records that someone has changed or written by hand.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from ehr_core.errors import DataError

from ehr_tokenize.synthetic import parameters as params
from ehr_tokenize.synthetic.codes import BIRTH, DEATH, plain_code
from ehr_tokenize.synthetic.laws import DAY, YEAR, Laws, Stay, grid_index, laws, pattern
from ehr_tokenize.synthetic.settings import SyntheticConfig
from ehr_tokenize.synthetic.truth import TASKS, Visible, severity_posterior, signals_log_likelihood

ADMISSION, DISCHARGE, ICD = "HOSPITAL_ADMISSION//", "HOSPITAL_DISCHARGE//", "DIAGNOSIS//ICD10CM//"
MALE, FEMALE = "GENDER//M", "GENDER//F"
DISEASE_OF = {code: d for d, disease in enumerate(params.DISEASES) for code in disease.icd}
REASON_OF = {code: r for r, reason in enumerate(params.REASONS) for code in reason.icd}
KIND_OF = {kind[0]: i for i, kind in enumerate(params.ADMISSIONS)}
DESTINATION_OF = {place[0]: i for i, place in enumerate(params.DESTINATIONS)}
ANALYTE_OF = {analyte.code: a for a, analyte in enumerate(params.ANALYTES)}


@dataclass(frozen=True)
class Event:
    """A row of the record; second since 1970."""

    time: int
    code: str
    value: float | None


def visible_events(events: Any, prediction_time: datetime) -> list[Event]:
    """Timed rows at or before the prediction time, in order; variants of codes read as the code they stand for."""
    _refuse_several(events)
    columns = (events[name].to_list() for name in ("time", "code", "numeric_value"))
    return [
        Event(seconds(time), plain_code(code), value)
        for time, code, value in zip(*columns, strict=True)
        if time is not None and time <= prediction_time
    ]


def _refuse_several(events: Any) -> None:
    if len(set(events["subject_id"].to_list())) != 1:
        raise DataError("the truth is computed from the events of one subject, and no other rows")


def is_male(events: Any) -> bool:
    """Sex by the row without a time. Raises DataError when there is none."""
    rows = zip(events["time"].to_list(), events["code"].to_list(), strict=True)
    sex = {code for time, code in rows if time is None and code in (MALE, FEMALE)}
    if len(sex) != 1:
        raise DataError(f"the record has no {MALE} or {FEMALE} without a time, so there is no sex")
    return sex == {MALE}


def seconds(time: datetime) -> int:
    """Seconds since 1970 of a naive time in UTC."""
    return int(time.replace(tzinfo=UTC).timestamp())


def _suffix(code: str, prefix: str, known: dict[str, int]) -> int:
    found = known.get(code.removeprefix(prefix))
    if found is None:
        raise DataError(f"{code!r} is not a code of a synthetic cohort; use {prefix}{' or '.join(known)}")
    return found


def _last_stay(events: list[Event]) -> list[Event]:
    starts = [i for i, event in enumerate(events) if event.code.startswith(ADMISSION)]
    if not starts:
        raise DataError("the subject has no admission at or before the prediction time")
    return events[starts[-1] :]


def _stay(events: list[Event], current: list[Event]) -> Stay:
    birth = next((event.time for event in events if event.code == BIRTH), None)
    if birth is None:
        raise DataError(f"the record has no {BIRTH}, so there is no age")
    icd = [event.code.removeprefix(ICD) for event in events if event.code.startswith(ICD)]
    reasons = [event.code.removeprefix(ICD) for event in current if event.code.removeprefix(ICD) in REASON_OF]
    if not reasons:
        raise DataError("the last stay has no diagnosis that is a reason for admission")
    documented = {DISEASE_OF[code] for code in icd if code in DISEASE_OF}
    return Stay(
        age_N=np.array([(current[0].time - birth) / YEAR]),
        disease_ND=np.array([[d in documented for d in range(len(params.DISEASES))]]),
        kind_N=np.array([_suffix(current[0].code, ADMISSION, KIND_OF)]),
        reason_N=np.array([REASON_OF[reasons[0]]]),
        previous_N=np.array([sum(event.code.startswith(ADMISSION) for event in events) - 1]),
    )


def _log_likelihood(rules: Laws, current: list[Event], disease_ND: np.ndarray) -> np.ndarray:
    """(1, S) of the signals, seen or not, and of each value of this stay."""
    first = params.SIGNALS[0].code + "//"
    codes = {event.code for event in current}
    seen = [any(code.startswith(first) for code in codes), *(signal.code in codes for signal in params.SIGNALS[1:])]
    total = signals_log_likelihood(np.array([seen]))
    for event in current:
        a = ANALYTE_OF.get(event.code)
        if a is None or event.value is None:
            continue
        phase = int(event.time - current[0].time >= DAY)
        k = grid_index(params.ANALYTES[a], np.array([event.value]))[0]
        total = total + rules.log_cell[a, pattern(a, disease_ND)[0], phase, k]
    return total


def visible(events: Any, task: str, prediction_time: datetime, rules: Laws) -> Visible:
    """What the record shows at the prediction time, as one prediction point. Raises as `true_prediction` does."""
    if task not in TASKS:
        raise DataError(f"no truth is known of task {task!r}; there is {', '.join(TASKS)}")
    known = visible_events(events, prediction_time)
    current = _last_stay(known)
    stay, time = _stay(known, current), seconds(prediction_time)
    gone = [event for event in current if event.code.startswith(DISCHARGE)]
    over = bool(gone) or any(event.code == DEATH for event in current)
    where = None
    if TASKS[task].horizon_days is None:
        if over or time - current[0].time < params.DISCHARGE_FROM_HOURS * 3600:
            raise DataError(f"{task} asks of a patient who has been in hospital for 12 h and was not discharged")
    else:
        if not gone or gone[-1].time != time:
            raise DataError(f"{task} asks at the time of a discharge")
        where = np.array([_suffix(gone[-1].code, DISCHARGE, DESTINATION_OF)])
    return Visible(
        stay,
        admission_N=np.array([current[0].time]),
        time_N=np.array([time]),
        log_likelihood_NS=_log_likelihood(rules, current, stay.disease_ND),
        male_N=np.array([is_male(events)]),
        destination_N=where,
    )


def true_prediction(events: Any, task: str, prediction_time: datetime, settings: SyntheticConfig) -> np.ndarray:
    """The best prediction of a task given everything in the record at or before the prediction time.

    A number, or (K,) for a task with K classes or labels, as `ehr_core.outcomes` has predictions of its kind.

    ``events`` is a data frame with the rows of one subject in MEDS columns; later rows may be there and are not looked
    at. Questions about a stay are asked while it goes on (24 h after admission; any time from 12 h on is possible), the
    others at the time of a discharge. Raises DataError otherwise.
    """
    rules = laws(settings)
    seen = visible(events, task, prediction_time, rules)
    found: np.ndarray = TASKS[task].law(rules, seen, severity_posterior(rules, seen))[0]
    return found
