"""The source ``synthea`` on small folders that were written by hand, in the columns of old and of new exports."""

import gzip
import json
from datetime import datetime

import polars as pl
import pytest
from ehr_core.errors import DataError, EhrError, FormatError, NotApplicable
from ehr_core.formats.folder import file_digests
from ehr_core.formats.meds import read_events, shards
from ehr_core.plugin import ProcessesConfig, SerialConfig
from ehr_core.plugins import build, registry
from ehr_synthea import source as source_module
from ehr_synthea.plugin import SyntheaConfig
from ehr_synthea.source import SyntheaSource, subject_of
from ehr_tokenize.testing import check_meds

ANN, BOB = "aaaaaaaa-0000-0000-0000-000000000001", "bbbbbbbb-0000-0000-0000-000000000002"
NEW = {
    "patients": f"""Id,BIRTHDATE,DEATHDATE,MARITAL,RACE,ETHNICITY,GENDER
{ANN},1950-03-04,2020-01-12,M,white,nonhispanic,F
{BOB},2001-01-01,,S,black,hispanic,M
""",
    "encounters": f"""Id,START,STOP,PATIENT,ENCOUNTERCLASS,CODE,DESCRIPTION
e1,2020-01-10T08:00:00Z,2020-01-12T17:30:00Z,{ANN},inpatient,32485007,Hospital admission (procedure)
e2,2019-05-06T09:15:00Z,2019-05-06T09:30:00Z,{BOB},ambulatory,185349003,Check up
""",
    "conditions": f"""START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION
2020-01-10,2020-01-12,{ANN},e1,http://snomed.info/sct,233604007,Pneumonia (disorder)
2019-05-06,,{BOB},e2,SNOMED-CT,195662009,"Pharyngitis, acute"
""",
    "medications": f"""START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION,DISPENSES
2020-01-10T09:00:00Z,2020-01-11T09:00:00Z,{ANN},e1,308182,Amoxicillin 250 MG,1
""",
    "procedures": f"""START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION
2020-01-10T08:30:00Z,2020-01-10T08:30:00Z,{ANN},e1,SNOMED-CT,399208008,Plain X-ray of chest
""",
    "observations": f"""DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE
2019-05-06T09:15:00Z,{BOB},e2,vital-signs,29463-7,Body Weight,70.5,kg,numeric
2019-05-06T09:15:00Z,{BOB},e2,social-history,72166-2,Tobacco smoking status,Never smoked  tobacco (finding),,text
2019-05-06T09:15:00Z,{BOB},,,QOLS,QOLS,1.0,{{score}},numeric
""",
    "immunizations": f"""DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,BASE_COST
2019-05-06T09:15:00Z,{BOB},e2,140,Influenza,136.0
""",
    "allergies": f"""START,STOP,PATIENT,ENCOUNTER,CODE,SYSTEM,DESCRIPTION
2001-02-03,,{BOB},e9,1191,Unknown,Aspirin
2001-02-03,,{BOB},e9,84489001,Unknown,Mold (organism)
""",
    "imaging_studies": f"""ID,DATE,PATIENT,ENCOUNTER,MODALITY_CODE,MODALITY_DESCRIPTION,BODYSITE_CODE,\
BODYSITE_DESCRIPTION
s1,2020-01-10T08:31:00Z,{ANN},e1,DX,Digital Radiography,51185008,Thoracic structure
s1,2020-01-10T08:31:00Z,{ANN},e1,DX,Digital Radiography,51185008,Thoracic structure
""",
    "supplies": f"""DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,QUANTITY
2020-01-11,{ANN},e1,337388004,Blood glucose testing strips,3
""",
}
ALL_TRAIN = {"train": 1.0, "tuning": 0.0, "held_out": 0.0}


@pytest.fixture
def provide(tmp_path):
    def make(tables, executor=None, suffix=".csv", **values):
        number = len(list(tmp_path.iterdir()))
        folder, output = tmp_path / f"{number}", tmp_path / f"{number}.meds"
        folder.mkdir()
        output.mkdir()
        for name, text in tables.items():
            data = text if isinstance(text, bytes) else text.encode()
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix == ".csv.gz" else data)
        source = SyntheaSource(SyntheaConfig(path=str(folder), **(ALL_TRAIN | values)))
        return source.provide(output, executor or build("executor", SerialConfig()))

    return make


def events(meds, patient):
    frame = pl.concat([pl.read_parquet(path) for path in sorted((meds / "data" / "train").glob("*.parquet"))])
    rows = frame.filter(pl.col("subject_id") == subject_of(patient)).drop("subject_id").rows()
    return [(str(time), code, *(part for part in rest if part is not None)) for time, code, *rest in rows]


