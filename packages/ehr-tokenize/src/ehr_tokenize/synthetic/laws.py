"""The laws of the synthetic cohort: the same functions draw the patients and compute their true probabilities.

Shapes: N stays or prediction points, D diseases (order of `parameters.DISEASES`), S severities. Rates are per day.
"""

import functools
import math
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from ehr_core.errors import ConfigError

from ehr_tokenize.synthetic import parameters as params
from ehr_tokenize.synthetic.settings import SyntheticConfig

DAY = 86_400
DAYS_PER_YEAR = 365.25
YEAR = DAYS_PER_YEAR * DAY
MINUTE = 60 / DAY
"""In days: the grid on which times of death, discharge and admission are."""
DISCHARGE_FROM = params.DISCHARGE_FROM_HOURS / 24
NAMES = tuple(disease.name for disease in params.DISEASES)


def effects(name: str) -> np.ndarray:
    """(D,) one coefficient of each disease."""
    return np.array([getattr(disease, name) for disease in params.DISEASES])


def decades(age_N: np.ndarray) -> np.ndarray:
    """(N,) tens of years above 65."""
    return (np.asarray(age_N, np.float64) - 65.0) / 10.0


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Logistic function; arguments here are small."""
    result: np.ndarray = 1.0 / (1.0 + np.exp(-x))
    return result


def disease_probability(d: int, age_N: np.ndarray, male_N: np.ndarray, disease_ND: np.ndarray) -> np.ndarray:
    """(N,) probability at first admission of disease d, given those before it in the list."""
    disease = params.DISEASES[d]
    base = math.log(disease.prevalence / (1 - disease.prevalence))
    logit: np.ndarray = base + disease.age_slope * decades(age_N) + disease.male * male_N
    for parent, weight in disease.parents.items():
        logit = logit + weight * disease_ND[:, NAMES.index(parent)]
    return sigmoid(logit)


def onset_rate(age_N: np.ndarray, male_N: np.ndarray, disease_ND: np.ndarray) -> np.ndarray:
    """(N, D) hazard a year that a disease begins which is not there yet, by the age at the next admission."""
    probability = [disease_probability(d, age_N, male_N, disease_ND) for d in range(len(params.DISEASES))]
    return params.ONSET_PER_YEAR * np.stack(probability, axis=1)


@dataclass(frozen=True)
class Stay:
    """What a stay's laws depend on besides severity, all of it in the record from the admission on."""

    age_N: np.ndarray
    """Years at admission."""
    disease_ND: np.ndarray
    """bool: coded at this admission or before."""
    kind_N: np.ndarray
    """Index into `parameters.ADMISSIONS`."""
    reason_N: np.ndarray
    previous_N: np.ndarray
    """Stays before this one."""


def log_prior(stay: Stay) -> np.ndarray:
    """(N, S) log P(severity | what is known on admission): an ordered logit."""
    predictor = params.SEVERITY_AGE * decades(stay.age_N) + stay.disease_ND @ effects("severity")
    predictor = predictor + np.array([kind[2] for kind in params.ADMISSIONS])[stay.kind_N]
    predictor = predictor + np.array([reason.severity for reason in params.REASONS])[stay.reason_N]
    at_least = np.ones((len(predictor), params.SEVERITIES + 1))
    at_least[:, 1:-1] = sigmoid(predictor[:, None] - np.array(params.SEVERITY_CUTS))
    at_least[:, -1] = 0.0
    return np.log(at_least[:, :-1] - at_least[:, 1:])


@dataclass(frozen=True)
class Laws:
    """The laws that depend on settings. Make one with `laws`."""

    start: int
    """Second (since 1970) at which the study starts."""
    end: int
    """Second at which it ends: a whole minute."""
    mortality_scale: float
    readmission_scale: float
    mean: np.ndarray
    """(A, 4, 2, S): mean of an analyte by disease pattern, phase (0: the first 24 hours) and severity."""
    log_cell: np.ndarray
    """(A, 4, 2, K, S): log probability that the value falls on grid point k."""

    def death_rate(self, stay: Stay) -> np.ndarray:
        """(N, S) hazard of death in hospital."""
        ratio = np.exp(params.DEATH_AGE * decades(stay.age_N) + stay.disease_ND @ effects("death"))
        rate: np.ndarray = self.mortality_scale * ratio[:, None] * np.array(params.DEATH_PER_DAY)
        return rate

    def return_score(self, stay: Stay, destination_N: np.ndarray) -> np.ndarray:
        """(N,) visible part of the log hazard ratio of readmission."""
        score: np.ndarray = params.READMISSION_AGE * decades(stay.age_N) + stay.disease_ND @ effects("readmission")
        score = score + np.array([kind[3] for kind in params.ADMISSIONS])[stay.kind_N]
        score = score + np.array([place[2] for place in params.DESTINATIONS])[destination_N]
        score += params.READMISSION_PREVIOUS * np.minimum(stay.previous_N, params.PREVIOUS_CAP)
        return score

    def readmission_rate(self, stay: Stay, destination_N: np.ndarray) -> np.ndarray:
        """(N, S) hazard of admission during the first 30 days after a discharge."""
        score_NS = self.return_score(stay, destination_N)[:, None] + np.array(params.READMISSION_SEVERITY)
        rate: np.ndarray = self.readmission_scale * params.READMISSION_PER_DAY * np.exp(score_NS)
        return rate

    def late_rate(self, stay: Stay, destination_N: np.ndarray) -> np.ndarray:
        """(N,) hazard of admission from day 30 on."""
        return np.asarray(params.LATE_PER_DAY * np.exp(0.5 * self.return_score(stay, destination_N)))

    def home_death_rate(self, stay: Stay) -> np.ndarray:
        """(N,) hazard of death out of hospital."""
        score_N = params.HOME_DEATH_AGE * decades(stay.age_N) + stay.disease_ND @ effects("home_death")
        return np.asarray(params.HOME_DEATH_PER_DAY * np.exp(score_N))


