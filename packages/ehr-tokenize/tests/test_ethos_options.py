"""The options of ``ethos``: styles of numbers, most frequent codes, equal bins, static values; alone and together."""

import itertools
import json
from datetime import datetime, timedelta

import numpy as np
import pytest
from ehr_core.errors import ConfigError
from ehr_core.formats.tokens import prefix_tokens
from ehr_core.formats.vocabulary import UNK
from ehr_tokenize.grammars.ethos import Ethos
from ehr_tokenize.plugin import EthosConfig
from ehr_tokenize.prepare.settings import PrepareConfig, RuleConfig
from hypothesis import given, settings
from hypothesis import strategies as st

START = datetime(2000, 1, 1)


def fitted(world, *shards, **options):
    tokenizer = Ethos(EthosConfig(**{"min_count": 1, "num_quantiles": 4, "timeline_end": False, **options}))
    tokenizer.fit([tokenizer.summarize(world.frame(rows)) for rows in shards])
    return tokenizer


def tokens(tokenizer, world, rows):
    return [tokenizer.vocabulary.tokens[i].token for i in tokenizer.encode(world.frame(rows)).token]


def rows_of(*events, subject=1):
    return [(subject, "2020-01-01", code, *value) for code, *value in events]


FOUR = [("LAB//K", float(value)) for value in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("shared", ["LAB//K", "Q1", "LAB//K", "[UNK]"]),
        ("group", ["LAB//K", "LAB//Q1", "LAB//K", "[UNK]"]),
        ("fused", ["LAB//K//Q1", "LAB//K", "[UNK]"]),
        ("alone", ["Q1", "[UNK]"]),  # alone and without a number: nothing is said
    ],
)
def test_styles_of_numbers(world, style, expected):
    tokenizer = fitted(world, rows_of(*FOUR), numbers={"LAB//": style})
    assert tokens(tokenizer, world, rows_of(("LAB//K", 0.0), ("LAB//K", None), ("LAB//NEW", 3.0))) == expected


def test_the_longest_start_of_a_code_chooses_its_style_and_counts_are_exact(world):
    other = [("LAB//NA", float(value)) for value in (1, 2)]
    tokenizer = fitted(
        world, rows_of(*FOUR, *other, ("DOSE", 5.0)), num_quantiles=2, numbers={"LAB//": "group", "LAB//NA": "fused"}
    )
    count = {token.token: token.count for token in tokenizer.vocabulary.tokens}
    expected = {
        "Q1": 1,
        "Q2": 0,
        "LAB//Q1": 2,
        "LAB//Q2": 2,
        "LAB//K": 4,
        "LAB//NA//Q1": 1,
        "LAB//NA//Q2": 1,
        "LAB//NA": 0,
    }
    assert {name: count.get(name) for name in expected} == expected
    assert tokens(tokenizer, world, rows_of(("LAB//NA", 9.0))) == ["LAB//NA//Q2"]


def test_the_column_value_follows_the_number_to_the_token_that_shows_it(world):
    tokenizer = fitted(world, rows_of(*FOUR, ("D", 1.0)), value=True, numbers={"LAB//": "fused"})
    found = tokenizer.encode(world.frame(rows_of(("LAB//K", 3.0), ("D", 1.0)))).columns["value"]
    assert found.tolist()[:2] == [3.0, 1.0]
    assert np.isnan(found[2])


def test_bins_of_one_width(world):
    tokenizer = fitted(world, rows_of(("SOFA", 1.0)), equal_width={"SOFA": [0, 8]})
    found = tokens(tokenizer, world, rows_of(*(("SOFA", float(v)) for v in (-3, 0, 2, 2.5, 6.5, 99))))
    assert found[1::2] == ["Q1", "Q1", "Q1", "Q2", "Q4", "Q4"]


@pytest.mark.parametrize("style", ["shared", "group", "fused"])
def test_a_rare_code_with_bins_of_one_width_is_unk_without_a_quantile(world, style):
    rows = rows_of(*(("SOFA", value) for value in (0.0, 3.0, 24.0)), *[("A",)] * 5)
    tokenizer = fitted(world, rows, min_count=5, equal_width={"SOFA": [0, 24]}, numbers={"SOFA": style})
    assert tokens(tokenizer, world, rows) == ["[UNK]"] * 3 + ["A"] * 5
    assert tokenizer.vocabulary.tokens[UNK].count == 3


