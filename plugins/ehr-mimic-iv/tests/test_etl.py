"""With the real ETL: whole and partial folders, its errors, MIMIC-IV's demo, and the tokenizer preset made for it."""

import json
import os
from pathlib import Path

import polars as pl
import pytest
from ehr_core.cli import run
from ehr_core.config import options
from ehr_core.errors import EhrError
from ehr_core.formats.folder import file_digests
from ehr_core.formats.tokens import TokenStore
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build
from ehr_mimic_iv.plugin import MimicIvConfig
from ehr_mimic_iv.source import MimicIv

pytestmark = pytest.mark.slow

CODES = [
    "Blood Pressure",
    "BMI (kg/m2)",
    "DIAGNOSIS//ICD//10//I509",
    "DIAGNOSIS//ICD//9//4280",
    "DRG//APR//194",
    "DRG//HCFA//54",
    "ED_OUT",
    "ED_REGISTRATION",
    "GENDER//F",
    "HCPCS//Hospital",
    "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM",
    "HOSPITAL_DISCHARGE//HOME",
    "ICU_ADMISSION//Medical Intensive Care Unit (MICU)",
    "ICU_DISCHARGE//Medicine",
    "INFUSION_END//225158",
    "INFUSION_START//225158",
    "INSURANCE//Medicare",
    "LAB//220045//bpm",
    "LAB//RESULT//50912//mg/dL",
    "LAB//SPECIMEN_COLLECTED//50912//STAT",
    "LANGUAGE//ENGLISH",
    "MARITAL_STATUS//MARRIED",
    "MEDICATION//Heparin//Administered//63323026201",
    "MEDICATION//START//Heparin//63323026201",
    "MEDICATION//STOP//Heparin//63323026201",
    "MEDS_BIRTH",
    "PROCEDURE//END//225792",
    "PROCEDURE//ICD//10//0BH17EZ",
    "PROCEDURE//START//225792",
    "RACE//WHITE",
    "SUBJECT_FLUID_OUTPUT//226559//ml",
    "SUBJECT_WEIGHT_AT_INFUSION//KG",
    "TRANSFER_TO//admit//Medicine",
]


def codes(meds: Path) -> list[str]:
    return sorted(pl.read_parquet(meds / "data" / "*" / "*.parquet")["code"].unique(), key=str.lower)


def left_out(meds: Path) -> dict[str, dict[str, object]]:
    return json.loads((meds / "metadata" / "mimic_iv.json").read_text())["left_out"]


def test_a_complete_folder_gives_every_event_the_same_twice(raw, etl, tmp_path):
    meds = raw.provide(tmp_path / "one", shard_subjects=4)
    assert codes(meds) == CODES
    assert not any(left_out(meds).values())
    book = {row["code"]: row for row in pl.read_parquet(meds / "metadata" / "codes.parquet").to_dicts()}
    assert book["DIAGNOSIS//ICD//10//I509"]["parent_codes"] == ["ICD10CM/I50.9"]
    assert book["LAB//220045//bpm"]["description"] == "Heart Rate"
    assert book["MEDICATION//START//Heparin//63323026201"]["parent_codes"] == ["NDC/63323026201"]
    assert len(list((meds / "data" / "train").iterdir())) > 1
    assert file_digests(meds) == file_digests(raw.provide(tmp_path / "two", shard_subjects=4))


def test_a_partial_folder_gives_what_is_there(raw, etl, tmp_path):
    raw.remove("hosp/admissions", "hosp/prescriptions", "icu/d_items", "d_labitems_to_loinc", "icu/chartevents")
    raw.change("hosp/labevents", "valueuom", "unit")
    raw.change("hosp/patients", ",\n", ",2230-01-01\n")
    meds = raw.provide(tmp_path / "meds")
    assert left_out(meds) == {
        "tables": {
            "hosp/admissions": "absent",
            "hosp/diagnoses_icd": "without a join or column, none of its events is left",
            "hosp/drgcodes": "without a join or column, none of its events is left",
            "hosp/procedures_icd": "without a join or column, none of its events is left",
            "icu/chartevents": "absent",
        },
        "events": {
            f"hosp/{name}": ["dischtime"]
            for name in ("diagnoses_icd/diagnosis", "drgcodes/drg", "procedures_icd/procedure")
        },
        "columns": {
            "hosp/emar": ["ndc"],
            "hosp/labevents": ["valueuom"],
            "hosp/patients": ["deathtime"],
            "hosp/pharmacy": ["ndc"],
        },
        "dictionaries": {"d_labitems_to_loinc": "absent", "icu/d_items": "absent"},
    }
    found = codes(meds)
    assert {"LAB//RESULT//50912//UNK", "MEDICATION//START//Heparin//UNK", "MEDS_DEATH"} <= set(found)
    gone = ("ADMISSION//", "DISCHARGE//", "RACE", "INSURANCE", "DIAGNOSIS", "DRG", "PROCEDURE//ICD", "LAB//220045")
    assert not [code for code in found if code.removeprefix("HOSPITAL_").startswith(gone)]


def test_a_key_without_any_value_does_not_stop_the_etl(raw, etl, tmp_path):
    for subject in range(101, 113):
        raw.change("hosp/emar", f",{subject + 40_000},", ",,")
    meds = raw.provide(tmp_path / "meds")
    assert left_out(meds)["columns"] == {"hosp/emar": ["ndc"]}
    assert "MEDICATION//Heparin//Administered//UNK" in codes(meds)


