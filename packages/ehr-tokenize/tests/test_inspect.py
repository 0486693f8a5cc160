"""``inspect``: right numbers, a page that asks for nothing, and no one's record unless it is made up or asked for."""

import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from ehr_core.cli import run
from ehr_core.errors import ConfigError
from ehr_core.formats.tokens import TokenStore
from ehr_tokenize import plugin
from ehr_tokenize.store import inspect_store

TRAIN = [
    (1, None, "GENDER//F"),
    *[(1, "2020-01-01", "LAB//K", float(n)) for n in range(9)],
    *[(1, "2020-01-05", "NOTE//<b>&")] * 4,
    (1, "2020-01-05", "NOTE//once"),
    (2, "2020-01-01", "ADMIT"),
    (2, "2020-01-01", "ADMIT"),
]


@pytest.fixture
def store(world, tmp_path):
    meds = world.write_meds(tmp_path / "meds", train=[TRAIN])
    arguments = ["source=meds", f"source.path={meds}", f"output={tmp_path}/store", "tokenizer.min_count=2"]
    run("ehr-tokenize", "tokenize", arguments)
    return tmp_path / "store"


@pytest.fixture
def synthetic(tmp_path):
    run("ehr-tokenize", "tokenize", ["source.num_subjects=60", f"output={tmp_path}/synthetic"])
    return tmp_path / "synthetic"


def inspect(*arguments) -> None:
    assert run("ehr-tokenize", "inspect-store", [str(a) for a in arguments]) == 0


def test_the_lines_say_what_is_in_the_store(store, capsys):
    inspect(store)
    out = capsys.readouterr().out
    assert re.search(r"train +1 shards, 2 subjects, 17 events, \d+ tokens, UNK \d", out)
    assert re.search(r"^ +9  LAB//K$", out, re.M)
    assert "NOTE                     1 of 5 events (20.00%), 1 of 2 codes" in out
    assert "treated: duplicates 4" in out
    assert f"page: {store}.html" in out


def test_counts_are_those_of_the_tokens(store):
    opened = TokenStore(store)
    figures = inspect_store.count(opened)
    tokens = np.concatenate([t.token for split in opened.splits() for t in opened.tables(split)])
    assert figures.tokens == len(tokens)
    for index, often in enumerate(figures.token_V):
        assert often == (tokens == index).sum()
    lengths = [np.diff(t.offset) for split in opened.splits() for t in opened.tables(split)]
    assert figures.length_S.tolist() == sorted(np.concatenate(lengths).tolist())


def test_bins_hold_every_subject_once():
    length = np.sort(np.array([0, 1, 2, 3, 4, 7, 8, 1000]))
    edges, counts = inspect_store._bins(length)
    assert sum(counts) == len(length)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        assert count == ((length >= low) & (length < high)).sum()
    assert inspect_store._bins(np.array([0, 0])) == ([0, 1], [2])


def test_the_page_is_whole_and_asks_for_nothing(synthetic, tmp_path):
    inspect(synthetic, f"page={tmp_path}/page.html")
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"(src|href)=|url\(|@import|<script|https?:", page)
    pictures = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(pictures) >= 4
    for picture in pictures:
        ElementTree.fromstring(picture)


def test_text_of_the_records_cannot_become_markup(store, tmp_path):
    inspect(store, f"page={tmp_path}/page.html", "--show-subject=1")
    page = (tmp_path / "page.html").read_text()
    assert "NOTE//&lt;b&gt;&amp;" in page
    assert "<b>&" not in page


def test_a_timeline_is_shown_of_a_synthetic_subject_only(store, synthetic, tmp_path):
    inspect(synthetic, f"page={tmp_path}/synthetic.html")
    assert "Timeline of the synthetic subject" in (tmp_path / "synthetic.html").read_text()
    inspect(store, f"page={tmp_path}/other.html")
    assert "Timeline" not in (tmp_path / "other.html").read_text()


def test_a_store_made_from_written_synthetic_records_is_known_to_be_made_up(tmp_path):
    from ehr_core.executors import Serial
    from ehr_core.plugin import SerialConfig
    from ehr_tokenize.synthetic import SyntheticConfig, SyntheticSource

    (tmp_path / "meds").mkdir()
    SyntheticSource(SyntheticConfig(num_subjects=40)).provide(tmp_path / "meds", Serial(SerialConfig()))
    run("ehr-tokenize", "tokenize", ["source=meds", f"source.path={tmp_path}/meds", f"output={tmp_path}/store"])
    assert inspect_store.is_synthetic(TokenStore(tmp_path / "store"))


@pytest.mark.parametrize("spelling", [["show_subject=1"], ["--show-subject", "1"], ["--show-subject=1"]])
def test_another_timeline_is_shown_when_it_is_asked_for(store, tmp_path, spelling):
    inspect(store, f"page={tmp_path}/page.html", *spelling)
    page = (tmp_path / "page.html").read_text()
    assert "Timeline of subject 1" in page
    assert "keep it as you keep those" in page
    assert "2020-01-01 00:00" in page


def test_a_subject_that_is_not_there_is_an_error(store):
    with pytest.raises(ConfigError, match=r"show_subject=77: .* has no such subject"):
        inspect(store, "show_subject=77")


def test_the_script_knows_the_words(store, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ehr-tokenize", "inspect", str(store)])
    assert plugin.main() == 0
    assert "most frequent tokens" in capsys.readouterr().out
