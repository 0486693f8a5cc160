"""The tokenizer ``cehr``: visits and artificial time tokens, on records small enough to read and on random ones."""

import itertools
import json
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from ehr_cehr.day_tokens import DayTokens
from ehr_cehr.plugin import CehrConfig
from ehr_cehr.tokenizer import Cehr
from ehr_core.errors import ConfigError, DataError
from hypothesis import given, settings
from hypothesis import strategies as st

TRAIN = [
    (1, None, "GENDER//F"),
    (1, None, "RACE//WHITE"),
    (1, "1960-03-01", "MEDS_BIRTH"),
    (1, "2019-12-30 09:30", "HOSPITAL_ADMISSION//ED"),
    *[(1, "2019-12-30 10:00", "LAB//K", value) for value in (0.0, 2.0, 3.0, 4.0)],
    (1, "2020-01-02 08:00", "DX//A"),
    (1, "2020-01-02 08:00", "HOSPITAL_DISCHARGE//HOME"),
    (2, None, "GENDER//M"),
    (2, "2020-02-01 00:00", "DX//A"),
    (2, "2020-02-01 09:00", "DX//B"),
]
HELD_OUT = [
    (7, None, "GENDER//F"),
    (7, "1960-03-01", "MEDS_BIRTH"),
    (7, "2019-12-30 09:30", "DX//A"),  # in the instant of the admission, though above it
    (7, "2019-12-30 09:30", "HOSPITAL_ADMISSION//ED"),
    (7, "2019-12-30 11:10", "LAB//K", 0.0),
    (7, "2019-12-30 11:50", "LAB//K", None),
    (7, "2020-01-01 07:00", "LAB//K", 9.0),
    (7, "2020-01-02 08:00", "HOSPITAL_DISCHARGE//HOME"),
    (7, "2020-01-02 08:00", "DX//A"),  # in the instant of the discharge, though below it
    (7, "2020-01-02 15:00", "DX//A"),
    (7, "2020-01-02 16:00", "NEW"),
    (7, "2020-01-09 00:00", "DX//A"),
    (7, "2020-03-09 12:00", "DX//A"),
    (7, "2020-03-09 13:00", "HOSPITAL_ADMISSION//ED"),
    (7, "2020-03-10 13:00", "DX//A"),
    (7, "2021-03-10 13:00", "HOSPITAL_ADMISSION//ED"),
    (8, "2020-01-02 16:00", "DX//A"),
    (9, None, "GENDER//F"),
]


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def fitted(world, rows=TRAIN, **options):
    tokenizer = Cehr(CehrConfig(**{"min_count": 1, "num_quantiles": 4, **options}))
    tokenizer.fit([tokenizer.summarize(world.frame(rows))])
    return tokenizer


def decoded(world, tokenizer, rows=HELD_OUT):
    return world.Decoded(tokenizer.vocabulary, tokenizer.prefix, [tokenizer.encode(world.frame(rows))])


VISITS = [
    ["[VS]", "HOSPITAL_ADMISSION//ED", "DX//A", "LAB//K", "BIN:0", "LAB//K", "LAB//K", "BIN:3", "DX//A",
     "HOSPITAL_DISCHARGE//HOME", "[VE]"],
    ["W0", "[VS]", "VISIT//OUTPATIENT", "DX//A", "[UNK]", "[VE]"],
    ["W1", "[VS]", "VISIT//OUTPATIENT", "DX//A", "[VE]"],
    ["M2", "[VS]", "VISIT//OUTPATIENT", "DX//A", "[VE]"],  # 60 days
    ["W0", "[VS]", "HOSPITAL_ADMISSION//ED", "DX//A", "[VE]"],  # not discharged: over when the next one starts
    ["LT", "[VS]", "HOSPITAL_ADMISSION//ED"],  # 365 days from the last event; still open
]  # fmt: skip


def test_every_rule_shows_in_the_tokens_of_a_small_record(world):
    found = decoded(world, fitted(world))
    assert found.tokens(7) == [*joined(VISITS), "[END]"]
    assert found.tokens(8) == ["[VS]", "VISIT//OUTPATIENT", "DX//A", "[VE]", "[END]"]
    assert found.tokens(9) == []


