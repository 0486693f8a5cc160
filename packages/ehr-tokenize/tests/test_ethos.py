"""The tokenizer ``ethos``: every rule on records small enough to read, token by token."""

import json
from datetime import datetime, timedelta

import numpy as np
import pytest
from ehr_core.cli import run
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.tokens import NO_TIME
from ehr_core.testing.corruption import reseal
from ehr_tokenize.grammars.ethos import INTERVALS, Ethos
from ehr_tokenize.plugin import EthosConfig

TRAIN = [
    (1, None, "DEMO//HEIGHT", 160.0),
    (1, None, "DEMO//SEX//F"),
    (1, "1950-01-01", "MEDS_BIRTH"),
    (1, "2020-01-01 00:00", "ADMIT"),
    (1, "2020-01-01 00:04", "LAB//K", 1.0),
    (1, "2020-01-01 00:09", "LAB//K", 2.0),
    (1, "2020-01-01 00:09", "LAB//GLU", 7.0),
    (1, "2020-01-01 02:09", "MARITAL_STATUS//SINGLE"),
    (1, "2020-01-03 00:09", "DISCHARGE"),
    (1, "2021-04-07 00:09", "ADMIT"),
    (2, None, "DEMO//SEX//M"),
    (2, None, "DEMO//HEIGHT", 180.0),
    (2, "2020-01-01 00:00", "MARITAL_STATUS//SINGLE"),
    (2, "2020-01-01 00:00", "ADMIT"),
    (2, "2020-01-01 00:00", "LAB//K", 4.0),
    (2, "2020-01-01 00:00", "LAB//K", 3.0),
    (2, "2020-01-01 00:00", "LAB//K", None),
    (2, "2020-01-01 00:00", "LAB//GLU", 7.0),
    (2, "2020-01-02 00:00", "MARITAL_STATUS//MARRIED"),
    (2, "2020-01-02 00:00", "RARE"),
    (2, "2020-01-02 00:00", "DISCHARGE"),
]
TRAIN_2 = [
    (3, None, "DEMO//SEX//M"),
    (3, None, "DEMO//SEX//F"),
    (3, "2020-01-01 00:00", "LAB//K", 5.0),
    (3, "2020-01-01 00:00", "LAB//GLU", 7.0),
    (3, "2020-01-01 00:00", "NOTE"),
    (3, "2020-01-01 00:00", "NOTE"),
    (3, "2020-01-02 00:00", "MARITAL_STATUS//MARRIED"),
]
HELD_OUT = [
    (7, None, "DEMO//HEIGHT", 170.5),
    (7, None, "DEMO//SEX//X"),
    (7, None, "DEMO//NEVER//SEEN"),
    (7, "1990-06-01", "MEDS_BIRTH"),
    (7, "2020-01-01 00:00", "ADMIT"),
    (7, "2020-01-01 00:00", "LAB//K", float("inf")),
    (7, "2020-01-01 00:00", "NEW", 3.0),
    (7, "2020-01-01 12:00", "NOTE", 9.0),
    (7, "2020-01-01 12:00", "LAB//K", 2.5),
    (7, "2020-01-01 12:00", "LAB//GLU", 8.0),
    (8, None, "DEMO//HEIGHT", None),
]


@pytest.fixture
def store(world, tmp_path):
    def make(*overrides, held_out=HELD_OUT):
        meds, number = tmp_path / f"meds{len(list(tmp_path.iterdir()))}", len(list(tmp_path.iterdir()))
        world.write_meds(meds, train=[TRAIN, TRAIN_2], held_out=[held_out])
        settings = ["tokenizer.num_quantiles=4", "tokenizer.min_count=2", *overrides]
        run(
            "ehr-tokenize",
            "tokenize",
            ["source=meds", f"source.path={meds}", f"output={tmp_path}/s{number}", *settings],
        )
        return tmp_path / f"s{number}"

    return make


