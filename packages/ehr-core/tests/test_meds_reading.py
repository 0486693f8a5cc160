"""MEDS in every layout that the standard allows, and one rule for times that cannot be."""

from datetime import datetime, timedelta

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.executors import Serial
from ehr_core.formats.meds import last_time, read_events, read_treated, shards, subject_splits
from ehr_core.plugin import MedsConfig, SerialConfig
from ehr_core.sources import MedsSource
from hypothesis import given, settings
from hypothesis import strategies as st

SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def frame(*rows):
    """Events from rows (subject, ISO time or None, code)."""
    filled = [(s, datetime.fromisoformat(t) if t else None, c, None) for s, t, c in rows]
    return pl.DataFrame(filled, SCHEMA, orient="row")


def write(folder, **files):
    """A dataset from names of files below ``data``, with __ for /, to frames or tables."""
    for name, table in files.items():
        path = folder / "data" / f"{name.replace('__', '/')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table if isinstance(table, pa.Table) else table.to_arrow(), path)
    return folder


def splits(folder, **subjects):
    """``subject_splits.parquet`` of this folder."""
    rows = [(subject, split) for split, members in subjects.items() for subject in members]
    (folder / "metadata").mkdir()
    table = pl.DataFrame(rows, {"subject_id": pl.Int64, "split": pl.String}, orient="row")
    table.write_parquet(folder / "metadata" / "subject_splits.parquet")


def person(subject, *days):
    return [(subject, "1960-06-15", "MEDS_BIRTH"), *((subject, f"2020-01-{day:02}", "X") for day in days)]


def by_split(folder):
    return {
        split: sorted({s for shard in shards(folder) if shard.split == split for s in read_events(shard)["subject_id"]})
        for split in ("train", "tuning", "held_out")
    }


# -- layouts


def test_flat_files_are_divided_as_the_table_of_splits_says(tmp_path):
    rows = [row for subject in (1, 2, 3, 4) for row in person(subject, subject)]
    meds = write(tmp_path, a=frame(*rows[:4]), deep__b=frame(*rows[4:]))
    splits(meds, train=[1, 3], tuning=[2], held_out=[4])
    assert by_split(meds) == {"train": [1, 3], "tuning": [2], "held_out": [4]}
    assert subject_splits(shards(meds)) == {1: "train", 2: "tuning", 3: "train", 4: "held_out"}
    assert [shard.number for shard in shards(meds)] == [0, 1, 0, 0]
    whole = pl.concat([read_events(shard) for shard in shards(meds)]).sort("subject_id", "time")
    assert whole.equals(frame(*rows))


def test_flat_files_without_a_complete_table_of_splits_say_what_to_do(tmp_path):
    meds = write(tmp_path, a=frame(*person(1, 1), *person(2, 1)))
    with pytest.raises(FormatError, match=r"source\.split=held_out"):
        shards(meds)
    splits(meds, train=[1])
    with pytest.raises(DataError, match="does not say the split of 1 of the 2 subjects"):
        shards(meds)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, "train"), (1, "tuning")], "row 2: the subject is in two splits"),
        ([(1, "test")], "row 1: the split is 'test'"),
        ([(None, "train")], "row 1: subject_id is null"),
    ],
)
def test_a_table_of_splits_that_cannot_be_is_refused(tmp_path, rows, message):
    meds = write(tmp_path, a=frame(*person(1, 1)))
    (meds / "metadata").mkdir()
    table = pl.DataFrame(rows, {"subject_id": pl.Int64, "split": pl.String}, orient="row")
    table.write_parquet(meds / "metadata" / "subject_splits.parquet")
    with pytest.raises(DataError, match=message):
        shards(meds)


def test_a_dataset_may_have_one_split_only(tmp_path):
    assert by_split(write(tmp_path, held_out__0=frame(*person(5, 1)))) == {"train": [], "tuning": [], "held_out": [5]}


def test_settings_of_the_source_make_a_view_that_says_the_split_and_leave_the_records_alone(tmp_path):
    meds = write(tmp_path / "meds", held_out__0=frame(*person(1, 1)), a=frame(*person(2, 1)))
    before = sorted(path.relative_to(meds) for path in meds.rglob("*"))
    source = MedsSource(MedsConfig(path=meds, split="held_out"))
    assert source.place is None
    view = source.provide(tmp_path / "view", Serial(SerialConfig()))
    assert by_split(view) == {"train": [], "tuning": [], "held_out": [1, 2]}
    assert sorted(path.relative_to(meds) for path in meds.rglob("*")) == before


