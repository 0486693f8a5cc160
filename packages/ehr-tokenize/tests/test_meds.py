"""The source ``meds`` and the command: what is accepted, what is refused, and in which words."""

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core.cli import run
from ehr_core.errors import ConfigError, DataError, EhrError, FormatError
from ehr_core.executors import Serial
from ehr_core.formats.folder import file_digests
from ehr_core.formats.meds import read_events, read_treated
from ehr_core.plugin import MedsConfig, SerialConfig
from ehr_core.sources import MedsSource

ROWS = [
    (1, None, "GENDER//F"),
    (1, "2020-01-01", "ADMIT"),
    (1, "2020-01-02", "LAB//K", 4.0),
    (2, "2020-01-01", "ADMIT"),
]


def tokenize(meds: Path, output: Path, *overrides: str) -> Path:
    run("ehr-tokenize", "tokenize", ["source=meds", f"source.path={meds}", f"output={output}", *overrides])
    return output


def provide(meds: Path) -> Path:
    return MedsSource(MedsConfig(path=str(meds))).provide(meds / "unused", Serial(SerialConfig()))


@pytest.fixture
def shard(world, tmp_path):
    """A dataset whose only train shard is the given frame or rows; returns that file."""

    def make(rows):
        world.write_meds(tmp_path / "meds", train=[rows])
        return tmp_path / "meds" / "data" / "train" / "0.parquet"

    return make


def test_a_dataset_is_used_where_it_is(shard, world, tmp_path):
    meds = shard(ROWS).parents[2]
    assert provide(meds) == meds
    assert not (meds / "unused").exists()


def test_folders_and_columns_are_those_of_the_meds_package():
    from ehr_core.constants import DATA, SPLITS
    from ehr_core.formats.meds import COLUMNS
    from meds import schema

    assert (schema.train_split, schema.tuning_split, schema.held_out_split) == SPLITS
    assert schema.data_subdirectory == DATA
    for field in schema.DataSchema.schema():
        if field.name in COLUMNS:
            assert COLUMNS[field.name][1](field.type), field


def test_the_fingerprint_changes_with_any_byte_of_the_data(shard):
    path = shard(ROWS)
    source = MedsSource(MedsConfig(path=str(path.parents[2])))
    before = source.fingerprint()
    assert sorted(before) == ["data/held_out/0.parquet", "data/train/0.parquet", "data/tuning/0.parquet"]
    shard([*ROWS[:-1], (2, "2020-01-02", "ADMIT")])
    changed = {name for name, digest in source.fingerprint().items() if before[name] != digest}
    assert changed == {"data/train/0.parquet"}


@pytest.mark.parametrize("kind", ["ns", "ms", "dictionary", "large", "float64", "utc", "no numbers", "more columns"])
def test_usual_variants_of_the_column_types_are_read_the_same(shard, world, kind):
    plain = world.frame(ROWS)
    kinds = [pa.int64(), pa.timestamp("us"), pa.string(), pa.float32()]
    table = plain.to_arrow().cast(pa.schema(list(zip(plain.columns, kinds, strict=True))))
    places = {"ns": ("time", pa.timestamp("ns")), "ms": ("time", pa.timestamp("ms"))}
    places |= {"utc": ("time", pa.timestamp("us", "UTC")), "float64": ("numeric_value", pa.float64())}
    places |= {"dictionary": ("code", pa.dictionary(pa.int32(), pa.string())), "large": ("code", pa.large_string())}
    if kind in places:
        name, type_ = places[kind]
        table = table.set_column(table.column_names.index(name), name, table[name].cast(type_))
    if kind == "no numbers":
        table = table.drop_columns("numeric_value")
        plain = plain.with_columns(numeric_value=pl.lit(None, pl.Float32))
    if kind == "more columns":
        table = table.append_column("text_value", pa.array(["x"] * len(table)))
    path = shard(ROWS)
    pq.write_table(table, path)
    provide(path.parents[2])
    assert read_events(path).equals(plain)
    assert read_events(path).schema == plain.schema


