"""Visit grammars against a plain loop, and what must hold for any records."""

from datetime import datetime, timedelta
from itertools import groupby

import numpy as np
import pytest
from ehr_tokenize.grammars.visit_rules import GROUPINGS
from ehr_tokenize.grammars.visits import Visits
from ehr_tokenize.grammars.visits_settings import VisitsConfig
from hypothesis import given, settings
from hypothesis import strategies as st

START = datetime(2020, 1, 1)
CODES = ["A", "LAB//K", "ICD10CM//E11.65", "ICD10CM//E11.9", "ADMISSION//X", "DISCHARGE//Y", "ATC//N02BE01"]
STATIC = ["GENDER//F", "GENDER//M", "REGION//CA", "HEIGHT"]


@st.composite
def record(draw, subject=1):
    """Rows of one subject, several at one instant."""
    rows = [(subject, None, code) for code in draw(st.lists(st.sampled_from(STATIC), max_size=2))]
    if draw(st.booleans()):
        rows.append((subject, START - timedelta(days=9000), "MEDS_BIRTH"))
    now = START
    for gap in draw(st.lists(st.sampled_from([0, 0, 1, 5, 20, 24, 30, 300]), max_size=14)):
        now += timedelta(hours=gap)
        rows.append((subject, now, draw(st.sampled_from([*CODES, *CODES, *STATIC])), 1.5))
    return rows


def cohort(first=1):
    return st.integers(1, 5).flatmap(lambda n: st.tuples(*(record(subject=first + s) for s in range(n))))


grammars = st.builds(
    VisitsConfig,
    grouping=st.sampled_from(GROUPINGS),
    sep=st.booleans(),
    cls=st.booleans(),
    unique=st.booleans(),
    min_count=st.integers(1, 2),
    icd_level=st.sampled_from(["full", "3-digit"]),
    only_entities=st.sampled_from([[], ["diagnosis", "other"]]),
    entity=st.booleans(),
    static=st.sampled_from(["columns", "prefix", "none"]),
    value=st.booleans(),
)


def fitted(world, train, grammar):
    tokenizer = Visits(grammar)
    fixed = [(0, START, code) for code in ["A", "A", "ICD10CM//E11.9"]]  # so that there is always something to fit
    tokenizer.fit([tokenizer.summarize(world.frame(rows)) for rows in [fixed, *train]])
    return tokenizer


def joined(parts):
    return [row for part in parts for row in part]


def same(one, two):
    return all(
        np.array_equal(array, two.arrays()[name], equal_nan=array.dtype.kind == "f")
        for name, array in one.arrays().items()
    )


def plain_visits(rows, grouping, gap_hours=24):
    """Visit of each event of one subject, by the words of the settings: a loop over instants with an open stay."""
    visits, number, inside, before, inside_before = [], 0, False, None, False
    for time, instant in groupby(rows, key=lambda row: row[1]):
        codes = [row[2] for row in instant]
        borders = [code for code in codes if code.startswith(("ADMISSION", "DISCHARGE"))]
        admitted = any(code.startswith("ADMISSION") for code in codes)
        within = inside or admitted
        if grouping == "same_day":
            number += before is None or time.date() != before.date()
        elif grouping == "time_window":
            number += before is None or time - before > timedelta(hours=gap_hours)
        elif within:
            number += admitted
        elif grouping == "hybrid":
            number += before is None or inside_before or time.date() != before.date()
        outside = grouping == "encounter" and not within
        visits += [0 if outside else number] * len(codes)
        before, inside_before = time, within
        if borders:
            inside = borders[-1].startswith("ADMISSION")
    return visits


