"""What a fitted vocabulary does on other records: what it does not cover is reported, and it can grow at its end."""

import json

import pytest
from ehr_core.cli import run
from ehr_core.errors import ConfigError
from ehr_core.formats.vocabulary import Vocabulary
from ehr_tokenize.store import coverage

FIRST = [
    (1, None, "GENDER//F"),
    *[(1, "2020-01-01", "LAB//K", float(n)) for n in range(8)],
    *[(1, "2020-01-02", "ADMIT")] * 3,
    (2, None, "GENDER//F"),
]
SECOND = [
    (1, None, "GENDER//X"),
    (1, None, "RACE//A"),
    (1, "1990-01-01", "MEDS_BIRTH"),
    *[(1, "2020-01-01", "LAB//K", 100.0 + n) for n in range(8)],
    *[(1, "2020-01-01", "LAB//NEW", float(n)) for n in range(10, 18)],
    *[(1, "2020-01-02", "PROC//X")] * 4,
    (1, "2020-01-02", "PROC//ONCE"),
    (1, "2020-01-02", "ADMIT"),
    (2, None, "GENDER//X"),
    (2, None, "RACE//A"),
]


@pytest.fixture
def site(world, tmp_path):
    """Tokenize a train shard; returns the store."""

    def make(name, rows, *more, **splits):
        meds = world.write_meds(tmp_path / f"meds-{name}", train=[rows], **splits)
        settings = ["tokenizer.min_count=2", "tokenizer.num_quantiles=4"] if not more else []
        arguments = ["source=meds", f"source.path={meds}", f"output={tmp_path / name}", *settings, *more]
        run("ehr-tokenize", "tokenize", arguments)
        return tmp_path / name

    return make


def content(store):
    return json.loads((store / "manifest.json").read_text())["content"]


def state(store):
    return json.loads((store / "tokenizer.json").read_text())["state"]


def test_growth_appends_and_leaves_everything_old_as_it_was(site, world):
    old = site("old", FIRST)
    new = site("new", SECOND, f"fitted={old}", "grow=true")
    before, after = Vocabulary.load(old), Vocabulary.load(new)
    assert after.tokens[: len(before)] == before.tokens
    names = [token.token for token in after.tokens[len(before) :]]
    assert {"GENDER//X", "RACE//UNKNOWN", "RACE//A", "LAB//NEW", "PROC//X", "AGE_TENS//3"} <= set(names)
    assert "PROC//ONCE" not in names  # min_count is that of the old tokenizer
    assert state(new)["breaks"]["LAB//K"] == state(old)["breaks"]["LAB//K"]
    assert state(new)["breaks"]["LAB//NEW"] == [11.75, 13.5, 15.25]
    assert state(new)["interval_estimates"] == state(old)["interval_estimates"]
    found = world.Decoded.store(new)
    assert found.tokens(1)[:4] == ["LAB//K", "Q4", "LAB//K", "Q4"]
    assert found.tokens(1)[16:20] == ["LAB//NEW", "Q1", "LAB//NEW", "Q1"]
    assert found.prefix(1, "2020-01-03") == ["GENDER//X", "RACE//A", "AGE_TENS//3", "AGE_UNITS//0"]
    assert content(new)["splits"]["train"]["unk"] == 1


def test_a_store_made_before_the_growth_means_the_same_afterwards(site, world):
    old = site("old", FIRST)
    new = site("new", SECOND, f"fitted={old}", "grow=true")
    again = site("again", FIRST, f"fitted={new}")
    assert world.Decoded.store(again).tokens(1) == world.Decoded.store(old).tokens(1)
    assert (again / "train" / "0.safetensors").stat().st_size == (old / "train" / "0.safetensors").stat().st_size


@pytest.mark.parametrize(("tokenizer", "token"), [
    ("fused", "LAB//NEW//value_[11.75,13.5)"),
    ("fused tokenizer.bins=quantile", "LAB//NEW//Q2"),
])  # fmt: skip
def test_other_tokenizers_of_timelines_grow_too(site, world, tokenizer, token):
    settings = [f"tokenizer={tokenizer.split()[0]}", *tokenizer.split()[1:], "tokenizer.min_count=2"]
    settings += ["tokenizer.min_subjects=1", "tokenizer.num_quantiles=4"]
    old = site("old", FIRST, *settings)
    later = [(subject, when and when.replace("2020", "2031"), *rest) for subject, when, *rest in SECOND]
    new = site("new", later, settings[0], f"fitted={old}", "grow=true")
    before, after = Vocabulary.load(old), Vocabulary.load(new)
    assert after.tokens[: len(before)] == before.tokens
    added = [found.token for found in after.tokens[len(before) :]]
    assert {token, "PROC//X", "GENDER//X"} <= set(added)
    assert "PROC//ONCE" not in added
    assert state(new)["breaks"]["LAB//K"] == state(old)["breaks"]["LAB//K"]
    assert state(new)["breaks"]["LAB//NEW"] == [11.75, 13.5, 15.25]
    found = world.Decoded.store(new)
    assert {token, "PROC//X", "ADMIT"} <= set(found.tokens(1))
    assert "GENDER//X" in found.prefix(1, "2031-01-03")
    again = site("again", FIRST, settings[0], f"fitted={new}")
    assert world.Decoded.store(again).tokens(1) == world.Decoded.store(old).tokens(1)


