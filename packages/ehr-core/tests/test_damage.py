"""Files that were damaged on the way: each reader gives the same as before, or one line that says what is wrong."""

import contextlib
import dataclasses
import json
import shutil
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core.errors import FormatError
from ehr_core.formats import folder, labels, tokens
from ehr_core.formats.arrays import map_arrays
from ehr_core.formats.folder import DEEPEST, Manifest, read_json, write_json, write_sealed
from ehr_core.formats.intervals import Interval, Intervals
from ehr_core.formats.meds import read_treated, shards, subject_splits
from ehr_core.formats.pages import checked
from ehr_core.formats.parquet import read_table, write_table
from ehr_core.formats.predictions import prediction_table, read_predictions, write_predictions
from ehr_core.formats.tokens import NO_TIME, Prefix, TokenStore, TokenTable, prefix_tokens
from ehr_core.formats.vocabulary import Token, Vocabulary
from ehr_core.outcomes import BINARY, Question
from ehr_core.stages import Graph
from ehr_core.testing.corruption import check_reader, reseal
from ehr_core.testing.tiny import write_tiny_meds

VOCABULARY = Vocabulary.build([Token("A", "code", ("A",), 3), Token("B", "code", ("B",), 1)])
PREFIX = Prefix(slots=("GENDER",), unknown=(7,), tens=(7,) * 10, units=(8,) * 10, age_unknown=7)


def write_store(path):
    with folder.new_folder(path) as new:
        for split, first in (("train", 1), ("tuning", 100)):
            table = TokenTable(
                subject_id=np.arange(first, first + 3),
                offset=np.array([0, 40, 40, 100]),
                token=np.arange(100).astype(np.uint16) % 2 + 7,
                time=np.arange(100) * 1_000_000,
                birth=np.array([0, NO_TIME, 5]),
                static_offset=np.array([0, 1, 1, 2]),
                static_slot=np.zeros(2, np.uint16),
                static_token=np.array([7, 8], np.uint16),
                static_time=np.array([NO_TIME, 5]),
                columns={"value": np.linspace(0, 1, 100, dtype=np.float32)},
            )
            table.write(new / split / "0.safetensors")
        VOCABULARY.save(new)
        tokens.write_prefix(new, PREFIX)
        Intervals({"A": Interval(3600.0, 0.01, None)}).save(new)
        write_json(new / "tokenizer.json", {"name": "x", "settings": {"a": 1}, "state": {}})
        content = {"vocabulary": VOCABULARY.digest, "columns": ["value"], "splits": {"train": {"subjects": 3}}}
        folder.write_manifest(new, Manifest("token-store", 1, ["me==1"], {"seed": 1}, {"a": "b"}, content))
    return path


def read_store(path):
    store = TokenStore(path)
    tables = {split: [table.arrays() for table in store.tables(split)] for split in ("train", "tuning")}
    first = next(store.tables("train"))
    asked = [prefix_tokens(store.prefix, first, subject, 10**15) for subject in range(3)]
    return store.manifest, store.vocabulary.tokens, store.unknown, tables, asked, Intervals.load(path)


CONTENT = {
    "name": "death",
    "question": {"kind": "binary", "names": []},
    "splits": {
        "train": {"positives": 14, "rows": 40, "subjects": 40},
        "held_out": {"positives": 3, "rows": 9, "subjects": 9},
    },
}
LABELS = pa.table(
    {
        "subject_id": pa.array(range(40), pa.int64()),
        "prediction_time": pa.array(range(40), pa.timestamp("us")),
        "boolean_value": pa.array([number % 3 == 0 for number in range(40)]),
    }
)


def write_labels(path):
    found = labels.Labels("death", Question(BINARY), {"train": LABELS, "held_out": LABELS.slice(3, 9)})
    with folder.new_folder(path) as new:
        labels.write_label_folder(new, found, Manifest("labels", 2, ["me==1"], {}))
    return path


def read_the_labels(path):
    found = labels.read_labels(path)
    manifest = (path / "manifest.json").is_file()  # without one they are a user's own, and as good
    return found.question, dict(found.tables), (found.name, found.content) if manifest else ("death", CONTENT)


def test_a_token_store(tmp_path):
    check_reader(read_store, write_store(tmp_path / "whole"), tmp_path / "s")


def test_a_token_store_whose_writer_made_the_mistake(tmp_path):
    outcomes = check_reader(read_store, write_store(tmp_path / "whole"), tmp_path / "s", vouched=True, times=1)
    assert outcomes["other"] < outcomes["refused"]


def test_labels(tmp_path):
    check_reader(read_the_labels, write_labels(tmp_path / "whole"), tmp_path / "s", times=6)


def test_labels_whose_writer_made_the_mistake(tmp_path):
    check_reader(read_the_labels, write_labels(tmp_path / "whole"), tmp_path / "s", vouched=True)


def test_meds_shards(tmp_path):
    def read(path):
        found = shards(path)
        return subject_splits(found), [(shard.split, shard.number, read_treated(shard.path)) for shard in found]

    whole = write_tiny_meds(tmp_path / "whole")  # MEDS lists no files, so one that is gone is not missed
    check_reader(read, whole, tmp_path / "s", files="0.parquet", times=8, skip=["deleted"])


