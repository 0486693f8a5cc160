"""Settings of text keep what was typed, on a command line, in a recipe, in a sweep and through a manifest."""

import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from ehr_core import Component, cli, config, hookimpl, plugins
from ehr_core.errors import ConfigError
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import MISSING, OmegaConf

SEEN = []


@dataclass
class FolderConfig:
    """A source with texts."""

    name: str = "folder"
    path: Path = MISSING
    code: str = "x"
    number: int = 1


@dataclass
class Nested:
    """Settings in settings."""

    note: str = ""
    rate: float = 0.5


@dataclass
class KeepConfig:
    """A command with texts of all forms."""

    defaults: list[Any] = field(default_factory=lambda: [{"source": "folder"}, "_self_"])
    recipe: str | None = None
    source: Any = MISSING
    output: Path | None = None
    title: str | None = "usual"
    nested: Nested = field(default_factory=Nested)
    runs: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    codes: dict[str, str] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    seed: int = 42
    fast: bool = False


def keep(settings):
    SEEN.append(settings)


@pytest.fixture(autouse=True)
def world(monkeypatch):
    made, here = types.ModuleType("made"), sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "ehr_core_test_texts", here)
    target = "ehr_core_test_texts:keep"
    made.ehr_commands = hookimpl(lambda: [Component(name="keep", target=target, config=KeepConfig, summary="Keep")])
    made.ehr_sources = hookimpl(
        lambda: [Component(name="folder", target=target, config=FolderConfig, summary="Folder")]
    )
    found = plugins.discover({"made": made})
    for place in (plugins, config, cli):
        monkeypatch.setattr(place, "registry", lambda: found)
    SEEN.clear()


def settings(*overrides):
    return config.to_settings(config.compose("keep", ["source.path=p", *overrides]))


TEXTS = [
    *("2024", "1e5", "007", "3.10", "1_000", "0x1F", "-1", "true", "no", "on", "NaN", "inf", "None", "NULL", "12:30"),
    *("a=b", "=", "with space", " x ", "a,b", "[x]", "[a, b]", "{a: b}", "a:b", "#x", "$HOME", "${x}", "${", "\\${x}"),
    *(
        "~/x",
        "+x",
        "@",
        "häuser",
        "数据",
        "x...",
        "it's",
        '"',
        "'a",
        "\\",
        "C:\\data\\",
        "a\nb",
        "\t",
        "choice(a,b)",
        "!x",
    ),
]


def read(override):
    """What a composition makes of an override, without the time that one takes."""
    (kept,) = config.texts_kept("keep", [override])
    value = OverridesParser.create().parse_override(kept).value()
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]


def part(text):
    """A text as a part of a list: in quotes where it has signs that part a list."""
    return text if not set(text) & set(",[]{}'\"") and text == text.strip() else config.recipes.literal(text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_what_was_typed_alone_and_in_lists_and_mappings(text):
    for key in ("title", "nested.note", "source.code", "codes.x", "+codes.x", "++nested.note"):
        assert read(f"{key}={text}") == text
    if text.strip():
        for key in ("output", "source.path"):
            assert read(f"{key}={text}") == text
    assert read(f"notes=[{part(text)}, b]") == [text, "b"]
    assert read(f"codes={{LAB//: {part(text)}}}") == {"LAB//": text}
    assert read(f"groups={{a: [{part(text)}, 007]}}") == {"a": [text, "007"]}


def test_all_of_them_arrive_in_the_settings():
    for one, two, three in zip(TEXTS[::12], TEXTS[5::12], TEXTS[9::12], strict=False):
        found = settings(
            f"title={one}", f"nested.note={two}", f"source.code={three}", f"output={one}", f"codes.x={two}"
        )
        assert (found.title, found.nested.note, found.source.code) == (one, two, three)
        assert (found.output, found.codes, found.seed) == (Path(one), {"x": two}, 42)
    found = settings(f"notes=[{','.join(map(part, TEXTS))}]", "runs=[2024, a=b]")
    assert (found.notes, found.runs) == (TEXTS, [Path("2024"), Path("a=b")])


def test_a_recipe_keeps_its_texts(tmp_path):
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"title": "${x}", "notes": [*TEXTS, "null"], "codes": {"a": "007"}})
    )
    found = settings(f"recipe={tmp_path}/r.yaml")
    assert (found.title, found.notes, found.codes) == ("${x}", [*TEXTS, "null"], {"a": "007"})


