"""The source ``patients_json``: both forms of the JSON, as a stream, and everything that can be wrong with it."""

import json
from datetime import datetime

import polars as pl
import pytest
from ehr_core.errors import ConfigError, DataError, EhrError, FormatError, NotApplicable
from ehr_core.formats.folder import file_digests
from ehr_core.plugin import SerialConfig
from ehr_core.plugins import build
from ehr_exmed_bert import json_stream
from ehr_exmed_bert.json_stream import patients as stream
from ehr_exmed_bert.patients import PatientsJson, subject_of
from ehr_exmed_bert.plugin import PatientsJsonConfig
from ehr_tokenize.testing import check_meds
from hypothesis import example, given, settings
from hypothesis import strategies as st

NESTED = {
    "patients": [
        {
            "patient_id": "P0001",
            "diagnoses": [{"code": "E11.65", "date": "2020-01-15"}, {"code": "I10", "date": "2020-02-20"}],
            "prescriptions": [{"code": "N02BE01", "date": "2020-01-16"}],
        }
    ]
}
FLAT = [
    {
        "patient_id": 7,
        "diagnoses": ["I10", "E11.65"],
        "diagnosis_dates": ["20200220", "20200115"],
        "drugs": ["N02BE01"],
        "prescription_dates": ["20200115"],
        "procedures": ["99213"],
        "procedure_dates": ["20200115"],
        "birth_year": 1950,
        "sex": "F",
        "patient_state": "CA",
    }
]


@pytest.fixture
def provide(tmp_path):
    def make(content, **values):
        number = len(list(tmp_path.iterdir()))
        path, output = tmp_path / f"{number}.json", tmp_path / f"{number}.meds"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        output.mkdir()
        source = PatientsJson(
            PatientsJsonConfig(**{"path": str(path), "train": 1.0, "tuning": 0.0, "held_out": 0.0} | values)
        )
        return source.provide(output, build("executor", SerialConfig()))

    return make


def rows(meds, split="train"):
    frame = pl.concat([pl.read_parquet(path) for path in sorted((meds / "data" / split).glob("*.parquet"))])
    assert frame["numeric_value"].null_count() == len(frame)
    return frame.drop("numeric_value").rows()


def patient(index, codes=1):
    day = [f"2020{1 + k % 12:02d}{1 + k % 28:02d}" for k in range(codes)]
    return {"patient_id": index, "diagnoses": [f"I{k}" for k in range(codes)], "diagnosis_dates": day}


def test_the_dataset_fits_the_schemas_of_meds(provide):
    check_meds(provide(NESTED))


def test_the_nested_form_becomes_events(provide):
    subject = subject_of({"patient_id": "P0001"}, "")[0]
    assert rows(provide(NESTED)) == [
        (subject, datetime(2020, 1, 15), "ICD10CM//E11.65"),
        (subject, datetime(2020, 1, 16), "ATC//N02BE01"),
        (subject, datetime(2020, 2, 20), "ICD10CM//I10"),
    ]


def test_the_flat_form_becomes_events_with_sex_region_and_birth(provide):
    assert rows(provide(FLAT)) == [
        (7, None, "GENDER//F"),
        (7, None, "REGION//CA"),
        (7, datetime(1950, 1, 1), "MEDS_BIRTH"),
        (7, datetime(2020, 1, 15), "ICD10CM//E11.65"),
        (7, datetime(2020, 1, 15), "ATC//N02BE01"),
        (7, datetime(2020, 1, 15), "CPT//99213"),
        (7, datetime(2020, 2, 20), "ICD10CM//I10"),
    ]


def test_a_birth_date_and_times_of_day_are_kept_on_the_clock_that_was_written(provide):
    found = {
        "patient_id": 1,
        "birth_date": "1950-06-07",
        "diagnoses": [{"code": "A", "date": "2020-01-15T23:30:00-05:00"}],
    }
    assert [time for _, time, _ in rows(provide([found]))] == [datetime(1950, 6, 7), datetime(2020, 1, 15, 23, 30)]


