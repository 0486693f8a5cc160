"""A raw MIMIC-IV folder of twelve made-up patients, and an environment that only looks like one of the ETL."""

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build
from ehr_mimic_iv.plugin import MimicIvConfig
from ehr_mimic_iv.source import MimicIv

SUBJECTS = range(101, 113)
HEADS = {
    "hosp/patients": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
    "hosp/admissions": "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admission_location,"
    "discharge_location,insurance,language,marital_status,race,edregtime,edouttime,hospital_expire_flag",
    "hosp/diagnoses_icd": "subject_id,hadm_id,seq_num,icd_code,icd_version",
    "hosp/procedures_icd": "subject_id,hadm_id,seq_num,chartdate,icd_code,icd_version",
    "hosp/drgcodes": "subject_id,hadm_id,drg_type,drg_code,description,drg_severity,drg_mortality",
    "hosp/hcpcsevents": "subject_id,hadm_id,chartdate,hcpcs_cd,seq_num,short_description",
    "hosp/labevents": "labevent_id,subject_id,hadm_id,itemid,charttime,storetime,value,valuenum,valueuom,priority",
    "hosp/omr": "subject_id,chartdate,seq_num,result_name,result_value",
    "hosp/emar": "subject_id,hadm_id,emar_id,emar_seq,pharmacy_id,charttime,medication,event_txt",
    "hosp/prescriptions": "subject_id,hadm_id,pharmacy_id,drug_type,drug,ndc",
    "hosp/pharmacy": "subject_id,hadm_id,pharmacy_id,poe_id,starttime,stoptime,medication,route,frequency,"
    "doses_per_24_hrs",
    "hosp/transfers": "subject_id,hadm_id,transfer_id,eventtype,careunit,intime,outtime",
    "icu/icustays": "subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los",
    "icu/chartevents": "subject_id,hadm_id,stay_id,charttime,storetime,itemid,value,valuenum,valueuom",
    "icu/procedureevents": "subject_id,hadm_id,stay_id,starttime,endtime,itemid,value,valueuom",
    "icu/inputevents": "subject_id,hadm_id,stay_id,starttime,endtime,itemid,amount,amountuom,rate,rateuom,orderid,"
    "linkorderid,ordercategorydescription,patientweight,statusdescription",
    "icu/outputevents": "subject_id,hadm_id,stay_id,charttime,itemid,value,valueuom",
}
# {s} subject, {h} admission, {i} ICU stay, {p} pharmacy order, {n} 0 to 11, {y} year
ROWS = {
    "hosp/patients": ["{s},F,60,{y},2011 - 2013,"],
    "hosp/admissions": [
        "{s},{h},{y}-03-01 10:00:00,{y}-03-05 13:00:00,,EW EMER.,EMERGENCY ROOM,HOME,Medicare,ENGLISH,MARRIED,WHITE,"
        "{y}-03-01 09:00:00,{y}-03-01 10:30:00,0"
    ],
    "hosp/diagnoses_icd": ["{s},{h},1,I509,10", "{s},{h},2,4280,9"],
    "hosp/procedures_icd": ["{s},{h},1,{y}-03-02,0BH17EZ,10"],
    "hosp/drgcodes": ["{s},{h},HCFA,54,NERVOUS SYSTEM,,", "{s},{h},APR,194,HEART FAILURE,2,3"],
    "hosp/hcpcsevents": ["{s},{h},{y}-03-01,G0378,1,Hospital"],
    "hosp/labevents": ["{s}9,{s},{h},50912,{y}-03-01 11:00:00,{y}-03-01 12:00:00,1.{n},1.{n},mg/dL,STAT"],
    "hosp/omr": ["{s},{y}-02-01,1,BMI (kg/m2),2{n}.5", "{s},{y}-02-01,1,Blood Pressure,1{n}0/80"],
    "hosp/emar": ["{s},{h},{s}-1,1,{p},{y}-03-01 12:00:00,Heparin,Administered"],
    "hosp/prescriptions": ["{s},{h},{p},MAIN,Heparin,63323026201", "{s},{h},{p},BASE,Bag,0"],
    "hosp/pharmacy": ["{s},{h},{p},{s}-7,{y}-03-01 11:30:00,{y}-03-04 08:00:00,Heparin,SC,TID,3"],
    "hosp/transfers": ["{s},{h},{s}1,admit,Medicine,{y}-03-01 10:00:00,{y}-03-05 13:00:00"],
    "icu/icustays": [
        "{s},{h},{i},Medical Intensive Care Unit (MICU),Medicine,{y}-03-02 12:00:00,{y}-03-04 13:00:00,2.0"
    ],
    "icu/chartevents": ["{s},{h},{i},{y}-03-02 13:00:00,{y}-03-02 13:01:00,220045,8{n},8{n},bpm"],
    "icu/procedureevents": ["{s},{h},{i},{y}-03-02 14:00:00,{y}-03-03 14:00:00,225792,1440,min"],
    "icu/inputevents": [
        "{s},{h},{i},{y}-03-02 15:00:00,{y}-03-02 16:00:00,225158,50,ml,50,mL/hour,{s}3,{s}3,Drug,7{n}.5,Changed"
    ],
    "icu/outputevents": ["{s},{h},{i},{y}-03-02 18:00:00,226559,60,ml"],
}
BOOKS = {
    "hosp/d_icd_diagnoses": "icd_code,icd_version,long_title\nI509,10,Heart failure\n4280,9,Heart failure\n",
    "hosp/d_icd_procedures": "icd_code,icd_version,long_title\n0BH17EZ,10,Intubation\n",
    "hosp/d_hcpcs": "code,category,long_description,short_description\nG0378,,Hospital observation,Hospital\n",
    "icu/d_items": "itemid,label\n220045,Heart Rate\n225158,NaCl 0.9%\n225792,Ventilation\n226559,Foley\n",
}