def test_every_rule_shows_in_the_tokens_of_a_small_record(store, world):
    found = world.Decoded.store(store())
    assert found.tokens(1) == [
        *["ADMIT"],
        *["LAB//K", "Q1"],  # 4 minutes on: no interval token
        *["5m-15m", "LAB//K", "Q1", "LAB//GLU", "Q1"],  # a number equal to a break is not above it
        *["2d-4d", "DISCHARGE"],  # exactly 2 days; MARITAL_STATUS between is no event
        *["=6mt", "=6mt", "=6mt", "ADMIT"],  # 460 days are 2.56 times 180
        *["TIMELINE_END"],
    ]
    assert found.tokens(2) == [
        *["ADMIT", "LAB//K", "Q3", "LAB//K", "Q2", "LAB//K", "LAB//GLU", "Q1"],  # one instant: order of the rows
        *["1d-2d", "[UNK]", "DISCHARGE"],  # RARE occurs once
        *["TIMELINE_END"],
    ]
    assert found.tokens(3) == ["LAB//K", "Q4", "LAB//GLU", "Q1", "NOTE", "NOTE", "TIMELINE_END"]
    assert found.tokens(7) == [
        *["ADMIT", "LAB//K", "[UNK]"],  # an infinite number and a number of an unseen code have no quantile
        *["12h-18h", "NOTE"],  # NOTE had no number in train
        *["LAB//K", "Q2", "LAB//GLU", "Q2", "TIMELINE_END"],  # all of train's GLU is 7, and 8 is above
    ]
    assert found.tokens(8) == []


BEGINNINGS = {
    "5m-15m": 5, "15m-45m": 15, "45m-1h15m": 45, "1h15m-2h": 75, "2h-3h": 120, "3h-5h": 180, "5h-8h": 300,
    "8h-12h": 480, "12h-18h": 720, "18h-1d": 1080, "1d-2d": 1440, "2d-4d": 2880, "4d-7d": 5760, "7d-12d": 10_080,
    "12d-20d": 17_280, "20d-30d": 28_800, "30d-2mt": 43_200, "2mt-6mt": 86_400, "=6mt": 259_200,
}  # fmt: skip
"""Minutes, as published."""


def test_each_of_the_19_interval_tokens_begins_where_published(world):
    tokenizer = Ethos(EthosConfig(min_count=1, timeline_end=False))
    tokenizer.fit([tokenizer.summarize(world.frame([(1, "2020-01-01", "A")]))])
    start, below = datetime(2000, 1, 1), None
    for name, minutes in BEGINNINGS.items():
        for minute, expected in ((minutes, name), (minutes - 1, below)):
            rows = [(1, start, "A"), (1, start + timedelta(minutes=minute), "A")]
            found = world.Decoded(tokenizer.vocabulary, tokenizer.prefix, [tokenizer.encode(world.frame(rows))])
            assert found.tokens(1) == ["A", *([expected] if expected else []), "A"]
        below = name
    assert len(BEGINNINGS) == 19


@pytest.mark.parametrize(("days", "tokens"), [(269, 1), (270, 2), (449, 2), (450, 3), (36_500, 203)])
def test_half_years_repeat_as_often_as_they_fit_rounded(world, days, tokens):
    tokenizer = Ethos(EthosConfig(min_count=1, timeline_end=False))
    tokenizer.fit([tokenizer.summarize(world.frame([(1, "2020-01-01", "A")]))])
    rows = [(1, datetime(1900, 1, 1), "A"), (1, datetime(1900, 1, 1) + timedelta(days=days), "A")]
    found = world.Decoded(tokenizer.vocabulary, tokenizer.prefix, [tokenizer.encode(world.frame(rows))])
    assert found.tokens(1) == ["A", *["=6mt"] * tokens, "A"]


def test_tokens_carry_the_time_of_their_event(store, world):
    found = world.Decoded.store(store())
    at = [world.microseconds(f"2020-01-0{text}") for text in ("1 00:00", "2 00:00")]
    assert found.times(2) == [at[0]] * 8 + [at[1]] * 3 + [at[1] + 1]
    assert found.times(1)[3:6] == [world.microseconds("2020-01-01 00:09")] * 3


