"""Draws the subjects of one shard and their stays; what happens within a stay is added by `events`.

Times are whole seconds since 1970. Admissions fall on whole minutes and the ends of stays on half minutes (drawn times
are rounded up to a minute, then 30 s are taken off the end of a stay or put on the next admission). So nothing ties
with a prediction time, and an inequality between drawn times holds exactly when it holds between the written ones.
"""

from dataclasses import dataclass, fields

import numpy as np

from ehr_tokenize.synthetic import parameters as params
from ehr_tokenize.synthetic.laws import (
    DAY,
    DISCHARGE_FROM,
    YEAR,
    Laws,
    Stay,
    disease_probability,
    log_prior,
    onset_rate,
)

ALIVE, DIED, CLOSED = 0, 1, 2
"""How a stay ends: discharged alive, death, closed by the end of the study."""
NEVER = np.iinfo(np.int64).max


@dataclass
class Subjects:
    """One entry a subject (M). ``death_M`` is NEVER for who is alive at the end."""

    birth_M: np.ndarray
    male_M: np.ndarray
    race_M: np.ndarray
    first_M: np.ndarray
    """Second of the first admission."""
    death_M: np.ndarray


@dataclass
class Stays:
    """One entry a stay (N), in the order in which they were drawn: first stays, second stays, ..."""

    subject_N: np.ndarray
    """Row of the subject in its shard."""
    admission_N: np.ndarray
    end_N: np.ndarray
    """Second at which the stay ends."""
    ending_N: np.ndarray
    destination_N: np.ndarray
    severity_N: np.ndarray
    next_N: np.ndarray
    """Second of the next admission, or NEVER."""
    new_ND: np.ndarray
    """bool: diseases that are coded for the first time."""
    age_N: np.ndarray
    disease_ND: np.ndarray
    kind_N: np.ndarray
    reason_N: np.ndarray
    previous_N: np.ndarray

    def stay(self) -> Stay:
        """The part that the laws of a stay look at."""
        return Stay(**{f.name: getattr(self, f.name) for f in fields(Stay)})


def choose(rng: np.random.Generator, probability_NK: np.ndarray) -> np.ndarray:
    """(N,) one category a row."""
    cumulative = np.cumsum(probability_NK, axis=-1)
    drawn = rng.random(len(probability_NK))[:, None] * cumulative[:, -1:]
    return np.asarray((drawn >= cumulative[:, :-1]).sum(axis=1))


def share(rng: np.random.Generator, shares: tuple[float, ...], count: int) -> np.ndarray:
    """(count,) one category each, all with the same shares."""
    return choose(rng, np.broadcast_to(np.array(shares), (count, len(shares))))


def minutes(days_N: np.ndarray) -> np.ndarray:
    """Whole minutes, rounded up, at least one; infinity becomes a time beyond any study."""
    whole: np.ndarray = np.maximum(np.ceil(np.minimum(days_N, 1e6) * 1440), 1).astype(np.int64)
    return whole


def age_at(subjects: Subjects, who: np.ndarray, time_N: np.ndarray) -> np.ndarray:
    """(N,) age in years."""
    return np.asarray((time_N - subjects.birth_M[who]) / YEAR)


