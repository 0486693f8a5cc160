"""The best possible predictions, in closed form, from what is visible at a prediction time.

Severity is the only thing that decides an outcome and is not in the record. Given it and the stay's visible facts,
everything in the record is independent. So a question's answer is a mean over severities, with the weights

    w_S = P(S | visible), proportional to P(S | known on admission) x P(visible part of this stay | S)

and, given S, a race of constant hazards a day: in hospital d_S death and l_S discharge, a_S = d_S + l_S; after a
discharge r_S admission within 30 days, r' later, h death out of hospital. u: days to the end of the study.

    in_hospital_mortality  sum_S w_S d_S / a_S (1 - exp(-a_S u))
    length_of_stay         sum_S w_S (1 - exp(-a_S u)) (1 / (1 - exp(-a_S m)) - 1/2) m        m: a minute
    length_of_stay_class   differences of P(left < e) = sum_S w_S (1 - exp(-a_S e)), 1 from e > u on
    time_to_death          sum_S w_S d_S: the hazard of death now
    readmission_30d        sum_S w_S r_S / (r_S + h) (1 - exp(-30 (r_S + h)))
    next_diagnoses         E[1 - exp(-o(t) t)] over the time t to the next admission, given that there is one in time;
                           o(t): hazard of the disease's onset, by the age at that admission

Shapes as in `laws`; K outputs of a question.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ehr_core.outcomes import BINARY, MULTICLASS, MULTILABEL, REGRESSION, SURVIVAL, Question

from ehr_tokenize.synthetic import parameters as params
from ehr_tokenize.synthetic.laws import (
    DAY,
    DAYS_PER_YEAR,
    DISCHARGE_FROM,
    MINUTE,
    NAMES,
    Laws,
    Stay,
    log_prior,
    onset_rate,
)

MORTALITY, LENGTH, LENGTH_CLASS, TIME_TO_DEATH, READMISSION, NEXT = (
    "in_hospital_mortality",
    "length_of_stay",
    "length_of_stay_class",
    "time_to_death",
    "readmission_30d",
    "next_diagnoses",
)


@dataclass(frozen=True)
class Visible:
    """N prediction points: the stay, and the log likelihood (N, S) of the signals and measurements seen in it."""

    stay: Stay
    admission_N: np.ndarray
    time_N: np.ndarray
    """Prediction time, in seconds."""
    log_likelihood_NS: np.ndarray
    male_N: np.ndarray
    destination_N: np.ndarray | None = None
    """Where the patient was discharged to; None before discharge."""


Law = Callable[[Laws, Visible, np.ndarray], np.ndarray]
"""Laws, N points and their (N, S) P(severity | visible) to predictions in the shape of the kind of outcome."""


def signals_log_likelihood(seen_NG: np.ndarray) -> np.ndarray:
    """(N, S) log probability that exactly these signals of the first hours were seen."""
    p_GS = np.array([signal.probability for signal in params.SIGNALS])
    log_NS: np.ndarray = seen_NG @ np.log(p_GS) + (~seen_NG) @ np.log1p(-p_GS)
    return log_NS


def _weights(log_NS: np.ndarray) -> np.ndarray:
    weight: np.ndarray = np.exp(log_NS - log_NS.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    return weight


def severity_posterior(laws: Laws, visible: Visible) -> np.ndarray:
    """(N, S) P(severity | visible). Still being in hospital, or the minute of the discharge, counts as seen."""
    elapsed = (visible.time_N - visible.admission_N)[:, None] / DAY
    death, leave = laws.death_rate(visible.stay), np.array(params.DISCHARGE_PER_DAY)
    log = log_prior(visible.stay) + visible.log_likelihood_NS
    if visible.destination_N is None:
        return _weights(log - death * elapsed - leave * np.maximum(elapsed - DISCHARGE_FROM, 0.0))
    # The discharge was in the minute that starts half a minute before the time written.
    since = elapsed - MINUTE / 2
    log = log - death * since - leave * np.maximum(since - DISCHARGE_FROM, 0.0)
    either = death + leave
    log = log + np.log(leave / either * -np.expm1(-either * MINUTE))
    log = log + np.log(np.array([place[1] for place in params.DESTINATIONS]))[visible.destination_N]
    return _weights(log)


# -- asked in hospital, 12 h or more after admission


def _hazards(laws: Laws, visible: Visible) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, S) hazard of death, (N, S) of death or discharge, and (N, 1) days to the end of the study."""
    death = laws.death_rate(visible.stay)
    return death, death + np.array(params.DISCHARGE_PER_DAY), (laws.end - visible.time_N)[:, None] / DAY


def mortality(laws: Laws, visible: Visible, weight_NS: np.ndarray) -> np.ndarray:
    """(N,) P(death in this stay | visible)."""
    death, either, left = _hazards(laws, visible)
    return np.asarray((weight_NS * (death / either * -np.expm1(-either * left))).sum(axis=1))


def length_of_stay(laws: Laws, visible: Visible, weight_NS: np.ndarray) -> np.ndarray:
    """(N,) expected days to the end of the stay, which is on record for every stay.

    A stay ends in the middle of a minute, the k-th with probability q^(k-1) (1 - q), or with the study.
    """
    _, either, left = _hazards(laws, visible)
    minutes = -np.expm1(-either * left) * (1.0 / -np.expm1(-either * MINUTE) - 0.5)
    return np.asarray((weight_NS * minutes).sum(axis=1) * MINUTE)