def test_predictions(tmp_path):
    (tmp_path / "whole").mkdir()
    table = prediction_table(LABELS, "train", np.linspace(0, 1, 40), Question(BINARY))
    write_predictions(tmp_path / "whole" / "predictions.parquet", [table])

    def read(path):
        found = read_predictions(path / "predictions.parquet")
        return found.question, found.prediction, found.label, found.table

    check_reader(read, tmp_path / "whole", tmp_path / "s", times=40)


def write_numbers(output, settings):
    (output / "numbers.txt").write_text("1 2 3")
    (output / "more.txt").write_text("4")


def test_the_listing_of_a_stage(tmp_path):
    def graph(place):
        made = Graph(place)
        made.add("numbers", write_numbers, {})
        return made

    graph(tmp_path / "whole").run()

    def read(path):
        (stage,) = graph(path).stages
        return stage.done, stage.reason

    check_reader(read, tmp_path / "whole", tmp_path / "s", files=".*.json", times=4)


# -- what each of the checks refuses


def test_the_file_that_differs_is_named_and_what_to_do(tmp_path):
    path = write_store(tmp_path / "store")
    shard = path / "train" / "0.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    opened = TokenStore(path)
    assert next(opened.tables("tuning")).subject_id[0] == 100  # what is not read is not hashed
    with pytest.raises(FormatError, match=r"train/0\.safetensors is damaged or another file.*make it anew"):
        next(opened.tables("train"))


def test_a_file_that_is_listed_and_missing_is_named(tmp_path):
    path = write_store(tmp_path / "store")
    shutil.copy(path / "train" / "0.safetensors", path / "train" / "1.safetensors")
    reseal(path)
    (path / "train" / "0.safetensors").unlink()
    with pytest.raises(FormatError, match=r"train/0\.safetensors is missing; manifest\.json lists it"):
        next(TokenStore(path).tables("train"))


def test_a_shard_that_the_manifest_does_not_list_is_refused_and_other_files_are_nobodys(tmp_path):
    path = write_store(tmp_path / "store")
    (path / "notes.txt").write_text("mine")
    assert len(list(TokenStore(path).tables("train"))) == 1
    shutil.copy(path / "tuning" / "0.safetensors", path / "train" / "1.safetensors")
    with pytest.raises(FormatError, match=r"train/1\.safetensors is not listed"):
        next(TokenStore(path).tables("train"))


def test_a_label_file_that_the_manifest_does_not_list_is_refused(tmp_path):
    path = write_labels(tmp_path / "labels")
    shutil.copy(path / "held_out.parquet", path / "tuning.parquet")
    with pytest.raises(FormatError, match=r"tuning\.parquet is not listed"):
        labels.read_labels(path)


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path = write_store(tmp_path / "store")
    hashed = []
    whole = folder.file_digest
    monkeypatch.setattr(folder, "file_digest", lambda file: (hashed.append(file.name), whole(file))[1])
    for _ in range(3):
        read_store(path)
    assert hashed.count("0.safetensors") == 2  # one a split
    assert hashed.count("vocabulary.json") == 1
    VOCABULARY.save(path)  # the same content at another time
    read_store(path)
    assert hashed.count("vocabulary.json") == 2


def test_a_manifest_without_a_seal_is_read_and_one_that_was_edited_is_not(tmp_path):
    path = write_store(tmp_path / "store")
    written = json.loads((path / "manifest.json").read_text())
    sealed = written.pop("sha256")
    (path / "manifest.json").write_text(json.dumps(written))  # as before there were seals
    assert TokenStore(path).manifest.settings == {"seed": 1}
    written["settings"]["seed"] = 2
    (path / "manifest.json").write_text(json.dumps(written | {"sha256": sealed}))
    with pytest.raises(FormatError, match=r"manifest\.json was changed after it was written"):
        TokenStore(path)


@dataclasses.dataclass
class OneNumber:
    version: int
    more: Any = None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"version": "1"}', r"\$.version: expected `int`, got `str`"),
        ("{}", r"\$: object missing required field `version`"),
        ('{"version": 1, "versoin": 2}', r"\$ has the unknown field 'versoin'"),
        ('{"version": 1' + "0" * 5000 + "}", "out of range"),
        ('{"version": NaN}', "not readable JSON"),
        ('{"version": 1, "more": ' + "[" * 200 + "]" * 200 + "}", f"nests deeper than {DEEPEST} levels"),
        ("[" * 10**6, "not readable JSON"),
        ('{"version": 1', "not readable JSON"),
        ("\ud800".encode("utf-8", "surrogatepass"), "not readable JSON"),
        ("", "not readable JSON"),
    ],
)
def test_json_is_read_into_a_type_or_refused_with_file_and_field(tmp_path, content, words):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FormatError, match=words) as error:
        read_json(path, OneNumber)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_brackets_in_texts_do_not_nest(tmp_path):
    value = {"a": "[" * 500, 'b"[{': "\\" * 3 + '"[' * 90}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


