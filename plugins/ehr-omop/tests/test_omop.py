"""The source ``omop`` on a small folder that was written by hand, as CDM 5.4 and as 5.3, as CSV and as Parquet."""

import json
from datetime import datetime

import polars as pl
import pytest
from ehr_core.errors import ConfigError, EhrError, FormatError, NotApplicable
from ehr_core.formats.folder import file_digests
from ehr_core.formats.meds import read_events, shards
from ehr_core.plugin import ProcessesConfig, SerialConfig
from ehr_core.plugins import build, registry
from ehr_omop.plugin import OmopConfig
from ehr_omop.source import OmopSource
from ehr_tokenize.plugin import FusedConfig, TokenizeConfig
from ehr_tokenize.store.command import tokenize
from ehr_tokenize.testing import check_meds

V54 = {
    "person": """person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,birth_datetime,race_concept_id,\
ethnicity_concept_id,race_source_value
1,8532,1950,3,4,,8527,38003564,w
2,8507,1980,,,1980-05-06 07:08:09,0,0,some other
""",
    "visit_occurrence": """visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime,\
visit_end_date,visit_end_datetime,visit_source_concept_id,admitted_from_concept_id,discharged_to_concept_id
10,1,9201,2020-01-10,2020-01-10 08:00:00,2020-01-12,2020-01-12 17:30:00,0,0,8536
20,2,9202,2019-05-06,,2019-05-06,,0,0,0
30,2,0,2019-06-06,2019-06-06T10:00:00,,,0,0,0
""",
    "condition_occurrence": """condition_occurrence_id,person_id,condition_concept_id,condition_start_date,\
condition_start_datetime,condition_end_date,condition_source_value,condition_source_concept_id,visit_occurrence_id
1,1,233604007,2020-01-10,,2020-01-12,J18.9,45591,10
2,2,0,2019-05-06,,2019-05-06,LOCAL1,0,20
3,2,777,2019-05-06,,,X,0,20
""",
    "drug_exposure": """drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date,\
drug_exposure_start_datetime,drug_exposure_end_date,drug_exposure_end_datetime,visit_occurrence_id
1,1,19073183,2020-01-10,2020-01-10 09:00:00,2020-01-11,2020-01-11 09:00:00,10
""",
    "procedure_occurrence": """person_id,procedure_concept_id,procedure_date,procedure_datetime,visit_occurrence_id
1,399208,2020-01-10,2020-01-10 08:30:00,10
""",
    "measurement": """person_id,measurement_concept_id,measurement_date,measurement_datetime,value_as_number,\
value_as_concept_id,unit_concept_id,unit_source_value,visit_occurrence_id
1,3000963,2020-01-10,2020-01-10 08:45:00,12.5,0,8713,gm/dl,10
1,3000963,2020-01-11,2020-01-11 08:45:00,125,0,0,g/L,10
1,3000963,2020-01-11,2020-01-11 08:46:00,,4069590,,,10
""",
    "observation": """person_id,observation_concept_id,observation_date,observation_datetime,value_as_string,\
visit_occurrence_id
2,40766,2019-05-06,2019-05-06 00:00:00,never,20
""",
    "death": """person_id,death_date,death_datetime,cause_concept_id
1,2020-01-12,,233604007
""",
    "concept": """concept_id,concept_name,vocabulary_id,concept_code
233604007,Pneumonia,SNOMED,233604007
45591,"Pneumonia, unspecified",ICD10CM,J18.9
19073183,Amoxicillin,RxNorm Extension,308182
399208,Chest X-ray,CPT4,71045
3000963,Hemoglobin,LOINC,718-7
8713,gram per deciliter,UCUM,g/dL
4069590,Normal,SNOMED,17621005
40766,Smoking,LOINC,72166-2
8536,Home,CMS Place of Service,12
""",
}
RENAMED = {
    "admitted_from_concept_id": "admitting_source_concept_id",
    "discharged_to_concept_id": "discharge_to_concept_id",
}
ALL_TRAIN = {"train": 1.0, "tuning": 0.0, "held_out": 0.0}
ANN = [
    ("None", "GENDER//F"),
    ("None", "RACE//WHITE"),
    ("None", "ETHNICITY//NOT_HISPANIC"),
    ("1950-03-04 00:00:00", "MEDS_BIRTH"),
    ("2020-01-10 08:00:00", "HOSPITAL_ADMISSION//VISIT//IP"),
    ("2020-01-10 08:00:00", "SNOMED//233604007"),
    ("2020-01-10 08:30:00", "CPT4//71045"),
    ("2020-01-10 08:45:00", "LOINC//718-7//g/dL", 12.5, "g/dL"),
    ("2020-01-10 09:00:00", "RXNORM_EXTENSION//308182"),
    ("2020-01-11 08:45:00", "LOINC//718-7//g/L", 125.0, "g/L"),
    ("2020-01-11 08:46:00", "LOINC//718-7//SNOMED//17621005"),
    ("2020-01-11 09:00:00", "RXNORM_EXTENSION//308182//END"),
    ("2020-01-12 00:00:00", "SNOMED//233604007//END"),
    ("2020-01-12 17:30:00", "HOSPITAL_DISCHARGE//VISIT//IP"),
    ("2020-01-12 17:30:00", "DISCHARGED_TO//CMS_PLACE_OF_SERVICE//12"),
    ("2020-01-12 17:30:00", "CAUSE_OF_DEATH//SNOMED//233604007"),
    ("2020-01-12 17:30:00", "MEDS_DEATH"),
]
BEN = [
    ("None", "GENDER//M"),
    ("None", "RACE//SOME_OTHER"),
    ("1980-05-06 07:08:09", "MEDS_BIRTH"),
    ("2019-05-06 00:00:00", "VISIT_START//VISIT//OP"),
    ("2019-05-06 00:00:00", "CONDITION//LOCAL1"),
    ("2019-05-06 00:00:00", "OMOP//777"),
    ("2019-05-06 00:00:00", "LOINC//72166-2", "never"),
    ("2019-05-06 00:00:00", "VISIT_END//VISIT//OP"),
    ("2019-06-06 10:00:00", "VISIT_START//UNKNOWN"),
]