MAP = "itemid (omop_source_code),label,omop_concept_name,omop_vocabulary_id,omop_concept_code\n{},x,y,LOINC,1-1\n"
MAPS = {
    "d_labitems_to_loinc": 50912,
    "meas_chartevents_main": 220045,
    "proc_datetimeevents": 225792,
    "proc_itemid": 225792,
    "inputevents_to_rxnorm": 225158,
    "outputevents_to_loinc": 226559,
}


class Raw:
    """A raw folder that tests can damage."""

    def __init__(self, path: Path):
        self.path = path
        for name, head in HEADS.items():
            rows = [
                row.format(s=s, h=s + 20_000, i=s + 30_000, p=s + 40_000, n=s - 101, y=2100 + s)
                for s in SUBJECTS
                for row in ROWS[name]
            ]
            self.write(name, "\n".join([head, *rows]) + "\n")
        for name, text in (BOOKS | {name: MAP.format(item) for name, item in MAPS.items()}).items():
            self.write(name, text)

    def file(self, name: str) -> Path:
        return self.path / f"{name}.csv.gz"

    def read(self, name: str) -> str:
        return gzip.decompress(self.file(name).read_bytes()).decode()

    def write(self, name: str, text: str | bytes) -> None:
        self.file(name).parent.mkdir(parents=True, exist_ok=True)
        self.file(name).write_bytes(gzip.compress(text if isinstance(text, bytes) else text.encode(), mtime=0))

    def change(self, name: str, old: str, new: str, count: int = -1) -> None:
        text = self.read(name)
        assert old in text
        self.write(name, text.replace(old, new, count))

    def remove(self, *names: str) -> None:
        for name in names:
            self.file(name).unlink()

    def source(self, **settings) -> MimicIv:
        return MimicIv(MimicIvConfig(**{"path": str(self.path)} | settings))

    def provide(self, output: Path, **settings) -> Path:
        return self.source(**settings).provide(output, build("executor", SerialConfig()))


@pytest.fixture
def raw(tmp_path):
    return Raw(tmp_path / "mimic, v=3")  # the ETL's parser of arguments would stumble over such a name


VERSIONS = {
    "mimic-iv-meds": "0.2.0",
    "meds-extract": "0.7.1",
    "MEDS-transforms": "0.7.0",
    "polars": "1.44.2",
    "meds": "0.4.1",
}
SPEC = {
    "etl": {"dataset_name": "MIMIC-IV"},
    "hosp/patients": {"birth": {"code": "MEDS_BIRTH", "time": "$anchor_year::year"}},
    "icu/icustays": {"icu": {"code": 'f"ICU//{$first_careunit}"', "time": '$intime::"%Y-%m-%d %H:%M:%S"'}},
    "sources": {"demo": []},
}


@pytest.fixture
def pretend(tmp_path):
    """Makes environments with a Python that says what it is told, and a tool that does what it is told."""

    def make(tool: str, name: str = "etl", versions=(), spec=None) -> Path:
        folder = tmp_path / name / "bin"
        folder.mkdir(parents=True)
        found = {"spec": spec or SPEC, "versions": VERSIONS | dict(versions)}
        (folder / "told.json").write_text(json.dumps(found))
        python = (
            f'case "$3" in *MEDS_extract.pipelines*) cat "{folder}/told.json";; *) exec "{sys.executable}" "$@";; esac'
        )
        (folder / "python").write_text(f"#!/bin/sh\n{python}\n")
        (folder / "meds-extract-run").write_text(f"#!{sys.executable}\n{tool}")
        for path in folder.iterdir():
            path.chmod(0o755)
        return folder.parent

    return make


@pytest.fixture
def etl():
    """The environment of the real ETL."""
    if not os.environ.get("EHR_MIMIC_ETL"):
        pytest.skip("EHR_MIMIC_ETL names no environment of the MIMIC-IV ETL (nox -s etl_mimic_iv makes one)")
    return os.environ["EHR_MIMIC_ETL"]
