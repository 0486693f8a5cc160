"""Visit grammars: every rule on records small enough to read."""

import json

import numpy as np
import pytest
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_tokenize.grammars.visit_rules import shorten
from ehr_tokenize.grammars.visits import Visits
from ehr_tokenize.grammars.visits_settings import VisitsConfig

ALL = {"min_count": 1, "cls": True, "sep": True}
STAY = [
    (1, None, "GENDER//F"),
    (1, None, "HEIGHT", 160.0),
    (1, "1950-01-01", "MEDS_BIRTH"),
    (1, "2020-01-01 08:00", "DX//A"),
    (1, "2020-01-01 09:00", "ADMISSION//ER"),
    (1, "2020-01-01 09:00", "LAB//K", 4.0),
    (1, "2020-01-02 09:00", "LAB//K", 5.0),
    (1, "2020-01-03 09:00", "DISCHARGE//HOME"),
    (1, "2020-01-03 09:00", "DX//B"),
    (1, "2020-01-03 15:00", "DX//C"),
    (1, "2020-01-03 16:00", "DX//D"),
    (1, "2020-03-01 00:00", "ADMISSION//ER"),
    (1, "2020-03-02 00:00", "DX//A"),
]


@pytest.fixture
def encode(world):
    """Fit on rows and encode other rows (or the same): tokens, columns and times of each subject."""

    def run(rows, others=None, **settings):
        tokenizer = Visits(VisitsConfig(**{**ALL, **settings}))
        tokenizer.fit([tokenizer.summarize(world.frame(rows))])
        table = tokenizer.encode(world.frame(rows if others is None else others))
        return world.Decoded(tokenizer.vocabulary, tokenizer.prefix, [table])

    return run


def test_a_stay_is_a_visit_and_what_is_outside_goes_by_day(encode):
    found = encode(STAY)
    assert found.tokens(1) == [
        *["[CLS]", "DX//A"],
        *["[SEP]", "ADMISSION//ER", "LAB//K", "LAB//K", "DISCHARGE//HOME", "DX//B"],
        *["[SEP]", "DX//C", "DX//D"],  # the day of the discharge, but after it
        *["[SEP]", "ADMISSION//ER", "DX//A"],  # the last visit may go on: no [SEP]
    ]
    assert found.slice(1, "visit").tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4]
    assert found.slice(1, "segment").tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2]


def test_sep_stands_where_the_next_visit_begins_with_the_age_of_the_last(encode, world):
    found = encode(STAY)
    place = 8  # the [SEP] after the stay
    assert found.times(1)[place] == world.microseconds("2020-01-03 15:00")
    last = found.tokens(1).index("[SEP]", 9)
    assert found.times(1)[last] == world.microseconds("2020-03-01 00:00")
    january = (np.datetime64("2020-01-03") - np.datetime64("1950-01-01")).astype(int)
    march = (np.datetime64("2020-03-01") - np.datetime64("1950-01-01")).astype(int)
    assert found.slice(1, "age_days")[last - 1 : last + 2].tolist() == [january, january, march]


def test_with_encounters_only_what_is_outside_has_visit_0(encode):
    found = encode(STAY, grouping="encounter")
    assert found.tokens(1) == [
        *["[CLS]", "DX//A", "ADMISSION//ER", "LAB//K", "LAB//K", "DISCHARGE//HOME", "DX//B"],
        *["[SEP]", "DX//C", "DX//D", "ADMISSION//ER", "DX//A"],
    ]
    assert found.slice(1, "visit").tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 2, 2]
    assert found.slice(1, "segment").tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 2, 2]


