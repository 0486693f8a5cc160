"""Preparing events: rules, code systems, mapping files, times and order, on small records and on random ones."""

from datetime import datetime, timedelta

import polars as pl
import pytest
from ehr_core.errors import ConfigError, FormatError
from ehr_tokenize.prepare import code_systems
from ehr_tokenize.prepare.preparation import Preparation
from ehr_tokenize.prepare.settings import CompleteConfig, MappingConfig, PrepareConfig, RuleConfig
from ehr_tokenize.store import coverage
from hypothesis import given, settings
from hypothesis import strategies as st

START = datetime(2000, 1, 1)
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def frame(*rows):
    """Events from (subject, time or None, code, number or None[, text])."""
    filled = [
        (s, datetime.fromisoformat(t) if isinstance(t, str) else t, c, v, *(m or (None,))) for s, t, c, v, *m in rows
    ]
    return pl.DataFrame(filled, SCHEMA | {"text_value": pl.String}, orient="row")


def rewritten(rules, *rows, **options):
    """Codes and numbers that rules make of events of one subject and instant, from (code, number[, text])."""
    prepare = Preparation(PrepareConfig(columns=["text_value"], rules=rules, **options))
    found = prepare.apply(frame(*((1, "2020-01-01", *row) for row in rows)))
    return list(zip(found["code"], found["numeric_value"], strict=True))


# -- code systems


@pytest.mark.parametrize(
    ("system", "code", "parts"),
    [
        ("icd10cm", "E11.65", ["E11", "3-6//65"]),
        ("icd10cm", "s72001a", ["S72", "3-6//001", "SFX//A"]),
        ("icd10cm", "I10", ["I10"]),
        ("icd10pcs", "0BH17EZ", list("0BH17EZ")),
        ("icd10pcs", "0BH17", []),
        ("icd9cm", "428.0", ["428", "SFX//0"]),
        ("icd9cm", "E8798", ["E879", "SFX//8"]),
        ("icd9pcs", "38.93", ["38", "SFX//93"]),
        ("atc", "C07AB02", ["C07", "4//A", "SFX//B02"]),
        ("atc", "A10", ["A10"]),
        ("int", "054", ["54"]),
        ("int", "\u0665", []),
        ("clean", " Med/Surg,  East St. ", ["MED/SURG_EAST_ST"]),
    ],
)
def test_codes_fall_into_their_parts(system, code, parts):
    assert code_systems.SYSTEMS[system](code) == parts


# -- rules


def test_the_first_rule_that_applies_decides_and_other_events_stay_as_they_are():
    rules = [RuleConfig(codes=["A//1"], to=["FIRST"]), RuleConfig(codes=["A//"], to=["SECOND//{1}"])]
    found = rewritten(rules, ("A//1", 1.0), ("A//2", 2.0), ("B", 3.0))
    assert found == [("FIRST", None), ("SECOND//2", None), ("B", 3.0)]


def test_a_rule_keeps_drops_or_makes_the_number():
    rules = [
        RuleConfig(codes=["KEEP"], to=["X = {value}"]),
        RuleConfig(codes=["TEXT"], to=["Y = {text_value}"]),
        RuleConfig(codes=["FIX"], to=["Z = 2.5"]),
    ]
    found = rewritten(rules, ("KEEP", 1.0), ("KEEP", None), ("TEXT", 9.0, "7"), ("TEXT", None, "seven"), ("FIX", None))
    # What has no number to make applies no rule: the event is as it was.
    assert found == [("X", 1.0), ("X", None), ("Y", 7.0), ("TEXT", None), ("Z", 2.5)]


def test_text_that_is_no_number_never_becomes_one():
    rules = [RuleConfig(codes=["A"], to=["B = {text_value}"])]
    for text in ("nan", "inf", "-inf", "1e999", "", "1,5", "0x10", None):
        assert rewritten(rules, ("A", None, text)) == [("A", None)], text