@pytest.fixture
def provide(tmp_path):
    def make(content, form="csv", executor=None, **values):
        number = len(list(tmp_path.iterdir()))
        folder, output = tmp_path / f"{number}", tmp_path / f"{number}.meds"
        folder.mkdir()
        output.mkdir()
        for name, text in content.items():
            (folder / f"{name}.csv").write_text(text)
            if form == "parquet":  # as pandas writes it: numbers with a gap are floats
                frame = pl.read_csv(folder / f"{name}.csv")
                frame = frame.with_columns(pl.col(pl.Int64).cast(pl.Float64)) if name != "person" else frame
                frame.write_parquet(folder / f"{name}.parquet")
                (folder / f"{name}.csv").unlink()
        source = OmopSource(OmopConfig(path=str(folder), **(ALL_TRAIN | values)))
        return source.provide(output, executor or build("executor", SerialConfig()))

    return make


def events(meds, person):
    frame = pl.concat([pl.read_parquet(path) for path in sorted((meds / "data" / "train").glob("*.parquet"))])
    rows = frame.filter(pl.col("subject_id") == person).drop("subject_id").rows()
    return [(str(time), code, *(part for part in rest if part is not None)) for time, code, *rest in rows]


def as_53(tables):
    changed = {}
    for name, text in tables.items():
        for new, old in RENAMED.items():
            text = text.replace(new, old)
        changed[name.upper()] = text.replace("person_id", "PERSON_ID")
    return changed


