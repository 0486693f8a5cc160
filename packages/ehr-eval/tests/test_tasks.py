"""Who gets a label, when, and which: one clinical situation a test, then random ones against a plain loop."""

from datetime import timedelta

import numpy as np
import pytest
from ehr_core.errors import ConfigError
from ehr_core.formats.meds import read_events, shards
from ehr_eval.task_settings import InHospitalMortalityConfig, Readmission30dConfig
from ehr_eval.tasks import InHospitalMortality, Readmission30d

ADM, DIS, DIE = "HOSPITAL_ADMISSION//ER", "HOSPITAL_DISCHARGE//HOME", "MEDS_DEATH"


@pytest.fixture
def mortality(events, at):
    def ask(rows, end=1000, **settings):
        table = InHospitalMortality(InHospitalMortalityConfig(**settings)).label(events(rows), at(end))
        return [(s, (t - at(0)).total_seconds() / 86400, y) for s, t, y in table.rows()]

    return ask


@pytest.fixture
def label_records(events, at, dataset, tmp_path):
    """Mortality labels of rows that were written and read."""

    def ask(rows):
        (shard,) = shards(dataset(tmp_path / "meds", train=[events(rows)], tuning=[], held_out=[]))
        table = InHospitalMortality(InHospitalMortalityConfig()).label(read_events(shard), at(1000))
        return [(s, (t - at(0)).total_seconds() / 86400, y) for s, t, y in table.rows()]

    return ask


@pytest.fixture
def readmission(events, at):
    def ask(rows, end=1000, **settings):
        table = Readmission30d(Readmission30dConfig(**settings)).label(events(rows), at(end))
        return [(s, (t - at(0)).total_seconds() / 86400, y) for s, t, y in table.rows()]

    return ask


def test_death_in_the_stay_is_positive_and_a_discharge_first_is_negative(mortality):
    rows = [(1, 0, ADM), (1, 3, DIE), (2, 0, ADM), (2, 3, DIS), (2, 9, DIE)]
    assert mortality(rows) == [(1, 1.0, True), (2, 1.0, False)]


def test_death_at_the_instant_of_the_discharge_is_death_in_hospital_in_either_order(mortality):
    assert mortality([(1, 0, ADM), (1, 3, DIS), (1, 3, DIE)]) == [(1, 1.0, True)]
    assert mortality([(1, 0, ADM), (1, 3, DIE), (1, 3, DIS)]) == [(1, 1.0, True)]


def test_who_left_or_died_by_the_prediction_time_gives_no_row(mortality):
    assert mortality([(1, 0, ADM), (1, 0.9, DIS)]) == []
    assert mortality([(1, 0, ADM), (1, 1, DIS)]) == []
    assert mortality([(1, 0, ADM), (1, 1, DIE)]) == []
    assert mortality([(1, 0, ADM), (1, 1.01, DIS)]) == [(1, 1.0, False)]


def test_a_stay_whose_end_is_not_on_record_gives_no_row(mortality):
    assert mortality([(1, 0, ADM), (1, 5, "LAB")]) == []


def test_what_happens_after_the_end_is_not_known(mortality):
    assert mortality([(1, 0, ADM), (1, 5, DIE)], end=4) == []
    assert mortality([(1, 0, ADM), (1, 5, DIE)], end=5) == [(1, 1.0, True)]


def test_the_next_subjects_outcome_does_not_leak(mortality, readmission):
    assert mortality([(1, 0, ADM), (2, 3, DIE), (3, 0, ADM), (3, 2, DIS)]) == [(3, 1.0, False)]
    assert readmission([(1, 0, ADM), (1, 2, DIS), (2, 5, ADM)]) == [(1, 2.0, False)]


def test_a_missing_discharge_ends_at_the_next_admission(mortality):
    rows = [(1, 0, ADM), (1, 50, ADM), (1, 53, DIE)]
    assert mortality(rows) == [(1, 1.0, False), (1, 51.0, True)]


def test_an_admission_repeated_within_the_first_day_takes_the_stay_over(mortality):
    assert mortality([(1, 0, ADM), (1, 0.25, ADM), (1, 4, DIE)]) == [(1, 1.25, True)]


