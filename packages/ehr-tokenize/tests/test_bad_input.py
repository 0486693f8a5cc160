"""Every broken input is refused with one line that names the file, and the row where there is one.

Each case changes one thing in a small dataset that tokenizes without a word. `test_odd_input` has what is treated.
"""

import polars as pl
import pyarrow as pa
import pytest


def null_subject(dataset):
    dataset.insert(3, subject_id=None)


def null_code(dataset):
    dataset.insert(dataset.last(), code=None)


def empty_code(dataset):
    dataset.event(code="")


def not_utf8(dataset):
    codes = dataset.table()["code"].cast(pa.binary()).to_pylist()
    codes[4] = b"caf\xe9"
    binary = pa.array(codes, pa.binary())
    dataset.replace("code", pa.Array.from_buffers(pa.string(), len(binary), binary.buffers()))


def wrong_type(dataset):
    dataset.replace("subject_id", dataset.table()["subject_id"].cast(pa.float64()))


def time_as_text(dataset):
    dataset.replace("time", dataset.table()["time"].cast(pa.string()))


def no_code_column(dataset):
    dataset.write(dataset.table().drop_columns("code"))


def empty_split(dataset):
    (dataset.folder / "data" / "tuning" / "0.parquet").unlink()


def no_train(dataset):
    for path in (dataset.folder / "data" / "train").iterdir():
        path.unlink()
    (dataset.folder / "data" / "train").rmdir()


def subject_in_two_splits(dataset):
    (dataset.folder / "data" / "held_out" / "1.parquet").write_bytes(dataset.file.read_bytes())


def splits_contradict(dataset):
    path = dataset.folder / "metadata" / "subject_splits.parquet"
    table = pl.read_parquet(path).with_columns(
        pl.when(pl.col("subject_id") == 2).then(pl.lit("held_out")).otherwise("split").alias("split")
    )
    table.write_parquet(path)


def splits_name_a_subject_twice(dataset):
    path = dataset.folder / "metadata" / "subject_splits.parquet"
    table = pl.read_parquet(path)
    pl.concat([table, pl.DataFrame({"subject_id": [2], "split": ["tuning"]})]).write_parquet(path)


def zero_bytes(dataset):
    dataset.file.write_bytes(b"")


def truncated(dataset):
    dataset.file.write_bytes(dataset.file.read_bytes()[:-30])


def truncated_metadata(dataset):
    path = dataset.folder / "metadata" / "codes.parquet"
    path.write_bytes(path.read_bytes()[:-30])


def bad_json(dataset):
    (dataset.folder / "metadata" / "dataset.json").write_text("{")


REFUSED = {
    null_subject: "train/0.parquet, row 4: subject_id is null",
    null_code: "train/0.parquet, row {last}: code is null or empty",
    empty_code: "train/0.parquet, row {last}: code is null or empty",
    not_utf8: "train/0.parquet, row 5: code is not UTF-8 text",
    wrong_type: "train/0.parquet: column 'subject_id' is double, expected int64",
    time_as_text: "train/0.parquet: column 'time' is string, expected timestamp",
    no_code_column: "train/0.parquet has no column 'code'",
    empty_split: "data/tuning has no Parquet file",
    no_train: "has no split 'train', which is needed to fit on; it has tuning, held_out",
    subject_in_two_splits: "subjects are in more than one shard, one of them in",
    splits_contradict: "subject_splits.parquet, row 2: the subject is in split 'held_out', but its events are in",
    splits_name_a_subject_twice: "subject_splits.parquet, row 25: the subject is in two splits",
    zero_bytes: "train/0.parquet is not a readable Parquet file",
    truncated: "train/0.parquet is not a readable Parquet file",
    truncated_metadata: "codes.parquet is not a readable Parquet file",
    bad_json: "dataset.json is not readable JSON",
}


@pytest.mark.parametrize("broken", REFUSED, ids=lambda broken: broken.__name__)
def test_it_is_refused_with_one_line_that_names_the_file(dataset, broken):
    last = dataset.last() + 1
    broken(dataset)
    status, said = dataset.tokenize()
    lines = [line for line in said.splitlines() if not line.startswith("tokenize: ")]
    assert status == 1
    assert len(lines) == 1, said
    assert lines[0].startswith("ehr-tokenize: error: ")
    assert REFUSED[broken].format(last=last) in lines[0]
    assert sorted(path.name for path in dataset.folder.parent.iterdir()) == ["meds"]
