"""The tokenizer ``rank_value`` on records small enough to rank by hand, and against a plain loop."""

import json
import statistics
from datetime import datetime, timedelta

import numpy as np
import pytest
from ehr_core.cli import run
from ehr_core.errors import ConfigError, DataError, FormatError
from ehr_core.formats.folder import read_json
from ehr_core.formats.tokens import TokenStore
from ehr_core.formats.vocabulary import Vocabulary
from ehr_core.testing.tiny import write_events
from ehr_geneformer.plugin import RankValueConfig
from ehr_geneformer.tokenizer import RankValue
from ehr_tokenize.store import coverage
from hypothesis import given, settings
from hypothesis import strategies as st

DAY = "2020-01-01"
TRAIN = [
    (1, "1950-01-01", "MEDS_BIRTH"),
    (1, DAY, "A", 1.0),
    (1, "2020-01-02", "A", 3.0),
    (1, "2020-01-02", "B", 10.0),
    (1, "2020-01-02", "BE", -2.0),
    (1, "2020-01-03", "ADMIT"),
    (2, DAY, "A", 4.0),
    (2, DAY, "B", 30.0),
    (2, DAY, "BE", 4.0),
    (3, None, "HEIGHT", 170.0),
    (3, DAY, "A", 0.0),
    (3, DAY, "A", None),
    (3, DAY, "B", 20.0),
    (3, DAY, "BE", 3.0),
]
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
def fitted(frame):
    def make(rows=TRAIN, **values):
        tokenizer = RankValue(RankValueConfig(**{"min_count": 1, **values}))
        tokenizer.fit([tokenizer.summarize(frame(rows))])
        return tokenizer

    return make


def at(text):
    return int((datetime.fromisoformat(text) - datetime(1970, 1, 1)) / MICROSECOND)


def test_medians_are_of_one_absolute_value_other_than_zero_a_subject(fitted):
    # A: the mean of 1 and 3, and 4; BE: 2, 4, 3; a subject with nothing but zeros does not count.
    assert fitted().medians == {"A": 3.0, "B": 20.0, "BE": 3.0, "HEIGHT": 170.0}
    assert fitted(reduce="last").medians["A"] == 3.5


def test_codes_are_in_order_of_value_over_median(fitted, frame, words):
    tokenizer = fitted()
    found = words(tokenizer.vocabulary, tokenizer.encode(frame(TRAIN)))
    assert found[1] == ["A", "B", "BE"]  # 2 / 3, 10 / 20 and -2 / 3
    assert found[2] == ["B", "BE", "A"]  # 1.5, then two of 4 / 3: the lower id first, that of more subjects
    assert found[3] == ["B", "BE", "HEIGHT"]  # all 1: by id; a zero is no token


def test_the_last_value_can_count_instead_of_the_mean(fitted, frame, words):
    tokenizer = fitted(reduce="last")
    assert words(tokenizer.vocabulary, tokenizer.encode(frame(TRAIN)))[1] == ["A", "B", "BE"]
    rows = [(7, DAY, "A", 100.0), (7, "2020-01-02", "A", 1.0), (7, DAY, "B", 20.0)]
    rows.sort(key=lambda row: row[1])
    assert words(tokenizer.vocabulary, tokenizer.encode(frame(rows)))[7] == ["B", "A"]
    mean = fitted()
    assert words(mean.vocabulary, mean.encode(frame(rows)))[7] == ["A", "B"]


def test_values_can_be_scaled_to_a_common_sum_first(fitted):
    rows = [(1, DAY, "A", 1.0), (1, DAY, "B", 3.0), (2, DAY, "A", 10.0), (2, DAY, "B", 10.0)]
    assert fitted(rows, scale_total=100.0).medians == {"A": 37.5, "B": 62.5}  # of 25 and 50, 75 and 50


def test_an_unseen_code_ranks_last_as_unk(fitted, frame, words):
    tokenizer = fitted(min_count=2)  # HEIGHT is rare
    rows = [(7, None, "HEIGHT", 1e6), (7, DAY, "B", 1.0), (7, DAY, "NEW", 9e9), (7, DAY, "NOTE", None)]
    assert words(tokenizer.vocabulary, tokenizer.encode(frame(rows)))[7] == ["B", "[UNK]", "[UNK]"]


def test_only_the_highest_ranks_stay(fitted, frame, words):
    tokenizer = fitted(max_length=2)
    found = words(tokenizer.vocabulary, tokenizer.encode(frame(TRAIN)))
    assert [found[subject] for subject in (1, 2, 3)] == [["A", "B"], ["B", "BE"], ["B", "BE"]]


