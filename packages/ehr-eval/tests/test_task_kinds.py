"""Tasks of other kinds than yes or no: one clinical situation a test, then random records against a plain walk."""

import itertools

import polars as pl
import pytest
from ehr_core.errors import ConfigError
from ehr_core.outcomes import COLUMNS
from ehr_eval.plugin import ehr_tasks
from ehr_eval.task_settings import (
    DISEASES,
    LengthOfStayClassConfig,
    LengthOfStayConfig,
    NextDiagnosesConfig,
    TimeToDeathConfig,
)
from ehr_eval.tasks import LengthOfStay, LengthOfStayClass, NextDiagnoses, TimeToDeath
from hypothesis import given, settings
from hypothesis import strategies as st

ADM, DIS, DIE = "HOSPITAL_ADMISSION//ER", "HOSPITAL_DISCHARGE//HOME", "MEDS_DEATH"
HEART, LUNG = "DIAGNOSIS//ICD10CM//I50.9", "DIAGNOSIS//ICD10CM//J44.1"
TWO = {"heart": ["I50"], "lung": ["J44"]}
ALL = {
    LengthOfStay: LengthOfStayConfig(),
    LengthOfStayClass: LengthOfStayClassConfig(),
    TimeToDeath: TimeToDeathConfig(),
    NextDiagnoses: NextDiagnosesConfig(horizon_days=4, groups=TWO),
}


@pytest.fixture
def ask(events, at):
    """Labels of a task as (subject, day of the prediction, answer, ...)."""

    def asked(task, rows, end=1000, **changes):
        config = type(ALL[task])(**{**vars(ALL[task]), **changes})
        table = task(config).label(events(rows), at(end))
        return [(s, (t - at(0)).total_seconds() / 86400, *answers) for s, t, *answers in table.rows()]

    return asked


def test_the_length_of_stay_counts_from_the_prediction_time_to_discharge_or_death(ask):
    rows = [(1, 0, ADM), (1, 3.25, DIS), (2, 0, ADM), (2, 2, DIE), (2, 2, DIS), (3, 0, ADM), (3, 1.5, DIE)]
    assert ask(LengthOfStay, rows) == [(1, 1.0, 2.25), (2, 1.0, 1.0), (3, 1.0, 0.5)]
    assert ask(LengthOfStay, rows, prediction_offset_hours=48) == [(1, 2.0, 1.25)]


def test_a_stay_without_an_end_on_record_has_no_length(ask):
    assert ask(LengthOfStay, [(1, 0, ADM), (1, 5, "LAB")]) == []
    assert ask(LengthOfStay, [(1, 0, ADM), (1, 5, DIS)], end=4) == []
    assert ask(LengthOfStay, [(1, 0, ADM), (1, 5, ADM), (1, 8, DIS)]) == [(1, 6.0, 2.0)]


def test_a_discharge_into_the_next_stay_ends_the_one_before(ask):
    assert ask(LengthOfStay, [(1, 0, ADM), (1, 3, ADM), (1, 3, DIS), (1, 8, DIS)]) == [(1, 1.0, 2.0), (1, 4.0, 4.0)]


def test_a_class_begins_with_its_lower_edge(ask):
    rows = [(s, t, c) for s, length in enumerate([1.5, 2.99, 3, 5, 6, 60]) for t, c in ((0, ADM), (length, DIS))]
    assert [answer for *_, answer in ask(LengthOfStayClass, rows)] == [0, 0, 1, 1, 2, 2]
    assert [answer for *_, answer in ask(LengthOfStayClass, rows, edges=[4.5])] == [0, 0, 0, 0, 1, 1]
    rows = [(s, t, c) for s in range(1, 9) for t, c in ((0, ADM), (1 + s / 10, DIS))]
    assert [answer for *_, answer in ask(LengthOfStayClass, rows, edges=[0.1, 0.3, 0.7])] == [1, 1, 2, 2, 2, 2, 3, 3]


def test_classes_are_named_after_their_edges():
    assert LengthOfStayClass(LengthOfStayClassConfig()).names == ("<2 days", "2-5 days", ">=5 days")
    assert LengthOfStayClass(LengthOfStayClassConfig(edges=[0.5])).names == ("<0.5 days", ">=0.5 days")
    for edges in ([], [0.0, 1.0], [2.0, 2.0], [3.0, 1.0]):
        with pytest.raises(ConfigError, match=r"task\.length_of_stay_class\.edges"):
            LengthOfStayClass(LengthOfStayClassConfig(edges=edges))


def test_death_in_hospital_is_an_event_and_whatever_else_ends_a_stay_censors(ask):
    rows = [(1, 0, ADM), (1, 3.5, DIE), (2, 0, ADM), (2, 4, DIS), (2, 5, DIE), (3, 0, ADM), (3, 2, DIS), (3, 2, DIE)]
    assert ask(TimeToDeath, rows) == [(1, 1.0, 2.5, True), (2, 1.0, 3.0, False), (3, 1.0, 1.0, True)]
    assert ask(TimeToDeath, [(1, 0, ADM), (1, 6, ADM), (1, 7, DIE)])[0] == (1, 1.0, 5.0, False)


