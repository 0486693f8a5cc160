"""Turns drawn subjects and stays into MEDS rows and label rows of one shard. No loop over subjects or events.

Within one instant rows are in the order of `Rank`, so static rows come first and a death is the last row of a stay.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import pyarrow as pa

from ehr_tokenize.synthetic import parameters as params
from ehr_tokenize.synthetic import simulate
from ehr_tokenize.synthetic.codes import code_book
from ehr_tokenize.synthetic.labels import label_tables
from ehr_tokenize.synthetic.laws import Laws, grid_index, grid_value, laws, pattern
from ehr_tokenize.synthetic.settings import SyntheticConfig
from ehr_tokenize.synthetic.simulate import ALIVE, CLOSED, DIED, NEVER, Stays, Subjects
from ehr_tokenize.synthetic.truth import signals_log_likelihood

HOUR = 3600
STATIC = np.iinfo(np.int64).min
"""Time of rows without a time."""
DATA_SCHEMA = pa.schema(
    [("subject_id", pa.int64()), ("time", pa.timestamp("us")), ("code", pa.string()), ("numeric_value", pa.float32())]
)


class Rank(IntEnum):
    """Order of rows at one instant."""

    STATIC = 0
    BIRTH = 1
    ADMISSION = 2
    REASON = 3
    DIAGNOSIS = 4
    TREATMENT = 5
    MEASUREMENT = 6
    LEAVING_ICU = 7
    ENDING = 8
    CLOSING = 9


@dataclass
class Rows:
    """Rows in the making: lists of arrays of equal lengths."""

    subject: list[np.ndarray] = field(default_factory=list)
    time: list[np.ndarray] = field(default_factory=list)
    code: list[np.ndarray] = field(default_factory=list)
    value: list[np.ndarray] = field(default_factory=list)
    rank: list[np.ndarray] = field(default_factory=list)

    def add(self, rank: Rank, subject: np.ndarray, time: object, code: object, value: np.ndarray | None = None) -> None:
        """Add one row for each entry of ``subject``; time and code may be one for all."""
        count = len(subject)
        self.subject.append(subject.astype(np.int64))
        self.time.append(np.broadcast_to(np.asarray(time, np.int64), count))
        self.code.append(np.broadcast_to(np.asarray(code, np.int32), count))
        self.value.append(np.full(count, np.nan, np.float32) if value is None else value)
        self.rank.append(np.full(count, rank, np.int8))

    def table(self, first_id: int) -> pa.Table:
        """MEDS rows, sorted by subject and time; ``first_id`` is the id of the shard's first subject."""
        subject, time = np.concatenate(self.subject), np.concatenate(self.time)
        order = np.lexsort((np.concatenate(self.rank), time, subject))
        time, value = time[order], np.concatenate(self.value)[order]
        names = pa.array(code_book().name, pa.string())
        microseconds = pa.array(np.where(time == STATIC, 0, time) * 1_000_000, pa.int64(), mask=time == STATIC)
        columns = [
            pa.array(subject[order] + first_id, pa.int64()),
            microseconds.cast(pa.timestamp("us")),
            names.take(pa.array(np.concatenate(self.code)[order])),
            pa.array(value, pa.float32(), mask=np.isnan(value)),
        ]
        return pa.table(columns, schema=DATA_SCHEMA)


@dataclass
class Shard:
    """One shard in memory: MEDS rows and, for each task, labels with the best possible predictions."""

    data: pa.Table
    labels: dict[str, pa.Table]
    subjects: Subjects
    stays: Stays


def novel(rng: np.random.Generator, settings: SyntheticConfig, code_N: np.ndarray) -> np.ndarray:
    """Diagnosis and drug codes, each replaced by one of its unpublished variants with the asked probability."""
    if not settings.novel_probability:
        return code_N
    variant = code_book().first_variant[code_N] + rng.integers(0, params.NOVEL_VARIANTS, len(code_N))
    return np.where(rng.random(len(code_N)) < settings.novel_probability, variant, code_N)


