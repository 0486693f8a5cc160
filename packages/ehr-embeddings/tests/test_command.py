"""The command from a token store to a folder of vectors."""

import numpy as np
import pytest
from ehr_core import cli
from ehr_core.errors import FormatError
from ehr_core.formats.folder import file_digests, read_manifest
from ehr_core.formats.vocabulary import Token
from ehr_embeddings.vectors import read_vectors

EVENTS = [[[(0, "A"), (1, "B"), (1, "C"), (9, "A"), (9, "B")], [(0, "A"), (2, "C")]]]
TOKENS = [Token("A", "code", ("A",), 6), Token("B", "code", ("B",), 3), Token("C", "code", ("C",), 1)]


def run(*overrides):
    return cli.run("ehr-embed", "embed", list(overrides))


@pytest.fixture
def store(make_store):
    return make_store(TOKENS, train=EVENTS)


def test_vectors_are_learnt_written_and_covered(store, tmp_path, capsys):
    out = tmp_path / "vectors"
    assert run(f"store={store}", f"output={out}", "embedding.width=2", "embedding.min_count=1") == 0
    printed = capsys.readouterr().out
    assert "vectors of width 2 for 3 of 3 tokens" in printed
    assert "100.0% of tokens, 100.0% of their occurrences" in printed
    found = read_vectors(out)
    table, vocabulary = found.table, found.vocabulary
    assert table.vector_VD.shape == (len(vocabulary), 2)
    manifest = read_manifest(out, "code-vectors", 1)
    assert manifest.settings["embedding"]["name"] == "ppmi"
    assert manifest.content["with_vector"] == 3


def test_a_file_covers_what_it_has(store, tmp_path, capsys):
    (tmp_path / "v.csv").write_text("code,v0,v1\nA,1,2\nX,3,4\n")
    out = tmp_path / "vectors"
    assert run("embedding=file", f"embedding.path={tmp_path / 'v.csv'}", f"store={store}", f"output={out}") == 0
    assert "33.3% of tokens, 60.0% of their occurrences" in capsys.readouterr().out
    manifest = read_manifest(out, "code-vectors", 1)
    assert str(tmp_path) not in (out / "manifest.json").read_text(), "a manifest is the same anywhere"
    assert manifest.inputs["store"] == read_manifest(store, "token-store", 1).digest


def test_two_runs_give_the_same_files(store, tmp_path):
    for name in ("one", "two"):
        run(f"store={store}", f"output={tmp_path / name}", "embedding.width=2", "embedding.min_count=1")
    assert file_digests(tmp_path / "one") == file_digests(tmp_path / "two")
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()


def test_vectors_of_one_store_can_start_those_of_another(store, make_store, tmp_path):
    run(f"store={store}", f"output={tmp_path / 'one'}", "embedding.width=2", "embedding.min_count=1")
    other = make_store([Token("new", "code", ("new",), 1), *TOKENS], "other", train=EVENTS)
    run("embedding=file", f"embedding.path={tmp_path / 'one'}", f"store={other}", f"output={tmp_path / 'two'}")
    one, two = read_vectors(tmp_path / "one").table, read_vectors(tmp_path / "two").table
    assert np.array_equal(one.vector_VD[7:], two.vector_VD[8:])
    assert two.origin_V[7:] == ["", "A", "B", "C"]


def test_an_output_that_exists_is_left_alone(store, tmp_path):
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "mine.txt").write_text("keep")
    with pytest.raises(FormatError, match="exists already"):
        run(f"store={store}", f"output={tmp_path / 'vectors'}")
    assert (tmp_path / "vectors" / "mine.txt").read_text() == "keep"