def pattern(a: int, disease_ND: np.ndarray) -> np.ndarray:
    """(N,) which of the diseases that move analyte a are there, as a number from 0 to 3."""
    found = np.zeros(len(disease_ND), np.int64)
    for bit, name in enumerate(params.ANALYTES[a].disease):
        found += disease_ND[:, NAMES.index(name)].astype(np.int64) << bit
    return found


def grid_points(analyte: params.Analyte) -> int:
    """Number of values that an analyte can take."""
    return round((analyte.high - analyte.low) / analyte.step) + 1


def grid_value(analyte: params.Analyte, k: np.ndarray) -> np.ndarray:
    """float32 values of grid points."""
    decimals = 1 if analyte.step < 1 else 0
    return np.round(analyte.low + k * analyte.step, decimals).astype(np.float32)


def grid_index(analyte: params.Analyte, value: np.ndarray) -> np.ndarray:
    """Grid point of each value: the nearest, within the ends."""
    k = np.rint((value.astype(np.float64) - analyte.low) / analyte.step)
    return np.clip(k, 0, grid_points(analyte) - 1).astype(np.int64)


def _means(signal: float) -> np.ndarray:
    mean = np.zeros((len(params.ANALYTES), 4, 2, params.SEVERITIES))
    for a, analyte in enumerate(params.ANALYTES):
        centre = math.log(analyte.base) if analyte.log else analyte.base
        shift = signal * np.array((0.0, *analyte.shift))
        for found in range(4):
            moved = sum(w for bit, w in enumerate(analyte.disease.values()) if found >> bit & 1)
            mean[a, found] = centre + moved + np.stack([shift, params.LATER * shift])
    return mean


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _log_cells(mean: np.ndarray) -> np.ndarray:
    """Log of the normal probability between the edges of each grid cell; the end cells reach to infinity."""
    most = max(grid_points(analyte) for analyte in params.ANALYTES)
    log_cell = np.full((*mean.shape[:3], most, params.SEVERITIES), -np.inf)
    for a, analyte in enumerate(params.ANALYTES):
        k = np.arange(1, grid_points(analyte))
        edge = analyte.low + (k - 0.5) * analyte.step
        edge = np.log(edge) if analyte.log else edge
        z = (edge[:, None] - mean[a][:, :, None, :]) / (analyte.sd * math.sqrt(2))
        above = 0.5 * _erfc(np.abs(z))  # tail beyond |z|; never 1 - tail, which would lose the far cells
        ends = np.zeros_like(z[:, :, :1])
        tail = np.concatenate([ends, above, ends], axis=2)
        side = np.concatenate([ends - 1, np.sign(z), ends + 1], axis=2)
        low, high, s, t = tail[:, :, :-1], tail[:, :, 1:], side[:, :, :-1], side[:, :, 1:]
        cell = np.where(s >= 0, low - high, np.where(t <= 0, high - low, 1.0 - low - high))
        with np.errstate(divide="ignore"):
            log_cell[a, :, :, : len(k) + 1] = np.log(np.maximum(cell, 1e-300))
    return log_cell


def _date(name: str, text: str) -> int:
    try:
        moment = datetime.fromisoformat(f"{text}T00:00:00+00:00")
    except ValueError:
        raise ConfigError(f"source.{name} is {text!r}; write a day as YYYY-MM-DD") from None
    return int(moment.timestamp())


@functools.lru_cache(maxsize=4)
def _tables(signal: float) -> tuple[np.ndarray, np.ndarray]:
    mean = _means(signal)
    return mean, _log_cells(mean)


def laws(settings: SyntheticConfig) -> Laws:
    """The laws of a cohort. Raises ConfigError for dates that are none or too close."""
    start, end = _date("study_start", settings.study_start), _date("study_end", settings.study_end)
    if end - start < 90 * DAY:
        raise ConfigError(f"source.study_end {settings.study_end} must be at least 90 days after source.study_start")
    mean, log_cell = _tables(settings.severity_signal)
    return Laws(start, end, settings.mortality_scale, settings.readmission_scale, mean, log_cell)
