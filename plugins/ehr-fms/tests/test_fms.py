"""The tokenizer ``fms``: every rule on records small enough to read, token by token."""

import json
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from ehr_core.cli import run
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.tokens import TokenStore
from ehr_fms.fms import SPACING, Fms
from ehr_fms.plugin import FmsConfig
from ehr_tokenize.prepare.settings import PrepareConfig, RuleConfig
from ehr_tokenize.store import coverage

SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def frame(rows):
    """Events from rows (subject, "2020-01-01 00:00" or None, code[, value])."""
    filled = [(s, datetime.fromisoformat(t) if t else None, c, *(v or (None,))) for s, t, c, *v in rows]
    return pl.DataFrame(filled, SCHEMA, orient="row")


TRAIN = [
    (1, None, "GENDER//F"),
    (1, None, "RACE//WHITE"),
    (1, "1960-01-01", "MEDS_BIRTH"),
    (1, "2020-01-01 00:00", "HOSPITAL_ADMISSION//ED"),
    *[(1, "2020-01-01 01:00", "LAB//K", float(value)) for value in range(11)],
    (1, "2020-01-01 02:00", "NOTE"),
    (1, "2020-01-02 00:00", "HOSPITAL_DISCHARGE//HOME"),
    (2, None, "GENDER//M"),
    (2, "1980-01-01", "MEDS_BIRTH"),
    (2, "2020-01-01 00:00", "HOSPITAL_ADMISSION//ELECTIVE"),
    (2, "2020-01-01 00:30", "NOTE"),
    (2, "2020-01-09 00:00", "NOTE"),
]
HELD_OUT = [
    (7, None, "GENDER//F"),
    (7, "1960-06-01", "MEDS_BIRTH"),
    (7, "2019-12-31 00:00", "RACE//WHITE"),
    (7, "2020-01-01 00:00", "LAB//K", 0.5),  # in the instant of the admission, though above it
    (7, "2020-01-01 00:00", "HOSPITAL_ADMISSION//ED"),
    (7, "2020-01-01 00:04", "NOTE"),
    (7, "2020-01-01 00:09", "LAB//K", 1.0),
    (7, "2020-01-01 00:09", "LAB//K", None),
    (7, "2020-01-01 00:09", "LAB//K", 99.0),
    (7, "2020-01-01 00:09", "NEW", 3.0),
    (7, "2020-01-01 00:09", "LAB//K_Q3"),
    (7, "2020-01-01 00:09", "RACE//BLACK"),
    (7, "2020-01-03 00:09", "NOTE", 3.0),
    (7, "2020-01-03 00:09", "HOSPITAL_DISCHARGE//HOME"),
    (7, "2020-02-01 00:00", "NOTE"),
    (7, "2020-03-01 00:00", "HOSPITAL_ADMISSION//ED"),
    (7, "2020-04-01 00:00", "HOSPITAL_ADMISSION//NEW"),
    (7, "2020-04-01 12:00", "NOTE"),
    (8, "2020-04-01 12:00", "NOTE"),
]
HEAD = ["TL_START", "RACE_WHITE", "ETHN_UNKNOWN", "SEX_F", "AGE_Q9", "ADMN_ED"]


def fitted(rows=TRAIN, **options):
    tokenizer = Fms(FmsConfig(**options))
    tokenizer.fit([tokenizer.summarize(frame(rows))])
    return tokenizer


class Decoded:
    def __init__(self, tokenizer, rows):
        self.table = tokenizer.encode(rows if isinstance(rows, pl.DataFrame) else frame(rows))
        self.names = [tokenizer.vocabulary.tokens[i].token for i in self.table.token]

    def of(self, subject, array=None):
        row = self.table.subject_id.tolist().index(subject)
        values = self.names if array is None else array.tolist()
        return values[self.table.offset[row] : self.table.offset[row + 1]]

    def stays(self, subject):
        found = {}
        for name, stay in zip(self.of(subject), self.of(subject, self.table.columns["stay"]), strict=True):
            found.setdefault(stay, []).append(name)
        return list(found.values())

    def at(self, subject, name):
        """Times of a token, as text."""
        times = self.of(subject, self.table.time)
        return [
            str(np.datetime64(t, "us").astype("datetime64[m]"))
            for n, t in zip(self.of(subject), times, strict=True)
            if n == name
        ]


