"""The tokenizer ``fused``: every rule on records small enough to read, and properties on random ones."""

import itertools
from datetime import datetime, timedelta

import numpy as np
import pytest
from ehr_core.constants import YEAR_US
from ehr_core.errors import ConfigError, DataError
from ehr_tokenize.fit.vocabularies import ids_of
from ehr_tokenize.grammars.fused import DELTA, EDGES, Fused
from ehr_tokenize.plugin import FusedConfig
from hypothesis import given, settings
from hypothesis import strategies as st

TRAIN = [
    (1, None, "GENDER//F"),
    (1, "1960-01-01", "MEDS_BIRTH"),
    (1, "2020-01-01 00:00", "ADMISSION//ED"),
    *[(1, "2020-01-01 00:01", "LAB//K", value) for value in (1.0, 2.0, 3.0, 4.0)],
    (1, "2020-01-01 00:01", "LAB//FLAT", 7.0),
    (1, "2020-01-01 00:01", "LAB//FLAT", 7.0),
    (1, "2020-01-01 00:01", "NOTE"),
    (1, "2020-01-01 01:01", "NOTE"),
    (1, "2020-01-01 01:01", "RARE"),
    (2, None, "GENDER//F"),
    (2, "2020-01-01 00:00", "NOTE"),
    (2, "2020-01-01 00:00", "LAB//K"),
]
HELD_OUT = [
    (7, None, "GENDER//F"),
    (7, "1980-01-01", "MEDS_BIRTH"),
    (7, "2020-01-01 00:00:00", "LAB//K", 1.0),
    (7, "2020-01-01 00:00:59", "LAB//K", 1.75),
    (7, "2020-01-01 00:01:59", "LAB//K", 2.5),
    (7, "2020-01-01 00:01:59", "LAB//K", 99.0),
    (7, "2020-01-01 00:01:59", "LAB//K", None),
    (7, "2020-01-01 00:01:59", "LAB//K", float("nan")),
    (7, "2020-01-01 00:01:59", "LAB//FLAT", 6.9),
    (7, "2020-01-01 00:01:59", "LAB//FLAT", 7.0),
    (7, "2020-01-01 00:01:59", "NOTE", 5.0),
    (7, "2020-01-01 00:01:59", "NEW", 5.0),
    (7, "2020-01-01 00:01:59", "LAB//K//value_[2.5,3.25)"),
    (7, "2020-01-01 00:01:59", "RARE"),
    (7, "2020-01-01 00:01:59", "ADMISSION//ED"),
    (8, None, "GENDER//F"),
]


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def fitted(world, rows=TRAIN, **options):
    tokenizer = Fused(FusedConfig(**{"min_count": 2, "num_quantiles": 4, **options}))
    tokenizer.fit([tokenizer.summarize(world.frame(rows))])
    return tokenizer


def decoded(world, tokenizer, rows):
    return world.Decoded(tokenizer.vocabulary, tokenizer.prefix, [tokenizer.encode(world.frame(rows))])


def test_the_end_is_not_visible_at_the_last_event(world):
    found = decoded(world, fitted(world), HELD_OUT)
    last = world.microseconds("2020-01-01 00:01:59")
    assert found.times(7)[-2:] == [last, last + 1]


def delta(days=0.0, **parts):
    years = timedelta(days=days, **parts).total_seconds() * 1e6 / YEAR_US
    inside = [n for n in DELTA.names if float(n.split("[")[1].split(",")[0]) <= years * (1 + 1e-5)]
    return inside[-1]


