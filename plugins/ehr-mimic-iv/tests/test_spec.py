"""The specification, cut down: what goes with a table, a column, a join, a dictionary, and what stays."""

import copy

from ehr_mimic_iv.spec import NOTHING, needs_of, prune, tables_of

TIME = '$charttime::"%Y-%m-%d %H:%M:%S"'
SPEC = {
    "etl": {"dataset_name": "MIMIC-IV"},
    "admissions": {
        "admission": {
            "code": "f\"IN//{$kind ?? 'UNK'}\"",
            "time": '$admittime::"%Y-%m-%d %H:%M:%S"',
            "hadm_id": "$hadm_id",
        },
        "race": {"code": 'f"RACE//{$race}"', "time": '$admittime::"%Y-%m-%d %H:%M:%S"'},
    },
    "diagnoses": {
        "_table": {"join": {"admissions": {"key": "hadm_id", "cols": ["dischtime"]}}},
        "diagnosis": {
            "code": 'f"DX//{$icd_code}"',
            "time": '$dischtime::"%Y-%m-%d %H:%M:%S"',
            "_metadata": {"d_icd": {"icd_code": "$icd_code", "description": "$long_title"}},
        },
    },
    "emar": {
        "_table": {
            "cols": {"drug_type": "'MAIN'", "ndc_clean": "'UNK' if ($ndc ?? '0') == '0' else $ndc"},
            "join": {
                "prescriptions": {
                    "left_on": ["order", "drug_type"],
                    "right_on": ["order", "drug_type"],
                    "cols": ["ndc"],
                }
            },
        },
        "drug": {
            "code": "f\"MED//{$medication ?? 'UNK'}//{$ndc_clean}\"",
            "time": TIME,
            "emar_id": "$emar_id",
            "_metadata": {"_self": {"parent_codes": 'f"NDC/{$ndc}" if ($ndc ?? "0") != "0"'}},
        },
    },
    "patients": {
        "_table": {"join": {"admissions": {"key": "subject_id", "cols": {"deathtime": "min"}}}},
        "gender": {"code": 'f"GENDER//{$gender}"', "time": None},
        "death": {"code": "MEDS_DEATH", "time": 'coalesce($deathtime::?"%Y-%m-%d %H:%M:%S", $dod::?"%Y-%m-%d")'},
    },
    "labs": {
        "lab": {
            "code": 'f"LAB//{$itemid}"',
            "time": TIME,
            "numeric_value": "$valuenum",
            "_metadata": {"map": {"itemid": {"column": "itemid (source)"}, "description": "$label"}},
        }
    },
    "sources": {"demo": []},
}
COLUMNS = {
    "admissions": {"subject_id", "hadm_id", "admittime", "dischtime", "deathtime", "kind", "race"},
    "diagnoses": {"subject_id", "hadm_id", "icd_code"},
    "emar": {"subject_id", "order", "medication", "charttime", "emar_id"},
    "prescriptions": {"subject_id", "order", "drug_type", "ndc"},
    "patients": {"subject_id", "gender", "dod"},
    "labs": {"subject_id", "itemid", "charttime", "valuenum"},
    "d_icd": {"icd_code", "long_title"},
    "map": {"itemid (source)", "label"},
}


def cut(*tables, **columns):
    """Prune without these tables, and without these columns of others."""
    there = {
        name: frozenset(found) - set(columns.get(name, ())) for name, found in COLUMNS.items() if name not in tables
    }
    before = copy.deepcopy(SPEC)
    kept, left = prune(SPEC, there)
    assert before == SPEC  # the original is as it was
    return kept, left


def test_a_complete_folder_keeps_the_whole_specification():
    kept, left = cut()
    assert list(kept) == ["admissions", "diagnoses", "emar", "patients", "labs"]
    assert {name: {part: body for part, body in block.items() if body} for name, block in kept.items()} == {
        name: block for name, block in SPEC.items() if name not in ("etl", "sources")
    }
    assert (left.tables, left.events, left.columns, left.dictionaries) == ({}, {}, {}, {})


def test_an_absent_table_takes_its_events_with_it():
    kept, left = cut("labs")
    assert "labs" not in kept
    assert left.tables == {"labs": "absent"}


def test_an_event_whose_time_would_have_come_by_a_join_goes():
    kept, left = cut("admissions")
    assert "diagnoses" not in kept
    assert left.events["diagnoses/diagnosis"] == ["dischtime"]
    assert "none of its events" in left.tables["diagnoses"]


def test_a_time_with_a_substitute_stays_when_its_first_choice_is_missing():
    kept, left = cut("admissions")
    assert kept["patients"]["death"] == SPEC["patients"]["death"]
    assert kept["patients"]["_table"] == {"cols": {"deathtime": NOTHING}}
    assert left.columns == {"patients": ["deathtime"]}


def test_a_time_all_of_whose_columns_are_missing_goes():
    kept, left = cut("admissions", patients=["dod"])
    assert list(kept["patients"]) == ["_table", "gender"]
    assert left.events["patients/death"] == ["deathtime", "dod"]


def test_a_missing_join_leaves_the_code_raw():
    kept, left = cut("prescriptions")
    assert kept["emar"]["drug"]["code"] == SPEC["emar"]["drug"]["code"]
    assert kept["emar"]["_table"] == {"cols": {"ndc": NOTHING, **SPEC["emar"]["_table"]["cols"]}}
    assert left.columns == {"emar": ["ndc"]}


def test_a_join_without_its_key_is_a_missing_join():
    for without in ({"prescriptions": ["order"]}, {"emar": ["order"]}):
        kept, left = cut(**without)
        assert "join" not in kept["emar"]["_table"]
        assert left.columns == {"emar": ["ndc"]}


def test_a_column_that_only_adds_a_value_is_left_out_alone():
    kept, left = cut(labs=["valuenum"], emar=["emar_id"])
    assert "numeric_value" not in kept["labs"]["lab"]
    assert "emar_id" not in kept["emar"]["drug"]
    assert left.columns == {"labs": ["valuenum"], "emar": ["emar_id"]}


def test_a_code_with_a_substitute_does_without_its_column_and_one_without_goes():
    kept, left = cut(emar=["medication"], admissions=["race"])
    assert kept["emar"]["_table"]["cols"]["medication"] == NOTHING
    assert "race" not in kept["admissions"]
    assert left.events == {"admissions/race": ["race"]}


def test_an_absent_dictionary_costs_descriptions_only():
    kept, left = cut("d_icd", map=["itemid (source)"])
    for table, event in (("diagnoses", "diagnosis"), ("labs", "lab")):
        assert kept[table][event] == {k: v for k, v in SPEC[table][event].items() if k != "_metadata"}
    assert left.dictionaries == {"d_icd": "absent", "map": "lacks itemid (source)"}
    assert left.events == {}


def test_the_files_of_a_specification_are_tables_joins_and_dictionaries():
    books = {"d_icd", "map"}
    assert tables_of(SPEC) == {name: name in books for name in COLUMNS}


def test_needs_fall_to_the_table_that_has_the_column():
    needs = needs_of(cut()[0])
    assert needs["admissions"].times == {"admittime": "%Y-%m-%d %H:%M:%S", "dischtime": "%Y-%m-%d %H:%M:%S"}
    assert needs["diagnoses"].times == {}
    assert needs["admissions"].keys == {"hadm_id", "subject_id"}
    assert needs["emar"].keys == {"order"}
    assert needs["labs"].numbers == {"valuenum"}
    assert [name for name, need in needs.items() if not need.subjects] == ["prescriptions", "d_icd", "map"]
