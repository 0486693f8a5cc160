"""Every odd input has a treatment that the manifest counts, and no token is wrong in silence.

Each case changes one thing in a small dataset, and says which tokens the subject has afterwards. `test_bad_input` has
what is refused.
"""

import json
from datetime import UTC, datetime, timedelta

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core import cli
from ehr_core.testing.tiny import SUBJECTS


def nan_value(dataset):
    dataset.event(numeric_value=float("nan"))


def infinite_value(dataset):
    dataset.event(numeric_value=float("-inf"))


def beyond_float32(dataset):
    values = dataset.table()["numeric_value"].cast(pa.float64()).to_pylist()
    dataset.replace("numeric_value", pa.array(values, pa.float64()))
    dataset.event(numeric_value=1e300)


def in_the_future(dataset):
    dataset.insert(dataset.last(), time=datetime(2999, 1, 1))


def long_ago(dataset):
    dataset.insert(dataset.first_timed(), time=datetime(1753, 1, 1))


def before_life(dataset):
    dataset.insert(dataset.first_timed(), time=datetime(1900, 1, 1))


def before_birth(dataset):
    birth = dataset.table()["time"][dataset.first_timed()].as_py()
    dataset.insert(dataset.first_timed(), time=birth - timedelta(days=90))


def out_of_order(dataset):
    rows = dataset.table().to_pylist()
    order = sorted(rows, key=lambda row: (row["subject_id"], row["time"] or datetime.min), reverse=True)  # stable
    dataset.write(pa.Table.from_pylist(order, schema=dataset.table().schema))


def duplicate_row(dataset):
    dataset.insert(dataset.last(), **dataset.table()[dataset.last() - 1 : dataset.last()].to_pylist()[0])


def duplicate_static(dataset):
    dataset.insert(1, **dataset.table()[0:1].to_pylist()[0])


def empty_shard(dataset):
    pq.write_table(dataset.table()[:0], dataset.folder / "data" / "train" / "2.parquet")


def long_code(dataset):
    dataset.event(code="NOTE//" + "x" * 10_000)


def other_unit(dataset):
    dataset.event()
    table = dataset.table()
    unit = [code.partition("//mg")[1] and "mg/dL" for code in table["code"].to_pylist()]
    unit[dataset.last() - 1] = "mmol/L"
    dataset.write(table.append_column("unit", pa.array(unit, pa.string())))


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
    in_the_future: ("future", None, None),
    long_ago: ("long_ago", None, None),
    before_life: ("beyond_life", None, None),
    out_of_order: ("shards_sorted", None, None),
    before_birth: ("before_birth", "LAB//glucose//mg/dL", "Q"),
    duplicate_row: ("duplicates", "HOSPITAL_DISCHARGE//HOME", None),
    duplicate_static: ("duplicate_static", None, None),
    empty_shard: ("shards_empty", None, None),
    long_code: ("long_codes", "NOTE//" + "x" * 10_000, "Q"),
    other_unit: ("other_units", "LAB//glucose//mg/dL", "Q"),
    no_values: ("shards_without_values", None, None),
    time_zone: ("shards_with_time_zone", None, None),
}


@pytest.mark.parametrize("odd", TREATED, ids=lambda odd: odd.__name__)
def test_it_is_counted_and_no_token_is_wrong(dataset, world, tmp_path, odd):
    name, code, number = TREATED[odd]
    assert dataset.tokenize()[0] == 0
    plain, counts = world.Decoded.store(dataset.store), dataset.content()
    assert not any(counts["treated"]["train"].values())
    dataset.store = tmp_path / "again"
    odd(dataset)
    status, said = dataset.tokenize()
    assert status == 0, said
    content = dataset.content()
    found = {**content["treated"]["train"], "non_finite": content["splits"]["train"]["non_finite"]}
    assert {key: value for key, value in found.items() if value} == {name: 1}
    decoded = world.Decoded.store(dataset.store)
    before, after = plain.tokens(dataset.subject), decoded.tokens(dataset.subject)
    if odd is no_values:
        assert not any(token.startswith("Q") for token in after if token != "Q")
        return
    if code is None:
        assert after == before
        assert decoded.times(dataset.subject) == plain.times(dataset.subject)
        return
    extra = len([token for token in after if token == code]) - len([token for token in before if token == code])
    assert extra == 1
    place = after.index(code) if odd is before_birth else len(after) - 1 - after[::-1].index(code)
    assert after[place + 1].startswith("Q") == (number == "Q")


def test_a_time_zone_is_converted_and_not_dropped(dataset, world):
    dataset.event()
    local = dataset.table()["time"].cast(pa.timestamp("us", "America/New_York"))  # the same instants, said otherwise
    expected = [
        int(t.timestamp() * 1e6) for t in dataset.table()["time"].cast(pa.timestamp("us", "UTC")).to_pylist() if t
    ]
    dataset.replace("time", local)
    assert dataset.tokenize()[0] == 0
    assert set(world.Decoded.store(dataset.store).times(dataset.subject)[:-1]) <= set(expected)