def test_a_visit_ends_when_that_becomes_known(world):
    found = decoded(world, fitted(world))
    ends = [time for token, time in zip(found.tokens(7), found.times(7), strict=True) if token == "[VE]"]
    expected = ["2020-01-02 08:00", "2020-01-03", "2020-01-10", "2020-03-09 13:00", "2021-03-10 13:00"]
    assert ends == [world.microseconds(text) for text in expected]
    midnight = world.microseconds("2020-01-03")
    assert found.times(8) == [*[world.microseconds("2020-01-02 16:00")] * 3, midnight, midnight + 1]
    assert found.times(7)[-1] == world.microseconds("2021-03-10 13:00") + 1


def test_year_age_gender_and_race_stand_before_every_window_as_known_at_its_time(world):
    found = decoded(world, fitted(world))
    assert found.prefix(7, "2019-12-31") == ["year:2019", "age:59", "GENDER//F", "RACE//UNKNOWN"]
    assert found.prefix(7, "2020-01-02 08:00") == ["year:2020", "age:59", "GENDER//F", "RACE//UNKNOWN"]
    assert found.prefix(7, "2020-03-09 12:00")[1] == "age:60"
    assert found.prefix(7, "2021-03-10 13:00")[0] == "year:UNKNOWN"  # no event of train is in 2021
    assert found.prefix(7, "2000-01-01")[:2] == ["year:UNKNOWN", "age:UNKNOWN"]  # before the first event
    assert found.prefix(8, "2020-01-03") == ["year:2020", "age:UNKNOWN", "GENDER//UNKNOWN", "RACE//UNKNOWN"]


def test_days_and_hours_within_a_stay_have_tokens_when_asked_for(world):
    found = decoded(world, fitted(world, stay_time_tokens="day", stay_hours=True))
    stay = found.tokens(7)[: found.tokens(7).index("[VE]")]
    assert stay == [
        *["[VS]", "HOSPITAL_ADMISSION//ED", "i-H9", "DX//A"],
        *["i-H2", "LAB//K", "BIN:0", "LAB//K"],  # 9 to 11 o'clock; within one hour there is none
        *["i-D2", "i-H7", "LAB//K", "BIN:3"],
        *["i-D1", "i-H8", "DX//A", "HOSPITAL_DISCHARGE//HOME"],
    ]
    assert found.tokens(8) == ["[VS]", "VISIT//OUTPATIENT", "DX//A", "[VE]", "[END]"]  # not in visits outside


@pytest.mark.parametrize(
    ("function", "expected"),
    [("cehr_bert", ["W0", "W1", "M2", "W0", "LT"]), ("day", ["D0", "D7", "D60", "D0", "D365"]),
     ("week", ["W0", "W1", "W8", "W0", "W52"]), ("month", ["M0", "M0", "M2", "M0", "M12"]),
     ("mix", ["D0", "D7", "M2", "D0", "LT"]), ("mix_long", ["D0", "D7", "M2", "D0", "Q5"])],
)  # fmt: skip
def test_each_function_shows_between_visits(world, function, expected):
    tokens = decoded(world, fitted(world, time_tokens=function)).tokens(7)
    assert [before for before, token in pairwise(tokens) if token == "[VS]"] == expected


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("cehr_bert", {-1: "W-1", 0: "W0", 6: "W0", 7: "W1", 27: "W3", 28: "M0", 30: "M1", 359: "M11", 360: "LT"}),
        ("day", {0: "D0", 1079: "D1079", 1080: "LT"}),
        ("week", {0: "W0", 1079: "W154", 1080: "LT"}),
        ("month", {0: "M0", 29: "M0", 1079: "M35", 1080: "LT"}),
        ("mix", {7: "D7", 8: "W2", 30: "W5", 31: "M2", 360: "M12", 361: "LT"}),
        ("mix_long", {360: "M12", 361: "Q5", 720: "Q8", 721: "Y3", 1440: "Y4", 1441: "LT", 9999: "LT"}),
    ],
)
def test_each_function_has_its_published_borders(function, expected):
    tokens = DayTokens(function, "time_tokens")
    assert {day: tokens.names[tokens.find(np.array([day]))[0]] for day in expected} == expected