def test_timeline_end_is_not_visible_at_the_last_event(store, world):
    found = world.Decoded.store(store())
    last = world.microseconds("2020-01-02 00:00")
    visible = [token for token, time in zip(found.tokens(2), found.times(2), strict=True) if time <= last]
    assert visible[-1] == "DISCHARGE"
    assert found.tokens(2)[-1] == "TIMELINE_END"


def test_timeline_end_can_be_left_out(store, world):
    found = world.Decoded.store(store("tokenizer.timeline_end=false"))
    assert found.tokens(2)[-1] == "DISCHARGE"
    assert "TIMELINE_END" not in found.vocabulary.ids


def test_the_static_prefix_shows_what_is_known_at_a_time(store, world):
    found = world.Decoded.store(store())
    # The birthday counts, although 70 calendar years are a little less than 70 times 365.25 days.
    before = ["DEMO//HEIGHT//Q1", "DEMO//SEX//F", "MARITAL_STATUS//UNKNOWN", "AGE_TENS//7", "AGE_UNITS//0"]
    assert found.prefix(1, "2020-01-01 02:08") == before
    assert found.prefix(1, "2020-01-01 02:09")[2] == "MARITAL_STATUS//SINGLE"
    assert found.prefix(2, "2020-01-01 12:00")[2] == "MARITAL_STATUS//SINGLE"
    assert found.prefix(2, "2020-01-02 00:00") == [
        *["DEMO//HEIGHT//Q4", "DEMO//SEX//M", "MARITAL_STATUS//MARRIED", "AGE//UNKNOWN", "AGE//UNKNOWN"]
    ]
    assert found.prefix(3, "2020-01-01")[:2] == ["DEMO//HEIGHT//UNKNOWN", "DEMO//SEX//F"]  # the later row wins
    assert found.prefix(7, "2020-05-31") == [
        *["DEMO//HEIGHT//Q3", "DEMO//SEX//UNKNOWN", "MARITAL_STATUS//UNKNOWN", "AGE_TENS//2", "AGE_UNITS//9"]
    ]
    assert found.prefix(7, "2020-06-02")[-2:] == ["AGE_TENS//3", "AGE_UNITS//0"]
    assert found.prefix(8, "2020-01-01")[0] == "DEMO//HEIGHT//UNKNOWN"  # a missing number is no quantile


def test_static_rows_are_stored_by_subject_slot_and_time_without_repeats(store, world):
    rows = [
        (7, None, "DEMO//SEX//F"),
        (7, None, "DEMO//HEIGHT", 170.5),
        *[(7, f"202{year}-01-01", "MARITAL_STATUS//SINGLE") for year in range(3)],
        (7, "2023-01-01", "MARITAL_STATUS//MARRIED"),
        (8, "2024-01-01", "MARITAL_STATUS//MARRIED"),
    ]
    found = world.Decoded.store(store(held_out=rows))
    table = next(table for table in found.tables if 7 in table.subject_id)
    names = [found.vocabulary.tokens[i].token for i in table.static_token]
    assert names == [
        *["DEMO//HEIGHT//Q3", "DEMO//SEX//F", "MARITAL_STATUS//SINGLE", "MARITAL_STATUS//MARRIED"],
        *["MARITAL_STATUS//MARRIED"],
    ]
    assert table.static_slot.tolist() == [0, 1, 2, 2, 2]
    assert table.static_offset.tolist() == [0, 4, 5]
    times = [world.microseconds(f"{year}-01-01") for year in (2020, 2023, 2024)]
    assert table.static_time.tolist() == [NO_TIME, NO_TIME, *times]


