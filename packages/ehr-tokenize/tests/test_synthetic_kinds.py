"""Labels and truths of every task of the synthetic cohort: they are what the events say, and what comes as often."""

import datetime as dt
from collections.abc import Iterator

import numpy as np
import polars as pl
import pytest
from ehr_core.outcomes import COLUMNS
from ehr_tokenize.synthetic import SyntheticConfig, true_prediction
from ehr_tokenize.synthetic import parameters as params
from ehr_tokenize.synthetic.events import draw_shard
from ehr_tokenize.synthetic.laws import DAY, MINUTE, NAMES, Stay, disease_probability, laws, log_prior
from ehr_tokenize.synthetic.truth import (
    LENGTH,
    LENGTH_CLASS,
    MORTALITY,
    NEXT,
    READMISSION,
    TASKS,
    TIME_TO_DEATH,
    Visible,
    death_risk,
    length_classes,
    length_of_stay,
    next_diagnoses,
)

ONE_DAY = dt.timedelta(days=1)


def worlds() -> list[SyntheticConfig]:
    return [
        SyntheticConfig(seed=2),
        SyntheticConfig(seed=3, novel_probability=0.5, missingness=0.6, study_end="2014-01-01"),
        SyntheticConfig(seed=4, severity_signal=0.3, mortality_scale=3.0, readmission_scale=2.0),
    ]


def columns(task: str) -> tuple[list[str], str]:
    kind = COLUMNS[TASKS[task].question.kind]
    return ["subject_id", "prediction_time", *kind.label], kind.truth


def by_subject(data: pl.DataFrame) -> dict[tuple, pl.DataFrame]:
    return data.partition_by("subject_id", as_dict=True)