def test_every_rule_shows_in_the_tokens_of_a_small_record(world):
    found = decoded(world, fitted(world), HELD_OUT)
    assert found.tokens(7) == [
        *["TIMELINE//START", "MEDS_BIRTH"],
        *["TIMELINE//DELTA//years//value_[40,inf)", "LAB//K//value_[-inf,1.75)"],  # 40 calendar years
        *["TIMELINE//DELTA//years//value_[0,1.90129e-06)", "LAB//K//value_[1.75,2.5)"],  # 59 seconds; a break is above
        *["TIMELINE//DELTA//years//value_[1.90129e-06,9.50643e-06)", "LAB//K//value_[2.5,3.25)"],  # exactly a minute
        *["LAB//K//value_[3.25,inf)", "LAB//K", "LAB//K"],  # a missing number has no bin
        *["LAB//FLAT//value_[-inf,7)", "LAB//FLAT//value_[7,inf)"],
        *["NOTE", "[UNK]", "[UNK]", "[UNK]"],  # no numbers in train; unseen; named like a bin; below min_count
        *["ADMISSION//ED"],  # occurs once, but is kept
        *["TIMELINE//END"],
    ]
    assert found.tokens(8) == []
    assert found.prefix(7, "2020-02-01") == ["GENDER//F", "AGE_TENS//4", "AGE_UNITS//0"]


def test_the_deltas_are_23_bins_with_the_22_published_edges(world):
    names = ["1min", "5min", "10min", "30min", "1h", "3h", "6h", "12h", "1d", "2d", "4d", "7d", "14d", "30d", "60d"]
    names += ["120d", "1y", "2y", "5y", "10y", "20y", "40y"]
    seconds = {"min": 60, "h": 3600, "d": 86_400, "y": 365.25 * 86_400}
    expected = []
    for name in names:
        number = name.rstrip("minhdy")
        expected.append(int(number) * seconds[name[len(number) :]] * 1e6)
    assert list(EDGES) == expected
    assert len(DELTA.names) == 23
    index, count = DELTA.find(np.array([0, 1, *EDGES, 10**16]))
    assert index.tolist() == [-1, 0, *range(1, 23), 22]
    assert count.tolist() == [0, *[1] * 24]


def test_bins_can_be_named_by_their_number_and_birth_left_out(world):
    found = decoded(world, fitted(world, bins="quantile", birth_event=False, timeline_end=False), HELD_OUT)
    assert found.tokens(7)[:4] == ["TIMELINE//START", "LAB//K//Q1", delta(seconds=59), "LAB//K//Q2"]
    assert "TIMELINE//END" not in found.vocabulary.ids


def test_a_code_of_too_few_subjects_becomes_unk_and_is_counted(world):
    tokenizer = fitted(world, min_subjects=2, keep_codes=["ADMISSION"])
    count = {token.token: token.count for token in tokenizer.vocabulary.tokens}
    assert "LAB//FLAT" not in count
    assert "MEDS_BIRTH" not in count
    assert count["[UNK]"] == 4  # LAB//FLAT twice, RARE, MEDS_BIRTH
    assert (count["NOTE"], count["LAB//K"], count["ADMISSION//ED"]) == (3, 1, 1)
    assert count["LAB//K//value_[3.25,inf)"] == 1


def test_every_bin_knows_its_code_and_the_end_has_its_kind(world):
    tokens = {token.token: token for token in fitted(world).vocabulary.tokens}
    assert tokens["LAB//K//value_[-inf,1.75)"].codes == ("LAB//K",)
    assert tokens["TIMELINE//END"].kind == "end"
    assert {tokens[name].kind for name in DELTA.names} == {"interval"}


def test_edges_that_six_digits_do_not_tell_apart_are_written_out(world):
    values = [16_777_210.0 + step for step in range(4)]
    tokenizer = fitted(world, [(1, "2020-01-01", "A", value) for value in values])
    assert tokenizer.vocabulary.tokens[-1].token == "A//value_[16777212.25,inf)"


def test_a_misspelt_name_is_an_error_that_names_the_nearest_token(world):
    vocabulary = fitted(world).vocabulary
    assert ids_of(vocabulary, ["NOTE", "[UNK]"]) == [vocabulary["NOTE"], 3]
    with pytest.raises(ConfigError, match=r"no token 'ADMISSION//Ed'; the nearest .* is 'ADMISSION//ED'"):
        ids_of(vocabulary, ["ADMISSION//Ed"])