def test_no_gap_reaches_from_one_subject_to_the_next(store, world):
    rows = [(7, "2020-01-01", "ADMIT"), (8, "2020-06-01", "ADMIT"), (9, "2021-06-01", "ADMIT")]
    found = world.Decoded.store(store(held_out=rows))
    assert [found.tokens(subject) for subject in (7, 8, 9)] == [["ADMIT", "TIMELINE_END"]] * 3


def test_an_infinite_number_that_no_reader_has_removed_has_no_quantile(world):
    tokenizer = Ethos(EthosConfig(min_count=1, timeline_end=False, num_quantiles=2))
    rows = [(1, "2020-01-01", "A", value) for value in (1.0, float("inf"), float("-inf"), float("nan"), 3.0)]
    tokenizer.fit([tokenizer.summarize(world.frame(rows))])
    assert tokenizer.breaks == {"A": [2.0]}
    names = [tokenizer.vocabulary.tokens[i].token for i in tokenizer.encode(world.frame(rows)).token]
    assert names == ["A", "Q1", "A", "A", "A", "A", "Q2"]


def test_a_new_static_value_replaces_the_old_one_by_unknown(store, world):
    rows = [(7, "2020-01-01", "MARITAL_STATUS//SINGLE"), (7, "2021-01-01", "MARITAL_STATUS//WHATEVER")]
    found = world.Decoded.store(store(held_out=rows))
    assert found.prefix(7, "2020-01-01")[2] == "MARITAL_STATUS//SINGLE"
    assert found.prefix(7, "2021-01-01")[2] == "MARITAL_STATUS//UNKNOWN"


def test_the_vocabulary_is_in_its_documented_order_with_counts(store, world):
    tokens = world.Decoded.store(store()).vocabulary.tokens
    names = [token.token for token in tokens]
    assert names[7:11] == ["Q1", "Q2", "Q3", "Q4"]
    assert names[11:30] == list(INTERVALS)
    assert names[30] == "TIMELINE_END"
    assert names[31:52] == [f"AGE_TENS//{d}" for d in range(10)] + [f"AGE_UNITS//{d}" for d in range(10)] + [
        "AGE//UNKNOWN"
    ]
    assert names[52:] == [
        *["DEMO//HEIGHT//UNKNOWN", "DEMO//HEIGHT//Q1", "DEMO//HEIGHT//Q2", "DEMO//HEIGHT//Q3", "DEMO//HEIGHT//Q4"],
        *["DEMO//SEX//UNKNOWN", "DEMO//SEX//F", "DEMO//SEX//M"],
        *["MARITAL_STATUS//UNKNOWN", "MARITAL_STATUS//MARRIED", "MARITAL_STATUS//SINGLE"],
        *["LAB//K", "ADMIT", "LAB//GLU", "DISCHARGE", "NOTE"],
    ]
    count = {token.token: token.count for token in tokens}
    expected = {"Q1": 5, "Q2": 1, "Q3": 1, "Q4": 1, "=6mt": 3, "5m-15m": 1, "TIMELINE_END": 3, "[UNK]": 1, "LAB//K": 6}
    assert {name: count[name] for name in expected} == expected


def test_interval_estimates_are_means_over_train(store):
    state = json.loads((store() / "tokenizer.json").read_text())["state"]
    estimates = state["interval_estimates"]
    assert state["interval_quartiles"]["=6mt"] == [460 * 28_800] * 5  # each of the three tokens, to the minute
    assert sorted(estimates) == sorted(INTERVALS)
    assert estimates["=6mt"] == pytest.approx(460 / 3 * 86_400)
    assert estimates["2d-4d"] == 172_800
    assert estimates["4d-7d"] == 5.5 * 86_400  # none in train: the middle


def test_the_manifest_counts_what_was_treated(store):
    content = json.loads((store() / "manifest.json").read_text())["content"]
    assert content["splits"]["held_out"] == {
        "shards": 1, "subjects": 2, "events": 11, "tokens": 10, "unk": 1, "non_finite": 1
    }  # fmt: skip
    assert content["splits"]["train"]["unk"] == 1