def test_an_instant_is_never_cut_and_its_admission_takes_what_is_before_it_in_the_file(encode):
    rows = [
        (1, "2020-01-01", "X"),
        (1, "2020-01-02", "Y"),
        (1, "2020-01-02", "ADMISSION"),
        (1, "2020-01-03", "DISCHARGE"),
        (1, "2020-01-03", "ADMISSION"),  # moved on: the later row leaves a stay open
        (1, "2020-01-05", "Z"),
        (1, "2020-01-06", "ADMISSION"),
        (1, "2020-01-06", "DISCHARGE"),
        (1, "2020-01-06 01:00", "W"),
    ]
    found = encode(rows, cls=False, sep=False, grouping="encounter")
    assert found.tokens(1) == [row[2] for row in rows]
    assert found.slice(1, "visit").tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 0]


def test_a_second_admission_without_a_discharge_starts_a_visit(encode):
    rows = [(1, "2020-01-01", "ADMISSION"), (1, "2020-01-02", "A"), (1, "2020-01-03", "ADMISSION")]
    found = encode([*rows, (1, "2020-01-04", "A")], cls=False)
    assert found.tokens(1) == ["ADMISSION", "A", "[SEP]", "ADMISSION", "A"]


def test_no_stay_reaches_from_one_subject_to_the_next(encode):
    rows = [(1, "2020-01-01", "ADMISSION"), (2, "2020-01-01", "A"), (2, "2020-01-02", "A")]
    found = encode(rows, grouping="encounter")
    assert found.tokens(2) == ["[CLS]", "A", "A"]
    assert found.slice(2, "visit").tolist() == [0, 0, 0]


def test_visits_by_day_and_by_gap(encode):
    rows = [(1, f"2020-01-0{day} {hour:02d}:00", "A") for day, hour in ((1, 1), (1, 23), (2, 1), (3, 2), (3, 3))]
    day = encode(rows, grouping="same_day", cls=False)
    assert day.tokens(1) == ["A", "A", "[SEP]", "A", "[SEP]", "A", "A"]
    window = encode(rows, grouping="time_window", gap_hours=24, cls=False)
    assert window.tokens(1) == ["A", "A", "A", "[SEP]", "A", "A"]  # 25 hours; exactly 24 do not end a visit
    assert encode(rows, grouping="time_window", gap_hours=25, cls=False).tokens(1) == ["A"] * 5


def test_a_code_counts_once_a_visit_where_it_is_first_seen(encode, world):
    rows = [
        (1, "2020-01-01 01:00", "ICD10CM//E11.65"),
        (1, "2020-01-01 02:00", "B"),
        (1, "2020-01-01 03:00", "ICD10CM//E11.9"),
        (1, "2020-01-02", "ICD10CM//E11.9"),
    ]
    found = encode(rows, unique=True, icd_level="3-digit", grouping="same_day", cls=False)
    assert found.tokens(1) == ["ICD10CM//E11", "B", "[SEP]", "ICD10CM//E11"]
    assert found.times(1)[0] == world.microseconds("2020-01-01 01:00")
    token = found.vocabulary.tokens[found.vocabulary["ICD10CM//E11"]]
    assert token.codes == ("ICD10CM//E11.65", "ICD10CM//E11.9")
    assert token.count == 2


def test_outside_of_visits_nothing_counts_as_a_repeat(encode):
    rows = [(1, "2020-01-01 01:00", "A"), (1, "2020-01-01 02:00", "A")]
    assert encode(rows, unique=True, grouping="encounter", cls=False).tokens(1) == ["A", "A"]


