"""Each subject of a dataset has one place, and a dataset where one has two is refused."""

import polars as pl
import pytest
from ehr_core.errors import DataError, FormatError
from ehr_core.formats.meds import shards, subject_splits, subjects_of


def write(folder, **splits):
    for split, parts in splits.items():
        for number, subjects in enumerate(parts):
            path = folder / "data" / split / f"{number}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = {"subject_id": subjects, "time": [None] * len(subjects), "code": ["A"] * len(subjects)}
            types = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}
            pl.DataFrame(rows, schema=types).write_parquet(path)
    return folder


def test_every_subject_has_the_split_of_its_shard(tmp_path):
    found = shards(write(tmp_path, train=[[7, 7, 9], [2]], tuning=[[]], held_out=[[1, 1]]))
    assert subject_splits(found) == {7: "train", 9: "train", 2: "train", 1: "held_out"}
    assert subjects_of(found[0].path).tolist() == [7, 9]


@pytest.mark.parametrize(
    ("splits", "places"),
    [
        ({"train": [[1, 5], [5]], "tuning": [[2]], "held_out": [[3]]}, ("train/0", "train/1")),
        ({"train": [[1, 5]], "tuning": [[2]], "held_out": [[3, 5]]}, ("train/0", "held_out/0")),
    ],
)
def test_a_subject_in_two_shards_or_two_splits_is_refused(tmp_path, splits, places):
    found = shards(write(tmp_path, **splits))
    with pytest.raises(DataError, match="1 subjects are in more than one shard") as caught:
        subject_splits(found)
    assert all(place in str(caught.value) for place in places)


def test_a_damaged_file_is_named(tmp_path):
    path = write(tmp_path, train=[[1]]) / "data" / "train" / "0.parquet"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FormatError, match=r"0\.parquet is not a readable Parquet file"):
        subjects_of(path)