def test_a_time_token_has_years_months_and_days(world, tmp_path):
    tokenizer = fitted(world, time_tokens="mix_long", stay_time_tokens="day")
    tokenizer.save(tmp_path)
    parts = json.loads((tmp_path / "tokenizer.json").read_text())["state"]["interval_parts"]
    expected = {"D5": [0, 0, 5], "W5": [0, 1, 5], "M12": [0, 12, 0], "Q5": [1, 2, 25], "LT": [3, 0, 0]}
    assert {name: parts[name] for name in expected} == expected
    assert parts["i-D40"] == [0, 1, 10]
    assert set(parts) | {"W-1", "i-W-1"} == set(tokenizer.interval_estimates)


def test_codes_that_are_too_rare_become_unk_and_are_counted(world):
    tokenizer = fitted(world, min_count=2, min_subjects=2, keep_codes=[])
    count = {token.token: token.count for token in tokenizer.vocabulary.tokens}
    assert "LAB//K" not in count
    assert (count["[UNK]"], count["DX//A"]) == (7, 2)
    assert (count["[VS]"], count["[VE]"], count["VISIT//OUTPATIENT"]) == (2, 2, 1)


def test_tokens_have_their_kinds_and_zero_is_a_number(world):
    tokenizer = fitted(world, stay_hours=True)
    kind = {token.token: token.kind for token in tokenizer.vocabulary.tokens}
    kinds = {"[END]": "end", "[VE]": "visit", "W0": "interval", "LT": "interval", "i-H3": "hour", "age:40": "age"}
    assert {name: kind[name] for name in kinds} == kinds
    assert tokenizer.breaks["LAB//K"] == [1.5, 2.5, 3.25]


def test_interval_estimates_are_mean_days_in_train(world):
    rows = [(1, f"2020-01-{day:02}", "X") for day in (1, 2, 6, 20)]  # gaps of 1, 4 and 14 days
    tokenizer = fitted(world, rows)
    assert tokenizer.interval_estimates["W0"] == 2.5 * 86_400
    assert tokenizer.interval_estimates["W2"] == 14 * 86_400
    assert tokenizer.interval_estimates["W1"] == 10 * 86_400  # none in train: the middle of 7 to 13 days


def test_settings_and_data_that_cannot_work_are_refused(world):
    for wrong, message in [
        (
            {"time_tokens": "decade"},
            "tokenizer.time_tokens is 'decade'; allowed: cehr_bert, day, week, month, mix, mix_long",
        ),
        ({"stay_time_tokens": "x"}, "stay_time_tokens"),
        ({"min_subjects": 0}, "min_subjects"),
        ({"admission_codes": ["A"], "discharge_codes": ["A"]}, "in both"),
    ]:
        with pytest.raises(ConfigError, match=message):
            Cehr(CehrConfig(**wrong))
    with pytest.raises(DataError, match="no event with a time"):
        fitted(world, [(1, None, "GENDER//F")])


CODES = ["HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE", "DX", "LAB", "MEDS_BIRTH", "GENDER//F"]
value = st.one_of(st.none(), st.integers(-3, 3).map(float))
events = st.lists(st.tuples(st.sampled_from([0, 0, 30, 600, 1440, 20_000]), st.sampled_from(CODES), value), max_size=14)
options = st.fixed_dictionaries(
    {"stay_time_tokens": st.sampled_from(["none", "mix"]), "stay_hours": st.booleans(), "timeline_end": st.booleans()}
)


def record(subject, steps):
    at, rows = datetime(2000, 1, 1, 12), []
    for gap, code, number in steps:
        at += timedelta(minutes=gap)
        rows.append((subject, at, code, number))
    return rows