def test_the_end_of_the_data_censors_a_stay_that_goes_on(ask):
    assert ask(TimeToDeath, [(1, 0, ADM), (1, 5, DIE)], end=4) == [(1, 1.0, 3.0, False)]
    assert ask(TimeToDeath, [(1, 0, ADM), (1, 5, DIE)], end=1) == []
    assert ask(TimeToDeath, [(1, 0, ADM)], end=0.5) == []


def test_only_what_the_next_stay_brings_first_is_a_new_diagnosis(ask):
    rows = [(1, 0, ADM), (1, 1, DIS), (1, 3, ADM), (1, 3, HEART), (1, 4, DIS)]
    assert ask(NextDiagnoses, rows) == [(1, 1.0, [True, False])]
    assert ask(NextDiagnoses, [*rows, (1, 1, HEART)]) == [(1, 1.0, [None, False])], "known at the discharge"
    assert ask(NextDiagnoses, [*rows, (1, None, HEART)]) == [(1, 1.0, [None, False])], "known without a time"
    assert ask(NextDiagnoses, [*rows, (1, 2, HEART)]) == [(1, 1.0, [False, False])], "coded between the stays"
    assert ask(NextDiagnoses, [*rows, (1, 4, LUNG)]) == [(1, 1.0, [True, True])], "coded as the next stay ends"
    assert ask(NextDiagnoses, [*rows, (1, 4.5, LUNG)]) == [(1, 1.0, [True, False])], "coded after it"


def test_who_does_not_come_back_within_the_horizon_is_not_asked(ask):
    rows = [(1, 0, ADM), (1, 1, DIS), (1, 5.5, ADM), (1, 5.5, HEART), (1, 6, DIS)]
    assert ask(NextDiagnoses, rows) == []
    assert ask(NextDiagnoses, rows, horizon_days=4.5) == [(1, 1.0, [True, False])]
    assert ask(NextDiagnoses, rows, horizon_days=5, end=6) == [(1, 1.0, [True, False])]
    assert ask(NextDiagnoses, rows, horizon_days=5, end=5.75) == [], "the horizon reaches beyond the end"


def test_a_next_stay_without_an_end_on_record_a_transfer_and_a_death_are_not_asked(ask):
    assert ask(NextDiagnoses, [(1, 0, ADM), (1, 1, DIS), (1, 3, ADM), (1, 3, HEART)]) == []
    assert ask(NextDiagnoses, [(1, 0, ADM), (1, 1, DIS), (1, 1, ADM), (1, 3, ADM), (1, 4, DIS)]) == []
    assert ask(NextDiagnoses, [(1, 0, ADM), (1, 1, DIS), (1, 1, DIE), (1, 3, ADM), (1, 4, DIS)]) == []


def test_a_next_stay_of_no_length_is_its_instant(ask):
    rows = [(1, 0, ADM), (1, 1, DIS), (1, 3, ADM), (1, 3, DIS), (1, 3, HEART), (1, 4, LUNG), (1, 5, ADM)]
    assert ask(NextDiagnoses, rows) == [(1, 1.0, [True, False])]


def test_groups_and_systems_can_be_set_and_an_empty_beginning_is_refused(ask):
    rows = [(1, 0, ADM), (1, 1, DIS), (1, 3, ADM), (1, 3, "I50.9"), (1, 3, "ICD//E11"), (1, 4, DIS)]
    asked = {"systems": ["ICD//", ""], "groups": {"sugar": ["E10", "E11"], "heart": ["I50"], "asthma": ["J45"]}}
    assert ask(NextDiagnoses, rows, **asked) == [(1, 1.0, [True, True, False])]
    with pytest.raises(ConfigError, match=r"task\.next_diagnoses\.groups\.heart"):
        NextDiagnoses(NextDiagnosesConfig(groups={"heart": [""]}))
    with pytest.raises(ConfigError, match=r"task\.next_diagnoses\.systems"):
        NextDiagnoses(NextDiagnosesConfig(systems=[]))


def test_a_dataset_needs_stays_and_some_diagnosis_to_be_asked_for_new_ones():
    task = NextDiagnoses(NextDiagnosesConfig(systems=["ICD//"], groups=TWO))
    assert task.needed() == {
        "admission": ["HOSPITAL_ADMISSION"],
        "discharge": ["HOSPITAL_DISCHARGE"],
        "diagnosis": ["ICD//I50", "ICD//J44"],
    }
    assert NextDiagnoses(NextDiagnosesConfig()).names == tuple(DISEASES)
    assert TimeToDeath(TimeToDeathConfig()).needed() == {"admission": ["HOSPITAL_ADMISSION"], "death": ["MEDS_DEATH"]}
    assert set(LengthOfStay(LengthOfStayConfig()).needed()) == {"admission", "discharge"}