@pytest.mark.parametrize("style", ["shared", "fused"])
def test_bins_of_one_width_are_the_same_in_prefix_and_timeline(world, style):
    values = (20.0, 20.0, 20.0, 25.0, 25.0, 30.0, 95.0)
    rows = rows_of(*(("BMI", value) for value in values))
    tokenizer = fitted(
        world, rows, num_quantiles=10, static_too=["BMI"], numbers={"BMI": style}, equal_width={"BMI": [10, 100]}
    )
    table = tokenizer.encode(world.frame(rows))
    names = [token.token for token in tokenizer.vocabulary.tokens]
    timeline = [names[i].rpartition("//")[2] for i in table.token if names[i].rpartition("//")[2] != "BMI"]
    assert timeline == ["Q2", "Q2", "Q2", "Q2", "Q2", "Q3", "Q10"]
    assert [names[i] for i in table.static_token] == ["BMI//Q2", "BMI//Q3", "BMI//Q10"]  # repetitions change nothing


def test_a_static_value_may_stay_in_the_timeline_with_one_meaning_for_its_number(world):
    train = [
        (subject, "2020-01-01 00:00", "BMI", value) for subject, value in enumerate((20.0, 22.0, 30.0, 40.0), start=1)
    ]
    train.append((5, None, "BMI", 100.0))  # counts for the breaks of both
    tokenizer = fitted(world, train, static_too=["BMI"], numbers={"BMI": "fused"})
    rows = [(7, "2020-01-01 00:00", "BMI", 28.0), (7, "2021-01-01 00:00", "BMI", 50.0)]
    table = tokenizer.encode(world.frame(rows))
    decoded = world.Decoded(tokenizer.vocabulary, tokenizer.prefix, [table])
    assert [t for t in decoded.tokens(7) if "mt" not in t] == ["BMI//Q2", "BMI//Q4"]
    assert decoded.prefix(7, "2020-06-01") == ["BMI//Q2"]
    assert decoded.prefix(7, "2021-01-01") == ["BMI//Q4"]
    assert decoded.prefix(7, "2019-01-01") == ["BMI//UNKNOWN"]


def test_a_weak_static_value_does_not_replace_a_stronger_one(world):
    values = ["UNKNOWN", "OTHER", "WHITE", "OTHER", "BLACK", "UNKNOWN"]
    rows = [(s, f"20{year}-01-01", f"RACE//{value}") for s in (1, 2) for year, value in enumerate(values, start=20)]
    rows.insert(0, (1, "2019-01-01", "ADMIT"))
    tokenizer = fitted(world, rows, weak_static=["RACE//UNKNOWN", "RACE//OTHER", "RACE//ABSENT"])
    decoded = world.Decoded(tokenizer.vocabulary, tokenizer.prefix, [tokenizer.encode(world.frame(rows))])
    for subject in (1, 2):
        found = [decoded.prefix(subject, f"20{year}-06-01")[0] for year in range(20, 26)]
        assert found == [f"RACE//{v}" for v in ("UNKNOWN", "OTHER", "WHITE", "WHITE", "BLACK", "BLACK")]


def test_of_equally_frequent_codes_the_first_by_name_stay(world):
    tokenizer = fitted(world, rows_of(("L//C",), ("L//B",), ("L//A",), ("X",)), top_codes={"L//": 2})
    assert tokenizer.dropped == ["L//C"]
    assert tokens(tokenizer, world, rows_of(("L//C",), ("L//A",), ("L//NEW",))) == ["L//A", "[UNK]"]


