"""Every tokenizer that is installed, whoever wrote it: it prepares events as its settings say, and it grows."""

import itertools
import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from ehr_core.formats.intervals import Intervals
from ehr_core.plugins import registry
from ehr_core.testing.tiny import SUBJECTS, subject_rows
from ehr_tokenize.fit import summaries
from ehr_tokenize.prepare.settings import PrepareConfig

NAMES = sorted(registry().components["tokenizer"])
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
OLD = [row for subject in SUBJECTS["train"] for row in subject_rows(subject)]
NEW = {
    "LAB//glucose//mg/dL": "LAB//sodium//mmol/L",
    "GENDER//F": "GENDER//X",
    "DIAGNOSIS//ICD10CM//I10": "PROCEDURE//X",
}


def frame(rows) -> pl.DataFrame:
    return pl.DataFrame(list(rows), SCHEMA, orient="row")


def second_site() -> list[tuple]:
    """Other people, with a lab, a sex and a procedure that the first site does not have."""
    rows = itertools.chain.from_iterable(subject_rows(subject + 1000) for subject in SUBJECTS["train"])
    return [(subject, time, NEW.get(code, code), value) for subject, time, code, value in rows]


def fitted(name, rows, **settings):
    component = registry().get("tokenizer", name)
    tokenizer = component.load()(component.config(**settings))
    tokenizer.fit([tokenizer.summarize(frame(rows))])
    return tokenizer


def grown(name):
    old, new = fitted(name, OLD), fitted(name, OLD).unfitted()
    new.fit([new.summarize(frame(second_site()))])
    tokenizer = fitted(name, OLD)
    tokenizer.grow(new)
    return old, tokenizer


def tokens(tokenizer, rows) -> list[str]:
    return [tokenizer.vocabulary.tokens[index].token for index in tokenizer.encode(frame(rows)).token.tolist()]


@pytest.mark.parametrize("name", NAMES)
def test_a_grown_tokenizer_keeps_its_ids_and_what_they_make_of_old_records(name):
    old, new = grown(name)
    size = len(old.vocabulary)
    assert [t.token for t in new.vocabulary.tokens[:size]] == [t.token for t in old.vocabulary.tokens]
    assert [t.count for t in new.vocabulary.tokens[:size]] == [t.count for t in old.vocabulary.tokens]
    held_out = [row for subject in SUBJECTS["held_out"] for row in subject_rows(subject)]
    one, two = old.encode(frame(held_out)).arrays(), new.encode(frame(held_out)).arrays()
    for key, array in one.items():
        assert np.array_equal(array, two[key], equal_nan=array.dtype.kind == "f"), key


@pytest.mark.parametrize("name", NAMES)
def test_a_grown_tokenizer_gives_new_codes_ids_of_their_own(name):
    old, new = grown(name)
    added = {code for token in new.vocabulary.tokens[len(old.vocabulary) :] for code in token.codes}
    assert "LAB//sodium//mmol/L" in added
    rows = frame(second_site())
    assert old.unknown_events(rows)["LAB//sodium//mmol/L"] > 0
    assert "LAB//sodium//mmol/L" not in new.unknown_events(rows)
    table = new.encode(rows)
    named = {code for index in set(table.token.tolist()) for code in new.vocabulary.tokens[index].codes}
    assert "LAB//sodium//mmol/L" in named
    assert int(table.token.max()) < len(new.vocabulary)


@pytest.mark.parametrize("name", NAMES)
def test_a_grown_tokenizer_is_the_same_after_loading(name, tmp_path):
    _, tokenizer = grown(name)
    component = registry().get("tokenizer", name)
    again = component.load()(component.config())
    tokenizer.save(tmp_path)
    again.load(tmp_path)
    assert again.vocabulary.tokens == tokenizer.vocabulary.tokens
    assert again.prefix == tokenizer.prefix
    assert tokens(again, second_site()) == tokens(tokenizer, second_site())


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_that_drops_events_drops_their_tokens(name):
    all_of_it, fewer = fitted(name, OLD), fitted(name, OLD, prepare=PrepareConfig(drop=["LAB//glucose"]))
    without = [row for row in OLD if not row[2].startswith("LAB//glucose")]
    assert any("glucose" in token.token for token in all_of_it.vocabulary.tokens)
    assert not any("glucose" in token.token for token in fewer.vocabulary.tokens)
    assert tokens(fewer, OLD) == tokens(fitted(name, without), without)


@pytest.mark.parametrize("name", NAMES)
def test_a_delay_moves_what_becomes_of_events(name):
    late = fitted(name, OLD, prepare=PrepareConfig(delay_hours={"LAB//": 3.0}))
    moved = [(s, t + timedelta(hours=3) if t and c.startswith("LAB//") else t, c, v) for s, t, c, v in OLD]
    moved.sort(key=lambda row: (row[0], row[1] or datetime.min))
    by_hand = fitted(name, moved)
    assert late.vocabulary.tokens == by_hand.vocabulary.tokens
    one, two = late.encode(frame(OLD)), by_hand.encode(frame(moved))
    assert one.token.tolist() == two.token.tolist()
    assert one.time.tolist() == two.time.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_outcome_codes_have_a_token_however_rare(name):
    if name == "rank_value":
        pytest.skip("death has no number to be ranked by")
    few = [row for row in OLD if row[2] != "MEDS_DEATH" or row[0] == 4]
    assert sum(code == "MEDS_DEATH" for _, _, code, _ in few) == 1
    kept = fitted(name, few, min_count=5)
    rare = fitted(name, few, min_count=5, keep_codes=[])
    assert any("MEDS_DEATH" in token.codes for token in kept.vocabulary.tokens)
    assert not any("MEDS_DEATH" in token.codes for token in rare.vocabulary.tokens)
    assert kept.unknown_events(frame(few)).get("MEDS_DEATH", 0) == 0
    assert rare.unknown_events(frame(few))["MEDS_DEATH"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_lengths_of_tokens_for_time_are_in_a_file_of_their_own(name, tmp_path):
    tokenizer = fitted(name, OLD)
    tokenizer.save(tmp_path)
    names = {token.token for token in tokenizer.vocabulary.tokens if token.kind == "interval"}
    found = Intervals.load(tmp_path)
    assert set(found.tokens) == names
    assert (tmp_path / "intervals.json").exists() == bool(names)
    for lower, upper in found.days.values():
        assert lower >= 0
        assert upper is None or lower <= upper
    state = json.loads((tmp_path / "tokenizer.json").read_text())["state"]
    assert found.mean_seconds == state.get("interval_estimates", {})


@pytest.mark.parametrize("name", NAMES)
def test_a_summary_on_disk_fits_as_one_in_memory(name, tmp_path):
    direct = fitted(name, OLD)
    other = direct.unfitted()
    summaries.keep(other.summary_type, other.summarize(frame(OLD)), tmp_path / "0.safetensors")
    other.fit([summaries.recall(other.summary_type, tmp_path / "0.safetensors")])
    assert other.vocabulary.tokens == direct.vocabulary.tokens
    assert tokens(other, OLD) == tokens(direct, OLD)