def one_of(rng: np.random.Generator, codes: np.ndarray, count: int) -> np.ndarray:
    """(count,) codes, each as likely as the others."""
    return codes[rng.integers(0, len(codes), count)]


def between(rng: np.random.Generator, low_hours: float, high_hours: float, count: int) -> np.ndarray:
    """(count,) seconds: a whole minute between two hours after admission."""
    return rng.integers(int(low_hours * 60), int(high_hours * 60), count) * 60


def add_subjects(rows: Rows, laws: Laws, subjects: Subjects) -> None:
    """Static rows, birth, death (in hospital or not) and the end of follow-up."""
    book, who = code_book(), np.arange(len(subjects.birth_M))
    rows.add(Rank.STATIC, who, STATIC, book.sex[subjects.male_M.astype(int)])
    rows.add(Rank.STATIC, who, STATIC, book.race[subjects.race_M])
    rows.add(Rank.BIRTH, who, subjects.birth_M, book.birth)
    dead = subjects.death_M != NEVER
    rows.add(Rank.ENDING, who[dead], subjects.death_M[dead], book.death)
    rows.add(Rank.CLOSING, who[~dead], laws.end, book.end)


def add_stays(rows: Rows, stays: Stays) -> None:
    """Admissions, and the discharges of those who leave alive; a death has no discharge."""
    book = code_book()
    rows.add(Rank.ADMISSION, stays.subject_N, stays.admission_N, book.admission[stays.kind_N])
    alive, closed = stays.ending_N == ALIVE, stays.ending_N == CLOSED
    rows.add(Rank.ENDING, stays.subject_N[alive], stays.end_N[alive], book.discharge[stays.destination_N[alive]])
    rows.add(Rank.ENDING, stays.subject_N[closed], stays.end_N[closed], book.transfer)


def add_codes(rng: np.random.Generator, rows: Rows, settings: SyntheticConfig, stays: Stays) -> None:
    """Diagnoses on admission, drugs for them, and procedures that say nothing about severity."""
    book, count = code_book(), len(stays.subject_N)
    for r, codes in enumerate(book.reason):
        its = np.flatnonzero(stays.reason_N == r)
        code = novel(rng, settings, one_of(rng, codes, len(its)))
        rows.add(Rank.REASON, stays.subject_N[its], stays.admission_N[its], code)
    treated = stays.admission_N + between(rng, 1, 11, count)
    for d in range(len(params.DISEASES)):
        coded = stays.new_ND[:, d] | (stays.disease_ND[:, d] & (rng.random(count) < params.RECODED))
        its = np.flatnonzero(coded)
        code = novel(rng, settings, one_of(rng, book.disease[d], len(its)))
        rows.add(Rank.DIAGNOSIS, stays.subject_N[its], stays.admission_N[its], code)
        given = stays.disease_ND[:, d] & (rng.random(count) < params.TREATED) & (treated < stays.end_N)
        its = np.flatnonzero(given)
        code = novel(rng, settings, one_of(rng, book.drug[d], len(its)))
        rows.add(Rank.TREATMENT, stays.subject_N[its], treated[its], code)
    for code, (_, _, chance) in zip(book.side, params.SIDE_PROCEDURES, strict=True):
        its = np.flatnonzero((rng.random(count) < chance) & (treated < stays.end_N))
        rows.add(Rank.TREATMENT, stays.subject_N[its], treated[its], code)
    its = np.flatnonzero(stays.kind_N == 0)
    rows.add(Rank.TREATMENT, stays.subject_N[its], stays.admission_N[its], book.visit)