@settings(max_examples=120, deadline=None)
@given(events, events, options)
def test_tokens_up_to_a_time_do_not_depend_on_what_follows(world, train, other, chosen):
    tokenizer = fitted(world, [(99, "2020-01-01", "DX"), *record(1, train)], value=True, **chosen)
    rows, end = record(7, other), tokenizer.vocabulary.ids.get("[END]", -1)
    whole = tokenizer.encode(world.frame(rows))
    assert (np.diff(whole.time) >= 0).all()
    for cut in {row[1] for row in rows}:
        part = tokenizer.encode(world.frame([row for row in rows if row[1] <= cut]))
        limit = int((cut - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
        for name in ("token", "time"):  # whoever predicts leaves the token of kind "end" out
            seen = [(table.time <= limit) & (table.token != end) for table in (whole, part)]
            assert np.array_equal(getattr(whole, name)[seen[0]], getattr(part, name)[seen[1]])
        one, two = (table.static_token[table.static_time <= limit] for table in (whole, part))
        assert np.array_equal(one, two)


@settings(max_examples=60, deadline=None)
@given(events, events, options)
def test_visits_open_and_close_in_turn_and_hold_every_event(world, train, other, chosen):
    tokenizer = fitted(world, [(99, "2020-01-01", "DX"), *record(1, train)], **chosen)
    rows = record(7, other)
    names = decoded(world, tokenizer, rows).tokens(7) if rows else []
    depth = 0
    for name in names:
        depth += (name == "[VS]") - (name == "[VE]")
        assert depth in (0, 1)
        assert depth == 1 or name in ("[VE]", "[END]") or name[0] in "WMDL"
    wanted = sorted(row[2] for row in rows if row[2] not in ("MEDS_BIRTH", "GENDER//F"))
    assert sum(name in CODES or name == "[UNK]" for name in names) == len(wanted)


@settings(max_examples=40, deadline=None)
@given(st.lists(events, min_size=1, max_size=4), st.integers(0, 4), options)
def test_shards_and_saving_change_nothing(world, tmp_path_factory, cohort, cut, chosen):
    subjects = [[(99, "2020-01-01", "DX", 1.0)], *(record(100 + i, steps) for i, steps in enumerate(cohort))]
    one, two = (Cehr(CehrConfig(min_count=1, **chosen)) for _ in range(2))
    one.fit([one.summarize(world.frame(joined(subjects)))])
    two.fit([two.summarize(world.frame(joined(part))) for part in (subjects[cut:], subjects[:cut])])
    assert one.vocabulary.tokens == two.vocabulary.tokens
    assert (one.interval_estimates, one.prefix) == (two.interval_estimates, two.prefix)
    folder = tmp_path_factory.mktemp("state")
    one.save(folder)
    again = Cehr(CehrConfig())
    again.load(folder)
    shard = world.frame(joined(subjects))
    pairs = zip(one.encode(shard).arrays().values(), again.encode(shard).arrays().values(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_the_days_between_visits_come_back(world):
    tokenizer = fitted(world)
    ranges = tokenizer.intervals.days
    for days in range(0, 500, 7):
        at = datetime(2020, 1, 1, 12) + timedelta(days=days)
        found = decoded(world, tokenizer, [(7, "2020-01-01 09:00", "DX//A"), (7, at, "DX//A")])
        tokens = [token for token in found.tokens(7) if token in ranges]
        assert len(tokens) == (days > 0)
        for low, high in (ranges[token] for token in tokens):
            assert low <= days < (high or float("inf"))


def test_each_number_stands_at_its_code(world):
    train = [*[(1, "2020-01-01 00:00", "LAB//K", value) for value in (0.0, 2.0, 3.0, 4.0)], (1, "2020-01-01", "NOTE")]
    rows = [
        (7, "2020-01-01 00:00", "LAB//K", 0.0),  # zero is a number
        (7, "2020-01-01 01:00", "LAB//K", None),
        (7, "2020-01-03 01:00", "NOTE", 5.5),  # a code that had none in train: no bin, but the number is there
        (7, "2020-01-03 01:00", "NEW", 9.0),  # nobody knows what it measures: its number stays with [UNK]
    ]
    found = decoded(world, fitted(world, train, value=True), rows)
    numbers = [None if number != number else number for number in found.slice(7, "value").tolist()]
    assert list(zip(found.tokens(7), numbers, strict=True)) == [
        *[("[VS]", None), ("VISIT//OUTPATIENT", None), ("LAB//K", 0.0), ("BIN:0", None), ("LAB//K", None)],
        *[("[VE]", None), ("W0", None), ("[VS]", None), ("VISIT//OUTPATIENT", None), ("NOTE", 5.5), ("[UNK]", 9.0)],
        *[("[VE]", None), ("[END]", None)],
    ]


def test_years_of_a_new_site_grow(world):
    tokenizer, new = fitted(world), fitted(world).unfitted()
    new.fit([new.summarize(world.frame([(1, "2031-01-01", "DX//A"), (1, "2031-01-02", "DX//NEW")]))])
    size = len(tokenizer.vocabulary)
    tokenizer.grow(new)
    assert {token.token for token in tokenizer.vocabulary.tokens[size:]} >= {"year:2031"}
    assert decoded(world, tokenizer, [(7, "2031-01-02", "DX//A")]).prefix(7, "2031-01-03")[0] == "year:2031"