def test_a_pair_in_a_text_becomes_two_numbers_and_other_text_the_next_rule():
    rules = [
        RuleConfig(codes=["BP"], where={"text_value": r"(?P<s>\d+)/(?P<d>\d+)"}, to=["BP", "S = {s}", "D = {d}"]),
        RuleConfig(codes=["BP"], to=[]),
    ]
    found = rewritten(rules, ("BP", None, "120/80"), ("BP", None, "120"), ("BP", None), ("BP", None, "90/60"))
    assert found == [("BP", None), ("S", 120.0), ("D", 80.0), ("BP", None), ("S", 90.0), ("D", 60.0)]


def test_a_group_may_have_the_name_of_the_column_that_it_is_found_in():
    rules = [RuleConfig(codes=["A"], where={"text_value": r"(?P<text_value>\w+) .*"}, to=["A//{text_value}"])]
    assert rewritten(rules, ("A", None, "WHITE - OTHER"), ("A", None, "BLACK"), ("A", None)) == [
        ("A//WHITE", None),
        ("A", None),
        ("A", None),
    ]


def test_numbers_and_fields_can_be_conditions():
    rules = [
        RuleConfig(codes=["A"], numeric=False, to=[]),
        RuleConfig(codes=["A"], within={"value": [1, 2.5]}, to=["IN = {value}"]),
        RuleConfig(codes=["B"], within={"text_value|half": [10, 20]}, to=["B = {text_value|half}"]),
        RuleConfig(codes=["B"], to=[]),
    ]
    table = {"half": [["(.*) cm", r"\1"], ["none", None]]}
    found = rewritten(
        rules, ("A", None), ("A", 2.5), ("A", 2.6), ("B", None, "12 cm"), ("B", None, "99 cm"), ("B", None, "none"),
        tables=table,
    )  # fmt: skip
    assert found == [("IN", 2.5), ("A", pytest.approx(2.6)), ("B", 12.0)]


def test_fields_go_through_tables_systems_and_defaults():
    rules = [
        RuleConfig(codes=["RACE//"], to=["RACE//{1|race?NONE}"]),
        RuleConfig(codes=["ICD//"], to=["CM//{1|icd10cm}", "WHOLE//{1}"]),
        RuleConfig(codes=["MED//"], pattern="MED//(?P<drug>.+)//(Given|Taken)", normalize=True, to=["DRUG//{drug}"]),
        RuleConfig(codes=["MED//"], to=[]),
    ]
    table = {"race": [["WHITE - .*", "WHITE"], ["DECLINED", None]]}
    rows = [
        "RACE//WHITE - OTHER",
        "RACE//BLACK",
        "RACE//DECLINED",
        "ICD//E1165",
        "MED//Insulin, reg.//Given",
        "MED//x//No",
    ]
    found = rewritten(rules, *((code, None) for code in rows), tables=table)
    assert [code for code, _ in found] == [
        *["RACE//WHITE", "RACE//BLACK", "RACE//NONE", "CM//E11", "CM//3-6//65", "WHOLE//E1165", "DRUG//INSULIN_REG"]
    ]


def test_entries_of_nothing_are_left_out_and_a_rule_of_nothing_does_not_apply():
    rules = [
        RuleConfig(codes=["ADMIT"], to=["ADMIT", "WARD//{1}", "NOTE//{text_value}"]),
        RuleConfig(codes=["X"], to=["WARD//{1}"]),
        RuleConfig(codes=["X"], to=["LAST"]),
    ]
    found = rewritten(rules, ("ADMIT//ICU", None), ("ADMIT", None, "n"), ("X", None), ("X//2", None))
    assert [code for code, _ in found] == ["ADMIT", "WARD//ICU", "ADMIT", "NOTE//n", "LAST", "WARD//2"]


def test_dropped_codes_are_gone_whatever_the_rules_say():
    rules = [RuleConfig(codes=["INFUSION_START"], to=["KEPT"])]
    assert rewritten(rules, ("INFUSION_START//1", 2.0), ("A", 1.0), drop=["INFUSION_"]) == [("A", 1.0)]