@pytest.fixture(scope="module", params=worlds(), ids=["defaults", "sparse", "scaled"])
def world(request):
    """Settings, events and labels by task of 1,500 subjects."""
    shard = draw_shard(request.param, 0, 1500, 1)
    return request.param, pl.from_arrow(shard.data), {name: pl.from_arrow(t) for name, t in shard.labels.items()}


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_is_recomputed_from_what_is_visible_at_the_prediction_time(world, task):
    settings, data, labels = world
    records, (_, truth) = by_subject(data), columns(task)
    rows = labels[task].select("subject_id", "prediction_time", truth).rows()
    assert len(rows) > 50
    for subject, time, known in rows[:250]:
        seen = records[(subject,)].filter(pl.col("time").is_null() | (pl.col("time") <= time))
        assert true_prediction(seen, task, time, settings) == pytest.approx(np.array(known), rel=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_what_follows_the_prediction_time_changes_nothing(world, task):
    settings, data, labels = world
    records = by_subject(data)
    for subject, time in labels[task].select("subject_id", "prediction_time").rows()[:60]:
        events = records[(subject,)]
        seen = events.filter(pl.col("time").is_null() | (pl.col("time") <= time))
        later = events.filter(pl.col("time") > time).with_columns(pl.lit("LAB//lactate//mmol/L").alias("code"))
        changed = pl.concat([seen, later.with_columns(numeric_value=pl.lit(9.0, pl.Float32))])
        assert (true_prediction(changed, task, time, settings) == true_prediction(seen, task, time, settings)).all()


def stays_of(data: pl.DataFrame) -> Iterator[tuple]:
    """(subject, admission, end, whether in death, next admission or None, first code of each disease or None)."""
    for (subject,), rows in by_subject(data.filter(pl.col("time").is_not_null())).items():
        events = list(zip(rows["code"].to_list(), rows["time"].to_list(), strict=True))
        coded = [(c.removeprefix("DIAGNOSIS//ICD10CM//"), t) for c, t in events if c.startswith("DIAGNOSIS")]
        firsts = [min((t for c, t in coded if c.startswith(d.icd)), default=None) for d in params.DISEASES]
        starts = [t for c, t in events if c.startswith("HOSPITAL_ADMISSION")]
        ends = [(t, c == "MEDS_DEATH") for c, t in events if c == "MEDS_DEATH" or c.startswith("HOSPITAL_DISCHARGE")]
        for i, start in enumerate(starts):
            yield subject, start, *ends[i], starts[i + 1] if i + 1 < len(starts) else None, firsts


def answers_of(data: pl.DataFrame) -> dict[str, list[tuple]]:
    """Labels of every task from the events alone, a stay at a time."""
    last, horizon = data["time"].max(), params.NEXT_HORIZON_DAYS * ONE_DAY
    found: dict[str, list[tuple]] = {task: [] for task in TASKS}
    for subject, start, end, died, back, firsts in stays_of(data):
        asked, left = start + ONE_DAY, (end - start - ONE_DAY) / ONE_DAY
        if left > 0:
            found[MORTALITY].append((subject, asked, died))
            found[LENGTH].append((subject, asked, left))
            found[LENGTH_CLASS].append((subject, asked, (left >= 2) + (left >= 5)))
            found[TIME_TO_DEATH].append((subject, asked, left, died))
        if not died and end <= last - 30 * ONE_DAY:
            found[READMISSION].append((subject, end, back is not None and back <= end + 30 * ONE_DAY))
        if not died and end <= last - horizon and back is not None and back <= end + horizon:
            found[NEXT].append((subject, end, [None if f and f <= end else f == back for f in firsts]))
    return found


def test_labels_say_what_the_events_say(world):
    _, data, labels = world
    expected = answers_of(data)
    for task in TASKS:
        assert len(expected[task]) > 50
        assert labels[task].select(columns(task)[0]).rows() == sorted(expected[task], key=lambda row: row[:2]), task


# -- as often as the truth says


@pytest.fixture(scope="module")
def large():
    """Labels of 30,000 subjects by task, in several shards."""
    shards = [draw_shard(SyntheticConfig(seed=11), index, 10_000, 1).labels for index in range(3)]
    return {task: pl.concat([pl.from_arrow(shard[task]) for shard in shards]) for task in TASKS}


def test_the_mean_of_what_is_left_of_a_stay_is_the_truth(large):
    left, truth = large[LENGTH]["float_value"].to_numpy(), large[LENGTH]["true_value"].to_numpy()
    assert len(left) > 50_000
    for part in np.array_split(np.argsort(truth, kind="stable"), 10):
        assert abs(left[part].mean() - truth[part].mean()) < 4 * left[part].std() / np.sqrt(len(part))
    assert np.mean((left - truth) ** 2) < 0.99 * left.var()


def test_classes_occur_as_often_as_the_truth_says(large):
    table = large[LENGTH_CLASS]
    label, truth_NK = table["integer_value"].to_numpy(), np.array(table["true_probabilities"].to_list())
    assert np.abs(truth_NK.sum(axis=1) - 1).max() < 1e-12
    for k in range(3):
        assert 0.1 < (label == k).mean() < 0.6
        for part in np.array_split(np.argsort(truth_NK[:, k], kind="stable"), 10):
            p = truth_NK[part, k]
            assert abs((label[part] == k).mean() - p.mean()) < 4 * np.sqrt((p * (1 - p)).sum()) / len(part)


def test_new_diagnoses_occur_as_often_as_the_truth_says(large):
    table = large[NEXT]
    label_ND = np.array(table["boolean_values"].to_list(), np.float64)
    truth_ND = np.array(table["true_probabilities"].to_list())
    asked_ND = ~np.isnan(label_ND)
    assert (truth_ND[~asked_ND] == 0).all()
    assert label_ND[asked_ND].sum() > 1000
    for d in range(len(NAMES)):
        label, p = label_ND[asked_ND[:, d], d], truth_ND[asked_ND[:, d], d]
        assert abs(label.sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
    label, p = label_ND[asked_ND], truth_ND[asked_ND]
    for part in np.array_split(np.argsort(p, kind="stable"), 10):
        assert abs(label[part].sum() - p[part].sum()) < 4 * np.sqrt((p[part] * (1 - p[part])).sum())


def concordance(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> float:
    """Harrell's C over all pairs of which one is seen to die first."""
    good = pairs = 0.0
    for i in np.flatnonzero(event):
        later = (time > time[i]) | ((time == time[i]) & ~event)
        pairs += later.sum()
        good += (risk[later] < risk[i]).sum() + 0.5 * (risk[later] == risk[i]).sum()
    return good / pairs


@pytest.fixture(scope="module")
def at_risk():
    """Prediction points of `time_to_death` as the truth sees them: (laws, visible, P(severity | visible))."""
    import ehr_tokenize.synthetic.truth as module

    caught = []
    task = module.TASKS[TIME_TO_DEATH]

    def law(rules, visible, weight_NS):
        caught.append((rules, visible, weight_NS))
        return death_risk(rules, visible, weight_NS)

    module.TASKS[TIME_TO_DEATH] = module.Task(task.question, law)
    try:
        labels = draw_shard(SyntheticConfig(seed=12), 0, 3000, 1).labels[TIME_TO_DEATH]
    finally:
        module.TASKS[TIME_TO_DEATH] = task
    return *caught[0], labels["time_days"].to_numpy(), labels["event"].to_numpy(zero_copy_only=False)


def test_the_risk_of_death_ranks_better_than_what_sees_less(at_risk):
    rules, visible, weight_NS, time, event = at_risk
    on_admission = np.exp(log_prior(visible.stay))
    seen = concordance(time, event, death_risk(rules, visible, weight_NS))
    less = concordance(time, event, death_risk(rules, visible, on_admission))
    age = concordance(time, event, visible.stay.age_N)
    assert 0.5 < age < less - 0.03
    assert less < seen - 0.03


def test_no_ranking_can_be_expected_to_beat_the_risk_of_death_by_more_than_a_hair(at_risk):
    # For each pair the probability that one of the two is seen to die while the other is still there.
    rules, visible, weight_NS, _, _ = at_risk
    some = np.random.default_rng(0).choice(len(weight_NS), 1000, replace=False)
    death = rules.death_rate(visible.stay)[some]
    either, weight = death + np.array(params.DISCHARGE_PER_DAY), weight_NS[some]
    first_NN = sum(
        (weight[:, s] * death[:, s])[:, None] * weight[:, r] / (either[:, s, None] + either[:, r])
        for s in range(4)
        for r in range(4)
    )
    np.fill_diagonal(first_NN, 0)
    best = np.triu(np.maximum(first_NN, first_NN.T)).sum() / first_NN.sum()
    risk = (weight * death).sum(axis=1)
    reached = (first_NN * (risk[:, None] > risk)).sum() / first_NN.sum()
    by_end = (weight * death / either).sum(axis=1)
    ranked_by_end = (first_NN * (by_end[:, None] > by_end)).sum() / first_NN.sum()
    assert best - reached < 1e-5
    assert reached > ranked_by_end + 5e-4


# -- closed forms against sums over every minute


def one_point(settings: SyntheticConfig, time: int, destination: int | None) -> Visible:
    disease_ND = np.array([[d.name in ("heart failure", "hypertension") for d in params.DISEASES]])
    stay = Stay(np.array([71.3]), disease_ND, np.array([0]), np.array([1]), np.array([2]))
    where = None if destination is None else np.array([destination])
    return Visible(stay, np.array([time - DAY]), np.array([time]), np.zeros((1, 4)), np.array([True]), where)


@pytest.mark.parametrize("days", [0.5, 1.75, 2.0, 3.25, 900.0])
def test_length_of_stay_is_the_sum_over_all_minutes(days):
    settings = SyntheticConfig(mortality_scale=2.0)
    rules, weight = laws(settings), np.array([[0.4, 0.3, 0.2, 0.1]])
    seen = one_point(settings, rules.end - round(days * DAY), None)
    minute = np.arange(1, round(min(days, 400.0) / MINUTE) + 1)
    rate = (rules.death_rate(seen.stay) + np.array(params.DISCHARGE_PER_DAY)).T
    mass = (weight.T * np.exp(-rate * (minute - 1) * MINUTE) * -np.expm1(-rate * MINUTE)).sum(axis=0)
    left = np.append((minute - 0.5) * MINUTE, days)
    mass = np.append(mass, 1 - mass.sum())
    assert length_of_stay(rules, seen, weight)[0] == pytest.approx((left * mass).sum(), rel=1e-9)
    share = [mass[left < 2].sum(), mass[(left >= 2) & (left < 5)].sum(), mass[left >= 5].sum()]
    assert length_classes(rules, seen, weight)[0] == pytest.approx(share, abs=1e-9)


@pytest.mark.parametrize("readmission", [1.0, 8.0])
def test_new_diagnoses_are_the_sum_over_all_minutes(readmission):
    settings = SyntheticConfig(readmission_scale=readmission)
    rules, weight = laws(settings), np.array([[0.4, 0.3, 0.2, 0.1]])
    seen = one_point(settings, rules.start + 900 * DAY, 1)
    minute = np.arange(1, params.NEXT_HORIZON_DAYS * 1440 + 1)
    day = np.minimum(minute - 1, 30 * 1440) * MINUTE
    late_day = (minute - 1) * MINUTE - day
    early, late = rules.readmission_rate(seen.stay, seen.destination_N), rules.late_rate(seen.stay, seen.destination_N)
    home = rules.home_death_rate(seen.stay)
    mass = np.zeros(len(minute))
    for s in range(4):
        rate = np.where(minute <= 30 * 1440, early[0, s], late[0])
        there = np.exp(-early[0, s] * day - late[0] * late_day - home[0] * (minute - 1) * MINUTE)
        mass += weight[0, s] * there * rate / (rate + home[0]) * -np.expm1(-(rate + home[0]) * MINUTE)
    years = (minute - 0.5) * MINUTE / 365.25
    disease_ND = np.broadcast_to(seen.stay.disease_ND, (len(minute), len(NAMES)))
    age, male = seen.stay.age_N + 1 / 365.25 + years, np.ones(len(minute), bool)
    for d in range(len(NAMES)):
        chance = -np.expm1(-params.ONSET_PER_YEAR * disease_probability(d, age, male, disease_ND) * years)
        expected = 0.0 if seen.stay.disease_ND[0, d] else (mass * chance).sum() / mass.sum()
        assert next_diagnoses(rules, seen, weight)[0, d] == pytest.approx(expected, rel=1e-9)