def test_a_discharge_at_the_instant_of_an_admission_ends_the_stay_before(mortality):
    rows = [(1, 0, ADM), (1, 3, ADM), (1, 3, DIS), (1, 8, DIE)]
    assert mortality(rows) == [(1, 1.0, False), (1, 4.0, True)]


def test_a_stay_of_no_length_gives_no_row_and_takes_nothing_from_the_next(mortality):
    rows = [(1, 0, ADM), (1, 0, DIS), (1, 5, ADM), (1, 7, DIS)]
    assert mortality(rows) == [(1, 6.0, False)]


def test_a_chain_of_transfers_hands_over_at_each_instant(mortality):
    rows = [(1, 0, ADM), (1, 2, ADM), (1, 2, DIS), (1, 4, DIS), (1, 4, ADM), (1, 6, DIE)]
    assert mortality(rows) == [(1, 1.0, False), (1, 3.0, False), (1, 5.0, True)]


def test_a_row_written_twice_counts_once(mortality, readmission):
    rows = [(1, 0, ADM), (1, 0, "HOSPITAL_ADMISSION//WARD"), (1, 3, DIS), (1, 3, DIS)]
    assert mortality(rows) == [(1, 1.0, False)]
    assert readmission(rows) == [(1, 3.0, False)]


def test_codes_and_offset_can_be_set(mortality):
    rows = [(1, 0, "IN//A"), (1, 3, "OUT//DIED")]
    settings = {"admission": ["IN"], "discharge": ["OUT"], "death": ["OUT//DIED"], "prediction_offset_hours": 48}
    assert mortality(rows, **settings) == [(1, 2.0, True)]


def test_an_empty_prefix_is_refused_because_it_would_match_everything():
    with pytest.raises(ConfigError, match="death"):
        InHospitalMortality(InHospitalMortalityConfig(death=[""]))


def test_a_time_longer_than_any_life_is_refused():
    with pytest.raises(ConfigError, match=r"readmission_30d.horizon_days must be above 0 and at most 47,450 days"):
        Readmission30d(Readmission30dConfig(horizon_days=1e9))
    with pytest.raises(ConfigError, match="prediction_offset_hours must not be negative, nor over"):
        InHospitalMortality(InHospitalMortalityConfig(prediction_offset_hours=1e9))


def test_a_readmission_counts_up_to_and_with_the_thirtieth_day(readmission):
    rows = [(1, 0, ADM), (1, 2, DIS), (1, 32, ADM), (2, 0, ADM), (2, 2, DIS), (2, 32.01, ADM)]
    assert readmission(rows) == [(1, 2.0, True), (2, 2.0, False)]


def test_a_transfer_at_the_instant_of_the_discharge_is_neither_asked_nor_a_readmission(readmission):
    assert readmission([(1, 0, ADM), (1, 2, DIS), (1, 2, ADM), (1, 5, DIS)]) == [(1, 5.0, False)]


def test_a_stay_is_asked_once_however_many_discharges_it_has(readmission):
    rows = [(1, 0, ADM), (1, 5, DIS), (1, 5.001, DIS), (1, 6, DIS), (1, 20, ADM), (1, 21, DIS)]
    assert readmission(rows) == [(1, 5.0, True), (1, 21.0, False)]


def test_a_code_that_only_begins_like_one_of_a_group_is_none_of_it(mortality, readmission):
    rows = [(1, 0, ADM), (1, 2, "MEDS_DEATH_RISK//LOW"), (1, 2, "HOSPITAL_DISCHARGE_PLANNED"), (1, 5, DIS)]
    assert mortality(rows) == [(1, 1.0, False)]
    assert readmission(rows) == [(1, 5.0, False)]


def test_a_discharge_without_an_admission_is_no_stay(readmission):
    assert readmission([(1, 0, DIS), (1, 5, ADM), (1, 6, DIS)]) == [(1, 6.0, False)]


def test_a_stay_within_a_stay_ends_it_and_is_asked_at_its_own_discharge(readmission, mortality):
    rows = [(1, 0, ADM), (1, 3, ADM), (1, 5, DIS), (1, 10, DIS), (1, 60, ADM), (1, 61, DIS)]
    assert readmission(rows) == [(1, 5.0, False), (1, 61.0, False)]
    assert mortality(rows[:-2]) == [(1, 1.0, False), (1, 4.0, False)]