def test_further_columns_go_along():
    prepare = Preparation(PrepareConfig(rules=[RuleConfig(codes=["A"], to=["B", "C"])]))
    found = prepare.apply(frame((1, "2020-01-01", "A", None, "note"), (1, "2020-01-01", "D", None)))
    assert found["text_value"].to_list() == ["note", "note", None]
    assert found.columns == ["subject_id", "time", "code", "numeric_value", "text_value"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PrepareConfig(rules=[RuleConfig(to=["A"])]), "rule 1 .*give the starts"),
        (PrepareConfig(rules=[RuleConfig(codes=["A"], to=["{tex_value}"])]), "has no field 'tex_value'"),
        (PrepareConfig(rules=[RuleConfig(codes=["A"], to=["{1|raze}"])]), "there is no table 'raze'"),
        (PrepareConfig(rules=[RuleConfig(codes=["A"], pattern="(")]), "'\\(' is no regular expression"),
        (PrepareConfig(rules=[RuleConfig(codes=["A"], within={"value": [2, 1]})]), "expected \\[low, high\\]"),
        (PrepareConfig(rules=[RuleConfig(codes=["A"], where={"race": "x"})]), "has no field 'race'"),
        (PrepareConfig(rules=[RuleConfig(codes=["A"], where={"1": "x"})]), "has no field '1'; where takes columns"),
        (PrepareConfig(tables={"race": {"a": "b"}}), "table 'race' is no list of pairs"),
        (PrepareConfig(tables={"clean": []}), "'clean' names two things"),
        (PrepareConfig(mappings={"m": MappingConfig(several="some")}), "several is 'some'"),
        (PrepareConfig(complete=[CompleteConfig(at="A")]), "it needs at, without and add"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_words(config, message):
    with pytest.raises(ConfigError, match=message):
        Preparation(config)


@pytest.mark.parametrize("hours", [-5.0, float("nan"), float("inf"), 1e300])
def test_nothing_is_known_before_it_happens_or_after_more_than_a_century(hours):
    with pytest.raises(ConfigError, match=r"tokenizer.prepare.delay_hours.LAB is .*; allowed: 0 to 1,000,000"):
        Preparation(PrepareConfig(delay_hours={"LAB": hours}))


# -- mapping files


def mapped(path, several="all", **more):
    mapping = {"m": MappingConfig(path=str(path), several=several, **more)}
    rules = [RuleConfig(codes=["A//"], to=["B//{1|m}"]), RuleConfig(codes=["A//"], to=["OLD//{1}"])]
    return [
        code for code, _ in rewritten(rules, ("A//25000", None), ("A//x y", None), ("A//no", None), mappings=mapping)
    ]


def test_a_mapping_file_gives_all_the_first_or_the_category_of_the_first(tmp_path):
    (tmp_path / "m.csv").write_text("from,to\n250.00,E13.9\n250.00,E11.9\nX Y,Z001\n,none\n")
    assert mapped(tmp_path / "m.csv") == ["B//E11.9", "B//E13.9", "B//Z001", "OLD//no"]
    assert mapped(tmp_path / "m.csv", "first") == ["B//E11.9", "B//Z001", "OLD//no"]
    assert mapped(tmp_path / "m.csv", "category") == ["B//E11", "B//Z001", "OLD//no"]


def test_how_much_a_mapping_reaches_is_told_by_what_was_looked_up_and_in_how_many_events(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("from,to\nE11.9,T2D\nI10,HTN\n")
    rules = [RuleConfig(codes=["DX//"], to=["DX//{1|m}"]), RuleConfig(codes=["RX//"], to=["RX//{1}"])]
    settings = PrepareConfig(mappings={"m": MappingConfig(path=str(path))}, rules=rules)
    codes = ["DX//E119", "DX//E119", "DX//E11.9", "DX//Z1", "RX//I10", "LAB//I10"]
    events = pl.DataFrame(
        {"subject_id": [1] * 6, "time": [datetime(2020, 1, 1)] * 6, "code": codes, "numeric_value": [None] * 6},
        {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32},
    )
    found = {"m": {"E119": (2, True), "E11.9": (1, True), "Z1": (1, False)}}
    assert Preparation(settings).mapped(events) == found
    assert coverage.reached(found)["m"] == {"codes": 3, "codes_found": 2, "events": 4, "events_found": 3}
    assert Preparation(PrepareConfig(rules=rules[1:])).mapped(events) == {}


def test_a_mapping_may_be_parquet_with_other_columns(tmp_path):
    pl.DataFrame({"icd9": [25000], "icd10": ["E11"]}).write_parquet(tmp_path / "m.parquet")
    assert mapped(tmp_path / "m.parquet", source="icd9", target="icd10")[0] == "B//E11"


def test_a_mapping_file_that_cannot_be_used_is_named_with_what_it_lacks(tmp_path):
    with pytest.raises(FormatError, match=r"mapping 'm': .*gone.csv is missing; give a CSV or Parquet file"):
        mapped(tmp_path / "gone.csv")
    (tmp_path / "m.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FormatError, match="has no column 'from'; it has a, b"):
        mapped(tmp_path / "m.csv")
    (tmp_path / "m.parquet").write_bytes(b"no parquet")
    with pytest.raises(FormatError, match=r"m\.parquet is not a readable Parquet file"):
        mapped(tmp_path / "m.parquet")


# -- time and order


def test_dates_move_to_the_end_of_the_day_and_late_knowledge_to_when_it_is_known():
    prepare = Preparation(PrepareConfig(end_of_day=["BMI"], delay_hours={"SCORE": 0, "SCORE//FIRST": 24}))
    found = prepare.apply(
        frame(
            (1, None, "BMI", 20.0),
            (1, "2020-01-01 00:00", "BMI", 21.0),
            (1, "2020-01-01 09:00", "ADMIT", None),
            (1, "2020-01-01 09:00", "SCORE//FIRST", 3.0),
            (1, "2020-01-01 10:00", "SCORE", 4.0),
            (1, "2020-01-02 08:00", "BMI", 22.0),
            (2, "2020-01-01 00:00", "ADMIT", None),
        )
    )
    assert found.select("subject_id", pl.col("time").dt.to_string("%d %H:%M:%S"), "code").rows() == [
        (1, None, "BMI"),
        (1, "01 09:00:00", "ADMIT"),
        (1, "01 10:00:00", "SCORE"),
        (1, "01 23:59:59", "BMI"),
        (1, "02 08:00:00", "BMI"),
        (1, "02 09:00:00", "SCORE//FIRST"),
        (2, "01 00:00:00", "ADMIT"),
    ]


def test_events_of_one_instant_are_ordered_and_completed():
    prepare = Preparation(
        PrepareConfig(
            order=["ADMIT", "*", "DEATH", "OUT", "DRG"],
            complete=[CompleteConfig(at="OUT", without="DRG", add="DRG//NONE")],
        )
    )
    found = prepare.apply(
        frame(
            *[(1, "2020-01-01", code, None) for code in ("OUT", "X", "DEATH", "Y", "ADMIT")],
            *[(1, "2020-01-02", code, 1.0) for code in ("DRG//1", "OUT")],
            (2, "2020-01-02", "OUT", 1.0, "text"),
        )
    )
    codes = ["ADMIT", "X", "Y", "DEATH", "OUT", "DRG//NONE", "OUT", "DRG//1", "OUT", "DRG//NONE"]
    assert found["code"].to_list() == codes
    assert found.row(-1) == (2, datetime(2020, 1, 2), "DRG//NONE", None, None)


def test_nothing_to_do_gives_the_same_frame():
    events = frame((1, "2020-01-01", "A", 1.0))
    assert Preparation().apply(events) is events


# -- random records

FULL = PrepareConfig(
    columns=["text_value"],
    end_of_day=["LATE"],
    delay_hours={"SLOW": 30},
    order=["FIRST", "*", "LAST"],
    complete=[CompleteConfig(at="LAST", without="PAIR", add="MISSING")],
    drop=["GONE"],
    rules=[
        RuleConfig(codes=["PAIR"], where={"text_value": r"(?P<a>\d)/(?P<b>\d)"}, to=["P", "A = {a}", "B = {b}"]),
        RuleConfig(codes=["PAIR"], to=[]),
        RuleConfig(codes=["NUM"], numeric=True, to=["N//{1} = {value}", "EXTRA"]),
    ],
)
CODES = ["FIRST", "LAST", "LATE", "SLOW", "GONE", "PAIR", "NUM//1", "NUM//2", "OTHER"]
number = st.one_of(st.none(), st.floats(-5, 5, width=32))
step = st.one_of(st.just(0), st.integers(0, 100), st.sampled_from([720, 1440]))


@st.composite
def records(draw):
    rows = []
    for subject in range(1, 1 + draw(st.integers(1, 3))):
        at = START
        for minutes in draw(st.lists(step, max_size=10)):
            at += timedelta(minutes=minutes)
            text = draw(st.sampled_from([None, "1/2", "3/4", "?"]))
            rows.append((subject, at, draw(st.sampled_from(CODES)), draw(number), text))
    return rows


def plain(rows):
    """What `FULL` makes of events, one after the other."""
    moved = []
    for subject, at, code, value, note in rows:
        midnight = at.time() == START.time()
        late = at + timedelta(hours=23, minutes=59, seconds=59) if code == "LATE" and midnight else at
        moved.append((subject, late + timedelta(hours=30 if code == "SLOW" else 0), code, value, note))
    moved.sort(key=lambda row: (row[0], row[1], {"FIRST": 0, "LAST": 2}.get(row[2], 1)))
    made = []
    for index, (subject, at, code, value, note) in enumerate(moved):
        if code == "PAIR" and note and "/" in note:
            made += [
                (subject, at, "P", None),
                *((subject, at, c, float(n)) for c, n in zip("AB", note.split("/"), strict=True)),
            ]
        elif code.startswith("NUM") and value is not None:
            made += [(subject, at, f"N//{code[-1]}", value), (subject, at, "EXTRA", None)]
        elif code not in ("PAIR", "GONE"):
            made.append((subject, at, code, value))
        if index + 1 == len(moved) or moved[index + 1][:2] != (subject, at):
            there = {row[2] for row in moved if row[:2] == (subject, at)}
            if "LAST" in there and "PAIR" not in there:
                made.append((subject, at, "MISSING", None))
    return made


@settings(max_examples=200, deadline=None)
@given(records())
def test_prepared_events_equal_those_of_plain_loops(rows):
    assert Preparation(FULL).apply(frame(*rows)).drop("text_value").rows() == plain(rows)


@settings(max_examples=150, deadline=None)
@given(records(), st.integers(0, 4000))
def test_what_is_known_at_a_time_does_not_depend_on_later_events(rows, minute):
    cut = START + timedelta(minutes=minute)
    known = pl.col("time") <= cut
    whole = Preparation(FULL).apply(frame(*rows)).filter(known)
    part = Preparation(FULL).apply(frame(*rows).filter(known)).filter(known)
    assert whole.equals(part)


@settings(max_examples=100, deadline=None)
@given(records())
def test_subjects_are_prepared_alone(rows):
    whole = Preparation(FULL).apply(frame(*rows))
    for subject in {row[0] for row in rows}:
        alone = Preparation(FULL).apply(frame(*(row for row in rows if row[0] == subject)))
        assert whole.filter(pl.col("subject_id") == subject).equals(alone)
