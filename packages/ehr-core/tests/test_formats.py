"""The folders that packages hand to each other: whole or absent, checked, and the same bytes every time."""

import dataclasses
import os
import stat

import numpy as np
import pytest
from ehr_core.constants import YEAR_US
from ehr_core.errors import FormatError
from ehr_core.formats import folder, tokens
from ehr_core.formats.folder import Manifest
from ehr_core.formats.tokens import NO_TIME, Prefix, TokenStore, TokenTable, prefix_tokens
from ehr_core.formats.vocabulary import PAD, SPECIALS, UNK, Token, Vocabulary
from ehr_core.testing.corruption import reseal

DAY = 86_400_000_000


def vocabulary():
    return Vocabulary.build([Token("A", "code", ("A",), 3), Token("B", "code", ("B",), 1)])


def table():
    """Two subjects: one with a static known from the start and one known from day 10, one with neither."""
    return TokenTable(
        subject_id=np.array([3, 9], np.int64),
        offset=np.array([0, 2, 5], np.int64),
        token=np.array([7, 8, 8, 7, 3], np.uint16),
        time=np.array([1, 2, 3, 4, 5], np.int64) * DAY,
        birth=np.array([0, NO_TIME], np.int64),
        static_offset=np.array([0, 2, 2], np.int64),
        static_slot=np.array([0, 0], np.uint16),
        static_token=np.array([20, 21], np.uint16),
        static_time=np.array([NO_TIME, 10 * DAY], np.int64),
        columns={"value": np.array([0.5, np.nan, 1, 2, 3], np.float32)},
    )


PREFIX = Prefix(slots=("GENDER",), unknown=(30,), tens=tuple(range(40, 50)), units=tuple(range(50, 60)), age_unknown=39)


def write_store(path):
    with folder.new_folder(path) as new:
        table().write(new / "train" / "0.safetensors")
        vocabulary().save(new)
        tokens.write_prefix(new, PREFIX)
        content = {"vocabulary": vocabulary().digest, "columns": ["value"]}
        folder.write_manifest(new, Manifest("token-store", 1, ["me==1"], {}, {}, content))
    return path


def test_a_store_is_read_back_as_written(tmp_path):
    store = TokenStore(write_store(tmp_path / "store"))
    (found,) = store.tables("train")
    for name, array in table().arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
        assert found.arrays()[name].dtype == array.dtype
    assert store.vocabulary.digest == vocabulary().digest
    assert store.columns == ["value"]


def test_a_folder_may_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        with folder.new_folder(tmp_path / "store") as new:
            table().write(new / "train" / "0.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "store" / "train" / "0.safetensors").stat().st_mode) == 0o640


def test_a_store_is_a_view_of_the_file_and_cannot_be_written_to(tmp_path):
    (found,) = TokenStore(write_store(tmp_path / "store")).tables("train")
    assert not found.token.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        found.token[0] = 1


def test_the_same_content_gives_the_same_bytes(tmp_path):
    one, two = write_store(tmp_path / "one"), write_store(tmp_path / "two")
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()


@pytest.mark.parametrize("keep", [0, 5, 60, -3])
def test_a_truncated_shard_is_named(tmp_path, keep):
    store = write_store(tmp_path / "store")
    shard = store / "train" / "0.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"0\.safetensors is damaged"):
        list(TokenStore(store).tables("train"))


def test_a_foreign_vocabulary_is_refused(tmp_path):
    store = write_store(tmp_path / "store")
    Vocabulary.build([Token("OTHER", "code")]).save(store)
    with pytest.raises(FormatError, match=r"vocabulary\.json is damaged or another file"):
        TokenStore(store)
    reseal(store)
    with pytest.raises(FormatError, match=r"vocabulary\.json is not the one"):
        TokenStore(store)


def test_a_missing_split_names_those_there_are(tmp_path):
    with pytest.raises(FormatError, match="no split 'tuning'; it has train"):
        TokenStore(write_store(tmp_path / "store")).shards("tuning")


def test_another_format_or_version_is_refused_with_both_named(tmp_path):
    store = write_store(tmp_path / "store")
    with pytest.raises(FormatError, match="is a token-store, expected a run"):
        folder.read_manifest(store, "run", 1)
    with pytest.raises(FormatError, match=r"of version 1; this program reads version 2\. .*me==1"):
        folder.read_manifest(store, "token-store", 2)
    with pytest.raises(FormatError, match="is not a folder"):
        folder.read_manifest(tmp_path / "absent", "run", 1)


def test_the_prefix_knows_only_what_is_known_by_then():
    shard = table()
    early, late = prefix_tokens(PREFIX, shard, 0, 5 * DAY), prefix_tokens(PREFIX, shard, 0, 10 * DAY)
    assert early[0] == 20
    assert late[0] == 21
    assert prefix_tokens(PREFIX, shard, 1, 10 * DAY).tolist() == [30, 39, 39]


@pytest.mark.parametrize(("years", "digits"), [(0.5, "00"), (9.99, "09"), (10.01, "10"), (67.3, "67"), (120, "99")])
def test_age_is_two_digits_capped_at_99(years, digits):
    found = prefix_tokens(PREFIX, table(), 0, int(years * YEAR_US))
    assert found[1:].tolist() == [40 + int(digits[0]), 50 + int(digits[1])]


def test_the_digits_of_an_age_change_on_the_birthday():
    born = int(np.datetime64("1950-03-04", "us").astype(np.int64))
    shard = dataclasses.replace(table(), birth=np.full(len(table().subject_id), born))
    for day, digits in (("2020-03-03T23:59", "69"), ("2020-03-04", "70"), ("2015-03-04", "65"), ("2015-03-03", "64")):
        found = prefix_tokens(PREFIX, shard, 0, int(np.datetime64(day, "us").astype(np.int64)))
        assert found[1:].tolist() == [40 + int(digits[0]), 50 + int(digits[1])]


def test_before_birth_age_is_unknown():
    assert prefix_tokens(PREFIX, table(), 0, -DAY)[1:].tolist() == [39, 39]
    assert prefix_tokens(PREFIX, table(), 0, NO_TIME).tolist() == [20, 39, 39]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"

    def fail():
        with folder.new_folder(target) as new:
            (new / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(FormatError, match="exists already"), folder.new_folder(tmp_path / "out"):
        pass


def test_specials_come_first_and_unseen_tokens_are_unk():
    found = vocabulary()
    assert [t.token for t in found.tokens[:7]] == list(SPECIALS)
    assert found["[PAD]"] == PAD == 0
    assert found.get("never") == UNK
    assert found["A"] == 7


def test_a_vocabulary_is_read_back_and_counts_do_not_change_its_digest(tmp_path):
    vocabulary().save(tmp_path)
    found = Vocabulary.load(tmp_path)
    assert found.tokens == vocabulary().tokens
    more = Vocabulary.build([Token("A", "code", ("A",), 99), Token("B", "code", ("B",), 1)])
    assert more.digest == found.digest
    assert Vocabulary.build([Token("B", "code"), Token("A", "code")]).digest != found.digest