def test_every_rule_shows_in_the_tokens_of_a_small_record():
    found = Decoded(fitted(), HELD_OUT)
    assert found.stays(7) == [
        [
            *HEAD,
            *["LAB//K_Q0"],  # no spacing after the prefix
            *["NOTE"],  # four minutes on
            *["T_5m-15m", "[UNK]", "[UNK]", "LAB//K", "LAB//K_Q1", "LAB//K_Q9"],  # by token, a break belongs above
            *["T_1d-3d", "NOTE", "DSCG_HOME", "TL_END"],  # NOTE had no number in train
        ],
        ["TL_START", "[UNK]", "ETHN_UNKNOWN", "SEX_F", "AGE_Q9", "ADMN_ED", "TL_END"],  # RACE//BLACK is unseen
        ["TL_START", "[UNK]", "ETHN_UNKNOWN", "SEX_F", "AGE_Q9", "[UNK]", "NOTE"],  # not over: no TL_END
    ]
    assert found.of(8) == []  # in no hospitalization


def test_tokens_have_the_time_at_which_they_are_known():
    found = Decoded(fitted(), HELD_OUT)
    assert found.at(7, "TL_START") == ["2020-01-01T00:00", "2020-03-01T00:00", "2020-04-01T00:00"]
    assert found.at(7, "TL_END") == ["2020-01-03T00:09", "2020-04-01T00:00"]
    assert found.at(7, "T_5m-15m") == ["2020-01-01T00:09"]  # that of the later event
    assert (np.diff(found.of(7, found.table.time)) >= 0).all()


def test_bins_can_be_tokens_of_their_own():
    tokenizer = fitted(fused=False)
    assert Decoded(tokenizer, HELD_OUT).stays(7)[0][6:] == [
        *["LAB//K", "Q0", "NOTE", "T_5m-15m", "[UNK]", "[UNK]", "LAB//K", "LAB//K", "Q1", "LAB//K", "Q9"],
        *["T_1d-3d", "NOTE", "DSCG_HOME", "TL_END"],
    ]
    count = {t.token: t.count for t in tokenizer.vocabulary.tokens}
    assert [count[f"Q{k}"] for k in range(10)] == [1] * 9 + [2]
    assert count["LAB//K"] == 11


def test_spacing_can_be_left_out():
    assert not {name for name in Decoded(fitted(time_spacing=False), HELD_OUT).names if name.startswith("T_")}


def test_the_13_spacing_tokens_begin_where_published():
    minutes = [5, 15, 60, 120, 360, 720, 1440, 4320, 10080, 20160, 43830, 131490, 262980]
    assert (SPACING.bounds / 60_000_000).tolist() == minutes
    assert len(SPACING.names) == 13
    index, often = SPACING.find(np.array([0, 299_999_999, 300_000_000, 899_999_999, 900_000_000, 10**15]))
    assert index.tolist() == [-1, -1, 0, 0, 1, 12]
    assert often.tolist() == [0, 0, 1, 1, 1, 1]  # one a gap, however long


def test_the_age_is_binned_by_the_ages_at_admission_of_train():
    tokenizer = fitted()
    low, high = (datetime(2020, 1, 1) - datetime(1980, 1, 1)).days / 365.25, 21915 / 365.25
    assert tokenizer.prefix_breaks["AGE"] == pytest.approx(
        [low + (high - low) * k / 10 for k in range(1, 10)], rel=1e-6
    )
    assert Decoded(tokenizer, [(3, "2020-01-01", "HOSPITAL_ADMISSION//ED")]).of(3)[4] == "AGE_UNKNOWN"