def length_classes(laws: Laws, visible: Visible, weight_NS: np.ndarray) -> np.ndarray:
    """(N, K) probability that what is left of the stay falls into each class."""
    _, either, left = _hazards(laws, visible)
    below = [np.zeros(len(weight_NS))]
    for edge in params.LENGTH_EDGES:
        sure = left[:, 0] < edge  # the study ends before
        below.append(np.where(sure, 1.0, (weight_NS * -np.expm1(-either * edge)).sum(axis=1)))
    below.append(np.ones(len(weight_NS)))
    return np.diff(np.stack(below, axis=1), axis=1)


def death_risk(laws: Laws, visible: Visible, weight_NS: np.ndarray) -> np.ndarray:
    """(N,) hazard of death, a day: of two patients whose severities are known, the higher one is likelier to die first.

    `docs/synthetic.md` says how near to the best ranking it comes where severities are not known.
    """
    death, _, _ = _hazards(laws, visible)
    return np.asarray((weight_NS * death).sum(axis=1))


# -- asked at a discharge


def readmission(laws: Laws, visible: Visible, weight_NS: np.ndarray) -> np.ndarray:
    """(N,) P(admission within 30 days | visible), for discharges 30 days or more before the end of the study."""
    assert visible.destination_N is not None
    back = laws.readmission_rate(visible.stay, visible.destination_N)
    either = back + laws.home_death_rate(visible.stay)[:, None]
    outcome = back / either * -np.expm1(-either * params.READMISSION_DAYS)
    return np.asarray((weight_NS * outcome).sum(axis=1))


NODES = 20
"""Of the Gauss-Legendre rule for each of the two stretches of `next_diagnoses`.

It is exact to float64 for readmission hazards up to about one a day. That times are on minutes is left out of account;
it moves a probability by less than one part in 10^9.
"""


def next_diagnoses(laws: Laws, visible: Visible, weight_NS: np.ndarray) -> np.ndarray:
    """(N, D) P(disease is new in the next stay | visible, which begins by `NEXT_HORIZON_DAYS`); 0 if it is known."""
    days_T, density_NT = _next_admission(laws, visible, weight_NS)
    years_T = days_T / DAYS_PER_YEAR
    chance_ND = np.zeros(visible.stay.disease_ND.shape)
    since = (visible.time_N - visible.admission_N) / DAY / DAYS_PER_YEAR
    for node, years in enumerate(years_T):
        rate_ND = onset_rate(visible.stay.age_N + since + years, visible.male_N, visible.stay.disease_ND)
        chance_ND += density_NT[:, node, None] * -np.expm1(-rate_ND * years)
    return np.where(visible.stay.disease_ND, 0.0, chance_ND)


def _next_admission(laws: Laws, visible: Visible, weight_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T,) days from the discharge, and (N, T) how likely the next admission is there; rows add up to 1."""
    assert visible.destination_N is not None
    early, late, whole = params.READMISSION_DAYS, params.NEXT_HORIZON_DAYS - params.READMISSION_DAYS, []
    node, size = np.polynomial.legendre.leggauss(NODES)
    node, size = (node + 1) / 2, size / 2
    back_NS = laws.readmission_rate(visible.stay, visible.destination_N)
    later = laws.late_rate(visible.stay, visible.destination_N)[:, None]
    death = laws.home_death_rate(visible.stay)[:, None]
    for day in early * node:
        whole.append((weight_NS * back_NS * np.exp(-back_NS * day)).sum(axis=1, keepdims=True) * np.exp(-death * day))
    not_yet = (weight_NS * np.exp(-back_NS * early)).sum(axis=1, keepdims=True)
    for day in late * node:
        whole.append(not_yet * later * np.exp(-later * day - death * (early + day)))
    density_NT = np.concatenate(whole, axis=1) * np.concatenate([early * size, late * size])
    density_NT /= density_NT.sum(axis=1, keepdims=True)
    return np.concatenate([early * node, early + late * node]), density_NT


# -- all of them


@dataclass(frozen=True)
class Task:
    """One question that a cohort has labels of."""

    question: Question
    law: Law
    horizon_days: int | None = None
    """Asked at discharges so many days before the end of the data or more; None: asked a day after admission."""


def _classes() -> tuple[str, ...]:
    low, high = (f"{edge:g}" for edge in params.LENGTH_EDGES)
    return f"<{low} days", f"{low}-{high} days", f">={high} days"


TASKS: dict[str, Task] = {
    MORTALITY: Task(Question(BINARY), mortality),
    LENGTH: Task(Question(REGRESSION), length_of_stay),
    LENGTH_CLASS: Task(Question(MULTICLASS, _classes()), length_classes),
    TIME_TO_DEATH: Task(Question(SURVIVAL), death_risk),
    READMISSION: Task(Question(BINARY), readmission, params.READMISSION_DAYS),
    NEXT: Task(Question(MULTILABEL, NAMES), next_diagnoses, params.NEXT_HORIZON_DAYS),
}