def test_options_out_of_range_are_refused():
    for options, message in [
        ({"numbers": {"LAB": "both"}}, "numbers.LAB is 'both'; allowed: shared, group, fused, alone"),
        ({"equal_width": {"A": [1]}}, r"equal_width.A is \[1\]; expected \[low, high\]"),
        ({"top_codes": {"A": -1}}, "top_codes.A is -1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Ethos(EthosConfig(**options))


# -- all together, on random records

ALL = {
    "numbers": {"LAB//": "group", "BMI": "fused", "PRESSURE//S": "alone", "PRESSURE//D": "alone"},
    "top_codes": {"LAB//": 2},
    "equal_width": {"SCORE": [0, 8]},
    "static_codes": ["RACE"],
    "static_too": ["BMI"],
    "weak_static": ["RACE//UNKNOWN"],
    "value": True,
    "prepare": PrepareConfig(
        delay_hours={"SCORE": 24},
        end_of_day=["BMI"],
        order=["ADMIT", "*", "RACE"],
        rules=[
            RuleConfig(codes=["BP"], numeric=True, to=["PRESSURE", "PRESSURE//S = {value}", "PRESSURE//D = 7"]),
            RuleConfig(codes=["DX//"], to=["ICD//{1|icd10cm}"]),
        ],
    ),
}
CODES = [
    "ADMIT",
    "LAB//A",
    "LAB//B",
    "LAB//C",
    "BMI",
    "BP",
    "SCORE",
    "DX//E1165",
    "DX//I10",
    "RACE//W",
    "RACE//UNKNOWN",
]
number = st.one_of(st.none(), st.integers(-2, 9).map(float))


@st.composite
def cohort(draw, first=1):
    found = []
    for subject in range(first, first + draw(st.integers(1, 4))):
        at, rows = START, []
        for minutes in draw(st.lists(st.one_of(st.just(0), st.integers(0, 3000)), max_size=12)):
            at += timedelta(minutes=minutes)
            rows.append((subject, at, draw(st.sampled_from(CODES)), draw(number)))
        found.append(rows)
    return [*found, [(first + 90, START, "ADMIT", None)]]


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def same(one, two):
    pairs = zip(one.arrays().values(), two.arrays().values(), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


@settings(max_examples=100, deadline=None)
@given(cohort(), cohort(first=200), st.integers(0, 30_000))
def test_tokens_and_prefix_at_a_time_do_not_depend_on_what_comes_after(world, train, other, minute):
    tokenizer = fitted(world, joined(train), **ALL)
    cut = START + timedelta(minutes=minute)
    limit = int((cut - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
    for rows in other:
        until = [row for row in rows if row[1] <= cut]
        if not until:
            continue
        whole, part = tokenizer.encode(world.frame(rows)), tokenizer.encode(world.frame(until))
        assert np.array_equal(whole.token[whole.time <= limit], part.token[part.time <= limit])
        assert np.array_equal(whole.time[whole.time <= limit], part.time[part.time <= limit])
        prefixes = [prefix_tokens(tokenizer.prefix, table, 0, limit) for table in (whole, part)]
        assert np.array_equal(*prefixes)


@settings(max_examples=60, deadline=None)
@given(cohort(), st.integers(0, 5), st.booleans())
def test_how_train_is_cut_into_shards_changes_nothing(world, train, cut, reverse):
    apart = [joined(train[:cut]), joined(train[cut:])]
    one = fitted(world, joined(train), **ALL, timeline_end=True)
    two = fitted(world, *(apart[::-1] if reverse else apart), **ALL, timeline_end=True)
    assert one.vocabulary.tokens == two.vocabulary.tokens
    assert (one.breaks, one.static_breaks, one.dropped) == (two.breaks, two.static_breaks, two.dropped)
    assert one.interval_estimates == two.interval_estimates


@settings(max_examples=60, deadline=None)
@given(cohort())
def test_the_counts_of_the_vocabulary_are_those_of_the_encoded_train_split(world, train):
    tokenizer = fitted(world, joined(train), **ALL, timeline_end=True)
    table = tokenizer.encode(world.frame(joined(train)))
    found = np.bincount(table.token, minlength=len(tokenizer.vocabulary))
    for index, token in enumerate(tokenizer.vocabulary.tokens):
        twice = token.token.startswith("BMI")  # counts in the prefix as well
        if index == UNK or (token.kind in ("quantile", "interval", "end", "code") and not twice):
            assert found[index] == token.count, token
    assert found[UNK] == 0


@settings(max_examples=40, deadline=None)
@given(cohort(), cohort(first=200))
def test_saved_and_loaded_it_encodes_the_same(world, tmp_path_factory, train, other):
    folder = tmp_path_factory.mktemp("state")
    tokenizer = fitted(world, joined(train), **ALL)
    tokenizer.save(folder)
    again = Ethos(EthosConfig())
    again.load(folder)
    assert again.settings == tokenizer.settings
    assert json.loads((folder / "tokenizer.json").read_text())["name"] == "ethos"
    events = world.frame(joined(other))
    assert same(tokenizer.encode(events), again.encode(events))
