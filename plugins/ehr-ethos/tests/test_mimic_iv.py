"""The preset ``mimic_iv`` on hand-written records, spelled as the public MEDS ETLs of MIMIC-IV spell them."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from ehr_core.cli import run
from ehr_core.errors import EhrError
from ehr_core.formats.tokens import TokenStore, prefix_tokens

COLUMNS = ("text_value", "race", "marital_status", "insurance")
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def rows_of(subject, *events, columns=COLUMNS):
    """Rows from (time or None, code[, number][, further columns])."""
    found = []
    for time, code, *rest in events:
        number = next((float(x) for x in rest if isinstance(x, int | float)), None)
        more = next((x for x in rest if isinstance(x, dict)), {})
        at = datetime.fromisoformat(time) if time else None
        found.append((subject, at, code, number, *(more.get(name) for name in columns)))
    return found


def write(folder: Path, columns=COLUMNS, **splits) -> Path:
    for split in ("train", "tuning", "held_out"):
        rows = splits.get(split) or rows_of(
            {"tuning": 998, "held_out": 999}[split], ("2150-01-01", "ED_OUT"), columns=columns
        )
        path = folder / "data" / split / "0.parquet"
        path.parent.mkdir(parents=True)
        schema = SCHEMA | dict.fromkeys(columns, pl.String)
        pl.DataFrame(rows, schema, orient="row").write_parquet(path)
    return folder


def tokenize(meds: Path, output: Path, *overrides: str) -> Path:
    found = ["source=meds", f"source.path={meds}", f"output={output}", "tokenizer=mimic_iv", "tokenizer.min_count=1"]
    run("ehr-tokenize", "tokenize", [*found, *overrides])
    return output


class Read:
    def __init__(self, store: Path):
        self.store = TokenStore(store)
        self.tables = [t for split in ("train", "tuning", "held_out") for t in self.store.tables(split)]
        self._at = {int(s): (t, row) for t in self.tables for row, s in enumerate(t.subject_id)}

    def _slice(self, subject, name):
        table, row = self._at[subject]
        return getattr(table, name)[table.offset[row] : table.offset[row + 1]]

    def tokens(self, subject):
        return [self.store.vocabulary.tokens[i].token for i in self._slice(subject, "token")]

    def times(self, subject):
        start = datetime(1970, 1, 1)
        return [str(start + timedelta(microseconds=int(t))) for t in self._slice(subject, "time")]

    def prefix(self, subject, time):
        at = int((datetime.fromisoformat(time) - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
        return [self.store.vocabulary.tokens[i].token for i in prefix_tokens(self.store.prefix, *self._at[subject], at)]


@pytest.fixture
def mappings(tmp_path):
    """Three small mapping files, and the overrides that name them."""
    files = {
        "icd9_cm": "from,to\n428.0,I50.9\n25000,E11.9\n25000,E13.9\n",
        "icd9_pcs": "from,to\n3893,05HM33Z\n3893,02HV33Z\n",
        "drug_atc": "from,to\nHeparin,B01AB01\nHeparin,C05BA03\nInsulin,A10\n",
    }
    overrides = []
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
        overrides.append(f"tokenizer.prepare.mappings.{name}.path={tmp_path}/{name}.csv")
    return overrides


def text(value):
    return {"text_value": value}


ADMISSION = {"race": "BLACK/CAPE VERDEAN", "marital_status": "SINGLE", "insurance": "Medicaid"}
# As MIMIC_IV_MEDS 0.0.x to 0.1.2 writes it: demographics are columns of the admission.
STAY = rows_of(
    1,
    (None, "GENDER//F"),
    ("2100-01-01", "MEDS_BIRTH"),
    ("2150-03-01 00:00", "BMI (kg/m2)", text("24.5")),
    ("2150-03-01 00:00", "Blood Pressure", text("120/80")),
    ("2150-03-01 00:00", "Weight (Lbs)", text("150")),
    ("2150-03-01 09:00", "ED_REGISTRATION"),
    ("2150-03-01 09:20", "TRANSFER_TO//ED//Emergency Department"),
    ("2150-03-01 10:00", "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM", ADMISSION),
    ("2150-03-01 10:00", "TRANSFER_TO//admit//Med/Surg, East"),
    ("2150-03-01 11:00", "LAB//50912//mg/dL", 1.0, text("1.0")),
    ("2150-03-01 11:00", "LAB//51463//UNK", text("FEW")),
    ("2150-03-01 11:00", "MEDICATION//START//Heparin"),
    ("2150-03-01 12:00", "MEDICATION//Heparin//Administered"),
    ("2150-03-01 12:00", "MEDICATION//Heparin//Not Given"),
    ("2150-03-02 12:00", "ICU_ADMISSION//Medical Intensive Care Unit (MICU)"),
    ("2150-03-02 12:00", "INFUSION_START//225158", 3.0),
    ("2150-03-02 13:00", "SUBJECT_FLUID_OUTPUT//226559//ml", 60.0),
    ("2150-03-04 13:00", "ICU_DISCHARGE//Medical Intensive Care Unit (MICU)"),
    ("2150-03-05 13:00", "DIAGNOSIS//ICD//10//E11.6512"),
    ("2150-03-05 13:00", "DIAGNOSIS//ICD//10//I10"),
    ("2150-03-05 13:00", "DIAGNOSIS//ICD//9//4280"),
    ("2150-03-05 13:00", "DIAGNOSIS//ICD//9//25000"),
    ("2150-03-05 13:00", "DRG//APR//194//HEART FAILURE"),
    ("2150-03-05 13:00", "DRG//HCFA//054//NERVOUS SYSTEM"),
    ("2150-03-05 13:00", "HOSPITAL_DISCHARGE//SKILLED NURSING FACILITY"),
    ("2150-03-05 13:00", "PROCEDURE//ICD//10//0BH17EZ"),
    ("2150-03-05 13:00", "PROCEDURE//ICD//9//3893"),
)


def test_every_rule_shows_in_the_tokens_of_a_stay(tmp_path, mappings):
    found = Read(tokenize(write(tmp_path / "meds", train=STAY), tmp_path / "store", *mappings))
    assert found.tokens(1) == [
        "ED_REGISTRATION",
        *["45m-1h15m", "HOSPITAL_ADMISSION", "ADMISSION_TYPE//EMERGENCY", "INSURANCE//MEDICAID"],
        "TRANSFER//MED/SURG_EAST",
        *["45m-1h15m", "LAB//50912//MG/DL", "Q1"],  # the lab without a number is left out
        *["45m-1h15m", "ATC//B01", "ATC//4//A", "ATC//SFX//B01", "ATC//C05", "ATC//4//B", "ATC//SFX//A03"],
        # Known by date only: at the end of the day, not before the admission.
        *["8h-12h", "BMI//Q1", "VITAL//BLOOD_PRESSURE", "Q1", "Q1"],
        *["12h-18h", "ICU_ADMISSION", "ICU_TYPE//MEDICAL_INTENSIVE_CARE_UNIT_(MICU)"],
        *["45m-1h15m", "SUBJECT_FLUID_OUTPUT//226559//ml", "Q1"],
        *["2d-4d", "ICU_DISCHARGE"],
        "1d-2d",
        *["ICD//PCS//0", "ICD//PCS//B", "ICD//PCS//H", "ICD//PCS//1", "ICD//PCS//7", "ICD//PCS//E", "ICD//PCS//Z"],
        *["ICD//PCS//0", "ICD//PCS//2", "ICD//PCS//H", "ICD//PCS//V", "ICD//PCS//3", "ICD//PCS//3", "ICD//PCS//Z"],
        *["HOSPITAL_DISCHARGE", "DISCHARGE_LOCATION//HEALTHCARE_FACILITY"],
        *["ICD//CM//E11", "ICD//CM//3-6//651", "ICD//CM//SFX//2"],
        "ICD//CM//I10",
        *["ICD//CM//I50", "ICD//CM//3-6//9"],  # one target: the whole code
        "ICD//CM//E11",  # several targets: the category of the first
        "DRG//54",
        "TIMELINE_END",
    ]


def test_date_only_events_move_to_the_end_of_their_day(tmp_path):
    found = Read(tokenize(write(tmp_path / "meds", train=STAY), tmp_path / "store"))
    at = dict(zip(found.tokens(1), found.times(1), strict=True))
    assert at["BMI//Q1"] == at["VITAL//BLOOD_PRESSURE"] == "2150-03-01 23:59:59"
    assert at["HOSPITAL_ADMISSION"] == "2150-03-01 10:00:00"


def test_procedures_stand_at_the_discharge_also_when_it_is_at_midnight(tmp_path):
    rows = rows_of(
        1,
        ("2150-03-01 10:00", "HOSPITAL_ADMISSION//URGENT//UNK", ADMISSION),
        ("2150-03-05 00:00", "HOSPITAL_DISCHARGE//HOME"),
        ("2150-03-05 00:00", "PROCEDURE//ICD//10//0BH17EZ"),
    )
    found = Read(tokenize(write(tmp_path / "meds", train=rows), tmp_path / "store"))
    at = dict(zip(found.tokens(1), found.times(1), strict=True))
    assert at["ICD//PCS//0"] == at["HOSPITAL_DISCHARGE"] == "2150-03-05 00:00:00"
    tokens = found.tokens(1)
    assert tokens.index("ICD//PCS//0") < tokens.index("HOSPITAL_DISCHARGE")


def test_the_static_prefix_shows_demographics_from_the_time_they_are_known(tmp_path):
    found = Read(tokenize(write(tmp_path / "meds", train=STAY), tmp_path / "store"))
    age = ["AGE_TENS//5", "AGE_UNITS//0"]
    before = ["BMI//UNKNOWN", "GENDER//F", "MARITAL//UNKNOWN", "RACE//UNKNOWN", *age]
    assert found.prefix(1, "2150-03-01 09:59") == before
    admitted = ["BMI//UNKNOWN", "GENDER//F", "MARITAL//SINGLE", "RACE//BLACK", *age]
    assert found.prefix(1, "2150-03-01 10:00") == admitted
    assert found.prefix(1, "2150-03-02 00:00")[0] == "BMI//Q1"


def test_a_known_race_is_not_replaced_by_an_unknown_one(tmp_path):
    years = ["UNKNOWN", "MULTIPLE RACE/ETHNICITY", "PORTUGUESE", "UNABLE TO OBTAIN", "WHITE - BRAZILIAN"]
    admissions = [
        (f"{2150 + year}-01-01 10:00", "HOSPITAL_ADMISSION//URGENT//UNK", ADMISSION | {"race": race})
        for year, race in enumerate(years)
    ]
    store = tokenize(write(tmp_path / "meds", train=rows_of(1, *admissions)), tmp_path / "store")
    found = [Read(store).prefix(1, f"{2150 + year}-06-01")[1] for year in range(len(years))]
    assert found == ["RACE//UNKNOWN", "RACE//OTHER", "RACE//WHITE", "RACE//WHITE", "RACE//WHITE"]


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        *[("EW EMER.", "EMERGENCY"), ("URGENT", "EMERGENCY"), ("ELECTIVE", "SCHEDULED")],
        *[("SURGICAL SAME DAY ADMISSION", "SCHEDULED"), ("EU OBSERVATION", "OBSERVATION")],
    ],
)
def test_kinds_of_admission(tmp_path, kind, token):
    rows = rows_of(1, ("2150-01-01 10:00", f"HOSPITAL_ADMISSION//{kind}//PACU"))
    found = Read(tokenize(write(tmp_path / "meds", train=rows), tmp_path / "store"))
    assert found.tokens(1)[1] == f"ADMISSION_TYPE//{token}"


@pytest.mark.parametrize(
    ("place", "token"),
    [
        *[(name, "HEALTHCARE_FACILITY") for name in ("HEALTHCARE FACILITY", "SKILLED NURSING FACILITY", "REHAB")],
        *[(name, "HEALTHCARE_FACILITY") for name in ("CHRONIC/LONG TERM ACUTE CARE", "OTHER FACILITY")],
        *[("UNK", "UNKNOWN"), ("HOME HEALTH CARE", "HOME_HEALTH_CARE"), ("AGAINST ADVICE", "AGAINST_ADVICE")],
    ],
)
def test_places_of_discharge(tmp_path, place, token):
    rows = rows_of(1, ("2150-01-01 10:00", f"HOSPITAL_DISCHARGE//{place}"))
    found = Read(tokenize(write(tmp_path / "meds", train=rows), tmp_path / "store"))
    assert found.tokens(1)[:2] == ["HOSPITAL_DISCHARGE", f"DISCHARGE_LOCATION//{token}"]


@pytest.mark.parametrize(
    ("race", "token"),
    [
        *[(name, "UNKNOWN") for name in ("UNKNOWN", "UNABLE TO OBTAIN", "PATIENT DECLINED TO ANSWER")],
        *[(name, "OTHER") for name in ("AMERICAN INDIAN/ALASKA NATIVE", "MULTIPLE RACE/ETHNICITY", "OTHER")],
        ("NATIVE HAWAIIAN OR OTHER PACIFIC ISLANDER", "OTHER"),
        *[("SOUTH AMERICAN", "HISPANIC"), ("PORTUGUESE", "WHITE"), ("HISPANIC/LATINO - CUBAN", "HISPANIC")],
        *[("ASIAN - KOREAN", "ASIAN"), ("BLACK/AFRICAN", "BLACK"), ("WHITE", "WHITE")],
    ],
)
def test_names_of_race(tmp_path, race, token):
    rows = rows_of(1, ("2150-01-01 10:00", "HOSPITAL_ADMISSION//URGENT//UNK", ADMISSION | {"race": race}))
    found = Read(tokenize(write(tmp_path / "meds", train=rows), tmp_path / "store"))
    assert found.prefix(1, "2150-01-02")[1] == f"RACE//{token}"


def test_what_is_left_out_and_what_is_renamed(tmp_path):
    out = ["INFUSION_START//225158", "INFUSION_END//225158", "SUBJECT_WEIGHT_AT_INFUSION//KG", "Weight (Lbs)"]
    out += [
        "Height (Inches)",
        "eGFR",
        "PROCEDURE//START//225402",
        "PROCEDURE//END//225402",
        "TRANSFER_TO//discharge//UNK",
    ]
    out += ["MEDICATION//START//Heparin", "MEDICATION//STOP//Heparin", "TRANSFER_TO//ED//Emergency Department"]
    rows = rows_of(
        1,
        *[("2150-01-01 10:00", code, 1.0) for code in out],
        ("2150-01-01 10:00", "TRANSFER_TO//transfer//UNK"),
        ("2150-01-01 10:00", "TRANSFER_TO//transfer//Medicine, West"),
        ("2150-01-01 10:00", "ICU_ADMISSION//UNK"),
        ("2150-01-02 00:00", "HCPCS//Hospital observation per hr"),
        ("2150-01-02 00:00", "PROCEDURE//ICD//10//0BH"),
    )
    found = Read(tokenize(write(tmp_path / "meds", train=rows), tmp_path / "store"))
    assert found.tokens(1) == [
        *["ICU_ADMISSION", "ICU_TYPE//UNKNOWN", "TRANSFER//UNKNOWN", "TRANSFER//MEDICINE_WEST"],  # the stay first
        "12h-18h",
        "PROCEDURE//ICD//10//0BH",  # no seven characters, so no parts; it keeps its name and can become [UNK]
        *["18h-1d", "HCPCS//HOSPITAL_OBSERVATION_PER_HR"],
        "TIMELINE_END",
    ]


@pytest.mark.parametrize(
    ("said", "kept"), [("7", 7), ("7/10", 7), ("3-4", 3.5), ("none", 0), ("sleeping", 0), ("crit", 10), ("11", None)]
)
def test_pain_is_read_from_words(tmp_path, said, kept):
    rows = rows_of(1, ("2150-01-01 10:00", "PAIN", text(said)), ("2150-01-01 10:00", "ED_OUT"))
    store = tokenize(write(tmp_path / "meds", train=rows), tmp_path / "store", "tokenizer.value=true")
    found = Read(store)
    expected = ["ED_OUT", "TIMELINE_END"] if kept is None else ["VITAL//PAIN", "Q1", "ED_OUT", "TIMELINE_END"]
    assert found.tokens(1) == expected
    if kept is not None:
        assert found.tables[0].columns["value"][0] == kept


def test_death_comes_before_the_discharge_of_the_same_time_and_a_missing_group_is_unknown(tmp_path):
    rows = rows_of(
        1,
        ("2150-01-02 10:00", "HOSPITAL_DISCHARGE//DIED"),
        ("2150-01-02 10:00", "MEDS_DEATH"),
        ("2150-01-02 10:00", "DIAGNOSIS//ICD//10//I10"),
        ("2150-01-02 10:00", "DRG//APR//194//HEART FAILURE"),
    ) + rows_of(2, ("2150-01-02 00:00", "MEDS_DEATH"), ("2150-01-02 10:00", "HOSPITAL_DISCHARGE//UNK"))
    found = Read(tokenize(write(tmp_path / "meds", train=rows), tmp_path / "store"))
    assert found.tokens(1)[:5] == [
        *["MEDS_DEATH", "HOSPITAL_DISCHARGE", "DISCHARGE_LOCATION//DIED", "ICD//CM//I10", "DRG//UNKNOWN"]
    ]
    # A death that is known by its date is that of the day's last event.
    assert found.tokens(2)[:4] == ["MEDS_DEATH", "HOSPITAL_DISCHARGE", "DISCHARGE_LOCATION//UNKNOWN", "DRG//UNKNOWN"]


def test_without_mapping_files_old_codes_and_drugs_keep_their_names(tmp_path):
    found = Read(tokenize(write(tmp_path / "meds", train=STAY), tmp_path / "store")).tokens(1)
    assert "MEDICATION//HEPARIN" in found
    assert [token for token in found if token.startswith("ICD9")] == [
        *["ICD9//PCS//38", "ICD9//PCS//SFX//93", "ICD9//CM//428", "ICD9//CM//SFX//0"],
        *["ICD9//CM//250", "ICD9//CM//SFX//00"],
    ]


def test_a_mapping_file_that_is_missing_is_named(tmp_path):
    meds = write(tmp_path / "meds", train=STAY)
    with pytest.raises(EhrError, match=r"mapping 'drug_atc': .*nowhere.csv is missing; give a CSV or Parquet file"):
        tokenize(meds, tmp_path / "store", f"tokenizer.prepare.mappings.drug_atc.path={tmp_path}/nowhere.csv")


def test_the_store_needs_no_mapping_file_again(tmp_path, mappings):
    store = tokenize(write(tmp_path / "meds", train=STAY), tmp_path / "store", *mappings)
    for path in tmp_path.glob("*.csv"):
        path.unlink()
    other = [(2, *row[1:]) for row in STAY]
    meds = write(tmp_path / "other", train=other)
    run("ehr-tokenize", "tokenize", ["source=meds", f"source.path={meds}", f"fitted={store}", f"output={tmp_path}/two"])
    assert Read(tmp_path / "two").tokens(2) == Read(store).tokens(1)
    settings = json.loads((store / "tokenizer.json").read_text())["settings"]
    assert settings["prepare"]["mappings"]["drug_atc"]["path"] == "drug_atc.csv"  # no place on this machine


def test_the_spelling_of_the_declarative_etl_gives_the_same_tokens(tmp_path, mappings):
    """MEDS_extract 0.7: demographics are events, codes have further parts, and there are no extra columns."""
    renamed = {
        "LAB//50912//mg/dL": "LAB//RESULT//50912//mg/dL",
        "LAB//51463//UNK": "LAB//RESULT//51463//UNK",
        "DRG//HCFA//054//NERVOUS SYSTEM": "DRG//HCFA//54",
        "DRG//APR//194//HEART FAILURE": "DRG//APR//194",
        "MEDICATION//START//Heparin": "MEDICATION//START//Heparin//63323026201",
        "MEDICATION//Heparin//Administered": "MEDICATION//Heparin//Administered//63323026201",
        "MEDICATION//Heparin//Not Given": "MEDICATION//Heparin//Not Given//UNK",
    }
    rows = []
    for subject, time, code, number, note, *_ in STAY:
        rows.append((subject, time, renamed.get(code, code), number, note))
        if code.startswith("HOSPITAL_ADMISSION"):
            more = ["INSURANCE//Medicaid", "LANGUAGE//ENGLISH", "MARITAL_STATUS//SINGLE", "RACE//BLACK/CAPE VERDEAN"]
            rows += [(subject, time, name, None, None) for name in more]
        if code.startswith("LAB//50912"):
            rows.append((subject, time, "LAB//SPECIMEN_COLLECTED//50912//ROUTINE", None, None))
    new = Read(tokenize(write(tmp_path / "new", columns=("text_value",), train=rows), tmp_path / "store", *mappings))
    old = Read(tokenize(write(tmp_path / "old", train=STAY), tmp_path / "store2", *mappings))
    assert new.tokens(1) == old.tokens(1)
    assert new.prefix(1, "2150-03-03") == old.prefix(1, "2150-03-03")


def test_the_emergency_department_extension(tmp_path):
    rows = rows_of(
        1,
        ("2150-01-01 09:00", "ED_REGISTRATION", text("AMBULANCE")),
        ("2150-01-01 09:01", "ACUITY", 3.0),
        ("2150-01-01 09:01", "HEART_RATE", 88.0),
        ("2150-01-01 09:01", "TEMPERATURE"),
        ("2150-01-01 09:01", "Blood Pressure", 118.0, text("71")),
        ("2150-01-01 09:01", "Blood Pressure", text("refused")),
        ("2150-01-01 09:01", "PAIN", text("7/10")),
        ("2150-01-01 09:01", "PAIN", text("unable")),
        ("2150-01-01 09:01", "PAIN", text("13")),
        ("2150-01-01 09:02", "ED_REGISTRATION", text("HELICOPTER")),
        ("2150-01-01 09:03", "BMI", text("241")),
    )
    found = Read(tokenize(write(tmp_path / "meds", train=rows), tmp_path / "store"))
    assert found.tokens(1) == [
        *["ED_REGISTRATION", "ED_TRANSPORT//AMBULANCE", "ED_ACUITY", "Q1", "VITAL//HEART_RATE", "Q1"],
        *["VITAL//BLOOD_PRESSURE", "Q1", "Q1", "VITAL//PAIN", "Q1", "ED_REGISTRATION", "ED_TRANSPORT//OTHER"],
        "TIMELINE_END",
    ]


def test_the_score_of_the_first_day_appears_when_the_day_is_over_in_bins_of_one_width(tmp_path):
    rows = rows_of(
        1,
        ("2150-01-01 09:00", "ICU_ADMISSION//Neuro Stepdown"),
        ("2150-01-01 09:00", "SOFA//FIRST_DAY", 5.0),
        ("2150-01-01 20:00", "LAB//1//mg", 1.0),
        ("2150-01-03 20:00", "SOFA", 24.0),
    )
    found = Read(tokenize(write(tmp_path / "meds", train=rows), tmp_path / "store"))
    assert found.tokens(1) == [
        *["ICU_ADMISSION", "ICU_TYPE//NEURO_STEPDOWN", "8h-12h", "LAB//1//MG", "Q1"],
        *["12h-18h", "SOFA", "Q3", "1d-2d", "SOFA", "Q10", "TIMELINE_END"],  # 5 of 24 in bins of 2.4
    ]


def test_only_the_most_frequent_labs_stay_and_intervals_span_what_is_left_out(tmp_path):
    events = [("2150-01-01 00:00", "ED_OUT"), ("2150-01-01 00:30", "LAB//9//mg", 1.0)]
    events += [(f"2150-01-01 0{hour}:00", "LAB//1//mg", float(hour)) for hour in (1, 2)]
    meds = write(tmp_path / "meds", train=rows_of(1, *events))
    store = tokenize(meds, tmp_path / "store", "tokenizer.top_codes={LAB//:1}")
    assert Read(store).tokens(1) == [
        *["ED_OUT", "45m-1h15m", "LAB//1//MG", "Q1", "45m-1h15m", "LAB//1//MG", "Q10", "TIMELINE_END"]
    ]
    state = json.loads((store / "tokenizer.json").read_text())["state"]
    assert state["dropped"] == ["LAB//9//MG"]
    assert state["interval_estimates"]["45m-1h15m"] == 3600
    assert {t.token: t.count for t in Read(store).store.vocabulary.tokens}["45m-1h15m"] == 2
