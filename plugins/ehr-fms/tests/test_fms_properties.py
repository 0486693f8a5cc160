"""Properties of ``fms`` on random records."""

import itertools
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from ehr_core.formats.vocabulary import UNK
from ehr_fms.fms import Fms
from ehr_fms.plugin import FmsConfig
from hypothesis import given, settings
from hypothesis import strategies as st

SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
CODES = ["HOSPITAL_ADMISSION//A", "HOSPITAL_ADMISSION//B", "HOSPITAL_DISCHARGE", "DX", "LAB", "MEDS_BIRTH", "RACE//W"]
START = datetime(2000, 1, 1, 12)
SUFFIX = [{"prefix": "DSCG", "code": "HOSPITAL_DISCHARGE"}, {"prefix": "DX", "code": "DX"}]
value = st.one_of(st.none(), st.integers(-3, 3).map(float))
steps = st.lists(st.tuples(st.sampled_from([0, 0, 4, 30, 600, 3000]), st.sampled_from(CODES), value), max_size=16)
options = st.fixed_dictionaries({
    "fused": st.booleans(), "time_spacing": st.booleans(), "detect_discrete": st.booleans(),
    "max_length": st.sampled_from([None, 8, 11]), "max_event_days": st.sampled_from([None, 1.0]),
    "cut_hours": st.sampled_from([None, 24.0]), "quantizer": st.sampled_from(["deciles", "sigmas"]),
    "suffix": st.sampled_from([SUFFIX, SUFFIX[:1], []]), "value": st.booleans(),
})  # fmt: skip
TRAIN = [(99, START, "HOSPITAL_ADMISSION//A", None), (99, START, "LAB", 1.0), (99, START, "HOSPITAL_DISCHARGE", None)]


def frame(rows):
    return pl.DataFrame(rows, SCHEMA, orient="row")


def record(subject, found):
    at, rows = START, []
    for gap, code, number in found:
        at += timedelta(minutes=gap)
        rows.append((subject, at, code, number))
    return rows


def fitted(shards, chosen):
    tokenizer = Fms(FmsConfig(**chosen))
    tokenizer.fit([tokenizer.summarize(frame(rows)) for rows in shards])
    return tokenizer


def same(one, two):
    pairs = zip(one.arrays().values(), two.arrays().values(), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


@settings(max_examples=200, deadline=None)
@given(steps, steps, options)
def test_tokens_up_to_a_time_do_not_depend_on_what_follows(train, other, chosen):
    tokenizer = fitted([[*record(1, train), *TRAIN]], chosen)
    rows = record(7, other)
    whole = tokenizer.encode(frame(rows))
    assert (np.diff(whole.time) >= 0).all()
    for cut in {row[1] for row in rows}:
        part = tokenizer.encode(frame([row for row in rows if row[1] <= cut]))
        limit = int((cut - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
        for name in ("token", "time"):
            seen, alone = (getattr(table, name)[table.time <= limit] for table in (whole, part))
            assert np.array_equal(seen, alone), name
        assert np.array_equal(whole.columns["stay"][whole.time <= limit], part.columns["stay"][part.time <= limit])
        assert len(part.token) == (part.time <= limit).sum()  # nothing is stamped later than it is known


@settings(max_examples=100, deadline=None)
@given(steps, steps, options, st.randoms())
def test_the_order_of_rows_of_one_instant_changes_nothing(train, other, chosen, random):
    tokenizer = fitted([[*record(1, train), *TRAIN]], chosen)
    rows = record(7, other)
    mixed = []
    for _, group in itertools.groupby(rows, key=lambda row: row[1]):
        # What is known last of several prefix rows at once is decided by their order; no stay has two here.
        instant = [row for row in group if row[2] != "HOSPITAL_ADMISSION//B"]
        mixed.append((instant, random.sample(instant, len(instant))))
    one, two = ([row for pair in mixed for row in pair[side]] for side in (0, 1))
    if one:
        assert same(tokenizer.encode(frame(one)), tokenizer.encode(frame(two)))


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=1, max_size=4), st.integers(0, 4), options)
def test_shards_and_saving_change_nothing(tmp_path_factory, cohort, cut, chosen):
    subjects = [*(record(1 + i, found) for i, found in enumerate(cohort)), TRAIN]
    apart = [list(itertools.chain.from_iterable(part)) for part in (subjects[cut:], subjects[:cut])]
    together = list(itertools.chain.from_iterable(subjects))
    one, two = fitted([together], chosen), fitted(apart, chosen)
    assert one.vocabulary.tokens == two.vocabulary.tokens
    assert (one.breaks, one.prefix_breaks) == (two.breaks, two.prefix_breaks)
    assert one.interval_estimates == two.interval_estimates
    folder = tmp_path_factory.mktemp("state")
    one.save(folder)
    again = Fms(FmsConfig())
    again.load(folder)
    assert again.settings == one.settings
    assert same(one.encode(frame(together)), again.encode(frame(together)))
    assert UNK not in one.encode(frame(together)).token  # everything is in train


@settings(max_examples=100, deadline=None)
@given(steps, steps)
def test_a_missing_number_has_no_bin_and_every_other_has_its_own(train, other):
    tokenizer = fitted([[*record(1, train), *TRAIN]], {"fused": True, "value": True, "detect_discrete": True})
    rows = [*record(7, other), (8, START, "HOSPITAL_ADMISSION//A", None), (8, START, "LAB", None)]
    table = tokenizer.encode(frame(rows))
    for index, number in zip(table.token, table.columns["value"], strict=True):
        name = tokenizer.vocabulary.tokens[index].token
        if name.startswith("LAB_Q"):
            assert name == f"LAB_Q{np.digitize(number, tokenizer.breaks['LAB'])}"
        elif name == "LAB":
            assert np.isnan(number)