def test_a_stay_in_hospital_becomes_exactly_these_events(provide):
    assert events(provide(NEW), ANN) == [
        ("None", "GENDER//F"),
        ("None", "RACE//WHITE"),
        ("None", "ETHNICITY//NONHISPANIC"),
        ("1950-03-04 00:00:00", "MEDS_BIRTH"),
        ("2020-01-10 08:00:00", "HOSPITAL_ADMISSION//INPATIENT"),
        ("2020-01-10 08:00:00", "SNOMED//32485007"),
        ("2020-01-10 08:00:00", "SNOMED//233604007"),
        ("2020-01-10 08:30:00", "SNOMED//399208008"),
        ("2020-01-10 08:31:00", "IMAGING//DX//SNOMED//51185008"),
        ("2020-01-10 09:00:00", "RXNORM//308182"),
        ("2020-01-11 00:00:00", "SNOMED//337388004", 3.0),
        ("2020-01-11 09:00:00", "RXNORM//308182//END"),
        ("2020-01-12 00:00:00", "SNOMED//233604007//END"),
        ("2020-01-12 17:30:00", "HOSPITAL_DISCHARGE//INPATIENT"),
        ("2020-01-12 17:30:00", "MEDS_DEATH"),
    ]


def test_values_units_vaccines_and_allergies_become_exactly_these_events(provide):
    at = "2019-05-06 09:15:00"
    smoking = "LOINC//72166-2//NEVER_SMOKED_TOBACCO_(FINDING)"
    assert events(provide(NEW), BOB)[3:] == [
        ("2001-01-01 00:00:00", "MEDS_BIRTH"),
        ("2001-02-03 00:00:00", "ALLERGY//RXNORM//1191"),
        ("2001-02-03 00:00:00", "ALLERGY//SNOMED//84489001"),
        (at, "VISIT_START//AMBULATORY"),
        (at, "SNOMED//185349003"),
        (at, "SNOMED//195662009"),
        (at, "LOINC//29463-7//kg", 70.5, "kg"),
        (at, smoking, "Never smoked  tobacco (finding)"),
        (at, "SYNTHEA//QOLS//{score}", 1.0, "{score}"),
        (at, "CVX//140"),
        ("2019-05-06 09:30:00", "VISIT_END//AMBULATORY"),
    ]


def test_settings_leave_out_ends_and_units_and_choose_what_a_stay_is(provide):
    meds = provide(NEW, ends=False, units=False, inpatient=["ambulatory"])
    codes = [event[1] for patient in (ANN, BOB) for event in events(meds, patient)]
    assert not [code for code in codes if code.endswith("//END")]
    assert {"LOINC//29463-7", "VISIT_START//INPATIENT", "HOSPITAL_DISCHARGE//AMBULATORY"} <= set(codes)


def test_old_exports_with_dates_only_are_read(provide):
    old = {
        "patients": f"ID,BIRTHDATE,DEATHDATE,RACE,ETHNICITY,GENDER\n{ANN},1950-03-04,,white,irish,F\n",
        "encounters": f"ID,START,STOP,PATIENT,ENCOUNTERCLASS,CODE\ne1,2010-01-02,2010-01-05,{ANN},inpatient,1234567\n",
        "procedures": f"DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION\n2010-01-03,{ANN},e1,399208008,X-ray\n",
        "observations": f"DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,VALUE,UNITS\n2010-01-03,{ANN},e1,718-7,,12.5,g/dL\n",
    }
    assert events(provide(old), ANN)[4:] == [
        ("2010-01-02 00:00:00", "HOSPITAL_ADMISSION//INPATIENT"),
        ("2010-01-02 00:00:00", "SNOMED//1234567"),
        ("2010-01-03 00:00:00", "SNOMED//399208008"),
        ("2010-01-03 00:00:00", "LOINC//718-7//g/dL", 12.5, "g/dL"),
        ("2010-01-05 00:00:00", "HOSPITAL_DISCHARGE//INPATIENT"),
    ]


def test_the_dataset_fits_the_schemas_of_meds_and_is_read_back(provide):
    check_meds(provide(NEW, train=0.8, tuning=0.1, held_out=0.1))


def test_codes_are_described_and_know_what_they_narrow_down(provide):
    book = pl.read_parquet(provide(NEW) / "metadata" / "codes.parquet")
    found = {code: (text, parents) for code, text, parents in book.rows()}
    assert found["RXNORM//308182"] == ("Amoxicillin 250 MG", None)
    assert found["LOINC//29463-7//kg"] == ("Body Weight", ["LOINC//29463-7"])
    assert found["SNOMED//195662009"][0] == "Pharyngitis, acute"
    assert found["IMAGING//DX//SNOMED//51185008"][0] == "Digital Radiography of thoracic structure"


def test_metadata_says_which_subject_is_which_patient(provide):
    ids = pl.read_parquet(provide(NEW) / "metadata" / "subject_ids.parquet")
    assert dict(ids.rows()) == {subject_of(ANN): ANN, subject_of(BOB): BOB}