def test_subjects_that_are_no_patients_go_nowhere(raw, etl, tmp_path):
    raw.change("hosp/patients", "105,F,60,2205,2011 - 2013,\n", "")
    meds = raw.provide(tmp_path / "meds", damaged="skip")
    assert set(pl.read_parquet(meds / "data" / "*" / "*.parquet")["subject_id"]) == {*range(101, 113)} - {105}
    assert sorted(path.name for path in (meds / "data").iterdir()) == ["held_out", "train", "tuning"]


def test_an_error_of_the_etl_itself_is_one_line(raw, etl, tmp_path):
    raw.change("hosp/patients", "F,60,", "F,secret,", 1)
    with pytest.raises(EhrError, match="the MIMIC-IV ETL failed in stage convert_to_MEDS_events: ") as error:
        raw.provide(tmp_path / "meds")
    line = str(error.value)
    assert "\n" not in line
    assert "secret" not in line
    log = Path(line.rpartition(" ")[2])
    assert "Traceback" in log.read_text()
    log.unlink()


def test_the_preset_of_ethos_reads_what_the_etl_writes(raw, etl, tmp_path):
    if "mimic_iv" not in options()["tokenizer"]:
        pytest.skip("ehr-ethos is not installed: no preset mimic_iv")
    meds = raw.provide(tmp_path / "meds", train=0.4, tuning=0.3, held_out=0.3)
    overrides = ["tokenizer=mimic_iv", "tokenizer.min_count=1", f"output={tmp_path}/store"]
    run("ehr-tokenize", "tokenize", ["source=meds", f"source.path={meds}", *overrides])
    found = {entry.token for entry in TokenStore(tmp_path / "store").vocabulary.tokens if entry.count}
    expected = {
        "HOSPITAL_ADMISSION",
        "ADMISSION_TYPE//EMERGENCY",
        "INSURANCE//MEDICARE",
        "RACE//WHITE",
        "MARITAL//MARRIED",
        "HOSPITAL_DISCHARGE",
        "DISCHARGE_LOCATION//HOME",
        "DRG//54",
        "ICD//CM//I50",
        "ICD9//CM//428",
        "HCPCS//HOSPITAL",
        "ICD//PCS//0",
        "MEDICATION//HEPARIN",
        "LAB//50912//MG/DL",
        "TRANSFER//MEDICINE",
        "ICU_ADMISSION",
        "ICU_TYPE//MEDICAL_INTENSIVE_CARE_UNIT_(MICU)",
        "ICU_DISCHARGE",
        "ED_REGISTRATION",
        "VITAL//BLOOD_PRESSURE",
        "GENDER//F",
    }
    assert expected - found == set()
    assert not {token for token in found if "63323026201" in token or "SPECIMEN" in token or "LANGUAGE" in token}


def test_the_demo_of_mimic_iv_becomes_meds(etl, tmp_path):
    if "EHR_REAL_DATA" not in os.environ:
        pytest.skip("EHR_REAL_DATA is not set: no demo of MIMIC-IV here")
    path = Path(os.environ["EHR_REAL_DATA"]) / "mimic_iv_demo_raw"
    meds = MimicIv(MimicIvConfig(path=str(path))).provide(tmp_path, build("executor", SerialConfig()))
    found = pl.read_parquet(meds / "data" / "*" / "*.parquet")["code"].str.extract("^([A-Z_]+)").value_counts()
    count = dict(found.rows())
    admissions = pl.read_csv(path / "hosp" / "admissions.csv.gz", infer_schema_length=None)
    patients = pl.read_csv(path / "hosp" / "patients.csv.gz", infer_schema_length=None)
    assert count["MEDS_BIRTH"] == count["GENDER"] == len(patients)
    assert count["HOSPITAL_ADMISSION"] == count["HOSPITAL_DISCHARGE"] == len(admissions)
    assert count["ICU_ADMISSION"] == len(pl.read_csv(path / "icu" / "icustays.csv.gz"))
    died = set(admissions.drop_nulls("deathtime")["subject_id"]) | set(patients.drop_nulls("dod")["subject_id"])
    assert count["MEDS_DEATH"] == len(died)
    assert sorted(left_out(meds)["tables"]) == ["hosp/emar", "hosp/labevents", "icu/chartevents", "icu/inputevents"]


def test_an_end_before_its_start_reaches_no_dataset(raw, etl, tmp_path):
    stop = "2204-03-04 08:00:00"
    raw.change("hosp/pharmacy", stop, "2204-02-04 08:00:00")
    raw.change("hosp/pharmacy", "2205-03-04 08:00:00", "NULL")
    meds = raw.provide(tmp_path / "meds", environment=etl)
    parts = [pl.read_parquet(path) for path in (meds / "data").rglob("*.parquet")]
    found = pl.concat(parts, how="diagonal_relaxed").filter(pl.col("code").str.starts_with("MEDICATION//STOP"))
    assert sorted(found["subject_id"]) == [subject for subject in range(101, 113) if subject not in (104, 105)]
    assert json.loads((meds / "metadata" / "mimic_iv.json").read_text())["mended"] == {
        "hosp/pharmacy": {
            "stoptime: end before its start (no event)": 1,
            "stoptime: words for nothing (taken as empty)": 1,
        }
    }
