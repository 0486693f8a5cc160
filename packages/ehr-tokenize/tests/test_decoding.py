"""decode(encode(x)): from tokens and what the tokenizer saves, the events come back: codes, bins of numbers, gaps."""

import itertools
from collections import Counter
from datetime import datetime, timedelta

import pytest
from ehr_core.formats.vocabulary import UNK
from ehr_tokenize import plugin
from ehr_tokenize.grammars.ethos import Ethos
from ehr_tokenize.grammars.fused import Fused
from hypothesis import given, settings
from hypothesis import strategies as st

START = datetime(2019, 12, 30, 9, 30)
CODES = ["HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "LAB//A", "LAB//B", "NOTE", "NEW"]
TRAIN = [(1, START + timedelta(days=d), c, v) for d in range(3) for c, v in (("LAB//A", d), ("LAB//B", 1.0))]
TRAIN += [(1, START + timedelta(days=3), code, None) for code in [*CODES[:2], "NOTE"]]
value = st.one_of(st.none(), st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))
minutes = st.one_of(st.integers(0, 400), st.integers(0, 2_000_000), st.sampled_from([0, 0, 5, 15, 259_200, 388_800]))
steps = st.lists(st.tuples(minutes, st.sampled_from(CODES), value), max_size=12)


def record(subject, found):
    at, rows = START, []
    for gap, code, number in found:
        at += timedelta(minutes=gap)
        rows.append((subject, at, code, number))
    return rows


def fitted(world, component, config, more, **options):
    tokenizer = component(config(min_count=1, num_quantiles=4, **options))
    tokenizer.fit([tokenizer.summarize(world.frame([*TRAIN, *record(2, more)]))])
    return tokenizer


def decode(tokenizer, table):
    """Per event of the one subject: time, code (None: unknown), its bin (None: none), and the time tokens before it."""
    events, before = [], []
    for index, time in zip(table.token.tolist(), table.time.tolist(), strict=True):
        token = tokenizer.vocabulary.tokens[index]
        if token.kind == "interval":
            before.append(token.token)
        elif token.kind == "quantile":
            events[-1][2] = token.token
        elif token.kind == "code" or index == UNK:
            events.append([time, token.codes[0] if token.codes else None, None, before])
            if token.token != events[-1][1] and index != UNK:  # code and bin in one token
                events[-1][2] = token.token
            before = []
    return events


def bounds(tokenizer, code, name):
    """Between what a number is whose bin has this name."""
    if "value_[" in name:
        low, high = name.rpartition("value_[")[2].rstrip(")").split(",")
        return float(low), float(high)
    number = int(name.rpartition("Q")[2]) - 1
    edges = [float("-inf"), *tokenizer.breaks[code], float("inf")]
    return edges[number], edges[number + 1]


def known(world, tokenizer, row):
    code = row[2]
    return code if code in {c for token in tokenizer.vocabulary.tokens for c in token.codes} else None


GRAMMARS = {
    "ethos": (Ethos, plugin.EthosConfig),
    "fused": (Fused, plugin.FusedConfig),
}


@pytest.mark.parametrize("name", GRAMMARS)
@settings(max_examples=80, deadline=None)
@given(train=steps, other=steps)
def test_the_codes_and_numbers_come_back(world, name, train, other):
    tokenizer = fitted(world, *GRAMMARS[name], train)
    rows = record(7, other)
    if not rows:
        return
    events = decode(tokenizer, tokenizer.encode(world.frame(rows)))
    expected = [(world.microseconds(row[1].isoformat()), known(world, tokenizer, row)) for row in rows]
    assert Counter(expected) == Counter((time, code) for time, code, *_ in events)
    assert expected == [(time, code) for time, code, *_ in events]
    for row, (_, code, its, _) in zip(rows, events, strict=True):
        if row[3] is None or code not in tokenizer.breaks:
            assert its is None
        else:
            low, high = bounds(tokenizer, code, its)
            slack = 1e-5 * abs(row[3])
            assert low - slack <= row[3] <= high + slack


@settings(max_examples=100, deadline=None)
@given(steps, steps)
def test_the_gaps_of_ethos_come_back_within_the_ranges_of_their_tokens(world, train, other):
    tokenizer = fitted(world, *GRAMMARS["ethos"], train)
    rows = record(7, other)
    events = decode(tokenizer, tokenizer.encode(world.frame(rows))) if rows else []
    ranges = tokenizer.interval_days()
    for (one, two), (*_, tokens) in zip(itertools.pairwise(rows), events[1:], strict=True):
        days = (two[1] - one[1]) / timedelta(days=1)
        if not tokens:
            assert days < 5 / 1440
        elif tokens[0] == "=6mt":
            assert set(tokens) == {"=6mt"}
            assert abs(days - 180 * len(tokens)) <= 90
        else:
            low, high = ranges[tokens[0]]
            assert len(tokens) == 1
            assert low <= days < high


@settings(max_examples=100, deadline=None)
@given(steps, steps)
def test_the_gaps_of_fused_come_back_one_token_an_instant(world, train, other):
    tokenizer = fitted(world, *GRAMMARS["fused"], train)
    rows = record(7, other)
    events = decode(tokenizer, tokenizer.encode(world.frame(rows))) if rows else []
    ranges = tokenizer.interval_days()
    for (one, two), (*_, tokens) in zip(itertools.pairwise(rows), events[1:], strict=True):
        days = (two[1] - one[1]) / timedelta(days=1)
        assert len(tokens) == (days > 0)
        for low, high in (ranges[token] for token in tokens):
            assert low <= days < (high or float("inf"))
