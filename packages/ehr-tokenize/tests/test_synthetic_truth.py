"""The truth of the synthetic cohort: calibrated, computed from the visible record alone, right by simulation."""

import datetime as dt

import numpy as np
import polars as pl
import pytest
from ehr_core.errors import DataError
from ehr_tokenize.synthetic import SyntheticConfig, true_prediction
from ehr_tokenize.synthetic import parameters as params
from ehr_tokenize.synthetic.events import draw_shard
from ehr_tokenize.synthetic.laws import Stay, laws
from ehr_tokenize.synthetic.record import visible
from ehr_tokenize.synthetic.simulate import ALIVE, draw_stays, draw_subjects
from ehr_tokenize.synthetic.truth import Visible, severity_posterior

MORTALITY, READMISSION = TASKS = ("in_hospital_mortality", "readmission_30d")
LENGTH, LENGTH_CLASS = ("length_of_stay", "length_of_stay_class")
DAY = dt.timedelta(days=1)


@pytest.fixture(scope="module")
def large():
    """Labels of 30,000 subjects by task: (boolean, true probability)."""
    shards = [draw_shard(SyntheticConfig(seed=11), index, 10_000, 1).labels for index in range(3)]
    return {
        task: tuple(
            np.concatenate([shard[task][name].to_numpy(zero_copy_only=False) for shard in shards])
            for name in ("boolean_value", "true_probability")
        )
        for task in TASKS
    }


@pytest.mark.parametrize("task", TASKS)
def test_labels_occur_as_often_as_the_truth_says(large, task):
    label, p = large[task]
    assert len(p) > 50_000
    for part in np.array_split(np.argsort(p, kind="stable"), 10):
        error = np.sqrt((p[part] * (1 - p[part])).sum()) / len(part)
        assert abs(label[part].mean() - p[part].mean()) < 4 * error


def point(stays, its: np.ndarray, time: np.ndarray, discharged: bool) -> Visible:
    """Prediction points at which nothing of a stay is seen but its course."""
    stay = Stay(**{name: array[its] for name, array in vars(stays.stay()).items()})
    nothing_NS = np.zeros((len(its), params.SEVERITIES))
    where = stays.destination_N[its] if discharged else None
    return Visible(stay, stays.admission_N[its], time, nothing_NS, np.zeros(len(its), bool), where)


@pytest.mark.parametrize("discharged", [False, True])
def test_the_course_of_a_stay_says_about_its_severity_what_the_truth_takes_from_it(discharged):
    # Deadlier than the defaults, so that having survived says something, too.
    rules, rng = laws(SyntheticConfig(mortality_scale=4.0)), np.random.default_rng(12)
    stays = draw_stays(rng, rules, draw_subjects(rng, rules, 40_000))
    if discharged:
        its = np.flatnonzero(stays.ending_N == ALIVE)
        time = stays.end_N[its]
    else:
        time = stays.admission_N + 3 * 86_400
        its = np.flatnonzero(stays.end_N > time)
        time = time[its]
    posterior_NS = severity_posterior(rules, point(stays, its, time, discharged))
    drawn_NS = np.eye(params.SEVERITIES)[stays.severity_N[its]]
    order = np.argsort(time - stays.admission_N[its], kind="stable")
    for part in [order, *np.array_split(order, 5)]:
        p_NS = posterior_NS[part]
        error = np.sqrt((p_NS * (1 - p_NS)).sum(axis=0)) / len(part)
        assert (np.abs(drawn_NS[part].mean(axis=0) - p_NS.mean(axis=0)) < 4 * error).all()


def auroc(label: np.ndarray, score: np.ndarray) -> float:
    rank = np.argsort(np.argsort(score, kind="stable"), kind="stable") + 1
    positives = label.sum()
    return (rank[label].sum() - positives * (positives + 1) / 2) / (positives * (len(label) - positives))


@pytest.mark.parametrize(("task", "low", "high"), [(MORTALITY, 0.85, 0.90), (READMISSION, 0.70, 0.78)])
def test_the_ceiling_is_where_it_was_designed_to_be(large, task, low, high):
    label, p = large[task]
    assert low < auroc(label, p) < high