def test_tables_become_exactly_these_events(provide):
    meds = provide(V54)
    assert events(meds, 1) == ANN
    assert events(meds, 2) == BEN


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_names_of_cdm_5_3_in_capitals_and_parquet_give_the_same_events(provide, form):
    for tables in (as_53(V54), V54) if form == "csv" else (V54,):
        meds = provide(tables, form)
        assert events(meds, 1) == ANN
        assert events(meds, 2) == BEN


def test_a_vocabulary_with_tabs_and_quotes_is_read_as_it_is_published(provide):
    concept = V54["concept"].replace('"Pneumonia, unspecified"', 'Pneumonia "unspecified').replace(",", "\t")
    meds = provide(V54 | {"concept": concept})
    assert events(meds, 1) == ANN


def test_a_folder_without_vocabulary_still_has_visits_sexes_and_concept_ids(provide):
    found = events(provide({name: text for name, text in V54.items() if name != "concept"}), 1)
    assert ("2020-01-10 08:00:00", "HOSPITAL_ADMISSION//VISIT//IP") in found
    assert ("None", "GENDER//F") in found
    assert ("2020-01-10 08:45:00", "OMOP//3000963//gm/dl", 12.5, "gm/dl") in found


def test_settings_choose_codes_ends_units_stays_and_tables(provide):
    meds = provide(V54, source_codes=True, ends=False, units=False, inpatient=[9202], tables=["visit_occurrence"])
    assert [event[1] for event in events(meds, 1)][4:] == [
        "VISIT_START//VISIT//IP",
        "VISIT_END//VISIT//IP",
        "DISCHARGED_TO//CMS_PLACE_OF_SERVICE//12",
    ]
    meds = provide(V54, source_codes=True, ends=False, units=False)
    codes = {event[1] for event in events(meds, 1)}
    assert {"ICD10CM//J18.9", "LOINC//718-7"} <= codes
    assert not [code for code in codes if code.endswith(("//END", "g/dL"))]


def test_a_table_in_parts_is_one_table(provide, tmp_path):
    meds = provide(V54)
    folder = tmp_path / "parts"
    (folder / "measurement").mkdir(parents=True)
    for name, text in V54.items():
        (folder / f"{name}.csv").write_text(text)
    header, *rows = V54["measurement"].splitlines()
    (folder / "measurement.csv").unlink()
    for number, row in enumerate(rows):
        (folder / "measurement" / f"part-{number}.csv").write_text(f"{header}\n{row}\n")
    output = tmp_path / "parts.meds"
    output.mkdir()
    source = OmopSource(OmopConfig(path=str(folder), **ALL_TRAIN))
    assert len([name for name in source.fingerprint() if name.startswith("measurement/")]) == 3
    parted = source.provide(output, build("executor", SerialConfig()))
    assert file_digests(parted / "data") == file_digests(meds / "data")


def test_the_dataset_fits_the_schemas_of_meds_and_is_read_back(provide):
    check_meds(provide(V54, train=0.4, tuning=0.3, held_out=0.3))


def test_codes_have_the_names_of_their_concepts(provide):
    book = pl.read_parquet(provide(V54) / "metadata" / "codes.parquet")
    found = {code: (text, parents) for code, text, parents in book.rows()}
    assert found["LOINC//718-7//g/dL"] == ("Hemoglobin", ["LOINC//718-7"])
    assert found["SNOMED//233604007//END"] == ("Pneumonia", ["SNOMED//233604007"])
    assert found["HOSPITAL_ADMISSION//VISIT//IP"] == ("Inpatient Visit", ["VISIT//IP"])
    assert found["CONDITION//LOCAL1"] == (None, None)


def test_bytes_do_not_depend_on_workers(provide):
    facts = "metadata/dataset.json"  # it names the folder
    one = file_digests(provide(V54))
    two = file_digests(provide(V54, executor=build("executor", ProcessesConfig(num_workers=2))))
    assert {k: v for k, v in one.items() if k != facts} == {k: v for k, v in two.items() if k != facts}


