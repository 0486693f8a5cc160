"""The tokenizer ``behrt``, from MEDS to the token store, token by token."""

import json
import os
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from ehr_core.cli import run
from ehr_core.formats.tokens import TokenStore
from ehr_core.testing.tiny import write_events

ROWS = [
    (None, "GENDER//F"),
    (datetime(1950, 1, 1), "MEDS_BIRTH"),
    (datetime(2020, 1, 1), "HOSPITAL_ADMISSION//EMERGENCY"),
    (datetime(2020, 1, 2), "DIAGNOSIS//ICD10CM//I10"),
    (datetime(2020, 1, 3), "HOSPITAL_DISCHARGE//HOME"),
    (datetime(2020, 2, 1), "DIAGNOSIS//ICD10CM//I10"),
]


@pytest.fixture
def store(tmp_path):
    for split, first in (("train", 1), ("tuning", 11), ("held_out", 21)):
        rows = [(first + s, time, code, None) for s in range(5) for time, code in ROWS]
        write_events(tmp_path / "meds" / "data" / split / "0.parquet", rows)
    settings = ["source=meds", f"source.path={tmp_path}/meds", "tokenizer=behrt", f"output={tmp_path}/store"]
    run("ehr-tokenize", "tokenize", settings)
    return TokenStore(tmp_path / "store")


def test_visits_are_apart_by_sep_and_alternate_in_segment(store):
    table = next(store.tables("held_out"))
    names = [store.vocabulary.tokens[i].token for i in table.token[: table.offset[1]]]
    stay = ["HOSPITAL_ADMISSION//EMERGENCY", "DIAGNOSIS//ICD10CM//I10", "HOSPITAL_DISCHARGE//HOME"]
    assert names == ["[CLS]", *stay, "[SEP]", "DIAGNOSIS//ICD10CM//I10"]
    columns = {name: values[: table.offset[1]].tolist() for name, values in table.columns.items()}
    age = (datetime(2020, 1, 1) - datetime(1950, 1, 1)).days
    assert columns == {
        "age_days": [age, age, age + 1, age + 2, age + 2, age + 31],
        "visit": [1, 1, 1, 1, 1, 2],
        "segment": [1, 1, 1, 1, 1, 2],
    }


def test_the_manifest_and_the_vocabulary_count_train(store):
    count = {token.token: token.count for token in store.vocabulary.tokens}
    assert [count[name] for name in ("[CLS]", "[SEP]", "DIAGNOSIS//ICD10CM//I10", "[UNK]")] == [5, 5, 10, 0]
    assert store.manifest.content["columns"] == ["age_days", "segment", "visit"]


def test_a_fitted_tokenizer_is_used_unchanged_on_other_data(store, tmp_path):
    for split, subject in (("train", 1), ("tuning", 2), ("held_out", 3)):
        rows = [(subject, datetime(2020, 1, 1), "FOREIGN", None)]
        write_events(tmp_path / "other" / "data" / split / "0.parquet", rows)
    arguments = ["source=meds", f"source.path={tmp_path}/other", f"fitted={store.path}", f"output={tmp_path}/again"]
    run("ehr-tokenize", "tokenize", arguments)
    again = TokenStore(tmp_path / "again")
    assert again.vocabulary.digest == store.vocabulary.digest
    assert next(again.tables("train")).token.tolist() == [5, 3]  # [CLS] [UNK]


def test_real_intensive_care_stays_tokenize(tmp_path):
    root = os.environ.get("EHR_REAL_DATA")
    if not root or not (Path(root) / "physionet2012_a").is_dir():
        pytest.skip("EHR_REAL_DATA does not name a folder with physionet2012_a")
    settings = ["source=meds", f"source.path={root}/physionet2012_a", "tokenizer=behrt", "tokenizer.grouping=same_day"]
    run("ehr-tokenize", "tokenize", [*settings, f"output={tmp_path}/store"])
    store = TokenStore(tmp_path / "store")
    content = json.loads((store.path / "manifest.json").read_text())["content"]
    assert sum(part["subjects"] for part in content["splits"].values()) == 4000
    for table in store.tables("held_out"):
        assert set(np.unique(table.columns["visit"])) <= {1, 2, 3}
        assert (table.token[table.offset[:-1]] == 5).all()
