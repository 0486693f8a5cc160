"""Every setting of text, of every command and component that is installed, keeps what was typed."""

import dataclasses
import itertools
import typing
from pathlib import Path

import pytest
from ehr_core import config, plugins
from ehr_core.plugins import KINDS
from omegaconf import OmegaConf

TYPED = itertools.cycle(
    [
        *(
            "2024",
            "1e5",
            "007",
            "true",
            "3.10",
            "on",
            "1_000",
            "NaN",
            "None",
            "-1",
            "12:30",
            "a=b",
            "with space",
            "a,b",
        ),
        *("[x]", "a:b", "#x", "$HOME", "${x}", "~/x", "häuser", "x...", "it's", "with space"),
    ]
)
COMMANDS = sorted(plugins.registry().components["command"])


def texts(kind, place=""):
    """Keys of the settings of text in a dataclass."""
    for name, hint in typing.get_type_hints(kind).items():
        inner = [part for part in typing.get_args(hint) or (hint,) if part is not type(None)]
        if name in ("name", "defaults", "recipe") or typing.get_origin(hint) in (typing.ClassVar, list, dict):
            continue
        if inner in ([str], [Path]):
            yield f"{place}{name}"
        if dataclasses.is_dataclass(hint):
            yield from texts(hint, f"{place}{name}.")


def keys(command, group):
    """Every component of a group with its keys, as (overrides that choose it, keys)."""
    many = next(place.many for place in KINDS.values() if place.group == group)
    kinds = [kind for kind, place in KINDS.items() if place.group == group]
    for name, part in ((n, p) for kind in kinds for n, p in plugins.registry().components[kind].items()):
        found = list(texts(part.config, f"{group}.{name}." if many else f"{group}.")) if part.config else []
        if found:
            yield [f"{group}=[{name}]" if many else f"{group}={name}"], found


@pytest.mark.parametrize("command", COMMANDS)
def test_the_settings_of_a_command(command):
    found = list(texts(plugins.registry().get("command", command).config))
    given = {key: next(TYPED) for key in found}
    composed = config.compose(command, [f"{key}={text}" for key, text in given.items()])
    for key, text in given.items():
        assert OmegaConf.select(composed, key) in (text, Path(text)), key


def test_the_settings_of_every_component():
    settings = {f.name for f in dataclasses.fields(plugins.registry().get("command", "train").config)}
    checked = 0
    for group in sorted({place.group for place in KINDS.values()} & settings):
        for chosen, found in keys("train", group):
            given = {key: next(TYPED) for key in found}
            kept = config.texts_kept("train", [*chosen, *(f"{key}={text}" for key, text in given.items())])
            for key, text, override in zip(given, given.values(), kept[1:], strict=True):
                assert override.startswith(f"{key}='"), f"{chosen}: {key}={text}"
                checked += 1
    assert checked > 20
