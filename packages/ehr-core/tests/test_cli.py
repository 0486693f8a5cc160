"""Command lines: positional settings, options for keys, and scripts whose first word is a command."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from ehr_core import Component, cli, config, hookimpl, plugins
from ehr_core.errors import ConfigError
from omegaconf import MISSING

SEEN = []


@dataclass
class LookConfig:
    """A command with two positional settings."""

    positional: ClassVar[tuple[str, ...]] = ("store", "folder")
    store: str = MISSING
    folder: str | None = None
    show_subject: int | None = None
    place: Path | None = None


@dataclass
class PlainConfig:
    """A command without."""

    seed: int = 1


def look(settings):
    SEEN.append(settings)
    return 0


@hookimpl
def ehr_commands():
    yield Component(name="look-at", target="ehr_core_test_cli:look", config=LookConfig, summary="Look")
    yield Component(name="plain", target="ehr_core_test_cli:look", config=PlainConfig, summary="Plain")


@pytest.fixture(autouse=True)
def world(monkeypatch):
    """A registry with the two commands only."""
    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "ehr_core_test_cli", module)
    found = plugins.discover({"mine": module})
    for place in (plugins, config, cli):
        monkeypatch.setattr(place, "registry", lambda: found)
    SEEN.clear()


def given(*arguments):
    assert cli.run("look", "look-at", list(arguments)) == 0
    return SEEN[-1]


def test_settings_may_be_given_by_place_and_by_name():
    assert given("a/b").store == "a/b"
    assert given("a/b", "show_subject=3", "c") == LookConfig("a/b", "c", 3)
    assert given("folder=c", "store=a") == LookConfig("a", "c")


@pytest.mark.parametrize("text", ["with blank", "it's", "a,b", "{x}", "[1]", "häuser", "C:\\data\\x"])
def test_a_place_takes_any_path(text):
    assert given(text).store == text


def test_options_stand_for_keys():
    assert given("a", "--show-subject", "7").show_subject == 7
    assert given("--show-subject=7", "a").show_subject == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "c"], "'c' is one too many; expected store folder"),
        (["a", "--show-subject"], "--show-subject needs a value"),
        (["a", "--show"], "unknown option --show"),
        ([], "store is required"),
    ],
)
def test_a_mistake_is_answered_with_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message):
        given(*arguments)


def test_a_command_without_places_takes_none():
    with pytest.raises(ConfigError, match="'5' is not a setting"):
        cli.run("plain", "plain", ["5"])
    with pytest.raises(ConfigError, match="unknown option --seed"):
        cli.run("plain", "plain", ["--seed", "5"])


def test_help_shows_the_places(capsys):
    cli.run("look", "look-at", ["--help"])
    assert capsys.readouterr().out.startswith("usage: look STORE FOLDER [key=value ...]")


def test_a_script_may_call_a_command_by_a_word_of_its_own(monkeypatch, capsys):
    entry = cli.program("tool", "ehr-core", "plain", look="look-at")
    monkeypatch.setattr(sys, "argv", ["tool", "look", "here"])
    assert entry() == 0
    assert SEEN[-1].store == "here"
    monkeypatch.setattr(sys, "argv", ["tool", "seed=5"])
    assert entry() == 0
    assert SEEN[-1].seed == 5
    monkeypatch.setattr(sys, "argv", ["tool", "nonsense"])
    assert cli.program("tool", "ehr-core", "", look="look-at")() == 2
    assert capsys.readouterr().err == "tool: error: 'nonsense' is no command. Commands: look.\n"


def test_settings_are_printed_as_yaml_that_can_be_read(capsys):
    cli.run("look", "look-at", ["--cfg", "store=a/b", "place=/c"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["store"], printed["place"]) == ("a/b", "/c")


def test_help_of_a_script_lists_its_commands_by_their_words(monkeypatch, capsys):
    summary = cli.registry().get("command", "look-at").summary
    for default in ("", "plain"):
        monkeypatch.setattr(sys, "argv", ["tool", "--help"])
        assert cli.program("tool", "ehr-core", default, "absent", look="look-at")() == 0
        said = capsys.readouterr().out
        assert said.startswith("usage: tool ")
        assert f"  look  {summary}" in said
        assert "absent" not in said
