"""Stays between admissions and discharges: hand-made cases, and agreement with a plain loop over instants."""

import itertools

import numpy as np
from ehr_core.formats.tokens import NO_TIME
from ehr_core.stays import find_stays, starts_with
from hypothesis import given, settings
from hypothesis import strategies as st


def found(rows):
    """Stays of rows (subject, time, letter): A admits, D discharges."""
    subject, time, letter = (np.array(column) for column in zip(*rows, strict=True))
    return find_stays(subject, time, letter == "A", letter == "D")


def spelled(rows):
    """Letters in the new order, each with the number of its stay (- outside)."""
    stays = found(rows)
    letters = [rows[i][2] for i in stays.order_N]
    return " ".join(
        f"{letter}{stay if stay >= 0 else '-'}" for letter, stay in zip(letters, stays.stay_N.tolist(), strict=True)
    )


def test_events_between_admission_and_discharge_are_a_stay():
    assert spelled([(1, 0, "x"), (1, 1, "A"), (1, 2, "x"), (1, 3, "D"), (1, 4, "x")]) == "x- A0 x0 D0 x-"


def test_within_an_instant_the_admission_is_first_and_the_discharge_last():
    assert spelled([(1, 1, "x"), (1, 1, "A"), (1, 5, "D"), (1, 5, "x")]) == "A0 x0 x0 D0"
    assert spelled([(1, 1, "x"), (1, 1, "D"), (1, 1, "A"), (1, 2, "x")]) == "A0 x0 D0 x-"  # a stay of no length


def test_a_discharge_and_an_admission_at_once_end_one_stay_and_open_the_next():
    assert spelled([(1, 1, "A"), (1, 5, "x"), (1, 5, "A"), (1, 5, "D"), (1, 6, "x")]) == "A0 D0 A1 x1 x1"


def test_several_admission_rows_of_an_instant_open_one_stay():
    assert spelled([(1, 1, "A"), (1, 1, "x"), (1, 1, "A"), (1, 2, "D")]) == "A0 A0 x0 D0"


def test_an_admission_ends_a_stay_that_was_not_discharged():
    rows = [(1, 1, "A"), (1, 2, "x"), (1, 9, "A"), (1, 10, "x"), (2, 20, "x"), (2, 21, "A")]
    assert spelled(rows) == "A0 x0 A1 x1 x- A2"
    stays = found(rows)
    assert stays.close_K.tolist() == [9, NO_TIME, NO_TIME]
    assert stays.discharged_K.tolist() == [False, False, False]
    assert stays.start_K.tolist() == [1, 9, 21]


def test_codes_are_told_by_components():
    is_admission = starts_with(["ADMISSION", "A//B"])
    codes = ["ADMISSION", "ADMISSION//X", "ADMISSIONS", "A//B//C", "A//BC", "A"]
    assert [is_admission(code) for code in codes] == [True, True, False, True, False, False]


def plain(rows):
    """The rules of the module, one instant after the other."""
    out, stay = [], -1
    for _, group in itertools.groupby(rows, key=lambda row: row[0]):
        running = None
        for _, instant in itertools.groupby(group, key=lambda row: row[1]):
            letters = [row[2] for row in instant]
            admits, leaves = [c for c in letters if c == "A"], [c for c in letters if c == "D"]
            others = [c for c in letters if c == "x"]
            if running is not None and admits and leaves:
                out += [("D", running)] * len(leaves)
                leaves, running = [], None
            if admits:
                stay += 1
                running = stay
            out += [(c, running if running is not None else -1) for c in admits + others + leaves]
            if leaves:
                running = None
    return " ".join(f"{letter}{stay if stay >= 0 else '-'}" for letter, stay in out)


step = st.tuples(st.integers(0, 2), st.sampled_from("AxxD"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(step, min_size=1, max_size=10), min_size=1, max_size=3))
def test_stays_equal_those_of_a_plain_loop(subjects):
    rows = []
    for subject, steps in enumerate(subjects):
        at = 0
        for gap, letter in steps:
            at += gap
            rows.append((subject, at, letter))
    assert spelled(rows) == plain(rows)