def test_a_file_of_json_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "MOST_BYTES", 10)
    write_json(tmp_path / "x.json", ["a" * 20])
    with pytest.raises(FormatError, match="bytes; JSON of at most 10 is read"):
        read_json(tmp_path / "x.json")


def test_a_seal_holds_for_numbers_and_keys_that_json_writes_in_another_way(tmp_path):
    value = {"a": {10: 1.5, 9: 2}, "b": 1e-7, "c": -0.0, "d": 1e22, "e": (1, None)}
    write_sealed(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == {"a": {"10": 1.5, "9": 2}, "b": 1e-7, "c": -0.0, "d": 1e22, "e": [1, None]}


HEADER = {
    "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "y": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": {"data_offsets": [-8, 0]}}, "int` >= 0"),
        ({"y": {"data_offsets": [4, 12]}}, "'y' begins at byte 4"),
        ({"x": {"shape": [3]}}, "'x' has 8 bytes, which is not what its shape needs"),
        ({"x": {"shape": [2**40, 2**40]}}, "not what its shape needs"),
        ({"x": {"dtype": "F33"}}, "unknown type 'F33'"),
        ({"x": {"dtype": 3}}, "xpected `str`"),
        ({"y": {"data_offsets": [8, 24], "shape": [2]}}, "there are 16 bytes of data, and its arrays have 24"),
        ({"x": {"more": 1}}, "unknown field `more`"),
    ],
)
def test_a_header_of_safetensors_that_cannot_be_is_refused(tmp_path, change, words):
    header = {name: spec | change.get(name, {}) for name, spec in HEADER.items()}
    write_safetensors(tmp_path / "x.safetensors", json.dumps(header).encode())
    with pytest.raises(FormatError, match=words):
        map_arrays(tmp_path / "x.safetensors")


def write_safetensors(path, header, size=None):
    path.write_bytes((len(header) if size is None else size).to_bytes(8, "little") + header + bytes(16))


def test_a_header_with_a_name_twice_or_longer_than_the_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, json.dumps(HEADER).encode())
    assert map_arrays(path)["y"].tolist() == [0]
    write_safetensors(path, json.dumps(HEADER).replace('"y"', '"x"').encode())
    with pytest.raises(FormatError, match="begins at byte 8 of the data, and the one before ends at 0"):
        map_arrays(path)
    write_safetensors(path, json.dumps(HEADER).encode(), size=2**62)
    with pytest.raises(FormatError, match="its header is longer than the file"):
        map_arrays(path)


# -- Parquet


def test_parquet_that_is_written_here_has_checksums_that_others_verify(tmp_path):
    path = tmp_path / "x.parquet"
    write_table(path, LABELS, "none")
    assert pq.read_table(path, page_checksum_verification=True).equals(LABELS)
    assert pl.read_parquet(path)["subject_id"].to_list() == list(range(40))
    content = path.read_bytes()
    place = content.index(np.arange(20, 22).tobytes())  # two of the ids
    path.write_bytes(content[:place] + b"\1" + content[place + 1 :])
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)
    with pytest.raises(FormatError, match=r"x\.parquet is not a readable Parquet file: its content differs"):
        read_table(path)


def test_pages_of_other_writers_are_held_against_their_checksums(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(LABELS, path, write_page_checksum=True, compression="none")
    content = path.read_bytes()
    place = content.index(np.arange(20, 22).tobytes())
    path.write_bytes(content[:place] + b"\1" + content[place + 1 :])
    with pytest.raises(FormatError, match="a page of column 'subject_id' differs from its checksum"):
        read_table(path)


def test_every_bit_of_a_file_that_is_written_here_counts(tmp_path):
    path = tmp_path / "x.parquet"
    table = LABELS.select(["subject_id"]).slice(0, 3)
    write_table(path, table)
    content, same = path.read_bytes(), 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with contextlib.suppress(FormatError):
            assert read_table(path).equals(table), place
            same += 1
    assert same <= 8  # the letters of the seal, without which the file is one of another writer


@pytest.mark.parametrize("library", ["arrow", "polars"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_files_of_other_writers_are_read_whatever_is_in_them(tmp_path, library, version):
    table = LABELS.append_column("lists", pa.array([None, [], [1.5, None]] * 13 + [[0.5]])).append_column(
        "nothing", pa.nulls(40)
    )
    for rows in (table, table.slice(0, 0), pa.concat_tables([table] * 50)):
        path = tmp_path / "x.parquet"
        if library == "arrow":
            options = {"data_page_size": 64, "row_group_size": 100, "write_page_index": True, "compression": "gzip"}
            pq.write_table(rows, path, data_page_version=version, write_page_checksum=True, **options)
        else:
            pl.from_arrow(rows.drop_columns("nothing")).write_parquet(path, row_group_size=100)
        assert checked(path) == path
        assert len(read_table(path)) == len(rows)


def test_keys_of_a_type_may_be_numbers(tmp_path):
    write_json(tmp_path / "x.json", {"7": 0.5, "12": 1})
    assert read_json(tmp_path / "x.json", dict[int, float]) == {7: 0.5, 12: 1.0}