def test_without_growth_new_codes_are_unk_and_reported_by_prefix(site):
    old = site("old", FIRST)
    used = site("used", SECOND, f"fitted={old}")
    assert (used / "vocabulary.json").read_bytes() == (old / "vocabulary.json").read_bytes()
    found = content(used)["coverage"]["train"]
    assert found["LAB"] == {"events": 16, "unk_events": 8, "codes": 2, "unk_codes": 1}
    assert found["PROC"] == {"events": 5, "unk_events": 5, "codes": 2, "unk_codes": 2}
    assert sum(prefix["unk_events"] for prefix in found.values()) == content(used)["splits"]["train"]["unk"] == 13
    assert sum(prefix["events"] for prefix in found.values()) == len(SECOND)


def test_rare_prefixes_are_not_named():
    codes = {"LAB//A": (10, 0, 0), "Anna Smith": (1, 1, 0), "came back": (4, 4, 0)}
    assert coverage.by_prefix(codes) == {
        "LAB": {"events": 10, "unk_events": 0, "codes": 1, "unk_codes": 0},
        "(other)": {"events": 5, "unk_events": 5, "codes": 2, "unk_codes": 2},
    }


def test_growing_twice_with_the_same_records_changes_nothing_more(site):
    old = site("old", FIRST)
    new = site("new", SECOND, f"fitted={old}", "grow=true")
    more = site("more", SECOND, f"fitted={new}", "grow=true")
    assert (more / "vocabulary.json").read_bytes() == (new / "vocabulary.json").read_bytes()
    assert state(more) == state(new)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["tokenizer.min_count=9"], "tokenizer.min_count is 9, but 2 in fitted="),
        (["tokenizer=fused"], "tokenizer is fused, but ethos in fitted="),
        (["+tokenizer.numbers={LAB//: fused}"], "tokenizer.numbers.LAB// is fused, but nothing in fitted="),
        (["tokenizer.min_count=9", "grow=true"], "tokenizer.min_count is 9"),
    ],
)
def test_settings_other_than_those_of_the_fitted_tokenizer_are_refused(site, more, message):
    old = site("old", FIRST)
    with pytest.raises(ConfigError, match=message):
        site("new", SECOND, f"fitted={old}", *more)


def test_settings_of_the_fitted_tokenizer_may_be_given_again(site, tmp_path):
    (tmp_path / "icd9.csv").write_text("from,to\n428,I50\n")
    mapping = f"+tokenizer.prepare.mappings={{icd9: {{path: {tmp_path}/icd9.csv}}}}"
    fused = ["tokenizer=fused", "tokenizer.min_count=2", "tokenizer.static_codes=[GENDER]", mapping]
    old = site("old", FIRST, *fused)
    assert site("given", FIRST, *fused, f"fitted={old}").is_dir()
    assert site("default", FIRST, "tokenizer=fused", f"fitted={old}").is_dir()


def labs(*numbers):
    return [
        (1, "2020-01-01", f"LAB//{name}", float(n))
        for name, often in zip("ABC", numbers, strict=True)
        for n in range(often)
    ]


def test_codes_that_top_codes_left_out_are_counted_on_another_site(site, capsys):
    old = site("old", labs(8, 4, 0), "+tokenizer.top_codes={LAB//: 1}", "tokenizer.min_count=2")
    capsys.readouterr()
    new = site("new", labs(2, 5, 3), f"fitted={old}")
    assert content(new)["coverage"]["train"]["LAB"] == {
        **{"events": 10, "codes": 3, "unk_events": 3, "unk_codes": 1, "left_out_events": 5}
    }
    assert "left_out_events" not in content(new)["coverage"]["tuning"].get("(other)", {})
    assert "UNK 41.67% and left out 41.67% of events" in capsys.readouterr().out  # ADMIT of the other splits is new


def test_growth_takes_in_the_codes_that_the_old_site_left_out(site, world):
    old = site("old", labs(8, 4, 0), "+tokenizer.top_codes={LAB//: 1}", "tokenizer.min_count=2")
    assert state(old)["dropped"] == ["LAB//B"]
    new = site("new", labs(4, 8, 3), f"fitted={old}", "grow=true")
    assert state(new)["dropped"] == ["LAB//C"]
    found = [token for token in world.Decoded.store(new).tokens(1) if token.startswith("LAB")]
    assert found == ["LAB//A"] * 4 + ["LAB//B"] * 8
    assert set(state(new)["breaks"]) == {"LAB//A", "LAB//B"}
    again = site("again", labs(4, 8, 3), f"fitted={new}", "grow=true")
    assert state(again) == state(new)


def test_only_a_fitted_tokenizer_grows(site):
    with pytest.raises(ConfigError, match="give fitted=STORE"):
        site("x", FIRST, "grow=true")