def record(settings: SyntheticConfig, start: dt.datetime, lactate: float, age: int, end: tuple | None) -> pl.DataFrame:
    """A hand-written record: a patient with heart failure and sepsis, in intensive care, with one lactate."""
    hour = dt.timedelta(hours=1)
    rows = [
        (None, "GENDER//F", None),
        (start - dt.timedelta(days=age * 365.25), "MEDS_BIRTH", None),
        (start, "HOSPITAL_ADMISSION//EMERGENCY", None),
        (start, "DIAGNOSIS//ICD10CM//A41.9N2", None),
        (start, "DIAGNOSIS//ICD10CM//I50.9", None),
        (start + hour, "LAB//lactate//mmol/L", lactate),
        (start + 2 * hour, "ICU_ADMISSION//MICU", None),
    ]
    rows += [end] if end else []
    time, code, value = zip(*rows, strict=True)
    return pl.DataFrame({"subject_id": [1] * len(rows), "time": time, "code": code, "numeric_value": value})


def simulated(count: int, lactate: float, age: float) -> dict[str, np.ndarray]:
    """Patients like the one of `record`, drawn forward from the documented model and kept if they look like it."""
    rng = np.random.default_rng(8)
    heart_failure = next(d for d in params.DISEASES if d.name == "heart failure")
    sepsis = next(r for r in params.REASONS if r.name == "sepsis")
    predictor = params.SEVERITY_AGE * (age - 65) / 10 + heart_failure.severity + sepsis.severity
    severity = (rng.logistic(size=count)[:, None] + predictor > np.array(params.SEVERITY_CUTS)).sum(axis=1)
    # Signals: intensive care seen, the others not.
    same = rng.random(count) < np.array(params.SIGNALS[0].probability)[severity]
    for signal in params.SIGNALS[1:]:
        same &= rng.random(count) >= np.array(signal.probability)[severity]
    analyte = next(a for a in params.ANALYTES if "lactate" in a.code)
    shift = np.array((0.0, *analyte.shift))[severity]
    value = np.round(np.exp(np.log(analyte.base) + shift + analyte.sd * rng.standard_normal(count)), 1)
    severity = severity[same & (np.abs(value - lactate) < 0.01)]
    ratio = np.exp(params.DEATH_AGE * (age - 65) / 10 + heart_failure.death)
    death = rng.exponential(size=len(severity)) / (ratio * np.array(params.DEATH_PER_DAY)[severity])
    leave = 0.5 + rng.exponential(size=len(severity)) / np.array(params.DISCHARGE_PER_DAY)[severity]
    return {"severity": severity, "death": death, "leave": leave}


@pytest.mark.parametrize("days", [1, 5])
def test_mortality_and_length_of_stay_agree_with_simulation(days):
    # After five days, still being there says as much about the severity as the lactate did.
    settings, start = SyntheticConfig(), dt.datetime(2015, 5, 1, 9)
    time = start + days * DAY
    events = record(settings, start, 2.4, 70, None)
    truth = true_prediction(events, MORTALITY, time, settings)
    like = simulated(6_000_000, 2.4, 70.0)
    there = np.minimum(like["death"], like["leave"]) > days
    posterior = severity_posterior(laws(settings), visible(events, MORTALITY, time, laws(settings)))[0]
    share = np.bincount(like["severity"][there], minlength=4) / there.sum()
    assert (np.abs(share - posterior) < 4 * np.sqrt(posterior * (1 - posterior) / there.sum())).all()
    died = (like["death"] < like["leave"])[there]
    assert there.sum() > 3000
    assert abs(died.mean() - truth) < 4 * np.sqrt(truth * (1 - truth) / len(died))
    left = np.minimum(like["death"], like["leave"])[there] - days
    assert abs(left.mean() - true_prediction(events, LENGTH, time, settings)) < 4 * left.std() / np.sqrt(len(left))
    share = np.histogram(left, [0, 2, 5, np.inf])[0] / len(left)
    truth = true_prediction(events, LENGTH_CLASS, time, settings)
    assert (np.abs(share - truth) < 4 * np.sqrt(truth * (1 - truth) / len(left))).all()