def test_ellipsis_stands_for_events_after_the_last_day_at_the_first_of_them():
    rows = [
        (3, "2020-01-01 00:00", "HOSPITAL_ADMISSION//ED"),
        (3, "2020-01-03 00:00", "NOTE"),
        (3, "2020-01-03 00:01", "NOTE"),
        (3, "2020-01-05 00:00", "NOTE"),
        (3, "2020-01-06 00:00", "HOSPITAL_DISCHARGE//HOME"),
    ]
    found = Decoded(fitted(max_event_days=2), rows)
    assert found.of(3)[6:] == ["NOTE", "ELLIPSIS", "T_3d-1w", "DSCG_HOME", "TL_END"]
    assert found.at(3, "ELLIPSIS") == ["2020-01-03T00:01"]


def test_a_cut_keeps_what_is_known_by_then_and_the_same_vocabulary():
    cut, whole = fitted(cut_hours=24), fitted()
    assert Decoded(cut, HELD_OUT).stays(7)[0] == Decoded(whole, HELD_OUT).stays(7)[0][:-4]
    assert Decoded(cut, HELD_OUT).stays(7)[1][-1] == "ADMN_ED"  # over after a month only
    assert cut.vocabulary.digest == whole.vocabulary.digest
    assert cut.breaks == whole.breaks
    exact = [(3, "2020-01-01 00:00", "HOSPITAL_ADMISSION//ED"), (3, "2020-01-02 00:00", "HOSPITAL_DISCHARGE//HOME")]
    assert Decoded(cut, exact).of(3)[-1] == "TL_END"  # at the 24th hour sharp it is known


def test_a_long_hospitalization_ends_in_trunc_and_the_next_is_whole():
    found = Decoded(fitted(max_length=9, value=True), HELD_OUT)
    assert found.stays(7)[0] == [*HEAD, "LAB//K_Q0", "NOTE", "TRUNC"]
    assert found.stays(7)[1][-1] == "TL_END"
    assert found.at(7, "TRUNC") == ["2020-01-01T00:09"]  # of the token that it replaces
    assert np.isnan(found.of(7, found.table.columns["value"])[8])


def test_the_columns_hold_the_hospitalization_and_the_number_of_each_token():
    found = Decoded(fitted(value=True), HELD_OUT)
    assert found.table.columns["stay"].dtype == np.int32
    assert found.of(7, found.table.columns["stay"]) == [0] * 18 + [1] * 7 + [2] * 7
    values = dict(zip(found.of(7), found.of(7, found.table.columns["value"]), strict=True))
    assert (values["LAB//K_Q0"], values["LAB//K_Q9"]) == (0.5, 99.0)
    assert np.isnan(values["DSCG_HOME"])


def test_codes_and_counts_are_in_the_vocabulary():
    tokens = {t.token: t for t in fitted().vocabulary.tokens}
    assert tokens["LAB//K_Q9"].codes == ("LAB//K",)
    assert tokens["DSCG_HOME"].codes == ("HOSPITAL_DISCHARGE//HOME",)
    assert tokens["RACE_WHITE"].codes == ("RACE//WHITE",)
    assert (tokens["TL_END"].kind, tokens["TL_END"].count, tokens["TL_START"].count) == ("end", 1, 2)
    assert (tokens["LAB//K_Q9"].count, tokens["LAB//K"].count, tokens["NOTE"].count) == (2, 0, 3)
    assert (tokens["T_1h-2h"].count, tokens["T_1w-2w"].count) == (1, 1)


def test_rare_tokens_become_unk():
    tokenizer = fitted(min_count=3)
    assert "DSCG_HOME" not in tokenizer.vocabulary.ids
    assert tokenizer.vocabulary.tokens[3].count == 1
    assert Decoded(tokenizer, HELD_OUT).stays(7)[0][-2:] == ["[UNK]", "TL_END"]