@pytest.mark.parametrize("component", list(ehr_tasks()), ids=lambda component: component.name)
def test_every_task_says_its_kind_and_gives_the_columns_of_it(component, events, at):
    task = component.load()(component.config())
    table = task.label(events([(1, 0, ADM), (1, 2, DIS), (1, 9, ADM), (1, 11, DIE)]), at(3000))
    (kind,) = component.outcomes
    assert table.columns == ["subject_id", "prediction_time", *COLUMNS[kind].label]
    assert len(table) > 0
    assert (task.codes() is not None) == (kind == "binary")
    assert bool(task.names) == COLUMNS[kind].many
    nothing = task.label(events([(1, 0, "LAB")]), at(3000))
    assert nothing.schema == table.schema
    assert len(nothing) == 0


# -- random records

CODES = st.sampled_from([ADM, ADM, ADM, DIS, DIS, DIS, DIE, HEART, HEART, LUNG, LUNG])
RECORD = st.lists(st.tuples(st.integers(1, 2), st.integers(0, 12), CODES), min_size=8, max_size=24)


def stays_by_hand(happened):
    """(start, stop, whether a discharge is there) of every stay, with one open stay at a time."""
    opened = None
    for t in sorted({t for t, _ in happened}):
        at = {c for u, c in happened if u == t}
        was_open, start = opened is not None, opened
        if was_open and at & {ADM, DIS}:
            yield start, t, DIS in at
            opened = None
        if {ADM, DIS} <= at and not was_open:
            yield t, t, True
        elif ADM in at:
            opened = t
    if opened is not None:
        yield opened, None, False


def in_hospital_by_hand(happened, end):
    """(prediction, end of the stay or None, died, discharged) of the stays that go on at their prediction time."""
    death = min((t for t, c in happened if c == DIE), default=None)
    for start, stop, discharged in stays_by_hand(happened):
        ends = [t for t in (death, stop) if t is not None]
        if start + 1 <= end and all(t > start + 1 for t in ends):
            died = death is not None and (stop is None or death <= stop)
            yield start + 1, min(ends, default=None), died, discharged


def next_by_hand(happened, end, horizon):
    """(discharge, [answer of each group]) as the rule is written down."""
    times = {code: sorted(t for t, c in happened if c == code) for code in (DIE, HEART, LUNG)}
    death = min(times[DIE], default=None)
    stays = list(stays_by_hand(happened))
    for (_, out, discharged), (back, stop, _) in itertools.pairwise(stays):
        if not discharged or back == out or (death is not None and death <= out):
            continue
        if out + horizon > end or back > out + horizon:
            continue
        over = min([t for t in (stop, death) if t is not None and t >= back], default=None)
        if over is not None:
            firsts = [min(times[code], default=None) for code in (HEART, LUNG)]
            yield out, [None if f is not None and f <= out else f is not None and back <= f <= over for f in firsts]


def by_hand(task, rows, end):
    for subject in sorted({s for s, *_ in rows}):
        happened = [(t, c) for s, t, c in rows if s == subject and t <= end]
        if task is NextDiagnoses:
            yield from ((subject, float(out), answers) for out, answers in next_by_hand(happened, end, 4))
            continue
        for asked, left, died, discharged in in_hospital_by_hand(happened, end):
            if task is TimeToDeath:
                watched = end if left is None else left
                yield from [(subject, float(asked), float(watched - asked), died)] if watched > asked else []
            elif died or discharged:
                days = float(left - asked)
                yield subject, float(asked), days if task is LengthOfStay else (days >= 2) + (days >= 5)


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.__name__)
def test_labels_equal_a_walk_through_the_record_in_any_order_of_its_rows(task, ask):
    seen = set()

    @settings(max_examples=300, deadline=None)
    @given(RECORD, st.integers(6, 12), st.randoms(use_true_random=False))
    def check(rows, end, random):
        expected = list(by_hand(task, rows, end))
        seen.update(str(answer) for _, _, *answer in expected)
        random.shuffle(rows)
        assert ask(task, rows, end=end) == expected

    check()
    assert len(seen) > 2, "random records that never differ in their answers show nothing"


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.__name__)
def test_a_subjects_labels_do_not_depend_on_other_subjects(task, ask):
    @settings(max_examples=100, deadline=None)
    @given(RECORD)
    def check(rows):
        alone = [label for s in (1, 2) for label in ask(task, [row for row in rows if row[0] == s], end=9)]
        assert ask(task, rows, end=9) == alone

    check()


def test_a_frame_without_rows_has_no_labels(events, at):
    for task, config in ALL.items():
        assert isinstance(task(config).label(events([]), at(9)), pl.DataFrame)