def test_codes_in_a_dictionary_are_codes(dataset, world, tmp_path):
    assert dataset.tokenize()[0] == 0
    plain = dataset.content(), world.Decoded.store(dataset.store).tokens(dataset.subject)
    dataset.replace("code", dataset.table()["code"].dictionary_encode())
    dataset.store = tmp_path / "again"
    assert dataset.tokenize()[0] == 0
    assert (dataset.content(), world.Decoded.store(dataset.store).tokens(dataset.subject)) == plain


def test_missing_metadata_is_noted(dataset):
    for path in (dataset.folder / "metadata").iterdir():
        path.unlink()
    (dataset.folder / "metadata").rmdir()
    assert dataset.tokenize()[0] == 0
    found = dataset.content()["metadata"]
    assert found["missing"] == ["codes.parquet", "dataset.json", "subject_splits.parquet"]
    assert found["subjects_without_split"] == 24


def test_whole_metadata_leaves_nothing_to_note(dataset):
    assert dataset.tokenize()[0] == 0
    nothing = {"missing": [], "codes_not_described": 0, "subjects_without_split": 0, "dates_shifted": False}
    assert dataset.content()["metadata"] == nothing


def test_unknown_units_and_codes_without_metadata_are_counted_and_become_unk(dataset, world):
    file = dataset.folder / "data" / "held_out" / "0.parquet"
    table = pq.read_table(file)
    codes = [c.replace("mg/dL", "furlong") if c.startswith("LAB//glucose") else c for c in table["code"].to_pylist()]
    pq.write_table(table.set_column(2, "code", pa.array(codes, pa.string())), file)
    assert dataset.tokenize()[0] == 0
    content = dataset.content()
    unknown = codes.count("LAB//glucose//furlong")
    assert content["metadata"]["codes_not_described"] == 1
    assert content["splits"]["held_out"]["unk"] == unknown
    assert content["coverage"]["held_out"]["LAB"]["unk_events"] == unknown
    tokens = world.Decoded.store(dataset.store).tokens(SUBJECTS["held_out"][0])
    after = [tokens[place + 1] for place, token in enumerate(tokens) if token == "[UNK]"]
    assert after
    assert not any(token.startswith("Q") for token in after)  # breaks of another unit would be a wrong token


def test_subjects_that_the_splits_do_not_name_are_counted(dataset):
    path = dataset.folder / "metadata" / "subject_splits.parquet"
    pl.read_parquet(path).filter(pl.col("subject_id") > 3).write_parquet(path)
    assert dataset.tokenize()[0] == 0
    assert dataset.content()["metadata"]["subjects_without_split"] == 3


def test_duplicates_can_be_dropped(dataset, world, tmp_path):
    assert dataset.tokenize()[0] == 0
    before = world.Decoded.store(dataset.store).tokens(dataset.subject)
    duplicate_row(dataset)
    duplicate_static(dataset)
    arguments = [f"source.path={dataset.folder}", f"output={tmp_path}/again", "duplicates=drop"]
    cli.run("ehr-tokenize", "tokenize", ["source=meds", "tokenizer.min_count=1", *arguments])
    dataset.store = tmp_path / "again"
    assert world.Decoded.store(dataset.store).tokens(dataset.subject) == before
    treated = dataset.content()["treated"]["train"]
    assert {name: count for name, count in treated.items() if count} == {"dropped": 2}


@pytest.mark.parametrize(
    ("latest", "made", "expected"),
    [
        ("2016-06-01", None, True),
        (None, "2016-06-01T00:00:00", True),
        ("2040-01-01", "2014-06-01", False),
        (None, "2014-06-01", False),  # most events are later, so their dates were shifted
        (None, None, False),
    ],
)
def test_the_future_begins_where_the_settings_or_the_dataset_say(dataset, tmp_path, latest, made, expected):
    path = dataset.folder / "metadata" / "dataset.json"
    facts = json.loads(path.read_text()) | ({"created_at": made} if made else {})
    path.write_text(json.dumps(facts))
    arguments = [
        f"source.path={dataset.folder}",
        f"output={dataset.store}",
        *([f"source.latest={latest}"] if latest else []),
    ]
    cli.run("ehr-tokenize", "tokenize", ["source=meds", *arguments])
    limit = datetime.fromisoformat(latest or made or "2999-01-01").replace(tzinfo=UTC)
    limit += timedelta(days=0 if latest else 1)
    times = pl.concat([pl.read_parquet(p) for p in (dataset.folder / "data" / "train").glob("*.parquet")])["time"]
    later = int((times.dt.replace_time_zone("UTC") > limit).sum())
    shifted = dataset.content()["metadata"]["dates_shifted"]
    assert shifted == (made == "2014-06-01" and not latest)
    assert dataset.content()["treated"]["train"]["future"] == (0 if shifted else later)
    assert (later > 0 and not shifted) == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [("source.latest=soon", "source.latest is 'soon'"), ("duplicates=merge", "allowed: keep, drop")],
)
def test_settings_out_of_range_are_refused(dataset, setting, message):
    from ehr_core.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        cli.run(
            "ehr-tokenize",
            "tokenize",
            ["source=meds", f"source.path={dataset.folder}", f"output={dataset.store}", setting],
        )