def test_coverage_counts_the_events_that_became_unk_and_not_those_outside_of_stays():
    tokenizer = fitted()
    rows = [*HELD_OUT, (8, "2020-04-02 12:00", "NEVER IN A STAY")]
    found = coverage.code_events(frame(rows), tokenizer)
    assert {code: counts for code, counts in found.items() if counts[1]} == {
        **dict.fromkeys(("NEW", "LAB//K_Q3", "HOSPITAL_ADMISSION//NEW"), (1, 1, 0)),
        "RACE//BLACK": (1, 1, 0),  # one event, though it is the race of two hospitalizations
    }
    assert found["NEVER IN A STAY"] == (1, 0, 0)
    assert found["NOTE"] == (5, 0, 0)


EVENTS = [
    {"prefix": "HIGH", "code": "LAB//(.*)", "filter": "numeric_value > 5 and hours < 2"},
    {"prefix": "LAB", "code": "LAB//", "numeric": True, "value": "numeric_value * 10"},
    {"prefix": "NOTE", "code": "NOTE$"},
    {"prefix": "OLD", "code": "NEW", "filter": "age >= 50"},
]


def test_tables_decide_which_rows_become_which_tokens():
    tokenizer = fitted(events=EVENTS, prefix=[{"prefix": "SEX", "code": "GENDER//"}], suffix=[])
    assert tokenizer.breaks["LAB_K"] == pytest.approx([5.0 * k for k in range(1, 10)])  # 0 to 50
    found = Decoded(tokenizer, HELD_OUT).stays(7)[0]
    assert found == [
        *["TL_START", "SEX_F", "LAB_K_Q1", "NOTE"],
        *["T_5m-15m", "[UNK]", "[UNK]", "HIGH_K", "LAB_K", "LAB_K_Q2"],  # OLD and LAB_K_Q3 are unseen in train
        *["T_1d-3d", "NOTE", "TL_END"],  # HOSPITAL_DISCHARGE and RACE fit no entry
    ]


def test_a_text_can_be_part_of_the_token():
    """What fms-ehrs calls text_value, by a rule of the preparation."""
    rule = RuleConfig(codes=["RESP"], where={"text_value": ".+"}, normalize=True, to=["{code}//{text_value}"])
    prepare = PrepareConfig(columns=["text_value"], rules=[rule])
    rows = [(1, "2020-01-01 00:00", "HOSPITAL_ADMISSION//ED"), *[(1, "2020-01-01 00:01", "RESP")] * 2]
    events = frame(rows).with_columns(pl.Series("text_value", [None, "Nasal cannula", None]))
    tokenizer = Fms(FmsConfig(prepare=prepare, prefix=[], events=[{"prefix": "RESP", "code": "RESP"}]))
    tokenizer.fit([tokenizer.summarize(events)])
    assert Decoded(tokenizer, events).of(1) == ["TL_START", "RESP", "RESP_NASAL_CANNULA"]


def test_tables_come_from_a_yaml_file_and_are_saved_with_the_tokenizer(tmp_path):
    file = tmp_path / "tables.yaml"
    file.write_text("events:\n  - {prefix: N, code: NOTE, filter: 'hours <= 1'}\nprefix: []\n")
    tokenizer = fitted(tables=str(file))
    assert Decoded(tokenizer, HELD_OUT).stays(7)[0] == ["TL_START", "N", "TL_END"]
    tokenizer.save(tmp_path)
    file.unlink()
    assert str(tmp_path) not in (tmp_path / "tokenizer.json").read_text()
    again = Fms(FmsConfig())
    again.load(tmp_path)
    assert Decoded(again, HELD_OUT).stays(7)[0] == ["TL_START", "N", "TL_END"]


