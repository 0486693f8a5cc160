"""Presets do what their files say, whichever command they are chosen for."""

import functools

import pytest
import yaml
from ehr_core import config
from ehr_core.config.sources import conf_folders
from ehr_core.errors import ConfigError
from ehr_core.plugins import KINDS, registry
from ehr_core.recipes import FOLDER
from omegaconf import OmegaConf

MANY = {kind.group for kind in KINDS.values() if kind.many}
PRESETS = sorted(
    (path.parent.name, path.stem, path)
    for folder in conf_folders()
    for path in folder.rglob("*.yaml")
    if path.parent.name != FOLDER
)


COMMANDS = {name: config.compose(name, []) for name, c in registry().components["command"].items() if c.config}


def commands_with(group):
    for name, composed in COMMANDS.items():
        if not isinstance(composed.get(group, 0), int | float):
            yield name


CASES = [(command, *preset) for preset in PRESETS for command in commands_with(preset[0])]


def leaves(value, *keys):
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from leaves(part, *keys, key)
    if not parts:
        yield keys, value


def test_there_are_presets_for_the_trainer_and_its_models():
    assert {("train", "4_exp", "train"), ("train", "gpt2_tiny", "model")} <= {(c, n, g) for c, g, n, _ in CASES}


@pytest.mark.parametrize(("command", "group", "name", "path"), CASES, ids=[f"{c}-{g}-{n}" for c, g, n, _ in CASES])
def test_a_preset_composes_to_the_values_in_its_file(command, group, name, path):
    chosen = f"[{name}]" if group in MANY else name
    composed = config.compose(command, [f"{group}={chosen}"])
    node = composed[group][name] if group in MANY else composed[group]
    found = OmegaConf.to_container(node)
    written = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "defaults"}
    for keys, value in leaves(written):
        place = functools.reduce(lambda part, key: part[key], keys, found)
        assert place == value, f"{group}.{'.'.join(map(str, keys))} is {place!r}, the file says {value!r}"


@pytest.mark.parametrize("command", sorted(name for name, c in registry().components["command"].items() if c.config))
def test_a_command_takes_what_it_requires_and_nothing_else(command):
    composed = config.compose(command, [])
    with_source = ["source=meds", "source.path=x"] if OmegaConf.is_missing(composed, "source") else []
    composed = config.compose(command, with_source)
    for key in OmegaConf.missing_keys(composed):
        OmegaConf.update(composed, key, "x")
    assert isinstance(config.to_settings(composed), registry().get("command", command).config)


def test_a_printed_configuration_is_a_recipe_that_gives_the_same(tmp_path):
    given = ["model=gpt2_tiny", "train=tiny", "predictors=[logistic,xgboost]", "predictors.xgboost.max_depth=2"]
    first = config.compose("train", given)
    (tmp_path / "whole.yaml").write_text(config.as_yaml(first))
    again = config.compose("train", [f"recipe={tmp_path / 'whole.yaml'}"])
    first["recipe"] = again["recipe"]
    assert config.to_settings(again) == config.to_settings(first)


@pytest.mark.parametrize(("given", "chosen"), [
    (["predictors=null"], []),
    (["predictors=[logistic,xgboost]", "predictors.logistic=null"], ["xgboost"]),
    (["adapter=null", "embedding=null", "predictors=[logistic]"], ["logistic"]),
])  # fmt: skip
def test_nothing_may_be_chosen_with_null(given, chosen):
    settings = config.to_settings(config.compose("train", given))
    assert list(settings.predictors) == chosen
    assert settings.adapter is settings.embedding is None


def test_a_component_is_added_by_choosing_it():
    with pytest.raises(ConfigError, match=r"cox is not chosen; choose it with predictors=\[logistic,cox\]"):
        config.to_settings(config.compose("train", ["predictors=logistic", "+predictors.cox={}"]))