def test_with_a_zone_times_are_read_off_its_clock_and_without_one_two_clocks_are_refused(provide):
    dates = ["2020-01-15T23:30:00-05:00", "2020-01-16T04:30:00Z", "2020-01-15T23:30:00", "2020-01-15 24:00"]
    found = [{"patient_id": 1, "diagnoses": ["A", "B", "C", "D"], "diagnosis_dates": dates}]
    evening = datetime(2020, 1, 15, 23, 30)
    times = [time for _, time, _ in rows(provide(found, time_zone="America/New_York"))]
    assert times == [evening, evening, evening, datetime(2020, 1, 16)]
    with pytest.raises(DataError, match=r"zones from -05:00 \(diagnoses\) to \+00:00 .*, and dates have none"):
        provide(found)


@pytest.mark.parametrize("nothing", [None, "", " ", "NULL", "n/a", "NaN", float("nan"), "\\N", "-", "0000-00-00"])
def test_entries_without_a_code_or_a_date_are_left_out_and_counted(provide, capsys, nothing):
    entry = {"code": "NA", "date": "2020-01-15"}
    found = [{"patient_id": 1, "birth_year": nothing, "sex": "", "diagnoses": [entry, entry | {"date": nothing}]}]
    meds = provide([{**found[0], "procedures": [entry | {"code": " "}, entry | {"code": None}]}])
    assert rows(meds) == [(1, datetime(2020, 1, 15), "ICD10CM//NA")]
    left_out = json.loads((meds / "metadata" / "left_out.json").read_text())
    assert left_out == {"diagnoses": {"no time": 1}, "procedures": {"no code": 2}}
    assert "left out of procedures: 2 rows with no code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("date", "year", "born"),
    [
        ("1950-06-07", 1950, datetime(1950, 6, 7)),
        ("1950-06-07", "1950.0", datetime(1950, 6, 7)),
        ("1950-06-07", 1951, datetime(1950, 6, 7)),
        ("1900-01-01", 1951, datetime(1951, 1, 1)),
        ("0001-01-01", 1951, datetime(1951, 1, 1)),
        ("1950-06-07", 1900, datetime(1950, 6, 7)),
    ],
)
def test_a_year_and_a_date_of_birth_that_contradict_are_counted(provide, date, year, born):
    meds = provide([{**patient(1), "birth_date": date, "birth_year": year}])
    assert rows(meds)[0] == (1, born, "MEDS_BIRTH")
    treated = json.loads((meds / "metadata" / "treated.json").read_text())
    assert [*treated.get("patient", {}).values()] == ([1] if str(year)[:4] != date[:4] else [])


def test_metadata_says_which_subject_is_which_patient(provide):
    meds = provide([{"patient_id": 3, **{k: v for k, v in FLAT[0].items() if k != "patient_id"}}, *NESTED["patients"]])
    ids = pl.read_parquet(meds / "metadata" / "subject_ids.parquet")
    assert ids.rows() == [(3, "3"), (subject_of({"patient_id": "P0001"}, "")[0], "P0001")]
    assert pl.read_parquet(meds / "metadata" / "subject_splits.parquet")["split"].to_list() == ["train", "train"]
    assert "ICD10CM//I10" in pl.read_parquet(meds / "metadata" / "codes.parquet")["code"].to_list()
    assert json.loads((meds / "metadata" / "dataset.json").read_text())["meds_version"] == "0.4.1"


def test_a_misspelt_key_is_refused_and_any_other_unknown_one_counted_and_said_once(provide, capsys):
    entry = {"code": "I10", "date": "2020-01-15"}
    with pytest.raises(DataError, match="patient 1: there is no key 'diagnosis'; did you mean diagnoses"):
        provide([{"patient_id": 1, "diagnosis": [entry]}])
    capsys.readouterr()
    # patient_zip looks like patient_id, which is there: so it is something else.
    many = [{"patient_id": k, "diagnoses": [entry], "medications": [entry], "patient_zip": 1} for k in range(3)]
    assert len(rows(provide([*many, {"patient_id": 9, "diagnoses": [entry], "medications": []}]))) == 4
    said = [line for line in capsys.readouterr().err.splitlines() if "unknown keys" in line]
    assert said == ["patients_json: 2 unknown keys ignored: medications (4 patients), patient_zip (3 patients)"]
    provide(FLAT + NESTED["patients"])
    assert "unknown keys" not in capsys.readouterr().err


