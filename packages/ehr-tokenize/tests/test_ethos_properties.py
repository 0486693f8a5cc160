"""Properties of ``ethos`` on random records, and agreement with a tokenizer written as plain loops over rows."""

import itertools
from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from ehr_core.formats.tokens import prefix_tokens
from ehr_core.formats.vocabulary import UNK
from ehr_tokenize.grammars.ethos import INTERVALS, Ethos
from ehr_tokenize.plugin import EthosConfig
from hypothesis import given, settings
from hypothesis import strategies as st

CODES = ["ADMIT", "LAB//A", "LAB//B", "NOTE", "RACE//W", "RACE//B", "MEDS_BIRTH"]
STATIC_CODES = ["RACE//W", "RACE//B", "DEMO//HEIGHT", "DEMO//SEX//F"]
START = datetime(2000, 1, 1)
value = st.one_of(st.none(), st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))
minutes = st.one_of(st.integers(0, 400), st.integers(0, 400_000), st.sampled_from([0, 5, 15, 259_200, 388_800]))


@st.composite
def record(draw, subject):
    static = draw(st.lists(st.tuples(st.sampled_from(STATIC_CODES), value), max_size=3))
    rows = [(subject, None, code, number) for code, number in static]
    at = START
    for gap, code, number in draw(st.lists(st.tuples(minutes, st.sampled_from(CODES), value), max_size=12)):
        at += timedelta(minutes=gap)
        rows.append((subject, at, code, number))
    return rows


@st.composite
def cohort(draw, first=1):
    subjects = range(first, first + draw(st.integers(1, 5)))
    return [draw(record(subject)) for subject in subjects] + [[(99, START, "ADMIT", None)]]


def fitted(world, shards, **options):
    tokenizer = Ethos(EthosConfig(**{"min_count": 2, "num_quantiles": 5, "timeline_end": False, **options}))
    tokenizer.fit([tokenizer.summarize(world.frame(rows)) for rows in shards])
    return tokenizer


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def strings(tokenizer, table):
    names = [tokenizer.vocabulary.tokens[i].token for i in table.token]
    return [names[a:b] for a, b in zip(table.offset[:-1], table.offset[1:], strict=True)]


def arrays_equal(one, two):
    pairs = zip(one.arrays().values(), two.arrays().values(), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def plain_timeline(train, rows, least, quantiles):
    """The tokens of one subject, by the rules of the manual, one row after the other."""

    def is_event(row):
        return row[1] is not None and row[2] != "MEDS_BIRTH" and not row[2].startswith("RACE")

    count = Counter(row[2] for row in train if is_event(row))
    numbers: dict[str, list[float]] = {}
    for row in train:
        if is_event(row) and row[3] is not None:
            numbers.setdefault(row[2], []).append(float(np.float32(row[3])))
    found, before = [], None
    for row in filter(is_event, rows):
        gap = (row[1] - before).total_seconds() * 1e6 if before is not None else 0
        fitting = [name for name, bound in INTERVALS.items() if bound <= gap]
        if fitting:
            found += [fitting[-1]] * (int(gap / INTERVALS["=6mt"] + 0.5) if fitting[-1] == "=6mt" else 1)
        before = row[1]
        found.append(row[2] if count[row[2]] >= least else "[UNK]")
        if row[3] is not None and row[2] in numbers and count[row[2]] >= least:
            breaks = sorted({np.quantile(numbers[row[2]], q / quantiles) for q in range(1, quantiles)})
            value = float(np.float32(row[3]))
            # A number within rounding of an interpolated break may fall on either side of it.
            near = any(np.isclose(b, value, rtol=1e-12, atol=0) and b != value for b in breaks)
            found.append(None if near else f"Q{1 + sum(b < value for b in breaks)}")
    return found


@settings(max_examples=150, deadline=None)
@given(cohort(), cohort(first=10))
def test_timelines_equal_those_of_plain_loops(world, train, other):
    tokenizer = fitted(world, train)
    for rows in train + other:
        table = tokenizer.encode(world.frame(rows))
        expected = plain_timeline(joined(train), rows, 2, 5)
        found = strings(tokenizer, table)[0] if rows else []
        assert len(found) == len(expected)
        assert [e if e is None else f for e, f in zip(expected, found, strict=True)] == expected


@settings(max_examples=100, deadline=None)
@given(cohort(), record(subject=7), st.integers(0, 12))
def test_a_prefix_of_a_record_gives_a_prefix_of_its_tokens(world, train, rows, cut):
    tokenizer = fitted(world, train, value=True)
    whole, part = tokenizer.encode(world.frame(rows)), tokenizer.encode(world.frame(rows[:cut]))
    size = len(part.token)
    assert np.array_equal(whole.token[:size], part.token)
    assert np.array_equal(whole.time[:size], part.time)
    assert np.array_equal(whole.columns["value"][:size], part.columns["value"], equal_nan=True)


@settings(max_examples=100, deadline=None)
@given(cohort(), record(subject=7), st.integers(0, 400_000))
def test_the_prefix_at_a_time_does_not_depend_on_later_rows(world, train, rows, minute):
    tokenizer = fitted(world, train)
    cut = START + timedelta(minutes=minute)
    until = [row for row in rows if row[1] is None or row[1] <= cut]
    time = int((cut - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
    if until:
        one, two = (prefix_tokens(tokenizer.prefix, tokenizer.encode(world.frame(r)), 0, time) for r in (rows, until))
        assert np.array_equal(one, two)


@settings(max_examples=60, deadline=None)
@given(cohort(), st.integers(0, 5), st.booleans())
def test_how_train_is_cut_into_shards_changes_nothing(world, train, cut, reverse):
    apart = [joined(train[:cut]), joined(train[cut:])]
    one = fitted(world, [joined(train)], timeline_end=True)
    two = fitted(world, apart[::-1] if reverse else apart, timeline_end=True)
    assert one.vocabulary.tokens == two.vocabulary.tokens
    assert (one.breaks, one.static_breaks, one.prefix) == (two.breaks, two.static_breaks, two.prefix)
    assert one.interval_estimates == two.interval_estimates
    together = strings(one, one.encode(world.frame(joined(train))))
    assert together == joined(strings(two, two.encode(world.frame(rows))) for rows in apart if rows)


@settings(max_examples=40, deadline=None)
@given(cohort(), cohort(first=10))
def test_saved_and_loaded_it_encodes_the_same(world, tmp_path_factory, train, other):
    folder = tmp_path_factory.mktemp("state")
    tokenizer = fitted(world, train, value=True)
    tokenizer.save(folder)
    again = Ethos(EthosConfig())
    again.load(folder)
    assert again.settings == tokenizer.settings
    events = world.frame(joined(other))
    assert arrays_equal(tokenizer.encode(events), again.encode(events))


def test_more_than_65536_tokens_are_stored_as_uint32(world):
    codes = [f"CODE//{i}" for i in range(70_000)]
    events = pl.DataFrame({"subject_id": 1, "time": START, "code": codes, "numeric_value": None})
    events = events.cast({"subject_id": pl.Int64, "time": pl.Datetime("us"), "numeric_value": pl.Float32})
    tokenizer = Ethos(EthosConfig(min_count=1))
    tokenizer.fit([tokenizer.summarize(events)])
    table = tokenizer.encode(events)
    assert table.token.dtype == np.uint32
    assert [tokenizer.vocabulary.tokens[i].token for i in table.token[:-1]] == codes
    assert UNK not in table.token