def test_the_column_value_holds_the_number_of_each_code_token(store, world):
    found = world.Decoded.store(store("tokenizer.value=true"))
    values = dict(zip(("ADMIT", "K", "Q1", "gap", "K2"), found.slice(1, "value").tolist(), strict=False))
    assert values["K"] == 1.0
    assert values["K2"] == 2.0
    assert np.isnan([values["ADMIT"], values["Q1"], values["gap"]]).all()


def test_a_configured_code_is_static_even_with_a_time(store, world):
    found = world.Decoded.store(store("tokenizer.static_codes=[NOTE,LAB]"))
    assert found.tokens(3)[:2] == ["MARITAL_STATUS//MARRIED", "TIMELINE_END"]
    assert found.prefix(3, "2020-01-01")[-2:] == ["AGE//UNKNOWN"] * 2
    assert "NOTE" in found.prefix(3, "2020-01-01")
    assert "LAB//K//Q4" in found.prefix(3, "2020-01-01")


def test_changing_held_out_changes_nothing_that_was_fitted(store):
    changed = [(s, t, c, 1000.0) for s, t, c, *_ in HELD_OUT] + [(9, "2020-01-01", "ELSE", 1.0)] * 50
    one, two = store(), store(held_out=changed)
    for name in ("vocabulary.json", "tokenizer.json", "prefix.json", "train/0.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_a_fitted_tokenizer_is_used_unchanged_on_other_data(store, world, tmp_path):
    first = store()
    meds = world.write_meds(tmp_path / "other", train=[[(1, "2020-01-01", "FOREIGN", 1.0), (1, "2020-01-01", "ADMIT")]])
    run("ehr-tokenize", "tokenize", ["source=meds", f"source.path={meds}", f"fitted={first}", f"output={tmp_path}/o"])
    assert (tmp_path / "o" / "vocabulary.json").read_bytes() == (first / "vocabulary.json").read_bytes()
    assert world.Decoded.store(tmp_path / "o").tokens(1) == ["[UNK]", "ADMIT", "TIMELINE_END"]


def test_a_code_with_the_name_of_our_own_token_is_refused(world):
    tokenizer = Ethos(EthosConfig(min_count=1))
    with pytest.raises(DataError, match="'Q1' has the name of a token"):
        tokenizer.fit([tokenizer.summarize(world.frame([(1, "2020-01-01", "Q1")]))])


def test_a_train_split_without_events_is_refused(world):
    tokenizer = Ethos(EthosConfig())
    with pytest.raises(DataError, match="no event with a time"):
        tokenizer.fit([tokenizer.summarize(world.frame([(1, None, "GENDER//F")]))])


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="num_quantiles is 1"):
        Ethos(EthosConfig(num_quantiles=1))
    with pytest.raises(ConfigError, match="min_count is 0"):
        Ethos(EthosConfig(min_count=0))


def test_state_of_another_tokenizer_is_refused(store):
    folder = store()
    state = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**state, "name": "other"}))
    with pytest.raises(FormatError, match=r"tokenizer\.json is damaged or another file"):
        Ethos(EthosConfig()).load(folder)
    reseal(folder)
    with pytest.raises(FormatError, match="is of tokenizer 'other'"):
        Ethos(EthosConfig()).load(folder)


def test_records_before_1970_and_births_after_an_event_are_told_apart(store, world):
    rows = [(7, "1965-01-01", "ADMIT"), (7, "1966-01-01", "MEDS_BIRTH"), (7, "1966-01-01", "ADMIT")]
    found = world.Decoded.store(store(held_out=rows))
    assert found.tokens(7) == ["ADMIT", "=6mt", "=6mt", "ADMIT", "TIMELINE_END"]
    assert found.prefix(7, "1965-06-01")[-1] == "AGE//UNKNOWN"
    assert found.prefix(7, "1980-01-02")[-2:] == ["AGE_TENS//1", "AGE_UNITS//4"]
    assert NO_TIME not in found.times(7)
