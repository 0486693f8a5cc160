"""Stores of sentences that are ranked already: made ones, and real ones."""

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from ehr_core.cli import run
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.tokens import TokenStore

SENTENCES = [[2, 3, 4], [4], [], [3, 2], [4, 3, 2, 5], [5, 2]]
SPLITS = ("train", "tuning", "held_out")


@pytest.fixture
def make(tmp_path):
    def run_it(sentences=SENTENCES, length=None, *overrides, output="store"):
        folder = tmp_path / "parquet"
        folder.mkdir(exist_ok=True)
        columns = {"input_ids": pl.Series(sentences, dtype=pl.List(pl.Int64))}
        if length is not None:
            columns["length"] = length
        pl.DataFrame(columns).write_parquet(folder / "0.parquet")
        (tmp_path / "vocab.txt").write_text("<pad>\n<mask>\nA\nB\nC\nD\n")
        settings = [f"path={folder}", f"vocabulary={tmp_path}/vocab.txt", f"output={tmp_path}/{output}", *overrides]
        run("ehr", "ranked-store", settings)
        return TokenStore(tmp_path / output)

    return run_it


def sentences(store):
    found = {}
    for split in store.splits():
        for table in store.tables(split):
            for row, subject in enumerate(table.subject_id.tolist()):
                found[subject] = table.token[table.offset[row] : table.offset[row + 1]].tolist()
    return [found[subject] for subject in sorted(found)]


def test_sentences_keep_their_order_and_ids_and_have_no_time(make):
    store = make(length=[3, 1, 0, 2, 4, 2])
    assert sentences(store) == SENTENCES
    assert all((table.time == 0).all() for split in store.splits() for table in store.tables(split))
    assert [token.token for token in store.vocabulary.tokens] == ["[PAD]", "[MASK]", "A", "B", "C", "D"]


def test_the_store_can_be_inspected(make, tmp_path, capsys):
    make()
    capsys.readouterr()
    assert run("ehr-tokenize", "inspect-store", [f"{tmp_path}/store"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/store: rank_value\n")
    assert "Tokenizer rank_value. Vocabulary of 6 tokens" in (tmp_path / "store.html").read_text()


def test_lists_of_one_fixed_size_are_read_as_any_other(make, tmp_path):
    path = tmp_path / "fixed.parquet"
    pl.DataFrame({"input_ids": pl.Series([[2, 3], [4, 5], [3, 2]], dtype=pl.Array(pl.Int64, 2))}).write_parquet(path)
    assert sentences(make(SENTENCES, None, f"path={path}")) == [[2, 3], [4, 5], [3, 2]]
    pl.DataFrame({"input_ids": pl.Series([[2, 3], None], dtype=pl.Array(pl.Int64, 2))}).write_parquet(path)
    with pytest.raises(DataError, match="row 2: input_ids is null"):
        make(SENTENCES, None, f"path={path}", output="null")


def test_splits_do_not_depend_on_how_much_is_read_at_once(make):
    whole, pieces = make(), make(SENTENCES, None, "shard_rows=1", output="pieces")
    assert sentences(pieces) == SENTENCES
    for split in whole.splits():
        one, two = (np.concatenate([t.subject_id for t in store.tables(split)]) for store in (whole, pieces))
        assert one.tolist() == two.tolist()
    other = make(SENTENCES, None, "seed=3", output="other")
    assert [t.subject_id.tolist() for t in other.tables("train")] != [
        t.subject_id.tolist() for t in whole.tables("train")
    ]


def test_the_vocabulary_counts_train_only(make):
    store = make(SENTENCES, None, "splits.train=0.5", "splits.tuning=0.5", "splits.held_out=0")
    train = [token for table in store.tables("train") for token in table.token.tolist()]
    assert store.splits() == ["train", "tuning"]
    assert [token.count for token in store.vocabulary.tokens] == [train.count(i) for i in range(6)]
    assert sum(counts["tokens"] for counts in store.manifest.content["splits"].values()) == 12


@pytest.mark.parametrize(
    ("found", "length", "message"),
    [
        ([[2], [3, 0]], None, "row 2: 1 ids .* padding or outside of the vocabulary .1 to 5."),
        ([[2], [], [6, 9]], None, "row 3: 2 ids"),
        ([[-1]], None, "row 1: 1 ids"),
        ([[2], None], None, "row 2: input_ids is null"),
        ([[2, None]], None, "1 ids in rows 1 to 1 are null"),
        ([[2], [3]], [1, 2], "row 2: length is not the number"),
    ],
)
def test_broken_sentences_are_refused_with_file_and_row(make, found, length, message):
    with pytest.raises(DataError, match=message):
        make(found, length)


def test_other_files_and_settings_are_refused(make, tmp_path):
    with pytest.raises(ConfigError, match="add up to 1"):
        make(SENTENCES, None, "splits.train=0.9")
    with pytest.raises(FormatError, match="not a readable Parquet file"):
        make(SENTENCES, None, f"path={tmp_path}/vocab.txt")
    pl.DataFrame({"input_ids": [1]}).write_parquet(tmp_path / "flat.parquet")
    with pytest.raises(DataError, match="column 'input_ids' is int64, expected lists of integers"):
        make(SENTENCES, None, f"path={tmp_path}/flat.parquet")
    pl.DataFrame({"ids": [[1]]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="has no column 'input_ids'; it has ids"):
        make(SENTENCES, None, f"path={tmp_path}/other.parquet")
    assert not (tmp_path / "store").exists()


def test_without_medians_the_tokenizer_does_not_pretend_to_rank_other_data(make, frame, tmp_path):
    make()
    from ehr_geneformer.plugin import RankValueConfig
    from ehr_geneformer.tokenizer import RankValue

    tokenizer = RankValue(RankValueConfig())
    tokenizer.load(tmp_path / "store")
    with pytest.raises(DataError, match="no medians"):
        tokenizer.encode(frame([(1, "2020-01-01", "A", 1.0)]))
    (tmp_path / "medians.json").write_text(json.dumps({"A": 1.0, "B": 10.0}))
    make(SENTENCES, None, f"medians={tmp_path}/medians.json", output="ranked")
    tokenizer.load(tmp_path / "ranked")
    assert tokenizer.encode(frame([(1, "2020-01-01", "B", 5.0), (1, "2020-01-01", "A", 1.0)])).token.tolist() == [2, 3]


def test_real_cells_come_through_unchanged(tmp_path):
    root = os.environ.get("EHR_REAL_DATA")
    if not root or not (Path(root) / "genecorpus_500").is_dir():
        pytest.skip("EHR_REAL_DATA does not name a folder with genecorpus_500")
    source = Path(root) / "genecorpus_500"
    run("ehr", "ranked-store", [f"path={source}", f"vocabulary={source}/vocab.txt", f"output={tmp_path}/store"])
    store = TokenStore(tmp_path / "store")
    assert sentences(store) == pl.read_parquet(source / "genecorpus_500_samples.parquet")["input_ids"].to_list()
    names = (source / "vocab.txt").read_text().splitlines()
    assert len(store.vocabulary) == len(names) == 25_426
    assert [store.vocabulary.ids["[PAD]"], store.vocabulary.ids["[MASK]"]] == [0, 1]
    assert [token.token for token in store.vocabulary.tokens[2:]] == names[2:]
    assert store.manifest.content["splits"]["train"]["subjects"] > 350
