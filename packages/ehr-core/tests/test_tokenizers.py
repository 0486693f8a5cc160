"""The base of tokenizers and the file of interval lengths, on the smallest tokenizer there is."""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from ehr_core.errors import FormatError
from ehr_core.formats.folder import read_json, write_json
from ehr_core.formats.intervals import Interval, Intervals
from ehr_core.formats.tokens import NO_TIME, Prefix, TokenTable
from ehr_core.formats.vocabulary import UNK, Token, Vocabulary
from ehr_core.tokenizers import BaseTokenizer


@dataclass
class BagConfig:
    """One token an event."""

    name: str = "bag"
    least: int = 1


class Bag(BaseTokenizer):
    saved = ("weight", "edges", "names")

    def __init__(self, settings):
        self.weight, self.edges, self.names = {}, [], []
        super().__init__(settings)

    def summarize(self, events):
        return events["code"].to_list()

    def fit(self, summaries):
        codes = sorted({code for part in summaries for code in part})
        self.vocabulary = Vocabulary.build([Token(code.partition("/")[0], "code", (code,), 1) for code in codes])
        self.weight = {code: {"size": len(code)} for code in codes}
        self.edges, self.names = [float(len(codes))], codes

    def encode(self, events):
        subject = events["subject_id"].unique().sort().to_numpy()
        offset = np.searchsorted(events["subject_id"].to_numpy(), np.append(subject, subject[-1] + 1)).astype(np.int64)
        token = [self.vocabulary.get(code.partition("/")[0]) for code in events["code"].to_list()]
        none = np.zeros(0, np.int64)
        return TokenTable(
            subject, offset, np.array(token, np.uint16), np.zeros(len(token), np.int64), np.full(len(subject), NO_TIME),
            np.zeros(len(subject) + 1, np.int64), none.astype(np.uint16), none.astype(np.uint16), none,
        )  # fmt: skip


def events(*codes):
    rows = [(1, datetime(2020, 1, 1), code, None) for code in codes]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    return pl.DataFrame(rows, schema, orient="row")


def fitted(*codes) -> Bag:
    tokenizer = Bag(BagConfig())
    tokenizer.fit([tokenizer.summarize(events(*codes))])
    return tokenizer


def test_growing_appends_new_codes_and_changes_nothing_else():
    tokenizer, new = fitted("A", "C"), fitted("A", "B", "D")
    new.weight["A"], new.edges = {"size": 99}, [7.0]
    tokenizer.grow(new)
    assert [token.token for token in tokenizer.vocabulary.tokens[7:]] == ["A", "C", "B", "D"]
    assert tokenizer.weight == {"A": {"size": 1}, "C": {"size": 1}, "B": {"size": 1}, "D": {"size": 1}}
    assert tokenizer.edges == [2.0]  # numbers stay
    assert tokenizer.names == ["A", "C", "B", "D"]


def test_a_token_that_grows_in_meaning_names_its_further_codes():
    tokenizer = fitted("A/1")
    tokenizer.grow(fitted("A/2", "B"))
    assert [token.codes for token in tokenizer.vocabulary.tokens[7:]] == [("A/1", "A/2"), ("B",)]


def test_new_slots_and_ages_of_the_prefix_follow_the_old_ones():
    tokenizer, new = fitted("A", "S"), fitted("B", "R", "T")
    ids = new.vocabulary.ids
    tokenizer.prefix = Prefix(("sex",), (tokenizer.vocabulary["S"],))
    new.prefix = Prefix(("race", "sex"), (ids["R"], ids["B"]), (ids["T"],) * 10, (ids["T"],) * 10, ids["R"])
    tokenizer.grow(new)
    ours = tokenizer.vocabulary.ids
    assert tokenizer.prefix == Prefix(
        ("sex", "race"), (ours["S"], ours["R"]), (ours["T"],) * 10, (ours["T"],) * 10, ours["R"]
    )


def test_events_of_codes_without_a_token_are_unknown_unless_their_parts_are_known():
    found = events("A/1", "A/9", "Z", "Z")
    assert fitted("A/1").unknown_events(found) == {"Z": 2}
    assert fitted("A/1").left_out_events(found) == {}
    assert fitted("A/1", "Z").unknown_events(found) == {}
    assert fitted("A/1").encode(found).token.tolist()[-1] == UNK


def test_what_is_saved_comes_back_with_its_settings(tmp_path):
    tokenizer = fitted("A", "B")
    tokenizer.settings.least = 5
    tokenizer.save(tmp_path)
    again = Bag(BagConfig())
    again.load(tmp_path)
    assert again.settings == BagConfig(least=5)
    assert (again.weight, again.edges, again.names) == (tokenizer.weight, tokenizer.edges, tokenizer.names)
    assert again.vocabulary.tokens == tokenizer.vocabulary.tokens
    assert not (tmp_path / "intervals.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": "other"}, "is of tokenizer 'other'"), ({"state": {}}, "is not the state of tokenizer 'bag': KeyError"),
     ({"settings": {"more": 1}}, "is not the state of tokenizer 'bag'")],
)  # fmt: skip
def test_the_state_of_something_else_is_refused_in_one_line(tmp_path, change, message):
    fitted("A").save(tmp_path)
    path = tmp_path / "tokenizer.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(FormatError, match=message) as error:
        Bag(BagConfig()).load(tmp_path)
    assert "\n" not in str(error.value)


def test_lengths_of_intervals_are_read_as_they_were_written(tmp_path):
    found = Intervals({"1h": Interval(3600.0, 1 / 24, 2 / 24), "=6mt": Interval(2e7, 180.0, None)})
    found.save(tmp_path)
    assert Intervals.load(tmp_path) == found
    assert found.mean_seconds == {"1h": 3600.0, "=6mt": 2e7}
    assert found.days == {"1h": (1 / 24, 2 / 24), "=6mt": (180.0, None)}


def test_lengths_of_intervals_of_an_older_folder_are_in_the_state_of_its_tokenizer(tmp_path):
    assert not Intervals.load(tmp_path)
    state = {"interval_estimates": {"1h": 3600.0}, "interval_days": {"1h": [1, None]}}
    write_json(tmp_path / "tokenizer.json", {"name": "x", "settings": {}, "state": state})
    assert Intervals.load(tmp_path) == Intervals({"1h": Interval(3600.0, 1.0, None)})
    write_json(tmp_path / "tokenizer.json", {"name": "x", "settings": {}, "state": {}})
    assert not Intervals.load(tmp_path)


@pytest.mark.parametrize("content", ['{"1h": {"mean_seconds": 1}}', '{"1h": 3}', "[]"])
def test_a_damaged_file_of_intervals_is_named(tmp_path, content):
    (tmp_path / "intervals.json").write_text(content)
    with pytest.raises(FormatError, match=r"intervals\.json: \$"):
        Intervals.load(tmp_path)