def test_a_sentence_is_not_visible_before_its_record_is_over(fitted, frame):
    tokenizer = fitted()
    table = tokenizer.encode(frame(TRAIN))
    # One microsecond after the last event, which of subject 1 has no number.
    assert set(table.time[:3].tolist()) == {at("2020-01-03") + 1}
    only_static = tokenizer.encode(frame([(7, None, "HEIGHT", 1.0)]))
    assert only_static.time.tolist() == [0]


def test_a_sentence_of_the_first_hours_is_known_when_they_are_over(fitted, frame, words):
    tokenizer = fitted(hours=24)
    rows = [(7, "1950-01-01", "MEDS_BIRTH"), (7, DAY, "A", 1.0), (7, "2020-01-02", "B", 1.0)]
    table = tokenizer.encode(frame([*rows, (7, "2020-01-02 00:01", "BE", 99.0)]))
    assert words(tokenizer.vocabulary, table)[7] == ["A", "B"]
    assert set(table.time.tolist()) == {at("2020-01-02")}


def test_a_published_vocabulary_keeps_its_ids_and_has_no_unk(fitted, frame, words, tmp_path):
    (tmp_path / "tokens.json").write_text(json.dumps({"<mask>": 1, "<pad>": 0, "B": 2, "A": 3, "OTHER": 4}))
    (tmp_path / "medians.json").write_text(json.dumps({"A": 2.0, "B": 100.0, "ELSE": 1.0}))
    paths = {"vocabulary": str(tmp_path / "tokens.json"), "medians": str(tmp_path / "medians.json")}
    tokenizer = fitted(**paths)
    assert [token.token for token in tokenizer.vocabulary.tokens] == ["[PAD]", "[MASK]", "B", "A", "OTHER"]
    assert tokenizer.medians == {"A": 2.0, "B": 100.0}
    rows = [(7, DAY, "B", 10.0), (7, DAY, "A", 1.0), (7, DAY, "NEW", 9.0), (7, DAY, "OTHER", 9.0)]
    assert tokenizer.encode(frame(rows)).token.tolist() == [3, 2]  # OTHER has a token, but no median
    (tmp_path / "state").mkdir()
    tokenizer.save(tmp_path / "state")
    saved = json.loads((tmp_path / "state" / "tokenizer.json").read_text())
    tokens = Vocabulary.load(tmp_path / "state").tokens
    assert [(index, t.token) for index, t in enumerate(tokens) if t.kind == "special"] == [(0, "[PAD]"), (1, "[MASK]")]
    assert str(tmp_path) not in json.dumps(saved)