def add_signals(rng: np.random.Generator, rows: Rows, settings: SyntheticConfig, stays: Stays) -> np.ndarray:
    """Events of the first hours that depend on severity. Returns (N, G): which were drawn.

    One is written unless the stay ended before it, which for a stay that has a label it never did: all fall before
    the first hour at which a discharge is possible.
    """
    book, count = code_book(), len(stays.subject_N)
    drawn_NG = np.zeros((count, len(params.SIGNALS)), bool)
    unit = np.array([book.units.index(reason.unit) for reason in params.REASONS])[stays.reason_N]
    for g, signal in enumerate(params.SIGNALS):
        drawn_NG[:, g] = rng.random(count) < np.array(signal.probability)[stays.severity_N]
        time = stays.admission_N + between(rng, 0.5, 6, count)
        its = np.flatnonzero(drawn_NG[:, g] & (time < stays.end_N))
        code = book.icu[unit[its]] if g == 0 else np.full(len(its), book.signal[g])
        code = novel(rng, settings, code) if book.novel[book.signal[g]] and g else code
        rows.add(Rank.TREATMENT, stays.subject_N[its], time[its], code)
        if g == 0:
            out = time[its] + 60 * simulate.minutes(rng.exponential(params.ICU_MEAN_DAYS, len(its)))
            out = np.minimum(out, stays.end_N[its])
            alive = (stays.ending_N[its] != DIED) | (out < stays.end_N[its])
            rows.add(Rank.LEAVING_ICU, stays.subject_N[its][alive], out[alive], book.icu_discharge)
    return drawn_NG


def add_measurements(
    rng: np.random.Generator, rows: Rows, settings: SyntheticConfig, laws: Laws, stays: Stays
) -> tuple[np.ndarray, np.ndarray]:
    """Labs and vitals. Returns (N, S) log likelihoods given severity: of the first 24 hours, and of the whole stay."""
    stay_rows = np.arange(len(stays.subject_N))
    early_NS = np.zeros((len(stay_rows), params.SEVERITIES))
    late_NS = np.zeros_like(early_NS)
    for day in range(-1, params.MAX_DAILY):
        # Day -1 stands for the measurements on arrival, 0 for those of the next morning, then one round a day.
        low, high = ((0.1, 2) if day < 0 else (20, 23)) if day < 1 else (24 * day + 2, 24 * day + 6)
        time = stays.admission_N + between(rng, low, high, len(stay_rows))
        here = np.flatnonzero(time < stays.end_N)
        for a, analyte in enumerate(params.ANALYTES):
            if not (day < 0 or (analyte.repeated if day < 1 else analyte.daily)):
                continue
            its = here[rng.random(len(here)) >= settings.missingness]
            phase, found = int(day >= 1), pattern(a, stays.disease_ND[its])
            drawn = laws.mean[a, found, phase, stays.severity_N[its]] + analyte.sd * rng.standard_normal(len(its))
            k = grid_index(analyte, np.exp(drawn) if analyte.log else drawn)
            rows.add(Rank.MEASUREMENT, stays.subject_N[its], time[its], code_book().analyte[a], grid_value(analyte, k))
            # A stay has at most one value of an analyte in a round, so plain indexing adds each once.
            (late_NS if phase else early_NS)[its] += laws.log_cell[a, found, phase, k]
    return early_NS, early_NS + late_NS


def draw_shard(settings: SyntheticConfig, index: int, count: int, first_id: int) -> Shard:
    """Draw shard ``index`` with ``count`` subjects, numbered from ``first_id``. Only the seed and index decide it."""
    rng = np.random.default_rng([settings.seed, index])
    rules = laws(settings)
    subjects = simulate.draw_subjects(rng, rules, count)
    stays = simulate.draw_stays(rng, rules, subjects)
    rows = Rows()
    add_subjects(rows, rules, subjects)
    add_stays(rows, stays)
    add_codes(rng, rows, settings, stays)
    signals_NS = signals_log_likelihood(add_signals(rng, rows, settings, stays))
    early_NS, all_NS = add_measurements(rng, rows, settings, rules, stays)
    labels = label_tables(rules, subjects, stays, signals_NS + early_NS, signals_NS + all_NS, first_id)
    return Shard(rows.table(first_id), labels, subjects, stays)