def test_settings_and_data_that_cannot_work_are_refused(world):
    for wrong, message in [({"bins": "x"}, "tokenizer.bins"), ({"min_subjects": 0}, "min_subjects")]:
        with pytest.raises(ConfigError, match=message):
            Fused(FusedConfig(**wrong))
    with pytest.raises(DataError, match="no event with a time"):
        fitted(world, [(1, None, "GENDER//F")])
    with pytest.raises(DataError, match="'TIMELINE//END' has the name of a token"):
        fitted(world, [(1, "2020-01-01", "TIMELINE//END")] * 2)


value = st.one_of(st.none(), st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))
event = st.tuples(st.integers(0, 5000), st.sampled_from(["A", "B", "C", "MEDS_BIRTH", "GENDER//F"]), value)


def record(subject, events):
    at, rows = datetime(2000, 1, 1), []
    for gap, code, number in events:
        at += timedelta(minutes=gap * (gap % 3))
        rows.append((subject, at, code, number))
    return rows


records = st.lists(event, max_size=12)


@settings(max_examples=80, deadline=None)
@given(records, records, st.integers(0, 12), st.booleans())
def test_a_prefix_of_a_record_gives_a_prefix_of_its_tokens(world, train, other, cut, end):
    tokenizer = fitted(world, [(99, "2020-01-01", "A"), *record(1, train)], timeline_end=end, value=True)
    rows = record(7, other)
    whole, part = tokenizer.encode(world.frame(rows)), tokenizer.encode(world.frame(rows[:cut]))
    size = len(part.token) - (1 if end and len(part.token) else 0)
    assert np.array_equal(whole.token[:size], part.token[:size])
    assert np.array_equal(whole.time[:size], part.time[:size])
    assert np.array_equal(whole.columns["value"][:size], part.columns["value"][:size], equal_nan=True)
    assert (np.diff(whole.time) >= 0).all()


@settings(max_examples=60, deadline=None)
@given(records, records)
def test_each_number_is_in_the_bin_that_its_token_names(world, train, other):
    tokenizer = fitted(world, [(99, "2020-01-01", "A", 0.0), *record(1, train)], min_count=1, value=True)
    table = tokenizer.encode(world.frame(record(7, other)))
    for index, number in zip(table.token, table.columns["value"], strict=True):
        name = tokenizer.vocabulary.tokens[index].token
        if "//value_" in name and "DELTA" not in name:
            low, high = map(float, name.split("[")[1][:-1].split(","))
            exact = sorted(b for b in tokenizer.breaks[name.split("//value_")[0]])
            low = max((b for b in exact if np.isclose(b, low, rtol=1e-5, atol=0)), default=low)
            assert number >= low - 1e-5 * abs(low)
            assert number < high + 1e-5 * abs(high)
        else:
            known = tokenizer.vocabulary.tokens[index].codes and name in tokenizer.breaks
            assert np.isnan(number) or not known


@settings(max_examples=40, deadline=None)
@given(st.lists(records, min_size=1, max_size=4), st.integers(0, 4))
def test_shards_and_saving_change_nothing(world, tmp_path_factory, cohort, cut):
    subjects = [[(99, "2020-01-01", "A", 1.0)], *(record(100 + i, events) for i, events in enumerate(cohort))]
    one, two = Fused(FusedConfig(min_count=1)), Fused(FusedConfig(min_count=1))
    one.fit([one.summarize(world.frame(joined(subjects)))])
    two.fit([two.summarize(world.frame(joined(part))) for part in (subjects[cut:], subjects[:cut])])
    assert one.vocabulary.tokens == two.vocabulary.tokens
    assert one.interval_estimates == two.interval_estimates
    folder = tmp_path_factory.mktemp("state")
    one.save(folder)
    two.load(folder)
    events = world.frame(joined(subjects))
    pairs = zip(one.encode(events).arrays().values(), two.encode(events).arrays().values(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