def test_splits_are_by_subject_and_do_not_depend_on_order_or_batches(provide):
    many = [patient(index, 2) for index in range(300)]
    shares = {"train": 0.6, "tuning": 0.2, "held_out": 0.2}
    one, two = provide(many, **shares), provide(many[::-1], **shares, shard_subjects=7)
    sizes = {}
    for split in shares:
        ours, theirs = ({row[0] for row in rows(meds, split)} for meds in (one, two))
        assert ours == theirs
        sizes[split] = len(ours)
    assert sum(sizes.values()) == 300
    assert 150 < sizes["train"] < 210
    other = provide(many, **shares, seed=1)
    assert {row[0] for row in rows(other)} != {row[0] for row in rows(one)}


def test_the_same_file_gives_the_same_bytes_and_every_split_a_shard(provide):
    one, two = provide(FLAT), provide(FLAT)
    facts = "metadata/dataset.json"  # it names the file
    first, second = ({k: v for k, v in file_digests(meds).items() if k != facts} for meds in (one, two))
    assert first == second
    assert rows(one, "held_out") == []


def test_shards_are_sorted_and_bounded(provide):
    meds = provide([patient(index, 3) for index in (5, 1, 4, 2, 3)], shard_subjects=2)
    paths = sorted((meds / "data" / "train").glob("*.parquet"))
    subjects = [pl.read_parquet(path)["subject_id"].to_list() for path in paths]
    assert subjects == [[1, 1, 1, 5, 5, 5], [2, 2, 2, 4, 4, 4], [3, 3, 3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diagnosis_dates": ["20200101"]}, "patient 2: 2 diagnoses have 1 diagnosis_dates; each needs its own"),
        ({"diagnosis_dates": None}, "patient 2: 2 diagnoses have 0 diagnosis_dates"),
        (
            {"diagnosis_dates": ["20200101", "2020-13-40"]},
            "patient 2: date 2 of diagnoses is not YYYYMMDD or YYYY-MM-DD",
        ),
        ({"diagnosis_dates": ["20200101", True]}, "date 2 of diagnoses"),
        ({"diagnosis_dates": ["20200101", "2020-W01"]}, "date 2 of diagnoses"),
        ({"diagnosis_dates": 5}, "no list of diagnosis_dates"),
        ({"diagnosis_dates": ["20200101", "2020-02-31"]}, "date 2 of diagnoses is not YYYYMMDD"),
        ({"diagnosis_dates": ["20200101", "20202-01-01"]}, "date 2 of diagnoses is not YYYYMMDD"),
        ({"diagnoses": ["I10", 5]}, "patient 2: code 2 of diagnoses is no text"),
        ({"diagnoses": "I10"}, "patient 2: diagnoses is no list"),
        ({"diagnoses": ["I10", {"code": "A", "date": "20200101"}]}, "mixes codes and objects"),
        ({"prescriptions": [{"code": "A"}]}, "patient 2: entry 1 of prescriptions lacks code or date"),
        ({"patient_id": None}, "patient_id must be a text or a whole number"),
        ({"patient_id": "N/A"}, "patient_id must be"),
        ({"patient_id": 7.0}, "patient_id must be"),
        ({"patient_id": 1 << 63}, "patient_id must be"),
        ({"patient_id": -1}, "patient_id must be"),
        ({"patient_id": 0}, "patient 2: an earlier patient has the same patient_id"),
        ({"birth_year": 50}, "birth_year is not a year"),
        ({"birth_date": "secret"}, "birth_date is not YYYYMMDD"),
        ({"sex": ["F"]}, "patient 2: sex or gender must be a single value"),
        ({"Sex": "F"}, "patient 2: there is no key 'Sex'; did you mean sex?"),
        ({"prescription_date": []}, "there is no key 'prescription_date'; did you mean prescription_dates?"),
    ],
)
def test_what_is_wrong_is_said_with_the_number_of_the_patient_and_without_content(provide, change, message):
    with pytest.raises(DataError, match=message) as error:
        provide([patient(0), {**patient("secret", 2), **change}])
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a list of patients"),
        ("5", "expected a list of patients"),
        ('{"people": []}', "is an object without a list 'patients'"),
        ('[{"patient_id": 1}, {"patient_id": 2', "patient 2 is not readable JSON"),
        ('[{"patient_id": 1} {"patient_id": 2}]', "patient 1 is not followed by , or ]"),
        ('[{"patient_id": 1}, 5]', "patient 2 is no object"),
        ('[{"patient_id": 1}] x', "goes on after its patients"),
        ("[]", "has no patient"),
    ],
)
def test_a_file_that_is_no_list_of_patients_is_refused(provide, content, message):
    with pytest.raises(EhrError, match=message):
        provide(content)