@pytest.mark.parametrize(
    ("code", "level", "characters", "expected"),
    [
        ("DIAGNOSIS//ICD10CM//E11.65", "3-digit", 7, "DIAGNOSIS//ICD10CM//E11"),
        ("DIAGNOSIS//ICD//10//S72001A", "3-digit", 7, "DIAGNOSIS//ICD//10//S72"),
        ("DIAGNOSIS//ICD//9//41401", "3-digit", 7, "DIAGNOSIS//ICD//9//414"),
        ("ICD9CM//E850.1", "3-digit", 7, "ICD9CM//E850"),
        ("ICD9CM//V45.81", "3-digit", 7, "ICD9CM//V45"),
        ("ICD10CM//E11.65", "full", 7, "ICD10CM//E11.65"),
        ("PROCEDURE//ICD//9//3722", "3-digit", 7, "PROCEDURE//ICD//9//3722"),
        ("ICD10PCS//0DB58ZX", "3-digit", 7, "ICD10PCS//0DB58ZX"),
        ("LAB//E1165", "3-digit", 7, "LAB//E1165"),
        ("E11.65", "3-digit", 7, "E11.65"),
        *[("ATC//N02BE01", "full", n, f"ATC//{'N02BE01'[:n]}") for n in (1, 3, 4, 5, 7)],
        ("ATC//N02", "full", 5, "ATC//N02"),
        ("DIAGNOSIS//ICD10CM//E11.65//PRIMARY", "3-digit", 7, "DIAGNOSIS//ICD10CM//E11//PRIMARY"),
        ("DIAGNOSIS//ICD//9//41401//2", "3-digit", 7, "DIAGNOSIS//ICD//9//414//2"),
        ("DRUG//ATC//N02BE01//ORAL", "3-digit", 4, "DRUG//ATC//N02B//ORAL"),
        ("PROCEDURE//ICD//9//3722//2", "3-digit", 7, "PROCEDURE//ICD//9//3722//2"),
        ("DIAGNOSIS//ICD//10", "3-digit", 7, "DIAGNOSIS//ICD//10"),
    ],
)
def test_codes_are_told_at_the_level_that_is_asked_for(code, level, characters, expected):
    assert shorten(code, VisitsConfig(icd_level=level, atc_level=characters)) == expected


def test_a_mapping_file_goes_before_levels_and_travels_in_the_state(world, tmp_path):
    path = tmp_path / "phecodes.json"
    path.write_text(json.dumps({"ICD10CM//E11.65": "PHECODE//250.2"}))
    settings = VisitsConfig(**ALL, mapping=str(path), icd_level="3-digit", entity=True)
    rows = [(1, "2020-01-01", "ICD10CM//E11.65"), (1, "2020-01-01", "ICD10CM//I10.0")]
    tokenizer = Visits(settings)
    tokenizer.fit([tokenizer.summarize(world.frame(rows))])
    (tmp_path / "state").mkdir()
    tokenizer.save(tmp_path / "state")
    path.unlink()
    again = Visits(VisitsConfig())
    again.load(tmp_path / "state")
    found = world.Decoded(again.vocabulary, again.prefix, [again.encode(world.frame(rows))])
    assert found.tokens(1) == ["[CLS]", "PHECODE//250.2", "ICD10CM//I10"]
    assert found.slice(1, "entity").tolist() == [0, 2, 2]
    assert str(tmp_path) not in (tmp_path / "state" / "tokenizer.json").read_text()


def test_a_mapping_of_which_no_key_is_a_code_of_train_is_refused(world, tmp_path):
    path = tmp_path / "phecodes.json"
    rows = [*[(1, "2020-01-01", "A")] * 3, (1, "2020-01-01", "ICD10CM//E11.65"), (1, "2020-01-02", "ATC//N02")]
    for keys, example in (({"E11.65": "P//250"}, "ICD10CM//E11.65"), ({"icd10:I10": "P//401"}, "A"), ({}, "A")):
        path.write_text(json.dumps(keys))
        tokenizer = Visits(VisitsConfig(**ALL, mapping=str(path)))
        with pytest.raises(ConfigError, match=rf"none of the {len(keys)} keys .* a whole code, such as '{example}'$"):
            tokenizer.fit([tokenizer.summarize(world.frame(rows))])
    # It is of use too when it names a code only to leave it out.
    path.write_text(json.dumps({"ATC//N02": "ICD10CM//NONE"}))
    tokenizer = Visits(VisitsConfig(**ALL, mapping=str(path), only_entities=["other"]))
    tokenizer.fit([tokenizer.summarize(world.frame(rows))])
    assert [token.token for token in tokenizer.vocabulary.tokens if token.kind == "code"] == ["A"]


