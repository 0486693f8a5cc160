"""Every broken or odd input: one line that names the file (and the row), or a treatment that the manifest counts.

Each case changes one thing in a small dataset that tokenizes without a word. Cases that are treated also say which
tokens the subject has afterwards, so that none is wrong in silence.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core import cli
from ehr_core.testing.tiny import SUBJECTS, write_tiny_meds
from ehr_tokenize import plugin

SUBJECT = SUBJECTS["train"][0]
WHEN = datetime(2015, 6, 1)


class Dataset:
    """A valid dataset to break, and what comes of tokenizing it."""

    def __init__(self, folder: Path):
        self.folder = write_tiny_meds(folder / "meds")
        self.file = self.folder / "data" / "train" / "0.parquet"
        self.store = folder / "store"

    def table(self) -> pa.Table:
        return pq.read_table(self.file)

    def write(self, table: pa.Table) -> None:
        pq.write_table(table, self.file)

    def insert(self, row: dict, at: int) -> None:
        """Put a row before row ``at`` (from 0) of the first train file."""
        table = self.table()
        new = pa.Table.from_pylist([row], schema=table.schema)
        self.write(pa.concat_tables([table[:at], new, table[at:]]))

    def last(self) -> int:
        """The place after the last row of the first subject."""
        return int(np.flatnonzero(self.table()["subject_id"].to_numpy() == SUBJECT)[-1]) + 1

    def first_timed(self) -> int:
        """The place of the first row with a time."""
        return self.table()["time"].is_valid().to_pylist().index(True)

    def replace(self, column: str, array: pa.Array | pa.ChunkedArray) -> None:
        table = self.table()
        self.write(table.set_column(table.column_names.index(column), column, array))

    def content(self) -> dict:
        return json.loads((self.store / "manifest.json").read_text())["content"]


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path)


def tokenize(dataset: Dataset, monkeypatch, capsys) -> tuple[int, str]:
    """Exit status and what went to stderr, from the console script."""
    capsys.readouterr()
    arguments = ["source=meds", f"source.path={dataset.folder}", f"output={dataset.store}"]
    monkeypatch.setattr(sys, "argv", ["ehr-tokenize", *arguments, "tokenizer.min_count=1"])
    status = plugin.main()
    return status, capsys.readouterr().err


def row(**changes) -> dict:
    return {"subject_id": SUBJECT, "time": WHEN, "code": "LAB//glucose//mg/dL", "numeric_value": 100.0} | changes


def event(dataset: Dataset, **changes) -> None:
    """One more event at the end of the first subject."""
    last = dataset.table()["time"][dataset.last() - 1].as_py()
    dataset.insert(row(time=last, **changes), dataset.last())


# -- refused


def null_subject(dataset):
    dataset.insert(row(subject_id=None), 3)


def null_code(dataset):
    dataset.insert(row(code=None), dataset.last())


def empty_code(dataset):
    event(dataset, code="")


def times_out_of_order(dataset):
    dataset.insert(row(time=datetime(1999, 1, 1)), dataset.last())


def static_row_late(dataset):
    dataset.insert(row(time=None), dataset.last())


def subjects_out_of_order(dataset):
    dataset.insert(row(subject_id=0), dataset.last())


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


def missing_split(dataset):
    empty_split(dataset)
    (dataset.folder / "data" / "tuning").rmdir()


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
    times_out_of_order: "train/0.parquet, row {last}: its time is before the row above",
    static_row_late: "train/0.parquet, row {last}: its time is before the row above (null times come first)",
    subjects_out_of_order: "train/0.parquet, row {last}: subject_id descends",
    not_utf8: "train/0.parquet, row 5: code is not UTF-8 text",
    wrong_type: "train/0.parquet: column 'subject_id' is double, expected int64",
    time_as_text: "train/0.parquet: column 'time' is string, expected timestamp",
    no_code_column: "train/0.parquet has no column 'code'",
    empty_split: "data/tuning has no Parquet file",
    missing_split: "has no split 'tuning'",
    subject_in_two_splits: "subjects are in more than one shard, one of them in",
    splits_contradict: "subject_splits.parquet, row 2: the subject is in split 'held_out', but its events are in",
    splits_name_a_subject_twice: "subject_splits.parquet, row 25: the subject is in two splits",
    zero_bytes: "train/0.parquet is damaged or no Parquet file",
    truncated: "train/0.parquet is damaged or no Parquet file",
    truncated_metadata: "codes.parquet is damaged",
    bad_json: "dataset.json is not readable JSON",
}


@pytest.mark.parametrize("broken", REFUSED, ids=lambda broken: broken.__name__)
def test_it_is_refused_with_one_line_that_names_the_file(dataset, monkeypatch, capsys, broken):
    last = dataset.last() + 1
    broken(dataset)
    status, said = tokenize(dataset, monkeypatch, capsys)
    lines = [line for line in said.splitlines() if not line.startswith("tokenize: ")]
    assert status == 1
    assert len(lines) == 1, said
    assert lines[0].startswith("ehr-tokenize: error: ")
    assert REFUSED[broken].format(last=last) in lines[0]
    assert sorted(path.name for path in dataset.folder.parent.iterdir()) == ["meds"]


# -- treated and counted


def nan_value(dataset):
    event(dataset, numeric_value=float("nan"))


def infinite_value(dataset):
    event(dataset, numeric_value=float("-inf"))


def beyond_float32(dataset):
    values = dataset.table()["numeric_value"].cast(pa.float64()).to_pylist()
    dataset.replace("numeric_value", pa.array(values, pa.float64()))
    event(dataset, numeric_value=1e300)


def in_the_future(dataset):
    dataset.insert(row(time=datetime(2999, 1, 1)), dataset.last())


def before_birth(dataset):
    dataset.insert(row(time=datetime(1900, 1, 1)), dataset.first_timed())


def duplicate_row(dataset):
    dataset.insert(dataset.table()[dataset.last() - 1 : dataset.last()].to_pylist()[0], dataset.last())


def duplicate_static(dataset):
    dataset.insert(dataset.table()[0:1].to_pylist()[0], 1)


def empty_shard(dataset):
    pq.write_table(dataset.table()[:0], dataset.folder / "data" / "train" / "2.parquet")


def long_code(dataset):
    event(dataset, code="NOTE//" + "x" * 10_000)


def no_values(dataset):
    dataset.write(dataset.table().drop_columns("numeric_value"))


def time_zone(dataset):
    dataset.replace(
        "time", dataset.table()["time"].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", "Asia/Tokyo"))
    )


TREATED = {
    nan_value: ("non_finite", "LAB//glucose//mg/dL", None),
    infinite_value: ("non_finite", "LAB//glucose//mg/dL", None),
    beyond_float32: ("non_finite", "LAB//glucose//mg/dL", None),
    in_the_future: ("future", "LAB//glucose//mg/dL", "Q"),
    before_birth: ("before_birth", "LAB//glucose//mg/dL", "Q"),
    duplicate_row: ("duplicates", "HOSPITAL_DISCHARGE//HOME", None),
    duplicate_static: ("duplicate_static", None, None),
    empty_shard: ("shards_empty", None, None),
    long_code: ("long_codes", "NOTE//" + "x" * 10_000, "Q"),
    no_values: ("shards_without_values", None, None),
    time_zone: ("shards_with_time_zone", None, None),
}


@pytest.mark.parametrize("odd", TREATED, ids=lambda odd: odd.__name__)
def test_it_is_counted_and_no_token_is_wrong(dataset, monkeypatch, capsys, world, tmp_path, odd):
    name, code, number = TREATED[odd]
    assert tokenize(dataset, monkeypatch, capsys)[0] == 0
    plain, counts = world.Decoded.store(dataset.store), dataset.content()
    assert not any(counts["treated"]["train"].values())
    dataset.store = tmp_path / "again"
    odd(dataset)
    status, said = tokenize(dataset, monkeypatch, capsys)
    assert status == 0, said
    content = dataset.content()
    found = {**content["treated"]["train"], "non_finite": content["splits"]["train"]["non_finite"]}
    assert {key: value for key, value in found.items() if value} == {name: 1}
    decoded = world.Decoded.store(dataset.store)
    before, after = plain.tokens(SUBJECT), decoded.tokens(SUBJECT)
    if odd is no_values:
        assert not any(token.startswith("Q") for token in after if token != "Q")
        return
    if code is None:
        assert after == before
        assert decoded.times(SUBJECT) == plain.times(SUBJECT)
        return
    extra = len([token for token in after if token == code]) - len([token for token in before if token == code])
    assert extra == 1
    place = after.index(code) if odd is before_birth else len(after) - 1 - after[::-1].index(code)
    assert after[place + 1].startswith("Q") == (number == "Q")


def test_a_time_zone_is_converted_and_not_dropped(dataset, monkeypatch, capsys, world):
    event(dataset)
    local = dataset.table()["time"].cast(pa.timestamp("us", "America/New_York"))  # the same instants, said otherwise
    expected = [
        int(t.timestamp() * 1e6) for t in dataset.table()["time"].cast(pa.timestamp("us", "UTC")).to_pylist() if t
    ]
    dataset.replace("time", local)
    assert tokenize(dataset, monkeypatch, capsys)[0] == 0
    assert set(world.Decoded.store(dataset.store).times(SUBJECT)[:-1]) <= set(expected)


def test_codes_in_a_dictionary_are_codes(dataset, monkeypatch, capsys, world, tmp_path):
    assert tokenize(dataset, monkeypatch, capsys)[0] == 0
    plain = dataset.content(), world.Decoded.store(dataset.store).tokens(SUBJECT)
    dataset.replace("code", dataset.table()["code"].dictionary_encode())
    dataset.store = tmp_path / "again"
    assert tokenize(dataset, monkeypatch, capsys)[0] == 0
    assert (dataset.content(), world.Decoded.store(dataset.store).tokens(SUBJECT)) == plain


def test_missing_metadata_is_noted(dataset, monkeypatch, capsys):
    for path in (dataset.folder / "metadata").iterdir():
        path.unlink()
    (dataset.folder / "metadata").rmdir()
    assert tokenize(dataset, monkeypatch, capsys)[0] == 0
    found = dataset.content()["metadata"]
    assert found["missing"] == ["codes.parquet", "dataset.json", "subject_splits.parquet"]
    assert found["subjects_without_split"] == 24


def test_whole_metadata_leaves_nothing_to_note(dataset, monkeypatch, capsys):
    assert tokenize(dataset, monkeypatch, capsys)[0] == 0
    assert dataset.content()["metadata"] == {"missing": [], "codes_not_described": 0, "subjects_without_split": 0}


def test_unknown_units_and_codes_without_metadata_are_counted_and_become_unk(dataset, monkeypatch, capsys, world):
    file = dataset.folder / "data" / "held_out" / "0.parquet"
    table = pq.read_table(file)
    codes = [c.replace("mg/dL", "furlong") if c.startswith("LAB//glucose") else c for c in table["code"].to_pylist()]
    pq.write_table(table.set_column(2, "code", pa.array(codes, pa.string())), file)
    assert tokenize(dataset, monkeypatch, capsys)[0] == 0
    content = dataset.content()
    unknown = codes.count("LAB//glucose//furlong")
    assert content["metadata"]["codes_not_described"] == 1
    assert content["splits"]["held_out"]["unk"] == unknown
    assert content["coverage"]["held_out"]["LAB"]["unk_events"] == unknown
    tokens = world.Decoded.store(dataset.store).tokens(SUBJECTS["held_out"][0])
    after = [tokens[place + 1] for place, token in enumerate(tokens) if token == "[UNK]"]
    assert after
    assert not any(token.startswith("Q") for token in after)  # breaks of another unit would be a wrong token


def test_subjects_that_the_splits_do_not_name_are_counted(dataset, monkeypatch, capsys):
    path = dataset.folder / "metadata" / "subject_splits.parquet"
    pl.read_parquet(path).filter(pl.col("subject_id") > 3).write_parquet(path)
    assert tokenize(dataset, monkeypatch, capsys)[0] == 0
    assert dataset.content()["metadata"]["subjects_without_split"] == 3


def test_duplicates_can_be_dropped(dataset, monkeypatch, capsys, world, tmp_path):
    assert tokenize(dataset, monkeypatch, capsys)[0] == 0
    before = world.Decoded.store(dataset.store).tokens(SUBJECT)
    duplicate_row(dataset)
    duplicate_static(dataset)
    arguments = [f"source.path={dataset.folder}", f"output={tmp_path}/again", "duplicates=drop"]
    cli.run("ehr-tokenize", "tokenize", ["source=meds", "tokenizer.min_count=1", *arguments])
    dataset.store = tmp_path / "again"
    assert world.Decoded.store(dataset.store).tokens(SUBJECT) == before
    treated = dataset.content()["treated"]["train"]
    assert {name: count for name, count in treated.items() if count} == {"dropped": 2}


@pytest.mark.parametrize(
    ("latest", "made", "expected"),
    [
        ("2014-06-01", None, True),
        (None, "2014-06-01T00:00:00", True),
        ("2040-01-01", "2014-06-01", False),
        (None, None, False),
    ],
)
def test_the_future_begins_where_the_settings_or_the_dataset_say(dataset, tmp_path, latest, made, expected):
    path = dataset.folder / "metadata" / "dataset.json"
    facts = json.loads(path.read_text()) | ({"created_at": made} if made else {})
    path.write_text(json.dumps(facts))
    arguments = [f"source.path={dataset.folder}", f"output={dataset.store}", *([f"latest={latest}"] if latest else [])]
    cli.run("ehr-tokenize", "tokenize", ["source=meds", *arguments])
    limit = datetime.fromisoformat(latest or made or "2999-01-01").replace(tzinfo=UTC)
    times = pl.concat([pl.read_parquet(p) for p in (dataset.folder / "data" / "train").glob("*.parquet")])["time"]
    later = int((times.dt.replace_time_zone("UTC") > limit).sum())
    assert dataset.content()["treated"]["train"]["future"] == later
    assert (later > 0) == expected


@pytest.mark.parametrize(
    ("setting", "message"), [("latest=soon", "latest is 'soon'"), ("duplicates=merge", "allowed: keep, drop")]
)
def test_settings_out_of_range_are_refused(dataset, setting, message):
    from ehr_core.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        cli.run(
            "ehr-tokenize",
            "tokenize",
            ["source=meds", f"source.path={dataset.folder}", f"output={dataset.store}", setting],
        )