def draw_subjects(rng: np.random.Generator, laws: Laws, count: int) -> Subjects:
    """The subjects of a shard; nobody has died yet."""
    entry = laws.start + rng.random(count) * params.ENTRY_SHARE * (laws.end - laws.start)
    first = (entry // 60).astype(np.int64) * 60
    age = np.clip(rng.normal(params.AGE_MEAN, params.AGE_SD, count), params.AGE_LOW, params.AGE_HIGH)
    birth = ((first - age * YEAR) // DAY).astype(np.int64) * DAY
    male = rng.random(count) < params.MALE
    race = share(rng, tuple(s for _, s in params.ETHNICITIES), count)
    return Subjects(birth, male, race, first, np.full(count, NEVER))


def draw_diseases(rng: np.random.Generator, age_N: np.ndarray, male_N: np.ndarray) -> np.ndarray:
    """(N, D) diseases at first admission."""
    disease_ND = np.zeros((len(age_N), len(params.DISEASES)), bool)
    for d in range(len(params.DISEASES)):
        disease_ND[:, d] = rng.random(len(age_N)) < disease_probability(d, age_N, male_N, disease_ND)
    return disease_ND


def draw_onsets(
    rng: np.random.Generator, age_N: np.ndarray, male_N: np.ndarray, disease_ND: np.ndarray, years_N: np.ndarray
) -> np.ndarray:
    """(N, D) diseases that began in the years since the last admission."""
    began_ND = np.zeros_like(disease_ND)
    chance_ND = -np.expm1(-onset_rate(age_N, male_N, disease_ND) * years_N[:, None])
    for d in range(len(params.DISEASES)):
        began_ND[:, d] = ~disease_ND[:, d] & (rng.random(len(age_N)) < chance_ND[:, d])
    return began_ND


def draw_reasons(rng: np.random.Generator, kind_N: np.ndarray) -> np.ndarray:
    """(N,) reason of each stay; planned stays have planned reasons."""
    acute = share(rng, tuple(r.weight for r in params.REASONS), len(kind_N))
    planned = share(rng, tuple(r.planned for r in params.REASONS), len(kind_N))
    return np.where(kind_N == params.PLANNED, planned, acute)


def draw_ends(
    rng: np.random.Generator, laws: Laws, stay: Stay, severity_N: np.ndarray, admission_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) second at which each stay ends and how: the first of death, discharge and the end of the study."""
    rows = np.arange(len(severity_N))
    with np.errstate(divide="ignore"):
        death = rng.exponential(size=len(rows)) / laws.death_rate(stay)[rows, severity_N]
    leave = DISCHARGE_FROM + rng.exponential(size=len(rows)) / np.array(params.DISCHARGE_PER_DAY)[severity_N]
    end = admission_N + 60 * minutes(np.minimum(death, leave)) - 30
    ending = np.where(death < leave, DIED, ALIVE)
    late = end > laws.end
    return np.where(late, laws.end, end), np.where(late, CLOSED, ending)


def draw_next(
    rng: np.random.Generator, laws: Laws, stay: Stay, severity_N: np.ndarray, destination_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) days from discharge to the next admission and to death out of hospital; only the earlier one happens."""
    rows = np.arange(len(severity_N))
    with np.errstate(divide="ignore"):
        early = rng.exponential(size=len(rows)) / laws.readmission_rate(stay, destination_N)[rows, severity_N]
    late = params.READMISSION_DAYS + rng.exponential(size=len(rows)) / laws.late_rate(stay, destination_N)
    back = np.where(early <= params.READMISSION_DAYS, early, late)
    return back, rng.exponential(size=len(rows)) / laws.home_death_rate(stay)


def _draw_round(
    rng: np.random.Generator, laws: Laws, subjects: Subjects, who: np.ndarray, admission: np.ndarray,
    disease_ND: np.ndarray, new_ND: np.ndarray, previous: int,
) -> Stays:  # fmt: skip
    """One stay for each subject in ``who``, and what follows it. Fills in deaths."""
    count = len(who)
    kind = share(rng, tuple(k[1] for k in params.ADMISSIONS), count)
    stay = Stay(
        age_N=age_at(subjects, who, admission),
        disease_ND=disease_ND,
        kind_N=kind,
        reason_N=draw_reasons(rng, kind),
        previous_N=np.full(count, previous),
    )
    severity = choose(rng, np.exp(log_prior(stay)))
    end, ending = draw_ends(rng, laws, stay, severity, admission)
    destination = choose(rng, np.array([place[1] for place in params.DESTINATIONS]).T[severity])
    back, death = draw_next(rng, laws, stay, severity, destination)
    # Half a minute past: admissions and deaths out of hospital are on whole minutes again.
    after = end + 60 * minutes(np.minimum(back, death)) - 30
    within = (ending == ALIVE) & (after < laws.end)
    subjects.death_M[who] = np.where(ending == DIED, end, np.where(within & (death < back), after, NEVER))
    following = np.where(within & (back <= death), after, NEVER)
    return Stays(
        subject_N=who, admission_N=admission, end_N=end, ending_N=ending, destination_N=destination,
        severity_N=severity, next_N=following, new_ND=new_ND, **vars(stay),
    )  # fmt: skip


def draw_stays(rng: np.random.Generator, laws: Laws, subjects: Subjects) -> Stays:
    """All stays of a shard's subjects, in rounds: everybody's first stay, then the second of who has one, and so on."""
    who, admission = np.arange(len(subjects.birth_M)), subjects.first_M
    disease_ND = draw_diseases(rng, age_at(subjects, who, admission), subjects.male_M)
    new_ND = disease_ND
    rounds: list[Stays] = []
    while len(who):
        found = _draw_round(rng, laws, subjects, who, admission, disease_ND, new_ND, len(rounds))
        rounds.append(found)
        again = found.next_N != NEVER
        who, admission, disease_ND = who[again], found.next_N[again], disease_ND[again]
        years = (admission - found.end_N[again]) / YEAR
        age = age_at(subjects, who, admission)
        new_ND = draw_onsets(rng, age, subjects.male_M[who], disease_ND, years)
        disease_ND = disease_ND | new_ND
    return Stays(**{f.name: np.concatenate([getattr(r, f.name) for r in rounds]) for f in fields(Stays)})