def test_numbers_that_are_not_finite_become_null_and_are_counted(shard):
    values = [float("nan"), float("inf"), 1e300, 2.0, None]
    frame = pl.DataFrame(
        {"subject_id": [1] * 5, "time": [datetime(2020, 1, 1)] * 5, "code": ["A"] * 5, "numeric_value": values}
    )
    events, treated = read_treated(shard(frame))
    assert treated["non_finite"] == 3
    assert events["numeric_value"].to_list() == [None, None, None, 2.0, None]


BROKEN = {
    "a null subject": ([(1, "2020-01-01", "A"), (None, "2020-01-01", "A")], "row 2: subject_id is null"),
    "a null code": ([(1, "2020-01-01", "A"), (1, "2020-01-01", None)], "row 2: code is null or empty"),
    "an empty code": ([(1, "2020-01-01", ""), (1, "2020-01-01", "A")], "row 1: code is null or empty"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_row_is_named_with_its_file_and_rule(shard, tmp_path, what):
    rows, message = BROKEN[what]
    path = shard(rows)
    with pytest.raises(DataError, match=f"train/0.parquet, {message}"):
        tokenize(path.parents[2], tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["meds"]  # nothing is left behind


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("subject_id", pl.col("subject_id").cast(pl.String), "'subject_id' is .*string.*, expected int64"),
        ("time", pl.col("time").cast(pl.String), "'time' is .*string.*, expected timestamp"),
        ("code", pl.lit(3, pl.Int64).alias("code"), "'code' is int64, expected string"),
        (
            "numeric_value",
            pl.lit("x").alias("numeric_value"),
            "'numeric_value' is .*string.*, expected float32 or another number",
        ),
    ],
)
def test_a_column_of_another_type_is_refused(shard, world, column, change, message):
    path = shard(world.frame(ROWS).with_columns(change))
    with pytest.raises(DataError, match=message):
        provide(path.parents[2])


def test_a_missing_column_is_refused(shard, world):
    path = shard(world.frame(ROWS).drop("time"))
    with pytest.raises(DataError, match="has no column 'time'"):
        provide(path.parents[2])


def test_an_empty_folder_of_a_split_or_no_folder_at_all_is_named(shard, tmp_path):
    path = shard(ROWS)
    (path.parents[1] / "tuning" / "0.parquet").unlink()
    with pytest.raises(FormatError, match="tuning has no Parquet file"):
        provide(path.parents[2])
    with pytest.raises(FormatError, match="nowhere is not a folder"):
        provide(tmp_path / "nowhere")


def test_a_truncated_file_is_named(shard):
    path = shard(ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match=r"train/0.parquet is not a readable Parquet file"):
        provide(path.parents[2])


def test_a_damaged_page_is_named(shard, world):
    path = shard(world.frame([(1, "2020-01-01", f"CODE//{i}") for i in range(5000)]))
    content = bytearray(path.read_bytes())
    content[40:4000] = b"\xff" * 3960
    path.write_bytes(content)
    with pytest.raises(EhrError, match=r"train/0.parquet"):
        read_events(path)


def test_a_code_that_is_not_text_is_refused(shard):
    path = shard(ROWS)
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"\xff\xfe")]
    )
    time = pa.array([datetime(2020, 1, 1, tzinfo=UTC)], pa.timestamp("us"))
    pq.write_table(pa.table({"subject_id": pa.array([1]), "time": time, "code": bad}), path)
    with pytest.raises(DataError, match=r"train/0.parquet, row 1: code is not UTF-8"):
        read_events(path)


def test_a_subject_in_two_splits_is_refused(world, tmp_path):
    meds = world.write_meds(tmp_path / "meds", train=[ROWS], held_out=[ROWS])
    with pytest.raises(DataError, match="2 subjects are in more than one shard") as caught:
        tokenize(meds, tmp_path / "store")
    assert "train/0.parquet" in str(caught.value)
    assert "held_out/0.parquet" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_an_output_that_exists_is_refused_before_any_work(shard, tmp_path):
    meds = shard(ROWS).parents[2]
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "file").touch()
    with pytest.raises(FormatError, match="exists already"):
        tokenize(meds, tmp_path / "store")


def test_output_is_required():
    with pytest.raises(ConfigError, match="is required"):
        run("ehr-tokenize", "tokenize", ["source=meds"])