def test_bytes_depend_on_neither_compression_nor_workers(provide):
    facts = "metadata/dataset.json"  # it names the folder
    plain, packed, spread = (
        {name: digest for name, digest in file_digests(meds).items() if name != facts}
        for meds in (
            provide(NEW),
            provide(NEW, suffix=".csv.gz"),
            provide(NEW, build("executor", ProcessesConfig(num_workers=2))),
        )
    )
    assert plain == packed == spread
    assert not [name for name in plain if ".work" in name]


def test_shards_are_bounded_and_each_subject_is_in_one(provide):
    many = "Id,BIRTHDATE\n" + "".join(f"p{index},2000-01-01\n" for index in range(50))
    meds = provide({"patients": many}, shard_subjects=3, train=0.6, tuning=0.2, held_out=0.2)
    sizes = [pl.read_parquet(shard.path)["subject_id"].n_unique() for shard in shards(meds)]
    assert sum(sizes) == 50
    assert max(sizes) == 3


def test_rows_of_nobody_and_without_a_time_are_counted_and_left_out(provide, capsys):
    tables = NEW | {"immunizations": f"DATE,PATIENT,CODE\n2020-01-01,ghost,140\n,{BOB},140\n2020-01-01,{BOB},\n"}
    meds = provide(tables)
    expected = {"immunizations": {"no such subject": 1, "no time": 1, "no code": 1}}
    assert json.loads((meds / "metadata" / "left_out.json").read_text()) == expected
    said = capsys.readouterr().err
    assert "left out of immunizations: 1 rows with no code, 1 rows with no such subject" in said
    assert "ghost" not in said
    assert "CVX//140" not in [event[1] for event in events(meds, BOB)]


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("patients", "Id,BIRTHDATE\nsecret,1950-13-04\n", r"patients.csv, row 1: column 'birthdate' is no date"),
        ("patients", "Id\nsecret\n", r"patients.csv has no column 'birthdate'"),
        ("patients", "Id,BIRTHDATE\n", r"patients.csv has no row"),
        ("patients", "Id,BIRTHDATE\nsecret,1950-01-01\nsecret,1950-01-01\n", r"row 2: Id repeats an earlier one"),
        ("patients", "Id,BIRTHDATE\nx,1950-01-01\n,1950-01-01\n", r"row 2: Id is empty"),
        ("patients", "", r"patients.csv has no header"),
        ("conditions", "START,PATIENT,CODE\n2020-01-01,secret\n", r"conditions.csv, row 1: 2 cells where .* has 3"),
        ("conditions", "PATIENT,CODE\nsecret,1\n", r"conditions.csv has neither column 'start' nor 'date'"),
        ("conditions", "START,PATIENT\n2020-01-01,secret\n", r"conditions.csv has no column 'code'"),
        (
            "observations",
            b"DATE,PATIENT,CODE,VALUE\n2020-01-01,secret\xe9,1,1\n",
            r"observations.csv is damaged or no CSV",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_file_and_column_and_without_content(provide, table, text, message):
    with pytest.raises(EhrError, match=message) as error:
        provide(NEW | {table: text})
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(NotApplicable, match=r"has no patients.csv"):
        SyntheaSource(SyntheaConfig(path=str(tmp_path))).fingerprint()
    with pytest.raises(FormatError, match="is not a folder"):
        SyntheaSource(SyntheaConfig(path=str(tmp_path / "none"))).fingerprint()
    (tmp_path / "patients.csv").write_text(NEW["patients"])
    (tmp_path / "patients.csv.gz").write_bytes(b"")
    with pytest.raises(FormatError, match=r"has patients.csv and patients.csv.gz; keep one"):
        SyntheaSource(SyntheaConfig(path=str(tmp_path))).fingerprint()


def test_two_patients_with_one_hash_are_refused(provide, monkeypatch):
    monkeypatch.setattr(source_module, "subject_of", lambda patient: 5)
    with pytest.raises(DataError, match="row 2: Id has the hash of an earlier one"):
        provide(NEW)


def test_the_fingerprint_changes_with_the_content_of_a_file(tmp_path):
    (tmp_path / "patients.csv").write_text(NEW["patients"])
    source = SyntheaSource(SyntheaConfig(path=str(tmp_path)))
    before = source.fingerprint()
    (tmp_path / "patients.csv").write_text(NEW["patients"].replace("1950", "1951"))
    assert before.keys() == source.fingerprint().keys() == {"patients.csv"}
    assert before != source.fingerprint()


def test_a_stay_answers_the_tasks_as_they_are(provide):
    meds = provide(NEW)
    task = build("task", registry().get("task", "in_hospital_mortality").config())
    found = pl.concat([read_events(shard.path) for shard in shards(meds)])
    labels = task.label(found, datetime(2030, 1, 1))
    assert labels.rows() == [(subject_of(ANN), datetime(2020, 1, 11, 8), True)]