def test_a_discharge_after_death_ends_nothing_that_death_has_not_ended(mortality):
    assert mortality([(1, 0, ADM), (1, 3, DIE), (1, 5, DIS)]) == [(1, 1.0, True)]
    assert mortality([(1, 0, ADM), (1, 0.5, DIE), (1, 5, DIS)]) == []


def test_a_death_known_by_its_date_is_that_of_the_day(label_records):
    hour = 1 / 24
    rows = [(1, 0 + 8 * hour, ADM), (1, 1, DIE), (1, 1 + 14 * hour, DIS)]
    assert label_records(rows) == [(1, 1 + 8 * hour, True)]


def test_a_discharge_at_or_after_death_gives_no_row(readmission):
    assert readmission([(1, 0, ADM), (1, 2, DIS), (1, 2, DIE)]) == []
    assert readmission([(1, 0, ADM), (1, 2, DIE), (1, 2.1, DIS)]) == []


def test_death_without_readmission_is_negative(readmission):
    assert readmission([(1, 0, ADM), (1, 2, DIS), (1, 5, DIE)]) == [(1, 2.0, False)]


def test_censoring_does_not_look_at_the_outcome(readmission):
    for later in (ADM, DIE, "CLINIC"):
        assert readmission([(1, 0, ADM), (1, 2, DIS), (1, 5, later)], end=31) == []
        assert len(readmission([(1, 0, ADM), (1, 2, DIS), (1, 5, later)], end=32)) == 1


def test_codes_say_what_the_labels_say():
    codes = InHospitalMortality(InHospitalMortalityConfig()).codes()
    assert codes.positive == ("MEDS_DEATH",)
    assert codes.negative == ("HOSPITAL_DISCHARGE", "HOSPITAL_ADMISSION")
    assert codes.horizon_days is None
    codes = Readmission30d(Readmission30dConfig()).codes()
    assert (codes.positive, codes.negative) == (("HOSPITAL_ADMISSION",), ("MEDS_DEATH",))
    assert codes.horizon_days == 30


def _mortality_by_hand(subject, happened, end):
    """Walk through a subject's instants with one open stay at a time."""
    times = sorted({t for t, _ in happened if t <= end})
    at = {t: {c for u, c in happened if u == t} for t in times}
    deaths = [t for t in times if DIE in at[t]]
    stays, opened = [], None
    for t in times:
        new, over = ADM in at[t], DIS in at[t]
        if opened is not None and (over or new):
            stays.append((opened, t))
            opened, over = None, False
        if new:
            opened = t
        if over and opened == t:
            stays.append((t, t))
            opened = None
    stays += [(opened, None)] if opened is not None else []
    for start, stop in stays:
        asked = start + 1
        death = min(deaths, default=None)
        if (death is not None and death <= asked) or (stop is not None and stop <= asked):
            continue
        if death is None and stop is None:
            continue
        yield subject, float(asked), death is not None and (stop is None or death <= stop)


def test_mortality_equals_a_walk_through_random_records(mortality):
    rng = np.random.default_rng(0)
    rows = []
    for subject in range(400):
        for _ in range(rng.integers(1, 9)):
            code = rng.choice([ADM, ADM, DIS, DIS, DIE], p=[0.25, 0.2, 0.25, 0.2, 0.1])
            rows.append((subject, int(rng.integers(0, 12)), str(code)))
    rows.sort(key=lambda row: row[:2])
    expected = []
    for subject in range(400):
        happened = [(t, c) for s, t, c in rows if s == subject]
        expected += list(_mortality_by_hand(subject, happened, 10))
    assert mortality(rows, end=10) == expected
    assert {label for *_, label in expected} == {True, False}


def test_labels_do_not_depend_on_the_order_of_rows(events, at):
    rng = np.random.default_rng(1)
    rows = [(s, int(rng.integers(0, 60)), str(rng.choice([ADM, DIS, DIE]))) for s in range(30) for _ in range(6)]
    for task in (InHospitalMortality(InHospitalMortalityConfig()), Readmission30d(Readmission30dConfig())):
        table = task.label(events(rows), at(60))
        assert task.label(events([rows[i] for i in rng.permutation(len(rows))]), at(60)).equals(table)
        assert (table["prediction_time"] <= at(60)).all()
        assert len(table) > 5
        assert table.equals(table.sort("subject_id", "prediction_time"))
    assert at(60) - at(59) == timedelta(days=1)
