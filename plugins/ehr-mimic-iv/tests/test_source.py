"""The source before and around the ETL: what is refused, skipped and said, and what becomes of a failure."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from ehr_core.errors import ConfigError, DataError, EhrError, FormatError, NotApplicable
from ehr_core.formats.folder import file_digests
from ehr_mimic_iv.environment import find
from ehr_mimic_iv.spec import needs_of, prune
from ehr_mimic_iv.tables import Check, check, header, without_values, write_mended

# Does what the ETL does with SPEC, in a few lines: an event a row of icustays.
WORKS = """
import csv, gzip, json, pathlib
from datetime import datetime
import polars as pl
spec = json.loads(pathlib.Path("spec.yaml").read_text())
splits = json.loads(pathlib.Path(spec["etl"]["external_splits_json_fp"]).read_text())
tables = {}
for name in ("hosp/patients", "icu/icustays"):
    path = pathlib.Path(f"raw/{name}.csv.gz")
    tables[name] = list(csv.DictReader(gzip.open(path, "rt"))) if path.exists() and name in spec else []
owner = {subject: split for split, ids in splits.items() for subject in ids}
births, stays = tables["hosp/patients"], tables["icu/icustays"]
rows = [(int(r["subject_id"]), datetime(int(r["anchor_year"]) - 60, 1, 1), "MEDS_BIRTH") for r in births]
rows += [(int(r["subject_id"]), datetime.fromisoformat(r["intime"]), "ICU") for r in stays]
for split in {*splits, "nowhere"}:
    mine = sorted(row for row in rows if owner.get(row[0], "nowhere") == split)
    if mine:
        path = pathlib.Path("out/data") / split / "0.parquet"
        path.parent.mkdir(parents=True)
        frame = pl.DataFrame(mine, {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}, orient="row")
        frame.with_columns(numeric_value=pl.lit(None, pl.Float32)).write_parquet(path)