def test_rows_of_nobody_and_without_a_date_are_counted_and_left_out(provide, capsys):
    more = V54["procedure_occurrence"] + "99,399208,2020-01-10,,\n1,399208,,,\n"
    meds = provide(V54 | {"procedure_occurrence": more})
    left_out = json.loads((meds / "metadata" / "left_out.json").read_text())
    assert left_out == {"procedure_occurrence": {"no such subject": 1, "no time": 1}}
    assert "left out of procedure_occurrence" in capsys.readouterr().err
    assert events(meds, 1) == ANN


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("person", "person_id,year_of_birth\n1,1950\n1,1950\n", r"person.csv, row 2: person_id repeats an earlier one"),
        ("person", "person_id,year_of_birth\n,1950\n", r"person.csv, row 1: person_id is empty"),
        ("person", "person_id,year_of_birth\n", r"person.csv has no row"),
        ("person", "person_id\n1\n", r"person.csv has no column 'year_of_birth'"),
        ("person", "person_id,year_of_birth\nsecret,1950\n", r"row 1: column 'person_id' is no whole number"),
        ("person", "person_id,year_of_birth,month_of_birth\n1,1950,13\n", r"row 1: year, month and day of birth"),
        ("death", "person_id\n1\n", r"death.csv has neither column 'death_date' nor 'death_datetime'"),
        (
            "death",
            "person_id,death_date\n1,2020-01-01\n1,secret\n",
            r"death.csv, row 2: column 'death_date' is no date",
        ),
        ("measurement", "person_id,measurement_date\n1,2020-01-01\n", r"has no column 'measurement_concept_id'"),
        (
            "measurement",
            "person_id,measurement_concept_id,measurement_date,value_as_number\n1,5,2020-01-01,secret\n",
            r"measurement.csv, row 1: column 'value_as_number' is no number",
        ),
        ("observation", "person_id,observation_concept_id,observation_date\n1,2\n", r"row 1: 2 cells where .* has 3"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_row_and_column_and_without_content(provide, table, text, message):
    with pytest.raises(EhrError, match=message) as error:
        provide(V54 | {table: text})
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_parquet_file_is_refused_by_name(provide, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "person.csv").write_text(V54["person"])
    (folder / "death.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "out").mkdir()
    source = OmopSource(OmopConfig(path=str(folder)))
    with pytest.raises(FormatError, match=r"death.parquet is not a readable Parquet file"):
        source.provide(tmp_path / "out", build("executor", SerialConfig()))


def test_what_is_no_cdm_and_unknown_tables_are_refused(tmp_path):
    with pytest.raises(NotApplicable, match="has no table person"):
        OmopSource(OmopConfig(path=str(tmp_path))).fingerprint()
    with pytest.raises(ConfigError, match=r"source.tables has note; allowed: visit_occurrence"):
        OmopSource(OmopConfig(path=str(tmp_path), tables=["note"]))
    (tmp_path / "person.csv").write_text(V54["person"])
    source = OmopSource(OmopConfig(path=str(tmp_path), train=0.5))
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="add up to 1"):
        source.provide(tmp_path / "out", build("executor", SerialConfig()))


def test_a_folder_that_is_no_cdm_leaves_nothing_behind(tmp_path):
    (tmp_path / "raw").mkdir()
    settings = TokenizeConfig(
        source=OmopConfig(path=str(tmp_path / "raw")),
        tokenizer=FusedConfig(),
        executor=SerialConfig(),
        output=str(tmp_path / "store"),
    )
    with pytest.raises(NotApplicable, match="has no table person"):
        tokenize(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_stay_answers_the_tasks_as_they_are(provide):
    found = pl.concat([read_events(shard.path) for shard in shards(provide(V54))])
    task = build("task", registry().get("task", "in_hospital_mortality").config())
    assert task.label(found, datetime(2030, 1, 1)).rows() == [(1, datetime(2020, 1, 11, 8), True)]