@settings(max_examples=200, deadline=None)
@given(record(), st.sampled_from(GROUPINGS))
def test_visits_are_those_of_a_plain_loop(world, rows, grouping):
    tokenizer = fitted(world, [rows], VisitsConfig(grouping=grouping, cls=False, sep=False, min_count=1))
    events = [r for r in rows if r[1] and r[2] != "MEDS_BIRTH" and not r[2].startswith(("GENDER", "REGION"))]
    table = tokenizer.encode(world.frame(rows))
    assert table.columns["visit"].tolist() == plain_visits(events, grouping)
    assert [tokenizer.vocabulary.tokens[i].token for i in table.token] == [row[2] for row in events]


@settings(max_examples=200, deadline=None)
@given(cohort(), record(subject=7), st.integers(0, 14), grammars)
def test_the_record_up_to_a_time_gives_a_prefix_of_tokens_and_columns(world, train, rows, cut, grammar):
    tokenizer = fitted(world, train, grammar)
    times = sorted({row[1] for row in rows if row[1]})
    limit = times[min(cut, len(times) - 1)] if times else START
    whole = tokenizer.encode(world.frame(rows))
    part = tokenizer.encode(world.frame([row for row in rows if row[1] is None or row[1] <= limit]))
    size = len(part.token)
    assert size == np.count_nonzero(whole.time <= int((limit - datetime(1970, 1, 1)).total_seconds() * 1e6))
    for name in ("token", "time", *tokenizer.columns):
        assert np.array_equal(
            whole.arrays()[name][:size], part.arrays()[name], equal_nan=whole.arrays()[name].dtype.kind == "f"
        ), name


@settings(max_examples=60, deadline=None)
@given(cohort(), st.integers(0, 5), st.booleans(), grammars)
def test_how_train_is_cut_into_shards_changes_nothing(world, train, cut, reverse, grammar):
    apart = [part for part in (train[:cut], train[cut:]) if part]
    one = fitted(world, [joined(train)], grammar)
    shards = [joined(part) for part in apart]
    two = fitted(world, shards[::-1] if reverse else shards, grammar)
    assert one.vocabulary.tokens == two.vocabulary.tokens
    assert (one.values, one.prefix) == (two.values, two.prefix)
    together = one.encode(world.frame(joined(train)))
    pieces = [two.encode(world.frame(rows)) for rows in shards]
    for name in ("token", "time", *one.columns):
        pieced = np.concatenate([piece.arrays()[name] for piece in pieces])
        assert np.array_equal(together.arrays()[name], pieced, equal_nan=pieced.dtype.kind == "f"), name


@settings(max_examples=60, deadline=None)
@given(cohort(), cohort(first=10), grammars)
def test_saved_and_loaded_it_encodes_the_same(world, tmp_path_factory, train, other, grammar):
    folder = tmp_path_factory.mktemp("state")
    tokenizer = fitted(world, train, grammar)
    tokenizer.save(folder)
    again = Visits(VisitsConfig())
    again.load(folder)
    assert again.settings == tokenizer.settings
    events = world.frame(joined(other))
    assert same(tokenizer.encode(events), again.encode(events))


@settings(max_examples=60, deadline=None)
@given(cohort(), cohort(first=10), grammars)
def test_a_subject_is_encoded_the_same_whoever_shares_its_shard(world, train, other, grammar):
    tokenizer = fitted(world, train, grammar)
    together = tokenizer.encode(world.frame(joined(other)))
    alone = [tokenizer.encode(world.frame(rows)) for rows in other if rows]
    for name in ("token", "time", "static_slot", "static_token", "static_time", *tokenizer.columns):
        pieced = np.concatenate([table.arrays()[name] for table in alone]) if alone else []
        assert np.array_equal(together.arrays()[name], pieced, equal_nan=True), name


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_columns_are_of_the_types_that_are_declared(world, grouping):
    rows = [(1, START, "A", 1.0), (1, START + timedelta(days=3), "A")]
    tokenizer = fitted(world, [rows], VisitsConfig(grouping=grouping, static="columns", entity=True, value=True))
    columns = tokenizer.encode(world.frame(rows)).columns
    assert {name: str(array.dtype) for name, array in columns.items()} == dict(tokenizer.columns)
