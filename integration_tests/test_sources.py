"""Every source goes through the runner, dry and wet, from the files that it is for to a trained model and a score."""

import csv
import json
from datetime import datetime, timedelta

import ehr
import numpy as np
import pytest
from ehr_core.errors import DataError
from ehr_core.formats.run import Run
from ehr_core.plugins import registry

PATIENTS = 60
SMALL = [
    "model.num_layers=1",
    "model.width=32",
    "model.num_heads=2",
    "model.context_length=64",
    "train.max_steps=4",
    "evaluation.num_bootstrap=20",
]
SCORED = ["task=readmission_30d", "predictors=[finetuned,logistic]", "predictors.finetuned.max_steps=3"]
SPLITS = ["source.train=0.6", "source.tuning=0.2", "source.held_out=0.2"]
STAY = timedelta(days=3)


def stays(patient):
    """Admissions of a patient, some of them within 30 days of the last discharge."""
    random = np.random.default_rng(patient)
    time = datetime(2015, 1, 1) + timedelta(days=int(random.integers(400)))
    for _ in range(random.integers(2, 6)):
        yield time
        time += STAY + timedelta(days=int(random.choice([10, 90, 200])))


def table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def omop(folder):
    people = [(p, 8532 if p % 2 else 8507, 1940 + p % 40, 1, 1) for p in range(1, PATIENTS + 1)]
    table(folder / "person.csv", "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth", people)
    visits = [(p, time) for p in range(1, PATIENTS + 1) for time in stays(p)]
    table(
        folder / "visit_occurrence.csv",
        "visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime,visit_end_date,"
        "visit_end_datetime",
        [(n, p, 9201, t.date(), t, (t + STAY).date(), t + STAY) for n, (p, t) in enumerate(visits)],
    )
    table(
        folder / "measurement.csv",
        "person_id,measurement_concept_id,measurement_date,measurement_datetime,value_as_number,unit_concept_id",
        [(p, 3000963, t.date(), t + timedelta(hours=h), 10 + p % 5 + h, 8713) for p, t in visits for h in (1, 5)],
    )
    concepts = [(3000963, "Hemoglobin", "LOINC", "718-7"), (8713, "gram per deciliter", "UCUM", "g/dL")]
    table(folder / "concept.csv", "concept_id,concept_name,vocabulary_id,concept_code", concepts)
    return ["source=omop", f"source.path={folder}", *SPLITS]


def synthea(folder):
    names = {p: f"aaaaaaaa-0000-0000-0000-{p:012d}" for p in range(1, PATIENTS + 1)}
    people = [(names[p], f"{1940 + p % 40}-01-01", "", "M", "white", "nonhispanic", "MF"[p % 2]) for p in names]
    table(folder / "patients.csv", "Id,BIRTHDATE,DEATHDATE,MARITAL,RACE,ETHNICITY,GENDER", people)
    rows, values = [], []
    for p, name in names.items():
        for number, time in enumerate(stays(p)):
            visit, begin, end = f"e{p}-{number}", time.isoformat() + "Z", (time + STAY).isoformat() + "Z"
            rows.append((visit, begin, end, name, "inpatient", "32485007", "Hospital admission"))
            values.append((begin, name, visit, "laboratory", "718-7", "Hemoglobin", 10 + p % 5, "g/dL", "numeric"))
    table(folder / "encounters.csv", "Id,START,STOP,PATIENT,ENCOUNTERCLASS,CODE,DESCRIPTION", rows)
    table(
        folder / "observations.csv", "DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE", values
    )  # fmt: skip
    return ["source=synthea", f"source.path={folder}", *SPLITS]


def patients_json(folder):
    people = [
        {
            "patient_id": f"P{p:04d}",
            "sex": "FM"[p % 2],
            "birth_year": 1940 + p % 40,
            "diagnoses": [
                {"code": ["I10", "E11.65", "N18.3"][n % 3], "date": t.date().isoformat()}
                for n, t in enumerate(stays(p))
            ],
            "prescriptions": [{"code": "N02BE01", "date": (t + STAY).date().isoformat()} for t in stays(p)],
        }
        for p in range(PATIENTS)
    ]
    (folder / "patients.json").write_text(json.dumps({"patients": people}))
    return ["source=patients_json", f"source.path={folder / 'patients.json'}", *SPLITS]


def meds(folder):
    made = ehr.make("source=synthetic", f"source.num_subjects={PATIENTS * 3}", f"output={folder / 'meds'}")
    return ["source=meds", f"source.path={made}"]


def synthetic(folder):
    return ["source=synthetic", f"source.num_subjects={PATIENTS * 3}"]


WITH_STAYS = [omop, synthea, meds, synthetic]


def test_every_source_is_tried():
    names = {write.__name__ for write in [*WITH_STAYS, patients_json]}
    assert names | {"mimic_iv"} == set(registry().components["source"])  # mimic_iv has a session: it needs its own ETL


@pytest.mark.parametrize("write", WITH_STAYS)
def test_records_of_a_source_become_a_model_and_a_score(write, tmp_path, capfd):
    given = [*write(tmp_path), *SMALL, *SCORED, f"output={tmp_path / 'out'}"]
    assert ehr.run(*given, "dry_run=true") is None
    said = capfd.readouterr().err
    assert "pretrain" in said
    assert not (tmp_path / "out").exists()
    result = ehr.run(*given)
    found = {row["predictor"] for row in result.scores["scores"]} - {"ceiling"}
    assert found == {"finetuned", "logistic"}, result.notes
    assert all(0 <= row["value"] <= 1 for row in result.scores["scores"] if row["metric"] == "brier")
    assert result.report.is_file()


def test_records_without_stays_become_a_model(tmp_path, capfd):
    given = [*patients_json(tmp_path), *SMALL, "tokenizer=exmed_bert", "model=bert", "objective=masked"]
    given = [part for part in given if not part.startswith("evaluation")]
    assert ehr.run(*given, "predictors=[]", f"output={tmp_path / 'out'}", "dry_run=true") is None
    result = ehr.run(*given, "predictors=[]", f"output={tmp_path / 'out'}")
    run = Run(result.path / "pretrain")
    assert {"I10", "E11.65", "N02BE01"} <= {token.token.rpartition("//")[2] for token in run.vocabulary.tokens}
    with pytest.raises(DataError, match="no task gave a label on this dataset"):
        ehr.run(*given, f"output={tmp_path / 'scored'}", "predictors=logistic")