def test_medians_can_be_fitted_for_a_published_vocabulary(fitted, tmp_path):
    (tmp_path / "vocab.txt").write_text("<pad>\n<mask>\nBE\nB\n")
    tokenizer = fitted(vocabulary=str(tmp_path / "vocab.txt"))
    assert tokenizer.medians == {"B": 20.0, "BE": 3.0}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", "A\n<pad>\n", "id 0 must be <pad>"),
        ("v.txt", "", "id 0 must be <pad>"),
        ("v.txt", "<pad>\n\nA\n", "line 2 is empty"),
        ("v.txt", "<pad>\nA\nA\n", "names a token twice"),
        ("v.json", '{"<pad>": 0, "A": 2}', "use 0, 1, 2"),
        ("v.json", '{"<pad>": 0, "A": "1"}', "use 0, 1, 2"),
        ("v.json", '{"<pad>": 0', "not readable JSON"),
        ("v.pkl", "", "is a pickle"),
        ("v.txt", b"\x80\x04\x95", "is a pickle"),
        ("v.txt", b"<pad>\n\xff", "neither JSON nor text"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused(fitted, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FormatError, match=message):
        fitted(vocabulary=str(tmp_path / name))


@pytest.mark.parametrize("content", ['{"A": 0}', '{"A": -1}', '{"A": "1"}', '{"A": NaN}', '{"A": true}', "A 1"])
def test_medians_that_cannot_divide_are_refused(fitted, tmp_path, content):
    (tmp_path / "medians.json").write_text(content)
    with pytest.raises(FormatError, match="median"):
        fitted(medians=str(tmp_path / "medians.json"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reduce": "max"}, "tokenizer.reduce is 'max'; allowed: mean, last"),
        ({"max_length": 0}, "tokenizer.max_length is 0"),
        ({"hours": -1.0}, "tokenizer.hours is -1.0"),
        ({"hours": 1e12}, "tokenizer.hours is 1000000000000.0; it must be at most 1,000,000"),
        ({"scale_total": float("nan")}, "tokenizer.scale_total is nan"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        RankValue(RankValueConfig(**values))


def test_train_without_numbers_is_refused(fitted):
    with pytest.raises(DataError, match="no number other than 0"):
        fitted([(1, DAY, "A", None), (1, DAY, "B", 0.0)])


def test_from_the_command_line_the_manifest_does_not_take_a_gene_for_unk(tmp_path):
    for split, subject in (("train", 1), ("tuning", 2), ("held_out", 3)):
        rows = [(subject, datetime(2020, 1, 1), code, 1.0) for code in "ABC"]
        write_events(tmp_path / "meds" / "data" / split / "0.parquet", rows)
    (tmp_path / "vocab.txt").write_text("<pad>\n<mask>\nA\nB\nC\n")
    arguments = ["source=meds", f"source.path={tmp_path}/meds", "tokenizer=rank_value", f"output={tmp_path}/store"]
    run("ehr-tokenize", "tokenize", [*arguments, f"tokenizer.vocabulary={tmp_path}/vocab.txt"])
    store = TokenStore(tmp_path / "store")
    assert next(store.tables("train")).token.tolist() == [2, 3, 4]
    assert store.manifest.content["splits"]["train"]["unk"] == 0


@pytest.mark.parametrize("published", [False, True])
def test_a_vocabulary_grows_by_the_codes_of_a_new_site_and_their_medians(tmp_path, published):
    first, second = (tmp_path / name for name in ("first", "second"))
    for folder, codes in ((first, "AB"), (second, "BC")):
        for number, split in enumerate(("train", "tuning", "held_out")):
            rows = [(10 * number + s, datetime(2020, 1, 1), code, 10.0 * s) for s in range(1, 7) for code in codes]
            write_events(folder / "data" / split / "0.parquet", rows)
    settings = ["tokenizer=rank_value", "tokenizer.min_count=2"]
    if published:
        (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<mask>": 1, "B": 2, "A": 3}))
        settings.append(f"tokenizer.vocabulary={tmp_path / 'vocab.json'}")
    for output, source, *more in (
        ("old", first, *settings),
        ("new", second, f"fitted={tmp_path / 'old'}", "grow=true"),
    ):
        arguments = ["source=meds", f"source.path={source}", f"output={tmp_path / output}", *more]
        assert run("ehr-tokenize", "tokenize", arguments) == 0
    old, new = (TokenStore(tmp_path / name) for name in ("old", "new"))
    assert new.vocabulary.tokens[: len(old.vocabulary)] == old.vocabulary.tokens
    assert [token.token for token in new.vocabulary.tokens[len(old.vocabulary) :]] == ["C"]
    medians = [read_json(tmp_path / name / "tokenizer.json")["state"]["medians"] for name in ("old", "new")]
    assert medians[1] == medians[0] | {"C": 35.0}


def test_events_that_a_vocabulary_without_unk_leaves_out_are_reported_as_unknown(tmp_path, capsys):
    events = [("A", 1.0), ("B", 1.0), ("LAB//MG", 1.0), ("LAB//MG", 2.0), ("LAB//MG", None), ("LAB//K", 0.0)]
    for split, subject in (("train", 1), ("tuning", 2), ("held_out", 3)):
        rows = [(subject, datetime(2020, 1, 1), code, value) for code, value in [*events, *[("LAB//MG", 3.0)] * 4]]
        write_events(tmp_path / "meds" / "data" / split / "0.parquet", rows)
    (tmp_path / "vocab.txt").write_text("<pad>\n<mask>\nA\nB\nC\n")
    arguments = ["source=meds", f"source.path={tmp_path}/meds", "tokenizer=rank_value", f"output={tmp_path}/store"]
    run("ehr-tokenize", "tokenize", [*arguments, f"tokenizer.vocabulary={tmp_path}/vocab.txt"])
    content = TokenStore(tmp_path / "store").manifest.content
    # What has no number, or 0, is no token for a known code either.
    assert content["coverage"]["train"]["LAB"] == {"events": 8, "unk_events": 6, "codes": 2, "unk_codes": 1}
    assert "UNK 60.00% of events" in capsys.readouterr().out  # 18 of 30


def test_a_published_code_without_a_median_is_reported_as_unknown(fitted, frame, tmp_path):
    (tmp_path / "vocab.txt").write_text("<pad>\n<mask>\nA\nB\nOTHER\n")
    tokenizer = fitted(vocabulary=str(tmp_path / "vocab.txt"))
    rows = frame([(7, DAY, "A", 1.0), (7, DAY, "OTHER", 9.0), (7, DAY, "OTHER", 8.0)])
    found = coverage.code_events(rows, tokenizer)
    assert found == {"A": (1, 0, 0), "OTHER": (2, 2, 0)}


# -- any records

rows_of = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.one_of(st.none(), st.integers(0, 5)),
        st.sampled_from("ABCDE"),
        st.one_of(st.none(), st.sampled_from([0.0, -2.0, 0.5, 1.0, 1.0, 3.0, 8.0])),
    ),
    max_size=25,
)


def sorted_rows(found):
    found = sorted(found, key=lambda row: (row[0], -1 if row[1] is None else row[1]))
    return [(s, None if h is None else datetime(2020, 1, 1) + timedelta(hours=h), c, v) for s, h, c, v in found]


FIXED = [(0, datetime(2020, 1, 1), code, 2.0) for code in "ABC"]


def plain(rows):
    """Mean other than zero by subject and code."""
    values = {}
    for subject, _, code, value in rows:
        if value is not None:
            values.setdefault((subject, code), []).append(value)
    means = {key: float(np.float32(sum(found) / len(found))) for key, found in values.items()}
    return {key: mean for key, mean in means.items() if mean != 0}


@settings(max_examples=150, deadline=None)
@given(rows_of, rows_of)
def test_ranks_are_those_of_a_plain_loop(fitted_any, frame, words, train, other):
    train, other = FIXED + sorted_rows(train), sorted_rows(other)
    tokenizer = fitted_any(train)
    values = plain(train)
    medians = {c: statistics.median(abs(v) for (_, k), v in values.items() if k == c) for c in {k for _, k in values}}
    assert tokenizer.medians == pytest.approx(medians)
    found = words(tokenizer.vocabulary, tokenizer.encode(frame(other)))
    for subject in {row[0] for row in other}:
        mine = {code: value for (owner, code), value in plain(other).items() if owner == subject}
        known = sorted(
            (code for code in mine if code in medians),
            key=lambda code: (-(mine[code] / tokenizer.medians[code]), tokenizer.vocabulary[code]),
        )
        assert found[subject] == known + ["[UNK]"] * (len(mine) - len(known))


@pytest.fixture(scope="module")
def fitted_any(frame):
    def make(rows, **values):
        tokenizer = RankValue(RankValueConfig(min_count=1, **values))
        tokenizer.fit([tokenizer.summarize(frame(rows))])
        return tokenizer

    return make


@settings(max_examples=100, deadline=None)
@given(rows_of, st.integers(0, 5), st.sampled_from([0.0, 2.0]))
def test_a_sentence_is_seen_as_it_is_without_later_rows_or_not_at_all(fitted_any, frame, other, cut, hours):
    tokenizer = fitted_any(FIXED, hours=hours)
    limit = datetime(2020, 1, 1) + timedelta(hours=cut)
    rows = sorted_rows(other)
    until = [row for row in rows if row[1] is None or row[1] <= limit]
    whole, part = (seen(tokenizer.encode(frame(found)), limit) for found in (rows, until))
    times = {(subject, time) for subject, time, *_ in rows}
    for subject, tokens in whole.items():
        assert tokens in ([], part.get(subject))
        if hours or (subject, limit) in times:  # then nobody can tell that the record is over
            assert tokens == part.get(subject, [])


def seen(table, limit):
    """Tokens of each subject up to a time; those of a record without any time have none, which is written as 0."""
    end = int((limit - datetime(1970, 1, 1)) / MICROSECOND)
    spans = zip(table.subject_id.tolist(), table.offset[:-1].tolist(), table.offset[1:].tolist(), strict=True)
    return {s: [int(table.token[i]) for i in range(a, b) if 0 < table.time[i] <= end] for s, a, b in spans}


@settings(max_examples=50, deadline=None)
@given(rows_of, rows_of, st.booleans())
def test_shards_and_saving_change_nothing(fitted_any, frame, tmp_path_factory, train, other, reverse):
    train, other = sorted_rows(train), sorted_rows(other)
    one = fitted_any(FIXED + train)
    two = RankValue(RankValueConfig(min_count=1))
    shards = [FIXED, [row for row in train if row[0] < 3], [row for row in train if row[0] >= 3]]
    two.fit([two.summarize(frame(rows)) for rows in (reversed(shards) if reverse else shards)])
    folder = tmp_path_factory.mktemp("state")
    two.save(folder)
    again = RankValue(RankValueConfig())
    again.load(folder)
    assert one.vocabulary.tokens == again.vocabulary.tokens
    assert one.medians == again.medians
    for name, array in one.encode(frame(other)).arrays().items():
        assert np.array_equal(array, again.encode(frame(other)).arrays()[name]), name