out = pathlib.Path("out/metadata")
out.mkdir()
(out / "dataset.json").write_text('{"meds_version": "0.4.1", "created_at": "now"}')
pl.DataFrame({"code": ["ICU", "MEDS_BIRTH"]}).write_parquet(out / "codes.parquet")
"""
FAILS = """
import pathlib, sys
logs = pathlib.Path("out/.logs")
logs.mkdir(parents=True)
(logs / "pipeline.log").write_text('''INFO:__main__:Running stage: convert_to_parquet
INFO:__main__:Running stage: convert_to_MEDS_events
polars.exceptions.InvalidOperationError: conversion failed in column 'intime' for 1 out of 12 values: ["13.May.2111"]

This error occurred in the following expression:
        col("intime").str.strptime(["raise"])
''')
print("ValueError: Stage convert_to_MEDS_events failed with return code 1.")
sys.exit(1)
"""


def test_without_an_environment_the_error_says_how_to_make_one(raw, tmp_path, monkeypatch):
    monkeypatch.delenv("EHR_MIMIC_ETL", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        raw.provide(tmp_path / "out")
    assert "\n" not in str(error.value)
    assert "pip install 'mimic-iv-meds>=0.2' 'meds-extract>=0.7.1' 'polars<2'" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_environment_without_the_tool_is_named(raw, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"source.environment=nowhere has no bin/meds-extract-run"):
        raw.provide(tmp_path / "out", environment="nowhere")
    monkeypatch.setenv("EHR_MIMIC_ETL", "elsewhere")
    with pytest.raises(ConfigError, match="EHR_MIMIC_ETL=elsewhere has no bin"):
        raw.provide(tmp_path / "out")


def test_the_environment_is_the_setting_then_the_variable_then_the_path(pretend, monkeypatch):
    places = [pretend("", name) for name in ("one", "two", "three")]
    monkeypatch.setenv("PATH", f"{places[2]}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EHR_MIMIC_ETL", str(places[1]))
    assert find(str(places[0])).bin == places[0] / "bin"
    assert find(None).bin == places[1] / "bin"
    monkeypatch.delenv("EHR_MIMIC_ETL")
    assert find(None).bin == places[2] / "bin"


@pytest.mark.parametrize("old", [{"mimic-iv-meds": "0.1.3"}, {"meds-extract": "0.7.0"}, {"polars": "2.1.0"}])
def test_versions_that_do_something_else_are_refused(old, pretend):
    (name, version) = next(iter(old.items()))
    with pytest.raises(ConfigError, match=f"has {name} {version}, which does not do"):
        find(str(pretend("", versions=old)))


def test_a_python_without_the_etl_is_refused_in_one_line(pretend):
    place = pretend("")
    (place / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    with pytest.raises(ConfigError, match="is no environment of the MIMIC-IV ETL") as error:
        find(str(place))
    assert "\n" not in str(error.value)


def test_what_the_etl_made_becomes_a_dataset_with_our_splits(raw, pretend, tmp_path, capsys):
    settings = {"environment": str(pretend(WORKS)), "train": 0.5, "tuning": 0.5, "held_out": 0.0}
    meds = raw.provide(tmp_path / "one", **settings)
    again = raw.provide(tmp_path / "two", **settings)
    assert file_digests(meds) == file_digests(again)
    assert sorted(path.name for path in meds.iterdir()) == ["data", "metadata"]
    owner = dict(pl.read_parquet(meds / "metadata" / "subject_splits.parquet").rows())
    assert sorted(owner) == list(range(101, 113))
    for split in ("train", "tuning", "held_out"):
        found = pl.read_parquet(meds / "data" / split / "*.parquet")
        assert set(found["subject_id"]) == {subject for subject, of in owner.items() if of == split}
    facts = json.loads((meds / "metadata" / "dataset.json").read_text())
    assert facts == {
        "dataset_name": "MIMIC-IV",
        "etl_name": "MIMIC-IV-MEDS",
        "etl_version": "0.2.0",
        "meds_version": "0.4.1",
    }
    assert "24 events of 12 subjects" in capsys.readouterr().err


def test_what_is_left_out_is_said_and_kept(raw, pretend, tmp_path, capsys):
    raw.remove("icu/icustays")
    meds = raw.provide(tmp_path / "meds", environment=str(pretend(WORKS)))
    assert "tables left out: icu/icustays (absent)" in capsys.readouterr().err
    told = json.loads((meds / "metadata" / "mimic_iv.json").read_text())
    assert told["left_out"]["tables"] == {"icu/icustays": "absent"}
    assert told["tables"] == ["hosp/patients"]


DAMAGES = {
    "a time in another form": (
        lambda raw: raw.change("icu/icustays", "-03-02 12:00:00", ".3.2", 2),
        "intime is no time",
    ),
    "a subject that is no number": (
        lambda raw: raw.change("icu/icustays", "101,", "secret,", 1),
        "subject_id has no whole",
    ),
    "a line that is too long": (lambda raw: raw.change("icu/icustays", "2.0\n", "2.0,secret\n", 1), "cannot be read"),
    "half a file": (
        lambda raw: raw.file("icu/icustays").write_bytes(raw.file("icu/icustays").read_bytes()[:-40]),
        "cannot be read",
    ),
    "no gzip": (lambda raw: raw.file("icu/icustays").write_bytes(b"secret"), "cannot be read"),
    "no UTF-8": (lambda raw: raw.write("icu/icustays", raw.read("icu/icustays").encode() + b"112,\xff\n"), "cannot be"),
    "no column of subjects": (
        lambda raw: raw.change("icu/icustays", "subject_id", "patient"),
        "has no column subject_id",
    ),
    "nothing at all": (lambda raw: raw.write("icu/icustays", ""), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_named_and_left_out_on_request(damage, raw, pretend, tmp_path):
    harm, says = DAMAGES[damage]
    harm(raw)
    place = str(pretend(WORKS))
    with pytest.raises(DataError, match=says) as error:
        raw.provide(tmp_path / "out", environment=place)
    line = str(error.value)
    assert str(raw.file("icu/icustays")) in line
    assert "source.damaged=skip" in line
    assert "secret" not in line
    assert "\n" not in line
    meds = raw.provide(tmp_path / "skipped", environment=place, damaged="skip")
    told = json.loads((meds / "metadata" / "mimic_iv.json").read_text())
    assert told["left_out"]["tables"]["icu/icustays"].startswith("damaged: ")
    assert set(pl.read_parquet(meds / "data" / "*" / "*.parquet")["code"]) == {"MEDS_BIRTH"}


def test_a_table_without_rows_counts_as_absent(raw, pretend, tmp_path):
    raw.write("icu/icustays", raw.read("icu/icustays").splitlines()[0] + "\n")
    meds = raw.provide(tmp_path / "meds", environment=str(pretend(WORKS)))
    assert json.loads((meds / "metadata" / "mimic_iv.json").read_text())["left_out"]["tables"] == {
        "icu/icustays": "empty"
    }


def test_rows_of_subjects_that_are_no_patients_are_refused_or_left_out(raw, pretend, tmp_path):
    raw.change("hosp/patients", "105,F", "999,F")
    place = str(pretend(WORKS))
    with pytest.raises(DataError, match="1 of 12 rows are of subjects that hosp/patients does not have"):
        raw.provide(tmp_path / "out", environment=place)
    meds = raw.provide(tmp_path / "meds", environment=place, damaged="skip")
    assert 105 not in set(pl.read_parquet(meds / "data" / "*" / "*.parquet")["subject_id"])
    assert sorted(path.name for path in (meds / "data").iterdir()) == ["held_out", "train", "tuning"]
    told = json.loads((meds / "metadata" / "mimic_iv.json").read_text())
    assert told["rows_of_unknown_subjects"] == {"icu/icustays": 1}


def test_patients_cannot_be_skipped(raw, pretend, tmp_path):
    place = str(pretend(WORKS))
    raw.change("hosp/patients", "101,F", "secret,F")
    with pytest.raises(DataError, match=r"hosp/patients.*subject_id has no whole number in 1 of 12 rows"):
        raw.provide(tmp_path / "out", environment=place, damaged="skip")
    raw.remove("hosp/patients")
    with pytest.raises(FormatError, match=r"has no hosp/patients.csv or .csv.gz"):
        raw.provide(tmp_path / "out", environment=place)


def test_other_folders_are_told_apart(raw, tmp_path):
    with pytest.raises(FormatError, match="is not a folder"):
        raw.provide(tmp_path / "out", path=str(tmp_path / "none"))
    (tmp_path / "other").mkdir()
    with pytest.raises(NotApplicable, match="has no folder hosp"):
        raw.provide(tmp_path / "out", path=str(tmp_path / "other"))


def test_plain_csv_is_read_and_a_table_in_both_forms_refused(raw, pretend, tmp_path):
    (raw.path / "icu" / "icustays.csv").write_text(raw.read("icu/icustays"))
    place = str(
        pretend(WORKS.replace('f"raw/{name}.csv.gz"', 'f"raw/{name}.csv"').replace("gzip.open(path, ", "open(path, "))
    )
    with pytest.raises(FormatError, match=r"icustays.csv.gz and icustays.csv are both there"):
        raw.provide(tmp_path / "out", environment=place)
    raw.remove("icu/icustays")
    (raw.path / "hosp" / "patients.csv").write_text(raw.read("hosp/patients"))
    raw.remove("hosp/patients")
    assert len(pl.read_parquet(raw.provide(tmp_path / "meds", environment=place) / "data" / "*" / "*.parquet")) == 24


@pytest.mark.parametrize(
    "wrong", [{"damaged": "maybe"}, {"shard_subjects": 0}, {"train": 0.9}], ids=["damaged", "shard_subjects", "shares"]
)
def test_settings_that_cannot_be_are_refused(wrong, raw):
    with pytest.raises(ConfigError):
        raw.source(**wrong)


def test_a_failure_is_one_line_with_the_stage_the_error_and_the_log(raw, pretend, tmp_path):
    with pytest.raises(EhrError) as error:
        raw.provide(tmp_path / "out", environment=str(pretend(FAILS)))
    line = str(error.value)
    assert "in stage convert_to_MEDS_events: InvalidOperationError: conversion failed in column 'intime'" in line
    assert "2111" not in line
    assert "\n" not in line
    log = Path(line.rpartition(" ")[2])
    assert "13.May.2111" in log.read_text()
    assert "return code 1" in log.read_text()
    assert not (tmp_path / "out" / ".etl").exists()
    log.unlink()


def test_an_etl_that_only_dies_is_one_line_too(raw, pretend, tmp_path):
    place = str(pretend("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    with pytest.raises(EhrError, match="failed before its first stage: it ended with status 137") as error:
        raw.provide(tmp_path / "out", environment=place)
    Path(str(error.value).rpartition(" ")[2]).unlink()


def test_values_are_cut_out_of_messages():
    assert without_values("could not parse `secret` as dtype `i64` at column 'subject_id'", ["subject_id"]) == (
        "could not parse '...' as dtype '...' at column 'subject_id'"
    )
    assert without_values("bad row 20001234, at 2111-05-13 10:00\nmore") == "bad row ..., at ... ..."
    assert "secret" not in without_values("values: ['secret', 'more")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_etl_ends_with_the_process_that_started_it(how, raw, pretend, tmp_path):
    write = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    tool = f"import os, pathlib, time; {write}; time.sleep(60)"
    code = (
        "import sys; from pathlib import Path; from ehr_mimic_iv import environment, run; "
        "run.run(environment.find(sys.argv[1]), Path(sys.argv[2]), ())"
    )
    (tmp_path / "work").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(pretend(tool)), str(tmp_path / "work")], stderr=subprocess.DEVNULL
    )
    try:
        pid = int(_soon(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()))
    finally:
        process.send_signal(how)
        process.wait()
    assert _soon(lambda: not _lives(pid))


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _soon(question):
    for _ in range(200):
        if answer := question():
            return answer
        time.sleep(0.05)
    return pytest.fail("waited in vain")


def test_the_fingerprint_covers_files_and_the_etl(raw, pretend):
    place = pretend("")
    before = raw.source(environment=str(place)).fingerprint()
    assert sorted(before) == ["etl", "hosp/patients", "icu/icustays"]
    raw.change("icu/icustays", "2.0", "2.1", 1)
    after = raw.source(environment=str(place)).fingerprint()
    assert [name for name in before if before[name] != after[name]] == ["icu/icustays"]
    newer = raw.source(environment=str(pretend("", "newer", {"meds-extract": "0.7.2"}))).fingerprint()
    assert [name for name in after if after[name] != newer[name]] == ["etl"]
    shutil.rmtree(place)


def mended(raw, name, empty=("null", "n/a")):
    """The table as the ETL reads it, and what was counted."""
    job = Check(raw.file(name), needs_of(prune(whole_spec(), {name: header(raw.file(name))})[0])[name], None, empty)
    found = check(job)
    place = raw.path / "mended.csv"
    write_mended(job, place)
    return pl.read_csv(place, infer_schema_length=0), found


def whole_spec():
    form = "%Y-%m-%d %H:%M:%S"
    return {
        "hosp/admissions": {
            "in": {"code": "IN", "time": f'$admittime::"{form}"'},
            "out": {"code": "OUT", "time": f'$dischtime::"{form}"'},
        },
        "hosp/pharmacy": {"start": {"code": "$medication", "time": f'coalesce($starttime::?"{form}")'}},
        "hosp/labevents": {"lab": {"code": "$itemid", "time": f'$charttime::"{form}"', "numeric_value": "$valuenum"}},
    }


def test_an_end_before_its_start_is_an_empty_cell_for_the_etl_and_counted(raw):
    raw.change("hosp/admissions", "2201-03-05 13:00:00", "2201-02-05 13:00:00")
    raw.change("hosp/pharmacy", "2201-03-04 08:00:00", "2201-03-01 11:00:00")
    raw.change("hosp/pharmacy", "2202-03-04 08:00:00", "2202-03-01 00:00:00")  # by date, on the day of the start
    table, found = mended(raw, "hosp/admissions")
    assert table["dischtime"].null_count() == 1
    assert found.mended == {"dischtime: end before its start (no event)": 1}
    table, found = mended(raw, "hosp/pharmacy")
    assert table["stoptime"].null_count() == 1
    assert found.mended == {"stoptime: end before its start (no event)": 1}


def test_words_for_nothing_are_empty_for_the_etl_and_texts_stay(raw):
    raw.change("hosp/labevents", "1.3,1.3,mg/dL", "NULL,N/A,NULL")
    raw.change("hosp/labevents", "2204-03-01 11:00:00", "null")
    table, found = mended(raw, "hosp/labevents")
    assert not found.faults
    assert found.mended == {
        "charttime: words for nothing (taken as empty)": 1,
        "valuenum: words for nothing (taken as empty)": 1,
    }
    (row,) = table.filter(pl.col("value") == "NULL").rows(named=True)
    assert (row["valuenum"], row["valueuom"], row["charttime"]) == (None, "NULL", None)
    assert mended(raw, "hosp/labevents", empty=())[1].faults


def test_a_zone_is_refused_because_these_times_have_none(raw):
    with pytest.raises(ConfigError, match=r"source.time_zone is set, but the times of MIMIC-IV have no zone"):
        raw.source(time_zone="America/New_York")
