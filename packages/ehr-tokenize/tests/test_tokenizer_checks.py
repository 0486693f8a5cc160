"""The properties of the conformance kit find a tokenizer that breaks them: each break is one that looks harmless."""

import dataclasses

import numpy as np
import pytest
from ehr_core.formats.intervals import Intervals
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.plugins import registry
from ehr_core.testing import tokenizer_checks as checks
from ehr_tokenize.grammars.fused import Fused
from ehr_tokenize.prepare import arrays

UNK = 3


def changed(monkeypatch, name, change):
    """Let a method of Fused return what ``change`` makes of its result."""
    before = getattr(Fused, name)
    monkeypatch.setattr(Fused, name, lambda self, *given: change(self, before(self, *given)))


def first_token_tells_the_length(monkeypatch):
    def change(_, table):
        token = table.token.copy()
        token[table.offset[:-1][np.diff(table.offset) > 8]] = UNK
        return dataclasses.replace(table, token=token)

    changed(monkeypatch, "encode", change)


def last_row_of_an_instant_is_lost(monkeypatch):
    def change(_, table):
        last = np.append(table.time[1:] != table.time[:-1], True)
        return dataclasses.replace(table, token=np.where(last, table.token.dtype.type(UNK), table.token))

    changed(monkeypatch, "encode", change)


def breaks_are_of_the_first_shard(monkeypatch):
    before = Fused.fit
    monkeypatch.setattr(Fused, "fit", lambda self, parts: before(self, list(parts)[:1]))


def columns_start_with_the_shard(monkeypatch):
    def change(_, table):
        token = table.token.copy()
        token[:1] = UNK
        return dataclasses.replace(table, token=token)

    changed(monkeypatch, "encode", change)


def breaks_are_not_loaded(monkeypatch):
    before = Fused.load

    def load(self, folder):
        before(self, folder)
        self.breaks = {code: breaks[:-1] for code, breaks in self.breaks.items()}

    monkeypatch.setattr(Fused, "load", load)


def missing_is_zero(monkeypatch):
    before = arrays.records

    def records(events):
        rows = before(events)
        infinite = np.isinf(events["numeric_value"].fill_null(float("nan")).to_numpy())
        return dataclasses.replace(rows, value_N=np.where(infinite, np.float32(0), rows.value_N))

    monkeypatch.setattr(arrays, "records", records)


def unseen_codes_are_padding(monkeypatch):
    changed(monkeypatch, "code_id", lambda _, index: 0 if index == UNK else index)


def numbers_move_by_one(monkeypatch):
    def change(_, table):
        return dataclasses.replace(table, columns={name: np.roll(c, 1) for name, c in table.columns.items()})

    changed(monkeypatch, "encode", change)


def intervals_are_of_nothing(monkeypatch):
    monkeypatch.setattr(Fused, "intervals", Intervals())


def a_part_of_the_summary_has_another_type(monkeypatch):
    monkeypatch.setattr(Fused, "summary_type", dict[str, int])


def growth_sorts_the_vocabulary(monkeypatch):
    before = Fused.grow

    def grow(self, new):
        before(self, new)
        self.vocabulary = Vocabulary(sorted(self.vocabulary.tokens, key=lambda token: token.token))

    monkeypatch.setattr(Fused, "grow", grow)


def growth_takes_nothing(monkeypatch):
    monkeypatch.setattr(Fused, "grow", lambda self, new: None)


def unknown_codes_count_once(monkeypatch):
    changed(monkeypatch, "unknown_events", lambda _, found: dict.fromkeys(found, 1))


BREAKS = {
    intervals_are_of_nothing: checks.check_tokenizer_says_what_it_is,
    a_part_of_the_summary_has_another_type: checks.check_tokenizer_summary_survives_being_kept,
    growth_sorts_the_vocabulary: checks.check_tokenizer_grows,
    growth_takes_nothing: checks.check_tokenizer_grows,
    unknown_codes_count_once: checks.check_tokenizer_counts_what_it_does_not_know,
    first_token_tells_the_length: checks.check_tokenizer_knows_only_the_past,
    last_row_of_an_instant_is_lost: checks.check_tokenizer_ignores_the_order_of_an_instant,
    breaks_are_of_the_first_shard: checks.check_tokenizer_ignores_how_records_are_sharded,
    columns_start_with_the_shard: checks.check_tokenizer_ignores_how_records_are_sharded,
    breaks_are_not_loaded: checks.check_tokenizer_is_the_same_after_loading,
    missing_is_zero: checks.check_tokenizer_treats_missing_numbers_alike,
    unseen_codes_are_padding: checks.check_tokenizer_decodes_to_its_record,
    numbers_move_by_one: checks.check_tokenizer_decodes_to_its_record,
}


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_a_broken_tokenizer_is_found(monkeypatch, tmp_path, broken):
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        BREAKS[broken]("tokenizer", registry().get("tokenizer", "fused"), tmp_path)