def test_a_mapping_that_is_a_folder_is_refused(world, tmp_path):
    with pytest.raises(FormatError, match=r"tokenizer.mapping: .* is a folder; give a JSON file"):
        Visits(VisitsConfig(mapping=str(tmp_path))).summarize(world.frame([(1, "2020-01-01", "A")]))


def test_a_mapping_that_is_no_object_of_texts_is_refused(world, tmp_path):
    (tmp_path / "bad.json").write_text('{"A": 1}')
    tokenizer = Visits(VisitsConfig(mapping=str(tmp_path / "bad.json")))
    with pytest.raises(FormatError, match=r"bad\.json: \$\[\.\.\.\]: expected `str`, got `int`"):
        tokenizer.fit([tokenizer.summarize(world.frame([(1, "2020-01-01", "A")]))])


def test_visits_of_which_nothing_is_kept_do_not_count(encode):
    rows = [
        (1, "2020-01-01", "ADMISSION"),
        (1, "2020-01-02", "LAB//K"),
        (1, "2020-01-03", "DISCHARGE"),
        (1, "2020-02-01", "ADMISSION"),
        (1, "2020-02-02", "ICD10CM//I10"),
        (1, "2020-02-03", "DISCHARGE"),
        (1, "2020-03-01", "ATC//N02BE01"),
    ]
    found = encode(rows, only_entities=["diagnosis", "drug"], entity=True)
    assert found.tokens(1) == ["[CLS]", "ICD10CM//I10", "[SEP]", "ATC//N02BE01"]
    assert found.slice(1, "visit").tolist() == [1, 1, 1, 2]
    assert found.slice(1, "entity").tolist() == [0, 2, 0, 3]  # 1 is other, then the types by name


STATICS = [
    *[(s, None, "GENDER//F") for s in (1, 2)],
    (3, None, "SEX//M"),
    (3, None, "REGION//CA"),
    *[(s, "2020-01-01", "A") for s in (1, 2, 3)],
    (3, "2021-01-01", "REGION//NY"),
    (3, "2021-01-01", "A"),
]
STATICS.sort(key=lambda row: (row[0], row[1] or ""))
ASKED = [
    (8, None, "GENDER//M"),
    (8, "2020-01-01", "A"),
    (8, "2020-06-01", "STATE//NY"),
    (8, "2020-06-01", "A"),
    (8, "2020-07-01", "STATE//ELSEWHERE"),
    (8, "2020-07-01", "A"),
    (9, "2020-01-01", "A"),
]


def test_sex_and_region_are_ids_at_each_token_from_their_own_time_on(encode):
    found = encode(STATICS, ASKED, static="columns", cls=False, sep=True, grouping="same_day")
    assert found.tokens(8) == ["A", "[SEP]", "A", "[SEP]", "A"]
    assert found.slice(8, "sex").tolist() == [3] * 5  # F is 2, more frequent
    assert found.slice(8, "region").tolist() == [1, 1, 3, 3, 1]  # CA is 2, NY 3; a new region is unknown
    assert found.slice(9, "sex").tolist() == [1]  # not what the subject before it had
    assert "A" in found.vocabulary.ids
    assert "GENDER//F" not in found.vocabulary.ids


def test_sex_and_region_can_stand_in_the_prefix(encode):
    found = encode(STATICS, ASKED, static="prefix", cls=False)
    assert found.prefix(8, "2020-01-01") == ["SEX//M", "[REGION UNKNOWN]"]
    assert found.prefix(8, "2020-06-01") == ["SEX//M", "REGION//NY"]
    assert found.prefix(8, "2020-07-01") == ["SEX//M", "[REGION UNKNOWN]"]
    assert found.prefix(9, "2020-01-01") == ["[SEX UNKNOWN]", "[REGION UNKNOWN]"]
    assert found.vocabulary.tokens[found.vocabulary["SEX//M"]].codes == ("SEX//M",)