def test_a_split_in_the_settings_that_folders_or_the_table_contradict_is_refused(tmp_path):
    view = Serial(SerialConfig())
    meds = write(tmp_path / "a", train__0=frame(*person(1, 1)))
    with pytest.raises(DataError, match=r"source.split=held_out contradicts .*a/data/train; leave it out"):
        MedsSource(MedsConfig(path=meds, split="held_out")).provide(tmp_path / "view_a", view)
    flat = write(tmp_path / "b", x=frame(*person(1, 1), *person(2, 1)))
    splits(flat, train=[1], held_out=[2])
    with pytest.raises(DataError, match=r"b/metadata/subject_splits.parquet, which has 1 of the 2 subjects in other"):
        MedsSource(MedsConfig(path=flat, split="held_out")).provide(tmp_path / "view_b", view)


def test_files_are_found_below_links_and_under_any_spelling_and_hidden_ones_are_not(tmp_path):
    meds = write(tmp_path / "m", train__0=frame(*person(1, 1)), tuning__x=frame(*person(2, 1)))
    other = write(tmp_path / "other", b__1=frame(*person(3, 1)))
    (meds / "data/train/b").symlink_to(other / "data/b")
    (meds / "data/held_out").symlink_to(write(tmp_path / "disk", **{"h__0": frame(*person(4, 1))}) / "data/h")
    (meds / "data/tuning/x.parquet").rename(meds / "data/tuning/X.PARQUET")
    write(meds, train___y__0=frame(*person(5, 1)))
    (meds / "data/train/_y").rename(meds / "data/train/part.parquet")
    write(tmp_path / "hidden", x=frame(*person(1, 2)))
    (tmp_path / "hidden/data").rename(meds / "data/train/.ipynb_checkpoints")
    assert by_split(meds) == {"train": [1, 3, 5], "tuning": [2], "held_out": [4]}


def test_a_folder_of_a_split_that_the_table_contradicts_is_refused_beside_other_files_too(tmp_path):
    meds = write(tmp_path, train__0=frame(*person(1, 1)), x=frame(*person(2, 1)))
    splits(meds, held_out=[1], train=[2])
    with pytest.raises(DataError, match=r"puts subjects of .* in another split than train"):
        shards(meds)


def test_errors_name_the_users_folder_and_not_that_of_the_view(tmp_path):
    meds = write(tmp_path / "mine", x=frame(*person(1, 1)))
    with pytest.raises(FormatError, match=r"mine has Parquet files outside of data"):
        MedsSource(MedsConfig(path=meds, birth=["DOB"])).provide(tmp_path / "view", Serial(SerialConfig()))


@pytest.mark.parametrize(
    "wrong", [{"split": "test"}, {"birth": []}, {"birth": [""]}, {"latest": "soon"}, {"latest": "2020-13-01"}]
)
def test_settings_that_no_dataset_can_have_are_refused(tmp_path, wrong):
    with pytest.raises(ConfigError, match=f"source.{next(iter(wrong))}"):
        MedsSource(MedsConfig(path=tmp_path, **wrong))


# -- columns and rows