def test_a_suffix_gathers_rows_of_the_stay_at_its_end():
    rows = [
        (1, "2020-01-01 00:00", "HOSPITAL_ADMISSION//ED"),
        (1, "2020-01-01 01:00", "DX//B"),
        (1, "2020-01-01 02:00", "NOTE"),
        (1, "2020-01-01 03:00", "HOSPITAL_DISCHARGE//HOME"),
        (1, "2020-01-01 03:00", "DX//A"),
    ]
    suffix = [{"prefix": "DSCG", "code": "HOSPITAL_DISCHARGE//"}, {"prefix": "DX", "code": "DX//"}]
    tokenizer = fitted(rows, suffix=suffix, prefix=[], events=[{"prefix": "", "code": ""}])
    found = Decoded(tokenizer, rows)
    assert found.of(1)[1:] == [
        "HOSPITAL_ADMISSION//ED",
        "T_2h-6h",
        "NOTE",
        "T_1h-2h",
        "DSCG_HOME",
        "DX_A",
        "DX_B",
        "TL_END",
    ]
    assert found.at(1, "DX_B") == ["2020-01-01T03:00"]
    assert Decoded(tokenizer, rows[:3]).of(1)[1:] == ["HOSPITAL_ADMISSION//ED", "T_2h-6h", "NOTE"]


def test_numbers_of_the_prefix_are_binned_and_the_last_one_before_admission_counts():
    prefix = [{"prefix": "WEIGHT", "code": "WEIGHT", "numeric": True, "filter": "numeric_value > 0"}]
    train = [row for k in range(11) for row in ((k, None, "WEIGHT", 50.0 + k), (k, "2020-01-01", "HOSPITAL_ADMISSION"))]
    tokenizer = fitted(train, prefix=prefix)
    rows = [
        (90, None, "WEIGHT", 51.0),
        (90, "2019-01-01", "WEIGHT", 58.5),
        (90, "2019-06-01", "WEIGHT", 0.0),
        (90, "2020-01-01", "HOSPITAL_ADMISSION"),
        (90, "2020-01-02", "WEIGHT", 52.0),
        (91, "2020-01-01", "HOSPITAL_ADMISSION"),
    ]
    found = Decoded(tokenizer, rows)
    assert found.of(90)[:2] == ["TL_START", "WEIGHT_Q8"]
    assert found.of(91)[:2] == ["TL_START", "WEIGHT_UNKNOWN"]


