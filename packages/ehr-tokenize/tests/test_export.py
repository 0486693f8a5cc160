"""``export-hf``: what transformers loads has the store's ids, whatever signs the tokens have."""

import json
import string
import sys

import pytest
from ehr_core.cli import run
from ehr_core.errors import FormatError
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_tokenize import plugin
from ehr_tokenize.store import export
from hypothesis import given, settings
from hypothesis import strategies as st

CODES = ["LAB//Heart rate", "LAB//Heart%20rate", "100%", "%41", "A\u00a0B", "tab\there", "Ünïcode//β", "[x]", "a" * 300]


@pytest.fixture
def store(world, tmp_path):
    rows = [(1, "2020-01-01", code, float(n)) for n, code in enumerate(CODES) for _ in range(2)]
    meds = world.write_meds(tmp_path / "meds", train=[rows])
    run(
        "ehr-tokenize",
        "tokenize",
        ["source=meds", f"source.path={meds}", f"output={tmp_path}/store", "tokenizer.min_count=1"],
    )
    return tmp_path / "store"


def test_transformers_loads_the_folder_with_equal_ids(store, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to load it with")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "argv", ["ehr-tokenize", "export-hf", str(store), str(tmp_path / "hf")])
    assert plugin.main() == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    vocabulary = Vocabulary.load(store)
    assert len(tokenizer) == len(vocabulary)
    names = [export.escape(entry.token) for entry in vocabulary.tokens]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(len(vocabulary)))
    assert tokenizer(" ".join(names), add_special_tokens=False)["input_ids"] == list(range(len(vocabulary)))
    assert tokenizer("never seen", add_special_tokens=False)["input_ids"] == [3, 3]
    roles = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    assert roles == ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
    assert (tokenizer.mask_token, tokenizer.cls_token, tokenizer.sep_token) == ("[MASK]", "[CLS]", "[SEP]")
    decoded = tokenizer.decode(list(range(7, len(vocabulary)))).split(" ")
    assert [export.plain(name) for name in decoded] == [entry.token for entry in vocabulary.tokens[7:]]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("%aA2 0\t\u00a0\u2003ß" + string.punctuation)), st.text(st.sampled_from("%aA20 \t")))
def test_escaping_has_no_blank_and_can_be_undone(one, two):
    assert export.plain(export.escape(one)) == one
    assert not any(sign.isspace() for sign in export.escape(one))
    assert (export.escape(one) == export.escape(two)) == (one == two)


def test_special_tokens_of_a_published_vocabulary_keep_their_names_and_ids():
    vocabulary = Vocabulary(
        [Token("<pad>", "special"), Token("<mask>", "special"), Token("<unk>", "special"), Token("G1", "code")]
    )
    files = export.tokenizer_files(vocabulary)
    assert files["special_tokens_map.json"] == {"pad_token": "<pad>", "mask_token": "<mask>", "unk_token": "<unk>"}
    assert [token["id"] for token in files["tokenizer.json"]["added_tokens"]] == [0, 1, 2]
    assert files["tokenizer.json"]["model"]["vocab"]["G1"] == 3


def test_a_published_vocabulary_without_unk_reads_unknown_words_as_padding(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to load it with")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    vocabulary = Vocabulary([Token("[PAD]", "special"), Token("[MASK]", "special"), Token("G1", "code")])
    for name, content in export.tokenizer_files(vocabulary).items():
        (tmp_path / name).write_text(json.dumps(content))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("G1 NEW G1", add_special_tokens=False)["input_ids"] == [2, 0, 2]
    assert (len(tokenizer), tokenizer.unk_token, tokenizer.pad_token) == (3, "[PAD]", "[PAD]")


def test_a_vocabulary_without_unk_and_padding_is_refused():
    with pytest.raises(FormatError, match="no token for unknown words or padding"):
        export.tokenizer_files(Vocabulary([Token("<mask>", "special")]))


def test_the_files_are_plain_json(store, tmp_path):
    run("ehr-tokenize", "export-hf", [str(store), str(tmp_path / "hf")])
    for path in (tmp_path / "hf").iterdir():
        json.loads(path.read_text())