def test_the_end_of_the_study_cuts_the_risk():
    settings = SyntheticConfig()
    start = dt.datetime(2019, 12, 28, 9)
    events = record(settings, start, 2.4, 70, None)
    near = true_prediction(events, MORTALITY, start + DAY, settings)
    like = simulated(4_000_000, 2.4, 70.0)
    there = np.minimum(like["death"], like["leave"]) > 1.0
    died = ((like["death"] < like["leave"]) & (like["death"] < 3 + 15 / 24))[there]
    assert abs(died.mean() - near) < 4 * np.sqrt(near * (1 - near) / len(died))
    # 2 days and 15 hours are left: nobody stays for 5 days or more, and the stays that would are counted as ended.
    left = np.minimum(np.minimum(like["death"], like["leave"])[there] - 1.0, 2 + 15 / 24)
    length = true_prediction(events, LENGTH, start + DAY, settings)
    classes = true_prediction(events, LENGTH_CLASS, start + DAY, settings)
    assert abs(left.mean() - length) < 4 * left.std() / np.sqrt(len(left))
    assert classes[2] == 0
    assert abs((left < 2).mean() - classes[0]) < 4 * np.sqrt(classes[0] * (1 - classes[0]) / len(left))


def test_readmission_agrees_with_simulation():
    settings, start = SyntheticConfig(), dt.datetime(2015, 5, 1, 9)
    leaving = start + dt.timedelta(days=3, seconds=30)
    events = record(settings, start, 2.4, 70, (leaving, "HOSPITAL_DISCHARGE//SNF", None))
    like = simulated(6_000_000, 2.4, 70.0)
    rng = np.random.default_rng(9)
    severity = like["severity"]
    place = np.array(next(p for name, p, _ in params.DESTINATIONS if name == "SNF"))
    # A window of hours around the discharge stands for its minute; the posterior hardly moves within it.
    near = (np.abs(like["leave"] - 3.0) < 0.3) & (like["death"] > like["leave"])
    severity = severity[near & (rng.random(len(severity)) < place[severity])]
    seen = visible(events, READMISSION, leaving, laws(settings))
    posterior = severity_posterior(laws(settings), seen)[0]
    share = np.bincount(severity, minlength=4) / len(severity)
    assert len(severity) > 200
    assert (np.abs(share - posterior) < 4 * np.sqrt(posterior * (1 - posterior) / len(severity))).all()
    # Many futures for each of these: the outcome's law, given the severity, is checked with more draws.
    severity = np.repeat(severity, 20)
    heart_failure = next(d for d in params.DISEASES if d.name == "heart failure")
    score = (
        params.READMISSION_AGE * 0.5 + heart_failure.readmission + params.ADMISSIONS[0][3] + params.DESTINATIONS[2][2]
    )
    score = score + np.array(params.READMISSION_SEVERITY)[severity]
    back = rng.exponential(size=len(severity)) / (params.READMISSION_PER_DAY * np.exp(score))
    rate = params.HOME_DEATH_PER_DAY * np.exp(params.HOME_DEATH_AGE * 0.5 + heart_failure.home_death)
    death = rng.exponential(size=len(severity)) / rate
    label = (back < death) & (back <= 30)
    known = true_prediction(events, READMISSION, leaving, settings)
    assert abs(label.mean() - known) < 4 * np.sqrt(known * (1 - known) / len(label))


def test_a_question_that_the_record_cannot_answer_is_refused():
    settings, start = SyntheticConfig(), dt.datetime(2015, 5, 1, 9)
    events = record(settings, start, 2.4, 70, None)
    with pytest.raises(DataError, match="no truth is known of task 'sepsis'"):
        true_prediction(events, "sepsis", start + DAY, settings)
    with pytest.raises(DataError, match="asks at the time of a discharge"):
        true_prediction(events, READMISSION, start + DAY, settings)
    with pytest.raises(DataError, match="in hospital for 12 h"):
        true_prediction(events, MORTALITY, start + dt.timedelta(hours=3), settings)
    with pytest.raises(DataError, match="no admission"):
        true_prediction(events, MORTALITY, start - DAY, settings)
    with pytest.raises(DataError, match="there is no sex"):
        true_prediction(events.filter(pl.col("time").is_not_null()), MORTALITY, start + DAY, settings)