def test_reference_ranges_are_kept_in_the_state_and_not_by_name_of_file(tmp_path):
    file = tmp_path / "ranges.csv"
    file.write_text("token,lower,upper\nLAB//K,3,7\nELSE,0,1\n")
    tokenizer = fitted(quantizer="ventiles", reference_ranges=str(file))
    tokenizer.save(tmp_path)
    file.unlink()
    again = Fms(FmsConfig())
    again.load(tmp_path)
    rows = [
        (3, "2020-01-01", "HOSPITAL_ADMISSION//ED"),
        *[(3, "2020-01-01", "LAB//K", v) for v in (-5, 2.9, 3, 7, 7.1, 50)],
    ]
    names = [name for name in Decoded(again, rows).of(3) if name.startswith("LAB")]
    assert names == [f"LAB//K_Q{k}" for k in (0, 4, 5, 14, 15, 19)]
    assert again.settings.reference_ranges is None
    assert str(tmp_path) not in (tmp_path / "tokenizer.json").read_text()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"quantizer": "decile"}, "tokenizer.quantizer is 'decile'. Did you mean deciles"),
        ({"reference_ranges": "x.csv"}, "needs tokenizer.quantizer=ventiles"),
        ({"max_length": 1}, "tokenizer.max_length is 1"),
        ({"admission_codes": ["A"], "discharge_codes": ["A"]}, "in both"),
        ({"columns": {"x": "int"}}, "tokenizer.columns.x is 'int'; allowed: number, text"),
        ({"columns": {"age": "number"}}, "expressions know 'age' already"),
        ({"events": [{"prefx": "A", "code": ""}]}, r"tokenizer.events\[0\] has no key 'prefx'. Did you mean prefix"),
        ({"events": [{"prefix": "A"}]}, r"tokenizer.events\[0\] has no code"),
        ({"events": [{"prefix": "A", "code": "("}]}, "no regular expression"),
        ({"events": [{"code": "A", "numeric": "yes"}]}, "numeric is 'yes'; expected bool"),
        ({"events": [{"code": "A", "when": "known"}]}, "in prefix only"),
        ({"events": [{"code": "A", "value": "age", "numeric": False}]}, "numeric is false"),
        ({"events": ["A"]}, "expected keys"),
        ({"suffix": [{"code": "A", "filter": "hors > 1"}]}, r"suffix\[0\].filter: no column 'hors'. Did you mean hour"),
        ({"prefix": [{"prefix": "A", "value": "hours"}]}, "no column 'hours'"),
        ({"prefix": [{"code": "A"}]}, "has no prefix"),
        ({"prefix": [{"prefix": "A", "code": "A"}, {"prefix": "A", "code": "B"}]}, "two entries with the prefix 'A'"),
        ({"tables": "/nowhere.yaml"}, "is missing"),
        ({"tables": "/"}, "tokenizer.tables: / is a folder; give a YAML file"),
        ({"admission_codes": []}, "tokenizer.admission_codes is empty: give codes, or tokenizer.stay_column"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_with_their_place(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Fms(FmsConfig(**wrong))


@pytest.mark.parametrize(
    ("text", "message"),
    [("event: []\n", "has 'event'. Did you mean events"), ("events: 3\n", "must map"), ("{", "is no YAML")],
)
def test_a_tables_file_that_is_wrong_is_named(tmp_path, text, message):
    file = tmp_path / "tables.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Fms(FmsConfig(tables=str(file)))
    assert "\n" not in str(caught.value)


def test_a_train_split_without_hospitalizations_is_refused():
    with pytest.raises(DataError, match=r"no event with HOSPITAL_ADMISSION; set tokenizer.admission_codes"):
        fitted([(1, "2020-01-01", "NOTE")])


def test_a_row_with_the_name_of_our_own_token_is_refused():
    with pytest.raises(DataError, match=r"'TL_END' has the name of a token"):
        fitted([*TRAIN, (3, "2020-01-01", "HOSPITAL_ADMISSION"), (3, "2020-01-01", "TL_END")])


def test_the_preset_for_mimic_iv_tokenizes_with_its_tables(tmp_path):
    for split, subject in (("train", 1), ("tuning", 2), ("held_out", 3)):
        rows = [
            (subject, None, "GENDER//F"),
            (subject, "2150-01-01 10:00", "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM"),
            (subject, "2150-01-01 11:00", "LAB//50971//mEq/L", 4.0),
            (subject, "2150-01-01 11:00", "TRANSFER_TO//admit//Medicine"),
            (subject, "2150-01-03 00:00", "HOSPITAL_DISCHARGE//HOME"),
            (subject, "2150-01-03 00:00", "DIAGNOSIS//ICD//10//I10"),
            (subject, "2150-01-03 00:00", "PROCEDURE//ICD//10//0BH17EZ"),  # at the discharge, not known by date only
        ]
        folder = tmp_path / "meds" / "data" / split
        folder.mkdir(parents=True)
        race = [None, "WHITE", *[None] * 5]
        frame(rows).with_columns(race=pl.Series(race)).write_parquet(folder / "0.parquet")
    run("ehr-tokenize", "tokenize", [
        "source=meds", f"source.path={tmp_path}/meds", f"output={tmp_path}/store", "tokenizer=fms_mimic_iv"
    ])  # fmt: skip
    store = TokenStore(tmp_path / "store")
    table = next(store.tables("held_out"))
    assert [store.vocabulary.tokens[i].token for i in table.token] == [
        *["TL_START", "RACE_WHITE", "SEX_F", "AGE_UNKNOWN", "ADMN_EW EMER."],
        *["XFR-IN_Medicine", "LAB_50971//mEq/L_Q9", "T_1d-3d", "DSCG_HOME", "PROC_10//0BH17EZ", "DX_10//I10"],
        "TL_END",
    ]
    assert json.loads((tmp_path / "store" / "manifest.json").read_text())["content"]["columns"] == ["stay"]