TYPES = {
    "subject_id": [pa.int32(), pa.int16(), pa.uint64()],
    "time": [pa.timestamp("ms"), pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.date32()],
    "code": [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    "numeric_value": [pa.float64(), pa.float16(), pa.int64(), pa.null(), pa.decimal128(10, 3)],
}
CASES = [(name, kind) for name, kinds in TYPES.items() for kind in kinds]


@pytest.mark.parametrize(("column", "kind"), CASES, ids=[f"{name}-{kind}" for name, kind in CASES])
def test_types_that_writers_infer_are_read_as_what_they_stand_for(tmp_path, column, kind):
    plain = frame((1, None, "GENDER//F"), (1, "2020-01-01", "LAB"), (2, "2020-01-02", "LAB"))
    if kind != pa.null():
        plain = plain.with_columns(numeric_value=pl.Series([None, 2.0, 4.0], dtype=pl.Float32))
    place = plain.columns.index(column)
    table = plain.to_arrow()
    table = table.set_column(place, column, pa.nulls(3) if kind == pa.null() else table[column].cast(kind))
    assert read_events(write(tmp_path, train__0=table) / "data/train/0.parquet").equals(plain)


def test_a_column_that_is_null_throughout_is_read_as_nulls(tmp_path):
    table = pa.table({"subject_id": [1, 2], "time": pa.nulls(2), "code": ["GENDER//F", "GENDER//M"]})
    meds = write(tmp_path, train__0=table.append_column("numeric_value", pa.nulls(2)))
    events, treated = read_treated(shards(meds)[0])
    assert events["time"].to_list() == [None, None]
    assert treated["shards_without_values"] == 1


def test_a_shard_that_was_written_without_a_row_may_have_no_types_at_all(tmp_path):
    empty = pa.table({name: pa.nulls(0) for name in SCHEMA})
    events = read_events(write(tmp_path, train__0=empty) / "data/train/0.parquet")
    assert (len(events), events.schema) == (0, SCHEMA)


@settings(deadline=None)
@given(st.permutations(range(9)))
def test_rows_in_any_order_are_put_in_order(tmp_path_factory, order):
    rows = [(2, None, "S"), *person(2, 3, 5), *person(7, 1, 2, 4), (9, "2020-01-01", "X")]
    ordered = frame(*rows)
    folder = write(tmp_path_factory.mktemp("meds"), train__0=ordered[list(order)])
    events, treated = read_treated(shards(folder)[0])
    assert events.equals(ordered)
    assert treated["shards_sorted"] == int(list(order) != list(range(9)))


def test_subjects_may_be_contiguous_and_not_ascending(tmp_path):
    meds = write(tmp_path, train__0=frame(*person(9, 1, 2), *person(3, 1)))
    assert read_events(shards(meds)[0]).equals(frame(*person(3, 1), *person(9, 1, 2)))


# -- times that cannot be


def treated(folder, *rows, **given):
    """Rows (subject, time, code) as read, and the counts that are not zero."""
    meds = write(folder, train__0=frame(*rows))
    source = MedsSource(MedsConfig(path=meds, **given))
    place = source.provide(folder.with_name("view"), Serial(SerialConfig()))
    events, counts = read_treated(shards(place)[0])
    found = [(s, t and str(t.date()), c) for s, t, c, _ in events.rows()]
    counts.pop("shards_without_values")
    return found, {name: count for name, count in counts.items() if count}


USUAL = person(1, 1, 2, 3)


@pytest.mark.parametrize(
    ("time", "name"),
    [
        ("9999-12-31", "future"),
        ("2999-12-31", "future"),
        ("2199-12-31", "future"),
        ("0001-01-01", "long_ago"),
        ("1753-01-01", "long_ago"),
        ("1900-01-01", "beyond_life"),
    ],
)
def test_a_date_that_stands_for_nothing_is_left_out_and_counted(tmp_path, time, name):
    other = person(2, 4)
    rows = sorted([*USUAL, (1, time, "DRUG//END")], key=lambda row: row[1])
    found, counts = treated(tmp_path / "meds", *rows, *other)
    assert found == [*USUAL, *other]
    assert counts == {name: 1}


def test_it_does_not_move_the_end_of_the_records(tmp_path):
    meds = write(tmp_path, train__0=frame(*USUAL, (1, "2299-01-01", "X")), tuning__0=frame(*person(2, 9)))
    assert last_time(meds, shards(meds)) == datetime(2020, 1, 9)


def test_dates_that_were_shifted_into_the_future_are_records(tmp_path):
    rows = [(1, "2090-06-15", "MEDS_BIRTH"), *((1, f"2150-01-{day:02}", "X") for day in (1, 2, 3))]
    found, counts = treated(tmp_path / "meds", *rows, (1, "9999-12-31", "X"))
    assert found == rows
    assert counts == {"future": 1}
    assert shards(tmp_path / "meds")[0].reading.shifted


def test_a_date_of_the_users_own_ends_the_records(tmp_path):
    found, counts = treated(tmp_path / "meds", *USUAL, latest="2020-01-02")
    assert found == USUAL[:-1]
    assert counts == {"future": 1}


@pytest.mark.parametrize("birth", ["2021-06-15", "1870-01-01"])
def test_a_birth_that_contradicts_the_whole_record_is_left_out(tmp_path, birth):
    rows = sorted([(1, birth, "MEDS_BIRTH"), *USUAL[1:]], key=lambda row: row[1])
    found, counts = treated(tmp_path / "meds", *rows)
    assert found == USUAL[1:]
    assert counts == {"births_dropped": 1, "subjects_without_birth": 1}


def test_births_that_contradict_one_another_are_counted_and_the_first_counts(tmp_path):
    rows = [USUAL[0], (1, "1990-01-01", "MEDS_BIRTH"), *USUAL[1:]]
    assert treated(tmp_path / "meds", *rows) == (rows, {"births_contradicting": 1})


@pytest.mark.parametrize("unit", ["us", "ms"])
def test_times_that_no_calendar_has_are_left_out(tmp_path, unit):
    table = frame(*USUAL).to_arrow()
    times = table["time"].cast(pa.timestamp(unit)).cast(pa.int64()).to_pylist()
    times[-1] = 2**62
    table = table.set_column(1, "time", pa.array(times).cast(pa.timestamp(unit)))
    meds = write(tmp_path, train__0=table)
    events, counts = read_treated(shards(meds)[0])
    assert (len(events), counts["future"]) == (len(USUAL) - 1, 1)
    assert last_time(meds, shards(meds)) == datetime(2020, 1, 2)


@pytest.mark.parametrize(
    ("code", "given"),
    [("MEDS_BIRTH//ESTIMATED", {}), ("BIRTH_DATE", {"birth": ["BIRTH_DATE"]}), ("DOB//Y", {"birth": ["YOB", "DOB"]})],
)
def test_births_have_one_name_whatever_they_were_called(tmp_path, code, given):
    found, counts = treated(tmp_path / "meds", (1, "1960-06-15", code), *USUAL[1:], **given)
    assert found == USUAL
    assert counts == {"births_renamed": 1}


def test_a_code_that_only_begins_like_a_birth_is_none(tmp_path):
    rows = [(1, "1960-06-15", "MEDS_BIRTHPLACE"), *USUAL[1:]]
    assert treated(tmp_path / "meds", *rows) == (rows, {"subjects_without_birth": 1})


def test_a_death_by_date_is_at_the_last_event_of_that_day(tmp_path):
    rows = [
        (1, "1960-06-15T00:00", "MEDS_BIRTH"),
        (1, "2020-01-02T00:00", "MEDS_DEATH"),
        (1, "2020-01-02T14:00", "HOSPITAL_DISCHARGE//DIED"),
        (1, "2020-01-03T09:00", "CODING"),
        (2, "2020-01-02T14:00", "X"),
    ]
    events, counts = read_treated(write(tmp_path, train__0=frame(*rows)) / "data/train/0.parquet")
    times = [time for time, code in events.select("time", "code").rows() if code == "MEDS_DEATH"]
    assert times == [datetime(2020, 1, 2, 14)]
    assert counts["deaths_moved"] == 1
    assert events["time"].is_sorted() or events.equals(events.sort("subject_id", "time", maintain_order=True))


TIMES = st.one_of(
    st.datetimes(datetime(2000, 1, 1), datetime(2020, 1, 1)),
    st.sampled_from([datetime(1, 1, 1), datetime(1900, 1, 1), datetime(2999, 12, 31), datetime(9999, 12, 31)]),
    st.none(),
)
EVENTS = st.tuples(TIMES, st.sampled_from(["MEDS_BIRTH", "MEDS_BIRTH//X", "MEDS_DEATH", "A", "B"]))


@settings(deadline=None)
@given(st.lists(EVENTS, max_size=8), st.randoms(use_true_random=False))
def test_no_trouble_of_one_subject_changes_another(tmp_path_factory, troubled, random):
    healthy = [
        (2, time, code)
        for _, time, code in frame(*person(2, 3, 5), (2, None, "S")).select("subject_id", "time", "code").rows()
    ]
    rows = [*((1, time, code) for time, code in troubled), *healthy]
    random.shuffle(rows)
    folder = tmp_path_factory.mktemp("meds")
    table = pl.DataFrame([(*row, None) for row in rows], SCHEMA, orient="row")
    events, counts = read_treated(write(folder, train__0=table) / "data/train/0.parquet")
    assert events.filter(subject_id=2).select("time", "code").rows() == sorted(
        [row[1:] for row in healthy], key=lambda row: row[0] or datetime.min
    )
    left_out = sum(counts[name] for name in ("long_ago", "future", "beyond_life", "births_dropped"))
    assert len(events) == len(rows) - left_out
    mine = events.filter(subject_id=1)
    born = mine.filter(pl.col("code") == "MEDS_BIRTH")["time"].min()
    assert mine["time"].drop_nulls().is_between(datetime(1850, 1, 1), datetime.now() + timedelta(days=1)).all()
    if born is not None:
        others = mine.filter(pl.col("code") != "MEDS_BIRTH")["time"].drop_nulls()
        assert (others >= born - timedelta(days=366)).all()