PLAIN = ["2024", "007", "1e5", "3.10", "1_000", "no", "on", "True", "2020-01-01", "12:30", "0x1F"]


def test_a_plain_value_of_a_recipe_is_a_text_where_a_text_is_wanted(tmp_path):
    for plain in PLAIN[1::6]:
        (tmp_path / "r.yaml").write_text(
            f"output: {plain}\ntitle: {plain}\ncodes: {{on: {plain}}}\nseed: 0x1F\nfast: on"
        )
        found = settings(f"recipe={tmp_path}/r.yaml")
        assert (found.output, found.title, found.codes) == (Path(plain), plain, {"on": plain})
        assert (found.seed, found.fast) == (31, True)
    (tmp_path / "r.yaml").write_text(f"notes: [{', '.join(PLAIN)}]\nruns: [{', '.join(PLAIN)}]")
    found = settings(f"recipe={tmp_path}/r.yaml")
    assert (found.notes, found.runs) == (PLAIN, list(map(Path, PLAIN)))


def test_null_is_none_where_none_is_allowed_and_a_text_where_not():
    assert settings("title=null").title is None
    assert settings("output=null").output is None
    assert settings("title='null'").title == "null"
    assert settings("source.path=null", "source.code=null").source == FolderConfig(path=Path("null"), code="null")


@pytest.mark.parametrize("given", ["'with space'", '"with space"', "with space"])
def test_what_is_in_quotes_is_the_text_within(given):
    assert settings(f"title={given}").title == "with space"


def test_an_empty_text_is_one_and_an_empty_path_is_refused():
    assert settings("title=", "nested.note=").title == ""
    for override in ("output=", "source.path=", "output= ", "output=''"):
        with pytest.raises(ConfigError, match="is empty; give a path"):
            settings(override)


def test_numbers_and_truth_values_stay_what_they_are():
    found = settings("seed=1_000", "fast=on", "nested.rate=1e-3", "source.number=7")
    assert (found.seed, found.fast, found.nested.rate, found.source.number) == (1000, True, 0.001, 7)
    with pytest.raises(ConfigError, match="seed"):
        settings("seed=many")


def test_a_sweep_runs_over_texts_and_keeps_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run("keep", "keep", ["-m", "title=2024,'a,b',x=y", "source.path=007", f"output={tmp_path}/out 1"]) == 0
    assert [found.title for found in SEEN] == ["2024", "a,b", "x=y"]
    assert {found.source.path for found in SEEN} == {Path("007")}
    assert {found.output.parent for found in SEEN} == {tmp_path / "out 1"}


@pytest.mark.parametrize("text", TEXTS)
def test_a_manifest_gives_texts_back(text):
    made = FolderConfig(path=Path(text), code=text)
    assert config.from_plain("source", config.to_plain(made)) == made


def test_settings_are_printed_as_they_are(capsys):
    cli.run("keep", "keep", ["--cfg", "title=${x}", "source.path=007"])
    printed = capsys.readouterr().out
    assert "title: ${x}" in printed
    assert "path: '007'" in printed


def test_any_text_is_kept():
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    signs = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    texts = st.text(signs, min_size=1) | st.text("ab01.,:=[]{}()'\"\\$#~ -_\n", min_size=1, max_size=12)
    texts = texts.filter(lambda t: t.strip() and t != "null" and not config.texts.QUOTED.fullmatch(t))

    @hypothesis.settings(max_examples=30, deadline=None)
    @hypothesis.given(texts, st.lists(texts, max_size=3))
    def check(text, many):
        for key in ("title", "output", "source.code", "source.path", "nested.note"):
            assert read(f"{key}={text}") == text
        parts = ",".join(map(config.recipes.literal, many))
        assert read(f"notes=[{parts}]") == many
        assert read(f"groups={{a: [{parts}]}}") == {"a": many}

    check()