def test_ids_of_sex_and_region_stay_below_their_limits(world):
    rows = [(s, None, f"REGION//{chr(64 + s)}") for s in range(1, 9)]
    rows += [(9, None, "REGION//B"), *[(s, "2020-01-01", "A") for s in range(1, 10)]]
    rows.sort(key=lambda row: (row[0], row[1] or ""))
    tokenizer = Visits(VisitsConfig(**ALL, static="columns", max_regions=4))
    tokenizer.fit([tokenizer.summarize(world.frame(rows))])
    assert tokenizer.values["region"] == ["B", "A"]  # by frequency, then by name
    assert tokenizer.encode(world.frame(rows)).columns["region"].max() == 3


def test_age_is_unknown_without_a_birth_or_before_it(encode):
    rows = [(1, "2020-01-01", "A"), (2, "2019-01-01", "A"), (2, "2020-01-01", "MEDS_BIRTH"), (2, "2020-01-31", "A")]
    found = encode(rows, cls=False, sep=False)
    assert found.slice(1, "age_days").tolist() == [-1]
    assert found.slice(2, "age_days").tolist() == [-1, 30]


def test_the_column_value_holds_the_number_of_each_code(encode):
    rows = [(1, "2020-01-01", "LAB//K", 4.5), (1, "2020-01-02", "B"), (1, "2020-01-02", "LAB//K", float("inf"))]
    found = encode(rows, value=True, grouping="same_day").slice(1, "value")
    assert np.array_equal(found, np.array([np.nan, 4.5, np.nan, np.nan, np.nan], np.float32), equal_nan=True)


def test_unseen_and_rare_codes_become_unk(encode):
    rows = [(1, "2020-01-01", "A"), (1, "2020-01-01", "A"), (1, "2020-01-01", "RARE")]
    found = encode(rows, [(7, "2020-01-01", "A"), (7, "2020-01-01", "RARE"), (7, "2020-01-01", "NEW")], min_count=2)
    assert found.tokens(7) == ["[CLS]", "A", "[UNK]", "[UNK]"]
    assert found.vocabulary.tokens[3].count == 1


def test_a_subject_without_events_has_no_tokens_not_even_cls(encode):
    found = encode(STAY, [(7, None, "GENDER//F"), (7, "1950-01-01", "MEDS_BIRTH"), (8, "2020-01-01", "DX//A")])
    assert found.tokens(7) == []
    assert found.tokens(8) == ["[CLS]", "DX//A"]


def test_an_empty_shard_gives_an_empty_table(encode):
    found = encode(STAY, [], static="columns", entity=True, value=True)
    assert len(found.tables[0].token) == 0
    assert found.tables[0].offset.tolist() == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grouping": "weekly"}, "tokenizer.grouping is weekly; allowed: encounter, hybrid, same_day, time_window"),
        ({"atc_level": 6}, "tokenizer.atc_level is 6; allowed: 1, 3, 4, 5, 7"),
        ({"static": "both"}, "tokenizer.static is both"),
        ({"min_count": 0}, "tokenizer.min_count is 0; it must be at least 1"),
        ({"gap_hours": float("nan")}, "tokenizer.gap_hours is nan"),
        ({"only_entities": ["durg"]}, "names 'durg'; allowed: diagnosis, drug, measurement, other, procedure"),
        ({"entities": {str(i): str(i) for i in range(15)}}, "has 15 types; at most 14"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Visits(VisitsConfig(**settings))


def test_a_train_split_without_events_is_refused(world):
    tokenizer = Visits(VisitsConfig())
    with pytest.raises(DataError, match="no event with a time"):
        tokenizer.fit([tokenizer.summarize(world.frame([(1, None, "GENDER//F")]))])


def test_a_code_with_the_name_of_a_special_token_is_refused(world):
    tokenizer = Visits(VisitsConfig(min_count=1))
    with pytest.raises(DataError, match=r"'\[SEP\]' has the name of a token"):
        tokenizer.fit([tokenizer.summarize(world.frame([(1, "2020-01-01", "[SEP]")]))])