def test_an_empty_shard_and_a_split_without_statics_are_fine(world, tmp_path):
    rows = [(1, "2020-01-01", "A")] * 6
    meds = world.write_meds(tmp_path / "meds", train=[rows, []], tuning=[[]])
    found = world.Decoded.store(tokenize(meds, tmp_path / "store"))
    assert found.tokens(1) == ["A"] * 6 + ["TIMELINE_END"]
    assert found.prefix(1, "2020-01-01") == []


def test_workers_and_places_do_not_change_a_byte(world, tmp_path):
    shards = [[(n, "2020-01-01", "A", float(n)), (n, f"2020-01-0{n}", "B")] for n in range(2, 6)]
    stores = []
    for name, executor in (("x", ["executor=serial"]), ("y", ["executor=processes", "executor.num_workers=2"])):
        meds = world.write_meds(tmp_path / name / "meds", train=shards)
        stores.append(tokenize(meds, tmp_path / f"store-{name}", "tokenizer.min_count=1", *executor))
    one, two = (file_digests(store) for store in stores)
    assert one == two
    assert (stores[0] / "manifest.json").read_bytes() == (stores[1] / "manifest.json").read_bytes()
    assert str(tmp_path) not in (stores[0] / "manifest.json").read_text()


def test_shards_of_many_files_keep_their_order_as_numbers(world, tmp_path):
    shards = [[(n + 1, "2020-01-01", "A")] for n in range(11)]
    store = tokenize(world.write_meds(tmp_path / "meds", train=shards), tmp_path / "store")
    from ehr_core.formats.tokens import TokenStore

    assert [int(table.subject_id[0]) for table in TokenStore(store).tables("train")] == list(range(1, 12))


def test_the_summary_says_how_much_there_is(shard, tmp_path, capsys):
    tokenize(shard(ROWS).parents[2], tmp_path / "store", "tokenizer.min_count=1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6 events of 4 subjects -> ")
    assert lines[1].startswith("vocabulary ")
    assert len(lines) == 2


def test_real_data_tokenizes(tmp_path, world):
    import os

    if "EHR_REAL_DATA" not in os.environ:
        pytest.skip("EHR_REAL_DATA is not set: no real records here")
    store = tokenize(Path(os.environ["EHR_REAL_DATA"]) / "physionet2012_a", tmp_path / "store")
    splits = json.loads((store / "manifest.json").read_text())["content"]["splits"]
    assert sum(split["events"] for split in splits.values()) == 1_755_757
    assert sum(split["unk"] for split in splits.values()) == 0
    found = world.Decoded.store(store)
    slots = json.loads((store / "prefix.json").read_text())["slots"]
    assert slots == ["DEMO//Age", "DEMO//Gender", "DEMO//Height", "ICU_TYPE"]
    for subject in found.tables[0].subject_id[:20].tolist():
        assert found.tokens(subject)[0] == "ICU_ADMISSION"
        assert found.prefix(subject, "2012-01-01")[0].startswith("DEMO//Age//Q")


def test_further_columns_are_read_as_text_and_null_where_a_file_lacks_them(tmp_path):
    frame = pl.DataFrame(
        {"subject_id": [1, 1], "time": [datetime(2020, 1, 1)] * 2, "code": ["A", "B"], "text_value": ["120/80", None]}
    ).with_columns(pl.lit(7).alias("hadm_id"), pl.col("text_value").cast(pl.Categorical))
    frame.write_parquet(tmp_path / "0.parquet")
    events = read_events(tmp_path / "0.parquet", ["text_value", "hadm_id", "race"])
    assert events.columns == ["subject_id", "time", "code", "numeric_value", "text_value", "hadm_id", "race"]
    assert events.rows()[0][4:] == ("120/80", "7", None)
    assert set(events.dtypes[4:]) == {pl.String}


def test_a_further_column_that_is_nested_is_refused(tmp_path):
    frame = pl.DataFrame({"subject_id": [1], "time": [datetime(2020, 1, 1)], "code": ["A"], "text_value": [[1, 2]]})
    frame.write_parquet(tmp_path / "0.parquet")
    with pytest.raises(DataError, match="'text_value' is large_list"):
        read_events(tmp_path / "0.parquet", ["text_value"])