def test_what_is_no_file_or_no_text_is_refused(tmp_path):
    executor = build("executor", SerialConfig())
    with pytest.raises(NotApplicable, match="is a folder"):
        PatientsJson(PatientsJsonConfig(path=str(tmp_path))).provide(tmp_path, executor)
    with pytest.raises(FormatError, match=r"none.json is missing"):
        PatientsJson(PatientsJsonConfig(path=str(tmp_path / "none.json"))).fingerprint()
    with pytest.raises(FormatError, match="No such file"):
        PatientsJson(PatientsJsonConfig(path=str(tmp_path / "none.json"))).provide(tmp_path, executor)
    (tmp_path / "latin.json").write_bytes(b'[{"patient_id": "\xe9"}]')
    with pytest.raises(FormatError, match="is not UTF-8"):
        list(stream(tmp_path / "latin.json"))
    with pytest.raises(ConfigError, match="add up to 1"):
        PatientsJson(PatientsJsonConfig(path="x", train=0.5))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=5)


@settings(max_examples=150, deadline=None)
@example([], -1.5e-07, True, None, 1)  # cut at every place, before and behind the point, the e and the sign
@given(objects, json_values, st.booleans(), st.sampled_from([None, 2]), st.integers(1, 40))
def test_the_stream_reads_what_json_reads_however_little_it_reads_at_once(
    tmp_path_factory, found, other, wrapped, indent, chunk
):
    path = tmp_path_factory.mktemp("json") / "x.json"
    content = {"before": other, "patients": found, "after": other} if wrapped else found
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        assert list(stream(path)) == found


def test_only_a_window_of_the_file_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "CHUNK", 4096)
    many = [patient(index, 20) for index in range(2000)]
    (tmp_path / "x.json").write_text(json.dumps(many))
    longest = 0
    with (tmp_path / "x.json").open() as file:
        reader = json_stream._Reader(file, tmp_path / "x.json")
        for _ in reader.patients():
            longest = max(longest, len(reader.text))
    assert longest < 20_000 < (tmp_path / "x.json").stat().st_size / 20


odd_dates = st.sampled_from(
    ["20200115", "2020-01-15", "2020-01-15 24:00:00", "1900-01-01", "9999-12-31", "0001-01-01", "NULL", "", None]
)
odd_entries = st.lists(st.tuples(st.sampled_from(["I10", "NA", "00123", " ", "", None]), odd_dates), max_size=5)
odd_births = st.sampled_from([None, "", "NaN", 1950, "1950.0", 1900])


@settings(max_examples=15, deadline=None)
@given(odd_entries, odd_entries, odd_births, odd_dates, st.booleans())
def test_troubles_in_combination_are_events_or_counts_and_never_reach_another_patient(
    tmp_path_factory, ours, theirs, year, date, wrong
):
    def made(*entries):
        folder = tmp_path_factory.mktemp("json")
        found = [
            {
                "patient_id": number,
                "birth_year": year,
                "birth_date": date,
                "diagnoses": [code for code, _ in part],
                "diagnosis_dates": [when for _, when in part],
            }
            for number, part in enumerate(entries)
        ]
        (folder / "x.json").write_text(json.dumps(found))
        (folder / "meds").mkdir()
        shares = {"train": 1.0, "tuning": 0.0, "held_out": 0.0}
        source = PatientsJson(PatientsJsonConfig(path=folder / "x.json", **shares))
        return source.provide(folder / "meds", build("executor", SerialConfig()))

    alone = made(ours)
    assert [row for row in rows(made(ours, theirs)) if row[0] == 0] == rows(alone)
    codes = [code for *_, code in rows(alone) if code != "MEDS_BIRTH"]
    lost = json.loads((alone / "metadata" / "left_out.json").read_text()).get("diagnoses", {})
    assert len(codes) + sum(lost.values()) == len(ours)
    assert set(codes) <= {"ICD10CM//I10", "ICD10CM//NA", "ICD10CM//00123"}
    if wrong:
        with pytest.raises(DataError, match=r"patient 2: date \d+ of diagnoses is not YYYYMMDD"):
            made(ours, [*theirs, ("I10", "2020-02-31")])
