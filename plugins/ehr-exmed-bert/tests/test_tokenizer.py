"""The tokenizer ``exmed_bert``, from patients in JSON to the token store, token by token."""

import json

from ehr_core.cli import run
from ehr_core.formats.tokens import TokenStore

PATIENT = {
    "diagnoses": ["E11.65", "E11.9", "I10"],
    "diagnosis_dates": ["20200115", "20200115", "20200301"],
    "drugs": ["N02BE01"],
    "prescription_dates": ["20200115"],
    "procedures": ["99213"],
    "procedure_dates": ["20200301"],
    "birth_year": 1950,
    "sex": "F",
    "patient_state": "CA",
}
MANY = [{**PATIENT, "patient_id": index, **({"sex": "M"} if index % 4 == 0 else {})} for index in range(40)]


def tokenized(tmp_path, *overrides):
    (tmp_path / "patients.json").write_text(json.dumps({"patients": MANY}))
    number = len(list(tmp_path.iterdir()))
    settings = ["source=patients_json", f"source.path={tmp_path}/patients.json", "tokenizer=exmed_bert", *overrides]
    run("ehr-tokenize", "tokenize", [*settings, f"output={tmp_path}/store{number}"])
    store = TokenStore(tmp_path / f"store{number}")
    table = next(store.tables("train"))
    row = next(row for row, subject in enumerate(table.subject_id.tolist()) if subject % 4)
    span = slice(int(table.offset[row]), int(table.offset[row + 1]))
    names = [store.vocabulary.tokens[i].token for i in table.token[span]]
    return store, names, {name: values[span].tolist() for name, values in table.columns.items()}


def test_each_code_has_age_visit_entity_sex_and_region(tmp_path):
    store, names, columns = tokenized(tmp_path)
    assert names == ["ICD10CM//E11.65", "ICD10CM//E11.9", "ATC//N02BE01", "ICD10CM//I10", "CPT//99213"]
    age = 70 * 365 + 17 + 14  # 17 leap days from 1950 to 2019
    assert columns == {
        "age_days": [age] * 3 + [age + 46] * 2,
        "visit": [1, 1, 1, 2, 2],
        "segment": [1, 1, 1, 2, 2],
        "entity": [2, 2, 3, 2, 5],
        "sex": [2] * 5,
        "region": [2] * 5,
    }
    state = json.loads((store.path / "tokenizer.json").read_text())["state"]
    assert state["entity"] == {"other": 1, "diagnosis": 2, "drug": 3, "measurement": 4, "procedure": 5}
    assert state["sex"] == {"F": 2, "M": 3}
    assert state["region"] == {"CA": 2}
    assert store.vocabulary["[MASK]"] == 4


def test_levels_repeats_and_separators_are_settings(tmp_path):
    _, names, columns = tokenized(
        tmp_path,
        *["tokenizer.icd_level=3-digit", "tokenizer.atc_level=4", "tokenizer.unique=true"],
        *["tokenizer.sep=true", "tokenizer.cls=true", "tokenizer.only_entities=[diagnosis,drug]"],
    )
    assert names == ["[CLS]", "ICD10CM//E11", "ATC//N02B", "[SEP]", "ICD10CM//I10"]
    assert columns["visit"] == [1, 1, 1, 1, 2]
    assert columns["entity"] == [0, 2, 3, 0, 2]
