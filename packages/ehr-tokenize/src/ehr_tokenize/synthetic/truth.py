"""The true probabilities, in closed form, from what is visible at a prediction time.

Severity is the only thing that decides an outcome and is not in the record. Given it and the stay's visible facts,
everything in the record is independent, so with w_S = P(S | known on admission) x P(visible part of this stay | S)

    P(death in this stay | visible)  = sum_S w_S d_S / (d_S + l_S) (1 - exp(-(d_S + l_S) u)) / sum_S w_S
    P(readmission in 30 d | visible) = sum_S w_S r_S / (r_S + h) (1 - exp(-30 (r_S + h))) / sum_S w_S

with hazards a day: d_S death and l_S discharge in hospital, r_S readmission, h death out of hospital; u days to the end
of the study. Shapes as in `laws`.
"""

from dataclasses import dataclass

import numpy as np

from ehr_tokenize.synthetic import parameters as params
from ehr_tokenize.synthetic.laws import DAY, DISCHARGE_FROM, MINUTE, Laws, Stay, log_prior

MORTALITY, READMISSION = "in_hospital_mortality", "readmission_30d"
TASKS = (MORTALITY, READMISSION)


@dataclass(frozen=True)
class Visible:
    """N prediction points: the stay, and the log likelihood (N, S) of the signals and measurements seen in it."""

    stay: Stay
    admission_N: np.ndarray
    time_N: np.ndarray
    """Prediction time, in seconds."""
    log_likelihood_NS: np.ndarray
    destination_N: np.ndarray | None = None
    """Where the patient was discharged to; None before discharge."""


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


def mortality(laws: Laws, visible: Visible) -> np.ndarray:
    """(N,) P(death in this stay | visible), for points in hospital, 12 h or more after admission."""
    left = (laws.end - visible.time_N)[:, None] / DAY
    death = laws.death_rate(visible.stay)
    either = death + np.array(params.DISCHARGE_PER_DAY)
    outcome = death / either * -np.expm1(-either * left)
    return np.asarray((severity_posterior(laws, visible) * outcome).sum(axis=1))


def readmission(laws: Laws, visible: Visible) -> np.ndarray:
    """(N,) P(admission within 30 days | visible), for discharges 30 days or more before the end of the study."""
    assert visible.destination_N is not None
    back = laws.readmission_rate(visible.stay, visible.destination_N)
    either = back + laws.home_death_rate(visible.stay)[:, None]
    outcome = back / either * -np.expm1(-either * params.READMISSION_DAYS)
    return np.asarray((severity_posterior(laws, visible) * outcome).sum(axis=1))
